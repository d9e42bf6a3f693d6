//! Exporters: what becomes of a result.
//!
//! [`Product`] is the result, for one platform or several. `image` gives it a configuration, a manifest and names, and pushes it.

mod image;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kiln_graph::Platform;
use kiln_graph::oci::ImageConfig;

use self::image::ImageExport;
use super::job::Job;
use super::request::Exporter;
use crate::error::{Error, Result};
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
}

/// A result for one platform.
#[derive(Clone, Debug)]
pub(super) struct Variant {
    /// The platform.
    pub(super) platform: Platform,
    /// The configuration; its `rootfs` and missing times are filled in by exporters.
    pub(super) config: ImageConfig,
    /// The root file system, identified; `None` is an empty one.
    pub(super) snapshot: Option<SnapshotId>,
    /// What is said about it.
    pub(super) attestations: Vec<Attestation>,
}

/// Something that is said about a result, to be stored beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attestation {
    /// What is said, as a URI: `https://slsa.dev/provenance/v1`, `https://spdx.dev/Document`.
    pub(super) predicate_type: String,
    /// The predicate, a JSON document. Exporters make a statement of it: they know the digests it is about.
    pub(super) predicate: Bytes,
    /// What the file is called that holds it: `provenance.json`, `sbom-debian.spdx.json`.
    pub(super) file_name: String,
    /// Whether it is stored with images only, and not written among files.
    pub(super) inline_only: bool,
}

/// An exporter with its options.
#[derive(Clone, Debug)]
pub(super) enum Export {
    /// An image in the store and, if asked for, at registries.
    Image(ImageExport),
}

impl Export {
    /// Reads what a request asks for.
    ///
    /// # Errors
    /// `Unsupported`, by name, for other exporters and options; `InvalidArgument` for malformed values.
    pub(super) fn parse(exporter: &Exporter) -> Result<Self> {
        match exporter.kind.as_str() {
            "image" | "moby" | "registry" => ImageExport::parse(exporter).map(Self::Image),
            other => Err(Error::unsupported(format!("the exporter {other:?} is not supported yet"))),
        }
    }
}

impl Job {
    /// Exports a result, and returns what the client is told.
    ///
    /// # Errors
    /// What the store, the registry and the client say.
    pub(super) async fn export(
        self: &Arc<Self>,
        export: &Export,
        product: &Arc<Product>,
    ) -> Result<BTreeMap<String, String>> {
        match export {
            Export::Image(image) => self.export_to_image(image, product).await,
        }
    }
}
