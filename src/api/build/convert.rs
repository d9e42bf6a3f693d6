//! Between BuildKit's messages and the solver's types.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::op_json;
use crate::api::serve::Peer;
use crate::error::{Error, Result};
use crate::solver::policy::Policy;
use crate::solver::progress::{Event, Status, VertexState, Warning};
use crate::solver::{
    BuildRequest, CacheRecord, CacheSpec, Exporter, Failure, Place, ProvenanceMode, PruneFilter, Unmade,
};
use crate::types::build::types::GcPolicy;
use crate::types::build::{
    CacheOptions, CacheOptionsEntry, DOCKERFILE, Detail, KEEP_FAILED, LOCAL_PREFIX, OWN_PREFIX, RECORD_PROVENANCE,
    SolveDetail, SolveRequest, SourceDetail, SourceFinding, SourcePosition, SourceRange, SourceText, StatusResponse,
    UsageRecord, VERIFY, Vertex, VertexDetail, VertexLog, VertexStatus, VertexWarning, encode_details, pb, timestamp,
};

/// Log bytes after which events go on in another message.
const MESSAGE_BYTES: usize = 1 << 20;

/// What an operation's description is called by.
const CUSTOM_NAME: &str = "llb.customname";

/// A longer source or operation is left out of an error's details: they travel in a header.
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// Reads what is to be built.
///
/// # Errors
/// `InvalidArgument` for what makes no sense; `Forbidden` for directories of this host, which only the command that started the
/// engine may name.
pub(super) fn build_request(request: SolveRequest, peer: Peer) -> Result<BuildRequest> {
    let mut attrs: BTreeMap<String, String> = request.frontend_attrs.into_iter().collect();
    let places = attrs.keys().any(|key| key.starts_with(LOCAL_PREFIX));
    if places && peer != Peer::Parent {
        return Err(Error::forbidden(format!(
            "attributes that begin with {LOCAL_PREFIX} are for the command that started the engine"
        )));
    }
    let dockerfile = attrs.remove(DOCKERFILE).map(|text| STANDARD.decode(text)).transpose();
    let dockerfile = dockerfile.map_err(|_| Error::invalid(format!("{DOCKERFILE} is not base64")))?;
    let locals = take_locals(&mut attrs)?;
    let keep_failed = attrs.remove(KEEP_FAILED).is_some_and(|value| value == "true");
    let verify = attrs.remove(VERIFY).is_some_and(|value| value == "true");
    let record_provenance = match attrs.remove(RECORD_PROVENANCE).as_deref() {
        None => None,
        Some("min") => Some(ProvenanceMode::Min),
        Some("max") => Some(ProvenanceMode::Max),
        Some(other) => return Err(Error::invalid(format!("{RECORD_PROVENANCE}={other}: expected min or max"))),
    };
    if let Some(key) = attrs.keys().find(|key| key.starts_with(OWN_PREFIX)) {
        return Err(Error::invalid(format!("unknown attribute {key}")));
    }
    let exporters = match (request.exporters, request.exporter_deprecated) {
        (exporters, kind) if exporters.is_empty() && !kind.is_empty() => {
            vec![Exporter { kind, attrs: request.exporter_attrs_deprecated.into_iter().collect() }]
        }
        (exporters, _) => exporters.into_iter().map(exporter).collect(),
    };
    // As with BuildKit, a definition without operations is none.
    let definition = request.definition.filter(|definition| !definition.def.is_empty());
    if definition.is_some() && !request.frontend.is_empty() {
        return Err(Error::invalid("cannot solve with both Definition and Frontend specified"));
    }
    let (cache_exports, mut cache_imports) = caches(request.cache.unwrap_or_default());
    cache_imports.extend(crate::solver::take_imports(&mut attrs)?);
    Ok(BuildRequest {
        frontend: request.frontend,
        definition: definition.map(Arc::new),
        inputs: request.frontend_inputs.into_iter().map(|(name, input)| (name, Arc::new(input))).collect(),
        attrs,
        session: (!request.session.is_empty()).then_some(request.session),
        credentials: BTreeMap::new(),
        exporters,
        cache_exports,
        cache_imports,
        locals,
        dockerfile,
        entitlements: request.entitlements,
        session_exporter: request.enable_session_exporter,
        policies: request.source_policy.map(Policy::read).transpose()?.into_iter().collect(),
        policy_session: Some(request.source_policy_session).filter(|session| !session.is_empty()),
        keep_failed,
        record_provenance,
        verify,
        documented: !request.internal,
    })
}

