//! Why a process was not started, in the words and with the exit codes of `docker run`.
//!
//! The exit code follows from the errno and the step, never from the text: 127 for what is not there, 126 for what may not be
//! executed, 125 for everything else. The text keeps Docker's phrases, because its client decides by them.

use std::fmt;

use rustix::io::Errno;

use crate::error::{Error, Kind};
use crate::sys::plan::{Failure, Plan, Point};

/// The cause of an error of [`super::spawn`] that `docker run` tells by its exit code.
#[derive(Debug)]
pub struct NotStarted {
    text: String,
    exit_code: u8,
}

impl NotStarted {
    /// Returns 126 or 127.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for NotStarted {}

/// Returns the exit code `run` has after an error of [`super::spawn`] or [`super::exec()`]: 125, 126 or 127.
#[must_use]
pub fn exit_code(error: &Error) -> u8 {
    error.cause::<NotStarted>().map_or(125, NotStarted::exit_code)
}

/// Makes an error for a step that the kernel refused.
pub(super) fn step(purpose: &str, errno: Errno) -> Error {
    error(format!("{purpose}: {}{}", words(errno), advice(errno)), errno)
}

/// Makes an error for a mount whose source and target are of different kinds, in Docker's words.
pub(super) fn wrong_kind(target: &str) -> Error {
    let text = format!(
        "mount to {target}: not a directory: Are you trying to mount a directory onto a file (or vice-versa)? Check if the \
         specified host path exists and is the expected type"
    );
    error(text, Errno::NOTDIR)
}

/// Makes an error for what a child reported.
pub(super) fn of_child(plan: &Plan, failure: Failure) -> Error {
    let Failure { at, errno } = failure;
    let named = &plan.name;
    match at {
        Point::Step(index) => {
            step(plan.steps.get(index).map_or("set up the container", |step| step.purpose.as_str()), errno)
        }
        Point::Fork => step("start the command beside the init", errno),
        Point::NotFound if plan.command.search => {
            error(format!("exec: {named:?}: executable file not found in $PATH"), Errno::NOENT)
        }
        Point::NotFound => error(format!("exec: {named:?}: stat {named}: {}", words(errno)), errno),
        Point::Exec(index) => {
            let path = plan.command.candidates.get(index).map_or("?".into(), |path| path.to_string_lossy());
            of_exec(&path, errno)
        }
    }
}

fn of_exec(path: &str, errno: Errno) -> Error {
    let text = match errno {
        Errno::ACCESS | Errno::PERM | Errno::ISDIR => format!("exec: {path:?}: {}", words(errno)),
        Errno::NOENT | Errno::NOTDIR => format!(
            "exec {path}: {} (the file exists; the interpreter or loader that it names does not exist in the image)",
            words(errno)
        ),
        Errno::NOEXEC => format!(
            "exec {path}: exec format error (not a program for {}, nor a script that begins with \"#!\")",
            std::env::consts::ARCH
        ),
        errno => format!("exec {path}: {}", words(errno)),
    };
    let code = if matches!(errno, Errno::NOENT | Errno::NOTDIR) { 127 } else { 126 };
    make(text, Some(code), Kind::InvalidArgument)
}

fn error(text: String, errno: Errno) -> Error {
    match errno {
        Errno::NOENT | Errno::NOTDIR => make(text, Some(127), Kind::InvalidArgument),
        Errno::ACCESS | Errno::ISDIR => make(text, Some(126), Kind::InvalidArgument),
        Errno::LOOP | Errno::NAMETOOLONG => make(text, None, Kind::InvalidArgument),
        Errno::PERM => make(text, None, Kind::Forbidden),
        Errno::NOSYS => make(text, None, Kind::Unsupported),
        Errno::NOMEM | Errno::NOSPC | Errno::AGAIN | Errno::MFILE | Errno::NFILE => make(text, None, Kind::Exhausted),
        _ => make(text, None, Kind::Internal),
    }
}

fn make(text: String, exit_code: Option<u8>, kind: Kind) -> Error {
    const WHAT: &str = "unable to start container process";
    match exit_code {
        Some(exit_code) => Error::new(kind, WHAT).with_source(NotStarted { text, exit_code }),
        None => Error::new(kind, format!("{WHAT}: {text}")),
    }
}

fn words(errno: Errno) -> String {
    Error::from(errno).to_string()
}

/// What to do about errors that say little.
fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSYS => " (Kiln needs Linux 5.12 or newer)",
        Errno::PERM => " (creating containers needs root, with all capabilities in this namespace)",
        _ => "",
    }
}
