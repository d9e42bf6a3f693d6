//! The composition root: opens the stores, wires the subsystems together, recovers and shuts down. It has no behaviour of
//! its own.

mod control;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use control::Control;

use crate::error::Result;
use crate::solver::session::Sessions;
use crate::state::Root;
use crate::task::{Clock, Tasks};

/// Everything an API handler needs. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: Root,
    tasks: Tasks,
    clock: Clock,
    sessions: Sessions,
}

impl Engine {
    /// Opens the root directory and everything in it. Blocking.
    ///
    /// # Errors
    /// When the root cannot be opened; see [`Root::open`].
    pub fn open(root: &Path) -> Result<Self> {
        let root = Root::open(root, &[])?;
        Ok(Self(Arc::new(Inner { root, tasks: Tasks::new(), clock: Clock::system(), sessions: Sessions::default() })))
    }

    /// Returns the root directory.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.0.root
    }

    /// Returns the clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.0.clock
    }

    /// Returns the open build sessions.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// Returns the tasks that are joined before the engine exits.
    #[must_use]
    pub fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// Cancels what is running and waits for it, at most `grace`.
    pub async fn shutdown(&self, grace: Duration) {
        self.0.tasks.shutdown(grace).await;
    }
}
