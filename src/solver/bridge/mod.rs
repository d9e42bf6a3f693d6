//! A build whose frontend is at the client: it asks for parts of the build, looks at them, and says what the result is.
//!
//! What it asked for is referred to by names of our choice and not made before somebody looks at it or it is the result.

mod result;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{
    ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse,
};
use kiln_graph::{Edge, Platform, VertexId};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use super::attest::{Returned, Shape};
use super::build::without_imports;
use super::exchange::{Ahead, CacheExport};
use super::export::Export;
use super::failure::{Failure, Place};
use super::gateway::container::{self, Container, ContainerRequest};
use super::gateway::{self, Containers, View};
use super::job::Job;
use super::policy::Policy;
use super::progress::{Event, Progress, Warning};
use super::request::{BuildRequest, Built, Inputs};
use super::value::{FileSystem, Keep, Value};
use super::workshop::{Draft, Made, Summons, Workshop};
use super::{Solver, lock};
use crate::error::{Error, Result};
use crate::filesync::Entry;
use crate::task;

/// How many frontends may call for another, one for the next.
const MAX_DEPTH: usize = 8;

/// How many results a frontend may ask for.
const MAX_REFS: usize = 10_000;

/// Keys of what is said about a result.
pub(super) mod key {
    pub(in crate::solver) const CONFIG: &str = "containerimage.config";
    pub(in crate::solver) const PLATFORMS: &str = "refs.platforms";
    pub(in crate::solver) const EPOCH: &str = "source.date.epoch";
}

/// A build whose frontend is at the client.
#[derive(Debug)]
pub struct Bridge {
    shop: Workshop,
    exports: Vec<Export>,
    caches: Vec<CacheExport>,
    refs: Mutex<HashMap<String, Part>>,
    /// What failed steps worked on and left, by the names that failures give.
    left: Mutex<HashMap<String, Value>>,
    answer: Mutex<Option<oneshot::Sender<Outcome>>>,
    containers: Containers,
    /// How many frontends have called for this one.
    depth: usize,
    /// `None` for a frontend that another has called for: the build goes on without it.
    _given_up: Option<task::CancelOnDrop>,
}

/// What the frontend says the build comes to.
#[derive(Debug)]
pub enum Outcome {
    /// A result, by the names of what was asked for.
    Result(Findings),
    /// It failed.
    Failed(tonic::Status),
}

/// The results of a frontend, with what is said about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The results.
    pub refs: Refs,
    /// What is said about them: image configurations, platforms, answers to questions.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// What is to be stored beside them, by platform.
    pub attestations: BTreeMap<String, Vec<Returned>>,
}

impl Findings {
    /// What is said about results that there are none of.
    fn of_metadata(metadata: BTreeMap<String, Vec<u8>>) -> Self {
        Self { metadata, ..Self::default() }
    }
}

/// Results by their names; an empty name is an empty file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Refs {
    /// None.
    #[default]
    None,
    /// One.
    One(String),
    /// One for each platform.
    ByPlatform(BTreeMap<String, String>),
}

/// Something a frontend asked for.
#[derive(Clone, Debug)]
struct Part {
    batch: Arc<Batch>,
    /// Which of the draft's targets.
    number: usize,
}

/// What one question of a frontend gave.
#[derive(Debug)]
struct Batch {
    draft: Draft,
    /// Taken by whoever makes something of the draft.
    making: tokio::sync::Mutex<()>,
}

/// The platforms of a result, as BuildKit's frontends write them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Platforms {
    pub(super) platforms: Vec<NamedPlatform>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NamedPlatform {
    #[serde(rename = "ID")]
    pub(super) id: String,
    #[serde(rename = "Platform")]
    pub(super) platform: Platform,
}

impl Solver {
    /// Opens a build whose frontend is at the client. The receiver gets what that frontend returns.
    ///
    /// Dropping the bridge gives the build up.
    ///
    /// # Errors
    /// As for [`Solver::build`], for exporters and entitlements.
    pub async fn bridge(
        &self,
        request: BuildRequest,
        progress: Progress,
    ) -> Result<(Bridge, oneshot::Receiver<Outcome>)> {
        let exports = request.exporters.iter().map(Export::parse).collect::<Result<_>>()?;
        let caches: Vec<CacheExport> = request.cache_exports.iter().map(CacheExport::parse).collect::<Result<_>>()?;
        let mut shop = Workshop::open(self, request, progress, None).await?;
        shop.shared.ahead = Ahead::of(&caches, &shop.shared);
        let (sender, outcome) = oneshot::channel();
        Ok((Bridge::of(shop, (exports, caches), Some(sender)), outcome))
    }
}

