//! Questions about a Dockerfile that are answered without building: BuildKit's subrequests.
//!
//! Answers have the form of BuildKit's, in JSON and in text, because clients read them. What images hold is asked for as in
//! [`crate::lower()`], unless the request assumes it.

mod lint;
mod outline;
mod place;
mod targets;

use std::collections::HashMap;

use kiln_graph::diagnostic::closest;
use kiln_graph::{Diagnostic, SourceFile};
use serde::Serialize;

use crate::check::Refused;
use crate::frontend;
use crate::lower::{ImageKey, Need, Outcome, Request, ResolvedImage, lower};

/// The version of all answers' form.
const VERSION: &str = "1.0.0";

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// What do the checks find?
    Lint,
    /// Which arguments and secrets does the target take?
    Outline,
    /// Which stages may be built?
    Targets,
    /// What may be asked?
    Describe,
}

const CALLS: &[(Call, &str)] = &[
    (Call::Lint, "frontend.lint"),
    (Call::Outline, "frontend.outline"),
    (Call::Targets, "frontend.targets"),
    (Call::Describe, "frontend.subrequests.describe"),
];

impl Call {
    /// Finds a call by BuildKit's name for the request, for example `frontend.lint`.
    ///
    /// # Errors
    /// There is no such request; the message says which there are.
    pub fn from_request_id(id: &str) -> Result<Self, String> {
        if let Some((call, _)) = CALLS.iter().find(|(_, known)| *known == id) {
            return Ok(*call);
        }
        let known = CALLS.iter().map(|(_, known)| *known);
        let hint = match closest(id, known.clone()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("there are {}", known.collect::<Vec<_>>().join(", ")),
        };
        Err(format!("unsupported request {id} ({hint})"))
    }

    /// Returns BuildKit's name for the request.
    #[must_use]
    pub fn request_id(self) -> &'static str {
        CALLS.iter().find(|(call, _)| *call == self).map_or("", |(_, id)| id)
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For programs.
    pub json: String,
    /// For people.
    pub text: String,
    /// How many findings there are.
    pub findings: usize,
    /// Why the file cannot be built, with the places in it; for checks only, which report that as well.
    pub error: Option<String>,
    /// The version of the form.
    pub version: &'static str,
}

impl Answer {
    fn new(json: &impl Serialize, text: String) -> Self {
        let json = serde_json::to_string_pretty(json).expect("answers have a JSON form");
        Self { json, text, findings: 0, error: None, version: VERSION }
    }

    /// Returns the exit code: 1 when checks found something.
    #[must_use]
    pub fn status(&self) -> u8 {
        u8::from(self.findings > 0 || self.error.is_some())
    }

    /// Returns BuildKit's metadata of the result: names and values.
    #[must_use]
    pub fn metadata(&self, call: Call) -> Vec<(&'static str, String)> {
        let mut metadata = vec![
            ("result.json", self.json.clone()),
            ("result.txt", self.text.clone()),
            ("version", self.version.to_owned()),
        ];
        metadata.extend((call == Call::Lint).then(|| ("result.statuscode", self.status().to_string())));
        metadata
    }
}

/// What a call comes to.
#[derive(Debug)]
pub enum Asked {
    /// These images must be resolved; then call again, with all images so far.
    Need(Vec<Need>),
    /// The answer.
    Done(Box<Answer>),
}

/// Answers a call.
///
/// # Errors
/// A file that cannot be read. Checks report that in their answer instead.
pub fn answer(call: Call, request: &Request<'_>, images: &HashMap<ImageKey, ResolvedImage>) -> Result<Asked, Refused> {
    let done = |answer| Ok(Asked::Done(Box::new(answer)));
    match call {
        Call::Describe => done(describe()),
        Call::Targets => {
            frontend::check(request)?;
            done(targets::answer(&crate::parse(request.file)?))
        }
        Call::Outline => match lower(request, images)? {
            Outcome::Need(needs) => Ok(Asked::Need(needs)),
            Outcome::Done(lowered) => done(outline::answer(request.file, &lowered.outline)),
        },
        Call::Lint => {
            // Without a target, all stages are meant.
            let request = Request { all_stages: request.target.is_none(), ..request.clone() };
            match lower(&request, images) {
                Ok(Outcome::Need(needs)) => Ok(Asked::Need(needs)),
                Ok(Outcome::Done(lowered)) => done(lint::answer(request.file, &lowered.warnings, &[])),
                Err(refused) => done(lint::answer(request.file, &refused.warnings, &refused.errors)),
            }
        }
    }
}

