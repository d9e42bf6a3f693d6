//! One build from request to answer, and what its parts have in common: making what vertices stand for, exporting, ending.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_graph::{Digest, Edge, VertexId};

use super::Solver;
use super::bridge::Bridge;
use super::cache;
use super::exchange::{Ahead, CacheExport};
use super::export::Export;
use super::failure::Failure;
use super::job::Job;
use super::progress::{Event, Progress, Warning};
use super::request::{BuildRequest, Built};
use super::value::{FileSystem, Value};
use super::verify::Witness;
use super::workshop::{Draft, Made, Workshop};
use crate::error::{Error, Result};
use crate::store::SnapshotId;
use crate::task;

impl Solver {
    /// Builds. Dropping the future cancels the build; steps that no other build needs are killed at once.
    ///
    /// # Errors
    /// The first failure, with the step and the place in the source it is about.
    pub async fn build(&self, request: BuildRequest, progress: Progress) -> Result<Built, Failure> {
        if !request.verify {
            let broken = Arc::new(AtomicBool::new(false));
            let built = Box::pin(self.build_once(request.clone(), progress.clone(), None, &broken)).await;
            return match built {
                Err(failure) if broken.load(Ordering::Relaxed) => {
                    // What was made meanwhile is found.
                    progress.report(Event::Warning(without_imports(&failure)));
                    let request = BuildRequest { cache_imports: Vec::new(), ..request };
                    Box::pin(self.build_once(request, progress, None, &Arc::default())).await
                }
                built => built,
            };
        }
        let witness = Witness::default();
        let (none, twice) = (Arc::default(), request.clone());
        Box::pin(self.build_once(twice, progress.clone(), Some(witness.clone()), &none)).await?;
        Box::pin(self.build_once(request, progress, Some(witness), &none)).await
    }

    async fn build_once(
        &self,
        request: BuildRequest,
        progress: Progress,
        witness: Option<Witness>,
        broken: &Arc<AtomicBool>,
    ) -> Result<Built, Failure> {
        let exports: Vec<Export> = request.exporters.iter().map(Export::parse).collect::<Result<_>>()?;
        let caches: Vec<CacheExport> = request.cache_exports.iter().map(CacheExport::parse).collect::<Result<_>>()?;
        let mut shop = Workshop::open(self, request, progress, witness).await?;
        shop.shared.broken = Arc::clone(broken);
        shop.shared.ahead = Ahead::of(&caches, &shop.shared);
        let _given_up = shop.give_up_on_drop();
        if let Some(definition) = shop.request.definition.clone() {
            let draft = Box::pin(shop.definition(&definition, &shop.request.attrs)).await?;
            return Self::finish(shop, draft, &exports, &caches).await;
        }
        match Box::pin(shop.make(&shop.request.frontend, &shop.request.attrs)).await? {
            Made::Draft(draft) => Self::finish(shop, *draft, &exports, &caches).await,
            Made::Answer(response) => {
                shop.close(()).await?;
                Ok(Built { response, ..Built::default() })
            }
            Made::Elsewhere(summons) => Box::pin(Bridge::build(shop, (exports, caches), *summons)).await,
        }
    }

    async fn finish(
        shop: Workshop,
        draft: Draft,
        exports: &[Export],
        caches: &[CacheExport],
    ) -> Result<Built, Failure> {
        exports.iter().try_for_each(|export| export.check(draft.targets.len()))?;
        let inline = caches.iter().any(CacheExport::is_inline);
        let mut result = draft.build(exports, inline, shop.request.record_provenance).await;
        if let (Ok(built), true) = (&mut result, shop.request.documented) {
            built.documents = draft.documents().await?;
        }
        if let (Err(_), Some(ahead)) = (&result, &shop.shared.ahead) {
            ahead.give_up();
        }
        let finished = Arc::clone(&draft.job).finish().await;
        if let Ok(built) = &mut result {
            let all: Vec<usize> = (0..draft.targets.len()).collect();
            match shop.shared.export_caches(caches, &[draft.scope(&all)]).await {
                Ok(answer) => built.response.extend(answer),
                Err(error) => result = Err(error.into()),
            }
        }
        if let Ok(built) = &result {
            let told = shop.shared.finalize_exports(&built.response).await;
            result = result.and_then(|built| told.map(|()| built).map_err(Failure::from));
        }
        shop.close(draft).await?;
        let built = result?;
        finished?;
        Ok(built)
    }
}

