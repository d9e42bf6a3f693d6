//! Exporters: what becomes of a result.
//!
//! [`Product`] is the result, for one platform or several. `package` makes images of it, which `image` keeps and pushes and
//! `archive` sends to the client; `files` sends the client what is in them. `session` asks the client for
//! exporters once there is a result.

mod annotation;
mod archive;
mod files;
mod image;
mod package;
mod session;

pub(super) use package::{compression, estargz_level};

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kiln_graph::oci::{Descriptor, ImageConfig};
use kiln_graph::{Digest, Platform, Reference};

use self::archive::ArchiveExport;
use self::files::FilesExport;
use self::image::ImageExport;
use super::exchange::Scope;
use super::job::Job;
use super::request::Exporter;
use super::session::Session;
use crate::error::{Error, Result};
use crate::image::{Layout, Predicate, Stack};
use crate::store::SnapshotId;

/// A result to be exported.
#[derive(Clone, Debug)]
pub(super) struct Product {
    /// What was built, one for each platform, in the order asked for; never empty.
    pub(super) variants: Vec<Variant>,
    /// Whether it is exported as one for several platforms (an index, directories by platform), though there may be one only.
    pub(super) multi_platform: bool,
    /// The time in nanoseconds since 1970 that nothing in the result may be later than.
    pub(super) epoch_ns: Option<i64>,
    /// What the cache in the images is made of; none when there is to be none.
    pub(super) cache: Vec<Scope>,
}

/// A result for one platform.
#[derive(Clone, Debug)]
pub(super) struct Variant {
    /// The platform.
    pub(super) platform: Platform,
    /// The configuration; its `rootfs` and missing times are filled in by exporters.
    pub(super) config: ImageConfig,
    /// The root file system, identified.
    pub(super) root: Stack,
    /// How many of its layers are those of the base.
    pub(super) base_layers: usize,
    /// What is said about it.
    pub(super) attestations: Vec<Attestation>,
}

/// Something that is said about a result, to be stored beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attestation {
    /// What is said. Exporters make a statement of it: they know the digests it is about.
    pub(super) predicate: Predicate,
    /// What the file is called that holds it: `provenance.json`, `sbom-debian.spdx.json`.
    pub(super) file_name: String,
    /// Whether it is stored with images only, and not written among files.
    pub(super) inline_only: bool,
    /// Whether it is the bill of material of the result itself, which stands before all others.
    pub(super) is_core: bool,
}

impl Attestation {
    /// Something about the result itself.
    pub(super) fn about_result(kind: String, content: Bytes, file_name: String) -> Self {
        let predicate = Predicate { kind, content, subjects: Vec::new() };
        Self { predicate, file_name, inline_only: false, is_core: false }
    }
}

/// An exporter with its options.
#[derive(Clone, Debug)]
pub(super) enum Export {
    /// An image in the store and, if asked for, at registries.
    Image(ImageExport),
    /// An image as an archive of the client.
    Archive(ArchiveExport),
    /// Files of the client.
    Files(FilesExport),
}

/// The exporters there are.
pub(super) const KINDS: &[&str] = &["docker", "image", "local", "moby", "oci", "registry", "tar"];

impl Export {
    /// Reads what a request asks for.
    ///
    /// # Errors
    /// `InvalidArgument` for an exporter that does not exist and for malformed values; `Unsupported`, by name, for options.
    pub(super) fn parse(exporter: &Exporter) -> Result<Self> {
        match exporter.kind.as_str() {
            "image" | "moby" | "registry" => ImageExport::parse(exporter).map(Self::Image),
            "oci" => ArchiveExport::parse(exporter, Layout::Oci).map(Self::Archive),
            "docker" => ArchiveExport::parse(exporter, Layout::Docker).map(Self::Archive),
            "local" | "tar" => FilesExport::parse(exporter).map(Self::Files),
            other => {
                let meant = kiln_graph::diagnostic::closest(other, KINDS.iter().copied());
                let hint = meant.map_or_else(|| KINDS.join(", "), |meant| format!("did you mean {meant}?"));
                Err(Error::invalid(format!("there is no exporter {other:?} ({hint})")))
            }
        }
    }
}