impl Bridge {
    /// `sender` gets what the frontend returns.
    fn of(
        shop: Workshop,
        (exports, caches): (Vec<Export>, Vec<CacheExport>),
        sender: Option<oneshot::Sender<Outcome>>,
    ) -> Self {
        let given_up = Some(shop.give_up_on_drop());
        let mut shop = shop;
        shop.shared.keep = shop.shared.keep.max(Keep::Files);
        Self {
            shop,
            exports,
            caches,
            refs: Mutex::default(),
            left: Mutex::default(),
            answer: Mutex::new(sender),
            containers: Containers::new(),
            depth: 0,
            _given_up: given_up,
        }
    }

    /// Returns the solver.
    #[must_use]
    pub fn solver(&self) -> &Solver {
        &self.shop.shared.solver
    }

    fn refs(&self) -> MutexGuard<'_, HashMap<String, Part>> {
        self.refs.lock().expect("no panic happens while the lock is held")
    }

    fn part(&self, name: &str) -> Result<Part> {
        let part = self.refs().get(name).cloned();
        part.ok_or_else(|| Error::not_found(format!("no such reference {name:?} in this build")))
    }

    fn add(&self, part: Part) -> Result<String> {
        let mut refs = self.refs();
        if refs.len() >= MAX_REFS {
            return Err(Error::exhausted(format!("a build has at most {MAX_REFS} results")));
        }
        let name = name(refs.len())?;
        refs.insert(name.clone(), part);
        Ok(name)
    }

    /// Keeps a file system of a failed step for the frontend; returns its name. `None` for an empty one, and when there are too
    /// many.
    pub(super) fn keep(&self, value: Value) -> Option<String> {
        let mut left = lock(&self.left);
        if matches!(value, Value::FileSystem(FileSystem::Empty)) || left.len() >= MAX_REFS {
            return None;
        }
        let name = name(left.len()).ok()?;
        left.insert(name.clone(), value);
        Some(name)
    }

    /// Lets a frontend make results, or answer a question about them: one of this engine, or an image. Its sources are subject to
    /// further policies.
    ///
    /// # Errors
    /// As for [`Solver::build`], as far as the frontend.
    pub async fn solve(
        &self,
        frontend: &str,
        attrs: &BTreeMap<String, String>,
        inputs: Inputs,
        policies: Vec<Policy>,
    ) -> Result<Findings, Failure> {
        let shop = self.shop.with_inputs(inputs).with_policies(policies);
        match Box::pin(shop.make(frontend, attrs)).await? {
            Made::Draft(draft) => Ok(self.findings(*draft)?),
            Made::Answer(answer) => {
                let metadata = answer.into_iter().map(|(name, text)| (name, text.into_bytes())).collect();
                Ok(Findings::of_metadata(metadata))
            }
            Made::Elsewhere(summons) => Box::pin(self.summon(&shop, *summons)).await,
        }
    }

    /// Runs a frontend's image until it has returned. Its results become results of this frontend.
    async fn summon(&self, shop: &Workshop, summons: Summons) -> Result<Findings, Failure> {
        if self.depth >= MAX_DEPTH {
            return Err(Error::invalid(format!("frontends call each other more than {MAX_DEPTH} levels deep")).into());
        }
        let (sender, outcome) = oneshot::channel();
        let inner = Arc::new(Self {
            shop: shop.clone(),
            exports: Vec::new(),
            caches: Vec::new(),
            refs: Mutex::default(),
            left: Mutex::default(),
            answer: Mutex::new(Some(sender)),
            containers: Containers::new(),
            depth: self.depth + 1,
            _given_up: None,
        });
        let returned = Box::pin(gateway::run(&inner.shop.shared, &summons, &inner, outcome)).await;
        // What goes on of it is waited for as if this frontend had asked for it.
        let parts = std::mem::take(&mut *inner.refs());
        // What it reports of failed steps names what is there of them.
        lock(&self.left).extend(std::mem::take(&mut *lock(&inner.left)));
        inner.containers.release_all().await?;
        let outcome = returned.map_err(|failure| at(failure, summons.place));
        self.adopt(outcome?, parts)
    }

    /// Takes over what another frontend has asked for and returned.
    fn adopt(&self, outcome: Outcome, parts: HashMap<String, Part>) -> Result<Findings, Failure> {
        let mut names = HashMap::new();
        for (name, part) in parts {
            names.insert(name, self.add(part)?);
        }
        let Findings { refs, metadata, mut attestations } = match outcome {
            Outcome::Result(findings) => findings,
            Outcome::Failed(status) => return Err(status.into()),
        };
        let own = |name: String| match names.get(&name) {
            _ if name.is_empty() => Ok(name),
            Some(own) => Ok(own.clone()),
            None => Err(Error::invalid(format!("the frontend returned {name:?}, which is none of its results"))),
        };
        let refs = match refs {
            Refs::None => Refs::None,
            Refs::One(name) => Refs::One(own(name)?),
            Refs::ByPlatform(refs) => {
                let refs = refs.into_iter().map(|(platform, name)| Ok((platform, own(name)?)));
                Refs::ByPlatform(refs.collect::<Result<_>>()?)
            }
        };
        for returned in attestations.values_mut().flatten() {
            returned.result = own(std::mem::take(&mut returned.result))?;
        }
        Ok(Findings { refs, metadata, attestations })
    }

    /// Builds what a frontend's image makes.
    ///
    /// # Errors
    /// As for [`Solver::build`].
    pub(super) async fn build(
        shop: Workshop,
        exports: (Vec<Export>, Vec<CacheExport>),
        summons: Summons,
    ) -> Result<Built, Failure> {
        let bridge = Self::of(shop, exports, None);
        let exported = async {
            let findings = Box::pin(bridge.summon(&bridge.shop, summons)).await?;
            let mut built = Box::pin(bridge.export(&findings)).await?;
            if findings.refs == Refs::None {
                // It has answered a question.
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                built.response.extend(findings.metadata.into_iter().map(|(name, value)| (name, text(value))));
            }
            Ok(built)
        };
        let exported: Result<Built, Failure> = exported.await;
        let finished = bridge.finish().await;
        bridge.shop.clone().close(bridge).await?;
        let built = exported?;
        finished?;
        Ok(built)
    }

    /// Makes a result of a definition, whose sources are subject to further policies; nothing runs before somebody looks at it.
    ///
    /// # Errors
    /// With the operation and the field: what is malformed, or is not there.
    pub async fn solve_definition(
        &self,
        definition: &Arc<kiln_llb::pb::Definition>,
        policies: Vec<Policy>,
    ) -> Result<Findings, Failure> {
        let shop = self.shop.with_policies(policies);
        // What the client wants to be said about its result is said whatever the frontend makes it of.
        let asked = self.shop.request.attrs.iter().filter(|(key, _)| key.starts_with("attest:"));
        let asked = asked.map(|(key, value)| (key.clone(), value.clone())).collect();
        let draft = Box::pin(shop.definition(definition, &asked)).await?;
        let batch = Arc::new(Batch { draft, making: tokio::sync::Mutex::default() });
        Ok(Findings { refs: Refs::One(self.add(Part { batch, number: 0 })?), ..Findings::default() })
    }

    /// Returns a result as a definition, which can be an input of other builds; `None` for an empty file system.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn definition(&self, name: &str) -> Result<Option<kiln_llb::pb::Definition>> {
        if name.is_empty() {
            return Ok(None);
        }
        let part = self.part(name)?;
        let draft = &part.batch.draft;
        let mut definition = match &draft.definition {
            Some(definition) => definition.as_ref().clone(),
            None => {
                let session = self.shop.request.session.as_deref().unwrap_or_default();
                kiln_llb::encode(&draft.job.graph, part.root(), session)
            }
        };
        // Clients read it without asking whether it is there. An empty list among it would be written without the list, which
        // clients in Go take for a null pointer.
        let source = definition.source.get_or_insert_default();
        source.locations.retain(|_, places| !places.locations.is_empty());
        Ok(Some(definition))
    }

    /// Returns what the frontend is given besides its attributes, by name.
    #[must_use]
    pub fn inputs(&self) -> &Inputs {
        &self.shop.request.inputs
    }

    fn findings(&self, draft: Draft) -> Result<Findings> {
        let batch = Arc::new(Batch { draft, making: tokio::sync::Mutex::default() });
        let draft = &batch.draft;
        let (metadata, mut refs) = (draft.metadata()?, BTreeMap::new());
        for (number, (target, _)) in draft.targets.iter().enumerate() {
            refs.insert(target.platform.to_string(), self.add(Part { batch: Arc::clone(&batch), number })?);
        }
        let one = refs.first_key_value().map(|(_, name)| name.clone()).filter(|_| !draft.multi_platform);
        let refs = one.map_or(Refs::ByPlatform(refs), Refs::One);
        Ok(Findings { refs, metadata, ..Findings::default() })
    }

    /// Makes a result.
    ///
    /// # Errors
    /// The first failure.
    pub async fn evaluate(&self, name: &str) -> Result<(), Failure> {
        if name.is_empty() {
            return Ok(());
        }
        let part = self.part(name)?;
        self.make(&part.batch, part.root().map(|root| root.vertex)).await
    }

    /// Makes a result, and returns it.
    async fn value(&self, name: &str) -> Result<Value, Failure> {
        if name.is_empty() {
            return Ok(container::nothing());
        }
        if let Some(left) = lock(&self.left).get(name) {
            return Ok(left.clone());
        }
        self.evaluate(name).await?;
        let part = self.part(name)?;
        Ok(part.root().and_then(|root| part.batch.draft.job.value_of(root)).unwrap_or_else(container::nothing))
    }

    /// Opens the root directory of a result, which is made first.
    pub(super) async fn open(&self, name: &str) -> Result<View, Failure> {
        if name.is_empty() {
            return Err(Error::not_found("the result is an empty file system").into());
        }
        let root = match self.value(name).await? {
            Value::FileSystem(FileSystem::Empty) => {
                return Err(Error::not_found("the result is an empty file system").into());
            }
            Value::FileSystem(file_system) => {
                let job = &self.part(name)?.batch.draft.job;
                let was_broken = job.is_broken();
                match job.mount(&file_system).await {
                    Err(error) if job.is_broken() && !was_broken => {
                        self.warn(without_imports(&error.into()));
                        job.forget_cached();
                        return Box::pin(self.open(name)).await;
                    }
                    mounted => mounted?,
                }
            }
            Value::Local(dir) => dir.root.try_clone().map_err(Error::from)?,
            Value::Several(_) => return Err(Error::internal("a result has several file systems").into()),
        };
        Ok(View::of(root))
    }

    /// Reads a part of a file of a result; without a length, to its end.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` for what is no file and for more than is read at once; failures of making the result.
    pub async fn read_file(
        &self,
        name: &str,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Vec<u8>, Failure> {
        let (view, path) = (self.open(name).await?, path.to_owned());
        Ok(task::blocking(move || view.read(&path, offset, length)).await?)
    }

    /// Lists a directory of a result: names that match a pattern, all when it is empty.
    ///
    /// # Errors
    /// As for [`Self::read_file`].
    pub async fn read_dir(&self, name: &str, path: &str, pattern: &str) -> Result<Vec<Entry>, Failure> {
        let (view, path, pattern) = (self.open(name).await?, path.to_owned(), pattern.to_owned());
        Ok(task::blocking(move || view.list(&path, &pattern)).await?)
    }

    /// Says what a path of a result is, not following a symbolic link at its end.
    ///
    /// # Errors
    /// As for [`Self::read_file`].
    pub async fn stat_file(&self, name: &str, path: &str) -> Result<Entry, Failure> {
        let (view, path) = (self.open(name).await?, path.to_owned());
        Ok(task::blocking(move || view.stat(&path)).await?)
    }

    /// Makes a container under an id that the frontend chose, and the results that it mounts.
    ///
    /// # Errors
    /// `Conflict` for an id that is taken; `Forbidden` without an entitlement; failures of making the results.
    pub async fn new_container(&self, id: &str, request: ContainerRequest) -> Result<(), Failure> {
        let mut values = Vec::with_capacity(request.results.len());
        for name in &request.results {
            values.push(Box::pin(self.value(name)).await?);
        }
        let made = Container::new(&self.shop.shared, id, request, values).await?;
        self.containers.keep(made, &self.shop.shared.solver.deps().tasks).await?;
        Ok(())
    }

    /// Finds a container.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers.get(id)
    }

    /// Ends what runs in a container, and forgets it.
    ///
    /// # Errors
    /// `NotFound`; when what runs in it cannot be ended.
    pub async fn release_container(&self, id: &str) -> Result<()> {
        self.containers.release(id).await
    }

    /// Finds out what an image's name stands for, with further policies.
    ///
    /// # Errors
    /// `NotFound`; what the registry says; `Forbidden` for one that policies deny.
    pub async fn resolve_image(
        &self,
        request: ResolveImageConfigRequest,
        policies: Vec<Policy>,
    ) -> Result<ResolveImageConfigResponse, Failure> {
        self.shop.with_policies(policies).shared.look_at_image(request).await
    }

    /// Finds out what a source is, whatever sort it is of, with further policies.
    ///
    /// # Errors
    /// `InvalidArgument` and `Unsupported` for what names no source; what the server says; `Forbidden` for one that policies
    /// deny.
    pub async fn resolve_source(
        &self,
        request: ResolveSourceMetaRequest,
        policies: Vec<Policy>,
    ) -> Result<ResolveSourceMetaResponse, Failure> {
        self.shop.with_policies(policies).shared.look_at_permitted(request).await
    }

    /// Reports what the frontend warns of.
    pub fn warn(&self, warning: Warning) {
        self.shop.shared.progress.report(Event::Warning(warning));
    }

    /// Takes what the frontend returns.
    ///
    /// # Errors
    /// `Conflict` when it has returned already.
    pub fn answer(&self, outcome: Outcome) -> Result<()> {
        let sender = self.answer.lock().expect("no panic happens while the lock is held").take();
        let sender = sender.ok_or_else(|| Error::conflict("the frontend has returned already"))?;
        // The build may have been given up.
        let _ = sender.send(outcome);
        Ok(())
    }

    /// Returns the questions that gave results, each with the numbers of its results.
    fn batches(&self, names: &[&String]) -> Result<Vec<(Arc<Batch>, Vec<usize>)>> {
        let mut batches: Vec<(Arc<Batch>, Vec<usize>)> = Vec::new();
        for name in names.iter().filter(|name| !name.is_empty()) {
            let Part { batch, number } = self.part(name)?;
            match batches.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &batch)) {
                Some((_, numbers)) => numbers.push(number),
                None => batches.push((batch, vec![number])),
            }
        }
        Ok(batches)
    }

    /// Makes several results; those of one draft together.
    async fn make_all(&self, names: &[&String]) -> Result<(), Failure> {
        for (batch, numbers) in self.batches(names)? {
            self.make(&batch, batch.draft.roots(&numbers)).await?;
        }
        Ok(())
    }

    /// Makes parts of a draft. A failure says where the frontend finds what its step worked on and left.
    async fn make(&self, batch: &Batch, roots: impl IntoIterator<Item = VertexId>) -> Result<(), Failure> {
        let made = batch.make(roots).await;
        made.map_err(|failure| self.explain(&batch.draft.job, failure))
    }

    /// Ends the build in order: waits for what goes on in the background, and writes down what was learnt.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finish(&self) -> Result<()> {
        // What was exported is there; what was not will not be.
        self.shop.shared.ahead.iter().for_each(|ahead| ahead.give_up());
        let released = self.containers.release_all().await;
        let parts: Vec<Part> = self.refs().drain().map(|(_, part)| part).collect();
        let left = std::mem::take(&mut *lock(&self.left));
        task::blocking(move || {
            drop(left);
            Ok(())
        })
        .await?;
        let mut jobs: Vec<Arc<Job>> = Vec::new();
        for Part { batch, .. } in parts {
            if !jobs.iter().any(|job| Arc::ptr_eq(job, &batch.draft.job)) {
                jobs.push(Arc::clone(&batch.draft.job));
            }
        }
        for job in jobs {
            job.finish().await?;
        }
        released
    }
}

