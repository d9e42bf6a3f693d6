//! The caches of one build.

use std::sync::Arc;

use kiln_graph::Digest;

use super::catalog::{Catalog, Hit};
use super::mounts::MountEntry;
use super::step_name;
use crate::image::BlobSource;
use crate::solver::key::{InputIdentity, Key};

/// A cache that was read, to be shared by the builds' graphs.
pub(super) type Loaded = Arc<Catalog>;

/// The caches of one build, in the order in which they are asked.
#[derive(Clone, Debug, Default)]
pub(in crate::solver) struct Imports(pub(super) Vec<Loaded>);

impl Imports {
    /// No caches at all.
    pub(in crate::solver) const fn none() -> Self {
        Self(Vec::new())
    }

    /// Puts caches together.
    pub(in crate::solver) fn all(parts: Vec<Self>) -> Self {
        Self(parts.into_iter().flat_map(|part| part.0).collect())
    }

    /// Finds one of a step's results: rather one whose layers are there.
    pub(in crate::solver) fn find(&self, op: &Key, output: u32, inputs: &[InputIdentity]) -> Option<Hit> {
        let mut named = None;
        for catalog in &self.0 {
            match catalog.find(&step_name(op, output), inputs) {
                Some(hit) if hit.layers.is_some() => return Some(hit),
                other => named = named.or(other),
            }
        }
        named
    }

    /// Finds what some paths of a file system hash to.
    pub(in crate::solver) fn content(&self, chain: &Digest, selector: &str) -> Option<[u8; 32]> {
        self.0.iter().find_map(|catalog| catalog.content(chain, selector))
    }

    /// Finds a cache mount, and where its chunks are.
    pub(super) fn mount(&self, name: &str) -> Option<(&MountEntry, &Arc<dyn BlobSource>)> {
        self.0.iter().find_map(|catalog| catalog.mount(name))
    }

    /// Says whether an operation is known, on whatever inputs.
    pub(in crate::solver) fn knows(&self, op: &Key) -> bool {
        self.0.iter().any(|catalog| catalog.knows(op))
    }
}
