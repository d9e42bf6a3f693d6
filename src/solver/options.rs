//! A build request's attributes (BuildKit's `FrontendAttrs`), parsed once. What is not known is refused by name.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_dockerfile::call::Call;
use kiln_dockerfile::{NoCache, Remote};
use kiln_graph::oci::ImageConfig;
use kiln_graph::op::{GitSource, HttpSource, NetworkMode, OciLayoutSource, ResolveMode, Ulimit};
use kiln_graph::{Platform, Reference};

use super::attest::{self, Attest};
use super::elsewhere::Elsewhere;
use crate::error::{Error, Result, ResultExt as _};
use crate::sandbox::{Limits, Swap};

/// The key of an image's configuration in the metadata of a result.
const CONFIG: &str = "containerimage.config";

/// The build argument that says that `.git` stays in a context from a repository.
const KEEP_GIT_DIR: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";

/// The options of the Dockerfile frontend.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// The Dockerfile's path in its directory.
    pub(super) filename: String,
    /// Whether the path is the usual one, and not the client's choice.
    pub(super) usual_filename: bool,
    pub(super) target: Option<String>,
    pub(super) build_args: BTreeMap<String, String>,
    pub(super) labels: BTreeMap<String, String>,
    /// Contexts by name, with what stands for each.
    pub(super) contexts: BTreeMap<String, ContextSource>,
    /// The platforms to build for; none means the host's.
    pub(super) platforms: Vec<Platform>,
    /// Whether the result is one for several platforms, though it may be one only.
    pub(super) multi_platform: bool,
    pub(super) no_cache: NoCache,
    pub(super) resolve: ResolveMode,
    pub(super) network: NetworkMode,
    pub(super) hostname: String,
    pub(super) extra_hosts: Vec<(String, String)>,
    pub(super) shm_size_bytes: Option<u64>,
    pub(super) ulimits: Vec<Ulimit>,
    pub(super) cgroup_parent: String,
    /// What each step may use at most.
    pub(super) limits: Limits,
    /// The main context, when it is no directory of the client.
    pub(super) elsewhere: Option<Elsewhere>,
    /// The directory of a fetched context that is built from.
    pub(super) context_subdir: String,
    /// What is to be said about the result.
    pub(super) attest: Attest,
    /// What is asked instead of a build.
    pub(super) call: Option<Call>,
    /// What images of the frontend's inputs are configured with, by the names of the inputs.
    pub(super) input_configs: BTreeMap<String, ImageConfig>,
    /// The names of the local directories that hold the context and the Dockerfile.
    pub(super) context: String,
    pub(super) dockerfile: String,
    /// Whether it was decided which frontend the file is for, whatever it says itself.
    pub(super) any_syntax: bool,
}

/// What a named context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ContextSource {
    Image(Reference),
    /// A local directory of this name.
    Local(String),
    /// A repository.
    Git(GitSource),
    /// A file by HTTP.
    Http(HttpSource),
    /// An image of an OCI layout.
    OciLayout(OciLayoutSource),
    /// What the frontend is given under this name.
    Input(String),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            filename: "Dockerfile".to_owned(),
            usual_filename: true,
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            contexts: BTreeMap::new(),
            platforms: Vec::new(),
            multi_platform: false,
            no_cache: NoCache::None,
            resolve: ResolveMode::PreferLocal,
            network: NetworkMode::Sandbox,
            hostname: String::new(),
            extra_hosts: Vec::new(),
            shm_size_bytes: None,
            ulimits: Vec::new(),
            cgroup_parent: String::new(),
            limits: Limits::default(),
            elsewhere: None,
            context_subdir: String::new(),
            attest: Attest::default(),
            context: super::contexts::CONTEXT.to_owned(),
            call: None,
            input_configs: BTreeMap::new(),
            dockerfile: "dockerfile".to_owned(),
            any_syntax: false,
        }
    }
}

