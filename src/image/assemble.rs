//! From configured images to what registries and archives hold: manifests, attestations and an index, with layers compressed.

use std::collections::BTreeMap;

use bytes::Bytes;
use kiln_graph::oci::{Descriptor, Index, Manifest, annotation, media_type};
use kiln_graph::{Digest, Platform, Reference};
use serde_json::json;

use super::distant::{DistantLayer, StackLayer};
use super::layers::Configured;
use super::pull::suffix;
use super::{Images, record};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::store::compression::{Compression, Format};
use crate::store::{Blob, Lease, Snapshot};
use crate::task::Cancel;

/// What an attestation's layer is.
const IN_TOTO: &str = "application/vnd.in-toto+json";

/// What a manifest of attestations is, as an artifact.
const ATTESTATION_MANIFEST: &str = "application/vnd.docker.attestation.manifest.v1+json";

/// The annotations of a layer in eStargz form, by which engines that fetch files when they are read know it: the digest of its table
/// of contents, and its size uncompressed.
const ESTARGZ_TABLE: &str = "containerd.io/snapshot/stargz/toc.digest";
const ESTARGZ_SIZE: &str = "io.containers.estargz.uncompressed-size";

/// The largest attestation; BuildKit's limit, in bytes.
const MAX_STATEMENT: usize = 40 << 20;

/// How documents and layers are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// How layers are compressed.
    pub compression: Compression,
    /// Whether layers that came from elsewhere, compressed in another way, are compressed again.
    pub force_compression: bool,
    /// Whether documents and layers have Docker's media types instead of OCI's.
    pub docker_types: bool,
    /// Whether attestations are written as OCI artifacts, and not in the shape of an image.
    pub artifacts: bool,
    /// Whether layers in eStargz form are said to be so, with the digest of their table of contents.
    pub estargz: bool,
    /// Whether layers of bases that are not to be distributed stay so: they are listed with the places they come from, and pushed
    /// nowhere. Otherwise they become layers like others.
    pub nondistributable: bool,
}

impl Default for Form {
    fn default() -> Self {
        Self {
            compression: Compression::GZIP,
            force_compression: false,
            docker_types: false,
            artifacts: true,
            estargz: false,
            nondistributable: false,
        }
    }
}

/// A small document that other documents point at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// How they do.
    pub descriptor: Descriptor,
    /// Its content.
    pub bytes: Bytes,
}

impl Document {
    fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        Self { descriptor, bytes: bytes.into() }
    }
}

/// A layer as a manifest lists it.
#[derive(Clone, Debug)]
pub struct AssembledLayer {
    /// How the manifest points at it.
    pub descriptor: Descriptor,
    /// Its content; `None` for a layer that is not here.
    pub blob: Option<Blob>,
    /// Where else it is; `None` when nobody knows.
    pub distant: Option<DistantLayer>,
}

/// An image with its manifest.
#[derive(Clone, Debug)]
pub struct AssembledImage {
    /// Its id.
    pub id: Digest,
    /// What it runs on.
    pub platform: Platform,
    /// Its configuration.
    pub config: Document,
    /// Its layers, the lowest first.
    pub layers: Vec<AssembledLayer>,
    /// Its manifest.
    pub manifest: Document,
}

/// Attestations about an image.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Their manifest.
    pub manifest: Document,
    /// What it lists.
    pub content: Vec<Document>,
}

/// Images with everything that registries and archives hold of them.
#[derive(Clone, Debug)]
pub struct Assembled {
    /// What names stand for: the index, or the manifest of the only image.
    pub top: Document,
    /// The images.
    pub images: Vec<AssembledImage>,
    /// What is said about them.
    pub attached: Vec<Attached>,
}

impl Assembled {
    /// Says whether names stand for an index.
    #[must_use]
    pub fn is_index(&self) -> bool {
        media_type::is_index(&self.top.descriptor.media_type)
    }

    /// Returns the ids of the images, that which runs best here first.
    #[must_use]
    pub fn ids(&self) -> Vec<Digest> {
        let host = Platform::host();
        let mut images: Vec<&AssembledImage> = self.images.iter().collect();
        images.sort_by_key(|image| host.rank(&image.platform).unwrap_or(u32::MAX));
        images.into_iter().map(|image| image.id).collect()
    }

