//! What a step's result is known by, and whether an earlier run gave it.
//!
//! A key is made of the operation and of what its inputs *are*: the chain ID of a file system, the content hash of what is
//! copied or mounted of one. Looking for a hit costs reading the directories of contexts and a few rows; only content of a
//! file system that nobody has hashed before is mounted and read.
//!
//! A step whose input was just made need not wait until that is identified: when its operation never ran, there is nothing
//! to be found, and it runs at once. Its record is written when the input is identified.

use std::sync::Arc;

use kiln_graph::op::{Copy, FileAction, InputIndex, MountKind, Op};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kiln_graph::oci::Descriptor;
use kiln_graph::{Digest, Vertex, VertexId};
use rusqlite::Connection;

use super::cache;
use super::copy::select;
use super::exchange::{Hit, PeerHit};
use super::job::{Begun, Job, Taken, UseId};
use super::key::{ContentIdentity, InputIdentity, Key, OUTPUT, Parts};
use super::ops::Shortcut;
use super::value::{Cached, FileSystem, Layer, LocalDir, Settled, Value};
use crate::error::{Error, Result};
use crate::image::{BlobSource, LayerSink};
use crate::registry::Progress;
use crate::task::{self, Cancel};

/// What a step works on.
#[derive(Clone, Debug)]
pub(super) enum Input {
    /// A whole file system.
    FileSystem(FileSystem),
    /// Some paths, by their content.
    Content([u8; 32]),
    /// Some paths of a file system, by what they were asked for: nobody has read them.
    Selection([u8; 32]),
}

/// A step that has to run.
#[derive(Clone, Debug)]
pub(super) struct Work {
    /// Identifies the operation without its inputs.
    pub(super) op: Key,
    /// Equal for steps that do the same on the same, in this engine and at this time.
    pub(super) run: Key,
    parts: Parts,
    inputs: Vec<Input>,
}

/// What was found out about a step.
pub(super) enum Found {
    /// Its result, and the records that name it: one for each output.
    Value(Value, Vec<i64>),
    /// What its result is called, known from elsewhere, where the result itself is not to be had.
    Named(Value, Box<Work>),
    /// It has to run.
    Miss(Box<Work>),
}

impl Found {
    pub(super) fn hit(layer: Layer, record: Option<i64>) -> Self {
        Self::Value(Value::FileSystem(FileSystem::Layer(layer)), record.into_iter().collect())
    }

    fn hits(found: Vec<(Layer, i64)>) -> Self {
        let (layers, records) = found.into_iter().map(|(layer, record)| (FileSystem::Layer(layer), record)).unzip();
        Self::Value(Value::of_outputs(layers), records)
    }
}

/// How an operation uses an input.
pub(super) enum Use {
    /// All of it.
    Whole(Option<InputIndex>),
    /// What a copy takes.
    Paths(Option<InputIndex>, Box<Copy>),
}

/// Lists how an operation uses its inputs, in the order in which they are part of its key.
pub(super) fn uses(op: &Op, inputs: usize) -> Vec<Use> {
    match op {
        Op::Source(_) => Vec::new(),
        Op::Exec(exec) => {
            let mounts = exec.mounts.iter().filter_map(|mount| match &mount.kind {
                MountKind::Bind { input: Some(input), selector, .. }
                | MountKind::Cache { input: Some(input), selector, .. } => Some(mounted(*input, selector)),
                _ => None,
            });
            std::iter::once(Use::Whole(exec.root.input)).chain(mounts).collect()
        }
        Op::File(file) => {
            let copies = file.actions.iter().filter_map(|action| match action {
                FileAction::Copy(copy) => Some(Use::Paths(copy.from, copy.clone())),
                _ => None,
            });
            std::iter::once(Use::Whole(file.base)).chain(copies).collect()
        }
        Op::Build { .. } => vec![Use::Whole(Some(0))],
        Op::Merge | Op::Diff { .. } => (0..inputs).map(|at| Use::Whole(InputIndex::try_from(at).ok())).collect(),
    }
}

/// A mount shows what a copy of the same path would take.
fn mounted(input: InputIndex, selector: &str) -> Use {
    Use::Paths(Some(input), Box::new(selected(selector)))
}

/// A copy of a path to the same path.
pub(super) fn selected(selector: &str) -> Copy {
    let path = if selector.is_empty() { "/" } else { selector };
    Copy {
        source: path.to_owned(),
        dest: path.to_owned(),
        wildcard: false,
        allow_empty_wildcard: false,
        ..Copy::default()
    }
}

