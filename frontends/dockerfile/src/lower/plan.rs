//! What a build consists of before anything is lowered: what every stage derives from, which stages and images the target
//! needs, and the ONBUILD triggers that run in them.

use std::collections::{HashMap, HashSet};

use kiln_graph::diagnostic::{closest, similar};
use kiln_graph::{Diagnostic, Platform, Reference, SourceFile, Span};

use super::globals::Globals;
use super::place_of;
use super::request::{Files, ImageKey, ImageName, NamedContext, Need, Request, ResolvedImage};
use crate::check;
use crate::instruction::{Dockerfile, Instruction, Kind, Stage};
use crate::line::Word;
use crate::parse::parse_trigger;
use crate::scalar;
use crate::shell::{Expansion, Lexer, Variables};

/// What an instruction takes files or a whole filesystem from.
#[derive(Clone, Debug)]
pub(super) enum Origin<'a> {
    /// Nothing.
    Scratch,
    /// A stage.
    Stage(usize),
    /// An image; perhaps because a named context says so.
    Image { key: Box<ImageKey>, context: Option<&'a str> },
    /// The files of a named context.
    Files { name: &'a str, files: &'a Files },
}

/// An ONBUILD instruction of a base, as an instruction of the stage.
#[derive(Clone, Debug)]
pub(super) struct Trigger {
    pub(super) instruction: Instruction,
    /// Its text as a source file of its own.
    pub(super) file: SourceFile,
    /// The place in the Dockerfile that stands for it: the ONBUILD instruction, or the FROM of its image.
    pub(super) at: Span,
    /// Whether it comes from an image, not from a stage of this file.
    pub(super) of_image: bool,
}

/// A stage with what the plan knows about it.
pub(super) struct PlannedStage<'a> {
    pub(super) stage: &'a Stage,
    /// What progress calls it; empty when it is the only one.
    pub(super) label: String,
    /// What it begins with and the value of `--platform`, or why that cannot be said.
    pub(super) base: Result<(Origin<'a>, Option<Platform>), Diagnostic>,
    /// The named context that is used instead of it.
    pub(super) replacement: Option<Origin<'a>>,
    /// The triggers of its base, in order.
    pub(super) triggers: Vec<Trigger>,
    /// Whether the target needs it.
    pub(super) reachable: bool,
}

pub(super) struct Plan<'a> {
    request: &'a Request<'a>,
    contexts: NamedContexts<'a>,
    pub(super) stages: Vec<PlannedStage<'a>>,
    by_name: HashMap<&'a str, usize>,
    pub(super) target: usize,
    pub(super) target_platform: Platform,
}

