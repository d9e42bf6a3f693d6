//! A kept copy of a tree: brought up to date by difference, with an index of what it holds.
//!
//! The index is a list like those on the wire. What it says is in the copy; before the copy is changed the index is removed,
//! and written anew afterwards, also when the transfer breaks off. A copy without an index (its process was killed), or with
//! one of an earlier boot (a power cut may have lost what was written), begins anew.
//!
//! A copy has one user at a time; locks are the caller's business.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::CString;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::iter::Peekable;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bollard_buildkit_proto::fsutil::types::Stat;
use prost::Message as _;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use super::entry::{Entry, EntryKind, compare, is_below, parent};
use super::receive::Sink;
use crate::error::{Error, Result, ResultExt as _};
use crate::store::tree::{self, Metadata};

/// A longer entry than any path and its attributes make is no index.
const MAX_ENTRY: usize = 1 << 20;

/// How many files are written at a time. Senders work on a few; one that begins hundreds is up to something.
const MAX_OPEN: usize = 128;

/// What was found out about a file while it was written: its metadata, the BLAKE3 of its data, whether it has extended
/// attributes.
pub type Learnt = (Metadata, [u8; 32], bool);

/// A copy that is being brought up to date.
pub struct Kept {
    root: Arc<OwnedFd>,
    index: PathBuf,
    old: Peekable<IndexReader>,
    new: IndexWriter,
    /// The directories that the last entry is in.
    dirs: Vec<Entry>,
    /// Directories whose times must be set at the end, because something in them changed.
    touched: BTreeMap<String, Entry>,
    /// A directory that was removed with all it held.
    removed: Option<String>,
    /// Files whose data was asked for and has not come.
    waiting: HashMap<u32, Entry>,
    open: HashMap<u32, Writing>,
    /// Further names of files, made at the end when the files are there.
    links: Vec<Entry>,
    /// The directory that was opened last, with its path.
    opened: Option<(String, Arc<OwnedFd>)>,
    changed: bool,
    finished: bool,
    bytes: u64,
    learn: Box<dyn FnMut(Learnt) + Send>,
    report: Box<dyn FnMut(u64) -> Result<()> + Send>,
}

struct Writing {
    file: OwnedFd,
    entry: Entry,
    size: u64,
    written: u64,
    hash: blake3::Hasher,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("index", &self.index).field("changed", &self.changed).finish_non_exhaustive()
    }
}

