//! The Dockerfile frontend: reads the files, lowers them, and finds out about the images lowering asks for.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::try_join_all;
use kiln_dockerfile::call::{self, Asked, Call};
use kiln_dockerfile::check::Rule;
use kiln_dockerfile::{
    Definition, Files, Foreign, Given, Ignore, ImageKey, ImageName, Lowered, NamedContext, Need, Outcome, Refused,
    Request, ResolvedImage, asks_for_context_time, foreign, include,
};
use kiln_graph::oci::ImageConfig;
use kiln_graph::op::ResolveMode;
use kiln_graph::{Diagnostic, Digest, Edge, Graph, Platform, Reference, SourceFile};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::contexts::Directory;
use super::failure::{Failure, Place};
use super::job::{Begun, ClientSession, Shared};
use super::options::{ContextSource, Options};
use super::progress::{Event, Progress, Warning};
use super::request::BuildRequest;
use super::verify::Witness;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::image::{Policy, Resolved};
use crate::sandbox;
use crate::store::tree;
use crate::task;

/// A Dockerfile or a list of patterns larger than this is refused.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Where the main context's rules are.
const DOCKERIGNORE: &str = ".dockerignore";

/// The name under which an answer to a call says why the file cannot be built: for people, and Kiln's own.
const CALL_ERROR: &str = "kiln.call.error";

/// What the frontend made of a request: one graph for all platforms.
pub(super) struct Frontend {
    /// The steps; those that do not depend on the platform are there once.
    pub(super) graph: Graph,
    /// What is made, one for each platform, in the order asked for.
    pub(super) targets: Vec<Target>,
    /// The time in seconds since 1970 to which times in the result are clamped.
    pub(super) epoch_s: Option<i64>,
    /// The images it asked about, by id.
    pub(super) images: HashMap<Digest, Arc<Resolved>>,
    /// The rules of the main context.
    pub(super) ignore: Arc<Ignore>,
}

/// What reading a file led to.
pub(super) enum Read<T> {
    /// What was asked for.
    Done(T),
    /// The file is for another frontend, as it says at this place.
    Foreign(Box<(Foreign, Option<Place>)>),
}

/// What is made for one platform.
#[derive(Debug)]
pub(super) struct Target {
    /// The platform.
    pub(super) platform: Platform,
    /// Its root file system; `None` is an empty one.
    pub(super) root: Option<Edge>,
    /// The image's configuration, without `rootfs` and `created`.
    pub(super) config: ImageConfig,
    /// What an SBOM is asked for besides: names and file systems.
    pub(super) scan: Vec<(String, Edge)>,
    /// How many of its layers are those of the base.
    pub(super) base_layers: usize,
}

/// What is read before lowering.
struct Inputs {
    file: SourceFile,
    /// The main context.
    context: Files,
    /// The rules of the main context.
    ignore: Ignore,
    /// The rules of the other local contexts, by the directories' names.
    ignores: BTreeMap<String, Ignore>,
    /// Where directories of the client are that this engine sees, OCI layouts among them.
    places: BTreeMap<String, PathBuf>,
    /// The time of the main context, when it is asked for and the context has one.
    context_time_s: Option<i64>,
    /// The time of what the build takes its time from by name.
    named_time_s: Option<(String, Option<i64>)>,
    /// What the frontend is given besides, by name.
    given: BTreeMap<String, Arc<Given>>,
}

/// The images that were asked about.
#[derive(Default)]
struct Found {
    known: HashMap<ImageKey, ResolvedImage>,
    images: HashMap<Digest, Arc<Resolved>>,
}

/// What the frontend works with.
pub(super) struct Surroundings<'a> {
    pub(super) shared: &'a Shared,
    pub(super) session: &'a ClientSession,
    pub(super) progress: &'a Progress,
}

impl<'a> Surroundings<'a> {
    /// Takes what a frontend needs of what the graphs of a build share.
    pub(super) fn of(shared: &'a Shared) -> Self {
        let Shared { session, progress, .. } = shared;
        Self { shared, session, progress }
    }