impl<'a> Plan<'a> {
    /// Reads all FROM instructions.
    ///
    /// # Errors
    /// A target that does not exist. What is wrong with a FROM is kept until its stage turns out to be needed.
    pub(super) fn new(
        dockerfile: &'a Dockerfile,
        request: &'a Request<'a>,
        globals: &Globals,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<Self, Diagnostic> {
        let mut plan = Self {
            request,
            contexts: NamedContexts::new(request),
            stages: Vec::new(),
            by_name: HashMap::new(),
            target: dockerfile.stages.len() - 1,
            target_platform: request.target_platform(),
        };
        let mut read = Reading { globals, lexer: Lexer::new(dockerfile.directives.escape), warnings };
        for (index, stage) in dockerfile.stages.iter().enumerate() {
            let name = stage.name.as_ref().map(|name| name.text.as_str());
            let base = plan.base(stage, &mut read);
            let platform = base.as_ref().ok().and_then(|(_, platform)| platform.clone());
            let platform = platform.unwrap_or_else(|| plan.target_platform.clone());
            let replacement = name.and_then(|name| plan.contexts.origin(name, &platform));
            let label = name.map_or_else(|| format!("stage-{index}"), str::to_owned);
            plan.stages.push(PlannedStage { stage, label, base, replacement, triggers: Vec::new(), reachable: false });
            if let Some(name) = name {
                plan.by_name.insert(name, index);
            }
        }
        if plan.is_single() {
            plan.stages[0].label.clear();
        }
        if let Some(target) = request.target {
            plan.target = plan.stage_named(target).ok_or_else(|| plan.unknown_target(target))?;
        }
        Ok(plan)
    }

    fn stage_named(&self, name: &str) -> Option<usize> {
        self.by_name.get(name.to_lowercase().as_str()).copied()
    }

    fn unknown_target(&self, target: &str) -> Diagnostic {
        let names: Vec<&str> = self.stages.iter().filter_map(|s| s.stage.name.as_ref()).map(|n| &*n.text).collect();
        let hint = match closest(target, names.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None if names.is_empty() => "no stage has a name; add AS name to a FROM".to_owned(),
            None => format!("there are {}", names.join(", ")),
        };
        let message = format!("there is no stage {target:?} to build");
        Diagnostic { span: None, ..Diagnostic::error(Span::new(0, 0), message).with_hint(hint) }
    }

    /// Says whether nothing but one stage takes part: no other stage, no image or context that an instruction names.
    fn is_single(&self) -> bool {
        let involves_others = |instruction: &Instruction| match &instruction.kind {
            Kind::Copy(copy) => copy.from.as_ref().is_some_and(|from| from.text.parse::<usize>().is_err()),
            Kind::Run(run) => !run.mounts.is_empty(),
            _ => false,
        };
        let [only] = self.stages.as_slice() else { return false };
        !only.stage.instructions.iter().any(involves_others)
    }

    /// About how many steps the stages that are needed have.
    pub(super) fn steps(&self) -> usize {
        let needed = self.stages.iter().filter(|stage| stage.reachable);
        needed.map(|stage| stage.stage.instructions.len() + 1).sum()
    }

    /// Reads what a stage derives from.
    fn base(&self, stage: &Stage, read: &mut Reading<'_>) -> Result<(Origin<'a>, Option<Platform>), Diagnostic> {
        read.check_default(stage);
        let base = read.expand(stage, &stage.base)?.text;
        if base.is_empty() {
            let error = Diagnostic::error(stage.base.span, format!("{} is empty", stage.base.text));
            return Err(error.with_hint("give the argument a default value, or a value with --build-arg"));
        }
        let platform = match &stage.platform {
            Some(word) => Some(read.platform(stage, word)?),
            None => None,
        };
        // Names of stages are lower case, and a base is looked up as it is written.
        if let Some(index) = self.by_name.get(base.as_str()) {
            return Ok((Origin::Stage(*index), platform));
        }
        let word = Word::new(base, stage.base.span);
        let origin = self.outside(&word, platform.as_ref().unwrap_or(&self.target_platform)).map_err(|error| {
            let lower = word.text.to_lowercase();
            let names = self.by_name.keys().copied();
            match closest(&lower, names) {
                Some(near) => error.with_hint(format!("did you mean the stage {near}?")),
                None => error,
            }
        })?;
        Ok((origin, platform))
    }

    /// Resolves a name that is no stage's: `scratch`, a named context or an image.
    fn outside(&self, name: &Word, platform: &Platform) -> Result<Origin<'a>, Diagnostic> {
        if name.text == "scratch" {
            return Ok(Origin::Scratch);
        }
        let reference: Reference =
            name.text.parse().map_err(|error| Diagnostic::error(name.span, format!("{error}")))?;
        let reference = reference.with_default_tag();
        Ok(self.contexts.origin(&reference.familiar(), platform).unwrap_or_else(|| Origin::Image {
            key: Box::new(ImageKey { image: ImageName::Registry(reference), platform: platform.clone() }),
            context: None,
        }))
    }

