//! The tar that images are written to, and assembled images as one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write};

use kiln_graph::oci::{Descriptor, Index, annotation, media_type};
use kiln_graph::{Digest, Reference};

use super::{DockerManifest, INDEX, LAYOUT, MANIFEST, OCI_LAYOUT};
use crate::error::{Error, Result, ResultExt as _};
use crate::image::{Assembled, Images};
use crate::store::Blob;
use crate::task::Cancel;

/// Who an archive is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// An OCI layout.
    Oci,
    /// An OCI layout that is a docker archive as well.
    Docker,
}

impl Images {
    /// Writes assembled images to an archive. Blocking; holds no layer in memory.
    ///
    /// # Errors
    /// `Conflict` when a layer is not here any more; `Unsupported` for an index in a docker archive; those of `out`; `Cancelled`.
    pub fn write_archive(
        assembled: &Assembled,
        names: &[Reference],
        layout: Layout,
        out: &mut dyn Write,
        cancel: &Cancel,
    ) -> Result<()> {
        if layout == Layout::Docker && assembled.images.len() != 1 {
            return Err(Error::unsupported(
                "a docker archive cannot hold an image for several platforms: use type=oci",
            ));
        }
        let mut archive = Archive::new(out)?;
        for layer in assembled.images.iter().flat_map(|image| &image.layers) {
            cancel.check()?;
            let digest = layer.descriptor.digest;
            let blob = layer.blob.as_ref().ok_or_else(|| {
                Error::conflict(format!(
                    "layer {digest} came from elsewhere and its blob is no longer here; pull the image it came with again"
                ))
            })?;
            archive.stored(blob).context(|| format!("write layer {digest}"))?;
        }
        for document in assembled.documents() {
            archive.blob(&document.descriptor.digest, &document.bytes)?;
        }
        archive.file(INDEX, &serde_json::to_vec(&index(&assembled.top.descriptor, names))?)?;
        if layout == Layout::Docker {
            archive.file(MANIFEST, &serde_json::to_vec(&docker_manifest(assembled, names))?)?;
        }
        archive.file(OCI_LAYOUT, LAYOUT)?;
        archive.finish()
    }
}

/// The index of a layout, with an entry for each name.
fn index(top: &Descriptor, names: &[Reference]) -> Index {
    let named = |name: &Reference| {
        let mut named = top.clone();
        named.annotations.insert(annotation::IMAGE_NAME.to_owned(), name.to_string());
        named.annotations.insert(annotation::REF_NAME.to_owned(), name.tag().unwrap_or_default().to_owned());
        named
    };
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests: if names.is_empty() { vec![top.clone()] } else { names.iter().map(named).collect() },
        subject: None,
        annotations: BTreeMap::new(),
    }
}

fn docker_manifest(assembled: &Assembled, names: &[Reference]) -> Vec<DockerManifest> {
    let entry = |image: &crate::image::AssembledImage| DockerManifest {
        config: blob_path(&image.id),
        repo_tags: Some(names.iter().map(Reference::familiar).collect()),
        layers: image.layers.iter().map(|layer| blob_path(&layer.descriptor.digest)).collect(),
        layer_sources: BTreeMap::new(),
    };
    assembled.images.iter().map(entry).collect()
}

pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// A tar that is being written; times and owners are zero, so that equal images give equal archives.
pub(super) struct Archive<'a> {
    out: &'a mut dyn Write,
    written: BTreeSet<Digest>,
}

impl<'a> Archive<'a> {
    /// Begins an archive.
    pub(super) fn new(out: &'a mut dyn Write) -> Result<Self> {
        let mut archive = Self { out, written: BTreeSet::new() };
        archive.directory("blobs")?;
        archive.directory("blobs/sha256")?;
        Ok(archive)
    }

    /// Writes a blob of the store, unless it was written.
    pub(super) fn stored(&mut self, blob: &Blob) -> Result<()> {
        let (digest, size) = (*blob.digest(), blob.size());
        self.streamed(&digest, size, |out| {
            let copied = std::io::copy(&mut blob.open()?.take(size), out)?;
            if copied == size {
                return Ok(());
            }
            Err(Error::corrupt(format!("blob {digest} has {copied} bytes, not {size}")))
        })
    }

    /// Writes a blob, unless it was written, whose content `write` gives, `size` bytes of it.
    pub(super) fn streamed(
        &mut self,
        digest: &Digest,
        size: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        if !self.written.insert(*digest) {
            return Ok(());
        }
        self.header(&blob_path(digest), size, false)?;
        write(self.out)?;
        self.pad(size)
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        self.header(&format!("{path}/"), 0, true)
    }

    pub(super) fn blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        if self.written.insert(*digest) { self.file(&blob_path(digest), bytes) } else { Ok(()) }
    }

    pub(super) fn file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.header(path, bytes.len() as u64, false)?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn header(&mut self, path: &str, size: u64, is_dir: bool) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).context(|| format!("name {path} in an archive"))?;
        // Above 8 GiB this takes the base-256 form, which every reader of layers knows.
        header.set_size(size);
        header.set_mode(if is_dir { 0o755 } else { 0o644 });
        header.set_entry_type(if is_dir { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mtime(0);
        header.set_cksum();
        Ok(self.out.write_all(header.as_bytes())?)
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let rest = usize::try_from(size % 512).expect("the remainder is small");
        if rest == 0 { Ok(()) } else { Ok(self.out.write_all(&[0; 512][rest..])?) }
    }

    pub(super) fn finish(self) -> Result<()> {
        self.out.write_all(&[0; 1024])?;
        Ok(self.out.flush()?)
    }
}
