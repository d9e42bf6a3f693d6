//! gzip in independent blocks on all cores.
//!
//! The input is cut into blocks of one size; each is deflated by itself, primed with the 32 KiB before it, and ends on a byte
//! boundary (a sync flush), so the pieces just follow each other in one gzip member. The cut alone decides the output: zlib-rs
//! gives other bytes for other write sizes, and for a compressor that was used before, so each block gets one call and one
//! compressor of its own.

use std::io::{self, Write};

use flate2::{Compress, FlushCompress};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::ParallelSlice as _;

/// What decides the bytes besides the level. A test fails when an upgrade of the library changes them.
pub(super) const VERSION: &str = "zlib-rs 0.6 blocks 131072";
/// The size of a block in bytes.
pub(super) const BLOCK: usize = 128 << 10;
/// How far deflate looks back.
const HISTORY: usize = 32 << 10;

/// Method deflate, no flags, no time, no extra flags, unknown system: nothing that depends on when or where.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// An empty last block: what ends the stream wherever the last cut fell.
const END: [u8; 2] = [3, 0];

/// Writes one gzip member. Holds two blocks a core, uncompressed and compressed.
pub(super) struct Writer<W> {
    out: W,
    level: flate2::Compression,
    /// Up to [`HISTORY`] bytes that are written already, then what is not.
    window: Vec<u8>,
    history: usize,
    capacity: usize,
    started: bool,
    crc: crc32fast::Hasher,
    /// The length of the input modulo 2^32, as the format wants it.
    len: u32,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W, level: u32) -> Self {
        let capacity = 2 * rayon::current_num_threads() * BLOCK;
        Self {
            out,
            level: flate2::Compression::new(level),
            window: Vec::with_capacity(HISTORY + capacity),
            history: 0,
            capacity,
            started: false,
            crc: crc32fast::Hasher::new(),
            len: 0,
        }
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.compress()?;
        self.out.write_all(&END)?;
        self.out.write_all(&self.crc.finalize().to_le_bytes())?;
        self.out.write_all(&self.len.to_le_bytes())?;
        Ok(self.out)
    }

    /// Compresses and writes what the window holds; only the last time does it end within a block.
    fn compress(&mut self) -> io::Result<()> {
        if !self.started {
            self.out.write_all(&HEADER)?;
            self.started = true;
        }
        let (window, history, level) = (&self.window, self.history, self.level);
        let block = |(index, data): (usize, &[u8])| {
            let start = history + index * BLOCK;
            let mut crc = crc32fast::Hasher::new();
            crc.update(data);
            Ok((deflate(data, &window[start.saturating_sub(HISTORY)..start], level)?, crc))
        };
        let blocks: io::Result<Vec<_>> = window[history..].par_chunks(BLOCK).enumerate().map(block).collect();
        for (data, crc) in blocks? {
            self.out.write_all(&data)?;
            self.crc.combine(&crc);
        }
        let keep = self.window.len().saturating_sub(HISTORY);
        self.window.drain(..keep);
        self.history = self.window.len();
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = self.capacity - (self.window.len() - self.history);
        let taken = data.len().min(room);
        self.window.extend_from_slice(&data[..taken]);
        self.len = self.len.wrapping_add(u32::try_from(taken).expect("a window is far below 4 GiB"));
        if taken == room {
            self.compress()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn deflate(data: &[u8], dictionary: &[u8], level: flate2::Compression) -> io::Result<Vec<u8>> {
    let mut compress = Compress::new(level, false);
    if !dictionary.is_empty() {
        compress.set_dictionary(dictionary)?;
    }
    let mut out = Vec::with_capacity(data.len() / 2 + 1024);
    let mut taken = 0;
    loop {
        let before = compress.total_in();
        compress.compress_vec(&data[taken..], &mut out, FlushCompress::Sync)?;
        taken += usize::try_from(compress.total_in() - before).expect("no more is taken than was offered");
        if taken == data.len() && out.len() < out.capacity() {
            return Ok(out);
        }
        out.reserve(data.len() / 4 + 1024);
    }
}
