//! Writing images to an archive, as a stream.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use kiln_graph::oci::{Descriptor, Index, Manifest, annotation, media_type};
use kiln_graph::{Digest, Reference};

use super::write::{Archive, blob_path};
use super::{DockerManifest, INDEX, LAYOUT, MANIFEST, OCI_LAYOUT};
use crate::error::{Error, Result, ResultExt as _};
use crate::image::record::{self, NamedBy};
use crate::image::{Image, Images, MAX_DOCUMENT};
use crate::store::{Blob, Lease, SnapshotId};
use crate::task::Cancel;

/// What is saved.
#[derive(Clone, Debug)]
pub struct SaveRequest {
    /// Names, repositories (for all their tags) or ids.
    pub images: Vec<String>,
}

/// An image to be saved, with the names that were asked for.
struct Saved {
    image: Image,
    names: BTreeSet<Reference>,
    manifest: Document,
    layers: Vec<Layer>,
}

struct Document {
    descriptor: Descriptor,
    bytes: Vec<u8>,
}

struct Layer {
    descriptor: Descriptor,
    content: Content,
}

enum Content {
    Blob(Blob),
    /// The plain tar of a snapshot's layer.
    Snapshot(SnapshotId),
}

impl Images {
    /// Writes images to an archive. Blocking; holds no layer in memory.
    ///
    /// An image that came with a manifest and compressed layers is saved with them, byte for byte; others with plain layers.
    ///
    /// # Errors
    /// `NotFound` when an image is not here; those of `out`; `Cancelled`.
    pub fn save(&self, lease: &Lease, request: &SaveRequest, out: &mut dyn Write, cancel: &Cancel) -> Result<()> {
        let saved = self.collect_saved(lease, &request.images)?;
        let mut archive = Archive::new(out)?;
        for image in &saved {
            for layer in &image.layers {
                cancel.check()?;
                self.save_layer(&mut archive, layer, cancel)
                    .context(|| format!("save layer {}", layer.descriptor.digest))?;
            }
            archive.blob(&image.image.record.id, &image.image.config_bytes)?;
            archive.blob(&image.manifest.descriptor.digest, &image.manifest.bytes)?;
        }
        archive.file(INDEX, &serde_json::to_vec(&index(&saved))?)?;
        archive.file(MANIFEST, &serde_json::to_vec(&docker_manifest(&saved))?)?;
        archive.file(OCI_LAYOUT, LAYOUT)?;
        archive.finish()
    }

    fn collect_saved(&self, lease: &Lease, images: &[String]) -> Result<Vec<Saved>> {
        let mut saved: Vec<Saved> = Vec::new();
        for (record, names) in self.find_saved(images)? {
            if let Some(known) = saved.iter_mut().find(|known| known.image.record.id == record.id) {
                known.names.extend(names);
                continue;
            }
            let image = self.open(lease, record)?;
            let (manifest, layers) = match self.own_manifest(lease, &image)? {
                Some(own) => own,
                None => self.plain_manifest(lease, &image)?,
            };
            saved.push(Saved { image, names: names.into_iter().collect(), manifest, layers });
        }
        Ok(saved)
    }

    fn find_saved(&self, images: &[String]) -> Result<Vec<(record::Record, Vec<Reference>)>> {
        self.store.root().db().read(|connection| {
            let mut found = Vec::new();
            for text in images {
                // A repository without a tag means all its tags.
                if let Ok(repository) = text.parse::<Reference>()
                    && repository.tag().is_none()
                    && repository.digest().is_none()
                {
                    let before = found.len();
                    for record in record::all(connection)? {
                        let tagged = |name: &&Reference| name.repository() == repository.repository();
                        let names: Vec<Reference> = record.names.iter().filter(tagged).cloned().collect();
                        if !names.is_empty() {
                            found.push((record, names));
                        }
                    }
                    if found.len() > before {
                        continue;
                    }
                }
                let (record, named_by) = record::find(connection, text)?;
                let names = match named_by {
                    NamedBy::Name(name) if name.tag().is_some() => vec![name.without_digest()],
                    NamedBy::Name(_) | NamedBy::Id => Vec::new(),
                };
                found.push((record, names));
            }
            Ok(found)
        })
    }

