//! Remembered file digests, so that an unchanged context is not read again.
//!
//! A digest is remembered by device, inode, size, mtime and ctime, with git's rule for racily clean files: one that changed
//! so shortly before it was looked at that a later change might not show in its times is not remembered. One memo file belongs
//! to one directory of a client; it is replaced as a whole, and losing it costs time only.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::error::{Result, ResultExt as _};
use crate::store::tree::Metadata;

const MAGIC: &[u8; 8] = b"kilnmem1";

/// Device, inode, size, mtime, ctime, flags, digest.
const RECORD: usize = 8 + 8 + 8 + 12 + 12 + 1 + 32;
const KEY: usize = 16;

/// Times of file systems are not finer than this; a tick of the slowest kernel clock is 10 ms.
const RACY_NS: i128 = 100_000_000;

/// A memo larger than this begins anew.
const MAX_RECORDS: usize = 2_000_000;

fn memo_path(dir: &Path, context: &Path) -> PathBuf {
    let name = blake3::hash(context.as_os_str().as_encoded_bytes()).to_hex();
    dir.join(&name[..32])
}

/// What is remembered of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The BLAKE3 of its data.
    pub hash: [u8; 32],
    /// Whether it has extended attributes that are copied.
    pub has_xattrs: bool,
}

/// The remembered digests of one directory.
#[derive(Debug)]
pub struct Memo {
    path: PathBuf,
    /// The records of the file, sorted by device and inode.
    known: Vec<u8>,
    /// New records.
    fresh: Mutex<Vec<[u8; RECORD]>>,
    /// When looking began, in nanoseconds since 1970.
    now_ns: i128,
}

impl Memo {
    /// Opens the memo of a directory of a client. A missing or malformed one is empty. Blocking.
    ///
    /// `dir` is where memos are kept, `context` the directory's absolute path.
    #[must_use]
    pub fn open(dir: &Path, context: &Path, now_ns: i64) -> Self {
        let path = memo_path(dir, context);
        let mut known = std::fs::read(&path).unwrap_or_default();
        let valid = known.starts_with(MAGIC) && (known.len() - MAGIC.len()).is_multiple_of(RECORD);
        if valid {
            known.drain(..MAGIC.len());
        } else {
            known.clear();
        }
        Self { path, known, fresh: Mutex::default(), now_ns: now_ns.into() }
    }

    /// Forgets the memo of a directory that is no more. Blocking; losing a memo costs time only, keeping one costs space only.
    pub fn forget(dir: &Path, context: &Path) {
        let _ = std::fs::remove_file(memo_path(dir, context));
    }

    /// Returns what is remembered of a file, if it is still the same.
    #[must_use]
    pub fn get(&self, metadata: &Metadata) -> Option<Remembered> {
        let wanted = record(metadata, &Remembered { hash: [0; 32], has_xattrs: false });
        let count = self.known.len() / RECORD;
        let at = |index: usize| &self.known[index * RECORD..(index + 1) * RECORD];
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low.midpoint(high);
            if at(middle)[..KEY] < wanted[..KEY] { low = middle + 1 } else { high = middle }
        }
        let found = (low < count).then(|| at(low))?;
        let (same, rest) = found.split_at(RECORD - 33);
        (same == &wanted[..RECORD - 33])
            .then(|| Remembered { hash: rest[1..].try_into().expect("32 bytes remain"), has_xattrs: rest[0] != 0 })
    }

    /// Remembers a file that was just read, unless it changed too recently.
    pub fn put(&self, metadata: &Metadata, remembered: &Remembered) {
        let ns = |time: crate::store::tree::Time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
        if ns(metadata.mtime).max(ns(metadata.ctime)) + RACY_NS < self.now_ns {
            self.put_trusted(metadata, remembered);
        }
    }

    /// Remembers a file that nobody else writes to, however recently it changed.
    pub fn put_trusted(&self, metadata: &Metadata, remembered: &Remembered) {
        let record = record(metadata, remembered);
        self.fresh.lock().expect("no panic happens while the lock is held").push(record);
    }

    /// Writes what is new. Blocking.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self) -> Result<()> {
        let mut fresh = std::mem::take(&mut *self.fresh.lock().expect("no panic happens while the lock is held"));
        if fresh.is_empty() {
            return Ok(());
        }
        fresh.sort_unstable();
        fresh.dedup_by(|a, b| a[..KEY] == b[..KEY]);
        let known = if self.known.len() / RECORD > MAX_RECORDS { &[] } else { self.known.as_slice() };
        let mut merged = Vec::with_capacity(MAGIC.len() + known.len() + fresh.len() * RECORD);
        merged.extend_from_slice(MAGIC);
        let mut old = known.chunks_exact(RECORD).peekable();
        for new in &fresh {
            while let Some(record) = old.next_if(|record| record[..KEY] < new[..KEY]) {
                merged.extend_from_slice(record);
            }
            old.next_if(|record| record[..KEY] == new[..KEY]);
            merged.extend_from_slice(new);
        }
        old.for_each(|record| merged.extend_from_slice(record));
        let temporary = self.path.with_extension(std::process::id().to_string());
        std::fs::write(&temporary, merged).context(|| format!("write {}", temporary.display()))?;
        std::fs::rename(&temporary, &self.path).context(|| format!("write {}", self.path.display()))
    }
}

