//! What the steps of one build share, and the values that flow between them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kiln_dockerfile::Ignore;
use kiln_graph::{Digest, Graph, Platform, Reference, Vertex};
use tokio_util::sync::CancellationToken;

use super::Deps;
use super::copy::{Memo, Owners, Tree};
use super::progress::{Event, Progress, VertexState};
use super::session::Session;
use crate::error::{Error, Result};
use crate::image::{LayerStage, Report, Resolved};
use crate::registry::Client;
use crate::store::{Access, Lease, SnapshotId, tree};
use crate::task::{self, Cancel};

/// What a step gives.
#[derive(Clone, Debug)]
pub enum Value {
    /// A root file system.
    FileSystem(FileSystem),
    /// A directory of the client.
    Local(Arc<LocalDir>),
}

/// A root file system, perhaps not fetched yet.
#[derive(Clone, Debug)]
pub enum FileSystem {
    /// Nothing.
    Empty,
    /// A snapshot whose layers are identified.
    Snapshot {
        /// The snapshot.
        id: SnapshotId,
        /// Its chain ID.
        chain: Digest,
    },
    /// An image; its layers are fetched when a step needs them.
    Image {
        /// The vertex that stands for it.
        vertex: Digest,
        /// The image.
        image: Arc<Resolved>,
        /// Its chain ID; `None` for an image without layers.
        chain: Option<Digest>,
    },
}

impl FileSystem {
    /// Returns the identity of the content.
    #[must_use]
    pub fn chain(&self) -> Option<Digest> {
        match self {
            Self::Empty => None,
            Self::Snapshot { chain, .. } => Some(*chain),
            Self::Image { chain, .. } => *chain,
        }
    }
}

/// A directory of the client that the engine reads in place.
#[derive(Debug)]
pub struct LocalDir {
    /// What messages call it.
    pub name: String,
    /// The directory.
    pub root: Arc<OwnedFd>,
    /// What is not there.
    pub ignore: Arc<Ignore>,
    /// Digests known from earlier.
    pub memo: Arc<Memo>,
}

impl LocalDir {
    /// Returns the directory as something to copy from.
    #[must_use]
    pub fn tree(&self) -> Tree {
        Tree {
            root: Arc::clone(&self.root),
            name: self.name.clone(),
            ignore: Some(Arc::clone(&self.ignore)),
            owners: Owners::Root,
            memo: Some(Arc::clone(&self.memo)),
        }
    }
}

/// Tells the work of a step to stop, whether it waits or works.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    token: CancellationToken,
    flag: Cancel,
}

impl Stop {
    /// Stops the work.
    pub fn stop(&self) {
        self.token.cancel();
        self.flag.cancel();
    }

    /// Waits until the work is to stop.
    pub async fn stopped(&self) {
        self.token.cancelled().await;
    }

    /// Returns the flag that blocking work looks at.
    #[must_use]
    pub fn flag(&self) -> &Cancel {
        &self.flag
    }
}

/// What all steps of one build share.
#[derive(Debug)]
pub struct Job {
    /// The subsystems.
    pub deps: Deps,
    /// The steps.
    pub graph: Graph,
    /// Keeps everything the build looks at or makes.
    pub lease: Lease,
    /// The client, for secrets and credentials.
    pub session: Option<Session>,
    /// Talks to registries with the client's credentials.
    pub registry: Client,
    /// Where to report.
    pub progress: Progress,
    /// The images that were resolved, by name and platform.
    pub images: HashMap<(Reference, Platform), Arc<Resolved>>,
    /// The client's directories, by name.
    pub locals: BTreeMap<String, PathBuf>,
    /// Digests known from earlier, by directory.
    pub memos: Mutex<BTreeMap<PathBuf, Arc<Memo>>>,
    /// What steps may do beyond the usual.
    pub entitlements: BTreeSet<Entitlement>,
    /// Records that were found, to be marked as used at the end.
    pub hits: Mutex<Vec<i64>>,
}

/// Something a step may do only when the client allowed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entitlement {
    /// Use the host's network.
    NetworkHost,
    /// Run without the sandbox's restrictions.
    SecurityInsecure,
}

impl Job {
    /// Sees to it that a file system is here, and returns its snapshot.
    ///
    /// # Errors
    /// When an image cannot be fetched.
    pub async fn materialize(&self, value: &FileSystem) -> Result<Option<SnapshotId>> {
        let (vertex, image) = match value {
            FileSystem::Empty => return Ok(None),
            FileSystem::Snapshot { id, .. } => return Ok(Some(*id)),
            FileSystem::Image { vertex, image, .. } => (*vertex, Arc::clone(image)),
        };
        // Two steps that need the same image wait for one download.
        let lock = self.deps.fetching(image.id);
        let _turn = lock.lock().await;
        let report = self.layer_report(vertex);
        let fetched = image.is_remote().then(|| self.begin(vertex));
        let result = self.deps.images.fetch(&self.lease, &image, &self.registry, &report).await;
        if let Some(fetched) = fetched {
            fetched.end(result.as_ref().err());
        }
        result
    }

