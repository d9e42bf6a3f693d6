//! Putting a layer on another view than the one it was made on, and taking what one view has over another: files are linked, not
//! copied.
//!
//! The result is what unpacking the layer's tar on that view would give. A tree in upper form can often be put there as it is;
//! [`stands_as_it_is`] says whether that gives the same.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::changes::{Candidate, Changes, Content, Directory, File, Item, Loaded, Source};
use super::marks::{Marks, keeps_xattr};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::tree::{
    Attributes, Kind, Metadata, Xattrs, copy_data, create_file, display, make_dir, make_node, open_dir, open_file,
    read_link, remove, replacing,
};
use crate::task::Cancel;

/// Where a layer goes.
pub(in crate::store) struct Place<'a> {
    /// The directory that is written.
    pub target: OwnedFd,
    /// How the directory says what is taken away; `None` for one that holds the whole view.
    pub marks: Option<Marks>,
    /// The view below; what is not in it is not taken away. `None` keeps all marks, for a layer that may lie on anything.
    pub below: Option<OwnedFd>,
    /// Directories that hold the files of the source under the same paths, the topmost first: what is there is linked.
    pub donors: Vec<OwnedFd>,
    pub cancel: &'a Cancel,
}

/// What a layer turned out to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Applied {
    /// Whether it takes anything away.
    pub takes_away: bool,
}

/// A directory of the layer that has been entered.
struct Frame {
    path: Vec<u8>,
    /// What it gets, and whether it belongs to the layer by itself.
    directory: Attributes,
    made: Option<Arc<OwnedFd>>,
}

struct Applying<'a> {
    place: Place<'a>,
    frames: Vec<Frame>,
    applied: Applied,
}

/// Writes a layer into its place. Blocking.
pub(in crate::store) fn apply(source: Source, place: Place<'_>) -> Result<Applied> {
    let (mut changes, root) = Changes::new(source)?;
    let target = open_dir(&place.target, c".").context(|| "open the target of a layer")?;
    let attributes = if root.changed { root.attributes } else { attributes_of(&target)? };
    let top = Frame { path: Vec::new(), directory: attributes, made: Some(Arc::new(target)) };
    let mut applying = Applying { place, frames: vec![top], applied: Applied::default() };
    while let Some(item) = changes.step()? {
        applying.place.cancel.check()?;
        match item {
            Item::Enter(directory) => applying.enter(directory)?,
            Item::Leave => applying.leave()?,
            Item::Gone(path) => applying.take_away(&path)?,
            Item::Other(candidate) => match changes.load(&candidate, Content::Ignored)? {
                Loaded::Same(_) => {}
                Loaded::Gone(_) => applying.take_away(&candidate.path)?,
                Loaded::Changed(file) => {
                    applying.put(&candidate, &file).context(|| format!("put {}", display(&candidate.path)))?;
                }
            },
        }
    }
    Ok(applying.applied)
}

