//! Directories of clients: read in place where the engine sees them, transferred from the client's session otherwise.
//!
//! What is transferred is kept, in a tree of the store like a cache mount's, by the key the client gives its directory, so that
//! the next build transfers what has changed only. Two builds at a time that use one directory have a copy each.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures_util::future::{Either, try_join_all};
use kiln_dockerfile::Ignore;
use kiln_graph::op::{LocalSource, OciLayoutSource, Op, Sharing, Source};
use kiln_graph::{Platform, Reference, VertexId};

use super::copy::{Memo, Remembered};
use super::job::{Begun, ClientSession, Job, Shared};
use super::lock;
use super::ops::{CacheMount, Wanted};
use super::progress::Part;
use super::request::BuildRequest;
use super::session::Session;
use super::value::LocalDir;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::filesync::{self, Files, Filter, Kept, Listed, Sink};
use crate::image::{Images, Resolved};
use crate::store::{Lease, tree};
use crate::task;
use crate::wire::content;

/// What the names of kept copies begin with among cache mounts; no step can give its cache such a name.
pub(super) const KEPT: &str = "\0local ";

/// What the names of OCI layouts begin with among the client's directories.
const LAYOUT: &str = "oci-layout:";

/// What a layout of the client is called among its directories.
pub(super) fn layout_key(name: &str) -> String {
    format!("{LAYOUT}{name}")
}

/// An OCI layout of the client: where it is, when this engine sees it, and what messages call an image of it.
///
/// # Errors
/// `InvalidArgument` for a malformed name.
pub(super) fn layout(paths: &BTreeMap<String, PathBuf>, name: &str) -> Result<(Option<PathBuf>, Reference)> {
    let path = paths.get(&layout_key(name)).cloned();
    let reference = name.split("::").next().unwrap_or(name).parse();
    Ok((path, reference.map_err(|error| Error::invalid(format!("the context {name}: {error}")))?))
}

impl Shared {
    /// Finds an image of an OCI layout of the client: in place, or through its session.
    ///
    /// # Errors
    /// `Unsupported` when the client does not offer the layout; `NotFound` when it has no such image, or none for the platform.
    pub(super) async fn resolve_layout(
        &self,
        layout: &OciLayoutSource,
        platform: &Platform,
        places: &BTreeMap<String, PathBuf>,
    ) -> Result<Resolved> {
        let images = self.solver.deps().images.clone();
        Layouts { images, session: &self.session, lease: &self.lease, places }.resolve(layout, platform).await
    }
}

/// The OCI layouts of a client.
pub(super) struct Layouts<'a> {
    pub(super) images: Images,
    pub(super) session: &'a ClientSession,
    pub(super) lease: &'a Lease,
    /// Those that this engine sees.
    pub(super) places: &'a BTreeMap<String, PathBuf>,
}

impl Layouts<'_> {
    /// Finds an image, as [`Shared::resolve_layout`] does.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn resolve(self, layout: &OciLayoutSource, platform: &Platform) -> Result<Resolved> {
        let Self { images, session, lease, places } = self;
        let (path, name) = self::layout(places, &layout.name)?;
        if let Some(path) = path {
            let (digest, platform) = (layout.digest, platform.clone());
            return task::blocking(move || images.resolve_layout(&path, &digest, &platform, &name)).await;
        }
        let context = || format!("read the OCI layout {} of the client", layout.name);
        let store = session.content_store(format!("{}{}", content::LAYOUT, layout.name)).await.context(context)?;
        let top = store.describe(&layout.digest).await.context(context)?;
        images.resolve_from(lease, &top, platform, &name, Arc::new(store)).await.context(context)
    }
}

/// Files of a client's directory that the frontend reads.
#[derive(Debug)]
pub(super) enum Directory {
    /// A directory this engine sees.
    InPlace(PathBuf),
    /// What the client sent of it.
    Sent(Box<Files>),
}

