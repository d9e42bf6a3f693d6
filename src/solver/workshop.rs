//! What all parts of one build share, and what frontends make with it: drafts of results, whose steps have not run yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::try_join_all;
use kiln_dockerfile::{Foreign, NoCache, is_built_in};
use kiln_graph::{Reference, VertexId};

use super::attest::{Attest, Facts, Survey};
use super::bridge::{NamedPlatform, Platforms, key};
use super::contexts::Locals;
use super::distant::Files;
use super::exchange::{self, CacheImport, Imports, Scope};
use super::export::{Export, Product, Variant};
use super::failure::{Failure, Place};
use super::frontend::{Frontend, Read, Surroundings, Target};
use super::frontends::{FRONTEND, GATEWAY};
use super::job::{ClientSession, Entitlements, Job, Shared};
use super::machine::Watch;
use super::options::Options;
use super::policy::{Policies, Policy};
use super::progress::Progress;
use super::request::{BuildRequest, Built, CacheSpec, Document, Inputs};
use super::value::Keep;
use super::verify::Witness;
use super::{ProvenanceMode, Solver};
use crate::error::{Error, Result};
use crate::image::Stack;
use crate::registry::{Client, Credentials, Notes, Provider, TokenQuestion};
use crate::sandbox::Limits;
use crate::task::{self, Cancel, CancelOnDrop};

/// The attribute that asks for a frontend which is a result itself.
const DEVELOPMENT: &str = "gateway-devel";

/// Docker Hub has two names: clients' sessions know it by that of its server.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// What all parts of one build share. Cloning gives another handle.
#[derive(Clone, Debug)]
pub(super) struct Workshop {
    pub(super) shared: Shared,
    pub(super) request: Arc<BuildRequest>,
    pub(super) cancel: Cancel,
    /// The caches that were read, by what was asked for.
    imported: Arc<tokio::sync::Mutex<BTreeMap<CacheSpec, Imports>>>,
}

/// What a frontend made.
#[derive(Debug)]
pub(super) enum Made {
    /// A draft of results.
    Draft(Box<Draft>),
    /// The answer to a question about what would be built: BuildKit's metadata, by name.
    Answer(BTreeMap<String, String>),
    /// Nothing: another frontend is to be asked, which is an image.
    Elsewhere(Box<Summons>),
}

/// A frontend that is an image, and what it is asked.
#[derive(Clone, Debug)]
pub(super) struct Summons {
    /// The image.
    pub(super) image: String,
    /// The attributes, with those that name the image.
    pub(super) attrs: BTreeMap<String, String>,
    /// Where the source names the image.
    pub(super) place: Option<Place>,
}

/// Which frontend is asked, and what.
enum Asked {
    /// The one that is built in: its options, and the attributes without those that name it.
    Here(Box<Options>, BTreeMap<String, String>),
    Elsewhere(Summons),
}

/// A result that is known and not made yet.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) job: Arc<Job>,
    /// What is made, one for each platform, with what is scanned of it.
    pub(super) targets: Vec<(Target, Survey)>,
    /// What is said about it.
    pub(super) attest: Attest,
    pub(super) facts: Facts,
    /// Whether it is one for several platforms, though there may be one only.
    pub(super) multi_platform: bool,
    /// The definition it is made of, when it came as one.
    pub(super) definition: Option<Arc<kiln_llb::pb::Definition>>,
}

