//! Spans in the form that records of builds keep: what Go's OpenTelemetry calls span stubs, each a line of JSON. BuildKit's clients
//! read traces so.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value as Json, json};

use super::Parent;
use crate::solver::progress::VertexState;
use crate::wire::trace::{AnyValue, Event, ExportTraceServiceRequest, KeyValue, Scope, Span, Value};

/// The kind of a span within a program.
const INTERNAL: i32 = 1;

/// What Kiln is called among libraries that trace.
const LIBRARY: &str = "kiln";

/// A span.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stub {
    start_ns: u64,
    json: Json,
}

/// Reads spans, each with the id of its trace; those without ids are left out.
pub(super) fn of(request: ExportTraceServiceRequest) -> Vec<([u8; 16], Stub)> {
    let mut all = Vec::new();
    for of_resource in request.resource_spans {
        let resource = attributes(&of_resource.resource.unwrap_or_default().attributes);
        for of_scope in of_resource.scope_spans {
            let Scope { name, version } = of_scope.scope.unwrap_or_default();
            let library = json!({ "Name": name, "Version": version, "SchemaURL": of_scope.schema_url });
            for span in of_scope.spans {
                let trace: Result<[u8; 16], _> = span.trace_id.as_slice().try_into();
                if let Ok(trace) = trace {
                    all.push((trace, stub(&span, &resource, &library)));
                }
            }
        }
    }
    all
}

fn stub(span: &Span, resource: &Json, library: &Json) -> Stub {
    let status = span.status.clone().unwrap_or_default();
    let code = match status.code {
        1 => "Ok",
        2 => "Error",
        _ => "Unset",
    };
    let parent = if span.parent_span_id.is_empty() {
        (Vec::new(), Vec::new())
    } else {
        (span.trace_id.clone(), span.parent_span_id.clone())
    };
    let json = json!({
        "Name": span.name,
        "SpanContext": context(&span.trace_id, &span.span_id, &span.trace_state),
        "Parent": context(&parent.0, &parent.1, ""),
        "SpanKind": span.kind,
        "StartTime": time(span.start_time_unix_nano),
        "EndTime": time(span.end_time_unix_nano),
        "Attributes": attributes(&span.attributes),
        "Events": span.events.iter().map(event).collect::<Vec<_>>(),
        "Links": null,
        "Status": { "Code": code, "Description": status.message },
        "DroppedAttributes": span.dropped_attributes_count,
        "DroppedEvents": span.dropped_events_count,
        "DroppedLinks": 0,
        "ChildSpanCount": 0,
        "Resource": resource,
        "InstrumentationLibrary": library,
    });
    Stub { start_ns: span.start_time_unix_nano, json }
}

/// Makes the span of a step; `None` for one that did not end.
pub(super) fn of_step(parent: Parent, step: &VertexState) -> Option<Stub> {
    let ns = |time: i64| u64::try_from(time).unwrap_or(0);
    let failed = step.error.clone();
    let text = |key: &str, text: String| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(Value::Text(text)) }),
    };
    let cached = KeyValue { key: "cached".into(), value: Some(AnyValue { value: Some(Value::Bool(step.cached)) }) };
    let span = Span {
        trace_id: parent.trace.to_vec(),
        // The same step has the same id in all that is said of it.
        span_id: step.digest.as_bytes().iter().rev().take(8).copied().collect(),
        parent_span_id: parent.span.to_vec(),
        name: step.name.clone(),
        kind: INTERNAL,
        start_time_unix_nano: ns(step.started_ns?),
        end_time_unix_nano: ns(step.completed_ns?),
        attributes: vec![text("vertex", step.digest.to_string()), cached],
        status: Some(crate::wire::trace::Status {
            code: if failed.is_some() { 2 } else { 0 },
            message: failed.unwrap_or_default(),
        }),
        ..Span::default()
    };
    let library = json!({ "Name": LIBRARY, "Version": env!("CARGO_PKG_VERSION"), "SchemaURL": "" });
    let service =
        KeyValue { key: "service.name".into(), value: Some(AnyValue { value: Some(Value::Text(LIBRARY.into())) }) };
    Some(stub(&span, &attributes(&[service]), &library))
}

/// Writes spans, the first one first.
pub(super) fn lines(spans: &mut [Stub]) -> Vec<u8> {
    spans.sort_by_key(|span| span.start_ns);
    let mut text = Vec::new();
    for span in spans {
        text.extend_from_slice(span.json.to_string().as_bytes());
        text.push(b'\n');
    }
    text
}