impl Kept {
    /// Opens the copy in a directory of the caller's, which it shares with nobody. Blocking.
    ///
    /// `learn` is told of every file that is written, `report` how many bytes came so far, before the last of them are written: an
    /// error of its ends the transfer.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn open(
        dir: &Path,
        boot_id: &str,
        learn: impl FnMut(Learnt) + Send + 'static,
        report: impl FnMut(u64) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (tree, index) = (tree_of(dir), dir.join("index"));
        let old = match IndexReader::open(&index, boot_id) {
            Some(old) if tree.is_dir() => old,
            _ => {
                tree::remove_tree(&tree)?;
                remove_file(&index)?;
                IndexReader::empty()
            }
        };
        if !tree.is_dir() {
            use std::os::unix::fs::DirBuilderExt as _;
            std::fs::DirBuilder::new().mode(0o755).create(&tree).context(|| format!("make {}", tree.display()))?;
        }
        Ok(Self {
            root: Arc::new(tree::open_root(&tree)?),
            new: IndexWriter::create(&index, boot_id)?,
            index,
            old: old.peekable(),
            dirs: Vec::new(),
            touched: BTreeMap::new(),
            removed: None,
            waiting: HashMap::new(),
            open: HashMap::new(),
            links: Vec::new(),
            opened: None,
            changed: false,
            finished: false,
            bytes: 0,
            learn: Box::new(learn),
            report: Box::new(report),
        })
    }

    /// Returns where the tree of a copy is.
    #[must_use]
    pub fn tree(dir: &Path) -> PathBuf {
        tree_of(dir)
    }

    /// Returns how many bytes of data were received.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.bytes
    }

    /// What is to be changed from now on makes the index untrue.
    fn change(&mut self, path: &str) -> Result<()> {
        if !self.changed {
            remove_file(&self.index)?;
            self.changed = true;
        }
        self.touch(path);
        Ok(())
    }

    /// The directory of a path gets its time back at the end.
    fn touch(&mut self, path: &str) {
        let parent = parent(path);
        if let Some(dir) = self.dirs.iter().rev().find(|dir| dir.path == parent) {
            self.touched.entry(dir.path.clone()).or_insert_with(|| dir.clone());
        }
    }

    /// Opens the directory a path is in.
    fn parent(&mut self, path: &str) -> Result<(Arc<OwnedFd>, CString)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let name = CString::new(name).map_err(|_| Error::invalid("a name holds a NUL"))?;
        if dir.is_empty() {
            return Ok((Arc::clone(&self.root), name));
        }
        if let Some((_, opened)) = self.opened.as_ref().filter(|(known, _)| known == dir) {
            return Ok((Arc::clone(opened), name));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = Arc::new(tree::openat2(&self.root, dir, flags, Mode::empty(), resolve)?);
        self.opened = Some((dir.to_owned(), Arc::clone(&opened)));
        Ok((opened, name))
    }

    fn remove(&mut self, old: &Entry) -> Result<()> {
        if self.removed.as_ref().is_some_and(|dir| is_below(&old.path, dir)) {
            return Ok(());
        }
        self.change(&old.path)?;
        let (dir, name) = self.parent(&old.path)?;
        tree::remove(&dir, &name)?;
        if old.is_dir() {
            self.removed = Some(old.path.clone());
            self.opened = None;
        }
        Ok(())
    }

    /// Makes what has no data; says whether data is wanted.
    fn make(&mut self, number: u32, entry: &Entry) -> Result<bool> {
        self.change(&entry.path)?;
        match &entry.kind {
            EntryKind::File { .. } => {
                self.waiting.insert(number, entry.clone());
                return Ok(true);
            }
            EntryKind::HardLink { .. } => self.links.push(entry.clone()),
            EntryKind::Socket => {}
            EntryKind::Dir => {
                let (dir, name) = self.parent(&entry.path)?;
                let made = tree::make_dir(&dir, &name)?;
                entry.attributes().apply(&made)?;
                self.touched.insert(entry.path.clone(), entry.clone());
            }
            EntryKind::Symlink { target } => {
                let (dir, name) = self.parent(&entry.path)?;
                rustix::fs::symlinkat(target.as_str(), &dir, &name)?;
                entry.attributes().apply_at(&dir, &name, tree::Kind::Symlink)?;
            }
            EntryKind::Device { kind, number } => self.node(entry, *kind, *number)?,
            EntryKind::Fifo => self.node(entry, tree::Kind::Fifo, (0, 0))?,
        }
        Ok(false)
    }

    fn node(&mut self, entry: &Entry, kind: tree::Kind, number: (u32, u32)) -> Result<()> {
        let (dir, name) = self.parent(&entry.path)?;
        tree::make_node(&dir, &name, kind, number)?;
        entry.attributes().apply_at(&dir, &name, kind)?;
        Ok(())
    }

    /// Opens a file whose data begins to come, unless that was done.
    fn writing(&mut self, number: u32) -> Result<&mut Writing> {
        if let Some(entry) = self.waiting.remove(&number) {
            if self.open.len() >= MAX_OPEN {
                return Err(Error::exhausted("the other side sends more files at a time than are taken"));
            }
            let (dir, name) = self.parent(&entry.path)?;
            let file = tree::create_file(&dir, &name).context(|| format!("write {}", entry.path))?;
            let size = if let EntryKind::File { size } = entry.kind { size } else { 0 };
            let writing = Writing { file, entry, size, written: 0, hash: blake3::Hasher::new() };
            self.open.insert(number, writing);
        }
        self.open.get_mut(&number).ok_or_else(|| Error::internal("data of an unknown file"))
    }

    fn link(&mut self, entry: &Entry) -> Result<()> {
        let EntryKind::HardLink { to } = &entry.kind else { return Ok(()) };
        let (from, from_name) = self.parent(to)?;
        let (dir, name) = self.parent(&entry.path)?;
        let missing = |errno: rustix::io::Errno| {
            Error::from(errno)
                .context(format!("link {} to {to}", entry.path))
                .with_kind(crate::error::Kind::InvalidArgument)
        };
        if Metadata::at(&from, &from_name).map_err(missing)?.kind == tree::Kind::Dir {
            return Err(Error::invalid(format!("{} is another name of a directory", entry.path)));
        }
        tree::remove(&dir, &name)?;
        rustix::fs::linkat(&from, &from_name, &dir, &name, AtFlags::empty()).map_err(missing)
    }

    fn set_times(&mut self) -> Result<()> {
        for (path, entry) in std::mem::take(&mut self.touched).into_iter().rev() {
            let (dir, name) = self.parent(&path)?;
            let opened = tree::open_dir(&dir, &name).context(|| format!("open {path}"))?;
            entry.attributes().apply(&opened)?;
        }
        Ok(())
    }

    /// Writes down what is there after a transfer that broke off.
    fn salvage(&mut self) -> Result<()> {
        self.set_times()?;
        let open = self.open.drain().map(|(_, writing)| writing.entry).collect::<Vec<_>>();
        for entry in &open {
            let (dir, name) = self.parent(&entry.path)?;
            tree::remove(&dir, &name)?;
        }
        let waiting = self.waiting.drain().map(|(_, entry)| entry);
        let missing: HashSet<String> =
            waiting.chain(open).chain(self.links.drain(..)).map(|entry| entry.path).collect();
        let (listed, boot_id) = self.new.read_back()?;
        let mut index = IndexWriter::create(&self.index, &boot_id)?;
        for entry in listed.filter(|entry| !missing.contains(&entry.path)) {
            index.write(&entry)?;
        }
        for old in self.old.by_ref() {
            if !self.removed.as_ref().is_some_and(|dir| is_below(&old.path, dir)) {
                index.write(&old)?;
            }
        }
        index.commit(&self.index)
    }
}