impl Workshop {
    /// Opens the workshop of a build.
    ///
    /// # Errors
    /// `Unsupported` for an entitlement that does not exist; when the store fails.
    pub(super) async fn open(
        solver: &Solver,
        request: BuildRequest,
        progress: Progress,
        witness: Option<Witness>,
    ) -> Result<Self> {
        let entitlements = Entitlements::parse(&request.entitlements)?;
        permit(solver.deps().settings.entitlements.as_deref(), &request.entitlements)?;
        let store = solver.deps().store.clone();
        let lease = task::blocking(move || store.lease("build")).await?;
        let session = ClientSession { sessions: solver.deps().sessions.clone(), id: request.session.clone() };
        let registry = registry(solver, &session, request.credentials.clone());
        let policies = Policies { given: request.policies.clone(), session: request.policy_session.clone() };
        let (captures, clock) = (Attest::captures_usage(&request.attrs), progress.clone());
        let watch = captures.then(|| Arc::new(Watch::begin(move || clock.now_ns())));
        let shared = Shared {
            solver: solver.clone(),
            lease,
            session,
            registry,
            progress,
            pins: Arc::default(),
            entitlements,
            request_limits: Limits::default(),
            keep: if request.keep_failed { Keep::Step } else { Keep::Nothing },
            witness,
            imports: Imports::default(),
            broken: Arc::default(),
            ahead: None,
            session_exporter: request.session_exporter,
            policies: Arc::new(policies),
            places: Arc::new(request.locals.clone()),
            watch,
        };
        let imported = Arc::default();
        Ok(Self { shared, request: Arc::new(request), cancel: Cancel::new(), imported })
    }

    /// Returns the same workshop for a frontend that is given other inputs.
    pub(super) fn with_inputs(&self, inputs: Inputs) -> Self {
        let request = Arc::new(BuildRequest { inputs, ..(*self.request).clone() });
        Self { request, ..self.clone() }
    }

    /// Returns the same workshop with further policies about sources, which come after its own.
    pub(super) fn with_policies(&self, policies: Vec<Policy>) -> Self {
        let mut shop = self.clone();
        if !policies.is_empty() {
            let mut all = (*shop.shared.policies).clone();
            all.given.extend(policies);
            shop.shared.policies = Arc::new(all);
        }
        shop
    }

    /// Returns a guard that gives the build up when it is dropped.
    pub(super) fn give_up_on_drop(&self) -> CancelOnDrop {
        self.cancel.on_drop()
    }

    /// Gives the workshop back with what was made: its lease may end here, which writes to the database.
    ///
    /// # Errors
    /// When the engine is stopping.
    pub(super) async fn close(self, made: impl Send + 'static) -> Result<()> {
        task::blocking(move || {
            drop((self, made));
            Ok(())
        })
        .await
    }

    /// Reads the caches that results are looked for in: those of the request, and those a frontend is asked to use. Each is read
    /// once.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported` for malformed requests; that one cannot be read is reported only.
    pub(super) async fn imports(&self, attrs: &BTreeMap<String, String>) -> Result<Imports> {
        let mut specs: Vec<CacheSpec> = Vec::new();
        for spec in self.request.cache_imports.iter().cloned().chain(exchange::of_attributes(attrs)?) {
            if !specs.contains(&spec) {
                specs.push(spec);
            }
        }
        let imports: Vec<CacheImport> = specs.iter().map(CacheImport::parse).collect::<Result<_>>()?;
        let mut known = self.imported.lock().await;
        let reads = specs.iter().zip(&imports).map(|(spec, import)| {
            let read = known.get(spec).cloned();
            async move {
                match read {
                    Some(read) => Ok(read),
                    None => self.shared.import(import).await,
                }
            }
        });
        let read = try_join_all(reads.collect::<Vec<_>>()).await?;
        known.extend(specs.into_iter().zip(read.iter().cloned()));
        Ok(Imports::all(read))
    }

