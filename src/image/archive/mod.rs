//! Images as files: `save`, `load` and `import`.
//!
//! A saved archive is an OCI layout and a docker archive at once, so that every engine reads it. Loading takes either, in any
//! compression, from a stream.

mod import;
mod load;
mod save;
mod write;

pub use import::Imported;
pub use load::Loaded;
pub use save::SaveRequest;
pub use write::Layout;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The file that makes a directory an OCI layout.
const OCI_LAYOUT: &str = "oci-layout";
/// What it says.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The index of an OCI layout.
const INDEX: &str = "index.json";
/// The list of images of a docker archive.
const MANIFEST: &str = "manifest.json";

/// An entry of a docker archive's `manifest.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
    /// Where to fetch layers that are not in the archive; Windows only, passed over.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    layer_sources: BTreeMap<String, serde_json::Value>,
}