    /// Reads and lowers the Dockerfile of a request.
    ///
    /// # Errors
    /// With the places in the file: what makes no sense there, images that do not exist.
    pub(super) async fn lower(&self, request: &BuildRequest, options: &Options) -> Result<Read<Frontend>, Failure> {
        let (source, inputs) = self.read(request, options).await?;
        if let Some(foreign) = elsewhere(&inputs.file, options) {
            return Ok(Read::Foreign(Box::new(foreign)));
        }
        let mut found = Found::default();
        let (mut graph, mut targets, mut epoch_s) = (Graph::new(), Vec::new(), None);
        // Without a platform asked for there is one, which the Dockerfile and its base decide.
        let platforms = options.platforms.iter().map(Some);
        for platform in if options.platforms.is_empty() { vec![None] } else { platforms.collect() } {
            let lowered = self.lower_for(platform, options, source, &inputs, &mut found).await?;
            if targets.is_empty() {
                // The other platforms' are the same.
                self.warn(source, &inputs.file, &lowered.warnings);
            }
            let ids = graph.absorb(lowered.graph);
            let here = |edge: Edge| Edge { vertex: ids[edge.vertex.index()], ..edge };
            let (root, scan) =
                (lowered.root.map(here), lowered.scan.into_iter().map(|(name, edge)| (name, here(edge))));
            let base = lowered.base.and_then(|base| found.known.get(&base));
            let base_layers = base.map_or(0, |base| base.config.rootfs.diff_ids.len());
            let (platform, config) = (lowered.platform, lowered.config);
            targets.push(Target { platform, root, config, scan: scan.collect(), base_layers });
            epoch_s = lowered.epoch_s;
        }
        Ok(Read::Done(Frontend { graph, targets, epoch_s, images: found.images, ignore: Arc::new(inputs.ignore) }))
    }

    /// Lowers for one platform.
    async fn lower_for(
        &self,
        platform: Option<&Platform>,
        options: &Options,
        source: Digest,
        inputs: &Inputs,
        found: &mut Found,
    ) -> Result<Lowered, Failure> {
        let file = &inputs.file;
        let asked = Request { target_platform: platform.cloned(), ..lowering_request(options, inputs) };
        let refuse = |refused: Refused| {
            self.warn(source, file, &refused.warnings);
            Failure::of_source(file, refused.errors)
        };
        let definition = Definition::read(&asked).map_err(refuse)?;
        loop {
            match definition.lower(&found.known).map_err(refuse)? {
                Outcome::Need(needs) => self.look_up(&needs, platform, options, inputs, found).await?,
                Outcome::Done(lowered) => return Ok(*lowered),
            }
        }
    }

    /// Answers a question about the Dockerfile: BuildKit's metadata of the result, by name.
    ///
    /// # Errors
    /// With the places in the file: what makes no sense there, unless that is what is asked; images that do not exist.
    pub(super) async fn answer(
        &self,
        call: Call,
        request: &BuildRequest,
        options: &Options,
    ) -> Result<Read<BTreeMap<String, String>>, Failure> {
        let (_, inputs) = self.read(request, options).await?;
        if let Some(foreign) = elsewhere(&inputs.file, options) {
            return Ok(Read::Foreign(Box::new(foreign)));
        }
        let (file, platform) = (&inputs.file, options.platforms.first());
        let asked = Request { target_platform: platform.cloned(), ..lowering_request(options, &inputs) };
        let mut found = Found::default();
        loop {
            let answer = call::answer(call, &asked, &found.known);
            match answer.map_err(|refused| Failure::of_source(file, refused.errors))? {
                Asked::Need(needs) => self.look_up(&needs, platform, options, &inputs, &mut found).await?,
                Asked::Done(answer) => {
                    let metadata = answer.metadata(call).into_iter().map(|(name, value)| (name.to_owned(), value));
                    let error = answer.error.map(|error| (CALL_ERROR.to_owned(), error));
                    return Ok(Read::Done(metadata.chain(error).collect()));
                }
            }
        }
    }

    /// Finds out about images.
    async fn look_up(
        &self,
        needs: &[Need],
        platform: Option<&Platform>,
        options: &Options,
        inputs: &Inputs,
        found: &mut Found,
    ) -> Result<(), Failure> {
        let resolved = needs.iter().map(|need| self.resolve(need, options.resolve, platform.is_none(), inputs));
        for (need, resolved) in needs.iter().zip(try_join_all(resolved).await?) {
            let (config, reference) = ((*resolved.config).clone(), resolved.reference.clone());
            found.known.insert(need.key.clone(), ResolvedImage { config, id: resolved.id, reference });
            found.images.insert(resolved.id, Arc::new(resolved));
        }
        Ok(())
    }