/// Reads where the cache is written to, and where it is read from.
fn caches(cache: CacheOptions) -> (Vec<CacheSpec>, Vec<CacheSpec>) {
    let registry = |name: String, attrs: HashMap<String, String>| CacheSpec {
        kind: "registry".to_owned(),
        attrs: attrs.into_iter().chain([("ref".to_owned(), name)]).collect(),
    };
    let mut exports: Vec<CacheSpec> = cache.exports.into_iter().map(cache_spec).collect();
    if !cache.export_ref_deprecated.is_empty() {
        exports.push(registry(cache.export_ref_deprecated, cache.export_attrs_deprecated));
    }
    let mut imports: Vec<CacheSpec> = cache.imports.into_iter().map(cache_spec).collect();
    imports.extend(cache.import_refs_deprecated.into_iter().map(|name| registry(name, HashMap::new())));
    (exports, imports)
}

fn cache_spec(entry: CacheOptionsEntry) -> CacheSpec {
    CacheSpec { kind: entry.r#type, attrs: entry.attrs.into_iter().collect() }
}

fn take_locals(attrs: &mut BTreeMap<String, String>) -> Result<BTreeMap<String, PathBuf>> {
    let keys: Vec<String> = attrs.keys().filter(|key| key.starts_with(LOCAL_PREFIX)).cloned().collect();
    let mut locals = BTreeMap::new();
    for key in keys {
        let path = PathBuf::from(attrs.remove(&key).unwrap_or_default());
        if !path.is_absolute() {
            return Err(Error::invalid(format!("{key} is not an absolute path: {}", path.display())));
        }
        locals.insert(key[LOCAL_PREFIX.len()..].to_owned(), path);
    }
    Ok(locals)
}

fn exporter(exporter: crate::types::build::Exporter) -> Exporter {
    Exporter { kind: exporter.r#type, attrs: exporter.attrs.into_iter().collect() }
}

/// Writes events, in as many messages as their logs need.
pub(super) fn responses(events: Vec<Event>) -> Vec<StatusResponse> {
    let mut responses = vec![StatusResponse::default()];
    let mut log_bytes = 0;
    for event in events {
        if log_bytes > MESSAGE_BYTES {
            responses.push(StatusResponse::default());
            log_bytes = 0;
        }
        let response = responses.last_mut().expect("it is never empty");
        match event {
            // Clients learn of a vertex when it begins.
            Event::Steps(_) => {}
            Event::Vertex(vertex) => response.vertexes.push(self::vertex(vertex)),
            Event::Status(status) => response.statuses.push(self::status(status)),
            Event::Log { vertex, stream, data, time_ns } => {
                log_bytes += data.len();
                response.logs.push(VertexLog {
                    vertex: vertex.to_string(),
                    timestamp: Some(timestamp(time_ns)),
                    stream: i64::from(stream),
                    msg: data.to_vec(),
                });
            }
            Event::Warning(warning) => response.warnings.push(self::warning(warning)),
        }
    }
    responses
}

fn vertex(vertex: VertexState) -> Vertex {
    Vertex {
        digest: vertex.digest.to_string(),
        inputs: vertex.inputs.iter().map(ToString::to_string).collect(),
        name: vertex.name,
        cached: vertex.cached,
        started: vertex.started_ns.map(timestamp),
        completed: vertex.completed_ns.map(timestamp),
        error: vertex.error.unwrap_or_default(),
        progress_group: vertex.group.map(|group| pb::ProgressGroup {
            id: group.id,
            name: group.name,
            weak: group.weak,
        }),
    }
}

fn status(status: Status) -> VertexStatus {
    VertexStatus {
        name: status.id.clone(),
        id: status.id,
        vertex: status.vertex.to_string(),
        current: signed(status.current),
        total: signed(status.total),
        timestamp: Some(timestamp(status.time_ns)),
        started: Some(timestamp(status.started_ns)),
        completed: status.completed_ns.map(timestamp),
    }
}

fn warning(warning: Warning) -> VertexWarning {
    let position = |line: u32| Some(pb::Position { line: line.try_into().unwrap_or(i32::MAX), character: 0 });
    let range = |(first, last): &(u32, u32)| pb::Range { start: position(*first), end: position(*last) };
    VertexWarning {
        vertex: warning.vertex.to_string(),
        level: 1,
        short: warning.short.into_bytes(),
        detail: warning.detail.into_iter().map(String::into_bytes).collect(),
        url: warning.url,
        info: warning.file.map(|(filename, text)| pb::SourceInfo {
            filename,
            data: text.into_bytes(),
            definition: None,
            language: "Dockerfile".to_owned(),
        }),
        ranges: warning.lines.iter().map(range).collect(),
    }
}

/// Returns a number as messages hold it.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Writes a failed build as a status with the step and the places in the sources among its details.
pub(super) fn failure(failure: &Failure) -> tonic::Status {
    failure_as(failure, failure.error.kind().codes().1.into())
}

/// Writes a failure for a frontend at a client, which reports it again: clients put the code's name before the message each
/// time, and BuildKit gives most failures none.
pub(super) fn failure_of_part(failure: &Failure) -> tonic::Status {
    let code = tonic::Code::from(failure.error.kind().codes().1);
    failure_as(failure, if code == tonic::Code::Cancelled { code } else { tonic::Code::Unknown })
}

fn failure_as(failure: &Failure, code: tonic::Code) -> tonic::Status {
    if let Some(reported) = failure.reported() {
        return reported.clone();
    }
    let vertex = failure.vertex.map(|digest| Detail::Vertex(VertexDetail { digest: digest.to_string() }));
    let places = failure.places.iter().map(|place| Detail::Source(source(place)));
    let details: Vec<Detail> = places.chain(vertex).chain(unmade(failure).into_iter().map(Detail::Solve)).collect();
    let message = failure.error.to_string();
    let encoded = Bytes::from(encode_details(code.into(), &message, &details));
    tonic::Status::with_details(code, message, encoded)
}

/// Says what the step that failed was, and what is there of it: once as all clients read it, and once with what it is called, which
/// those of some versions refuse to read.
fn unmade(failure: &Failure) -> Vec<SolveDetail> {
    let Some(unmade) = &failure.unmade else {
        let kept = failure.kept().map(ToOwned::to_owned).into_iter();
        return kept.map(|id| SolveDetail { mount_ids: vec![id], ..SolveDetail::default() }).collect();
    };
    let Unmade { op, name, inputs, mounts } = unmade.as_ref();
    if prost::Message::encoded_len(op) > MAX_SOURCE_BYTES {
        return Vec::new();
    }
    let plain = SolveDetail {
        input_ids: inputs.clone(),
        mount_ids: mounts.clone(),
        op: Some(op_json::op(op)),
        ..SolveDetail::default()
    };
    let description = (!name.is_empty()).then(|| (CUSTOM_NAME.to_owned(), name.clone())).into_iter().collect();
    vec![plain.clone(), SolveDetail { description, ..plain }]
}

/// Writes an error as a status.
pub(super) fn refusal(error: &Error) -> tonic::Status {
    tonic::Status::new(error.kind().codes().1.into(), error.to_string())
}

fn source(place: &Place) -> SourceDetail {
    let text = place.file.text();
    let data = if text.len() <= MAX_SOURCE_BYTES { text.as_bytes().to_vec() } else { Vec::new() };
    let (first, last) = place.columns.map_or((0, 0), |(first, last)| (first.saturating_sub(1), last.saturating_sub(1)));
    let (start_line, end_line) = place.lines;
    SourceDetail {
        info: SourceText { filename: place.file.name().to_owned(), data, language: "Dockerfile".to_owned() },
        ranges: vec![SourceRange {
            start: SourcePosition { line: start_line, character: first },
            end: SourcePosition { line: end_line, character: last },
        }],
        finding: place
            .finding
            .as_ref()
            .map(|finding| SourceFinding { message: finding.message.clone(), hint: finding.hint.clone() }),
    }
}

/// Writes a policy about what may stay in the build cache.
pub(super) fn policy(policy: &PruneFilter) -> GcPolicy {
    let PruneFilter { all, kinds, unused_for, limits, ids: _ } = policy;
    GcPolicy {
        all: *all,
        keep_duration: unused_for.map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)),
        filters: kinds.iter().map(|kind| format!("type=={}", kind.as_str())).collect(),
        reserved_space: signed(limits.reserved),
        max_used_space: signed(limits.max_used),
        min_free_space: signed(limits.min_free),
    }
}

