//! `inspect`: what the engine tells about objects of any kind.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::Value as Json;

use super::args::Context;
use super::{complain, format, print};
use crate::client::Query;
use crate::error::{Error, Kind, Result};

/// Kinds of objects, in the order they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ObjectKind {
    /// Containers
    Container,
    /// Images
    Image,
    /// Networks
    Network,
    /// Volumes
    Volume,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// `json` or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// Also tell how large containers are
    #[arg(short, long)]
    size: bool,
    /// Only objects of this kind
    #[arg(long = "type", value_name = "KIND")]
    kind: Option<ObjectKind>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(super) async fn inspect(context: &Context, args: &InspectArgs) -> Result<ExitCode> {
    let kinds = match &args.kind {
        Some(kind) => std::slice::from_ref(kind),
        None => ObjectKind::value_variants(),
    };
    show(context, kinds, &args.names, args.format.as_deref(), args.size).await
}

/// Prints what the engine tells about each name, whatever else goes wrong.
pub(super) async fn show(
    context: &Context,
    kinds: &[ObjectKind],
    names: &[String],
    template: Option<&str>,
    size: bool,
) -> Result<ExitCode> {
    let (mut objects, mut failed) = (Vec::new(), false);
    for name in names {
        match find(context, kinds, name, size).await {
            Ok(object) => objects.push(object),
            Err(error) => {
                complain(&error);
                failed = true;
            }
        }
    }
    if template.is_none() || !objects.is_empty() {
        print(&format::inspect(&objects, template)?)?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn find(context: &Context, kinds: &[ObjectKind], name: &str, size: bool) -> Result<Json> {
    let mut missing = None;
    for kind in kinds {
        match context.client.get(&path(*kind, name, size)).await {
            Ok(object) => return Ok(object),
            // A name that one kind of object cannot have may be another's.
            Err(error) if kinds.len() > 1 && matches!(error.kind(), Kind::NotFound | Kind::InvalidArgument) => {}
            Err(error) => missing = Some(error),
        }
        if missing.is_some() {
            break;
        }
    }
    Err(missing.unwrap_or_else(|| Error::not_found(format!("No such object: {name}"))))
}

fn path(kind: ObjectKind, name: &str, size: bool) -> String {
    match kind {
        ObjectKind::Container => Query::new().with_flag("size", size).path(&["containers", name, "json"]),
        ObjectKind::Image => Query::new().path(&["images", name, "json"]),
        ObjectKind::Network => Query::new().path(&["networks", name]),
        ObjectKind::Volume => Query::new().path(&["volumes", name]),
    }
}
