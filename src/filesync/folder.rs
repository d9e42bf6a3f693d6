//! A directory of a user that files are received into: new ones replace what is in their way, others stay or are removed.
//!
//! Everything is opened beneath the directory's descriptor, and no symbolic link below it is followed, whatever the list says
//! and whoever changes the directory meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use super::entry::{Entry, EntryKind, parent};
use super::receive::Sink;
use crate::error::{Error, Result, ResultExt as _};
use crate::store::tree::{self, Attributes, Kind};

/// A directory that files are received into. Owners are this process's, as the rest of the user's files have them.
#[derive(Debug)]
pub struct Folder {
    root: OwnedFd,
    /// Whether what was there and did not come is removed.
    delete: bool,
    /// Files whose data is to come, by their numbers.
    expected: HashMap<u32, Entry>,
    /// The one that is being written, with its temporary name.
    writing: HashMap<u32, (File, CString)>,
    /// Directories, whose attributes are set at the end.
    dirs: Vec<Entry>,
    /// Further names of files, which are made when the files are there.
    links: Vec<(Entry, String)>,
    /// What came, when it matters.
    came: BTreeSet<String>,
}

impl Folder {
    /// Opens a directory, which is made when it is missing. Blocking.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn open(path: &Path, delete: bool) -> Result<Self> {
        std::fs::create_dir_all(path).context(|| format!("make the directory {}", path.display()))?;
        let root = tree::open_root(path)?;
        Ok(Self {
            root,
            delete,
            expected: HashMap::new(),
            writing: HashMap::new(),
            dirs: Vec::new(),
            links: Vec::new(),
            came: BTreeSet::new(),
        })
    }

    /// Opens the directory that a path is in; returns the last name, too.
    fn place(&self, path: &str) -> Result<(OwnedFd, CString)> {
        let name = path.rsplit('/').next().unwrap_or(path);
        let name = CString::new(name).map_err(|_| Error::invalid("a name holds a NUL"))?;
        Ok((self.dir(parent(path))?, name))
    }

    fn dir(&self, path: &str) -> Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(tree::openat2(&self.root, path, flags, Mode::empty(), resolve)?)
    }

    fn make(&mut self, number: u32, entry: Entry) -> Result<bool> {
        let (dir, name) = self.place(&entry.path)?;
        let attributes = own(&entry);
        match &entry.kind {
            EntryKind::Dir => {
                tree::make_dir(&dir, &name)?;
                self.dirs.push(entry);
            }
            EntryKind::File { .. } => {
                self.expected.insert(number, entry);
                return Ok(true);
            }
            EntryKind::HardLink { to } => {
                let to = to.clone();
                self.links.push((entry, to));
            }
            EntryKind::Symlink { target } => {
                let target = CString::new(target.as_str()).map_err(|_| Error::invalid("its target holds a NUL"))?;
                tree::replacing(&dir, &name, || rustix::fs::symlinkat(&target, &dir, &name))?;
                attributes.apply_at(&dir, &name, Kind::Symlink)?;
            }
            EntryKind::Device { kind, number } => {
                tree::replacing(&dir, &name, || tree::make_node(&dir, &name, *kind, *number))?;
                attributes.apply_at(&dir, &name, *kind)?;
            }
            EntryKind::Fifo => {
                tree::replacing(&dir, &name, || tree::make_node(&dir, &name, Kind::Fifo, (0, 0)))?;
                attributes.apply_at(&dir, &name, Kind::Fifo)?;
            }
            EntryKind::Socket => {}
        }
        Ok(false)
    }

    /// Returns the file that data is written to, under a temporary name at first.
    fn file(&mut self, number: u32) -> Result<&mut File> {
        if !self.writing.contains_key(&number) {
            let entry = self.expected.get(&number).ok_or_else(|| Error::internal("data of an unknown file"))?;
            let (dir, _) = self.place(&entry.path)?;
            let temporary = CString::new(format!(".kiln-{}-{number}", std::process::id())).unwrap_or_default();
            let file = File::from(tree::replacing(&dir, &temporary, || tree::create_file(&dir, &temporary))?);
            self.writing.insert(number, (file, temporary));
        }
        Ok(&mut self.writing.get_mut(&number).expect("it was put there just now").0)
    }

    fn end(&mut self, number: u32) -> Result<()> {
        self.file(number)?;
        let (Some(entry), Some((file, temporary))) = (self.expected.get(&number), self.writing.remove(&number)) else {
            return Err(Error::internal("data of an unknown file"));
        };
        let (dir, name) = self.place(&entry.path)?;
        own(entry).apply(file.as_fd())?;
        if let Err(errno) = rustix::fs::renameat(&dir, &temporary, &dir, &name) {
            // A directory is in the way.
            if !matches!(errno, rustix::io::Errno::ISDIR | rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) {
                return Err(errno.into());
            }
            tree::remove(&dir, &name)?;
            rustix::fs::renameat(&dir, &temporary, &dir, &name)?;
        }
        self.expected.remove(&number);
        Ok(())
    }

    fn link(&self, entry: &Entry, to: &str) -> Result<()> {
        let ((from, first), (dir, name)) = (self.place(to)?, self.place(&entry.path)?);
        tree::replacing(&dir, &name, || rustix::fs::linkat(&from, &first, &dir, &name, AtFlags::empty()))?;
        Ok(())
    }

    /// Removes what did not come.
    fn sweep(&self, path: &str) -> Result<()> {
        let dir = self.dir(path)?;
        for name in tree::list(&dir)? {
            let shown = name.name.to_string_lossy();
            let below = if path.is_empty() { shown.to_string() } else { format!("{path}/{shown}") };
            if !self.came.contains(&below) {
                tree::remove(&dir, &name.name).context(|| format!("remove {below}"))?;
            } else if name.kind(&dir)? == Kind::Dir {
                self.sweep(&below)?;
            }
        }
        Ok(())
    }
}

