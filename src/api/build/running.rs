//! The builds of this engine, by the reference each client chose for its own.
//!
//! `Status` finds the build here that `Solve` runs. Either may come first: both travel at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
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
    /// How many watch it.
    watchers: usize,
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
        Ok(Running { builds: self.clone(), reference: reference.to_owned(), progress: build.progress.clone() })
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
        Self { progress: Progress::new(clock), begun: CancellationToken::new(), watchers: 0 }
    }
}

/// A build that goes on.
#[derive(Debug)]
pub(super) struct Running {
    builds: Builds,
    reference: String,
    progress: Progress,
}

impl Running {
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