impl Export {
    /// Says whether it works on files, so that all layers have to be here.
    pub(super) fn needs_files(&self) -> bool {
        match self {
            Self::Image(image) => image.needs_files(),
            Self::Archive(_) | Self::Files(_) => true,
        }
    }

    /// Makes sure, before anything is built, that a result for so many platforms can be exported.
    ///
    /// # Errors
    /// `Unsupported` when it cannot.
    pub(super) fn check(&self, platforms: usize) -> Result<()> {
        match self {
            Self::Image(_) => Ok(()),
            Self::Archive(archive) => archive.check(platforms),
            Self::Files(files) => files.check(platforms),
        }
    }
}

/// What the client is told of an export: BuildKit's `ExporterResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Response(BTreeMap<String, String>);

impl Response {
    fn put(&mut self, key: &str, value: &impl ToString) {
        self.0.insert(key.to_owned(), value.to_string());
    }

    fn put_names(&mut self, names: &[Reference], without_tags: bool) {
        let shown = |name: &Reference| if without_tags { name.without_tag() } else { name.clone() };
        if !names.is_empty() {
            self.put("image.name", &names.iter().map(|name| shown(name).to_string()).collect::<Vec<_>>().join(","));
        }
    }

    fn put_config(&mut self, id: &Digest, descriptor: &mut Descriptor) {
        self.put("containerimage.config.digest", id);
        descriptor.annotations.insert("config.digest".to_owned(), id.to_string());
    }

    fn put_descriptor(&mut self, descriptor: &Descriptor) -> Result<()> {
        self.put("containerimage.descriptor", &STANDARD.encode(serde_json::to_vec(descriptor)?));
        Ok(())
    }
}

impl Variant {
    /// Returns the root file system of a result whose layers are all here.
    ///
    /// # Errors
    /// `Internal` when they are not: whoever made the result was told that they have to be.
    pub(super) fn snapshot(&self) -> Result<Option<SnapshotId>> {
        match &self.root {
            Stack::Here(snapshot) => Ok(*snapshot),
            Stack::Distant(_) => Err(Error::internal("the layers of a result were not fetched")),
        }
    }
}

impl Job {
    /// Exports a result one way after the other, and returns what the client is told.
    ///
    /// # Errors
    /// What the store, the registry and the client say.
    pub(super) async fn export(
        self: &Arc<Self>,
        exports: &[Export],
        product: &Arc<Product>,
    ) -> Result<BTreeMap<String, String>> {
        exports.iter().try_for_each(|export| export.check(product.variants.len()))?;
        let mut response = Response::default();
        for (number, export) in exports.iter().enumerate() {
            match export {
                Export::Image(image) => self.export_to_image(image, product, &mut response).await?,
                Export::Archive(archive) => self.export_to_archive(number, archive, product, &mut response).await?,
                Export::Files(files) => self.export_files(number, files, product).await?,
            }
        }
        Ok(response.0)
    }

    /// Returns the client's session, to send it files.
    async fn client_for_files(&self) -> Result<Session> {
        let session = self.session.get().await?;
        session.ok_or_else(|| Error::invalid("the client takes no files: the build has no session"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exporter_that_does_not_exist_is_named() {
        let parse = |kind: &str| Export::parse(&Exporter { kind: kind.to_owned(), attrs: BTreeMap::new() });
        for kind in KINDS.iter().filter(|kind| **kind != "registry") {
            assert!(parse(kind).is_ok(), "{kind}");
        }
        let error = parse("locall").unwrap_err().to_string();
        assert_eq!(error, "there is no exporter \"locall\" (did you mean local?)");
    }
}
