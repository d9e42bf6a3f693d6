//! `system prune`.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value as Json;

use crate::cli::args::Context;
use crate::cli::confirm::confirm;
use crate::cli::format::size;
use crate::cli::image::remove;
use crate::cli::{print, value};
use crate::client::Query;
use crate::error::{Kind, Result};

/// Arguments of `system prune`.
#[derive(Debug, Args)]
pub(in crate::cli) struct PruneArgs {
    /// Remove all images no container uses and all of the build cache, not only what has no name
    #[arg(short, long)]
    all: bool,
    /// Filter: label, label!, until
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Also remove anonymous volumes no container uses
    #[arg(long)]
    volumes: bool,
}

pub(super) async fn prune(context: &Context, args: &PruneArgs) -> Result<ExitCode> {
    let filters = value::filters(&args.filter)?;
    if !args.force && !confirm(&warning(args))? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut total = 0;
    let mut kinds =
        vec![("containers", "Containers", "ContainersDeleted"), ("networks", "Networks", "NetworksDeleted")];
    if args.volumes {
        kinds.push(("volumes", "Volumes", "VolumesDeleted"));
    }
    for (noun, head, field) in kinds {
        let path = Query::new().with_filters(&filters).path(&[noun, "prune"]);
        match context.client.post_empty::<Json>(&path).await {
            Ok(pruned) => total += report(head, &pruned, field)?,
            // An engine that has no such objects has none to remove.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unsupported) => {}
            Err(error) => return Err(error),
        }
    }
    let images = remove::request(context, args.all, &args.filter).await?;
    print(&remove::list(&images))?;
    total += u64::try_from(images.space_reclaimed.unwrap_or(0)).unwrap_or(0);
    total += prune_cache(context, args.all, &cache_filters(&args.filter)).await?;
    print(&format!("Total reclaimed space: {}\n", size::decimal(total)))
}

/// Records of the build cache have no labels.
fn cache_filters(filter: &[String]) -> Vec<String> {
    filter.iter().filter(|entry| entry.starts_with("until")).cloned().collect()
}

fn warning(args: &PruneArgs) -> String {
    let images =
        if args.all { "all images without at least one container associated to them" } else { "all dangling images" };
    let volumes = if args.volumes { "  - all anonymous volumes not used by at least one container\n" } else { "" };
    let cache = if args.all { "all build cache" } else { "unused build cache" };
    format!(
        "WARNING! This will remove:\n  - all stopped containers\n  - all networks not used by at least one container\n\
         {volumes}  - {images}\n  - {cache}\n"
    )
}

/// Prints what was removed and returns how much space it took.
fn report(head: &str, pruned: &Json, field: &str) -> Result<u64> {
    let removed = pruned[field].as_array().map_or(&[][..], Vec::as_slice);
    if !removed.is_empty() {
        let mut text = format!("Deleted {head}:\n");
        for name in removed.iter().filter_map(Json::as_str) {
            let _ = writeln!(text, "{name}");
        }
        print(&format!("{text}\n"))?;
    }
    Ok(pruned["SpaceReclaimed"].as_u64().unwrap_or(0))
}

async fn prune_cache(context: &Context, all: bool, filter: &[String]) -> Result<u64> {
    let query = Query::new().with_flag("all", all).with_filters(&value::filters(filter)?);
    let pruned: Json = context.client.post_empty(&query.path(&["build", "prune"])).await?;
    report("build cache objects", &pruned, "CachesDeleted")
}
