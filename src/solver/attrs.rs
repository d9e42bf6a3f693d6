//! The attributes of an exporter or of a cache: each is asked for by name, and what nobody asked for is refused.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::solver::export::KINDS;
use crate::solver::options::flag;
use crate::solver::request::{CacheSpec, Exporter};

/// The attributes that are left.
#[derive(Debug)]
pub(super) struct Attrs<'a> {
    /// What they are of.
    noun: &'static str,
    kind: &'a str,
    left: BTreeMap<&'a str, &'a str>,
    asked: Vec<&'static str>,
}

impl<'a> Attrs<'a> {
    /// Takes those of an exporter.
    ///
    /// BuildKit skips what it does not know, and so nobody sees what the library bollard writes: `type`, as it stands on a command
    /// line, and two options with the wrong strokes.
    pub(super) fn new(exporter: &'a Exporter) -> Self {
        let mut attrs = Self::of("exporter", &exporter.kind, &exporter.attrs);
        attrs.left.retain(|key, value| *key != "type" || !KINDS.contains(value));
        for (written, meant) in [("dangling_name_prefix", "dangling-name-prefix"), ("name_canonical", "name-canonical")]
        {
            if let Some(value) = attrs.left.remove(written) {
                attrs.left.entry(meant).or_insert(value);
            }
        }
        attrs
    }

    /// Takes those of a cache.
    pub(super) fn of_cache(cache: &'a CacheSpec) -> Self {
        Self::of("cache", &cache.kind, &cache.attrs)
    }

    fn of(noun: &'static str, kind: &'a str, attrs: &'a BTreeMap<String, String>) -> Self {
        let left = attrs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        Self { noun, kind, left, asked: Vec::new() }
    }

    /// Takes a text; an empty one counts as none.
    pub(super) fn text(&mut self, key: &'static str) -> Option<&'a str> {
        self.asked.push(key);
        self.left.remove(key).filter(|value| !value.is_empty())
    }

    /// Takes a truth value.
    ///
    /// # Errors
    /// `InvalidArgument` when it is none.
    pub(super) fn flag(&mut self, key: &'static str) -> Result<Option<bool>> {
        self.asked.push(key);
        self.left.remove(key).map(|value| flag(key, value)).transpose()
    }

    /// Takes a number.
    ///
    /// # Errors
    /// `InvalidArgument` when it is none.
    pub(super) fn number<T: std::str::FromStr>(&mut self, key: &'static str) -> Result<Option<T>> {
        let parse =
            |value: &str| value.parse().map_err(|_| Error::invalid(format!("{key}={value}: expected a number")));
        self.text(key).map(parse).transpose()
    }

    /// Takes a time in seconds since 1970; returns it in nanoseconds.
    ///
    /// # Errors
    /// `InvalidArgument` when it is none.
    pub(super) fn epoch_ns(&mut self) -> Result<Option<i64>> {
        let seconds: Option<i64> = self.number("source-date-epoch")?;
        Ok(seconds.map(|seconds| seconds.saturating_mul(1_000_000_000)))
    }

    /// Takes all whose keys begin so.
    pub(super) fn family(&mut self, prefix: &str) -> Vec<(&'a str, &'a str)> {
        let keys: Vec<&str> = self.left.keys().copied().filter(|key| key.starts_with(prefix)).collect();
        keys.into_iter().filter_map(|key| self.left.remove_entry(key)).collect()
    }

    /// Refuses the first attribute that nobody asked for.
    ///
    /// # Errors
    /// `InvalidArgument`, with what was perhaps meant.
    pub(super) fn finish(self) -> Result<()> {
        let Some(key) = self.left.keys().next() else { return Ok(()) };
        let meant = kiln_graph::diagnostic::closest(key, self.asked.iter().copied());
        let hint = match meant {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("it has {}", self.asked.join(", ")),
        };
        Err(Error::invalid(format!("the {} {} has no option {key} ({hint})", self.noun, self.kind)))
    }
}