    /// Reads the Dockerfile and the ignore files. Returns them with the vertex that stands for the Dockerfile.
    async fn read(&self, request: &BuildRequest, options: &Options) -> Result<(Digest, Inputs), Failure> {
        let given = self.given(request, options).await?;
        let fetched = Box::pin(self.fetch_context(options, &given)).await?;
        let by_address = match &request.dockerfile {
            None if is_address(&options.filename) => Some(Box::pin(self.fetch_file(&options.filename)).await?),
            None if fetched.is_none() => match given.get(&options.dockerfile) {
                Some(files) => Some((Box::pin(self.open_given(files)).await?, options.filename.clone())),
                None => None,
            },
            _ => None,
        };
        let name = &options.filename;
        let reading = Begun::internal(self.progress, &format!("[internal] load build definition from {name}"))?;
        let source = reading.digest();
        let read = match (by_address, &fetched) {
            (Some(found), _) => {
                read_fetched(found, name.clone(), options.usual_filename).await.map(|file| (file, None))
            }
            (None, Some(fetched)) if request.dockerfile.is_none() => {
                let found = (Arc::clone(&fetched.root), fetched.only.unwrap_or(name).to_owned());
                read_fetched(found, name.clone(), options.usual_filename).await.map(|file| (file, None))
            }
            _ => self.read_dockerfile(request, options).await,
        };
        if let Ok((file, _)) = &read {
            reading.part("transferring dockerfile:", file.text().len() as u64).complete();
        }
        reading.end(read.as_ref().err());
        let (file, dockerfile) = read?;
        let reading = Begun::internal(self.progress, "[internal] load .dockerignore")?;
        let has_rules = options.elsewhere.is_none() && !given.contains_key(&options.context);
        let read = self.read_ignores(request, options, dockerfile.filter(|_| has_rules), has_rules).await;
        if let Ok((_, _, bytes)) = &read {
            reading.part("transferring context:", *bytes).complete();
        }
        reading.end(read.as_ref().err());
        let (ignore, ignores, _) = read?;
        let file = self.included(file, request, options, fetched.as_ref().map(|fetched| &fetched.root)).await?;
        let context_time_s = match &fetched {
            Some(fetched) if asks_for_context_time(&file, &options.build_args) => fetched.time_s().await?,
            _ => None,
        };
        let named_time_s = self.named_time(&file, options).await?;
        let context = match fetched {
            Some(fetched) => fetched.files,
            None => Files::Local { name: options.context.clone(), ignore: ignore.clone() },
        };
        let places = request.locals.clone();
        Ok((source, Inputs { file, context, ignore, ignores, places, context_time_s, named_time_s, given }))
    }

    /// Reads what the frontend is given besides its attributes.
    async fn given(&self, request: &BuildRequest, options: &Options) -> Result<BTreeMap<String, Arc<Given>>> {
        let mut given = BTreeMap::new();
        for (name, definition) in &request.inputs {
            let definition = Arc::clone(definition);
            let decode = move || {
                kiln_llb::decode(&definition, &Platform::host()).map_err(|refusal| super::definition::refused(&refusal))
            };
            let decoded = task::blocking(decode).await.context(|| format!("the input {name}"))?;
            let config = options.input_configs.get(name).cloned();
            given.insert(name.clone(), Arc::new(Given { graph: decoded.graph, root: decoded.root, config }));
        }
        for (context, source) in &options.contexts {
            if let ContextSource::Input(name) = source
                && !given.contains_key(name)
            {
                return Err(Error::invalid(format!("invalid input {name} for {context}")));
            }
        }
        Ok(given)
    }

    async fn directory(&self, request: &BuildRequest, name: &str, paths: &[&str]) -> Result<Option<Directory>> {
        let max_bytes = usize::try_from(MAX_FILE_BYTES).unwrap_or(usize::MAX);
        let name = self.shared.permit_directory(name).await?;
        Directory::find(request, self.session, &name, paths, max_bytes).await
    }

