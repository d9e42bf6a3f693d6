//! Source files and spans: where in a user's file something stands.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A range of bytes in one source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The first byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// Makes a span from byte offsets.
    #[must_use]
    pub fn new(start: usize, end: usize) -> Self {
        let narrow = |offset: usize| u32::try_from(offset).unwrap_or(u32::MAX);
        Self { start: narrow(start), end: narrow(end.max(start)) }
    }

    /// Returns the smallest span that covers both.
    #[must_use]
    pub fn to(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// Returns the span as a range of `usize`.
    #[must_use]
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A line and a column, both counted from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
}

/// The text of a file a user wrote, with the name to show for it. Cloning is cheap.
///
/// A text may be assembled from several files; then [`SourceFile::origin`] tells where a span of it really stands.
#[derive(Clone, Debug)]
pub struct SourceFile {
    name: Arc<str>,
    text: Arc<str>,
    line_starts: Arc<[u32]>,
    pieces: Arc<[Piece]>,
}

impl PartialEq for SourceFile {
    fn eq(&self, other: &Self) -> bool {
        // Most comparisons are of clones, once for each step.
        let shared = Arc::ptr_eq(&self.text, &other.text) && Arc::ptr_eq(&self.pieces, &other.pieces);
        self.name == other.name && (shared || (self.text == other.text && self.pieces == other.pieces))
    }
}

impl Eq for SourceFile {}

/// A part of another file within an assembled text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    /// Where it begins in the assembled text.
    start: u32,
    file: SourceFile,
    /// What of the file it is.
    part: Span,
}

impl SourceFile {
    /// Wraps a text. `name` is what messages call it, usually a path relative to the context.
    #[must_use]
    pub fn new(name: &str, text: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
        let line_starts = starts.map(|at| u32::try_from(at).unwrap_or(u32::MAX)).collect();
        Self { name: name.into(), text: text.into(), line_starts, pieces: Arc::default() }
    }

    /// Assembles a text from parts of files, in order. Parts are byte ranges; what is not in a file is left out.
    #[must_use]
    pub fn assembled(name: &str, parts: &[(Self, Range<usize>)]) -> Self {
        let mut text = String::new();
        let mut pieces = Vec::new();
        for (file, range) in parts {
            let Some(part) = file.text.get(range.clone()) else { continue };
            let start = u32::try_from(text.len()).unwrap_or(u32::MAX);
            pieces.push(Piece { start, file: file.clone(), part: Span::new(range.start, range.end) });
            text.push_str(part);
        }
        Self { pieces: pieces.into(), ..Self::new(name, &text) }
    }

    /// Says whether the text was assembled.
    #[must_use]
    pub fn is_assembled(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Returns the file that a span really stands in, and its place there. What goes beyond one part is cut off.
    #[must_use]
    pub fn origin(&self, span: Span) -> (&Self, Span) {
        let at = self.pieces.partition_point(|piece| piece.start <= span.start);
        let Some(piece) = at.checked_sub(1).and_then(|at| self.pieces.get(at)) else { return (self, span) };
        let place = |offset: u32| (offset - piece.start).saturating_add(piece.part.start).min(piece.part.end);
        piece.file.origin(Span { start: place(span.start), end: place(span.end) })
    }

    /// Returns the name to show.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the whole text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the text of a span; empty when the span is not of this file.
    #[must_use]
    pub fn slice(&self, span: Span) -> &str {
        self.text.get(span.range()).unwrap_or_default()
    }

    /// Returns the line and column of a byte offset.
    #[must_use]
    pub fn position(&self, offset: u32) -> Position {
        let line = self.line_starts.partition_point(|start| *start <= offset).max(1);
        let start = self.line_starts[line - 1] as usize;
        let end = (offset as usize).min(self.text.len());
        let column = self.text.get(start..end).map_or(0, |before| before.chars().count());
        Position { line: saturate(line), column: saturate(column + 1) }
    }

    /// Returns the first and last line of a span, from 1. A span that ends just after a line break ends on that line.
    #[must_use]
    pub fn lines(&self, span: Span) -> (u32, u32) {
        let last = if span.end > span.start { span.end - 1 } else { span.end };
        (self.position(span.start).line, self.position(last).line)
    }

    /// Returns the text of a line, counted from 1, without its line break; `None` past the end.
    #[must_use]
    pub fn line(&self, line: u32) -> Option<&str> {
        let index = (line as usize).checked_sub(1)?;
        let start = *self.line_starts.get(index)? as usize;
        let end = self.line_starts.get(index + 1).map_or(self.text.len(), |next| *next as usize - 1);
        self.text.get(start..end).map(|text| text.trim_end_matches('\r'))
    }
}

fn saturate(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let file = SourceFile::new("Dockerfile", "FROM a\nRUN é x\n");
        let at = |offset| (file.position(offset).line, file.position(offset).column);
        assert_eq!((at(0), at(6), at(7), at(13)), ((1, 1), (1, 7), (2, 1), (2, 6)));
        assert_eq!(file.line(2), Some("RUN é x"));
        assert_eq!(file.lines(Span::new(0, 7)), (1, 1));
        assert_eq!(file.lines(Span::new(0, 8)), (1, 2));
        assert_eq!(file.line(4), None);
    }

    #[test]
    fn a_place_in_an_assembled_text_is_one_in_the_file_it_comes_from() {
        let (main, more) = (SourceFile::new("main", "one\ntwo\nthree\n"), SourceFile::new("more", "x\ny"));
        let parts = [(main.clone(), 0..8), (more.clone(), 0..3), (main.clone(), 7..14)];
        let text = SourceFile::assembled("main", &parts);
        assert_eq!((text.text(), text.is_assembled(), main.is_assembled()), ("one\ntwo\nx\ny\nthree\n", true, false));
        let origin = |word: &str| {
            let at = text.text().find(word).unwrap();
            let (file, span) = text.origin(Span::new(at, at + word.len()));
            (file.name(), file.position(span.start).line, file.slice(span))
        };
        assert_eq!(origin("two"), ("main", 2, "two"));
        assert_eq!(origin("y"), ("more", 2, "y"));
        assert_eq!(origin("three"), ("main", 3, "three"));
        assert_eq!(origin("y\nthree").2, "y", "a span stays within one file");
        let nested = SourceFile::assembled("again", &[(text.clone(), 8..11), (main.clone(), 0..1)]);
        assert_eq!(nested.origin(Span::new(2, 3)).0.name(), "more");
        assert_eq!(more.origin(Span::new(2, 3)), (&more, Span::new(2, 3)));
    }
}