    /// Resolves what `--from` names. `stage` is where it stands: only stages before it may be named.
    pub(super) fn source(&self, name: &Word, copy: bool, stage: usize) -> Result<Origin<'a>, Diagnostic> {
        let index = if copy { name.text.parse().ok() } else { None };
        let found = match index {
            Some(index) if index >= self.stages.len() => {
                let message = format!("there is no stage {index}: the file has {}", self.stages.len());
                return Err(Diagnostic::error(name.span, message).with_hint("stages are counted from 0"));
            }
            Some(index) => Some(index),
            None => self.stage_named(&name.text),
        };
        match found {
            Some(index) if index < stage => Ok(Origin::Stage(index)),
            Some(index) => {
                let message = if index == stage {
                    "a stage cannot take files from itself".to_owned()
                } else {
                    format!("the stage {} comes later", name.text)
                };
                Err(Diagnostic::error(name.span, message).with_hint("name a stage that is defined above"))
            }
            None => self.outside(name, &self.target_platform),
        }
    }

    /// Finds all stages the target needs, and returns the images that must be known first.
    ///
    /// # Errors
    /// The first thing wrong with a stage that is needed.
    pub(super) fn explore(&mut self, images: &HashMap<ImageKey, ResolvedImage>) -> Result<Vec<Need>, Diagnostic> {
        let mut needs = Needs { images, known: HashSet::new(), needs: Vec::new() };
        let mut pending: Vec<usize> =
            if self.request.all_stages { (0..self.stages.len()).collect() } else { vec![self.target] };
        while let Some(index) = pending.pop() {
            if std::mem::replace(&mut self.stages[index].reachable, true) {
                continue;
            }
            let stage = self.stages[index].stage;
            let mut origins = Vec::new();
            if let Some(replacement) = &self.stages[index].replacement {
                origins.push((replacement.clone(), stage.base.span));
            } else {
                let (base, _) = self.stages[index].base.clone()?;
                self.stages[index].triggers = self.triggers(&base, stage, images)?;
                origins.push((base, stage.base.span));
                let triggers = self.stages[index].triggers.iter();
                for trigger in triggers.clone() {
                    for (name, copy) in sources_of(&trigger.instruction.kind) {
                        let origin = self.source(name, copy, index).map_err(|error| trigger.adjust(error))?;
                        origins.push((origin, trigger.at));
                    }
                }
                for (name, copy) in stage.instructions.iter().flat_map(|i| sources_of(&i.kind)) {
                    origins.push((self.source(name, copy, index)?, name.span));
                }
            }
            for (origin, span) in origins {
                match origin {
                    Origin::Stage(other) => pending.push(other),
                    Origin::Image { key, .. } => needs.add(*key, span, || self.suggestion(stage)),
                    Origin::Scratch | Origin::Files { .. } => {}
                }
            }
        }
        needs.needs.sort_by_key(|need| need.span.start);
        Ok(needs.needs)
    }

    /// A stage whose name resembles a base that is taken for an image.
    fn suggestion(&self, stage: &Stage) -> Option<String> {
        let names = self.stages.iter().take_while(|known| !std::ptr::eq(known.stage, stage));
        let names = names.filter_map(|known| known.stage.name.as_ref()).map(|name| name.text.as_str());
        closest(&stage.base.text, names).map(str::to_owned)
    }

    /// Collects the ONBUILD instructions of a base.
    fn triggers(
        &self,
        base: &Origin<'a>,
        stage: &Stage,
        images: &HashMap<ImageKey, ResolvedImage>,
    ) -> Result<Vec<Trigger>, Diagnostic> {
        let of_image = |key: &ImageKey| {
            let image = images.get(key);
            let file_name = image.map(|image| format!("ONBUILD of {}", image.reference.familiar()));
            let texts = image.map_or(&[][..], |image| &image.config.config.on_build);
            let trigger =
                |text: &String| Trigger::parse(file_name.as_deref().unwrap_or_default(), text, stage.base.span, true);
            texts.iter().map(trigger).collect()
        };
        match base {
            Origin::Image { key, .. } => of_image(key),
            Origin::Stage(index) => match &self.stages[*index].replacement {
                Some(Origin::Image { key, .. }) => of_image(key),
                Some(_) => Ok(Vec::new()),
                None => {
                    let parent = &self.stages[*index];
                    let file_name = format!("ONBUILD of {}", parent.label);
                    let texts = parent.stage.instructions.iter().filter_map(|instruction| match &instruction.kind {
                        Kind::Onbuild(text) => Some(text),
                        _ => None,
                    });
                    texts.map(|text| Trigger::parse(&file_name, &text.text, text.span, false)).collect()
                }
            },
            Origin::Scratch | Origin::Files { .. } => Ok(Vec::new()),
        }
    }
}

