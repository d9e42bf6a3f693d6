//! Lowering: the stages that a target needs become a step graph, and the target becomes an image configuration.
//!
//! Pure: what must be known about images is asked for ([`Outcome::Need`]), what a context holds is left to the solver.
//! Where BuildKit's documentation and its behaviour differ, its behaviour is followed.

mod base;
mod draft;
mod epoch;
mod files;
mod globals;
mod outline;
mod owner;
mod plan;
mod ports;
mod remote;
mod request;
mod run;
mod settings;
mod stage;
mod transfer;

use std::collections::{BTreeSet, HashMap};

use kiln_graph::diagnostic::closest;
use kiln_graph::oci::ImageConfig;
use kiln_graph::op::{Op, Source};
use kiln_graph::{Diagnostic, Platform, Severity, Span};

use crate::check::{self, Config, Refused};
use crate::instruction::{Dockerfile, Kind};
use crate::line::Word;
use crate::{frontend, parse, scalar};
use base::Built;
use draft::{Draft, Node};
pub use epoch::{epoch_name, epoch_source};
use globals::Globals;
pub use globals::asks_for_context_time;
pub use outline::{Mounted, Outline, OutlineArgument};
use plan::Plan;
pub use remote::Remote;
pub use request::{
    Files, Given, ImageKey, ImageName, Lowered, NamedContext, Need, NoCache, Outcome, Request, ResolvedImage,
};

/// Lowers a Dockerfile to a step graph and an image configuration.
///
/// `images` are the images resolved so far. As long as some are missing, the answer is [`Outcome::Need`]; resolve them, add
/// them and call again: the images an ONBUILD trigger names are known only when its own image is. Whoever calls again reads
/// the file once, with [`Definition::read`].
///
/// # Errors
/// All errors of the parser, or the first thing that makes no sense; with `# check=error=true` also any finding of a check.
pub fn lower(request: &Request<'_>, images: &HashMap<ImageKey, ResolvedImage>) -> Result<Outcome, Refused> {
    Definition::read(request)?.lower(images)
}

/// A Dockerfile that was read, and how it is to be lowered.
pub struct Definition<'a> {
    request: &'a Request<'a>,
    checks: Checks,
    dockerfile: Dockerfile,
}

impl<'a> Definition<'a> {
    /// Reads the file of a request.
    ///
    /// # Errors
    /// All errors of the parser.
    pub fn read(request: &'a Request<'a>) -> Result<Self, Refused> {
        let checks = Checks::read(request)?;
        let dockerfile = parse(request.file).map_err(|refused| checks.refused(refused))?;
        Ok(Self { request, checks, dockerfile })
    }

    /// Lowers as [`lower()`] does.
    ///
    /// # Errors
    /// The first thing that makes no sense; with `# check=error=true` also any finding of a check.
    pub fn lower(&self, images: &HashMap<ImageKey, ResolvedImage>) -> Result<Outcome, Refused> {
        let Self { request, checks, dockerfile } = self;
        let mut warnings = dockerfile.warnings.clone();
        let outcome = match lower_parsed(dockerfile, request, images, &mut warnings) {
            Ok(Outcome::Done(lowered)) => lowered,
            Ok(need) => return Ok(need),
            Err(error) => return Err(checks.refused(Refused { errors: vec![error], warnings })),
        };
        let warnings = checks.sorted(warnings);
        if checks.config.error && warnings.iter().any(|warning| warning.rule.is_some()) {
            return Err(Refused { errors: vec![violation(&warnings)], warnings });
        }
        Ok(Outcome::Done(Box::new(Lowered { warnings, ..*outcome })))
    }
}

/// Which checks run.
struct Checks {
    config: Config,
    /// Warnings about names that are no checks.
    unknown: Vec<Diagnostic>,
}

impl Checks {
    /// Reads what the file, or else the build, says about checks; and whether the file is for this frontend at all.
    fn read(request: &Request<'_>) -> Result<Self, Diagnostic> {
        let directives = frontend::check(request)?;
        let (word, span) = match (request.build_args.get("BUILDKIT_DOCKERFILE_CHECK"), &directives.check) {
            (Some(value), _) => (Word::new(value.as_str(), Span::new(0, 0)), None),
            (None, Some(word)) => (word.clone(), Some(word.span)),
            (None, None) => return Ok(Self { config: Config::default(), unknown: Vec::new() }),
        };
        let config = Config::parse(&word).map_err(|error| Diagnostic { span, ..error })?;
        let unknown = config.unknown_names(span);
        Ok(Self { config, unknown })
    }

