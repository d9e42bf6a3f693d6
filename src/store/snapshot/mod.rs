//! Snapshots: trees of files on one another, and the identities of their layers.
//!
//! A snapshot is found by its id, or by its *chain ID*, the digest of all layers up to it (OCI image spec, "ChainID"). The
//! files of a tree never change once it is committed.

mod active;
mod combine;
mod layers;

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use kiln_graph::Digest;
use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row};

pub use active::Active;
pub(super) use active::{ACTIVE, COMMITTED, REMOVING};
pub use layers::{CompressedLayer, LayerBlob};

use super::layer::{ContentHash, LayerDigests};
use super::lease::Leased;
use super::rootfs::Rootfs;
use super::tree;
use super::{Driver, Lease, Store, optional};
use crate::error::{Error, Result, ResultExt as _};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(in crate::store) i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                self.0.to_sql()
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                i64::column_result(value).map(Self)
            }
        }
    };
}

id! {
    /// The number of a snapshot. Never given to another one.
    SnapshotId
}
id! {
    /// The number of an active. Never given to another one.
    ActiveId
}

impl SnapshotId {
    fn missing(self) -> Error {
        Error::not_found(format!("no such snapshot: {self}"))
    }
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number.
    pub id: SnapshotId,
    /// The snapshot it lies on.
    pub parent: Option<SnapshotId>,
    /// The digest of its layer's tar, once somebody has computed it.
    pub diff_id: Option<Digest>,
    /// The digest of all layers up to it, once somebody has computed it.
    pub chain_id: Option<Digest>,
    /// What its layer holds but for times; unknown for layers that were pulled.
    pub content: Option<ContentHash>,
    /// The length of its layer's tar in bytes, once it is known.
    pub tar_size: Option<u64>,
    /// What its layer takes on the disk in bytes, once somebody has looked; see [`Store::usage`].
    pub allocated: Option<u64>,
    /// When it was committed, in nanoseconds since 1970.
    pub created_at: i64,
    /// The time that stands for what its layer was made of, in nanoseconds since 1970; see [`Active::commit_as_of`].
    pub as_of: Option<i64>,
}

/// When an earlier layer is taken for one that was just made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sameness {
    /// When they differ in times only.
    UpToTimes,
    /// When they have the same digest.
    Exact,
}

const COLUMNS: &str = "id, parent, diff_id, chain_id, content, tar_size,
    (SELECT allocated FROM trees WHERE trees.id = layer), created_at, as_of";

impl Snapshot {
    fn read(row: &Row<'_>) -> rusqlite::Result<(i64, Self)> {
        let digest = |column| -> rusqlite::Result<Option<Digest>> {
            let text: Option<String> = row.get(column)?;
            text.map(|text| text.parse()).transpose().map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
            })
        };
        let id = row.get(0)?;
        let snapshot = Self {
            id,
            parent: row.get(1)?,
            diff_id: digest(2)?,
            chain_id: digest(3)?,
            content: row.get::<_, Option<[u8; 32]>>(4)?.map(ContentHash),
            tar_size: row.get(5)?,
            allocated: row.get(6)?,
            created_at: row.get(7)?,
            as_of: row.get(8)?,
        };
        Ok((id.0, snapshot))
    }
}

/// What a snapshot's layer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerForm {
    /// The changes of the tree over the parent.
    Changes = 0,
    /// All of a tree that was made on nothing, and that can lie on anything.
    Whole = 1,
    /// All of an unpacked tree with its marks, which can lie on anything.
    Marked = 2,
}

impl LayerForm {
    fn read(number: i64) -> Result<Self> {
        match number {
            0 => Ok(Self::Changes),
            1 => Ok(Self::Whole),
            2 => Ok(Self::Marked),
            other => Err(Error::corrupt(format!("database: no such form of a layer: {other}"))),
        }
    }
}

/// A snapshot about to be recorded.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewSnapshot {
    pub tree: i64,
    pub layer: i64,
    pub form: LayerForm,
    pub parent: Option<SnapshotId>,
    /// What its layer's changes are changes of, when that is not its parent.
    pub made_on: Option<SnapshotId>,
    pub diff_id: Option<Digest>,
    pub content: Option<ContentHash>,
    pub tar_size: Option<u64>,
    pub as_of: Option<i64>,
}

