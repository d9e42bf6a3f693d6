//! Looking at files of a result, or of a container: symbolic links stay within it.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::filesync::{Entry, EntryKind};
use crate::store::tree::{self, Metadata};

/// The largest file, and the largest part of one, that is read at once.
const MAX_READ: u64 = 16 << 20;

/// A directory that is looked into. All its methods are blocking.
#[derive(Debug)]
pub(in crate::solver) struct View {
    root: OwnedFd,
    resolve: ResolveFlags,
}

impl View {
    /// Looks into a directory and whatever is mounted in it.
    pub(in crate::solver) fn of(root: OwnedFd) -> Self {
        Self { root, resolve: ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS }
    }

    /// Looks into a directory, and not into what is mounted in it.
    pub(in crate::solver) fn without_mounts(root: OwnedFd) -> Self {
        let Self { root, resolve } = Self::of(root);
        Self { root, resolve: resolve | ResolveFlags::NO_XDEV }
    }

    /// Returns another handle.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub(in crate::solver) fn try_clone(&self) -> Result<Self> {
        Ok(Self { root: self.root.try_clone()?, resolve: self.resolve })
    }

    /// Narrows the view to a directory in it.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` for what is no directory.
    pub(in crate::solver) fn below(self, path: &str) -> Result<Self> {
        if path.trim_matches('/').is_empty() {
            return Ok(self);
        }
        let root = self.open(path, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(Self { root, resolve: self.resolve })
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd> {
        let relative = path.trim_start_matches('/');
        let relative = if relative.is_empty() { "." } else { relative };
        tree::openat2(&self.root, relative, flags | OFlags::CLOEXEC, Mode::empty(), self.resolve).map_err(|errno| {
            let kind = match errno {
                Errno::NOENT => Kind::NotFound,
                Errno::NOTDIR | Errno::LOOP => Kind::InvalidArgument,
                Errno::XDEV => return Error::invalid(format!("open {path}: something else is mounted there")),
                _ => Kind::Internal,
            };
            // What clients look for.
            Error::from(errno).context(format!("open {path}")).with_kind(kind)
        })
    }

    /// Reads a part of a file; without a length, to its end.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` for what is no file and for more than is read at once.
    pub(in crate::solver) fn read(&self, path: &str, offset: u64, length: Option<u64>) -> Result<Vec<u8>> {
        let file = std::fs::File::from(self.open(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
        let metadata = file.metadata().context(|| format!("read {path}"))?;
        if !metadata.is_file() {
            return Err(Error::invalid(format!("read {path}: it is no file")));
        }
        let rest = metadata.len().saturating_sub(offset);
        let length = length.map_or(rest, |length| length.min(rest));
        if length > MAX_READ {
            return Err(Error::invalid(format!("read {path}: more than {} MiB at once", MAX_READ >> 20)));
        }
        let mut data = vec![0; usize::try_from(length).unwrap_or_default()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut data, offset).context(|| format!("read {path}"))?;
        Ok(data)
    }

    /// Reads a file as a whole.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` for what is no file and for one of more than `max_bytes`.
    pub(in crate::solver) fn whole(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>> {
        use std::io::Read as _;
        let file = std::fs::File::from(self.open(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
        if !file.metadata().context(|| format!("read {path}"))?.is_file() {
            return Err(Error::invalid(format!("read {path}: it is no file")));
        }
        let mut data = Vec::new();
        file.take(max_bytes + 1).read_to_end(&mut data).context(|| format!("read {path}"))?;
        if data.len() as u64 > max_bytes {
            return Err(Error::invalid(format!("read {path}: it is larger than {} MiB", max_bytes >> 20)));
        }
        Ok(data)
    }

    /// Lists a directory: names that match a pattern, all when it is empty.
    ///
    /// # Errors
    /// As for [`Self::read`]; `InvalidArgument` for a malformed pattern.
    pub(in crate::solver) fn list(&self, path: &str, pattern: &str) -> Result<Vec<Entry>> {
        let glob = kiln_dockerfile::glob::Glob::parse(pattern);
        let glob = glob.map_err(|error| Error::invalid(format!("malformed pattern {pattern:?}: {error}")))?;
        let dir = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let list = tree::list(&dir).context(|| format!("list {path}"))?;
        let names = list.into_iter().filter(|entry| pattern.is_empty() || glob.matches(&entry.name.to_string_lossy()));
        names.map(|entry| entry_at(&dir, &entry.name, entry.name.to_string_lossy().into_owned())).collect()
    }

    /// Says what a path is, not following a symbolic link at its end.
    ///
    /// # Errors
    /// `NotFound`.
    pub(in crate::solver) fn stat(&self, path: &str) -> Result<Entry> {
        let file = self.open(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
        let metadata = Metadata::of(&file).context(|| format!("read {path}"))?;
        let target = match metadata.kind {
            tree::Kind::Symlink => rustix::fs::readlinkat(&file, c"", Vec::new())?.to_string_lossy().into_owned(),
            _ => String::new(),
        };
        Ok(entry_of(last, &metadata, target))
    }
}

fn entry_at(dir: &OwnedFd, name: &std::ffi::CStr, path: String) -> Result<Entry> {
    let metadata = Metadata::at(dir, name).context(|| format!("read {path}"))?;
    let target = match metadata.kind {
        tree::Kind::Symlink => String::from_utf8_lossy(&tree::read_link(dir, name)?).into_owned(),
        _ => String::new(),
    };
    Ok(entry_of(path, &metadata, target))
}

fn entry_of(path: String, metadata: &Metadata, target: String) -> Entry {
    let kind = match metadata.kind {
        tree::Kind::Dir => EntryKind::Dir,
        tree::Kind::File => EntryKind::File { size: metadata.size },
        tree::Kind::Symlink => EntryKind::Symlink { target },
        tree::Kind::Fifo => EntryKind::Fifo,
        tree::Kind::Socket => EntryKind::Socket,
        kind @ (tree::Kind::Char | tree::Kind::Block) => EntryKind::Device { kind, number: metadata.rdev },
    };
    let mtime_ns = metadata.mtime.seconds.saturating_mul(1_000_000_000).saturating_add(metadata.mtime.nanos.into());
    let Metadata { mode, uid, gid, .. } = *metadata;
    Entry { path, kind, mode, uid, gid, mtime_ns, xattrs: Vec::new() }
}
