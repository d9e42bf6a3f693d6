//! The root directory: its tree, its format version, the database handle and locks.
//!
//! Everything Kiln keeps lives under one directory. Objects are files and directories committed by rename; records are rows
//! of one SQLite database in WAL mode, so several processes work on one root at once and none holds authoritative state in
//! memory. What the tables mean is their modules' business: each brings a [`Schema`].

mod db;
mod durable;
mod lock;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

pub use db::{Db, Schema};
pub use durable::{boot_id, drop_lost, mark_durable, recover};
pub use lock::{FileLock, LockMode};

use crate::error::{Error, Kind, Result, ResultExt as _};

/// The layout version this program reads and writes.
const FORMAT: &str = "kiln 1\n";

/// An opened root directory. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Root(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    dir: OwnedFd,
    db: Db,
    boot_id: String,
    _in_use: FileLock,
}

impl Root {
    /// Opens a root directory, making it when it is missing, and brings the tables of `schemas` up to date.
    ///
    /// Holds a shared lock on it for as long as any clone lives: a later format upgrade waits for that. Blocking.
    ///
    /// # Errors
    /// `Forbidden` when the directory cannot be written; `Unsupported` when a newer Kiln made it; `Corrupt` when the
    /// database is damaged.
    pub fn open(path: &Path, schemas: &[Schema]) -> Result<Self> {
        create(path)?;
        let path = std::fs::canonicalize(path).context(|| format!("open {}", path.display()))?;
        let dir = rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open {}", path.display()))?;
        let in_use = FileLock::acquire(&path.join("lock"), LockMode::Shared)?;
        check_format(&path)?;
        let db = Db::open(&path.join("kiln.db"), schemas)?;
        Ok(Self(Arc::new(Inner { path, dir, db, boot_id: boot_id()?, _in_use: in_use })))
    }

    /// Returns the directory's absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns the directory.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.0.dir.as_fd()
    }

    /// Returns the database.
    #[must_use]
    pub fn db(&self) -> &Db {
        &self.0.db
    }

    /// Returns the id of this boot, which marks records that a power cut may still lose.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.0.boot_id
    }

    /// Returns a directory below the root, making it (0700) when it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        make_private_dir(&path)?;
        Ok(path)
    }
}

/// Makes a directory that only its owner can enter; an existing one is left as it is.
fn make_private_dir(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) => Err(error).context(|| format!("create directory {}", path.display())),
    }
}

fn create(path: &Path) -> Result<()> {
    let denied = |error: Error| {
        error.with_kind(Kind::Forbidden).context(format!(
            "cannot write to the root directory {} (run as root, or choose another one with --root or KILN_ROOT)",
            path.display()
        ))
    };
    make_private_dir(path).map_err(denied)?;
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).map_err(|errno| denied(errno.into()))
}

fn check_format(path: &Path) -> Result<()> {
    let file = path.join("format");
    match std::fs::read_to_string(&file) {
        Ok(found) if found == FORMAT => Ok(()),
        Ok(found) => Err(Error::unsupported(format!(
            "{} was made by another version of Kiln (format {:?}, this one reads {:?}); use that version or another --root",
            path.display(),
            found.trim(),
            FORMAT.trim()
        ))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Several may be first at once, in one process or in processes of one id, each in a namespace of its own.
            let unique = getrandom::u64().map_err(|error| Error::internal(format!("make a file name: {error}")))?;
            let temporary = path.join(format!("format.{unique:016x}"));
            std::fs::write(&temporary, FORMAT).context(|| format!("write {}", temporary.display()))?;
            std::fs::rename(&temporary, &file).context(|| format!("write {}", file.display()))
        }
        Err(error) => Err(error).context(|| format!("read {}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_made_once_and_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = Root::open(&path, &[]).unwrap();
        let second = Root::open(&path, &[]).unwrap();
        assert_eq!(first.path(), second.path());
        assert_eq!(first.boot_id().len(), 36);
    }

    #[test]
    fn a_new_root_can_be_opened_by_many_at_once() {
        for _ in 0..8 {
            let dir = tempfile::tempdir().unwrap();
            std::thread::scope(|scope| {
                let open = || Root::open(dir.path(), &[]).map(drop).unwrap();
                let openers: Vec<_> = (0..16).map(|_| scope.spawn(open)).collect();
                openers.into_iter().for_each(|opener| opener.join().unwrap());
            });
            let names: Vec<_> =
                std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert!(!names.iter().any(|name| name.to_string_lossy().starts_with("format.")), "{names:?}");
        }
    }

    #[test]
    fn a_root_of_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("format"), "kiln 99\n").unwrap();
        let error = Root::open(dir.path(), &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("kiln 99"), "{error}");
    }
}
