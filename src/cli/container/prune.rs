//! `container prune`: removes all containers that have ended.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;

use crate::cli::args::Context;
use crate::cli::format::size;
use crate::cli::value;
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
    if !args.force && !confirmed()? {
        return Ok(ExitCode::SUCCESS);
    }
    let path = Query::new().with_filters(&filters).path(&["containers", "prune"]);
    let pruned: ContainerPruneResponse = context.client.post_empty(&path).await?;
    let removed = pruned.containers_deleted.unwrap_or_default();
    if !removed.is_empty() {
        println!("Deleted Containers:\n{}\n", removed.join("\n"));
    }
    let bytes = u64::try_from(pruned.space_reclaimed.unwrap_or(0)).unwrap_or(0);
    println!("Total reclaimed space: {}", size::decimal(bytes));
    Ok(ExitCode::SUCCESS)
}

fn confirmed() -> Result<bool> {
    print!("WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
