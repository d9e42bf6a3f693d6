//! Reading a tree: metadata, links, attributes and data hashes of everything a copy takes, on all cores.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use kiln_dockerfile::Ignore;
use kiln_dockerfile::ignore::Directory;
use kiln_graph::op::Copy;
use rayon::iter::{IndexedParallelIterator as _, IntoParallelRefIterator as _, ParallelIterator as _};
use rustix::fs::OFlags;

use super::entry::Entry;
use super::memo::Remembered;
use super::select::{Owners, Tree, join};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::tree::{self, Kind, Metadata, Name, Xattrs};
use crate::task::Cancel;

/// Which files of a tree a copy takes.
#[derive(Debug)]
pub(super) struct Rules {
    /// Patterns of what is left out, below the copied path.
    exclude: Option<Ignore>,
    /// Patterns of what is taken, below the copied path.
    include: Option<Ignore>,
}

impl Rules {
    pub(super) fn of(tree: &Tree, copy: &Copy) -> Result<Self> {
        let patterns = |list: &[String]| -> Result<Option<Ignore>> {
            if list.is_empty() {
                return Ok(None);
            }
            let ignore = Ignore::from_patterns(list.iter().map(String::as_str));
            ignore.map(Some).map_err(|error| Error::invalid(format!("{error}, in a copy from {}", tree.name)))
        };
        Ok(Self { exclude: patterns(&copy.exclude)?, include: patterns(&copy.include)? })
    }

    /// Says whether nothing below the copied path is left out.
    pub(super) fn take_all(&self) -> bool {
        self.exclude.is_none() && self.include.is_none()
    }
}

/// One reading of a tree for one copy.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    pub(super) tree: &'a Tree,
    pub(super) rules: Rules,
    pub(super) cancel: &'a Cancel,
}

/// What a walk knows about a directory: its path from the root and below the match, and what the patterns said above.
struct Place {
    from_root: Vec<u8>,
    below: Vec<u8>,
    ignore: Option<Directory>,
    exclude: Option<Directory>,
    include: Option<Directory>,
    depth: usize,
}

/// What the patterns say about an entry.
struct Verdict {
    taken: bool,
    /// What its entries need, when it is a directory that must be entered.
    place: Option<Place>,
}

/// Device and overlay marks never leave a layer; what a security module of the host set means nothing in an image.
fn copied_xattr(name: &CStr) -> bool {
    let name = name.to_bytes();
    name == b"security.capability" || name.starts_with(b"user.")
}

