//! The values templates compute with, and how Go prints and compares them.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::rc::Rc;

use serde_json::Value as Json;

use super::number;

/// A value: part of the data, made by the template, or a field that is not there.
#[derive(Clone, Debug)]
pub(super) enum Item<'a> {
    Data(&'a Json),
    Made(Rc<Json>),
    /// An error that waits until the value is printed or passed on.
    Absent(Rc<Absent>),
}

/// A field that is not there.
#[derive(Debug)]
pub(super) struct Absent {
    pub(super) at: usize,
    pub(super) message: String,
}

impl Item<'_> {
    pub(super) fn made(value: impl Into<Json>) -> Self {
        Self::Made(Rc::new(value.into()))
    }

    /// Returns the JSON; an absent field is null.
    pub(super) fn json(&self) -> &Json {
        match self {
            Self::Data(json) => json,
            Self::Made(json) => json,
            Self::Absent(_) => &Json::Null,
        }
    }

    /// Go's truth: not false, zero, empty or nil.
    pub(super) fn is_true(&self) -> bool {
        match self.json() {
            Json::Null => false,
            Json::Bool(value) => *value,
            Json::Number(number) => number.as_f64() != Some(0.0),
            Json::String(text) => !text.is_empty(),
            Json::Array(items) => !items.is_empty(),
            Json::Object(fields) => !fields.is_empty(),
        }
    }
}

/// Returns what Go calls the type, as `%T` prints it.
pub(super) fn type_name(value: &Json) -> &'static str {
    match value {
        Json::Null => "<nil>",
        Json::Bool(_) => "bool",
        Json::Number(number) if number.is_f64() => "float64",
        Json::Number(_) => "int",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    }
}

/// Returns what messages call such a value.
pub(super) fn noun(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

/// Appends a value as `%v` prints it: arrays as `[a b]`, objects as `map[k:v]` in the order of their keys.
pub(super) fn print(value: &Json, out: &mut String) {
    match value {
        Json::Null => out.push_str("<nil>"),
        Json::String(text) => out.push_str(text),
        Json::Number(number) => out.push_str(&print_number(number)),
        Json::Bool(value) => {
            let _ = write!(out, "{value}");
        }
        Json::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { " " });
                print(item, out);
            }
            out.push(']');
        }
        Json::Object(fields) => {
            out.push_str("map[");
            for (index, (key, item)) in sorted(fields).into_iter().enumerate() {
                out.push_str(if index == 0 { "" } else { " " });
                out.push_str(key);
                out.push(':');
                print(item, out);
            }
            out.push(']');
        }
    }
}

fn print_number(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(value) if number.is_f64() => number::float(value, 'g', None),
        _ => number.to_string(),
    }
}

/// Returns the entries of an object in the order of their keys.
pub(super) fn sorted(fields: &serde_json::Map<String, Json>) -> Vec<(&String, &Json)> {
    let mut entries: Vec<_> = fields.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

/// Compares two values; the error says why they cannot be compared.
///
/// Numbers compare as numbers whatever their notation; null equals only null. Booleans have no order, which is `None`.
pub(super) fn compare(a: &Json, b: &Json) -> Result<Option<Ordering>, String> {
    let unequal = || Ok(Some(Ordering::Less));
    match (a, b) {
        (Json::Null, Json::Null) => Ok(Some(Ordering::Equal)),
        (Json::Null, _) | (_, Json::Null) => unequal(),
        (Json::String(a), Json::String(b)) => Ok(Some(a.cmp(b))),
        (Json::Number(a), Json::Number(b)) => Ok(compare_numbers(a, b)),
        (Json::Bool(a), Json::Bool(b)) => Ok((a == b).then_some(Ordering::Equal)),
        _ => Err(format!("{} and {} cannot be compared", noun(a), noun(b))),
    }
}

fn compare_numbers(a: &serde_json::Number, b: &serde_json::Number) -> Option<Ordering> {
    let integer =
        |number: &serde_json::Number| number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    match (integer(a), integer(b)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}
