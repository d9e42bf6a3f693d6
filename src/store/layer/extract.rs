//! From a tar to a directory: the entries of an archive nobody vouches for, kept inside the directory they are for.
//!
//! Every component of every path is opened in the directory before it and never followed by the kernel; symbolic links on the
//! way are resolved here, within the root, as containerd does. A layer is unpacked into *upper form* without looking at the
//! layers below it, so that the layers of an image unpack in parallel; what that leaves open is settled by [`super::settle()`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{CStr, CString};
use std::io::Read;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::entries::{Entries, Entry, EntryBody, Piece};
use super::marks::{Marks, OPAQUE, WHITEOUT, is_whiteout, keeps_xattr};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::Store;
use crate::store::tree::{
    Attributes, Kind, MAX_DEPTH, Metadata, Time, Xattrs, create_file, display, make_node, open_dir, read_link, remove,
    too_deep,
};
use crate::task::Cancel;

/// How an archive is unpacked.
#[derive(Clone, Copy, Debug)]
pub struct ExtractOptions<'a> {
    /// Who owns everything, instead of whom the archive says: user and group.
    pub owner: Option<(u32, u32)>,
    /// How many entries an archive may have; see [`Self::MAX_ENTRIES`].
    pub max_entries: u64,
    /// Stops the work.
    pub cancel: &'a Cancel,
    /// The store that has to have room for what is written, if any.
    pub(crate) room: Option<&'a Store>,
}

impl<'a> ExtractOptions<'a> {
    /// More entries than any real image has files.
    pub const MAX_ENTRIES: u64 = 10_000_000;

    /// The usual options.
    #[must_use]
    pub fn new(cancel: &'a Cancel) -> Self {
        Self { owner: None, max_entries: Self::MAX_ENTRIES, cancel, room: None }
    }

    /// Refuses what a store has no room for, before it is written.
    #[must_use]
    pub fn within(self, store: &'a Store) -> Self {
        Self { room: Some(store), ..self }
    }
}

/// What unpacking an archive did, and left undone.
#[derive(Clone, Debug, Default)]
pub struct Extracted {
    /// How many entries the archive has.
    pub entries: u64,
    /// How many device nodes were left out because only root may make them.
    pub devices_skipped: u64,
    /// How many extended attributes the file system or the kernel refused.
    pub xattrs_skipped: u64,
    /// Directories that had to be made but have no entry, so that their metadata is still that of the layer below.
    pub(super) implicit: BTreeSet<Vec<u8>>,
    /// Hard links to files that are not in the archive: path and target.
    pub(super) links: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Whether everything below is hidden. Overlay looks at no such mark of a root, so it is for [`super::settle`] to do.
    pub(super) hides_all: bool,
}

/// Unpacks the entries below `root`. With `marks`, entries of whiteouts become those marks; without, they are files like any
/// other, and the metadata of the root is left alone.
pub(super) fn extract<R: Read>(
    tar: &mut R,
    root: OwnedFd,
    marks: Option<Marks>,
    options: ExtractOptions<'_>,
) -> Result<Extracted> {
    let mut extraction = Extraction {
        root: Arc::new(root),
        marks,
        options,
        dirs: Vec::new(),
        attributes: BTreeMap::new(),
        whiteouts: false,
        remembered: 0,
        done: Extracted::default(),
        buffer: vec![0; 256 << 10],
    };
    extraction.done.implicit.insert(Vec::new());
    let mut entries = Entries::new(tar);
    while let Some(mut entry) = entries.next()? {
        options.cancel.check()?;
        extraction.done.entries += 1;
        if extraction.done.entries > options.max_entries {
            return Err(Error::unsupported(format!("the archive has more than {} entries", options.max_entries)));
        }
        if let Some((uid, gid)) = options.owner {
            (entry.attributes.uid, entry.attributes.gid) = (uid, gid);
        }
        extraction.entry(&entry, &mut entries).context(|| format!("unpack {}", display(&entry.path)))?;
    }
    extraction.finish()
}