/// Everything about a copy that decides what it takes.
pub(super) fn selector(copy: &Copy) -> String {
    let Copy { source, follow_symlinks, wildcard, allow_empty_wildcard, include, exclude, required, .. } = copy;
    format!("{:?}", (source, follow_symlinks, wildcard, allow_empty_wildcard, include, exclude, required))
}

impl Job {
    /// Finds out about a step what can be found out without mounting or fetching anything; `None` when that is not enough.
    /// All inputs must have values. Blocking.
    pub(super) fn identify_now(&self, connection: &Connection, id: VertexId) -> Result<Option<Found>> {
        let vertex = self.graph.vertex(id);
        match self.shortcut(id)? {
            Shortcut::Value(value) => return Ok(Some(Found::Value(value.into(), Vec::new()))),
            Shortcut::Unknown => return Ok(None),
            Shortcut::None if matches!(vertex.op, Op::Build { .. }) => return Ok(None),
            Shortcut::None => {}
        }
        let mut inputs = Vec::new();
        for (number, used) in uses(&vertex.op, vertex.inputs.len()).iter().enumerate() {
            match self.input_now(connection, vertex, (id.index(), number), used)? {
                Some(input) => inputs.push(input),
                None => match self.selection(id, used)? {
                    Some(input) => inputs.push(input),
                    None => return Ok(None),
                },
            }
        }
        if inputs.iter().any(|input| matches!(input, Input::Selection(_))) {
            let found = self.imported(id, Work::new(vertex, inputs));
            return Ok(if let Found::Miss(_) = found { None } else { Some(found) });
        }
        let identities: Option<Vec<InputIdentity>> = inputs.iter().map(Input::identity_now).collect();
        let Some(identities) = identities else { return Ok(None) };
        let mut found = Vec::new();
        for output in 0..vertex.op.outputs() {
            match self.look_up(connection, vertex, &Key::of(vertex, output, &identities))? {
                Some(hit) => found.push(hit),
                None => return Ok(Some(self.imported(id, Work::new(vertex, inputs)))),
            }
        }
        Ok(Some(Found::hits(found)))
    }

    /// Looks for a result in the caches that were imported. All inputs must be identified.
    pub(super) fn imported(&self, id: VertexId, work: Work) -> Found {
        let vertex = self.graph.vertex(id);
        let identities = work.identities_now().filter(|_| !vertex.meta.no_cache);
        let hits = identities.and_then(|inputs| {
            let outputs = 0..vertex.op.outputs();
            let own = outputs.map(|output| self.caches().find(&work.op, output, &inputs)).collect::<Option<Vec<Hit>>>();
            let own = own.map(|hits| hits.into_iter().map(PeerHit::Found).collect());
            own.or_else(|| self.peer_hits(id))
        });
        let Some(hits) = hits else { return Found::Miss(Box::new(work)) };
        let cached = hits.into_iter().zip(0..).map(|(hit, output)| self.cached(vertex, hit, work.of_output(output)));
        let Some(cached) = cached.collect() else { return Found::Miss(Box::new(work)) };
        let value = Value::of_outputs(cached);
        if value.is_named_only() { Found::Named(value, Box::new(work)) } else { Found::Value(value, Vec::new()) }
    }

    /// Makes a value of what a cache says. One of which it has the name only is known by how it is made.
    fn cached(&self, vertex: &Vertex, hit: PeerHit, work: Work) -> Option<FileSystem> {
        let (hit, by_definition) = match hit {
            PeerHit::Found(hit) => (hit, false),
            PeerHit::Named => {
                let key = work.parts_now()?.key();
                let made = blake3::Hash::from_bytes(*key.as_bytes()).to_hex();
                let chain = Digest::of(format!("made by {made}").as_bytes());
                (Hit { chain, layers: None, source: Arc::new(Nowhere) }, true)
            }
        };
        let Hit { chain, layers, source } = hit;
        let (vertex, name) = (vertex.digest(), vertex.meta.name.clone());
        Some(FileSystem::Cached(Arc::new(Cached { vertex, chain, by_definition, layers, source, work, name })))
    }

    /// Identifies some paths of a file system by what it is and which they are, where a cache may know the step on them.
    fn selection(&self, id: VertexId, used: &Use) -> Result<Option<Input>> {
        let Use::Paths(Some(from), copy) = used else { return Ok(None) };
        if !self.is_peer_known(id) {
            return Ok(None);
        }
        let Value::FileSystem(whole) = self.input(self.graph.vertex(id), *from)? else { return Ok(None) };
        let Some(Some(chain)) = whole.chain_now() else { return Ok(None) };
        let text = format!("{chain} {}", selector(copy));
        Ok(Some(Input::Selection(*blake3::hash(text.as_bytes()).as_bytes())))
    }