impl Options {
    /// Reads the attributes.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed value; `Unsupported`, by name, for what is not known.
    pub(super) fn parse(attrs: &BTreeMap<String, String>) -> Result<Self> {
        let mut options = Self::default();
        for (key, value) in attrs {
            options.set(key, value)?;
        }
        options.multi_platform |= options.platforms.len() > 1;
        if let Some(Elsewhere::Git(git)) = &mut options.elsewhere
            && let Some(keep) = options.build_args.get(KEEP_GIT_DIR)
        {
            git.keep_git_dir |= flag(KEEP_GIT_DIR, keep)?;
        }
        if options.elsewhere.is_none() && !options.context_subdir.is_empty() {
            return Err(Error::unsupported("contextsubdir is for contexts that are fetched only"));
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        if let Some((family, name)) = key.split_once(':') {
            return self.set_member(family, name, value, key);
        }
        match key {
            "filename" if !value.is_empty() => {
                self.usual_filename = false;
                value.clone_into(&mut self.filename);
            }
            "target" => self.target = Some(value.to_owned()).filter(|target| !target.is_empty()),
            "platform" => self.platforms = platforms(value)?,
            "multi-platform" => self.multi_platform = flag(key, value)?,
            "no-cache" => self.no_cache = no_cache(value),
            "image-resolve-mode" => self.resolve = resolve_mode(value)?,
            "force-network-mode" => self.network = network_mode(value)?,
            "hostname" => value.clone_into(&mut self.hostname),
            "add-hosts" => self.extra_hosts = list(value, extra_host)?,
            "shm-size" if !value.is_empty() => self.shm_size_bytes = Some(number(key, value)?),
            "ulimit" => self.ulimits = list(value, ulimit)?,
            "cgroup-parent" => value.clone_into(&mut self.cgroup_parent),
            "memory" | "memswap" | "cpushares" | "cpuperiod" | "cpuquota" | "cpusetcpus" | "cpusetmems" => {
                limit(&mut self.limits, key, value)?;
            }
            "contextkey" if !value.is_empty() => value.clone_into(&mut self.context),
            "dockerfilekey" if !value.is_empty() => value.clone_into(&mut self.dockerfile),
            "context" if !value.is_empty() => self.elsewhere = Some(elsewhere(value)?),
            "contextsubdir" => value.clone_into(&mut self.context_subdir),
            "requestid" if !value.is_empty() => {
                self.call = Some(Call::from_request_id(value).map_err(Error::unsupported)?);
            }
            "cmdline" => self.any_syntax = true,
            "frontend.caps" => check_capabilities(value)?,
            // What says nothing, or names the frontend that is built in.
            "filename" | "shm-size" | "requestid" | "contextkey" | "dockerfilekey" | "context" | "source" => {}
            _ => return Err(Error::unsupported(format!("the build option {key}={value} is not supported yet"))),
        }
        Ok(())
    }

    /// Sets `family:name`.
    fn set_member(&mut self, family: &str, name: &str, value: &str, key: &str) -> Result<()> {
        match family {
            "build-arg" => {
                if let Some(kind) = name.strip_prefix(attest::ARGUMENT) {
                    self.attest.set(&kind.to_lowercase(), value)?;
                }
                self.build_args.insert(name.to_owned(), value.to_owned());
            }
            "label" => {
                self.labels.insert(name.to_owned(), value.to_owned());
            }
            "context" => {
                self.contexts.insert(name.to_owned(), context_source(name, value)?);
            }
            // Where sources are from is told by provenance only; sessions and keys matter for directories that are transferred.
            "vcs" | "local-sessionid" | "sharedkey" => {}
            "input-metadata" => {
                self.input_configs.extend(input_config(key, value)?.map(|config| (name.to_owned(), config)));
            }
            "attest" => self.attest.set(name, value)?,
            _ => return Err(Error::unsupported(format!("the build option {key}={value} is not supported yet"))),
        }
        Ok(())
    }
}

/// Reads platforms; one that is named twice counts once.
fn platforms(value: &str) -> Result<Vec<Platform>> {
    let mut platforms: Vec<Platform> = Vec::new();
    for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let platform: Platform = name.parse().map_err(|error| Error::invalid(format!("platform {name:?}: {error}")))?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// Reads a truth value as Go does.
pub(super) fn flag(key: &str, value: &str) -> Result<bool> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Error::invalid(format!("{key}={value}: expected true or false"))),
    }
}

fn no_cache(value: &str) -> NoCache {
    match value {
        "" | "true" => NoCache::All,
        "false" => NoCache::None,
        stages => NoCache::Stages(stages.split(',').map(|stage| stage.trim().to_owned()).collect()),
    }
}

fn resolve_mode(value: &str) -> Result<ResolveMode> {
    match value {
        "" | "default" | "local" => Ok(ResolveMode::PreferLocal),
        "pull" => Ok(ResolveMode::Pull),
        other => Err(Error::invalid(format!("invalid image-resolve-mode: {other}"))),
    }
}

fn network_mode(value: &str) -> Result<NetworkMode> {
    match value {
        "" | "default" | "sandbox" => Ok(NetworkMode::Sandbox),
        "host" => Ok(NetworkMode::Host),
        "none" => Ok(NetworkMode::None),
        other => Err(Error::unsupported(format!(
            "network mode {other:?} is not supported by builds: use host, none or default"
        ))),
    }
}

fn list<T>(value: &str, one: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    value.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(one).collect()
}

