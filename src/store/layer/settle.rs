//! What an unpacked layer takes from the layers below it, once they are unpacked too.
//!
//! The metadata of directories the archive did not mention, files it only has hard links to, and what a layer hides that hides
//! everything. All are rare; a layer that needs none of it does not depend on what is below it.

use std::collections::{BTreeMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::extract::{Extracted, components};
use super::marks::{Marks, is_whiteout, keeps_xattr};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::tree::{
    Attributes, Kind, Metadata, Xattrs, copy_data, create_file, display, list, make_dir, make_node, open_dir,
    open_file, read_link, remove,
};
use crate::task::Cancel;

impl Extracted {
    /// Says whether the layer is the same whatever lies below it.
    pub(in crate::store) fn stands_alone(&self) -> bool {
        self.links.is_empty() && self.implicit.iter().all(Vec::is_empty) && !self.hides_all
    }

    /// Says whether anything can be taken from a view below.
    pub(in crate::store) fn is_settled(&self) -> bool {
        self.links.is_empty() && self.implicit.is_empty() && !self.hides_all
    }
}

/// Takes over what `extracted` left open. `lower` is the merged view below, which the lowest layer has none of.
pub(in crate::store) fn settle(
    upper: &OwnedFd,
    marks: Marks,
    lower: Option<&OwnedFd>,
    extracted: &Extracted,
    cancel: &Cancel,
) -> Result<()> {
    for (path, target) in in_order(&extracted.links) {
        settle_link(upper, marks, lower, path, target, cancel)
            .context(|| format!("link {} to {}", display(path), display(target)))?;
    }
    let Some(lower) = lower else { return Ok(()) };
    if extracted.hides_all {
        hide_all(upper, marks, lower).context(|| "hide everything below")?;
    }
    let mut moved: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for path in &extracted.implicit {
        let context = || format!("set the metadata of {}", display(path));
        // In the order of paths, so that what is in a directory comes after it.
        let inside = |from: &Vec<u8>| path.strip_prefix(from.as_slice()).filter(|rest| rest.starts_with(b"/"));
        let place = moved.iter().rev().find_map(|(from, to)| Some([to.as_slice(), inside(from)?].concat()));
        let place = place.as_ref().unwrap_or(path);
        if let Some(target) = follow(upper, marks, lower, place).context(context)? {
            moved.push((path.clone(), target));
        } else {
            settle_dir(upper, marks, lower, place).context(context)?;
        }
    }
    Ok(())
}

/// Where a directory without an entry is a symbolic link to a directory below, its content belongs there: so would it be had
/// the layer been unpacked on those below. Returns the directory's new path if it was moved.
fn follow(upper: &OwnedFd, marks: Marks, lower: &OwnedFd, path: &[u8]) -> Result<Option<Vec<u8>>> {
    let Some((below, name)) = parent(lower, path)?.filter(|_| !path.is_empty()) else { return Ok(None) };
    let is_link = present(Metadata::at(&below, &name))?.is_some_and(|metadata| metadata.kind == Kind::Symlink);
    if !is_link || hides(upper, marks, path)? {
        return Ok(None);
    }
    let Some(target) = open_how(lower, path, ResolveFlags::IN_ROOT)? else { return Ok(None) };
    let Some(target) = relative(&target, lower)? else { return Ok(None) };
    let Some((dir, name)) = parent(upper, path)? else { return Ok(None) };
    let (before, from) = (Metadata::of(&dir)?, open_dir(&dir, &name)?);
    let Some(to) = make_dirs(upper, marks, lower, &target)? else { return Ok(None) };
    let times = Metadata::of(&to)?;
    move_into(&from, &to)?;
    restore_times(&to, &times)?;
    remove(&dir, &name)?;
    restore_times(&dir, &before)?;
    Ok(Some(target))
}

/// The path of a directory below `root`.
fn relative(dir: &OwnedFd, root: &OwnedFd) -> Result<Option<Vec<u8>>> {
    let path = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let (dir, root) = (path(dir)?, path(root)?);
    Ok(dir.strip_prefix(&root).ok().map(|path| path.as_os_str().as_bytes().to_vec()).filter(|path| !path.is_empty()))
}

/// Makes directories that are below already in the layer too, with the metadata they have; `None` when the layer hides them.
fn make_dirs(upper: &OwnedFd, marks: Marks, lower: &OwnedFd, path: &[u8]) -> Result<Option<OwnedFd>> {
    let (mut below, mut here) = (open_dir(lower, c".")?, open_dir(upper, c".")?);
    for component in components(path)? {
        let component = CString::new(component).map_err(|_| Error::invalid("a name holds a NUL"))?;
        if marks.is_opaque(&here)? || marks.has_whiteout(&here, &component)? {
            return Ok(None);
        }
        let Some(next) = present(open_dir(&below, &component))? else { return Ok(None) };
        let known = present(Metadata::at(&here, &component))?;
        if known.is_some_and(|known| known.kind != Kind::Dir) {
            return Ok(None);
        }
        let before = Metadata::of(&here)?;
        let child = make_dir(&here, &component)?;
        if known.is_none() {
            Attributes::of(&Metadata::of(&next)?, Xattrs::of(&next, keeps_xattr)?).apply(&child)?;
            restore_times(&here, &before)?;
        }
        (below, here) = (next, child);
    }
    Ok(Some(here))
}

/// Moves what a directory of the layer holds into another one; what is in both is the first one's.
fn move_into(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    for entry in list(from)? {
        let name = entry.name.as_c_str();
        let there = present(Metadata::at(to, name))?.map(|metadata| metadata.kind);
        if entry.kind(from)? == Kind::Dir && there == Some(Kind::Dir) {
            move_into(&open_dir(from, name)?, &open_dir(to, name)?)?;
            continue;
        }
        if there.is_some() {
            remove(to, name)?;
        }
        rustix::fs::renameat(from, name, to, name)?;
    }
    Ok(())
}

/// Puts links to links after those they lead to.
fn in_order(links: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<(&[u8], &[u8])> {
    let mut order = Vec::with_capacity(links.len());
    let mut seen = HashSet::new();
    for mut link in links {
        let mut chain = Vec::new();
        while seen.insert(link.0) {
            chain.push((link.0.as_slice(), link.1.as_slice()));
            let Some(next) = links.get_key_value(link.1) else { break };
            link = next;
        }
        order.extend(chain.into_iter().rev());
    }
    order
}

/// Hides each name in the root below that the layer does not have itself.
fn hide_all(upper: &OwnedFd, marks: Marks, lower: &OwnedFd) -> Result<()> {
    let before = Metadata::of(upper)?;
    for below in list(lower)? {
        match present(Metadata::at(upper, &below.name))? {
            None => marks.set_whiteout(upper, &below.name)?,
            Some(here) if here.kind == Kind::Dir => {
                let dir = open_dir(upper, &below.name)?;
                marks.set_opaque(&dir)?;
                restore_times(&dir, &here)?;
            }
            Some(_) => {}
        }
    }
    restore_times(upper, &before)
}

fn settle_dir(upper: &OwnedFd, marks: Marks, lower: &OwnedFd, path: &[u8]) -> Result<()> {
    if hides(upper, marks, path)? {
        return Ok(());
    }
    let Some(below) = open_beneath(lower, path)? else { return Ok(()) };
    let attributes = Attributes::of(&Metadata::of(&below)?, Xattrs::of(&below, keeps_xattr)?);
    if let Some(dir) = open_beneath(upper, path)? {
        attributes.apply(dir)?;
    }
    Ok(())
}

/// Says whether a directory of the layer, or one above it, hides what lies below.
fn hides(upper: &OwnedFd, marks: Marks, path: &[u8]) -> Result<bool> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for end in ends.chain([path.len()]) {
        if let Some(dir) = open_beneath(upper, &path[..end])?
            && marks.is_opaque(dir)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn settle_link(
    upper: &OwnedFd,
    marks: Marks,
    lower: Option<&OwnedFd>,
    path: &[u8],
    target: &[u8],
    cancel: &Cancel,
) -> Result<()> {
    let (dir, name) = parent(upper, path)?.ok_or_else(|| Error::internal("the directory of a link has vanished"))?;
    let before = Metadata::of(&dir)?;
    remove(&dir, &name)?;
    marks.unset_whiteout(&dir, &name)?;
    // The archive may have the target after the link.
    let own = parent(upper, target)?;
    let own = own.filter(|(dir, name)| Metadata::at(dir, name).is_ok_and(|metadata| !is_whiteout(&metadata)));
    if let Some((target_dir, target_name)) = own {
        rustix::fs::linkat(target_dir, &target_name, &dir, &name, AtFlags::empty())?;
        return restore_times(&dir, &before);
    }
    let below = match lower {
        Some(lower) => parent_within(lower, target)?,
        None => None,
    };
    let below = below.filter(|(dir, name)| Metadata::at(dir, name).is_ok());
    let Some((source_dir, source_name)) = below else {
        return Err(Error::invalid("neither this layer nor one below it has the file"));
    };
    copy_up(&source_dir, &source_name, &dir, &name, cancel)?;
    restore_times(&dir, &before)?;
    if let Some(lower) = lower {
        link_target_up(upper, marks, lower, target, (&dir, &name))?;
    }
    Ok(())
}

/// Makes the target a link to the copy too, as it would be had the link been made in this layer. Where the target is hidden,
/// or its path leads through symbolic links, the copy stays alone.
fn link_target_up(
    upper: &OwnedFd,
    marks: Marks,
    lower: &OwnedFd,
    target: &[u8],
    (copy_dir, copy_name): (&OwnedFd, &CString),
) -> Result<()> {
    let components = components(target)?;
    let Some((name, parents)) = components.split_last() else { return Ok(()) };
    let Some(here) = make_dirs(upper, marks, lower, &parents.join(&b'/'))? else { return Ok(()) };
    let name = CString::new(*name).map_err(|_| Error::invalid("a name holds a NUL"))?;
    if marks.is_opaque(&here)? || marks.has_whiteout(&here, &name)? {
        return Ok(());
    }
    let before = Metadata::of(&here)?;
    match rustix::fs::linkat(copy_dir, copy_name, &here, &name, AtFlags::empty()) {
        Ok(()) => restore_times(&here, &before),
        // The layer has something else there.
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn copy_up(from: &OwnedFd, from_name: &CString, to: &OwnedFd, name: &CString, cancel: &Cancel) -> Result<()> {
    let metadata = Metadata::at(from, from_name)?;
    match metadata.kind {
        Kind::File => {
            let (source, copy) = (open_file(from, from_name)?, create_file(to, name)?);
            copy_data(&source, &copy, &metadata, cancel, None)?;
            Attributes::of(&metadata, Xattrs::of(&source, keeps_xattr)?).apply(&copy)?;
            return Ok(());
        }
        Kind::Symlink => {
            let target = CString::new(read_link(from, from_name)?).map_err(|_| Errno::INVAL)?;
            rustix::fs::symlinkat(&target, to, name)?;
        }
        Kind::Char | Kind::Block | Kind::Fifo => make_node(to, name, metadata.kind, metadata.rdev)?,
        Kind::Dir | Kind::Socket => return Err(Error::invalid("only files can have hard links")),
    }
    Attributes::of(&metadata, Xattrs::at(from, from_name, keeps_xattr)?).apply_at(to, name, metadata.kind)?;
    Ok(())
}

/// Merges a directory in upper form into a whole tree, moving what it can; `upper` is left in pieces.
pub(in crate::store) fn merge(upper: &OwnedFd, whole: &OwnedFd, marks: Marks) -> Result<()> {
    let (metadata, xattrs) = (Metadata::of(upper)?, Xattrs::of(upper, keeps_xattr)?);
    let names = list(upper)?;
    if marks.is_opaque(upper)? {
        for name in list(whole)? {
            remove(whole, &name.name)?;
        }
    }
    for name in &names {
        if let Some(target) = marks.hidden_by(upper, &name.name)? {
            remove(whole, &target)?;
        }
    }
    for entry in names {
        let name = entry.name.as_c_str();
        let context = || format!("merge {}", display(name.to_bytes()));
        if marks.is_mark(upper, name)? {
            continue;
        }
        if entry.kind(upper).context(context)? == Kind::Dir {
            let child = open_dir(upper, name).context(context)?;
            merge(&child, &make_dir(whole, name).context(context)?, marks).context(context)?;
        } else {
            remove(whole, name).context(context)?;
            rustix::fs::renameat(upper, name, whole, name).context(context)?;
        }
    }
    Attributes::of(&metadata, xattrs).apply(whole)?;
    Ok(())
}

fn restore_times(dir: &OwnedFd, metadata: &Metadata) -> Result<()> {
    let time = Timespec { tv_sec: metadata.mtime.seconds, tv_nsec: metadata.mtime.nanos.into() };
    Ok(rustix::fs::futimens(dir, &Timestamps { last_access: time, last_modification: time })?)
}

fn present<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory by a path in which no component is a symbolic link.
fn open_beneath(root: impl AsFd, path: &[u8]) -> rustix::io::Result<Option<OwnedFd>> {
    open_how(root, path, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn open_how(root: impl AsFd, path: &[u8], resolve: ResolveFlags) -> rustix::io::Result<Option<OwnedFd>> {
    let path = if path.is_empty() { b".".as_slice() } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    present(crate::store::tree::openat2(root, path, flags, Mode::empty(), resolve | ResolveFlags::NO_MAGICLINKS))
}

/// Opens the directory a path ends in, following no symbolic link.
fn parent(root: &OwnedFd, path: &[u8]) -> Result<Option<(OwnedFd, CString)>> {
    split(path, |dir| open_beneath(root, dir))
}

/// Opens the directory a path ends in, following symbolic links as if `root` were the root.
fn parent_within(root: &OwnedFd, path: &[u8]) -> Result<Option<(OwnedFd, CString)>> {
    split(path, |dir| open_how(root, dir, ResolveFlags::IN_ROOT))
}

fn split(
    path: &[u8],
    open: impl Fn(&[u8]) -> rustix::io::Result<Option<OwnedFd>>,
) -> Result<Option<(OwnedFd, CString)>> {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let (dir, name) = slash.map_or((b"".as_slice(), path), |at| (&path[..at], &path[at + 1..]));
    let name = CString::new(name).map_err(|_| Error::invalid("a name holds a NUL"))?;
    Ok(open(dir)?.map(|dir| (dir, name)))
}
