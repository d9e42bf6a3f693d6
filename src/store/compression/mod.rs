//! Compressing layers, and reading them whatever they are compressed with.
//!
//! Compressed bytes depend on the compressor and its version, so nothing here is an identity: layers are known by the digest
//! of their tar, and a compressed form is remembered under [`Compression::label`]. What is written depends neither on the
//! number of cores nor on the sizes of the writes.

mod gzip;

use std::io::{self, BufReader, Read, Write};

use crate::error::{Error, Result};

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, which every registry and engine reads.
    Gzip {
        /// 0 (stored) to 9.
        level: u32,
    },
    /// Zstandard: smaller and several times faster; read by engines since about 2020.
    Zstd {
        /// 1 to 22; negative levels are faster still.
        level: i32,
    },
}

impl Compression {
    /// gzip at the level everybody uses.
    pub const GZIP: Self = Self::Gzip { level: 6 };
    /// Zstandard at its own default.
    pub const ZSTD: Self = Self::Zstd { level: 3 };

    /// Checks that the level is one the algorithm has.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn check(self) -> Result<()> {
        let range = match self {
            Self::None => return Ok(()),
            Self::Gzip { level } if level <= 9 => return Ok(()),
            Self::Zstd { level } if zstd::compression_level_range().contains(&level) => return Ok(()),
            Self::Gzip { .. } => 0..=9,
            Self::Zstd { .. } => zstd::compression_level_range(),
        };
        Err(Error::invalid(format!(
            "compression level {}: {} has levels {} to {}",
            self.level(),
            self.name(),
            range.start(),
            range.end()
        )))
    }

    /// Returns what an OCI media type of a layer ends in: nothing, `+gzip` or `+zstd`.
    #[must_use]
    pub fn media_suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip { .. } => "+gzip",
            Self::Zstd { .. } => "+zstd",
        }
    }

    /// Returns the name of everything that decides the compressed bytes: algorithm, level, compressor and its version.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Gzip { level } => format!("gzip-{level} {}", gzip::VERSION),
            Self::Zstd { level } => format!("zstd-{level} {} jobs {JOB_SIZE}", zstd::zstd_safe::version_string()),
        }
    }

    fn level(self) -> i64 {
        match self {
            Self::None => 0,
            Self::Gzip { level } => level.into(),
            Self::Zstd { level } => level.into(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "no compression",
            Self::Gzip { .. } => "gzip",
            Self::Zstd { .. } => "zstd",
        }
    }
}

/// How much each worker of zstd takes at once, in bytes. The library's own choice, four windows, takes four times the memory
/// for 1 % smaller output.
const JOB_SIZE: u32 = 2 << 20;

/// Compresses what is written to it, on all cores.
pub struct Encoder<W: Write>(Inner<W>);

enum Inner<W: Write> {
    Plain(W),
    Gzip(gzip::Writer<W>),
    Zstd(Box<zstd::Encoder<'static, W>>),
}

impl<W: Write> Encoder<W> {
    /// Starts to compress into `out`.
    ///
    /// # Errors
    /// `InvalidArgument` for a level the algorithm does not have.
    pub fn new(out: W, compression: Compression) -> Result<Self> {
        compression.check()?;
        Ok(Self(match compression {
            Compression::None => Inner::Plain(out),
            Compression::Gzip { level } => Inner::Gzip(gzip::Writer::new(out, level)),
            Compression::Zstd { level } => {
                let mut encoder = zstd::Encoder::new(out, level)?;
                // With one worker or more the output is always the same; with none it is another.
                encoder.multithread(u32::try_from(rayon::current_num_threads()).unwrap_or(1).max(1))?;
                encoder.set_parameter(zstd::zstd_safe::CParameter::JobSize(JOB_SIZE))?;
                Inner::Zstd(Box::new(encoder))
            }
        }))
    }

    /// Writes what is left and returns the output.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Inner::Plain(out) => Ok(out),
            Inner::Gzip(writer) => writer.finish(),
            Inner::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Plain(out) => out.write(data),
            Inner::Gzip(writer) => writer.write(data),
            Inner::Zstd(encoder) => encoder.write(data),
        }
    }

    /// Flushes only what is not compressed: flushing a compressor would change its output.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::Plain(out) => out.flush(),
            Inner::Gzip(_) | Inner::Zstd(_) => Ok(()),
        }
    }
}

/// What a stream turned out to be compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Nothing known, so presumably nothing.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz, read only.
    Xz,
    /// bzip2, read only.
    Bzip2,
}

impl Format {
    /// Tells the format by the first bytes of a stream; six are enough.
    #[must_use]
    pub fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // The second is a skippable frame, which some compressors begin with.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::Plain,
        }
    }
}

/// A decompressed stream.
pub struct Decoder<'a> {
    format: Format,
    stream: Box<dyn Read + Send + 'a>,
}

impl<'a> Decoder<'a> {
    /// Looks at the start of a stream and decompresses it accordingly. Reads ahead.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn new(mut input: impl Read + Send + 'a) -> io::Result<Self> {
        let mut start = Vec::with_capacity(6);
        input.by_ref().take(6).read_to_end(&mut start)?;
        let format = Format::sniff(&start);
        let input = BufReader::with_capacity(64 << 10, io::Cursor::new(start).chain(input));
        let stream: Box<dyn Read + Send + 'a> = match format {
            Format::Plain => Box::new(input),
            Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            // Refuses windows above 128 MiB, which bounds its memory.
            Format::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
            Format::Xz => Box::new(lzma_rust2::XzReader::new(input, true)),
            Format::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        };
        Ok(Self { format, stream })
    }

    /// Returns what the stream is compressed with.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }
}