    pub(super) fn look_up(&self, connection: &Connection, vertex: &Vertex, key: &Key) -> Result<Option<(Layer, i64)>> {
        if vertex.meta.no_cache {
            return Ok(None);
        }
        Ok(cache::find(connection, key)?.map(|step| {
            let settled = Settled { id: step.snapshot, chain: step.chain };
            (Layer::known(settled, self.lease.clone()), step.id)
        }))
    }

    /// Looks for a result and leases it. A record whose snapshot has gone is forgotten. Blocking.
    fn look_up_leased(&self, vertex: &Vertex, key: &Key) -> Result<Option<(Layer, i64)>> {
        let store = &self.solver.deps().store;
        let Some((layer, record)) = store.root().db().read(|c| self.look_up(c, vertex, key))? else { return Ok(None) };
        if store.snapshot(&self.lease, layer.made)?.is_some() {
            return Ok(Some((layer, record)));
        }
        store.root().db().write(|tx| cache::forget(tx, record))?;
        Ok(None)
    }

    /// Returns what a step works on, as far as it is known without mounting or fetching anything. Blocking.
    pub(super) fn input_now(
        &self,
        connection: &Connection,
        vertex: &Vertex,
        id: UseId,
        used: &Use,
    ) -> Result<Option<Input>> {
        let (from, copy) = match used {
            Use::Whole(index) => return Ok(Some(Input::FileSystem(self.file_system(vertex, *index)?))),
            Use::Paths(from, copy) => (*from, copy),
        };
        if let Some(taken) = self.taken(id) {
            return Ok(Some(Input::Content(taken.hash)));
        }
        match from.map(|index| self.input(vertex, index)).transpose()? {
            Some(Value::Local(dir)) => {
                let source = vertex.inputs[from.unwrap_or_default() as usize].vertex;
                let taken = Arc::new(self.take_local(source, &dir, copy)?);
                self.set_taken(id, Arc::clone(&taken));
                Ok(Some(Input::Content(taken.hash)))
            }
            Some(Value::FileSystem(file_system)) => {
                if is_everything(copy) {
                    return Ok(Some(Input::FileSystem(file_system)));
                }
                let Some(Some(chain)) = file_system.chain_now() else { return Ok(None) };
                let selector = selector(copy);
                let known = cache::find_content(connection, &chain, &selector)?;
                Ok(known.or_else(|| self.caches().content(&chain, &selector)).map(Input::Content))
            }
            Some(Value::Several(_)) | None => Ok(None),
        }
    }

    /// Selects from a directory of the client. The first time is reported as the work of its vertex.
    fn take_local(&self, source: VertexId, dir: &LocalDir, copy: &Copy) -> Result<Taken> {
        let begun = self.first_use(source).then(|| Begun::new(self.progress.clone(), self.state(source)));
        let taken = take(dir.tree(), copy, &self.cancel);
        if let Some(begun) = begun {
            if let Ok(taken) = &taken {
                begun.part("transferring context:", taken.selection.bytes()).complete();
            }
            // What is missing there is the failure of the step that wants it.
            begun.end(None);
        }
        taken
    }

    /// Finds out about a step, mounting and fetching what must be looked at, and waiting for inputs to be identified when a
    /// result may be found. All inputs must have values.
    ///
    /// # Errors
    /// `NotFound` when something that is copied does not exist; when an image cannot be fetched.
    pub(super) async fn identify(self: &Arc<Self>, id: VertexId) -> Result<Found> {
        let vertex = self.graph.vertex(id);
        if let Op::Build { filename } = &vertex.op {
            return Ok(Found::Value(self.build_defined(id, filename).await?, Vec::new()));
        }
        let mut inputs = Vec::new();
        for (number, used) in uses(&vertex.op, vertex.inputs.len()).into_iter().enumerate() {
            inputs.push(self.find_input(id, (id.index(), number), used).await?);
        }
        let work = Work::new(vertex, inputs);
        if matches!(vertex.op, Op::Merge | Op::Diff { .. }) {
            work.key().await?;
            if let Shortcut::Value(value) = self.shortcut(id)? {
                return Ok(Found::Value(value.into(), Vec::new()));
            }
        }
        let db = self.solver.deps().store.root().clone();
        self.look_at_peers(id).await?;
        if !work.is_identified() {
            let op = work.op;
            let wait = !vertex.meta.no_cache
                && (self.caches().knows(&op)
                    || self.is_peer_known(id)
                    || task::blocking(move || db.db().read(|c| cache::knows(c, &op))).await?);
            if !wait {
                return Ok(self.running_before(vertex, work));
            }
        }
        let mut keys = Vec::new();
        for output in 0..vertex.op.outputs() {
            keys.push(work.of_output(output).key().await?);
        }
        let job = Arc::clone(self);
        let found = task::blocking(move || {
            let vertex = job.graph.vertex(id);
            keys.iter().map(|key| job.look_up_leased(vertex, key)).collect::<Result<Option<Vec<_>>>>()
        });
        if let Some(found) = found.await? {
            return Ok(Found::hits(found));
        }
        Ok(match self.imported(id, work) {
            // What was not asked for in time is not to be had by its name.
            Found::Named(_, work) | Found::Miss(work) => self.running_before(vertex, *work),
            found @ Found::Value(..) => found,
        })
    }

