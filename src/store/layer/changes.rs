//! What a tree changes over what lies below it.
//!
//! The answer depends on nothing but the two views, the merged one below and the one with the tree on it: not on how a driver
//! noted the change, nor on detours (a file moved away and back, a directory removed and made again). So overlay and the
//! copying driver find the same changes, and the layers made of them are the same byte for byte.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::marks::{Marks, OPAQUE, WHITEOUT, is_whiteout, keeps_xattr};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::tree::{
    Attributes, Found, Kind, MAX_DEPTH, Metadata, Name, Step, Time, Walk, Xattrs, display, list, open_dir, open_file,
    read_link, too_deep,
};

/// A tree, and what it is compared with.
#[derive(Debug)]
pub(in crate::store) struct Source {
    pub tree: OwnedFd,
    pub form: Form,
    /// The merged view below the tree.
    pub lower: Option<OwnedFd>,
}

/// What a tree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Form {
    /// The changes over the view below.
    Upper(Marks),
    /// A layer by itself: everything in it counts, whatever lies below.
    Alone(Marks),
    /// The whole view. What has a `ctime` before the time given is as it was copied from below.
    Whole(Option<Time>),
}

impl Form {
    fn marks(self) -> Option<Marks> {
        match self {
            Self::Upper(marks) | Self::Alone(marks) => Some(marks),
            Self::Whole(_) => None,
        }
    }
}

/// One step of the walk, in the order of the tar.
#[derive(Debug)]
pub(super) enum Item {
    /// A directory, before what it holds.
    Enter(Directory),
    /// The end of the directory entered last.
    Leave,
    /// A name that is no longer there.
    Gone(Vec<u8>),
    /// Anything else; whether it changed is for [`Changes::load`] to say.
    Other(Candidate),
}

#[derive(Debug)]
pub(super) struct Directory {
    /// Empty for the root.
    pub path: Vec<u8>,
    pub metadata: Metadata,
    pub attributes: Attributes,
    /// Whether it is new or has other metadata than below, so that it belongs to the layer even if nothing in it does.
    pub changed: bool,
    /// Whether something of that name lies below.
    pub replaces: bool,
    /// Whether it hides what lies below, which only a layer by itself has to say.
    pub opaque: bool,
    /// Whether its tree says that it hides what lies below.
    pub marked: bool,
}

#[derive(Debug)]
pub(super) struct Candidate {
    pub path: Vec<u8>,
    dir: Arc<OwnedFd>,
    lower: Option<Arc<OwnedFd>>,
    name: Name,
}

impl Candidate {
    /// Returns the directory it is in.
    pub(super) fn parent(&self) -> &OwnedFd {
        &self.dir
    }
}

/// What a candidate turned out to be.
#[derive(Debug)]
pub(super) enum Loaded {
    /// As below, or nothing a layer holds.
    Same(Metadata),
    /// Something that lies below and is hidden.
    Gone(Metadata),
    /// New or changed.
    Changed(Box<File>),
}

#[derive(Debug)]
pub(super) struct File {
    pub metadata: Metadata,
    pub xattrs: Xattrs,
    pub body: Body,
    pub replaces: bool,
}

#[derive(Debug)]
pub(super) enum Body {
    None,
    /// The target of a symbolic link.
    Link(Vec<u8>),
    /// The content of a small file.
    Bytes(Vec<u8>),
    /// A file too large to be read at once.
    Open(OwnedFd),
}

/// Whether [`Changes::load`] reads what changed files hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Read,
    Ignored,
}

/// Files up to this size, in bytes, are read when they are loaded.
pub(super) const INLINE: usize = 128 << 10;

/// The walk over a tree beside the view below it.
#[derive(Debug)]
pub(super) struct Changes {
    root: Arc<OwnedFd>,
    lower: Option<Arc<OwnedFd>>,
    form: Form,
    frames: Vec<Frame>,
    path: Vec<u8>,
    /// See [`Self::linked`]; found out when it first matters.
    linked: OnceLock<HashSet<u64>>,
}

#[derive(Debug)]
struct Frame {
    dir: Arc<OwnedFd>,
    lower: Option<Arc<OwnedFd>>,
    /// Whether the directory hides what lies below, so that missing names count as removed.
    hides: bool,
    names: std::vec::IntoIter<Entry>,
    path_len: usize,
}

