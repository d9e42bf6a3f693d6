//! Logical lines: physical lines joined at continuations, comments dropped, each byte traceable to its place in the file.
//!
//! What stands in a line (instruction, flags, words) is not known here.

use std::borrow::Cow;
use std::ops::Range;

use kiln_graph::Span;

/// A piece of text in the file, usually one word.
///
/// `text` may differ from what the span covers: quotes are resolved and continuations joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The text.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

impl Word {
    /// Makes a word.
    #[must_use]
    pub fn new(text: impl Into<String>, span: Span) -> Self {
        Self { text: text.into(), span }
    }

    /// Returns a part of the word, in bytes of its text. The part's span is exact when the text stands in the file as it is,
    /// else it is the whole word's.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        self.piece(range).into()
    }

    /// Returns what [`Self::part`] does, without copying the text.
    pub(crate) fn piece(&self, range: Range<usize>) -> Piece<'_> {
        let start = self.span.start as usize;
        let literal = self.span.range().len() == self.text.len();
        let span = if literal { Span::new(start + range.start, start + range.end) } else { self.span };
        Piece { text: Cow::Borrowed(&self.text[range]), span }
    }
}

/// A word that belongs to a larger one, or to a line; its text is borrowed where it stands there as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece<'w> {
    /// The text.
    pub(crate) text: Cow<'w, str>,
    /// Where it stands.
    pub(crate) span: Span,
}

impl From<Piece<'_>> for Word {
    fn from(Piece { text, span }: Piece<'_>) -> Self {
        Self { text: text.into_owned(), span }
    }
}

/// An instruction's physical lines, joined.
#[derive(Clone, Debug)]
pub(crate) struct Line<'s> {
    /// The joined text. Blanks are stripped from the start of the first line only, as the language wants it.
    pub(crate) text: Cow<'s, str>,
    /// Where each of its physical lines begins, in `text` and in the file: the first, and those that continue it.
    first: (usize, usize),
    continued: Vec<(usize, usize)>,
    /// All of it in the file.
    pub(crate) span: Span,
    /// The last of its physical lines, without the bodies of here-documents.
    pub(crate) last: Span,
    /// The comments right above, without `#` and blanks; an empty line or comment in between cuts them off.
    pub(crate) comments: Vec<Word>,
    /// Empty lines between its continued lines.
    pub(crate) gaps: Vec<Span>,
    /// Whether the file ended where a line should have followed.
    pub(crate) unfinished: bool,
}

impl<'s> Line<'s> {
    fn push(&mut self, text: &'s str, source: usize) {
        if text.is_empty() {
            return;
        }
        if self.text.is_empty() {
            self.first = (0, source);
            self.text = Cow::Borrowed(text);
            return;
        }
        self.continued.push((self.text.len(), source));
        if let Cow::Borrowed(first) = self.text {
            // Mostly more lines follow.
            let mut joined = String::with_capacity(4 * (first.len() + text.len()));
            joined.push_str(first);
            self.text = Cow::Owned(joined);
        }
        self.text.to_mut().push_str(text);
    }

    /// Returns the place in the file of a range of the joined text.
    pub(crate) fn span_of(&self, range: Range<usize>) -> Span {
        let place = |offset: usize| {
            let before = self.continued.partition_point(|(joined, _)| *joined <= offset);
            let (joined, source) = before.checked_sub(1).map_or(self.first, |last| self.continued[last]);
            source + (offset - joined)
        };
        let start = place(range.start);
        let end = if range.is_empty() { start } else { place(range.end - 1) + 1 };
        Span::new(start, end)
    }

    /// Returns the whole line as a text to take apart, without surrounding blanks.
    pub(crate) fn whole(&self) -> Text<'_> {
        Text { line: self, start: 0, end: self.text.len() }.trim()
    }
}

/// A slice of a line that knows where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'l> {
    line: &'l Line<'l>,
    start: usize,
    end: usize,
}

impl<'l> Text<'l> {
    pub(crate) fn as_str(self) -> &'l str {
        &self.line.text[self.start..self.end]
    }

    pub(crate) fn is_empty(self) -> bool {
        self.start == self.end
    }

    pub(crate) fn span(self) -> Span {
        self.line.span_of(self.start..self.end)
    }

    /// Returns a part, in bytes of this slice.
    pub(crate) fn slice(self, range: Range<usize>) -> Self {
        Self { line: self.line, start: self.start + range.start, end: self.start + range.end }
    }

    pub(crate) fn trim(self) -> Self {
        let text = self.as_str();
        let trimmed = text.trim_start();
        let start = text.len() - trimmed.len();
        self.slice(start..start + trimmed.trim_end().len())
    }

    pub(crate) fn word(self) -> Word {
        self.piece().into()
    }

    pub(crate) fn piece(self) -> Piece<'l> {
        Piece { text: Cow::Borrowed(self.as_str()), span: self.span() }
    }
}

