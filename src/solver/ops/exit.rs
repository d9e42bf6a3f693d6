//! How a RUN ended, in words: BuildKit's for the code, and what the code alone does not say.

use std::time::Duration;

use kiln_graph::op::Exec;

use crate::error::{Error, Kind, Result};
use crate::sandbox::{Exit, NotStarted};

/// How a process ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) exit: Exit,
    /// The time after which it was killed, if it took too long.
    pub(super) timed_out: Option<Duration>,
}

/// A process that did not do what it should.
#[derive(Debug)]
pub(super) struct Unsuccessful {
    pub(super) error: Error,
    /// The exit code and what is known about it; `None` when the process did not even start or end.
    pub(super) reason: Option<String>,
    /// Whether a program is there that this host does not execute.
    cannot_execute: bool,
}

impl From<Error> for Unsuccessful {
    fn from(error: Error) -> Self {
        let cannot_execute =
            error.cause::<NotStarted>().is_some_and(|cause| i32::from(cause.exit_code()) == CANNOT_EXECUTE);
        Self { error, reason: None, cannot_execute }
    }
}

impl Unsuccessful {
    /// Says which of several tries it was.
    pub(super) fn after(self, number: u32, tries: u32) -> Self {
        let error = Error::new(self.error.kind(), format!("{} (try {number} of {tries})", self.error));
        Self { error, ..self }
    }

    /// Makes an error that says why programs of the step's platform do not run here, when that is why this one did not.
    pub(super) fn with_obstacle(self, obstacle: Option<String>) -> Error {
        match obstacle.filter(|_| self.cannot_execute) {
            Some(obstacle) => Error::unsupported(format!("{}: {obstacle}", self.error)),
            None => self.error,
        }
    }
}

/// The exit code of what is there and cannot be executed.
const CANNOT_EXECUTE: i32 = 126;

/// Makes an error of an exit that is none of the valid ones.
pub(super) fn judge(exec: &Exec, ended: &Ended) -> Result<(), Unsuccessful> {
    let Ended { exit, timed_out } = ended;
    let code = exit.code();
    let succeeded = if exec.valid_exit_codes.is_empty() { code == 0 } else { exec.valid_exit_codes.contains(&code) };
    if succeeded && timed_out.is_none() {
        return Ok(());
    }
    let why = match timed_out {
        Some(timeout) => Some(format!("killed because it took longer than {timeout:?} (RUN --timeout)")),
        None => exit.explain().or_else(|| hint(code).map(str::to_owned)),
    };
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    let command = exec.args.join(" ");
    let reason = format!("exit code: {code}{why}");
    let text = format!("process {command:?} did not complete successfully: {reason}");
    let kind = match timed_out {
        Some(_) => Kind::Timeout,
        None if exit.is_oom_killed() => Kind::Exhausted,
        None => Kind::Internal,
    };
    Err(Unsuccessful { error: Error::new(kind, text), reason: Some(reason), cannot_execute: code == CANNOT_EXECUTE })
}

/// What shells mean by their own codes.
fn hint(code: i32) -> Option<&'static str> {
    match code {
        CANNOT_EXECUTE => {
            Some("a command was found but cannot be executed: it lacks the permission, or is for another platform")
        }
        127 => Some("a command was not found: it is not installed in this stage, or not in PATH"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Status;

    fn error(status: Status, timed_out: Option<Duration>, valid: &[i32]) -> Option<Error> {
        let exec = Exec { args: vec!["make".to_owned()], valid_exit_codes: valid.to_vec(), ..Exec::default() };
        let exit = Exit { status, usage: None, left_over: None, warnings: Vec::new() };
        judge(&exec, &Ended { exit, timed_out }).err().map(|bad| bad.error)
    }

    #[test]
    fn a_code_that_is_valid_is_no_error_unless_the_time_was_up() {
        assert!(error(Status::Code(0), None, &[]).is_none() && error(Status::Code(3), None, &[0, 3]).is_none());
        let error = error(Status::Signal(9), Some(Duration::from_secs(90)), &[137]).unwrap();
        assert_eq!(error.kind(), Kind::Timeout);
        let expected = "process \"make\" did not complete successfully: exit code: 137: killed because it took longer than \
                        90s (RUN --timeout)";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn codes_that_say_little_are_explained() {
        for (code, words) in [(126, "permission"), (127, "not found"), (139, "SIGSEGV"), (137, "SIGKILL")] {
            let text = error(Status::Code(code), None, &[]).unwrap().to_string();
            assert!(text.contains(&format!("exit code: {code}: ")) && text.contains(words), "{text}");
        }
        assert!(error(Status::Code(2), None, &[]).unwrap().to_string().ends_with("exit code: 2"));
    }
}
