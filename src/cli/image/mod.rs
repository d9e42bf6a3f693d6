//! Commands on images.

mod archive;
pub(super) mod list;
pub(super) mod pull;
pub(super) mod remove;
mod tag;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::args::Context;
use super::inspect::{ObjectKind, show};
use crate::error::Result;

/// `kiln image ...`.
#[derive(Debug, Subcommand)]
pub(super) enum Grouped {
    /// Show how an image was made
    History(list::HistoryArgs),
    /// Make an image of a root file system's archive
    Import(archive::ImportArgs),
    /// Show all about images
    Inspect(InspectArgs),
    /// Read images from an archive
    Load(archive::LoadArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(list::ListArgs),
    /// Remove images that nothing needs
    Prune(remove::PruneArgs),
    /// Fetch an image from a registry
    Pull(pull::PullArgs),
    /// Send an image to a registry
    Push(pull::PushArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(remove::RemoveArgs),
    /// Write images to an archive
    Save(archive::SaveArgs),
    /// Give an image another name
    Tag(tag::TagArgs),
}

/// The same without the noun.
#[derive(Debug, Subcommand)]
pub(super) enum Flat {
    /// Show how an image was made, or the builds of late
    History(super::history::HistoryCommand),
    /// List images
    Images(list::ListArgs),
    /// Make an image of a root file system's archive
    Import(archive::ImportArgs),
    /// Read images from an archive
    Load(archive::LoadArgs),
    /// Fetch an image from a registry
    Pull(pull::PullArgs),
    /// Send an image to a registry
    Push(pull::PushArgs),
    /// Remove images
    Rmi(remove::RemoveArgs),
    /// Write images to an archive
    Save(archive::SaveArgs),
    /// Give an image another name
    Tag(tag::TagArgs),
}

/// Arguments of `image inspect`.
#[derive(Debug, Args)]
pub(in crate::cli) struct InspectArgs {
    /// `json` or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Grouped {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::History(args) => list::history(context, &args).await,
            Self::Import(args) => archive::import(context, &args).await,
            Self::Inspect(args) => {
                show(context, &[ObjectKind::Image], &args.images, args.format.as_deref(), false).await
            }
            Self::Load(args) => archive::load(context, &args).await,
            Self::Ls(args) => list::list(context, &args).await,
            Self::Prune(args) => remove::prune(context, &args).await,
            Self::Pull(args) => pull::pull(context, &args).await,
            Self::Push(args) => pull::push(context, &args).await,
            Self::Rm(args) => remove::remove(context, &args).await,
            Self::Save(args) => archive::save(context, &args).await,
            Self::Tag(args) => tag::tag(context, &args).await,
        }
    }
}

impl Flat {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::History(args) => super::history::run(context, args).await,
            Self::Images(args) => list::list(context, &args).await,
            Self::Import(args) => archive::import(context, &args).await,
            Self::Load(args) => archive::load(context, &args).await,
            Self::Pull(args) => pull::pull(context, &args).await,
            Self::Push(args) => pull::push(context, &args).await,
            Self::Rmi(args) => remove::remove(context, &args).await,
            Self::Save(args) => archive::save(context, &args).await,
            Self::Tag(args) => tag::tag(context, &args).await,
        }
    }
}
