//! Dockerfiles and what becomes of them, as data: `testdata/dockerfile/NAME.dockerfile` beside `NAME.graph` (the steps, the
//! image configuration, the history and the warnings) or `NAME.error`. `NAME.request` holds options of the build, one in a
//! line; `NAME.dockerignore` is the context's. `KILN_BLESS=1` writes the expectations.

mod support;

use std::path::{Path, PathBuf};

use kiln_graph::SourceFile;
use support::{Case, dump, render};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/dockerfile")
}

fn read(path: &Path) -> Option<String> {
    path.exists().then(|| text(path))
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// Returns what becomes of a case: the extension of its expectation, and the text.
fn outcome(path: &Path) -> (&'static str, String) {
    let text = text(path);
    let file = SourceFile::new("Dockerfile", &text);
    let options = read(&path.with_extension("request")).unwrap_or_default();
    let ignore = read(&path.with_extension("dockerignore"));
    let case = Case::new(&file, &options, ignore.as_deref());
    match case.lower() {
        Ok(lowered) => ("graph", dump(&lowered, &file)),
        Err(refused) => ("error", render(&refused.errors, &file) + &render(&refused.warnings, &file)),
    }
}

#[test]
fn every_case_becomes_what_stands_beside_it() {
    let bless = std::env::var_os("KILN_BLESS").is_some();
    let entries = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "dockerfile")).collect();
    cases.sort();
    assert!(cases.len() > 30, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for path in cases {
        let (extension, text) = outcome(&path);
        let expected = path.with_extension(extension);
        let other = path.with_extension(if extension == "graph" { "error" } else { "graph" });
        if bless {
            std::fs::write(&expected, &text).unwrap();
            let _ = std::fs::remove_file(&other);
        } else if read(&expected).as_deref() != Some(&text) || other.exists() {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            wrong.push(format!("=== {name}\nbut it is {extension}:\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "KILN_BLESS=1 accepts these:\n{}", wrong.join("\n"));
}

#[test]
fn a_line_may_be_long() {
    // Go's scanner stops at 64 KiB, and with it BuildKit.
    let text = format!("FROM alpine\nENV A={}\n", "x".repeat(1 << 20));
    let file = SourceFile::new("Dockerfile", &text);
    let lowered = Case::new(&file, "", None).lower().unwrap();
    assert_eq!(lowered.config.config.env.last().map(String::len), Some((1 << 20) + 2));
}