    /// Returns all documents, each before those that point at it.
    pub fn documents(&self) -> impl Iterator<Item = &Document> {
        let images = self.images.iter().flat_map(|image| [&image.config, &image.manifest]);
        let attached = self.attached.iter().flat_map(|attached| attached.content.iter().chain([&attached.manifest]));
        images.chain(attached).chain(self.is_index().then_some(&self.top))
    }
}

/// One image to be assembled.
#[derive(Clone, Debug)]
pub struct Assembly {
    /// The image.
    pub image: Configured,
    /// Annotations of its manifest.
    pub annotations: BTreeMap<String, String>,
    /// Annotations of whatever points at its manifest.
    pub descriptor_annotations: BTreeMap<String, String>,
    /// What is said about it. Descriptors of its layers uncompressed become those of the layers that the image holds.
    pub predicates: Vec<Predicate>,
}

/// Something that is said about a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predicate {
    /// What is said, as a URI: `https://slsa.dev/provenance/v1`.
    pub kind: String,
    /// A JSON document.
    pub content: Bytes,
    /// What it is about; empty is the result.
    pub subjects: Vec<Subject>,
}

/// What a predicate is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The result: an image, or files.
    Itself {
        /// Another name of it; empty is none.
        name: String,
    },
    /// Something else.
    Other {
        /// Its name.
        name: String,
        /// Its digests in hexadecimal, by the algorithm.
        digests: BTreeMap<String, String>,
    },
}

/// What names are to stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Top {
    /// Whether an index is made even of one image without attestations.
    pub index: bool,
    /// Annotations of the index.
    pub annotations: BTreeMap<String, String>,
    /// Annotations of whatever points at the index.
    pub descriptor_annotations: BTreeMap<String, String>,
    /// The names, for which attestations are made, too.
    pub names: Vec<Reference>,
}

impl Images {
    /// Compresses layers and writes manifests, attestations and perhaps an index. All of it is stored and leased. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for Docker's media types with attestations, which have none; `Cancelled`; when the disk is full.
    pub fn assemble(
        &self,
        lease: &Lease,
        assemblies: Vec<Assembly>,
        top: &Top,
        form: &Form,
        cancel: &Cancel,
    ) -> Result<Assembled> {
        let (mut images, mut attached, mut entries) = (Vec::new(), Vec::new(), Vec::new());
        let elsewhere = if form.nondistributable { self.nondistributable(lease)? } else { BTreeMap::new() };
        for assembly in assemblies {
            let image = self.assemble_image(lease, &assembly, (form, &elsewhere), cancel)?;
            let mut entry = image.manifest.descriptor.clone();
            entry.annotations.clone_from(&assembly.descriptor_annotations);
            entry.platform = Some(image.platform.clone());
            entries.push(entry);
            if !assembly.predicates.is_empty() {
                if form.docker_types {
                    return Err(Error::invalid(
                        "attestations have OCI media types only: leave out oci-mediatypes=false",
                    ));
                }
                let diff_ids = assembly.image.layers.iter().filter_map(StackLayer::diff_id);
                let layers = diff_ids.zip(image.layers.iter().map(|layer| &layer.descriptor)).collect();
                let predicates = point_at_layers(assembly.predicates, &layers)?;
                attached.push(attach(&predicates, &image, &top.names, form.artifacts)?);
            }
            images.push(image);
        }
        entries.extend(attached.iter().map(|attached| attached.manifest.descriptor.clone()));
        let top = match entries.as_slice() {
            [only] if !top.index => {
                let manifest = images.first().map(|image| image.manifest.bytes.clone()).unwrap_or_default();
                Document { descriptor: only.clone(), bytes: manifest }
            }
            _ => index(entries, top, form.docker_types)?,
        };
        let assembled = Assembled { top, images, attached };
        for document in assembled.documents() {
            self.store.write_blob(lease, &document.bytes)?;
        }
        Ok(assembled)
    }

