//! One build at work: what its steps share, and bringing file systems here that they need.

use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kiln_graph::op::Source;
use kiln_graph::{Digest, Edge, Graph, Platform, Reference, Vertex, VertexId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::content::ContentStore;
use super::contexts::{self, Locals};
use super::copy::{Owners, Selection, Tree};
use super::devices::Allowed;
use super::exchange::{Ahead, Imports, Peer};
use super::look::Places;
use super::machine::Watch;
use super::ops::Reading;
use super::policy::Policies;
use super::progress::{Event, Part, Progress, VertexState};
use super::remote::Pins;
use super::session::{Session, Sessions};
use super::value::{Cached, FileSystem, Keep, Value};
use super::verify::Witness;
use super::{Solver, lock};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::image::{ChainLayer, LayerStage, Report, Resolved, Wanted};
use crate::registry::Client;
use crate::sandbox::{Limits, Stats};
use crate::store::{Access, Lease, SnapshotId, tree};
use crate::task::{self, Cancel};

/// Tells the work of a step to stop, whether it waits or works.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop {
    token: CancellationToken,
    flag: Cancel,
}

impl Stop {
    /// Stops the work.
    pub(super) fn stop(&self) {
        self.token.cancel();
        self.flag.cancel();
    }

    /// Waits until the work is to stop.
    pub(super) async fn stopped(&self) {
        self.token.cancelled().await;
    }

    /// Returns the flag that blocking work looks at.
    pub(super) fn flag(&self) -> &Cancel {
        &self.flag
    }
}

/// What clients see of a step that was stopped; they look for these words.
pub(super) fn cancelled() -> Error {
    Error::cancelled("context canceled")
}

/// Something a step may do only when the client allowed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entitlement {
    /// Use the host's network.
    NetworkHost,
    /// Run without the sandbox's restrictions.
    SecurityInsecure,
}

impl Entitlement {
    const ALL: [Self; 2] = [Self::NetworkHost, Self::SecurityInsecure];

    /// Returns BuildKit's word.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkHost => "network.host",
            Self::SecurityInsecure => "security.insecure",
        }
    }
}

/// What the client allowed.
#[derive(Clone, Debug, Default)]
pub(super) struct Entitlements {
    granted: BTreeSet<Entitlement>,
    /// The devices that steps may use.
    pub(super) devices: Allowed,
}

impl Entitlements {
    /// Reads BuildKit's words: `network.host`, `security.insecure`, `device`, `device=NAME`.
    ///
    /// # Errors
    /// `Unsupported` for others.
    pub(super) fn parse(words: &[String]) -> Result<Self> {
        let mut all = Self::default();
        let mut named = Vec::new();
        for word in words {
            if let Some(known) = Entitlement::ALL.into_iter().find(|known| known.as_str() == word) {
                all.granted.insert(known);
            } else if word == "device" {
                all.devices = Allowed::All;
            } else if let Some(name) = word.strip_prefix("device=").filter(|name| !name.contains(',')) {
                named.push(name.to_owned());
            } else {
                return Err(Error::unsupported(format!("the entitlement {word} is not supported")));
            }
        }
        if all.devices == Allowed::Nothing && !named.is_empty() {
            all.devices = Allowed::Named(named);
        }
        Ok(all)
    }

    /// Refuses what was not allowed.
    ///
    /// # Errors
    /// `Forbidden` in BuildKit's words, and with the option that allows it.
    pub(super) fn require(&self, entitlement: Entitlement) -> Result<()> {
        if self.granted.contains(&entitlement) {
            return Ok(());
        }
        let word = entitlement.as_str();
        Err(Error::forbidden(format!("{word} is not allowed; build with --allow {word}")))
    }
}

/// The client's session, looked for when it is needed first: a build that needs nothing of it does not wait for it.
#[derive(Clone, Debug)]
pub(super) struct ClientSession {
    pub(super) sessions: Sessions,
    pub(super) id: Option<String>,
}