#[derive(Debug)]
enum Entry {
    Here(Name),
    Below(CString),
}

impl Changes {
    /// Starts the walk, and returns the root.
    pub(super) fn new(source: Source) -> Result<(Self, Directory)> {
        let Source { tree, form, lower } = source;
        let root = Arc::new(tree);
        let context = || "read the root of a layer";
        let metadata = Metadata::of(&root).context(context)?;
        let attributes = Attributes::of(&metadata, Xattrs::of(&root, keeps_xattr).context(context)?);
        let below = match &lower {
            Some(lower) => {
                Attributes::of(&Metadata::of(lower).context(context)?, Xattrs::of(lower, keeps_xattr).context(context)?)
            }
            None => Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Time::default(), xattrs: Xattrs::default() },
        };
        // Every change in the root changes its time, which no peer looks at.
        let changed = Attributes { mtime: below.mtime, ..attributes.clone() } != below;
        let replaces = lower.is_some();
        let directory =
            Directory { path: Vec::new(), metadata, attributes, changed, replaces, opaque: false, marked: false };
        let lower = lower.map(Arc::new);
        let (frames, path, linked) = (Vec::new(), Vec::new(), OnceLock::new());
        let mut changes = Self { root: Arc::clone(&root), lower: lower.clone(), form, frames, path, linked };
        let whole = matches!(form, Form::Whole(_));
        changes.enter(root, lower, whole).context(context)?;
        Ok((changes, directory))
    }

    fn enter(&mut self, dir: Arc<OwnedFd>, lower: Option<Arc<OwnedFd>>, hides: bool) -> rustix::io::Result<()> {
        let mut here = list(&dir)?;
        if matches!(self.form, Form::Alone(Marks::Files)) {
            // Marks stand where overlay's would.
            here.sort_by(|a, b| hidden(a).cmp(hidden(b)));
        }
        let names = match &lower {
            Some(lower) if hides => merge(here, list(lower)?),
            _ => here.into_iter().map(Entry::Here).collect(),
        };
        let path_len = self.path.len();
        self.frames.push(Frame { dir, lower, hides, names: names.into_iter(), path_len });
        Ok(())
    }

    /// Goes one step; `None` at the end.
    pub(super) fn step(&mut self) -> Result<Option<Item>> {
        let Some(frame) = self.frames.last_mut() else { return Ok(None) };
        self.path.truncate(frame.path_len);
        let Some(entry) = frame.names.next() else {
            self.frames.pop();
            return Ok(Some(Item::Leave));
        };
        let name = match entry {
            Entry::Here(name) => name,
            Entry::Below(name) => {
                self.path.extend_from_slice(name.to_bytes());
                return Ok(Some(Item::Gone(self.path.clone())));
            }
        };
        self.path.extend_from_slice(name.name.to_bytes());
        if name.name.to_bytes().starts_with(WHITEOUT) {
            if matches!(self.form, Form::Alone(Marks::Files)) && name.name.to_bytes() != OPAQUE {
                self.path.truncate(frame.path_len);
                self.path.extend_from_slice(hidden(&name));
                return Ok(Some(Item::Gone(self.path.clone())));
            }
            return Err(Error::unsupported(format!(
                "{}: no layer can hold this name, because names that begin with .wh. mean deletions in a layer",
                display(&self.path)
            )));
        }
        let (dir, lower, hides) = (Arc::clone(&frame.dir), frame.lower.clone(), frame.hides);
        let context = |path: &[u8]| format!("read {}", display(path));
        if name.kind(&dir).context(|| context(&self.path))? == Kind::Dir {
            self.directory(&name, &dir, lower.as_deref(), hides).map(|directory| Some(Item::Enter(directory)))
        } else {
            Ok(Some(Item::Other(Candidate { path: self.path.clone(), dir, lower, name })))
        }
    }

    fn directory(&mut self, name: &Name, parent: &OwnedFd, lower: Option<&OwnedFd>, hides: bool) -> Result<Directory> {
        if self.frames.len() >= MAX_DEPTH {
            return Err(too_deep(&self.path));
        }
        let path = self.path.clone();
        let context = || format!("read {}", display(&path));
        let dir = open_dir(parent, &name.name).context(context)?;
        let metadata = Metadata::of(&dir).context(context)?;
        let attributes = Attributes::of(&metadata, Xattrs::of(&dir, keeps_xattr).context(context)?);
        let marked = self.form.marks().is_some_and(|marks| marks.is_opaque(&dir).unwrap_or(false));
        let (below, replaces) = match lower.map(|lower| open_dir(lower, &name.name)) {
            Some(Ok(below)) => (Some(below), true),
            Some(Err(Errno::NOTDIR | Errno::LOOP)) => (None, true),
            None | Some(Err(Errno::NOENT)) => (None, false),
            Some(Err(errno)) => return Err(errno).context(context),
        };
        let changed = match &below {
            None => true,
            Some(below) => {
                let metadata = Metadata::of(below).context(context)?;
                Attributes::of(&metadata, Xattrs::of(below, keeps_xattr).context(context)?) != attributes
            }
        };
        let opaque = marked && matches!(self.form, Form::Alone(_));
        self.path.push(b'/');
        self.enter(Arc::new(dir), below.map(Arc::new), hides || marked).context(context)?;
        Ok(Directory { path, metadata, attributes, changed, replaces, opaque, marked })
    }

    /// Finds out what a candidate is, and reads it. Several threads may load at once.
    pub(super) fn load(&self, candidate: &Candidate, content: Content) -> Result<Loaded> {
        self.load_from(candidate, content).context(|| format!("read {}", display(&candidate.path)))
    }

    fn load_from(&self, candidate: &Candidate, content: Content) -> Result<Loaded> {
        let Candidate { dir, name, .. } = candidate;
        let file = match name.kind(dir)? {
            Kind::File => Some(open_file(dir, &name.name)?),
            _ => None,
        };
        let metadata = match &file {
            Some(file) => Metadata::of(file)?,
            None => Metadata::at(dir, &name.name)?,
        };
        if let Form::Whole(Some(copied)) = self.form
            && metadata.ctime < copied
        {
            return Ok(Loaded::Same(metadata));
        }
        let below = match &candidate.lower {
            Some(lower) => found(Metadata::at(lower, &name.name))?,
            None => None,
        };
        if metadata.kind == Kind::Socket || is_whiteout(&metadata) {
            return self.hidden(&metadata, below.is_some());
        }
        let xattrs = match &file {
            Some(file) => Xattrs::of(file, keeps_xattr)?,
            None => Xattrs::at(dir, &name.name, keeps_xattr)?,
        };
        if let (Some(below), Some(lower)) = (&below, &candidate.lower)
            && same_metadata(&metadata, below)
            && same_content(candidate, lower, file.as_ref(), &xattrs)?
            && !(metadata.links > 1 && self.linked()?.contains(&metadata.inode.number))
        {
            return Ok(Loaded::Same(metadata));
        }
        let body = match (metadata.kind, file) {
            (Kind::Symlink, _) => Body::Link(read_link(dir, &name.name)?),
            (Kind::File, Some(file)) if content == Content::Read && metadata.size > 0 => {
                if metadata.size > INLINE as u64 {
                    Body::Open(file)
                } else {
                    Body::Bytes(read_all(&file, metadata.size)?)
                }
            }
            _ => Body::None,
        };
        Ok(Loaded::Changed(Box::new(File { metadata, xattrs, body, replaces: below.is_some() })))
    }

    /// Decides about what no layer holds as itself: sockets, and the device that is a whiteout.
    fn hidden(&self, metadata: &Metadata, lies_below: bool) -> Result<Loaded> {
        if metadata.kind != Kind::Socket && self.form.marks().is_none() {
            return Err(Error::unsupported("no layer can hold a character device 0:0, because it means a deletion"));
        }
        let all_count = metadata.kind != Kind::Socket && matches!(self.form, Form::Alone(_));
        Ok(if lies_below || all_count { Loaded::Gone(*metadata) } else { Loaded::Same(*metadata) })
    }

    /// The files that got a name they do not have below. A file that is as below still belongs to the layer when another
    /// name in the layer is a link to it.
    fn linked(&self) -> Result<&HashSet<u64>> {
        if let Some(linked) = self.linked.get() {
            return Ok(linked);
        }
        let (mut once, mut several) = (HashSet::new(), HashSet::new());
        self.each_file(|found| {
            if !once.insert(found.inode) {
                several.insert(found.inode);
            }
            Ok(())
        })?;
        drop(once);
        // Of each such file, the one below that all of its names stand for.
        let mut below: HashMap<u64, Option<u64>> = HashMap::new();
        if let Some(lower) = self.lower.as_ref().filter(|_| !several.is_empty()) {
            self.each_file(|found| {
                if several.contains(&found.inode) {
                    let same = beneath(lower, &found.path)?.map(|metadata| metadata.inode.number);
                    let known = below.entry(found.inode).or_insert(same);
                    *known = known.filter(|known| Some(*known) == same);
                }
                Ok(())
            })?;
        }
        several.retain(|inode| below.get(inode).is_none_or(Option::is_none));
        Ok(self.linked.get_or_init(|| several))
    }

    fn each_file(&self, mut visit: impl FnMut(&Found) -> Result<()>) -> Result<()> {
        let root = open_dir(self.root.as_fd(), c".").context(|| "read the root of a layer")?;
        let mut walk = Walk::new(root)?;
        while let Some(step) = walk.step()? {
            if let Step::Pass(found) = step {
                visit(&found)?;
            }
        }
        Ok(())
    }
}

