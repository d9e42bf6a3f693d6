//! `tag`.

use std::process::ExitCode;

use clap::Args;
use kiln_graph::Reference;

use crate::cli::args::Context;
use crate::client::Query;
use crate::error::{Error, Result, ResultExt as _};

/// Arguments of `tag`.
#[derive(Debug, Args)]
pub(in crate::cli) struct TagArgs {
    /// The image: a name, an id or the beginning of one
    source: String,
    /// Its new name
    target: String,
}

pub(super) async fn tag(context: &Context, args: &TagArgs) -> Result<ExitCode> {
    let name: Reference = args.target.parse().context(|| "the new name of the image")?;
    if name.digest().is_some() {
        return Err(Error::invalid(format!("{}: a new name cannot have a digest", args.target)));
    }
    let query = Query::new().with("repo", name.repository()).with_some("tag", name.tag());
    let path = query.path(&["images", &args.source, "tag"]);
    context.client.post_empty::<()>(&path).await?;
    Ok(ExitCode::SUCCESS)
}
