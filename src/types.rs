//! The Engine API's wire structs.
//!
//! They are bollard's generated models of the published API description; what that description leaves open (streams of
//! progress messages, error bodies) is added here. Only `api`, `client` and `cli` see them: domain types are converted.

pub mod build;

pub use bollard_stubs::models::*;

use serde::{Deserialize, Serialize};

/// The body of every error response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub message: String,
}

/// One line of a progress stream (pull, push, load, import, classic build).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Text of the classic builder and of `load`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// What is being done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// How far it has come.
    #[serde(default, rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    pub detail: Option<ProgressCount>,
    /// What it is done to, usually a layer's short id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The error that ended the stream.
    #[serde(default, rename = "errorDetail", skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<ErrorBody>,
    /// The same error for old clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Results, for example a digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aux: Option<serde_json::Value>,
}

/// Counters of a progress line, in bytes unless the line says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressCount {
    /// How much is done.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub current: u64,
    /// How much there is.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub total: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}
