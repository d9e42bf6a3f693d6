//! `history inspect`: all about a build, and what is attached to it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::find;
use super::list::{status, took};
use crate::cli::args::Context;
use crate::cli::build::{Timing, excerpts, timings};
use crate::cli::format::{self, table};
use crate::cli::print;
use crate::client::Builder;
use crate::error::{Error, Result};
use crate::types::build::{BuildHistoryRecord, Descriptor, Detail, StatusResponse, decode_details, nanoseconds};

/// The largest document that is read, in bytes.
const MAX_DOCUMENT: usize = 64 << 20;

/// The largest log that steps are timed by, in bytes.
const MAX_LOG: usize = 256 << 20;

/// The annotation that tells what a document says.
const PREDICATE: &str = "in-toto.io/predicate-type";

/// Arguments of `history inspect`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct InspectArgs {
    #[command(subcommand)]
    part: Option<Part>,
    /// The build, by its id or the beginning of it; ^1 is the one before the last (default: the last)
    #[arg(value_name = "BUILD")]
    build: Option<String>,
    /// `json` or a Go template
    #[arg(long)]
    format: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Print a document about the result: its provenance, unless told otherwise
    Attachment(AttachmentArgs),
}

#[derive(Debug, Args)]
struct AttachmentArgs {
    /// What the document says, a URI or `provenance`
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// The platform of the result
    #[arg(long)]
    platform: Option<String>,
    /// The build
    #[arg(value_name = "BUILD")]
    build: Option<String>,
    /// The document's digest
    digest: Option<String>,
}

pub(super) async fn run(context: &Context, args: &InspectArgs) -> Result<ExitCode> {
    let builder = context.client.builder().await?;
    if let Some(Part::Attachment(args)) = &args.part {
        return attachment(&builder, args).await;
    }
    let record = find(&builder, args.build.as_deref()).await?;
    let about = About::read(&builder, record).await?;
    match args.format.as_deref() {
        None | Some("pretty") => print(&about.text()),
        Some("json") => print(&format!("{}\n", serde_json::to_string_pretty(&about.json())?)),
        Some(template) => print(&format!("{}\n", format::object(&about.json(), template)?.trim_end_matches('\n'))),
    }
}

/// What is attached to a build: platform and document.
fn attachments(record: &BuildHistoryRecord) -> Vec<(String, &Descriptor)> {
    let single = record.result.iter().flat_map(|info| info.attestations.iter().map(|one| (String::new(), one)));
    let mut several: Vec<(String, &Descriptor)> = record
        .results
        .iter()
        .flat_map(|(platform, info)| info.attestations.iter().map(|one| (platform.clone(), one)))
        .collect();
    several.sort_by(|a, b| a.0.cmp(&b.0));
    single.chain(several).collect()
}

fn predicate(descriptor: &Descriptor) -> &str {
    descriptor.annotations.get(PREDICATE).map_or("", String::as_str)
}