    /// Keeps the findings of checks that run, in the order of the instructions they are about.
    fn sorted(&self, mut warnings: Vec<Diagnostic>) -> Vec<Diagnostic> {
        let runs = |warning: &Diagnostic| warning.rule.and_then(check::rule).is_none_or(|rule| self.config.runs(rule));
        warnings.retain(runs);
        warnings.extend(self.unknown.iter().cloned());
        let start = |span: Option<Span>| span.map_or(0, |span| span.start);
        warnings.sort_by_key(|warning| (start(warning.within.or(warning.span)), start(warning.span)));
        warnings.dedup();
        warnings
    }

    fn refused(&self, refused: Refused) -> Refused {
        Refused { warnings: self.sorted(refused.warnings), ..refused }
    }
}

/// The error that findings are when the file says so, at the place of the first.
fn violation(warnings: &[Diagnostic]) -> Diagnostic {
    let found = || warnings.iter().filter(|warning| warning.rule.is_some());
    let rules: BTreeSet<&str> = found().filter_map(|warning| warning.rule).collect();
    let rules: Vec<&str> = rules.into_iter().collect();
    let first = found().next();
    Diagnostic {
        severity: Severity::Error,
        rule: None,
        message: format!("lint violation found for rules: {}", rules.join(", ")),
        span: first.and_then(|first| first.span),
        within: first.and_then(|first| first.within),
        hint: None,
    }
}

fn lower_parsed(
    dockerfile: &Dockerfile,
    request: &Request<'_>,
    images: &HashMap<ImageKey, ResolvedImage>,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Outcome, Diagnostic> {
    let mut globals = Globals::new(dockerfile, request)?;
    let epoch_s = epoch(request, &mut globals)?;
    let mut plan = Plan::new(dockerfile, request, &globals, warnings)?;
    let needs = plan.explore(images)?;
    if !needs.is_empty() {
        return Ok(Outcome::Need(needs));
    }
    let mut lowering = Lowering {
        request,
        dockerfile,
        plan: &plan,
        images,
        globals,
        epoch_s,
        target_platform: request.target_platform(),
        draft: Draft::new(dockerfile.file.clone(), plan.steps()),
        built: Vec::new(),
        image_nodes: HashMap::new(),
        context_nodes: HashMap::new(),
        warnings,
    };
    lowering.unused_build_args();
    for (index, planned) in plan.stages.iter().enumerate() {
        let built = if planned.reachable { Some(lowering.stage(index)?) } else { None };
        lowering.built.push(built);
    }
    Ok(Outcome::Done(Box::new(lowering.finish())))
}

/// Reads the time that files and the image get.
fn epoch(request: &Request<'_>, globals: &mut Globals) -> Result<Option<i64>, Diagnostic> {
    let given = request.build_args.get(globals::EPOCH).and_then(|value| globals::dated(request, globals::EPOCH, value));
    let global = || globals.variables.get(globals::EPOCH).map(str::to_owned);
    let Some(text) = given.or_else(global).filter(|text| !text.is_empty()) else {
        return Ok(request.epoch_s);
    };
    let seconds = request.epoch_s.or_else(|| text.parse().ok()).filter(|s| scalar::timestamp(*s).is_some());
    let error = || {
        let message = format!("{}={text} is not a number of seconds since 1970", globals::EPOCH);
        let hint = "it is a number, context for the time of a repository or a file that is the context, or what a named context or \
                    a stage that adds a repository or a file is called";
        Diagnostic { span: None, ..Diagnostic::error(Span::new(0, 0), message).with_hint(hint) }
    };
    let seconds = seconds.ok_or_else(error)?;
    globals.variables.set(globals::EPOCH, seconds.to_string());
    Ok(Some(seconds))
}

/// The state of lowering across stages.
struct Lowering<'a> {
    request: &'a Request<'a>,
    dockerfile: &'a Dockerfile,
    plan: &'a Plan<'a>,
    images: &'a HashMap<ImageKey, ResolvedImage>,
    globals: Globals,
    epoch_s: Option<i64>,
    target_platform: Platform,
    draft: Draft,
    /// The stages so far; `None` for those that are not needed.
    built: Vec<Option<Built>>,
    /// The images that instructions copy from, so far.
    image_nodes: HashMap<ImageKey, Option<Node>>,
    /// The named contexts so far; the main one has no name.
    context_nodes: HashMap<Option<String>, Node>,
    warnings: &'a mut Vec<Diagnostic>,
}

