//! The history of builds for clients: recording what they build, and `ListenBuildHistory` and `UpdateBuildHistory`.

mod filter;

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use tonic::Status;

use self::filter::Filters;
use super::convert;
use super::trace::Traces;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::solver::history::{Attached, Content, Failed, History, NewBuild, Outcome, Record, Recording};
use crate::solver::progress::{Event, Progress};
use crate::solver::{BuildRequest, Built};
use crate::task;
use crate::types::build::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, BuildResultInfo, Descriptor,
    Exporter, MAX_MESSAGE_BYTES, StatusResponse, UpdateBuildHistoryRequest, google, timestamp,
};

/// The media types of a record's parts.
const LOG: &str = "application/vnd.buildkit.status.v0";
const TRACE: &str = "application/vnd.buildkit.otlp.json.v0";
const DOCUMENT: &str = "application/vnd.in-toto+json";
// As BuildKit spells it.
const STATUS: &str = "application/vnd.googeapis.google.rpc.status+proto";

/// The annotation that tells what a document says.
const PREDICATE: &str = "in-toto.io/predicate-type";

/// The attribute of Kiln's own that tells what to show for a build.
const NAME: &str = "kiln.name";

/// How often the records of other engines of the root are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often the log of a build of another engine is looked at.
const FOLLOW: Duration = Duration::from_millis(200);

/// Begins to record a build, unless the client keeps it to itself.
pub(super) fn record(
    engine: &Engine,
    request: &BuildRequest,
    reference: &str,
    progress: &Progress,
) -> Option<Recording> {
    if !request.documented {
        return None;
    }
    let build = NewBuild {
        reference: reference.to_owned(),
        name: name(request, engine.root().path()),
        frontend: request.frontend.clone(),
        attrs: request.attrs.iter().map(|(key, value)| (key.clone(), without_password(value))).collect(),
        exporters: request.exporters.clone(),
    };
    Some(engine.history().begin(build, progress.watch(), frames))
}

/// Writes down how a build ended. What the client is told does not depend on whether that succeeds.
pub(super) async fn end(recording: Option<Recording>, built: Result<&Built, &Status>) {
    let Some(recording) = recording else { return };
    let outcome = match built {
        Ok(Built { response, documents }) => {
            Outcome { failed: None, response: response.clone(), documents: documents.clone() }
        }
        Err(status) => {
            let (code, message) = (i32::from(status.code()), status.message().to_owned());
            let details = match status.details() {
                [] => google::rpc::Status { code, message: message.clone(), details: Vec::new() }.encode_to_vec(),
                details => details.to_vec(),
            };
            Outcome { failed: Some(Failed { code, message, status: details }), ..Outcome::default() }
        }
    };
    let _ = recording.end(outcome).await;
}

/// What to show for a build: where its context is, with the target; else its image. A context that was received lies in the
/// root directory, which says nothing of where it is from.
fn name(request: &BuildRequest, root: &Path) -> String {
    let attr = |key: &str| request.attrs.get(key).filter(|value| !value.is_empty());
    let local = request.locals.get("context").filter(|path| !path.starts_with(root));
    let local = local.map(|path| path.display().to_string());
    let fetched = || attr("context").or_else(|| attr("vcs:localdir:context")).map(|text| without_password(text));
    let image = || {
        let names = request.exporters.iter().find_map(|exporter| exporter.attrs.get("name"));
        names.map(|names| names.split(',').next().unwrap_or_default().to_owned())
    };
    let source = || attr("vcs:source").map(|text| without_password(text));
    let name = local.or_else(fetched).or_else(image).or_else(source).unwrap_or_default();
    match attr("target") {
        Some(target) => format!("{name} ({target})").trim_start().to_owned(),
        None => name,
    }
}

/// Leaves user names and passwords out of an address.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) if rest[..at].contains(':') || scheme.starts_with("http") => {
            format!("{scheme}://xxxxx:xxxxx@{}", &rest[at + 1..])
        }
        _ => text.to_owned(),
    }
}