impl Applying<'_> {
    fn enter(&mut self, directory: Directory) -> Result<()> {
        self.frames.push(Frame { path: directory.path, directory: directory.attributes, made: None });
        if directory.changed {
            self.dir()?;
        }
        Ok(())
    }

    /// Gives a directory its metadata, once nothing is made in it any more.
    fn leave(&mut self) -> Result<()> {
        if let Some(Frame { path, directory, made: Some(dir) }) = self.frames.pop() {
            directory.apply(&dir).context(|| format!("set the metadata of {}", display(&path)))?;
        }
        Ok(())
    }

    /// Opens the directory that was entered last, made with those above it.
    fn dir(&mut self) -> Result<Arc<OwnedFd>> {
        let first = self.frames.iter().rposition(|frame| frame.made.is_some()).unwrap_or_default();
        for at in first + 1..self.frames.len() {
            let above = self.frames[at - 1].made.clone().ok_or_else(|| Error::internal("a layer without a root"))?;
            let path = &self.frames[at].path;
            let context = || format!("make directory {}", display(path));
            let name = last(path)?;
            self.clear_mark(&above, &name).context(context)?;
            self.frames[at].made = Some(Arc::new(make_dir(&above, &name).context(context)?));
        }
        let made = self.frames.last().and_then(|frame| frame.made.clone());
        made.ok_or_else(|| Error::internal("a layer without a root"))
    }

    fn put(&mut self, candidate: &Candidate, file: &File) -> Result<()> {
        let (dir, name) = (self.dir()?, last(&candidate.path)?);
        self.clear_mark(&dir, &name)?;
        if self.link(candidate, &file.metadata, &dir, &name)? {
            return Ok(());
        }
        let source = candidate.parent();
        match file.metadata.kind {
            Kind::File => {
                let made = replacing(&dir, &name, || create_file(&dir, &name))?;
                copy_data(open_file(source, &name)?, &made, &file.metadata, self.place.cancel, None)?;
                Attributes::of(&file.metadata, file.xattrs.clone()).apply(&made)?;
                return Ok(());
            }
            Kind::Symlink => {
                let target =
                    CString::new(read_link(source, &name)?).map_err(|_| Error::invalid("a link holds a NUL"))?;
                replacing(&dir, &name, || rustix::fs::symlinkat(&target, &dir, &name))?;
            }
            kind => replacing(&dir, &name, || make_node(&dir, &name, kind, file.metadata.rdev))?,
        }
        Attributes::of(&file.metadata, file.xattrs.clone()).apply_at(&dir, &name, file.metadata.kind)?;
        Ok(())
    }

    /// Links a file from the first donor that has something under its path.
    fn link(&self, candidate: &Candidate, metadata: &Metadata, dir: &OwnedFd, name: &CStr) -> Result<bool> {
        if metadata.kind != Kind::File {
            return Ok(false);
        }
        for donor in &self.place.donors {
            let Some(found) = super::changes::beneath(donor, &candidate.path)? else { continue };
            let facts = |m: &Metadata| (m.kind, m.mode, m.uid, m.gid, m.size, m.mtime);
            if facts(&found) != facts(metadata) {
                return Ok(false);
            }
            let path = CString::new(candidate.path.as_slice()).map_err(|_| Error::invalid("a name holds a NUL"))?;
            return match replacing(dir, name, || rustix::fs::linkat(donor, &path, dir, name, AtFlags::empty())) {
                Ok(()) => Ok(true),
                // One file has no more than 65,000 names on ext4.
                Err(Errno::MLINK) => Ok(false),
                Err(errno) => Err(errno.into()),
            };
        }
        Ok(false)
    }

    /// Takes a name away from the view below.
    fn take_away(&mut self, path: &[u8]) -> Result<()> {
        self.applied.takes_away = true;
        let context = || format!("take {} away", display(path));
        let there = match &self.place.below {
            Some(below) => super::changes::beneath(below, path).context(context)?.is_some(),
            None => true,
        };
        if !there {
            return Ok(());
        }
        let (dir, name) = (self.dir()?, last(path)?);
        match self.place.marks {
            Some(marks) => marks.set_whiteout(&dir, &name).context(context)?,
            None => match remove(&dir, &name) {
                Err(Errno::NOENT) => {}
                removed => removed.context(context)?,
            },
        }
        Ok(())
    }

    /// A name that is put back is not taken away.
    fn clear_mark(&self, dir: &OwnedFd, name: &CStr) -> rustix::io::Result<()> {
        match self.place.marks {
            Some(marks) => marks.unset_whiteout(dir, name).map(drop),
            None => Ok(()),
        }
    }
}

/// Says whether a tree in upper form shows on another view what its layer would give there: it has no marks that were meant for
/// the view it was made on, and nothing that is there as it was below. `below` is that other view.
pub(in crate::store) fn stands_as_it_is(source: Source, below: &OwnedFd, cancel: &Cancel) -> Result<bool> {
    let (mut changes, _) = Changes::new(source)?;
    // Whether each directory that was entered belongs to the layer.
    let mut dirs = vec![true];
    while let Some(item) = changes.step()? {
        cancel.check()?;
        let counts = match item {
            // The kernel marks new directories as well: there is nothing below that they could hide.
            Item::Enter(directory) if directory.marked && directory.replaces => return Ok(false),
            Item::Enter(directory) => {
                if directory.changed {
                    dirs.iter_mut().for_each(|dir| *dir = true);
                }
                dirs.push(directory.changed);
                continue;
            }
            Item::Leave => match dirs.pop() {
                // It was copied from the view below, and nothing in it is different.
                Some(false) => return Ok(false),
                _ => continue,
            },
            Item::Gone(_) => return Ok(false),
            Item::Other(candidate) => match changes.load(&candidate, Content::Ignored)? {
                Loaded::Changed(_) => true,
                Loaded::Gone(_) => super::changes::beneath(below, &candidate.path)?.is_some(),
                Loaded::Same(_) => false,
            },
        };
        if !counts {
            return Ok(false);
        }
        dirs.iter_mut().for_each(|dir| *dir = true);
    }
    Ok(true)
}

fn attributes_of(dir: &OwnedFd) -> Result<Attributes> {
    Ok(Attributes::of(&Metadata::of(dir)?, Xattrs::of(dir, keeps_xattr)?))
}

fn last(path: &[u8]) -> Result<CString> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    CString::new(name).map_err(|_| Error::invalid("a name holds a NUL"))
}