    /// Returns the Dockerfile, and the directory it lies in.
    async fn read_dockerfile(
        &self,
        request: &BuildRequest,
        options: &Options,
    ) -> Result<(SourceFile, Option<Directory>)> {
        let (name, own) = (options.filename.clone(), format!("{}.dockerignore", options.filename));
        let paths = [name.as_str(), own.as_str(), "dockerfile"];
        let mut dir = self.directory(request, &options.dockerfile, &paths).await?;
        if let Some(bytes) = &request.dockerfile {
            return Ok((source_file(&name, bytes.clone())?, dir));
        }
        if dir.is_none() {
            dir = self.directory(request, &options.context, &paths).await?;
        }
        let dir = dir.ok_or_else(|| Error::invalid("the client offers no directory with a Dockerfile"))?;
        let usual = options.usual_filename;
        task::blocking(move || {
            let bytes = match dir.read(&name, MAX_FILE_BYTES)? {
                None if usual => dir.read("dockerfile", MAX_FILE_BYTES)?,
                read => read,
            };
            let missing = format!("failed to read dockerfile: open {name}: no such file or directory");
            let file = source_file(&name, bytes.ok_or_else(|| Error::not_found(missing))?)?;
            Ok((file, Some(dir)))
        })
        .await
    }

    /// Reads what a Dockerfile includes: from the context, or else from beside the Dockerfile.
    async fn included(
        &self,
        file: SourceFile,
        request: &BuildRequest,
        options: &Options,
        fetched: Option<&Arc<OwnedFd>>,
    ) -> Result<SourceFile, Failure> {
        let mut known = BTreeMap::new();
        loop {
            let mut wanted = None;
            let included = include(&file, &mut |path| match known.get(path) {
                Some(read) => Clone::clone(read),
                None => {
                    wanted = Some(path.to_owned());
                    Err(String::new())
                }
            });
            let Some(path) = wanted else {
                return included.map_err(|refused| Failure::of_source(&refused.file, vec![refused.error]));
            };
            let read = match fetched {
                Some(root) => {
                    let (root, path) = (Arc::clone(root), path.clone());
                    task::blocking(move || read_in(&root, &path, "the build context", MAX_FILE_BYTES)).await
                }
                None => self.read_included(request, options, &path).await,
            };
            let text = read.map_err(|error| error.to_string()).and_then(|bytes| {
                let text = bytes.map(String::from_utf8).transpose();
                text.map_err(|_| "it is no text: it is not valid UTF-8".to_owned())
            });
            known.insert(path, text);
        }
    }

    async fn read_included(&self, request: &BuildRequest, options: &Options, path: &str) -> Result<Option<Vec<u8>>> {
        for name in [&options.context, &options.dockerfile] {
            if let Some(dir) = self.directory(request, name, &[path]).await? {
                let path = path.to_owned();
                let read = task::blocking(move || dir.read(&path, MAX_FILE_BYTES)).await?;
                if read.is_some() {
                    return Ok(read);
                }
            }
        }
        Ok(None)
    }

    /// Reads the rules of all local contexts; returns how many bytes that were, too.
    async fn read_ignores(
        &self,
        request: &BuildRequest,
        options: &Options,
        dockerfile: Option<Directory>,
        has_rules: bool,
    ) -> Result<(Ignore, BTreeMap<String, Ignore>, u64)> {
        let mut bytes = 0;
        let mut ignore = None;
        // As with BuildKit, rules are for directories of clients: what is fetched or given has none.
        if let Some(dir) = dockerfile {
            ignore = parse_ignore(dir, format!("{}.dockerignore", options.filename), &mut bytes).await?;
        }
        if ignore.is_none()
            && has_rules
            && let Some(dir) = self.directory(request, &options.context, &[DOCKERIGNORE]).await?
        {
            ignore = parse_ignore(dir, DOCKERIGNORE.to_owned(), &mut bytes).await?;
        }
        let mut others = BTreeMap::new();
        for source in options.contexts.values() {
            let ContextSource::Local(name) = source else { continue };
            let Some(dir) = self.directory(request, name, &[DOCKERIGNORE]).await? else {
                return Err(Error::invalid(format!("the client offers no local directory {name:?}")));
            };
            if let Some(ignore) = parse_ignore(dir, DOCKERIGNORE.to_owned(), &mut bytes).await? {
                others.insert(name.clone(), ignore);
            }
        }
        Ok((ignore.unwrap_or_default(), others, bytes))
    }

