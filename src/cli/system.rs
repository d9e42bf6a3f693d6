//! `version` and `info`.

use std::process::ExitCode;

use clap::Args;

use super::args::Context;
use crate::error::Result;
use crate::types::SystemVersion;

/// Arguments of `version`.
#[derive(Debug, Args)]
pub(super) struct VersionArgs {}

pub(super) async fn version(context: &Context, _args: VersionArgs) -> Result<ExitCode> {
    let engine: SystemVersion = context.client.get("/version").await?;
    println!("{}", engine.version.unwrap_or_default());
    Ok(ExitCode::SUCCESS)
}
