//! The solver: from a build request to a tagged image.
//!
//! A build goes through these files: [`request`] is what is asked for, `options` reads its attributes, `frontend` makes a graph
//! of a Dockerfile and `definition` of LLB, `plan` finds what is known of it (`identify` computes keys, `cache` keeps records), `driver` carries out
//! what the `scheduler` decides about the rest, `ops` holds what steps do, `settle` gives their layers an identity and a record,
//! `export` makes the image, and `attest` what is said about it. `remote` fetches repositories and files, and `policy` decides about
//! them. `progress` is what watchers see meanwhile.

mod attest;
mod attrs;
pub mod bridge;
mod build;
pub mod cache;
pub mod changes;
mod content;
mod contexts;
pub mod copy;
mod definition;
mod devices;
mod distant;
mod driver;
mod elsewhere;
mod exchange;
mod export;
pub mod failed;
mod failure;
mod frontend;
mod frontends;
pub mod gateway;
pub mod gc;
pub mod history;
mod identify;
mod job;
pub mod key;
mod login;
mod look;
mod machine;
mod ops;
mod options;
mod plan;
pub mod policy;
pub mod progress;
mod received;
mod remote;
mod reporter;
pub mod request;
pub mod scheduler;
mod send;
pub mod session;
mod settle;
mod unmade;
mod usage;
mod value;
mod verify;
mod workshop;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use kiln_graph::{Digest, Platform};
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use attest::Mode as ProvenanceMode;
pub use cache::SCHEMA;
pub use devices::DIRECTORIES as DEVICE_DIRECTORIES;
pub use exchange::take_imports;
pub use failure::{Failure, Place};
pub use frontends::Frontends;
pub use received::ReceivedContext;
pub use remote::Material;
pub use request::{BuildRequest, Built, CacheSpec, Document, Exporter};
pub use unmade::Unmade;
pub use usage::{CacheKind, CacheRecord, PruneFilter};

use crate::error::Result;
use crate::image::Images;
use crate::network::files::Dns;
use crate::network::{Network, Pool};
use crate::registry::Client;
use crate::sandbox;
use crate::state;
use crate::store::{Roots, Store};
use crate::task::{Clock, Tasks};
use driver::Driver;
use failed::FailedSteps;
use key::Key;
use session::Sessions;
use value::Layer;

/// The tables whose records a power cut may lose; see [`crate::state::mark_durable`]. They come before those of the store,
/// whose snapshots they name.
pub const DURABLE_TABLES: &[&str] = &["steps"];

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
    /// Where devices of steps are described: [`DEVICE_DIRECTORIES`].
    pub device_directories: Vec<PathBuf>,
    /// What is configured.
    pub settings: Settings,
    /// The time.
    pub clock: Clock,
}

/// How builds run, as it is configured.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How many steps run at a time; `None` for what suits the machine.
    pub max_parallelism: Option<usize>,
    /// What clients may allow the steps of their builds; `None` for everything there is.
    pub entitlements: Option<Vec<String>>,
    /// Which frontends clients may use.
    pub frontends: Frontends,
    /// Whom steps ask for names, instead of the host's servers.
    pub dns: Dns,
}

/// Builds. One for an engine: equal steps of builds that run at the same time are done once. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Solver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    deps: Deps,
    driver: Driver,
    /// Network namespaces for steps.
    pool: Pool,
    /// Where digests of clients' files are remembered.
    memos: PathBuf,
    /// Where the locks of cache mounts are.
    cache_mounts: PathBuf,
    /// Taken by whoever fetches an image, by its id.
    fetching: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// Layers that were made and are not recorded yet, by their runs.
    settling: Mutex<HashMap<Key, Layer>>,
    /// Failed steps that are kept.
    failed: FailedSteps,
    /// Tokens that clients fetched.
    tokens: login::Tokens,
    /// Limits how many layers are hashed at a time.
    digests: Arc<Semaphore>,
    /// Serves the gateway to frontends that are images.
    gateway: OnceLock<gateway::Serve>,
}

impl Solver {
    /// Opens a solver. Blocking, and cheap. Records that a power cut has lost are dropped.
    ///
    /// # Errors
    /// When the root cannot be written.
    pub fn open(deps: Deps) -> Result<Self> {
        let root = deps.store.root();
        state::recover(root, DURABLE_TABLES)?;
        sandbox::remove_abandoned(ops::GROUP_PREFIX);
        sandbox::remove_abandoned_bundles(&root.path().join(ops::BUNDLES), ops::GROUP_PREFIX);
        let (memos, cache_mounts) = (root.subdir("memos")?, root.subdir("cache-mounts")?);
        let driver = Driver::new(deps.settings.max_parallelism);
        let pool = Pool::new(deps.network.clone(), driver.limit);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self(Arc::new(Inner {
            deps,
            driver,
            pool,
            memos,
            cache_mounts,
            fetching: Mutex::default(),
            settling: Mutex::default(),
            failed: Mutex::default(),
            tokens: login::Tokens::default(),
            digests: Arc::new(Semaphore::new(cores)),
            gateway: OnceLock::new(),
        })))
    }

    /// Says who serves the gateway to frontends that are images. The first one who does is taken.
    pub fn serve_gateway(&self, serve: gateway::Serve) {
        // Whoever comes later serves the same.
        let _ = self.0.gateway.set(serve);
    }

    fn gateway(&self) -> Option<&gateway::Serve> {
        self.0.gateway.get()
    }

    /// Adds what the build cache needs to the roots of a collection, in its transaction.
    ///
    /// # Errors
    /// When the database fails.
    pub fn add_roots(&self, connection: &Connection, roots: &mut Roots) -> Result<()> {
        cache::add_roots(connection, roots)
    }

    /// Returns the platforms whose programs steps can run here, this host's own first. Blocking; cheap.
    #[must_use]
    pub fn platforms(&self) -> Vec<Platform> {
        sandbox::platforms()
    }

    /// Returns the names of the devices that steps can ask for, and whether each allows itself. Blocking.
    ///
    /// # Errors
    /// When a specification cannot be read.
    pub fn devices(&self) -> Result<Vec<(String, bool)>> {
        let known = devices::known(&self.deps().device_directories)?;
        Ok(known.iter().map(|device| (device.name.clone(), device.auto_allow)).collect())
    }

    fn deps(&self) -> &Deps {
        &self.0.deps
    }

    fn driver(&self) -> &Driver {
        &self.0.driver
    }

    fn pool(&self) -> &Pool {
        &self.0.pool
    }

    fn memos(&self) -> &Path {
        &self.0.memos
    }

    fn cache_mounts(&self) -> &Path {
        &self.0.cache_mounts
    }

    fn tokens(&self) -> &login::Tokens {
        &self.0.tokens
    }

    fn failed_steps(&self) -> &FailedSteps {
        &self.0.failed
    }

    /// Returns the lock of whoever fetches an image.
    fn fetching(&self, image: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = lock(&self.0.fetching);
        fetching.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = fetching.get(&image).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        fetching.insert(image, Arc::downgrade(&turn));
        turn
    }

    /// Returns the layer of a run that has ended and is not recorded yet.
    fn settling(&self, run: &Key) -> Option<Layer> {
        lock(&self.0.settling).get(run).cloned()
    }

    fn settles(&self, run: Key, layer: Layer) {
        lock(&self.0.settling).insert(run, layer);
    }

    fn settled(&self, run: &Key) {
        lock(&self.0.settling).remove(run);
    }

    /// Waits for a turn to hash a layer.
    async fn digest_turn(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.0.digests).acquire_owned().await.expect("the semaphore is never closed")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic happens while the lock is held")
}