    async fn resolve(
        &self,
        need: &Need,
        mode: ResolveMode,
        implicit: bool,
        inputs: &Inputs,
    ) -> Result<Resolved, Failure> {
        let shown = match &need.key.image {
            ImageName::Registry(name) => name.to_string(),
            ImageName::OciLayout(layout) => format!("oci-layout://{}@{}", layout.name, layout.digest),
        };
        let looking = Begun::internal(self.progress, &format!("[internal] load metadata for {shown}"))?;
        let result = match &need.key.image {
            ImageName::Registry(name) => self.resolve_named(name, &need.key.platform, mode, implicit).await,
            ImageName::OciLayout(layout) => {
                self.shared.resolve_layout(layout, &need.key.platform, &inputs.places).await
            }
        };
        looking.end(result.as_ref().err());
        result.map_err(|error| unresolved(error, need, &inputs.file))
    }

    /// Finds an image here or at a registry.
    async fn resolve_named(
        &self,
        name: &Reference,
        platform: &Platform,
        mode: ResolveMode,
        implicit: bool,
    ) -> Result<Resolved> {
        let policy = match mode {
            ResolveMode::PreferLocal => Policy::Missing,
            ResolveMode::Pull => Policy::Always,
        };
        let mut result = self.shared.find_image(name, Some(platform), policy).await;
        if implicit && policy == Policy::Missing && result.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
            // Without a platform asked for, an image that is here is taken as it is, whatever it is for.
            let here = self.shared.find_image(name, None, Policy::Never).await;
            result = here.or(result);
        }
        result
    }

    fn warn(&self, vertex: Digest, file: &SourceFile, warnings: &[Diagnostic]) {
        // The second of two builds finds what the first one did.
        if self.shared.witness.as_ref().is_some_and(Witness::has_seen_one) {
            return;
        }
        for warning in warnings {
            let place = warning.within.or(warning.span).map(|span| file.origin(span));
            let lines = place.map(|(file, span)| file.lines(span));
            let file = place.map_or(file, |(file, _)| file);
            let rule = warning.rule.and_then(kiln_dockerfile::check::rule);
            let name = warning.rule.map(|rule| format!("{rule}: ")).unwrap_or_default();
            let line = lines.map(|(first, _)| format!(" (line {first})")).unwrap_or_default();
            self.progress.report(Event::Warning(Warning {
                vertex,
                short: format!("{name}{warning}{line}"),
                detail: rule.map(|rule| rule.description.to_owned()).into_iter().collect(),
                url: rule.map(Rule::url).unwrap_or_default(),
                file: Some((file.name().to_owned(), file.text().to_owned())),
                lines: lines.into_iter().collect(),
            }));
        }
    }
}

/// Says of an image that was not found what may have been meant, and where it is named.
fn unresolved(error: Error, need: &Need, file: &SourceFile) -> Failure {
    let hint = need.suggestion.as_ref().map(|stage| format!(" (did you mean the stage {stage}?)"));
    let error = match hint.filter(|_| error.kind() == Kind::NotFound) {
        Some(hint) => Error::new(error.kind(), format!("{error}{hint}")),
        None => error,
    };
    let (file, span) = file.origin(need.span);
    let place = Place { file: file.clone(), lines: file.lines(span), columns: None, finding: None };
    Failure { places: vec![place], ..error.into() }
}

/// Returns the frontend that a file is for, when it is another one and nobody has decided that yet.
fn elsewhere(file: &SourceFile, options: &Options) -> Option<(Foreign, Option<Place>)> {
    let found = if options.any_syntax { None } else { foreign(file, &options.build_args) }?;
    let place = found.span.map(|span| {
        let (file, span) = file.origin(span);
        Place { file: file.clone(), lines: file.lines(span), columns: None, finding: None }
    });
    Some((found, place))
}