/// Big-endian, so that records sort as their keys do.
fn record(metadata: &Metadata, remembered: &Remembered) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        record[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    let (major, minor) = metadata.inode.device;
    put(&major.to_be_bytes());
    put(&minor.to_be_bytes());
    put(&metadata.inode.number.to_be_bytes());
    put(&metadata.size.to_be_bytes());
    for time in [metadata.mtime, metadata.ctime] {
        put(&time.seconds.to_be_bytes());
        put(&time.nanos.to_be_bytes());
    }
    put(&[u8::from(remembered.has_xattrs)]);
    put(&remembered.hash);
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tree::{Inode, Kind, Time};

    fn file(number: u64, seconds: i64) -> Metadata {
        Metadata {
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 5,
            mtime: Time { seconds, nanos: 0 },
            ctime: Time { seconds, nanos: 0 },
            rdev: (0, 0),
            links: 1,
            inode: Inode { device: (8, 1), number },
            allocated: 4096,
        }
    }

    fn remembered(byte: u8) -> Remembered {
        Remembered { hash: [byte; 32], has_xattrs: byte % 2 == 1 }
    }

    const NOW: i64 = 1_000_000_000_000;

    #[test]
    fn digests_are_found_again_and_updated() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Memo::open(dir.path(), Path::new("/context"), NOW);
        let memo = open();
        for number in [5, 3, 9, 7] {
            memo.put(&file(number, 10), &remembered(u8::try_from(number).unwrap()));
        }
        memo.save().unwrap();
        let memo = open();
        assert_eq!(memo.get(&file(3, 10)), Some(remembered(3)));
        assert_eq!(memo.get(&file(9, 10)), Some(remembered(9)));
        assert_eq!(memo.get(&file(4, 10)), None);
        assert_eq!(memo.get(&file(3, 11)), None, "a file with another time is another file");
        memo.put(&file(3, 11), &remembered(30));
        memo.put(&file(1, 11), &remembered(1));
        memo.save().unwrap();
        let memo = open();
        assert_eq!(memo.get(&file(3, 11)), Some(remembered(30)));
        assert_eq!((memo.get(&file(1, 11)), memo.get(&file(7, 10))), (Some(remembered(1)), Some(remembered(7))));
    }

    #[test]
    fn a_file_that_changed_a_moment_ago_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let memo = Memo::open(dir.path(), Path::new("/context"), NOW);
        memo.put(&file(1, NOW / 1_000_000_000), &remembered(1));
        memo.save().unwrap();
        assert_eq!(Memo::open(dir.path(), Path::new("/context"), NOW).get(&file(1, NOW / 1_000_000_000)), None);
    }

    #[test]
    fn a_malformed_memo_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let memo = Memo::open(dir.path(), Path::new("/c"), NOW);
        std::fs::write(&memo.path, b"kilnmem1 and then rubbish").unwrap();
        assert_eq!(Memo::open(dir.path(), Path::new("/c"), NOW).get(&file(1, 1)), None);
    }
}
