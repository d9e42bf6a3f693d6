//! Sending an image to a registry: its own manifest and blobs where it has them, freshly compressed layers where not.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Seek as _, SeekFrom};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use kiln_graph::Reference;
use kiln_graph::oci::{Descriptor, Manifest, media_type};

use super::assemble::{Assembled, AssembledLayer, Document, layer_suffix};
use super::distant::DistantLayer;
use super::pull::{LayerStage, Report};
use super::{Image, Images, record};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::registry::{self, Client, Progress};
use crate::store::compression::Compression;
use crate::store::{Blob, Lease, Snapshot};
use crate::task::{self, Cancel};

/// How many layers are compressed and sent at a time; the registry client limits the uploads among them.
const LAYERS: usize = 5;

const TICK: Duration = Duration::from_millis(100);

/// How many repositories are asked for a layer they may have.
const MOUNTS: usize = 4;

/// An image that was pushed.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Its manifest.
    pub manifest: Descriptor,
    /// The name it was pushed under.
    pub reference: Reference,
}

/// A layer on its way.
enum LayerSource {
    /// Its blob is here.
    Blob(Descriptor, Blob),
    /// It is known, but not here: the registry must have it already.
    Elsewhere(Descriptor),
    /// It is to be compressed.
    Snapshot(Snapshot),
}

impl Images {
    /// Pushes an image under a name, and records the digest the registry then knows it by.
    ///
    /// Dropping the future stops the work.
    ///
    /// # Errors
    /// `Conflict` when a layer that came from elsewhere is neither here nor at the registry; otherwise what the registry says.
    pub async fn push(
        &self,
        lease: &Lease,
        image: &Image,
        name: &Reference,
        compression: Compression,
        client: &Client,
        report: &Report,
    ) -> Result<Pushed> {
        let name = name.clone().with_default_tag();
        let index = {
            let (images, lease, name) = (self.clone(), lease.clone(), name.clone());
            task::blocking(move || {
                let index = images.store.root().db().read(|connection| record::index_of(connection, &name))?;
                index.map(|index| images.assembled(&lease, &index)).transpose()
            })
        };
        if let Some(assembled) = index.await? {
            return self.push_assembled(lease, &assembled, &name, client, report).await;
        }
        let (sources, manifest, mounts) = {
            let (images, lease, image, name) = (self.clone(), lease.clone(), image.clone(), name.clone());
            task::blocking(move || images.push_sources(&lease, &image, &name)).await?
        };
        let cancel = Cancel::new();
        let _stop = cancel.on_drop();
        let to = Destination { client, name: &name, mounts: &mounts, report };
        let send = Send { images: self, lease, to, compression, cancel: &cancel };
        let work: Vec<_> = sources.into_iter().map(|source| send.layer(source)).collect();
        let mut work = futures_util::stream::iter(work).buffered(LAYERS);
        let mut layers = Vec::new();
        while let Some(layer) = work.next().await {
            layers.push(layer.context(|| format!("push {}", name.familiar()))?);
        }
        drop(work);
        to.document(&config_descriptor(image), Bytes::copy_from_slice(&image.config_bytes)).await?;
        let manifest = match manifest {
            Some(manifest) => manifest,
            None => new_manifest(image, layers)?,
        };
        let digest = client.push_manifest(&name, &manifest.0, manifest.1.clone()).await?;
        let descriptor = Descriptor::new(&manifest.0, digest, manifest.1.len() as u64);
        let (images, lease, id, pushed) = (self.clone(), lease.clone(), image.record.id, name.clone());
        task::blocking(move || {
            images.store.write_blob(&lease, &manifest.1)?;
            images.store.root().db().write(|tx| {
                record::insert(tx, &id, Some(&digest), images.clock.now_ns(), images.store.root().boot_id())?;
                record::set_repository_digest(tx, &pushed.repository(), &digest, &id)
            })
        })
        .await?;
        Ok(Pushed { manifest: descriptor, reference: name })
    }

