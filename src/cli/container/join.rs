//! Joining a container: its streams opened, its end waited for, and then the conversation held to its end.

use std::process::ExitCode;
use std::time::Duration;

use axum::body::Body;
use http::Method;

use super::attached::{Ends, Signals, accompany};
use super::detach::Keys;
use super::exit::{self, Until, Waiting};
use super::options::Streams;
use super::session::{self, End, Settings};
use super::signals::{Caught, Resizing};
use super::terminal::{self, Size};
use crate::client::{Client, Hijacked, Query};
use crate::error::Result;

/// The longest a container that was not started is waited for to be removed.
const REMOVAL: Duration = Duration::from_secs(10);

/// What is joined, and how.
#[derive(Clone, Debug)]
pub(super) struct Join {
    /// The container's id.
    pub(super) id: String,
    /// What this command connects to.
    pub(super) streams: Streams,
    /// Whether the container has a terminal.
    pub(super) tty: bool,
    /// The keys that leave it.
    pub(super) keys: Keys,
    /// The end that counts.
    pub(super) until: Until,
    /// Whether signals are passed on.
    pub(super) forward: bool,
    /// What happens to the size of the container's terminal at first.
    pub(super) first_size: FirstSize,
}

/// What happens to the size of a container's terminal at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstSize {
    /// It was created with the right one.
    Known,
    /// It is set.
    Set,
    /// It is changed and set, because programs draw anew only when it changes.
    Redraw,
}

/// A container that is joined. Nothing it writes from now on is missed, nor its end.
#[derive(Debug)]
pub(super) struct Joined {
    join: Join,
    stream: Hijacked,
    waiting: Waiting,
    signals: Signals,
}

impl Join {
    /// Opens the streams of a container that may not have been started yet.
    ///
    /// # Errors
    /// What the engine answers.
    pub(super) async fn open(self, client: &Client) -> Result<Joined> {
        let query = Query::new()
            .with("stream", "1")
            .with_flag("stdin", self.streams.input)
            .with_flag("stdout", self.streams.output)
            .with_flag("stderr", self.streams.errors)
            .with_some("detachKeys", self.keys.text());
        let request = client.request(Method::POST, &query.path(&["containers", &self.id, "attach"]));
        let opening = client.hijack(request, "tcp", Body::empty());
        let (stream, waiting) = tokio::try_join!(opening, Waiting::begin(client, &self.id, self.until))?;
        let signals = if self.forward { Signals::Forward(Caught::begin()?, self.id.clone()) } else { Signals::Own };
        Ok(Joined { join: self, stream, waiting, signals })
    }
}

impl Joined {
    /// Waits until a container that could not be started is gone, if it is one that removes itself.
    pub(super) async fn abandon(self) {
        if self.join.until == Until::Removed {
            // Whatever becomes of it: that it could not be started is the news.
            let _ = tokio::time::timeout(REMOVAL, self.waiting.end()).await;
        }
    }

    /// Converses until the container ends or the user leaves; returns the exit code: the container's, or 0 after leaving.
    ///
    /// # Errors
    /// As [`session::converse`] and [`Waiting::end`].
    pub(super) async fn converse(self, client: &Client) -> Result<ExitCode> {
        let Self { join, stream, waiting, signals } = self;
        let Join { id, streams, tty, keys, first_size, .. } = join;
        let ends = Ends::new(tty, streams.input, Resizing::new("containers", &id));
        let settings = Settings { input: streams.input, output: streams.shows(), tty, keys: Some(keys) };
        let work = async {
            if let (Some(resizing), Some(size)) = (&ends.resizing, terminal::size()) {
                set_size(client, resizing, size, first_size).await;
            }
            match session::converse(stream, settings).await? {
                End::Closed if streams.shows() => Ok(exit::code(waiting.end().await?)),
                // It goes on alone.
                End::Closed | End::Detached => Ok(ExitCode::SUCCESS),
            }
        };
        let outcome = accompany(client, &ends, signals, work).await?;
        Ok(outcome.or_exit_code().unwrap_or_else(|code| code))
    }
}

/// A size that cannot be set is no failure: the container may have ended already.
async fn set_size(client: &Client, resizing: &Resizing, size: Size, first: FirstSize) {
    if first == FirstSize::Redraw {
        let _ = resizing.set(client, Size { rows: size.rows.saturating_add(1), ..size }).await;
    }
    if first != FirstSize::Known {
        let _ = resizing.set(client, size).await;
    }
}
