//! What holds for every text: nothing panics, everything ends, and what is printed reads as what was printed.

use kiln_dockerfile::call::{Call, answer_alone};
use kiln_dockerfile::shell::{Lexer, Variables};
use kiln_dockerfile::{Dockerfile, Ignore, Request, parse, print};
use kiln_graph::SourceFile;
use proptest::prelude::*;
use regex::Regex;

/// Words that mean something somewhere in the language.
const WORDS: &[&str] = &[
    "FROM",
    "from",
    "AS",
    "as",
    "RUN",
    "COPY",
    "ADD",
    "ENV",
    "ARG",
    "LABEL",
    "CMD",
    "ENTRYPOINT",
    "EXPOSE",
    "VOLUME",
    "USER",
    "WORKDIR",
    "SHELL",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ONBUILD",
    "MAINTAINER",
    "NONE",
    "scratch",
    "alpine",
    "a",
    "b",
    "/x/",
    "--from=a",
    "--mount=type=cache,target=/x",
    "--mount=",
    "--link",
    "--chmod=u+x",
    "--chown=1:2",
    "--",
    "--platform=$P",
    "--retry=2",
    "# check=skip=all",
    "# syntax=x",
    "# escape=`",
    "#",
    "$a",
    "${a:-b}",
    "${a",
    "'",
    "\"",
    "\\",
    "`",
    "\\\n",
    "\n",
    "\n\n",
    "\t",
    " ",
    "=",
    "a=b",
    "[\"a\", \"b\"]",
    "[",
    "]",
    "<<E",
    "<<-E",
    "<<\"E\"",
    "\nE\n",
    "E",
    "\r\n",
    "é",
    "\u{feff}",
    "80/tcp",
    "0",
];

/// Texts that resemble Dockerfiles closely enough to reach every part of the parser.
fn dockerfile_like() -> impl Strategy<Value = String> {
    prop::collection::vec((prop::sample::select(WORDS), any::<bool>()), 0..40).prop_map(|words| {
        let mut text = String::from("FROM alpine AS a\n");
        for (word, blank) in words {
            text.push_str(word);
            text.push_str(if blank { " " } else { "" });
        }
        text
    })
}

/// What a file says, without where.
fn meaning(dockerfile: &Dockerfile) -> String {
    let places = Regex::new(r"Span \{ start: \d+, end: \d+ \}").expect("a pattern");
    let Dockerfile { directives, global_arguments, stages, .. } = dockerfile;
    places.replace_all(&format!("{directives:?} {global_arguments:?} {stages:?}"), "").into_owned()
}

/// Whether a text ends in an escape that could not be written down again: see `print`.
fn is_printable(dockerfile: &Dockerfile) -> bool {
    let instructions = dockerfile.stages.iter().flat_map(|stage| &stage.instructions).map(|i| &i.head);
    let heads = dockerfile.stages.iter().map(|stage| &stage.head).chain(instructions);
    let globals = dockerfile.global_arguments.iter().map(|global| &global.head);
    let escape = dockerfile.directives.escape;
    heads.chain(globals).all(|head| !head.text.ends_with(escape) || head.text.ends_with(&format!("{escape}{escape}")))
}

fn check(text: &str) {
    let file = SourceFile::new("Dockerfile", text);
    let _ = answer_alone(Call::Lint, &Request::new(&file));
    let Ok(dockerfile) = parse(&file) else { return };
    if !is_printable(&dockerfile) {
        return;
    }
    let printed = print(&dockerfile);
    let again = parse(&SourceFile::new("Dockerfile", &printed));
    let again = again.unwrap_or_else(|refused| panic!("{text:?} is printed as {printed:?}: {:?}", refused.errors));
    assert_eq!(meaning(&again), meaning(&dockerfile), "{text:?} is printed as {printed:?}");
    assert_eq!(print(&again), printed);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        check(&text);
    }

    #[test]
    fn what_resembles_a_dockerfile_is_read_or_refused_and_printed(text in dockerfile_like()) {
        check(&text);
    }

    #[test]
    fn every_expansion_ends(text in "[$a-c{}:#%/*?+\\-'\"\\\\ `é]{0,40}", value in "[a-c/.]{0,8}") {
        let variables: Variables = [("a", value.as_str()), ("b", "")].into_iter().collect();
        for lexer in [Lexer::new('\\'), Lexer::new('`'), Lexer::of_heredocs()] {
            if let Ok(expansion) = lexer.expand(&text, &variables) {
                prop_assert!(expansion.text.len() <= 4 << 20);
            }
        }
    }

    #[test]
    fn a_walk_decides_as_a_look_at_a_path_does(patterns in "([!*?/a-c.\\[\\]^\\\\-]{0,6}\n){0,6}", path in "[a-c.]{1,3}(/[a-c.]{1,3}){0,3}") {
        let Ok(ignore) = Ignore::parse(&SourceFile::new(".dockerignore", &patterns)) else { return Ok(()) };
        let mut directory = ignore.root();
        let mut reached = String::new();
        for (depth, name) in path.split('/').enumerate() {
            reached = if depth == 0 { name.to_owned() } else { format!("{reached}/{name}") };
            prop_assert_eq!(ignore.excludes_in(&directory, &reached), ignore.excludes(&reached), "{:?} {}", &patterns, &reached);
            directory = ignore.enter(&directory, &reached).1;
        }
    }
}
