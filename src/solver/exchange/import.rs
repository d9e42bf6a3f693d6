//! Reading a cache: its manifest and its configuration. No layer is fetched.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kiln_graph::Reference;
use kiln_graph::oci::{Descriptor, ImageConfig, Index, Manifest, annotation, media_type};
use serde::Deserialize;

use super::azblob::{Azure, AzureOptions};
use super::catalog::Catalog;
use super::config::{self, CacheConfig, CacheLayer, CacheRecord, LayerAnnotations};
use super::gha::{Gha, GhaOptions};
use super::objects::{self, Objects};
use super::option::{CacheImport, Origin};
use super::s3::{S3, S3Options};
use super::{INLINE, Imports, Loaded};
use crate::error::{Error, Result, ResultExt as _};
use crate::image::{BlobSource, Images, RepositoryBlobs};
use crate::registry::Client;
use crate::solver::job::{Begun, Shared};
use crate::store::Lease;
use crate::wire::content::LOCAL;

/// How many images of an index are looked at for caches.
const MAX_IMAGES: usize = 32;

/// The largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 16 << 20;

/// The largest image configuration that is read, in bytes.
const MAX_CONFIG: u64 = 8 << 20;

impl Shared {
    /// Returns the client for a registry.
    pub(super) async fn registry_of(&self, name: &Reference, insecure: bool) -> Client {
        if insecure { self.registry.insecure(name).await } else { self.registry.clone() }
    }

    /// Opens an object store.
    pub(super) fn s3(&self, options: &S3Options) -> Objects {
        Objects::S3(S3::new(self.registry.clone(), self.solver.deps().clock, options.clone()))
    }

    /// Opens a container of Azure's.
    pub(super) fn azure(&self, options: &AzureOptions) -> Objects {
        Objects::Azure(Azure::new(self.registry.clone(), self.solver.deps().clock, options.clone()))
    }

    /// Opens the cache of GitHub Actions.
    pub(super) fn gha(&self, options: &GhaOptions) -> Objects {
        Objects::Gha(Gha::new(self.registry.clone(), options.clone()))
    }

    /// Reads a cache. That it cannot be read is reported, and is no failure of the build.
    ///
    /// # Errors
    /// `Internal` when there is no randomness.
    pub(in crate::solver) async fn import(&self, import: &CacheImport) -> Result<Imports> {
        let begun = Begun::internal(&self.progress, &format!("importing cache manifest from {}", import.shown()))?;
        let images = &self.solver.deps().images;
        let reader = Reader { images, lease: &self.lease, shared: self, mounts: import.mounts };
        let read = reader.read(&import.from).await;
        begun.end(read.as_ref().err());
        Ok(Imports(read.unwrap_or_default()))
    }
}

struct Reader<'a> {
    images: &'a Images,
    lease: &'a Lease,
    shared: &'a Shared,
    /// Whether cache mounts are of interest.
    mounts: bool,
}

/// What tells an index from a manifest.
#[derive(Deserialize)]
struct Outline {
    manifests: Option<serde::de::IgnoredAny>,
}

/// What an image's configuration holds beside what runs it.
#[derive(Deserialize)]
struct Inline {
    #[serde(default, rename = "moby.buildkit.cache.v0")]
    records: Option<String>,
}