    /// Looks for a step in the caches of BuildKit, after hashing what they may know it by.
    async fn look_at_peers(self: &Arc<Self>, id: VertexId) -> Result<()> {
        if self.graph.vertex(id).meta.no_cache || !self.is_peer_known(id) {
            return Ok(());
        }
        self.hash_for_peers(id).await?;
        let job = Arc::clone(self);
        task::blocking(move || job.note_peer_records(id)).await
    }

    /// A run that has ended and whose record is about to be written.
    fn running_before(&self, vertex: &Vertex, work: Work) -> Found {
        let outputs = 0..vertex.op.outputs();
        let layers: Option<Vec<Layer>> =
            outputs.map(|output| self.solver.settling(&work.of_output(output).run)).collect();
        match layers {
            Some(layers) => {
                let outputs = layers.into_iter().map(FileSystem::Layer).collect();
                Found::Value(Value::of_outputs(outputs), Vec::new())
            }
            None => Found::Miss(Box::new(work)),
        }
    }

    async fn find_input(self: &Arc<Self>, vertex: VertexId, id: UseId, used: Use) -> Result<Input> {
        let job = Arc::clone(self);
        let (used, now) = task::blocking(move || {
            let vertex = job.graph.vertex(vertex);
            let db = job.solver.deps().store.root().db();
            let now = db.read(|connection| job.input_now(connection, vertex, id, &used))?;
            Ok((used, now))
        })
        .await?;
        let Use::Paths(from, copy) = used else { return now.ok_or_else(|| Error::internal("an input has no value")) };
        match now {
            Some(input) => Ok(input),
            None => Ok(Input::Content(self.take(vertex, id, from, copy).await?.hash)),
        }
    }

    /// Selects what a copy takes of an input, unless that was done.
    ///
    /// # Errors
    /// As [`Job::identify`].
    pub(super) async fn take(
        self: &Arc<Self>,
        vertex: VertexId,
        id: UseId,
        from: Option<InputIndex>,
        copy: Box<Copy>,
    ) -> Result<Arc<Taken>> {
        if let Some(taken) = self.taken(id) {
            return Ok(taken);
        }
        let vertex = self.graph.vertex(vertex);
        let (tree, file_system) = match from.map(|index| self.input(vertex, index)).transpose()? {
            Some(Value::Local(dir)) => (dir.tree(), None),
            Some(Value::FileSystem(file_system)) => {
                let edge = vertex.inputs[from.unwrap_or_default() as usize];
                let name = &self.graph.vertex(edge.vertex).meta.name;
                let name = if name.is_empty() { "another stage".to_owned() } else { format!("the result of {name}") };
                (self.tree(&file_system, name).await?, Some(file_system))
            }
            Some(Value::Several(_)) | None => {
                (self.tree(&FileSystem::Empty, "an empty file system".to_owned()).await?, None)
            }
        };
        let (cancel, job) = (Cancel::new(), Arc::clone(self));
        let _stop = cancel.on_drop();
        task::blocking(move || {
            let taken = Arc::new(take(tree, &copy, &cancel)?);
            job.set_taken(id, Arc::clone(&taken));
            // One that is not identified yet is not asked for before it is.
            if let Some(Some(chain)) = file_system.and_then(|file_system| file_system.chain_now()) {
                let db = job.solver.deps().store.root().db();
                db.write(|tx| cache::record_content(tx, &chain, &selector(&copy), &taken.hash))?;
            }
            Ok(taken)
        })
        .await
    }
}

fn take(tree: super::copy::Tree, copy: &Copy, cancel: &Cancel) -> Result<Taken> {
    let selection = select(&tree, copy, cancel)?;
    let hash = selection.hash();
    Ok(Taken { tree, selection, hash })
}

