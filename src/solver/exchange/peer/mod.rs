//! BuildKit's names for records, so that Kiln finds results of BuildKit, and BuildKit those of Kiln.
//!
//! BuildKit names a record by a digest of the operation and the number of the output, and knows it by what its inputs follow
//! from: records of other steps, with a selection of paths, or records named by the content of paths. What a file system *is*
//! it does not ask. So a result is found from the sources on, step after step ([`find`](self::find)): which records of a
//! cache stand for a vertex is noted when the vertex is looked at, whether or not a record has layers.
//!
//! A record without layers is a name for what nobody here has. Such a vertex is known *by definition*: it has an identity that
//! is made of its own key instead of a chain ID, so that steps after it can be looked at, too. When somebody works on it, it
//! is made.
//!
//! What a hostile cache can do with this is what it can do to BuildKit: give whatever it likes as the result of a step that is
//! looked for in it.

mod content;
mod find;
mod gather;
#[cfg(test)]
mod tests;

pub(in crate::solver) use find::PeerHit;
pub(super) use find::Wanted;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kiln_graph::op::Source;
use kiln_graph::{Digest, Edge, Vertex, VertexId};
use kiln_llb::{StepKey, step_keys};
use serde::Serialize;

use crate::solver::job::Job;
use crate::solver::lock;
use crate::solver::value::{FileSystem, Value};

/// What was found out about the vertices of a graph.
#[derive(Debug, Default)]
pub(in crate::solver) struct Peer {
    keys: Mutex<HashMap<VertexId, Arc<[StepKey]>>>,
    /// Digests of content; `None` when there is none.
    contents: Mutex<HashMap<ContentId, Option<Digest>>>,
    found: Mutex<Found>,
}

/// Which records of a cache stand for outputs, by the position of the cache.
type Found = HashMap<(usize, Edge), Arc<[usize]>>;

/// Content: the vertex that takes it, which of its keys tells what, and the number of the input.
type ContentId = (VertexId, usize, usize);

/// Returns the name of the record of an operation's output.
fn record_name(operation: &Digest, output: u32) -> String {
    Digest::of(format!("{operation}@{output}").as_bytes()).to_string()
}

/// Returns the name of the record of content.
fn content_record(content: &Digest) -> String {
    Digest::of(format!("{content}@-1").as_bytes()).to_string()
}

/// Returns the name of the record of a source that is known by a key.
fn source_record(key: &str) -> String {
    record_name(&Digest::of(format!("buildkit.source.v0:{key}").as_bytes()), 0)
}

/// The key of an image at a registry.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ImageKey<'a> {
    digest: Digest,
    #[serde(rename = "OS")]
    os: &'a str,
    arch: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    variant: &'a str,
    #[serde(rename = "OSVersion", skip_serializing_if = "str::is_empty")]
    os_version: &'a str,
    #[serde(rename = "OSFeatures", skip_serializing_if = "<[String]>::is_empty")]
    os_features: &'a [String],
}

impl Job {
    /// Returns what BuildKit knows a step by.
    fn peer_keys(&self, id: VertexId) -> Arc<[StepKey]> {
        let mut keys = lock(&self.peer.keys);
        Arc::clone(keys.entry(id).or_insert_with(|| step_keys(self.graph.vertex(id)).into()))
    }

    /// Returns the names of the records of a source, as far as it is known what it is. Directories of clients have none.
    fn source_records(&self, id: VertexId, vertex: &Vertex, source: &Source) -> Vec<String> {
        match source {
            Source::Image(_) | Source::OciLayout(_) => {
                let Some(Value::FileSystem(FileSystem::Image { image, chain, .. })) = self.value(id) else {
                    return Vec::new();
                };
                let layers = chain.map(|chain| chain.to_string());
                let manifest = image.reference.digest().and_then(|digest| {
                    let platform = &vertex.platform;
                    let key = ImageKey {
                        digest,
                        os: &platform.os,
                        arch: &platform.architecture,
                        variant: &platform.variant,
                        os_version: &platform.os_version,
                        os_features: &platform.os_features,
                    };
                    // Limits are part of the key, and images without layers have no other one.
                    let text = serde_json::to_string(&key).ok().filter(|_| !image.is_partial())?;
                    Some(Digest::of(text.as_bytes()).to_string())
                });
                layers.into_iter().chain(manifest).map(|key| source_record(&key)).collect()
            }
            Source::Git(_) | Source::Http(_) | Source::Blob(_) => {
                self.pinned_keys(source).iter().map(|key| source_record(key)).collect()
            }
            Source::Local(_) => Vec::new(),
        }
    }
}
