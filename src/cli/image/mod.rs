//! Commands on images.

mod tag;

use std::process::ExitCode;

use clap::Subcommand;

use super::args::Context;
use crate::error::Result;

/// `kiln image ...`.
#[derive(Debug, Subcommand)]
pub(super) enum Grouped {
    /// Give an image another name
    Tag(tag::TagArgs),
}

/// The same without the noun.
#[derive(Debug, Subcommand)]
pub(super) enum Flat {
    /// Give an image another name
    Tag(tag::TagArgs),
}

impl Grouped {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Tag(args) => tag::tag(context, &args).await,
        }
    }
}

impl Flat {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Tag(args) => tag::tag(context, &args).await,
        }
    }
}