/// The metadata of a path below `root` that no symbolic link is a part of; `None` when there is nothing.
pub(super) fn beneath(root: &OwnedFd, path: &[u8]) -> Result<Option<Metadata>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let dir = slash.map_or(b".".as_slice(), |at| &path[..at]);
    let name = CString::new(&path[slash.map_or(0, |at| at + 1)..]).expect("names of files hold no NUL");
    let opened = crate::store::tree::openat2(root, dir, flags, Mode::empty(), resolve | ResolveFlags::NO_SYMLINKS);
    match opened.and_then(|dir| Metadata::at(dir, &name)) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno).context(|| format!("read {}", display(path))),
    }
}

/// The name that an entry is about: its own, or the one that it hides.
fn hidden(name: &Name) -> &[u8] {
    let bytes = name.name.to_bytes();
    bytes.strip_prefix(WHITEOUT).unwrap_or(bytes)
}

/// Puts what is here and what is only below into one order.
fn merge(here: Vec<Name>, below: Vec<Name>) -> Vec<Entry> {
    let mut merged = Vec::with_capacity(here.len());
    let mut below = below.into_iter().map(|name| name.name).peekable();
    for name in here {
        while let Some(missing) = below.next_if(|below| *below < name.name) {
            merged.push(Entry::Below(missing));
        }
        below.next_if_eq(&name.name);
        merged.push(Entry::Here(name));
    }
    merged.extend(below.map(Entry::Below));
    merged
}