/// Says that a build begins again, because a cache does not hold what it promised.
pub(super) fn without_imports(failure: &Failure) -> Warning {
    Warning {
        vertex: Digest::of(b"imported caches"),
        short: format!("the build begins again without the imported caches: {}", failure.error),
        detail: Vec::new(),
        url: String::new(),
        file: None,
        lines: Vec::new(),
    }
}

impl Job {
    /// Does what is not known yet of what these vertices need.
    ///
    /// # Errors
    /// That of the first step that fails.
    pub(super) async fn carry_out(self: &Arc<Self>, roots: Vec<VertexId>) -> Result<(), Failure> {
        self.report_steps(&roots);
        self.pin_sources(&roots).await?;
        self.bring_contexts(&roots).await?;
        let job = Arc::clone(self);
        let plan = task::blocking(move || Ok(job.plan(&roots))).await??;
        self.solver.carry_out(self, plan).await
    }

    /// Returns the snapshot of a target, identified.
    ///
    /// # Errors
    /// `Unsupported` for a directory of the client; when an image cannot be fetched.
    pub(super) async fn result(&self, root: Option<Edge>) -> Result<Option<SnapshotId>> {
        let Some(root) = root else { return Ok(None) };
        match self.value_of(root) {
            Some(Value::FileSystem(FileSystem::Layer(layer))) => Ok(Some(layer.settled().await?.id)),
            Some(Value::FileSystem(image)) => self.materialize(&image).await,
            Some(Value::Local(dir)) => Err(Error::unsupported(format!("{} cannot be an image as it is", dir.name))),
            Some(Value::Several(_)) | None => Err(Error::internal("the target has no result")),
        }
    }

    /// Waits until all layers are identified; what cannot be is left as it is.
    pub(super) async fn settle_all(&self) {
        let values: Vec<Value> = self.graph.ids().filter_map(|id| self.value(id)).collect();
        for layer in values.iter().flat_map(Value::file_systems).filter_map(FileSystem::as_layer) {
            // Whoever needs it is told why it is not identified.
            let _ = layer.settled().await;
        }
    }

    /// Records the results of imported caches that are here now, with a result that lies on them. Blocking.
    fn record_cached(&self) -> Result<()> {
        let store = &self.solver.deps().store;
        let values: Vec<Value> = self.graph.ids().filter_map(|id| self.value(id)).collect();
        for value in values.iter().flat_map(Value::file_systems) {
            if let FileSystem::Cached(cached) = value
                && cached.layers.is_some()
                && let Some(snapshot) = store.by_chain(&self.lease, &cached.chain)?
            {
                cached.record(&self.solver, snapshot.id, self.progress.now_ns())?;
            }
        }
        Ok(())
    }

    /// Waits for what is identified in the background, and writes down what was used and learnt.
    pub(super) async fn finish(self: Arc<Self>) -> Result<()> {
        self.pending.close();
        self.pending.wait().await;
        task::blocking(move || {
            self.locals.save();
            self.record_cached()?;
            let hits = std::mem::take(&mut *super::lock(&self.hits));
            let now = self.progress.now_ns();
            if !hits.is_empty() {
                self.solver.deps().store.root().db().write(|tx| cache::touch(tx, &hits, now))?;
            }
            // The lease may end here, which writes to the database.
            drop(self);
            Ok(())
        })
        .await
    }
}
