//! Unpacking the layers of an image into a chain of snapshots.
//!
//! Layers come in any order and several at a time, each into a tree of its own, while they are still being downloaded. Only
//! at the end are they put on one another, from the lowest to the topmost. Layers the store has are not asked for: those of
//! the same chain, and those that do not depend on what is below them.

use std::io::Read;
use std::sync::Mutex;

use kiln_graph::{Algorithm, Digest};

use super::layer::{self, ExtractOptions, Extracted};
use super::lease::Leased;
use super::rootfs::Access;
use super::snapshot::{LayerForm, NewSnapshot, next_chain_id};
use super::{Active, Driver, Lease, SnapshotId, Store, tree};
use crate::error::{Error, Result, ResultExt as _};
use crate::task::Cancel;

/// A chain that is being unpacked. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct Unpacker {
    store: Store,
    lease: Lease,
    /// What the store has of the chain already.
    base: Option<SnapshotId>,
    /// How many layers that is.
    present: usize,
    /// The layers above it.
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    diff_id: Digest,
    chain_id: Digest,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Missing,
    /// A snapshot has the same layer on something else.
    Elsewhere(SnapshotId),
    Unpacked(Box<Done>),
}

#[derive(Debug)]
struct Done {
    active: Active,
    extracted: Extracted,
    tar_size: u64,
}

impl Store {
    /// Starts to unpack the chain of layers with these diff IDs, the lowest first; leases what is there already. Blocking.
    ///
    /// # Errors
    /// `Unsupported` for diff IDs of another algorithm than SHA-256.
    pub fn unpacker(&self, lease: &Lease, diff_ids: &[Digest]) -> Result<Unpacker> {
        if let Some(other) = diff_ids.iter().find(|diff_id| diff_id.algorithm() != Algorithm::Sha256) {
            return Err(Error::unsupported(format!("the diff ID {other}: layers are known by their SHA-256")));
        }
        let mut layers: Vec<Layer> = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let chain_id = layers.last().map_or(*diff_id, |below| next_chain_id(&below.chain_id, diff_id));
            layers.push(Layer { diff_id: *diff_id, chain_id, state: Mutex::new(State::Missing) });
        }
        let mut unpacker = Unpacker { store: self.clone(), lease: lease.clone(), base: None, present: 0, layers };
        for at in (0..unpacker.layers.len()).rev() {
            if let Some(snapshot) = self.by_chain(lease, &unpacker.layers[at].chain_id)? {
                unpacker.base = Some(snapshot.id);
                unpacker.present = at + 1;
                unpacker.layers.drain(..=at);
                break;
            }
        }
        for layer in &unpacker.layers {
            if let Some(snapshot) = self.independent_layer(lease, &layer.diff_id)? {
                *layer.state.lock().expect("nobody else has it yet") = State::Elsewhere(snapshot);
            }
        }
        Ok(unpacker)
    }

    /// Finds a snapshot with a layer that can lie on anything.
    fn independent_layer(&self, lease: &Lease, diff_id: &Digest) -> Result<Option<SnapshotId>> {
        let sql = "SELECT min(id) FROM snapshots WHERE diff_id = ?1 AND form <> ?2";
        self.leased(lease, Leased::Snapshot, |connection| {
            let mut find = connection.prepare_cached(sql)?;
            let changes = LayerForm::Changes as i64;
            let id = find.query_row((diff_id.to_string(), changes), |row| row.get::<_, Option<SnapshotId>>(0))?;
            Ok(id.map(|id| (id.0, id)))
        })
    }
}

impl Unpacker {
    /// Returns which layers have to be brought, as indices into the diff IDs.
    #[must_use]
    pub fn missing(&self) -> Vec<usize> {
        let missing = |layer: &Layer| matches!(*lock(layer), State::Missing);
        let above = self.layers.iter().enumerate().filter(|(_, layer)| missing(layer));
        above.map(|(at, _)| at + self.present).collect()
    }