impl Store {
    /// Finds a snapshot and leases it, and with it those it lies on. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn snapshot(&self, lease: &Lease, id: SnapshotId) -> Result<Option<Snapshot>> {
        self.leased(lease, Leased::Snapshot, |connection| find(connection, "id = ?1", id))
    }

    /// Finds the snapshot with a chain ID and leases it, and with it those it lies on. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn by_chain(&self, lease: &Lease, chain_id: &Digest) -> Result<Option<Snapshot>> {
        self.leased(lease, Leased::Snapshot, |connection| find(connection, "chain_id = ?1", chain_id.to_string()))
    }

    /// Returns what a snapshot lies on; `None` also for one that has gone. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn parent_of(&self, id: SnapshotId) -> Result<Option<SnapshotId>> {
        self.root().db().read(|connection| Ok(find(connection, "id = ?1", id)?.and_then(|(_, found)| found.parent)))
    }

    /// Finds the snapshot with a chain ID in the transaction of a collection, where a lease would come too late. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn snapshot_of_chain(&self, connection: &Connection, chain_id: &Digest) -> Result<Option<SnapshotId>> {
        Ok(find(connection, "chain_id = ?1", chain_id.to_string())?.map(|(_, snapshot)| snapshot.id))
    }

    /// Notes the times that stand for what layers were made of, where none are known: by chain ID, in nanoseconds since 1970.
    /// Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn note_times(&self, times: &[(Digest, i64)]) -> Result<()> {
        self.root().db().write(|tx| {
            let mut note =
                tx.prepare_cached("UPDATE snapshots SET as_of = ?2 WHERE chain_id = ?1 AND as_of IS NULL")?;
            for (chain, as_of) in times {
                note.execute((chain.to_string(), as_of))?;
            }
            Ok(())
        })
    }

    /// Records the digests of a snapshot's layer, and leases and returns the snapshot that has them.
    ///
    /// That is another, earlier one when that one has the same layers, or the same parent and a layer that differs in times
    /// only: then what was just made is not needed, and steps after it find what they find after the earlier one. The parent
    /// must be identified first. Blocking.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when the parent has no digests yet.
    pub fn identify(&self, lease: &Lease, id: SnapshotId, digests: &LayerDigests) -> Result<Snapshot> {
        self.identify_as(lease, id, digests, Sameness::UpToTimes)
    }

    /// Does what [`Self::identify`] does; with [`Sameness::Exact`] a layer that differs in times is kept apart.
    ///
    /// # Errors
    /// As [`Self::identify`].
    pub fn identify_as(
        &self,
        lease: &Lease,
        id: SnapshotId,
        digests: &LayerDigests,
        sameness: Sameness,
    ) -> Result<Snapshot> {
        self.root().db().write(|tx| {
            let (_, snapshot) = find(tx, "id = ?1", id)?.ok_or_else(|| id.missing())?;
            let chain_id = chain_id(tx, snapshot.parent, &digests.diff_id)?.ok_or_else(|| {
                Error::conflict(format!("snapshot {id} cannot be identified before the one it lies on"))
            })?;
            let same = "SELECT min(id) FROM snapshots WHERE chain_id = ?1 OR (?4 AND parent IS ?2 AND content = ?3)";
            let same: Option<SnapshotId> = tx.prepare_cached(same)?.query_row(
                (chain_id.to_string(), snapshot.parent, digests.content.0, sameness == Sameness::UpToTimes),
                |row| row.get(0),
            )?;
            let kept = same.unwrap_or(id);
            if kept == id {
                tx.prepare_cached(
                    "UPDATE snapshots SET diff_id = ?2, content = ?3, tar_size = ?4, chain_id = ?5 WHERE id = ?1",
                )?
                .execute((
                    id,
                    digests.diff_id.to_string(),
                    digests.content.0,
                    digests.tar_size,
                    chain_id.to_string(),
                ))?;
                let layer: i64 = tx
                    .prepare_cached("SELECT layer FROM snapshots WHERE id = ?1")?
                    .query_row([id], |row| row.get(0))?;
                self.record_tally(tx, layer, &digests.tally)?;
            }
            lease.hold(tx, Leased::Snapshot, kept.0)?;
            let (_, snapshot) = find(tx, "id = ?1", kept)?.ok_or_else(|| kept.missing())?;
            Ok(snapshot)
        })
    }

    /// Moves a snapshot that is not identified yet from its parent to one that differs from it in times only. Blocking.
    ///
    /// # Errors
    /// `Conflict` when it does not lie on `from`, or is identified.
    pub fn move_over(&self, id: SnapshotId, from: SnapshotId, to: SnapshotId) -> Result<()> {
        self.root().db().write(|tx| {
            let sql = "UPDATE snapshots SET parent = ?3 WHERE id = ?1 AND parent = ?2 AND chain_id IS NULL";
            match tx.prepare_cached(sql)?.execute((id, from, to))? {
                0 => Err(Error::conflict(format!("snapshot {id} cannot be moved from {from} to {to}"))),
                _ => Ok(()),
            }
        })
    }

    /// Returns the root file system that a chain of snapshots makes; `None` is the empty one. Blocking.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn rootfs(&self, top: Option<SnapshotId>) -> Result<Rootfs> {
        let trees = match top {
            Some(top) => self.root().db().read(|connection| chain(connection, top))?,
            None => Vec::new(),
        };
        if !self.driver().is_overlay() {
            let path = trees.first().map(|tree| self.tree_fs(*tree)).map_or_else(|| self.empty(0), Ok)?;
            return Ok(Rootfs::Dir { path, writable: false });
        }
        // The kernel does not stack a directory twice, and what lies further down shows nothing that the upper one does not.
        let mut seen = HashSet::new();
        let trees = trees.into_iter().filter(|tree| seen.insert(*tree));
        let mut lowers: Vec<PathBuf> = trees.map(|tree| self.tree_fs(tree)).collect();
        // The kernel wants two directories to stack where nothing is written.
        for missing in lowers.len()..2 {
            lowers.push(self.empty(missing)?);
        }
        Ok(Rootfs::Overlay { lowers, upper: None, user_xattrs: self.driver() == Driver::OverlayUser })
    }

    /// An empty directory to lie under what needs something below it.
    fn empty(&self, number: usize) -> Result<PathBuf> {
        let path = self.snapshots_dir().join(format!("empty-{number}"));
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(error).context(|| format!("create directory {}", path.display()))
            }
            _ => Ok(path),
        }
    }

    pub(super) fn tree_dir(&self, tree: i64) -> PathBuf {
        self.snapshots_dir().join(tree.to_string())
    }

    pub(super) fn tree_fs(&self, tree: i64) -> PathBuf {
        self.tree_dir(tree).join("fs")
    }

    pub(super) fn insert_snapshot(&self, tx: &Connection, new: &NewSnapshot) -> Result<SnapshotId> {
        let depth: i64 = match new.parent {
            None => 0,
            Some(parent) => {
                let mut find = tx.prepare_cached("SELECT depth + 1 FROM snapshots WHERE id = ?1")?;
                optional(find.query_row([parent], |row| row.get(0)))?.ok_or_else(|| parent.missing())?
            }
        };
        let chain_id = match &new.diff_id {
            Some(diff_id) => chain_id(tx, new.parent, diff_id)?,
            None => None,
        };
        tx.prepare_cached(
            "INSERT INTO snapshots
             (tree, layer, form, parent, depth, diff_id, content, tar_size, chain_id, created_at, boot, as_of, made_on)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?
        .execute((
            new.tree,
            new.layer,
            new.form as i64,
            new.parent,
            depth,
            new.diff_id.map(|digest| digest.to_string()),
            new.content.map(|content| content.0),
            new.tar_size,
            chain_id.map(|digest| digest.to_string()),
            self.now(),
            self.root().boot_id(),
            new.as_of,
            new.made_on,
        ))?;
        Ok(SnapshotId(tx.last_insert_rowid()))
    }
}

