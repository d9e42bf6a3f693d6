//! The command line: commands, progress and tables.
//!
//! Every command is a client of the Engine API; what it prints is docker's output unless that can be bettered.

mod args;
mod build;
mod builder;
mod confirm;
mod container;
mod credentials;
pub mod format;
mod history;
mod image;
mod inspect;
mod registry;
mod shell;
mod system;
mod transfer;
mod upload;
mod value;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Cli, Context};

use crate::error::{Error, Result, ResultExt as _};

/// Is a small shell: what `--on-failure=shell` runs in a sandbox whose image has none. `args` are what follows the role.
#[must_use]
pub fn small_shell(args: &[OsString]) -> ExitCode {
    shell::main(args)
}

/// Runs the command line and returns the exit code.
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Broken pipes while printing help are nobody's error.
            let _ = error.print();
            if let Some(hint) = build::explain(&error) {
                anstream::eprintln!("\n{hint}");
            }
            return ExitCode::from(if error.use_stderr() { 125 } else { 0 });
        }
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::from(error.kind().codes().2)
        }
    }
}

/// Tells the user about a failure, on standard error.
fn complain(error: &Error) {
    let style = anstyle::AnsiColor::Red.on_default().bold();
    anstream::eprintln!("{style}error{style:#}: {error}");
}

/// Writes to standard output. Who reads may stop reading at any time, as `head` does: that is no error.
///
/// # Errors
/// When it cannot be written otherwise, for example because a disk is full.
fn print(text: &str) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context(|| "write standard output"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    if let Some(code) = cli.command.alone()? {
        return Ok(code);
    }
    let context = Context::new(&cli.global)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(cli.command.run(&context));
    context.close();
    result
}
