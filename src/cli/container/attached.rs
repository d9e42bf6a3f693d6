//! What goes on beside a conversation: signals are passed on, the terminal is raw, and its size is followed.

use std::process::ExitCode;

use super::signals::{Caught, Resizing};
use super::terminal::{self, Raw};
use crate::client::Client;
use crate::error::Result;

/// What happens to signals meanwhile.
#[derive(Debug)]
pub(super) enum Signals {
    /// They are passed on to a container.
    Forward(Caught, String),
    /// They do to this command what they always do.
    Own,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Outcome<T> {
    /// The work was done.
    Done(T),
    /// A signal with this number asked this command to end.
    Signalled(i32),
}

impl<T> Outcome<T> {
    /// Returns the result, or the exit code shells give a command that a signal ended.
    pub(super) fn or_exit_code(self) -> Result<T, ExitCode> {
        match self {
            Self::Done(result) => Ok(result),
            Self::Signalled(number) => Err(ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX))),
        }
    }
}

/// The terminals at both ends of a conversation.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    /// Whether this command's input is a terminal whose keys go inside as they are.
    pub(super) raw: bool,
    /// What has a terminal inside that is to have this terminal's size.
    pub(super) resizing: Option<Resizing>,
}

impl Ends {
    /// Decides for a terminal inside (or none); `input` says whether input is sent.
    pub(super) fn new(tty: bool, input: bool, resizing: Resizing) -> Self {
        Self {
            raw: tty && input && terminal::input_is_terminal(),
            resizing: (tty && terminal::output_is_terminal()).then_some(resizing),
        }
    }
}

/// Does `work` while the terminal is raw and signals and sizes are passed on. The terminal is restored whatever happens.
///
/// # Errors
/// Those of `work`; `Cancelled` when the user insists on ending; when the terminal cannot be made raw.
pub(super) async fn accompany<T>(
    client: &Client,
    ends: &Ends,
    signals: Signals,
    work: impl Future<Output = Result<T>>,
) -> Result<Outcome<T>> {
    // A raw terminal must be restored, so even what is not passed on must not end this command at once.
    let (mut caught, container) = match signals {
        Signals::Forward(caught, container) => (Some(caught), Some(container)),
        Signals::Own if ends.raw => (Some(Caught::begin()?), None),
        Signals::Own => (None, None),
    };
    let raw = ends.raw.then(Raw::enter).transpose()?;
    let signals = async {
        match (&mut caught, container) {
            (Some(caught), Some(container)) => caught.forward(client, &container).await.map(|never| match never {}),
            (Some(caught), None) => Ok(caught.ended().await),
            (None, _) => std::future::pending().await,
        }
    };
    let sizes = async {
        match &ends.resizing {
            Some(resizing) => resizing.follow(client).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        result = work => result.map(Outcome::Done),
        number = signals => number.map(Outcome::Signalled),
        failed = sizes => failed.map(|never| match never {}),
    };
    drop(raw);
    outcome
}
