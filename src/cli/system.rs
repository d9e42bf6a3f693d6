//! `version`, `info` and the commands on Kiln as a whole.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::args::Context;
use crate::error::Result;
use crate::types::SystemVersion;

/// `kiln system ...`.
#[derive(Debug, Subcommand)]
pub(super) enum Grouped {}

/// Those without the noun.
#[derive(Debug, Subcommand)]
pub(super) enum Flat {
    /// Show the versions of the command and of the engine
    Version(VersionArgs),
}

impl Grouped {
    pub(super) async fn run(self, _context: &Context) -> Result<ExitCode> {
        match self {}
    }
}

impl Flat {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Version(args) => version(context, args).await,
        }
    }
}

/// Arguments of `version`.
#[derive(Debug, Args)]
pub(super) struct VersionArgs {}

pub(super) async fn version(context: &Context, _args: VersionArgs) -> Result<ExitCode> {
    let engine: SystemVersion = context.client.get("/version").await?;
    println!("{}", engine.version.unwrap_or_default());
    Ok(ExitCode::SUCCESS)
}
