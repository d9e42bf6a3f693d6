//! Failed steps that are kept: their files, mounts, environment and limits as they stood, so that a shell can be opened
//! in them or what they changed be saved.
//!
//! A step is kept when its build asks for that, under an id that the build's error carries. It goes when it is released, when the
//! session of its build closes, and when the engine stops. Processes are not kept: they ended with the step.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use tokio::sync::OwnedMutexGuard;

use super::ops::Step;
use super::{Solver, lock};
use crate::error::{Error, Kind, Result};
use crate::sandbox::{self, Access, Exit, Mount, NotStarted, Sandbox, Source, Spec, Stdio, Streams, Stubs, User};
use crate::task::{self, Cancel};

pub use crate::sandbox::{Terminal, WindowSize};

/// Where Kiln's own program is in the sandbox of a shell. The directory is the sandbox's own, not the step's.
const TOOLS: &str = "/dev/kiln";

/// The role in which that program is a shell.
pub const SHELL_ROLE: &str = "-shell";

/// The failed steps of an engine, by id.
pub(super) type FailedSteps = Mutex<HashMap<String, FailedStep>>;

/// A failed step that is kept. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct FailedStep(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    /// `None` once it was released.
    step: Arc<tokio::sync::Mutex<Option<Step>>>,
    /// The sandbox that runs in it now.
    running: Mutex<Option<Arc<Sandbox>>>,
    /// How the last one ended.
    exit: Mutex<Option<Exit>>,
}

/// A process that is to run in a failed step's sandbox.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// The command; none is a shell: the step's own, or else Kiln's.
    pub args: Vec<String>,
    /// Variables besides the step's.
    pub env: Vec<String>,
    /// The size of its terminal; without one it has pipes.
    pub terminal: Option<WindowSize>,
}

/// A process in a failed step's sandbox. [`Self::end`] must be called; dropping it leaves mount points behind in the files.
#[derive(Debug)]
pub struct Inspector {
    failed: FailedStep,
    step: OwnedMutexGuard<Option<Step>>,
    sandbox: Arc<Sandbox>,
    streams: Streams,
    stubs: Stubs,
}

impl Solver {
    /// Keeps a failed step, and returns its id.
    pub(super) fn keep_failed(&self, step: Step, name: String) -> Result<String> {
        let number = getrandom::u64().map_err(|error| Error::internal(format!("make an id: {error}")))?;
        let id = format!("failed-{number:016x}");
        let session = step.job.session.clone();
        let step = Arc::new(tokio::sync::Mutex::new(Some(step)));
        let failed = FailedStep(Arc::new(Inner { name, step, running: Mutex::default(), exit: Mutex::default() }));
        lock(self.failed_steps()).insert(id.clone(), failed);
        let (solver, stopping, kept) = (self.clone(), self.deps().tasks.stopping(), id.clone());
        self.deps().tasks.spawn(async move {
            tokio::select! {
                () = session.closed() => {}
                () = stopping.cancelled() => {}
            }
            // Whoever is gone needs no answer.
            let _ = solver.release_failed(&kept).await;
        });
        Ok(id)
    }

    /// Finds a failed step that is kept.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn failed_step(&self, id: &str) -> Result<FailedStep> {
        let found = lock(self.failed_steps()).get(id).cloned();
        found
            .ok_or_else(|| Error::not_found(format!("no failed step {id} is kept: its build has gone, or released it")))
    }

    /// Lets a failed step go, after killing what runs in it.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn release_failed(&self, id: &str) -> Result<()> {
        let failed = lock(self.failed_steps()).remove(id);
        let Some(failed) = failed else {
            return Err(Error::not_found(format!("no failed step {id} is kept")));
        };
        if let Some(sandbox) = failed.running() {
            sandbox.signal(Signal::KILL)?;
        }
        let step = failed.0.step.lock().await.take();
        task::blocking(move || {
            drop(step.map(Step::into_tree));
            Ok(())
        })
        .await
    }
}

