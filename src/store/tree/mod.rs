//! File trees by directory descriptor: reading directories and metadata, and applying metadata.
//!
//! Nothing here resolves a path of more than one component, so a symbolic link in the tree leads nowhere: every name is
//! looked up in an open directory and never followed. The functions return the kernel's errno; callers, who know the path,
//! add it. What a tree means (a layer, a volume, a build context) is the callers' business.

mod copy;
mod remove;
mod walk;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, StatxFlags, Timespec, Timestamps, Uid,
};
use rustix::io::{Errno, Result};

pub use copy::{CopyTree, copy_data, copy_tree, create_file, make_dir, make_node, open_file_made, replacing};
pub use remove::{remove, remove_tree};
pub(in crate::store) use walk::too_deep;
pub use walk::{Found, Step, Walk};

/// How deep directories may nest in a tree that is walked or unpacked; each level holds a descriptor.
pub const MAX_DEPTH: usize = 256;

/// The sort of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket, which no layer holds.
    Socket,
}

impl Kind {
    fn of(file_type: FileType) -> Option<Self> {
        Some(match file_type {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Dir,
            FileType::Symlink => Self::Symlink,
            FileType::CharacterDevice => Self::Char,
            FileType::BlockDevice => Self::Block,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::Unknown => return None,
        })
    }

    /// Returns the kernel's name for it, for `mknod(2)`.
    #[must_use]
    pub fn file_type(self) -> FileType {
        match self {
            Self::File => FileType::RegularFile,
            Self::Dir => FileType::Directory,
            Self::Symlink => FileType::Symlink,
            Self::Char => FileType::CharacterDevice,
            Self::Block => FileType::BlockDevice,
            Self::Fifo => FileType::Fifo,
            Self::Socket => FileType::Socket,
        }
    }
}

/// A point in time, as file systems keep it: seconds since 1970, which may be negative, and nanoseconds after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

impl Time {
    /// Returns it in nanoseconds since 1970.
    #[must_use]
    pub fn ns(self) -> i64 {
        self.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nanos))
    }
}

/// What tells one file from another under two names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Inode {
    /// The file system's device, major and minor.
    pub device: (u32, u32),
    /// The number on that file system.
    pub number: u64,
}

/// What `statx(2)` tells of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The sort of file.
    pub kind: Kind,
    /// Permissions with set-user-ID, set-group-ID and sticky bits (0o7777).
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The size in bytes; of a symbolic link, the length of its target.
    pub size: u64,
    /// When the content last changed.
    pub mtime: Time,
    /// When the content or the metadata last changed.
    pub ctime: Time,
    /// The device a device node stands for, major and minor.
    pub rdev: (u32, u32),
    /// How many names the file has.
    pub links: u32,
    /// Which file it is.
    pub inode: Inode,
    /// How much of the disk it takes, in bytes.
    pub allocated: u64,
}

