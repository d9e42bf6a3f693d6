//! The stages of a file, as BuildKit's `frontend.targets` lists them.

use serde::Serialize;

use super::place::{Location, Sources};
use super::{Answer, table};
use crate::instruction::Dockerfile;

#[derive(Serialize)]
struct List {
    targets: Vec<Target>,
    sources: Vec<String>,
}

#[derive(Serialize)]
struct Target {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    base: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    platform: String,
    location: Location,
}

pub(super) fn answer(dockerfile: &Dockerfile) -> Answer {
    let mut sources = Sources::new(&dockerfile.file);
    let count = dockerfile.stages.len();
    let target = |(number, stage): (usize, &crate::instruction::Stage)| Target {
        name: stage.name.as_ref().map(|name| name.text.clone()).unwrap_or_default(),
        default: number == count,
        description: stage.description.clone().unwrap_or_default(),
        base: stage.base.text.clone(),
        platform: stage.platform.as_ref().map(|platform| platform.text.clone()).unwrap_or_default(),
        location: sources.location(Some(stage.head.span)),
    };
    let targets: Vec<Target> = (1..).zip(&dockerfile.stages).map(target).collect();
    let mut rows = vec![vec!["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    for target in &targets {
        let name = match (target.name.as_str(), target.default) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        rows.push(vec![name, target.description.clone()]);
    }
    Answer::new(&List { targets, sources: sources.texts() }, table(&rows, 1))
}
