//! Reading a TOML file key by key, so that every complaint names file, line and key.
//!
//! A lenient document, one that was written for another program, has warnings where others have errors about what nobody asks for.
//!
//! Not serde: its messages know neither the table a key stands in nor what a misspelt key was meant to be.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};

/// The text of a file and where it lies.
#[derive(Debug)]
pub(super) struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    /// What is passed over; `None` where nothing is.
    warnings: Option<RefCell<Vec<String>>>,
}

impl<'a> Document<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text, warnings: None }
    }

    /// A document of which some is passed over.
    pub(super) fn lenient(path: &'a Path, text: &'a str) -> Self {
        Self { path, text, warnings: Some(RefCell::default()) }
    }

    /// Returns what was passed over, in the order of the file.
    pub(super) fn into_warnings(self) -> Vec<String> {
        let mut warnings = self.warnings.unwrap_or_default().into_inner();
        let line = |warning: &String| {
            warning[self.path.as_os_str().len() + 1..].split(':').next().and_then(|line| line.parse::<usize>().ok())
        };
        warnings.sort_by_key(line);
        warnings
    }

    fn warn(&self, offset: usize, message: &str) {
        if let Some(warnings) = &self.warnings {
            warnings.borrow_mut().push(self.error(offset, message).to_string());
        }
    }

    /// Parses the text and returns its top-level table.
    pub(super) fn parse(&'a self) -> Result<Table<'a>> {
        let table = DeTable::parse(self.text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            self.error(offset, error.message())
        })?;
        let (name, asked) = (String::new(), Vec::new());
        Ok(Table { document: self, name, entries: table.into_inner(), asked, offset: 0 })
    }

    fn error(&self, offset: usize, message: &str) -> Error {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Error::invalid(format!("{}:{line}: {message}", self.path.display()))
    }

    /// Resolves a path written in the file: a relative one starts at the file's directory.
    fn resolve(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }
}

/// A table whose keys are taken out one by one; [`Table::finish`] complains about those nobody asked for.
#[derive(Debug)]
pub(super) struct Table<'a> {
    document: &'a Document<'a>,
    /// As in the file's brackets; empty at the top level.
    name: String,
    entries: DeTable<'a>,
    asked: Vec<&'static str>,
    /// Where it begins.
    offset: usize,
}

impl<'a> Table<'a> {
    /// Takes the value of a key.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.asked.push(key);
        let value = self.entries.remove(key)?;
        Some(Value { document: self.document, name: self.qualified(key), value })
    }

    /// Takes all remaining values, with their keys: for tables whose keys are names of the user's.
    pub(super) fn take_rest(&mut self) -> Vec<(String, Value<'a>)> {
        let entries = std::mem::take(&mut self.entries);
        entries
            .into_iter()
            .map(|(key, value)| {
                let name = self.qualified(&format!("{:?}", key.get_ref()));
                (key.into_inner().into_owned(), Value { document: self.document, name, value })
            })
            .collect()
    }

    /// Passes a key over, with the reason, in a lenient document.
    pub(super) fn ignore(&mut self, key: &'static str, why: &str) {
        self.asked.push(key);
        let offset = self.entries.get_key_value(key).map(|(key, _)| key.span().start);
        if let (Some(offset), true) = (offset, self.entries.remove(key).is_some()) {
            self.document.warn(offset, &format!("{} is ignored: {why}", self.qualified(key)));
        }
    }

    /// Tells something about the table, in a lenient document.
    pub(super) fn warn(&mut self, what: &str) {
        self.document.warn(self.offset, &format!("[{}]: {what}", self.name));
    }

    fn qualified(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Complains about the first key that was not taken, by its place in the file.
    pub(super) fn finish(self) -> Result<()> {
        if self.document.warnings.is_some() {
            for (key, _) in &self.entries {
                let name = self.qualified(key.get_ref());
                self.document.warn(key.span().start, &format!("{name} is ignored: there is no such key"));
            }
            return Ok(());
        }
        let Some((key, value)) = self.entries.iter().min_by_key(|(key, _)| key.span().start) else { return Ok(()) };
        let word = key.get_ref().as_ref();
        let place = if self.name.is_empty() { String::new() } else { format!(" in [{}]", self.name) };
        let hint = if self.name.starts_with("registry.") && value.get_ref().is_table() {
            " (the dots of a host name need quotes: [registry.\"example.com\"])".to_owned()
        } else {
            match kiln_graph::diagnostic::closest(word, self.asked.iter().copied()) {
                Some(meant) => format!(" (did you mean `{meant}`?)"),
                None => format!(" (expected one of: {})", self.asked.join(", ")),
            }
        };
        Err(self.document.error(key.span().start, &format!("unknown key `{word}`{place}{hint}")))
    }
}

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Value<'a> {
    document: &'a Document<'a>,
    /// The dotted key.
    name: String,
    value: Spanned<DeValue<'a>>,
}