    fn assemble_image(
        &self,
        lease: &Lease,
        assembly: &Assembly,
        (form, elsewhere): (&Form, &BTreeMap<Digest, Vec<String>>),
        cancel: &Cancel,
    ) -> Result<AssembledImage> {
        let Configured { id, config, bytes, layers: stack } = &assembly.image;
        let mut layers = Vec::with_capacity(stack.len());
        for layer in stack {
            cancel.check()?;
            let mut assembled = match layer {
                StackLayer::Here(snapshot) => self.assemble_layer(lease, snapshot, form, cancel)?,
                StackLayer::Distant(distant) => self.assemble_distant(lease, distant, form)?,
            };
            let descriptor = &mut assembled.descriptor;
            if let Some(places) = elsewhere.get(&descriptor.digest) {
                descriptor.media_type = media_type::nondistributable(&descriptor.media_type);
                descriptor.urls.clone_from(places);
            }
            layers.push(assembled);
        }
        let (config_type, manifest_type) = if form.docker_types {
            (media_type::DOCKER_CONFIG, media_type::DOCKER_MANIFEST)
        } else {
            (media_type::OCI_CONFIG, media_type::OCI_MANIFEST)
        };
        let descriptor = Descriptor::new(config_type, *id, bytes.len() as u64);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(manifest_type.to_owned()),
            artifact_type: None,
            config: descriptor.clone(),
            layers: layers.iter().map(|layer| layer.descriptor.clone()).collect(),
            subject: None,
            annotations: assembly.annotations.clone(),
        };
        let manifest = Document::new(manifest_type, serde_json::to_vec(&manifest)?);
        let config_document = Document { descriptor, bytes: Bytes::copy_from_slice(bytes) };
        Ok(AssembledImage { id: *id, platform: config.platform(), config: config_document, layers, manifest })
    }

    /// Returns the layers of images that are here which are not to be distributed, with the places they come from. Blocking.
    fn nondistributable(&self, lease: &Lease) -> Result<BTreeMap<Digest, Vec<String>>> {
        let mut known = BTreeMap::new();
        for record in self.store.root().db().read(record::all)? {
            let Some(digest) = record.manifest else { continue };
            // What cannot be read any more says nothing.
            let Ok(bytes) = self.document(lease, &digest) else { continue };
            let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { continue };
            let layers = manifest.layers.into_iter();
            let layers = layers.filter(|layer| media_type::is_nondistributable(&layer.media_type));
            known.extend(layers.filter(|layer| !layer.urls.is_empty()).map(|layer| (layer.digest, layer.urls)));
        }
        Ok(known)
    }

    /// Takes a layer that is elsewhere as it is there. Blocking.
    fn assemble_distant(&self, lease: &Lease, distant: &DistantLayer, form: &Form) -> Result<AssembledLayer> {
        let there = &distant.layer.descriptor;
        let kind = layer_type(suffix(&there.media_type), form.docker_types);
        let blob = self.store.blob(lease, &there.digest)?;
        let mut descriptor = Descriptor::new(&kind, there.digest, there.size);
        if form.nondistributable && media_type::is_nondistributable(&there.media_type) && !there.urls.is_empty() {
            descriptor.media_type = media_type::nondistributable(&kind);
            descriptor.urls.clone_from(&there.urls);
        }
        Ok(AssembledLayer { descriptor, blob, distant: Some(distant.clone()) })
    }

    /// Finds or makes the compressed form of a layer, leased. Blocking.
    ///
    /// # Errors
    /// `Conflict` for a layer that came from elsewhere, of which nothing is known any more; `Cancelled`; when the disk is full.
    pub fn assemble_layer(
        &self,
        lease: &Lease,
        snapshot: &Snapshot,
        form: &Form,
        cancel: &Cancel,
    ) -> Result<AssembledLayer> {
        let typed = |suffix: &str| layer_type(suffix, form.docker_types);
        let diff_id = snapshot.diff_id.ok_or_else(|| Error::internal("a layer of the image was not identified"))?;
        if !form.force_compression
            && let Some((blob, suffix)) = self.store.foreign_layer_blob(lease, &diff_id)?
        {
            let mut descriptor = Descriptor::new(&typed(&suffix), *blob.digest(), blob.size());
            if form.estargz {
                self.annotate_estargz(&mut descriptor, &blob, snapshot.tar_size)?;
            }
            return Ok(AssembledLayer { descriptor, blob: Some(blob), distant: None });
        }
        let made = if form.force_compression {
            self.store.compressed_layer(lease, snapshot.id, form.compression, cancel)
        } else {
            self.store.layer_blob(lease, snapshot.id, form.compression, cancel)
        };
        match made {
            Ok(made) => {
                let suffix = layer_suffix(&made.blob)?;
                let descriptor = Descriptor::new(&typed(suffix), *made.blob.digest(), made.blob.size());
                Ok(AssembledLayer { descriptor, blob: Some(made.blob), distant: None })
            }
            // It came from a registry, and its blob is no longer here. Perhaps whoever gets the image has it.
            Err(error) if error.kind() == Kind::Conflict => match self.store.layer_blobs(&diff_id)?.first() {
                Some(known) => {
                    let descriptor = Descriptor::new(&typed(&known.media_suffix), known.digest, known.size);
                    Ok(AssembledLayer { descriptor, blob: None, distant: None })
                }
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Says of a layer in eStargz form that it is so.
    fn annotate_estargz(&self, descriptor: &mut Descriptor, blob: &Blob, tar_size: Option<u64>) -> Result<()> {
        if let Some(table) = self.store.estargz_table(blob)? {
            descriptor.annotations.insert(ESTARGZ_TABLE.to_owned(), table.to_string());
            descriptor.annotations.extend(tar_size.map(|size| (ESTARGZ_SIZE.to_owned(), size.to_string())));
        }
        Ok(())
    }

    /// Makes the eStargz form of a layer, leased, and returns what that is uncompressed: its table of contents is a part of it. A layer
    /// that came from elsewhere is taken as it came, unless all are compressed again. Blocking.
    ///
    /// # Errors
    /// As for [`Self::assemble_layer`]; `InvalidArgument` and `Unsupported` for layers that cannot have the form.
    pub fn assemble_estargz(
        &self,
        lease: &Lease,
        snapshot: &Snapshot,
        (form, level): (&Form, u32),
        cancel: &Cancel,
    ) -> Result<(AssembledLayer, Digest)> {
        let diff_id = snapshot.diff_id.ok_or_else(|| Error::internal("a layer of the image was not identified"))?;
        if !form.force_compression && self.store.foreign_layer_blob(lease, &diff_id)?.is_some() {
            return Ok((self.assemble_layer(lease, snapshot, form, cancel)?, diff_id));
        }
        let made = self.store.estargz_layer(lease, snapshot.id, level, cancel)?;
        let kind = layer_type(Compression::GZIP.media_suffix(), form.docker_types);
        let mut descriptor = Descriptor::new(&kind, *made.blob.digest(), made.blob.size());
        self.annotate_estargz(&mut descriptor, &made.blob, None)?;
        Ok((AssembledLayer { descriptor, blob: Some(made.blob), distant: None }, made.diff_id))
    }

    /// Reads an index that was made here, with all it lists. Blocking.
    ///
    /// # Errors
    /// `Corrupt` when a document is missing or malformed.
    pub(super) fn assembled(&self, lease: &Lease, digest: &Digest) -> Result<Assembled> {
        let bytes = self.document(lease, digest).context(|| format!("read index {digest}"))?;
        let index: Index = serde_json::from_slice(&bytes).context(|| format!("read index {digest}"))?;
        let kind = index.media_type.clone().unwrap_or_else(|| media_type::OCI_INDEX.to_owned());
        let (mut images, mut attached) = (Vec::new(), Vec::new());
        for entry in index.manifests {
            let bytes = self.document(lease, &entry.digest)?;
            let manifest: Manifest = serde_json::from_slice(&bytes).context(|| "read the image's manifest")?;
            let config = Document {
                bytes: self.document(lease, &manifest.config.digest)?.into(),
                descriptor: manifest.config.clone(),
            };
            let document = Document { descriptor: entry.clone(), bytes: bytes.into() };
            if entry.annotations.contains_key(annotation::DOCKER_REFERENCE_TYPE) {
                let mut content = vec![config];
                for descriptor in manifest.layers {
                    let blob = self.store.blob(lease, &descriptor.digest)?;
                    let blob = blob.ok_or_else(|| Error::corrupt("an attestation is missing from the store"))?;
                    content.push(Document { bytes: blob.read(MAX_STATEMENT as u64)?.into(), descriptor });
                }
                attached.push(Attached { manifest: document, content });
                continue;
            }
            let layer = |descriptor: Descriptor| {
                let blob = self.store.blob(lease, &descriptor.digest)?;
                Ok(AssembledLayer { descriptor, blob, distant: None })
            };
            images.push(AssembledImage {
                id: manifest.config.digest,
                platform: entry.platform.unwrap_or_else(Platform::host),
                config,
                layers: manifest.layers.into_iter().map(layer).collect::<Result<_>>()?,
                manifest: document,
            });
        }
        let top = Document { descriptor: Descriptor::new(&kind, *digest, bytes.len() as u64), bytes: bytes.into() };
        Ok(Assembled { top, images, attached })
    }

    /// Records assembled images and gives them names. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn keep(&self, assembled: &Assembled, names: &[Reference]) -> Result<()> {
        self.store.root().db().write(|tx| {
            let (now, boot) = (self.clock.now_ns(), self.store.root().boot_id());
            for image in &assembled.images {
                record::insert(tx, &image.id, Some(&image.manifest.descriptor.digest), now, boot)?;
            }
            let (ids, top) = (assembled.ids(), &assembled.top.descriptor.digest);
            if assembled.is_index() {
                record::insert_index(tx, top, &ids)?;
            }
            for name in names {
                let name = name.clone().with_default_tag();
                match ids.first() {
                    Some(_) if assembled.is_index() => record::set_index_name(tx, &name, top)?,
                    Some(id) => record::set_name(tx, &name, id)?,
                    None => {}
                }
            }
            Ok(())
        })
    }
}

/// Has predicates that name layers of the image by what they are uncompressed name what the image holds.
fn point_at_layers(mut predicates: Vec<Predicate>, layers: &BTreeMap<Digest, &Descriptor>) -> Result<Vec<Predicate>> {
    fn visit(value: &mut serde_json::Value, layers: &BTreeMap<Digest, &Descriptor>) {
        match value {
            serde_json::Value::Array(list) => list.iter_mut().for_each(|value| visit(value, layers)),
            serde_json::Value::Object(object) => {
                let is_tar = object.get("mediaType").is_some_and(|kind| kind == media_type::OCI_LAYER);
                let digest = object.get("digest").filter(|_| is_tar).and_then(|digest| digest.as_str()?.parse().ok());
                match digest.and_then(|digest: Digest| layers.get(&digest)) {
                    Some(held) => {
                        object.insert("mediaType".to_owned(), held.media_type.as_str().into());
                        object.insert("digest".to_owned(), held.digest.to_string().into());
                        object.insert("size".to_owned(), held.size.into());
                    }
                    None => object.values_mut().for_each(|value| visit(value, layers)),
                }
            }
            _ => {}
        }
    }
    for Predicate { content: predicate, .. } in &mut predicates {
        if predicate.windows(media_type::OCI_LAYER.len()).any(|text| text == media_type::OCI_LAYER.as_bytes()) {
            let mut value = serde_json::from_slice(predicate)?;
            visit(&mut value, layers);
            *predicate = serde_json::to_vec_pretty(&value)?.into();
        }
    }
    Ok(predicates)
}

fn index(manifests: Vec<Descriptor>, top: &Top, docker_types: bool) -> Result<Document> {
    let kind = if docker_types { media_type::DOCKER_MANIFEST_LIST } else { media_type::OCI_INDEX };
    let index = Index {
        schema_version: 2,
        media_type: Some(kind.to_owned()),
        artifact_type: None,
        manifests,
        subject: None,
        annotations: top.annotations.clone(),
    };
    let mut document = Document::new(kind, serde_json::to_vec(&index)?);
    document.descriptor.annotations.clone_from(&top.descriptor_annotations);
    Ok(document)
}

/// Writes the attestations about an image.
fn attach(predicates: &[Predicate], image: &AssembledImage, names: &[Reference], artifact: bool) -> Result<Attached> {
    let target = &image.manifest.descriptor;
    let itself = subjects(names, &image.platform, &target.digest);
    let mut layers = Vec::new();
    for predicate in predicates {
        let kind = &predicate.kind;
        let mut layer = Document::new(IN_TOTO, statement(predicate, &itself)?);
        if layer.bytes.len() > MAX_STATEMENT {
            return Err(Error::exhausted(format!("the attestation {kind} is larger than {} MiB", MAX_STATEMENT >> 20)));
        }
        layer.descriptor.annotations.insert("in-toto.io/predicate-type".to_owned(), kind.clone());
        layers.push(layer);
    }
    let config = if artifact {
        Document::new(media_type::OCI_EMPTY, b"{}".to_vec())
    } else {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.descriptor.digest).collect();
        let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
        let config = json!({ "architecture": "unknown", "os": "unknown", "config": {}, "rootfs": rootfs });
        Document::new(media_type::OCI_CONFIG, serde_json::to_vec(&config)?)
    };
    let subject = Descriptor::new(&target.media_type, target.digest, target.size);
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: artifact.then(|| ATTESTATION_MANIFEST.to_owned()),
        config: config.descriptor.clone(),
        layers: layers.iter().map(|layer| layer.descriptor.clone()).collect(),
        subject: artifact.then_some(subject),
        annotations: BTreeMap::new(),
    };
    let mut manifest = Document::new(media_type::OCI_MANIFEST, serde_json::to_vec(&manifest)?);
    manifest.descriptor.platform = Some(Platform::new("unknown", "unknown", ""));
    let facts = [
        (annotation::DOCKER_REFERENCE_TYPE, "attestation-manifest".to_owned()),
        (annotation::DOCKER_REFERENCE_DIGEST, target.digest.to_string()),
    ];
    manifest.descriptor.annotations.extend(facts.map(|(key, value)| (key.to_owned(), value)));
    Ok(Attached { manifest, content: std::iter::once(config).chain(layers).collect() })
}