struct Extraction<'a> {
    root: Arc<OwnedFd>,
    marks: Option<Marks>,
    options: ExtractOptions<'a>,
    /// The directory entered last, from the root: names and descriptors of real directories. Most entries stand in the
    /// same directory as the one before.
    dirs: Vec<(Vec<u8>, Arc<OwnedFd>)>,
    /// The metadata directories get in the end, when nothing touches their times any more.
    attributes: BTreeMap<Vec<u8>, Attributes>,
    /// Whether any whiteout was made.
    whiteouts: bool,
    /// How much of what is remembered until the end an archive has had remembered so far, in bytes.
    remembered: usize,
    done: Extracted,
    buffer: Vec<u8>,
}

/// Where an entry goes.
struct Place {
    dir: Arc<OwnedFd>,
    name: CString,
    /// The path without symbolic links.
    path: Vec<u8>,
}

/// What happens when a directory on the way is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Made,
    Reported,
}

impl Extraction<'_> {
    fn entry<R: Read>(&mut self, entry: &Entry, entries: &mut Entries<R>) -> Result<()> {
        let components = components(&entry.path)?;
        let Some((name, parents)) = components.split_last() else { return self.root_entry(entry) };
        if self.marks.is_some() && name.starts_with(WHITEOUT) {
            return self.mark(parents, name);
        }
        let target = match &entry.body {
            EntryBody::HardLink(target) => self.link_target(target)?,
            _ => None,
        };
        let place = self.place(parents, name, Missing::Made)?.expect("missing directories are made");
        self.done.links.remove(&place.path);
        if let (Some(marks @ Marks::Files), true) = (self.marks, self.whiteouts)
            && marks.unset_whiteout(&place.dir, &place.name)?
            && entry.body == EntryBody::Dir
        {
            self.make_dir(&place, &entry.attributes)?;
            return Ok(marks.set_opaque(open_dir(&place.dir, &place.name)?)?);
        }
        match &entry.body {
            EntryBody::Dir => self.make_dir(&place, &entry.attributes),
            EntryBody::File(size) => self.make_file(&place, &entry.attributes, *size, entries),
            EntryBody::HardLink(path) => match target {
                Some(target) => self.make_link(&place, &target),
                None => self.leave_link(place, path),
            },
            EntryBody::Symlink(target) => {
                let target = CString::new(target.as_slice()).expect("names hold no NUL");
                self.replacing(&place, |dir, name| rustix::fs::symlinkat(&target, dir, name))?;
                self.apply_at(&place, &entry.attributes, Kind::Symlink)
            }
            EntryBody::Fifo => self.make_node(&place, &entry.attributes, Kind::Fifo, (0, 0)),
            EntryBody::Block(major, minor) => self.make_node(&place, &entry.attributes, Kind::Block, (*major, *minor)),
            EntryBody::Char(0, 0) if self.marks.is_some() => self.whiteout(&place.dir, &place.name),
            EntryBody::Char(major, minor) => self.make_node(&place, &entry.attributes, Kind::Char, (*major, *minor)),
        }
    }

    /// Takes account of something that is kept in memory until the end.
    fn remember(&mut self, path: &[u8], attributes: Option<&Attributes>) -> Result<()> {
        let xattrs = attributes.into_iter().flat_map(|attributes| attributes.xattrs.iter());
        let bytes: usize = xattrs.map(|(name, value)| name.count_bytes() + value.len()).sum();
        self.remembered += path.len() + bytes;
        if self.remembered > MAX_REMEMBERED {
            return Err(Error::unsupported(format!(
                "the names and attributes of the archive's directories take more than {} MiB",
                MAX_REMEMBERED >> 20
            )));
        }
        Ok(())
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        if entry.body != EntryBody::Dir {
            return Err(Error::invalid("the root of an archive can only be a directory"));
        }
        if self.marks.is_some() {
            self.remember(b"", Some(&entry.attributes))?;
            self.done.implicit.remove(b"".as_slice());
            self.attributes.insert(Vec::new(), entry.attributes.clone());
        }
        Ok(())
    }

    /// Notes what a name that begins with `.wh.` stands for.
    fn mark(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<()> {
        let marks = self.marks.expect("only layers have whiteouts");
        if name == OPAQUE {
            let dir = self.open(parents, Missing::Made)?.expect("missing directories are made");
            if self.dirs.is_empty() {
                self.done.hides_all = true;
                return Ok(());
            }
            return Ok(marks.set_opaque(open_dir(&dir, c".")?)?);
        }
        let target = &name[WHITEOUT.len()..];
        if target.starts_with(WHITEOUT) {
            // What aufs kept for itself; nobody has given it a meaning since.
            return Ok(());
        }
        if matches!(target, b"" | b"." | b"..") {
            return Err(Error::invalid("a whiteout must name a file in its directory"));
        }
        let place = self.place(parents, target, Missing::Made)?.expect("missing directories are made");
        self.whiteout(&place.dir, &place.name)
    }

    /// Hides what lies below. What the archive itself has put there stays, whether it came before or comes after.
    fn whiteout(&mut self, dir: &OwnedFd, name: &CStr) -> Result<()> {
        let marks = self.marks.expect("only layers have whiteouts");
        self.whiteouts = true;
        match Metadata::at(dir, name) {
            Err(Errno::NOENT) => Ok(marks.set_whiteout(dir, name)?),
            Ok(metadata) if metadata.kind == Kind::Dir => Ok(marks.set_opaque(open_dir(dir, name)?)?),
            Ok(_) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn make_dir(&mut self, place: &Place, attributes: &Attributes) -> Result<()> {
        match rustix::fs::mkdirat(&place.dir, &place.name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = Metadata::at(&place.dir, &place.name)?;
                if there.kind != Kind::Dir {
                    self.remove(place, &there)?;
                    rustix::fs::mkdirat(&place.dir, &place.name, Mode::RWXU)?;
                    // Whatever was there hid what lies below, be it a whiteout or a file of this very archive.
                    if let Some(marks) = self.marks {
                        marks.set_opaque(open_dir(&place.dir, &place.name)?)?;
                    }
                }
            }
            Err(errno) => return Err(errno.into()),
        }
        self.remember(&place.path, Some(attributes))?;
        self.done.implicit.remove(&place.path);
        self.attributes.insert(place.path.clone(), attributes.clone());
        Ok(())
    }

    fn make_file<R: Read>(
        &mut self,
        place: &Place,
        attributes: &Attributes,
        size: u64,
        entries: &mut Entries<R>,
    ) -> Result<()> {
        let file = self.replacing(place, |dir, name| create_file(dir, name))?;
        let mut at = 0;
        loop {
            match entries.data(&mut self.buffer)? {
                Piece::End => break,
                Piece::Hole(len) => at += len,
                Piece::Bytes(len) => {
                    self.options.cancel.check()?;
                    self.options.room.map_or(Ok(()), |store| store.make_room(len as u64))?;
                    write_sparsely(&file, &self.buffer[..len], at)?;
                    at += len as u64;
                }
            }
        }
        if size >= HOLE as u64 {
            // The end may be a hole, which nothing was written for.
            rustix::fs::ftruncate(&file, size)?;
        }
        self.done.xattrs_skipped += accepted(attributes).apply(&file)? as u64;
        Ok(())
    }

    /// Finds the target of a hard link in what is unpacked already.
    fn link_target(&mut self, path: &[u8]) -> Result<Option<Place>> {
        let components = components(path)?;
        let Some((name, parents)) = components.split_last() else {
            return Err(Error::invalid("a hard link to the root"));
        };
        let Some(place) = self.place(parents, name, Missing::Reported)? else { return Ok(None) };
        match Metadata::at(&place.dir, &place.name) {
            Ok(metadata) if metadata.kind == Kind::Dir => Err(Error::invalid("a hard link to a directory")),
            Ok(metadata) if self.marks.is_some() && is_whiteout(&metadata) => Ok(None),
            Ok(_) => Ok(Some(place)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn make_link(&mut self, place: &Place, target: &Place) -> Result<()> {
        if place.path == target.path {
            return Ok(());
        }
        self.replacing(place, |dir, name| rustix::fs::linkat(&target.dir, &target.name, dir, name, AtFlags::empty()))?;
        Ok(())
    }

    /// Leaves a link for later whose target can only be in a layer below.
    fn leave_link(&mut self, place: Place, target: &[u8]) -> Result<()> {
        if self.marks.is_none() {
            let target = display(target);
            return Err(Error::invalid(format!("a hard link to {target}, which the archive does not hold")));
        }
        let target = components(target)?.join(&b'/');
        self.remember(&[place.path.as_slice(), &target].concat(), None)?;
        self.done.links.insert(place.path, target);
        Ok(())
    }

    fn make_node(&mut self, place: &Place, attributes: &Attributes, kind: Kind, numbers: (u32, u32)) -> Result<()> {
        match self.replacing(place, |dir, name| make_node(dir, name, kind, numbers)) {
            Ok(()) => self.apply_at(place, attributes, kind),
            Err(Errno::PERM) if kind != Kind::Fifo => {
                self.done.devices_skipped += 1;
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn apply_at(&mut self, place: &Place, attributes: &Attributes, kind: Kind) -> Result<()> {
        self.done.xattrs_skipped += accepted(attributes).apply_at(&place.dir, &place.name, kind)? as u64;
        Ok(())
    }

    /// Makes something that is no directory; what stands in its place goes first.
    fn replacing<T>(
        &mut self,
        place: &Place,
        make: impl Fn(&OwnedFd, &CStr) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match make(&place.dir, &place.name) {
            Err(Errno::EXIST) => {
                let there = Metadata::at(&place.dir, &place.name)?;
                self.remove(place, &there)?;
                make(&place.dir, &place.name)
            }
            made => made,
        }
    }

    fn remove(&mut self, place: &Place, there: &Metadata) -> rustix::io::Result<()> {
        remove(&place.dir, &place.name)?;
        if there.kind == Kind::Dir {
            // Nothing that was known about the directory is true any more.
            self.dirs.clear();
            let inside = [place.path.as_slice(), b"/"].concat();
            let gone = |path: &Vec<u8>| *path == place.path || path.starts_with(&inside);
            self.attributes.retain(|path, _| !gone(path));
            self.done.implicit.retain(|path| !gone(path));
            self.done.links.retain(|path, _| !gone(path));
        }
        Ok(())
    }

    fn place(&mut self, parents: &[&[u8]], name: &[u8], missing: Missing) -> Result<Option<Place>> {
        let Some(dir) = self.open(parents, missing)? else { return Ok(None) };
        let mut path = self.path();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let name = CString::new(name).map_err(|_| Error::invalid("a name holds a NUL"))?;
        Ok(Some(Place { dir, name, path }))
    }

    /// The path of the directory entered last.
    fn path(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.dirs.iter().map(|(name, _)| name.as_slice()).collect();
        names.join(&b'/')
    }

    fn innermost(&self) -> &Arc<OwnedFd> {
        self.dirs.last().map_or(&self.root, |(_, dir)| dir)
    }

    /// Enters a directory by its path, resolving symbolic links within the root.
    fn open(&mut self, path: &[&[u8]], missing: Missing) -> Result<Option<Arc<OwnedFd>>> {
        let same = self.dirs.iter().zip(path).take_while(|((name, _), component)| name == *component).count();
        self.dirs.truncate(same);
        let mut rest: VecDeque<Vec<u8>> = path[same..].iter().map(|component| component.to_vec()).collect();
        let mut links = 0;
        while let Some(component) = rest.pop_front() {
            if component == b".." {
                self.dirs.pop();
                continue;
            }
            let name = CString::new(component.as_slice()).map_err(|_| Error::invalid("a name holds a NUL"))?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(self.innermost(), &name, flags, Mode::empty());
            let dir = match opened {
                Ok(dir) => dir,
                Err(Errno::NOENT) if missing == Missing::Reported => return Ok(None),
                Err(Errno::NOENT) => self.make_implicit(&component, &name)?,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let there = Metadata::at(self.innermost(), &name)?;
                    if there.kind == Kind::Symlink {
                        links += 1;
                        if links > 40 {
                            return Err(Errno::LOOP.into());
                        }
                        let target = read_link(self.innermost(), &name)?;
                        if target.starts_with(b"/") {
                            self.dirs.clear();
                        }
                        for part in target.split(|byte| *byte == b'/').rev().filter(|part| !matches!(*part, b"" | b"."))
                        {
                            rest.push_front(part.to_vec());
                        }
                        continue;
                    }
                    match (self.marks, missing) {
                        (Some(_), Missing::Reported) if is_whiteout(&there) => return Ok(None),
                        (Some(marks), Missing::Made) if marks.unset_whiteout(self.innermost(), &name)? => {
                            let dir = self.make_implicit(&component, &name)?;
                            marks.set_opaque(open_dir(&dir, c".")?)?;
                            dir
                        }
                        _ => return Err(Error::invalid(format!("{} is not a directory", display(&component)))),
                    }
                }
                Err(errno) => return Err(errno.into()),
            };
            if self.dirs.len() >= MAX_DEPTH {
                return Err(too_deep(&self.path()));
            }
            self.dirs.push((component, Arc::new(dir)));
        }
        Ok(Some(Arc::clone(self.innermost())))
    }

    /// Makes a directory that has no entry, or none yet.
    fn make_implicit(&mut self, component: &[u8], name: &CStr) -> Result<OwnedFd> {
        let parent = Arc::clone(self.innermost());
        rustix::fs::mkdirat(&parent, name, Mode::RWXU)?;
        let dir = open_dir(&parent, name)?;
        if let (Some(marks @ Marks::Files), true) = (self.marks, self.whiteouts)
            && marks.unset_whiteout(&parent, name)?
        {
            marks.set_opaque(&dir)?;
        }
        let mut path = self.path();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
        self.remember(&path, None)?;
        self.done.implicit.insert(path);
        Ok(dir)
    }

    /// Gives directories their metadata, now that nothing is made in them any more.
    fn finish(mut self) -> Result<Extracted> {
        let (uid, gid) = self.options.owner.unwrap_or((0, 0));
        let ordinary = Attributes { mode: 0o755, uid, gid, mtime: Time::default(), xattrs: Xattrs::default() };
        for path in &self.done.implicit {
            if !path.is_empty() || self.marks.is_some() {
                self.attributes.insert(path.clone(), ordinary.clone());
            }
        }
        // The innermost first: an owner without rights must not be locked out of what is left to do.
        for (path, attributes) in std::mem::take(&mut self.attributes).into_iter().rev() {
            let context = || format!("set the metadata of {}", display(&path));
            let components = components(&path).context(context)?;
            let Some(dir) = self.open(&components, Missing::Reported).context(context)? else {
                return Err(Error::internal("a directory has vanished")).context(context);
            };
            let dir = open_dir(dir.as_fd(), c".").context(context)?;
            self.done.xattrs_skipped += accepted(&attributes).apply(&dir).context(context)? as u64;
        }
        Ok(self.done)
    }
}

/// Splits a path of an archive into components, taking it as relative to the root.
///
/// `..` is resolved as text, as docker does; a path that leads out of the root is refused.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>> {
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if components.pop().is_none() => {
                return Err(Error::invalid("the path leads out of the root of the archive"));
            }
            b".." => {}
            _ => components.push(component),
        }
    }
    Ok(components)
}

/// The attributes without what an archive may not set.
fn accepted(attributes: &Attributes) -> std::borrow::Cow<'_, Attributes> {
    if attributes.xattrs.iter().all(|(name, _)| keeps_xattr(name)) {
        return std::borrow::Cow::Borrowed(attributes);
    }
    let kept = attributes.xattrs.iter().filter(|(name, _)| keeps_xattr(name));
    let xattrs = Xattrs::new(kept.map(|(name, value)| (name.to_owned(), value.to_vec())));
    std::borrow::Cow::Owned(Attributes { xattrs, ..attributes.clone() })
}

/// How much is remembered of an archive until its end, in bytes: many times what an image with a million directories needs.
const MAX_REMEMBERED: usize = 128 << 20;

/// Zeros of this length, so aligned, are not written: the block stays a hole.
const HOLE: usize = 4096;

/// Writes data at an offset, leaving out blocks of zeros.
fn write_sparsely(file: &OwnedFd, data: &[u8], at: u64) -> rustix::io::Result<()> {
    const ZEROS: [u8; HOLE] = [0; HOLE];
    let mut start = 0;
    let mut end = usize::try_from(at.wrapping_neg() % HOLE as u64).expect("below a block").min(data.len());
    while end < data.len() {
        let block = end + HOLE;
        if block <= data.len() && data[end..block] == ZEROS {
            write_all(file, &data[start..end], at + start as u64)?;
            start = block;
        }
        end = block.min(data.len());
    }
    write_all(file, &data[start..], at + start as u64)
}

fn write_all(file: &OwnedFd, mut data: &[u8], mut at: u64) -> rustix::io::Result<()> {
    while !data.is_empty() {
        let written = rustix::io::pwrite(file, data, at)?;
        data = &data[written..];
        at += written as u64;
    }
    Ok(())
}