impl<'a> Value<'a> {
    /// Makes an error about this value.
    pub(super) fn error(&self, what: impl std::fmt::Display) -> Error {
        self.document.error(self.value.span().start, &format!("{}: {what}", self.name))
    }

    /// Tells something about this value, in a lenient document.
    pub(super) fn warn(&self, what: &str) {
        self.document.warn(self.value.span().start, what);
    }

    /// Reads a switch that may also say `auto`, which is on.
    pub(super) fn enabled(&self) -> Result<bool> {
        match self.value.get_ref().as_str() {
            Some("auto" | "true") => Ok(true),
            Some("false") => Ok(false),
            _ => self.bool(),
        }
    }

    fn wrong_type(&self, expected: &str) -> Error {
        self.error(format!("expected {expected}, found {}", self.value.get_ref().type_str()))
    }

    /// Reads text and converts it; the error of `convert` is reported at this place.
    pub(super) fn parse<T, E: std::fmt::Display>(&self, convert: impl FnOnce(&str) -> Result<T, E>) -> Result<T> {
        convert(self.text()?).map_err(|error| self.error(error))
    }

    pub(super) fn text(&self) -> Result<&str> {
        match self.value.get_ref().as_str() {
            Some("") => Err(self.error("the value is empty")),
            Some(text) => Ok(text),
            None => Err(self.wrong_type("a string")),
        }
    }

    pub(super) fn string(&self) -> Result<String> {
        self.text().map(str::to_owned)
    }

    /// Reads a path; a relative one starts at the file's directory.
    pub(super) fn path(&self) -> Result<PathBuf> {
        Ok(self.document.resolve(self.text()?))
    }

    pub(super) fn bool(&self) -> Result<bool> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    /// Reads a whole number within `range`.
    pub(super) fn integer(&self, range: std::ops::RangeInclusive<u64>) -> Result<u64> {
        let integer = self.value.get_ref().as_integer().ok_or_else(|| self.wrong_type("a whole number"))?;
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.error(format!("expected a number from {} to {}", range.start(), range.end())))
    }

    /// Reads a size in bytes: a number, or text such as `10m`.
    pub(super) fn size(&self) -> Result<u64> {
        if self.value.get_ref().is_integer() { self.integer(0..=u64::MAX) } else { self.parse(parse_size) }
    }

    pub(super) fn list(self) -> Result<Vec<Self>> {
        let Self { document, name, value } = &self;
        let Some(items) = value.get_ref().as_array() else { return Err(self.wrong_type("a list")) };
        let item = |value: &Spanned<DeValue<'a>>| Self { document, name: name.clone(), value: value.clone() };
        Ok(items.iter().map(item).collect())
    }

    /// Reads a list of texts, each converted.
    pub(super) fn list_of<T, E: std::fmt::Display>(self, convert: impl Fn(&str) -> Result<T, E>) -> Result<Vec<T>> {
        self.list()?.iter().map(|item| item.parse(&convert)).collect()
    }

    pub(super) fn table(self) -> Result<Table<'a>> {
        if !self.value.get_ref().is_table() {
            return Err(self.wrong_type("a table"));
        }
        let offset = self.value.span().start;
        match self.value.into_inner() {
            DeValue::Table(entries) => {
                Ok(Table { document: self.document, name: self.name, entries, asked: Vec::new(), offset })
            }
            _ => unreachable!("the type was checked above"),
        }
    }
}

/// Parses a size as docker's options write it: `10m` is 10,000,000 bytes, `10mib` is 10,485,760.
fn parse_size(text: &str) -> Result<u64, &'static str> {
    const WRONG: &str = "expected a size such as 500k, 10m, 1g or 64mib";
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000 * 1000,
        "g" | "gb" => 1000 * 1000 * 1000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        _ => return Err(WRONG),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or(WRONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_writes_them() {
        for (text, bytes) in [("7", 7), ("10m", 10_000_000), ("64MiB", 64 << 20), ("1 g", 1_000_000_000)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "ten", "1x", "-1", "99999999999999999999", "99999999999g"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
