//! File name patterns: Go's `filepath.Match`, which COPY and ADD use, and the engine behind `.dockerignore` patterns.
//!
//! Matching keeps a set of states, so that no pattern of an untrusted file takes more than (length of the pattern) x (length
//! of the name) steps. Nothing here looks at a file system.

use std::fmt;

/// One element of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    Char(char),
    /// `?`: one character that is no slash.
    One,
    /// `*`: any number of characters that are no slash.
    Any,
    /// `[a-z]` or `[^a-z]`: ranges, and whether they are excluded.
    Class(Vec<(char, char)>, bool),
    /// `**/`: any number of whole components.
    Directories,
    /// A final `**`: everything.
    Everything,
}

impl Element {
    fn accepts(&self, c: char) -> bool {
        match self {
            Self::Char(expected) => c == *expected,
            Self::One | Self::Any => c != '/',
            Self::Class(ranges, negated) => ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated,
            Self::Directories | Self::Everything => true,
        }
    }
}

/// A set of places in a pattern that can be reached with the text read so far.
pub(crate) struct States {
    active: Vec<bool>,
}

impl States {
    pub(crate) fn new(elements: &[Element]) -> Self {
        let mut states = Self { active: vec![false; elements.len() + 1] };
        states.enter(elements, 0);
        states
    }

    /// Marks a place and those behind it that can be reached by matching nothing.
    fn enter(&mut self, elements: &[Element], mut place: usize) {
        self.active[place] = true;
        while let Some(Element::Any | Element::Directories | Element::Everything) = elements.get(place) {
            place += 1;
            self.active[place] = true;
        }
    }

    /// Reads a text; returns whether anything can still match.
    pub(crate) fn read(&mut self, elements: &[Element], text: &str) -> bool {
        let mut next = Self { active: vec![false; elements.len() + 1] };
        for c in text.chars() {
            next.active.fill(false);
            for (place, element) in elements.iter().enumerate() {
                if !self.active[place] || !element.accepts(c) {
                    continue;
                }
                match element {
                    Element::Any | Element::Everything => next.enter(elements, place),
                    // In the middle of a component: it goes on until a slash.
                    Element::Directories => {
                        next.active[place] = true;
                        if c == '/' {
                            next.enter(elements, place + 1);
                        }
                    }
                    _ => next.enter(elements, place + 1),
                }
            }
            std::mem::swap(&mut self.active, &mut next.active);
            if !self.active.contains(&true) {
                return false;
            }
        }
        true
    }

    pub(crate) fn accepted(&self) -> bool {
        self.active.last() == Some(&true)
    }

    /// Says whether more text could lead to a match.
    pub(crate) fn goes_on(&self) -> bool {
        self.active[..self.active.len() - 1].contains(&true)
    }
}

pub(crate) fn matches(elements: &[Element], text: &str) -> bool {
    let mut states = States::new(elements);
    states.read(elements, text) && states.accepted()
}

/// The text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPattern(String);

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadPattern {}

/// A pattern of Go's `filepath.Match`: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` to escape them.
///
/// `*` and `?` do not match a slash. Source: the documentation of Go's `path/filepath`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    elements: Vec<Element>,
}

impl Glob {
    /// Reads a pattern.
    ///
    /// # Errors
    /// A class that is empty or not closed, a final backslash.
    pub fn parse(pattern: &str) -> Result<Self, BadPattern> {
        let mut elements = Vec::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            elements.push(match c {
                '*' => Element::Any,
                '?' => Element::One,
                '[' => class(&mut chars).ok_or_else(|| bad(pattern, "has a [ that is not closed or is empty"))?,
                '\\' => Element::Char(chars.next().ok_or_else(|| bad(pattern, "ends in a backslash"))?),
                c => Element::Char(c),
            });
        }
        Ok(Self { elements })
    }

    /// Says whether the pattern matches all of a name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        matches(&self.elements, name)
    }
}

fn bad(pattern: &str, why: &str) -> BadPattern {
    BadPattern(format!("the pattern {pattern:?} {why}"))
}

/// Reads a class after its opening bracket: at least one range, in which `]`, `-` and a backslash must be escaped.
pub(crate) fn class(chars: &mut std::str::Chars<'_>) -> Option<Element> {
    let negated = chars.as_str().starts_with('^');
    if negated {
        chars.next();
    }
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.as_str().starts_with(']') {
            chars.next();
            return Some(Element::Class(ranges, negated));
        }
        let low = class_member(chars)?;
        let high = if chars.as_str().starts_with('-') {
            chars.next();
            class_member(chars)?
        } else {
            low
        };
        ranges.push((low, high));
    }
}

fn class_member(chars: &mut std::str::Chars<'_>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        c => Some(c),
    }
}

/// Says whether a text is a pattern that can match more than one name.
#[must_use]
pub fn has_wildcards(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => drop(chars.next()),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_go() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a?c", "a/c", false),
            ("a\u{e9}?", "a\u{e9}\u{65e5}", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[^a]", "/", true),
            ("[\\-\\]]", "]", true),
            ("[!a]", "!", true),
            ("[!a]", "b", false),
            ("[z-a]", "b", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("**", "a", true),
            ("", "", true),
            ("", "a", false),
            ("a{b,c}", "ab", false),
            ("a{b,c}", "a{b,c}", true),
        ] {
            assert_eq!(Glob::parse(pattern).unwrap().matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for pattern in ["[", "[]", "[^]", "[a", "[]a]", "[-]", "[a-]", "[x-]y", "a\\", "[\\"] {
            assert!(Glob::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_exponential_time() {
        let pattern = format!("{}b", "*a".repeat(200));
        assert!(!Glob::parse(&pattern).unwrap().matches(&"a".repeat(5000)));
    }

    #[test]
    fn escaped_wildcards_are_none() {
        assert!(has_wildcards("a*") && has_wildcards("a?") && has_wildcards("[a]") && has_wildcards("\\\\*"));
        assert!(!has_wildcards("a\\*\\?\\[") && !has_wildcards("a]"));
    }
}
