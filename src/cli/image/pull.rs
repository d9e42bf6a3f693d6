//! `pull` and `push`.

use std::process::ExitCode;

use axum::body::Body;
use clap::Args;
use http::Method;
use kiln_graph::Reference;

use crate::cli::args::Context;
use crate::cli::transfer::{Show, follow};
use crate::cli::{credentials, print};
use crate::client::Query;
use crate::error::{Error, Result};

/// Arguments of `pull`.
#[derive(Debug, Args)]
pub(in crate::cli) struct PullArgs {
    /// Pull all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Platform of the image, os/arch[/variant]
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM")]
    platform: Option<String>,
    /// Print only the image's name
    #[arg(short, long)]
    quiet: bool,
    /// The image: NAME[:TAG|@DIGEST]
    name: String,
}

pub(super) async fn pull(context: &Context, args: &PullArgs) -> Result<ExitCode> {
    let name: Reference = args.name.parse()?;
    if args.all_tags && (name.tag().is_some() || name.digest().is_some()) {
        return Err(Error::invalid("tag can't be used with --all-tags/-a"));
    }
    let show = if args.quiet { Show::Nothing } else { Show::Progress };
    if args.all_tags {
        request(context, &name, args.platform.as_deref(), show).await?;
        return print(&format!("{name}\n"));
    }
    let tagged = name.clone().with_default_tag();
    if tagged != name && !args.quiet {
        print("Using default tag: latest\n")?;
    }
    request(context, &tagged, args.platform.as_deref(), show).await?;
    print(&format!("{tagged}\n"))
}

/// Pulls an image; one without tag and digest means all tags.
///
/// # Errors
/// What the engine says.
pub(in crate::cli) async fn request(
    context: &Context,
    name: &Reference,
    platform: Option<&str>,
    show: Show,
) -> Result<()> {
    let digest = name.digest().map(|digest| digest.to_string());
    let query = Query::new()
        .with("fromImage", name.repository())
        .with_some("tag", digest.as_deref().or(name.tag()))
        .with_some("platform", platform.filter(|platform| !platform.is_empty()));
    let request = context
        .client
        .request(Method::POST, &query.path(&["images", "create"]))
        .header(credentials::HEADER, credentials::header(context, name))
        .body(Body::empty())
        .expect("the request is well formed");
    follow(&context.client, request, show).await?;
    Ok(())
}

/// Arguments of `push`.
#[derive(Debug, Args)]
pub(in crate::cli) struct PushArgs {
    /// Push all tags of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// Refuse unless the image is of this platform, os/arch[/variant]
    #[arg(long)]
    platform: Option<String>,
    /// Print only the image's name
    #[arg(short, long)]
    quiet: bool,
    /// The image: NAME[:TAG]
    name: String,
}

pub(super) async fn push(context: &Context, args: &PushArgs) -> Result<ExitCode> {
    let mut name: Reference = args.name.parse()?;
    if args.all_tags && (name.tag().is_some() || name.digest().is_some()) {
        return Err(Error::invalid("tag can't be used with --all-tags/-a"));
    }
    if !args.all_tags {
        let tagged = name.clone().with_default_tag();
        if tagged != name && !args.quiet {
            print("Using default tag: latest\n")?;
        }
        name = tagged;
    }
    let query = Query::new().with_some("tag", name.tag()).with_some("platform", platform_json(args)?);
    let request = context
        .client
        .request(Method::POST, &query.path(&["images", &name.repository(), "push"]))
        .header(credentials::HEADER, credentials::header(context, &name))
        .body(Body::empty())
        .expect("the request is well formed");
    follow(&context.client, request, if args.quiet { Show::Nothing } else { Show::Progress }).await?;
    if args.quiet { print(&format!("{name}\n")) } else { Ok(ExitCode::SUCCESS) }
}

/// The API takes the platform of a push as JSON.
fn platform_json(args: &PushArgs) -> Result<Option<String>> {
    let Some(text) = &args.platform else { return Ok(None) };
    let platform: kiln_graph::Platform = text.parse()?;
    Ok(Some(serde_json::to_string(&platform)?))
}
