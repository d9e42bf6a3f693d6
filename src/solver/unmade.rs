//! Failed steps for frontends: what a step worked on and what its process left become results, from which the frontend can make
//! a container to look into them.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_graph::Vertex;
use kiln_graph::op::{Exec, InputIndex, MountKind, Op};
use kiln_llb::pb;

use super::bridge::Bridge;
use super::failure::Failure;
use super::job::Job;
use super::value::{FileSystem, Layer, Value};

/// A step that failed, in the words of definitions.
#[derive(Clone, Debug)]
pub struct Unmade {
    /// The operation.
    pub op: pb::Op,
    /// What progress calls it.
    pub name: String,
    /// The results that its mounts show, by the names that the frontend can use; empty for those that show none.
    pub inputs: Vec<String>,
    /// What became of them.
    pub mounts: Vec<String>,
}

/// What the process of a failed step left.
#[derive(Clone, Debug)]
pub(super) struct Left {
    /// Its root file system.
    pub(super) root: Layer,
    /// What it could write to besides, by mount point.
    pub(super) mounts: BTreeMap<String, Layer>,
}

impl Bridge {
    /// Adds to a failure what its step was and, for a process, what it worked on and left.
    pub(super) fn explain(&self, job: &Arc<Job>, mut failure: Failure) -> Failure {
        let found = failure.vertex.and_then(|digest| job.graph.find(&digest));
        if let Some(id) = found.filter(|_| failure.unmade.is_none()) {
            let vertex = job.graph.vertex(id);
            let (op, name) = (kiln_llb::encode_vertex(&job.graph, id), vertex.meta.name.clone());
            let (inputs, mounts) = match (&vertex.op, &op.op) {
                (Op::Exec(exec), Some(pb::op::Op::Exec(encoded))) => {
                    let shown = self.file_systems(job, vertex, exec, failure.left());
                    let of = |mount: &pb::Mount| shown.get(mount.dest.as_str()).cloned().unwrap_or_default();
                    encoded.mounts.iter().map(of).unzip()
                }
                _ => (Vec::new(), Vec::new()),
            };
            failure.unmade = Some(Box::new(Unmade { op, name, inputs, mounts }));
        }
        failure
    }

    /// Names what the mounts of a process show, by mount point, and what became of that. What nobody wrote to is as it was.
    fn file_systems<'a>(
        &self,
        job: &Job,
        vertex: &Vertex,
        exec: &'a Exec,
        left: Option<&Left>,
    ) -> BTreeMap<&'a str, (String, String)> {
        let name = |value: Option<Value>| value.and_then(|value| self.keep(value)).unwrap_or_default();
        let input = |index: Option<InputIndex>| name(index.and_then(|index| job.input(vertex, index).ok()));
        let layer = |layer: &Layer| name(Some(Value::FileSystem(FileSystem::Layer(layer.clone()))));
        let after = |written: Option<&Layer>, before: &String| written.map_or_else(|| before.clone(), layer);
        let root = input(exec.root.input);
        let left_there = after(left.map(|left| &left.root), &root);
        let mut shown = BTreeMap::from([("/", (root, left_there))]);
        for mount in &exec.mounts {
            let before = match &mount.kind {
                MountKind::Bind { input: index, .. } | MountKind::Cache { input: index, .. } => input(*index),
                MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => String::new(),
            };
            let left_there = after(left.and_then(|left| left.mounts.get(&mount.target)), &before);
            shown.insert(&mount.target, (before, left_there));
        }
        shown
    }
}
