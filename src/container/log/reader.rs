//! Reading logs: the last lines, a span of time, and following a log that is being written.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify;

use super::{Entry, Line, file_path};
use crate::error::{Error, Result, ResultExt as _};
use crate::task::Cancel;

/// Which entries are wanted. Times are in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Only so many at the end of what is there now; `None` is all.
    pub tail: Option<usize>,
    /// Only from this time on.
    pub since_ns: Option<i64>,
    /// Only up to this time.
    pub until_ns: Option<i64>,
}

impl Range {
    fn contains(&self, entry: &Entry) -> bool {
        self.since_ns.is_none_or(|since| entry.time_ns >= since)
            && self.until_ns.is_none_or(|until| entry.time_ns <= until)
    }

    fn is_over(&self, entry: &Entry) -> bool {
        self.until_ns.is_some_and(|until| entry.time_ns > until)
    }
}

/// Reads one container's log.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    range: Range,
    /// The newest file and its inode, read up to where the last call stopped.
    current: Option<(BufReader<File>, u64)>,
    partial: Vec<u8>,
}

/// How often a follower looks whether it was cancelled.
const PATIENCE: Duration = Duration::from_millis(200);

impl LogReader {
    /// Prepares to read the log whose newest file is `path`; it need not exist yet.
    #[must_use]
    pub fn new(path: &Path, range: Range) -> Self {
        Self { path: path.to_owned(), range, current: None, partial: Vec::new() }
    }

    /// Passes what is there now to `sink`, oldest first. Blocking.
    ///
    /// With a tail, holds at most that many entries in memory.
    ///
    /// # Errors
    /// Those of `sink`, and when a file cannot be read. Lines that are not log entries are skipped: a crash can leave half
    /// a line.
    pub fn read(&mut self, sink: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let files = self.open_all()?;
        let mut last = VecDeque::new();
        let range = self.range;
        let mut accept = |entry: Entry| -> Result<()> {
            if !range.contains(&entry) {
                return Ok(());
            }
            match range.tail {
                None => sink(entry),
                Some(0) => Ok(()),
                Some(count) => {
                    if last.len() == count {
                        last.pop_front();
                    }
                    last.push_back(entry);
                    Ok(())
                }
            }
        };
        let newest = files.len().saturating_sub(1);
        for (index, (file, inode)) in files.into_iter().enumerate() {
            let mut reader = BufReader::new(file);
            drain(&mut reader, &mut self.partial, &mut accept)?;
            if index == newest {
                self.current = Some((reader, inode));
            } else {
                self.partial.clear();
            }
        }
        last.into_iter().try_for_each(sink)
    }

    /// Passes what is there and then what is appended to `sink`, until `is_live` says that nobody writes any more and all
    /// was read, or `cancel` is set. Blocking.
    ///
    /// # Errors
    /// As for [`LogReader::read`]; `Cancelled`.
    pub fn follow(
        &mut self,
        cancel: &Cancel,
        is_live: &dyn Fn() -> bool,
        sink: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        let watch = Watch::new(&self.path)?;
        self.read(sink)?;
        loop {
            let live = is_live();
            if self.read_appended(sink)? || !live {
                return Ok(());
            }
            cancel.check()?;
            watch.wait(PATIENCE)?;
        }
    }

    /// Reads what was appended since the last call; says whether the range is over.
    fn read_appended(&mut self, sink: &mut dyn FnMut(Entry) -> Result<()>) -> Result<bool> {
        let range = self.range;
        let mut over = false;
        let mut accept = |entry: Entry| {
            over |= range.is_over(&entry);
            if range.contains(&entry) { sink(entry) } else { Ok(()) }
        };
        loop {
            if let Some((reader, _)) = &mut self.current {
                drain(reader, &mut self.partial, &mut accept)?;
            }
            let Some((file, inode)) = open(&self.path)? else { return Ok(over) };
            if self.current.as_ref().is_some_and(|(_, known)| *known == inode) {
                return Ok(over);
            }
            // The file was rotated. What was appended to the old one between its last read and the rotation is still there.
            let before = self.current.take();
            let known = before.as_ref().map(|(_, known)| *known);
            if let Some((mut reader, _)) = before {
                drain(&mut reader, &mut self.partial, &mut accept)?;
            }
            for file in missed(&self.path, known, inode)? {
                drain(&mut BufReader::new(file), &mut self.partial, &mut accept)?;
            }
            self.partial.clear();
            self.current = Some((BufReader::new(file), inode));
        }
    }

