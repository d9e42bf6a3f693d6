//! The build service's wire structs: BuildKit's protobuf messages, the attributes Kiln adds to them, and the JSON in which
//! errors carry their details.

pub use bollard_buildkit_proto::moby::buildkit::v1::*;
pub use bollard_buildkit_proto::{google, health, moby, pb};

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Prefix of the frontend attributes that name a directory the engine reads in place: `kiln.local:context=/home/me/app`.
///
/// Only the command that started the engine may use it: the engine has its credentials and sees its files.
pub const LOCAL_PREFIX: &str = "kiln.local:";

/// The host of the addresses under which a client uploads: `http://buildkit-session/ID`.
pub const UPLOAD_HOST: &str = "buildkit-session";

/// The frontend attribute that holds a Dockerfile which is no file of the client, in base64.
pub const DOCKERFILE: &str = "kiln.dockerfile";

/// The frontend attribute that asks with `true` to keep a step that fails as it stands: [`SolveDetail`] names it.
pub const KEEP_FAILED: &str = "kiln.keep-failed";

/// The frontend attribute that asks for provenance in the answer: `min` or `max`.
pub const RECORD_PROVENANCE: &str = "kiln.record-provenance";

/// The frontend attribute that asks with `true` to build twice and compare, and the answer's key: [`Comparison`] as JSON in
/// base64.
pub const VERIFY: &str = "kiln.verify";

/// How two builds differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Comparison {
    /// How many layers there are.
    pub layers: usize,
    /// How many differences there are.
    pub total: usize,
    /// The first of them.
    pub differences: Vec<Difference>,
}

/// Something that differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Difference {
    /// The platform.
    pub platform: String,
    /// The layer's number, from 1; 0 for what is in no layer.
    pub layer: usize,
    /// The instruction that made the layer.
    pub step: String,
    /// The file.
    pub path: String,
    /// How it differs.
    pub what: Vec<String>,
}

/// The key of a response under which an answer to `frontend.lint` says, for people, why the file cannot be built.
pub const CALL_ERROR: &str = "kiln.call.error";

/// What all attributes of Kiln's own begin with.
pub const OWN_PREFIX: &str = "kiln.";

/// The key of a response that says which manifest a cache has, as the JSON of its descriptor; with a point and the number of the
/// export, which cache.
pub const CACHE_MANIFEST: &str = "cache.manifest";

/// The largest message of the build service, in bytes; clients and servers of the protocol agree on it.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

const SOURCE_URL: &str = "github.com/moby/buildkit/errdefs.Source+json";
const SOLVE_URL: &str = "github.com/moby/buildkit/errdefs.Solve+json";
const VERTEX_URL: &str = "github.com/moby/buildkit/errdefs.Vertex+json";

/// A detail of a failed build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Where in the sources the failure is.
    Source(SourceDetail),
    /// Which step failed.
    Vertex(VertexDetail),
    /// What the step that failed was, and what is there of it.
    Solve(SolveDetail),
}

/// What the step that failed was, and what is there of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SolveDetail {
    /// For frontends: the results that its mounts show, by the names under which containers can be made of them, in the order of
    /// the operation's mounts; empty for those that show none.
    #[serde(default, rename = "inputIDs", skip_serializing_if = "Vec::is_empty")]
    pub input_ids: Vec<String>,
    /// What became of them. For the command that asked to keep the step: one id, that of `/failed-steps/{id}`.
    #[serde(default, rename = "mountIDs", skip_serializing_if = "Vec::is_empty")]
    pub mount_ids: Vec<String>,
    /// The operation, in the JSON form of its message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<serde_json::Value>,
    /// What the operation is called.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub description: BTreeMap<String, String>,
}

/// The step that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VertexDetail {
    /// The step's digest.
    pub digest: String,
}

/// Places in one source file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceDetail {
    /// The file.
    pub info: SourceText,
    /// The places.
    #[serde(default)]
    pub ranges: Vec<SourceRange>,
    /// What is wrong there, when that is not the error's own text. BuildKit has no such field; its clients skip it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finding: Option<SourceFinding>,
}

