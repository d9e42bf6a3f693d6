//! The store: content by digest, snapshots of file systems, layers, and what keeps them from being collected.
//!
//! Everything lies under one root directory that several processes work on at once; records are in its database, and no
//! process holds authoritative state in memory.
//!
//! - A *blob* is a file named by its digest: a manifest, a configuration, a compressed layer.
//! - A *snapshot* is a tree of files on a parent snapshot; a root file system is a chain of them.
//! - An *active* is a tree that is still written: a build step's, a container's, a cache mount's. Committing makes it a
//!   snapshot.
//! - A *lease* keeps what it covers from garbage collection, as long as the process that holds it lives.
//!
//! Nothing waits for the disk: see [`crate::state::mark_durable`], to be called with [`DURABLE_TABLES`].
//!
//! What the content means (images, build caches, containers) is told by other modules, which name the roots of a collection.

mod blob;
mod cap;
pub mod compression;
mod gc;
mod ingest;
pub mod layer;
mod lease;
mod rootfs;
mod snapshot;
pub mod tree;
mod unpack;
mod usage;
mod why;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

pub use blob::{Blob, BlobWriter};
pub use cap::Relieve;
pub use gc::{Freed, Roots};
pub use ingest::{Follow, Ingest, IngestState};
pub use layer::{ContentHash, LayerDigests, PathChange, PathChangeKind};
pub use lease::Lease;
pub use rootfs::{Access, Driver, Rootfs};
pub use snapshot::{Active, ActiveId, CompressedLayer, LayerBlob, Sameness, Snapshot, SnapshotId};
pub use unpack::Unpacker;
pub use usage::Usage;
pub use why::{Kept, What};

use crate::error::{Error, Result};
use crate::state::{Root, Schema, recover};
use crate::task::Clock;

/// The tables of the store.
pub const SCHEMA: Schema = Schema {
    module: "store",
    scripts: &[
        include_str!("schema.sql"),
        "ALTER TABLE snapshots ADD COLUMN as_of INTEGER",
        // What the changes of a layer are changes of, when that is not the parent.
        "ALTER TABLE snapshots ADD COLUMN made_on INTEGER REFERENCES snapshots ON DELETE CASCADE;
         CREATE INDEX snapshots_made_on ON snapshots (made_on) WHERE made_on IS NOT NULL",
    ],
};

/// The tables whose records a power cut may lose, in the order [`crate::state::mark_durable`] must get them.
pub const DURABLE_TABLES: &[&str] = &["snapshots", "blobs"];

/// An opened store. Cloning gives another handle to the same one.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: Root,
    clock: Clock,
    driver: Driver,
    blobs: PathBuf,
    ingest: PathBuf,
    leases: PathBuf,
    snapshots: PathBuf,
    /// Distinguishes names this process makes under one lease.
    serial: AtomicU64,
    /// The most it may take, if that is limited.
    cap: OnceLock<cap::Cap>,
}

impl Store {
    /// Opens the store under a root directory that was opened with [`SCHEMA`]. Blocking, and cheap.
    ///
    /// The first process to open a store decides how snapshots are kept: `driver`, or, if that is `None`, by trying whether an
    /// overlay can be mounted here. Records that a power cut has lost are dropped.
    ///
    /// # Errors
    /// `Conflict` when the store was made with another driver than the one asked for.
    pub fn open(root: Root, clock: Clock, driver: Option<Driver>) -> Result<Self> {
        for algorithm in ["blobs/sha256", "blobs/sha512"] {
            root.subdir(algorithm)?;
        }
        let (blobs, ingest, leases) = (root.subdir("blobs")?, root.subdir("ingest")?, root.subdir("leases")?);
        let snapshots = root.subdir("snapshots")?;
        recover(&root, DURABLE_TABLES)?;
        let driver = rootfs::choose_driver(&root, &snapshots, driver)?;
        let serial = AtomicU64::new(0);
        let cap = OnceLock::new();
        Ok(Self(Arc::new(Inner { root, clock, driver, blobs, ingest, leases, snapshots, serial, cap })))
    }

    /// Returns the root directory.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.0.root
    }

    /// Returns how snapshots are kept.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.0.driver
    }

    /// Returns when the oldest blob or snapshot was made that a power cut may still lose, in nanoseconds since 1970. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn oldest_at_risk(&self) -> Result<Option<i64>> {
        let sql = "SELECT min(at) FROM (SELECT min(created_at) AS at FROM blobs WHERE boot IS NOT NULL
            UNION ALL SELECT min(created_at) FROM snapshots WHERE boot IS NOT NULL)";
        self.root().db().read(|connection| Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?))
    }

    fn now(&self) -> i64 {
        self.0.clock.now_ns()
    }

    fn snapshots_dir(&self) -> &Path {
        &self.0.snapshots
    }

    fn serial(&self) -> u64 {
        self.0.serial.fetch_add(1, Ordering::Relaxed)
    }
}

/// Turns "no rows" into `None`.
fn optional<T>(result: rusqlite::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads a digest from a record.
fn parse_digest(text: &str) -> Result<kiln_graph::Digest> {
    text.parse().map_err(|error| Error::corrupt(format!("database: {error}")))
}

#[cfg(test)]
mod tests;
