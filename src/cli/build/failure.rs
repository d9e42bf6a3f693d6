//! What is printed of a failed build: the step with the end of its output, the lines of the source, the error.

use anstyle::{AnsiColor, Style};

use super::progress::plain_text;
use super::progress::trace::{Step, Trace};
use crate::client::Refused;
use crate::types::build::{Detail, SourceDetail, SourceRange};

/// Lines shown before and after those that are meant.
const AROUND: usize = 2;

/// The rule above and below an excerpt.
const RULE: &str = "--------------------";

/// Returns the report. Styles are always in it; the stream that prints it takes them out where they do not belong.
pub(super) fn report(refused: &Refused, trace: &Trace) -> String {
    let mut text = String::new();
    for detail in &refused.details {
        if let Detail::Vertex(vertex) = detail
            && let Some(step) = trace.step_of(&vertex.digest)
        {
            text.push_str(&output(step));
        }
    }
    for detail in &refused.details {
        if let Detail::Source(source) = detail {
            text.push_str(&excerpt(source));
        }
    }
    let red = AnsiColor::Red.on_default().bold();
    text.push_str(&format!("{red}ERROR{red:#}: failed to build: failed to solve: {}\n", refused.error));
    text
}

/// The step and the last lines it printed.
fn output(step: &Step) -> String {
    if step.tail.is_empty() {
        return String::new();
    }
    let mut text = format!("------\n > {}:\n", step.name);
    let missing = step.lines - step.tail.len();
    if missing > 0 {
        text.push_str(&format!("[{missing} lines before]\n"));
    }
    step.tail.iter().for_each(|line| text.push_str(&format!("{}\n", plain_text(line))));
    text.push_str("------\n");
    text
}

/// The lines of a source that are meant, those around them, and what is wrong there.
pub(super) fn excerpt(source: &SourceDetail) -> String {
    let content = String::from_utf8_lossy(&source.info.data);
    let lines: Vec<&str> = content.lines().collect();
    let Some(first) = source.ranges.first() else { return String::new() };
    let meant = |line: usize| source.ranges.iter().any(|range| (start(range)..=end(range)).contains(&line));
    let from = source.ranges.iter().map(start).min().unwrap_or(1).saturating_sub(AROUND).max(1);
    let to = (source.ranges.iter().map(end).max().unwrap_or(1) + AROUND).min(lines.len());
    let column = source.finding.as_ref().map(|_| format!(":{}", first.start.character + 1)).unwrap_or_default();
    let mut text = format!("{}:{}{column}\n{RULE}\n", source.info.filename, first.start.line);
    let width = to.to_string().len().max(4);
    let red = AnsiColor::Red.on_default();
    for number in from..=to {
        let line = plain_text(lines[number - 1]);
        if meant(number) {
            text.push_str(&format!("{number:>width$} | {red}>>>{red:#} {line}\n"));
            if number == end(first) {
                text.push_str(&finding(source, lines[number - 1], width));
            }
        } else {
            text.push_str(format!("{number:>width$} |     {line}").trim_end());
            text.push('\n');
        }
    }
    text.push_str(RULE);
    text.push('\n');
    text
}

/// A caret under what is wrong in a line, and what it is.
fn finding(source: &SourceDetail, line: &str, width: usize) -> String {
    let Some(finding) = &source.finding else { return String::new() };
    let range = source.ranges[0];
    let within = range.start.line == range.end.line && range.end.character >= range.start.character;
    let pointed = (within && range.end.character > 0).then(|| {
        let (first, last) = (range.start.character as usize, range.end.character as usize);
        let before: String = line.chars().take(first).collect();
        let carets = last.saturating_sub(first).max(1);
        (unicode_width::UnicodeWidthStr::width(plain_text(&before).as_str()), carets)
    });
    let (indent, carets) = pointed.unwrap_or((0, 0));
    let (red, bold) = (AnsiColor::Red.on_default(), Style::new().bold());
    let gutter = format!("{:>width$} |     {}", "", " ".repeat(indent));
    let marks = if carets > 0 { format!("{} ", "^".repeat(carets)) } else { String::new() };
    let mut text = format!("{gutter}{red}{marks}{}{red:#}\n", finding.message);
    if let Some(hint) = &finding.hint {
        text.push_str(&format!("{:>width$} |     {bold}hint{bold:#}: {hint}\n", ""));
    }
    text
}