impl Sink for Kept {
    fn entry(&mut self, number: u32, mut entry: Entry) -> Result<bool> {
        // Ids of another machine mean nothing here.
        (entry.uid, entry.gid) = (0, 0);
        while self.dirs.last().is_some_and(|dir| !is_below(&entry.path, &dir.path)) {
            self.dirs.pop();
        }
        while let Some(old) = self.old.next_if(|old| compare(&old.path, &entry.path).is_lt()) {
            self.remove(&old)?;
        }
        let old = self.old.next_if(|old| old.path == entry.path);
        let old = old.filter(|old| !self.removed.as_ref().is_some_and(|dir| is_below(&old.path, dir)));
        let wanted = match old {
            // What a name stands for may have been written anew.
            Some(old) if old == entry && matches!(entry.kind, EntryKind::HardLink { .. }) => {
                self.touch(&entry.path);
                self.links.push(entry.clone());
                false
            }
            Some(old) if old == entry => false,
            Some(old) if old.is_dir() && entry.is_dir() => self.make(number, &entry)?,
            Some(old) => {
                self.remove(&old)?;
                self.make(number, &entry)?
            }
            None => self.make(number, &entry)?,
        };
        if entry.is_dir() {
            self.dirs.push(entry.clone());
        }
        self.new.write(&entry)?;
        Ok(wanted)
    }

    /// What is beyond the size that was listed is left away: the file grew while it was sent.
    fn data(&mut self, number: u32, data: &[u8]) -> Result<()> {
        let writing = self.writing(number)?;
        let room = usize::try_from(writing.size - writing.written).unwrap_or(usize::MAX);
        let data = &data[..data.len().min(room)];
        self.bytes += data.len() as u64;
        (self.report)(self.bytes)?;
        let writing = self.writing(number)?;
        let mut rest = data;
        while !rest.is_empty() {
            let count = rustix::io::retry_on_intr(|| rustix::io::write(&writing.file, rest));
            rest = &rest[count.context(|| format!("write {}", writing.entry.path))?..];
        }
        writing.written += data.len() as u64;
        writing.hash.update(data);
        Ok(())
    }