/// What FROM instructions are read with.
struct Reading<'r> {
    globals: &'r Globals,
    lexer: Lexer,
    warnings: &'r mut Vec<Diagnostic>,
}

impl Reading<'_> {
    fn expand(&mut self, stage: &Stage, word: &Word) -> Result<Expansion, Diagnostic> {
        let globals = self.globals;
        let expansion = self
            .lexer
            .expand(&word.text, &globals.variables)
            .map_err(|error| Diagnostic::error(word.span, error.to_string()))?;
        for name in expansion.missing.iter().filter(|name| !globals.knows(name)) {
            let known = globals.variables.names().chain(globals.declared.iter().map(String::as_str));
            let near = similar(name, known).map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
            let message = format!("FROM argument '{name}' is not declared{near}");
            self.warn(stage, check::UNDEFINED_ARG_IN_FROM, place_of(name, word), message);
        }
        Ok(expansion)
    }

    fn warn(&mut self, stage: &Stage, rule: &'static check::Rule, span: Span, message: String) {
        self.warnings.extend(stage.head.subject().finding(rule, span, message));
    }

    fn platform(&mut self, stage: &Stage, word: &Word) -> Result<Platform, Diagnostic> {
        let globals = self.globals;
        let Expansion { text, used, missing, .. } = self.expand(stage, word)?;
        if text.is_empty() {
            let error = Diagnostic::error(word.span, format!("--platform={} is empty", word.text));
            return Err(error.with_hint("BUILDPLATFORM and TARGETPLATFORM are always set"));
        }
        let platform: Platform = text.parse().map_err(|error| Diagnostic::error(word.span, format!("{error}")))?;
        let is_target = used == ["TARGETPLATFORM"] && missing.is_empty();
        if is_target && globals.variables.get("TARGETPLATFORM") == Some(&text) {
            let message = format!(
                "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                word.text
            );
            self.warn(stage, check::REDUNDANT_TARGET_PLATFORM, word.span, message);
        }
        let name = stage.name.as_ref().map_or("", |name| &name.text);
        let is_named_after = name.contains(&platform.os) || name.contains(&platform.architecture);
        if used.is_empty() && missing.is_empty() && !is_named_after {
            let message = format!("FROM --platform flag should not use constant value {}", scalar::quote(&text));
            self.warn(stage, check::FROM_PLATFORM_FLAG_CONST_DISALLOWED, word.span, message);
        }
        Ok(platform)
    }

    /// Checks that a FROM makes sense without any build arguments.
    fn check_default(&mut self, stage: &Stage) {
        let lexer = self.lexer;
        let Some(defaults) = self.globals.defaults.as_ref().filter(|_| stage.base.text.contains('$')) else { return };
        let expand = |variables: &Variables| lexer.expand(&stage.base.text, variables).ok();
        let Some(expansion) = expand(defaults) else { return };
        if expansion.text != "scratch" && expansion.text.parse::<Reference>().is_err() {
            let base = &stage.base.text;
            let message = format!("Default value for ARG {base} results in empty or invalid base image name");
            self.warn(stage, check::INVALID_DEFAULT_ARG_IN_FROM, stage.base.span, message);
        }
    }
}

