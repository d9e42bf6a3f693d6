//! What lowering is asked and what it answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_graph::oci::{ImageConfig, RootFs};
use kiln_graph::op::{GitSource, HttpSource, NetworkMode, OciLayoutSource, ResolveMode, Ulimit};
use kiln_graph::{Diagnostic, Digest, Edge, Graph, Platform, Reference, SourceFile, Span};

use super::outline::Outline;
use crate::ignore::Ignore;

/// What is built, and how.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The Dockerfile.
    pub file: &'a SourceFile,
    /// The name of the stage that is built; `None` is the last.
    pub target: Option<&'a str>,
    /// `--build-arg`. Proxies and the `BUILDKIT_*` arguments are among them.
    pub build_args: BTreeMap<String, String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// Where COPY and ADD find their files.
    pub context: Files,
    /// `--build-context`: what is used instead of images and stages of these names. A name may end in `::platform`.
    pub contexts: BTreeMap<String, NamedContext>,
    /// `--platform`; `None` is the build platform, and then a base image for another platform is taken as it is.
    pub target_platform: Option<Platform>,
    /// The platforms whose programs run here, the native one first; at least one.
    pub build_platforms: Vec<Platform>,
    /// Whether other platforms are built at the same time, so that names of steps must tell them apart.
    pub multi_platform: bool,
    /// Which steps run although their results are known.
    pub no_cache: NoCache,
    /// Whether registries are asked for images that are there.
    pub resolve: ResolveMode,
    /// The network of RUN instructions that do not choose one.
    pub network: NetworkMode,
    /// The host name in RUN instructions; empty means `BUILDKIT_SANDBOX_HOSTNAME` or the default.
    pub hostname: String,
    /// Additional lines of `/etc/hosts`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// The size of `/dev/shm` in bytes.
    pub shm_size_bytes: Option<u64>,
    /// Limits of processes.
    pub ulimits: Vec<Ulimit>,
    /// The parent control group.
    pub cgroup_parent: String,
    /// Keeps cache mounts of different projects apart; empty means `BUILDKIT_CACHE_MOUNT_NS`.
    pub cache_namespace: String,
    /// The time in seconds since 1970 that files and the image get; `None` means `SOURCE_DATE_EPOCH`.
    pub epoch_s: Option<i64>,
    /// The time of the main context in seconds since 1970, which `SOURCE_DATE_EPOCH=context` asks for: that of a commit, or what
    /// a server says of a file. `None` for a directory of the client, which has none.
    pub context_time_s: Option<i64>,
    /// The name that `SOURCE_DATE_EPOCH` has for a value ([`super::epoch_name`]), and the time of what is called so in seconds since
    /// 1970, if it has one.
    pub named_time_s: Option<(String, Option<i64>)>,
    /// Whether all stages are lowered and checked, not only those that the target needs.
    pub all_stages: bool,
    /// Whether images are made up ([`ResolvedImage::assumed`]): then a variable that usual images set is not reported as
    /// undefined.
    pub assume_images: bool,
    /// Whether the file is lowered whatever frontend it says it is for: somebody has decided that.
    pub any_syntax: bool,
}

impl<'a> Request<'a> {
    /// Makes a request with defaults: the last stage, for this host, with a local context named `context`.
    #[must_use]
    pub fn new(file: &'a SourceFile) -> Self {
        Self {
            file,
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            context: Files::Local { name: "context".to_owned(), ignore: Ignore::default() },
            contexts: BTreeMap::new(),
            target_platform: None,
            build_platforms: vec![Platform::host()],
            multi_platform: false,
            no_cache: NoCache::default(),
            resolve: ResolveMode::default(),
            network: NetworkMode::default(),
            hostname: String::new(),
            extra_hosts: Vec::new(),
            shm_size_bytes: None,
            ulimits: Vec::new(),
            cgroup_parent: String::new(),
            cache_namespace: String::new(),
            epoch_s: None,
            context_time_s: None,
            named_time_s: None,
            all_stages: false,
            assume_images: false,
            any_syntax: false,
        }
    }

    /// The platform of the machine that builds.
    pub(crate) fn build_platform(&self) -> Platform {
        self.build_platforms.first().cloned().unwrap_or_else(Platform::host).normalized()
    }

    /// The platform that is built for.
    pub(crate) fn target_platform(&self) -> Platform {
        self.target_platform.clone().map_or_else(|| self.build_platform(), Platform::normalized)
    }

    /// A value the client sets directly, or else through a build argument.
    pub(crate) fn or_build_arg<'s>(&'s self, value: &'s str, name: &str) -> &'s str {
        if value.is_empty() { self.build_args.get(name).map_or("", String::as_str) } else { value }
    }
}

