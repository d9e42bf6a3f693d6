//! Writing a cache: layers first, then the configuration, then the manifest that makes it one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use kiln_graph::Digest;
use kiln_graph::oci::{Descriptor, Index, Manifest, chain_id, media_type};

use super::catalog::UNCOMPRESSED;
use super::chain_name;
use super::config::{self, CacheConfig, CacheLayer, CacheRecord, CacheResult, ChainedResult, LayerAnnotations};
use super::gather::{Gathered, Origin, ResultLayer, Scope, gather};
use super::mounts;
use super::option::{CacheExport, Destination, Mode};
use super::place::{Content, Place};
use crate::error::{Error, Result, ResultExt as _};
use crate::image::Form;
use crate::solver::job::{Begun, Shared};
use crate::solver::progress::{Event, Warning};
use crate::task::{self, Cancel};
use crate::wire::content::LOCAL;

/// How many layers are compressed and sent at a time.
const LAYERS: usize = 4;

/// The key of the answer that names the manifest, with which clients find a cache in their directory. BuildKit tells of the last
/// cache only; with its number, each is told of.
const ANSWER: &str = "cache.manifest";

/// The annotation of a layer that says when it was made.
const CREATED: &str = "buildkit/createdat";

impl Shared {
    /// Writes caches, and returns what the client is told.
    ///
    /// # Errors
    /// What went wrong with the first cache that must be written.
    pub(in crate::solver) async fn export_caches(
        &self,
        exports: &[CacheExport],
        scopes: &[Scope],
    ) -> Result<BTreeMap<String, String>> {
        let mut answer = BTreeMap::new();
        if exports.iter().any(|export| !export.is_inline()) {
            for scope in scopes {
                scope.job.settle_all().await;
                scope.job.hash_for_export(&scope.roots).await?;
            }
        }
        for (number, export) in exports.iter().enumerate().filter(|(_, export)| !export.is_inline()) {
            let begun = Begun::internal(&self.progress, &format!("exporting cache to {}", export.to.shown()))?;
            let vertex = begun.digest();
            let written = self.export_cache(export, scopes, &begun).await;
            begun.end(written.as_ref().err());
            match written {
                Ok(manifest) => {
                    let manifest = serde_json::to_string(&manifest)?;
                    answer.insert(format!("{ANSWER}.{number}"), manifest.clone());
                    answer.insert(ANSWER.to_owned(), manifest);
                }
                Err(error) if export.ignore_error => self.progress.report(Event::Warning(Warning {
                    vertex,
                    short: format!("the cache was not exported to {}: {error}", export.to.shown()),
                    detail: Vec::new(),
                    url: String::new(),
                    file: None,
                    lines: Vec::new(),
                })),
                Err(error) => return Err(error).context(|| format!("export the cache to {}", export.to.shown())),
            }
        }
        Ok(answer)
    }

    async fn export_cache(&self, export: &CacheExport, scopes: &[Scope], begun: &Begun) -> Result<Descriptor> {
        let preparing = begun.part("preparing build cache for export", 0);
        let mode = export.mode;
        let gathered = {
            let scopes = scopes.to_vec();
            task::blocking(move || gather(&scopes, mode)).await?
        };
        let Gathered { records, results } = gathered;
        preparing.complete();
        let place = self.place(&export.to).await?;
        let uploads = if let Place::Objects(objects) = &place { objects.uploads() } else { LAYERS };
        let arranged = Arranged::new(&results);
        let cancel = Cancel::new();
        let _given_up = cancel.on_drop();
        let (form, estargz) = (&export.form, export.estargz);
        let writer = Writer { shared: self, place: &place, form, estargz, begun, cancel: &cancel };
        // Collected, because the compiler cannot see that a stream that maps references to futures may change threads.
        let work: Vec<_> = arranged.layers.iter().map(|layer| writer.layer(layer.clone())).collect();
        let written: Vec<Written> = futures_util::stream::iter(work).buffered(uploads).try_collect().await?;
        let mut config = arranged.config(records, &written);
        let mut blobs: Vec<Descriptor> = written.into_iter().map(|written| written.descriptor).collect();
        if export.mounts {
            config.mounts = mounts::export(scopes, &place, begun).await?;
            // A registry keeps what a manifest lists.
            let chunks: BTreeMap<Digest, Descriptor> = config
                .mounts
                .iter()
                .flat_map(|mount| &mount.chunks)
                .map(|chunk| (chunk.blob, chunk.descriptor()))
                .collect();
            blobs.extend(chunks.into_values());
        }
        let config = serde_json::to_vec(&config)?;
        if let Place::Objects(objects) = &place {
            let descriptor = Descriptor::new(config::MEDIA_TYPE, Digest::of(&config), config.len() as u64);
            let part = begun.part(format!("writing config {}", descriptor.digest), 0);
            objects.set_config(&config.into()).await?;
            part.complete();
            return Ok(descriptor);
        }
        let descriptor = Descriptor::new(config::MEDIA_TYPE, Digest::of(&config), config.len() as u64);
        let part = begun.part(format!("writing config {}", descriptor.digest), 0);
        place.put(&descriptor, Content::Bytes(config.into())).await?;
        part.complete();
        let (kind, manifest) = manifest(export, descriptor, blobs)?;
        let descriptor = Descriptor::new(kind, Digest::of(&manifest), manifest.len() as u64);
        let part = begun.part(format!("writing cache manifest {}", descriptor.digest), 0);
        place.publish(&descriptor, manifest.into()).await?;
        part.complete();
        Ok(descriptor)
    }