impl ClientSession {
    /// Returns the session; `None` when the build has none.
    ///
    /// # Errors
    /// `Timeout` when the client does not open it within seconds.
    pub(super) async fn get(&self) -> Result<Option<Session>> {
        match &self.id {
            Some(id) => self.sessions.get(id).await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns a content store of the client.
    ///
    /// # Errors
    /// `Unsupported` when it has no such store; `Timeout` when it does not open its session within seconds.
    pub(super) async fn content_store(&self, id: String) -> Result<ContentStore> {
        let session = self.get().await?;
        let session =
            session.ok_or_else(|| Error::unsupported("the build has no session, so the client has no files"))?;
        ContentStore::of(session, id)
    }

    /// Waits until the client has closed the session; for ever, when the build has none.
    pub(super) async fn closed(&self) {
        match &self.id {
            Some(id) => self.sessions.closed(id).await,
            None => std::future::pending().await,
        }
    }
}

/// What a copy (or a bind mount) takes, once it was looked for.
#[derive(Debug)]
pub(super) struct Taken {
    /// Where from.
    pub(super) tree: Tree,
    /// What.
    pub(super) selection: Selection,
    /// What it hashes to.
    pub(super) hash: [u8; 32],
}

/// Names what one use of an input takes: the vertex's position and the number among its uses.
pub(super) type UseId = (usize, usize);

/// What all graphs of one build share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) solver: Solver,
    /// Keeps everything the build looks at or makes.
    pub(super) lease: Lease,
    /// The client, for secrets.
    pub(super) session: ClientSession,
    /// Talks to registries with the client's credentials.
    pub(super) registry: Client,
    /// Where to report.
    pub(super) progress: Progress,
    /// What fetched sources are.
    pub(super) pins: Arc<Pins>,
    /// What steps may do beyond the usual.
    pub(super) entitlements: Entitlements,
    /// What each step may use at most, unless it says otherwise itself.
    pub(super) request_limits: Limits,
    /// What is kept of a step that fails.
    pub(super) keep: Keep,
    /// Set when the result is compared with that of another build; then layers that differ in times only are told apart.
    pub(super) witness: Option<Witness>,
    /// Caches of other machines, in which results are looked for, as long as they hold what they promise.
    pub(super) imports: Imports,
    /// Set when a layer that an imported cache promised could not be had.
    pub(super) broken: Arc<AtomicBool>,
    /// Where layers are sent while the build runs.
    pub(super) ahead: Option<Arc<Ahead>>,
    /// Whether the client's session is asked for exporters once there is a result.
    pub(super) session_exporter: bool,
    /// What decides about sources.
    pub(super) policies: Arc<Policies>,
    /// The client's directories that this engine sees, by name.
    pub(super) places: Arc<Places>,
    /// Reads what the machine does, when that is to be told.
    pub(super) watch: Option<Arc<Watch>>,
}

/// What all steps of one graph share. It has all that the graphs of its build share, too.
#[derive(Debug)]
pub(super) struct Job {
    shared: Shared,
    /// The steps.
    pub(super) graph: Graph,
    /// The images that were resolved, by id.
    pub(super) images: HashMap<Digest, Arc<Resolved>>,
    /// The client's directories.
    pub(super) locals: Locals,
    /// What BuildKit knows of the steps, for caches.
    pub(super) peer: Peer,
    /// What each vertex gave, by position.
    pub(super) values: Mutex<Vec<Option<Value>>>,
    /// What was selected of inputs.
    pub(super) taken: Mutex<HashMap<UseId, Arc<Taken>>>,
    /// The client's directories that were reported as read.
    pub(super) read: Mutex<BTreeSet<VertexId>>,
    /// What the steps that ran used of the machine.
    pub(super) readings: Mutex<HashMap<VertexId, Vec<Reading<Stats>>>>,
    /// Records that were found, to be marked as used at the end.
    pub(super) hits: Arc<Mutex<Vec<i64>>>,
    /// Set when the build is given up, for work that belongs to no step.
    pub(super) cancel: Cancel,
    /// Work that the build waits for before it ends: identifying layers, and steps that were told to stop.
    pub(super) pending: TaskTracker,
    /// How many graphs this one is within.
    depth: usize,
}

impl Deref for Job {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// How deep graphs may be within graphs.
const MAX_DEPTH: usize = 8;

impl Job {
    /// Makes the job of a graph. `cancel` is set when the build is given up.
    pub(super) fn of(
        shared: &Shared,
        graph: Graph,
        images: HashMap<Digest, Arc<Resolved>>,
        locals: Locals,
        cancel: Cancel,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: shared.clone(),
            values: Mutex::new(vec![None; graph.vertices().len()]),
            graph,
            images,
            locals,
            peer: Peer::default(),
            taken: Mutex::default(),
            read: Mutex::default(),
            readings: Mutex::default(),
            hits: Arc::default(),
            cancel,
            pending: TaskTracker::new(),
            depth: 0,
        })
    }

