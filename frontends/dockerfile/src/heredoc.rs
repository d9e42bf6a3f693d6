//! Here-documents: finding `<<NAME` in a joined line, and reading the bodies that follow it.
//!
//! Which instructions may have them is the parser's business; expanding variables in a body is lowering's.

use kiln_graph::{Diagnostic, Span};

use crate::line::{Line, Lines, Word, without_break};

/// A here-document with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter without quotes: the name of the file that COPY and ADD make of it.
    pub name: String,
    /// Whether variables in the body are expanded: no part of the delimiter was quoted.
    pub expand: bool,
    /// Whether leading tabs are stripped from the body (`<<-`).
    pub strip_tabs: bool,
    /// The body as it stands in the file, line breaks included.
    pub body: Word,
}

impl Heredoc {
    /// Returns the body as its reader sees it: without leading tabs after `<<-`.
    #[must_use]
    pub fn content(&self) -> String {
        if !self.strip_tabs {
            return self.body.text.clone();
        }
        self.body.text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// The `<<NAME` that announces a here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) name: String,
    expand: bool,
    strip_tabs: bool,
}

/// Reads a word as an opening: perhaps a file descriptor, `<<`, perhaps `-`, a delimiter.
pub(crate) fn opening(word: &str) -> Option<Opening> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (strip_tabs, delimiter) = match rest.strip_prefix('-') {
        Some(delimiter) => (true, delimiter),
        None => (false, rest),
    };
    if delimiter.contains('<') {
        return None;
    }
    let (name, quoted) = unquote(delimiter)?;
    (!name.is_empty()).then_some(Opening { name, expand: !quoted, strip_tabs })
}

/// Resolves quotes and backslashes in a delimiter, whatever the file's escape character is; `None` when it is not one word.
fn unquote(text: &str) -> Option<(String, bool)> {
    let mut name = String::new();
    let mut quoted = false;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => return None,
            (None, '\\') => name.extend(chars.next()),
            (None, '\'' | '"') => {
                quoted = true;
                quote = Some(c);
            }
            (Some(open), c) if open == c => quote = None,
            (Some('"'), '\\') => match chars.next()? {
                c @ ('"' | '$' | '\\') => name.push(c),
                c => name.extend(['\\', c]),
            },
            (_, c) => name.push(c),
        }
    }
    quote.is_none().then_some((name, quoted))
}

/// Finds all openings in a line. A line whose quotes do not match has none.
pub(crate) fn openings(line: &str) -> Vec<Opening> {
    if !line.contains("<<") {
        return Vec::new();
    }
    shell_words(line).unwrap_or_default().into_iter().filter_map(opening).collect()
}

/// Splits a line at white space outside quotes, as a shell would; a backslash escapes, whatever the file's escape character.
fn shell_words(line: &str) -> Option<Vec<&str>> {
    let mut words = Vec::new();
    let mut start = None;
    let mut quote = None;
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(start.take().map(|start| &line[start..at]));
            continue;
        }
        start.get_or_insert(at);
        match (quote, c) {
            (None | Some('"'), '\\') => drop(chars.next()),
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    words.extend(start.map(|start| &line[start..]));
    quote.is_none().then_some(words)
}

/// Reads the bodies of a line's here-documents, in order, and extends the line's span over them.
///
/// # Errors
/// The file ends before a delimiter.
pub(crate) fn read_bodies(line: &mut Line<'_>, lines: &mut Lines<'_>) -> Result<Vec<Heredoc>, Diagnostic> {
    let mut heredocs = Vec::new();
    for Opening { name, expand, strip_tabs } in openings(&line.text) {
        let start = line.span;
        let mut body = Word::new("", Span::new(0, 0));
        loop {
            let Some((at, physical)) = lines.physical() else {
                let message = format!("the here-document {name} is not terminated");
                return Err(Diagnostic::error(start, message)
                    .with_hint(format!("end it with a line that holds {name} and nothing else")));
            };
            let text = without_break(physical);
            line.span = line.span.to(Span::new(at, at + text.len()));
            if body.text.is_empty() {
                body.span = Span::new(at, at);
            }
            if name == if strip_tabs { text.trim_start_matches('\t') } else { text } {
                break;
            }
            body.span = body.span.to(Span::new(at, at + physical.len()));
            body.text.push_str(physical);
        }
        heredocs.push(Heredoc { name, expand, strip_tabs, body });
    }
    Ok(heredocs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(line: &str) -> Vec<String> {
        openings(line).into_iter().map(|opening| opening.name).collect()
    }

    #[test]
    fn openings_are_whole_words_outside_quotes() {
        assert_eq!(names("RUN <<FILE1 cat > f1 && <<FILE2 cat > f2"), ["FILE1", "FILE2"]);
        assert_eq!(names("RUN python3 <<PY 3<<X"), ["PY", "X"]);
        assert_eq!(names(r#"COPY <<a.txt <<-"b.txt" <<'c d' /x/"#), ["a.txt", "b.txt", "c d"]);
        for line in [
            r#"RUN echo $((1<<2)) && cat <<< "hs" && echo "<<EOF""#,
            "RUN x << EOF",
            r"RUN x \<<EOF",
            "RUN it's <<EOF",
            "RUN x <<''",
        ] {
            assert!(names(line).is_empty(), "{line}");
        }
    }

    #[test]
    fn a_quoted_delimiter_is_not_expanded() {
        let expand = |word: &str| opening(word).unwrap().expand;
        assert!(expand("<<EOF") && expand("<<-EOF") && expand(r"<<E\OF"));
        assert!(!expand("<<\"EOF\"") && !expand("<<'E'OF"));
    }

    #[test]
    fn bodies_follow_in_order_and_keep_their_line_breaks() {
        let text = "RUN <<A <<-B\r\none\r\nA\r\n\tB x\r\n\t\tB\r\nCMD x";
        let mut lines = Lines::new(text, 0, '\\');
        let mut line = lines.logical().unwrap();
        let heredocs = read_bodies(&mut line, &mut lines).unwrap();
        assert_eq!(heredocs[0].content(), "one\r\n");
        assert_eq!((heredocs[1].body.text.as_str(), heredocs[1].content().as_str()), ("\tB x\r\n", "B x\r\n"));
        assert_eq!(&text[heredocs[1].body.span.range()], "\tB x\r\n");
        assert_eq!(&text[line.span.range()], "RUN <<A <<-B\r\none\r\nA\r\n\tB x\r\n\t\tB");
        assert_eq!(lines.logical().unwrap().text, "CMD x");
    }

    #[test]
    fn a_body_without_an_end_is_refused() {
        let mut lines = Lines::new("RUN <<EOF\nx\n", 0, '\\');
        let mut line = lines.logical().unwrap();
        let error = read_bodies(&mut line, &mut lines).unwrap_err();
        assert_eq!(error.message, "the here-document EOF is not terminated");
    }
}