/// Answers a call with nothing but the file: images that are named are assumed to exist and to set nothing but a PATH.
///
/// # Errors
/// As [`answer`].
pub fn answer_alone(call: Call, request: &Request<'_>) -> Result<Answer, Refused> {
    let request = Request { assume_images: true, ..request.clone() };
    let mut images = HashMap::new();
    loop {
        match answer(call, &request, &images)? {
            Asked::Done(answer) => return Ok(*answer),
            Asked::Need(needs) => {
                images.extend(needs.into_iter().map(|need| {
                    let image = ResolvedImage::assumed(&need.key);
                    (need.key, image)
                }));
            }
        }
    }
}

/// Writes an error of a file for people: what is wrong and what to do about it, the place, and the lines around it.
#[must_use]
pub fn shown(file: &SourceFile, error: &Diagnostic) -> String {
    lint::shown(file, error)
}

/// One kind of request, as BuildKit describes it.
#[derive(Serialize)]
struct Description {
    name: &'static str,
    version: &'static str,
    r#type: &'static str,
    description: &'static str,
    opts: Option<Vec<Named>>,
    inputs: Option<Vec<Named>>,
    metadata: Option<Vec<Named>>,
    refs: Option<Vec<Named>>,
}

#[derive(Serialize)]
struct Named {
    name: &'static str,
    description: &'static str,
}

fn describe() -> Answer {
    let named = |names: &[&'static str]| Some(names.iter().map(|name| Named { name, description: "" }).collect());
    let description = |call: Call, description, opts, metadata| Description {
        name: call.request_id(),
        version: VERSION,
        r#type: "rpc",
        description,
        opts,
        inputs: None,
        metadata,
        refs: None,
    };
    let results = || named(&["result.json", "result.txt"]);
    let target = vec![Named { name: "target", description: "Target build stage" }];
    let all = [
        description(Call::Outline, "List all parameters current build target supports", Some(target), results()),
        description(Call::Targets, "List all targets current build supports", Some(Vec::new()), results()),
        description(
            Call::Lint,
            "Lint a Dockerfile",
            Some(Vec::new()),
            named(&["result.json", "result.txt", "result.statuscode"]),
        ),
        description(Call::Describe, "List available subrequest types", None, results()),
    ];
    let mut rows = vec![["NAME", "VERSION", "DESCRIPTION"].map(str::to_owned).to_vec()];
    for request in &all {
        let name = request.name.trim_start_matches("frontend.");
        rows.push([name, request.version, request.description].map(str::to_owned).to_vec());
    }
    Answer::new(&all, table(&rows, 1))
}

/// Lays out rows of cells as Go's `tabwriter` does: every column but the last is as wide as its widest cell and some blanks.
fn table(rows: &[Vec<String>], blanks: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default() + blanks).collect();
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths).take(row.len().saturating_sub(1)) {
            text.push_str(&format!("{cell:<width$}"));
        }
        text.push_str(row.last().map_or("", String::as_str));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_known_by_buildkits_names() {
        for (call, id) in CALLS {
            assert_eq!((Call::from_request_id(id), call.request_id()), (Ok(*call), *id));
        }
        let unknown = Call::from_request_id("frontend.lnit").unwrap_err();
        assert_eq!(unknown, "unsupported request frontend.lnit (did you mean frontend.lint?)");
    }

    #[test]
    fn the_calls_describe_themselves() {
        let answer = describe();
        assert_eq!(
            answer.text,
            "NAME                 VERSION DESCRIPTION\n\
             outline              1.0.0   List all parameters current build target supports\n\
             targets              1.0.0   List all targets current build supports\n\
             lint                 1.0.0   Lint a Dockerfile\n\
             subrequests.describe 1.0.0   List available subrequest types\n"
        );
        let parsed: serde_json::Value = serde_json::from_str(&answer.json).unwrap();
        assert_eq!((&parsed[0]["opts"][0]["name"], &parsed[3]["type"]), (&"target".into(), &"rpc".into()));
    }
}
