//! From a tree to its layer: a stream of tar, made by one thread while another hashes or compresses it.
//!
//! The walk is in order; the files it meets are opened and read by all cores, some dozens ahead, and put into chunks in order
//! again. Directories are held back until something in them, or they themselves, turns out to have changed.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rayon::iter::{IndexedParallelIterator as _, IntoParallelIterator as _, ParallelIterator as _};
use rustix::buffer::spare_capacity;

use super::changes::{Body, Changes, Content, Directory, File, INLINE, Item, Loaded, Source, changed_meanwhile};
use super::header::{BLOCK, CHECKSUM, Flag, Header, MTIME};
use super::marks::{OPAQUE, WHITEOUT};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::tree::{Inode, Kind, Metadata, Xattrs, display};
use crate::store::usage::Tally;
use crate::task::{Cancel, beside};

/// A piece of tar. Headers are never cut, files may be.
#[derive(Debug)]
pub(super) struct Chunk {
    pub bytes: Vec<u8>,
    /// Where the headers of entries begin.
    headers: Vec<usize>,
}

impl Chunk {
    fn new() -> Self {
        // The last thing in a chunk may go beyond its size, but not by more than a small file without growing.
        Self { bytes: Vec::with_capacity(CHUNK + INLINE + 2 * BLOCK), headers: Vec::new() }
    }

    /// Overwrites the times of all entries with zeros, so that what is left is equal when only times differ.
    pub(super) fn forget_times(&mut self) {
        for at in &self.headers {
            let header = &mut self.bytes[*at..*at + BLOCK];
            header[MTIME].fill(0);
            header[CHECKSUM].fill(0);
        }
    }
}

/// The size of a chunk, give or take a header, in bytes.
const CHUNK: usize = 512 << 10;
/// How many chunks wait between the two threads: enough to even out small files against large ones.
const CHUNKS: usize = 3;
/// How many files are opened ahead, which bounds memory (times 128 KiB) and open files.
const AHEAD: usize = 64;

/// Makes the layer of a tree, handing it to `consume` in order; returns what the tree takes on the disk. Blocking.
///
/// # Errors
/// Those of `consume`; `Cancelled`; `Unsupported` for what no layer can hold; `Conflict` when the tree changes meanwhile.
pub(super) fn pack(
    source: Source,
    style: &Style,
    cancel: &Cancel,
    mut consume: impl FnMut(&mut Chunk) -> Result<()>,
) -> Result<Tally> {
    let (sender, receiver) = sync_channel(CHUNKS);
    let (back, recycled) = sync_channel(CHUNKS + 2);
    let produce = move || Packer::new(sender, recycled, style, cancel).pack(source);
    let consume = move || {
        for mut chunk in receiver {
            consume(&mut chunk)?;
            chunk.bytes.clear();
            chunk.headers.clear();
            // The packer may have ended, or have chunks enough.
            let _ = back.try_send(chunk);
        }
        Ok(())
    };
    let (tally, consumed): (Result<Tally>, Result<()>) = beside("pack", produce, consume)?;
    // A consumer that fails stops the packer, whose own error then says no more than that.
    consumed.and(tally)
}

/// What times the entries of an archive have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Times {
    /// Those of the files.
    #[default]
    Kept,
    /// Those of the files, but none later than this, in seconds since 1970.
    AtMost(i64),
    /// This one, in seconds since 1970.
    Set(i64),
}

/// How an archive is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// The times of entries.
    pub times: Times,
    /// The directory that everything is put into, a name; empty for none.
    pub prefix: String,
    /// Whether the root itself is left out, as the archive of a directory's content has it.
    pub rootless: bool,
    /// Whether more follows, so that the end of the archive is not marked.
    pub continued: bool,
}

struct Packer<'a> {
    sender: SyncSender<Chunk>,
    recycled: Receiver<Chunk>,
    chunk: Chunk,
    style: &'a Style,
    cancel: &'a Cancel,
    /// The directories entered and not left.
    dirs: Vec<Entered>,
    /// The first path of each file that has several.
    links: HashMap<Inode, Vec<u8>>,
    tally: Tally,
}

struct Entered {
    directory: Directory,
    written: bool,
}