impl Trigger {
    fn parse(file_name: &str, text: &str, at: Span, of_image: bool) -> Result<Self, Diagnostic> {
        let file = SourceFile::new(file_name, text);
        let instruction = parse_trigger(&file).map_err(|error| adjust(&file, at, error))?;
        Ok(Self { instruction, file, at, of_image })
    }

    /// Makes an error in the trigger one in the Dockerfile.
    pub(super) fn adjust(&self, error: Diagnostic) -> Diagnostic {
        adjust(&self.file, self.at, error)
    }
}

fn adjust(file: &SourceFile, at: Span, error: Diagnostic) -> Diagnostic {
    let message = format!("{} ({:?}): {}", file.name(), file.text(), error.message);
    Diagnostic { message, span: Some(at), ..error }
}

/// The names of stages, contexts or images that an instruction takes files from, and whether stages may be named by number.
fn sources_of(kind: &Kind) -> impl Iterator<Item = (&Word, bool)> {
    let (copy, mounts) = match kind {
        Kind::Copy(copy) => (copy.from.as_ref(), &[][..]),
        Kind::Run(run) => (None, run.mounts.as_slice()),
        _ => (None, &[][..]),
    };
    let mounted = mounts.iter().filter_map(|mount| mount.from.as_ref());
    copy.into_iter().map(|from| (from, true)).chain(mounted.map(|from| (from, false)))
}

/// Collects images that are not known yet, each once.
struct Needs<'i> {
    images: &'i HashMap<ImageKey, ResolvedImage>,
    known: HashSet<ImageKey>,
    needs: Vec<Need>,
}

impl Needs<'_> {
    fn add(&mut self, key: ImageKey, span: Span, suggestion: impl FnOnce() -> Option<String>) {
        if !self.images.contains_key(&key) && self.known.insert(key.clone()) {
            self.needs.push(Need { key, span, suggestion: suggestion() });
        }
    }
}

/// The named contexts by their normalised names, with a platform where one is given.
struct NamedContexts<'a> {
    contexts: HashMap<(String, Option<String>), (&'a str, &'a NamedContext)>,
}

impl<'a> NamedContexts<'a> {
    fn new(request: &'a Request<'a>) -> Self {
        let entry = |(name, context): (&'a String, &'a NamedContext)| {
            let (base, platform) = match name.split_once("::") {
                Some((base, platform)) => (base, Some(platform)),
                None => (name.as_str(), None),
            };
            let platform = platform.map(|text| text.parse::<Platform>().map_or(text.to_owned(), |p| p.to_string()));
            ((normalised(base), platform), (name.as_str(), context))
        };
        Self { contexts: request.contexts.iter().map(entry).collect() }
    }

    /// Returns what a named context puts in the place of a name.
    fn origin(&self, name: &str, platform: &Platform) -> Option<Origin<'a>> {
        if name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
            return None;
        }
        let name = normalised(name);
        let of_platform = self.contexts.get(&(name.clone(), Some(platform.to_string())));
        let (name, context) = of_platform.or_else(|| self.contexts.get(&(name, None)))?;
        let image = |image| Origin::Image {
            key: Box::new(ImageKey { image, platform: platform.clone() }),
            context: Some(*name),
        };
        Some(match context {
            NamedContext::Image(reference) => image(ImageName::Registry(reference.clone().with_default_tag())),
            NamedContext::OciLayout(layout) => image(ImageName::OciLayout(layout.clone())),
            NamedContext::Files(Files::Given(given)) if given.root.is_none() => Origin::Scratch,
            NamedContext::Files(files) => Origin::Files { name, files },
        })
    }
}

/// `docker.io/library/a:latest` and `a` are one name.
fn normalised(name: &str) -> String {
    let familiar = name.parse::<Reference>().map_or_else(|_| name.to_owned(), |reference| reference.familiar());
    familiar.strip_suffix(":latest").map_or_else(|| familiar.clone(), str::to_owned)
}
