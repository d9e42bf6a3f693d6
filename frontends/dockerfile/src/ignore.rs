//! `.dockerignore`: which paths of a context are left out.
//!
//! The rules are those of moby's `patternmatcher`: the last pattern that matches a path or one of its parents decides, `!`
//! makes an exception, `**` crosses directories. They are not git's: a pattern without a slash matches at the root only.
//! Walking a tree and reading the file are the caller's business; `--exclude` of COPY and ADD uses the same matcher.
//!
//! Known differences, all in what is nonsense there: `*` and `?` within a class are members of it, and a backslash always
//! takes the meaning from what follows (moby hands both to a regular expression).

use kiln_graph::{Diagnostic, SourceFile, Span};

use crate::glob::{self, BadPattern, Element, Glob, States};
use crate::path;

/// The patterns of a `.dockerignore` file, or of several `--exclude` flags.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    name: String,
    patterns: Vec<Pattern>,
    has_exceptions: bool,
}

/// One pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    exception: bool,
    line: u32,
    matcher: Matcher,
}

/// How a pattern is matched; most need no pattern engine.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Matcher {
    /// The path itself.
    Exact(String),
    /// `text**`: everything that begins so.
    Prefix(String),
    /// `**text`: everything that ends so, and with `**/text` also `text` itself.
    Suffix(String),
    Glob(Vec<Element>),
}

impl Matcher {
    fn compile(pattern: &str) -> Result<Self, BadPattern> {
        #[derive(PartialEq)]
        enum Class {
            Exact,
            Prefix,
            Suffix,
            Glob,
        }
        Glob::parse(pattern)?;
        let mut class = Class::Exact;
        let mut elements = Vec::new();
        let mut chars = pattern.chars();
        let mut first = true;
        while let Some(c) = chars.next() {
            let at_start = std::mem::replace(&mut first, false);
            if c == '*' && chars.as_str().starts_with('*') {
                chars.next();
                if chars.as_str().starts_with('/') {
                    chars.next();
                }
                let (element, ends_as) = match (chars.as_str().is_empty(), class == Class::Exact) {
                    (true, true) => (Element::Everything, Class::Prefix),
                    (true, false) => (Element::Everything, Class::Glob),
                    (false, _) => (Element::Directories, Class::Glob),
                };
                elements.push(element);
                class = if at_start { Class::Suffix } else { ends_as };
                continue;
            }
            let element = match c {
                '*' => Element::Any,
                '?' => Element::One,
                '[' => glob::class(&mut chars).expect("the pattern was parsed above"),
                '\\' => Element::Char(chars.next().expect("the pattern was parsed above")),
                c => {
                    elements.push(Element::Char(c));
                    continue;
                }
            };
            elements.push(element);
            class = Class::Glob;
        }
        Ok(match class {
            Class::Exact => Self::Exact(pattern.to_owned()),
            Class::Prefix => Self::Prefix(pattern[..pattern.len() - 2].to_owned()),
            Class::Suffix => Self::Suffix(pattern[2..].to_owned()),
            Class::Glob => Self::Glob(elements),
        })
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(text) => path == text,
            Self::Prefix(text) => path.starts_with(text.as_str()),
            Self::Suffix(text) => path.ends_with(text.as_str()) || text.strip_prefix('/') == Some(path),
            Self::Glob(elements) => glob::matches(elements, path),
        }
    }

    /// Says whether it may match a path below a directory, which is given with a final slash.
    fn may_match_below(&self, directory: &str) -> bool {
        match self {
            Self::Exact(text) => text.starts_with(directory),
            Self::Prefix(text) => text.starts_with(directory) || directory.starts_with(text.as_str()),
            Self::Suffix(_) => true,
            Self::Glob(elements) => {
                let mut states = States::new(elements);
                states.read(elements, directory) && states.goes_on()
            }
        }
    }
}

impl Pattern {
    /// Makes a pattern of a cleaned text without its `!`.
    fn new(text: String, exception: bool, line: u32) -> Result<Self, BadPattern> {
        let matcher = Matcher::compile(&text)?;
        Ok(Self { text, exception, line, matcher })
    }

    /// Returns the pattern in its shortest form, with its `!`.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", if self.exception { "!" } else { "" }, self.text)
    }

    /// Says whether it makes an exception.
    #[must_use]
    pub fn is_exception(&self) -> bool {
        self.exception
    }

    /// Returns the line it stands in, from 1; 0 when it comes from no file.
    #[must_use]
    pub fn line(&self) -> u32 {
        self.line
    }
}

/// What a walk knows about a directory: which patterns match it or a directory above it.
#[derive(Clone, Debug)]
pub struct Directory {
    matched: Vec<bool>,
}

