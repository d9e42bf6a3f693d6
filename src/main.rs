//! The `kiln` binary: chooses the role it plays before any thread exists.
//!
//! The command line is the usual role. The others are this binary started by itself: an engine child serves the command that
//! started it, a shim looks after one container and outlives the engine that started it, a daemon serves a socket, and in a
//! failed build step it can be a small shell.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use kiln::api::Server;
use kiln::client::ENGINE_ROLE;
use kiln::config::{Config, Environment, Flags};
use kiln::container::SHIM_ROLE;
use kiln::engine::{Control, Engine};
use kiln::error::{Error, Result, ResultExt as _};
use kiln::solver::failed::SHELL_ROLE;
use kiln::task::Tasks;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match (args.get(1).and_then(|arg| arg.to_str()), args.get(2)) {
        (Some(ENGINE_ROLE), Some(root)) => exit(engine(Path::new(root), args.get(3).map(Path::new))),
        (Some(SHIM_ROLE), Some(root)) => exit(shim(Path::new(root), args.get(3))),
        (Some(SHELL_ROLE), _) => kiln::cli::small_shell(&args[2..]),
        (Some("daemon"), _) => match Daemon::try_parse_from(&args[1..]) {
            Ok(arguments) => exit(daemon(arguments)),
            Err(error) => error.exit(),
        },
        _ => kiln::cli::main(args),
    }
}

fn exit(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kiln: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves the parent over the socket on standard input until it closes it. Settings come from the same files and environment
/// as the parent's, or from the one file the parent names.
fn engine(root: &Path, config: Option<&Path>) -> Result<()> {
    let flags = Flags { root: Some(root.to_owned()), config: config.map(Path::to_owned), host: None };
    let opened = Config::load(&flags, &Environment::of_process()).and_then(Engine::open);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let control = Control::new(std::io::stdin().as_fd().try_clone_to_owned()?)?;
        let engine = match opened {
            Ok(engine) => engine,
            Err(error) => return Server::refusing(&error, Tasks::new()).serve_control(control).await,
        };
        engine.keep_durable();
        Server::new(engine.clone()).serve_control(control).await?;
        engine.shutdown(Duration::from_secs(10)).await;
        Ok(())
    })
}

/// Looks after the container with this id.
fn shim(root: &Path, id: Option<&OsString>) -> Result<()> {
    let id = id.and_then(|id| id.to_str()).ok_or_else(|| Error::invalid("a shim needs the id of its container"))?;
    kiln::engine::shim(root, id)
}

/// Serves the Engine API on a socket until it is told to stop.
#[derive(Debug, clap::Parser)]
#[command(name = "kiln daemon")]
struct Daemon {
    /// Directory that holds everything Kiln keeps
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// File with settings, instead of the usual ones
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen: unix:///path
    #[arg(short = 'H', long, value_name = "HOST")]
    host: String,
}

fn daemon(arguments: Daemon) -> Result<()> {
    let Daemon { root, config, host } = arguments;
    let path = host
        .strip_prefix("unix://")
        .filter(|path| path.starts_with('/'))
        .ok_or_else(|| Error::invalid(format!("invalid host {host:?}: a daemon listens on unix:///path/to/socket")))?;
    let engine = Engine::open(Config::load(&Flags { root, config, host: None }, &Environment::of_process())?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        engine.keep_durable();
        let (server, listener) = (Server::new(engine.clone()), listen(Path::new(path))?);
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            served = server.serve_unix(listener) => served?,
            _ = terminate.recv() => {}
            interrupted = tokio::signal::ctrl_c() => interrupted?,
        }
        engine.shutdown(Duration::from_secs(10)).await;
        Ok(())
    })
}

/// Listens on a socket that its owner and group may use, in the place of one that nobody listens on any more.
fn listen(path: &Path) -> Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    let doing = || format!("listen on {}", path.display());
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::conflict(format!("another daemon listens on {}", path.display())));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(doing),
        _ => {}
    }
    let listener = UnixListener::bind(path).context(doing)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).context(doing)?;
    Ok(listener)
}