    /// Reads what a frontend is asked.
    fn asked(&self, name: &str, attrs: &BTreeMap<String, String>) -> Result<Asked> {
        let mut attrs = attrs.clone();
        let image = attrs.get("source").cloned().unwrap_or_default();
        let frontends = &self.shared.solver.deps().settings.frontends;
        match name {
            FRONTEND => frontends.permit(FRONTEND)?,
            GATEWAY if attrs.contains_key(DEVELOPMENT) => {
                return Err(Error::unsupported("running a frontend that is a result of the build (gateway-devel)"));
            }
            GATEWAY if image.is_empty() => {
                return Err(Error::invalid(format!("the frontend {GATEWAY} needs an image (source)")));
            }
            GATEWAY => {
                let prefix = "build-arg:";
                let args =
                    attrs.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.into(), value.clone())));
                if !is_built_in(&image, &args.collect()) {
                    return Ok(Asked::Elsewhere(Summons { image, attrs, place: None }));
                }
                frontends.permit_image(&frontend_image(&image)?)?;
                // It was chosen, whatever the file says.
                attrs.entry("cmdline".to_owned()).or_insert(image);
            }
            _ => return Err(Error::unsupported(format!("the frontend {name:?} is not built in; {FRONTEND} is"))),
        }
        exchange::IMPORT_ATTRIBUTES.iter().for_each(|key| drop(attrs.remove(*key)));
        let mut options = Options::parse(&attrs)?;
        if self.shared.witness.is_some() {
            options.no_cache = NoCache::All;
        }
        for naming in ["source", "cmdline"] {
            attrs.remove(naming);
        }
        Ok(Asked::Here(Box::new(options), attrs))
    }

    /// Lets a frontend make a draft, or answer a question about what would be built.
    ///
    /// # Errors
    /// `Unsupported` for a name that is no frontend's; what it finds wrong, with the place in the source.
    pub(super) async fn make(&self, name: &str, given: &BTreeMap<String, String>) -> Result<Made, Failure> {
        let (options, asked) = match self.asked(name, given)? {
            Asked::Here(options, asked) => (*options, asked),
            Asked::Elsewhere(summons) => return Ok(Made::Elsewhere(Box::new(summons))),
        };
        let elsewhere = |(foreign, place): (Foreign, Option<Place>)| {
            let named = [("source", foreign.image.clone()), ("cmdline", foreign.command)];
            let attrs = given.clone().into_iter().chain(named.map(|(key, value)| (key.to_owned(), value))).collect();
            Made::Elsewhere(Box::new(Summons { image: foreign.image, attrs, place }))
        };
        if let Some(call) = options.call {
            let answer = Surroundings::of(&self.shared).answer(call, &self.request, &options).await?;
            return Ok(match answer {
                Read::Done(answer) => Made::Answer(answer),
                Read::Foreign(foreign) => elsewhere(*foreign),
            });
        }
        let imports = if self.shared.witness.is_some() { Imports::default() } else { self.imports(given).await? };
        let shared = Shared { request_limits: options.limits.clone(), imports, ..self.shared.clone() };
        let around = Surroundings::of(&shared);
        match Box::pin(around.lower(&self.request, &options)).await? {
            Read::Done(frontend) => {
                let draft = Box::pin(self.draft(&shared, name, options, asked, frontend)).await?;
                Ok(Made::Draft(Box::new(draft)))
            }
            Read::Foreign(foreign) => Ok(elsewhere(*foreign)),
        }
    }

    async fn draft(
        &self,
        shared: &Shared,
        name: &str,
        options: Options,
        attrs: BTreeMap<String, String>,
        frontend: Frontend,
    ) -> Result<Draft, Failure> {
        let Frontend { mut graph, targets, epoch_s, mut images, ignore } = frontend;
        let (surveys, scanner) = Surroundings::of(shared)
            .surveys(options.attest.sbom.as_ref(), options.resolve, &mut graph, &targets)
            .await?;
        images.extend(scanner.map(|image| (image.id, image)));
        shared.comply(&mut graph).await?;
        let started_ns = shared.progress.now_ns();
        let facts = Facts {
            frontend: name.to_owned(),
            attrs,
            filename: options.filename,
            local_file: self.request.dockerfile.is_none() && options.elsewhere.is_none(),
            started_ns,
            epoch_ns: epoch_s.map(|seconds| seconds.saturating_mul(1_000_000_000)),
        };
        let paths = self.request.locals.clone();
        let none = Locals::none(shared.solver.memos(), started_ns);
        let locals = Locals { paths, context: options.context, ignore, ..none };
        Ok(Draft {
            job: Job::of(shared, graph, images, locals, self.cancel.clone()),
            targets: targets.into_iter().zip(surveys).collect(),
            attest: options.attest,
            facts,
            multi_platform: options.multi_platform,
            definition: None,
        })
    }
}