pub(super) fn find(connection: &Connection, condition: &str, key: impl ToSql) -> Result<Option<(i64, Snapshot)>> {
    let sql = format!("SELECT {COLUMNS} FROM snapshots WHERE {condition}");
    optional(connection.prepare_cached(&sql)?.query_row([key], Snapshot::read))
}

/// Computes a chain ID; `None` when the parent has none.
pub(super) fn chain_id(tx: &Connection, parent: Option<SnapshotId>, diff_id: &Digest) -> Result<Option<Digest>> {
    let Some(parent) = parent else { return Ok(Some(*diff_id)) };
    let (_, parent) = find(tx, "id = ?1", parent)?.ok_or_else(|| parent.missing())?;
    Ok(parent.chain_id.map(|below| next_chain_id(&below, diff_id)))
}

/// Computes the chain ID of a layer on a chain (OCI image spec, "Layer ChainID").
pub(super) fn next_chain_id(below: &Digest, diff_id: &Digest) -> Digest {
    Digest::of(format!("{below} {diff_id}").as_bytes())
}

/// Finds a snapshot on `parent` that has the same layer.
fn same_layer(
    connection: &Connection,
    parent: Option<SnapshotId>,
    new: &NewSnapshot,
) -> Result<Option<(i64, SnapshotId)>> {
    let sql = "SELECT min(id) FROM snapshots WHERE parent IS ?1 AND (layer = ?2 OR diff_id = ?3)";
    let diff_id = new.diff_id.map(|digest| digest.to_string());
    let id: Option<SnapshotId> =
        connection.prepare_cached(sql)?.query_row((parent, new.layer, diff_id), |row| row.get(0))?;
    Ok(id.map(|id| (id.0, id)))
}

/// The trees of a chain, the topmost first.
pub(super) fn chain(connection: &Connection, top: SnapshotId) -> Result<Vec<i64>> {
    let sql = "WITH RECURSIVE chain (tree, parent, depth) AS (
            SELECT tree, parent, depth FROM snapshots WHERE id = ?1
            UNION ALL
            SELECT s.tree, s.parent, s.depth FROM snapshots s JOIN chain ON s.id = chain.parent
        )
        SELECT tree FROM chain ORDER BY depth DESC";
    let mut select = connection.prepare_cached(sql)?;
    let trees: Vec<i64> = select.query_map([top], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    if trees.is_empty() { Err(top.missing()) } else { Ok(trees) }
}

/// Takes back the marks the kernel puts on new directories to look no further, on a tree that had nothing below it: on
/// another parent they would hide what is there.
fn forget_opaque(store: &Store, layer: i64) -> Result<()> {
    let Some(xattr) = store.driver().marks().opaque_xattr() else { return Ok(()) };
    let mut walk = tree::Walk::new(tree::open_root(&store.tree_fs(layer))?)?;
    while let Some(step) = walk.step()? {
        if let tree::Step::Enter(found, dir) = step {
            match rustix::fs::fremovexattr(&dir, xattr) {
                Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno).context(|| format!("unmark {}", tree::display(&found.path))),
            }
        }
    }
    Ok(())
}