    /// Makes the job of a graph that is a part of this one: what it finds and makes belongs to this build.
    ///
    /// # Errors
    /// `InvalidArgument` when graphs within graphs nest too deep.
    pub(super) fn with_graph(&self, graph: Graph, locals: Locals) -> Result<Arc<Self>> {
        if self.depth >= MAX_DEPTH {
            return Err(Error::invalid(format!("definitions nest more than {MAX_DEPTH} levels deep")));
        }
        Ok(Arc::new(Self {
            shared: self.shared.clone(),
            values: Mutex::new(vec![None; graph.vertices().len()]),
            graph,
            locals,
            images: HashMap::new(),
            peer: Peer::default(),
            taken: Mutex::default(),
            read: Mutex::default(),
            readings: Mutex::default(),
            hits: Arc::clone(&self.hits),
            cancel: self.cancel.clone(),
            pending: self.pending.clone(),
            depth: self.depth + 1,
        }))
    }

    /// Returns the caches of other machines in which results are looked for.
    pub(super) fn caches(&self) -> &Imports {
        static NONE: Imports = Imports::none();
        if self.is_broken() { &NONE } else { &self.imports }
    }

    /// Says whether a layer that an imported cache promised could not be had.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Forgets what is known from imported caches, so that it is looked for and made again.
    pub(super) fn forget_cached(&self) {
        for value in lock(&self.values).iter_mut() {
            let is_cached = |value: &FileSystem| matches!(value, FileSystem::Cached(_));
            if value.as_ref().is_some_and(|value| value.file_systems().iter().any(is_cached)) {
                *value = None;
            }
        }
    }

    /// Returns the value of a vertex's input.
    ///
    /// # Errors
    /// `Internal` when it has none: inputs are settled before the steps that need them.
    pub(super) fn input(&self, vertex: &Vertex, index: u32) -> Result<Value> {
        let edge = vertex.inputs.get(index as usize).ok_or_else(|| Error::internal("a step has no such input"))?;
        self.value_of(*edge).ok_or_else(|| Error::internal("a step was started before what it needs"))
    }

    /// Returns the file system that a vertex's input is.
    ///
    /// # Errors
    /// `Unsupported` when it is a directory of the client.
    pub(super) fn file_system(&self, vertex: &Vertex, index: Option<u32>) -> Result<FileSystem> {
        let Some(index) = index else { return Ok(FileSystem::Empty) };
        match self.input(vertex, index)? {
            Value::FileSystem(value) => Ok(value),
            Value::Local(dir) => {
                Err(Error::unsupported(format!("{} cannot be the root file system of a step", dir.name)))
            }
            Value::Several(_) => Err(Error::internal("an output has several file systems")),
        }
    }

    /// Returns what an output of a vertex is, once the vertex has a value.
    pub(super) fn value_of(&self, edge: Edge) -> Option<Value> {
        lock(&self.values)[edge.vertex.index()].as_ref().and_then(|value| value.output(edge.output))
    }

