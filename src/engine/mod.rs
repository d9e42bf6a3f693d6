//! The composition root: opens the stores, wires the subsystems together, recovers and shuts down. It has no behaviour of
//! its own.

mod control;
mod host;
mod upkeep;

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rusqlite::Connection;

pub use control::Control;
pub use host::Host;

use crate::config::{Config, SYSTEM_ROOT};
use crate::container::Containers;
use crate::error::{Error, Result};
use crate::image::Images;
use crate::network::files::Dns;
use crate::network::{self, Network};
use crate::registry::Client;
use crate::solver::gc::Disk;
use crate::solver::history::History;
use crate::solver::session::Sessions;
use crate::solver::{DEVICE_DIRECTORIES, Deps, PruneFilter, Solver};
use crate::state::{self, Root, Schema};
use crate::store::{Freed, Kept, Roots, Store};
use crate::task::{Clock, Tasks};
use crate::{container, image, solver, store};

/// The tables of all modules.
const SCHEMAS: &[Schema] = &[
    store::SCHEMA,
    image::record::SCHEMA,
    network::SCHEMA,
    solver::cache::SCHEMA,
    solver::history::SCHEMA,
    container::record::SCHEMA,
];

/// How long what an interrupted download left is kept, to be resumed.
const KEEP_PARTIAL: Duration = Duration::from_hours(24);

/// Everything an API handler needs. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

/// A handle that does not keep the engine.
#[derive(Clone, Debug)]
pub struct WeakEngine(Weak<Inner>);

impl WeakEngine {
    /// Returns the engine, while somebody keeps it.
    #[must_use]
    pub fn upgrade(&self) -> Option<Engine> {
        self.0.upgrade().map(Engine)
    }
}

#[derive(Debug)]
struct Inner {
    config: Config,
    root: Root,
    tasks: Tasks,
    clock: Clock,
    sessions: Sessions,
    images: Images,
    registry: Client,
    network: Network,
    solver: Solver,
    policies: Vec<PruneFilter>,
    history: History,
    containers: Containers,
}

impl Engine {
    /// Opens the root directory and everything in it. Blocking.
    ///
    /// # Errors
    /// When the root cannot be opened; see [`Root::open`].
    pub fn open(config: Config) -> Result<Self> {
        let clock = Clock::system();
        let root = Root::open(&config.root, SCHEMAS)?;
        let store = Store::open(root.clone(), clock, None)?;
        let network = Network::open(root.clone(), clock, network_config(root.path()))?;
        state::recover(&root, image::record::DURABLE_TABLES)?;
        let images = Images::new(store.clone(), clock);
        let registry = Client::new(config.registries.clone());
        let policies = upkeep::policies(&config.gc, Disk::below(root.path())?)?;
        let (tasks, sessions) = (Tasks::new(), Sessions::default());
        let solver = Solver::open(Deps {
            store,
            images: images.clone(),
            network: network.clone(),
            registry: registry.clone(),
            sessions: sessions.clone(),
            tasks: tasks.clone(),
            device_directories: match &config.builder.device_dirs {
                Some(dirs) => dirs.clone(),
                None => DEVICE_DIRECTORIES.iter().map(Into::into).collect(),
            },
            settings: solver::Settings {
                max_parallelism: config.builder.max_parallelism,
                entitlements: config.builder.entitlements.clone(),
                frontends: solver::Frontends {
                    off: config.builder.frontends_off.clone(),
                    repositories: config.builder.frontend_repositories.clone(),
                },
                dns: Dns::new(config.dns.nameservers.clone(), config.dns.search.clone(), config.dns.options.clone())?,
            },
            clock,
        })?;
        let history = History::new(root.clone(), clock, tasks.clone(), upkeep::history_limits(&config.history));
        let containers = Containers::open(images.clone(), network.clone(), clock, tasks.clone())?;
        let engine = Self(Arc::new(Inner {
            config,
            root,
            tasks,
            clock,
            sessions,
            images,
            registry,
            network,
            solver,
            policies,
            history,
            containers,
        }));
        engine.cap()?;
        Ok(engine)
    }