/// A step of the walk with its file loaded.
enum Ready {
    Item(Item),
    Loaded(Vec<u8>, Result<Loaded>),
}

impl<'a> Packer<'a> {
    fn new(sender: SyncSender<Chunk>, recycled: Receiver<Chunk>, style: &'a Style, cancel: &'a Cancel) -> Self {
        let (dirs, links, tally) = (Vec::new(), HashMap::new(), Tally::default());
        Self { sender, recycled, chunk: Chunk::new(), style, cancel, dirs, links, tally }
    }

    fn pack(mut self, source: Source) -> Result<Tally> {
        let (mut changes, root) = Changes::new(source)?;
        self.enter(root)?;
        loop {
            let mut ahead = Vec::with_capacity(AHEAD);
            while ahead.len() < AHEAD {
                let Some(item) = changes.step()? else { break };
                ahead.push(item);
            }
            if ahead.is_empty() {
                break;
            }
            for ready in load(&changes, ahead) {
                self.cancel.check()?;
                self.take(ready)?;
            }
        }
        if !self.style.continued {
            self.chunk.bytes.resize(self.chunk.bytes.len() + 2 * BLOCK, 0);
        }
        self.send()?;
        Ok(self.tally)
    }

    fn take(&mut self, ready: Ready) -> Result<()> {
        match ready {
            Ready::Item(Item::Enter(directory)) => self.enter(directory),
            Ready::Item(Item::Leave) => {
                self.dirs.pop();
                Ok(())
            }
            Ready::Item(Item::Gone(path)) => self.whiteout(&path),
            Ready::Item(Item::Other(_)) => Err(Error::internal("a file was not loaded")),
            Ready::Loaded(path, loaded) => {
                let metadata = match loaded? {
                    Loaded::Same(metadata) => metadata,
                    Loaded::Gone(metadata) => {
                        self.whiteout(&path)?;
                        metadata
                    }
                    Loaded::Changed(file) => {
                        let metadata = file.metadata;
                        self.file(&path, *file).context(|| format!("pack {}", display(&path)))?;
                        metadata
                    }
                };
                self.tally.add(&metadata);
                Ok(())
            }
        }
    }

    fn enter(&mut self, directory: Directory) -> Result<()> {
        self.tally.add(&directory.metadata);
        let (changed, opaque) = (directory.changed, directory.opaque);
        let mut path = directory.path.clone();
        self.dirs.push(Entered { directory, written: false });
        if changed || opaque {
            self.write_dirs()?;
        }
        if opaque {
            path.push(b'/');
            path.extend_from_slice(OPAQUE);
            self.mark(&path)?;
        }
        Ok(())
    }