    pub(super) fn value(&self, id: VertexId) -> Option<Value> {
        lock(&self.values)[id.index()].clone()
    }

    pub(super) fn has_value(&self, id: VertexId) -> bool {
        lock(&self.values)[id.index()].is_some()
    }

    /// Says whether a vertex has to be made before somebody can look at it.
    pub(super) fn is_open(&self, id: VertexId) -> bool {
        lock(&self.values)[id.index()].as_ref().is_none_or(Value::is_named_only)
    }

    pub(super) fn set_value(&self, id: VertexId, value: Value) {
        lock(&self.values)[id.index()] = Some(value);
    }

    pub(super) fn taken(&self, id: UseId) -> Option<Arc<Taken>> {
        lock(&self.taken).get(&id).cloned()
    }

    pub(super) fn set_taken(&self, id: UseId, taken: Arc<Taken>) {
        lock(&self.taken).insert(id, taken);
    }

    /// Says whether a directory of the client is used for the first time.
    pub(super) fn first_use(&self, source: VertexId) -> bool {
        lock(&self.read).insert(source)
    }

    pub(super) fn hit(&self, record: i64) {
        lock(&self.hits).push(record);
    }

    /// Returns what a source is, when it needs no work before a step uses it.
    ///
    /// # Errors
    /// `Unsupported` for sources this engine cannot bring; `InvalidArgument` for a directory the client did not offer.
    pub(super) fn source(&self, vertex: &Vertex, source: &Source) -> Result<Value> {
        match source {
            Source::Image(image) => {
                let resolved = match image.image_id {
                    Some(id) => self.images.get(&id).cloned(),
                    None => self.pins.image(image, &vertex.platform),
                };
                let resolved = resolved.ok_or_else(|| Error::internal("an image was not resolved"))?;
                Ok(FileSystem::of_image(vertex, resolved).into())
            }
            Source::Local(local) => Ok(Value::Local(self.locals.open(local)?)),
            Source::Git(_) | Source::Http(_) | Source::Blob(_) => {
                Err(Error::internal("a source that is fetched was taken as it is"))
            }
            Source::OciLayout(layout) => {
                let (path, name) = contexts::layout(&self.locals.paths, &layout.name)?;
                let resolved = match path {
                    Some(path) => {
                        let images = &self.solver.deps().images;
                        Arc::new(images.resolve_layout(&path, &layout.digest, &vertex.platform, &name)?)
                    }
                    None => match self.pins.layout(layout, &vertex.platform) {
                        Some(resolved) => resolved,
                        None => self.resolved(&name.with_digest(layout.digest), &vertex.platform)?,
                    },
                };
                let limited = layout.layer_limit.map(|layers| Arc::new((*resolved).clone().limited(layers as usize)));
                Ok(FileSystem::of_image(vertex, limited.unwrap_or(resolved)).into())
            }
        }
    }

    /// Returns an image that was resolved through the client's session.
    pub(super) fn resolved(&self, name: &Reference, platform: &Platform) -> Result<Arc<Resolved>> {
        let named = self.images.values().filter(|image| image.reference == *name);
        let ranked = named.filter_map(|image| Some((platform.rank(&image.config.platform())?, image)));
        let best = ranked.min_by_key(|(rank, _)| *rank).map(|(_, image)| Arc::clone(image));
        best.ok_or_else(|| Error::internal(format!("the image {name} of a layout was not resolved")))
    }