/// Writes reports as BuildKit's logs hold them: each after its length in four bytes, the lowest first.
fn frames(events: Vec<Event>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for response in convert::responses(events).into_iter().filter(|response| *response != StatusResponse::default()) {
        let length = u32::try_from(response.encoded_len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&response.encode_to_vec());
    }
    bytes
}

/// Replays the reports of a build that is in the history, to its end; `None` when it is not.
pub(super) async fn replay(history: &History, reference: &str) -> Result<Option<BoxStream<'static, Replayed>>> {
    let (found, name) = (history.clone(), reference.to_owned());
    let opened = task::blocking(move || {
        let Some(record) = found.find(&name)? else { return Ok(None) };
        Ok(Some(found.open_log(&record)?))
    });
    let Some((file, more)) = opened.await? else { return Ok(None) };
    let reading = Reading {
        log: Some(Log { file, rest: Vec::new() }),
        more,
        history: history.clone(),
        reference: reference.to_owned(),
    };
    let reports = stream::try_unfold(reading, Reading::next);
    Ok(Some(reports.map_ok(|reports| stream::iter(reports).map(Ok)).try_flatten().boxed()))
}

/// What is replayed.
pub(super) type Replayed = Result<StatusResponse, Status>;

/// A log that is read, perhaps while it is written.
struct Reading {
    log: Option<Log>,
    more: bool,
    history: History,
    reference: String,
}

impl Reading {
    /// Reads the next reports; `None` at the end of the build.
    async fn next(mut self) -> Result<Option<(Vec<StatusResponse>, Self)>, Status> {
        loop {
            let Some(log) = self.log.take() else { return Ok(None) };
            let read = task::blocking(move || log.read()).await.map_err(|error| convert::refusal(&error));
            let (log, reports) = read?;
            self.log = Some(log);
            if !reports.is_empty() {
                return Ok(Some((reports, self)));
            }
            if !self.more {
                return Ok(None);
            }
            // What was written before the end comes before the end is seen.
            self.more = self.is_running().await.map_err(|error| convert::refusal(&error))?;
            if self.more {
                tokio::time::sleep(FOLLOW).await;
            }
        }
    }

    async fn is_running(&self) -> Result<bool> {
        let (history, reference) = (self.history.clone(), self.reference.clone());
        let found = task::blocking(move || history.find(&reference)).await?;
        Ok(found.is_some_and(|record| record.completed_ns.is_none()))
    }
}

struct Log {
    file: std::fs::File,
    /// The beginning of a report.
    rest: Vec<u8>,
}

impl Log {
    /// Reads the next reports, none at the end of what is there. Blocking.
    fn read(mut self) -> Result<(Self, Vec<StatusResponse>)> {
        const PIECE: u64 = 1 << 20;
        loop {
            let read = (&mut self.file).take(PIECE).read_to_end(&mut self.rest)?;
            let responses = self.whole()?;
            if !responses.is_empty() || read == 0 {
                return Ok((self, responses));
            }
        }
    }

    /// Takes the reports that are there as a whole.
    fn whole(&mut self) -> Result<Vec<StatusResponse>> {
        let (mut responses, mut at) = (Vec::new(), 0);
        while let Some(length) = self.rest.get(at..at + 4) {
            let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
            if length > MAX_MESSAGE_BYTES {
                return Err(Error::corrupt("the log is damaged"));
            }
            let Some(message) = self.rest.get(at + 4..at + 4 + length) else { break };
            let response = StatusResponse::decode(message).map_err(|_| Error::corrupt("the log is damaged"))?;
            responses.push(response);
            at += 4 + length;
        }
        self.rest.drain(..at);
        Ok(responses)
    }
}

/// `UpdateBuildHistory`; what is finalized is written when this returns.
///
/// # Errors
/// `NotFound`; `Conflict` for the record of a build that runs.
pub(super) async fn update(history: History, traces: &Traces, request: UpdateBuildHistoryRequest) -> Result<()> {
    let UpdateBuildHistoryRequest { r#ref: reference, pinned, delete, finalize } = request;
    if finalize && !delete {
        traces.finalize(&reference).await;
        return Ok(());
    }
    task::blocking(move || if delete { history.remove(&reference) } else { history.pin(&reference, pinned) }).await
}

/// What a client has been told of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    generation: u64,
    completed: bool,
}

