//! One entry of a list: what it is in our terms, and the checks that a list from outside must pass.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::CString;

use bollard_buildkit_proto::fsutil::types::Stat;

use crate::error::{Error, Result};
use crate::store::tree::{self, Attributes, Time, Xattrs};

/// The longest path of a list, in bytes: the kernel's limit.
const MAX_PATH: usize = 4096;

/// The longest name, in bytes: the kernel's limit.
const MAX_NAME: usize = 255;

/// The largest attributes of one entry together, in bytes: the kernel's limit for one.
const MAX_XATTRS: usize = 64 << 10;

/// The bits of Go's `os.FileMode` that are not permissions.
mod go {
    pub(super) const DIR: u32 = 1 << 31;
    pub(super) const SYMLINK: u32 = 1 << 27;
    pub(super) const DEVICE: u32 = 1 << 26;
    pub(super) const FIFO: u32 = 1 << 25;
    pub(super) const SOCKET: u32 = 1 << 24;
    pub(super) const SETUID: u32 = 1 << 23;
    pub(super) const SETGID: u32 = 1 << 22;
    pub(super) const CHAR_DEVICE: u32 = 1 << 21;
    pub(super) const STICKY: u32 = 1 << 20;
    /// All bits that say what sort of file it is.
    pub(super) const KIND: u32 = DIR | SYMLINK | DEVICE | FIFO | SOCKET | CHAR_DEVICE | 1 << 19;
}

/// An entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path below the root: names joined by slashes.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions with set-ID and sticky bits (0o7777).
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When its content last changed, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// The sort of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Dir,
    /// A regular file; its data is sent when it is asked for.
    File {
        /// How much data there is.
        size: u64,
    },
    /// Another name of a regular file that was listed before.
    HardLink {
        /// The path of that file.
        to: String,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: String,
    },
    /// A device node.
    Device {
        /// The sort of device.
        kind: tree::Kind,
        /// Major and minor number.
        number: (u32, u32),
    },
    /// A named pipe.
    Fifo,
    /// A socket, which nobody copies.
    Socket,
}

impl Entry {
    /// Reads an entry as it was sent.
    ///
    /// # Errors
    /// `InvalidArgument` for a path that does not stay below the root or that no file can have, and for a sort that does not
    /// exist.
    pub fn of_stat(stat: Stat) -> Result<Self> {
        check_path(&stat.path)?;
        let bad = |why: &str| Error::invalid(format!("the list of files is malformed: {:?} {why}", stat.path));
        let size = u64::try_from(stat.size).map_err(|_| bad("has a negative size"))?;
        let number = |number: i64| u32::try_from(number).map_err(|_| bad("has a device number that does not exist"));
        let kind = match stat.mode & go::KIND {
            go::DIR => EntryKind::Dir,
            0 if !stat.linkname.is_empty() => {
                check_path(&stat.linkname)?;
                EntryKind::HardLink { to: stat.linkname.clone() }
            }
            0 => EntryKind::File { size },
            go::SYMLINK if stat.linkname.is_empty() || stat.linkname.contains('\0') => {
                return Err(bad("is a symbolic link to nowhere"));
            }
            go::SYMLINK if stat.linkname.len() >= MAX_PATH => {
                return Err(bad("is a symbolic link with a longer target than exists"));
            }
            go::SYMLINK => EntryKind::Symlink { target: stat.linkname.clone() },
            go::FIFO => EntryKind::Fifo,
            go::SOCKET => EntryKind::Socket,
            bits if bits & go::DEVICE != 0 && bits & !(go::DEVICE | go::CHAR_DEVICE) == 0 => EntryKind::Device {
                kind: if bits & go::CHAR_DEVICE == 0 { tree::Kind::Block } else { tree::Kind::Char },
                number: (number(stat.devmajor)?, number(stat.devminor)?),
            },
            _ => return Err(bad("is of a sort that does not exist")),
        };
        if stat.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_XATTRS {
            return Err(bad("has larger extended attributes than exist"));
        }
        let mut xattrs: Vec<_> = stat.xattrs.into_iter().filter(|(name, _)| is_transferred(name)).collect();
        xattrs.sort_unstable();
        let (mode, uid, gid, mtime_ns) = (unix_mode(stat.mode), stat.uid, stat.gid, stat.mod_time);
        Ok(Self { path: stat.path, kind, mode, uid, gid, mtime_ns, xattrs })
    }

