//! Layers that are not here: where they are, so that images are made and pushed of them without fetching what nobody needs.

use std::collections::HashMap;
use std::sync::Arc;

use kiln_graph::{Digest, Reference};

use super::pull::{BlobSource, ChainLayer, RepositoryBlobs, check_layers};
use super::resolve::{Origin, Resolved};
use crate::error::Result;
use crate::registry::Client;
use crate::store::{Snapshot, SnapshotId};

/// A layer that somebody else has.
///
/// What it is uncompressed is taken from whoever says so: that is verified when the layer is fetched, and not before.
#[derive(Clone, Debug)]
pub struct DistantLayer {
    /// Its compressed form, and what it is uncompressed.
    pub layer: ChainLayer,
    /// The time that stands for what it was made of, in nanoseconds since 1970.
    pub as_of: Option<i64>,
    /// Where it can be fetched.
    pub source: Arc<dyn BlobSource>,
    /// Repositories that have it, so that their registry can take it from there.
    pub repositories: Vec<Reference>,
}

/// What a root file system is made of.
#[derive(Clone, Debug)]
pub enum Stack {
    /// A snapshot that is here; `None` is an empty one.
    Here(Option<SnapshotId>),
    /// Layers that are elsewhere, as far as anybody has looked; the lowest first.
    Distant(Vec<DistantLayer>),
}

/// A layer of an image.
#[derive(Clone, Debug)]
pub enum StackLayer {
    /// It is unpacked here.
    Here(Snapshot),
    /// It is elsewhere.
    Distant(DistantLayer),
}

impl StackLayer {
    /// Returns what it is uncompressed; `None` for a snapshot that was not identified.
    #[must_use]
    pub fn diff_id(&self) -> Option<Digest> {
        match self {
            Self::Here(snapshot) => snapshot.diff_id,
            Self::Distant(distant) => Some(distant.layer.diff_id),
        }
    }

    /// Returns the time that stands for it, in nanoseconds since 1970.
    pub(super) fn time_ns(&self) -> i64 {
        match self {
            Self::Here(snapshot) => snapshot.as_of.unwrap_or(snapshot.created_at),
            Self::Distant(distant) => distant.as_of.unwrap_or_default(),
        }
    }
}

impl Resolved {
    /// Returns the image's layers, the lowest first, when they are at a registry; `None` for an image that is elsewhere, or here.
    ///
    /// # Errors
    /// `Unsupported` for layers that are none.
    pub fn distant(&self, client: &Client) -> Result<Option<Vec<DistantLayer>>> {
        let Origin::Remote(remote) = &self.origin else { return Ok(None) };
        check_layers(remote)?;
        let source: Arc<dyn BlobSource> =
            Arc::new(RepositoryBlobs { client: client.clone(), name: remote.name.clone() });
        let layers = remote.layers.iter().zip(&self.config.rootfs.diff_ids);
        let layers = layers.map(|(descriptor, diff_id)| DistantLayer {
            layer: ChainLayer { descriptor: descriptor.clone(), diff_id: *diff_id },
            as_of: None,
            source: Arc::clone(&source),
            repositories: vec![remote.name.clone()],
        });
        Ok(Some(layers.collect()))
    }

    /// Adds the repository that the image's layers are in, by their digests, if they are at a registry.
    pub fn note_repositories(&self, known: &mut HashMap<Digest, Vec<Reference>>) {
        let Origin::Remote(remote) = &self.origin else { return };
        for layer in &remote.layers {
            let all = known.entry(layer.digest).or_default();
            if !all.contains(&remote.name) {
                all.push(remote.name.clone());
            }
        }
    }
}