impl Reader<'_> {
    /// Makes sense of a configuration.
    fn catalog(&self, config: CacheConfig, blobs: &[Descriptor], source: Arc<dyn BlobSource>) -> Result<Loaded> {
        let catalog = Catalog::new(config, blobs, source)?;
        Ok(Arc::new(if self.mounts { catalog } else { catalog.without_mounts() }))
    }

    async fn read(&self, from: &Origin) -> Result<Vec<Loaded>> {
        match from {
            Origin::Registry(reference, insecure) => {
                let client = self.shared.registry_of(reference, *insecure).await;
                let found = client.resolve(reference).await?;
                let source: Arc<dyn BlobSource> =
                    Arc::new(RepositoryBlobs { client: client.clone(), name: reference.clone() });
                self.of_manifest(found.content, &source, Some((&client, reference))).await
            }
            Origin::Local { src, digest } => {
                let store = self.shared.session.content_store(format!("{LOCAL}{src}")).await?;
                let manifest = store.describe(digest).await?;
                let source: Arc<dyn BlobSource> = Arc::new(store);
                let content = self.images.document_of(self.lease, &manifest, source.as_ref(), MAX_MANIFEST).await?;
                self.of_manifest(content, &source, None).await
            }
            Origin::S3(options) => self.of_objects(self.shared.s3(options)).await,
            Origin::Gha(options) => self.of_objects(self.shared.gha(options)).await,
            Origin::Azure(options) => self.of_objects(self.shared.azure(options)).await,
        }
    }

    async fn of_objects(&self, objects: Objects) -> Result<Vec<Loaded>> {
        let config = CacheConfig::parse(&objects.config().await?)?;
        let layers = objects::layers(&config)?;
        Ok(vec![self.catalog(config, &layers, Arc::new(objects))?])
    }

    /// Reads what a manifest or an index leads to. `repository` is where the manifests are that an index of images lists.
    async fn of_manifest(
        &self,
        content: Bytes,
        source: &Arc<dyn BlobSource>,
        repository: Option<(&Client, &Reference)>,
    ) -> Result<Vec<Loaded>> {
        let outline: Outline = serde_json::from_slice(&content).context(|| "read the cache's manifest")?;
        if outline.manifests.is_none() {
            let manifest: Manifest = serde_json::from_slice(&content).context(|| "read the cache's manifest")?;
            if manifest.config.media_type == config::MEDIA_TYPE {
                return Ok(vec![self.of_config(&manifest.config, &manifest.layers, source).await?]);
            }
            return self.of_image(&manifest, source).await.map(|loaded| loaded.into_iter().collect());
        }
        let index: Index = serde_json::from_slice(&content).context(|| "read the cache's index")?;
        if let Some(config) = index.manifests.iter().find(|entry| entry.media_type == config::MEDIA_TYPE) {
            return Ok(vec![self.of_config(config, &index.manifests, source).await?]);
        }
        let images = index.manifests.iter().filter(|entry| {
            media_type::is_manifest(&entry.media_type)
                && !entry.annotations.contains_key(annotation::DOCKER_REFERENCE_TYPE)
        });
        let mut all = Vec::new();
        for entry in images.take(MAX_IMAGES) {
            let content = match repository {
                Some((client, repository)) => client.manifest(repository, entry).await?,
                None => self.images.document_of(self.lease, entry, source.as_ref(), config::MAX_BYTES).await?,
            };
            let manifest: Manifest = serde_json::from_slice(&content).context(|| "read an image's manifest")?;
            all.extend(self.of_image(&manifest, source).await?);
        }
        if all.is_empty() { Err(Error::not_found("there is no cache in these images")) } else { Ok(all) }
    }

    async fn of_config(
        &self,
        descriptor: &Descriptor,
        blobs: &[Descriptor],
        source: &Arc<dyn BlobSource>,
    ) -> Result<Loaded> {
        let bytes = self.images.document_of(self.lease, descriptor, source.as_ref(), config::MAX_BYTES).await?;
        let config = CacheConfig::parse(&bytes)?;
        self.catalog(config, blobs, Arc::clone(source))
    }

    /// Reads the cache in the configuration of an image, whose layers are the results.
    async fn of_image(&self, manifest: &Manifest, source: &Arc<dyn BlobSource>) -> Result<Option<Loaded>> {
        let bytes = self.images.document_of(self.lease, &manifest.config, source.as_ref(), MAX_CONFIG).await?;
        let inline: Inline = serde_json::from_slice(&bytes).context(|| "read the image's configuration")?;
        let Some(records) = inline.records else { return Ok(None) };
        let records = STANDARD.decode(records).map_err(|_| Error::invalid(format!("{INLINE} is not base64")))?;
        let records: Vec<CacheRecord> = serde_json::from_slice(&records).context(|| format!("read {INLINE}"))?;
        let image: ImageConfig = serde_json::from_slice(&bytes).context(|| "read the image's configuration")?;
        let diff_ids = &image.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(Error::corrupt("the image's manifest and its configuration list different numbers of layers"));
        }
        let times = image.history.iter().filter(|entry| !entry.empty_layer).map(|entry| entry.created.clone());
        let times = times.chain(std::iter::repeat(None));
        let layers = manifest.layers.iter().zip(diff_ids).zip(times).enumerate();
        let layers = layers.map(|(at, ((layer, diff_id), created_at))| CacheLayer {
            blob: layer.digest,
            parent: i64::try_from(at).unwrap_or(i64::MAX) - 1,
            annotations: Some(LayerAnnotations { diff_id: Some(*diff_id), created_at, ..LayerAnnotations::default() }),
        });
        let config = CacheConfig { layers: layers.collect(), records, mounts: Vec::new() };
        config.check()?;
        self.catalog(config, &manifest.layers, Arc::clone(source)).map(Some)
    }
}
