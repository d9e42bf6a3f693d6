//! Dockerfiles and what is answered about them: `testdata/dockerfile/calls/NAME.dockerfile` beside `NAME.answers`, with
//! `NAME.request` and `NAME.dockerignore` as in `cases.rs`. `KILN_BLESS=1` writes the expectations.

#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use std::path::{Path, PathBuf};

use kiln_dockerfile::call::{Answer, Call, answer_alone};
use kiln_graph::SourceFile;
use support::{Case, render};

fn read(path: &Path) -> Option<String> {
    path.exists().then(|| std::fs::read_to_string(path).expect("read a file"))
}

fn answers(path: &Path) -> String {
    let text = read(path).expect("a Dockerfile");
    let file = SourceFile::new("Dockerfile", &text);
    let options = read(&path.with_extension("request")).unwrap_or_default();
    let ignore = read(&path.with_extension("dockerignore"));
    let case = Case::new(&file, &options, ignore.as_deref());
    let mut out = String::new();
    for call in [Call::Lint, Call::Outline, Call::Targets] {
        out.push_str(&format!("==== {}\n", call.request_id()));
        match answer_alone(call, &case.request) {
            Ok(answer) => show(&mut out, call, &answer),
            Err(refused) => out.push_str(&render(&refused.errors, &file)),
        }
    }
    out
}

fn show(out: &mut String, call: Call, answer: &Answer) {
    out.push_str(&format!("status {}, {} findings\n", answer.status(), answer.findings));
    out.push_str(&answer.text);
    if let Some(error) = &answer.error {
        out.push_str(&format!("---- error\n{error}\n"));
    }
    let mut json: serde_json::Value = serde_json::from_str(&answer.json).expect("JSON");
    // The sources are the file itself.
    let sources = json.as_object_mut().and_then(|answer| answer.remove("sources"));
    assert_eq!(sources.as_ref().and_then(|sources| sources.as_array()).map(Vec::len), Some(1));
    out.push_str(&format!("---- json\n{json:#}\n"));
    let has_status = answer.metadata(call).iter().any(|(name, _)| *name == "result.statuscode");
    assert_eq!(has_status, call == Call::Lint);
}

#[test]
fn every_file_gets_the_answers_beside_it() {
    let bless = std::env::var_os("KILN_BLESS").is_some();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/dockerfile/calls");
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "dockerfile")).collect();
    files.sort();
    assert!(files.len() > 10, "{} files", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let (answers, expected) = (answers(&path), path.with_extension("answers"));
        if bless {
            std::fs::write(&expected, &answers).unwrap();
        } else if read(&expected).as_deref() != Some(&answers) {
            wrong.push(format!("=== {}\n{answers}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "KILN_BLESS=1 accepts these:\n{}", wrong.join("\n"));
}