impl Metadata {
    /// Reads the metadata of a name in a directory, not following it.
    ///
    /// # Errors
    /// `NOENT` when there is none; others as `statx(2)`.
    pub fn at(dir: impl AsFd, name: &CStr) -> Result<Self> {
        Self::read(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Reads the metadata of an open file.
    ///
    /// # Errors
    /// As `statx(2)`.
    pub fn of(file: impl AsFd) -> Result<Self> {
        Self::read(file.as_fd(), c"", AtFlags::EMPTY_PATH)
    }

    fn read(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<Self> {
        let stat = rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)?;
        let mode = u32::from(stat.stx_mode);
        let time = |at: rustix::fs::StatxTimestamp| Time { seconds: at.tv_sec, nanos: at.tv_nsec };
        Ok(Self {
            kind: Kind::of(FileType::from_raw_mode(mode)).ok_or(Errno::INVAL)?,
            mode: mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
            rdev: (stat.stx_rdev_major, stat.stx_rdev_minor),
            links: stat.stx_nlink,
            inode: Inode { device: (stat.stx_dev_major, stat.stx_dev_minor), number: stat.stx_ino },
            allocated: stat.stx_blocks * 512,
        })
    }
}

/// Extended attributes, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xattrs(Vec<(CString, Vec<u8>)>);

impl Xattrs {
    /// Sorts attributes by name; of two values for one name the later counts.
    #[must_use]
    pub fn new(attributes: impl IntoIterator<Item = (CString, Vec<u8>)>) -> Self {
        let sorted: std::collections::BTreeMap<_, _> = attributes.into_iter().collect();
        Self(sorted.into_iter().collect())
    }

    /// Returns names and values in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&CStr, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_c_str(), value.as_slice()))
    }

    /// Says whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads those attributes of an open file that `keep` wants. A file system without attributes has none.
    ///
    /// # Errors
    /// As `listxattr(2)` and `getxattr(2)`.
    pub fn of(file: impl AsFd, keep: impl Fn(&CStr) -> bool) -> Result<Self> {
        let file = file.as_fd();
        Self::read(
            keep,
            |buffer| rustix::fs::flistxattr(file, buffer),
            |name, buffer| rustix::fs::fgetxattr(file, name, buffer),
        )
    }

    /// Reads those attributes of a name in a directory that `keep` wants, not following it: for what cannot be opened.
    ///
    /// # Errors
    /// As `llistxattr(2)` and `lgetxattr(2)`.
    pub fn at(dir: impl AsFd, name: &CStr, keep: impl Fn(&CStr) -> bool) -> Result<Self> {
        let path = proc_path(dir.as_fd(), name);
        Self::read(
            keep,
            |buffer| rustix::fs::llistxattr(&path, buffer),
            |name, buffer| rustix::fs::lgetxattr(&path, name, buffer),
        )
    }

    fn read(
        keep: impl Fn(&CStr) -> bool,
        list: impl Fn(&mut [u8]) -> Result<usize>,
        get: impl Fn(&CStr, &mut [u8]) -> Result<usize>,
    ) -> Result<Self> {
        let mut small = [0; 256];
        let large;
        let names = match list(&mut small) {
            Ok(len) => &small[..len],
            Err(Errno::OPNOTSUPP) => return Ok(Self::default()),
            Err(Errno::RANGE) => {
                large = grow(|buffer| list(buffer))?;
                &large
            }
            Err(errno) => return Err(errno),
        };
        let mut attributes = Vec::new();
        for name in names.split_inclusive(|byte| *byte == 0) {
            let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
            if keep(name) {
                attributes.push((name.to_owned(), grow(|buffer| get(name, buffer))?));
            }
        }
        attributes.sort();
        Ok(Self(attributes))
    }
}

/// Calls `fill` with larger buffers until its answer fits.
fn grow(fill: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 1024];
    loop {
        match fill(&mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                return Ok(buffer);
            }
            // The kernel gives no more than 64 KiB of either.
            Err(Errno::RANGE) if buffer.len() < 1 << 17 => buffer.resize(buffer.len() * 4, 0),
            Err(errno) => return Err(errno),
        }
    }
}

/// A path to a name in a directory, for calls that have no directory argument. Its last component is not resolved by it.
fn proc_path(dir: BorrowedFd<'_>, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    CString::new(path).expect("a C string holds no NUL")
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The name.
    pub name: CString,
    /// The number of the file on its file system.
    pub inode: u64,
    kind: Option<Kind>,
}

impl Name {
    /// Tells the sort of file, asking the kernel where the directory itself does not tell.
    ///
    /// # Errors
    /// As `statx(2)`.
    pub fn kind(&self, dir: impl AsFd) -> Result<Kind> {
        match self.kind {
            Some(kind) => Ok(kind),
            None => Ok(Metadata::at(dir, &self.name)?.kind),
        }
    }
}

/// Opens a directory in a directory, not following a symbolic link.
///
/// # Errors
/// `NOENT`; `NOTDIR` or `LOOP` when it is something else; others as `openat(2)`.
pub fn open_dir(dir: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Opens a regular file in a directory to be read, not following a symbolic link and not waiting for a pipe.
///
/// Reading it leaves the time of access alone where the kernel permits that, which saves writing the inode.
///
/// # Errors
/// As `openat(2)`.
pub fn open_file(dir: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    let dir = dir.as_fd();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty()),
        opened => opened,
    }
}

