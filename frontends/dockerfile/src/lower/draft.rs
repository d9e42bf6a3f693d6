//! The graph while it is drafted.
//!
//! Which paths of a context are read, and which steps the target needs, is known only when all stages are lowered; both are
//! part of a vertex's identity, so the graph is made from the draft at the end.

use std::collections::{BTreeSet, HashMap};
use std::ops::Index;
use std::sync::Arc;

use kiln_graph::graph::{Location, Meta, Wording};
use kiln_graph::op::{FileAction, FileOp, InputIndex, MountKind, Op, Source};
use kiln_graph::{Digest, Edge, Graph, Platform, SourceFile, Span};

use super::request::Given;
use crate::glob;
use crate::path;

/// A step of the draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Node(usize);

struct Vertex {
    op: Op,
    inputs: Vec<Node>,
    platform: Arc<Platform>,
    meta: Meta,
    origin: Origin,
}

/// Where a step is from.
enum Origin {
    /// It is a step of the Dockerfile.
    Own,
    /// It came in another graph, under this digest and in these words.
    Received(Digest, Wording),
    /// It is no step, but this output of its input.
    Output(u32),
}

/// What the steps of a draft became; those that nobody needs, nothing.
pub(super) struct Edges(Vec<Option<Edge>>);

impl Edges {
    pub(super) fn get(&self, node: Node) -> Option<Edge> {
        self.0[node.0]
    }
}

impl Index<Node> for Edges {
    type Output = Edge;

    fn index(&self, node: Node) -> &Edge {
        self.0[node.0].as_ref().expect("inputs come first, and are needed by whoever is needed")
    }
}

/// Steps, inputs before what uses them.
pub(super) struct Draft {
    vertices: Vec<Vertex>,
    files: Vec<SourceFile>,
}

/// The inputs of a step under construction, without repetition.
#[derive(Default)]
pub(super) struct Inputs(Vec<Node>);

impl Inputs {
    /// Returns the index of an input, which is added if need be.
    pub(super) fn index(&mut self, node: Node) -> InputIndex {
        let at = self.0.iter().position(|known| *known == node).unwrap_or_else(|| {
            self.0.push(node);
            self.0.len() - 1
        });
        InputIndex::try_from(at).expect("a step has few inputs")
    }
}

impl Draft {
    /// Starts a draft of about so many steps; the Dockerfile becomes file 0.
    pub(super) fn new(file: SourceFile, steps: usize) -> Self {
        Self { vertices: Vec::with_capacity(steps), files: vec![file] }
    }

    /// Adds a source file for locations.
    pub(super) fn add_file(&mut self, file: SourceFile) -> u32 {
        self.files.push(file);
        u32::try_from(self.files.len() - 1).expect("there are few source files")
    }

    pub(super) fn add(&mut self, op: Op, inputs: Inputs, platform: impl Into<Arc<Platform>>, meta: Meta) -> Node {
        let platform = platform.into();
        self.push(Vertex { op, inputs: inputs.0, platform, meta, origin: Origin::Own })
    }

    fn push(&mut self, vertex: Vertex) -> Node {
        self.vertices.push(vertex);
        Node(self.vertices.len() - 1)
    }

    /// Adds the steps of another graph; returns its result.
    pub(super) fn absorb(&mut self, given: &Given, platform: &Platform) -> Node {
        let files: Vec<u32> = given.graph.sources().iter().map(|file| self.add_file(file.clone())).collect();
        let mut nodes: Vec<Node> = Vec::new();
        for vertex in given.graph.vertices() {
            let inputs =
                vertex.inputs.iter().map(|edge| self.output(nodes[edge.vertex.index()], edge.output)).collect();
            let mut meta = vertex.meta.clone();
            if let Some(location) = &mut meta.location {
                location.file = files[location.file as usize];
            }
            let (op, platform) = (vertex.op.clone(), vertex.platform.clone());
            let origin = Origin::Received(vertex.digest(), vertex.wording().clone());
            nodes.push(self.push(Vertex { op, inputs, platform, meta, origin }));
        }
        match given.root {
            Some(root) => self.output(nodes[root.vertex.index()], root.output),
            None => {
                let op = Op::File(FileOp { base: None, actions: Vec::new() });
                self.add(op, Inputs::default(), platform.clone(), Meta::default())
            }
        }
    }

    /// Returns an output of a step.
    fn output(&mut self, node: Node, output: u32) -> Node {
        if output == 0 {
            return node;
        }
        let Vertex { op, platform, meta, .. } = &self.vertices[node.0];
        let (op, platform, meta) = (op.clone(), platform.clone(), meta.clone());
        self.push(Vertex { op, inputs: vec![node], platform, meta, origin: Origin::Output(output) })
    }

    /// Adds a step without inputs.
    pub(super) fn add_source(&mut self, source: Source, platform: Platform, name: String, place: Location) -> Node {
        let meta = Meta { name, location: Some(place), ..Meta::default() };
        self.add(Op::Source(source), Inputs::default(), platform, meta)
    }

    pub(super) fn name(&mut self, node: Node, name: String) {
        self.vertices[node.0].meta.name = name;
    }

