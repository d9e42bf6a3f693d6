//! LLB, BuildKit's form of a build graph: from its protobuf messages to the step graph.
//!
//! A [`pb::Definition`] holds operations as bytes; each refers to its inputs by the digests of their bytes, and the last one
//! stands for the result. [`decode`] checks everything it reads, within bounds, and gives a [`Graph`] whose vertices keep those
//! digests, because progress and metadata name them so. What is not understood is refused with the operation and the field:
//! nothing that a client asks for is left out in silence.
//!
//! This crate does no I/O. Which image a name stands for, what a repository holds, is found out by the solver.

mod caps;
mod encode;
mod exec;
mod file;
mod graph;
mod key;
mod meta;
mod ops;
mod refusal;
mod source;
mod wire;

pub use bollard_buildkit_proto::pb;
use kiln_graph::op::Source;
use kiln_graph::{Edge, Graph, Platform};

pub use caps::CAPABILITIES;
pub use encode::{encode, encode_vertex, platform as encode_platform};
pub use key::{KeyInput, Selected, StepKey, step_keys};
pub use refusal::{Kind, Refusal};

/// The most operations of a definition.
pub const MAX_OPS: usize = 20_000;

/// The most bytes of a definition's operations together.
pub const MAX_BYTES: usize = 64 << 20;

/// The most inputs, mounts, file actions or attributes of one operation.
pub const MAX_PARTS: usize = 10_000;

/// A definition that was read.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The operations that the result needs.
    pub graph: Graph,
    /// The result; `None` is an empty file system.
    pub root: Option<Edge>,
}

/// Reads a definition; one without operations stands for an empty file system.
///
/// Operations that name no platform are for `host`.
///
/// # Errors
/// With the operation and the field: what is malformed, is not supported, or is larger than the bounds of this crate.
pub fn decode(definition: &pb::Definition, host: &Platform) -> Result<Decoded, Refusal> {
    graph::Reader::new(definition, host)?.read()
}

/// Reads a source that is named outside of a definition.
///
/// # Errors
/// With the field: what is malformed, or is not supported.
pub fn decode_source(source: pb::SourceOp) -> Result<Source, Refusal> {
    source::read(source)
}

/// Writes a source as definitions name it.
#[must_use]
pub fn encode_source(source: &Source) -> pb::SourceOp {
    encode::source_op(source, "")
}

/// Reads a platform.
#[must_use]
pub fn decode_platform(platform: pb::Platform) -> Platform {
    ops::platform(platform)
}

/// Reads a definition from bytes, as the operation `build` and `buildctl` have it.
///
/// # Errors
/// As [`decode`]; for bytes that are no definition.
pub fn decode_bytes(bytes: &[u8], host: &Platform) -> Result<Decoded, Refusal> {
    if bytes.len() > MAX_BYTES {
        return Err(Refusal::too_large("", format!("the definition is larger than {} MiB", MAX_BYTES >> 20)));
    }
    let definition = <pb::Definition as prost::Message>::decode(bytes)
        .map_err(|error| Refusal::malformed("", format!("it is no LLB definition: {error}")))?;
    decode(&definition, host)
}