/// What a statement about an image is about: a package URL for each name, and the digest of its manifest.
fn subjects(names: &[Reference], platform: &Platform, digest: &Digest) -> Vec<serde_json::Value> {
    let platform = platform.to_string().replace('/', "%2F");
    let purl = |name: &Reference| {
        let tag = name.tag().map(|tag| format!("@{tag}")).unwrap_or_default();
        format!("pkg:docker/{}{tag}?platform={platform}", name.familiar_repository())
    };
    let mut all: Vec<String> = names.iter().map(purl).collect();
    if all.is_empty() {
        all.push("_".to_owned());
    }
    let subject = |name: &String| json!({ "name": name, "digest": { digest.algorithm().as_str(): digest.hex() } });
    all.iter().map(subject).collect()
}

/// What a statement is about, of which `itself` lists what it is about when nothing else is named. As with BuildKit.
fn about(subjects: &[Subject], itself: &[serde_json::Value]) -> Vec<serde_json::Value> {
    if subjects.is_empty() {
        return itself.to_vec();
    }
    let mut all = Vec::new();
    for subject in subjects {
        match subject {
            Subject::Itself { name } => {
                for one in itself {
                    let renamed = (!name.is_empty()).then(|| json!({ "name": name, "digest": one["digest"] }));
                    all.extend(std::iter::once(one.clone()).chain(renamed));
                }
            }
            Subject::Other { name, digests } => {
                let name = if name.is_empty() { "_" } else { name };
                all.push(json!({ "name": name, "digest": digests }));
            }
        }
    }
    all
}

