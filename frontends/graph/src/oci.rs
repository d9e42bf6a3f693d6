//! OCI and Docker documents: descriptors, manifests, indexes and image configurations.
//!
//! Written out here rather than taken from a library because the bytes decide digests: field order follows Go's structs as
//! docker and BuildKit marshal them, and Docker's additions to the configuration (`Healthcheck`, `OnBuild`, `Shell`,
//! `ArgsEscaped`) are kept. Sources: OCI image specification 1.1, moby's `image/spec`, BuildKit's `dockerspec`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::platform::Platform;

/// Media types that registries and archives use.
pub mod media_type {
    /// An OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An OCI image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// The empty JSON object `{}`, the configuration of artifacts.
    pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
    /// A plain layer tar.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// A gzip-compressed layer.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A zstd-compressed layer.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// A Docker schema 2 manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// A Docker manifest list.
    pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// A Docker image configuration.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// A plain layer in Docker's spelling.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// A gzip-compressed layer in Docker's spelling.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// A zstd-compressed layer in Docker's spelling.
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

    /// Says whether a document of this type lists manifests.
    #[must_use]
    pub fn is_index(media_type: &str) -> bool {
        matches!(media_type, OCI_INDEX | DOCKER_MANIFEST_LIST)
    }

    /// Says whether a layer of this type is not to be distributed: whoever wants it gets it from where its descriptor says.
    #[must_use]
    pub fn is_nondistributable(media_type: &str) -> bool {
        media_type.contains(".rootfs.foreign.diff.") || media_type.contains(".layer.nondistributable.")
    }

    /// Returns the type of a layer that is not to be distributed, from that of one that is.
    #[must_use]
    pub fn nondistributable(media_type: &str) -> String {
        let docker = media_type.replace(".rootfs.diff.", ".rootfs.foreign.diff.");
        docker.replace(".image.layer.v1.", ".image.layer.nondistributable.v1.")
    }

    /// Says whether a document of this type is one image's manifest.
    #[must_use]
    pub fn is_manifest(media_type: &str) -> bool {
        matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
    }
}

/// Annotation keys with a defined meaning.
pub mod annotation {
    /// The full reference of an image in an OCI layout, as containerd writes it.
    pub const IMAGE_NAME: &str = "io.containerd.image.name";
    /// The tag (or reference) of an image in an OCI layout.
    pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
    /// When an image was made, RFC 3339.
    pub const CREATED: &str = "org.opencontainers.image.created";
    /// What an attached manifest is, for example `attestation-manifest`.
    pub const DOCKER_REFERENCE_TYPE: &str = "vnd.docker.reference.type";
    /// The digest of the manifest that it is attached to.
    pub const DOCKER_REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";
}

/// Reads `null` as the default value, as Go does.
fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Points at content by digest, size and type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Other places to fetch it from.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free-form facts about it.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The platform of the manifest it points at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The type of the artifact it points at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// Makes a descriptor without optional fields.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
        }
    }
}

/// The manifest of one image: its configuration and its layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The document's own type; absent in some OCI manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The type of an artifact that is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "null_default")]
    pub layers: Vec<Descriptor>,
    /// The manifest this one is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form facts.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An index (Docker: manifest list): manifests for several platforms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The document's own type; absent in some OCI indexes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The type of an artifact that is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests.
    #[serde(default, deserialize_with = "null_default")]
    pub manifests: Vec<Descriptor>,
    /// The manifest this one is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form facts.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// Picks the manifest that runs best on `platform`; on equal rank the first wins. Attestations never match.
    #[must_use]
    pub fn choose(&self, platform: &Platform) -> Option<&Descriptor> {
        self.manifests
            .iter()
            .filter(|descriptor| !descriptor.annotations.contains_key(annotation::DOCKER_REFERENCE_TYPE))
            .filter_map(|descriptor| Some((platform.rank(descriptor.platform.as_ref()?)?, descriptor)))
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, descriptor)| descriptor)
    }
}

