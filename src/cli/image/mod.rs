//! Commands on images.

pub(super) mod pull;
mod tag;

use std::process::ExitCode;

use clap::Subcommand;

use super::args::Context;
use crate::error::Result;

/// `kiln image ...`.
#[derive(Debug, Subcommand)]
pub(super) enum Grouped {
    /// Fetch an image from a registry
    Pull(pull::PullArgs),
    /// Send an image to a registry
    Push(pull::PushArgs),
    /// Give an image another name
    Tag(tag::TagArgs),
}

/// The same without the noun.
#[derive(Debug, Subcommand)]
pub(super) enum Flat {
    /// Fetch an image from a registry
    Pull(pull::PullArgs),
    /// Send an image to a registry
    Push(pull::PushArgs),
    /// Give an image another name
    Tag(tag::TagArgs),
}

impl Grouped {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Pull(args) => pull::pull(context, &args).await,
            Self::Push(args) => pull::push(context, &args).await,
            Self::Tag(args) => tag::tag(context, &args).await,
        }
    }
}

impl Flat {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Pull(args) => pull::pull(context, &args).await,
            Self::Push(args) => pull::push(context, &args).await,
            Self::Tag(args) => tag::tag(context, &args).await,
        }
    }
}
