//! `INCLUDE file`: an extension that puts the instructions of other files into a Dockerfile.
//!
//! Off unless the first line is `# syntax=kiln`. Files are read by the caller; here their texts are assembled, at the borders of
//! instructions, so that everything else sees one text that knows where each part comes from. The INCLUDE lines stay in it.

use std::ops::Range;

use kiln_graph::{Diagnostic, SourceFile, Span};

use crate::directive;
use crate::frontend::OWN;
use crate::line::{Line, Lines};
use crate::parse::takes_heredocs;
use crate::{heredoc, path, split};

/// The keyword.
pub(crate) const KEYWORD: &str = "INCLUDE";

/// How deep files may include others.
const MAX_DEPTH: usize = 16;

/// How many files may be included in all.
const MAX_FILES: usize = 1000;

/// The longest assembled text, in bytes: a few files that include each other twice would otherwise fill the memory.
const MAX_BYTES: usize = 4 << 20;

/// A file that cannot be included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludeError {
    /// The file with the INCLUDE.
    pub file: SourceFile,
    /// What is wrong there.
    pub error: Diagnostic,
}

/// Returns a Dockerfile with everything it includes; the file itself when it includes nothing.
///
/// `read` returns the text of a file, named by its path from the root of the context, without `..` that leave it; `None` when
/// there is no such file.
///
/// # Errors
/// A file that is missing or cannot be read, that includes itself, that ends within an instruction; too many, too deep, too
/// long.
pub fn include(
    main: &SourceFile,
    read: &mut dyn FnMut(&str) -> Result<Option<String>, String>,
) -> Result<SourceFile, Box<IncludeError>> {
    let Some(body) = enabled(main) else { return Ok(main.clone()) };
    let escape = directive::read(main.text(), body).map_or('\\', |(directives, _)| directives.escape);
    // Where there is an INCLUDE there is a line before it.
    let line_break = main.text().find('\n').map_or(0..0, |at| at..at + 1);
    let line_break = (main.clone(), line_break);
    let mut assembly = Assembly { escape, read, line_break, open: Vec::new(), parts: Vec::new(), files: 0, bytes: 0 };
    assembly.add(main, body)?;
    if assembly.files == 0 {
        return Ok(main.clone());
    }
    Ok(SourceFile::assembled(main.name(), &assembly.parts))
}

/// Returns where the text starts of a file whose first line asks for extensions.
fn enabled(file: &SourceFile) -> Option<usize> {
    let text = file.text();
    let start = text.len() - text.trim_start_matches('\u{feff}').len();
    let end = text[start..].find('\n').map_or(text.len(), |end| start + end);
    // Only the first line is looked at: further on, a directive asks for nothing.
    let (directives, _) = directive::read(&text[..end], start).ok()?;
    let syntax = directives.syntax?;
    (syntax.text.split(' ').next() == Some(OWN)).then_some(start)
}

struct Assembly<'r> {
    escape: char,
    read: &'r mut dyn FnMut(&str) -> Result<Option<String>, String>,
    /// A line break of the main file.
    line_break: (SourceFile, Range<usize>),
    /// The paths of the files that are being included.
    open: Vec<String>,
    parts: Vec<(SourceFile, Range<usize>)>,
    files: usize,
    bytes: usize,
}

