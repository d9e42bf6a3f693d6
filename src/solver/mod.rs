//! The solver: scheduler, cache, content hash, operations, exporters, sessions and frontends of builds.

pub mod cache;
pub mod copy;
mod failure;
pub mod key;
pub mod progress;
mod request;
pub mod scheduler;
pub mod session;
mod usage;

use std::sync::Arc;

use rusqlite::Connection;

pub use cache::SCHEMA;
pub use failure::{Failure, Place};
pub use request::{BuildRequest, Built, Exporter};
pub use usage::{CacheKind, CacheRecord, PruneFilter};

use crate::error::{Error, Result};
use crate::image::Images;
use crate::network::Network;
use crate::registry::Client;
use crate::store::{Roots, Store};
use crate::task::{Clock, Tasks};
use progress::Progress;
use session::Sessions;

/// The subsystems a solver works with.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where results are kept; opened with [`SCHEMA`] among its tables.
    pub store: Store,
    /// Bases and results.
    pub images: Images,
    /// What steps are connected to.
    pub network: Network,
    /// Talks to registries.
    pub registry: Client,
    /// The open sessions of clients.
    pub sessions: Sessions,
    /// Tasks that are joined before the engine exits.
    pub tasks: Tasks,
    /// The time.
    pub clock: Clock,
}

/// Builds. One for an engine: equal steps of builds that run at the same time are done once. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Solver(Arc<Deps>);

impl Solver {
    /// Opens a solver. Blocking, and cheap.
    ///
    /// # Errors
    /// When the root cannot be written.
    pub fn open(deps: Deps) -> Result<Self> {
        Ok(Self(Arc::new(deps)))
    }

    /// Builds. Dropping the future cancels the build; steps that no other build needs are killed at once.
    ///
    /// # Errors
    /// The first failure, with the step and the place in the source it is about.
    pub async fn build(&self, request: BuildRequest, progress: Progress) -> Result<Built, Failure> {
        let _ = (request, progress, &self.0);
        Err(Error::unsupported("builds are not there yet").into())
    }

    /// Lists the build cache, the longest unused first. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn usage(&self) -> Result<Vec<CacheRecord>> {
        Err(Error::unsupported("the build cache cannot be listed yet"))
    }

    /// Forgets records and returns them; what they took is freed by the next collection of the store. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn prune(&self, filter: &PruneFilter) -> Result<Vec<CacheRecord>> {
        let _ = filter;
        Err(Error::unsupported("the build cache cannot be pruned yet"))
    }

    /// Adds what the build cache needs to the roots of a collection, in its transaction.
    ///
    /// # Errors
    /// When the database fails.
    pub fn add_roots(&self, connection: &Connection, roots: &mut Roots) -> Result<()> {
        cache::add_roots(connection, roots)
    }
}
