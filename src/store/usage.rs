//! What things take on the disk, so that the sum of the records is what `du` says.
//!
//! Sizes are those of the blocks that are allocated, directories included. A file may have names in several trees, because an
//! unchanged file of an earlier copy is linked instead of copied. It counts for the tree it came from; when that is removed,
//! for one of those that still have it. Three rules keep this true without a record for each file: a tree is measured before
//! another may link to its files; a link is announced (a *loan*) before it is made; and a donor stays until its borrowers are
//! committed.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rusqlite::Connection;

use super::snapshot::{ACTIVE, COMMITTED};
use super::tree::{self, Inode, Kind, Metadata, Step, Walk};
use super::{SnapshotId, Store, optional};
use crate::error::{Result, ResultExt as _};

/// What the files of one tree take on the disk.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Tally {
    /// Files with one name, and directories, in bytes.
    single: u64,
    /// Files with several names, within this tree or beyond.
    linked: HashMap<Inode, Linked>,
}

#[derive(Clone, Copy, Debug)]
struct Linked {
    /// How many of its names the tree has.
    seen: u32,
    links: u32,
    bytes: u64,
}

impl Tally {
    pub(in crate::store) fn add(&mut self, metadata: &Metadata) {
        if metadata.kind == Kind::Dir || metadata.links < 2 {
            self.single += metadata.allocated;
            return;
        }
        let new = Linked { seen: 0, links: metadata.links, bytes: metadata.allocated };
        self.linked.entry(metadata.inode).or_insert(new).seen += 1;
    }

    /// Tallies a directory and everything below it.
    fn of(dir: &Path) -> Result<Self> {
        let context = || format!("measure {}", dir.display());
        let root = tree::open_root(dir)?;
        let mut tally = Self::default();
        tally.add(&Metadata::of(&root).context(context)?);
        let mut walk = Walk::new(root)?;
        while let Some(step) = walk.step()? {
            match step {
                Step::Enter(_, dir) => tally.add(&Metadata::of(&dir).context(context)?),
                // In a tree that is in use, files come and go.
                Step::Pass(found) => match Metadata::at(&found.parent, &found.name) {
                    Err(rustix::io::Errno::NOENT) => {}
                    metadata => tally.add(&metadata.context(context)?),
                },
                Step::Leave => {}
            }
        }
        Ok(tally)
    }

    /// What nothing else has a name for, in bytes.
    fn own(&self) -> u64 {
        let own = self.linked.values().filter(|file| file.seen >= file.links);
        self.single + own.map(|file| file.bytes).sum::<u64>()
    }

    /// The files that others have names for too, with their sizes.
    fn shared(&self) -> HashMap<Inode, u64> {
        let shared = self.linked.iter().filter(|(_, file)| file.seen < file.links);
        shared.map(|(inode, file)| (*inode, file.bytes)).collect()
    }
}

/// What the store takes on the disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blobs.
    pub blobs: u64,
    /// Snapshots, and what is being removed of them.
    pub snapshots: u64,
    /// Trees that are still written.
    pub actives: u64,
    /// Transfers in progress or broken off.
    pub partial: u64,
    /// Everything else under the root: the database, what other modules keep in files, directories.
    pub records: u64,
}

impl Usage {
    /// Returns all of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { blobs, snapshots, actives, partial, records } = self;
        blobs + snapshots + actives + partial + records
    }
}

