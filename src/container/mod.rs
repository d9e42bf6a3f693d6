//! Containers: their records, lifecycle, input and output, logs, and the shim that keeps each of them.
//!
//! No engine holds state of a container in memory. A record says what a container is doing; its shim, a process of its own,
//! makes that true and outlives the engine that started it. Engines speak to shims through [`link`].

pub mod config;
mod create;
mod exec;
mod files;
mod launch;
mod lifecycle;
pub mod link;
pub mod log;
pub mod name;
pub mod record;
mod remove;
pub mod shim;
mod spec;
mod streams;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

pub use create::Created;
pub use exec::{Exec, ExecConfig, ExecStarted};
pub use files::Files;
pub use launch::SHIM_ROLE;
pub use lifecycle::{Condition, Waiting};
pub use streams::Attachment;

pub use crate::sandbox::{DEFAULT_SHM_SIZE_BYTES, masked_paths, readonly_paths};

use crate::error::{Error, Result};
use crate::image::Images;
use crate::network::Network;
use crate::state::{Db, Root};
use crate::store::Store;
use crate::task::{Clock, Tasks};
use record::{ContainerId, Exited, Record, State};

/// The containers of one root. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Containers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    images: Images,
    network: Network,
    clock: Clock,
    tasks: Tasks,
    dir: PathBuf,
    program: OnceLock<OwnedFd>,
}

/// The exit code of a container whose shim was killed, and so was the container: 128 and `SIGKILL`.
const LOST: i32 = 137;

impl Containers {
    /// Opens the containers of a root that was opened with [`record::SCHEMA`]. Blocking, but cheap.
    ///
    /// # Errors
    /// When their directory cannot be made.
    pub fn open(images: Images, network: Network, clock: Clock, tasks: Tasks) -> Result<Self> {
        let dir = images.store().root().subdir("containers")?;
        Ok(Self(Arc::new(Inner { images, network, clock, tasks, dir, program: OnceLock::new() })))
    }

    /// Returns the images that containers are made of.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.0.images
    }

    /// Returns the directory of a container.
    #[must_use]
    pub fn files(&self, id: &ContainerId) -> Files {
        Files::new(&self.0.dir, id)
    }

    fn store(&self) -> &Store {
        self.0.images.store()
    }

    fn root(&self) -> &Root {
        self.store().root()
    }

    fn db(&self) -> &Db {
        self.root().db()
    }

    fn now_ns(&self) -> i64 {
        self.0.clock.now_ns()
    }

    /// Finds a container by id, name or the beginning of its id, and finds out whether it is still what its record says.
    /// Blocking.
    ///
    /// # Errors
    /// As for [`record::find`].
    pub fn find(&self, reference: &str) -> Result<Record> {
        let record = self.db().read(|connection| record::find(connection, reference))?;
        self.settled(record)
    }

    /// Returns all containers, newest first. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn list(&self) -> Result<Vec<Record>> {
        let records = self.db().read(record::all)?;
        let mut settled = Vec::with_capacity(records.len());
        for record in records {
            match self.settled(record) {
                Ok(record) => settled.push(record),
                // It was removed since it was read.
                Err(error) if error.kind() == crate::error::Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(settled)
    }

    /// Returns the container as it is: one whose shim was killed has ended, and what it left is cleaned up.
    fn settled(&self, record: Record) -> Result<Record> {
        let (State::Running { started_ns, .. } | State::Restarting(Exited { started_ns, .. })) = record.state else {
            return Ok(record);
        };
        let files = self.files(&record.id);
        let Some(_shim) = files.replace_shim()? else { return Ok(record) };
        // Nobody but us may have changed it now; the shim may have before it left.
        let now = self.db().read(|connection| record::find(connection, record.id.as_str()))?;
        if !now.state.is_live() {
            return Ok(now);
        }
        spec::remove_cgroup(&now);
        let exited = Exited {
            code: LOST,
            started_ns,
            finished_ns: self.now_ns(),
            oom_killed: false,
            memory_peak_bytes: None,
            error: "the process that looked after the container was killed, and the container with it".to_owned(),
        };
        let lost = Record { state: State::Exited(exited), address: None, ..now };
        self.db().write(|tx| {
            record::set_address(tx, &lost.id, None)?;
            record::set_state(tx, &lost.id, &lost.state)
        })?;
        if lost.config.host.auto_remove {
            self.discard(&self.store().lease("remove container")?, &lost)?;
            return Err(Error::not_found(format!("No such container: {}", lost.name)));
        }
        Ok(lost)
    }
}