fn lowering_request<'a>(options: &'a Options, inputs: &'a Inputs) -> Request<'a> {
    let Inputs { file, context, ignores, given, .. } = inputs;
    let named = |source: &ContextSource| match source {
        // It was looked for when the inputs were read.
        ContextSource::Input(name) => NamedContext::Files(Files::Given(given.get(name).cloned().unwrap_or_default())),
        ContextSource::Image(reference) => NamedContext::Image(reference.clone()),
        ContextSource::Local(local) => {
            let ignore = ignores.get(local).cloned().unwrap_or_default();
            NamedContext::Files(Files::Local { name: local.clone(), ignore })
        }
        ContextSource::Git(git) => NamedContext::Files(Files::Git(git.clone())),
        ContextSource::Http(http) => NamedContext::Files(Files::File(http.clone())),
        ContextSource::OciLayout(layout) => NamedContext::OciLayout(layout.clone()),
    };
    Request {
        target: options.target.as_deref(),
        build_args: options.build_args.clone(),
        labels: options.labels.clone(),
        context: context.clone(),
        contexts: options.contexts.iter().map(|(name, source)| (name.clone(), named(source))).collect(),
        multi_platform: options.multi_platform,
        build_platforms: sandbox::platforms(),
        no_cache: options.no_cache.clone(),
        resolve: options.resolve,
        network: options.network,
        hostname: options.hostname.clone(),
        extra_hosts: options.extra_hosts.clone(),
        shm_size_bytes: options.shm_size_bytes,
        ulimits: options.ulimits.clone(),
        cgroup_parent: options.cgroup_parent.clone(),
        context_time_s: inputs.context_time_s,
        named_time_s: inputs.named_time_s.clone(),
        any_syntax: options.any_syntax,
        ..Request::new(file)
    }
}

/// Whether a Dockerfile is named by an address.
fn is_address(name: &str) -> bool {
    name.starts_with("http://") || name.starts_with("https://")
}

/// Reads a Dockerfile of what was fetched; `shown` is its name in messages.
async fn read_fetched((dir, name): (Arc<OwnedFd>, String), shown: String, usual: bool) -> Result<SourceFile> {
    task::blocking(move || {
        let read = |name: &str| read_in(&dir, name, "the build context", MAX_FILE_BYTES);
        let bytes = match read(&name)? {
            None if usual => read("dockerfile")?,
            found => found,
        };
        let missing = format!("failed to read dockerfile: open {shown}: no such file or directory");
        source_file(&shown, bytes.ok_or_else(|| Error::not_found(missing))?)
    })
    .await
}

fn source_file(name: &str, bytes: Vec<u8>) -> Result<SourceFile> {
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| Error::invalid(format!("{name} is no text: it is not valid UTF-8")))?;
    Ok(SourceFile::new(name, &text))
}

async fn parse_ignore(dir: Directory, name: String, bytes: &mut u64) -> Result<Option<Ignore>> {
    let read = task::blocking(move || Ok((dir.read(&name, MAX_FILE_BYTES)?, name))).await?;
    let (Some(read), name) = read else { return Ok(None) };
    *bytes += read.len() as u64;
    let file = SourceFile::new(&name, &String::from_utf8_lossy(&read));
    Ignore::parse(&file).map(Some).map_err(|error| {
        let line = error.span.map(|span| format!(", line {}", file.lines(span).0)).unwrap_or_default();
        Error::invalid(format!("{name}{line}: {error}"))
    })
}

/// Reads a file of a client's directory; symbolic links stay within. `None` when there is no such file.
pub(super) fn read_beneath(dir: &Path, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    let shown = dir.display().to_string();
    read_in(&tree::open_root(dir).context(|| format!("read {name} in {shown}"))?, name, &shown, max_bytes)
}

fn read_in(root: &OwnedFd, name: &str, shown: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    let context = || format!("read {name} in {shown}");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = match tree::openat2(root, name, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        opened => std::fs::File::from(opened.context(context)?),
    };
    let metadata = opened.metadata().context(context)?;
    if !metadata.is_file() {
        return Err(Error::invalid("it is no file").context(context()));
    }
    if metadata.len() > max_bytes {
        return Err(Error::invalid(format!("it is larger than {} MiB", max_bytes >> 20)).context(context()));
    }
    let mut bytes = Vec::new();
    opened.take(max_bytes).read_to_end(&mut bytes).context(context)?;
    Ok(Some(bytes))
}
