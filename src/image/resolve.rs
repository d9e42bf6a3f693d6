//! What an image name stands for: an image that is here, or one that a registry has.

use std::sync::Arc;

use bytes::Bytes;
use kiln_graph::oci::{Descriptor, ImageConfig, Index, Manifest, media_type};
use kiln_graph::{Digest, Platform, Reference};

use super::layout::{Elsewhere, Layout};
use super::{Image, Images, MAX_DOCUMENT, parse_config, record};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::registry::{BlobSink, Client, Progress};
use crate::store::Lease;
use crate::task;

/// Whether a registry is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Always.
    Always,
    /// When the image is not here.
    #[default]
    Missing,
    /// Never.
    Never,
}

/// An image whose configuration is known.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The image's id.
    pub id: Digest,
    /// Its configuration.
    pub config: Arc<ImageConfig>,
    /// Its name, with the digest of the manifest or index when it came from a registry.
    pub reference: Reference,
    pub(super) origin: Origin,
    /// Whether only some of its layers are meant: those in `config`.
    pub(super) partial: bool,
}

/// Where a resolved image is.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// Here, with its layers.
    Local(Box<Image>),
    /// At a registry.
    Remote(Arc<Remote>),
    /// In an OCI layout.
    Layout(Arc<Layout>),
    /// Somewhere else.
    Elsewhere(Arc<Elsewhere>),
}

/// The documents of an image at a registry.
#[derive(Debug)]
pub(super) struct Remote {
    /// The name it was asked for by.
    pub(super) name: Reference,
    /// The index that listed it, if one did.
    pub(super) index: Option<Document>,
    pub(super) manifest: Document,
    pub(super) layers: Vec<Descriptor>,
    pub(super) config: Document,
}

/// A small blob.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) digest: Digest,
    pub(super) bytes: Bytes,
}

impl Resolved {
    /// Says whether the image's layers would have to be fetched.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(self.origin, Origin::Remote(_))
    }

    /// Says whether only some of the image's layers are meant.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// Returns the same with the lowest layers only.
    #[must_use]
    pub fn limited(mut self, layers: usize) -> Self {
        if layers < self.config.rootfs.diff_ids.len() {
            let mut config = (*self.config).clone();
            config.rootfs.diff_ids.truncate(layers);
            self.config = Arc::new(config);
            self.partial = true;
        }
        self
    }

    /// Returns the digest of the image's manifest, or its id when it never had one.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match &self.origin {
            Origin::Local(image) => image.record.manifest.unwrap_or(self.id),
            Origin::Remote(remote) => remote.manifest.digest,
            Origin::Layout(layout) => layout.manifest,
            Origin::Elsewhere(image) => image.manifest,
        }
    }
}

impl Images {
    /// Finds out what a name stands for, for a platform. Reads documents only, no layers.
    ///
    /// Without a platform, an image that is here is taken as it is, and a registry is asked for the host's.
    ///
    /// # Errors
    /// `NotFound` when neither the store nor the registry has it, or not for this platform; otherwise what the registry says.
    pub async fn resolve(
        &self,
        lease: &Lease,
        name: &Reference,
        platform: Option<&Platform>,
        policy: Policy,
        client: &Client,
    ) -> Result<Resolved> {
        let name = name.clone().with_default_tag();
        if policy != Policy::Always {
            let (images, lease, wanted) = (self.clone(), lease.clone(), (name.clone(), platform.cloned()));
            if let Some(found) = task::blocking(move || images.local(&lease, &wanted.0, wanted.1.as_ref())).await? {
                return Ok(found);
            }
        }
        if policy == Policy::Never {
            let platform = platform.map(|platform| format!(" for {platform}")).unwrap_or_default();
            return Err(Error::not_found(format!("No such image: {}{platform}", name.familiar())));
        }
        let asked = self.remote(&name, &platform.cloned().unwrap_or_else(Platform::host), client).await;
        match (asked, platform) {
            (Err(error), Some(wanted)) if policy != Policy::Always => {
                let (images, lease, wanted) = (self.clone(), lease.clone(), wanted.clone());
                task::blocking(move || Err(images.with_what_is_here(&lease, &name, &wanted, error))).await
            }
            (asked, _) => asked,
        }
    }

    /// Adds to an error of a registry that the image is here, for other platforms.
    fn with_what_is_here(&self, lease: &Lease, name: &Reference, wanted: &Platform, error: Error) -> Error {
        let here = self.all_of(lease, name).unwrap_or_default();
        let mut platforms: Vec<String> = here.iter().map(|image| image.config.platform().to_string()).collect();
        platforms.dedup();
        if platforms.is_empty() {
            return error;
        }
        let (name, platforms) = (name.familiar(), platforms.join(", "));
        let text = format!("{error}; the image {name} that is here is for {platforms} and not for {wanted}");
        Error::new(error.kind(), text)
    }

    /// Finds an image that is here and unpacked.
    fn local(&self, lease: &Lease, name: &Reference, platform: Option<&Platform>) -> Result<Option<Resolved>> {
        let Some(image) = self.local_image(lease, name, platform)? else { return Ok(None) };
        if let Err(error) = self.snapshot(lease, &image) {
            return if error.kind() == Kind::NotFound { Ok(None) } else { Err(error) };
        }
        Ok(Some(Resolved {
            id: image.record.id,
            config: Arc::clone(&image.config),
            reference: name.clone(),
            origin: Origin::Local(Box::new(image)),
            partial: false,
        }))
    }

