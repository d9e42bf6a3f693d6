//! Leases: what keeps things from being collected while somebody uses them.
//!
//! A lease is a record and a file that its process holds locked; the kernel unlocks the file when the process dies, however
//! it dies, so a lease is alive exactly as long as somebody holds it. Whatever is looked up or made is leased in the same
//! transaction, so a collection, which is a transaction too, comes before or after it and never in between.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;

use super::Store;
use crate::error::{Error, Result};
use crate::state::{FileLock, LockMode};

/// Keeps what was looked up or made with it. Cloning gives another handle; it ends with the last one.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Held>);

#[derive(Debug)]
struct Held {
    store: Store,
    id: i64,
    path: PathBuf,
    _lock: FileLock,
}

impl Store {
    /// Starts a lease. `label` says what for, to whoever looks at the records. Blocking.
    ///
    /// # Errors
    /// When the database fails or the lock cannot be taken.
    pub fn lease(&self, label: &str) -> Result<Lease> {
        self.root().db().write(|tx| {
            tx.prepare_cached("INSERT INTO leases (label, created_at) VALUES (?1, ?2)")?
                .execute((label, self.now()))?;
            let id = tx.last_insert_rowid();
            let path = lease_path(&self.0.leases, id);
            // Before the record appears, so that nobody finds it without its lock.
            let lock = FileLock::try_acquire(&path, LockMode::Exclusive)?
                .ok_or_else(|| Error::internal(format!("{} is locked before it exists", path.display())))?;
            Ok(Lease(Arc::new(Held { store: self.clone(), id, path, _lock: lock })))
        })
    }
}

pub(super) fn lease_path(leases: &Path, id: i64) -> PathBuf {
    leases.join(id.to_string())
}

impl Lease {
    pub(super) fn id(&self) -> i64 {
        self.0.id
    }

    /// Adds a record to those the lease keeps, in the transaction that found or made it.
    pub(super) fn hold(&self, tx: &Connection, kind: Leased, id: i64) -> Result<()> {
        let (table, column) = kind.table();
        let sql = format!("INSERT OR IGNORE INTO {table} (lease, {column}) VALUES (?1, ?2)");
        tx.prepare_cached(&sql)?.execute((self.id(), id))?;
        Ok(())
    }

    /// Says whether the lease keeps a record already.
    pub(super) fn holds(&self, connection: &Connection, kind: Leased, id: i64) -> Result<bool> {
        let (table, column) = kind.table();
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE lease = ?1 AND {column} = ?2)");
        Ok(connection.prepare_cached(&sql)?.query_row((self.id(), id), |row| row.get(0))?)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nobody could act on a failure: the lock goes with the process, and a collection removes what is left.
        let _ = self
            .store
            .root()
            .db()
            .write(|tx| Ok(tx.prepare_cached("DELETE FROM leases WHERE id = ?1")?.execute([self.id])?));
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What sort of record a lease keeps.
#[derive(Clone, Copy, Debug)]
pub(super) enum Leased {
    Blob,
    Snapshot,
    Tree,
}

impl Leased {
    fn table(self) -> (&'static str, &'static str) {
        match self {
            Self::Blob => ("lease_blobs", "blob"),
            Self::Snapshot => ("lease_snapshots", "snapshot"),
            Self::Tree => ("lease_trees", "tree"),
        }
    }
}
