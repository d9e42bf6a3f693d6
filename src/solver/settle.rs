//! What happens to a layer after its step has ended: its digests, its identity, its record.
//!
//! Later steps do not wait for this. A layer that differs from an earlier one in times only is given up for that one (early
//! cutoff); steps that were put on it meanwhile are moved over.

use std::sync::Arc;

use kiln_graph::op::Part;

use super::cache::{self, NewStep};
use super::identify::Work;
use super::job::Job;
use super::value::{Failed, FileSystem, Layer, Settled};
use crate::error::{Error, Result};
use crate::store::{LayerDigests, Sameness, SnapshotId};
use crate::task::{self, Cancel};

/// A layer whose step has just ended.
pub(super) struct Made {
    pub(super) snapshot: SnapshotId,
    /// What it lies on.
    pub(super) base: FileSystem,
    /// What a copy took, as [`super::copy::Listing::encode`] writes it.
    pub(super) listing: Option<Vec<u8>>,
    /// What progress shows of the step.
    pub(super) name: String,
    /// Whether it was put together of layers that have digests.
    pub(super) has_digests: bool,
}

impl Job {
    /// Begins to identify and record a layer; the work goes on in the background, and the build waits for it at its end.
    pub(super) fn settle(self: &Arc<Self>, work: Work, made: Made) -> Layer {
        let (snapshot, run) = (made.snapshot, work.run);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let layer = Layer::new(snapshot, self.lease.clone(), async move {
            receiver.await.unwrap_or_else(|_| Err(Error::cancelled("the engine is stopping").into()))
        });
        self.solver.settles(run, layer.clone());
        let (job, pending) = (Arc::clone(self), self.pending.token());
        self.solver.deps().tasks.spawn(async move {
            let stopping = job.solver.deps().tasks.stopping();
            let cancel = Cancel::new();
            let _stop = cancel.on_drop();
            let result = tokio::select! {
                result = job.identify_layer(work, made, cancel.clone()) => result,
                () = stopping.cancelled() => Err(Error::cancelled("the engine is stopping")),
            };
            job.solver.settled(&run);
            result.iter().for_each(|settled| job.send_ahead(*settled));
            // Nobody may be waiting.
            let _ = sender.send(result.map_err(Failed::from));
            drop(pending);
        });
        layer
    }

    async fn identify_layer(self: &Arc<Self>, work: Work, made: Made, cancel: Cancel) -> Result<Settled> {
        let digests = self.digests(&made, cancel);
        let (digests, base) = tokio::try_join!(digests, base_of(&made.base))?;
        let parts = work.identified().await?;
        let job = Arc::clone(self);
        task::blocking(move || {
            let store = &job.solver.deps().store;
            let settled = match digests {
                Some(digests) => {
                    if let Some((from, to)) = base.filter(|(from, to)| from != to) {
                        store.move_over(made.snapshot, from, to)?;
                    }
                    // A step that sets times is about times.
                    let exact = job.witness.is_some() || parts.sets_times();
                    let sameness = if exact { Sameness::Exact } else { Sameness::UpToTimes };
                    store.identify_as(&job.lease, made.snapshot, &digests, sameness)?
                }
                // It has the digests of the layer it was put together of.
                None => store
                    .snapshot(&job.lease, made.snapshot)?
                    .ok_or_else(|| Error::internal("a layer has gone while it was identified"))?,
            };
            let chain = settled.chain_id.ok_or_else(|| Error::internal("a layer was not identified"))?;
            let stored: Vec<Part> = parts.stored(&[]);
            let step = NewStep {
                key: parts.key(),
                op: work.op,
                snapshot: settled.id,
                chain,
                name: &made.name,
                parts: &stored,
                now_ns: job.progress.now_ns(),
                boot: store.root().boot_id(),
            };
            store.root().db().write(|tx| {
                cache::record(tx, &step)?;
                made.listing.as_ref().map_or(Ok(()), |listing| cache::record_listing(tx, &work.op, settled.id, listing))
            })?;
            Ok(Settled { id: settled.id, chain })
        })
        .await
    }

    /// Computes the digests of a layer, as many layers at a time as there are cores; `None` when it has some.
    async fn digests(&self, made: &Made, cancel: Cancel) -> Result<Option<LayerDigests>> {
        if made.has_digests {
            return Ok(None);
        }
        let _turn = self.solver.digest_turn().await;
        let (store, snapshot) = (self.solver.deps().store.clone(), made.snapshot);
        task::blocking(move || store.layer_digests(snapshot, &cancel).map(Some)).await
    }
}

/// Waits until what a layer lies on is identified; returns that as it was made and as it is known.
async fn base_of(base: &FileSystem) -> Result<Option<(SnapshotId, SnapshotId)>> {
    match base {
        FileSystem::Layer(layer) => Ok(Some((layer.made, layer.settled().await?.id))),
        FileSystem::Empty | FileSystem::Image { .. } | FileSystem::Cached(_) => Ok(None),
    }
}