    /// Writes the entry as it is sent.
    #[must_use]
    pub fn to_stat(&self) -> Stat {
        let mut stat = Stat {
            path: self.path.clone(),
            mode: go_mode(self.mode),
            uid: self.uid,
            gid: self.gid,
            mod_time: self.mtime_ns,
            xattrs: self.xattrs.iter().cloned().collect::<HashMap<_, _>>(),
            ..Stat::default()
        };
        match &self.kind {
            EntryKind::Dir => stat.mode |= go::DIR,
            EntryKind::File { size } => stat.size = i64::try_from(*size).unwrap_or(i64::MAX),
            EntryKind::HardLink { to } => stat.linkname.clone_from(to),
            EntryKind::Symlink { target } => {
                stat.mode |= go::SYMLINK;
                stat.linkname.clone_from(target);
                stat.size = i64::try_from(target.len()).unwrap_or(i64::MAX);
            }
            EntryKind::Device { kind, number: (major, minor) } => {
                stat.mode |= go::DEVICE | if *kind == tree::Kind::Char { go::CHAR_DEVICE } else { 0 };
                (stat.devmajor, stat.devminor) = (i64::from(*major), i64::from(*minor));
            }
            EntryKind::Fifo => stat.mode |= go::FIFO,
            EntryKind::Socket => stat.mode |= go::SOCKET,
        }
        stat
    }

    /// Says whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind == EntryKind::Dir
    }

    /// What is set on the file once it is made.
    #[must_use]
    pub fn attributes(&self) -> Attributes {
        let xattrs =
            self.xattrs.iter().filter_map(|(name, value)| Some((CString::new(name.as_str()).ok()?, value.clone())));
        Attributes {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: time(self.mtime_ns),
            xattrs: Xattrs::new(xattrs),
        }
    }
}

/// Returns a time in nanoseconds since 1970 as file systems keep it.
fn time(ns: i64) -> Time {
    let nanos = u32::try_from(ns.rem_euclid(1_000_000_000)).expect("the remainder is below a billion");
    Time { seconds: ns.div_euclid(1_000_000_000), nanos }
}

/// Returns a time of a file system in nanoseconds since 1970.
pub(super) fn nanoseconds(time: Time) -> i64 {
    time.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanos))
}

/// What security modules and overlays of one machine set means nothing on another.
pub(super) fn is_transferred(xattr: &str) -> bool {
    xattr == "security.capability" || xattr.starts_with("user.")
}

fn unix_mode(mode: u32) -> u32 {
    let bit = |go: u32, unix: u32| if mode & go == 0 { 0 } else { unix };
    mode & 0o777 | bit(go::SETUID, 0o4000) | bit(go::SETGID, 0o2000) | bit(go::STICKY, 0o1000)
}

fn go_mode(mode: u32) -> u32 {
    let bit = |unix: u32, go: u32| if mode & unix == 0 { 0 } else { go };
    mode & 0o777 | bit(0o4000, go::SETUID) | bit(0o2000, go::SETGID) | bit(0o1000, go::STICKY)
}

/// Refuses a path that leads elsewhere or that no file can have.
fn check_path(path: &str) -> Result<()> {
    let bad = |why: &str| {
        let shown: String = path.chars().take(100).collect();
        Err(Error::invalid(format!("the list of files is malformed: the path {shown:?} {why}")))
    };
    if path.len() >= MAX_PATH {
        return bad("is longer than exists");
    }
    if path.contains('\0') {
        return bad("holds a NUL");
    }
    let mut depth = 0;
    for name in path.split('/') {
        depth += 1;
        match name {
            "" => return bad("is absolute or holds an empty name"),
            "." | ".." => return bad("does not stay below the root"),
            _ if name.len() > MAX_NAME => return bad("holds a longer name than exists"),
            _ => {}
        }
    }
    if depth > tree::MAX_DEPTH { bad("nests deeper than is supported") } else { Ok(()) }
}

/// The order of lists: as bytes, but a slash comes before everything else, so that what a directory holds follows it at once.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let key = |byte: u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
    a.bytes().map(key).cmp(b.bytes().map(key))
}

/// Says whether a path is below a directory.
pub(super) fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// The directory a path is in; empty for the root.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Checks that a list is in order and that what it names is in directories it has named before.
#[derive(Debug, Default)]
pub(super) struct Order {
    last: String,
    /// The directories that the last entry is in, and itself when it is one.
    dirs: Vec<String>,
}

impl Order {
    /// # Errors
    /// `InvalidArgument` when the entry is out of order, stands twice, or is in something that is no directory.
    pub(super) fn check(&mut self, entry: &Entry) -> Result<()> {
        let Entry { path, .. } = entry;
        if !self.last.is_empty() && compare(&self.last, path) != Ordering::Less {
            let last = &self.last;
            return Err(Error::invalid(format!("the list of files is out of order: {path:?} comes after {last:?}")));
        }
        while self.dirs.last().is_some_and(|dir| !is_below(path, dir)) {
            self.dirs.pop();
        }
        if self.dirs.last().map_or("", String::as_str) != parent(path) {
            return Err(Error::invalid(format!(
                "the list of files is malformed: {path:?} is in something that is no directory of the list"
            )));
        }
        if entry.is_dir() {
            self.dirs.push(path.clone());
        }
        self.last.clone_from(path);
        Ok(())
    }
}
