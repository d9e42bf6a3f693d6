//! The shim: one small process per running container, this binary in a role of its own, which outlives engines.
//!
//! It holds what a container needs while it runs: the other ends of its streams, its log, its exit status. It starts the
//! container, writes down what it does, starts it again as its restart policy says, and removes it when that was asked for.
//! If it is killed, the kernel kills the container with it, and whoever looks next cleans up.

mod exec;
mod hub;
mod run;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use self::hub::{Hub, Waiters};
use super::config::RestartPolicy;
use super::link::{self, Acknowledgement, Outcome, Place, Request};
use super::record::{self, ContainerId, Exited, Record, State};
use super::{Containers, launch};
use crate::error::{Error, Result};
use crate::sandbox::{Sandbox, WindowSize};
use crate::store::Lease;
use crate::sys::process::signal;
use crate::task::{self, Tasks};

/// How long clients that do not read their output can hold up the end of the shim.
const GRACE: Duration = Duration::from_secs(10);
/// The first pause before a container is started again; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// A run of this length makes the next pause the first again.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// What engines can reach of a container that runs.
#[derive(Debug)]
struct Desk {
    containers: Containers,
    current: Mutex<Option<(Arc<Sandbox>, Hub)>>,
    waiters: Waiters,
    terminals: exec::Terminals,
    /// Whether a user wants it to end.
    is_stopped: AtomicBool,
    stopped: Notify,
}

/// Starts a container and looks after it until it has ended for good. How the start went is reported on standard output.
///
/// # Errors
/// When the shim cannot even begin: then nothing was reported.
pub fn run(containers: &Containers, id: &str) -> Result<()> {
    // So that a terminal that hangs up means nothing to it. Without a session of its own it is no worse a shim.
    let _ = rustix::process::setsid();
    let id = ContainerId::parse(id)?;
    let _shim = containers.files(&id).become_shim()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Shim::new(containers, &id)?.run())
}

struct Shim {
    containers: Containers,
    id: ContainerId,
    place: Place,
    desk: Arc<Desk>,
    /// Keeps the container's layer as long as this process lives.
    lease: Lease,
    /// Conversations with engines.
    conversations: Tasks,
}

impl Shim {
    fn new(containers: &Containers, id: &ContainerId) -> Result<Self> {
        let place = Place::open(containers.files(id).dir())?;
        let lease = containers.store().lease("run container")?;
        let desk = Arc::new(Desk {
            containers: containers.clone(),
            current: Mutex::default(),
            waiters: Waiters::default(),
            terminals: exec::Terminals::default(),
            is_stopped: AtomicBool::new(false),
            stopped: Notify::new(),
        });
        let conversations = Tasks::new();
        Ok(Self { containers: containers.clone(), id: id.clone(), place, desk, lease, conversations })
    }

