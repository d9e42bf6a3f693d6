//! Images in OCI layouts: directories of blobs, which are read where they are, here or through a source. Nothing of them is recorded as an image here.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use kiln_graph::oci::{Descriptor, Index, Manifest, media_type};
use kiln_graph::{Digest, Platform, Reference};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::pull::{BlobSource, ChainLayer};
use super::resolve::{Origin, Resolved, check_artifact, no_platform, parse};
use super::{Images, MAX_DOCUMENT, parse_config};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::{Blob, Lease, SnapshotId, tree};
use crate::task::Cancel;

/// An index may list an index, but not for ever.
const MAX_DEPTH: usize = 4;

/// An image whose blobs a source has.
#[derive(Debug)]
pub(super) struct Elsewhere {
    /// The digest of its manifest.
    pub(super) manifest: Digest,
    layers: Vec<Descriptor>,
    pub(super) source: Arc<dyn BlobSource>,
}

impl Elsewhere {
    /// Returns the layers, of which the configuration says what they are uncompressed.
    pub(super) fn chain(&self, diff_ids: &[Digest]) -> Vec<ChainLayer> {
        let layer = |(descriptor, diff_id): (&Descriptor, &Digest)| ChainLayer {
            descriptor: descriptor.clone(),
            diff_id: *diff_id,
        };
        self.layers.iter().zip(diff_ids).map(layer).collect()
    }
}

/// An image of a layout.
#[derive(Debug)]
pub(super) struct Layout {
    dir: OwnedFd,
    /// The digest of its manifest.
    pub(super) manifest: Digest,
    layers: Vec<Descriptor>,
}

impl Images {
    /// Finds an image of a layout: `digest` is that of its manifest, or of an index with one for the platform. `name` is what
    /// messages call it. Blocking.
    ///
    /// # Errors
    /// `NotFound` when the layout has no such image, or none for the platform; `Corrupt` when a blob is not what its name says.
    pub fn resolve_layout(
        &self,
        dir: &Path,
        digest: &Digest,
        platform: &Platform,
        name: &Reference,
    ) -> Result<Resolved> {
        let context = || format!("read the OCI layout {}", dir.display());
        let opened = tree::open_root(dir).context(context)?;
        let (own, manifest, config) = documents(&opened, digest, platform, name).context(context)?;
        let parsed = parse_config(&config)?;
        if parsed.rootfs.diff_ids.len() != manifest.layers.len() {
            let why = "its manifest and its configuration list different numbers of layers";
            return Err(Error::corrupt(why)).context(context);
        }
        Ok(Resolved {
            id: manifest.config.digest,
            config: Arc::new(parsed),
            reference: name.with_digest(*digest),
            origin: Origin::Layout(Arc::new(Layout { dir: opened, manifest: own, layers: manifest.layers })),
            partial: false,
        })
    }

    /// Finds an image among the blobs of a source: `top` points at its manifest, or at an index with one for the platform. `name`
    /// is what messages call it.
    ///
    /// # Errors
    /// As for [`Images::resolve_layout`], and those of the source.
    pub async fn resolve_from(
        &self,
        lease: &Lease,
        top: &Descriptor,
        platform: &Platform,
        name: &Reference,
        source: Arc<dyn BlobSource>,
    ) -> Result<Resolved> {
        let mut next = top.clone();
        for _ in 0..MAX_DEPTH {
            let bytes = self.document_of(lease, &next, source.as_ref(), MAX_DOCUMENT).await?;
            if parse::<Kind>(&bytes, "manifest")?.is_index() {
                let index: Index = parse(&bytes, "index")?;
                next = index.choose(platform).ok_or_else(|| no_platform(name, platform, &index))?.clone();
                continue;
            }
            let manifest: Manifest = parse(&bytes, "manifest")?;
            check_artifact(name, &manifest)?;
            let config = self.document_of(lease, &manifest.config, source.as_ref(), MAX_DOCUMENT).await?;
            let config = parse_config(&config)?;
            if config.rootfs.diff_ids.len() != manifest.layers.len() {
                return Err(Error::corrupt("its manifest and its configuration list different numbers of layers"));
            }
            let elsewhere = Elsewhere { manifest: next.digest, layers: manifest.layers, source };
            return Ok(Resolved {
                id: manifest.config.digest,
                config: Arc::new(config),
                reference: name.with_digest(top.digest),
                origin: Origin::Elsewhere(Arc::new(elsewhere)),
                partial: false,
            });
        }
        Err(Error::invalid("its indexes lead to indexes"))
    }

