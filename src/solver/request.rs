//! What a build is asked for and what it answers, as BuildKit's `Solve` has it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::ProvenanceMode;
use super::policy::Policy;
use crate::registry::Credentials;

/// What a frontend is given besides its attributes, by name: LLB.
pub type Inputs = BTreeMap<String, Arc<kiln_llb::pb::Definition>>;

/// One build.
#[derive(Clone, Debug, Default)]
pub struct BuildRequest {
    /// The frontend; `dockerfile.v0` is built in.
    pub frontend: String,
    /// What is built in the place of what a frontend makes: LLB.
    pub definition: Option<Arc<kiln_llb::pb::Definition>>,
    /// What the frontend is given besides, by name: LLB.
    pub inputs: Inputs,
    /// The frontend's attributes, as BuildKit's `FrontendAttrs`: `target`, `filename`, `build-arg:NAME`, `label:NAME`, ...
    pub attrs: BTreeMap<String, String>,
    /// The session of the client: where secrets and credentials come from.
    pub session: Option<String>,
    /// Credentials by the registry's domain in image names; they are used before those of the session.
    pub credentials: BTreeMap<String, Credentials>,
    /// What becomes of the result; none keeps it in the build cache only.
    pub exporters: Vec<Exporter>,
    /// Where the build cache is written to.
    pub cache_exports: Vec<CacheSpec>,
    /// Where results of earlier builds may be found.
    pub cache_imports: Vec<CacheSpec>,
    /// Directories of the client that are read in place, by name: `context`, `dockerfile`.
    pub locals: BTreeMap<String, PathBuf>,
    /// A Dockerfile that is no file of the client (standard input).
    pub dockerfile: Option<Vec<u8>>,
    /// What steps may do beyond the usual: `network.host`, `security.insecure`.
    pub entitlements: Vec<String>,
    /// Whether the client's session is asked for exporters once there is a result.
    pub session_exporter: bool,
    /// Rules about sources.
    pub policies: Vec<Policy>,
    /// The session of a client that is asked about each source.
    pub policy_session: Option<String>,
    /// Whether a step that fails is kept as it stands; [`super::Failure::kept`] names it.
    pub keep_failed: bool,
    /// Whether the answer holds provenance, whatever becomes of the result.
    pub record_provenance: Option<ProvenanceMode>,
    /// Whether it is built twice without the cache; when the results differ, nothing is exported, and the answer says how.
    pub verify: bool,
    /// Whether the answer holds documents about the result, for the history of builds.
    pub documented: bool,
}

/// What becomes of a result.
#[derive(Clone, Debug, Default)]
pub struct Exporter {
    /// `image` or `moby`.
    pub kind: String,
    /// Its attributes: `name` (separated by commas), `push`, ...
    pub attrs: BTreeMap<String, String>,
}

/// A build cache that is elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheSpec {
    /// `inline`, `registry`, `local`, `s3` or `gha`.
    pub kind: String,
    /// Its attributes: `ref`, `mode`, ...
    pub attrs: BTreeMap<String, String>,
}

/// A finished build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Built {
    /// BuildKit's `ExporterResponse`: `containerimage.digest`, `containerimage.config.digest`, `image.name`, ...
    pub response: BTreeMap<String, String>,
    /// What is said about the result, if that was asked for: provenance.
    pub documents: Vec<Document>,
}

/// Something that is said about a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What it says, as a URI.
    pub predicate_type: String,
    /// The platform of the result; empty for the only one.
    pub platform: String,
    /// The predicate, JSON.
    pub data: Bytes,
}
