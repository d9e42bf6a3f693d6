//! Garbage collection: what no root and no live lease reaches is removed.
//!
//! It runs while others build: deciding is one transaction, as leasing is, so nothing that somebody has just found is decided
//! upon. Decided is first written down, then done: from that moment the thing is not found any more, and a collection that is
//! killed is finished by the next. Only collections wait for one another.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use kiln_graph::{Algorithm, Digest};
use rusqlite::Connection;

use super::blob::{NEW, open_locked};
use super::lease::lease_path;
use super::snapshot::{ACTIVE, COMMITTED, REMOVING};
use super::tree::{Metadata, remove_tree};
use super::{ActiveId, SnapshotId, Store, optional};
use crate::error::{Error, Result, ResultExt as _};
use crate::state::{FileLock, LockMode};

/// What is to be kept, besides what leases keep.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    /// Blobs.
    pub blobs: Vec<Digest>,
    /// Snapshots, and with them those they lie on.
    pub snapshots: Vec<SnapshotId>,
    /// Actives that were kept, and with them the snapshots they lie on.
    pub actives: Vec<ActiveId>,
}

/// What a collection has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// How many blobs.
    pub blobs: u64,
    /// How many snapshots.
    pub snapshots: u64,
    /// How much the disk got back, in bytes.
    pub bytes: u64,
}

impl Store {
    /// Removes what neither `roots` nor a live lease keeps. Blocking, but nobody else waits for it.
    ///
    /// `roots` is called in the transaction that decides, so that it sees the records of images, builds and containers as they
    /// are then. Transfers that broke off less than `keep_partial` ago are kept, to be resumed.
    ///
    /// # Errors
    /// Those of `roots`; when something cannot be removed, which the next collection tries again.
    pub fn collect(&self, keep_partial: Duration, roots: impl FnOnce(&Connection) -> Result<Roots>) -> Result<Freed> {
        let root = self.root();
        let _alone = FileLock::acquire(&root.path().join("gc.lock"), LockMode::Exclusive)?;
        let snapshots = root.db().write(|tx| {
            self.end_dead_leases(tx)?;
            decide(tx, &roots(tx)?)
        })?;
        // After a power cut, a record that came back must not find half of its files.
        root.db().sync()?;
        let mut freed = Freed { snapshots, ..Freed::default() };
        self.remove_blobs(&mut freed)?;
        self.remove_trees(&mut freed)?;
        self.remove_partial(keep_partial, &mut freed)?;
        Ok(freed)
    }

