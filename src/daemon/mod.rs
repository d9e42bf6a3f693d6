//! A daemon: the Engine API on unix and TCP sockets, until it is told to stop.

mod address;
mod arguments;
mod buildkitd;
mod listen;
mod notify;
mod tls;

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

pub use arguments::Arguments;
pub use buildkitd::BuildkitdArguments;

use crate::api::Server;
use crate::config::{Config, Environment};
use crate::engine::Engine;
use crate::error::Result;
use address::Address;
use arguments::Settings;
use listen::Listener;
use notify::Supervisor;

/// How long running work has to be cancelled in, once the daemon is told to stop.
const GRACE: Duration = Duration::from_secs(10);

/// How often the build cache is brought within its limits.
const CACHE_CHECK: Duration = Duration::from_secs(60);

/// Serves until SIGTERM or SIGINT; a second signal ends the process at once. Blocking.
///
/// # Errors
/// When the settings are wrong, the root cannot be opened or an address cannot be listened on.
pub fn run(arguments: Arguments, environment: &Environment) -> Result<()> {
    let config = Config::load(&arguments.flags(), environment)?;
    let settings = Settings::merge(arguments, &config.daemon, environment)?;
    serve(config, &settings, environment)
}

/// The same under the name of BuildKit's daemon, with its flags and its configuration.
///
/// # Errors
/// As [`run`].
pub fn run_as_buildkitd(arguments: BuildkitdArguments, environment: &Environment) -> Result<()> {
    let (flags, ignored) = arguments.flags()?;
    let (config, warnings) = Config::of_buildkitd(&flags, environment)?;
    let settings = Settings::of_buildkitd(&config.daemon)?;
    for warning in ignored.iter().chain(&warnings) {
        eprintln!("kiln: warning: {warning}");
    }
    if let Some(open) = settings.open_to_everybody() {
        eprintln!(
            "kiln: warning: {open}: whoever reaches this port is root on this machine (give --tlscert, --tlskey, --tlscacert)"
        );
    }
    serve(config, &settings, environment)
}

fn serve(config: Config, settings: &Settings, environment: &Environment) -> Result<()> {
    // Before the engine is opened: a wrong address or certificate is the likelier mistake, and costs nothing to find.
    let tls = settings.tls.as_ref().map(tls::config).transpose()?;
    let supervisor = Supervisor::from_environment(environment)?;
    let engine = Engine::open(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        engine.keep_up(CACHE_CHECK);
        let mut listeners = Vec::new();
        for address in &settings.hosts {
            listeners.extend(Listener::open(address, settings, tls.as_ref(), environment)?);
        }
        let server = Server::new(engine.clone());
        for listener in &listeners {
            eprintln!("kiln: listening on {listener}");
            listener.serve(server.clone(), engine.tasks());
        }
        supervisor.ready();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        supervisor.stopping();
        tokio::select! {
            () = engine.shutdown(GRACE) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