impl Ignore {
    /// Reads a `.dockerignore` file.
    ///
    /// Blanks around patterns are dropped; a `#` in the first column makes a comment; a leading slash means the root of the
    /// context, as no slash does.
    ///
    /// # Errors
    /// The first pattern that is malformed, at its place.
    pub fn parse(file: &SourceFile) -> Result<Self, Diagnostic> {
        let mut ignore = Self { name: file.name().to_owned(), ..Self::default() };
        let mut at = 0;
        for (number, raw) in (1..).zip(file.text().split_inclusive('\n')) {
            let start = at;
            at += raw.len();
            let line = if number == 1 { raw.trim_start_matches('\u{feff}') } else { raw };
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let refuse = |message: String| {
                let indent = raw.len() - raw.trim_start().len();
                Err(Diagnostic::error(Span::new(start + indent, start + raw.trim_end().len()), message))
            };
            let line = line.trim();
            let (exception, text) = match line.strip_prefix('!') {
                Some(text) => (true, text.trim()),
                None => (false, line),
            };
            if text.is_empty() {
                return refuse("an exception without a pattern".to_owned());
            }
            let cleaned = path::clean(text);
            if exception && cleaned == "/" {
                return refuse("an exception of the root, which is never left out".to_owned());
            }
            let relative = if cleaned.len() > 1 { cleaned.trim_start_matches('/') } else { &cleaned };
            match Pattern::new(relative.to_owned(), exception, number) {
                Ok(pattern) => ignore.push(pattern),
                Err(error) => return refuse(error.to_string()),
            }
        }
        Ok(ignore)
    }

    /// Makes a matcher of patterns that come from no file, for example from `--exclude`. Empty ones are dropped.
    ///
    /// # Errors
    /// The first pattern that is malformed.
    pub fn from_patterns<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, BadPattern> {
        let mut ignore = Self::default();
        for pattern in patterns.into_iter().map(str::trim).filter(|pattern| !pattern.is_empty()) {
            let (exception, text) = match pattern.strip_prefix('!') {
                Some(text) => (true, text),
                None => (false, pattern),
            };
            ignore.push(Pattern::new(path::clean(text), exception, 0)?);
        }
        Ok(ignore)
    }

    fn push(&mut self, pattern: Pattern) {
        self.has_exceptions |= pattern.exception;
        self.patterns.push(pattern);
    }

    /// Returns the name of the file the patterns come from; empty when they come from none.
    #[must_use]
    pub fn file_name(&self) -> &str {
        &self.name
    }

    /// Returns the patterns in order.
    #[must_use]
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Says whether any pattern makes an exception.
    #[must_use]
    pub fn has_exceptions(&self) -> bool {
        self.has_exceptions
    }

    /// Says whether a path is left out. It is relative to the root, clean, with slashes.
    #[must_use]
    pub fn excludes(&self, path: &str) -> bool {
        self.deciding_pattern(path).is_some_and(|pattern| !pattern.exception)
    }

    /// Returns the pattern that decides about a path, if one does: it leaves the path out, or it is an exception to one that
    /// would.
    #[must_use]
    pub fn deciding_pattern(&self, path: &str) -> Option<&Pattern> {
        let parents = || path.match_indices('/').map(|(at, _)| &path[..at]);
        let mut deciding = None;
        for pattern in &self.patterns {
            let excluded = deciding.is_some_and(|pattern: &Pattern| !pattern.exception);
            let decides = pattern.exception == excluded;
            if decides && (pattern.matcher.matches(path) || parents().any(|parent| pattern.matcher.matches(parent))) {
                deciding = Some(pattern);
            }
        }
        deciding
    }

    /// Starts a walk at the root, which is never left out.
    #[must_use]
    pub fn root(&self) -> Directory {
        Directory { matched: vec![false; self.patterns.len()] }
    }

    /// Says whether an entry of a directory is left out. Same as [`Self::excludes`], without looking at the parents again.
    #[must_use]
    pub fn excludes_in(&self, parent: &Directory, path: &str) -> bool {
        let mut excluded = false;
        for (pattern, above) in self.patterns.iter().zip(&parent.matched) {
            if pattern.exception == excluded && (*above || pattern.matcher.matches(path)) {
                excluded = !pattern.exception;
            }
        }
        excluded
    }

    /// Enters a directory: says whether it is left out, and returns what its entries need.
    #[must_use]
    pub fn enter(&self, parent: &Directory, path: &str) -> (bool, Directory) {
        let matched: Vec<bool> =
            self.patterns.iter().zip(&parent.matched).map(|(p, above)| *above || p.matcher.matches(path)).collect();
        let last = self.patterns.iter().zip(&matched).rev().find(|(_, matched)| **matched);
        let excluded = last.is_some_and(|(pattern, _)| !pattern.exception);
        (excluded, Directory { matched })
    }

    /// Says whether something below a directory that is left out may be an exception. When not, a walk need not enter it.
    #[must_use]
    pub fn may_include_below(&self, directory: &str) -> bool {
        let directory = format!("{directory}/");
        self.patterns.iter().any(|pattern| pattern.exception && pattern.matcher.may_match_below(&directory))
    }
}

#[cfg(test)]
mod tests;