/// Writes an in-toto statement. `itself` are the name and the digests of the result, or of each of its files.
///
/// # Errors
/// `InvalidArgument` when the predicate is not JSON.
pub fn statement(predicate: &Predicate, itself: &[serde_json::Value]) -> Result<Vec<u8>> {
    let Predicate { kind: predicate_type, content, subjects } = predicate;
    let predicate: Box<serde_json::value::RawValue> =
        serde_json::from_slice(content).context(|| format!("read the attestation {predicate_type}"))?;
    let subject = about(subjects, itself);
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Statement<'a> {
        #[serde(rename = "_type")]
        kind: &'static str,
        predicate_type: &'a str,
        subject: Vec<serde_json::Value>,
        predicate: Box<serde_json::value::RawValue>,
    }
    let kind = "https://in-toto.io/Statement/v0.1";
    Ok(serde_json::to_vec(&Statement { kind, predicate_type, subject, predicate })?)
}

/// The media type of a layer, from what OCI's ends in.
fn layer_type(suffix: &str, docker: bool) -> String {
    match (docker, suffix) {
        (false, suffix) => format!("{}{suffix}", media_type::OCI_LAYER),
        (true, "+gzip") => media_type::DOCKER_LAYER_GZIP.to_owned(),
        (true, "+zstd") => media_type::DOCKER_LAYER_ZSTD.to_owned(),
        (true, _) => media_type::DOCKER_LAYER.to_owned(),
    }
}

