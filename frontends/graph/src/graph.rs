//! The graph itself: vertices in topological order, each known by a digest.
//!
//! Vertices are only ever added after their inputs, so a graph cannot have cycles.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::digest::Digest;
use crate::op::{InputIndex, Op};
use crate::platform::Platform;
use crate::source::{SourceFile, Span};

/// Names a vertex within its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId(u32);

impl VertexId {
    /// Returns the position in [`Graph::vertices`].
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One output of a vertex, as somebody's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// The vertex.
    pub vertex: VertexId,
    /// Which of its outputs; most have only 0.
    pub output: u32,
}

impl From<VertexId> for Edge {
    fn from(vertex: VertexId) -> Self {
        Self { vertex, output: 0 }
    }
}

/// A place in one of the graph's source files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The index in [`Graph::sources`].
    pub file: u32,
    /// The place within it.
    pub span: Span,
}

/// What is known about a vertex but does not identify it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// What progress shows, for example `[build 2/5] RUN make`.
    pub name: String,
    /// Where it stands in the sources.
    pub location: Option<Location>,
    /// Whether an existing result may not be used (the new one is kept).
    pub no_cache: bool,
    /// Whether progress leaves it out (fetching the Dockerfile, for example).
    pub internal: bool,
    /// With which other vertices progress shows it.
    pub group: Option<Group>,
    /// Whether its result is part of an exported cache; `None` leaves that to the export.
    pub export_cache: Option<bool>,
}

/// Vertices that progress shows as one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Group {
    /// What they have in common.
    pub id: String,
    /// What progress shows.
    pub name: String,
    /// Whether a vertex that is alone in it is shown by its own name.
    pub weak: bool,
}

/// One step.
#[derive(Clone, Debug)]
pub struct Vertex {
    /// What it does.
    pub op: Op,
    /// What it works on; operations refer to these by position.
    pub inputs: Vec<Edge>,
    /// The platform it is for; mostly that of many others.
    pub platform: Arc<Platform>,
    /// Everything else.
    pub meta: Meta,
    digest: Digest,
    wording: Wording,
}

/// In whose words a vertex was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wording {
    /// The graph's own: it did not come with a digest.
    #[default]
    Own,
    /// It is what became of an operation that was received, or of a part of one.
    Part,
    /// It is an operation as it was received.
    Received(Arc<Received>),
}

/// An operation as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Which of the vertex's inputs each of the operation's inputs is; `None` for one that the vertex does not have as it is.
    pub inputs: Vec<Option<InputIndex>>,
}

impl Vertex {
    /// Returns the digest of the operation, its platform and its inputs' digests: equal digests mean equal work.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Says in whose words it was made.
    #[must_use]
    pub fn wording(&self) -> &Wording {
        &self.wording
    }
}

/// Steps in topological order: inputs come before what uses them.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    vertices: Vec<Vertex>,
    by_digest: HashMap<Digest, VertexId>,
    sources: Vec<SourceFile>,
    /// What is being hashed; kept, because its size makes an allocation for each vertex costly.
    framed: Vec<u8>,
}

impl Graph {
    /// Makes an empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes an empty graph with room for so many vertices.
    #[must_use]
    pub fn with_capacity(vertices: usize) -> Self {
        Self { vertices: Vec::with_capacity(vertices), by_digest: HashMap::with_capacity(vertices), ..Self::default() }
    }

    /// Adds a source file and returns its index for [`Location::file`].
    pub fn add_source(&mut self, file: SourceFile) -> u32 {
        self.sources.push(file);
        u32::try_from(self.sources.len() - 1).expect("a graph has few source files")
    }

    /// Adds a vertex, or returns the equal one that is there already (its own name and place are kept).
    ///
    /// # Panics
    /// When an input is not a vertex of this graph, or an operation refers to an input that was not given.
    pub fn add(&mut self, op: Op, inputs: Vec<Edge>, platform: impl Into<Arc<Platform>>, meta: Meta) -> VertexId {
        let platform = platform.into();
        assert!(inputs.iter().all(|edge| edge.vertex.index() < self.vertices.len()), "inputs are added first");
        let digest = digest_of(&self.vertices, &mut self.framed, &op, &inputs, &platform);
        self.insert(Vertex { op, inputs, platform, meta, digest, wording: Wording::Own })
    }

    /// Adds a vertex that came with a digest, by which whoever made it knows it; or returns the one of that digest.
    ///
    /// # Panics
    /// When an input is not a vertex of this graph.
    pub fn add_received(
        &mut self,
        op: Op,
        inputs: Vec<Edge>,
        platform: impl Into<Arc<Platform>>,
        meta: Meta,
        digest: Digest,
    ) -> VertexId {
        let platform = platform.into();
        assert!(inputs.iter().all(|edge| edge.vertex.index() < self.vertices.len()), "inputs are added first");
        self.insert(Vertex { op, inputs, platform, meta, digest, wording: Wording::Part })
    }

    /// Keeps the words in which a vertex came.
    pub fn keep_wording(&mut self, id: VertexId, wording: Wording) {
        self.vertices[id.index()].wording = wording;
    }

