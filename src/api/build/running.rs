//! The builds of this engine, by the reference each client chose for its own.
//!
//! `Status` finds the build here that `Solve` runs. Either may come first: both travel at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::solver::bridge::Bridge;
use crate::solver::progress::{Event, Progress, Watcher};
use crate::task::Clock;

/// How long a watcher waits for its build to begin.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many ended builds are remembered for watchers that come late.
const REMEMBERED: usize = 16;

/// The builds of an engine. Cloning gives another handle.
#[derive(Clone, Debug)]
pub(super) struct Builds {
    inner: Arc<Mutex<Inner>>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Inner {
    builds: HashMap<String, Build>,
    ended: VecDeque<String>,
}

#[derive(Debug)]
struct Build {
    progress: Progress,
    /// Cancelled when the build begins.
    begun: CancellationToken,
    /// The frontend's side of the build, once it is known whether there is one.
    gate: watch::Sender<Gate>,
    /// How many watch it.
    watchers: usize,
}

/// Whether calls of a frontend lead to a build.
#[derive(Clone, Debug, Default)]
enum Gate {
    /// It is not known yet.
    #[default]
    Unknown,
    /// They do as long as the bridge is there.
    Open(Weak<Bridge>),
    /// The build's frontend is not at the client.
    Closed,
}

impl Builds {
    /// Makes an empty register.
    pub(super) fn new(clock: Clock) -> Self {
        Self { inner: Arc::default(), clock }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic happens while the lock is held")
    }

    /// Begins a build; it ends when the guard is dropped.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty reference, `Conflict` when there is a build of that reference.
    pub(super) fn begin(&self, reference: &str) -> Result<Running> {
        if reference.is_empty() {
            return Err(Error::invalid("the build has no reference (SolveRequest.Ref)"));
        }
        let mut inner = self.lock();
        let build = inner.builds.entry(reference.to_owned()).or_insert_with(|| Build::new(self.clock));
        if build.begun.is_cancelled() {
            return Err(Error::conflict(format!("job ID exists: there is a build {reference} already")));
        }
        build.begun.cancel();
        let (reference, progress, gate) = (reference.to_owned(), build.progress.clone(), build.gate.clone());
        Ok(Running { builds: self.clone(), reference, progress, gate })
    }

    /// Finds the frontend's side of a build, which may be still to come.
    ///
    /// # Errors
    /// `NotFound` when the build does not begin within seconds, or has ended; `InvalidArgument` when its frontend is not at the
    /// client.
    pub(super) async fn bridge(&self, reference: &str) -> Result<Arc<Bridge>> {
        let _watching = self.watch(reference);
        let gate = self.lock().builds.get(reference).map(|build| build.gate.subscribe());
        let unknown = || Error::not_found(format!("no such job {reference}"));
        let mut gate = gate.ok_or_else(unknown)?;
        let known = tokio::time::timeout(PATIENCE, gate.wait_for(|gate| !matches!(gate, Gate::Unknown))).await;
        match known.map_err(|_| unknown())?.map_err(|_| unknown())?.clone() {
            Gate::Open(bridge) => bridge.upgrade().ok_or_else(unknown),
            Gate::Closed | Gate::Unknown => {
                Err(Error::invalid(format!("the build {reference} has no frontend at the client")))
            }
        }
    }

    /// Says whether a build of this reference goes on here, or has ended lately.
    pub(super) fn knows(&self, reference: &str) -> bool {
        self.lock().builds.contains_key(reference)
    }

    /// Begins to watch a build, whether it goes on, has ended or is still to come.
    pub(super) fn watch(&self, reference: &str) -> Watching {
        let mut inner = self.lock();
        let build = inner.builds.entry(reference.to_owned()).or_insert_with(|| Build::new(self.clock));
        build.watchers += 1;
        let (watcher, begun) = (build.progress.watch(), build.begun.clone());
        Watching { builds: self.clone(), reference: reference.to_owned(), watcher, begun }
    }
}

impl Build {
    fn new(clock: Clock) -> Self {
        Self {
            progress: Progress::new(clock),
            begun: CancellationToken::new(),
            gate: watch::Sender::new(Gate::Unknown),
            watchers: 0,
        }
    }
}

/// A build that goes on.
#[derive(Debug)]
pub(super) struct Running {
    builds: Builds,
    reference: String,
    progress: Progress,
    gate: watch::Sender<Gate>,
}

impl Running {
    /// Lets a frontend's calls in.
    pub(super) fn with_bridge(&self, bridge: &Arc<Bridge>) {
        self.gate.send_replace(Gate::Open(Arc::downgrade(bridge)));
    }

    /// Says that there is no frontend that could call.
    pub(super) fn without_bridge(&self) {
        self.gate.send_replace(Gate::Closed);
    }

    /// Returns where the build reports to.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.progress.end();
        let mut inner = self.builds.lock();
        inner.ended.push_back(std::mem::take(&mut self.reference));
        if inner.ended.len() > REMEMBERED {
            let oldest = inner.ended.pop_front();
            oldest.map(|reference| inner.builds.remove(&reference));
        }
    }
}

/// Somebody who watches a build.
#[derive(Debug)]
pub(super) struct Watching {
    builds: Builds,
    reference: String,
    watcher: Watcher,
    begun: CancellationToken,
}

impl Watching {
    /// Waits for the next events; `None` at the end of the build.
    ///
    /// # Errors
    /// `NotFound` when the build does not begin within seconds.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Event>>> {
        tokio::time::timeout(PATIENCE, self.begun.cancelled())
            .await
            .map_err(|_| Error::not_found(format!("no such job {}", self.reference)))?;
        Ok(self.watcher.next().await)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut inner = self.builds.lock();
        let Some(build) = inner.builds.get_mut(&self.reference) else { return };
        build.watchers -= 1;
        if build.watchers == 0 && !build.begun.is_cancelled() {
            inner.builds.remove(&self.reference);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn builds() -> Builds {
        Builds::new(Clock::system())
    }

    #[tokio::test]
    async fn a_watcher_may_come_before_during_and_after_the_build() {
        let builds = builds();
        let mut early = builds.watch("a");
        let running = builds.begin("a").unwrap();
        let mut during = builds.watch("a");
        drop(running);
        for watching in [&mut early, &mut during, &mut builds.watch("a")] {
            assert_eq!(watching.next().await.unwrap(), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_that_never_begins_is_not_waited_for_for_ever() {
        let builds = builds();
        let mut watching = builds.watch("never");
        assert_eq!(watching.next().await.unwrap_err().kind(), Kind::NotFound);
        drop(watching);
        assert!(builds.lock().builds.is_empty());
    }

    #[test]
    fn a_reference_is_used_once() {
        let builds = builds();
        let running = builds.begin("a").unwrap();
        assert_eq!(builds.begin("a").unwrap_err().kind(), Kind::Conflict);
        drop(running);
        assert_eq!(builds.begin("a").unwrap_err().kind(), Kind::Conflict);
        assert_eq!(builds.begin("").unwrap_err().kind(), Kind::InvalidArgument);
    }

    #[test]
    fn few_ended_builds_are_remembered() {
        let builds = builds();
        (0..100).for_each(|n| drop(builds.begin(&n.to_string()).unwrap()));
        assert_eq!(builds.lock().builds.len(), REMEMBERED);
    }
}