    /// The image's own manifest, if everything it lists is here.
    fn own_manifest(&self, lease: &Lease, image: &Image) -> Result<Option<(Document, Vec<Layer>)>> {
        let Some(digest) = image.record.manifest else { return Ok(None) };
        let Some(blob) = self.store.blob(lease, &digest)? else { return Ok(None) };
        let bytes = blob.read(MAX_DOCUMENT)?;
        let manifest: Manifest = serde_json::from_slice(&bytes).context(|| "read the image's manifest")?;
        let mut layers = Vec::new();
        for descriptor in manifest.layers {
            let Some(blob) = self.store.blob(lease, &descriptor.digest)? else { return Ok(None) };
            layers.push(Layer { descriptor, content: Content::Blob(blob) });
        }
        let kind = manifest.media_type.as_deref().unwrap_or(media_type::OCI_MANIFEST);
        Ok(Some((Document { descriptor: Descriptor::new(kind, digest, bytes.len() as u64), bytes }, layers)))
    }

    fn plain_manifest(&self, lease: &Lease, image: &Image) -> Result<(Document, Vec<Layer>)> {
        let mut layers = Vec::new();
        for snapshot in self.chain(lease, self.snapshot(lease, image)?)? {
            let (Some(diff_id), Some(size)) = (snapshot.diff_id, snapshot.tar_size) else {
                return Err(Error::internal("a layer of the image was not identified"));
            };
            let descriptor = Descriptor::new(media_type::OCI_LAYER, diff_id, size);
            layers.push(self.plain_layer(lease, snapshot.id, descriptor)?);
        }
        let config = Descriptor::new(media_type::OCI_CONFIG, image.record.id, image.config_bytes.len() as u64);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config,
            layers: layers.iter().map(|layer| layer.descriptor.clone()).collect(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        let bytes = serde_json::to_vec(&manifest)?;
        let descriptor = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(&bytes), bytes.len() as u64);
        Ok((Document { descriptor, bytes }, layers))
    }

    /// A layer that was pulled cannot be packed again byte for byte: then its compressed blob is saved.
    fn plain_layer(&self, lease: &Lease, snapshot: SnapshotId, plain: Descriptor) -> Result<Layer> {
        for form in self.store.layer_blobs(&plain.digest)? {
            if let Some(blob) = self.store.blob(lease, &form.digest)? {
                let kind = format!("{}{}", media_type::OCI_LAYER, form.media_suffix);
                let descriptor = Descriptor::new(&kind, form.digest, form.size);
                return Ok(Layer { descriptor, content: Content::Blob(blob) });
            }
        }
        Ok(Layer { descriptor: plain, content: Content::Snapshot(snapshot) })
    }

    fn save_layer(&self, archive: &mut Archive<'_>, layer: &Layer, cancel: &Cancel) -> Result<()> {
        let Descriptor { digest, size, .. } = layer.descriptor;
        match &layer.content {
            Content::Blob(blob) => archive.stored(blob),
            Content::Snapshot(snapshot) => archive.streamed(&digest, size, |out| {
                let digests = self.store.write_layer(*snapshot, out, cancel)?;
                if digests.diff_id == digest {
                    return Ok(());
                }
                Err(Error::conflict(format!(
                    "layer {digest} came from elsewhere and its blob is no longer here; pull the image it came with again"
                )))
            }),
        }
    }
}

fn index(saved: &[Saved]) -> Index {
    let mut manifests = Vec::new();
    for image in saved {
        let mut plain = image.manifest.descriptor.clone();
        plain.platform = Some(image.image.config.platform());
        if image.names.is_empty() {
            manifests.push(plain);
            continue;
        }
        for name in &image.names {
            let mut named = plain.clone();
            named.annotations.insert(annotation::IMAGE_NAME.to_owned(), name.to_string());
            named.annotations.insert(annotation::REF_NAME.to_owned(), name.tag().unwrap_or_default().to_owned());
            manifests.push(named);
        }
    }
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests,
        subject: None,
        annotations: BTreeMap::new(),
    }
}

fn docker_manifest(saved: &[Saved]) -> Vec<DockerManifest> {
    let entry = |image: &Saved| DockerManifest {
        config: blob_path(&image.image.record.id),
        repo_tags: Some(image.names.iter().map(Reference::familiar).collect()),
        layers: image.layers.iter().map(|layer| blob_path(&layer.descriptor.digest)).collect(),
        layer_sources: BTreeMap::new(),
    };
    saved.iter().map(entry).collect()
}
