//! How a directory says what its layer takes away: whiteouts and opaque directories.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::{Errno, Result};

use crate::store::tree::{Kind, Metadata, make_node};

/// What the name of a whiteout begins with in a layer's tar (OCI image spec, "Whiteouts").
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// The name that makes its directory opaque in a layer's tar.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";

/// The encodings of a directory in *upper form*: one that holds a layer's changes and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Marks {
    /// What overlay reads: whiteouts are character devices 0:0, opaque directories have `trusted.overlay.opaque`.
    Trusted,
    /// The same with `user.overlay.opaque`, for overlays that are mounted in a user namespace.
    User,
    /// Files named as in a tar, for a store without overlay.
    Files,
}

impl Marks {
    /// The attribute of an opaque directory.
    pub(in crate::store) fn opaque_xattr(self) -> Option<&'static CStr> {
        match self {
            Self::Trusted => Some(c"trusted.overlay.opaque"),
            Self::User => Some(c"user.overlay.opaque"),
            Self::Files => None,
        }
    }

    pub(in crate::store) fn is_opaque(self, dir: impl AsFd) -> Result<bool> {
        let Some(xattr) = self.opaque_xattr() else { return exists(dir, &name(&[OPAQUE])) };
        let mut value = [0; 1];
        match rustix::fs::fgetxattr(dir, xattr, &mut value) {
            Ok(len) => Ok(value[..len] == *b"y"),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn set_opaque(self, dir: impl AsFd) -> Result<()> {
        match self.opaque_xattr() {
            Some(xattr) => rustix::fs::fsetxattr(dir, xattr, b"y", XattrFlags::empty()),
            None => touch(dir, &name(&[OPAQUE])),
        }
    }

    /// Hides `target` from the layers below.
    pub(super) fn set_whiteout(self, dir: impl AsFd, target: &CStr) -> Result<()> {
        match self {
            Self::Trusted | Self::User => make_node(dir, target, Kind::Char, (0, 0)),
            Self::Files => touch(dir, &name(&[WHITEOUT, target.to_bytes()])),
        }
    }

    /// Takes back [`Self::set_whiteout`]; says whether there was anything to take back.
    pub(super) fn unset_whiteout(self, dir: impl AsFd, target: &CStr) -> Result<bool> {
        let dir = dir.as_fd();
        let place = match self {
            Self::Trusted | Self::User if self.has_whiteout(dir, target)? => target.to_owned(),
            Self::Trusted | Self::User => return Ok(false),
            Self::Files => name(&[WHITEOUT, target.to_bytes()]),
        };
        match rustix::fs::unlinkat(dir, &place, rustix::fs::AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Says whether `target` is hidden from the layers below.
    pub(super) fn has_whiteout(self, dir: impl AsFd, target: &CStr) -> Result<bool> {
        match self {
            Self::Trusted | Self::User => match Metadata::at(dir, target) {
                Ok(metadata) => Ok(is_whiteout(&metadata)),
                Err(Errno::NOENT) => Ok(false),
                Err(errno) => Err(errno),
            },
            Self::Files => exists(dir, &name(&[WHITEOUT, target.to_bytes()])),
        }
    }

    /// Says whether a name is a mark rather than a file of the layer.
    pub(super) fn is_mark(self, dir: impl AsFd, entry: &CStr) -> Result<bool> {
        Ok(entry.to_bytes() == OPAQUE && self == Self::Files || self.hidden_by(dir, entry)?.is_some())
    }

    /// Returns what a name hides, if it is a whiteout.
    pub(super) fn hidden_by(self, dir: impl AsFd, entry: &CStr) -> Result<Option<CString>> {
        match self {
            Self::Trusted | Self::User => Ok(is_whiteout(&Metadata::at(dir, entry)?).then(|| entry.to_owned())),
            Self::Files if entry.to_bytes() == OPAQUE => Ok(None),
            Self::Files => Ok(entry.to_bytes().strip_prefix(WHITEOUT).map(|target| name(&[target]))),
        }
    }
}

/// Says whether a file is what overlay takes for a whiteout.
pub(super) fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.kind == Kind::Char && metadata.rdev == (0, 0)
}

/// Says whether an extended attribute is part of a layer.
///
/// `security.*` and `system.*` belong to the host (SELinux labels, access lists it inherited), but for the file capabilities
/// that programs need; what overlay keeps for itself belongs to nobody else. BuildKit draws the same line.
pub(in crate::store) fn keeps_xattr(name: &CStr) -> bool {
    let name = name.to_bytes();
    let starts = |prefix: &[u8]| name.starts_with(prefix);
    (starts(b"user.") && !starts(b"user.overlay."))
        || (starts(b"trusted.") && !starts(b"trusted.overlay."))
        || name == b"security.capability"
}

fn name(parts: &[&[u8]]) -> CString {
    CString::new(parts.concat()).expect("names of files hold no NUL")
}

fn exists(dir: impl AsFd, name: &CStr) -> Result<bool> {
    match Metadata::at(dir, name) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn touch(dir: impl AsFd, name: &CStr) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map(drop)
}