/// Which steps run although their results are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    /// None.
    #[default]
    None,
    /// RUN, COPY and ADD of all stages.
    All,
    /// Those of the stages with these names.
    Stages(Vec<String>),
}

impl NoCache {
    pub(crate) fn covers(&self, stage: Option<&str>) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Stages(names) => stage.is_some_and(|stage| names.iter().any(|name| name.eq_ignore_ascii_case(stage))),
        }
    }
}

/// A place that files come from.
#[derive(Clone, Debug)]
pub enum Files {
    /// A directory of the client.
    Local {
        /// Its name in the session.
        name: String,
        /// What is left out of it.
        ignore: Ignore,
    },
    /// A git checkout.
    Git(GitSource),
    /// A file that is fetched.
    File(HttpSource),
    /// An archive that is fetched and unpacked; its source says how the file is named.
    Archive(HttpSource),
    /// What is in a directory of other files.
    Below(Box<Files>, String),
    /// What another graph makes.
    Given(Arc<Given>),
}

/// A result of another graph, as files or an image.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// The steps.
    pub graph: Graph,
    /// The result; `None` is an empty filesystem.
    pub root: Option<Edge>,
    /// What an image of it is configured with.
    pub config: Option<ImageConfig>,
}

/// What a named context puts in the place of a stage or an image.
#[derive(Clone, Debug)]
pub enum NamedContext {
    /// Files.
    Files(Files),
    /// An image.
    Image(Reference),
    /// An image in an OCI layout of the client.
    OciLayout(OciLayoutSource),
}

/// Where an image is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ImageName {
    /// In a registry, or the local store.
    Registry(Reference),
    /// In an OCI layout of the client.
    OciLayout(OciLayoutSource),
}

/// An image for a platform.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageKey {
    /// Which image.
    pub image: ImageName,
    /// For which platform.
    pub platform: Platform,
}

/// What must be known about an image before lowering can go on.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Its configuration.
    pub config: ImageConfig,
    /// Its id: the digest of the configuration.
    pub id: Digest,
    /// Its name with the digest of the manifest or index, as messages and the graph use it.
    pub reference: Reference,
}

impl ResolvedImage {
    /// Makes an image up, for checks that do without registries: for the platform that is asked for, with one layer.
    #[must_use]
    pub fn assumed(key: &ImageKey) -> Self {
        let name = match &key.image {
            ImageName::Registry(reference) => Some(reference.clone()),
            ImageName::OciLayout(layout) => layout.name.parse().ok(),
        };
        let reference = name.unwrap_or_else(|| "assumed".parse().expect("it is a name"));
        let Platform { os, architecture, variant, os_version, os_features } = key.platform.clone();
        let id = Digest::of(b"assumed");
        let rootfs = RootFs { diff_ids: vec![id], ..RootFs::default() };
        let config =
            ImageConfig { os, architecture, variant, os_version, os_features, rootfs, ..ImageConfig::default() };
        Self { config, id, reference }
    }
}

/// An image whose configuration is needed.
#[derive(Clone, Debug)]
pub struct Need {
    /// Which one.
    pub key: ImageKey,
    /// The place in the Dockerfile that names it.
    pub span: Span,
    /// A stage whose name is so near that it was probably meant, for the message when there is no such image.
    pub suggestion: Option<String>,
}

/// The answer of [`crate::lower()`].
#[derive(Debug)]
pub enum Outcome {
    /// These images must be resolved; then call again, with all images so far.
    Need(Vec<Need>),
    /// All is known.
    Done(Box<Lowered>),
}

/// A Dockerfile as steps and the image they make.
#[derive(Debug)]
pub struct Lowered {
    /// The steps. Only those that the target (or a scan) needs are in it.
    pub graph: Graph,
    /// The target's root filesystem; `None` is an empty one.
    pub root: Option<Edge>,
    /// The image, without `rootfs` and `created`. Its history has an entry without `empty_layer` for every layer of `root`.
    pub config: ImageConfig,
    /// The image's platform.
    pub platform: Platform,
    /// The image that the target's stage, or a stage it derives from, began with.
    pub base: Option<ImageKey>,
    /// What an SBOM is asked for besides the image (`BUILDKIT_SBOM_SCAN_CONTEXT` and `_STAGE`): names and filesystems.
    pub scan: Vec<(String, Edge)>,
    /// What the target may be given.
    pub outline: Outline,
    /// The time in seconds since 1970 to which times in the image are clamped.
    pub epoch_s: Option<i64>,
    /// The paths of the local main context that are read, sorted; empty when all of it may be, or nothing.
    pub context_paths: Vec<String>,
    /// Findings of checks, in the order of their places.
    pub warnings: Vec<Diagnostic>,
}
