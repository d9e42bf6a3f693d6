//! The grammar of the command line, and what all commands share.
//!
//! Each noun has a file or a directory of its own with two enums: its grouped commands (`kiln image ls`) and those that docker
//! also knows without the noun (`kiln images`). Both lead to the same arguments.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::client::{Client, Dialer, ENGINE_ROLE, Endpoint, TlsFiles};
use crate::config::{self, Config, Environment, Flags};
use crate::error::{Error, Result};

use super::{build, builder, container, image, inspect, registry, system};

/// Builds container images and runs them.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, disable_help_subcommand = true, args_override_self = true)]
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
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(super) root: Option<PathBuf>,
    /// Configuration file to read instead of the usual ones
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(super) config: Option<PathBuf>,
    // Not for all subcommands: `history` has a -H of its own, as with docker.
    /// Engine to talk to: unix:///path or tcp://host:port
    #[arg(short = 'H', long, value_name = "HOST", help_heading = "Global options")]
    pub(super) host: Option<String>,
    /// Secure the connection to tcp://host:port with certificates of both sides
    #[arg(long, help_heading = "Global options")]
    tlsverify: bool,
    /// Certificates of the authority that vouches for the engine
    #[arg(long, value_name = "FILE", help_heading = "Global options")]
    tlscacert: Option<PathBuf>,
    /// Certificate to show to the engine
    #[arg(long, value_name = "FILE", help_heading = "Global options")]
    tlscert: Option<PathBuf>,
    /// Private key of the certificate
    #[arg(long, value_name = "FILE", help_heading = "Global options")]
    tlskey: Option<PathBuf>,
}

impl Global {
    fn flags(&self) -> Flags {
        let tls = config::TlsFiles { ca: self.tlscacert.clone(), cert: self.tlscert.clone(), key: self.tlskey.clone() };
        Flags {
            config: self.config.clone(),
            root: self.root.clone(),
            host: self.host.clone(),
            tlsverify: self.tlsverify,
            tls,
        }
    }
}

/// All commands. A noun takes two lines here and two in [`Command::run`].
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    #[command(flatten)]
    BuildFlat(build::Flat),
    /// Manage the build cache
    #[command(subcommand)]
    Builder(builder::Grouped),
    /// Manage containers
    #[command(subcommand)]
    Container(container::Grouped),
    #[command(flatten)]
    ContainerFlat(container::Flat),
    #[command(flatten)]
    Listed(container::Listed),
    /// Manage images
    #[command(subcommand)]
    Image(image::Grouped),
    #[command(flatten)]
    ImageFlat(image::Flat),
    /// Serve the Engine API on a socket
    #[command(disable_help_flag = true)]
    Daemon(DaemonArgs),
    #[command(flatten)]
    Registry(registry::Flat),
    /// Show all about containers, images and other objects
    Inspect(inspect::InspectArgs),
    /// Manage Kiln
    #[command(subcommand)]
    System(system::Grouped),
    #[command(flatten)]
    SystemFlat(system::Flat),
}

impl Command {
    /// Runs what needs no engine; `None` is everything else.
    pub(super) fn alone(&self) -> Result<Option<ExitCode>> {
        match self {
            Self::BuildFlat(build::Flat::Build(args)) | Self::Builder(builder::Grouped::Build(args)) => {
                build::alone(args)
            }
            _ => Ok(None),
        }
    }

    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::BuildFlat(command) => command.run(context).await,
            Self::Builder(command) => command.run(context).await,
            Self::Container(command) => command.run(context).await,
            Self::ContainerFlat(command) => command.run(context).await,
            Self::Listed(command) => command.run(context).await,
            Self::Image(command) => command.run(context).await,
            Self::ImageFlat(command) => command.run(context).await,
            Self::Inspect(args) => inspect::inspect(context, &args).await,
            Self::Daemon(args) => Err(args.misplaced()),
            Self::Registry(command) => command.run(context).await,
            Self::System(command) => command.run(context).await,
            Self::SystemFlat(command) => command.run(context).await,
        }
    }
}

/// What stands after `daemon` when something stands before it. `main` starts daemons, before any thread exists, and knows them
/// by their first word.
#[derive(Debug, Args)]
pub(super) struct DaemonArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    options: Vec<String>,
}

impl DaemonArgs {
    fn misplaced(&self) -> Error {
        let options = self.options.iter().map(|option| format!(" {option}")).collect::<String>();
        Error::invalid(format!("options of a daemon come after the word: kiln daemon{options} [OPTIONS]"))
    }
}

/// What a command works with: the engine and the settings.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) environment: Environment,
}

impl Context {
    /// Reads the settings and prepares to speak to the engine: the one that was named, else a daemon at the default socket,
    /// else an engine child.
    pub(super) fn new(global: &Global) -> Result<Self> {
        let environment = Environment::of_process();
        let config = Config::load(&global.flags(), &environment)?;
        let endpoint = match &config.host {
            Some(host) => named_endpoint(host, config.tls.as_ref())?,
            None => default_endpoint(global, &config, &environment),
        };
        Ok(Self { client: Client::new(Dialer::new(endpoint)?), environment })
    }

    /// Lets an engine child finish.
    pub(super) fn close(&self) {
        self.client.dialer().close(Duration::from_secs(10));
    }
}

fn named_endpoint(host: &str, tls: Option<&config::TlsFiles>) -> Result<Endpoint> {
    let endpoint: Endpoint = host.parse()?;
    let Some(config::TlsFiles { ca: Some(ca), cert, key }) = tls.cloned() else { return Ok(endpoint) };
    Ok(endpoint.with_tls(TlsFiles { ca, pair: cert.zip(key) }))
}

/// A daemon is asked only when nothing says where things are to be kept: it may keep them elsewhere.
fn default_endpoint(global: &Global, config: &Config, environment: &Environment) -> Endpoint {
    let socket = environment.default_socket();
    if global.root.is_none() && environment.path("KILN_ROOT").is_none() && answers(&socket) {
        return Endpoint::Unix(socket);
    }
    Endpoint::Child(engine_args(&config.root, global.config.as_deref()))
}

fn answers(socket: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

/// Returns the arguments that start an engine child.
fn engine_args(root: &Path, config: Option<&Path>) -> Vec<std::ffi::OsString> {
    let args = [Some(Path::new(ENGINE_ROLE)), Some(root), config];
    args.into_iter().flatten().map(|arg| arg.as_os_str().to_owned()).collect()
}
