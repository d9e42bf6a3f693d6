//! Results whose layers are elsewhere and may stay there: an image that goes to a registry needs no files here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kiln_graph::oci::Descriptor;
use kiln_graph::{Digest, Edge, Reference};

use super::export::Export;
use super::job::Job;
use super::value::{Cached, FileSystem, Value};
use crate::error::{Kind, Result};
use crate::image::{BlobSource, DistantLayer, LayerSink, Stack};
use crate::registry::Progress;
use crate::task;

/// Whether whoever takes a result works on its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Files {
    /// They have to be here.
    Here,
    /// Layers may stay where they are.
    Anywhere,
}

impl Files {
    /// What exporters need; `verified` results are compared file by file.
    pub(super) fn of(exports: &[Export], verified: bool) -> Self {
        match verified || exports.iter().any(Export::needs_files) {
            true => Self::Here,
            false => Self::Anywhere,
        }
    }
}

/// The layers of an imported cache, for whoever notes that it does not hold what it promised.
#[derive(Debug)]
struct Promised {
    source: Arc<dyn BlobSource>,
    broken: Arc<AtomicBool>,
}

impl BlobSource for Promised {
    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        sink: LayerSink,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<LayerSink>> {
        async move {
            let brought = self.source.blob(descriptor, sink, progress).await;
            if brought.as_ref().is_err_and(|error| error.kind() != Kind::Cancelled) {
                self.broken.store(true, Ordering::Relaxed);
            }
            brought
        }
        .boxed()
    }

    fn repository(&self) -> Option<&Reference> {
        self.source.repository()
    }
}

impl Job {
    /// Returns what a target is made of, identified, and fetches nothing that an image can be made of where it is.
    ///
    /// # Errors
    /// As for [`Job::result`].
    pub(super) async fn composition(&self, root: Option<Edge>) -> Result<Stack> {
        let distant = match root.and_then(|root| self.value_of(root)) {
            Some(Value::FileSystem(FileSystem::Image { image, .. })) => image.distant(&self.registry)?,
            Some(Value::FileSystem(FileSystem::Cached(cached))) => self.distant(&cached).await?,
            _ => None,
        };
        match distant {
            Some(layers) => Ok(Stack::Distant(layers)),
            None => self.result(root).await.map(Stack::Here),
        }
    }

    /// Returns the layers of a cached result, unless it is here.
    async fn distant(&self, cached: &Cached) -> Result<Option<Vec<DistantLayer>>> {
        let Some(layers) = &cached.layers else { return Ok(None) };
        let here = {
            let (store, lease, chain) = (self.solver.deps().store.clone(), self.lease.clone(), cached.chain);
            task::blocking(move || store.by_chain(&lease, &chain)).await?
        };
        if here.is_some() {
            return Ok(None);
        }
        let source: Arc<dyn BlobSource> =
            Arc::new(Promised { source: Arc::clone(&cached.source), broken: Arc::clone(&self.broken) });
        let known = self.repositories();
        let layers = layers.iter().map(|remote| {
            let of_images = known.get(&remote.layer.descriptor.digest).into_iter().flatten();
            DistantLayer {
                layer: remote.layer.clone(),
                as_of: remote.as_of,
                source: Arc::clone(&source),
                repositories: source.repository().into_iter().chain(of_images).cloned().collect(),
            }
        });
        Ok(Some(layers.collect()))
    }

    /// Returns the repositories of the images that the graph begins with, by the layers they have.
    fn repositories(&self) -> HashMap<Digest, Vec<Reference>> {
        let mut known = HashMap::new();
        for value in self.graph.ids().filter_map(|id| self.value(id)) {
            if let Value::FileSystem(FileSystem::Image { image, .. }) = value {
                image.note_repositories(&mut known);
            }
        }
        known
    }
}
