//! Diagnostics: what is wrong in a user's file, where, and what to do about it.
//!
//! Rendering (carets, colours) is the command line's business.

use std::fmt;

use crate::source::Span;

/// How grave a diagnostic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The build goes on.
    Warning,
    /// There is nothing to build.
    Error,
}

/// One finding about a source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Whether it stops the build.
    pub severity: Severity,
    /// The name of the check that found it, for example `StageNameCasing`; `None` for plain errors.
    pub rule: Option<&'static str>,
    /// What is wrong, in one line.
    pub message: String,
    /// The place; `None` when the whole file is meant.
    pub span: Option<Span>,
    /// All of the instruction it is about, when the place is a part of one.
    pub within: Option<Span>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// Makes an error at a place.
    #[must_use]
    pub fn error(span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            rule: None,
            message: message.into(),
            span: Some(span),
            within: None,
            hint: None,
        }
    }

    /// Makes a warning of a named check at a place.
    #[must_use]
    pub fn warning(rule: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            rule: Some(rule),
            message: message.into(),
            span: Some(span),
            within: None,
            hint: None,
        }
    }

    /// Adds the instruction it is about, unless that is known already.
    #[must_use]
    pub fn in_instruction(mut self, span: Span) -> Self {
        self.within.get_or_insert(span);
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// Returns the candidate that is nearest to `word`, if one is near enough to be a likely typing mistake.
///
/// Compares without regard to case, by edit distance with transpositions; at most a third of the word may differ, or one
/// letter of a shorter word, but never all of it.
#[must_use]
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let length = word.chars().count();
    let limit = (length / 3).max(1).min(length.saturating_sub(1));
    candidates
        .into_iter()
        .map(|candidate| (edits(&word, &candidate.to_lowercase(), Exchange::IsOne), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns the candidate that differs least from `word`, in at most two letters, as BuildKit suggests names of variables: case
/// counts, exchanged letters count as two, and a word that is among the candidates resembles nothing else.
#[must_use]
pub fn similar<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let distance = edits(word, candidate, Exchange::IsTwo);
        if distance == 0 {
            return None;
        }
        if distance <= 2 && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// What exchanging two neighbouring letters counts as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exchange {
    IsOne,
    IsTwo,
}

/// Words longer than this many bytes are no mistyped names; comparing two takes time in proportion to both.
const MAX_WORD: usize = 128;

/// The optimal string alignment distance, or Levenshtein's; the longer length for words that are not worth comparing.
fn edits(a: &str, b: &str, exchange: Exchange) -> usize {
    if a.len() > MAX_WORD || b.len() > MAX_WORD {
        return if a == b { 0 } else { a.len().max(b.len()) };
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let substitution = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substitution.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if exchange == Exchange::IsOne && i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_mistake_finds_the_word_that_was_meant() {
        let words = ["FROM", "RUN", "COPY", "ENTRYPOINT"];
        assert_eq!(closest("FORM", words), Some("FROM"));
        assert_eq!(closest("copyy", words), Some("COPY"));
        assert_eq!(closest("entrypiont", words), Some("ENTRYPOINT"));
        assert_eq!(closest("xyzzy", words), None);
        assert_eq!(similar("PAHT", ["HOME", "PATH"]), Some("PATH"));
        assert_eq!((similar("path", ["PATH"]), similar("A", ["A", "B"])), (None, None));
        assert_eq!((closest("a", ["b"]), closest("A", ["a"])), (None, Some("a")), "one letter is not a misspelt other");
    }
}