fn extra_host(entry: &str) -> Result<(String, String)> {
    let host = entry.split_once('=').or_else(|| entry.split_once(':'));
    let (name, address) = host.ok_or_else(|| Error::invalid(format!("bad format for add-host: {entry:?}")))?;
    Ok((name.to_owned(), address.to_owned()))
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| Error::invalid(format!("{key}={value}: expected a number")))
}

/// `name=soft[:hard]`
fn ulimit(entry: &str) -> Result<Ulimit> {
    let bad = || Error::invalid(format!("invalid ulimit {entry:?}: expected name=soft[:hard]"));
    let (name, limits) = entry.split_once('=').ok_or_else(bad)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let parse = |text: &str| text.parse().map_err(|_| bad());
    Ok(Ulimit { name: name.to_owned(), soft: parse(soft)?, hard: parse(hard)? })
}

/// Sets one of the limits of steps; nothing and 0 are no limit, and so is a quota of -1.
fn limit(limits: &mut Limits, key: &str, value: &str) -> Result<()> {
    if matches!(value, "" | "0") || (key == "cpuquota" && value == "-1") {
        return Ok(());
    }
    let amount = || number::<u64>(key, value).map(Some);
    match key {
        "memory" => limits.memory_bytes = amount()?,
        "memswap" if value == "-1" => limits.memory_swap = Some(Swap::Unlimited),
        "memswap" => limits.memory_swap = amount()?.map(Swap::Total),
        "cpushares" => limits.cpu_shares = amount()?,
        "cpuperiod" => limits.cpu_period_us = amount()?,
        "cpuquota" => limits.cpu_quota_us = amount()?,
        "cpusetcpus" => limits.cpuset_cpus = Some(value.to_owned()),
        _ => limits.cpuset_mems = Some(value.to_owned()),
    }
    Ok(())
}

/// Reads the address of a main context.
fn elsewhere(value: &str) -> Result<Elsewhere> {
    match remote(value).context(|| "the build context")? {
        Some(Remote::Git(git, keep)) => {
            Ok(Elsewhere::Git(GitSource { keep_git_dir: keep.unwrap_or(git.keep_git_dir), ..git }))
        }
        Some(Remote::Http { .. }) => Ok(Elsewhere::file(value)),
        None => Err(Error::invalid(format!("the build context {value} is no address of something to fetch"))),
    }
}

fn remote(value: &str) -> Result<Option<Remote>> {
    Remote::of_context(value).map_err(|why| Error::invalid(format!("{value}: {why}")))
}

fn context_source(name: &str, value: &str) -> Result<ContextSource> {
    if let Some(reference) = value.strip_prefix("docker-image://") {
        let reference = reference.parse().map_err(|error| Error::invalid(format!("context {name}: {error}")))?;
        return Ok(ContextSource::Image(reference));
    }
    if let Some(layout) = value.strip_prefix("oci-layout://") {
        let digest = layout.rsplit_once('@').and_then(|(layout, digest)| Some((layout, digest.parse().ok()?)));
        let (layout, digest) = digest.ok_or_else(|| Error::invalid(format!("context {name}={value}: no digest")))?;
        return Ok(ContextSource::OciLayout(OciLayoutSource { name: layout.to_owned(), digest, layer_limit: None }));
    }
    if let Some(input) = value.strip_prefix("input:") {
        return Ok(ContextSource::Input(input.to_owned()));
    }
    if let Some(local) = value.strip_prefix("local:") {
        return Ok(ContextSource::Local(local.to_owned()));
    }
    match remote(value).context(|| format!("context {name}"))? {
        // As with BuildKit, `.git` stays in a named context, unlike in the main one.
        Some(Remote::Git(git, keep)) => Ok(ContextSource::Git(GitSource { keep_git_dir: keep.unwrap_or(true), ..git })),
        // It is not unpacked, as with BuildKit.
        Some(Remote::Http { .. }) => {
            let (url, filename) = (value.to_owned(), String::new());
            Ok(ContextSource::Http(HttpSource { url, filename, ..HttpSource::default() }))
        }
        None => Err(Error::unsupported(format!("the context {name}={value} is of a sort that is not supported"))),
    }
}

/// Reads what is said about an input: BuildKit's metadata of a result, in JSON.
fn input_config(key: &str, value: &str) -> Result<Option<ImageConfig>> {
    let metadata: BTreeMap<String, String> = serde_json::from_str(value).context(|| key.to_owned())?;
    let Some(config) = metadata.get(CONFIG) else { return Ok(None) };
    let json = STANDARD.decode(config).map_err(|_| Error::invalid(format!("{key}: {CONFIG} is not base64")))?;
    serde_json::from_slice(&json).context(|| format!("{key}: {CONFIG}"))
}

