//! `SOURCE_DATE_EPOCH=NAME`: the time of a named context, or of the one source that a stage adds.
//!
//! Such a stage is `FROM scratch`, declares arguments and adds one repository or one file by HTTP. Which time that has is for the
//! builder to find out.

use std::collections::BTreeMap;

use kiln_graph::op::{GitSource, HttpSource};
use kiln_graph::{Diagnostic, SourceFile};

use super::globals::{EPOCH, Globals, OF_CONTEXT};
use super::remote::{self, Remote};
use super::{Files, Request};
use crate::instruction::{Add, Kind, Stage};
use crate::line::Word;
use crate::parse;
use crate::shell::{Lexer, Variables};

/// Returns the name that the time of a build is taken from, if it is one: of a named context or of a stage.
#[must_use]
pub fn epoch_name(file: &SourceFile, build_args: &BTreeMap<String, String>) -> Option<String> {
    if !build_args.contains_key(EPOCH) && !file.text().contains(EPOCH) {
        return None;
    }
    let value = match build_args.get(EPOCH) {
        Some(value) => value.clone(),
        None => {
            let request = Request { build_args: build_args.clone(), ..Request::new(file) };
            // What is wrong with the file is reported when it is lowered.
            let globals = Globals::new(&parse(file).ok()?, &request).ok()?;
            globals.variables.get(EPOCH)?.to_owned()
        }
    };
    (!value.is_empty() && value != OF_CONTEXT && value.parse::<i64>().is_err()).then_some(value)
}

/// Returns what a stage adds that the time of a build is taken from; `None` when there is no such stage.
///
/// # Errors
/// A stage that does anything else.
pub fn epoch_source(
    file: &SourceFile,
    build_args: &BTreeMap<String, String>,
    name: &str,
) -> Result<Option<Files>, Diagnostic> {
    let Ok(dockerfile) = parse(file) else { return Ok(None) };
    let is_it = |stage: &&Stage| stage.name.as_ref().is_some_and(|known| known.text.eq_ignore_ascii_case(name));
    let Some(stage) = dockerfile.stages.iter().find(is_it) else { return Ok(None) };
    let request = Request { build_args: build_args.clone(), ..Request::new(file) };
    let mut variables = Globals::new(&dockerfile, &request)?.variables;
    let lexer = Lexer::new(dockerfile.directives.escape);
    let refuse = |span, what: &str| {
        let message = format!("{EPOCH}={name}: the stage {what}");
        Diagnostic::error(span, message)
            .with_hint("it begins with FROM scratch and adds one repository or one file by HTTP, and nothing else")
    };
    if expand(&lexer, &stage.base, &variables)? != "scratch" {
        return Err(refuse(stage.base.span, "has a base"));
    }
    let mut found = None;
    for instruction in &stage.instructions {
        match &instruction.kind {
            Kind::Arg(arguments) => {
                for argument in arguments {
                    let name = &argument.name.text;
                    if let Some(value) = build_args.get(name) {
                        variables.set(name, value.clone());
                    } else if let Some(default) = &argument.default {
                        let value = expand(&lexer, default, &variables)?;
                        variables.set(name, value);
                    }
                }
            }
            Kind::Add(add) if found.is_none() => {
                let source = match add.transfer.sources.as_slice() {
                    [source] if add.transfer.documents.is_empty() => added(add, source, &lexer, &variables)?,
                    _ => None,
                };
                let span = instruction.head.span;
                found = Some(source.ok_or_else(|| refuse(span, "adds something that has no time of its own"))?);
            }
            _ => return Err(refuse(instruction.head.span, "does more than to add one source")),
        }
    }
    found.map(Some).ok_or_else(|| refuse(stage.base.span, "adds nothing"))
}

fn expand(lexer: &Lexer, word: &Word, variables: &Variables) -> Result<String, Diagnostic> {
    let expanded = lexer.expand(&word.text, variables);
    expanded.map(|expansion| expansion.text).map_err(|error| Diagnostic::error(word.span, error.to_string()))
}

/// What an ADD fetches; `None` when it is nothing that is fetched.
fn added(add: &Add, source: &Word, lexer: &Lexer, variables: &Variables) -> Result<Option<Files>, Diagnostic> {
    let address = expand(lexer, source, variables)?;
    let checksum = add.checksum.as_ref().map(|word| expand(lexer, word, variables).map(|text| (text, word.span)));
    let checksum = checksum.transpose()?;
    let remote = remote::parse(&address, add.keep_git_dir.is_some())
        .map_err(|why| Diagnostic::error(source.span, format!("{address}: {why}")))?;
    Ok(match remote {
        None => None,
        Some(Remote::Git(git, _)) => {
            let checksum = checksum.map_or(git.checksum, |(text, _)| text);
            let reference = if git.reference.is_empty() { checksum.clone() } else { git.reference };
            Some(Files::Git(GitSource { checksum, reference, ..git }))
        }
        Some(Remote::Http { filename }) => {
            let parse = |(text, span): (String, _)| {
                text.parse().map_err(|why| Diagnostic::error(span, format!("--checksum={text}: {why}")))
            };
            let checksum = checksum.map(parse).transpose()?;
            Some(Files::File(HttpSource { url: address, checksum, filename, ..HttpSource::default() }))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> SourceFile {
        SourceFile::new("Dockerfile", text)
    }

    fn args(value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(EPOCH.to_owned(), value.to_owned())])
    }

    #[test]
    fn a_name_is_what_is_neither_a_number_nor_the_context() {
        let none = BTreeMap::new();
        let plain = file("FROM scratch\n");
        for (value, name) in [("7", None), ("context", None), ("", None), ("src", Some("src"))] {
            assert_eq!(epoch_name(&plain, &args(value)).as_deref(), name, "{value}");
        }
        let global = file("ARG from=src\nARG SOURCE_DATE_EPOCH=$from\nFROM scratch AS src\n");
        assert_eq!(epoch_name(&global, &none).as_deref(), Some("src"));
        assert_eq!(epoch_name(&global, &args("5")), None);
        assert_eq!(epoch_name(&plain, &none), None);
    }

    #[test]
    fn a_stage_adds_one_source() {
        let of = |text: &str| epoch_source(&file(text), &args("src"), "src");
        let git = of("FROM scratch AS SRC\nARG ref=v1\nADD https://example.com/a.git#$ref /\n").unwrap();
        let Some(Files::Git(git)) = git else { panic!("{git:?}") };
        assert_eq!((git.remote.as_str(), git.reference.as_str()), ("https://example.com/a.git", "v1"));
        let http = of("FROM scratch AS src\nADD https://example.com/a.tar.gz /\nFROM scratch\n").unwrap();
        let Some(Files::File(http)) = http else { panic!("{http:?}") };
        assert_eq!((http.url.as_str(), http.filename.as_str()), ("https://example.com/a.tar.gz", "a.tar.gz"));
        assert!(of("FROM scratch AS other\n").unwrap().is_none());
        for (text, words) in [
            ("FROM busybox AS src\nADD https://a.b/c /\n", "has a base"),
            ("FROM scratch AS src\nCOPY a /\n", "does more"),
            ("FROM scratch AS src\nADD https://a.b/c /\nADD https://a.b/d /\n", "does more"),
            ("FROM scratch AS src\nADD a /\n", "no time of its own"),
            ("FROM scratch AS src\nADD https://a.b/c https://a.b/d /x/\n", "no time of its own"),
            ("FROM scratch AS src\nARG A\n", "adds nothing"),
        ] {
            let refused = of(text).unwrap_err();
            assert!(refused.message.contains(words), "{text}: {refused:?}");
        }
    }
}