impl Lowering<'_> {
    /// Warns about build arguments that nothing declares.
    fn unused_build_args(&mut self) {
        let instructions = self.dockerfile.stages.iter().flat_map(|stage| &stage.instructions);
        let triggers = self.plan.stages.iter().flat_map(|stage| &stage.triggers).map(|trigger| &trigger.instruction);
        let in_stages = instructions.chain(triggers).filter_map(|instruction| match &instruction.kind {
            Kind::Arg(arguments) => Some(arguments),
            _ => None,
        });
        let mut declared: Vec<&str> = in_stages.flatten().map(|argument| argument.name.text.as_str()).collect();
        declared.extend(self.globals.declared.iter().map(String::as_str));
        for name in self.request.build_args.keys() {
            if declared.contains(&name.as_str()) || globals::is_predefined(name) {
                continue;
            }
            self.warnings.push(Diagnostic {
                severity: Severity::Warning,
                rule: None,
                message: format!("no ARG instruction declares the build argument {name}"),
                span: None,
                within: None,
                hint: closest(name, declared.iter().copied()).map(|near| format!("did you mean {near}?")),
            });
        }
    }

    fn target(&self) -> &Built {
        self.built[self.plan.target].as_ref().expect("the target is reachable and comes before the end")
    }

    fn finish(mut self) -> Lowered {
        let scan = self.scans();
        let target = self.target();
        let (root, base) = (target.node, target.base.clone());
        let (config, outline) = (self.image(), self.outline());
        let roots: Vec<Node> = root.into_iter().chain(scan.iter().map(|(_, node)| *node)).collect();
        let (graph, edges) = self.draft.finish(&roots);
        let context = self.context_nodes.get(&None).and_then(|node| edges.get(*node));
        let context_paths = context.map(|edge| match &graph.vertex(edge.vertex).op {
            Op::Source(Source::Local(local)) => local.follow.clone(),
            _ => Vec::new(),
        });
        Lowered {
            root: root.map(|node| edges[node]),
            platform: config.platform(),
            config,
            base,
            scan: scan.into_iter().map(|(name, node)| (name, edges[node])).collect(),
            outline,
            epoch_s: self.epoch_s,
            context_paths: context_paths.unwrap_or_default(),
            warnings: Vec::new(),
            graph,
        }
    }

    /// What the target may be given: itself first, then what it needs.
    fn outline(&self) -> Outline {
        let others = self.built.iter().enumerate().filter(|(index, _)| *index != self.plan.target);
        let needed = std::iter::once(self.target()).chain(others.filter_map(|(_, built)| built.as_ref()));
        let stage = self.plan.stages[self.plan.target].stage;
        Outline {
            name: stage.name.as_ref().map(|name| name.text.clone()).unwrap_or_default(),
            description: stage.description.clone().unwrap_or_default(),
            ..self.globals.outline.outline(needed.map(|built| &built.outline))
        }
    }

    /// The target's configuration, with labels and the platform of the request.
    fn image(&self) -> ImageConfig {
        let mut image = self.target().image.clone();
        image.config.labels.extend(self.request.labels.clone());
        if self.request.target_platform.is_some() {
            let platform = &self.target_platform;
            let same = image.os == platform.os && image.architecture == platform.architecture;
            image.os.clone_from(&platform.os);
            image.architecture.clone_from(&platform.architecture);
            if !same || !platform.variant.is_empty() {
                image.variant.clone_from(&platform.variant);
            }
            if !same || !platform.os_version.is_empty() {
                image.os_version.clone_from(&platform.os_version);
            }
            if !platform.os_features.is_empty() {
                image.os_features.clone_from(&platform.os_features);
            }
        }
        let normalized = image.platform();
        (image.os, image.architecture, image.variant) = (normalized.os, normalized.architecture, normalized.variant);
        image
    }

    /// What an SBOM is asked for: the context, when the target's stage asks, and the stages that ask.
    fn scans(&mut self) -> Vec<(String, Node)> {
        let mut scans = Vec::new();
        if self.target().scan_context {
            scans.push(("context".to_owned(), self.main_context(Span::new(0, 0))));
        }
        for (index, built) in self.built.iter().enumerate() {
            let asks = built.as_ref().filter(|built| index != self.plan.target && built.scan_stage);
            if let Some(node) = asks.and_then(|built| built.node) {
                scans.push((self.plan.stages[index].label.clone(), node));
            }
        }
        scans
    }
}

/// Finds the use of a variable within a word, as far as that stands in the file as it is.
fn place_of(name: &str, word: &Word) -> Span {
    let text = &word.text;
    let uses = text.match_indices('$').map(|(at, _)| {
        let start = at + 1 + usize::from(text[at + 1..].starts_with('{'));
        (at, start)
    });
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut uses =
        uses.filter(|(_, start)| text[*start..].strip_prefix(name).is_some_and(|rest| !rest.starts_with(is_name)));
    uses.next().map_or(word.span, |(at, start)| word.part(at..start + name.len()).span)
}
