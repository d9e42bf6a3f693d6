//! Places in source files, as BuildKit's messages have them: by lines, with the text of the files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_graph::{SourceFile, Span};
use serde::Serialize;

/// `pb.Location`
#[derive(Serialize)]
pub(super) struct Location {
    #[serde(rename = "sourceIndex", skip_serializing_if = "is_zero")]
    source_index: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Serialize)]
struct Position {
    line: u32,
}

fn is_zero(index: &usize) -> bool {
    *index == 0
}

/// The files that places are in, each once; the Dockerfile is the first.
pub(super) struct Sources<'f> {
    main: &'f SourceFile,
    files: Vec<&'f SourceFile>,
}

impl<'f> Sources<'f> {
    pub(super) fn new(main: &'f SourceFile) -> Self {
        Self { main, files: vec![main.origin(Span::new(0, 0)).0] }
    }

    /// Returns a place by its lines; none without a span.
    pub(super) fn location(&mut self, span: Option<Span>) -> Location {
        let Some(span) = span else { return Location { source_index: 0, ranges: Vec::new() } };
        let (file, span) = self.main.origin(span);
        let known = self.files.iter().position(|known| *known == file);
        let source_index = known.unwrap_or_else(|| {
            self.files.push(file);
            self.files.len() - 1
        });
        let (first, last) = file.lines(span);
        Location { source_index, ranges: vec![Range { start: Position { line: first }, end: Position { line: last } }] }
    }

    /// Returns the texts, as base64.
    pub(super) fn texts(&self) -> Vec<String> {
        self.files.iter().map(|file| STANDARD.encode(file.text())).collect()
    }

    /// Returns the files' names and texts.
    pub(super) fn infos(&self) -> Vec<SourceInfo> {
        let info = |file: &&SourceFile| SourceInfo {
            filename: file.name().to_owned(),
            data: STANDARD.encode(file.text()),
            language: "Dockerfile",
        };
        self.files.iter().map(info).collect()
    }
}

/// `pb.SourceInfo`
#[derive(Serialize)]
pub(super) struct SourceInfo {
    filename: String,
    data: String,
    language: &'static str,
}

/// Returns the lines of an instruction with some around them, as BuildKit prints them; above stands where `span` begins.
pub(super) fn excerpt(main: &SourceFile, span: Span, instruction: Span) -> String {
    let (file, instruction) = main.origin(instruction);
    let position = file.position(main.origin(span).1.start);
    let lines: Vec<&str> = file.text().split('\n').collect();
    let (first, last) = file.lines(instruction);
    let (first, last) = (first as usize, (last as usize).min(lines.len()));
    // Two lines around an instruction of several, four around one of one.
    let room = if first == last { 4 } else { 2 };
    let (mut from, mut to, mut taken) = (first, last, 0);
    while taken < room {
        if from > 1 {
            from -= 1;
            taken += 1;
        }
        if to != lines.len() {
            to += 1;
            taken += 1;
        }
        taken += 1;
    }
    let rule = "--------------------";
    let mut text = format!("{}:{}:{}\n{rule}\n", file.name(), position.line, position.column);
    for number in from..=to {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        text.push_str(&format!(" {number:>3} | {mark} {}\n", shown(lines[number - 1])));
    }
    text + rule + "\n"
}

/// A line without what could move a terminal's cursor.
fn shown(line: &str) -> String {
    line.trim_end_matches('\r').chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(file: &SourceFile, text: &str) -> Span {
        let start = file.text().find(text).unwrap();
        Span::new(start, start + text.len())
    }

    #[test]
    fn an_excerpt_shows_the_instruction_and_what_is_around_it() {
        let file = SourceFile::new("Dockerfile", "FROM a\nRUN b\nRUN c\nRUN d\nRUN e\u{1b}\nRUN f\n");
        assert_eq!(
            excerpt(&file, at(&file, "d"), at(&file, "RUN d")),
            "Dockerfile:4:5\n--------------------\n   2 |     RUN b\n   3 |     RUN c\n   4 | >>> RUN d\n   5 |     RUN \
             e\u{fffd}\n   6 |     RUN f\n--------------------\n"
        );
        let long = at(&file, "RUN c\nRUN d");
        assert_eq!(
            excerpt(&file, long, long),
            "Dockerfile:3:1\n--------------------\n   2 |     RUN b\n   3 | >>> RUN c\n   4 | >>> RUN d\n   5 |     RUN \
             e\u{fffd}\n--------------------\n"
        );
    }

    #[test]
    fn the_only_line_of_a_file_stands_alone() {
        let file = SourceFile::new("D", "FROM");
        let all = at(&file, "FROM");
        assert_eq!(excerpt(&file, all, all), "D:1:1\n--------------------\n   1 | >>> FROM\n--------------------\n");
    }

    #[test]
    fn included_files_are_sources_of_their_own() {
        let (main, more) = (SourceFile::new("main", "a\n"), SourceFile::new("more", "b\n"));
        let file = SourceFile::assembled("main", &[(main, 0..2), (more, 0..2)]);
        let mut sources = Sources::new(&file);
        assert_eq!(
            serde_json::to_string(&sources.location(Some(Span::new(0, 1)))).unwrap(),
            r#"{"ranges":[{"start":{"line":1},"end":{"line":1}}]}"#
        );
        assert_eq!(sources.location(Some(Span::new(2, 3))).source_index, 1);
        assert_eq!(sources.texts(), ["YQo=", "Ygo="]);
    }
}