    async fn run(self) -> Result<()> {
        let begun = self.begin().await;
        let reported = begun.as_ref().map(drop).map_err(|error| Error::new(error.kind(), error.to_string()));
        launch::report(&reported);
        let Ok((listener, mut running)) = begun else {
            self.place.withdraw();
            return Ok(());
        };
        let listening = self.listen(listener);
        let mut pause = FIRST_PAUSE;
        let ended = loop {
            let ended = running.finish(&self.desk).await?;
            let exited = &ended.exited;
            let lasted = Duration::from_nanos(u64::try_from(exited.finished_ns - exited.started_ns).unwrap_or(0));
            pause = if lasted >= GOOD_RUN { FIRST_PAUSE } else { pause };
            let record = self.record().await?;
            if !self.is_to_restart(&record, exited) {
                break ended;
            }
            match self.restart(&record, exited, pause).await? {
                Some(again) => {
                    ended.release(&self.containers).await;
                    running = again;
                }
                None => break ended,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        self.end(ended.exited.clone()).await?;
        self.place.withdraw();
        listening.abort();
        ended.release(&self.containers).await;
        // Only a panic keeps it from ending.
        let _ = ended.closing.await;
        Ok(())
    }

    /// Makes the first run. Engines that waited for it are connected before the container's process exists.
    async fn begin(&self) -> Result<(UnixListener, run::Running)> {
        let record = self.record().await?;
        let listener = self.place.serve()?;
        let started = self.start(&record, true).await;
        if let Err(error) = &started {
            self.note_failure(&record, error).await?;
        }
        Ok((listener, started?))
    }

    async fn start(&self, record: &Record, is_first: bool) -> Result<run::Running> {
        let prepared = run::prepare(&self.containers, record)?;
        // The hub must be there before engines are asked what they want, and the process not before they have said it.
        *self.desk.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if is_first {
            for stream in self.place.call_pending().await? {
                converse(&self.desk, stream, Some(prepared.hub())).await;
            }
        }
        let running = prepared.start(&self.containers, &self.lease, record, is_first).await?;
        *self.desk.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(running.handle());
        Ok(running)
    }

    async fn note_failure(&self, record: &Record, error: &Error) -> Result<()> {
        let code = i32::from(crate::sandbox::exit_code(error));
        // 128 is what docker says of a start that failed for another reason than the command.
        let (code, error) = (if code == 125 { 128 } else { code }, error.to_string());
        let state = match &record.state {
            State::Exited(before) => State::Exited(Exited { code, error, ..before.clone() }),
            _ => State::Created { failure: Some((code, error)) },
        };
        self.write(move |tx, id| record::set_state(tx, id, &state)).await
    }

    /// Answers engines in the background.
    fn listen(&self, listener: UnixListener) -> tokio::task::JoinHandle<()> {
        let (desk, conversations) = (Arc::clone(&self.desk), self.conversations.clone());
        self.conversations.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let desk = Arc::clone(&desk);
                        conversations.spawn(async move { converse(&desk, stream, None).await });
                    }
                    // Out of descriptors, most likely: others may become free.
                    Err(_) => tokio::time::sleep(FIRST_PAUSE).await,
                }
            }
        })
    }

    fn is_to_restart(&self, record: &Record, exited: &Exited) -> bool {
        if self.desk.is_stopped.load(Ordering::Acquire) {
            return false;
        }
        match record.config.host.restart {
            RestartPolicy::No => false,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure(0) => exited.code != 0,
            RestartPolicy::OnFailure(most) => exited.code != 0 && record.restarts < most,
        }
    }

    /// Starts the container again after a pause; `None` when it was stopped meanwhile or does not start.
    async fn restart(&self, record: &Record, exited: &Exited, pause: Duration) -> Result<Option<run::Running>> {
        let (restarting, restarts) = (State::Restarting(exited.clone()), record.restarts + 1);
        self.write(move |tx, id| {
            record::set_address(tx, id, None)?;
            record::set_restarts(tx, id, restarts)?;
            record::set_state(tx, id, &restarting)
        })
        .await?;
        self.desk.waiters.ended(&outcome(exited), false).await;
        let stopped = self.desk.stopped.notified();
        if !self.desk.is_stopped.load(Ordering::Acquire) {
            // What ends the wait does not matter: the flag tells.
            let _ = tokio::time::timeout(pause, stopped).await;
        }
        if self.desk.is_stopped.load(Ordering::Acquire) {
            return Ok(None);
        }
        // A container that cannot be started again has ended; its last exit is what is known of it.
        Ok(self.start(record, false).await.ok())
    }

    /// Writes down how the container ended, or removes it if that was asked for, and tells those who wait.
    async fn end(&self, exited: Exited) -> Result<()> {
        let outcome = outcome(&exited);
        let record = self.record().await?;
        if !record.config.host.auto_remove {
            self.write(move |tx, id| {
                record::set_address(tx, id, None)?;
                record::set_state(tx, id, &State::Exited(exited))
            })
            .await?;
            self.desk.waiters.ended(&outcome, true).await;
            return Ok(());
        }
        // If this is interrupted, the record of a container without shim tells the next who looks to go on.
        let (containers, lease) = (self.containers.clone(), self.lease.clone());
        task::blocking(move || {
            let _turn = containers.files(&record.id).turn()?;
            containers.discard(&lease, &Record { state: State::Exited(exited), ..record })
        })
        .await?;
        self.desk.waiters.ended(&outcome, true).await;
        self.desk.waiters.removed(&outcome).await;
        Ok(())
    }

    async fn record(&self) -> Result<Record> {
        let (containers, id) = (self.containers.clone(), self.id.clone());
        task::blocking(move || containers.db().read(|connection| record::find(connection, id.as_str()))).await
    }

    async fn write(
        &self,
        operation: impl FnOnce(&rusqlite::Connection, &ContainerId) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (containers, id) = (self.containers.clone(), self.id.clone());
        task::blocking(move || containers.db().write(|tx| operation(tx, &id))).await
    }
}

fn outcome(exited: &Exited) -> Outcome {
    Outcome { code: exited.code, error: exited.error.clone() }
}

/// Hears what an engine wants, and does it. `starting` is the hub of a run that is about to begin.
async fn converse(desk: &Desk, mut stream: UnixStream, starting: Option<&Hub>) {
    let Ok(Ok(request)) = tokio::time::timeout(link::PATIENCE, link::receive::<Request>(&mut stream)).await else {
        return;
    };
    let current = desk.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let result = match request {
        Request::Attach { stdin, stdout, stderr } => {
            let hub = starting.or(current.as_ref().map(|(_, hub)| hub));
            if let Some(hub) = hub {
                hub.attach(stream, stdin, stdout, stderr);
            }
            return;
        }
        Request::Wait { removed } => return desk.waiters.add(stream, removed).await,
        Request::Signal { signal: number, ends } => {
            if ends {
                desk.is_stopped.store(true, Ordering::Release);
                desk.stopped.notify_waiters();
            }
            match (signal(number), &current) {
                (Some(signal), Some((sandbox, _))) => sandbox.signal(signal),
                (None, _) => Err(Error::invalid(format!("there is no signal {number}"))),
                (_, None) => Ok(()),
            }
        }
        Request::Exec { id, detach, rows, columns } => {
            let size = WindowSize { rows, columns };
            // What goes wrong later than the start is seen by its missing exit code.
            let _ = exec::run(&desk.containers, &desk.terminals, stream, &id, detach, size).await;
            return;
        }
        Request::ResizeExec { id, rows, columns } => desk.terminals.resize(&id, rows, columns),
        Request::Resize { rows, columns } => match current.as_ref().map(|(sandbox, _)| sandbox.terminal()) {
            Some(Some(terminal)) => terminal.resize(WindowSize { rows, columns }),
            Some(None) => Err(Error::invalid("the container has no terminal")),
            None => Err(Error::conflict("the container is not running")),
        },
    };
    // It may have gone.
    let _ = link::send(&mut stream, &Acknowledgement::of(result)).await;
}