    pub(super) async fn place(&self, to: &Destination) -> Result<Place> {
        match to {
            Destination::Inline => Err(Error::internal("a cache in an image is written with the image")),
            Destination::Registry(name, insecure) => {
                let (images, wanted) = (self.solver.deps().images.clone(), name.clone());
                let mounts = task::blocking(move || images.mount_candidates(&wanted)).await?;
                let client = self.registry_of(name, *insecure).await;
                Ok(Place::Registry { client, name: name.clone(), mounts })
            }
            Destination::S3(options) => Ok(Place::Objects(self.s3(options))),
            Destination::Gha(options) => Ok(Place::Objects(self.gha(options))),
            Destination::Azure(options) => Ok(Place::Objects(self.azure(options))),
            Destination::Local(dest) => Ok(Place::Client(self.session.content_store(format!("{LOCAL}{dest}")).await?)),
        }
    }
}

/// The manifest of a cache, with its type.
fn manifest(export: &CacheExport, config: Descriptor, mut layers: Vec<Descriptor>) -> Result<(&'static str, Vec<u8>)> {
    if export.image_manifest {
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        };
        return Ok((media_type::OCI_MANIFEST, serde_json::to_vec(&manifest)?));
    }
    let kind = if export.form.docker_types { media_type::DOCKER_MANIFEST_LIST } else { media_type::OCI_INDEX };
    layers.push(config);
    let index = Index {
        schema_version: 2,
        media_type: Some(kind.to_owned()),
        artifact_type: None,
        manifests: layers,
        subject: None,
        annotations: BTreeMap::new(),
    };
    Ok((kind, serde_json::to_vec(&index)?))
}

/// The layers of all results, each once, those below others first.
pub(super) struct Arranged {
    layers: Vec<ResultLayer>,
    parents: Vec<Option<usize>>,
    /// The topmost layer of each result, by the record.
    tops: HashMap<usize, usize>,
}

impl Arranged {
    pub(super) fn new(results: &[(usize, Vec<ResultLayer>)]) -> Self {
        let mut arranged = Self { layers: Vec::new(), parents: Vec::new(), tops: HashMap::new() };
        let mut known: HashMap<Digest, usize> = HashMap::new();
        for (record, layers) in results {
            let mut top = None;
            for layer in layers {
                let at = *known.entry(layer.chain).or_insert_with(|| {
                    arranged.layers.push(layer.clone());
                    arranged.parents.push(top);
                    arranged.layers.len() - 1
                });
                // A snapshot that is here needs no download.
                if matches!(arranged.layers[at].origin, Origin::Elsewhere(..)) {
                    arranged.layers[at] = layer.clone();
                }
                top = Some(at);
            }
            arranged.tops.extend(top.map(|top| (*record, top)));
        }
        arranged
    }

    /// The names of those file systems, by their old ones, whose layers are others than those they were made as.
    fn renamed(&self, written: &[Written]) -> HashMap<String, String> {
        let mut chains: Vec<Digest> = Vec::with_capacity(written.len());
        for (parent, written) in self.parents.iter().zip(written) {
            // What lies below comes first.
            chains.push(chain_id(parent.and_then(|parent| chains.get(parent).copied()), written.diff_id));
        }
        let changed = self.tops.values().filter(|top| chains[**top] != self.layers[**top].chain);
        changed.map(|top| (chain_name(Some(&self.layers[*top].chain)), chain_name(Some(&chains[*top])))).collect()
    }

