//! What stages begin with and copy from: images, contexts, nothing.

use std::sync::Arc;

use kiln_graph::graph::Location;
use kiln_graph::oci::{ContainerConfig, ImageConfig};
use kiln_graph::op::{ImageSource, Source};
use kiln_graph::{Diagnostic, Platform, Span};

use super::draft::Node;
use super::outline::StageOutline;
use super::plan::Origin;
use super::request::{Files, ImageKey, ImageName};
use super::{Lowering, stage};
use crate::check;
use crate::instruction::Stage;
use crate::scalar;
use crate::shell::{Lexer, Variables};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A filesystem and the image configuration that goes with it: a stage, an image, a context.
#[derive(Clone, Debug)]
pub(super) struct Built {
    /// The filesystem; `None` is an empty one.
    pub(super) node: Option<Node>,
    pub(super) image: ImageConfig,
    pub(super) platform: Arc<Platform>,
    /// The variables in force.
    pub(super) variables: Variables,
    /// The arguments declared so far, with their values.
    pub(super) arguments: Vec<(String, Option<String>)>,
    /// Whether a WORKDIR of this file was seen.
    pub(super) workdir_set: bool,
    /// The image it all began with.
    pub(super) base: Option<ImageKey>,
    /// What an outline says about the stage.
    pub(super) outline: StageOutline,
    /// Whether an SBOM of the context, of the stage, is asked for.
    pub(super) scan_context: bool,
    pub(super) scan_stage: bool,
}

impl Built {
    fn new(node: Option<Node>, image: ImageConfig, platform: impl Into<Arc<Platform>>) -> Self {
        Self {
            node,
            image,
            platform: platform.into(),
            variables: Variables::new(),
            arguments: Vec::new(),
            workdir_set: false,
            base: None,
            outline: StageOutline::default(),
            scan_context: false,
            scan_stage: false,
        }
    }

    fn empty(platform: Platform) -> Self {
        Self::new(None, empty_image(&platform), platform)
    }
}

/// What files are configured with that stand for an image.
fn configured(files: &Files) -> Option<ImageConfig> {
    let Files::Given(given) = files else { return None };
    let mut image = given.config.clone()?;
    image.created = None;
    image.rootfs = kiln_graph::oci::RootFs::default();
    Some(image)
}

/// The configuration of `scratch`.
fn empty_image(platform: &Platform) -> ImageConfig {
    let env = if platform.os == "windows" { Vec::new() } else { vec![format!("PATH={DEFAULT_PATH}")] };
    ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
        config: ContainerConfig { working_dir: "/".to_owned(), env, ..ContainerConfig::default() },
        ..ImageConfig::default()
    }
}

impl<'a> Lowering<'a> {
    /// Returns what a stage begins with, before its own instructions, and what progress calls its first step, if it has one.
    fn stage_base(&mut self, stage: &Stage, origin: &Origin<'a>, given: Option<Platform>) -> (Built, Option<String>) {
        let span = stage.base.span;
        let mut first = None;
        let mut built = match origin {
            Origin::Stage(index) => self.stage_result(*index).clone(),
            // The platform of an empty filesystem is the target's, whatever FROM says.
            Origin::Scratch => Built::empty(self.target_platform.clone()),
            Origin::Files { name, files } => {
                let platform = given.unwrap_or_else(|| self.target_platform.clone());
                let node = self.named_context(name, files, span);
                let image = configured(files).unwrap_or_else(|| empty_image(&platform));
                Built::new(Some(node), image, platform)
            }
            Origin::Image { key, context } => {
                let built = self.image_source(key, *context, given.is_none(), span);
                self.check_platform(stage, &built);
                first = (built.node.is_some() && context.is_none()).then(|| format!("FROM {}", self.image_name(key)));
                built
            }
        };
        built.image.config.on_build.clear();
        if built.platform.os != "windows" && !built.image.config.env.iter().any(|entry| entry.starts_with("PATH=")) {
            built.image.config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for entry in &built.image.config.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            built.variables.set(name, value);
        }
        for word in std::iter::once(&stage.base).chain(&stage.platform) {
            let lexer = Lexer::new(self.dockerfile.directives.escape);
            let used = lexer.expand(&word.text, &self.globals.variables).map(|expansion| expansion.used);
            used.unwrap_or_default().iter().for_each(|name| built.outline.uses(name));
        }
        (built, first)
    }

    /// Returns a stage that is finished.
    fn stage_result(&self, index: usize) -> &Built {
        self.built[index].as_ref().expect("stages that others need are reachable and come before them")
    }