/// `ListenBuildHistory`: what there is, then what changes, until the client has enough.
///
/// # Errors
/// `InvalidArgument` for a malformed filter.
pub(super) fn listen(
    history: History,
    request: BuildHistoryRequest,
    now_ns: i64,
) -> Result<BoxStream<'static, Result<BuildHistoryEvent, Status>>> {
    let filters = Filters::parse(&request.filter, now_ns)?;
    let state = Listening { history, request, filters, told: None };
    let batches = stream::try_unfold(state, Listening::next);
    Ok(batches.map_ok(|events| stream::iter(events).map(Ok)).try_flatten().boxed())
}

struct Listening {
    history: History,
    request: BuildHistoryRequest,
    filters: Filters,
    /// `None` before the first look.
    told: Option<HashMap<String, Told>>,
}

impl Listening {
    /// Waits for what is new; `None` when the client has enough.
    async fn next(mut self) -> Result<Option<(Vec<BuildHistoryEvent>, Self)>, Status> {
        loop {
            if self.told.is_some() {
                if self.request.early_exit {
                    return Ok(None);
                }
                let changed = self.history.changed().notified();
                tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
            let events = self.look().await.map_err(|error| convert::refusal(&error))?;
            if !events.is_empty() {
                return Ok(Some((events, self)));
            }
        }
    }

    /// Says what is new since the last look.
    async fn look(&mut self) -> Result<Vec<BuildHistoryEvent>> {
        let (history, only) = (self.history.clone(), self.request.r#ref.clone());
        let records = task::blocking(move || match only.as_str() {
            "" => history.list(),
            reference => Ok(history.find(reference)?.into_iter().collect()),
        });
        let mut records = records.await?;
        let first = self.told.is_none();
        let told = self.told.get_or_insert_default();
        let now: HashMap<String, Told> = records
            .iter()
            .map(|record| {
                let told = Told { generation: record.generation, completed: record.completed_ns.is_some() };
                (record.build.reference.clone(), told)
            })
            .collect();
        let deleted: Vec<String> = told.keys().filter(|reference| !now.contains_key(*reference)).cloned().collect();
        let is_new = |record: &Record| told.get(&record.build.reference) != now.get(&record.build.reference);
        // A build that a client follows is told of to its end.
        let follows = |record: &Record| told.contains_key(&record.build.reference);
        let active = |record: &Record| !self.request.active_only || record.completed_ns.is_none() || follows(record);
        records.retain(|record| is_new(record) && active(record) && self.filters.take(record));
        let limit = usize::try_from(self.request.limit).unwrap_or(0);
        if first && limit > 0 && records.len() > limit {
            records.drain(..records.len() - limit);
        }
        let events = records.iter().map(event).collect::<Vec<_>>();
        *told = now;
        if self.request.active_only {
            // Whatever had ended is not followed.
            let sent = records.iter().map(|record| record.build.reference.clone());
            let sent: std::collections::HashSet<String> = sent.collect();
            told.retain(|reference, told| !told.completed || sent.contains(reference));
        }
        Ok(events.into_iter().chain(deleted.into_iter().map(deletion)).collect())
    }
}

fn event(record: &Record) -> BuildHistoryEvent {
    let kind = match record.completed_ns {
        None => BuildHistoryEventType::Started,
        Some(_) => BuildHistoryEventType::Complete,
    };
    BuildHistoryEvent { r#type: kind.into(), record: Some(to_wire(record)) }
}

fn deletion(reference: String) -> BuildHistoryEvent {
    let record = BuildHistoryRecord { r#ref: reference, ..BuildHistoryRecord::default() };
    BuildHistoryEvent { r#type: BuildHistoryEventType::Deleted.into(), record: Some(record) }
}

/// Writes a record.
fn to_wire(record: &Record) -> BuildHistoryRecord {
    let Record { build, counts, failed, .. } = record;
    let count = |number: u64| i32::try_from(number).unwrap_or(i32::MAX);
    let mut result = BuildResultInfo::default();
    let mut results: HashMap<String, BuildResultInfo> = HashMap::new();
    for attached in &record.attached {
        let info = match attached.platform.as_str() {
            "" => &mut result,
            platform => results.entry(platform.to_owned()).or_default(),
        };
        info.attestations.push(attestation(attached));
    }
    if let Some(image) = record.response.get("containerimage.descriptor").and_then(|text| image(text)) {
        result.results.insert(0, image.clone());
        result.result_deprecated = Some(image);
    }
    let error = failed.as_ref().map(|failed| {
        // The details are in a document of their own.
        google::rpc::Status { code: failed.code, message: failed.message.clone(), details: Vec::new() }
    });
    BuildHistoryRecord {
        r#ref: build.reference.clone(),
        frontend: build.frontend.clone(),
        frontend_attrs: build.attrs.clone().into_iter().chain([(NAME.to_owned(), build.name.clone())]).collect(),
        exporters: build.exporters.iter().map(exporter).collect(),
        error,
        created_at: Some(timestamp(record.created_ns)),
        completed_at: record.completed_ns.map(timestamp),
        logs: record.log.as_ref().map(|log| descriptor(LOG, log)),
        exporter_response: record.response.clone().into_iter().collect(),
        result: Some(result),
        results,
        generation: count(record.generation),
        trace: record.trace.as_ref().map(|trace| descriptor(TRACE, trace)),
        pinned: record.pinned,
        num_cached_steps: count(counts.cached),
        num_total_steps: count(counts.total),
        num_completed_steps: count(counts.completed),
        external_error: record.status.as_ref().map(|status| descriptor(STATUS, status)),
        num_warnings: count(counts.warnings),
    }
}

fn exporter(exporter: &crate::solver::Exporter) -> Exporter {
    Exporter { r#type: exporter.kind.clone(), attrs: exporter.attrs.clone().into_iter().collect() }
}

fn descriptor(media_type: &str, content: &Content) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: content.digest.to_string(),
        size: convert::signed(content.size),
        annotations: HashMap::new(),
    }
}

fn attestation(attached: &Attached) -> Descriptor {
    let annotations = HashMap::from([(PREDICATE.to_owned(), attached.predicate_type.clone())]);
    Descriptor { annotations, ..descriptor(DOCUMENT, &attached.content) }
}

/// Reads the descriptor of an image as exporters tell it.
fn image(text: &str) -> Option<Descriptor> {
    let json = STANDARD.decode(text).ok()?;
    let descriptor: kiln_graph::oci::Descriptor = serde_json::from_slice(&json).ok()?;
    Some(Descriptor {
        media_type: descriptor.media_type,
        digest: descriptor.digest.to_string(),
        size: convert::signed(descriptor.size),
        annotations: descriptor.annotations.into_iter().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_left_out_of_addresses() {
        for (text, expected) in [
            ("https://u:secret@example.com/a.git#main", "https://xxxxx:xxxxx@example.com/a.git#main"),
            ("https://example.com/a?b=c:d@e", "https://example.com/a?b=c:d@e"),
            ("ssh://git@example.com/a.git", "ssh://git@example.com/a.git"),
            ("no address:x@y", "no address:x@y"),
        ] {
            assert_eq!(without_password(text), expected);
        }
    }

    #[test]
    fn a_build_is_named_by_its_context_or_its_image() {
        let request = |attrs: &[(&str, &str)]| BuildRequest {
            attrs: attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            exporters: vec![crate::solver::Exporter {
                kind: "image".to_owned(),
                attrs: [("name".to_owned(), "docker.io/library/app:latest,x".to_owned())].into(),
            }],
            ..BuildRequest::default()
        };
        let named = |request: &BuildRequest| name(request, Path::new("/root"));
        assert_eq!(named(&request(&[])), "docker.io/library/app:latest");
        assert_eq!(
            named(&request(&[("context", "https://example.com/a.git"), ("target", "t")])),
            "https://example.com/a.git (t)"
        );
        let mut local = request(&[]);
        local.locals.insert("context".to_owned(), "/root/snapshots/1/fs".into());
        assert_eq!(named(&local), "docker.io/library/app:latest");
        local.locals.insert("context".to_owned(), "/srv/app".into());
        assert_eq!(named(&local), "/srv/app");
    }
}
