//! Making single files, directories and links in a mounted root file system, and removing them.
//!
//! Paths are resolved within the root. Directories get the modification time back that they had before something was made in
//! them, so that equal steps give equal layers.

use std::ffi::CString;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};

use kiln_dockerfile::glob::{Glob, has_wildcards};
use kiln_graph::op::{Owner, OwnerId};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use crate::error::{Error, Result, ResultExt as _};
use crate::sandbox::owner_by_names;
use crate::solver::copy::Ownership;
use crate::store::tree::{self, Attributes, Kind, Metadata, Time};

/// Looks an owner up in a root file system. Numbers need no look, and a user's number stands for the group as well.
///
/// # Errors
/// When the file system's users cannot be read.
pub(super) fn ownership(root: impl AsFd, owner: &Owner) -> Result<Ownership> {
    let name = |id: &OwnerId| match id {
        OwnerId::Id(_) => None,
        OwnerId::Name(name) => Some(name.clone()),
    };
    let (user, group) = (name(&owner.user), owner.group.as_ref().and_then(name));
    let named = owner_by_names(root.as_fd(), user.as_deref(), group.as_deref())?;
    let (uid, primary) = match &owner.user {
        OwnerId::Id(uid) => (*uid, *uid),
        OwnerId::Name(_) => named.user.unwrap_or_default(),
    };
    let gid = match &owner.group {
        Some(OwnerId::Id(gid)) => *gid,
        Some(OwnerId::Name(_)) => named.group.unwrap_or_default(),
        None => primary,
    };
    Ok(Ownership { uid, gid })
}

/// The directory a path ends in, with the last name; the name is `None` for the root.
fn parent(root: &OwnedFd, path: &str) -> Result<(OwnedFd, Option<CString>)> {
    let path = path.trim_end_matches('/');
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let dir = open_dir(root, above).context(|| format!("open the directory of {path}"))?;
    if name.is_empty() {
        return Ok((dir, None));
    }
    let name = CString::new(name).map_err(|_| Error::invalid(format!("the path {path:?} contains a zero byte")))?;
    Ok((dir, Some(name)))
}

fn open_dir(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = if path.is_empty() { "." } else { path };
    tree::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Does something in a directory and gives it its modification time back.
fn keeping_time<T>(dir: &OwnedFd, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Time { seconds, nanos } = Metadata::of(dir)?.mtime;
    let value = work()?;
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    rustix::fs::futimens(dir, &Timestamps { last_access: omit, last_modification: time })?;
    Ok(value)
}

/// Makes a directory, with those above it if `parents`. An existing one is accepted and left as it is.
pub(super) fn directory(root: &OwnedFd, path: &str, parents: bool, attributes: &Attributes) -> Result<()> {
    let components: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    let first = if parents { 1 } else { components.len() };
    for end in first..=components.len() {
        let path = components[..end].join("/");
        let context = || format!("make directory /{path}");
        let (dir, Some(name)) = parent(root, &path)? else { continue };
        match open_dir(root, &path) {
            Ok(_) => continue,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).context(context),
        }
        keeping_time(&dir, || {
            rustix::fs::mkdirat(&dir, &name, Mode::RWXU).context(context)?;
            attributes.apply(tree::open_dir(&dir, &name).context(context)?).context(context)?;
            Ok(())
        })?;
    }
    Ok(())
}

/// Whose a file is that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owning {
    /// Whose it was.
    Kept,
    /// That of the attributes.
    Given,
}

/// Makes a file. One that is there already, symbolic links followed, keeps its permissions, as with BuildKit; anything else of the
/// name is replaced.
pub(super) fn file(root: &OwnedFd, path: &str, data: &[u8], attributes: &Attributes, owning: Owning) -> Result<()> {
    let context = || format!("make file {path}");
    if let Some(mut file) = existing_file(root, path).context(context)? {
        let found = Metadata::of(&file)?;
        let (uid, gid) = match owning {
            Owning::Kept => (found.uid, found.gid),
            Owning::Given => (attributes.uid, attributes.gid),
        };
        file.set_len(0).and_then(|()| file.write_all(data)).context(context)?;
        let attributes = Attributes { mode: found.mode, uid, gid, ..attributes.clone() };
        return attributes.apply(&file).map(drop).context(context);
    }
    let (dir, Some(name)) = parent(root, path)? else { return Err(Error::invalid("the root is no file")) };
    keeping_time(&dir, || {
        let file = tree::replacing(&dir, &name, || tree::create_file(&dir, &name)).context(context)?;
        let mut file = std::fs::File::from(file);
        file.write_all(data).context(context)?;
        attributes.apply(&file).context(context)?;
        Ok(())
    })
}

/// Opens a file that is there, for writing.
fn existing_file(root: &OwnedFd, path: &str) -> Result<Option<std::fs::File>> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match tree::openat2(root, path.trim_start_matches('/'), flags, Mode::empty(), resolve) {
        Ok(file) if Metadata::of(&file)?.kind == Kind::File => Ok(Some(file.into())),
        // What cannot be opened so is no file, or not there.
        Ok(_) | Err(Errno::NOENT | Errno::ISDIR | Errno::NXIO | Errno::NODEV | Errno::LOOP | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a symbolic link.
pub(super) fn symlink(root: &OwnedFd, path: &str, target: &str, attributes: &Attributes) -> Result<()> {
    let context = || format!("make link {path}");
    let (dir, Some(name)) = parent(root, path)? else { return Err(Error::invalid("the root is no link")) };
    keeping_time(&dir, || {
        rustix::fs::symlinkat(target, &dir, &name).context(context)?;
        attributes.apply_at(&dir, &name, Kind::Symlink).context(context)?;
        Ok(())
    })
}

/// Removes what has a path, with everything below it.
pub(super) fn remove(root: &OwnedFd, path: &str, allow_missing: bool, wildcard: bool) -> Result<()> {
    let context = || format!("remove {path}");
    let (dir, Some(name)) = parent(root, path)? else { return Err(Error::invalid("the root cannot be removed")) };
    let mut names = Vec::new();
    let text = name.to_string_lossy();
    if wildcard && has_wildcards(&text) {
        let glob = Glob::parse(&text).map_err(|error| Error::invalid(error.to_string()).context(context()))?;
        let listed = tree::list(&dir).context(context)?.into_iter().map(|entry| entry.name);
        names.extend(listed.filter(|name| glob.matches(&name.to_string_lossy())));
    } else if rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        names.push(name.clone());
    }
    if names.is_empty() && !allow_missing {
        return Err(Error::not_found(format!("{path} does not exist")));
    }
    keeping_time(&dir, || names.iter().try_for_each(|name| tree::remove(&dir, name).context(context)))
}
