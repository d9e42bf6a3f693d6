//! The `kiln` binary: chooses the role it plays before any thread exists.
//!
//! The command line is the usual role. The others are this binary started by itself: an engine child serves the command that
//! started it, a shim looks after one container and outlives the engine that started it, a daemon serves a socket, and in a
//! failed build step it can be a small shell. Under the name `buildkitd` it is a daemon with that program's flags.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use kiln::api::Server;
use kiln::client::ENGINE_ROLE;
use kiln::config::{Config, Environment, Flags};
use kiln::container::SHIM_ROLE;
use kiln::daemon;
use kiln::engine::{Control, Engine};
use kiln::error::{Error, Result};
use kiln::solver::failed::SHELL_ROLE;
use kiln::task::Tasks;

/// How often commands without a daemon bring the build cache within its limits.
const CACHE_CHECK: Duration = Duration::from_hours(1);

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if args.first().is_some_and(|name| Path::new(name).file_name().is_some_and(|name| name == "buildkitd")) {
        return buildkitd(&args);
    }
    match (args.get(1).and_then(|arg| arg.to_str()), args.get(2)) {
        (Some(ENGINE_ROLE), Some(root)) => exit(engine(Path::new(root), args.get(3).map(Path::new))),
        (Some(SHIM_ROLE), Some(root)) => exit(shim(Path::new(root), args.get(3))),
        (Some(SHELL_ROLE), _) => kiln::cli::small_shell(&args[2..]),
        (Some("buildkitd"), _) => buildkitd(&args[1..]),
        (Some("daemon"), _) => match daemon::Arguments::try_parse_from(&args[1..]) {
            Ok(arguments) => exit(daemon::run(arguments, &Environment::of_process())),
            Err(error) => error.exit(),
        },
        _ => kiln::cli::main(args),
    }
}

/// Serves as BuildKit's daemon does, under its name or as a command of Kiln's.
fn buildkitd(args: &[OsString]) -> ExitCode {
    match daemon::BuildkitdArguments::try_parse_from(args) {
        Ok(arguments) => exit(daemon::run_as_buildkitd(arguments, &Environment::of_process())),
        Err(error) => error.exit(),
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
    let flags = Flags { root: Some(root.to_owned()), config: config.map(Path::to_owned), ..Flags::default() };
    let opened = Config::load(&flags, &Environment::of_process()).and_then(Engine::open);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let control = Control::new(std::io::stdin().as_fd().try_clone_to_owned()?)?;
        let engine = match opened {
            Ok(engine) => engine,
            Err(error) => return Server::refusing(&error, Tasks::new()).serve_control(control).await,
        };
        engine.keep_up(CACHE_CHECK);
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