    /// Finds the image of a name that runs best on a platform: the name may stand for an index.
    fn local_image(&self, lease: &Lease, name: &Reference, platform: Option<&Platform>) -> Result<Option<Image>> {
        let mut images = self.all_of(lease, name)?;
        let Some(platform) = platform else { return Ok((!images.is_empty()).then(|| images.swap_remove(0))) };
        let ranked = images.into_iter().filter_map(|image| Some((platform.rank(&image.config.platform())?, image)));
        // Of equals the first.
        Ok(ranked.min_by_key(|(rank, _)| *rank).map(|(_, image)| image))
    }

    /// Returns the images a name stands for: its own first, then those of its index.
    fn all_of(&self, lease: &Lease, name: &Reference) -> Result<Vec<Image>> {
        let (found, members) = self.store.root().db().read(|connection| {
            let found = record::by_name(connection, name)?;
            let index = match name.digest() {
                Some(digest) => Some(digest),
                None => record::index_of(connection, name)?,
            };
            let members = index.map(|index| record::index_images(connection, &index)).transpose()?;
            Ok((found, members.unwrap_or_default()))
        })?;
        let Some(found) = found else { return Ok(Vec::new()) };
        std::iter::once(found).chain(members).map(|image| self.open(lease, image)).collect()
    }

    async fn remote(&self, name: &Reference, platform: &Platform, client: &Client) -> Result<Resolved> {
        let top = client.resolve(name).await?;
        let pinned = match name.tag() {
            // The graph and messages show both the tag and what it stood for.
            Some(_) => name.with_digest(top.descriptor.digest),
            None => name.clone(),
        };
        let (index, manifest) = if media_type::is_index(&top.descriptor.media_type) {
            let index: Index = parse(&top.content, "index")?;
            let chosen = index.choose(platform).ok_or_else(|| no_platform(name, platform, &index))?.clone();
            let bytes = client.manifest(name, &chosen).await?;
            let index = Document { digest: top.descriptor.digest, bytes: top.content };
            (Some(index), Document { digest: chosen.digest, bytes })
        } else {
            (None, Document { digest: top.descriptor.digest, bytes: top.content })
        };
        let parsed: Manifest = parse(&manifest.bytes, "manifest")?;
        check_artifact(name, &parsed)?;
        let sink = Memory::new(&parsed.config, name)?;
        let config = client.blob(name, &parsed.config, sink, &Progress::new()).await?.into_bytes();
        let config = Document { digest: parsed.config.digest, bytes: config };
        let parsed_config = parse_config(&config.bytes)?;
        if parsed_config.rootfs.diff_ids.len() != parsed.layers.len() {
            return Err(Error::corrupt(format!(
                "image {}: its manifest lists {} layers and its configuration {}",
                name.familiar(),
                parsed.layers.len(),
                parsed_config.rootfs.diff_ids.len()
            )));
        }
        let remote = Remote { name: name.clone(), index, manifest, layers: parsed.layers, config };
        Ok(Resolved {
            id: remote.config.digest,
            config: Arc::new(parsed_config),
            reference: pinned,
            origin: Origin::Remote(Arc::new(remote)),
            partial: false,
        })
    }
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).context(|| format!("read the {what}"))
}

pub(super) fn check_artifact(name: &Reference, manifest: &Manifest) -> Result<()> {
    let config = manifest.config.media_type.as_str();
    match config {
        media_type::OCI_CONFIG | media_type::DOCKER_CONFIG => Ok(()),
        other => Err(Error::unsupported(format!(
            "{} is no container image but an artifact of type {}",
            name.familiar(),
            manifest.artifact_type.as_deref().unwrap_or(other)
        ))),
    }
}

pub(super) fn no_platform(name: &Reference, platform: &Platform, index: &Index) -> Error {
    let mut offered: Vec<String> = index
        .manifests
        .iter()
        .filter_map(|manifest| manifest.platform.as_ref())
        .filter(|platform| platform.os != "unknown")
        .map(ToString::to_string)
        .collect();
    offered.dedup();
    Error::not_found(format!(
        "no matching manifest for {platform} in the manifest list entries of {}: it is offered for {}",
        name.familiar(),
        if offered.is_empty() { "no platform".to_owned() } else { offered.join(", ") }
    ))
}

/// Receives a small blob.
pub(super) struct Memory {
    bytes: bytes::BytesMut,
    descriptor: Descriptor,
}

impl Memory {
    pub(super) fn new(descriptor: &Descriptor, name: &Reference) -> Result<Self> {
        if descriptor.size > MAX_DOCUMENT {
            let (name, size, digest) = (name.familiar(), descriptor.size, descriptor.digest);
            return Err(Error::invalid(format!(
                "the document {digest} of {name} has {size} bytes, more than {MAX_DOCUMENT}"
            )));
        }
        Ok(Self { bytes: bytes::BytesMut::new(), descriptor: descriptor.clone() })
    }

    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes.freeze()
    }
}

impl BlobSink for Memory {
    fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if (self.bytes.len() + bytes.len()) as u64 > self.descriptor.size {
            return Err(Error::corrupt(format!("blob {} is longer than announced", self.descriptor.digest)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.bytes.clear();
        Ok(())
    }

    fn verify(&mut self) -> Result<()> {
        let expected = self.descriptor.digest;
        let found = match expected.algorithm() {
            kiln_graph::Algorithm::Sha256 => Digest::of(&self.bytes),
            kiln_graph::Algorithm::Sha512 => {
                use sha2::Digest as _;
                Digest::sha512(sha2::Sha512::digest(&self.bytes).into())
            }
        };
        if found == expected { Ok(()) } else { Err(Error::corrupt(format!("blob {expected} has the digest {found}"))) }
    }
}
