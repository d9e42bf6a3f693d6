//! Trees in tests: making and changing them with fixed times, and describing what they look like.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// A directory that is changed step by step. Whatever a step touches, and the directory it stands in, gets the time of the
/// step, so that the same steps give the same tree anywhere.
pub(in crate::store) struct Tree {
    path: PathBuf,
    time: std::cell::Cell<i64>,
    _mount: Option<OwnedFd>,
}

/// The time of a tree's first step, in seconds.
const START: i64 = 1_700_000_000;

impl Tree {
    /// Changes a directory.
    pub(in crate::store) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), time: START.into(), _mount: None }
    }

    /// Changes a detached mount.
    pub(in crate::store) fn mounted(mount: OwnedFd) -> Self {
        let path = PathBuf::from(format!("/proc/self/fd/{}/.", mount.as_raw_fd()));
        Self { path, time: START.into(), _mount: Some(mount) }
    }

    /// Lets the steps that follow have later times than those of other trees.
    pub(in crate::store) fn later(self, seconds: i64) -> Self {
        self.time.set(START + seconds);
        self
    }

    pub(in crate::store) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path.join(path)
    }

    /// Gives a path and the directory it stands in the time of the next step.
    fn step(&self, path: impl AsRef<Path>) -> &Self {
        let path = self.path(path);
        self.time.set(self.time.get() + 1);
        let time = Timespec { tv_sec: self.time.get(), tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let set = |path: &Path| rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
        if path.symlink_metadata().is_ok() {
            set(&path).unwrap();
        }
        set(path.parent().unwrap()).unwrap();
        self
    }

    pub(in crate::store) fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path(&path), content).unwrap();
        self.step(path)
    }

    pub(in crate::store) fn dir(&self, path: impl AsRef<Path>) -> &Self {
        fs::create_dir(self.path(&path)).unwrap();
        self.step(path)
    }

    pub(in crate::store) fn symlink(&self, path: impl AsRef<Path>, target: &str) -> &Self {
        std::os::unix::fs::symlink(target, self.path(&path)).unwrap();
        self.step(path)
    }

    pub(in crate::store) fn link(&self, path: &str, target: &str) -> &Self {
        fs::hard_link(self.path(target), self.path(path)).unwrap();
        self.step(path)
    }

    pub(in crate::store) fn fifo(&self, path: impl AsRef<Path>) -> &Self {
        self.node(path, FileType::Fifo, (0, 0))
    }

    pub(in crate::store) fn node(&self, path: impl AsRef<Path>, kind: FileType, (major, minor): (u32, u32)) -> &Self {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, self.path(&path), kind, Mode::RUSR | Mode::WUSR, device).unwrap();
        self.step(path)
    }

    pub(in crate::store) fn mode(&self, path: impl AsRef<Path>, mode: u32) -> &Self {
        fs::set_permissions(self.path(&path), fs::Permissions::from_mode(mode)).unwrap();
        self.step(path)
    }

    pub(in crate::store) fn owner(&self, path: impl AsRef<Path>, uid: u32, gid: u32) -> &Self {
        std::os::unix::fs::lchown(self.path(&path), Some(uid), Some(gid)).unwrap();
        self.step(path)
    }

    pub(in crate::store) fn xattr(&self, path: impl AsRef<Path>, name: &str, value: &[u8]) -> &Self {
        rustix::fs::lsetxattr(self.path(&path), name, value, XattrFlags::empty()).unwrap();
        self.step(path)
    }

    pub(in crate::store) fn remove(&self, path: impl AsRef<Path>) -> &Self {
        let full = self.path(&path);
        let removed =
            if full.symlink_metadata().unwrap().is_dir() { fs::remove_dir_all(full) } else { fs::remove_file(full) };
        removed.unwrap();
        self.step(path)
    }

    pub(in crate::store) fn rename(&self, from: &str, to: &str) -> &Self {
        fs::rename(self.path(from), self.path(to)).unwrap();
        self.step(from).step(to)
    }

    /// Gives a path a time, and nothing else one.
    pub(in crate::store) fn time(&self, path: impl AsRef<Path>, seconds: i64) -> &Self {
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, self.path(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        self
    }

    /// Describes the tree; see [`describe`].
    pub(in crate::store) fn describe(&self) -> Vec<String> {
        describe(&self.path)
    }

    pub(in crate::store) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }
}

/// Describes everything in a directory, a line each, sorted: sort, permissions, owner, time, attributes, links and content.
pub(in crate::store) fn describe(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first = HashMap::new();
    add(root, Path::new("."), &mut lines, &mut first);
    lines
}

fn add(root: &Path, path: &Path, lines: &mut Vec<String>, first: &mut HashMap<u64, PathBuf>) {
    let full = root.join(path);
    let meta = full.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_symlink() {
        format!("symlink {}", fs::read_link(&full).unwrap().display())
    } else if kind.is_file() {
        let content = fs::read(&full).unwrap();
        format!("file {} {}", content.len(), kiln_graph::Digest::of(&content).short())
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else {
        let sort = if kind.is_char_device() { "char" } else { "block" };
        format!("{sort} {}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()))
    };
    let mut line = format!("{} {what} {:o} {}:{}", path.display(), meta.mode() & 0o7777, meta.uid(), meta.gid());
    // The root's time changes with every mount point and mark in it, and no layer of a peer looks at it.
    if path != Path::new(".") {
        line += &format!(" @{}", meta.mtime());
    }
    for (name, value) in xattrs(&full) {
        line += &format!(" {name}={}", String::from_utf8_lossy(&value));
    }
    if !kind.is_dir() && meta.nlink() > 1 {
        let leader = first.entry(meta.ino()).or_insert_with(|| path.to_owned());
        // Other trees may have names for it, too: only those in this one are told.
        if leader != path {
            line += &format!(" ={}", leader.display());
        }
    }
    lines.push(line);
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(&full).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            add(root, &path.join(name), lines, first);
        }
    }
}

/// The attributes that layers have.
fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut buffer = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut buffer).unwrap();
    let names = buffer[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut found: Vec<_> = names
        .map(|name| CString::new(name).unwrap())
        .filter(|name| crate::store::layer::keeps_xattr(name))
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(path, &name, &mut value).unwrap();
            value.truncate(len);
            (name.into_string().unwrap(), value)
        })
        .collect();
    found.sort();
    found
}

/// A path of bytes that need not be UTF-8.
pub(in crate::store) fn bytes(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}
