//! What steps do.

mod build;
mod cache_mount;
mod exec;
mod exit;
mod file;
mod logs;
mod make;
mod merge;
mod meter;
mod mounts;
mod step;
mod times;

pub(super) use cache_mount::{CacheMount, Wanted};
pub(super) use merge::Shortcut;
pub(super) use meter::{Meter, Reading};

use std::sync::Arc;

use kiln_graph::VertexId;
use kiln_graph::op::Op;

use super::identify::Work;
use super::job::{Job, Stop};
use super::reporter::Reporter;
use super::value::{Failed, FileSystem, Value};
use crate::error::{Error, Result};

pub(super) use step::{BUNDLES, GROUP_PREFIX, Step};

impl Job {
    /// Does what a step does, and returns what it made.
    ///
    /// # Errors
    /// That of the operation, with the id of a step that is kept; `Cancelled` when it was stopped.
    pub(super) async fn execute(
        self: &Arc<Self>,
        id: VertexId,
        work: Work,
        reporter: &Reporter,
        stop: &Stop,
    ) -> Result<Value, Failed> {
        let made = match &self.graph.vertex(id).op {
            Op::Exec(exec) => self.run_exec(id, exec, reporter, stop).await?,
            Op::File(file) => vec![self.run_file(id, file, work.op, stop).await?],
            Op::Merge => vec![self.run_merge(id).await?],
            Op::Diff { lower, upper } => vec![self.run_diff(id, *lower, *upper, stop).await?],
            Op::Build { .. } => return Err(Error::internal("a definition was run as a step").into()),
            Op::Source(source) => {
                return Ok(FileSystem::Layer(self.run_source(id, source, reporter, stop).await?).into());
            }
        };
        stop.flag().check()?;
        let outputs =
            (0..).zip(made).map(|(number, made)| FileSystem::Layer(self.settle(work.of_output(number), made)));
        Ok(Value::of_outputs(outputs.collect()))
    }
}
