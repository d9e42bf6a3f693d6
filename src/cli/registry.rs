//! `login` and `logout`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::args::Context;
use crate::config::docker::DockerConfig;
use crate::config::domain_of;
use crate::error::Result;

/// Commands on registries.
#[derive(Debug, Subcommand)]
pub(super) enum Flat {
    /// Forget the credentials for a registry
    Logout(LogoutArgs),
}

impl Flat {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Logout(args) => logout(context, &args),
        }
    }
}

/// Arguments of `logout`.
#[derive(Debug, Args)]
pub(super) struct LogoutArgs {
    /// The registry; Docker Hub unless given
    server: Option<String>,
}

fn logout(context: &Context, args: &LogoutArgs) -> Result<ExitCode> {
    let domain = domain_of(args.server.as_deref().unwrap_or("docker.io"));
    let mut config = DockerConfig::load(&context.environment)?;
    if config.logout(domain)? {
        println!("Removing login credentials for {domain}");
    } else {
        println!("Not logged in to {domain}");
    }
    Ok(ExitCode::SUCCESS)
}
