//! From a list of operations to a graph: digests, order, inputs, and which vertex stands for which output.
//!
//! Nothing here recurses: a definition may be as deep as it has operations.

use std::collections::HashMap;
use std::sync::Arc;

use kiln_graph::graph::{Meta, Received, Wording};
use kiln_graph::op::{Copy, FileAction, FileOp, InputIndex, Op, Source};
use kiln_graph::{Digest, Edge, Graph, Platform};

use crate::meta::{Places, metadata};
use crate::refusal::Refusal;
use crate::{Decoded, MAX_BYTES, MAX_OPS, MAX_PARTS, exec, file, ops, pb, wire};

/// What an output of an operation is: one of a vertex, or an empty file system.
pub(crate) type Output = Option<Edge>;

/// Reads one definition.
pub(crate) struct Reader<'a> {
    definition: &'a pb::Definition,
    host: &'a Platform,
    received: HashMap<Digest, Operation>,
    bytes: HashMap<Digest, &'a [u8]>,
    /// The result: an operation and its output; `None` is an empty file system.
    result: Option<(Digest, u32)>,
    graph: Graph,
    places: Places,
    /// The outputs of the operations that were added.
    outputs: HashMap<Digest, Vec<Output>>,
    /// Copies of directories that are used as file systems, by what they copy.
    copied: HashMap<Edge, Edge>,
}

/// An operation as it was received.
struct Operation {
    op: pb::Op,
    /// Set for the operation that the messages of the protocol lack here.
    passthrough: Option<Passthrough>,
}

/// The operation whose outputs are inputs of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Passthrough {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// Which input each output is.
    #[prost(int64, repeated, tag = "2")]
    pub(crate) outputs: Vec<i64>,
}

/// The number of its field in an operation.
const PASSTHROUGH: u32 = 8;

/// An operation while it is added.
pub(crate) struct Adding<'r, 'a> {
    reader: &'r mut Reader<'a>,
    pub(crate) digest: Digest,
    /// What its inputs are.
    pub(crate) received: Vec<Output>,
    pub(crate) platform: Platform,
    pub(crate) meta: Meta,
    /// The inputs of the vertex that is made.
    inputs: Vec<Edge>,
}

impl<'a> Reader<'a> {
    /// Takes the operations of a definition.
    pub(crate) fn new(definition: &'a pb::Definition, host: &'a Platform) -> Result<Self, Refusal> {
        if definition.def.len() > MAX_OPS {
            let count = definition.def.len();
            return Err(Refusal::too_large(
                "def",
                format!("there are {count} operations; at most {MAX_OPS} are accepted"),
            ));
        }
        let bytes: usize = definition.def.iter().map(Vec::len).sum();
        if bytes > MAX_BYTES {
            return Err(Refusal::too_large("def", format!("the operations are larger than {} MiB", MAX_BYTES >> 20)));
        }
        let mut received = HashMap::with_capacity(definition.def.len());
        let (mut bytes_of, mut last) = (HashMap::with_capacity(definition.def.len()), None);
        for bytes in &definition.def {
            let digest = Digest::of(bytes);
            let op = parse(bytes).map_err(|refusal| refusal.at(digest))?;
            received.insert(digest, op);
            bytes_of.insert(digest, bytes.as_slice());
            last = Some(digest);
        }
        let result = match last {
            Some(last) => Some(result(&received, last).map_err(|refusal| refusal.at(last))?),
            None => None,
        };
        if let Some(last) = last {
            received.remove(&last);
        }
        let mut graph = Graph::new();
        let places = Places::read(definition.source.as_ref(), &mut graph)?;
        let (outputs, copied) = (HashMap::new(), HashMap::new());
        Ok(Self { definition, host, received, bytes: bytes_of, result, graph, places, outputs, copied })
    }

    /// Adds what the result needs.
    pub(crate) fn read(mut self) -> Result<Decoded, Refusal> {
        let Some((digest, output)) = self.result else { return Ok(Decoded { graph: self.graph, root: None }) };
        for digest in self.order(digest)? {
            let outputs = self.add(digest).map_err(|refusal| refusal.at(digest))?;
            self.outputs.insert(digest, outputs);
        }
        let root = self.output(&digest, output, "inputs[0]")?;
        let root = root.map(|edge| self.whole(edge));
        Ok(Decoded { graph: self.graph, root })
    }