impl FailedStep {
    /// Returns what progress calls the step.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns how the last process ended that ran in it.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        lock(&self.0.exit).as_ref().map(Exit::code)
    }

    fn running(&self) -> Option<Arc<Sandbox>> {
        lock(&self.0.running).clone()
    }

    async fn hold(&self) -> Result<OwnedMutexGuard<Option<Step>>> {
        let held = Arc::clone(&self.0.step).lock_owned().await;
        if held.is_none() { Err(Error::not_found("the failed step was released")) } else { Ok(held) }
    }

    /// Starts a process in the step's sandbox. One at a time: a second waits for the end of the first.
    ///
    /// # Errors
    /// As [`sandbox::spawn`].
    pub async fn open(&self, inspection: Inspection) -> Result<Inspector> {
        let held = self.hold().await?;
        let failed = self.clone();
        task::blocking(move || {
            let step = held.as_ref().ok_or_else(|| Error::not_found("the failed step was released"))?;
            let mut sandbox = start(step, &inspection)?;
            let (streams, stubs) = (sandbox.take_streams(), sandbox.take_stubs());
            let sandbox = Arc::new(sandbox);
            *lock(&failed.0.running) = Some(Arc::clone(&sandbox));
            *lock(&failed.0.exit) = None;
            Ok(Inspector { failed, step: held, sandbox, streams, stubs })
        })
        .await
    }

    /// Sets the size of the terminal of the process that runs. One that has ended needs none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        let sandbox = self.running();
        sandbox.as_ref().and_then(|sandbox| sandbox.terminal()).map_or(Ok(()), |terminal| terminal.resize(size))
    }

    /// Sends a signal to the process that runs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.running().map_or(Ok(()), |sandbox| sandbox.signal(signal))
    }

    /// Writes what the step has changed as a layer: a tar archive in which `.wh.NAME` stands for what was removed. Blocking.
    ///
    /// # Errors
    /// `Exhausted` on a full disk; what `out` answers.
    pub fn write_changes(&self, out: &mut dyn Write, cancel: &Cancel) -> Result<()> {
        let held = self.0.step.blocking_lock();
        let step = held.as_ref().ok_or_else(|| Error::not_found("the failed step was released"))?;
        let store = &step.job.solver.deps().store;
        // The step goes on changing its own tree.
        let snapshot = step.tree().fork(&step.job.lease, cancel)?.commit()?;
        store.write_layer(snapshot, out, cancel).map(drop)
    }
}

impl Inspector {
    /// Returns the sandbox.
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Takes this side of its pipes, when it has no terminal.
    pub fn take_streams(&mut self) -> Streams {
        std::mem::take(&mut self.streams)
    }

    /// Waits for the end of the process, and makes the step ready for another.
    ///
    /// # Errors
    /// When the status cannot be had, or the files not be cleared of mount points.
    pub async fn end(self) -> Result<Exit> {
        let exit = self.sandbox.wait().await?;
        let Self { failed, step, sandbox, stubs, .. } = self;
        *lock(&failed.0.exit) = Some(exit.clone());
        *lock(&failed.0.running) = None;
        task::blocking(move || {
            drop(sandbox);
            step.as_ref().map_or(Ok(()), |step| step.clear(stubs))
        })
        .await?;
        Ok(exit)
    }
}

/// Starts what is asked for, or the first shell that starts.
fn start(step: &Step, inspection: &Inspection) -> Result<Sandbox> {
    let mut tries: Vec<(Vec<String>, bool)> = Vec::new();
    if inspection.args.is_empty() {
        tries.extend(shells(&step.exec.args).map(|shell| (vec![shell], true)));
        let own = vec![TOOLS.to_owned(), SHELL_ROLE.to_owned()];
        // A user or a directory that does not exist may be why the step failed.
        tries.extend([(own.clone(), true), (own, false)]);
    } else {
        tries.push((inspection.args.clone(), true));
    }
    let mut refused = None;
    for (args, as_it_was) in tries {
        match try_start(step, inspection, args, as_it_was) {
            Ok(sandbox) => return Ok(sandbox),
            Err(error) if error.cause::<NotStarted>().is_some() || error.kind() == Kind::InvalidArgument => {
                refused = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::internal("there is no shell to try")))
}

fn try_start(step: &Step, inspection: &Inspection, args: Vec<String>, as_it_was: bool) -> Result<Sandbox> {
    let stdio = match inspection.terminal {
        Some(size) => Stdio::Terminal(size),
        None => Stdio::Pipes { stdin: true },
    };
    let tools = sandbox::own_program()?;
    step.start(stdio, |spec: &mut Spec| {
        spec.process.args = args;
        spec.process.env.extend(inspection.env.iter().cloned());
        let source = Source::Detached { mount: tools, subpath: String::new() };
        spec.mounts.push(Mount { target: TOOLS.to_owned(), source, access: Access::ReadOnly });
        if !as_it_was {
            spec.process.user = User::default();
            spec.process.cwd.clear();
        }
    })
}

/// The shells to try: the one that the step was started with, and the usual one.
fn shells(args: &[String]) -> impl Iterator<Item = String> {
    let own = match args {
        [shell, option, ..] if option.starts_with('-') && shell.starts_with('/') && shell.ends_with("sh") => {
            Some(shell.clone())
        }
        _ => None,
    };
    let usual = Some("/bin/sh".to_owned()).filter(|usual| own.as_ref() != Some(usual));
    own.into_iter().chain(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_of_the_step_comes_first() {
        let of = |args: &[&str]| shells(&args.iter().map(ToString::to_string).collect::<Vec<_>>()).collect::<Vec<_>>();
        assert_eq!(of(&["/bin/bash", "-euc", "make"]), ["/bin/bash", "/bin/sh"]);
        assert_eq!(of(&["/bin/sh", "-c", "make"]), ["/bin/sh"]);
        assert_eq!(of(&["make", "-j"]), ["/bin/sh"]);
    }
}
