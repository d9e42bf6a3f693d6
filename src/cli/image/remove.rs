//! `rmi` and `image prune`.

use std::process::ExitCode;

use clap::Args;

use crate::cli::args::Context;
use crate::cli::confirm::confirm;
use crate::cli::format::size;
use crate::cli::{print, value};
use crate::client::Query;
use crate::error::{Kind, Result};
use crate::types::{ImageDeleteResponseItem, ImagePruneResponse};

/// Arguments of `rmi`.
#[derive(Debug, Args)]
pub(in crate::cli) struct RemoveArgs {
    /// Remove images with several names, and those of stopped containers; what is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Leave what the images were made of on the disk until something else is removed
    #[arg(long)]
    no_prune: bool,
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(super) async fn remove(context: &Context, args: &RemoveArgs) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let query = Query::new().with_flag("force", args.force).with_flag("noprune", args.no_prune);
    for image in &args.images {
        let removed = context.client.delete::<Vec<ImageDeleteResponseItem>>(&query.path(&["images", image])).await;
        match removed {
            Ok(removed) => {
                print(&removed.iter().map(line).collect::<String>())?;
            }
            Err(error) if args.force && error.kind() == Kind::NotFound => {}
            // The others are removed all the same.
            Err(error) => {
                crate::cli::complain(&error);
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn line(removed: &ImageDeleteResponseItem) -> String {
    match (&removed.untagged, &removed.deleted) {
        (Some(name), _) => format!("Untagged: {name}\n"),
        (None, Some(id)) => format!("Deleted: {id}\n"),
        (None, None) => String::new(),
    }
}

/// Arguments of `image prune`.
#[derive(Debug, Args)]
pub(in crate::cli) struct PruneArgs {
    /// Remove all images no container uses, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Filter: label, label!, until
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn prune(context: &Context, args: &PruneArgs) -> Result<ExitCode> {
    let warning = if args.all {
        "WARNING! This will remove all images without at least one container associated to them."
    } else {
        "WARNING! This will remove all dangling images."
    };
    if !args.force && !confirm(warning)? {
        return Ok(ExitCode::SUCCESS);
    }
    let pruned = request(context, args.all, &args.filter).await?;
    let listed = list(&pruned);
    let freed = size::decimal(u64::try_from(pruned.space_reclaimed.unwrap_or(0)).unwrap_or(0));
    print(&format!("{listed}Total reclaimed space: {freed}\n"))
}

/// Removes images that nothing needs.
///
/// # Errors
/// What the engine says.
pub(in crate::cli) async fn request(context: &Context, all: bool, filter: &[String]) -> Result<ImagePruneResponse> {
    let mut filters = value::filters(filter)?;
    filters.entry("dangling".to_owned()).or_insert_with(|| vec![(!all).to_string()]);
    context.client.post_empty(&Query::new().with_filters(&filters).path(&["images", "prune"])).await
}

/// What was removed, with a headline; nothing when nothing was.
pub(in crate::cli) fn list(pruned: &ImagePruneResponse) -> String {
    let removed = pruned.images_deleted.as_deref().unwrap_or_default();
    if removed.is_empty() {
        return String::new();
    }
    let lines = removed.iter().map(|item| match (&item.untagged, &item.deleted) {
        (Some(name), _) => format!("untagged: {name}\n"),
        (None, id) => format!("deleted: {}\n", id.as_deref().unwrap_or_default()),
    });
    format!("Deleted Images:\n{}\n", lines.collect::<String>())
}
