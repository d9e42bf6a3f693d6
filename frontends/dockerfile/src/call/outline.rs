//! What a build of the target may be given, as BuildKit's `frontend.outline` reports it.

use kiln_graph::SourceFile;
use serde::Serialize;

use super::place::{Location, Sources};
use super::{Answer, table};
use crate::lower::Outline;

#[derive(Serialize)]
struct Listed {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<Arg>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<Mounted>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<Mounted>,
    sources: Vec<String>,
}

#[derive(Serialize)]
struct Arg {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    value: String,
    location: Location,
}

#[derive(Serialize)]
struct Mounted {
    name: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: Location,
}

pub(super) fn answer(file: &SourceFile, outline: &Outline) -> Answer {
    let mut sources = Sources::new(file);
    let args = outline.arguments.iter().map(|argument| Arg {
        name: argument.name.clone(),
        description: argument.description.clone(),
        value: argument.value.clone(),
        location: sources.location(Some(argument.span)),
    });
    let args: Vec<Arg> = args.collect();
    let mut mounted = |mounts: &[crate::lower::Mounted]| -> Vec<Mounted> {
        let listed = mounts.iter().map(|mount| Mounted {
            name: mount.id.clone(),
            required: mount.required,
            location: sources.location(Some(mount.span)),
        });
        listed.collect()
    };
    let (secrets, ssh) = (mounted(&outline.secrets), mounted(&outline.agents));
    let (name, description) = (outline.name.clone(), outline.description.clone());
    let listed = Listed { name, description, args, secrets, ssh, sources: sources.texts() };
    Answer::new(&listed, text(&listed))
}

fn text(outline: &Listed) -> String {
    let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<String>>();
    let mut text = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let mut rows = vec![row(&["TARGET:", name])];
        if !outline.description.is_empty() {
            rows.push(row(&["DESCRIPTION:", &outline.description]));
        }
        text.push_str(&(table(&rows, 1) + "\n"));
    }
    if !outline.args.is_empty() {
        let mut rows = vec![row(&["BUILD ARG", "VALUE", "DESCRIPTION"])];
        rows.extend(outline.args.iter().map(|arg| row(&[&arg.name, &arg.value, &arg.description])));
        text.push_str(&(table(&rows, 3) + "\n"));
    }
    for (title, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if !mounts.is_empty() {
            let mut rows = vec![row(&[title, "REQUIRED"])];
            rows.extend(mounts.iter().map(|mount| row(&[&mount.name, if mount.required { "true" } else { "" }])));
            text.push_str(&(table(&rows, 3) + "\n"));
        }
    }
    text
}
