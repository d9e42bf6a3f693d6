//! Writing a parsed Dockerfile down again, in its plainest form: one line for each instruction, only comments that mean
//! something. Reading that gives the same instructions.

use std::fmt::Write as _;

use crate::check::Selection;
use crate::heredoc::Heredoc;
use crate::instruction::{Argument, Dockerfile, Head, Kind, Stage};

/// Writes a Dockerfile.
///
/// One text cannot be written on one line: that which ends in the escape character, because it stood before blanks and a
/// continuation that nothing followed. It is written as it is.
#[must_use]
pub fn print(dockerfile: &Dockerfile) -> String {
    let mut out = String::new();
    let directives = &dockerfile.directives;
    let words = [("syntax", &directives.syntax), ("check", &directives.check)];
    let words = words.iter().filter_map(|(name, word)| Some((*name, word.as_ref()?.text.clone())));
    let escape = (directives.escape != '\\').then(|| ("escape", directives.escape.to_string()));
    for (name, value) in escape.into_iter().chain(words) {
        line(&mut out, format_args!("# {name}={value}"));
    }
    // From here on, comments are no directives.
    out.push('\n');
    for global in &dockerfile.global_arguments {
        comments(&mut out, &global.head, &global.arguments);
        line(&mut out, format_args!("{}", global.head.text));
    }
    dockerfile.stages.iter().for_each(|stage| self::stage(&mut out, stage));
    out
}

fn stage(out: &mut String, stage: &Stage) {
    skipped(out, &stage.head);
    if let (Some(name), Some(description)) = (&stage.name, &stage.description) {
        line(out, format_args!("# {} {description}", name.text));
    }
    line(out, format_args!("{}", stage.head.text));
    for instruction in &stage.instructions {
        let head = &instruction.head;
        match &instruction.kind {
            Kind::Arg(arguments) => comments(out, head, arguments),
            _ => skipped(out, head),
        }
        match &instruction.kind {
            Kind::Onbuild(text) => {
                line(out, format_args!("{}", head.text));
                // Documents that its instruction brings stand behind it.
                text.text.split_once('\n').iter().for_each(|(_, documents)| line(out, format_args!("{documents}")));
            }
            Kind::Run(run) => with_documents(out, head, &run.heredocs),
            Kind::Copy(copy) => with_documents(out, head, &copy.transfer.documents),
            Kind::Add(add) => with_documents(out, head, &add.transfer.documents),
            _ => line(out, format_args!("{}", head.text)),
        }
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("a String takes everything");
}

/// Writes the checks that do not run for an instruction.
fn skipped(out: &mut String, head: &Head) {
    match &head.skipped_checks {
        Selection::All => line(out, format_args!("# check=skip=all")),
        Selection::Named(names) if !names.is_empty() => line(out, format_args!("# check=skip={}", names.join(","))),
        Selection::Named(_) => {}
    }
}

/// Writes the comments above an ARG.
fn comments(out: &mut String, head: &Head, arguments: &[Argument]) {
    skipped(out, head);
    for argument in arguments {
        if let Some(description) = &argument.description {
            line(out, format_args!("# {} {description}", argument.name.text));
        }
    }
}

fn with_documents(out: &mut String, head: &Head, documents: &[Heredoc]) {
    line(out, format_args!("{}", head.text));
    for document in documents {
        out.push_str(&document.body.text);
        line(out, format_args!("{}", document.name));
    }
}

#[cfg(test)]
mod tests {
    use kiln_graph::SourceFile;

    use super::*;
    use crate::parse;

    #[test]
    fn a_file_is_written_in_its_plainest_form() {
        let text = "# escape=`\n#syntax=docker/dockerfile:1\n# V the version\nARG V=1\n\n# check=skip=StageNameCasing\n\
                    # build makes it\nFROM a AS Build\n# gone\n  RUN one `\n # gone\n  two\nCOPY <<E <<-F /x/\nb\nE\n\tc\n\
                    \tF\nONBUILD RUN <<E\nhi\nE\n";
        let dockerfile = parse(&SourceFile::new("Dockerfile", text)).unwrap();
        let printed = print(&dockerfile);
        assert_eq!(
            printed,
            "# escape=`\n# syntax=docker/dockerfile:1\n\n# V the version\nARG V=1\n# check=skip=StageNameCasing\n# build \
             makes it\nFROM a AS Build\nRUN one   two\nCOPY <<E <<-F /x/\nb\nE\n\tc\nF\nONBUILD RUN <<E\nhi\nE\n"
        );
        assert_eq!(print(&parse(&SourceFile::new("Dockerfile", &printed)).unwrap()), printed);
    }
}