fn start(range: &SourceRange) -> usize {
    range.start.line as usize
}

fn end(range: &SourceRange) -> usize {
    range.end.line.max(range.start.line) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::types::build::{
        SourceFinding, SourcePosition, SourceText, StatusResponse, Vertex, VertexDetail, VertexLog, timestamp,
    };

    fn source(text: &str, start: (u32, u32), end: (u32, u32), finding: Option<(&str, Option<&str>)>) -> Detail {
        let position = |(line, character)| SourcePosition { line, character };
        let info = SourceText { filename: "Dockerfile".into(), data: text.as_bytes().to_vec(), language: "".into() };
        let ranges = vec![SourceRange { start: position(start), end: position(end) }];
        let finding =
            finding.map(|(message, hint)| SourceFinding { message: message.to_owned(), hint: hint.map(str::to_owned) });
        Detail::Source(SourceDetail { info, ranges, finding })
    }

    fn plain(refused: &Refused, trace: &Trace) -> String {
        anstream::adapter::strip_str(&report(refused, trace)).to_string()
    }

    #[test]
    fn a_failed_step_shows_its_output_its_lines_and_the_error() {
        let mut trace = Trace::default();
        let logs = (1..=25).map(|n| VertexLog {
            vertex: "v".into(),
            msg: format!("line {n}\n").into_bytes(),
            ..VertexLog::default()
        });
        trace.update(&StatusResponse {
            vertexes: vec![Vertex {
                digest: "v".into(),
                name: "[2/2] RUN make".into(),
                started: Some(timestamp(0)),
                ..Vertex::default()
            }],
            logs: logs.collect(),
            ..StatusResponse::default()
        });
        let text = "FROM busybox\n\nRUN make \\\n    all\nCMD x\nUSER y\nEXPOSE 1\n";
        let error = Error::internal("process \"/bin/sh -c make all\" did not complete successfully: exit code: 2");
        let vertex = Detail::Vertex(VertexDetail { digest: "v".into() });
        let refused = Refused { error, details: vec![source(text, (3, 0), (4, 0), None), vertex] };
        let report = plain(&refused, &trace);
        let expected = "Dockerfile:3\n--------------------\n   1 |     FROM busybox\n   2 |\n   3 | >>> RUN make \\\n   \
                        4 | >>>     all\n   5 |     CMD x\n   6 |     USER y\n--------------------\nERROR: failed to \
                        build: failed to solve: process \"/bin/sh -c make all\" did not complete successfully: exit code: \
                        2\n";
        assert!(report.ends_with(expected), "{report}");
        assert!(report.starts_with("------\n > [2/2] RUN make:\n[5 lines before]\nline 6\n"), "{report}");
        assert!(report.contains("line 25\n------\n"), "{report}");
    }

    #[test]
    fn a_mistake_in_a_line_is_pointed_at() {
        let text = "FROM x\nCOPPY a b\n";
        let finding = Some(("unknown instruction COPPY", Some("did you mean COPY?")));
        let refused = Refused { error: Error::invalid("bad"), details: vec![source(text, (2, 0), (2, 5), finding)] };
        assert_eq!(
            plain(&refused, &Trace::default()),
            "Dockerfile:2:1\n--------------------\n   1 |     FROM x\n   2 | >>> COPPY a b\n     |     ^^^^^ unknown \
             instruction COPPY\n     |     hint: did you mean COPY?\n--------------------\nERROR: failed to build: failed to \
             solve: bad\n"
        );
    }

    #[test]
    fn places_that_are_not_there_do_no_harm() {
        for detail in [source("", (7, 0), (9, 0), None), source("FROM x", (0, 0), (0, 0), None)] {
            let refused = Refused { error: Error::invalid("bad"), details: vec![detail] };
            assert!(plain(&refused, &Trace::default()).ends_with("solve: bad\n"));
        }
    }
}
