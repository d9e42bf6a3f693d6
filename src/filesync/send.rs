//! The sender: lists a directory and sends the data that is asked for.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio::sync::mpsc;

use super::entry::{Entry, EntryKind, is_transferred, nanoseconds};
use super::filter::{Filter, Rules, State};
use super::{Packet, UNDER_WAY, packet};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::store::tree::{self, Inode, Metadata, Xattrs};
use crate::task;

/// How many files are read at a time.
const READERS: usize = 4;

/// Requests that are kept while all readers are busy.
const QUEUED: usize = 128;

/// The size of a piece of data, in bytes.
const PIECE: usize = 64 << 10;

/// What is sent.
#[derive(Debug)]
pub struct Source {
    /// The directories, in the order of their names.
    pub branches: Vec<Branch>,
    /// Whether everything is said to belong to root: ids of a client's machine mean nothing elsewhere.
    pub as_root: bool,
    /// The time in nanoseconds since 1970 that everything is said to have; `None` for its own.
    pub mtime_ns: Option<i64>,
}

/// A directory that is sent.
#[derive(Debug)]
pub struct Branch {
    /// The directory it is sent as, a name; empty for the root of all.
    pub name: String,
    /// The directory; `None` for an empty one.
    pub root: Option<OwnedFd>,
    /// What of it.
    pub filter: Filter,
    /// Further files in it, names and contents, which win over those of the same name.
    pub extra: BTreeMap<String, Bytes>,
}

impl Source {
    /// Sends one directory as it is, or as root's.
    #[must_use]
    pub fn directory(root: OwnedFd, filter: Filter, as_root: bool) -> Self {
        let branch = Branch { name: String::new(), root: Some(root), filter, extra: BTreeMap::new() };
        Self { branches: vec![branch], as_root, mtime_ns: None }
    }

    /// Opens a directory to be sent as root's. Blocking.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, filter: Filter) -> Result<Self> {
        Ok(Self::directory(tree::open_root(path)?, filter, true))
    }
}

/// Makes the channel for what the sender says.
#[must_use]
pub fn outgoing() -> (mpsc::Sender<Packet>, mpsc::Receiver<Packet>) {
    mpsc::channel(UNDER_WAY)
}

/// Sends a tree. Dropping the future ends the transfer.
///
/// # Errors
/// `InvalidArgument` for a malformed pattern; what the receiver says went wrong; what cannot be read. The receiver is told.
pub async fn send(
    source: Source,
    incoming: impl Stream<Item = Result<Packet, tonic::Status>> + Send,
    outgoing: mpsc::Sender<Packet>,
) -> Result<()> {
    let tree = Arc::new(Tree { source, files: Mutex::default(), outgoing });
    let (asked, requests) = mpsc::channel(QUEUED);
    let requests = Arc::new(Mutex::new(requests));
    let listing = Arc::clone(&tree);
    let listing = task::blocking(move || listing.list());
    let readers = (0..READERS).map(|_| {
        let (tree, requests) = (Arc::clone(&tree), Arc::clone(&requests));
        task::blocking(move || tree.serve(&requests))
    });
    let readers = futures_util::future::try_join_all(readers);
    let result = tokio::try_join!(listing, readers, tree.answer(incoming, asked)).map(|_| ());
    match &result {
        // Who is gone is told nothing.
        Ok(()) => drop(tree.outgoing.send(packet(PacketType::PacketFin, 0, Vec::new())).await),
        Err(error) => drop(tree.outgoing.try_send(packet(PacketType::PacketErr, 0, error.to_string().into_bytes()))),
    }
    result
}

#[derive(Debug)]
struct Tree {
    source: Source,
    /// The regular files that were listed and not asked for yet, by number.
    files: Mutex<HashMap<u32, Listed>>,
    outgoing: mpsc::Sender<Packet>,
}

/// A regular file that was listed.
#[derive(Clone, Debug)]
enum Listed {
    /// One of a branch, by its path there.
    OnDisk(usize, String),
    InMemory(Bytes),
}

/// A directory on the way, which is listed when something in it is.
struct Pending {
    entry: Entry,
    listed: bool,
}

/// One listing.
struct Listing<'a> {
    tree: &'a Tree,
    /// Which branch is listed.
    branch: usize,
    /// What the paths of its entries begin with: nothing, or its name and a slash.
    prefix: String,
    rules: Rules,
    number: u32,
    above: Vec<Pending>,
    /// The first names of files that have several.
    names: HashMap<Inode, String>,
}