    /// Sees to it that a file system is here, and returns its snapshot.
    ///
    /// # Errors
    /// When an image cannot be fetched.
    pub(super) async fn materialize(&self, value: &FileSystem) -> Result<Option<SnapshotId>> {
        let (vertex, image) = match value {
            FileSystem::Empty => return Ok(None),
            FileSystem::Layer(layer) => return Ok(Some(layer.made)),
            FileSystem::Image { vertex, image, .. } => (*vertex, Arc::clone(image)),
            FileSystem::Cached(cached) => return self.bring_cached(cached).await.map(Some),
        };
        let images = &self.solver.deps().images;
        if !image.is_remote() {
            return images.fetch(&self.lease, &image, &self.registry, &silent()).await;
        }
        // Two steps that need the same image wait for one download.
        let turn = self.solver.fetching(image.id);
        let _turn = turn.lock().await;
        let begun = self.begin(vertex);
        let result = images.fetch(&self.lease, &image, &self.registry, &layer_report(&self.progress, vertex)).await;
        begun.end(result.as_ref().err());
        result
    }

    /// Sees to it that a result of an imported cache is here, and records it as one of this engine's own.
    async fn bring_cached(&self, cached: &Arc<Cached>) -> Result<SnapshotId> {
        // Two steps that need it wait for one download.
        let turn = self.solver.fetching(cached.chain);
        let _turn = turn.lock().await;
        let here = {
            let (store, lease, chain) = (self.solver.deps().store.clone(), self.lease.clone(), cached.chain);
            task::blocking(move || store.by_chain(&lease, &chain)).await?
        };
        let snapshot = match here {
            Some(here) => here.id,
            None => self.fetch_cached(cached).await?,
        };
        let (solver, cached, now_ns) = (self.solver.clone(), Arc::clone(cached), self.progress.now_ns());
        task::blocking(move || cached.record(&solver, snapshot, now_ns)).await?;
        Ok(snapshot)
    }

    async fn fetch_cached(&self, cached: &Cached) -> Result<SnapshotId> {
        let layers = cached.layers.as_ref();
        let layers = layers.ok_or_else(|| Error::internal("a result that has no layers was asked for"))?;
        let layers: Vec<ChainLayer> = layers.iter().map(|layer| layer.layer.clone()).collect();
        // It was reported as found, and stays so: what is fetched of it is parts of its work.
        let report = layer_report(&self.progress, cached.vertex);
        let images = &self.solver.deps().images;
        let brought = images.unpack(&self.lease, &layers, (cached.source.as_ref(), Wanted::Missing), &report).await;
        if brought.as_ref().is_err_and(|error| error.kind() != Kind::Cancelled) {
            self.broken.store(true, Ordering::Relaxed);
        }
        let brought = brought.context(|| "fetch a result from the imported cache")?;
        brought.ok_or_else(|| Error::internal("a cached result has no layers"))
    }

    /// Mounts a file system to be read; the mount goes with the descriptor.
    ///
    /// # Errors
    /// When an image cannot be fetched or the mount fails.
    pub(super) async fn mount(&self, value: &FileSystem) -> Result<OwnedFd> {
        let snapshot = self.materialize(value).await?;
        let store = self.solver.deps().store.clone();
        task::blocking(move || store.rootfs(snapshot)?.mount(Access::ReadOnly)).await
    }

    /// Opens a file system as something to copy from.
    ///
    /// # Errors
    /// As for [`Job::mount`].
    pub(super) async fn tree(&self, value: &FileSystem, name: String) -> Result<Tree> {
        let mounted = self.mount(value).await?;
        let root = task::blocking(move || Ok(tree::open_dir(&mounted, c".")?)).await?;
        Ok(Tree { root: Arc::new(root), name, ignore: None, owners: Owners::Keep, memo: None })
    }

    /// Describes a vertex to watchers.
    pub(super) fn state(&self, id: VertexId) -> VertexState {
        let vertex = self.graph.vertex(id);
        VertexState {
            digest: vertex.digest(),
            name: vertex.meta.name.clone(),
            inputs: vertex.inputs.iter().map(|edge| self.graph.vertex(edge.vertex).digest()).collect(),
            cached: false,
            started_ns: None,
            completed_ns: None,
            error: None,
            group: vertex.meta.group.clone(),
        }
    }