    /// Makes the graph of what the roots need. Local sources learn which of their paths are read.
    pub(super) fn finish(mut self, roots: &[Node]) -> (Graph, Edges) {
        let needed = self.needed(roots);
        let mut reads = self.reads(&needed);
        // What is wanted as it is is read as a whole.
        roots.iter().for_each(|root| reads.entry(*root).or_default().everything = true);
        let mut graph = Graph::with_capacity(self.vertices.len());
        let mut sources = Sources::default();
        // The Dockerfile comes first, whether or not a step stands in it.
        sources.place(&mut graph, &self.files, Location { file: 0, span: Span::new(0, 0) });
        let mut edges = Edges(Vec::with_capacity(self.vertices.len()));
        for (at, vertex) in self.vertices.drain(..).enumerate() {
            if !needed[at] {
                edges.0.push(None);
                continue;
            }
            let Vertex { mut op, inputs, platform, mut meta, origin } = vertex;
            if let Origin::Output(output) = origin {
                edges.0.push(Some(Edge { output, ..edges[inputs[0]] }));
                continue;
            }
            meta.location = meta.location.map(|place| sources.place(&mut graph, &self.files, place));
            let inputs = inputs.iter().map(|input| edges[*input]).collect();
            if let Op::Source(Source::Local(local)) = &mut op
                && matches!(origin, Origin::Own)
            {
                local.follow = reads.get(&Node(at)).map(Reads::follow).unwrap_or_default();
            }
            let id = match origin {
                Origin::Received(digest, wording) => {
                    let id = graph.add_received(op, inputs, platform, meta, digest);
                    graph.keep_wording(id, wording);
                    id
                }
                Origin::Own | Origin::Output(_) => graph.add(op, inputs, platform, meta),
            };
            edges.0.push(Some(id.into()));
        }
        (graph, edges)
    }

    fn needed(&self, roots: &[Node]) -> Vec<bool> {
        let mut needed = vec![false; self.vertices.len()];
        for root in roots {
            needed[root.0] = true;
        }
        for at in (0..self.vertices.len()).rev() {
            if needed[at] {
                for input in &self.vertices[at].inputs {
                    needed[input.0] = true;
                }
            }
        }
        needed
    }

    /// Collects what is read of every local source.
    fn reads(&self, needed: &[bool]) -> HashMap<Node, Reads> {
        let mut reads: HashMap<Node, Reads> = HashMap::new();
        for (vertex, _) in self.vertices.iter().zip(needed).filter(|(_, needed)| **needed) {
            for (index, input) in (0..).zip(&vertex.inputs) {
                if matches!(self.vertices[input.0].op, Op::Source(Source::Local(_))) {
                    reads.entry(*input).or_default().add(&vertex.op, index);
                }
            }
        }
        reads
    }
}

/// The files that steps really stand in, as sources of the graph.
#[derive(Default)]
struct Sources(Vec<SourceFile>);

impl Sources {
    fn place(&mut self, graph: &mut Graph, files: &[SourceFile], place: Location) -> Location {
        let (file, span) = files[place.file as usize].origin(place.span);
        let known = self.0.iter().position(|known| known == file);
        let index = known.map_or_else(
            || {
                self.0.push(file.clone());
                graph.add_source(file.clone())
            },
            |known| u32::try_from(known).expect("there are few source files"),
        );
        Location { file: index, span }
    }
}

/// What is read of a local source.
#[derive(Default)]
struct Reads {
    everything: bool,
    paths: BTreeSet<String>,
}

impl Reads {
    fn add(&mut self, op: &Op, input: InputIndex) {
        let input = Some(input);
        match op {
            Op::File(file) => {
                self.everything |= file.base == input;
                for action in &file.actions {
                    let FileAction::Copy(copy) = action else { continue };
                    if copy.from != input {
                    } else if copy.include.is_empty() {
                        self.path(&copy.source);
                    } else {
                        copy.include.iter().for_each(|below| self.path(&format!("{}/{below}", copy.source)));
                    }
                }
            }
            Op::Exec(exec) => {
                self.everything |= exec.root.input == input;
                for mount in &exec.mounts {
                    match &mount.kind {
                        MountKind::Bind { input: of, selector, .. } | MountKind::Cache { input: of, selector, .. }
                            if *of == input =>
                        {
                            self.path(selector);
                        }
                        _ => {}
                    }
                }
            }
            Op::Source(_) | Op::Merge | Op::Diff { .. } | Op::Build { .. } => self.everything = true,
        }
    }

    /// Adds a path. Patterns of paths have no `**`, so what is above one is read as a whole.
    fn path(&mut self, path: &str) {
        let cleaned = path::absolute("/", path);
        let plain = |part: &&str| !(glob::has_wildcards(part) && part.contains("**"));
        let length: usize = cleaned[1..].split('/').take_while(plain).map(|part| part.len() + 1).sum();
        let relative = &cleaned[1..length.max(1)];
        self.everything |= relative.is_empty();
        self.paths.insert(relative.to_owned());
    }

    fn follow(&self) -> Vec<String> {
        if self.everything { Vec::new() } else { self.paths.iter().cloned().collect() }
    }
}
