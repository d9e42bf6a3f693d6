//! Signals this command receives and passes on to a container.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::terminal::{self, Size};
use crate::cli::complain;
use crate::client::{Client, Query};
use crate::error::{Error, Kind, Result};

/// The signals that are passed on, with the names the API knows. Those that stop this command for job control and those of
/// its own doing (`SIGCHLD`, `SIGPIPE`, `SIGURG`, `SIGWINCH`) are not among them.
const FORWARDED: &[(i32, &str)] = &[
    (libc::SIGHUP, "HUP"),
    (libc::SIGINT, "INT"),
    (libc::SIGQUIT, "QUIT"),
    (libc::SIGUSR1, "USR1"),
    (libc::SIGUSR2, "USR2"),
    (libc::SIGALRM, "ALRM"),
    (libc::SIGTERM, "TERM"),
    (libc::SIGCONT, "CONT"),
    (libc::SIGTSTP, "TSTP"),
    (libc::SIGIO, "IO"),
    (libc::SIGPWR, "PWR"),
];

/// After so many requests to end that the container did not follow, this command ends alone.
const PATIENCE: usize = 3;

/// Signals caught from now on.
#[derive(Debug)]
pub(super) struct Caught(Vec<(i32, &'static str, Signal)>);

impl Caught {
    /// Begins to catch the signals. They no longer end this command.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn begin() -> Result<Self> {
        let caught = FORWARDED.iter().map(|(number, name)| {
            let stream = signal(SignalKind::from_raw(*number))?;
            Ok((*number, *name, stream))
        });
        Ok(Self(caught.collect::<std::io::Result<_>>()?))
    }

    async fn next(&mut self) -> (i32, &'static str) {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(i32, &'static str)> {
        for (number, name, stream) in &mut self.0 {
            if Pin::new(stream).poll_recv(context).is_ready() {
                return Poll::Ready((*number, name));
            }
        }
        Poll::Pending
    }

    /// Passes signals on to a container, for ever. A container that does not run any more ignores them.
    ///
    /// # Errors
    /// `Cancelled` when the user asked [`PATIENCE`] times to end.
    pub(super) async fn forward(&mut self, client: &Client, container: &str) -> Result<std::convert::Infallible> {
        let mut asked = 0;
        loop {
            let (number, name) = self.next().await;
            if matches!(number, libc::SIGINT | libc::SIGTERM) {
                asked += 1;
                if asked == PATIENCE {
                    return Err(Error::cancelled("got 3 SIGTERM/SIGINTs, forcefully exiting"));
                }
            }
            let path = Query::new().with("signal", name).path(&["containers", container, "kill"]);
            match client.post_empty::<()>(&path).await {
                Err(error) if !matches!(error.kind(), Kind::Conflict | Kind::NotFound) => {
                    complain(&error.context(format!("pass on SIG{name}")));
                }
                _ => {}
            }
        }
    }

    /// Waits for a signal that asks this command to end; returns its number.
    pub(super) async fn ended(&mut self) -> i32 {
        loop {
            let (number, _) = self.next().await;
            if matches!(number, libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM) {
                return number;
            }
        }
    }
}

/// What has a terminal inside whose size follows that of this command's terminal.
#[derive(Clone, Debug)]
pub(super) struct Resizing {
    noun: &'static str,
    id: String,
}

impl Resizing {
    /// `noun` is `containers` or `exec`.
    pub(super) fn new(noun: &'static str, id: &str) -> Self {
        Self { noun, id: id.to_owned() }
    }

    /// Sets the size inside. A process that has ended has no terminal to resize.
    ///
    /// # Errors
    /// What the engine answered.
    pub(super) async fn set(&self, client: &Client, size: Size) -> Result<()> {
        let query = Query::new().with("h", size.rows.to_string()).with("w", size.columns.to_string());
        client.post_empty(&query.path(&[self.noun, &self.id, "resize"])).await
    }

    /// Follows the terminal's size, for ever.
    ///
    /// # Errors
    /// When the signal cannot be caught.
    pub(super) async fn follow(&self, client: &Client) -> Result<std::convert::Infallible> {
        let mut changed = signal(SignalKind::window_change())?;
        let mut last = terminal::size();
        loop {
            if changed.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
            let size = terminal::size();
            if let Some(size) = size.filter(|_| size != last) {
                // The next change tries again.
                let _ = self.set(client, size).await;
            }
            last = size;
        }
    }
}