async fn attachment(builder: &Builder, args: &AttachmentArgs) -> Result<ExitCode> {
    let record = find(builder, args.build.as_deref()).await?;
    let all = attachments(&record);
    let meant = |(platform, descriptor): &&(String, &Descriptor)| {
        let kind = predicate(descriptor);
        let of_kind = match args.kind.as_deref() {
            None => true,
            Some("provenance") => kind.starts_with("https://slsa.dev/provenance/"),
            Some(wanted) => kind == wanted,
        };
        let here = args.platform.as_deref().is_none_or(|wanted| wanted == platform);
        of_kind && here && args.digest.as_deref().is_none_or(|digest| descriptor.digest == digest)
    };
    let (_, found) = all.iter().find(meant).ok_or_else(|| {
        let known: Vec<&str> = all.iter().map(|(_, descriptor)| predicate(descriptor)).collect();
        Error::not_found(format!("the build {} has no such attachment, only: {}", record.r#ref, known.join(", ")))
    })?;
    let bytes = builder.content(&found.digest, MAX_DOCUMENT).await?;
    print(&format!("{}\n", String::from_utf8_lossy(&bytes).trim_end()))
}

/// Returns what to show for a build.
pub(super) fn name(record: &BuildHistoryRecord) -> String {
    let attrs = &record.frontend_attrs;
    let attr = |key: &str| attrs.get(key).filter(|value| !value.is_empty()).cloned();
    if let Some(name) = attr("kiln.name") {
        return name;
    }
    let image = || {
        let names = record.exporters.iter().find_map(|exporter| exporter.attrs.get("name"))?;
        names.split(',').next().map(str::to_owned)
    };
    let name = attr("context").or_else(|| attr("vcs:localdir:context")).or_else(image).or_else(|| attr("vcs:source"));
    let name = name.unwrap_or_default();
    attr("target").map_or_else(|| name.clone(), |target| format!("{name} ({target})").trim_start().to_owned())
}

/// All there is to know of a build.
struct About {
    record: BuildHistoryRecord,
    details: Vec<Detail>,
    steps: Vec<Timing>,
    warnings: Vec<String>,
    materials: Vec<Value>,
}

impl About {
    async fn read(builder: &Builder, record: BuildHistoryRecord) -> Result<Self> {
        let details = match &record.external_error {
            Some(status) => decode_details(&builder.content(&status.digest, MAX_DOCUMENT).await?),
            None => Vec::new(),
        };
        let (steps, warnings) = match &record.logs {
            Some(log) => timings(&reports(&builder.content(&log.digest, MAX_LOG).await?)),
            None => Default::default(),
        };
        let mut materials = Vec::new();
        for (_, descriptor) in attachments(&record) {
            if !predicate(descriptor).contains("provenance") {
                continue;
            }
            let document = builder.content(&descriptor.digest, MAX_DOCUMENT).await?;
            for material in self::materials(&serde_json::from_slice(&document)?) {
                if !materials.contains(&material) {
                    materials.push(material);
                }
            }
        }
        Ok(Self { record, details, steps, warnings, materials })
    }

    fn attr(&self, key: &str) -> Option<&str> {
        self.record.frontend_attrs.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Attributes of a family, `build-arg:`, by name.
    fn family(&self, prefix: &str) -> BTreeMap<&str, &str> {
        let attrs = self.record.frontend_attrs.iter();
        attrs.filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value.as_str()))).collect()
    }

    /// With buildx's names.
    fn json(&self) -> Value {
        let Self { record, .. } = self;
        let pairs = |family: BTreeMap<&str, &str>| -> Vec<Value> {
            family.into_iter().map(|(name, value)| json!({ "Name": name, "Value": value })).collect()
        };
        let at = |stamp: Option<i64>| {
            stamp.and_then(|ns| jiff::Timestamp::from_nanosecond(ns.into()).ok()).map(|time| time.to_string())
        };
        let (started, completed) =
            (record.created_at.as_ref().map(nanoseconds), record.completed_at.as_ref().map(nanoseconds));
        let platforms: Vec<&str> = self.attr("platform").map(|list| list.split(',').collect()).unwrap_or_default();
        let attached: Vec<Value> = attachments(record)
            .iter()
            .map(|(platform, one)| json!({ "Digest": one.digest, "Platform": platform, "Type": predicate(one) }))
            .collect();
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|step| json!({ "Name": step.name, "Result": step.took, "DurationNs": step.took_ns }))
            .collect();
        let error = record.error.as_ref().map(|error| json!({ "Code": error.code, "Message": error.message }));
        json!({
            "Name": name(record),
            "Ref": record.r#ref,
            "Context": self.attr("context").unwrap_or_default(),
            "Dockerfile": self.attr("filename").unwrap_or("Dockerfile"),
            "VCSRepository": self.attr("vcs:source").unwrap_or_default(),
            "VCSRevision": self.attr("vcs:revision").unwrap_or_default(),
            "Target": self.attr("target").unwrap_or_default(),
            "Platform": platforms,
            "Status": status(record).to_lowercase(),
            "StartedAt": at(started),
            "CompletedAt": at(completed),
            "Duration": completed.zip(started).map(|(end, start)| end - start),
            "NumTotalSteps": record.num_total_steps,
            "NumCompletedSteps": record.num_completed_steps,
            "NumCachedSteps": record.num_cached_steps,
            "Pinned": record.pinned,
            "BuildArgs": pairs(self.family("build-arg:")),
            "Labels": pairs(self.family("label:")),
            "Exporters": record.exporters.iter().map(|one| json!({ "Type": one.r#type, "Attrs": one.attrs })).collect::<Vec<_>>(),
            "ExporterResponse": record.exporter_response,
            "Materials": self.materials,
            "Attachments": attached,
            "Error": error,
            "Warnings": self.warnings,
            "Steps": steps,
        })
    }

    /// For people.
    fn text(&self) -> String {
        let Self { record, .. } = self;
        let line = |name: &str, value: &str| match value {
            "" => String::new(),
            value => format!("{name}:\t{value}\n"),
        };
        let cached = match record.num_total_steps {
            0 => String::new(),
            total => format!(" ({}% cached)", record.num_cached_steps * 100 / total),
        };
        let started = record.created_at.map(|stamp| crate::cli::image::list::at(stamp.seconds)).unwrap_or_default();
        let head = [
            line("Name", &name(record)),
            line("Build ID", &record.r#ref),
            line("Context", self.attr("context").unwrap_or_default()),
            line("Dockerfile", self.attr("filename").unwrap_or_default()),
            line("VCS Repository", self.attr("vcs:source").unwrap_or_default()),
            line("VCS Revision", self.attr("vcs:revision").unwrap_or_default()),
            line("Target", self.attr("target").unwrap_or_default()),
            line("Platform", self.attr("platform").unwrap_or_default()),
            line("Status", status(record)),
            line("Started", &started),
            line("Duration", &took(record, jiff::Timestamp::now())),
            line("Build Steps", &format!("{}/{}{cached}", record.num_completed_steps, record.num_total_steps)),
        ];
        let mut text = table::align(&head.concat());
        let family =
            |prefix: &str| self.family(prefix).into_iter().map(|(key, value)| format!("{key}\t{value}")).collect();
        let words = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let digest =
            |value: &Value| value["Digests"].as_array().and_then(|all| Some(all.first()?.as_str()?.to_owned()));
        let sections: [(&str, Vec<String>); 6] = [
            ("BUILD ARG\tVALUE", family("build-arg:")),
            ("LABEL\tVALUE", family("label:")),
            (
                "STEP\tTOOK",
                self.steps.iter().map(|step| format!("{}\t{}", step.name.replace('\t', " "), step.took)).collect(),
            ),
            (
                "MATERIAL\tDIGEST",
                self.materials
                    .iter()
                    .map(|one| format!("{}\t{}", words(one, "URI"), digest(one).unwrap_or_default()))
                    .collect(),
            ),
            (
                "ATTACHMENT\tPLATFORM\tTYPE",
                attachments(record)
                    .iter()
                    .map(|(platform, one)| format!("{}\t{platform}\t{}", one.digest, predicate(one)))
                    .collect(),
            ),
            ("WARNING", self.warnings.clone()),
        ];
        for (title, rows) in sections.into_iter().filter(|(_, rows)| !rows.is_empty()) {
            text.push_str(&format!("\n{}\n", table::align(&format!("{title}\n{}", rows.join("\n")))));
        }
        if let Some(error) = &record.error {
            let excerpt = anstream::adapter::strip_str(&excerpts(&self.details)).to_string();
            text.push_str(&format!("\nERROR: {}\n{excerpt}", error.message));
        }
        text.push_str(&format!("\nPrint what it printed: kiln history logs {}\n", record.r#ref));
        text
    }
}

/// The reports of a log, as far as they are whole.
fn reports(mut log: &[u8]) -> Vec<StatusResponse> {
    let mut reports = Vec::new();
    while let Some((length, rest)) = log.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some(report) = rest.get(..length).and_then(|bytes| prost::Message::decode(bytes).ok()) else { break };
        reports.push(report);
        log = &rest[length..];
    }
    reports
}

/// What provenance of either version says a result was made of.
fn materials(predicate: &Value) -> Vec<Value> {
    let list = predicate["materials"].as_array();
    let list = list.or_else(|| predicate["buildDefinition"]["resolvedDependencies"].as_array());
    let material = |one: &Value| {
        let digests = one["digest"].as_object().into_iter().flatten();
        let digests: Vec<String> =
            digests.map(|(algorithm, hex)| format!("{algorithm}:{}", hex.as_str().unwrap_or_default())).collect();
        json!({ "URI": one["uri"], "Digests": digests })
    };
    list.into_iter().flatten().map(material).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn materials_are_read_of_both_versions_of_provenance() {
        let one = json!({ "uri": "pkg:docker/busybox", "digest": { "sha256": "00" } });
        let expected = [json!({ "URI": "pkg:docker/busybox", "Digests": ["sha256:00"] })];
        assert_eq!(materials(&json!({ "materials": [one] })), expected);
        assert_eq!(materials(&json!({ "buildDefinition": { "resolvedDependencies": [one] } })), expected);
        assert!(materials(&json!({})).is_empty());
    }

    #[test]
    fn a_log_that_is_cut_off_is_read_as_far_as_it_goes() {
        let report = StatusResponse { warnings: vec![Default::default()], ..StatusResponse::default() };
        let mut log = Vec::new();
        for _ in 0..2 {
            let bytes = prost::Message::encode_to_vec(&report);
            log.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
            log.extend(bytes);
        }
        assert_eq!(reports(&log).len(), 2);
        assert_eq!(reports(&log[..log.len() - 1]).len(), 1);
        assert!(reports(&[1, 2]).is_empty());
    }
}
