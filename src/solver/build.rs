//! One build from request to answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_dockerfile::NoCache;
use kiln_graph::{Edge, VertexId};

use super::attest::{Attest, Facts, Survey};
use super::cache;
use super::contexts::Locals;
use super::export::{Export, Product, Variant};
use super::failure::Failure;
use super::frontend::{Frontend, Surroundings, Target};
use super::job::{ClientSession, Entitlement, Job, Shared};
use super::options::Options;
use super::progress::Progress;
use super::request::{BuildRequest, Built};
use super::value::{FileSystem, Value};
use super::verify::Witness;
use super::{ProvenanceMode, Solver};
use crate::error::{Error, Result};
use crate::registry::{Client, Credentials, Notes, Provider};
use crate::store::SnapshotId;
use crate::task::{self, Cancel};

/// The frontend that is built in.
const FRONTEND: &str = "dockerfile.v0";

/// The key of the answer that says how two builds differ: JSON in base64.
const VERIFIED: &str = "kiln.verify";

/// Docker Hub has two names: clients' sessions know it by that of its server.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

impl Solver {
    /// Builds. Dropping the future cancels the build; steps that no other build needs are killed at once.
    ///
    /// # Errors
    /// The first failure, with the step and the place in the source it is about.
    pub async fn build(&self, request: BuildRequest, progress: Progress) -> Result<Built, Failure> {
        if !request.verify {
            return self.build_once(request, progress, None).await;
        }
        let witness = Witness::default();
        Box::pin(self.build_once(request.clone(), progress.clone(), Some(witness.clone()))).await?;
        Box::pin(self.build_once(request, progress, Some(witness))).await
    }

    async fn build_once(
        &self,
        request: BuildRequest,
        progress: Progress,
        witness: Option<Witness>,
    ) -> Result<Built, Failure> {
        if request.frontend != FRONTEND {
            let text = format!("the frontend {:?} is not built in; {FRONTEND} is", request.frontend);
            return Err(Error::unsupported(text).into());
        }
        let mut options = Options::parse(&request.attrs)?;
        if witness.is_some() {
            options.no_cache = NoCache::All;
        }
        let exports: Vec<Export> = request.exporters.iter().map(Export::parse).collect::<Result<_>>()?;
        exports.iter().try_for_each(|export| export.check(options.platforms.len()))?;
        let entitlements = request.entitlements.iter().map(|text| Entitlement::parse(text)).collect::<Result<_>>()?;
        let store = self.deps().store.clone();
        let lease = task::blocking(move || store.lease("build")).await?;
        let session = ClientSession { sessions: self.deps().sessions.clone(), id: request.session.clone() };
        let registry = self.registry(&session);
        let shared = Shared {
            solver: self.clone(),
            lease,
            session,
            registry,
            progress,
            pins: Arc::default(),
            entitlements,
            request_limits: options.limits.clone(),
            keep_failed: request.keep_failed,
            witness,
        };
        let around = Surroundings::of(&shared);
        let Frontend { mut graph, targets, epoch_s, mut images, ignore } =
            Box::pin(around.lower(&request, &options)).await?;
        let (surveys, scanner) =
            around.surveys(options.attest.sbom.as_ref(), options.resolve, &mut graph, &targets).await?;
        images.extend(scanner.map(|image| (image.id, image)));
        let facts = Facts {
            frontend: request.frontend,
            attrs: request.attrs,
            filename: options.filename,
            local_file: request.dockerfile.is_none() && options.elsewhere.is_none(),
            started_ns: shared.progress.now_ns(),
            epoch_ns: epoch_s.map(|seconds| seconds.saturating_mul(1_000_000_000)),
        };
        let order = Order {
            targets: targets.into_iter().zip(surveys).collect(),
            attest: options.attest,
            facts,
            record: request.record_provenance,
            multi_platform: options.multi_platform,
        };
        let locals = Locals {
            paths: request.locals,
            context: options.context,
            ignore,
            ..Locals::none(self.memos(), shared.progress.now_ns())
        };
        let cancel = Cancel::new();
        let _given_up = cancel.on_drop();
        let job = Job::of(&shared, graph, images, locals, cancel.clone());
        let result = job.solve(order, &exports).await;
        let finished = job.finish().await;
        let built = result?;
        finished?;
        Ok(built)
    }

