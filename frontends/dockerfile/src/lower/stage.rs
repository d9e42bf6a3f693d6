//! One stage: its instructions in order, each changing the filesystem, the configuration, or what later ones see.

use std::collections::HashMap;
use std::fmt::Write as _;

use kiln_graph::diagnostic::similar;
use kiln_graph::graph::{Location, Meta};
use kiln_graph::oci::History;
use kiln_graph::op::Op;
use kiln_graph::{Diagnostic, Platform, Severity, Span};

use super::Lowering;
use super::base::Built;
use super::draft::{Inputs, Node};
use super::globals;
use super::plan::{Origin, PlannedStage, Trigger};
use crate::check::{self, Rule, Subject};
use crate::instruction::{Head, Instruction, Kind};
use crate::line::Word;
use crate::scalar;
use crate::shell::{Expansion, ExpansionError, Lexer, Variables};

/// What BuildKit writes into every entry of an image's history.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// Arguments that are for the builder only and never enter the environment.
const BUILDER_ARGUMENTS: &[&str] = &["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Variables that images of languages, servers and distributions set. Checks that have not seen the image do not call them
/// undefined.
const USUAL_VARIABLES: &[&str] = &[
    "ASPNETCORE_HTTP_PORTS",
    "BUNDLE_APP_CONFIG",
    "CARGO_HOME",
    "CATALINA_HOME",
    "CONDA_DIR",
    "DOTNET_VERSION",
    "GEM_HOME",
    "GOLANG_VERSION",
    "GOPATH",
    "GRADLE_HOME",
    "HOME",
    "JAVA_HOME",
    "JAVA_VERSION",
    "LANG",
    "LC_ALL",
    "MAVEN_CONFIG",
    "MAVEN_HOME",
    "NGINX_VERSION",
    "NODE_VERSION",
    "PGDATA",
    "PG_MAJOR",
    "PHP_INI_DIR",
    "PHP_VERSION",
    "PYTHON_VERSION",
    "RUBY_VERSION",
    "RUSTUP_HOME",
    "RUST_VERSION",
    "YARN_VERSION",
];

/// A step that progress numbers.
struct Step {
    /// The vertices that have its name: the step itself, and what it fetches.
    nodes: Vec<Node>,
    /// The vertex that puts a linked layer on its base.
    link: Option<Node>,
    /// The instruction as progress shows it.
    text: String,
    /// The platform, when progress shows it.
    platform: String,
}

pub(super) struct StageLowering<'l, 'a> {
    pub(super) lowering: &'l mut Lowering<'a>,
    planned: &'l PlannedStage<'a>,
    index: usize,
    pub(super) state: Built,
    pub(super) lexer: Lexer,
    pub(super) no_cache: bool,
    /// The trigger that is running, and its file in the graph.
    trigger: Option<(&'l Trigger, u32)>,
    /// The instruction at hand, as checks see it.
    subject: Subject,
    /// Where CMD, ENTRYPOINT and HEALTHCHECK last stood.
    last_seen: HashMap<&'static str, Subject>,
    steps: Vec<Step>,
}

impl<'l, 'a> StageLowering<'l, 'a> {
    /// Starts with what FROM gives; `first` is what progress calls that, if it shows it.
    pub(super) fn new(lowering: &'l mut Lowering<'a>, index: usize, state: Built, first: Option<String>) -> Self {
        let planned = &lowering.plan.stages[index];
        let name = planned.stage.name.as_ref().map(|name| name.text.as_str());
        let no_cache = lowering.request.no_cache.covers(name);
        let lexer = Lexer::new(lowering.dockerfile.directives.escape);
        let steps = planned.stage.instructions.len() + 1;
        let mut stage = Self {
            lowering,
            planned,
            index,
            lexer,
            no_cache,
            trigger: None,
            subject: planned.stage.head.subject(),
            last_seen: HashMap::new(),
            steps: Vec::with_capacity(steps),
            state,
        };
        stage.state.image.history.reserve(steps);
        if let (Some(node), Some(text)) = (stage.state.node, first) {
            stage.number(vec![node], None, text);
        }
        stage
    }

    /// Lowers all instructions.
    ///
    /// # Errors
    /// The first instruction that makes no sense, at its place.
    pub(super) fn run(mut self) -> Result<Built, Diagnostic> {
        let planned = self.planned;
        for trigger in &planned.triggers {
            let file = if trigger.of_image { self.lowering.draft.add_file(trigger.file.clone()) } else { 0 };
            self.trigger = Some((trigger, file));
            self.instruction(&trigger.instruction).map_err(|error| trigger.adjust(error))?;
        }
        self.trigger = None;
        for instruction in &planned.stage.instructions {
            self.instruction(instruction)?;
        }
        self.name_steps();
        self.read_scan_arguments();
        Ok(self.state)
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<(), Diagnostic> {
        self.subject = Subject { span: self.place(instruction.head.span), ..instruction.head.subject() };
        let head = &instruction.head;
        match &instruction.kind {
            Kind::Add(add) => self.add(head, add),
            Kind::Arg(arguments) => self.arg(head, arguments),
            Kind::Cmd(command) => self.cmd(head, command),
            Kind::Copy(copy) => self.copy(head, copy),
            Kind::Entrypoint(command) => self.entrypoint(head, command),
            Kind::Env(pairs) => self.env(head, pairs),
            Kind::Expose(ports) => self.expose(ports),
            Kind::Healthcheck(check) => self.healthcheck(head, check),
            Kind::Label(pairs) => self.label(head, pairs),
            Kind::Maintainer(author) => self.maintainer(author),
            Kind::Onbuild(text) => self.onbuild(text),
            Kind::Run(run) => self.run_command(head, run),
            Kind::Shell(shell) => self.shell(shell),
            Kind::Stopsignal(signal) => self.stopsignal(signal),
            Kind::User(user) => self.user(user),
            Kind::Volume(paths) => self.volume(paths),
            Kind::Workdir(path) => self.workdir(head, path),
        }
    }

    /// Expands a word with the variables in force.
    pub(super) fn expand(&mut self, word: &Word) -> Result<String, Diagnostic> {
        self.expand_with(self.lexer, word).map(|expansion| expansion.text)
    }

    pub(super) fn expand_with(&mut self, lexer: Lexer, word: &Word) -> Result<Expansion, Diagnostic> {
        self.expanded(lexer.expand(&word.text, &self.state.variables), word)
    }

    /// Expands what may become several words.
    pub(super) fn words(&mut self, word: &Word) -> Result<Vec<String>, Diagnostic> {
        let split = self.lexer.split(&word.text, &self.state.variables);
        self.expanded(split, word).map(|expansion| expansion.words)
    }

    /// Reports what is not set, or what is wrong.
    fn expanded(&mut self, expansion: Result<Expansion, ExpansionError>, word: &Word) -> Result<Expansion, Diagnostic> {
        let expansion = expansion.map_err(|error| Diagnostic::error(word.span, error.to_string()))?;
        for name in &expansion.missing {
            self.report_missing(name, super::place_of(name, word));
        }
        Ok(expansion)
    }

    fn report_missing(&mut self, name: &str, span: Span) {
        let declared = self.state.arguments.iter().any(|(known, _)| known == name);
        let assumed = self.lowering.request.assume_images && self.state.base.is_some();
        if declared || BUILDER_ARGUMENTS.contains(&name) || (assumed && USUAL_VARIABLES.contains(&name)) {
            return;
        }
        let near = similar(name, self.state.variables.names());
        let near = near.map(|near| format!(" (did you mean ${near}?)")).unwrap_or_default();
        self.warn(check::UNDEFINED_VAR, span, format!("Usage of undefined variable '${name}'{near}"));
    }

    /// Reports what a check found. Of triggers of images, which nobody can change here, nothing is reported.
    pub(super) fn warn(&mut self, rule: &'static Rule, span: Span, message: String) {
        let Some(span) = self.span_in_file(span) else { return };
        self.lowering.warnings.extend(self.subject.finding(rule, span, message));
    }

    /// Reports something that has no effect.
    pub(super) fn note(&mut self, span: Span, message: String) {
        if let Some(span) = self.span_in_file(span) {
            let note = Diagnostic { severity: Severity::Warning, ..Diagnostic::error(span, message) };
            self.lowering.warnings.push(note);
        }
    }

    fn span_in_file(&self, span: Span) -> Option<Span> {
        match self.trigger {
            None => Some(span),
            Some((trigger, _)) => (!trigger.of_image).then_some(trigger.at),
        }
    }

    /// Returns the place in the Dockerfile that stands for the instruction at hand.
    pub(super) fn place(&self, span: Span) -> Span {
        self.trigger.map_or(span, |(trigger, _)| trigger.at)
    }

    /// Returns the place a step comes from; in a trigger of an image, that is the trigger.
    pub(super) fn location(&self, span: Span) -> Location {
        match self.trigger {
            Some((trigger, file)) if trigger.of_image => Location { file, span },
            _ => Location { file: 0, span: self.place(span) },
        }
    }

    /// Returns what `--from` names.
    pub(super) fn source(&mut self, name: &Word, copy: bool) -> Result<Option<Node>, Diagnostic> {
        let origin: Origin<'a> = self.lowering.plan.source(name, copy, self.index)?;
        let span = self.place(name.span);
        Ok(self.lowering.source(&origin, span))
    }

    /// Returns the main context.
    pub(super) fn context(&mut self, span: Span) -> Node {
        let span = self.place(span);
        self.lowering.main_context(span)
    }

    /// Refuses Windows' paths, which would be taken for names of files.
    pub(super) fn check_path(&self, path: &str, span: Span) -> Result<(), Diagnostic> {
        if self.state.platform.os == "windows" && path.contains(['\\', ':']) {
            return Err(Diagnostic::error(span, format!("{path:?}: Windows paths are not supported"))
                .with_hint("write /dir/file"));
        }
        Ok(())
    }

    /// Adds a step that progress does not number.
    pub(super) fn add_internal(&mut self, op: Op, inputs: Inputs, name: &str, span: Span) -> Node {
        let meta = Meta {
            name: format!("[internal] {name}"),
            location: Some(self.location(span)),
            internal: true,
            ..Meta::default()
        };
        let platform = self.lowering.request.build_platform();
        self.lowering.draft.add(op, inputs, platform, meta)
    }

    /// Adds a step for the stage's platform. Its name is set when all steps are numbered.
    pub(super) fn add_step(&mut self, op: Op, inputs: Inputs, no_cache: bool, span: Span) -> Node {
        let meta = Meta { name: String::new(), location: Some(self.location(span)), no_cache, ..Meta::default() };
        let platform = self.state.platform.clone();
        self.lowering.draft.add(op, inputs, platform, meta)
    }

    /// Has progress number a step, which has several vertices when it fetches something.
    pub(super) fn number(&mut self, nodes: Vec<Node>, link: Option<Node>, text: String) {
        let platform = if self.lowering.request.multi_platform { self.shown_platform() } else { String::new() };
        let text = if self.trigger.is_some() { format!("ONBUILD {text}") } else { text };
        self.steps.push(Step { nodes, link, text, platform });
    }

    /// The stage's platform, with the one it builds for where that differs: `linux/amd64->arm64 `.
    fn shown_platform(&self) -> String {
        let platform = &self.state.platform;
        let value = |name: &str| self.state.variables.get(name).filter(|value| !value.is_empty());
        let target: Option<Platform> = value("TARGETPLATFORM").and_then(|text| text.parse().ok());
        let arrow = match target {
            Some(target) if target.os != platform.os => format!("->{}", globals::full_name(&target)),
            Some(target) if target.architecture != platform.architecture => {
                format!("->{}", target.to_string().trim_start_matches(&format!("{}/", target.os)))
            }
            _ => String::new(),
        };
        format!("{}{arrow} ", globals::full_name(platform))
    }

    /// Names the numbered steps as BuildKit does: `[build 2/5] RUN make`.
    fn name_steps(&mut self) {
        let total = self.steps.len().to_string();
        let label = &self.planned.label;
        let separator = if label.is_empty() { "" } else { " " };
        for (number, step) in (1..).zip(&self.steps) {
            let Step { nodes, link, text, platform } = step;
            let named = |before: &str| {
                let fixed = platform.len() + label.len() + 2 * total.len() + before.len();
                let mut name = String::with_capacity(fixed + text.len() + 4);
                let width = total.len();
                write!(name, "[{platform}{label}{separator}{number:>width$}/{total}]{before}{text}")
                    .expect("a String takes everything");
                name
            };
            for node in nodes {
                self.lowering.draft.name(*node, named(" "));
            }
            if let Some(link) = link {
                self.lowering.draft.name(*link, named(" LINK "));
            }
        }
    }

    /// Returns an instruction's text as progress shows it: variables filled in, the keyword in upper case.
    pub(super) fn title(&self, lexer: Lexer, text: &str, variables: &Variables) -> String {
        let mut shown = lexer.expand(text, variables).map_or_else(|_| text.to_owned(), |expansion| expansion.text);
        let end = shown.find(char::is_whitespace).unwrap_or(shown.len());
        shown[..end].make_ascii_uppercase();
        shown
    }

    /// Adds an entry to the history.
    pub(super) fn history(&mut self, created_by: String, has_layer: bool) {
        self.state.image.history.push(History {
            created: self.lowering.epoch_s.and_then(scalar::timestamp),
            created_by,
            comment: HISTORY_COMMENT.to_owned(),
            empty_layer: !has_layer,
            ..History::default()
        });
    }

    /// The time that new files get, in nanoseconds since 1970.
    pub(super) fn mtime_ns(&self) -> Option<i64> {
        self.lowering.epoch_s.map(|seconds| seconds.saturating_mul(1_000_000_000))
    }

    /// Reports an instruction of which only the last one in a stage has an effect, at the place of the one before.
    pub(super) fn note_repetition(&mut self, keyword: &'static str, head: &Head) {
        if let Some(before) = self.last_seen.insert(keyword, self.subject.clone()) {
            let message = format!(
                "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                head.keyword.text
            );
            let subject = Subject { span: before.span, ..self.subject.clone() };
            let finding = subject.finding(check::MULTIPLE_INSTRUCTIONS_DISALLOWED, before.span, message);
            self.lowering.warnings.extend(finding);
        }
    }

    pub(super) fn has_seen(&self, keyword: &str) -> bool {
        self.last_seen.contains_key(keyword)
    }

    /// Declares an argument; a value enters the environment, unless it is for the builder only.
    pub(super) fn declare(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value.as_ref().filter(|_| !BUILDER_ARGUMENTS.contains(&name)) {
            self.state.variables.set_argument(name, value);
        }
        match self.state.arguments.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => self.state.arguments.push((name.to_owned(), value)),
        }
    }

    /// Notes whether an SBOM of the context, or of this stage, is asked for.
    fn read_scan_arguments(&mut self) {
        let asked = |name: &str| {
            let global = self.lowering.globals.variables.get(name);
            let own = self.state.arguments.iter().find(|(known, _)| known == name).and_then(|(_, v)| v.as_deref());
            own.or(global).is_some_and(|value| match scalar::boolean(value) {
                Some(on) => on,
                None => value.split(',').any(|stage| stage == self.planned.label),
            })
        };
        (self.state.scan_context, self.state.scan_stage) = (asked(BUILDER_ARGUMENTS[0]), asked(BUILDER_ARGUMENTS[1]));
    }
}