/// What a client wants the frontend to be able to; a final `+forward` says that the frontend decides.
fn check_capabilities(value: &str) -> Result<()> {
    const KNOWN: &[&str] = &[
        "moby.buildkit.frontend.contexts",
        "moby.buildkit.frontend.gitquerystring",
        "moby.buildkit.frontend.inputs",
        "moby.buildkit.frontend.subrequests",
    ];
    let unknown = value.split(',').filter(|name| !name.is_empty() && !name.ends_with("+forward"));
    match unknown.into_iter().find(|name| !KNOWN.contains(name)) {
        Some(name) => Err(Error::unsupported(format!("the frontend capability {name} is not supported yet"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(attrs: &[(&str, &str)]) -> Result<Options> {
        Options::parse(&attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn attributes_of_buildx_are_read() {
        let options = parse(&[
            ("add-hosts", "a=1.2.3.4,b=::1"),
            ("build-arg:A", "1"),
            ("filename", "docker/Dockerfile"),
            ("force-network-mode", "host"),
            ("image-resolve-mode", "pull"),
            ("label:x", "y"),
            ("no-cache", "one,two"),
            ("platform", "linux/amd64"),
            ("shm-size", "1048576"),
            ("target", "build"),
            ("ulimit", "nofile=1:2,core=0"),
            ("vcs:revision", "abc"),
        ])
        .unwrap();
        assert_eq!(options.extra_hosts[1], ("b".to_owned(), "::1".to_owned()));
        assert_eq!((options.build_args["A"].as_str(), options.labels["x"].as_str()), ("1", "y"));
        assert_eq!(options.no_cache, NoCache::Stages(vec!["one".to_owned(), "two".to_owned()]));
        assert_eq!((options.network, options.resolve), (NetworkMode::Host, ResolveMode::Pull));
        assert_eq!((options.ulimits[0].soft, options.ulimits[0].hard, options.ulimits[1].hard), (1, 2, 0));
        assert_eq!((options.target.as_deref(), options.shm_size_bytes), (Some("build"), Some(1 << 20)));
        assert!(!options.usual_filename && options.filename == "docker/Dockerfile");
    }

    #[test]
    fn several_platforms_are_read_once_each() {
        let options = parse(&[("platform", "linux/amd64,arm64,linux/x86_64")]).unwrap();
        let names: Vec<String> = options.platforms.iter().map(ToString::to_string).collect();
        assert_eq!((names.join(" ").as_str(), options.multi_platform), ("linux/amd64 linux/arm64", true));
        assert!(!parse(&[("platform", "arm64")]).unwrap().multi_platform);
        assert!(parse(&[("platform", "arm64"), ("multi-platform", "true")]).unwrap().multi_platform);
    }

    #[test]
    fn contexts_elsewhere_are_told_by_their_addresses() {
        let of = |attrs: &[(&str, &str)]| parse(attrs).unwrap();
        let git = |source: Option<Elsewhere>| match source {
            Some(Elsewhere::Git(git)) => git,
            other => panic!("{other:?}"),
        };
        let main = of(&[("context", "https://a.b/c.git#main:sub"), ("contextsubdir", "d")]);
        assert_eq!(main.context_subdir, "d");
        let main = git(main.elsewhere);
        assert_eq!((main.reference.as_str(), main.subdir.as_str(), main.keep_git_dir), ("main", "sub", false));
        let kept = of(&[("context", "github.com/a/b"), ("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR", "1")]);
        let kept = git(kept.elsewhere);
        assert_eq!((kept.remote.as_str(), kept.keep_git_dir), ("https://github.com/a/b", true));
        assert!(matches!(of(&[("context", "http://buildkit-session/x")]).elsewhere, Some(Elsewhere::File(_))));

        let digest = format!("sha256:{}", "0".repeat(64));
        let layout = format!("oci-layout://base@{digest}");
        let named =
            of(&[("context:g", "git@a.b:c"), ("context:h", "https://a.b/c.tar"), ("context:o", &layout)]).contexts;
        assert!(matches!(&named["g"], ContextSource::Git(git) if git.keep_git_dir));
        assert!(matches!(&named["h"], ContextSource::Http(http) if http.filename.is_empty()));
        assert!(matches!(&named["o"], ContextSource::OciLayout(layout) if layout.name == "base"));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (key, value) in [("context:x", "target:x"), ("requestid", "frontend.convertllb")] {
            let error = parse(&[(key, value)]).unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::Unsupported, "{key}");
            assert!(error.to_string().contains(if value.is_empty() { key } else { value }), "{error}");
        }
    }
}