/// A mount of all of a file system is known by its chain ID, which costs nothing to find out.
fn is_everything(copy: &Copy) -> bool {
    copy.source == "/" && !copy.wildcard && copy.include.is_empty() && copy.exclude.is_empty()
}

impl Work {
    /// Putting a part of a client's directory into the store, to mount it.
    pub(super) fn of_context(selector: &str, hash: [u8; 32]) -> Self {
        let mut parts = Parts::default();
        parts.add("operation", "context");
        parts.add("path", selector);
        let op = parts.key();
        parts.add("content", blake3::Hash::from_bytes(hash).to_hex().as_str());
        Self { op, run: parts.key(), parts, inputs: Vec::new() }
    }

    /// Fetching a source: `parts` are what it turned out to be.
    pub(super) fn of_source(op: Key, run: Key, parts: Parts) -> Self {
        Self { op, run, parts, inputs: Vec::new() }
    }

    fn new(vertex: &Vertex, inputs: Vec<Input>) -> Self {
        let parts = Parts::of_operation(vertex);
        let op = parts.key();
        let mut provisional = parts.clone();
        for input in &inputs {
            match input {
                Input::FileSystem(file_system) => provisional.add("file system", file_system.provisional()),
                Input::Content(hash) | Input::Selection(hash) => {
                    provisional.add("content", blake3::Hash::from_bytes(*hash).to_hex().as_str());
                }
            }
        }
        if vertex.meta.no_cache {
            // Whoever accepts an earlier result does not wait for this one, and the other way round.
            provisional.add("without cache", "");
        }
        Self { op, run: provisional.key(), parts, inputs }
    }

    /// Returns the work that gives one output: the first one has the key of the step.
    pub(super) fn of_output(&self, number: u32) -> Self {
        let mut work = self.clone();
        if number > 0 {
            work.parts.add(OUTPUT, number.to_string());
            let mut run = Parts::default();
            run.add("run", blake3::Hash::from_bytes(*self.run.as_bytes()).to_hex().as_str());
            run.add("output", number.to_string());
            work.run = run.key();
        }
        work
    }

    /// Says whether all inputs are identified by now.
    fn is_identified(&self) -> bool {
        self.inputs.iter().all(|input| input.identity_now().is_some())
    }

    /// Says whether some inputs are known by how they are made only: then its key is none that a record may have.
    pub(super) fn is_provisional(&self) -> bool {
        self.inputs.iter().any(|input| match input {
            Input::FileSystem(file_system) => file_system.is_by_definition(),
            Input::Selection(_) => true,
            Input::Content(_) => false,
        })
    }

    /// Returns all parts of the key, if all inputs are identified by now.
    pub(super) fn parts_now(&self) -> Option<Parts> {
        Some(self.with(&self.identities_now()?))
    }

    /// Returns what the inputs are, if all are identified by now.
    pub(super) fn identities_now(&self) -> Option<Vec<InputIdentity>> {
        self.inputs.iter().map(Input::identity_now).collect()
    }

    /// Waits until all inputs are identified, and returns the key.
    async fn key(&self) -> Result<Key> {
        Ok(self.identified().await?.key())
    }

    /// Waits until all inputs are identified, and returns all parts.
    ///
    /// # Errors
    /// When an input could not be identified.
    pub(super) async fn identified(&self) -> Result<Parts> {
        let mut identities = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            identities.push(match input {
                Input::FileSystem(file_system) => InputIdentity::Chain(file_system.chain().await?),
                Input::Content(hash) | Input::Selection(hash) => content(*hash),
            });
        }
        Ok(self.with(&identities))
    }

    fn with(&self, identities: &[InputIdentity]) -> Parts {
        let mut parts = self.parts.clone();
        for (number, identity) in identities.iter().enumerate() {
            parts.add_input(number, identity);
        }
        parts
    }
}

impl Input {
    fn identity_now(&self) -> Option<InputIdentity> {
        match self {
            Self::FileSystem(file_system) => file_system.chain_now().map(InputIdentity::Chain),
            Self::Content(hash) | Self::Selection(hash) => Some(content(*hash)),
        }
    }
}

/// Where nothing is: a cache that knows a step by name only.
#[derive(Debug)]
struct Nowhere;

impl BlobSource for Nowhere {
    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        _sink: LayerSink,
        _progress: &'a Progress,
    ) -> BoxFuture<'a, Result<LayerSink>> {
        std::future::ready(Err(Error::not_found(format!("{} is nowhere", descriptor.digest)))).boxed()
    }
}

fn content(hash: [u8; 32]) -> InputIdentity {
    InputIdentity::Content(ContentIdentity { hash, entries: Vec::new() })
}
