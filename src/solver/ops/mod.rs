//! What steps do.

mod cache_mount;
mod exec;
mod exit;
mod file;
mod logs;
mod make;
mod merge;
mod mounts;
mod step;
mod times;

pub(super) use cache_mount::{CacheMount, Wanted};

use std::sync::Arc;

use kiln_graph::VertexId;
use kiln_graph::op::Op;

use super::identify::Work;
use super::job::{Job, Stop};
use super::reporter::Reporter;
use super::value::{Failed, Layer};
use crate::error::{Error, Result};

pub(super) use step::{GROUP_PREFIX, Step};

impl Job {
    /// Does what a step does, and returns the layer it made.
    ///
    /// # Errors
    /// That of the operation, with the id of a step that is kept; `Cancelled` when it was stopped.
    pub(super) async fn execute(
        self: &Arc<Self>,
        id: VertexId,
        work: Work,
        reporter: &Reporter,
        stop: &Stop,
    ) -> Result<Layer, Failed> {
        let made = match &self.graph.vertex(id).op {
            Op::Exec(exec) => self.run_exec(id, exec, reporter, stop).await?,
            Op::File(file) => self.run_file(id, file, work.op, stop).await?,
            Op::Merge => self.run_merge(id).await?,
            Op::Diff { .. } => return Err(Error::unsupported("diffs of file systems are not supported yet").into()),
            Op::Source(source) => return Ok(self.run_source(id, source, reporter, stop).await?),
        };
        stop.flag().check()?;
        Ok(self.settle(work, made))
    }
}