impl Part {
    fn root(&self) -> Option<Edge> {
        self.batch.draft.targets.get(self.number).and_then(|(target, _)| target.root)
    }
}

impl Batch {
    /// Makes what was not made before.
    async fn make(&self, roots: impl IntoIterator<Item = VertexId>) -> Result<(), Failure> {
        let _turn = self.making.lock().await;
        let job = &self.draft.job;
        let missing: Vec<VertexId> = roots.into_iter().filter(|root| job.is_open(*root)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let was_broken = job.is_broken();
        match job.carry_out(missing.clone()).await {
            Err(failure) if job.is_broken() && !was_broken => {
                job.progress.report(Event::Warning(without_imports(&failure)));
                job.forget_cached();
                job.carry_out(missing).await
            }
            made => made,
        }
    }
}

/// Makes the name of a result.
fn name(number: usize) -> Result<String> {
    let unique = getrandom::u64().map_err(|error| Error::internal(format!("make a name: {error}")))?;
    Ok(format!("{unique:016x}{number:04}"))
}

/// Says where a frontend is named that has failed, when it did not say where it failed itself.
fn at(mut failure: Failure, place: Option<Place>) -> Failure {
    if failure.reported().is_none() && failure.places.is_empty() {
        failure.places.extend(place);
    }
    failure
}

/// Writes an entry as it is sent to frontends.
#[must_use]
pub fn stat(entry: &Entry) -> bollard_buildkit_proto::fsutil::types::Stat {
    entry.to_stat()
}