    fn insert(&mut self, vertex: Vertex) -> VertexId {
        match self.by_digest.entry(vertex.digest) {
            Entry::Occupied(existing) => {
                let known = &mut self.vertices[existing.get().index()].meta;
                known.no_cache |= vertex.meta.no_cache;
                *existing.get()
            }
            Entry::Vacant(free) => {
                let id = u32::try_from(self.vertices.len()).expect("a graph has less than 2^32 vertices");
                self.vertices.push(vertex);
                *free.insert(VertexId(id))
            }
        }
    }

    /// Puts other operations into the place of those of some vertices. They, and what needs them, get digests of what they are
    /// now; two vertices may be equal then.
    pub fn replace(&mut self, ops: impl IntoIterator<Item = (VertexId, Op)>) {
        let mut changed = vec![false; self.vertices.len()];
        for (id, op) in ops {
            let vertex = &mut self.vertices[id.index()];
            vertex.op = op;
            if matches!(vertex.wording, Wording::Received(_)) {
                // It is not what was received.
                vertex.wording = Wording::Part;
            }
            changed[id.index()] = true;
        }
        for id in self.ids() {
            let vertex = &self.vertices[id.index()];
            if !changed[id.index()] && !vertex.inputs.iter().any(|edge| changed[edge.vertex.index()]) {
                continue;
            }
            changed[id.index()] = true;
            let Vertex { op, inputs, platform, .. } = vertex;
            let digest = digest_of(&self.vertices, &mut self.framed, op, inputs, platform);
            let old = std::mem::replace(&mut self.vertices[id.index()].digest, digest);
            self.by_digest.remove(&old);
            self.by_digest.entry(digest).or_insert(id);
        }
    }

    /// Adds all vertices of another graph and returns what each became, by its position there. Equal ones are one, with the
    /// name it has here; so are equal source files.
    pub fn absorb(&mut self, other: Self) -> Vec<VertexId> {
        let Self { vertices, sources, .. } = other;
        let known = |sources: &[SourceFile], file: &SourceFile| {
            sources.iter().position(|known| known.name() == file.name() && known.text() == file.text())
        };
        let files: Vec<u32> = sources
            .into_iter()
            .map(|file| match known(&self.sources, &file) {
                Some(index) => u32::try_from(index).expect("a graph has few source files"),
                None => self.add_source(file),
            })
            .collect();
        let mut ids: Vec<VertexId> = Vec::with_capacity(vertices.len());
        for mut vertex in vertices {
            for edge in &mut vertex.inputs {
                edge.vertex = ids[edge.vertex.index()];
            }
            if let Some(location) = &mut vertex.meta.location {
                location.file = files[location.file as usize];
            }
            // Its digest is made of its inputs' digests, so it is the same here.
            ids.push(self.insert(vertex));
        }
        ids
    }

    /// Returns all vertices; a vertex's inputs come before it.
    #[must_use]
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// Returns one vertex.
    #[must_use]
    pub fn vertex(&self, id: VertexId) -> &Vertex {
        &self.vertices[id.index()]
    }

    /// Finds a vertex by its digest.
    #[must_use]
    pub fn find(&self, digest: &Digest) -> Option<VertexId> {
        self.by_digest.get(digest).copied()
    }

    /// Returns a vertex's metadata for change, for example to name it after all stages are known.
    pub fn meta_mut(&mut self, id: VertexId) -> &mut Meta {
        &mut self.vertices[id.index()].meta
    }

    /// Returns the ids of all vertices in order.
    pub fn ids(&self) -> impl Iterator<Item = VertexId> + use<> {
        (0..self.vertices.len()).map(|index| VertexId(u32::try_from(index).expect("checked when the vertex was added")))
    }

    /// Returns the source files.
    #[must_use]
    pub fn sources(&self) -> &[SourceFile] {
        &self.sources
    }

    /// Returns the vertices that `roots` need, themselves included, in topological order.
    #[must_use]
    pub fn reachable(&self, roots: impl IntoIterator<Item = VertexId>) -> Vec<VertexId> {
        let mut needed = vec![false; self.vertices.len()];
        for root in roots {
            needed[root.index()] = true;
        }
        for index in (0..self.vertices.len()).rev() {
            if needed[index] {
                for edge in &self.vertices[index].inputs {
                    needed[edge.vertex.index()] = true;
                }
            }
        }
        self.ids().filter(|id| needed[id.index()]).collect()
    }
}