/// Does what `openat2(2)` does, again when a rename or a mount somewhere on the machine raced with a `..` (`EAGAIN`).
///
/// # Errors
/// The errno of `openat2(2)`; `EAGAIN` only when every one of many attempts raced.
pub fn openat2(
    dir: impl AsFd,
    path: impl rustix::path::Arg,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    path.into_with_c_str(|path| {
        let mut attempts = (0..128).map(|_| rustix::fs::openat2(&dir, path, flags, mode, resolve));
        attempts.find(|result| !matches!(result, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
    })
}

/// Opens a directory by its path.
///
/// # Errors
/// As `open(2)`, with the path.
pub fn open_root(path: &Path) -> crate::error::Result<OwnedFd> {
    use crate::error::ResultExt as _;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).context(|| format!("open {}", path.display()))
}

/// Lists a directory, sorted by name. Two threads must not list one descriptor at a time.
///
/// # Errors
/// As `getdents64(2)`.
pub fn list(dir: impl AsFd) -> Result<Vec<Name>> {
    let dir = dir.as_fd();
    rustix::fs::seek(dir, SeekFrom::Start(0))?;
    // A name has at most 255 bytes, so no record outgrows the buffer.
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            let kind = Kind::of(entry.file_type());
            names.push(Name { name: entry.file_name().to_owned(), inode: entry.ino(), kind });
        }
    }
    names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(names)
}

/// Reads the target of a symbolic link.
///
/// # Errors
/// As `readlinkat(2)`.
pub fn read_link(dir: impl AsFd, name: &CStr) -> Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// What is set on a file once it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions with set-user-ID, set-group-ID and sticky bits (0o7777); symbolic links have none.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When the content last changed; the time of access is set to the same.
    pub mtime: Time,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

impl Attributes {
    /// Takes over what `metadata` says.
    #[must_use]
    pub fn of(metadata: &Metadata, xattrs: Xattrs) -> Self {
        let Metadata { mode, uid, gid, mtime, .. } = *metadata;
        Self { mode, uid, gid, mtime, xattrs }
    }

    /// Sets everything on an open file or directory; returns how many extended attributes the file system or the kernel
    /// did not accept, which is no error, as with docker.
    ///
    /// # Errors
    /// As `fchown(2)`, `fsetxattr(2)`, `fchmod(2)` and `futimens(2)`.
    pub fn apply(&self, file: impl AsFd) -> Result<usize> {
        let file = file.as_fd();
        // In this order: changing the owner clears the set-ID bits and file capabilities.
        rustix::fs::fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        let refused =
            self.set_xattrs(|name, value| rustix::fs::fsetxattr(file, name, value, rustix::fs::XattrFlags::empty()))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode))?;
        rustix::fs::futimens(file, &self.times())?;
        Ok(refused)
    }

    /// Sets everything on what cannot be opened: a symbolic link or a node, which nobody else may replace meanwhile. Returns
    /// the same as [`Self::apply`].
    ///
    /// # Errors
    /// As the calls of [`Self::apply`].
    pub fn apply_at(&self, dir: impl AsFd, name: &CStr, kind: Kind) -> Result<usize> {
        let dir = dir.as_fd();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        let path = proc_path(dir, name);
        let refused =
            self.set_xattrs(|name, value| rustix::fs::lsetxattr(&path, name, value, rustix::fs::XattrFlags::empty()))?;
        if kind != Kind::Symlink {
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        }
        rustix::fs::utimensat(dir, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(refused)
    }

    fn set_xattrs(&self, set: impl Fn(&CStr, &[u8]) -> Result<()>) -> Result<usize> {
        let mut refused = 0;
        for (name, value) in self.xattrs.iter() {
            match set(name, value) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::PERM) => refused += 1,
                Err(errno) => return Err(errno),
            }
        }
        Ok(refused)
    }

    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime.seconds, tv_nsec: self.mtime.nanos.into() };
        Timestamps { last_access: time, last_modification: time }
    }
}

/// Shows a path of bytes.
pub(crate) fn display(path: &[u8]) -> std::path::Display<'_> {
    Path::new(std::ffi::OsStr::from_bytes(path)).display()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn renames_elsewhere_do_not_keep_a_path_from_being_opened() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::write(&one, "").unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::fs::rename(&one, &two).unwrap();
                    std::fs::rename(&two, &one).unwrap();
                }
            });
            let root = open_root(dir.path()).unwrap();
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let opened =
                (0..5000).map(|_| openat2(&root, "a/../a/b/../b", flags, Mode::empty(), ResolveFlags::IN_ROOT));
            let failed = opened.filter_map(std::result::Result::err).next();
            done.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }
}