    /// Makes the configuration of what was written of the layers.
    fn config(&self, mut records: Vec<CacheRecord>, written: &[Written]) -> CacheConfig {
        let number = |at: usize| i64::try_from(at).unwrap_or(i64::MAX);
        let layers = self.layers.iter().zip(&self.parents).zip(written).map(|((layer, parent), written)| CacheLayer {
            blob: written.descriptor.digest,
            parent: parent.map_or(-1, number),
            annotations: Some(LayerAnnotations {
                media_type: written.descriptor.media_type.clone(),
                diff_id: Some(written.diff_id),
                size: written.descriptor.size,
                created_at: layer.as_of.and_then(config::time),
            }),
        });
        let layers = layers.collect();
        for (record, top) in &self.tops {
            let created_at = self.layers[*top].as_of.and_then(config::time);
            records[*record].results = vec![CacheResult { layer: number(*top), created_at }];
        }
        let renamed = self.renamed(written);
        for record in &mut records {
            if let Some(name) = renamed.get(&record.digest) {
                record.digest.clone_from(name);
            }
        }
        CacheConfig { layers, records, mounts: Vec::new() }
    }
}

/// A layer that was written.
struct Written {
    descriptor: Descriptor,
    /// What it is uncompressed: the form that is asked for may change that.
    diff_id: Digest,
}

/// Writes layers.
struct Writer<'a> {
    shared: &'a Shared,
    place: &'a Place,
    form: &'a Form,
    estargz: Option<u32>,
    begun: &'a Begun,
    cancel: &'a Cancel,
}

impl Writer<'_> {
    /// Sees to it that a layer is at the place, and returns how it is known there.
    async fn layer(&self, layer: ResultLayer) -> Result<Written> {
        let images = &self.shared.solver.deps().images;
        let (mut descriptor, blob, diff_id) = match &layer.origin {
            Origin::Here(snapshot) => {
                let (images, lease, form) = (images.clone(), self.shared.lease.clone(), self.form.clone());
                let (snapshot, estargz, cancel) = (snapshot.clone(), self.estargz, self.cancel.clone());
                let known = layer.diff_id;
                let make = move || match estargz {
                    Some(level) => images.assemble_estargz(&lease, &snapshot, (&form, level), &cancel),
                    None => images.assemble_layer(&lease, &snapshot, &form, &cancel).map(|made| (made, known)),
                };
                let (made, diff_id) = task::blocking(make).await?;
                (made.descriptor, made.blob, diff_id)
            }
            Origin::Elsewhere(remote, _) => {
                let mut descriptor = remote.layer.descriptor.clone();
                descriptor.annotations.clear();
                (descriptor, None, layer.diff_id)
            }
        };
        descriptor.annotations.insert(UNCOMPRESSED.to_owned(), diff_id.to_string());
        descriptor.annotations.extend(layer.as_of.and_then(config::time).map(|time| (CREATED.to_owned(), time)));
        let part = self.begun.part(format!("writing layer {}", descriptor.digest), descriptor.size);
        let source = match &layer.origin {
            Origin::Elsewhere(_, source) => Some(source.as_ref()),
            Origin::Here(_) => None,
        };
        let blob = match (blob, &layer.origin) {
            (Some(blob), _) => blob,
            _ if self.place.has(&descriptor, source).await? => {
                part.complete();
                return Ok(Written { descriptor, diff_id });
            }
            (None, Origin::Elsewhere(remote, source)) => {
                let silent: crate::image::Report = Arc::new(|_, _| {});
                images.bring(&self.shared.lease, &remote.layer, source.as_ref(), &silent).await?
            }
            (None, Origin::Here(_)) => {
                let digest = descriptor.digest;
                return Err(Error::conflict(format!(
                    "layer {digest} is not here any more; pull the image it came with again"
                )));
            }
        };
        self.place.put(&descriptor, Content::Blob(blob)).await?;
        part.complete();
        Ok(Written { descriptor, diff_id })
    }
}

/// Writes the records of an image for its configuration: results are its own layers. `None` when it has none to tell.
///
/// # Errors
/// When the database fails. Blocking.
pub(in crate::solver) fn inline(scopes: &[Scope], diff_ids: &[Digest]) -> Result<Option<Vec<u8>>> {
    let Gathered { mut records, results } = gather(scopes, Mode::Max)?;
    let mut any = false;
    for (record, layers) in &results {
        let number = |at: usize| i64::try_from(at).unwrap_or(i64::MAX);
        let own: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let created_at = layers.last().and_then(|layer| layer.as_of).and_then(config::time);
        if diff_ids.starts_with(&own) {
            records[*record].results = vec![CacheResult { layer: number(own.len()) - 1, created_at }];
            any = true;
        } else {
            // Layers that were put on others keep their digests: a result may be made of some of the image's.
            let positions: Option<Vec<i64>> =
                own.iter().map(|layer| diff_ids.iter().position(|other| other == layer).map(number)).collect();
            if let Some(layers) = positions {
                records[*record].chains = vec![ChainedResult { layers, created_at }];
                any = true;
            }
        }
    }
    Ok(if any { Some(serde_json::to_vec(&records)?) } else { None })
}