    /// Returns the filesystem that instructions of other stages take files from; `None` is an empty one.
    pub(super) fn source(&mut self, origin: &Origin<'a>, span: Span) -> Option<Node> {
        match origin {
            Origin::Scratch => None,
            Origin::Stage(index) => self.stage_result(*index).node,
            Origin::Image { key, context } => {
                if let Some(known) = self.image_nodes.get(key.as_ref()) {
                    return *known;
                }
                let node = self.image_source(key, *context, true, span).node;
                self.image_nodes.insert(key.as_ref().clone(), node);
                node
            }
            Origin::Files { name, files } => Some(self.named_context(name, files, span)),
        }
    }

    /// Returns what stands for a stage that a named context replaces.
    fn replacement(&mut self, origin: &Origin<'a>, span: Span) -> Built {
        let mut built = match origin {
            Origin::Image { key, context } => self.image_source(key, *context, true, span),
            other => {
                let node = self.source(other, span);
                let image = match other {
                    Origin::Files { files, .. } => configured(files),
                    _ => None,
                };
                let image = image.unwrap_or_else(|| empty_image(&self.target_platform));
                Built::new(node, image, self.target_platform.clone())
            }
        };
        built.image.config.on_build.clear();
        built
    }

    fn image_name(&self, key: &ImageKey) -> String {
        self.images[key].reference.to_string()
    }

    /// Adds an image. An image without layers is an empty filesystem with a configuration.
    ///
    /// `implicit` says that no platform was asked for by name: then an image for another platform that runs here is taken
    /// for that platform.
    fn image_source(&mut self, key: &ImageKey, context: Option<&str>, implicit: bool, span: Span) -> Built {
        let resolved = &self.images[key];
        let mut image = resolved.config.clone();
        image.created = None;
        let mut platform = key.platform.clone();
        if implicit && self.request.target_platform.is_none() {
            let fits = |p: &Platform| p.os == image.os && p.architecture == image.architecture;
            let runs_here = self.request.build_platforms.iter().find(|p| fits(p));
            if let Some(other) = runs_here.filter(|_| !fits(&platform)) {
                platform = other.clone();
            }
        }
        let is_empty = image.rootfs.diff_ids.is_empty() && image.history.iter().all(|entry| entry.empty_layer);
        image.rootfs = kiln_graph::oci::RootFs::default();
        let source = match &key.image {
            ImageName::Registry(_) => Source::Image(ImageSource {
                reference: resolved.reference.clone(),
                image_id: Some(resolved.id),
                resolve: self.request.resolve,
                checksum: None,
                layer_limit: None,
            }),
            ImageName::OciLayout(layout) => Source::OciLayout(layout.clone()),
        };
        let name = match context {
            Some(context) => format!("[context {context}] {}", resolved.reference),
            None => format!("FROM {}", resolved.reference),
        };
        let node = (!is_empty).then(|| self.draft.add_source(source, platform.clone(), name, place(span)));
        Built { base: Some(key.clone()), ..Built::new(node, image, platform) }
    }

    fn check_platform(&mut self, stage: &Stage, built: &Built) {
        let (expected, image) = (&built.platform, built.image.platform());
        if built.node.is_none() || (expected.os == image.os && expected.architecture == image.architecture) {
            return;
        }
        let lexer = Lexer::new(self.dockerfile.directives.escape);
        let name = lexer.expand(&stage.base.text, &self.globals.variables).map(|name| name.text).unwrap_or_default();
        let (expected, actual) = (Platform::clone(expected).normalized().to_string(), image.to_string());
        let message = format!(
            "Base image {name} was pulled with platform {}, expected {} for current build",
            scalar::quote(&actual),
            scalar::quote(&expected)
        );
        let rule = check::INVALID_BASE_IMAGE_PLATFORM;
        self.warnings.extend(stage.head.subject().finding(rule, stage.base.span, message));
    }

    /// Returns the main context.
    pub(super) fn main_context(&mut self, span: Span) -> Node {
        let request = self.request;
        self.context(None, &request.context, span)
    }

    fn named_context(&mut self, name: &str, files: &Files, span: Span) -> Node {
        self.context(Some(name), files, span)
    }

    /// Adds the files of a context, once.
    fn context(&mut self, context: Option<&str>, files: &Files, span: Span) -> Node {
        let key = context.map(str::to_owned);
        if let Some(known) = self.context_nodes.get(&key) {
            return *known;
        }
        let platform = self.request.build_platform();
        let node = self.draft.add_files(context, files, &platform, Some(place(span)));
        self.context_nodes.insert(key, node);
        node
    }

    /// Lowers a stage.
    pub(super) fn stage(&mut self, index: usize) -> Result<Built, Diagnostic> {
        let plan = self.plan;
        let planned = &plan.stages[index];
        if let Some(origin) = &planned.replacement {
            return Ok(self.replacement(origin, planned.stage.base.span));
        }
        let (origin, platform) = planned.base.clone()?;
        let (built, first) = self.stage_base(planned.stage, &origin, platform);
        stage::StageLowering::new(self, index, built, first).run()
    }
}

/// A place in the Dockerfile itself.
fn place(span: Span) -> Location {
    Location { file: 0, span }
}