/// Writes a record of the build cache.
pub(super) fn usage(record: CacheRecord) -> UsageRecord {
    UsageRecord {
        id: record.id,
        mutable: record.kind != crate::solver::CacheKind::Regular,
        in_use: record.in_use,
        size: signed(record.size_bytes),
        created_at: Some(timestamp(record.created_ns)),
        last_used_at: Some(timestamp(record.used_ns)),
        usage_count: signed(record.uses),
        description: record.description,
        record_type: record.kind.as_str().to_owned(),
        shared: record.shared,
        ..UsageRecord::default()
    }
}

#[cfg(test)]
mod tests {
    use kiln_graph::{Digest, SourceFile};

    use super::*;
    use crate::error::Kind;
    use crate::types::build::decode_details;

    fn request(attrs: &[(&str, &str)]) -> SolveRequest {
        let frontend_attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        SolveRequest { frontend: "dockerfile.v0".to_owned(), frontend_attrs, ..SolveRequest::default() }
    }

    #[test]
    fn only_the_parent_may_name_directories_of_the_host() {
        let attrs = [("kiln.local:context", "/srv/app"), ("target", "x"), ("kiln.dockerfile", "RlJPTSB4")];
        let built = build_request(request(&attrs), Peer::Parent).unwrap();
        assert_eq!(built.locals, BTreeMap::from([("context".to_owned(), PathBuf::from("/srv/app"))]));
        assert_eq!(built.attrs, BTreeMap::from([("target".to_owned(), "x".to_owned())]));
        assert_eq!(built.dockerfile.as_deref(), Some(&b"FROM x"[..]));
        let refused = build_request(request(&attrs), Peer::Client).unwrap_err();
        assert_eq!(refused.kind(), Kind::Forbidden);
    }

