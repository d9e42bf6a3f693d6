//! The directory of one container: what lies where, and the locks that engines and the shim meet at.

use std::path::{Path, PathBuf};

use super::record::ContainerId;
use crate::error::{Error, Result, ResultExt as _};
use crate::state::{FileLock, LockMode};

/// A container's directory.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
    id: ContainerId,
}

impl Files {
    pub(super) fn new(containers: &Path, id: &ContainerId) -> Self {
        Self { dir: containers.join(id.as_str()), id: id.clone() }
    }

    /// Returns the directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the newest log file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join(format!("{}-json.log", self.id))
    }

    /// Returns what the container sees as `/etc/hosts`.
    #[must_use]
    pub fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    /// Returns what the container sees as `/etc/hostname`.
    #[must_use]
    pub fn hostname(&self) -> PathBuf {
        self.dir.join("hostname")
    }

    /// Returns what the container sees as `/etc/resolv.conf`.
    #[must_use]
    pub fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    /// Returns the directory of the volume that is the container's mount number `index`.
    #[must_use]
    pub fn volume(&self, index: usize) -> PathBuf {
        self.dir.join("volumes").join(index.to_string())
    }

    pub(super) fn make(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = std::fs::DirBuilder::new().mode(0o710).create(&self.dir);
        made.context(|| format!("create directory {}", self.dir.display()))
    }

    /// Waits for the right to start, remove or rename the container: whoever does one of these holds this lock. Blocking.
    ///
    /// # Errors
    /// `NotFound` when the container has gone.
    pub(super) fn turn(&self) -> Result<FileLock> {
        self.locked(|| FileLock::acquire(&self.dir.join("lock"), LockMode::Exclusive))
    }

    /// Waits for the right to be the container's shim; the kernel takes it back when the shim dies. Blocking.
    ///
    /// # Errors
    /// `NotFound` when the container has gone.
    pub(super) fn become_shim(&self) -> Result<FileLock> {
        self.locked(|| FileLock::acquire(&self.shim_lock(), LockMode::Exclusive))
    }

    /// Takes the place of a shim that is not there; `None` when it is. Blocking, but not for long.
    ///
    /// # Errors
    /// `NotFound` when the container has gone.
    pub(super) fn replace_shim(&self) -> Result<Option<FileLock>> {
        self.locked(|| FileLock::try_acquire(&self.shim_lock(), LockMode::Exclusive))
    }

    /// Says whether the shim is there. Blocking, but not for long.
    #[must_use]
    pub fn has_shim(&self) -> bool {
        self.dir.exists() && matches!(FileLock::try_acquire(&self.shim_lock(), LockMode::Shared), Ok(None))
    }

    fn shim_lock(&self) -> PathBuf {
        self.dir.join("shim.lock")
    }

    fn locked<T>(&self, lock: impl FnOnce() -> Result<T>) -> Result<T> {
        let gone = || Error::not_found(format!("No such container: {}", self.id));
        match lock() {
            Err(_) if !self.dir.exists() => Err(gone()),
            // The lock may have been got on a file that was just removed.
            Ok(_) if !self.dir.exists() => Err(gone()),
            locked => locked,
        }
    }
}
