//! `container prune`: removes all containers that have ended.

use std::process::ExitCode;

use clap::Args;

use crate::cli::args::Context;
use crate::cli::confirm::confirm;
use crate::cli::format::size;
use crate::cli::{print, value};
use crate::client::Query;
use crate::error::Result;
use crate::types::ContainerPruneResponse;

/// Arguments of `container prune`.
#[derive(Debug, Args)]
pub(in crate::cli) struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove only those that match, such as until=24h
    #[arg(long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
}

pub(super) async fn prune(context: &Context, args: &PruneArgs) -> Result<ExitCode> {
    let filters = value::filters(&args.filter)?;
    if !args.force && !confirm("WARNING! This will remove all stopped containers.")? {
        return Ok(ExitCode::SUCCESS);
    }
    let path = Query::new().with_filters(&filters).path(&["containers", "prune"]);
    let pruned: ContainerPruneResponse = context.client.post_empty(&path).await?;
    let removed = pruned.containers_deleted.unwrap_or_default();
    let deleted =
        if removed.is_empty() { String::new() } else { format!("Deleted Containers:\n{}\n\n", removed.join("\n")) };
    let bytes = u64::try_from(pruned.space_reclaimed.unwrap_or(0)).unwrap_or(0);
    print(&format!("{deleted}Total reclaimed space: {}\n", size::decimal(bytes)))
}