    /// Lists the operations that one needs, inputs first and itself last.
    fn order(&self, root: Digest) -> Result<Vec<Digest>, Refusal> {
        #[derive(PartialEq)]
        enum State {
            Open,
            Done,
        }
        let (mut states, mut order, mut stack) = (HashMap::new(), Vec::new(), vec![root]);
        while let Some(digest) = stack.last().copied() {
            match states.get(&digest) {
                Some(State::Done) => {
                    stack.pop();
                    continue;
                }
                Some(State::Open) => {
                    stack.pop();
                    states.insert(digest, State::Done);
                    order.push(digest);
                    continue;
                }
                None => {}
            }
            states.insert(digest, State::Open);
            let mut inputs = Vec::new();
            for (at, input) in self.received[&digest].op.inputs.iter().enumerate() {
                let field = format!("inputs[{at}].digest");
                let below = digest_of(input, &field).map_err(|refusal| refusal.at(digest))?;
                if !self.received.contains_key(&below) {
                    let reason = format!("the definition has no operation {below}");
                    return Err(Refusal::malformed(field, reason).at(digest));
                }
                // An operation cannot hold a digest of something that holds its own; this is for hash functions that break.
                if states.get(&below) == Some(&State::Open) {
                    return Err(Refusal::malformed(field, "the operation needs itself").at(digest));
                }
                if !states.contains_key(&below) {
                    inputs.push(below);
                }
            }
            // The first one is to be the first.
            stack.extend(inputs.into_iter().rev());
        }
        Ok(order)
    }

    fn output(&self, digest: &Digest, output: u32, field: &str) -> Result<Output, Refusal> {
        let outputs = self.outputs.get(digest).map_or(&[][..], Vec::as_slice);
        outputs.get(output as usize).copied().ok_or_else(|| {
            let count = outputs.len();
            Refusal::malformed(
                format!("{field}.index"),
                format!("{digest} has {count} outputs, and no number {output}"),
            )
        })
    }

    /// Adds an operation; returns what its outputs are.
    fn add(&mut self, digest: Digest) -> Result<Vec<Output>, Refusal> {
        let received = self.received.remove(&digest);
        let Operation { op, passthrough } = received.expect("each operation is added once, after it was looked up");
        let mut received = Vec::with_capacity(op.inputs.len());
        for (at, input) in op.inputs.iter().enumerate() {
            let field = format!("inputs[{at}]");
            let below = digest_of(input, &field)?;
            received.push(self.output(&below, output_of(input, &field)?, &field)?);
        }
        let platform = op.platform.map_or_else(|| self.host.clone(), ops::platform);
        let meta = metadata(self.definition.metadata.get(&digest.to_string()), self.places.of(&digest))?;
        let mut adding = Adding { reader: self, digest, received, platform, meta, inputs: Vec::new() };
        if let Some(passthrough) = passthrough {
            return ops::passthrough(&adding, &passthrough);
        }
        let kind = op.op.ok_or_else(|| Refusal::malformed("op", "it does nothing: only the last operation may"))?;
        match kind {
            pb::op::Op::Source(source) => ops::source(adding, source),
            pb::op::Op::Exec(exec) => exec::read(adding, exec),
            pb::op::Op::File(file) => file::read(adding, &file),
            pb::op::Op::Merge(merge) => ops::merge(adding, &merge),
            pb::op::Op::Diff(diff) => ops::diff(adding, diff),
            pb::op::Op::Build(build) => {
                adding.default_name("build");
                ops::build(adding, &build)
            }
        }
    }

    /// A directory of the client that is used as a file system is a copy of all of it.
    fn whole(&mut self, edge: Edge) -> Edge {
        let vertex = self.graph.vertex(edge.vertex);
        if !matches!(vertex.op, Op::Source(Source::Local(_))) {
            return edge;
        }
        if let Some(copy) = self.copied.get(&edge) {
            return *copy;
        }
        let copy = Copy { from: Some(0), wildcard: false, allow_empty_wildcard: false, ..Copy::default() };
        let op = Op::File(FileOp { base: None, actions: vec![FileAction::Copy(Box::new(copy))] });
        let (platform, no_cache) = (vertex.platform.clone(), vertex.meta.no_cache);
        let meta = Meta { name: format!("copy {}", vertex.meta.name), no_cache, ..Meta::default() };
        let copy = self.graph.add(op, vec![edge], platform, meta).into();
        self.copied.insert(edge, copy);
        copy
    }
}

impl Adding<'_, '_> {
    /// Names it, unless its client did.
    pub(crate) fn default_name(&mut self, name: impl Into<String>) {
        if self.meta.name.is_empty() {
            self.meta.name = name.into();
        }
    }

    /// Returns what progress shows of an input.
    pub(crate) fn name_of(&self, output: Output) -> String {
        output.map_or_else(
            || "scratch".to_owned(),
            |edge| format!("{:?}", self.reader.graph.vertex(edge.vertex).meta.name),
        )
    }

    /// Finds what a field means that names one of the operation's inputs; -1 is an empty file system.
    pub(crate) fn source_of(&self, index: i64, field: &str) -> Result<Output, Refusal> {
        if index == -1 {
            return Ok(None);
        }
        let found = usize::try_from(index).ok().and_then(|index| self.received.get(index));
        found.copied().ok_or_else(|| {
            let count = self.received.len();
            Refusal::malformed(field, format!("there is no input {index}: the operation has {count}"))
        })
    }

