//! Go templates as `--format` takes them, over JSON.
//!
//! The language is that of Go's `text/template` with the functions docker adds. What docker's users do not meet on a command
//! line (`define`, `template`, `block`, `call`, `html`, `js`, `urlquery`, complex numbers) is refused by name. Rendering always
//! ends: nesting, work and output are bounded.

mod evaluate;
mod functions;
mod lex;
mod number;
mod parse;
mod printf;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::error::{Error, Result};

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    source: String,
    nodes: Vec<parse::Node>,
}

/// What a template is rendered with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    /// The value of `.` and `$`.
    pub(super) root: &'a Json,
    pub(super) labels: Labels<'a>,
    pub(super) cells: Cells,
}

/// What `.Label "key"` answers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Labels<'a> {
    /// `.Label` is a field like others.
    None,
    /// The value of the label, empty when there is none.
    Of(&'a BTreeMap<String, String>),
    /// The key itself, for the head of a column.
    Keys,
}

/// How docker's functions treat strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cells {
    /// As values.
    Values,
    /// As the heads of columns, which `json`, `upper` and the like leave alone (docker's `HeaderFunctions`).
    Heads,
}

/// What becomes of `\t` and `\n` in the text between actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escapes {
    /// They stay, as in `inspect`.
    Kept,
    /// They become a tab and a line break, as in lists.
    Replaced,
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// `InvalidArgument` with line and column for syntax errors, unknown functions and undefined variables.
    pub fn parse(source: &str) -> Result<Self> {
        Self::parse_with(source, Escapes::Kept)
    }

    pub(super) fn parse_with(source: &str, escapes: Escapes) -> Result<Self> {
        let located = |flaw: Flaw| flaw.locate(source);
        let tokens = lex::lex(source, escapes).map_err(located)?;
        let nodes = parse::parse(&tokens).map_err(located)?;
        Ok(Self { source: source.to_owned(), nodes })
    }

    /// Renders a value.
    ///
    /// Fields are found by their JSON names, exactly or else without regard to case, because Go's names and JSON's differ in
    /// nothing else (`.ID` and `.Id`). Objects are ranged over in the order of their keys, as Go does. An absent field counts as
    /// empty in `if`, `with`, `range`, `and`, `or`, `not` and `json`, because the API leaves out what is not set; printing it
    /// or passing it on is an error.
    ///
    /// # Errors
    /// `InvalidArgument` with line and column: unknown fields, wrong arguments, or a template that does too much work.
    pub fn render(&self, data: &Json) -> Result<String> {
        self.render_in(&Scope { root: data, labels: Labels::None, cells: Cells::Values })
    }

    pub(super) fn render_in(&self, scope: &Scope<'_>) -> Result<String> {
        evaluate::render(&self.nodes, scope).map_err(|flaw| flaw.locate(&self.source))
    }
}

/// What is wrong at a byte of a template.
#[derive(Debug)]
struct Flaw {
    at: usize,
    message: String,
}

impl Flaw {
    fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }

    fn locate(self, source: &str) -> Error {
        let before = &source[..source.floor_char_boundary(self.at)];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |start| start.chars().count()) + 1;
        let place =
            if source.contains('\n') { format!("line {line} column {column}") } else { format!("column {column}") };
        Error::invalid(format!("format template, {place}: {}", self.message))
    }
}

/// Returns `; did you mean ...?` when a candidate is near.
fn suggestion<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    match kiln_graph::diagnostic::closest(word, candidates) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => String::new(),
    }
}