    /// Mounts a file system to be read; the mount goes with the descriptor.
    ///
    /// # Errors
    /// When an image cannot be fetched or the mount fails.
    pub async fn mount(&self, value: &FileSystem) -> Result<OwnedFd> {
        let snapshot = self.materialize(value).await?;
        let store = self.deps.store.clone();
        task::blocking(move || store.rootfs(snapshot)?.mount(Access::ReadOnly)).await
    }

    /// Opens a file system as something to copy from.
    ///
    /// # Errors
    /// As for [`Job::mount`].
    pub async fn tree(&self, value: &FileSystem, name: &str) -> Result<Tree> {
        let mounted = self.mount(value).await?;
        let root = task::blocking(move || Ok(tree::open_dir(&mounted, c".")?)).await?;
        Ok(Tree { root: Arc::new(root), name: name.to_owned(), ignore: None, owners: Owners::Keep, memo: None })
    }

    /// Returns the digests known of a directory.
    #[must_use]
    pub fn memo(&self, path: &std::path::Path) -> Arc<Memo> {
        let mut memos = self.memos.lock().expect("no panic happens while the lock is held");
        let open = || Arc::new(Memo::open(&self.deps.memos, path, self.deps.clock.now_ns()));
        Arc::clone(memos.entry(path.to_owned()).or_insert_with(open))
    }

    /// Finds the path of a local directory.
    ///
    /// # Errors
    /// `InvalidArgument` when the client did not offer it.
    pub fn local(&self, name: &str) -> Result<&PathBuf> {
        self.locals.get(name).ok_or_else(|| Error::invalid(format!("the client offers no local directory {name:?}")))
    }

    fn vertex(&self, digest: Digest) -> Option<&Vertex> {
        self.graph.vertices().iter().find(|vertex| vertex.digest() == digest)
    }

    /// Describes a vertex to watchers.
    #[must_use]
    pub fn state(&self, digest: Digest) -> VertexState {
        let vertex = self.vertex(digest);
        let inputs = vertex.map(|vertex| &vertex.inputs).into_iter().flatten();
        VertexState {
            digest,
            name: vertex.map(|vertex| vertex.meta.name.clone()).unwrap_or_default(),
            inputs: inputs.map(|edge| self.graph.vertex(edge.vertex).digest()).collect(),
            cached: false,
            started_ns: None,
            completed_ns: None,
            error: None,
        }
    }

    /// Reports that a vertex begins.
    #[must_use]
    pub fn begin(&self, digest: Digest) -> Begun {
        Begun::new(self.progress.clone(), self.state(digest))
    }

    /// Reports that a vertex was found in the cache.
    pub fn cached(&self, digest: Digest) {
        let now = self.progress.now_ns();
        let state =
            VertexState { cached: true, started_ns: Some(now), completed_ns: Some(now), ..self.state(digest) };
        self.progress.report(Event::Vertex(state));
    }

    /// Reports the layers of an image as parts of a vertex.
    fn layer_report(&self, vertex: Digest) -> Report {
        let progress = self.progress.clone();
        let parts: Mutex<HashMap<Digest, super::progress::Part>> = Mutex::default();
        Arc::new(move |layer, stage| {
            let mut parts = parts.lock().expect("no panic happens while the lock is held");
            let begin = || progress.part(vertex, layer.digest.to_string(), layer.size);
            match stage {
                LayerStage::Exists => {}
                LayerStage::Waiting => drop(parts.entry(layer.digest).or_insert_with(begin)),
                LayerStage::Downloading(bytes) => parts.entry(layer.digest).or_insert_with(begin).update(bytes),
                LayerStage::Downloaded | LayerStage::Done => {
                    if let Some(part) = parts.remove(&layer.digest) {
                        part.complete();
                    }
                }
            }
        })
    }
}

/// A vertex that has begun.
#[derive(Debug)]
pub struct Begun {
    progress: Progress,
    state: VertexState,
}

impl Begun {
    /// Reports that a vertex begins.
    #[must_use]
    pub fn new(progress: Progress, mut state: VertexState) -> Self {
        state.started_ns = Some(progress.now_ns());
        progress.report(Event::Vertex(state.clone()));
        Self { progress, state }
    }

    /// Reports that it has ended.
    pub fn end(mut self, error: Option<&Error>) {
        self.state.completed_ns = Some(self.progress.now_ns());
        self.state.error = error.map(ToString::to_string);
        self.progress.report(Event::Vertex(self.state));
    }
}
