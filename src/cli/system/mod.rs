//! Commands on Kiln as a whole.

mod df;
mod gc;
mod prune;
mod version;

use std::process::ExitCode;

use clap::Subcommand;

pub(super) use gc::{GcArgs, gc};

use super::args::Context;
use crate::error::Result;

/// `kiln system ...`.
#[derive(Debug, Subcommand)]
pub(super) enum Grouped {
    /// Show what takes how much of the disk
    Df(df::DfArgs),
    /// Show the engine, its host and how it is reached
    Info(version::FormatArgs),
    /// Remove what is not needed
    Prune(prune::PruneArgs),
}

/// Those without the noun.
#[derive(Debug, Subcommand)]
pub(super) enum Flat {
    /// Bring the build cache within its limits and remove what nobody needs; or say why things stay
    Gc(GcArgs),
    /// Show the engine, its host and how it is reached
    Info(version::FormatArgs),
    /// Show the versions of the command and of the engine
    Version(version::FormatArgs),
}

impl Grouped {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Df(args) => df::df(context, &args).await,
            Self::Info(args) => version::info(context, &args).await,
            Self::Prune(args) => prune::prune(context, &args).await,
        }
    }
}

impl Flat {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Gc(args) => gc(context, &args).await,
            Self::Info(args) => version::info(context, &args).await,
            Self::Version(args) => version::version(context, &args).await,
        }
    }
}