/// The lines of a file, read once from top to bottom.
pub(crate) struct Lines<'s> {
    text: &'s str,
    at: usize,
    escape: char,
}

impl<'s> Lines<'s> {
    /// Starts at byte `at`. `escape` continues a line when it is the last thing on it.
    pub(crate) fn new(text: &'s str, at: usize, escape: char) -> Self {
        Self { text, at, escape }
    }

    /// Returns the byte where the next line begins.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Returns the next physical line, with its line break, and where it starts.
    pub(crate) fn physical(&mut self) -> Option<(usize, &'s str)> {
        let start = self.at;
        let rest = &self.text[start..];
        if rest.is_empty() {
            return None;
        }
        self.at = rest.find('\n').map_or(self.text.len(), |end| start + end + 1);
        Some((start, &self.text[start..self.at]))
    }

    /// Returns the next line that is not empty and not a comment.
    pub(crate) fn logical(&mut self) -> Option<Line<'s>> {
        let mut comments = Vec::new();
        loop {
            let (start, raw) = self.physical()?;
            let line = without_break(raw);
            let content = line.trim_start();
            let start = start + line.len() - content.len();
            if let Some(comment) = content.strip_prefix('#') {
                match comment.trim() {
                    "" => comments.clear(),
                    text => comments.push(Word::new(text, Span::new(start, start + content.len()))),
                }
            } else if content.is_empty() {
                comments.clear();
            } else {
                let line = self.join(content, start, comments);
                if line.text.trim().is_empty() {
                    comments = Vec::new();
                    continue;
                }
                return Some(line);
            }
        }
    }

    fn join(&mut self, first: &'s str, start: usize, comments: Vec<Word>) -> Line<'s> {
        let span = Span::new(start, start + first.len());
        let mut line = Line {
            text: Cow::Borrowed(""),
            first: (0, span.start as usize),
            continued: Vec::new(),
            span,
            last: span,
            comments,
            gaps: Vec::new(),
            unfinished: false,
        };
        let (text, mut continued) = without_continuation(first, self.escape);
        line.push(text, start);
        while continued {
            let Some((start, raw)) = self.physical() else { break };
            let physical = without_break(raw);
            let span = Span::new(start, start + physical.len());
            let content = physical.trim_start();
            if content.is_empty() {
                line.gaps.push(span);
            } else if !content.starts_with('#') {
                let (text, more) = without_continuation(physical, self.escape);
                line.push(text, start);
                line.span = line.span.to(span);
                line.last = span;
                continued = more;
            }
        }
        line.unfinished = continued;
        line
    }
}

/// Strips a physical line's break.
pub(crate) fn without_break(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// Strips a trailing escape and says whether there was one. An escape that follows another is no continuation.
fn without_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => (before, true),
        _ => (line, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let mut lines = Lines::new(text, 0, '\\');
        std::iter::from_fn(|| lines.logical()).map(|line| line.text.into_owned()).collect()
    }

    #[test]
    fn lines_join_at_an_escape_and_drop_comments_and_gaps() {
        let text = "  RUN a \\\n  # no\n\n   b \\  \n# c \\\nc\nENV x=y\\\\\nCMD z \\";
        assert_eq!(lines(text), ["RUN a    b c", "ENV x=y\\\\", "CMD z "]);
    }

    #[test]
    fn an_escape_alone_on_a_line_continues_it() {
        assert_eq!(lines("\\\nRUN x\n\\\n\\\n"), ["RUN x"]);
    }

    #[test]
    fn every_part_of_a_joined_line_knows_its_place_in_the_file() {
        let text = "\u{e9}\nRUN ab \\\r\n  # c\r\n  cd\r\n";
        let mut lines = Lines::new(text, 3, '\\');
        let line = lines.logical().unwrap();
        assert_eq!((&*line.text, &text[line.span.range()]), ("RUN ab   cd", "RUN ab \\\r\n  # c\r\n  cd"));
        for word in ["RUN", "ab", "cd"] {
            let at = line.text.find(word).unwrap();
            assert_eq!(&text[line.span_of(at..at + word.len()).range()], word);
        }
        let across = line.span_of(4..11);
        assert_eq!(&text[across.range()], "ab \\\r\n  # c\r\n  cd");
    }

    #[test]
    fn comments_above_an_instruction_belong_to_it_until_an_empty_line() {
        let mut lines = Lines::new("# far\n\n# near\n#  two \nRUN x\nRUN y\n# a\n#\n# b\nRUN z", 0, '\\');
        let mut comments =
            || lines.logical().unwrap().comments.into_iter().map(|comment| comment.text).collect::<Vec<_>>();
        assert_eq!(comments(), ["near", "two"]);
        assert!(comments().is_empty());
        assert_eq!(comments(), ["b"]);
    }
}
