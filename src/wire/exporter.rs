//! BuildKit's `moby.exporter.v1.Exporter`, with which a client says what becomes of a result once it knows what that is. Fields and
//! numbers: BuildKit's `exporter.proto`.

use std::collections::HashMap;

/// Asks what becomes of a result.
pub const FIND: &str = "/moby.exporter.v1.Exporter/FindExporters";

/// Says that it was exported.
pub const FINALIZE: &str = "/moby.exporter.v1.Exporter/FinalizeExport";

/// A result.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FindExportersRequest {
    /// What is said about it: image configurations, platforms.
    #[prost(map = "string, bytes", tag = "1")]
    pub metadata: HashMap<String, Vec<u8>>,
    /// Names of its parts.
    #[prost(string, repeated, tag = "2")]
    pub refs: Vec<String>,
}

/// What becomes of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FindExportersResponse {
    /// The exporters.
    #[prost(message, repeated, tag = "1")]
    pub exporters: Vec<ExporterRequest>,
}

/// An exporter.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExporterRequest {
    /// Which.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// Its attributes.
    #[prost(map = "string, string", tag = "2")]
    pub attrs: HashMap<String, String>,
}

/// What came of all exports.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FinalizeExportRequest {
    /// What the client is told as the answer to its build, too.
    #[prost(map = "string, string", tag = "1")]
    pub exporter_response: HashMap<String, String>,
}

/// Nothing.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FinalizeExportResponse {}