    #[test]
    fn bad_attributes_of_our_own_are_refused() {
        for attrs in [[("kiln.local:context", "relative")], [("kiln.dockerfile", "!")], [("kiln.other", "x")]] {
            assert_eq!(build_request(request(&attrs), Peer::Parent).unwrap_err().kind(), Kind::InvalidArgument);
        }
    }

    #[test]
    fn caches_are_read_in_the_new_form_and_in_the_old() {
        let attrs = |name: &str| HashMap::from([("ref".to_owned(), name.to_owned())]);
        let entry = CacheOptionsEntry { r#type: "registry".to_owned(), attrs: attrs("a") };
        let options = CacheOptions {
            exports: vec![entry.clone()],
            export_ref_deprecated: "old".to_owned(),
            export_attrs_deprecated: HashMap::from([("mode".to_owned(), "max".to_owned())]),
            import_refs_deprecated: vec!["old".to_owned()],
            imports: vec![entry],
        };
        let (exports, imports) = caches(options);
        let names = |specs: &[CacheSpec]| specs.iter().map(|spec| spec.attrs["ref"].clone()).collect::<Vec<_>>();
        assert_eq!(
            (names(&exports), names(&imports)),
            (vec!["a".into(), "old".into()], vec!["a".into(), "old".into()])
        );
        assert_eq!(exports[1].attrs["mode"], "max");
    }

    #[test]
    fn a_failure_carries_its_step_and_its_lines() {
        let file = SourceFile::new("Dockerfile", "FROM x\nRUN false\n");
        let place = Place { file, lines: (2, 2), columns: None, finding: None };
        let vertex = Digest::of(b"v");
        let mut failed = Failure::from(Error::invalid("exit code: 1")).keeping("failed-1".to_owned());
        (failed.vertex, failed.places) = (Some(vertex), vec![place]);
        let status = failure(&failed);
        assert_eq!((status.code(), status.message()), (tonic::Code::InvalidArgument, "exit code: 1"));
        let details = decode_details(status.details());
        let [Detail::Source(source), Detail::Vertex(failed), Detail::Solve(kept)] = details.as_slice() else {
            panic!("{details:?}")
        };
        assert_eq!((source.ranges[0].start.line, &failed.digest), (2, &vertex.to_string()));
        assert_eq!(source.info.data, b"FROM x\nRUN false\n");
        assert_eq!(kept.mount_ids, ["failed-1"]);
    }

    #[test]
    fn much_output_goes_in_several_messages() {
        let log = || Event::Log { vertex: Digest::of(b"v"), stream: 1, data: vec![b'x'; 700_000].into(), time_ns: 0 };
        let responses = responses((0..6).map(|_| log()).collect());
        assert_eq!(responses.iter().map(|response| response.logs.len()).collect::<Vec<_>>(), [2, 2, 2]);
    }
}