    /// Writes the directories that were held back, because there is something in them.
    fn write_dirs(&mut self) -> Result<()> {
        for at in 0..self.dirs.len() {
            let Entered { directory, written } = &mut self.dirs[at];
            // The root belongs to the layer only if it has changed itself: every other layer has one too.
            if !std::mem::replace(written, true) && (at > 0 || directory.changed && !self.style.rootless) {
                let path = if at == 0 { b".".to_vec() } else { directory.path.clone() };
                let (metadata, xattrs) = (directory.metadata, directory.attributes.xattrs.clone());
                self.header(&entry(Flag::Dir, &path, &metadata, &xattrs))?;
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<()> {
        let name = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        self.write_dirs()?;
        self.mark(&[&path[..name], WHITEOUT, &path[name..]].concat())
    }

    /// Writes an empty file that means something by its name.
    fn mark(&mut self, path: &[u8]) -> Result<()> {
        let xattrs = Xattrs::default();
        let (flag, mode, uid, gid, size, mtime, rdev) = (Flag::File, 0, 0, 0, 0, 0, (0, 0));
        self.header(&Header { flag, path, link: b"", mode, uid, gid, size, mtime, rdev, xattrs: &xattrs })
    }

    fn file(&mut self, path: &[u8], file: File) -> Result<()> {
        let File { metadata, xattrs, body, .. } = file;
        self.write_dirs()?;
        if metadata.links > 1 {
            if let Some(first) = self.links.get(&metadata.inode) {
                let first = first.clone();
                let header = Header { link: &first, size: 0, ..entry(Flag::HardLink, path, &metadata, &xattrs) };
                return self.header(&header);
            }
            self.links.insert(metadata.inode, path.to_vec());
        }
        let flag = match metadata.kind {
            Kind::File => Flag::File,
            Kind::Symlink => Flag::Symlink,
            Kind::Char => Flag::Char,
            Kind::Block => Flag::Block,
            Kind::Fifo => Flag::Fifo,
            Kind::Dir | Kind::Socket => return Err(changed_meanwhile()),
        };
        let header = entry(flag, path, &metadata, &xattrs);
        match body {
            Body::None => self.header(&header),
            Body::Link(target) => self.header(&Header { link: &target, mode: 0o777, ..header }),
            Body::Bytes(bytes) => {
                self.header(&header)?;
                self.chunk.bytes.extend_from_slice(&bytes);
                self.pad(metadata.size);
                Ok(())
            }
            Body::Open(file) => {
                self.header(&header)?;
                self.stream(&file, metadata.size)
            }
        }
    }

    fn header(&mut self, header: &Header<'_>) -> Result<()> {
        if self.chunk.bytes.len() >= CHUNK {
            self.send()?;
        }
        let mtime = match self.style.times {
            Times::Kept => header.mtime,
            Times::AtMost(latest) => header.mtime.min(latest),
            Times::Set(time) => time,
        };
        if self.style.prefix.is_empty() {
            Header { mtime, ..*header }.write(&mut self.chunk.bytes)?;
        } else {
            let within = |path: &[u8]| [self.style.prefix.as_bytes(), b"/", path].concat();
            let path = if header.path == b"." { self.style.prefix.clone().into_bytes() } else { within(header.path) };
            let link = if header.flag == Flag::HardLink { within(header.link) } else { header.link.to_vec() };
            Header { mtime, path: &path, link: &link, ..*header }.write(&mut self.chunk.bytes)?;
        }
        self.chunk.headers.push(self.chunk.bytes.len() - BLOCK);
        Ok(())
    }

    /// Passes a large file on as it is read.
    fn stream(&mut self, file: &OwnedFd, size: u64) -> Result<()> {
        let mut rest = size;
        while rest > 0 {
            if self.chunk.bytes.len() >= CHUNK {
                self.cancel.check()?;
                self.send()?;
            }
            let before = self.chunk.bytes.len();
            rustix::io::read(file, spare_capacity(&mut self.chunk.bytes))?;
            let read = (self.chunk.bytes.len() - before) as u64;
            if read == 0 {
                return Err(changed_meanwhile());
            }
            if read > rest {
                self.chunk.bytes.truncate(before + usize::try_from(rest).expect("less than a chunk"));
            }
            rest = rest.saturating_sub(read);
        }
        self.pad(size);
        Ok(())
    }

    /// Fills the last block of a file.
    fn pad(&mut self, size: u64) {
        let missing = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let len = self.chunk.bytes.len() + usize::try_from(missing).expect("less than a block");
        self.chunk.bytes.resize(len, 0);
    }

    fn send(&mut self) -> Result<()> {
        let next = self.recycled.try_recv().unwrap_or_else(|_| Chunk::new());
        let full = std::mem::replace(&mut self.chunk, next);
        self.sender.send(full).map_err(|_| Error::cancelled("whoever took the layer has stopped"))
    }
}

/// Loads the files of some steps, on all cores.
fn load(changes: &Changes, items: Vec<Item>) -> Vec<Ready> {
    let one = |item| match item {
        Item::Other(candidate) => {
            let loaded = changes.load(&candidate, Content::Read);
            Ready::Loaded(candidate.path, loaded)
        }
        item => Ready::Item(item),
    };
    // Waking another core costs as much as a few small files.
    items.into_par_iter().with_min_len(8).map(one).collect()
}

fn entry<'a>(flag: Flag, path: &'a [u8], metadata: &Metadata, xattrs: &'a Xattrs) -> Header<'a> {
    Header {
        flag,
        path,
        link: b"",
        mode: metadata.mode,
        uid: metadata.uid,
        gid: metadata.gid,
        size: if flag == Flag::File { metadata.size } else { 0 },
        mtime: metadata.mtime.seconds,
        rdev: if matches!(flag, Flag::Char | Flag::Block) { metadata.rdev } else { (0, 0) },
        xattrs,
    }
}
