//! Writing logs: lines are cut out of the container's output, stamped, and appended; full files are rotated.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{Bounds, Line, MAX_ENTRY, Output, file_path};
use crate::error::{Result, ResultExt as _};

/// Appends a container's output to its log. Blocking, but only for the page cache.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: File,
    size: u64,
    bounds: Bounds,
    /// Output that has not yet ended in a line break, for standard output and standard error.
    unfinished: [Vec<u8>; 2],
}

impl LogWriter {
    /// Opens the log at `path` for appending, making it (0640) when it is missing.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, bounds: Bounds) -> Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, bounds, unfinished: [Vec::new(), Vec::new()] })
    }

    /// Appends output that arrived at `time_ns` (nanoseconds since 1970). Text without a line break is held back until the
    /// line ends, grows beyond 16 KiB, or [`LogWriter::finish`] is called.
    ///
    /// # Errors
    /// When the disk is full or the log cannot be rotated; the output is lost, later output may succeed.
    pub fn write(&mut self, output: Output, bytes: &[u8], time_ns: i64) -> Result<()> {
        let mut pending = std::mem::take(&mut self.unfinished[output as usize]);
        let mut lines = Vec::with_capacity(bytes.len() + bytes.len() / 4 + 128);
        let mut rest = bytes;
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1);
            let (piece, after) = rest.split_at(end.min(MAX_ENTRY - pending.len()));
            pending.extend_from_slice(piece);
            rest = after;
            if pending.ends_with(b"\n") || pending.len() == MAX_ENTRY {
                let before = lines.len();
                encode(&mut lines, output, &pending, time_ns)?;
                pending.clear();
                if self.size + lines.len() as u64 > self.bounds.max_size_bytes {
                    self.append(&lines[..before])?;
                    lines.drain(..before);
                    self.rotate()?;
                }
            }
        }
        self.unfinished[output as usize] = pending;
        self.append(&lines)
    }

    /// Writes what was held back.
    ///
    /// # Errors
    /// As for [`LogWriter::write`].
    pub fn finish(&mut self, time_ns: i64) -> Result<()> {
        let mut lines = Vec::new();
        for output in [Output::Stdout, Output::Stderr] {
            let pending = std::mem::take(&mut self.unfinished[output as usize]);
            if !pending.is_empty() {
                encode(&mut lines, output, &pending, time_ns)?;
            }
        }
        self.append(&lines)
    }

    fn append(&mut self, lines: &[u8]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.file.write_all(lines).context(|| format!("write {}", self.path.display()))?;
        self.size += lines.len() as u64;
        Ok(())
    }

    /// Begins a new file, unless this one is new itself: an entry may be longer than a file should be.
    fn rotate(&mut self) -> Result<()> {
        if self.size == 0 {
            return Ok(());
        }
        let last = self.bounds.max_files.max(1) - 1;
        for generation in (0..last).rev() {
            let (from, to) = (file_path(&self.path, generation), file_path(&self.path, generation + 1));
            match std::fs::rename(&from, &to) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context(|| format!("rotate {}", from.display()));
                }
                _ => {}
            }
        }
        if last == 0 {
            std::fs::remove_file(&self.path).context(|| format!("rotate {}", self.path.display()))?;
        }
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o640).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    options.open(path).context(|| format!("open {}", path.display()))
}

fn encode(lines: &mut Vec<u8>, output: Output, text: &[u8], time_ns: i64) -> Result<()> {
    let time = jiff::Timestamp::from_nanosecond(time_ns.into()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    // Like docker, what is not UTF-8 becomes U+FFFD.
    let line = Line { log: String::from_utf8_lossy(text), stream: output, time };
    serde_json::to_writer(&mut *lines, &line)?;
    lines.push(b'\n');
    Ok(())
}
