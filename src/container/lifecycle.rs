//! What engines do with containers over time: start, wait, signal, stop, restart and remove.
//!
//! Starting and stopping go on when the client that asked for them has gone.

use std::time::Duration;

use tokio::net::UnixStream;

use super::link::{self, Joined, Outcome, Place, Request};
use super::record::{Record, State};
use super::{Containers, spec};
use crate::error::{Error, Kind, Result};
use crate::sandbox::signal::{self, KILL, TERM};
use crate::sys::process::ended;
use crate::task;

/// How long a container is waited for after it was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(12);

/// Seconds between asking a container to stop and killing it, unless something else was said.
const STOP_TIMEOUT_S: i64 = 10;

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// That it does not run.
    #[default]
    NotRunning,
    /// That it ends the next time.
    NextExit,
    /// That it is removed.
    Removed,
}

/// A container that is waited for: whatever happens from now on is seen.
#[derive(Debug)]
pub struct Waiting {
    containers: Containers,
    record: Record,
    condition: Condition,
    state: WaitState,
}

#[derive(Debug)]
enum WaitState {
    Over(Outcome),
    Joined(Joined),
}

impl Containers {
    /// Finds a container, for an asynchronous caller.
    ///
    /// # Errors
    /// As [`Containers::find`].
    pub async fn look_up(&self, reference: &str) -> Result<Record> {
        let (containers, reference) = (self.clone(), reference.to_owned());
        task::blocking(move || containers.find(&reference)).await
    }

    /// Starts a container.
    ///
    /// # Errors
    /// `NotModified` when it runs already; otherwise why it cannot be started, in words from which docker's client makes its
    /// exit code. A container that removes itself is removed then.
    pub async fn start(&self, reference: &str) -> Result<()> {
        let record = self.look_up(reference).await?;
        let containers = self.clone();
        let starting = self.0.tasks.spawn(async move { containers.start_record(record).await });
        starting.await.unwrap_or_else(|_| Err(Error::cancelled("the engine is stopping")))
    }

