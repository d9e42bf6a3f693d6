//! Merging: stacking the layers of file systems, without copying anything.

use std::sync::Arc;

use kiln_graph::VertexId;

use crate::error::{Error, Kind, Result};
use crate::solver::job::Job;
use crate::solver::settle::Made;
use crate::solver::value::FileSystem;
use crate::store::SnapshotId;
use crate::task;

impl Job {
    /// Puts the layers of all inputs on one another, those of the last on top.
    pub(super) async fn run_merge(self: &Arc<Self>, id: VertexId) -> Result<Made> {
        let vertex = self.graph.vertex(id);
        let mut tops: Vec<SnapshotId> = Vec::new();
        for index in (0..).take(vertex.inputs.len()) {
            let input = self.file_system(vertex, Some(index))?;
            // Layers are moved by their digests.
            let top = match &input {
                FileSystem::Layer(layer) => Some(layer.settled().await?.id),
                FileSystem::Empty | FileSystem::Image { .. } => self.materialize(&input).await?,
            };
            tops.extend(top);
        }
        let job = Arc::clone(self);
        let snapshot = task::blocking(move || job.stack(&tops)).await?;
        let name = vertex.meta.name.clone();
        Ok(Made { snapshot, base: FileSystem::Empty, listing: None, name, has_digests: true })
    }

    fn stack(&self, tops: &[SnapshotId]) -> Result<SnapshotId> {
        let deps = self.solver.deps();
        let (base, above) = tops.split_first().ok_or_else(|| Error::invalid("a merge of nothing"))?;
        above.iter().try_fold(*base, |base, top| {
            let chain = deps.images.chain(&self.lease, Some(*top))?;
            chain.iter().try_fold(base, |base, layer| {
                deps.store.rebase(&self.lease, layer.id, Some(base)).map_err(|error| match error.kind() {
                    Kind::Conflict => error.with_kind(Kind::Unsupported).context("merge file systems"),
                    _ => error,
                })
            })
        })
    }
}