impl Directory {
    /// Finds a directory of the client; `paths` are those that will be read. `None` when the client does not offer it.
    ///
    /// # Errors
    /// When the client cannot send them; `InvalidArgument` when they are larger than `max_bytes` together.
    pub(super) async fn find(
        request: &BuildRequest,
        session: &ClientSession,
        name: &str,
        paths: &[&str],
        max_bytes: usize,
    ) -> Result<Option<Self>> {
        if let Some(path) = request.locals.get(name) {
            return Ok(Some(Self::InPlace(path.clone())));
        }
        let Some(session) = session.get().await?.filter(Session::offers_files) else { return Ok(None) };
        let follow = paths.iter().map(|&path| path.to_owned()).collect();
        let filter = Filter { follow, ..Filter::default() };
        match session.files(name, &filter, Files::new(max_bytes)).await {
            Ok(files) => Ok(Some(Self::Sent(Box::new(files)))),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a file; symbolic links stay within the directory. `None` when there is none. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` when it is no file or larger than `max_bytes`.
    pub(super) fn read(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        match self {
            Self::InPlace(dir) => super::frontend::read_beneath(dir, name, max_bytes),
            Self::Sent(files) => Ok(files.read(name)?.map(<[u8]>::to_vec)),
        }
    }
}

/// A copy of a client's directory that a build uses.
#[derive(Debug)]
pub(super) struct Copy {
    mount: CacheMount,
}

impl Copy {
    /// Returns the tree.
    pub(super) fn path(&self) -> PathBuf {
        Kept::tree(self.mount.path())
    }
}

/// The client's directories, opened when a step needs them first.
#[derive(Debug)]
pub(super) struct Locals {
    /// Where those are that are read in place, by name.
    pub(super) paths: BTreeMap<String, PathBuf>,
    /// What was transferred.
    pub(super) copies: Mutex<HashMap<LocalSource, Copy>>,
    /// The name of the main context.
    pub(super) context: String,
    /// The rules of the main context.
    pub(super) ignore: Arc<Ignore>,
    /// Where digests are remembered.
    pub(super) memos: PathBuf,
    /// When the build began, in nanoseconds since 1970.
    pub(super) now_ns: i64,
    pub(super) opened: Mutex<HashMap<LocalSource, Arc<LocalDir>>>,
}

/// The usual name of the main context.
pub(super) const CONTEXT: &str = "context";

impl Locals {
    /// No directories.
    pub(super) fn none(memos: &Path, now_ns: i64) -> Self {
        Self {
            paths: BTreeMap::new(),
            copies: Mutex::default(),
            context: CONTEXT.to_owned(),
            ignore: Arc::default(),
            memos: memos.to_owned(),
            now_ns,
            opened: Mutex::default(),
        }
    }

    /// Says whether a directory must be transferred to be read.
    fn is_elsewhere(&self, local: &LocalSource) -> bool {
        let in_place = self.paths.contains_key(&local.name) && local.listed_but.is_none();
        !in_place && !lock(&self.copies).contains_key(local)
    }

    /// Says whether a directory is the main context: one of the same name may belong to a graph that came with the request.
    fn is_context(&self, local: &LocalSource) -> bool {
        let rules = self.ignore.patterns().iter().map(kiln_dockerfile::ignore::Pattern::text);
        local.session.is_empty() && rules.eq(local.exclude.iter().cloned())
    }

    /// Finds the path of a local directory.
    fn path(&self, local: &LocalSource) -> Result<PathBuf> {
        let name = &local.name;
        let copied = lock(&self.copies).get(local).map(Copy::path);
        let path = copied.or_else(|| self.paths.get(name).cloned());
        path.ok_or_else(|| Error::invalid(format!("the client offers no local directory {name:?}")))
    }

    /// Opens a directory. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` when the client did not offer it.
    pub(super) fn open(&self, local: &LocalSource) -> Result<Arc<LocalDir>> {
        if let Some(known) = lock(&self.opened).get(local) {
            return Ok(Arc::clone(known));
        }
        let (path, name) = (self.path(local)?, &local.name);
        let root = tree::open_root(&path).context(|| format!("open the local directory {name:?}"))?;
        let (shown, ignore) = if local.listed_but.is_some() {
            // What is left out was not sent, and patterns must not hide the list.
            (format!("the context {name}"), Arc::default())
        } else if *name == self.context && self.is_context(local) {
            ("the build context".to_owned(), Arc::clone(&self.ignore))
        } else {
            let patterns = Ignore::from_patterns(local.exclude.iter().map(String::as_str));
            let patterns = patterns.map_err(|error| Error::invalid(error.to_string()))?;
            (format!("the context {name}"), Arc::new(patterns))
        };
        let memo = Arc::new(Memo::open(&self.memos, &path, self.now_ns));
        let dir = Arc::new(LocalDir { name: shown, root: Arc::new(root), ignore, memo });
        lock(&self.opened).insert(local.clone(), Arc::clone(&dir));
        Ok(dir)
    }

    /// Writes down what was learnt about files. Blocking; losing it costs time only.
    pub(super) fn save(&self) {
        for dir in lock(&self.opened).values() {
            let _ = dir.memo.save();
        }
    }
}

/// Who sends a directory.
enum Sender<'a> {
    /// A client.
    Session(&'a Session),
    /// This engine itself, which sees it.
    Place(&'a Path),
}

impl Sender<'_> {
    /// What kept copies of its directories are known by.
    fn shared_key(&self) -> String {
        match self {
            Self::Session(session) => session.shared_key().to_owned(),
            Self::Place(path) => path.display().to_string(),
        }
    }

    async fn files<S: Sink>(&self, name: &str, filter: Filter, sink: S) -> Result<S> {
        match self {
            Self::Session(session) => session.files(name, &filter, sink).await,
            Self::Place(path) => {
                let path = (*path).to_owned();
                let source = task::blocking(move || filesync::Source::open(&path, filter)).await?;
                filesync::copy(source, sink).await
            }
        }
    }
}

impl Job {
    /// Transfers the client's directories that the roots need and that cannot be read in place, or are needed in part.
    ///
    /// # Errors
    /// `InvalidArgument` for a directory the client does not offer, and for what it sends that no directory can hold.
    pub(super) async fn bring_contexts(self: &Arc<Self>, roots: &[VertexId]) -> Result<()> {
        let needed = self.graph.reachable(roots.iter().copied());
        let missing = needed.into_iter().filter_map(|id| match &self.graph.vertex(id).op {
            Op::Source(Source::Local(local)) if self.locals.is_elsewhere(local) => Some(self.bring(id, local)),
            _ => None,
        });
        try_join_all(missing).await.map(drop)
    }

    async fn bring(self: &Arc<Self>, id: VertexId, local: &LocalSource) -> Result<()> {
        if let Some(path) = self.locals.paths.get(&local.name) {
            self.first_use(id);
            let begun = Begun::new(self.progress.clone(), self.state(id));
            let part = Arc::new(begun.part("transferring context:", 0));
            let brought = self.transfer(&Sender::Place(path), local, Arc::clone(&part)).await;
            if let Some(part) = Arc::into_inner(part) {
                part.complete();
            }
            begun.end(brought.as_ref().err());
            lock(&self.locals.copies).insert(local.clone(), brought?);
            return Ok(());
        }
        let session = match local.session.as_str() {
            "" => self.session.get().await?,
            // A definition may be older than this build, and the session it names have ended: then the build's own does.
            id => match self.session.sessions.named(id).await {
                Ok(named) => Some(named),
                Err(gone) => Some(self.session.get().await?.ok_or(gone)?),
            },
        };
        let Some(session) = session.filter(Session::offers_files) else {
            return Err(Error::invalid(format!("the client offers no local directory {:?}", local.name)));
        };
        self.first_use(id);
        let begun = Begun::new(self.progress.clone(), self.state(id));
        let part = Arc::new(begun.part("transferring context:", 0));
        let mut brought = self.transfer(&Sender::Session(&session), local, Arc::clone(&part)).await;
        if !local.session.is_empty() && brought.as_ref().is_err_and(|error| error.kind() == Kind::Unavailable) {
            // The one that was named ends just now.
            if let Some(own) = self.session.get().await?.filter(Session::offers_files) {
                brought = self.transfer(&Sender::Session(&own), local, Arc::clone(&part)).await;
            }
        }
        if let Some(part) = Arc::into_inner(part) {
            part.complete();
        }
        begun.end(brought.as_ref().err());
        lock(&self.locals.copies).insert(local.clone(), brought?);
        Ok(())
    }

    async fn transfer(self: &Arc<Self>, sender: &Sender<'_>, local: &LocalSource, part: Arc<Part>) -> Result<Copy> {
        let mut name = format!("{:?}", (&local.name, &local.key_hint, sender.shared_key()));
        // A list of a directory and what it excepts is another tree than the directory.
        name.push_str(if local.listed_but.is_some() { " listed" } else { "" });
        let key = blake3::hash(name.as_bytes()).to_hex();
        let wanted = Wanted { name: format!("{KEPT}{key}"), sharing: Sharing::Private, seed: None, restore: false };
        let mount = self.cache_mount(wanted).await?;
        let (job, dir, exceptions) = (Arc::clone(self), mount.path().to_owned(), local.listed_but.clone());
        let memo = Arc::new(Memo::open(&self.locals.memos, &Kept::tree(&dir), self.locals.now_ns));
        let learnt = Arc::clone(&memo);
        let sink = task::blocking(move || {
            let learn = move |(metadata, hash, has_xattrs): filesync::Learnt| {
                // Nobody else writes to the copy, so its times can be trusted.
                learnt.put_trusted(&metadata, &Remembered { hash, has_xattrs });
            };
            let boot_id = job.solver.deps().store.root().boot_id();
            let (store, mut before) = (job.solver.deps().store.clone(), 0);
            let report = move |bytes| {
                store.make_room(bytes - before)?;
                before = bytes;
                part.update(bytes);
                Ok(())
            };
            let kept = Kept::open(&dir, boot_id, learn, report)?;
            Ok(match exceptions {
                Some(exceptions) => Either::Right(Listed::open(&dir, kept, &exceptions)?),
                None => Either::Left(kept),
            })
        })
        .await?;
        let LocalSource { include, exclude, follow, .. } = local;
        let filter = Filter { include: include.clone(), exclude: exclude.clone(), follow: follow.clone() };
        let received = match sink {
            Either::Left(kept) => sender.files(&local.name, filter, kept).await.map(Either::Left),
            Either::Right(listed) => sender.files(&local.name, filter, listed).await.map(Either::Right),
        };
        let received = received.map_err(|error| match error.kind() {
            Kind::NotFound => error.with_kind(Kind::InvalidArgument),
            _ => error,
        });
        let received = received.context(|| format!("transfer the directory {:?} of the client", local.name))?;
        task::blocking(move || {
            drop(received);
            // Losing it costs time only.
            let _ = memo.save();
            Ok(())
        })
        .await?;
        Ok(Copy { mount })
    }
}
