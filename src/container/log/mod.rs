//! Container logs in docker's `json-file` format, bounded by rotation.
//!
//! One JSON object a line: `{"log":"text\n","stream":"stdout","time":"2026-01-02T03:04:05.678Z"}`. The newest file is
//! `<id>-json.log`; older ones end in `.1`, `.2` and so on. The shim writes, engines read, through the file system only.

mod reader;
mod writer;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use reader::{LogReader, Range};
pub use writer::LogWriter;

/// Which of the container's outputs a piece of log came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How much log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// A file that has grown to this many bytes is rotated.
    pub max_size_bytes: u64,
    /// How many files are kept, the newest included; at least 1.
    pub max_files: u32,
}

impl Bounds {
    /// Returns the usual bounds, but for what is given.
    #[must_use]
    pub fn of(max_size_bytes: Option<u64>, max_files: Option<u64>) -> Self {
        let usual = Self::default();
        let files = max_files.map(|files| u32::try_from(files).unwrap_or(u32::MAX));
        Self {
            max_size_bytes: max_size_bytes.unwrap_or(usual.max_size_bytes),
            max_files: files.unwrap_or(usual.max_files),
        }
    }
}

impl Default for Bounds {
    /// 5 files of 20 MB, what docker's `local` driver keeps. (Its `json-file` keeps everything until the disk is full.)
    fn default() -> Self {
        Self { max_size_bytes: 20_000_000, max_files: 5 }
    }
}

/// Longer lines are logged in several entries, all but the last without a line break (moby, `daemon/logger/copier.go`).
const MAX_ENTRY: usize = 16 << 10;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it was written, in nanoseconds since 1970.
    pub time_ns: i64,
    /// Where it came from.
    pub output: Output,
    /// The bytes, usually one line with its line break.
    pub text: Vec<u8>,
}

/// The wire form of an entry.
#[derive(Debug, Serialize, Deserialize)]
struct Line<'a> {
    log: std::borrow::Cow<'a, str>,
    stream: Output,
    time: jiff::Timestamp,
}

/// The path of the newest file (generation 0) or of an older one.
fn file_path(newest: &Path, generation: u32) -> PathBuf {
    if generation == 0 {
        return newest.to_owned();
    }
    let mut name = newest.as_os_str().to_owned();
    name.push(format!(".{generation}"));
    name.into()
}

#[cfg(test)]
mod tests;
