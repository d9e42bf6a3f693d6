//! What a parsed Dockerfile is made of.
//!
//! Words are as written: variables are not expanded, and quotes are kept where expansion resolves them.

use kiln_graph::{Diagnostic, SourceFile, Span};

use crate::check::{Selection, Subject};
use crate::directive::Directives;
use crate::heredoc::Heredoc;
use crate::line::Word;
use crate::mount::MountFlag;

/// A parsed Dockerfile.
#[derive(Clone, Debug)]
pub struct Dockerfile {
    /// The file.
    pub file: SourceFile,
    /// What its parser directives say.
    pub directives: Directives,
    /// The ARG instructions before the first FROM.
    pub global_arguments: Vec<GlobalArguments>,
    /// The stages, in order; at least one.
    pub stages: Vec<Stage>,
    /// Findings of checks that need nothing but the file. `# check=` is not applied yet: [`crate::lower()`] does that.
    pub warnings: Vec<Diagnostic>,
}

/// What every instruction has.
#[derive(Clone, Debug)]
pub struct Head {
    /// The keyword as written, for example `run`.
    pub keyword: Word,
    /// All of the instruction, with continued lines and here-documents.
    pub span: Span,
    /// The joined line, without surrounding blanks and without the bodies of here-documents.
    pub text: String,
    /// The checks that a comment right above turns off for this instruction.
    pub skipped_checks: Selection,
}

impl Head {
    pub(crate) fn subject(&self) -> Subject {
        Subject { span: self.span, skipped: self.skipped_checks.clone() }
    }
}

/// An ARG instruction before the first FROM.
#[derive(Clone, Debug)]
pub struct GlobalArguments {
    /// What every instruction has.
    pub head: Head,
    /// The arguments; at least one.
    pub arguments: Vec<Argument>,
}

/// A FROM instruction and what follows it.
#[derive(Clone, Debug)]
pub struct Stage {
    /// What every instruction has.
    pub head: Head,
    /// The base: an image, an earlier stage, a named context or `scratch`.
    pub base: Word,
    /// The name after AS, in lower case.
    pub name: Option<Word>,
    /// The value of `--platform`.
    pub platform: Option<Word>,
    /// What the comment above says about the stage.
    pub description: Option<String>,
    /// The instructions, in order.
    pub instructions: Vec<Instruction>,
}

/// An instruction within a stage.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// What every instruction has.
    pub head: Head,
    /// What it says.
    pub kind: Kind,
}

/// The instructions.
#[derive(Clone, Debug)]
pub enum Kind {
    /// ADD
    Add(Box<Add>),
    /// ARG
    Arg(Vec<Argument>),
    /// CMD
    Cmd(Command),
    /// COPY
    Copy(Box<Copy>),
    /// ENTRYPOINT
    Entrypoint(Command),
    /// ENV
    Env(Vec<Assignment>),
    /// EXPOSE, sorted
    Expose(Vec<Word>),
    /// HEALTHCHECK
    Healthcheck(Healthcheck),
    /// LABEL
    Label(Vec<Assignment>),
    /// MAINTAINER
    Maintainer(Word),
    /// ONBUILD with the text of the instruction it defers
    Onbuild(Word),
    /// RUN
    Run(Box<Run>),
    /// SHELL
    Shell(Vec<String>),
    /// STOPSIGNAL
    Stopsignal(Word),
    /// USER
    User(Word),
    /// VOLUME
    Volume(Vec<Word>),
    /// WORKDIR
    Workdir(Word),
}

/// A name that ARG declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// The name.
    pub name: Word,
    /// The value it has when the build gives none.
    pub default: Option<Word>,
    /// What the comment above says about it.
    pub description: Option<String>,
}

/// A `name=value` of ENV or LABEL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The name.
    pub name: Word,
    /// The value.
    pub value: Word,
    /// Whether it was written in the old form, `name value`.
    pub legacy: bool,
}

/// What RUN, CMD, ENTRYPOINT and HEALTHCHECK start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A line for the shell.
    Shell(Word),
    /// An argument vector, written as a JSON array.
    Exec(Vec<String>),
}

/// A RUN instruction.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it runs.
    pub command: Command,
    /// The here-documents of the command, in order.
    pub heredocs: Vec<Heredoc>,
    /// The values of `--mount`.
    pub mounts: Vec<MountFlag>,
    /// The value of `--network`.
    pub network: RunNetwork,
    /// Whether `--security=insecure` is given.
    pub insecure: bool,
    /// The values of `--device`.
    pub devices: Vec<Device>,
    /// `--retry`, `--timeout`, `--memory` and `--cpus`, which only Kiln has.
    pub trial: Trial,
}

/// How a RUN instruction is tried and limited: flags that are no part of the language elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trial {
    /// How often it is tried again after it failed.
    pub retries: u32,
    /// How long one try may take, in nanoseconds.
    pub timeout_ns: Option<u64>,
    /// The memory it may use, in bytes.
    pub memory_bytes: Option<u64>,
    /// The processor time it may use, in billionths of a processor.
    pub nano_cpus: Option<u64>,
}

/// The network that `--network` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunNetwork {
    /// The build's.
    #[default]
    Default,
    /// None but loopback.
    None,
    /// The host's.
    Host,
}

/// A value of `--device`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// A CDI name.
    pub name: String,
    /// Whether the step fails without it.
    pub required: bool,
}

/// What COPY and ADD have in common.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// The sources that are paths, or addresses for ADD.
    pub sources: Vec<Word>,
    /// The sources that stand in the file.
    pub documents: Vec<Heredoc>,
    /// The destination.
    pub destination: Word,
    /// The value of `--chown`.
    pub chown: Option<Word>,
    /// The value of `--chmod`.
    pub chmod: Option<Word>,
    /// Whether `--link` is given.
    pub link: bool,
    /// The values of `--exclude`.
    pub exclude: Vec<Word>,
}

/// A COPY instruction.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Sources, destination and the flags that ADD has too.
    pub transfer: Transfer,
    /// The value of `--from`.
    pub from: Option<Word>,
    /// Whether `--parents` is given.
    pub parents: bool,
}

/// An ADD instruction.
#[derive(Clone, Debug)]
pub struct Add {
    /// Sources, destination and the flags that COPY has too.
    pub transfer: Transfer,
    /// The value of `--keep-git-dir`.
    pub keep_git_dir: Option<bool>,
    /// The value of `--checksum`.
    pub checksum: Option<Word>,
    /// The value of `--unpack`.
    pub unpack: Option<bool>,
}

/// A HEALTHCHECK instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    /// `NONE`: no check, not even the base image's.
    None,
    /// `CMD`: a check. Durations are in nanoseconds; 0 means the default.
    Check {
        /// What is run.
        command: Command,
        /// Time between checks.
        interval_ns: i64,
        /// Time until a check counts as failed.
        timeout_ns: i64,
        /// Time during which failures do not count.
        start_period_ns: i64,
        /// Time between checks during the start period.
        start_interval_ns: i64,
        /// Failures in a row until the container is unhealthy; 0 means the default.
        retries: i32,
    },
}