/// Identifies a vertex; `framed` is what is hashed.
fn digest_of(vertices: &[Vertex], framed: &mut Vec<u8>, op: &Op, inputs: &[Edge], platform: &Platform) -> Digest {
    // Hashed at once: many small updates would cost more than the hash does.
    framed.clear();
    let mut frame = |bytes: &[u8]| {
        framed.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        framed.extend_from_slice(bytes);
    };
    frame(platform.os.as_bytes());
    frame(platform.architecture.as_bytes());
    frame(platform.variant.as_bytes());
    op.each_part(&mut |name, value| {
        frame(name.as_bytes());
        frame(value.as_bytes());
    });
    frame(b"");
    for edge in inputs {
        frame(vertices[edge.vertex.index()].digest.as_bytes());
        frame(&edge.output.to_le_bytes());
    }
    Digest::of(framed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Exec, FileAction, FileOp, Limits};

    fn exec(command: &str) -> Op {
        Op::Exec(Box::new(Exec { args: vec![command.to_owned()], ..Exec::default() }))
    }

    fn add(graph: &mut Graph, op: Op, inputs: &[VertexId]) -> VertexId {
        let edges = inputs.iter().map(|id| Edge::from(*id)).collect();
        graph.add(op, edges, Platform::new("linux", "amd64", ""), Meta::default())
    }

    #[test]
    fn equal_steps_are_one_vertex_and_different_ones_are_not() {
        let mut graph = Graph::new();
        let a = add(&mut graph, exec("a"), &[]);
        assert_eq!(add(&mut graph, exec("a"), &[]), a);
        let b = add(&mut graph, exec("b"), &[a]);
        assert_ne!(add(&mut graph, exec("b"), &[]), b);
        assert_eq!(graph.vertices().len(), 3);
    }

    #[test]
    fn a_step_with_another_operation_and_what_needs_it_are_others() {
        let mut graph = Graph::new();
        let a = add(&mut graph, exec("a"), &[]);
        let b = add(&mut graph, exec("b"), &[a]);
        let other = add(&mut graph, exec("other"), &[]);
        let before: Vec<Digest> = graph.vertices().iter().map(Vertex::digest).collect();
        graph.replace([(a, exec("changed"))]);
        let mut expected = Graph::new();
        let changed = add(&mut expected, exec("changed"), &[]);
        let needs = add(&mut expected, exec("b"), &[changed]);
        assert_eq!(graph.vertex(a).digest(), expected.vertex(changed).digest());
        assert_eq!(graph.vertex(b).digest(), expected.vertex(needs).digest());
        assert_eq!(graph.vertex(other).digest(), before[other.index()]);
        assert_eq!(add(&mut graph, exec("changed"), &[]), a);
        assert_eq!(graph.vertices().len(), 3);
    }

    #[test]
    fn adjacent_values_cannot_be_shifted_into_each_other() {
        let mut graph = Graph::new();
        let args = |args: &[&str]| {
            Op::Exec(Box::new(Exec { args: args.iter().map(|s| (*s).to_owned()).collect(), ..Exec::default() }))
        };
        let one = add(&mut graph, args(&["ab", "c"]), &[]);
        let two = add(&mut graph, args(&["a", "bc"]), &[]);
        assert_ne!(graph.vertex(one).digest(), graph.vertex(two).digest());
    }

    fn mkdir(path: &str, mtime_ns: Option<i64>) -> FileAction {
        FileAction::Mkdir { path: path.to_owned(), mode: 0o755, parents: true, owner: None, mtime_ns }
    }

    #[test]
    fn a_pinned_time_makes_another_step() {
        let mut graph = Graph::new();
        let file = |action| Op::File(FileOp { base: None, actions: vec![action] });
        let now = add(&mut graph, file(mkdir("/x", None)), &[]);
        assert_ne!(add(&mut graph, file(mkdir("/x", Some(0))), &[]), now);
        assert_eq!(add(&mut graph, file(mkdir("/x", None)), &[]), now);
    }

    #[test]
    fn how_a_step_is_tried_and_limited_makes_no_other_step() {
        let mut graph = Graph::new();
        let once = Exec { args: vec!["a".to_owned()], ..Exec::default() };
        let limits = Limits { memory_bytes: Some(1 << 30), nano_cpus: Some(500_000_000) };
        let often = Exec { retries: 3, timeout_ns: Some(1), limits, ..once.clone() };
        let first = add(&mut graph, Op::Exec(Box::new(once)), &[]);
        assert_eq!(add(&mut graph, Op::Exec(Box::new(often)), &[]), first);
    }

    #[test]
    fn absorbed_steps_keep_their_inputs_and_equal_ones_are_shared() {
        let (mut one, mut two) = (Graph::new(), Graph::new());
        let shared = add(&mut one, exec("a"), &[]);
        let mine = add(&mut one, exec("b"), &[shared]);
        let other = add(&mut two, exec("x"), &[]);
        let again = add(&mut two, exec("a"), &[]);
        let theirs = add(&mut two, exec("c"), &[other, again]);
        let ids = one.absorb(two);
        assert_eq!(ids[again.index()], shared);
        let theirs = ids[theirs.index()];
        assert_eq!(one.vertex(theirs).inputs, [Edge::from(ids[other.index()]), Edge::from(shared)]);
        assert_eq!((one.vertices().len(), one.reachable([mine])), (4, vec![shared, mine]));
    }

    #[test]
    fn only_what_the_target_needs_is_reachable() {
        let mut graph = Graph::new();
        let a = add(&mut graph, exec("a"), &[]);
        let _unused = add(&mut graph, exec("unused"), &[a]);
        let mkdir = mkdir("/x", None);
        let b = add(&mut graph, Op::File(FileOp { base: Some(0), actions: vec![mkdir] }), &[a]);
        assert_eq!(graph.reachable([b]), [a, b]);
    }
}