/// The attributes of an entry, owned by this process.
fn own(entry: &Entry) -> Attributes {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Attributes { uid, gid, ..entry.attributes() }
}

impl Sink for Folder {
    fn entry(&mut self, number: u32, entry: Entry) -> Result<bool> {
        if self.delete {
            self.came.insert(entry.path.clone());
        }
        let path = entry.path.clone();
        self.make(number, entry).context(|| format!("write {path}"))
    }

    fn data(&mut self, number: u32, data: &[u8]) -> Result<()> {
        let path = self.expected.get(&number).map(|entry| entry.path.clone()).unwrap_or_default();
        self.file(number).and_then(|file| Ok(file.write_all(data)?)).context(|| format!("write {path}"))
    }

    fn complete(&mut self, number: u32) -> Result<()> {
        let path = self.expected.get(&number).map(|entry| entry.path.clone()).unwrap_or_default();
        self.end(number).context(|| format!("write {path}"))
    }

    fn finish(&mut self) -> Result<()> {
        for (entry, to) in std::mem::take(&mut self.links) {
            self.link(&entry, &to).context(|| format!("link {} to {to}", entry.path))?;
        }
        if self.delete {
            self.sweep("")?;
        }
        // The innermost first: what is done in a directory changes its time, and may need its permission.
        for entry in std::mem::take(&mut self.dirs).iter().rev() {
            let (dir, name) = self.place(&entry.path)?;
            let opened = tree::open_dir(&dir, &name).context(|| format!("open {}", entry.path))?;
            own(entry).apply(&opened).context(|| format!("set the attributes of {}", entry.path))?;
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for (number, (_, temporary)) in std::mem::take(&mut self.writing) {
            let place = self.expected.get(&number).and_then(|entry| self.dir(parent(&entry.path)).ok());
            // It is of no use to anybody, and nobody is left to tell.
            let _ = place.map(|dir| rustix::fs::unlinkat(&dir, &temporary, AtFlags::empty()));
        }
    }
}