    async fn start_record(&self, record: Record) -> Result<()> {
        let (containers, copy) = (self.clone(), record.clone());
        match task::blocking(move || containers.launch(&copy)).await {
            Ok(shim) => {
                let stopping = self.0.tasks.stopping();
                self.0.tasks.spawn(async move {
                    // An engine that lives on reaps its shims; those of one that ends are reaped by the system's init.
                    tokio::select! {
                        () = stopping.cancelled() => {}
                        () = reap(shim) => {}
                    }
                });
                Ok(())
            }
            Err(error) if error.kind() != Kind::NotModified && record.config.host.auto_remove => {
                let removed = self.remove_record(record).await;
                Err(if removed.as_ref().is_err_and(|e| e.kind() == Kind::NotFound) {
                    error
                } else {
                    error.and_cleanup(removed)
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Begins to wait for a container.
    ///
    /// # Errors
    /// `NotFound`; when no connection can be made.
    pub async fn wait(&self, reference: &str, condition: Condition) -> Result<Waiting> {
        let record = self.look_up(reference).await?;
        self.wait_for(record, condition).await
    }

    async fn wait_for(&self, record: Record, condition: Condition) -> Result<Waiting> {
        let over = |record: &Record| WaitState::Over(outcome_of(record));
        let state = if condition == Condition::NotRunning && !record.state.is_live() {
            over(&record)
        } else {
            let request = Request::Wait { removed: condition == Condition::Removed };
            match self.place(&record)?.join(request).await? {
                // It may have ended, or been removed, between the look at the record and the look for the shim.
                pending @ Joined::Pending(..) => {
                    let now = self.look_up(record.id.as_str()).await?;
                    let ended = condition == Condition::NotRunning && !now.state.is_live();
                    if ended { over(&now) } else { WaitState::Joined(pending) }
                }
                joined @ Joined::Running(_) => WaitState::Joined(joined),
            }
        };
        Ok(Waiting { containers: self.clone(), record, condition, state })
    }

    /// Sends a signal to a container's process. After `SIGKILL`, waits until it has ended.
    ///
    /// # Errors
    /// `Conflict`, in docker's words, when it does not run; `InvalidArgument` for an unknown signal.
    pub async fn kill(&self, reference: &str, signal: &str) -> Result<()> {
        let signal = if signal.is_empty() { KILL } else { signal::parse(signal)? };
        let record = self.look_up(reference).await?;
        let not_running =
            || Error::conflict(format!("cannot kill container: {reference}: container {} is not running", record.id));
        if !record.state.is_live() {
            return Err(not_running());
        }
        if signal != KILL {
            let ends = signal == stop_signal(&record, None)?;
            return if self.signal(&record, signal, ends).await? { Ok(()) } else { Err(not_running()) };
        }
        self.kill_record(&record).await
    }

    /// Kills a container and waits until it has ended.
    async fn kill_record(&self, record: &Record) -> Result<()> {
        let waiting = self.wait_for(record.clone(), Condition::NotRunning).await?;
        self.signal(record, KILL, true).await?;
        match tokio::time::timeout(KILL_TIMEOUT, waiting.outcome()).await {
            Ok(outcome) => outcome.map(drop),
            Err(_) => Err(Error::timeout(format!(
                "container {} does not end although it was killed: a process of it hangs in the kernel",
                record.name
            ))),
        }
    }

    /// Sends a signal through the shim; says whether there is one. `ends` says that the container is not to be started again.
    async fn signal(&self, record: &Record, signal: i32, ends: bool) -> Result<bool> {
        let Some(mut shim) = self.place(record)?.call(&Request::Signal { signal, ends }).await? else {
            return Ok(false);
        };
        match link::acknowledged(&mut shim).await {
            Err(error) if error.kind() == Kind::Unavailable => return Ok(false),
            answered => answered?,
        }
        if ends {
            // A process that stands still sees no signal.
            let (containers, record) = (self.clone(), record.clone());
            task::blocking(move || if containers.is_paused(&record) { spec::cgroup(&record)?.thaw() } else { Ok(()) })
                .await?;
        }
        Ok(true)
    }

    /// Stops a container: signal, time-out, kill. `timeout_s` is negative for "never kill".
    ///
    /// # Errors
    /// `NotModified` when it does not run; `InvalidArgument` for an unknown signal.
    pub async fn stop(&self, reference: &str, signal: Option<&str>, timeout_s: Option<i64>) -> Result<()> {
        let record = self.look_up(reference).await?;
        if !record.state.is_live() {
            return Err(Error::not_modified(format!("container {} is already stopped", record.name)));
        }
        let signal = stop_signal(&record, signal)?;
        let timeout_s = timeout_s.or(record.config.stop.timeout_s).unwrap_or(STOP_TIMEOUT_S);
        let containers = self.clone();
        let stopping = self.0.tasks.spawn(async move { containers.stop_record(&record, signal, timeout_s).await });
        stopping.await.unwrap_or_else(|_| Err(Error::cancelled("the engine is stopping")))
    }

    async fn stop_record(&self, record: &Record, signal: i32, timeout_s: i64) -> Result<()> {
        let waiting = self.wait_for(record.clone(), Condition::NotRunning).await?;
        if !self.signal(record, signal, true).await? {
            // It ended by itself, or its shim died: looking it up tells which.
            return self.look_up(record.id.as_str()).await.map(drop).or_else(ignore_missing);
        }
        match u64::try_from(timeout_s) {
            Err(_) => return waiting.outcome().await.map(drop),
            Ok(seconds) => {
                if let Ok(outcome) = tokio::time::timeout(Duration::from_secs(seconds), waiting.outcome()).await {
                    return outcome.map(drop);
                }
            }
        }
        self.kill_record(record).await
    }

    /// Stops a container, if it runs, and starts it.
    ///
    /// # Errors
    /// As for [`Containers::stop`] and [`Containers::start`].
    pub async fn restart(&self, reference: &str, signal: Option<&str>, timeout_s: Option<i64>) -> Result<()> {
        let id = self.look_up(reference).await?.id;
        // Whether it ran does not matter.
        match self.stop(id.as_str(), signal, timeout_s).await {
            Err(error) if error.kind() != Kind::NotModified => return Err(error),
            _ => {}
        }
        self.start(id.as_str()).await
    }

    /// Removes a container; `force` kills it first.
    ///
    /// # Errors
    /// `Conflict`, in docker's words, when it runs and is not to be killed.
    pub async fn remove(&self, reference: &str, force: bool) -> Result<()> {
        let record = self.look_up(reference).await?;
        let containers = self.clone();
        let removing = self.0.tasks.spawn(async move {
            if force && record.state.is_live() {
                containers.kill_record(&record).await.or_else(ignore_missing)?;
            }
            match containers.remove_record(record.clone()).await {
                // It removed itself when it ended.
                Err(error) if force && error.kind() == Kind::NotFound => Ok(()),
                removed => removed,
            }
        });
        removing.await.unwrap_or_else(|_| Err(Error::cancelled("the engine is stopping")))
    }

    async fn remove_record(&self, record: Record) -> Result<()> {
        let containers = self.clone();
        task::blocking(move || containers.remove_stopped(&record)).await
    }

    pub(super) fn place(&self, record: &Record) -> Result<Place> {
        Place::open(self.files(&record.id).dir())
    }
}

impl Waiting {
    /// Waits until the condition is met, and returns how the container ended.
    ///
    /// # Errors
    /// `NotFound` when a container whose next exit was waited for is removed before it ever runs.
    pub async fn outcome(self) -> Result<Outcome> {
        let Self { containers, mut record, condition, mut state } = self;
        loop {
            let joined = match state {
                WaitState::Over(outcome) => return Ok(outcome),
                WaitState::Joined(joined) => joined,
            };
            match hear(joined).await {
                Err(error) if error.kind() == Kind::Unavailable => {}
                outcome => return outcome,
            }
            // The shim has gone without a word: killed, or done before it knew of us.
            let now = containers.look_up(record.id.as_str()).await;
            match now {
                Err(error) if error.kind() == Kind::NotFound && condition != Condition::NextExit => {
                    return Ok(outcome_of(&record));
                }
                Err(error) => return Err(error),
                Ok(now) if condition != Condition::Removed && !now.state.is_live() => return Ok(outcome_of(&now)),
                Ok(now) => record = now,
            }
            state = match containers.wait_for(record.clone(), condition).await {
                Err(error) if error.kind() == Kind::NotFound && condition != Condition::NextExit => {
                    return Ok(outcome_of(&record));
                }
                waiting => waiting?.state,
            };
        }
    }
}

async fn hear(joined: Joined) -> Result<Outcome> {
    let mut shim: UnixStream = joined.connected().await?;
    link::outcome(&mut shim).await
}

pub(super) fn outcome_of(record: &Record) -> Outcome {
    let error = match &record.state {
        State::Exited(exited) => exited.error.clone(),
        _ => String::new(),
    };
    Outcome { code: record.state.exit_code(), error }
}

/// Collects a shim when it has ended.
async fn reap(mut shim: std::process::Child) {
    let pid = rustix::process::Pid::from_child(&shim);
    if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        && ended(pidfd).await.is_ok()
    {
        // How a shim ended does not matter: the container's record tells what it did.
        let _ = shim.wait();
    }
}

fn ignore_missing(error: Error) -> Result<()> {
    if error.kind() == Kind::NotFound { Ok(()) } else { Err(error) }
}

fn stop_signal(record: &Record, wanted: Option<&str>) -> Result<i32> {
    match wanted.filter(|signal| !signal.is_empty()) {
        Some(signal) => signal::parse(signal),
        None if record.config.stop.signal.is_empty() => Ok(TERM),
        None => signal::parse(&record.config.stop.signal),
    }
}