/// What the media type of a layer ends in, told by its first bytes: a known compressed form may be another than the one asked
/// for.
///
/// # Errors
/// `Unsupported` when it is compressed in a way that layers must not be.
pub(super) fn layer_suffix(blob: &Blob) -> Result<&'static str> {
    use std::io::Read as _;
    let mut start = [0; 8];
    let read = blob.open()?.read(&mut start)?;
    match Format::sniff(&start[..read]) {
        Format::Gzip => Ok("+gzip"),
        Format::Zstd => Ok("+zstd"),
        Format::Plain => Ok(""),
        Format::Xz | Format::Bzip2 => {
            Err(Error::unsupported(format!("layer {} is compressed in a way images may not use", blob.digest())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_name_the_image_by_all_its_names() {
        let names: Vec<Reference> = ["app", "localhost:5000/team/app:2"]
            .iter()
            .map(|name| name.parse::<Reference>().unwrap().with_default_tag())
            .collect();
        let platform = "linux/arm64".parse().unwrap();
        let subjects = subjects(&names, &platform, &Digest::of(b"m"));
        let predicate = |kind: &str, content: &'static [u8]| Predicate {
            kind: kind.to_owned(),
            content: Bytes::from_static(content),
            subjects: Vec::new(),
        };
        let written = statement(&predicate("https://example.com/p", br#"{"b": 1,  "a": 2}"#), &subjects).unwrap();
        let hex = Digest::of(b"m").hex();
        assert_eq!(
            String::from_utf8(written).unwrap(),
            format!(
                r#"{{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://example.com/p","subject":[{{"name":"pkg:docker/app@latest?platform=linux%2Farm64","digest":{{"sha256":"{hex}"}}}},{{"name":"pkg:docker/localhost:5000/team/app@2?platform=linux%2Farm64","digest":{{"sha256":"{hex}"}}}}],"predicate":{{"b": 1,  "a": 2}}}}"#
            )
        );
        assert!(statement(&predicate("x", b"not json"), &subjects).is_err());
        // What is named stands beside the image's own names, or in their place.
        let digests = [("sha256".to_owned(), "00".to_owned())].into();
        let other = Subject::Other { name: String::new(), digests };
        let named = about(&[Subject::Itself { name: "own".into() }], &subjects[..1]);
        assert_eq!((named[0].clone(), &named[1]["name"]), (subjects[0].clone(), &json!("own")));
        assert_eq!(about(&[other], &subjects), [json!({ "name": "_", "digest": { "sha256": "00" } })]);
    }

    #[test]
    fn layers_have_the_types_of_oci_or_docker() {
        assert_eq!(layer_type("+zstd", false), media_type::OCI_LAYER_ZSTD);
        assert_eq!(layer_type("+gzip", true), "application/vnd.docker.image.rootfs.diff.tar.gzip");
        assert_eq!(layer_type("", true), "application/vnd.docker.image.rootfs.diff.tar");
    }
}