impl Store {
    /// Sums up what the store takes on the disk. Blocking; measures what nobody has measured yet, and everything that is still
    /// written.
    ///
    /// # Errors
    /// When the file system or the database fails.
    pub fn usage(&self) -> Result<Usage> {
        for tree in self.unmeasured()? {
            self.measure(tree)?;
        }
        let mut actives = 0;
        for tree in self.trees(ACTIVE, false)? {
            // One that was removed meanwhile takes nothing.
            actives += Tally::of(&self.tree_dir(tree)).map_or(0, |tally| tally.own());
        }
        let sum = |sql: &str| -> Result<u64> {
            self.root().db().read(|connection| Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?))
        };
        let root = self.root().path();
        Ok(Usage {
            blobs: sum("SELECT coalesce(sum(allocated), 0) FROM blobs")?,
            snapshots: sum("SELECT coalesce(sum(allocated), 0) FROM trees WHERE state <> 0")?,
            actives,
            partial: files(&self.0.ingest)?,
            records: beside(root)?,
        })
    }

    /// What the layer of a snapshot takes on the disk, in bytes; 0 for one that has gone. Blocking; reads the metadata of all its
    /// files, the first time.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn layer_size(&self, id: SnapshotId) -> Result<u64> {
        let read = |sql: &str, key: i64| -> Result<Option<u64>> {
            self.root().db().read(|connection| {
                let mut find = connection.prepare_cached(sql)?;
                Ok(optional(find.query_row([key], |row| row.get::<_, Option<u64>>(0)))?.flatten())
            })
        };
        let Some(layer) = read("SELECT layer FROM snapshots WHERE id = ?1", id.0)? else { return Ok(0) };
        let layer = i64::try_from(layer).unwrap_or(i64::MAX);
        self.measure(layer)?;
        Ok(read("SELECT allocated FROM trees WHERE id = ?1", layer)?.unwrap_or(0))
    }

    /// Says whether a lease keeps a snapshot at this moment. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn is_in_use(&self, id: SnapshotId) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT 1 FROM lease_snapshots WHERE snapshot = ?1)";
        self.root().db().read(|connection| Ok(connection.prepare_cached(sql)?.query_row([id], |row| row.get(0))?))
    }

    /// What one active takes on the disk, in bytes. Blocking; reads the metadata of all its files.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn active_usage(&self, active: &super::Active) -> Result<u64> {
        Ok(Tally::of(&self.tree_dir(active.id().0))?.own())
    }

    /// The committed trees that nobody has measured.
    pub(super) fn unmeasured(&self) -> Result<Vec<i64>> {
        self.trees(COMMITTED, true)
    }

    fn trees(&self, state: i64, unmeasured: bool) -> Result<Vec<i64>> {
        let sql = "SELECT id FROM trees WHERE state = ?1 AND (NOT ?2 OR allocated IS NULL)";
        self.root().db().read(|connection| {
            let mut select = connection.prepare_cached(sql)?;
            let ids = select.query_map((state, unmeasured), |row| row.get(0))?;
            Ok(ids.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Makes sure that a committed tree is measured.
    pub(super) fn measure(&self, tree: i64) -> Result<()> {
        let measured = self.root().db().read(|connection| measured(connection, tree))?;
        if measured != Some(None) {
            return Ok(());
        }
        let tally = Tally::of(&self.tree_dir(tree))?;
        self.root().db().write(|tx| record(tx, tree, tally.own()))
    }

    /// Records what was found out on the way about the files of a tree.
    pub(super) fn record_tally(&self, tx: &Connection, tree: i64, tally: &Tally) -> Result<()> {
        if measured(tx, tree)? != Some(None) {
            return Ok(());
        }
        let mut own = tally.own();
        let dir = self.tree_dir(tree);
        for beside in [dir.clone(), dir.join("copied")] {
            own += std::fs::symlink_metadata(beside).map_or(0, |metadata| metadata.blocks() * 512);
        }
        record(tx, tree, own)
    }

    /// Before a tree is removed: files of it that others have names for too count for those from now on.
    pub(super) fn hand_over(&self, donor: i64) -> Result<()> {
        let list = |sql: &str| -> Result<Vec<i64>> {
            self.root().db().read(|connection| {
                let mut select = connection.prepare_cached(sql)?;
                Ok(select.query_map([donor], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
            })
        };
        let borrowers = list("SELECT tree FROM loans WHERE donor = ?1 ORDER BY tree")?;
        if borrowers.is_empty() {
            return Ok(());
        }
        let donors = list("SELECT donor FROM loans WHERE tree = ?1")?;
        let shared = Tally::of(&self.tree_dir(donor))?.shared();
        // Of what the donor shares, it may have borrowed a part itself; that counts elsewhere, and goes on to do so.
        let mut borrowed = HashSet::new();
        for donor in &donors {
            borrowed.extend(Tally::of(&self.tree_dir(*donor))?.linked.into_keys());
        }
        let mut left: HashMap<Inode, u64> = shared.into_iter().filter(|(file, _)| !borrowed.contains(file)).collect();
        let mut heirs: HashMap<Inode, i64> = HashMap::new();
        let (mut gains, mut loans) = (Vec::new(), Vec::new());
        for borrower in borrowers {
            self.measure(borrower)?;
            let mut gain = 0;
            for file in Tally::of(&self.tree_dir(borrower))?.linked.into_keys() {
                if let Some(bytes) = left.remove(&file) {
                    gain += bytes;
                    heirs.insert(file, borrower);
                } else if let Some(heir) = heirs.get(&file) {
                    loans.push((borrower, *heir));
                }
            }
            gains.push((borrower, gain));
            loans.extend(donors.iter().map(|donor| (borrower, *donor)));
        }
        self.root().db().write(|tx| {
            let mut moved = 0;
            for (borrower, gain) in &gains {
                let sql = "UPDATE trees SET allocated = allocated + ?2 WHERE id = ?1";
                tx.prepare_cached(sql)?.execute((borrower, gain))?;
                moved += gain;
            }
            tx.prepare_cached("UPDATE trees SET allocated = max(0, allocated - ?2) WHERE id = ?1")?
                .execute((donor, moved))?;
            for (borrower, donor) in &loans {
                let sql = "INSERT OR IGNORE INTO loans (tree, donor) VALUES (?1, ?2)";
                tx.prepare_cached(sql)?.execute((borrower, donor))?;
            }
            tx.prepare_cached("DELETE FROM loans WHERE donor = ?1")?.execute([donor])?;
            Ok(())
        })
    }
}

/// What is recorded of a tree: `None` if there is no such tree, `Some(None)` if nobody has measured it.
fn measured(connection: &Connection, tree: i64) -> Result<Option<Option<u64>>> {
    let mut find = connection.prepare_cached("SELECT allocated FROM trees WHERE id = ?1")?;
    optional(find.query_row([tree], |row| row.get(0)))
}

fn record(tx: &Connection, tree: i64, allocated: u64) -> Result<()> {
    let sql = "UPDATE trees SET allocated = ?2 WHERE id = ?1 AND allocated IS NULL";
    tx.prepare_cached(sql)?.execute((tree, allocated))?;
    Ok(())
}

/// What the root holds besides blobs, snapshots and transfers, in bytes; the directories of those are counted, their content
/// is not.
fn beside(root: &Path) -> Result<u64> {
    const ELSEWHERE: &[&str] = &["blobs", "ingest", "snapshots"];
    let own = |path: &Path| std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512);
    let inner = ["", "blobs/sha256", "blobs/sha512", "snapshots/empty-0", "snapshots/empty-1"];
    let mut sum: u64 = inner.iter().map(|dir| own(&root.join(dir))).sum();
    for entry in std::fs::read_dir(root).context(|| format!("list {}", root.display()))? {
        let path = entry.context(|| format!("list {}", root.display()))?.path();
        let counted = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| ELSEWHERE.contains(&name));
        // What goes away while it is measured takes nothing.
        sum += if path.is_dir() && !counted { Tally::of(&path).map_or(0, |tally| tally.own()) } else { own(&path) };
    }
    Ok(sum)
}

/// The sum of the files in a directory, in bytes.
fn files(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).context(|| format!("list {}", dir.display()))? {
        let entry = entry.context(|| format!("list {}", dir.display()))?;
        // One that has gone meanwhile takes nothing.
        let metadata = entry.metadata().ok().filter(std::fs::Metadata::is_file);
        sum += metadata.map_or(0, |metadata| metadata.blocks() * 512);
    }
    Ok(sum)
}