    fn complete(&mut self, number: u32) -> Result<()> {
        self.writing(number)?;
        let Some(writing) = self.open.remove(&number) else { return Ok(()) };
        writing.entry.attributes().apply(&writing.file)?;
        let has_xattrs = !writing.entry.xattrs.is_empty();
        (self.learn)((Metadata::of(&writing.file)?, *writing.hash.finalize().as_bytes(), has_xattrs));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.dirs.clear();
        while let Some(old) = self.old.next() {
            self.remove(&old)?;
        }
        if self.changed {
            for entry in std::mem::take(&mut self.links) {
                self.link(&entry)?;
            }
            self.set_times()?;
            self.new.commit(&self.index)?;
        }
        self.finished = true;
        Ok(())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.changed && !self.finished {
            // Without an index the copy begins anew.
            let _ = self.salvage();
        }
    }
}

fn tree_of(dir: &Path) -> PathBuf {
    dir.join("tree")
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Reads the entries of an index; it ends at the first that is malformed.
struct IndexReader(Option<BufReader<File>>);

impl IndexReader {
    fn empty() -> Self {
        Self(None)
    }

    /// `None` when there is none, or one of another boot.
    fn open(path: &Path, boot_id: &str) -> Option<Self> {
        let mut reader = Self(Some(BufReader::with_capacity(64 << 10, File::open(path).ok()?)));
        (reader.frame()? == boot_id.as_bytes()).then_some(reader)
    }

    fn frame(&mut self) -> Option<Vec<u8>> {
        let reader = self.0.as_mut()?;
        let mut length = [0; 4];
        reader.read_exact(&mut length).ok()?;
        let length = usize::try_from(u32::from_le_bytes(length)).ok().filter(|length| *length <= MAX_ENTRY)?;
        let mut frame = vec![0; length];
        reader.read_exact(&mut frame).ok()?;
        Some(frame)
    }
}

impl Iterator for IndexReader {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let frame = self.frame()?;
        Entry::of_stat(Stat::decode(frame.as_slice()).ok()?).ok()
    }
}

/// Writes an index beside the one it replaces.
struct IndexWriter {
    path: PathBuf,
    boot_id: String,
    file: BufWriter<File>,
}

impl IndexWriter {
    fn create(index: &Path, boot_id: &str) -> Result<Self> {
        let unique = getrandom::u64().map_err(|error| Error::internal(format!("make a file name: {error}")))?;
        let path = index.with_extension(format!("{unique:016x}"));
        let file = File::create(&path).context(|| format!("write {}", path.display()))?;
        let mut writer = Self { path, boot_id: boot_id.to_owned(), file: BufWriter::with_capacity(64 << 10, file) };
        writer.frame(boot_id.as_bytes())?;
        Ok(writer)
    }

    fn frame(&mut self, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len()).map_err(|_| Error::internal("an entry is too long"))?;
        self.file.write_all(&length.to_le_bytes())?;
        Ok(self.file.write_all(bytes)?)
    }

    fn write(&mut self, entry: &Entry) -> Result<()> {
        self.frame(&entry.to_stat().encode_to_vec())
    }

    /// Reads what was written so far.
    fn read_back(&mut self) -> Result<(IndexReader, String)> {
        self.file.flush()?;
        let reader = IndexReader::open(&self.path, &self.boot_id).ok_or_else(|| Error::internal("read an index"))?;
        Ok((reader, self.boot_id.clone()))
    }

    fn commit(&mut self, index: &Path) -> Result<()> {
        self.file.flush()?;
        std::fs::rename(&self.path, index).context(|| format!("write {}", index.display()))
    }
}

impl Drop for IndexWriter {
    fn drop(&mut self) {
        // One that was committed is there no longer.
        let _ = std::fs::remove_file(&self.path);
    }
}
