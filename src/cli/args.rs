//! The grammar of the command line, and what all commands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::client::{Client, Dialer, ENGINE_ROLE, Endpoint};
use crate::error::Result;

/// Builds container images and runs them.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, disable_help_subcommand = true)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Directory that holds everything Kiln keeps
    #[arg(long, global = true, env = "KILN_ROOT", value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// Engine to talk to: unix:///path or tcp://host:port
    #[arg(short = 'H', long, global = true, value_name = "HOST")]
    pub(super) host: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the versions of the command and of the engine
    Version(super::system::VersionArgs),
}

/// What a command works with: the engine and the settings.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) client: Client,
}

impl Context {
    pub(super) fn new(global: &Global) -> Result<Self> {
        let endpoint = match &global.host {
            Some(host) => host.parse()?,
            None => Endpoint::Child(engine_args(global)),
        };
        Ok(Self { client: Client::new(Dialer::new(endpoint)?) })
    }

    /// Lets an engine child finish.
    pub(super) fn close(&self) {
        self.client.dialer().close(Duration::from_secs(10));
    }
}

/// Returns the arguments that start an engine child.
fn engine_args(global: &Global) -> Vec<String> {
    let root = global.root.clone().unwrap_or_else(|| PathBuf::from("/var/lib/kiln"));
    vec![ENGINE_ROLE.to_owned(), root.to_string_lossy().into_owned()]
}
