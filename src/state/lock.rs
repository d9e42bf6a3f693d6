//! Locks between processes, by `flock(2)` on a file. The kernel releases them when the process dies.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::error::{Error, Result, ResultExt as _};

/// Whether others may hold the lock at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Together with other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

/// A held lock; dropping it releases it.
#[derive(Debug)]
pub struct FileLock {
    _file: OwnedFd,
}

impl FileLock {
    /// Waits for the lock. Blocking. The file is made when it is missing and stays.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn acquire(path: &Path, mode: LockMode) -> Result<Self> {
        let file = open(path)?;
        let operation = match mode {
            LockMode::Shared => FlockOperation::LockShared,
            LockMode::Exclusive => FlockOperation::LockExclusive,
        };
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation))
            .map_err(|errno| Error::from(errno).context(format!("lock {}", path.display())))?;
        Ok(Self { _file: file })
    }

    /// Takes the lock if nobody is in the way, else returns `None` at once.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn try_acquire(path: &Path, mode: LockMode) -> Result<Option<Self>> {
        let file = open(path)?;
        let operation = match mode {
            LockMode::Shared => FlockOperation::NonBlockingLockShared,
            LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation)) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::from(errno).context(format!("lock {}", path.display()))),
        }
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).context(|| format!("open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclusive_lock_keeps_others_out_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let shared = FileLock::acquire(&path, LockMode::Shared).unwrap();
        assert!(FileLock::try_acquire(&path, LockMode::Shared).unwrap().is_some());
        assert!(FileLock::try_acquire(&path, LockMode::Exclusive).unwrap().is_none());
        drop(shared);
        assert!(FileLock::try_acquire(&path, LockMode::Exclusive).unwrap().is_some());
    }
}
