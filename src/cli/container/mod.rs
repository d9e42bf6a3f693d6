//! Commands on containers.

mod attach;
mod attached;
mod control;
mod create;
mod detach;
mod exec;
mod exit;
pub(super) mod failed_step;
mod frames;
mod join;
mod list;
mod logs;
mod options;
mod ports;
mod preferences;
mod prune;
mod run;
mod session;
mod signals;
mod start;
mod stdio;
mod terminal;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::args::Context;
use super::inspect::{ObjectKind, show};
use crate::error::Result;

/// `kiln container ...`.
#[derive(Debug, Subcommand)]
pub(super) enum Grouped {
    #[command(flatten)]
    Flat(Flat),
    /// List containers
    #[command(name = "ls", visible_aliases = ["list", "ps"])]
    List(list::ListArgs),
    /// Show all about containers
    Inspect(InspectArgs),
    /// Remove all containers that have ended
    Prune(prune::PruneArgs),
}

/// Those that need no noun.
#[derive(Debug, Subcommand)]
pub(super) enum Flat {
    /// Create a container and run a command in it
    Run(Box<run::RunArgs>),
    /// Create a container without starting it
    Create(Box<create::CreateArgs>),
    /// Start containers
    Start(start::StartArgs),
    /// Join the input and output of a container that runs
    Attach(attach::AttachArgs),
    /// Run a command in a container that runs
    Exec(exec::ExecArgs),
    /// Show what a container has written
    Logs(logs::LogsArgs),
    /// Stop containers
    Stop(control::StopArgs),
    /// Send a signal to containers, KILL unless told otherwise
    Kill(control::KillArgs),
    /// Stop containers and start them again
    Restart(control::StopArgs),
    /// Remove containers
    #[command(visible_alias = "remove")]
    Rm(control::RmArgs),
    /// Wait until containers end, and print their exit codes
    Wait(control::WaitArgs),
    /// Give a container another name
    Rename(control::RenameArgs),
    /// Show the processes of a container
    Top(control::TopArgs),
}

/// Arguments of `container inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// `json` or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Also tell how large they are
    #[arg(short, long)]
    size: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

/// `kiln ps`.
#[derive(Debug, Subcommand)]
pub(super) enum Listed {
    /// List containers
    Ps(list::ListArgs),
}

impl Grouped {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Flat(command) => command.run(context).await,
            Self::List(args) => list::list(context, &args).await,
            Self::Inspect(args) => {
                show(context, &[ObjectKind::Container], &args.names, args.format.as_deref(), args.size).await
            }
            Self::Prune(args) => prune::prune(context, &args).await,
        }
    }
}

impl Flat {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Run(args) => run::run(context, &args).await,
            Self::Create(args) => create::create(context, &args).await,
            Self::Start(args) => start::start(context, &args).await,
            Self::Attach(args) => attach::attach(context, &args).await,
            Self::Exec(args) => exec::exec(context, &args).await,
            Self::Logs(args) => logs::logs(context, &args).await,
            Self::Stop(args) => control::stop(context, &args).await,
            Self::Kill(args) => control::kill(context, &args).await,
            Self::Restart(args) => control::restart(context, &args).await,
            Self::Rm(args) => control::rm(context, &args).await,
            Self::Wait(args) => control::wait(context, &args).await,
            Self::Rename(args) => control::rename(context, &args).await,
            Self::Top(args) => control::top(context, &args).await,
        }
    }
}

impl Listed {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        let Self::Ps(args) = self;
        list::list(context, &args).await
    }
}