impl Draft {
    /// The vertices that must be made before the results of these numbers are exported.
    pub(super) fn roots(&self, numbers: &[usize]) -> Vec<VertexId> {
        let targets = numbers.iter().filter_map(|number| self.targets.get(*number));
        let edges = targets.flat_map(|(target, survey)| target.root.into_iter().chain(survey.roots()));
        edges.map(|edge| edge.vertex).collect()
    }

    /// Returns what caches are told about the results of these numbers.
    pub(super) fn scope(&self, numbers: &[usize]) -> Scope {
        let targets = numbers.iter().filter_map(|number| self.targets.get(*number));
        let targets = targets.filter_map(|(target, _)| target.root).collect();
        Scope { job: Arc::clone(&self.job), roots: self.roots(numbers), targets }
    }

    /// Makes and exports the result. `inline` asks for a cache in the images, `record` for provenance in the answer.
    ///
    /// # Errors
    /// The first failure.
    pub(super) async fn build(
        &self,
        exports: &[Export],
        inline: bool,
        record: Option<ProvenanceMode>,
    ) -> Result<Built, Failure> {
        let all: Vec<usize> = (0..self.targets.len()).collect();
        self.job.carry_out(self.roots(&all)).await?;
        let mut built = Built::default();
        if let Some(mode) = record {
            for number in &all {
                let target = self.targets.get(*number).map(|(target, _)| target).filter(|_| self.multi_platform);
                let platform = target.map(|target| target.platform.to_string());
                built.response.extend([self.record(mode, *number, platform.as_deref()).await?]);
            }
        }
        let found = self.job.find_exports(&self.metadata()?, Vec::new()).await?;
        let exports: Vec<Export> = exports.iter().cloned().chain(found).collect();
        if exports.is_empty() && self.job.witness.is_none() {
            return Ok(built);
        }
        let files = Files::of(&exports, self.job.witness.is_some());
        let mut variants = Vec::new();
        for number in all {
            variants.push(self.variant(number, files).await?);
        }
        let all: Vec<usize> = (0..self.targets.len()).collect();
        let cache = if inline { vec![self.scope(&all)] } else { Vec::new() };
        let (multi_platform, epoch_ns) = (self.multi_platform, self.facts.epoch_ns);
        let product = Arc::new(Product { variants, multi_platform, epoch_ns, cache });
        if self.job.passes(&product, &mut built.response).await? {
            built.response.extend(self.job.export(&exports, &product).await?);
        }
        Ok(built)
    }