    /// Unpacks a layer, compressed with whatever it is, and verifies its diff ID.
    ///
    /// Several threads may unpack different layers at a time. Blocking. Reads `input` to its end; holds a few MiB, whatever the
    /// size of the layer. Device nodes that only root may make are left out.
    ///
    /// # Errors
    /// `Corrupt` when the layer is damaged or is not the one that was promised; `InvalidArgument` for one that is no archive or
    /// leads out of its root; `Exhausted` on a full disk; `Cancelled`. The layer stays missing.
    pub fn layer(&self, index: usize, input: impl Read + Send, cancel: &Cancel) -> Result<()> {
        let layer = index.checked_sub(self.present).and_then(|at| self.layers.get(at));
        let Some(layer) = layer else {
            return Err(Error::internal(format!("layer {index} of the chain is not to be unpacked")));
        };
        let context = || format!("unpack layer {}", layer.diff_id);
        let active = self.store.start_active(&self.lease, None)?;
        let into = tree::open_root(active.dir())?;
        let options = ExtractOptions::new(cancel).within(&self.store);
        let unpacked = layer::unpack(input, into, self.store.driver().marks(), options).context(context)?;
        if unpacked.diff_id != layer.diff_id {
            let why = format!("its content has the digest {}", unpacked.diff_id);
            return Err(Error::corrupt(why)).context(context);
        }
        let (extracted, tar_size) = (unpacked.extracted, unpacked.tar_size);
        *lock(layer) = State::Unpacked(Box::new(Done { active, extracted, tar_size }));
        Ok(())
    }

    /// Puts the layers on one another and returns the topmost, leased; `None` for a chain of no layers. Blocking.
    ///
    /// # Errors
    /// `Conflict` when a layer is still missing; `InvalidArgument` for a layer with a link to a file that no layer has.
    pub fn finish(self, cancel: &Cancel) -> Result<Option<SnapshotId>> {
        let Self { store, lease, base, layers, .. } = self;
        let mut parent = base;
        for layer in layers {
            let Layer { diff_id, chain_id, state } = layer;
            let state = state.into_inner().expect("no panic happens while the lock is held");
            let context = || format!("put layer {diff_id} in its place");
            let snapshot = match state {
                State::Missing => return Err(Error::conflict("it was not unpacked")).context(context),
                State::Elsewhere(snapshot) => store.rebase(&lease, snapshot, parent).context(context)?,
                State::Unpacked(done) => {
                    store.place(&lease, *done, parent, (&diff_id, &chain_id), cancel).context(context)?
                }
            };
            parent = Some(snapshot);
        }
        Ok(parent)
    }
}

fn lock(layer: &Layer) -> std::sync::MutexGuard<'_, State> {
    layer.state.lock().expect("no panic happens while the lock is held")
}

impl Store {
    /// Makes a snapshot of an unpacked layer, on its parent.
    fn place(
        &self,
        lease: &Lease,
        done: Done,
        parent: Option<SnapshotId>,
        (diff_id, chain_id): (&Digest, &Digest),
        cancel: &Cancel,
    ) -> Result<SnapshotId> {
        let Done { active, extracted, tar_size } = done;
        // Another process may have unpacked the same image meanwhile.
        if let Some(existing) = self.by_chain(lease, chain_id)? {
            return Ok(existing.id);
        }
        let marks = self.driver().marks();
        let upper = tree::open_root(active.dir())?;
        if let Some(parent) = parent
            && !extracted.is_settled()
        {
            let stands_alone = extracted.stands_alone();
            let lower = match self.rootfs(Some(parent))? {
                // Only the metadata of the root is missing, and that is the topmost directory's.
                _ if stands_alone => tree::open_root(&self.top_dir(parent)?)?,
                rootfs => tree::open_dir(rootfs.mount(Access::ReadOnly)?, c".")?,
            };
            layer::settle(&upper, marks, Some(&lower), &extracted, cancel)?;
        } else {
            layer::settle(&upper, marks, None, &extracted, cancel)?;
        }
        let form = if extracted.stands_alone() { LayerForm::Marked } else { LayerForm::Changes };
        let new = |tree, form| NewSnapshot {
            tree,
            layer: tree,
            form,
            parent,
            made_on: None,
            diff_id: Some(*diff_id),
            content: None,
            tar_size: Some(tar_size),
            as_of: None,
        };
        let placed = if self.driver() == Driver::Native {
            let whole = self.prepare(lease, parent)?;
            layer::merge(&upper, &tree::open_root(whole.dir())?, marks)?;
            whole.forget_what_was_copied()?;
            // Without marks, a tree on nothing is all of its layer; on anything else, it is more than that.
            let form = if parent.is_none() { LayerForm::Whole } else { LayerForm::Changes };
            whole.commit_as(|tree| new(tree, form))
        } else {
            active.commit_as(|tree| new(tree, form))
        };
        match placed {
            Ok(snapshot) => Ok(snapshot),
            Err(error) => match self.by_chain(lease, chain_id)? {
                // Somebody was faster by a moment; its record has the chain ID that no two may have.
                Some(existing) => Ok(existing.id),
                None => Err(error),
            },
        }
    }
}