    /// Pushes assembled images under a name, or by digest alone when it has no tag. Of those that are recorded, the digests the
    /// registry then knows them by are recorded, too. Layers that are elsewhere are fetched only when the registry neither has them
    /// nor takes them from another of its repositories; they are not unpacked.
    ///
    /// Dropping the future stops the work.
    ///
    /// # Errors
    /// As for [`Images::push`].
    pub async fn push_assembled(
        &self,
        lease: &Lease,
        assembled: &Assembled,
        name: &Reference,
        client: &Client,
        report: &Report,
    ) -> Result<Pushed> {
        let mounts = {
            let (images, name) = (self.clone(), name.clone());
            task::blocking(move || images.mount_candidates(&name)).await?
        };
        let to = Destination { client, name, mounts: &mounts, report };
        let mut sent = BTreeSet::new();
        let layers = assembled.images.iter().flat_map(|image| &image.layers);
        // What is not to be distributed is got from where its descriptor says.
        let layers = layers.filter(|layer| !media_type::is_nondistributable(&layer.descriptor.media_type));
        let layers = layers.filter(|layer| sent.insert(layer.descriptor.digest)).map(|layer| async {
            match (&layer.distant, layer.blob.clone()) {
                (Some(distant), _) => to.pass_on((self, lease), layer, distant).await,
                (None, Some(blob)) => to.upload(&layer.descriptor, blob).await,
                (None, None) => to.elsewhere(layer.descriptor.clone()).await.map(drop),
            }
        });
        // Collected, because the compiler cannot see that a stream that maps references to futures may change threads.
        let layers: Vec<_> = layers.collect();
        let mut work = futures_util::stream::iter(layers).buffer_unordered(LAYERS);
        while let Some(layer) = work.next().await {
            layer.context(|| format!("push {}", name.familiar()))?;
        }
        drop(work);
        for document in assembled.documents() {
            let Document { descriptor, bytes } = document;
            let kind = descriptor.media_type.as_str();
            if !media_type::is_manifest(kind) && !media_type::is_index(kind) {
                to.document(descriptor, bytes.clone()).await?;
            } else if descriptor.digest != assembled.top.descriptor.digest {
                let by_digest = name.with_digest(descriptor.digest);
                client.push_manifest(&by_digest, kind, bytes.clone()).await?;
            }
        }
        let top = &assembled.top;
        let reference = match name.tag() {
            Some(_) => name.clone(),
            None => name.with_digest(top.descriptor.digest),
        };
        client.push_manifest(&reference, &top.descriptor.media_type, top.bytes.clone()).await?;
        let (images, assembled, repository) = (self.clone(), assembled.clone(), name.repository());
        task::blocking(move || images.note_digests(&assembled, &repository)).await?;
        Ok(Pushed { manifest: top.descriptor.clone(), reference })
    }

