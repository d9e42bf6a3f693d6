//! Telling BuildKit of what a build knows.

use std::sync::Arc;

use kiln_graph::op::Op;
use kiln_graph::{Edge, VertexId};

use super::{content_record, record_name};
use crate::error::Result;
use crate::solver::exchange::gather::{Gathering, Link};
use crate::solver::job::Job;
use crate::solver::value::{FileSystem, Value};

impl Gathering {
    /// Adds the records by which BuildKit knows a vertex. Its inputs must have been added before. Blocking.
    ///
    /// # Errors
    /// When a directory of the client cannot be read.
    pub(in crate::solver::exchange) fn add_for_peers(&mut self, job: &Arc<Job>, id: VertexId) -> Result<()> {
        let vertex = job.graph.vertex(id);
        let Some(value) = job.value(id) else { return Ok(()) };
        if let Op::Source(source) = &vertex.op {
            let names = job.source_records(id, vertex, source);
            let records = names.into_iter().map(|name| self.record(name, Vec::new())).collect();
            self.for_peers.insert((Arc::as_ptr(job) as usize, id.into()), records);
            return Ok(());
        }
        for (form, key) in job.peer_keys(id).iter().enumerate() {
            let mut inputs = Vec::with_capacity(key.inputs.len());
            for (at, input) in key.inputs.iter().enumerate() {
                let edge = vertex.inputs[input.input as usize];
                let selector = input.selector.map(|selector| selector.to_string()).unwrap_or_default();
                let known = self.for_peers.get(&(Arc::as_ptr(job) as usize, edge)).cloned().unwrap_or_default();
                let mut links: Vec<Link> = known.into_iter().map(|record| (selector.clone(), record)).collect();
                if let Some(content) = job.local_content((id, form, at), key)? {
                    links.push((String::new(), self.record(content_record(&content), Vec::new())));
                }
                inputs.push(links);
            }
            if inputs.iter().any(Vec::is_empty) {
                continue;
            }
            for (output, file_system) in (0..).zip(value.file_systems()) {
                let record = self.linked(record_name(&key.digest, output), inputs.clone());
                self.for_peers
                    .entry((Arc::as_ptr(job) as usize, Edge { vertex: id, output }))
                    .or_default()
                    .push(record);
                self.give(job, record, file_system);
            }
        }
        Ok(())
    }
}

impl Job {
    /// Hashes what steps take of file systems that are here, for an export.
    ///
    /// # Errors
    /// When a file system cannot be read.
    pub(in crate::solver::exchange) async fn hash_for_export(self: &Arc<Self>, roots: &[VertexId]) -> Result<()> {
        for id in self.graph.reachable(roots.iter().copied()) {
            let vertex = self.graph.vertex(id);
            for (form, key) in self.peer_keys(id).iter().enumerate() {
                for (at, input) in key.inputs.iter().enumerate() {
                    let value = self.value_of(vertex.inputs[input.input as usize]);
                    if matches!(value, Some(Value::FileSystem(FileSystem::Layer(_)))) && self.value(id).is_some() {
                        self.hash_input((id, form, at), key).await?;
                    }
                }
            }
        }
        Ok(())
    }
}