    /// Takes a blob of a layout, whatever is in it, into the store, and returns it, leased. Blocking.
    ///
    /// # Errors
    /// `NotFound` when the layout has no such blob; `Corrupt` when it is not what its name says; `InvalidArgument` when it is
    /// no file, or larger than `max_bytes`.
    pub fn import_from_layout(&self, lease: &Lease, dir: &Path, digest: &Digest, max_bytes: u64) -> Result<Blob> {
        let context = || format!("read the OCI layout {}", dir.display());
        if let Some(known) = self.store.blob(lease, digest)? {
            return Ok(known);
        }
        let opened = tree::open_root(dir).context(context)?;
        let file = blob(&opened, digest).context(context)?;
        let metadata = file.metadata().context(context)?;
        if !metadata.is_file() || metadata.len() > max_bytes {
            let why = format!("{digest} is no file, or one of more than {max_bytes} bytes");
            return Err(Error::invalid(why)).context(context);
        }
        // More bytes than the file had are another file's digest.
        let mut content = file.take(max_bytes);
        self.store.import_blob(lease, digest, &mut content).context(context)
    }

    /// Unpacks what is not here yet. The digests of the layers' content are verified. Blocking.
    pub(super) fn unpack_layout(
        &self,
        lease: &Lease,
        layout: &Layout,
        diff_ids: &[Digest],
        cancel: &Cancel,
    ) -> Result<Option<SnapshotId>> {
        let unpacker = self.store.unpacker(lease, diff_ids)?;
        for index in unpacker.missing() {
            let layer = &layout.layers[index];
            unpacker.layer(index, blob(&layout.dir, &layer.digest)?, cancel)?;
        }
        unpacker.finish(cancel)
    }
}

/// Reads the manifest, with its digest, and the configuration of an image.
fn documents(
    dir: &OwnedFd,
    digest: &Digest,
    platform: &Platform,
    name: &Reference,
) -> Result<(Digest, Manifest, Vec<u8>)> {
    let mut digest = *digest;
    for _ in 0..MAX_DEPTH {
        let bytes = document(dir, &digest)?;
        let kind: Kind = parse(&bytes, "manifest")?;
        if kind.is_index() {
            let index: Index = parse(&bytes, "index")?;
            digest = index.choose(platform).ok_or_else(|| no_platform(name, platform, &index))?.digest;
            continue;
        }
        let manifest: Manifest = parse(&bytes, "manifest")?;
        check_artifact(name, &manifest)?;
        let config = document(dir, &manifest.config.digest)?;
        return Ok((digest, manifest, config));
    }
    Err(Error::invalid("its indexes lead to indexes"))
}

/// As much of a document as tells an index from a manifest.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

impl Kind {
    fn is_index(&self) -> bool {
        media_type::is_index(&self.media_type) || (self.media_type.is_empty() && self.manifests.is_some())
    }
}

fn document(dir: &OwnedFd, digest: &Digest) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    blob(dir, digest)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(Error::invalid(format!("the document {digest} is larger than {} MiB", MAX_DOCUMENT >> 20)));
    }
    let found = match digest.algorithm() {
        kiln_graph::Algorithm::Sha256 => Digest::of(&bytes),
        kiln_graph::Algorithm::Sha512 => {
            use sha2::Digest as _;
            Digest::sha512(sha2::Sha512::digest(&bytes).into())
        }
    };
    if found == *digest { Ok(bytes) } else { Err(Error::corrupt(format!("blob {digest} has the digest {found}"))) }
}

fn blob(dir: &OwnedFd, digest: &Digest) -> Result<std::fs::File> {
    let path = format!("blobs/{}", digest.to_string().replace(':', "/"));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    match tree::openat2(dir, &path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
        Ok(file) => Ok(file.into()),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(Error::not_found(format!("it has no blob {digest}"))),
        Err(errno) => Err(errno.into()),
    }
}