impl Read for Decoder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let error = match self.stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return self.read(buffer),
            Err(error) => error,
            ok => return ok,
        };
        // Errors of the input are passed on; what the decompressors say themselves has no errno.
        let ours = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let from_input = error.raw_os_error().is_some() || ours.is_some();
        if from_input || self.format == Format::Plain {
            return Err(error);
        }
        let what = if error.kind() == io::ErrorKind::UnexpectedEof { "truncated" } else { "malformed" };
        Err(Error::corrupt(format!("{what} {:?} data: {error}", self.format).to_lowercase()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    /// Text-like and incompressible stretches, never the same twice in a row.
    pub(super) fn sample(len: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut data = Vec::with_capacity(len + 8);
        while data.len() < len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let word = if data.len() % 4096 < 3072 { state % 97 } else { state };
            data.extend_from_slice(&word.to_le_bytes());
        }
        data.truncate(len);
        data
    }

    fn compress(data: &[u8], compression: Compression, threads: usize, write_size: usize) -> Vec<u8> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
            for part in data.chunks(write_size) {
                encoder.write_all(part).unwrap();
            }
            encoder.finish().unwrap()
        })
    }

    fn decompress(data: &[u8]) -> io::Result<(Format, Vec<u8>)> {
        let mut decoder = Decoder::new(data)?;
        let mut out = Vec::new();
        decoder.read_to_end(&mut out)?;
        Ok((decoder.format(), out))
    }

    #[test]
    fn output_depends_neither_on_threads_nor_on_write_sizes() {
        // Around multiples of the block, where an extra block could creep in, and across several windows.
        for len in [0, 1, gzip::BLOCK - 1, gzip::BLOCK, gzip::BLOCK * 4, gzip::BLOCK * 33 + 7, 5 << 20] {
            let data = sample(len);
            for compression in [Compression::GZIP, Compression::Gzip { level: 1 }, Compression::ZSTD] {
                let expected = compress(&data, compression, 1, usize::MAX >> 1);
                for (threads, write_size) in [(1, 7777), (2, 65536), (3, 1 << 20), (8, 512)] {
                    let got = compress(&data, compression, threads, write_size);
                    assert!(got == expected, "{compression:?}, {len} bytes, {threads} threads, {write_size} a write");
                }
                let (format, back) = decompress(&expected).unwrap();
                assert!(back == data, "{compression:?}, {len} bytes do not come back");
                assert_ne!(format, Format::Plain);
            }
        }
    }

    #[test]
    fn compressed_bytes_change_only_together_with_the_label() {
        // When a compressor is upgraded and its bytes change, its label must change too: remembered digests depend on it.
        let data = sample(1 << 20);
        let digest = |compression| kiln_graph::Digest::of(&compress(&data, compression, 2, 65536)).short();
        assert_eq!(
            [Compression::GZIP, Compression::ZSTD].map(|compression| (compression.label(), digest(compression))),
            [
                ("gzip-6 zlib-rs 0.6 blocks 131072".to_owned(), "05164bb46d9f".to_owned()),
                ("zstd-3 1.5.7 jobs 2097152".to_owned(), "18328231fdbf".to_owned())
            ]
        );
    }

    #[test]
    fn every_format_of_the_field_is_read() {
        let data = sample(100_000);
        let run = |program: &str| {
            use std::process::{Command, Stdio};
            let mut child = Command::new(program)
                .arg("-c")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{program}: {error}"));
            let mut stdin = child.stdin.take().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    stdin.write_all(&data).unwrap();
                    drop(stdin);
                });
                child.wait_with_output().unwrap().stdout
            })
        };
        let formats = [("gzip", Format::Gzip), ("zstd", Format::Zstd), ("xz", Format::Xz), ("bzip2", Format::Bzip2)];
        for (program, expected) in formats {
            let compressed = run(program);
            assert_eq!(decompress(&compressed).unwrap(), (expected, data.clone()), "{program}");
            let twice = [compressed.clone(), compressed].concat();
            assert_eq!(decompress(&twice).unwrap().1.len(), 2 * data.len(), "concatenated {program}");
        }
        assert_eq!(decompress(&data).unwrap(), (Format::Plain, data));
    }

    #[test]
    fn truncated_and_damaged_data_is_corrupt_in_every_format() {
        let data = sample(300_000);
        for compression in [Compression::GZIP, Compression::ZSTD] {
            let whole = compress(&data, compression, 2, 65536);
            let error = Error::from(decompress(&whole[..whole.len() / 2]).unwrap_err());
            assert_eq!(error.kind(), Kind::Corrupt, "{compression:?}: {error}");
            let mut damaged = whole.clone();
            let middle = damaged.len() / 2;
            damaged[middle..middle + 64].fill(0xff);
            let outcome = decompress(&damaged);
            assert!(outcome.is_err() || outcome.unwrap().1 != data);
        }
    }

    #[test]
    fn a_level_that_does_not_exist_is_refused() {
        let error = Encoder::new(Vec::new(), Compression::Gzip { level: 10 }).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "compression level 10: gzip has levels 0 to 9");
        assert!(Encoder::new(Vec::new(), Compression::Zstd { level: 23 }).is_err());
    }
}