    /// Returns a handle that does not keep the engine: for what the engine itself holds.
    #[must_use]
    pub fn downgrade(&self) -> WeakEngine {
        WeakEngine(Arc::downgrade(&self.0))
    }

    /// Returns the settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.config
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

    /// Returns the store.
    #[must_use]
    pub fn store(&self) -> &Store {
        self.0.images.store()
    }

    /// Returns the images.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.0.images
    }

    /// Returns the registry client, without credentials; [`Client::session`] gives it some.
    #[must_use]
    pub fn registry(&self) -> &Client {
        &self.0.registry
    }

    /// Returns the networks.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.0.network
    }

    /// Returns the solver.
    #[must_use]
    pub fn solver(&self) -> &Solver {
        &self.0.solver
    }

    /// Returns what may stay in the build cache; nothing goes by itself when there are no policies.
    #[must_use]
    pub fn policies(&self) -> &[PruneFilter] {
        &self.0.policies
    }

    /// Returns the history of builds.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.0.history
    }

    /// Returns the containers.
    #[must_use]
    pub fn containers(&self) -> &Containers {
        &self.0.containers
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

    /// Makes sure that layers can be unpacked, with their owners and devices.
    ///
    /// # Errors
    /// `Forbidden`, saying what to do, for who is not root.
    pub fn require_root(&self, what: &str) -> Result<()> {
        if rustix::process::geteuid().is_root() {
            return Ok(());
        }
        Err(Error::forbidden(format!(
            "{what} needs root: run the command with sudo, or give --host to speak to a daemon that root runs"
        )))
    }

    /// Removes from the store what no image, build or container needs and nobody is using. Blocking.
    ///
    /// # Errors
    /// When the database or the file system fails; what could not be removed is tried again by the next call.
    pub fn collect(&self) -> Result<Freed> {
        self.history().remove_orphans()?;
        self.store().collect(KEEP_PARTIAL, |connection| self.roots(connection))
    }

    /// Gathers what has to stay, in the transaction of a collection. Each subsystem that keeps things adds a line.
    fn roots(&self, connection: &Connection) -> Result<Roots> {
        let mut roots = Roots::default();
        self.images().add_roots(connection, &mut roots)?;
        solver::cache::add_roots(connection, &mut roots)?;
        container::record::add_roots(connection, &mut roots)?;
        Ok(roots)
    }

    /// Says of everything in the store who needs it. Blocking.
    ///
    /// # Errors
    /// When the database or the file system fails.
    pub fn why(&self) -> Result<Vec<Kept>> {
        self.store().why(|connection| {
            let images = self.images().holders(connection)?.into_iter();
            let containers = container::record::holders(connection)?;
            Ok(images.chain(containers).chain(solver::cache::holders(connection)?).collect())
        })
    }

    /// Cancels what is running and waits for it, at most `grace`.
    pub async fn shutdown(&self, grace: Duration) {
        self.0.tasks.shutdown(grace).await;
    }
}

/// Looks after one container until it has ended: the life of a shim. Blocking.
///
/// # Errors
/// When the root cannot be opened, or the container is not there.
pub fn shim(root: &Path, id: &str) -> Result<()> {
    let clock = Clock::system();
    let root = Root::open(root, SCHEMAS)?;
    let store = Store::open(root.clone(), clock, None)?;
    let network = Network::open(root.clone(), clock, network_config(root.path()))?;
    let containers = Containers::open(Images::new(store, clock), network, clock, Tasks::new())?;
    container::shim::run(&containers, id)
}

/// The root that is used when none is named has the plain names in the kernel; others have names of their own.
fn network_config(root: &Path) -> network::Config {
    let naming = if root == Path::new(SYSTEM_ROOT) { network::Naming::Default } else { network::Naming::ByPath };
    network::Config { naming, ..network::Config::default() }
}