fn found<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn same_metadata(a: &Metadata, b: &Metadata) -> bool {
    let facts = |m: &Metadata| (m.kind, m.mode, m.uid, m.gid, m.size, m.mtime, m.rdev);
    facts(a) == facts(b)
}

fn same_content(candidate: &Candidate, lower: &OwnedFd, file: Option<&OwnedFd>, xattrs: &Xattrs) -> Result<bool> {
    let Candidate { dir, name, .. } = candidate;
    let name = name.name.as_c_str();
    if let Some(file) = file {
        let below = open_file(lower, name)?;
        return Ok(Xattrs::of(&below, keeps_xattr)? == *xattrs && same_bytes(file, &below)?);
    }
    if Xattrs::at(lower, name, keeps_xattr)? != *xattrs {
        return Ok(false);
    }
    let is_link = Metadata::at(dir, name)?.kind == Kind::Symlink;
    Ok(!is_link || read_link(dir, name)? == read_link(lower, name)?)
}

fn same_bytes(a: &OwnedFd, b: &OwnedFd) -> Result<bool> {
    const PIECE: usize = 64 << 10;
    let (mut left, mut right) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
    let mut at = 0;
    loop {
        for (file, piece) in [(a, &mut left), (b, &mut right)] {
            piece.clear();
            rustix::io::pread(file, spare_capacity(piece), at)?;
        }
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
        at += left.len() as u64;
    }
}

fn read_all(file: &OwnedFd, size: u64) -> Result<Vec<u8>> {
    let size = usize::try_from(size).map_err(|_| Error::internal("a small file is too large"))?;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        if rustix::io::read(file, spare_capacity(&mut bytes))? == 0 {
            return Err(changed_meanwhile());
        }
    }
    bytes.truncate(size);
    Ok(bytes)
}

pub(super) fn changed_meanwhile() -> Error {
    Error::conflict("the file changed while it was read")
}