    /// Opens all files, oldest first, each once even when they are rotated under way.
    fn open_all(&self) -> Result<Vec<(File, u64)>> {
        /// Each failure means a rotation in the middle of it; files could be in the wrong order then.
        const ATTEMPTS: usize = 50;
        let mut files = Vec::new();
        for _ in 0..ATTEMPTS {
            files = open_from(&self.path, None)?;
            let newest = open(&self.path)?.map(|(_, inode)| inode);
            if files.last().map(|(_, inode)| *inode) == newest {
                break;
            }
        }
        Ok(files)
    }
}

/// The files that are newer than the one with inode `known` (all, if there was none) and older than the one with inode
/// `next`, oldest first.
fn missed(path: &Path, known: Option<u64>, next: u64) -> Result<Vec<File>> {
    let files = open_from(path, known)?.into_iter();
    Ok(files.take_while(|(_, inode)| *inode != next).map(|(file, _)| file).collect())
}

/// Opens the files, back to but without the one with inode `until`; oldest first, each once.
///
/// While files are renamed, the oldest first, there is one generation missing between those that have moved and those that
/// have not; and a file that moves under way is met twice.
fn open_from(path: &Path, until: Option<u64>) -> Result<Vec<(File, u64)>> {
    let mut files: Vec<(File, u64)> = Vec::new();
    let mut is_after_gap = false;
    for generation in 0.. {
        match open(&file_path(path, generation))? {
            Some((_, inode)) if until == Some(inode) => break,
            Some((file, inode)) => {
                is_after_gap = false;
                if !files.iter().any(|(_, known)| *known == inode) {
                    files.push((file, inode));
                }
            }
            None if is_after_gap => break,
            None => is_after_gap = true,
        }
    }
    files.reverse();
    Ok(files)
}

fn open(path: &Path) -> Result<Option<(File, u64)>> {
    match File::open(path) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some((file, inode)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("open {}", path.display())),
    }
}

/// Passes all complete lines to `accept`; what comes after the last line break stays in `partial`.
fn drain(
    reader: &mut BufReader<File>,
    partial: &mut Vec<u8>,
    accept: &mut dyn FnMut(Entry) -> Result<()>,
) -> Result<()> {
    while reader.read_until(b'\n', partial)? > 0 && partial.ends_with(b"\n") {
        let entry = decode(partial);
        partial.clear();
        if let Some(entry) = entry {
            accept(entry)?;
        }
    }
    Ok(())
}

fn decode(line: &[u8]) -> Option<Entry> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    let time_ns = i64::try_from(line.time.as_nanosecond()).ok()?;
    Some(Entry { time_ns, output: line.stream, text: line.log.into_owned().into_bytes() })
}

/// Notices changes in the log's directory.
struct Watch(OwnedFd);

impl Watch {
    fn new(log: &Path) -> Result<Self> {
        let dir = log.parent().ok_or_else(|| Error::internal("a log lies in a directory"))?;
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let events = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, dir, events).context(|| format!("watch {}", dir.display()))?;
        Ok(Self(watch))
    }

    /// Waits until something changed, at most `patience`.
    fn wait(&self, patience: Duration) -> Result<()> {
        let timeout = rustix::time::Timespec::try_from(patience).expect("the patience is short");
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        match rustix::io::read(&self.0, &mut buffer) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