/// A source file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceText {
    /// Its name.
    #[serde(default)]
    pub filename: String,
    /// Its text.
    #[serde(default, serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub data: Vec<u8>,
    /// What it is written in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub language: String,
}

/// A place in a source file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRange {
    /// Where it begins.
    #[serde(default)]
    pub start: SourcePosition,
    /// Where it ends.
    #[serde(default)]
    pub end: SourcePosition,
}

/// A position in a source file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePosition {
    /// The line, from 1.
    #[serde(default)]
    pub line: u32,
    /// The character, from 0. BuildKit's own frontends leave it 0 when whole lines are meant.
    #[serde(default)]
    pub character: u32,
}

/// What is wrong at a place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFinding {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Writes a gRPC status with details, as the header `grpc-status-details-bin` holds it.
#[must_use]
pub fn encode_details(code: i32, message: &str, details: &[Detail]) -> Vec<u8> {
    let details = details.iter().map(|detail| match detail {
        Detail::Source(source) => (SOURCE_URL, serde_json::to_vec(source)),
        Detail::Vertex(vertex) => (VERTEX_URL, serde_json::to_vec(vertex)),
        Detail::Solve(solve) => (SOLVE_URL, serde_json::to_vec(solve)),
    });
    let details = details.map(|(url, json)| google::protobuf::Any {
        type_url: url.to_owned(),
        value: json.expect("objects of texts and numbers have a JSON form"),
    });
    google::rpc::Status { code, message: message.to_owned(), details: details.collect() }.encode_to_vec()
}

/// Reads the details that [`encode_details`] or BuildKit wrote; those of other types are skipped.
#[must_use]
pub fn decode_details(status: &[u8]) -> Vec<Detail> {
    let details = google::rpc::Status::decode(status).map(|status| status.details).unwrap_or_default();
    let decode = |any: google::protobuf::Any| match any.type_url.as_str() {
        SOURCE_URL => serde_json::from_slice(&any.value).ok().map(Detail::Source),
        VERTEX_URL => serde_json::from_slice(&any.value).ok().map(Detail::Vertex),
        SOLVE_URL => serde_json::from_slice(&any.value).ok().map(Detail::Solve),
        _ => None,
    };
    details.into_iter().filter_map(decode).collect()
}

fn to_base64<S: Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(data))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// Returns a time in nanoseconds since 1970 as a message.
#[must_use]
pub fn timestamp(ns: i64) -> google::protobuf::Timestamp {
    let nanos = i32::try_from(ns.rem_euclid(1_000_000_000)).expect("the remainder is below a billion");
    google::protobuf::Timestamp { seconds: ns.div_euclid(1_000_000_000), nanos }
}

/// Returns a message's time in nanoseconds since 1970.
#[must_use]
pub fn nanoseconds(time: &google::protobuf::Timestamp) -> i64 {
    time.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_header_and_look_as_buildkit_writes_them() {
        let source = SourceDetail {
            info: SourceText { filename: "Dockerfile".into(), data: b"FROM x\n".to_vec(), language: String::new() },
            ranges: vec![SourceRange {
                start: SourcePosition { line: 1, character: 0 },
                end: SourcePosition { line: 1, character: 0 },
            }],
            finding: None,
        };
        let details = [Detail::Source(source.clone()), Detail::Vertex(VertexDetail { digest: "sha256:00".into() })];
        let encoded = encode_details(3, "bad", &details);
        assert_eq!(decode_details(&encoded), details);
        assert_eq!(
            serde_json::to_string(&source).unwrap(),
            r#"{"info":{"filename":"Dockerfile","data":"RlJPTSB4Cg=="},"ranges":[{"start":{"line":1,"character":0},"end":{"line":1,"character":0}}]}"#
        );
        assert_eq!(decode_details(b"\xff\xff garbage"), []);
    }

    #[test]
    fn times_keep_their_nanoseconds() {
        for ns in [0, 1, -1, 1_700_000_000_123_456_789] {
            assert_eq!(nanoseconds(&timestamp(ns)), ns);
        }
    }
}
