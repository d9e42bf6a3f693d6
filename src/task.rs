//! The only place that spawns: tracked tasks, the blocking pool, the CPU pool, cancellation and the clock.
//!
//! tokio waits, threads work: file trees, mounts, SQLite and blocking system calls go to [`blocking`] in whole operations,
//! hashing and compression to [`cpu`]. A task that must not outlive the engine is spawned on [`Tasks`].

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, Result};

/// Tasks that are joined before the engine exits. Cloning gives another handle to the same set.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
}

impl Tasks {
    /// Makes an empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a future in the background.
    pub fn spawn<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn(future)
    }

    /// Returns the token that is cancelled when the engine stops; long-lived tasks watch it.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Asks all tasks to stop and waits for them at most `grace`; says whether all ended.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.stopping.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

/// A background task that is aborted when its handle is dropped.
#[derive(Debug)]
pub struct Owned<T>(JoinHandle<T>);

impl<T: Send + 'static> Owned<T> {
    /// Runs a future in the background until it ends or the handle is dropped.
    pub fn spawn(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }

    /// Waits for the result.
    ///
    /// # Errors
    /// `Cancelled` when the runtime is shutting down. A panic of the task is passed on.
    pub async fn join(mut self) -> Result<T> {
        finished((&mut self.0).await)
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn finished<T>(result: Result<T, tokio::task::JoinError>) -> Result<T> {
    result.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::cancelled("the engine is stopping"),
    })
}

/// Runs a blocking operation on the blocking pool. It runs to its end even when the caller is dropped: pass a [`Cancel`] to
/// operations that take long.
///
/// # Errors
/// Those of `operation`; `Cancelled` when the runtime is shutting down.
pub async fn blocking<T: Send + 'static>(operation: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    finished(tokio::task::spawn_blocking(operation).await)?
}

/// Runs a computation on the CPU pool, which has one thread per core.
///
/// # Errors
/// Those of `operation`. A panic of the operation is passed on.
pub async fn cpu<T: Send + 'static>(operation: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    rayon::spawn(move || {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(operation));
        // The caller may have gone; nobody needs the result then.
        let _ = sender.send(outcome);
    });
    match receiver.await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(_) => Err(Error::cancelled("the engine is stopping")),
    }
}

/// Starts a named thread for work that outlives an operation, such as a blocking reader.
///
/// # Errors
/// When the system has no more threads to give.
pub fn thread<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<std::thread::JoinHandle<T>> {
    Ok(std::thread::Builder::new().name(name.to_owned()).spawn(body)?)
}

/// Runs two blocking operations at once, `aside` on a thread of its own, and returns when both have ended.
///
/// A pipeline of two stages connects them with a bounded channel; the stage that fails drops its end, which ends the other.
///
/// # Errors
/// When the system has no more threads to give. A panic of `aside` is passed on.
pub fn beside<A: Send, B>(
    name: &str,
    aside: impl FnOnce() -> A + Send,
    here: impl FnOnce() -> B,
) -> std::io::Result<(A, B)> {
    std::thread::scope(|scope| {
        let other = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, aside)?;
        let mine = here();
        let theirs = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((theirs, mine))
    })
}

/// A flag that long blocking operations look at. Cloning gives another handle to the same flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Makes a flag that is not set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the flag.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns an error once the flag is set.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::cancelled("cancelled")) } else { Ok(()) }
    }

    /// Returns a guard that sets the flag when it is dropped: hold it in the future that waits for the operation.
    #[must_use]
    pub fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }
}

/// Sets its [`Cancel`] flag when dropped.
#[derive(Debug)]
pub struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Where the time comes from. Modules take a clock or a time as a parameter and never read one themselves.
#[derive(Clone, Copy, Debug)]
pub struct Clock(fn() -> SystemTime);

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(SystemTime::now)
    }

    /// A clock that calls `now`, for tests.
    #[must_use]
    pub fn of(now: fn() -> SystemTime) -> Self {
        Self(now)
    }

    /// Returns the time.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// Returns the time in nanoseconds since 1970, as records store it.
    #[must_use]
    pub fn now_ns(&self) -> i64 {
        let since = self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_waits_for_tasks_that_watch_the_token() {
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        let task = tasks.spawn(async move { stopping.cancelled().await });
        assert!(tasks.shutdown(Duration::from_secs(10)).await);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_dropped_owner_cancels_blocking_work() {
        let cancel = Cancel::new();
        let seen = cancel.clone();
        let guard = cancel.on_drop();
        let work = tokio::spawn(blocking(move || {
            while seen.check().is_ok() {
                std::thread::yield_now();
            }
            seen.check()
        }));
        drop(guard);
        assert_eq!(work.await.unwrap().unwrap_err().kind(), crate::error::Kind::Cancelled);
    }

    #[test]
    fn two_stages_run_at_once() {
        let (sender, receiver) = std::sync::mpsc::sync_channel(0);
        let send = move || (0..3).try_for_each(|n| sender.send(n));
        let (sent, sum) = beside("sender", send, || receiver.iter().sum::<i32>()).unwrap();
        assert_eq!((sent.is_ok(), sum), (true, 3));
    }

    #[tokio::test]
    async fn the_cpu_pool_returns_results() {
        assert_eq!(cpu(|| Ok(6 * 7)).await.unwrap(), 42);
    }
}