    /// Records, of those images that are recorded, that a repository knows them by their digests. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn note_digests(&self, assembled: &Assembled, repository: &str) -> Result<()> {
        let main = assembled.ids().first().copied();
        self.store.root().db().write(|tx| {
            for image in &assembled.images {
                if record::get(tx, &image.id)?.is_some() {
                    let digest = &image.manifest.descriptor.digest;
                    record::set_repository_digest(tx, repository, digest, &image.id)?;
                }
            }
            match main {
                Some(id) if record::get(tx, &id)?.is_some() => {
                    record::set_repository_digest(tx, repository, &assembled.top.descriptor.digest, &id)
                }
                _ => Ok(()),
            }
        })
    }

    /// Finds out where each layer comes from, and the manifest when the image has one that can be pushed as it is.
    #[expect(clippy::type_complexity, reason = "a private intermediate result, taken apart at once")]
    fn push_sources(
        &self,
        lease: &Lease,
        image: &Image,
        name: &Reference,
    ) -> Result<(Vec<LayerSource>, Option<(String, Bytes)>, Vec<Reference>)> {
        let mounts = self.mount_candidates(name)?;
        if let Some(digest) = &image.record.manifest
            && let Some(blob) = self.store.blob(lease, digest)?
        {
            let bytes = Bytes::from(blob.read(super::MAX_DOCUMENT)?);
            let manifest: Manifest = serde_json::from_slice(&bytes).context(|| "read the image's manifest")?;
            let source = |layer: &Descriptor| {
                Ok(match self.store.blob(lease, &layer.digest)? {
                    Some(blob) => LayerSource::Blob(layer.clone(), blob),
                    None => LayerSource::Elsewhere(layer.clone()),
                })
            };
            let sources: Vec<LayerSource> = manifest.layers.iter().map(source).collect::<Result<_>>()?;
            let kind = manifest.media_type.unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
            return Ok((sources, Some((kind, bytes)), mounts));
        }
        let chain = self.chain(lease, self.snapshot(lease, image)?)?;
        Ok((chain.into_iter().map(LayerSource::Snapshot).collect(), None, mounts))
    }

    /// Returns repositories of a name's registry that may have layers of images that are here. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn mount_candidates(&self, name: &Reference) -> Result<Vec<Reference>> {
        let records = self.store.root().db().read(record::all)?;
        let known = records.iter().flat_map(|record| &record.repository_digests);
        let mut candidates: Vec<Reference> =
            known.filter(|known| known.domain() == name.domain() && known.path() != name.path()).cloned().collect();
        candidates.dedup_by(|a, b| a.path() == b.path());
        candidates.truncate(MOUNTS);
        Ok(candidates)
    }
}

fn new_manifest(image: &Image, layers: Vec<Descriptor>) -> Result<(String, Bytes)> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: config_descriptor(image),
        layers,
        subject: None,
        annotations: BTreeMap::new(),
    };
    Ok((media_type::OCI_MANIFEST.to_owned(), serde_json::to_vec(&manifest)?.into()))
}

fn config_descriptor(image: &Image) -> Descriptor {
    Descriptor::new(media_type::OCI_CONFIG, image.record.id, image.config_bytes.len() as u64)
}

/// How far a layer is that came to the registry so.
const fn stage(pushed: &registry::Pushed) -> LayerStage {
    match pushed {
        registry::Pushed::Exists => LayerStage::Exists,
        registry::Pushed::Mounted(_) => LayerStage::Mounted,
        registry::Pushed::Uploaded => LayerStage::Done,
    }
}

/// Where everything goes.
#[derive(Clone, Copy)]
struct Destination<'a> {
    client: &'a Client,
    name: &'a Reference,
    mounts: &'a [Reference],
    report: &'a Report,
}

/// What the layers of a push have in common that are compressed for it.
struct Send<'a> {
    images: &'a Images,
    lease: &'a Lease,
    to: Destination<'a>,
    compression: Compression,
    cancel: &'a Cancel,
}

