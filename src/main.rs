//! The `kiln` binary: chooses the role it plays before any thread exists.
//!
//! The command line is the usual role. The others are this binary started by itself: an engine child serves the command that
//! started it, a shim looks after one container and outlives the engine that started it.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use kiln::api::Server;
use kiln::client::ENGINE_ROLE;
use kiln::config::{Config, Environment, Flags};
use kiln::container::SHIM_ROLE;
use kiln::engine::{Control, Engine};
use kiln::error::{Error, Result};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match (args.get(1).and_then(|arg| arg.to_str()), args.get(2)) {
        (Some(ENGINE_ROLE), Some(root)) => exit(engine(Path::new(root), args.get(3).map(Path::new))),
        (Some(SHIM_ROLE), Some(root)) => exit(shim(Path::new(root), args.get(3))),
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
    let engine = Engine::open(Config::load(&flags, &Environment::of_process())?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let control = Control::new(std::io::stdin().as_fd().try_clone_to_owned()?)?;
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
