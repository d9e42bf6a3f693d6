//! What is said about an image at its registry: its attestations, and whose signature those have.
//!
//! Nothing is verified but that documents are those of their digests: whoever asks judges them.

use bytes::Bytes;
use kiln_graph::oci::{Descriptor, Index, Manifest, annotation, media_type};
use kiln_graph::{Digest, Platform, Reference};

use super::resolve::{Memory, no_platform, parse};
use super::{Images, MAX_DOCUMENT};
use crate::error::{Error, Result};
use crate::registry::{Client, Progress};

/// How many bytes of documents are brought: they are one message, which may have 16 MiB.
const MAX_TOTAL: u64 = 12 << 20;

/// How many documents are brought.
const MAX_BLOBS: usize = 100;

/// Signatures of attestations, in the order in which they are preferred.
const SIGNATURES: &[&str] =
    &["application/vnd.dev.sigstore.bundle.v0.3+json", "application/vnd.dev.cosign.artifact.sig.v1+json"];

/// The annotation that says what an attestation is about.
const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";

/// From an index to what its image is attested by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The index.
    pub root: Option<Digest>,
    /// The manifest of the image, which is not among the documents.
    pub image: Option<Digest>,
    /// The manifest of the attestations, if there are any.
    pub attestation: Option<Digest>,
    /// The manifest of their signature, if they have one.
    pub signature: Option<Digest>,
    /// The documents: the index, these two manifests, the signature, the attestations that were asked for.
    pub blobs: Vec<(Descriptor, Bytes)>,
}

impl Images {
    /// Brings what a registry has about an image: the manifests of its attestations and of their signature, that signature, and the
    /// attestations of the given predicate types.
    ///
    /// # Errors
    /// `Unsupported` for an image without an index, which has no attestations; `NotFound` when none is for the platform;
    /// otherwise what the registry says. Documents of more than 12 MiB together are refused.
    pub async fn attested(
        &self,
        name: &Reference,
        platform: &Platform,
        predicates: &[String],
        client: &Client,
    ) -> Result<Chain> {
        let name = name.clone().with_default_tag();
        let top = client.resolve(&name).await?;
        if top.descriptor.media_type != media_type::OCI_INDEX {
            let (name, found) = (name.familiar(), &top.descriptor.media_type);
            let text = format!("{name} has no attestations: expected image index descriptor, got {found}");
            return Err(Error::unsupported(text));
        }
        let index: Index = parse(&top.content, "index")?;
        let image = index.choose(platform).ok_or_else(|| no_platform(&name, platform, &index))?.digest;
        let mut found = Found { name: &name, client, total: 0, blobs: Vec::new() };
        let root = top.descriptor.digest;
        found.take(top.descriptor, top.content)?;
        let mut chain = Chain { root: Some(root), image: Some(image), ..Chain::default() };
        let Some(attestation) = index.manifests.iter().find(|manifest| is_attestation_of(manifest, &image)) else {
            chain.blobs = found.blobs;
            return Ok(chain);
        };
        chain.attestation = Some(attestation.digest);
        let manifest = found.manifest(attestation).await?;
        if let Some(signature) = signature_of(client.referrers(&name, &attestation.digest).await?) {
            chain.signature = Some(signature.digest);
            for layer in found.manifest(&signature).await?.layers {
                found.blob(&layer).await?;
            }
        }
        let wanted =
            |layer: &&Descriptor| layer.annotations.get(PREDICATE_TYPE).is_some_and(|kind| predicates.contains(kind));
        for layer in manifest.layers.iter().filter(wanted) {
            found.blob(layer).await?;
        }
        chain.blobs = found.blobs;
        Ok(chain)
    }
}

fn is_attestation_of(manifest: &Descriptor, image: &Digest) -> bool {
    let says = |key: &str, value: &str| manifest.annotations.get(key).is_some_and(|said| said == value);
    says(annotation::DOCKER_REFERENCE_TYPE, "attestation-manifest")
        && says(annotation::DOCKER_REFERENCE_DIGEST, &image.to_string())
}

/// The one signature that is taken, as with BuildKit: a bundle rather than an older form, and of equals the first.
fn signature_of(attached: Vec<Descriptor>) -> Option<Descriptor> {
    let rank = |descriptor: &Descriptor| {
        let kind = descriptor.artifact_type.as_deref()?;
        SIGNATURES.iter().position(|known| *known == kind)
    };
    let ranked = attached.into_iter().filter_map(|descriptor| Some((rank(&descriptor)?, descriptor)));
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, descriptor)| descriptor)
}

/// Documents as they are brought.
struct Found<'a> {
    name: &'a Reference,
    client: &'a Client,
    total: u64,
    blobs: Vec<(Descriptor, Bytes)>,
}

impl Found<'_> {
    async fn manifest(&mut self, descriptor: &Descriptor) -> Result<Manifest> {
        let bytes = self.client.manifest(self.name, descriptor).await?;
        let manifest = parse(&bytes, "manifest")?;
        self.take(descriptor.clone(), bytes)?;
        Ok(manifest)
    }

    async fn blob(&mut self, descriptor: &Descriptor) -> Result<()> {
        self.check(descriptor.size)?;
        let sink = Memory::new(descriptor, self.name)?;
        let bytes = self.client.blob(self.name, descriptor, sink, &Progress::new()).await?.into_bytes();
        self.take(descriptor.clone(), bytes)
    }

    fn check(&self, size: u64) -> Result<()> {
        if size > MAX_DOCUMENT || self.total + size > MAX_TOTAL || self.blobs.len() >= MAX_BLOBS {
            let (name, mebibytes) = (self.name.familiar(), MAX_TOTAL >> 20);
            let text = format!("what {name} is attested by is more than {mebibytes} MiB or {MAX_BLOBS} documents");
            return Err(Error::new(crate::error::Kind::Exhausted, text));
        }
        Ok(())
    }

    fn take(&mut self, descriptor: Descriptor, bytes: Bytes) -> Result<()> {
        self.check(bytes.len() as u64)?;
        self.total += bytes.len() as u64;
        self.blobs.push((descriptor, bytes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_signatures_a_bundle_is_taken() {
        let attached = |kind: &str, name: &str| {
            let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(name.as_bytes()), 1);
            descriptor.artifact_type = Some(kind.to_owned());
            descriptor
        };
        let [bundle, older] = SIGNATURES else { panic!("two kinds") };
        let list = vec![
            attached("application/x", "other"),
            attached(older, "older"),
            attached(bundle, "a"),
            attached(bundle, "b"),
        ];
        assert_eq!(signature_of(list).unwrap().digest, Digest::of(b"a"));
        assert_eq!(signature_of(vec![attached(older, "older")]).unwrap().digest, Digest::of(b"older"));
        assert_eq!(signature_of(vec![attached("application/x", "other")]), None);
    }
}