impl Tree {
    fn files(&self) -> MutexGuard<'_, HashMap<u32, Listed>> {
        self.files.lock().expect("no panic happens while the lock is held")
    }

    fn say(&self, packet: Packet) -> Result<()> {
        self.outgoing.blocking_send(packet).map_err(|_| Error::cancelled("the receiver of files went away"))
    }

    /// Sends the list. Blocking.
    fn list(&self) -> Result<()> {
        let mut number = 0;
        for branch in 0..self.source.branches.len() {
            number = self.list_branch(branch, number)?;
        }
        self.say(packet(PacketType::PacketStat, 0, Vec::new()))
    }

    /// Lists a branch, with numbers from `number`; returns the next number.
    fn list_branch(&self, branch: usize, number: u32) -> Result<u32> {
        let Branch { name, root, filter, extra } = &self.source.branches[branch];
        let rules = Rules::new(filter, root.as_ref())?;
        let state = rules.root();
        let prefix = if name.is_empty() { String::new() } else { format!("{name}/") };
        let mut listing =
            Listing { tree: self, branch, prefix, rules, number, above: Vec::new(), names: HashMap::new() };
        if !name.is_empty() {
            listing.plain(String::new(), EntryKind::Dir, 0o755)?;
        }
        let mut extra: Vec<(&String, &Bytes)> = extra.iter().collect();
        if let Some(root) = root {
            let root = tree::open_dir(root, c".")?;
            listing.directory(&root, "", &state, &mut extra)?;
        }
        listing.extra(&mut extra, None)?;
        Ok(listing.number)
    }

    /// Sends data until no more is asked for. Blocking.
    fn serve(&self, requests: &Mutex<mpsc::Receiver<(u32, Listed)>>) -> Result<()> {
        loop {
            let next = requests.lock().expect("no panic happens while the lock is held").blocking_recv();
            match next {
                None => return Ok(()),
                Some((number, Listed::OnDisk(branch, path))) => {
                    self.data(number, branch, &path).context(|| format!("read {path}"))?;
                }
                Some((number, Listed::InMemory(content))) => {
                    for piece in content.chunks(PIECE) {
                        self.say(packet(PacketType::PacketData, number, piece.to_vec()))?;
                    }
                    self.say(packet(PacketType::PacketData, number, Vec::new()))?;
                }
            }
        }
    }

    fn data(&self, number: u32, branch: usize, path: &str) -> Result<()> {
        let root = self.source.branches[branch].root.as_ref();
        let root = root.ok_or_else(|| Error::internal("a file of no directory"))?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = tree::openat2(root, path, flags, Mode::empty(), resolve)?;
        if Metadata::of(&file)?.kind != tree::Kind::File {
            return Err(Error::invalid("it was replaced while files were sent"));
        }
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            rustix::io::retry_on_intr(|| rustix::io::read(&file, rustix::buffer::spare_capacity(&mut piece)))?;
            let is_last = piece.is_empty();
            self.say(packet(PacketType::PacketData, number, piece))?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Hands requests to the readers until the receiver has everything.
    async fn answer(
        &self,
        incoming: impl Stream<Item = Result<Packet, tonic::Status>> + Send,
        asked: mpsc::Sender<(u32, Listed)>,
    ) -> Result<()> {
        let mut incoming = pin!(incoming);
        while let Some(next) = incoming.next().await {
            let next = next.map_err(|status| Error::new(Kind::from_grpc(status.code().into()), status.message()))?;
            match next.r#type() {
                PacketType::PacketReq => {
                    let file = self.files().remove(&next.id);
                    let file =
                        file.ok_or_else(|| Error::invalid("the receiver asks for a file that was not listed"))?;
                    if asked.send((next.id, file)).await.is_err() {
                        return Ok(());
                    }
                }
                PacketType::PacketFin => return Ok(()),
                PacketType::PacketErr => {
                    return Err(Error::internal(format!(
                        "the receiver of files: {}",
                        String::from_utf8_lossy(&next.data)
                    )));
                }
                PacketType::PacketStat | PacketType::PacketData => {
                    return Err(Error::invalid("the receiver of files sends some"));
                }
            }
        }
        Err(Error::unavailable("the transfer of files ended early"))
    }
}

