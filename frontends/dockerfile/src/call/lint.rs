//! What checks find, as BuildKit's `frontend.lint` reports it. Only checks count: other advice is for builds.

use kiln_graph::{Diagnostic, SourceFile};
use serde::Serialize;

use super::Answer;
use super::place::{Location, SourceInfo, Sources, excerpt};
use crate::check;

#[derive(Serialize)]
struct Results {
    /// Null when there are none, as in BuildKit.
    warnings: Option<Vec<Warning>>,
    sources: Vec<SourceInfo>,
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    error: Option<BuildError>,
}

#[derive(Serialize)]
struct Warning {
    #[serde(rename = "ruleName")]
    rule: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    url: String,
    detail: String,
    location: Location,
}

#[derive(Serialize)]
struct BuildError {
    message: String,
    location: Location,
}

pub(super) fn answer(file: &SourceFile, warnings: &[Diagnostic], errors: &[Diagnostic]) -> Answer {
    let mut sources = Sources::new(file);
    let mut listed = Vec::new();
    let mut text = String::new();
    for warning in warnings {
        let Some(rule) = warning.rule.and_then(check::rule) else { continue };
        let instruction = warning.within.or(warning.span);
        let url = rule.url();
        let address = if url.is_empty() { String::new() } else { format!(" - {url}") };
        text.push_str(&format!("\nWARNING: {}{address}\n{}\n", rule.name, warning.message));
        if let (Some(span), Some(instruction)) = (warning.span, instruction) {
            text.push_str(&excerpt(file, span, instruction));
        }
        listed.push(Warning {
            rule: rule.name,
            description: rule.description,
            url,
            detail: warning.message.clone(),
            location: sources.location(instruction),
        });
    }
    let error = errors.first().map(|error| BuildError {
        message: error.to_string(),
        location: sources.location(error.within.or(error.span)),
    });
    let findings = listed.len();
    let results = Results { warnings: (findings > 0).then_some(listed), sources: sources.infos(), error };
    let error = (!errors.is_empty()).then(|| errors.iter().map(|error| shown(file, error)).collect());
    Answer { findings, error, ..Answer::new(&results, text) }
}

/// Writes an error for people: what is wrong, then its lines.
pub(super) fn shown(file: &SourceFile, error: &Diagnostic) -> String {
    let place = error.span.map(|span| excerpt(file, span, error.within.unwrap_or(span))).unwrap_or_default();
    format!("{error}\n{place}")
}