impl Send<'_> {
    /// Sees to it that a layer is at the registry.
    async fn layer(&self, source: LayerSource) -> Result<Descriptor> {
        let (descriptor, blob) = match source {
            LayerSource::Blob(descriptor, _) | LayerSource::Elsewhere(descriptor)
                if media_type::is_nondistributable(&descriptor.media_type) =>
            {
                return Ok(descriptor);
            }
            LayerSource::Blob(descriptor, blob) => (descriptor, blob),
            LayerSource::Elsewhere(descriptor) => return self.to.elsewhere(descriptor).await,
            LayerSource::Snapshot(snapshot) => match self.compress(&snapshot).await {
                Ok(blob) => {
                    let kind = format!("{}{}", media_type::OCI_LAYER, layer_suffix(&blob)?);
                    (Descriptor::new(&kind, *blob.digest(), blob.size()), blob)
                }
                // It came from a registry, and its blob is no longer here. Perhaps this registry has it.
                Err(error) if error.kind() == Kind::Conflict => return self.known_elsewhere(&snapshot, error).await,
                Err(error) => return Err(error),
            },
        };
        self.to.upload(&descriptor, blob).await?;
        Ok(descriptor)
    }

    async fn compress(&self, snapshot: &Snapshot) -> Result<Blob> {
        let (store, lease, id) = (self.images.store.clone(), self.lease.clone(), snapshot.id);
        let (compression, cancel) = (self.compression, self.cancel.clone());
        Ok(task::blocking(move || store.layer_blob(&lease, id, compression, &cancel)).await?.blob)
    }

    async fn known_elsewhere(&self, snapshot: &Snapshot, error: Error) -> Result<Descriptor> {
        let Some(diff_id) = snapshot.diff_id else { return Err(error) };
        let store = self.images.store.clone();
        let forms = task::blocking(move || store.layer_blobs(&diff_id)).await?;
        for form in forms {
            let kind = format!("{}{}", media_type::OCI_LAYER, form.media_suffix);
            let descriptor = Descriptor::new(&kind, form.digest, form.size);
            if let Ok(descriptor) = self.to.elsewhere(descriptor).await {
                return Ok(descriptor);
            }
        }
        Err(error)
    }
}

impl Destination<'_> {
    async fn upload(&self, descriptor: &Descriptor, blob: Blob) -> Result<()> {
        (self.report)(descriptor, LayerStage::Waiting);
        let progress = Progress::new();
        let open = move |offset: u64| {
            let mut file = blob.open()?;
            file.seek(SeekFrom::Start(offset))?;
            Ok(file)
        };
        let transfer = self.client.push_blob(self.name, descriptor, open, self.mounts, &progress);
        tokio::pin!(transfer);
        loop {
            tokio::select! {
                done = &mut transfer => {
                    (self.report)(descriptor, stage(&done?));
                    return Ok(());
                }
                () = tokio::time::sleep(TICK) => {
                    (self.report)(descriptor, LayerStage::Downloading(progress.bytes()));
                }
            }
        }
    }

    /// Makes sure that the registry has a layer that is not here.
    async fn elsewhere(&self, descriptor: Descriptor) -> Result<Descriptor> {
        if self.adopt(&descriptor, self.mounts).await? {
            return Ok(descriptor);
        }
        let digest = descriptor.digest;
        Err(Error::conflict(format!("layer {digest} is not here any more; pull the image it came with again")))
    }

    /// Passes a layer on that is elsewhere, without unpacking it.
    async fn pass_on(
        &self,
        (images, lease): (&Images, &Lease),
        layer: &AssembledLayer,
        distant: &DistantLayer,
    ) -> Result<()> {
        let repositories: Vec<Reference> = distant.repositories.iter().chain(self.mounts).cloned().collect();
        if self.adopt(&layer.descriptor, &repositories).await? {
            return Ok(());
        }
        let blob = match &layer.blob {
            Some(blob) => blob.clone(),
            None => images.fetch_blob(lease, &distant.layer.descriptor, distant.source.as_ref(), self.report).await?,
        };
        let asked_already = Self { mounts: &[], ..*self };
        asked_already.upload(&layer.descriptor, blob).await
    }

    /// Says whether the registry has a layer, or takes it from another of its repositories.
    async fn adopt(&self, descriptor: &Descriptor, repositories: &[Reference]) -> Result<bool> {
        let adopted = self.client.adopt_blob(self.name, descriptor, repositories).await?;
        if let Some(adopted) = &adopted {
            (self.report)(descriptor, stage(adopted));
        }
        Ok(adopted.is_some())
    }

    async fn document(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<()> {
        let open = move |offset: u64| {
            let mut content = std::io::Cursor::new(bytes.clone());
            content.set_position(offset);
            Ok(content)
        };
        self.client.push_blob(self.name, descriptor, open, self.mounts, &Progress::new()).await?;
        Ok(())
    }
}