impl Assembly<'_> {
    /// Adds a file and what it includes.
    fn add(&mut self, file: &SourceFile, start: usize) -> Result<(), Box<IncludeError>> {
        let fail = |error| Box::new(IncludeError { file: file.clone(), error });
        let mut lines = Lines::new(file.text(), start, self.escape);
        let mut added = start;
        while let Some(mut line) = lines.logical() {
            if takes_heredocs(line.whole(), self.escape) {
                heredoc::read_bodies(&mut line, &mut lines).map_err(fail)?;
            }
            let (keyword, _) = split::first_word(line.whole());
            if keyword.as_str().eq_ignore_ascii_case(KEYWORD) {
                self.part(file, added..lines.position()).map_err(fail)?;
                self.end_line();
                added = lines.position();
                let included = self.included(&line).map_err(fail)?;
                self.add(&included, 0)?;
                self.open.pop();
                self.end_line();
            } else if line.unfinished && !self.open.is_empty() {
                let message = "the included file ends in the middle of an instruction";
                let error = Diagnostic::error(line.span, message).with_hint("remove the escape character at its end");
                return Err(fail(error));
            }
        }
        self.part(file, added..file.text().len()).map_err(fail)
    }

    fn part(&mut self, file: &SourceFile, range: Range<usize>) -> Result<(), Diagnostic> {
        self.bytes += range.len();
        if self.bytes > MAX_BYTES {
            let message = format!("with what it includes, the file is longer than {} MiB", MAX_BYTES >> 20);
            return Err(Diagnostic::error(Span::new(range.start, range.start), message));
        }
        if !range.is_empty() {
            self.parts.push((file.clone(), range));
        }
        Ok(())
    }

    /// Sees to it that what follows begins a line, where a file ends without a line break.
    fn end_line(&mut self) {
        if self.parts.last().is_some_and(|(file, range)| !file.text()[..range.end].ends_with('\n')) {
            self.parts.push(self.line_break.clone());
        }
    }

    /// Reads the file that a line names, and opens it.
    fn included(&mut self, line: &Line<'_>) -> Result<SourceFile, Diagnostic> {
        let (_, argument) = split::first_word(line.whole());
        let word = argument.word();
        let refuse = |message: String| Err(Diagnostic::error(word.span, message));
        if word.text.is_empty() {
            return Err(
                Diagnostic::error(line.span, format!("{KEYWORD} names no file")).with_hint("write INCLUDE file")
            );
        }
        if word.text.contains('$') {
            return refuse(format!("variables are not expanded in {KEYWORD}"));
        }
        if split::words(argument).len() > 1 {
            return refuse(format!("{KEYWORD} takes one file"));
        }
        let path = path::absolute("/", &word.text)[1..].to_owned();
        if let Some(at) = self.open.iter().position(|open| *open == path) {
            let chain: Vec<&str> = self.open[at..].iter().map(String::as_str).chain([path.as_str()]).collect();
            return refuse(format!("the file includes itself: {}", chain.join(" -> ")));
        }
        self.files += 1;
        if self.open.len() >= MAX_DEPTH || self.files > MAX_FILES {
            return refuse(format!("more than {MAX_DEPTH} files deep, or {MAX_FILES} in all, are included"));
        }
        let text = match (self.read)(&path) {
            Ok(Some(text)) => text,
            Ok(None) => {
                let error = Diagnostic::error(word.span, format!("there is no file {path} to include"));
                return Err(error.with_hint("files are looked for in the context, then beside the Dockerfile"));
            }
            Err(why) => return refuse(format!("cannot include {path}: {why}")),
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let file = SourceFile::new(&path, text);
        self.open.push(path);
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn assemble(main: &str, files: &[(&str, &str)]) -> Result<SourceFile, Box<IncludeError>> {
        let mut read =
            |path: &str| Ok(files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned()));
        include(&SourceFile::new("Dockerfile", main), &mut read)
    }

    fn message(main: &str, files: &[(&str, &str)]) -> String {
        let IncludeError { file, error } = *assemble(main, files).unwrap_err();
        let span = error.span.unwrap();
        format!("{}:{}: {}", file.name(), file.position(span.start).line, error.message)
    }

    #[test]
    fn included_instructions_stand_where_the_include_is() {
        let main = "# syntax=kiln\nFROM a\nINCLUDE parts/one\ninclude ./two\nCMD [\"x\"]\n";
        let file = assemble(main, &[("parts/one", "RUN one"), ("two", "RUN two <<E\nINCLUDE no\nE\n")]).unwrap();
        let dockerfile = parse(&file).unwrap();
        let place = |at: usize| {
            let (origin, span) = file.origin(dockerfile.stages[0].instructions[at].head.span);
            (origin.name().to_owned(), origin.position(span.start).line)
        };
        assert_eq!((place(0), place(1)), (("parts/one".into(), 1), ("two".into(), 1)));
        assert_eq!((place(2), dockerfile.stages[0].instructions.len()), (("Dockerfile".into(), 5), 3));
        let rules: Vec<_> = dockerfile.warnings.iter().filter_map(|warning| warning.rule).collect();
        assert_eq!(rules, ["KilnExtension", "KilnExtension", "ConsistentInstructionCasing"][..2]);
    }

    #[test]
    fn files_may_end_without_a_line_break() {
        let main = "# syntax=kiln\nFROM a\nINCLUDE x";
        let file = assemble(main, &[("x", "INCLUDE y"), ("y", "RUN y"), ("empty", "")]).unwrap();
        assert_eq!(file.text(), "# syntax=kiln\nFROM a\nINCLUDE x\nINCLUDE y\nRUN y\n");
        let main = "# syntax=kiln\nFROM a\nINCLUDE empty\nRUN z";
        assert!(assemble(main, &[("empty", "")]).unwrap().text().ends_with("INCLUDE empty\nRUN z"));
    }

    #[test]
    fn without_the_first_line_nothing_is_included() {
        for main in
            ["FROM a\nINCLUDE x\n", "# escape=\\\n# syntax=kiln\nFROM a\nINCLUDE x\n", "# c\n# syntax=kiln\nINCLUDE x"]
        {
            let file = assemble(main, &[("x", "RUN x")]).unwrap();
            assert!(!file.is_assembled());
            let error = parse(&file).unwrap_err().errors.remove(0).to_string();
            assert!(error.contains("the first line must be # syntax=kiln"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_included_is_refused_at_its_place() {
        let main = |line: &str| format!("# syntax=kiln\nFROM a\n{line}\n");
        assert_eq!(message(&main("INCLUDE x"), &[]), "Dockerfile:3: there is no file x to include");
        assert_eq!(message(&main("INCLUDE"), &[]), "Dockerfile:3: INCLUDE names no file");
        assert_eq!(message(&main("INCLUDE a b"), &[]), "Dockerfile:3: INCLUDE takes one file");
        assert_eq!(message(&main("INCLUDE $x"), &[]), "Dockerfile:3: variables are not expanded in INCLUDE");
        let cycle = [("x", "RUN a\nINCLUDE y"), ("y", "INCLUDE ../x")];
        assert_eq!(message(&main("INCLUDE x"), &cycle), "y:1: the file includes itself: x -> y -> x");
        let cut = "x:1: the included file ends in the middle of an instruction";
        assert_eq!(message(&main("INCLUDE x"), &[("x", "RUN a \\\n")]), cut);
        let heredoc = "x:1: the here-document E is not terminated";
        assert_eq!(message(&main("INCLUDE x"), &[("x", "RUN <<E\n")]), heredoc);
    }

    #[test]
    fn neither_depth_nor_number_nor_size_is_unbounded() {
        let deep: Vec<(String, String)> = (0..20).map(|n| (n.to_string(), format!("INCLUDE {}", n + 1))).collect();
        let deep: Vec<(&str, &str)> = deep.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert!(message("# syntax=kiln\nINCLUDE 0", &deep).starts_with("15:1: more than 16 files deep"));
        let many: Vec<(String, String)> =
            (0..12).map(|n| (n.to_string(), format!("INCLUDE {0}\nINCLUDE {0}", n + 1))).collect();
        let mut many: Vec<(&str, &str)> = many.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        many.push(("12", "RUN x"));
        assert!(message("# syntax=kiln\nINCLUDE 0", &many).contains("1000 in all"));
        let long = "#".repeat(3 << 20) + "\n";
        let twice = "# syntax=kiln\nINCLUDE x\nINCLUDE x\n";
        assert_eq!(message(twice, &[("x", &long)]), "x:1: with what it includes, the file is longer than 4 MiB");
    }
}