fn context(trace: &[u8], span: &[u8], state: &str) -> Json {
    let flags = if span.is_empty() { "00" } else { "01" };
    json!({ "TraceID": hex(trace, 16), "SpanID": hex(span, 8), "TraceFlags": flags, "TraceState": state, "Remote": false })
}

fn event(event: &Event) -> Json {
    json!({
        "Name": event.name,
        "Attributes": attributes(&event.attributes),
        "DroppedAttributeCount": event.dropped_attributes_count,
        "Time": time(event.time_unix_nano),
    })
}

fn attributes(attributes: &[KeyValue]) -> Json {
    let attribute = |attribute: &KeyValue| {
        let value = attribute.value.as_ref().and_then(|value| value.value.as_ref()).and_then(value)?;
        Some(json!({ "Key": attribute.key, "Value": value }))
    };
    attributes.iter().filter_map(attribute).collect()
}

/// Writes a value with its type; `None` for what Go's attributes cannot hold.
fn value(value: &Value) -> Option<Json> {
    let (name, value) = match value {
        Value::Text(text) => ("STRING", json!(text)),
        Value::Bool(flag) => ("BOOL", json!(flag)),
        Value::Int(number) => ("INT64", json!(number)),
        Value::Double(number) => ("FLOAT64", json!(number)),
        Value::Array(array) => {
            let values = array.values.iter().map(|value| value.value.as_ref().and_then(self::value));
            let values = values.collect::<Option<Vec<Json>>>()?;
            let name = match values.first()?["Type"].as_str()? {
                "STRING" => "STRINGSLICE",
                "BOOL" => "BOOLSLICE",
                "INT64" => "INT64SLICE",
                "FLOAT64" => "FLOAT64SLICE",
                _ => return None,
            };
            (name, values.into_iter().map(|value| value["Value"].clone()).collect())
        }
    };
    Some(json!({ "Type": name, "Value": value }))
}

/// Writes a time as Go does.
fn time(ns: u64) -> String {
    let time = Timestamp::from_nanosecond(i128::from(ns)).unwrap_or(Timestamp::UNIX_EPOCH);
    time.to_string()
}

/// Writes an id; what is none is all zeros.
fn hex(id: &[u8], length: usize) -> String {
    if id.len() != length {
        return "0".repeat(2 * length);
    }
    id.iter().fold(String::with_capacity(2 * length), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads an id.
pub(super) fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    if hex.len() != 2 * N || !hex.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::trace::{ArrayValue, Resource, ResourceSpans, ScopeSpans, Status};

    #[test]
    fn spans_are_written_as_go_reads_them() {
        let text = |text: &str| AnyValue { value: Some(Value::Text(text.into())) };
        let list = AnyValue { value: Some(Value::Array(ArrayValue { values: vec![text("a"), text("b")] })) };
        let span = Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            parent_span_id: vec![3; 8],
            name: "build".into(),
            kind: 3,
            start_time_unix_nano: 1_700_000_000_000_000_001,
            end_time_unix_nano: 1_700_000_001_000_000_000,
            attributes: vec![KeyValue { key: "args".into(), value: Some(list) }],
            status: Some(Status { message: "no".into(), code: 2 }),
            ..Span::default()
        };
        let service = KeyValue { key: "service.name".into(), value: Some(text("buildx")) };
        let of_scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
        let of_resource =
            ResourceSpans { resource: Some(Resource { attributes: vec![service] }), scope_spans: vec![of_scope] };
        let mut found: Vec<Stub> = of(ExportTraceServiceRequest { resource_spans: vec![of_resource] })
            .into_iter()
            .map(|(trace, stub)| {
                assert_eq!(trace, [1; 16]);
                stub
            })
            .collect();
        let line = String::from_utf8(lines(&mut found)).unwrap();
        let json: Json = serde_json::from_str(line.trim_end()).unwrap();
        assert_eq!(json["SpanContext"]["SpanID"], "0202020202020202");
        assert_eq!(json["Parent"]["TraceID"], "01".repeat(16));
        assert_eq!(
            (json["StartTime"].as_str(), json["SpanKind"].as_i64()),
            (Some("2023-11-14T22:13:20.000000001Z"), Some(3))
        );
        assert_eq!(json["Attributes"][0]["Value"], json!({ "Type": "STRINGSLICE", "Value": ["a", "b"] }));
        assert_eq!(json["Status"], json!({ "Code": "Error", "Description": "no" }));
        assert_eq!(json["Resource"][0]["Value"]["Value"], "buildx");
    }
}