impl Listing<'_> {
    /// Lists a directory. Of `extra`, which is in the order of names, those files are listed that come between its own.
    fn directory(
        &mut self,
        dir: &OwnedFd,
        path: &str,
        state: &State,
        extra: &mut Vec<(&String, &Bytes)>,
    ) -> Result<()> {
        for name in tree::list(dir).context(|| format!("list {path}"))? {
            let Ok(text) = name.name.to_str() else {
                let shown = name.name.to_string_lossy();
                return Err(Error::unsupported(format!(
                    "the name {shown:?} in {path:?} is not UTF-8: it cannot be sent"
                )));
            };
            if self.extra(extra, Some(text))? {
                continue;
            }
            let path = if path.is_empty() { text.to_owned() } else { format!("{path}/{text}") };
            self.name(dir, &name, &path, state)?;
        }
        Ok(())
    }

    /// Lists the files of `extra` up to a name; says whether one has that name.
    fn extra(&mut self, extra: &mut Vec<(&String, &Bytes)>, name: Option<&str>) -> Result<bool> {
        while let Some((next, content)) = extra.first().copied() {
            if name.is_some_and(|name| next.as_str() > name) {
                return Ok(false);
            }
            extra.remove(0);
            self.tree.files().insert(self.number, Listed::InMemory(content.clone()));
            self.plain(next.clone(), EntryKind::File { size: content.len() as u64 }, 0o644)?;
            if name == Some(next) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lists something that is on no disk.
    fn plain(&mut self, path: String, kind: EntryKind, mode: u32) -> Result<()> {
        self.send(&Entry { path, kind, mode, uid: 0, gid: 0, mtime_ns: 0, xattrs: Vec::new() })
    }

    fn name(&mut self, dir: &OwnedFd, name: &tree::Name, path: &str, state: &State) -> Result<()> {
        let context = || format!("read {path}");
        let is_dir = name.kind(dir).context(context)? == tree::Kind::Dir;
        let verdict = self.rules.judge(state, path, is_dir);
        if !verdict.sent && verdict.enter.is_none() {
            return Ok(());
        }
        if !is_dir {
            let metadata = Metadata::at(dir, &name.name).context(context)?;
            if metadata.kind == tree::Kind::Socket {
                return Ok(());
            }
            let entry = self.file(dir, name, path.to_owned(), &metadata).context(context)?;
            return self.emit(&entry);
        }
        if self.above.len() >= tree::MAX_DEPTH {
            return Err(Error::unsupported(format!("directories nest more than {} levels deep", tree::MAX_DEPTH)));
        }
        let opened = tree::open_dir(dir, &name.name).context(context)?;
        let xattrs = Xattrs::of(&opened, transferred).context(context)?;
        let metadata = Metadata::of(&opened).context(context)?;
        let entry = self.entry(path.to_owned(), EntryKind::Dir, &metadata, &xattrs);
        self.above.push(Pending { entry, listed: false });
        if verdict.sent {
            self.emit_above()?;
        }
        if let Some(inner) = verdict.enter {
            self.directory(&opened, path, &inner, &mut Vec::new())?;
        }
        self.above.pop();
        Ok(())
    }

    fn file(&mut self, dir: &OwnedFd, name: &tree::Name, path: String, metadata: &Metadata) -> Result<Entry> {
        let mut xattrs = Xattrs::default();
        let kind = match metadata.kind {
            tree::Kind::Symlink => {
                let target = tree::read_link(dir, &name.name)?;
                let target = String::from_utf8(target)
                    .map_err(|_| Error::unsupported("its target is not UTF-8: it cannot be sent"))?;
                EntryKind::Symlink { target }
            }
            tree::Kind::Char | tree::Kind::Block => EntryKind::Device { kind: metadata.kind, number: metadata.rdev },
            tree::Kind::Fifo => EntryKind::Fifo,
            _ => {
                xattrs = Xattrs::at(dir, &name.name, transferred)?;
                match self.names.get(&metadata.inode) {
                    Some(first) => EntryKind::HardLink { to: first.clone() },
                    None => {
                        if metadata.links > 1 {
                            self.names.insert(metadata.inode, path.clone());
                        }
                        EntryKind::File { size: metadata.size }
                    }
                }
            }
        };
        Ok(self.entry(path, kind, metadata, &xattrs))
    }

    fn entry(&self, path: String, kind: EntryKind, metadata: &Metadata, xattrs: &Xattrs) -> Entry {
        let (uid, gid) = if self.tree.source.as_root { (0, 0) } else { (metadata.uid, metadata.gid) };
        let xattrs = xattrs.iter().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_vec())).collect();
        Entry { path, kind, mode: metadata.mode, uid, gid, mtime_ns: nanoseconds(metadata.mtime), xattrs }
    }

    /// Lists the directories on the way that were not listed yet.
    fn emit_above(&mut self) -> Result<()> {
        for at in 0..self.above.len() {
            if !std::mem::replace(&mut self.above[at].listed, true) {
                let entry = self.above[at].entry.clone();
                self.stat(&entry)?;
            }
        }
        Ok(())
    }

    fn emit(&mut self, entry: &Entry) -> Result<()> {
        self.emit_above()?;
        self.stat(entry)
    }

    fn stat(&mut self, entry: &Entry) -> Result<()> {
        if matches!(entry.kind, EntryKind::File { .. }) {
            self.tree.files().insert(self.number, Listed::OnDisk(self.branch, entry.path.clone()));
        }
        self.send(entry)
    }

    /// Sends an entry of the list, whose path is that in the branch.
    fn send(&mut self, entry: &Entry) -> Result<()> {
        let mut stat = entry.to_stat();
        stat.path = format!("{}{}", self.prefix, stat.path).trim_end_matches('/').to_owned();
        if let EntryKind::HardLink { .. } = entry.kind {
            stat.linkname.insert_str(0, &self.prefix);
        }
        stat.mod_time = self.tree.source.mtime_ns.unwrap_or(stat.mod_time);
        self.number += 1;
        self.tree.say(Packet { r#type: PacketType::PacketStat.into(), stat: Some(stat), ..Packet::default() })
    }
}

fn transferred(name: &std::ffi::CStr) -> bool {
    name.to_str().is_ok_and(is_transferred)
}
