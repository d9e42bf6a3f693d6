//! Why things are kept: who holds each blob, each layer and each tree that is still written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kiln_graph::Digest;
use rusqlite::Connection;

use super::lease::lease_path;
use super::snapshot::{ACTIVE, REMOVING};
use super::{Roots, Store};
use crate::error::Result;
use crate::state::{FileLock, LockMode};

/// What the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A blob, by its digest.
    Blob,
    /// A layer, with the number of its tree.
    Layer,
    /// A tree that is still written: of a step, a container, a cache mount.
    Active,
}

impl What {
    /// Returns a word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Layer => "layer",
            Self::Active => "active",
        }
    }
}

/// Something the store holds, and who needs it; nobody does when the next collection removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What it is.
    pub what: What,
    /// Names it.
    pub id: String,
    /// What it takes on the disk, in bytes; 0 for an active, which is not measured here.
    pub size_bytes: u64,
    /// Who needs it, in words.
    pub holders: BTreeSet<String>,
}

#[derive(Clone, Copy)]
struct Snapshot {
    parent: Option<i64>,
    layer: i64,
    tree: i64,
}

struct Tree {
    state: i64,
    base: Option<i64>,
    allocated: u64,
}

/// What the records say.
struct Records {
    snapshots: HashMap<i64, Snapshot>,
    trees: BTreeMap<i64, Tree>,
    blobs: BTreeMap<Digest, u64>,
}

impl Store {
    /// Says of everything who needs it. `holders` tells what each of those outside of the store needs; leases are known here.
    /// Blocking.
    ///
    /// # Errors
    /// Those of `holders`; when the database fails.
    pub fn why(&self, holders: impl FnOnce(&Connection) -> Result<Vec<(String, Roots)>>) -> Result<Vec<Kept>> {
        for tree in self.unmeasured()? {
            self.measure(tree)?;
        }
        // In one transaction, as a collection is: what is said is true of one moment.
        self.root().db().write(|tx| {
            let records = Records::read(tx)?;
            let mut all = holders(tx)?;
            all.extend(self.leases(tx)?);
            Ok(records.explain(&all))
        })
    }

    /// What the leases of living processes hold.
    fn leases(&self, tx: &Connection) -> Result<Vec<(String, Roots)>> {
        let mut select = tx.prepare_cached("SELECT id, label FROM leases")?;
        let leases = select.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
        let mut found = Vec::new();
        for lease in leases {
            let (id, label) = lease?;
            let path = lease_path(&self.0.leases, id);
            if !path.exists() || FileLock::try_acquire(&path, LockMode::Shared)?.is_some() {
                continue;
            }
            let mut roots = Roots::default();
            let sql = "SELECT b.digest FROM lease_blobs l JOIN blobs b ON b.id = l.blob WHERE l.lease = ?1";
            for digest in tx.prepare_cached(sql)?.query_map([id], |row| row.get::<_, String>(0))? {
                roots.blobs.push(super::parse_digest(&digest?)?);
            }
            let sql = "SELECT snapshot FROM lease_snapshots WHERE lease = ?1";
            for snapshot in tx.prepare_cached(sql)?.query_map([id], |row| row.get(0))? {
                roots.snapshots.push(snapshot?);
            }
            let sql = "SELECT tree FROM lease_trees WHERE lease = ?1";
            for tree in tx.prepare_cached(sql)?.query_map([id], |row| row.get(0))? {
                roots.actives.push(tree?);
            }
            found.push((format!("in use: {label}"), roots));
        }
        Ok(found)
    }
}

impl Records {
    fn read(tx: &Connection) -> Result<Self> {
        let mut snapshots = HashMap::new();
        let mut select = tx.prepare_cached("SELECT id, parent, layer, tree FROM snapshots")?;
        for row in select.query_map([], |row| {
            Ok((row.get(0)?, Snapshot { parent: row.get(1)?, layer: row.get(2)?, tree: row.get(3)? }))
        })? {
            let (id, snapshot) = row?;
            snapshots.insert(id, snapshot);
        }
        let mut trees = BTreeMap::new();
        let mut select =
            tx.prepare_cached("SELECT id, state, base, coalesce(allocated, 0) FROM trees WHERE state <> ?1")?;
        for row in select.query_map([REMOVING], |row| {
            Ok((row.get(0)?, Tree { state: row.get(1)?, base: row.get(2)?, allocated: row.get(3)? }))
        })? {
            let (id, tree) = row?;
            trees.insert(id, tree);
        }
        let mut blobs = BTreeMap::new();
        let mut select = tx.prepare_cached("SELECT digest, allocated FROM blobs WHERE NOT removing")?;
        for row in select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))? {
            let (digest, allocated) = row?;
            blobs.insert(super::parse_digest(&digest)?, allocated);
        }
        Ok(Self { snapshots, trees, blobs })
    }

    fn explain(&self, holders: &[(String, Roots)]) -> Vec<Kept> {
        let mut of_trees: HashMap<i64, BTreeSet<String>> = HashMap::new();
        let mut of_blobs: HashMap<Digest, BTreeSet<String>> = HashMap::new();
        for (name, roots) in holders {
            for digest in &roots.blobs {
                of_blobs.entry(*digest).or_default().insert(name.clone());
            }
            let actives = roots.actives.iter().map(|active| active.0);
            let bases = actives.clone().filter_map(|active| self.trees.get(&active)?.base);
            let snapshots: Vec<i64> = roots.snapshots.iter().map(|snapshot| snapshot.0).chain(bases).collect();
            for tree in actives.chain(self.below(snapshots)) {
                of_trees.entry(tree).or_default().insert(name.clone());
            }
        }
        let trees = self.trees.iter().map(|(id, tree)| Kept {
            what: if tree.state == ACTIVE { What::Active } else { What::Layer },
            id: id.to_string(),
            size_bytes: tree.allocated,
            holders: of_trees.remove(id).unwrap_or_default(),
        });
        let mut all: Vec<Kept> = trees.collect();
        all.extend(self.blobs.iter().map(|(digest, allocated)| Kept {
            what: What::Blob,
            id: digest.to_string(),
            size_bytes: *allocated,
            holders: of_blobs.remove(digest).unwrap_or_default(),
        }));
        all.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
        all
    }

    /// The trees of snapshots and of those they lie on.
    fn below(&self, mut next: Vec<i64>) -> BTreeSet<i64> {
        let (mut seen, mut trees) = (BTreeSet::new(), BTreeSet::new());
        while let Some(id) = next.pop() {
            if let Some(snapshot) = self.snapshots.get(&id).filter(|_| seen.insert(id)) {
                trees.extend([snapshot.layer, snapshot.tree]);
                next.extend(snapshot.parent);
            }
        }
        trees
    }
}
