//! The parser beside another one, on all cases: `parse-dockerfile` reads 29 of 40 hard cases as BuildKit does. Where the two
//! differ, the difference is listed here with the reason.

use std::path::Path;

use kiln_dockerfile::{Dockerfile, parse};
use kiln_graph::SourceFile;
use parse_dockerfile::{Instruction, parse_iter};

/// Cases that the other parser reads in another way than BuildKit, and why.
const KNOWN: &[(&str, &str)] = &[
    ("03-heredoc-two", "it reads here-documents at the start of a command only, so bodies become instructions"),
    ("07-heredoc-shebang-fd", "as above, with a descriptor before the <<"),
    ("24-bom", "it takes a byte order mark for a part of the first keyword"),
    ("39-escaped-bs-eol", "it continues a line after an escaped escape character, and loses the next instruction"),
    (
        "onbuild-accepts-what-it-does-not-know",
        "it reads what ONBUILD defers, which BuildKit does not before it is triggered",
    ),
    ("run-heredocs", "as the first"),
];

/// What both say: keywords, and where each stands.
type Outline = Vec<(String, usize)>;

fn own(dockerfile: &Dockerfile) -> Outline {
    let globals = dockerfile.global_arguments.iter().map(|global| &global.head);
    let stages = dockerfile.stages.iter().flat_map(|stage| {
        std::iter::once(&stage.head).chain(stage.instructions.iter().map(|instruction| &instruction.head))
    });
    let heads = globals.chain(stages).map(|head| (head.keyword.text.to_uppercase(), head.keyword.span.range().start));
    heads.collect()
}

fn other(text: &str) -> Option<Outline> {
    let mut outline = Vec::new();
    for instruction in parse_iter(text).ok()? {
        let span = match instruction.ok()? {
            Instruction::Add(it) => it.add.span,
            Instruction::Arg(it) => it.arg.span,
            Instruction::Cmd(it) => it.cmd.span,
            Instruction::Copy(it) => it.copy.span,
            Instruction::Entrypoint(it) => it.entrypoint.span,
            Instruction::Env(it) => it.env.span,
            Instruction::Expose(it) => it.expose.span,
            Instruction::From(it) => it.from.span,
            Instruction::Healthcheck(it) => it.healthcheck.span,
            Instruction::Label(it) => it.label.span,
            Instruction::Maintainer(it) => it.maintainer.span,
            Instruction::Onbuild(it) => it.onbuild.span,
            Instruction::Run(it) => it.run.span,
            Instruction::Shell(it) => it.shell.span,
            Instruction::Stopsignal(it) => it.stopsignal.span,
            Instruction::User(it) => it.user.span,
            Instruction::Volume(it) => it.volume.span,
            Instruction::Workdir(it) => it.workdir.span,
            _ => return None,
        };
        outline.push((text[span.clone()].to_uppercase(), span.start));
    }
    Some(outline)
}

#[test]
fn another_parser_finds_the_same_instructions_at_the_same_places() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/dockerfile");
    let (mut different, mut compared) = (Vec::new(), 0);
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "dockerfile") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let Ok(dockerfile) = parse(&SourceFile::new("Dockerfile", &text)) else { continue };
        compared += 1;
        if other(&text).as_ref() != Some(&own(&dockerfile)) {
            different.push(path.file_stem().unwrap().to_string_lossy().into_owned());
        }
    }
    different.sort();
    let mut known: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(different, known, "of {compared} cases");
    assert!(compared > 100, "{compared} cases");
}
