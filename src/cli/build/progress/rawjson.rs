//! Machine-readable progress in the shape that buildx prints: one status a line.

use serde::Serialize;

use crate::types::build::google::protobuf::Timestamp;
use crate::types::build::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning, nanoseconds, pb};

#[derive(Serialize)]
struct SolveStatus<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vertexes: Vec<JsonVertex<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statuses: Vec<JsonStatus<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<JsonLog<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<JsonWarning<'a>>,
}

#[derive(Serialize)]
struct JsonVertex<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    digest: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    inputs: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    cached: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
}

#[derive(Serialize)]
struct JsonStatus<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    vertex: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    total: i64,
    current: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
}

#[derive(Serialize)]
struct JsonLog<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    vertex: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    stream: i64,
    data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonWarning<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    vertex: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    level: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    short: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detail: Vec<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_info: Option<JsonSource<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    range: Vec<JsonRange>,
}

#[derive(Serialize)]
struct JsonSource<'a> {
    filename: &'a str,
    data: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    language: &'a str,
}

#[derive(Serialize)]
struct JsonRange {
    start: JsonPosition,
    end: JsonPosition,
}

#[derive(Serialize)]
struct JsonPosition {
    line: i32,
    #[serde(skip_serializing_if = "is_zero_i32")]
    character: i32,
}

/// Returns a message as one line.
pub(super) fn line(message: &StatusResponse) -> String {
    let status = SolveStatus {
        vertexes: message.vertexes.iter().map(vertex).collect(),
        statuses: message.statuses.iter().map(status).collect(),
        logs: message.logs.iter().map(log).collect(),
        warnings: message.warnings.iter().map(warning).collect(),
    };
    let mut line = serde_json::to_string(&status).expect("texts and numbers have a JSON form");
    line.push('\n');
    line
}

fn vertex(vertex: &Vertex) -> JsonVertex<'_> {
    JsonVertex {
        digest: &vertex.digest,
        inputs: &vertex.inputs,
        name: &vertex.name,
        started: vertex.started.as_ref().map(time),
        completed: vertex.completed.as_ref().map(time),
        cached: vertex.cached,
        error: &vertex.error,
    }
}

fn status(status: &VertexStatus) -> JsonStatus<'_> {
    JsonStatus {
        id: &status.id,
        vertex: &status.vertex,
        name: &status.name,
        total: status.total,
        current: status.current,
        timestamp: status.timestamp.as_ref().map(time),
        started: status.started.as_ref().map(time),
        completed: status.completed.as_ref().map(time),
    }
}

fn log(log: &VertexLog) -> JsonLog<'_> {
    JsonLog {
        vertex: &log.vertex,
        stream: log.stream,
        data: base64(&log.msg),
        timestamp: log.timestamp.as_ref().map(time),
    }
}

/// Returns a warning alone.
pub(super) fn warning_json(message: &VertexWarning) -> serde_json::Value {
    serde_json::to_value(warning(message)).expect("texts and numbers have a JSON form")
}

fn warning(warning: &VertexWarning) -> JsonWarning<'_> {
    let position = |position: Option<pb::Position>| {
        let position = position.unwrap_or_default();
        JsonPosition { line: position.line, character: position.character }
    };
    let range = |range: &pb::Range| JsonRange { start: position(range.start), end: position(range.end) };
    JsonWarning {
        vertex: &warning.vertex,
        level: warning.level,
        short: base64(&warning.short),
        detail: warning.detail.iter().map(|detail| base64(detail)).collect(),
        url: &warning.url,
        source_info: warning.info.as_ref().map(|info| JsonSource {
            filename: &info.filename,
            data: base64(&info.data),
            language: &info.language,
        }),
        range: warning.ranges.iter().map(range).collect(),
    }
}

fn base64(data: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(data)
}

/// RFC 3339 with as many digits as there are.
fn time(time: &Timestamp) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanoseconds(time)))
        .map_or_else(|_| String::new(), |timestamp| timestamp.to_string())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero_i32(number: &i32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}