    /// Uses an input, of which paths are taken; returns its number among those of the vertex.
    pub(crate) fn paths_of(&mut self, output: Output) -> Option<InputIndex> {
        let edge = output?;
        let at = self.inputs.iter().position(|known| *known == edge).unwrap_or_else(|| {
            self.inputs.push(edge);
            self.inputs.len() - 1
        });
        Some(InputIndex::try_from(at).expect("the number of inputs is bounded"))
    }

    /// Uses an input as a file system; returns its number among those of the vertex.
    pub(crate) fn whole_of(&mut self, output: Output) -> Option<InputIndex> {
        let whole = self.reader.whole(output?);
        self.paths_of(Some(whole))
    }

    /// Uses an input as a file system that may be used several times, each in a place of its own.
    pub(crate) fn again(&mut self, edge: Edge) -> Edge {
        self.reader.whole(edge)
    }

    /// Adds the vertex that has the operation's digest, with these inputs.
    pub(crate) fn finish_with(mut self, op: Op, inputs: Vec<Edge>) -> Edge {
        self.inputs = inputs;
        self.finish(op)
    }

    /// Adds the vertex that has the operation's digest, with the inputs that were used.
    pub(crate) fn finish(self, op: Op) -> Edge {
        let Self { reader, digest, received, platform, meta, inputs } = self;
        let position = |output: &Output| inputs.iter().position(|edge| Some(*edge) == *output);
        let positions = received.iter().map(|output| position(output).and_then(|at| InputIndex::try_from(at).ok()));
        let words = Received { bytes: reader.bytes[&digest].to_vec(), inputs: positions.collect() };
        let id = reader.graph.add_received(op, inputs, platform, meta, digest);
        reader.graph.keep_wording(id, Wording::Received(Arc::new(words)));
        id.into()
    }

    /// Adds a vertex for a part of the operation, and begins the next one. Its digest comes from the operation's.
    pub(crate) fn add_part(&mut self, op: Op, number: usize) -> Edge {
        let digest = Digest::of(format!("{} {number}", self.digest).as_bytes());
        let inputs = std::mem::take(&mut self.inputs);
        self.reader.graph.add_received(op, inputs, self.platform.clone(), self.meta.clone(), digest).into()
    }
}

/// Refuses lists that are too long.
pub(crate) fn bounded(field: &str, length: usize) -> Result<(), Refusal> {
    if length > MAX_PARTS {
        return Err(Refusal::too_large(field, format!("there are {length}; at most {MAX_PARTS} are accepted")));
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Result<Operation, Refusal> {
    let op = <pb::Op as prost::Message>::decode(bytes);
    let op = op.map_err(|error| Refusal::malformed("def", format!("its bytes are no operation: {error}")))?;
    if let Some(field) = wire::unknown_field(bytes) {
        let reason = "the field has a number that is not known here: a newer client may have set it";
        return Err(Refusal::unsupported(field, reason));
    }
    bounded("inputs", op.inputs.len())?;
    let passthrough = wire::last_of(bytes, PASSTHROUGH).map(<Passthrough as prost::Message>::decode);
    let passthrough = passthrough.transpose();
    let passthrough = passthrough.map_err(|error| Refusal::malformed("passthrough", format!("{error}")))?;
    if passthrough.is_some() && op.op.is_some() {
        return Err(Refusal::malformed("op", "it does two things"));
    }
    Ok(Operation { op, passthrough })
}

/// Reads what the last operation points to.
fn result(received: &HashMap<Digest, Operation>, last: Digest) -> Result<(Digest, u32), Refusal> {
    let Operation { op, passthrough } = &received[&last];
    if op.op.is_some() || passthrough.is_some() {
        return Err(Refusal::malformed("op", "the last operation must do nothing but point to the result"));
    }
    let [input] = op.inputs.as_slice() else {
        let count = op.inputs.len();
        return Err(Refusal::malformed("inputs", format!("the last operation has {count} inputs; it must have one")));
    };
    let digest = digest_of(input, "inputs[0]")?;
    if !received.contains_key(&digest) || digest == last {
        return Err(Refusal::malformed("inputs[0].digest", format!("the definition has no operation {digest}")));
    }
    Ok((digest, output_of(input, "inputs[0]")?))
}

fn digest_of(input: &pb::Input, field: &str) -> Result<Digest, Refusal> {
    input.digest.parse().map_err(|error| Refusal::malformed(field, format!("{error}")))
}

fn output_of(input: &pb::Input, field: &str) -> Result<u32, Refusal> {
    let bad = || Refusal::malformed(format!("{field}.index"), format!("there is no output {}", input.index));
    u32::try_from(input.index).map_err(|_| bad())
}