    /// Says what the results are, as BuildKit's frontends do: configurations, platforms, a time.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub(super) fn metadata(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let (mut metadata, mut platforms) = (BTreeMap::new(), Vec::new());
        for (target, _) in &self.targets {
            let id = target.platform.to_string();
            let suffix = if self.multi_platform { format!("/{id}") } else { String::new() };
            metadata.insert(format!("{}{suffix}", key::CONFIG), serde_json::to_vec(&target.config)?);
            platforms.push(NamedPlatform { id, platform: target.platform.clone() });
        }
        metadata.insert(key::PLATFORMS.to_owned(), serde_json::to_vec(&Platforms { platforms })?);
        if let Some(epoch_ns) = self.facts.epoch_ns {
            metadata.insert(key::EPOCH.to_owned(), (epoch_ns / 1_000_000_000).to_string().into_bytes());
        }
        Ok(metadata)
    }

    /// Returns a result that was made, with what is said about it.
    ///
    /// # Errors
    /// When an image cannot be fetched or a scan cannot be read.
    pub(super) async fn variant(&self, number: usize, files: Files) -> Result<Variant> {
        let (target, survey) =
            self.targets.get(number).ok_or_else(|| Error::internal("a result that does not exist"))?;
        let root = match files {
            Files::Here => Stack::Here(self.job.result(target.root).await?),
            Files::Anywhere => self.job.composition(target.root).await?,
        };
        let attestations = self.job.attest(&self.attest, &self.facts, target, survey).await?;
        let Target { platform, config, base_layers, .. } = target;
        let (platform, config, base_layers) = (platform.clone(), config.clone(), *base_layers);
        Ok(Variant { platform, config, root, base_layers, attestations })
    }

    /// Writes what the history of builds says about where the result is from: without build arguments and secrets' names.
    ///
    /// # Errors
    /// As for [`Self::build`].
    pub(super) async fn documents(&self) -> Result<Vec<Document>> {
        let mut documents = Vec::new();
        for (target, _) in &self.targets {
            let made = self.job.recorded_provenance(ProvenanceMode::Min, &self.facts, target).await?;
            let platform = if self.multi_platform { target.platform.to_string() } else { String::new() };
            documents.push(Document { predicate_type: made.predicate.kind, platform, data: made.predicate.content });
        }
        Ok(documents)
    }

    /// Writes what buildx's metadata file says about where a result is from, with its key; of several, each is known by its platform.
    ///
    /// # Errors
    /// As for [`Self::build`].
    pub(super) async fn record(
        &self,
        mode: ProvenanceMode,
        number: usize,
        platform: Option<&str>,
    ) -> Result<(String, String)> {
        let (target, _) = self.targets.get(number).ok_or_else(|| Error::internal("a result that does not exist"))?;
        let made = self.job.recorded_provenance(mode, &self.facts, target).await?;
        let platform = platform.map(|platform| format!("/{platform}")).unwrap_or_default();
        Ok((format!("buildx.build.provenance{platform}"), STANDARD.encode(&made.predicate.content)))
    }
}

/// Reads the name of a frontend's image.
///
/// # Errors
/// `InvalidArgument` for what is no name.
pub(super) fn frontend_image(image: &str) -> Result<Reference> {
    image.parse().map_err(|error| Error::invalid(format!("the frontend {image:?}: {error}")))
}

/// Refuses what clients may not allow their steps.
fn permit(permitted: Option<&[String]>, asked: &[String]) -> Result<()> {
    let Some(permitted) = permitted else { return Ok(()) };
    // A device is named behind its word.
    let is_permitted = |word: &&String| {
        let word = word.split('=').next().unwrap_or(word);
        permitted.iter().any(|permitted| permitted == word)
    };
    match asked.iter().find(|word| !is_permitted(word)) {
        None => Ok(()),
        Some(word) => Err(Error::forbidden(format!(
            "granting entitlement {word} is not allowed by build daemon configuration (entitlements of [builder], or \
             buildkitd's --allow-insecure-entitlement)"
        ))),
    }
}

/// A registry client with the credentials of the request, else the tokens or the credentials of the client's session.
fn registry(solver: &Solver, session: &ClientSession, given: BTreeMap<String, Credentials>) -> Client {
    let (session, asked, tokens_of) = (session.clone(), session.clone(), solver.clone());
    let known: BTreeSet<String> = given.keys().cloned().collect();
    let provider = Provider::of(move |domain| {
        let (session, given) = (session.clone(), given.get(&domain).cloned());
        async move {
            if given.is_some() {
                return Ok(given);
            }
            let Some(session) = session.get().await? else { return Ok(None) };
            let host = if domain == HUB.0 { HUB.1 } else { &domain };
            let found = session.credentials(host).await?;
            Ok(found.and_then(|(username, secret)| Credentials::from_pair(&username, &secret)))
        }
    });
    let provider = provider.with_tokens(move |question: TokenQuestion| {
        let (solver, session) = (tokens_of.clone(), asked.clone());
        let given = known.contains(&question.domain);
        async move {
            let Some(session) = session.get().await?.filter(|_| !given) else { return Ok(None) };
            let host = if question.domain == HUB.0 { HUB.1.to_owned() } else { question.domain.clone() };
            solver.tokens().get(&session, &host, question).await
        }
    });
    solver.deps().registry.session(provider, Notes::none())
}