impl Scan<'_> {
    /// Reads a directory and everything below it that is taken.
    pub(super) fn directory(&self, dir: &OwnedFd, path: &[u8]) -> Result<(Entry, Vec<Entry>)> {
        let mut ignore = self.tree.ignore.as_ref().map(|ignore| ignore.root());
        // Patterns that match a directory above count for everything below.
        if let (Some(rules), Some(state)) = (&self.tree.ignore, &mut ignore) {
            let text = String::from_utf8_lossy(path);
            let ends = text.match_indices('/').map(|(at, _)| at).chain((!text.is_empty()).then_some(text.len()));
            for end in ends {
                *state = rules.enter(state, &text[..end]).1;
            }
        }
        let place = Place {
            from_root: path.to_vec(),
            below: Vec::new(),
            ignore,
            exclude: self.rules.exclude.as_ref().map(Ignore::root),
            include: self.rules.include.as_ref().map(Ignore::root),
            depth: 0,
        };
        let top = self.directory_entry(dir, Vec::new())?;
        let below = self.entries(dir, &place)?;
        Ok((top, below))
    }

    fn entries(&self, dir: &OwnedFd, place: &Place) -> Result<Vec<Entry>> {
        self.cancel.check()?;
        if place.depth >= tree::MAX_DEPTH {
            let path = tree::display(&place.from_root).to_string();
            return Err(Error::unsupported(format!(
                "{path}: directories nest more than {} levels deep",
                tree::MAX_DEPTH
            )));
        }
        let context = || format!("read {}", tree::display(&place.from_root));
        let names = tree::list(dir).context(context)?;
        let scanned: Vec<Result<Vec<Entry>>> = if names.len() < 8 {
            names.iter().map(|name| self.name(dir, name, place)).collect()
        } else {
            names.par_iter().with_min_len(8).map(|name| self.name(dir, name, place)).collect()
        };
        let mut entries = Vec::new();
        for scanned in scanned {
            entries.extend(scanned?);
        }
        Ok(entries)
    }

    /// Reads one name of a directory.
    fn name(&self, dir: &OwnedFd, name: &Name, place: &Place) -> Result<Vec<Entry>> {
        let below = join(&place.below, name.name.to_bytes());
        let from_root = join(&place.from_root, name.name.to_bytes());
        let context = || format!("read {}", tree::display(&from_root));
        let is_dir = name.kind(dir).context(context)? == Kind::Dir;
        let verdict = self.judge(place, &from_root, &below, is_dir);
        let Some(inner) = verdict.place else {
            return match verdict.taken {
                true => Ok(self.file(dir, &name.name, below).context(context)?.into_iter().collect()),
                false => Ok(Vec::new()),
            };
        };
        let opened = tree::open_dir(dir, &name.name).context(context)?;
        let children = self.entries(&opened, &inner)?;
        if !verdict.taken && children.is_empty() {
            return Ok(Vec::new());
        }
        let mut entries = vec![self.directory_entry(&opened, below).context(context)?];
        entries.extend(children);
        Ok(entries)
    }

    fn judge(&self, place: &Place, from_root: &[u8], below: &[u8], is_dir: bool) -> Verdict {
        let (root_path, below_path) = (String::from_utf8_lossy(from_root), String::from_utf8_lossy(below));
        let ask = |rules: Option<&Ignore>, state: Option<&Directory>, path: &str| match (rules, state) {
            (Some(rules), Some(state)) if is_dir => {
                let (matched, inner) = rules.enter(state, path);
                (matched, Some(inner))
            }
            (Some(rules), Some(state)) => (rules.excludes_in(state, path), None),
            _ => (false, None),
        };
        let (ignored, ignore) = ask(self.tree.ignore.as_deref(), place.ignore.as_ref(), &root_path);
        let (excluded, exclude) = ask(self.rules.exclude.as_ref(), place.exclude.as_ref(), &below_path);
        let (included, include) = ask(self.rules.include.as_ref(), place.include.as_ref(), &below_path);
        let taken = !ignored && !excluded && (included || self.rules.include.is_none());
        let hidden = |hidden: bool, rules: Option<&Ignore>, path: &str| {
            hidden && !rules.is_some_and(|rules| rules.may_include_below(path))
        };
        let closed = hidden(ignored, self.tree.ignore.as_deref(), &root_path)
            || hidden(excluded, self.rules.exclude.as_ref(), &below_path);
        let place = (is_dir && !closed).then(|| Place {
            from_root: from_root.to_vec(),
            below: below.to_vec(),
            ignore,
            exclude,
            include,
            depth: place.depth + 1,
        });
        // A directory that is hidden for good has no place and must not be taken for a file.
        Verdict { taken: taken && (!is_dir || place.is_some()), place }
    }

    fn directory_entry(&self, dir: &OwnedFd, below: Vec<u8>) -> Result<Entry> {
        let metadata = self.owned(Metadata::of(dir)?);
        let xattrs = Xattrs::of(dir, copied_xattr)?;
        Ok(Entry::new(below, metadata, Vec::new(), xattrs, None))
    }

    /// Reads something that is no directory; `None` for a socket.
    pub(super) fn file(&self, dir: &OwnedFd, name: &CStr, below: Vec<u8>) -> Result<Option<Entry>> {
        let metadata = Metadata::at(dir, name)?;
        let owned = self.owned(metadata);
        let entry = match metadata.kind {
            Kind::Socket => return Ok(None),
            Kind::File => {
                let (remembered, xattrs) = self.data(dir, name, &metadata)?;
                Entry::new(below, owned, Vec::new(), xattrs, Some(remembered.hash))
            }
            Kind::Symlink => Entry::new(below, owned, tree::read_link(dir, name)?, Xattrs::default(), None),
            _ => Entry::new(below, owned, Vec::new(), Xattrs::at(dir, name, copied_xattr)?, None),
        };
        Ok(Some(entry))
    }

    /// Hashes a file's data, or remembers.
    fn data(&self, dir: &OwnedFd, name: &CStr, metadata: &Metadata) -> Result<(Remembered, Xattrs)> {
        if let Some(remembered) = self.tree.memo.as_ref().and_then(|memo| memo.get(metadata)) {
            let xattrs = if remembered.has_xattrs { Xattrs::at(dir, name, copied_xattr)? } else { Xattrs::default() };
            return Ok((remembered, xattrs));
        }
        let file = tree::open_file(dir, name)?;
        let xattrs = Xattrs::of(&file, copied_xattr)?;
        let remembered = Remembered { hash: self.hash(&file)?, has_xattrs: !xattrs.is_empty() };
        if let Some(memo) = &self.tree.memo
            // What changed while it was read has a hash of nothing.
            && Metadata::of(&file)? == *metadata
        {
            memo.put(metadata, &remembered);
        }
        Ok((remembered, xattrs))
    }

    fn hash(&self, file: &OwnedFd) -> Result<[u8; 32]> {
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(256 << 10, 0);
            let mut hash = blake3::Hasher::new();
            loop {
                let read = rustix::io::retry_on_intr(|| rustix::io::read(file, buffer.as_mut_slice()))?;
                if read == 0 {
                    return Ok(*hash.finalize().as_bytes());
                }
                hash.update(&buffer[..read]);
                self.cancel.check()?;
            }
        })
    }

    fn owned(&self, metadata: Metadata) -> Metadata {
        match self.tree.owners {
            Owners::Keep => metadata,
            Owners::Root => Metadata { uid: 0, gid: 0, ..metadata },
        }
    }
}

/// Opens a selected file again, to copy it.
pub(in crate::solver) fn open_selected(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    super::select::open_beneath(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW)
}

/// A C string of a name that came out of the kernel or was checked.
pub(super) fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Error::invalid("a name contains a NUL"))
}

/// Says whether two descriptors are the same file; used to notice a file that was replaced while it was copied.
pub(super) fn same_file(file: impl AsFd, metadata: &Metadata) -> Result<bool> {
    let now = Metadata::of(file)?;
    Ok((now.inode, now.size, now.mtime, now.ctime) == (metadata.inode, metadata.size, metadata.mtime, metadata.ctime))
}