    /// Deletes the leases of processes that are gone.
    fn end_dead_leases(&self, tx: &Connection) -> Result<()> {
        let mut ids = tx.prepare_cached("SELECT id FROM leases")?;
        let recorded: HashSet<i64> = ids.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let files = names(&self.0.leases)?.into_iter().filter_map(|name| name.to_str()?.parse().ok());
        let all: HashSet<i64> = files.chain(recorded.iter().copied()).collect();
        for id in all {
            let path = lease_path(&self.0.leases, id);
            if let Some(_dead) = FileLock::try_acquire(&path, LockMode::Exclusive)? {
                tx.prepare_cached("DELETE FROM leases WHERE id = ?1")?.execute([id])?;
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Removes the blobs that were decided upon, and files that have no record.
    fn remove_blobs(&self, freed: &mut Freed) -> Result<()> {
        let trash = self.root().subdir("trash")?;
        self.root().db().write(|tx| {
            let mut select = tx.prepare_cached("SELECT digest, allocated FROM blobs WHERE removing")?;
            let rows = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, u64>(1)?)))?;
            for row in rows {
                let (digest, allocated) = row?;
                let path = self.blob_path(&super::parse_digest(&digest)?);
                move_away(&path, &trash)?;
                freed.blobs += 1;
                freed.bytes += allocated;
            }
            tx.prepare_cached("DELETE FROM blobs WHERE removing")?.execute([])?;
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let dir = self.0.blobs.join(algorithm.as_str());
                for name in names(&dir)? {
                    let digest = format!("{}:{}", algorithm.as_str(), name.to_string_lossy());
                    let mut find = tx.prepare_cached("SELECT 1 FROM blobs WHERE digest = ?1")?;
                    if optional(find.query_row([digest], |_| Ok(())))?.is_none() {
                        move_away(&dir.join(name), &trash)?;
                    }
                }
            }
            Ok(())
        })?;
        // Outside of the transaction, because unlinking large files takes time. Nobody else uses this directory.
        names(&trash)?.into_iter().try_for_each(|name| remove_file(&trash.join(name)))
    }

    /// Removes the trees that were decided upon, and directories that have no record.
    fn remove_trees(&self, freed: &mut Freed) -> Result<()> {
        let removing: Vec<i64> = self.root().db().read(|connection| {
            let mut select = connection.prepare_cached("SELECT id FROM trees WHERE state = ?1 ORDER BY id")?;
            Ok(select.query_map([REMOVING], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
        })?;
        for tree in removing {
            if self.tree_dir(tree).exists() {
                self.measure(tree)?;
                self.hand_over(tree)?;
            }
            remove_tree(&self.tree_dir(tree))?;
            let sql = "DELETE FROM trees WHERE id = ?1 AND state = ?2 RETURNING coalesce(allocated, 0)";
            let allocated: Option<u64> = self
                .root()
                .db()
                .write(|tx| optional(tx.prepare_cached(sql)?.query_row((tree, REMOVING), |row| row.get(0))))?;
            freed.bytes += allocated.unwrap_or(0);
        }
        // A directory is made after its record and removed before it, so one without a record belongs to nobody.
        for name in names(self.snapshots_dir())? {
            let Some(tree) = name.to_str().and_then(|name| name.parse::<i64>().ok()) else { continue };
            let recorded: Option<i64> = self.root().db().read(|connection| {
                let mut find = connection.prepare_cached("SELECT 1 FROM trees WHERE id = ?1")?;
                optional(find.query_row([tree], |row| row.get(0)))
            })?;
            if recorded.is_none() {
                remove_tree(&self.tree_dir(tree))?;
            }
        }
        Ok(())
    }

    /// Removes what nobody writes any more from where blobs come in.
    fn remove_partial(&self, keep: Duration, freed: &mut Freed) -> Result<()> {
        let keep = i64::try_from(keep.as_secs()).unwrap_or(i64::MAX);
        let oldest = (self.now() / 1_000_000_000).saturating_sub(keep);
        for name in names(&self.0.ingest)? {
            let path = self.0.ingest.join(&name);
            let Some(file) = open_locked(&path)? else { continue };
            let metadata = Metadata::of(&file).context(|| format!("read {}", path.display()))?;
            if name.to_string_lossy().starts_with(NEW) || metadata.mtime.seconds <= oldest {
                remove_file(&path)?;
                freed.bytes += metadata.allocated;
            }
        }
        Ok(())
    }
}

/// Marks and decides; returns how many snapshots are no more.
fn decide(tx: &Connection, roots: &Roots) -> Result<u64> {
    let list = |ids: Vec<i64>| serde_json::to_string(&ids).map_err(Error::from);
    let snapshots = list(roots.snapshots.iter().map(|id| id.0).collect())?;
    let actives = list(roots.actives.iter().map(|id| id.0).collect())?;
    let blobs = serde_json::to_string(&roots.blobs)?;
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| -> Result<u64> {
        Ok(u64::try_from(tx.prepare_cached(sql)?.execute(values)?).unwrap_or(u64::MAX))
    };
    run(
        "UPDATE trees SET state = ?1, base = NULL WHERE state = ?2
            AND id NOT IN (SELECT value FROM json_each(?3)) AND id NOT IN (SELECT tree FROM lease_trees)",
        &[&REMOVING, &ACTIVE, &actives],
    )?;
    let count =
        || -> Result<u64> { Ok(tx.prepare_cached("SELECT count(*) FROM snapshots")?.query_row([], |row| row.get(0))?) };
    let before = count()?;
    run(
        "WITH RECURSIVE live (id) AS (
            SELECT value FROM json_each(?1)
            UNION SELECT snapshot FROM lease_snapshots
            UNION SELECT base FROM trees WHERE base IS NOT NULL
            UNION SELECT s.parent FROM snapshots s JOIN live ON s.id = live.id WHERE s.parent IS NOT NULL
            UNION SELECT s.made_on FROM snapshots s JOIN live ON s.id = live.id WHERE s.made_on IS NOT NULL
        )
        DELETE FROM snapshots WHERE id NOT IN (SELECT id FROM live)",
        &[&snapshots],
    )?;
    // Those that go with the one they lie on are in no other count.
    let removed = before - count()?;
    run(
        "UPDATE trees SET state = ?1 WHERE state = ?2
            AND id NOT IN (SELECT tree FROM snapshots) AND id NOT IN (SELECT layer FROM snapshots)
            AND id NOT IN (SELECT l.donor FROM loans l JOIN trees t ON t.id = l.tree WHERE t.state = ?3)",
        &[&REMOVING, &COMMITTED, &ACTIVE],
    )?;
    run(
        "UPDATE blobs SET removing = 1
            WHERE digest NOT IN (SELECT value FROM json_each(?1)) AND id NOT IN (SELECT blob FROM lease_blobs)",
        &[&blobs],
    )?;
    run(
        "DELETE FROM layer_blobs WHERE diff_id NOT IN (SELECT diff_id FROM snapshots WHERE diff_id IS NOT NULL)
            AND digest NOT IN (SELECT digest FROM blobs WHERE NOT removing)",
        &[],
    )?;
    Ok(removed)
}

/// Moves a file to where it is removed from; it may be gone.
fn move_away(path: &Path, trash: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or(OsStr::new("blob"));
    match std::fs::rename(path, trash.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn names(dir: &Path) -> Result<Vec<std::ffi::OsString>> {
    let context = || format!("list {}", dir.display());
    let entries = std::fs::read_dir(dir).context(context)?;
    entries.map(|entry| Ok(entry.context(context)?.file_name())).collect()
}
