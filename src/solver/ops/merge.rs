//! Merging and taking differences: layers of file systems are put on others, without copying anything.

use std::sync::Arc;

use kiln_graph::VertexId;
use kiln_graph::op::{InputIndex, Op};

use crate::error::{Error, Result};
use crate::solver::job::{Job, Stop};
use crate::solver::settle::Made;
use crate::solver::value::FileSystem;
use crate::store::{Snapshot, SnapshotId};
use crate::task;

/// What a merge or a difference is without any work.
pub(in crate::solver) enum Shortcut {
    /// It is this.
    Value(FileSystem),
    /// It needs work.
    None,
    /// That depends on what its inputs are identified as.
    Unknown,
}

impl Job {
    /// Finds out whether a step is nothing but one of its inputs, or nothing at all.
    pub(in crate::solver) fn shortcut(&self, id: VertexId) -> Result<Shortcut> {
        let vertex = self.graph.vertex(id);
        let side = |index: Option<InputIndex>| self.file_system(vertex, index);
        let shortcut = match &vertex.op {
            Op::Merge => {
                let inputs = (0..).take(vertex.inputs.len()).map(|index| side(Some(index)));
                let mut full = Vec::new();
                for input in inputs.collect::<Result<Vec<_>>>()? {
                    if input.chain_now() != Some(None) {
                        full.push(input);
                    }
                }
                match full.len() {
                    0 => Shortcut::Value(FileSystem::Empty),
                    1 => Shortcut::Value(full.remove(0)),
                    _ => Shortcut::None,
                }
            }
            Op::Diff { lower, upper } => {
                let (lower, upper) = (side(*lower)?, side(*upper)?);
                match (lower.chain_now(), upper.chain_now()) {
                    (Some(None), _) => Shortcut::Value(upper),
                    (Some(lower), Some(upper)) if lower == upper => Shortcut::Value(FileSystem::Empty),
                    (Some(_), Some(_)) => Shortcut::None,
                    _ => Shortcut::Unknown,
                }
            }
            _ => Shortcut::None,
        };
        Ok(shortcut)
    }

    /// Puts the layers of all inputs on one another, those of the last on top.
    pub(super) async fn run_merge(self: &Arc<Self>, id: VertexId) -> Result<Made> {
        let mut tops = Vec::new();
        for index in (0..).take(self.graph.vertex(id).inputs.len()) {
            tops.extend(self.identified_snapshot(id, Some(index)).await?);
        }
        let job = Arc::clone(self);
        let snapshot = task::blocking(move || {
            let (base, above) = tops.split_first().ok_or_else(|| Error::internal("a merge of nothing"))?;
            above.iter().try_fold(*base, |base, top| {
                let layers = job.solver.deps().images.chain(&job.lease, Some(*top))?;
                job.stack(Some(base), &layers)
            })
        })
        .await?;
        Ok(self.made_of_layers(id, snapshot))
    }

    /// Takes what one file system has over another: its uppermost layers, when it was made on the other one, or else a layer
    /// that makes one of the other.
    pub(super) async fn run_diff(
        self: &Arc<Self>,
        id: VertexId,
        lower: Option<InputIndex>,
        upper: Option<InputIndex>,
        stop: &Stop,
    ) -> Result<Made> {
        let above = self.file_system(self.graph.vertex(id), upper)?;
        let lower = self.identified_snapshot(id, lower).await?;
        let upper = self.identified_snapshot(id, upper).await?;
        let (job, cancel) = (Arc::clone(self), stop.flag().clone());
        let (snapshot, has_digests) = task::blocking(move || {
            let deps = job.solver.deps();
            let (below, all) = (deps.images.chain(&job.lease, lower)?, deps.images.chain(&job.lease, upper)?);
            match all.get(..below.len()).zip(all.get(below.len()..)) {
                Some((first, above)) if same_layers(first, &below) && !above.is_empty() => {
                    Ok((job.stack(None, above)?, true))
                }
                _ => {
                    let as_of = job.as_of(&above)?;
                    Ok((deps.store.difference(&job.lease, lower, upper, as_of, &cancel)?, false))
                }
            }
        })
        .await?;
        Ok(Made { has_digests, ..self.made_of_layers(id, snapshot) })
    }

    fn made_of_layers(&self, id: VertexId, snapshot: SnapshotId) -> Made {
        let name = self.graph.vertex(id).meta.name.clone();
        Made { snapshot, base: FileSystem::Empty, listing: None, name, has_digests: true }
    }

    /// Layers are moved by their digests.
    async fn identified_snapshot(&self, id: VertexId, index: Option<InputIndex>) -> Result<Option<SnapshotId>> {
        match self.file_system(self.graph.vertex(id), index)? {
            FileSystem::Layer(layer) => Ok(Some(layer.settled().await?.id)),
            other => self.materialize(&other).await,
        }
    }

    /// Puts layers on a snapshot, the first one first. There is at least one.
    fn stack(&self, base: Option<SnapshotId>, layers: &[Snapshot]) -> Result<SnapshotId> {
        let store = &self.solver.deps().store;
        let top = layers.iter().try_fold(base, |base, layer| store.rebase(&self.lease, layer.id, base).map(Some))?;
        top.ok_or_else(|| Error::internal("a stack of nothing"))
    }
}

fn same_layers(a: &[Snapshot], b: &[Snapshot]) -> bool {
    a.last().map(|top| top.chain_id) == b.last().map(|top| top.chain_id)
}