    /// A registry client with the credentials of the client's session.
    fn registry(&self, session: &ClientSession) -> Client {
        let session = session.clone();
        let provider = Provider::of(move |domain| {
            let session = session.clone();
            async move {
                let Some(session) = session.get().await? else { return Ok(None) };
                let host = if domain == HUB.0 { HUB.1 } else { &domain };
                let found = session.credentials(host).await?;
                Ok(found.and_then(|(username, secret)| Credentials::from_pair(&username, &secret)))
            }
        });
        self.deps().registry.session(provider, Notes::none())
    }
}

/// What is to be made of a job's graph.
struct Order {
    /// One for each platform, with what is scanned of it.
    targets: Vec<(Target, Survey)>,
    attest: Attest,
    facts: Facts,
    /// Whether provenance is part of the answer.
    record: Option<ProvenanceMode>,
    /// Whether it is exported as one for several platforms.
    multi_platform: bool,
}

impl Job {
    /// Does what is not known yet of what these vertices need.
    ///
    /// # Errors
    /// That of the first step that fails.
    pub(super) async fn carry_out(self: &Arc<Self>, roots: Vec<VertexId>) -> Result<(), Failure> {
        self.pin_sources(&roots).await?;
        self.bring_contexts(&roots).await?;
        let job = Arc::clone(self);
        let plan = task::blocking(move || Ok(job.plan(&roots))).await??;
        self.solver.carry_out(self, plan).await
    }

    /// Does what is not known yet, and exports the result.
    async fn solve(self: &Arc<Self>, order: Order, exports: &[Export]) -> Result<Built, Failure> {
        let Order { targets, attest, facts, record, multi_platform } = order;
        let edges = targets.iter().flat_map(|(target, survey)| target.root.into_iter().chain(survey.roots()));
        self.carry_out(edges.map(|edge| edge.vertex).collect()).await?;
        let mut built = Built::default();
        if let Some(mode) = record {
            built.response = self.record(mode, &facts, &targets, multi_platform).await?;
        }
        if exports.is_empty() && self.witness.is_none() {
            return Ok(built);
        }
        let mut variants = Vec::new();
        for (target, survey) in targets {
            let snapshot = self.result(target.root).await?;
            let attestations = self.attest(&attest, &facts, &target, &survey, snapshot).await?;
            let Target { platform, config, base_layers, .. } = target;
            variants.push(Variant { platform, config, snapshot, base_layers, attestations });
        }
        let product = Arc::new(Product { variants, multi_platform, epoch_ns: facts.epoch_ns });
        if let Some(witness) = &self.witness {
            let Some(comparison) = self.compare(witness, &product).await? else { return Ok(built) };
            let same = comparison.is_same();
            built.response.insert(VERIFIED.to_owned(), STANDARD.encode(String::from(comparison)));
            if !same {
                return Ok(built);
            }
        }
        built.response.extend(self.export(exports, &product).await?);
        Ok(built)
    }

    /// Writes what buildx's metadata file says about where the result is from.
    async fn record(
        self: &Arc<Self>,
        mode: ProvenanceMode,
        facts: &Facts,
        targets: &[(Target, Survey)],
        multi_platform: bool,
    ) -> Result<BTreeMap<String, String>> {
        let mut response = BTreeMap::new();
        for (target, _) in targets {
            let made = self.recorded_provenance(mode, facts, target).await?;
            let platform = if multi_platform { format!("/{}", target.platform) } else { String::new() };
            response.insert(format!("buildx.build.provenance{platform}"), STANDARD.encode(&made.predicate));
        }
        Ok(response)
    }

    /// Returns the snapshot of a target, identified.
    async fn result(&self, root: Option<Edge>) -> Result<Option<SnapshotId>> {
        let Some(root) = root else { return Ok(None) };
        match self.value(root.vertex) {
            Some(Value::FileSystem(FileSystem::Layer(layer))) => Ok(Some(layer.settled().await?.id)),
            Some(Value::FileSystem(image)) => self.materialize(&image).await,
            Some(Value::Local(dir)) => Err(Error::unsupported(format!("{} cannot be an image as it is", dir.name))),
            None => Err(Error::internal("the target has no result")),
        }
    }

    /// Waits for what is identified in the background, and writes down what was used and learnt.
    pub(super) async fn finish(self: Arc<Self>) -> Result<()> {
        self.pending.close();
        self.pending.wait().await;
        task::blocking(move || {
            self.locals.save();
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