/// The empty object in `{"80/tcp": {}}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// An image configuration document. Its digest is the image's id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The CPU architecture.
    #[serde(default)]
    pub architecture: String,
    /// Who made it (MAINTAINER).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// The defaults of containers.
    #[serde(default, deserialize_with = "null_default")]
    pub config: ContainerConfig,
    /// When it was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// How each layer and each setting came to be, oldest first.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// The operating system.
    #[serde(default)]
    pub os: String,
    /// Required features of the operating system.
    #[serde(default, deserialize_with = "null_default", rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// The operating system's version.
    #[serde(default, rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// The layers' digests.
    #[serde(default)]
    pub rootfs: RootFs,
    /// The CPU variant.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl ImageConfig {
    /// Returns the platform the image is for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        }
        .normalized()
    }
}

/// The layers of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The digests of the uncompressed layer tars, lowest first.
    #[serde(default, deserialize_with = "null_default")]
    pub diff_ids: Vec<Digest>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

impl RootFs {
    /// Returns the chain IDs of all layers, lowest first: each names the file system up to and including its layer
    /// (OCI image spec, "Layer ChainID").
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.diff_ids.len());
        for diff_id in &self.diff_ids {
            chain.push(chain_id(chain.last().copied(), *diff_id));
        }
        chain
    }
}

/// Returns the chain ID of a layer on top of a parent chain.
#[must_use]
pub fn chain_id(parent: Option<Digest>, diff_id: Digest) -> Digest {
    match parent {
        None => diff_id,
        Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
    }
}

/// The container defaults inside an image configuration, in the order Go marshals them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// `user[:group]`, names or numbers.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports the image announces, as `80/tcp`.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// Environment as `KEY=value`.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The fixed first words of the command line.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The default arguments.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Paths that hold data.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Empty>,
    /// The directory processes start in.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the container to stop.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// A Windows leftover that BuildKit sets with every CMD.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_false")]
    pub args_escaped: bool,
    /// How to tell whether the container works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions that run when the image is a base.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// Seconds between the stop signal and the kill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// The shell of shell-form commands.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A health check; durations in nanoseconds, 0 meaning "inherit or default".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", ...]` or `["CMD-SHELL", script]`.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Nanoseconds between probes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Nanoseconds until a probe counts as failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Nanoseconds during which failures do not count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Nanoseconds between probes during the start period.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Consecutive failures until the container is unhealthy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// One entry of an image's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Who.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// What made it, for example `buildkit.dockerfile.v0`.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether the entry has no layer.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "is_false")]
    pub empty_layer: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_docker_configuration_with_nulls_is_read() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Hostname":"","Env":["A=b"],"Cmd":null,
            "Entrypoint":null,"Labels":null,"OnBuild":null,"ExposedPorts":{"80/tcp":{}}},"container":"x",
            "rootfs":{"type":"layers","diff_ids":null},"history":[{"created_by":"x","empty_layer":true}]}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.config.env, ["A=b"]);
        assert!(config.config.exposed_ports.contains_key("80/tcp") && config.history[0].empty_layer);
        let again = serde_json::to_string(&config.config).unwrap();
        assert_eq!(again, r#"{"ExposedPorts":{"80/tcp":{}},"Env":["A=b"]}"#);
    }

    #[test]
    fn chain_ids_fold_over_diff_ids() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let rootfs = RootFs { diff_ids: vec![a, b], ..RootFs::default() };
        assert_eq!(rootfs.chain_ids(), [a, Digest::of(format!("{a} {b}").as_bytes())]);
    }

    #[test]
    fn an_index_offers_the_best_manifest_and_no_attestation() {
        let entry = |platform: &str, kind: Option<&str>| {
            let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, Digest::of(platform.as_bytes()), 1);
            descriptor.platform = Some(platform.parse().unwrap());
            descriptor.annotations =
                kind.map(|k| (annotation::DOCKER_REFERENCE_TYPE.to_owned(), k.to_owned())).into_iter().collect();
            descriptor
        };
        let manifests = vec![
            entry("linux/arm/v6", None),
            entry("linux/arm/v7", Some("attestation-manifest")),
            entry("linux/amd64", None),
        ];
        let index = Index {
            schema_version: 2,
            media_type: None,
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        };
        let choose = |platform: &str| index.choose(&platform.parse().unwrap()).map(|d| d.digest);
        assert_eq!(choose("linux/arm/v7"), Some(Digest::of(b"linux/arm/v6")));
        assert_eq!(choose("linux/s390x"), None);
    }
}