    /// Reports that a vertex begins.
    fn begin(&self, digest: Digest) -> Begun {
        let id = self.graph.ids().find(|id| self.graph.vertex(*id).digest() == digest);
        let state = id.map(|id| self.state(id));
        let unknown = || VertexState {
            digest,
            name: String::new(),
            inputs: Vec::new(),
            cached: false,
            started_ns: None,
            completed_ns: None,
            error: None,
            group: None,
        };
        Begun::new(self.progress.clone(), state.unwrap_or_else(unknown))
    }

    /// Reports what is going to be done.
    pub(super) fn report_steps(&self, roots: &[VertexId]) {
        let order = self.graph.reachable(roots.iter().copied()).into_iter();
        let steps = order.map(|id| self.graph.vertex(id)).map(|vertex| (vertex.digest(), vertex.meta.name.clone()));
        self.progress.report(Event::Steps(steps.collect()));
    }

    /// Reports that a step failed before it began.
    pub(super) fn report_failed(&self, id: VertexId, error: &Error) {
        Begun::new(self.progress.clone(), self.state(id)).end(Some(error));
    }

    /// Reports that a vertex was found in the cache.
    pub(super) fn report_cached(&self, id: VertexId) {
        let now = self.progress.now_ns();
        let state = VertexState { cached: true, started_ns: Some(now), completed_ns: Some(now), ..self.state(id) };
        self.progress.report(Event::Vertex(state));
    }
}

fn silent() -> Report {
    Arc::new(|_, _| {})
}

/// Reports the layers of an image as parts of a vertex.
pub(super) fn layer_report(progress: &Progress, vertex: Digest) -> Report {
    let progress = progress.clone();
    let parts: Mutex<HashMap<Digest, Part>> = Mutex::default();
    Arc::new(move |layer, stage| {
        let mut parts = lock(&parts);
        let begin = || progress.part(vertex, layer.digest.to_string(), layer.size);
        match stage {
            LayerStage::Exists | LayerStage::Mounted => {}
            LayerStage::Waiting => {
                parts.entry(layer.digest).or_insert_with(begin);
            }
            LayerStage::Downloading(bytes) => parts.entry(layer.digest).or_insert_with(begin).update(bytes),
            LayerStage::Downloaded | LayerStage::Done => {
                if let Some(part) = parts.remove(&layer.digest) {
                    part.complete();
                }
            }
        }
    })
}

/// A vertex that has begun.
#[derive(Debug)]
pub(super) struct Begun {
    progress: Progress,
    state: VertexState,
}

impl Begun {
    /// Reports that a vertex begins.
    pub(super) fn new(progress: Progress, mut state: VertexState) -> Self {
        state.started_ns = Some(progress.now_ns());
        progress.report(Event::Vertex(state.clone()));
        Self { progress, state }
    }

    /// Reports that a vertex begins that is no step of a graph, such as reading the Dockerfile.
    pub(super) fn internal(progress: &Progress, name: &str) -> Result<Self> {
        let unique = getrandom::u64().map_err(|error| Error::internal(format!("make an id: {error}")))?;
        let state = VertexState {
            digest: Digest::of(format!("{name} {unique}").as_bytes()),
            name: name.to_owned(),
            inputs: Vec::new(),
            cached: false,
            started_ns: None,
            completed_ns: None,
            error: None,
            group: None,
        };
        Ok(Self::new(progress.clone(), state))
    }

    /// Returns the vertex.
    pub(super) fn digest(&self) -> Digest {
        self.state.digest
    }

    /// Begins a part of its work.
    pub(super) fn part(&self, id: impl Into<String>, total: u64) -> Part {
        self.progress.part(self.state.digest, id, total)
    }

    /// Reports that it has ended.
    pub(super) fn end(mut self, error: Option<&Error>) {
        self.state.completed_ns = Some(self.progress.now_ns());
        self.state.error = error.map(ToString::to_string);
        self.progress.report(Event::Vertex(self.state));
    }
}
