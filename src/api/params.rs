//! What requests carry in their query: values, switches, and `filters`.

use std::collections::BTreeMap;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use serde::Deserialize;

use super::ApiError;
use crate::error::{Error, Result};

/// The query of a request. Names may come several times.
#[derive(Clone, Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Makes the query of a test.
    #[cfg(test)]
    pub(super) fn of(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// Returns the first value that is not empty.
    pub(super) fn text<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).find(|value| !value.is_empty())
    }

    /// Returns all values.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Reads a switch as moby does: all but a few words mean yes.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.all(name).next().is_some_and(truth)
    }

    /// Reads `filters`.
    ///
    /// # Errors
    /// `InvalidArgument` when it is malformed or has a key that is not `known`.
    pub(super) fn filters(&self, known: &[&str]) -> Result<Filters> {
        let Some(text) = self.text("filters") else { return Ok(Filters::default()) };
        let parsed: BTreeMap<String, Values> =
            serde_json::from_str(text).map_err(|error| Error::invalid(format!("invalid filters: {error}")))?;
        if let Some(unknown) = parsed.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(Error::invalid(format!("invalid filter '{unknown}'")));
        }
        Ok(Filters(parsed.into_iter().map(|(key, values)| (key, values.into_list())).collect()))
    }
}

/// Reads a switch as moby does.
fn truth(text: &str) -> bool {
    !matches!(text.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(pairs) = query.map_err(|error| Error::invalid(format!("malformed query: {error}")))?;
        Ok(Self(pairs))
    }
}

/// The values of one filter, in the form of today and that of old clients.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    Set(BTreeMap<String, bool>),
    List(Vec<String>),
}

impl Values {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::Set(set) => set.into_iter().filter(|(_, wanted)| *wanted).map(|(value, _)| value).collect(),
            Self::List(list) => list,
        }
    }
}

/// Parsed filters: values of one key are alternatives, except that every label has to match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Returns the values of a key.
    pub(super) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Says whether there is no filter of this key, or one that `matches`.
    pub(super) fn any(&self, key: &str, matches: impl Fn(&str) -> bool) -> bool {
        let values = self.all(key);
        values.is_empty() || values.iter().any(|value| matches(value))
    }

    /// Returns a filter that is a switch.
    ///
    /// # Errors
    /// `InvalidArgument` for contradictions and other words.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let mut found = None;
        for value in self.all(key) {
            let value = match value.to_ascii_lowercase().as_str() {
                "1" | "t" | "true" => true,
                "0" | "f" | "false" => false,
                _ => return Err(Error::invalid(format!("invalid filter '{key}={value}'"))),
            };
            if found.is_some_and(|found| found != value) {
                return Err(Error::invalid(format!("invalid filter '{key}': it says both true and false")));
            }
            found = Some(value);
        }
        Ok(found)
    }

    /// Says whether labels match: all of `label`, none of `label!`; `key` or `key=value`.
    pub(super) fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        };
        self.all("label").iter().all(has) && !self.all("label!").iter().any(has)
    }
}

/// Reads a point in time as docker's options have it, in nanoseconds since 1970: seconds since 1970 (with a fraction), RFC 3339,
/// a date with or without a time, or a length of time before `now_ns`, such as `1h30m`.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn point_in_time(text: &str, now_ns: i64) -> Result<i64> {
    let invalid = || {
        Error::invalid(format!(
            "invalid time {text:?}: expected a date, a timestamp or a duration such as 24h or 1h30m"
        ))
    };
    if let Some(ago) = go_duration(text) {
        return Ok(now_ns.saturating_sub(ago));
    }
    if let Some(seconds) = unix_seconds(text) {
        return Ok(seconds);
    }
    if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        return i64::try_from(timestamp.as_nanosecond()).map_err(|_| invalid());
    }
    let civil = text.parse::<jiff::civil::DateTime>();
    let civil = civil.or_else(|_| text.parse::<jiff::civil::Date>().map(|date| date.at(0, 0, 0, 0)));
    let zoned = civil.and_then(|civil| civil.to_zoned(jiff::tz::TimeZone::UTC)).map_err(|_| invalid())?;
    i64::try_from(zoned.timestamp().as_nanosecond()).map_err(|_| invalid())
}

fn unix_seconds(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !digits(seconds.strip_prefix('-').unwrap_or(seconds)) || !digits(fraction) {
        return None;
    }
    let nanoseconds: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// Reads a duration as Go writes it, such as `1h30m` or `1.5s`, in nanoseconds.
pub(super) fn go_duration(text: &str) -> Option<i64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" || rest.is_empty() {
        return None;
    }
    let mut total = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, length) =
            [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)]
                .into_iter()
                .filter(|(unit, _)| rest.starts_with(unit))
                .max_by_key(|(unit, _)| unit.len())?;
        rest = &rest[unit.len()..];
        total += number * length;
    }
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and a century is far from the end")]
    Some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        Params(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn filters_come_in_two_shapes() {
        let known = ["label", "dangling"];
        let new = params(&[("filters", r#"{"label":{"a=1":true,"b":true},"dangling":{"true":true}}"#)]);
        let old = params(&[("filters", r#"{"label":["a=1","b"],"dangling":["true"]}"#)]);
        assert_eq!(new.filters(&known).unwrap(), old.filters(&known).unwrap());
        assert_eq!(params(&[("filters", "")]).filters(&known).unwrap(), Filters::default());
        let error = params(&[("filters", r#"{"nope":["x"]}"#)]).filters(&known).unwrap_err();
        assert_eq!(error.to_string(), "invalid filter 'nope'");
        assert_eq!(new.filters(&known).unwrap().flag("dangling").unwrap(), Some(true));
    }

    #[test]
    fn every_label_has_to_match() {
        let filters = |text: &str| params(&[("filters", text)]).filters(&["label", "label!"]).unwrap();
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())]);
        assert!(filters(r#"{"label":["a=1","b"]}"#).labels(&labels));
        assert!(!filters(r#"{"label":["a=1","c"]}"#).labels(&labels));
        assert!(!filters(r#"{"label!":["a"]}"#).labels(&labels));
    }

    #[test]
    fn points_in_time_are_read_as_docker_reads_them() {
        const SECOND: i64 = 1_000_000_000;
        let now = 10_000 * SECOND;
        for (text, expected) in [
            ("100", 100 * SECOND),
            ("100.5", 100 * SECOND + SECOND / 2),
            ("1h30m", now - 5400 * SECOND),
            ("1.5s", now - SECOND * 3 / 2),
            ("10ms", now - SECOND / 100),
            ("1970-01-02T00:00:00Z", 86_400 * SECOND),
            ("1970-01-02T01:00:00+01:00", 86_400 * SECOND),
            ("1970-01-02", 86_400 * SECOND),
            ("1970-01-02T00:00:01", 86_401 * SECOND),
        ] {
            assert_eq!(point_in_time(text, now).unwrap(), expected, "{text}");
        }
        for text in ["", "h", "5x", "yesterday", "1h2"] {
            assert!(point_in_time(text, now).is_err(), "{text}");
        }
    }
}
