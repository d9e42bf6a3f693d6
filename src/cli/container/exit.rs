//! How a container's end becomes this command's exit code.

use std::process::ExitCode;

use http::Method;

use crate::cli::complain;
use crate::client::{Client, Lines, Query};
use crate::error::{Error, Kind, Result};
use crate::types::ContainerWaitResponse;

/// The end of a container that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// It does not run, now or at last.
    NotRunning,
    /// It ends the next time.
    NextExit,
    /// It is removed.
    Removed,
}

/// A container's end, on its way.
#[derive(Debug)]
pub(super) struct Waiting(Lines<ContainerWaitResponse>);

impl Waiting {
    /// Begins to wait: when this returns, the engine will not miss the end.
    ///
    /// # Errors
    /// What the engine answered.
    pub(super) async fn begin(client: &Client, container: &str, until: Until) -> Result<Self> {
        let condition = match until {
            Until::NotRunning => "not-running",
            Until::NextExit => "next-exit",
            Until::Removed => "removed",
        };
        let path = Query::new().with("condition", condition).path(&["containers", container, "wait"]);
        let request = client.request(Method::POST, &path).body(axum::body::Body::empty());
        Ok(Self(client.lines(request.expect("the request is well formed")).await?))
    }

    /// Returns the exit status.
    ///
    /// # Errors
    /// When the engine cannot tell.
    pub(super) async fn end(mut self) -> Result<i64> {
        let end = self.0.next().await?.ok_or_else(|| Error::unavailable("the engine stopped while waiting"))?;
        match end.error.and_then(|error| error.message).filter(|message| !message.is_empty()) {
            Some(message) => Err(Error::internal(format!("wait for the container: {message}"))),
            None => Ok(end.status_code),
        }
    }
}

/// Says what went wrong; returns the exit code.
pub(super) fn report(error: &Error, code: u8) -> ExitCode {
    complain(error);
    ExitCode::from(code)
}

/// Turns a container's exit status into this command's.
pub(super) fn code(status: i64) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX))
}

/// Returns docker's exit code of `run` and `start` for a container that could not be started: 127 when its command does not
/// exist, 126 when it may not be executed, else 125; or 1 when the user insisted on ending.
///
/// The API tells these apart by nothing but the text, which is therefore part of it.
pub(super) fn failure(error: &Error) -> u8 {
    if error.kind() == Kind::Cancelled {
        return 1;
    }
    let text = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["executable file not found", "no such file or directory", "system cannot find the file specified"]) {
        127
    } else if says(&["permission denied", "is a directory"]) {
        126
    } else {
        125
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_cannot_be_started_has_dockers_exit_code() {
        for (text, code) in [
            ("exec: \"nope\": executable file not found in $PATH", 127),
            ("exec: \"/nope\": stat /nope: no such file or directory", 127),
            ("exec: \"/etc/passwd\": permission denied", 126),
            ("exec: \"/etc\": is a directory", 126),
            ("no such image: nope", 125),
        ] {
            assert_eq!(failure(&Error::invalid(text)), code, "{text}");
        }
    }
}
