//! The functions of templates: Go's and the ones docker adds.

use std::cmp::Ordering;

use serde_json::Value as Json;

use super::value::{self, Item, noun};
use super::{Cells, printf};

/// A function: how it is called and what it does.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: &'static str,
    least: usize,
    most: usize,
    kind: Kind,
    body: for<'c, 'a> fn(&'c Call<'a>) -> Result<Item<'a>, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Absent fields are errors.
    Strict,
    /// Absent fields are empty.
    Lenient,
    /// `and`, `or`: evaluated from the left until a value decides; `true` stops at a true value.
    Deciding(bool),
}

/// The arguments of one call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) arguments: Vec<Item<'a>>,
    pub(super) cells: Cells,
    /// How many bytes the result may have.
    pub(super) budget: usize,
}

impl Function {
    /// Checks the number of arguments; the error says what is expected.
    pub(super) fn accepts(&self, count: usize) -> Result<(), String> {
        if (self.least..=self.most).contains(&count) {
            return Ok(());
        }
        let plural = |count| if count == 1 { "argument" } else { "arguments" };
        let wanted = match (self.least, self.most) {
            (least, most) if least == most => format!("{least} {}", plural(least)),
            (least, usize::MAX) => format!("at least {least} {}", plural(least)),
            (least, most) => format!("{least} to {most} arguments"),
        };
        Err(format!("`{}` takes {wanted}, not {count}", self.name))
    }

    pub(super) fn takes_absent(&self) -> bool {
        self.kind != Kind::Strict
    }

    /// Says whether an argument decides the call, so that the ones after it are not evaluated.
    pub(super) fn stops_at(&self, item: &Item<'_>) -> bool {
        self.kind == Kind::Deciding(item.is_true())
    }

    /// Returns the value and what computing it cost.
    pub(super) fn call<'a>(&self, call: &Call<'a>) -> Result<(Item<'a>, usize), String> {
        let given: usize = call.arguments.iter().map(size).sum();
        let item = (self.body)(call)?;
        let cost = given + size(&item);
        Ok((item, cost))
    }
}

/// What reading or copying a value costs.
fn size(item: &Item<'_>) -> usize {
    match item {
        Item::Data(Json::String(text)) => text.len(),
        Item::Made(json) => match json.as_ref() {
            Json::String(text) => text.len(),
            Json::Array(items) => items.iter().map(|item| 16 + item.as_str().map_or(0, str::len)).sum(),
            _ => 1,
        },
        _ => 1,
    }
}

macro_rules! table {
    ($($name:literal $least:literal..$most:expr, $kind:expr => $body:expr;)*) => {
        const FUNCTIONS: &[Function] =
            &[$(Function { name: $name, least: $least, most: $most, kind: $kind, body: $body },)*];
    };
}

table! {
    "and" 1..usize::MAX, Kind::Deciding(false) => last;
    "eq" 2..usize::MAX, Kind::Strict => eq;
    "ge" 2..2, Kind::Strict => |call| order(call, Ordering::is_ge);
    "gt" 2..2, Kind::Strict => |call| order(call, Ordering::is_gt);
    "index" 1..usize::MAX, Kind::Strict => index;
    "join" 2..2, Kind::Strict => join;
    "json" 1..1, Kind::Lenient => json;
    "le" 2..2, Kind::Strict => |call| order(call, Ordering::is_le);
    "len" 1..1, Kind::Strict => len;
    "lower" 1..1, Kind::Strict => |call| call.map_text(str::to_lowercase);
    "lt" 2..2, Kind::Strict => |call| order(call, Ordering::is_lt);
    "ne" 2..2, Kind::Strict => ne;
    "not" 1..1, Kind::Lenient => |call| Ok(Item::made(!call.arguments[0].is_true()));
    "or" 1..usize::MAX, Kind::Deciding(true) => last;
    "pad" 3..3, Kind::Strict => pad;
    "print" 0..usize::MAX, Kind::Strict => print;
    "printf" 1..usize::MAX, Kind::Strict => printf_call;
    "println" 0..usize::MAX, Kind::Strict => println;
    "slice" 1..4, Kind::Strict => slice;
    "split" 2..2, Kind::Strict => split;
    "title" 1..1, Kind::Strict => |call| call.map_text(title);
    "truncate" 2..2, Kind::Strict => truncate;
    "upper" 1..1, Kind::Strict => |call| call.map_text(str::to_uppercase);
}

pub(super) fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

pub(super) fn names() -> Vec<&'static str> {
    FUNCTIONS.iter().map(|function| function.name).collect()
}

impl<'a> Call<'a> {
    fn text(&self, index: usize) -> Result<&str, String> {
        let json = self.arguments[index].json();
        json.as_str().ok_or_else(|| format!("argument {} is {}, not a string", index + 1, noun(json)))
    }

    fn number(&self, index: usize) -> Result<usize, String> {
        let json = self.arguments[index].json();
        let wrong = || format!("argument {} is not a number from 0 on", index + 1);
        json.as_u64().and_then(|number| usize::try_from(number).ok()).ok_or_else(wrong)
    }

    /// Applies a function of strings; heads of columns stay as they are.
    fn map_text(&self, map: impl FnOnce(&str) -> String) -> Result<Item<'a>, String> {
        let text = self.text(0)?;
        Ok(Item::made(if self.cells == Cells::Heads { text.to_owned() } else { map(text) }))
    }

    fn afford(&self, bytes: usize) -> Result<(), String> {
        if bytes <= self.budget { Ok(()) } else { Err("the result is too long".to_owned()) }
    }
}

/// `and`, `or`: nothing decided before, so the last argument is the value.
fn last<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    Ok(call.arguments[call.arguments.len() - 1].clone())
}

fn eq<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let first = call.arguments[0].json();
    for other in &call.arguments[1..] {
        if value::compare(first, other.json())? == Some(Ordering::Equal) {
            return Ok(Item::made(true));
        }
    }
    Ok(Item::made(false))
}

fn ne<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let ordering = value::compare(call.arguments[0].json(), call.arguments[1].json())?;
    Ok(Item::made(ordering != Some(Ordering::Equal)))
}

fn order<'a>(call: &Call<'a>, test: fn(Ordering) -> bool) -> Result<Item<'a>, String> {
    let (a, b) = (call.arguments[0].json(), call.arguments[1].json());
    if let Some(json) = [a, b].into_iter().find(|json| matches!(json, Json::Null | Json::Bool(_))) {
        return Err(format!("{} has no order", noun(json)));
    }
    let ordering = value::compare(a, b)?.ok_or("these numbers have no order")?;
    Ok(Item::made(test(ordering)))
}

fn index<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let mut item = call.arguments[0].clone();
    for key in &call.arguments[1..] {
        item = index_once(&item, key.json())?;
    }
    Ok(item)
}

/// A step of `index`; of a string it is a byte, as in Go.
fn index_once<'a>(item: &Item<'a>, key: &Json) -> Result<Item<'a>, String> {
    let wrong = || format!("cannot index {} with {}", noun(item.json()), noun(key));
    let element = |json: &Json| match (item, key) {
        (Item::Data(Json::Array(items)), _) => Item::Data(&items[usize_of(key).unwrap_or(0)]),
        (Item::Data(Json::Object(fields)), Json::String(key)) => Item::Data(&fields[key]),
        _ => Item::made(json.clone()),
    };
    match (item.json(), key) {
        (Json::Array(items), Json::Number(number)) => {
            let found = usize_of(key).and_then(|index| items.get(index));
            found.map(element).ok_or_else(|| format!("index out of range: {number} of {}", items.len()))
        }
        (Json::Object(fields), Json::String(key)) => Ok(match fields.get(key) {
            Some(json) => element(json),
            // What a missing key is depends on Go's type of the map: strings are empty, anything else is nothing.
            None if fields.values().all(Json::is_string) => Item::made(""),
            None => Item::made(Json::Null),
        }),
        (Json::Null, Json::String(_)) => Ok(Item::made("")),
        (Json::String(text), Json::Number(number)) => {
            let byte = usize_of(key).and_then(|index| text.as_bytes().get(index));
            byte.map(|byte| Item::made(*byte)).ok_or_else(|| format!("index out of range: {number} of {}", text.len()))
        }
        _ => Err(wrong()),
    }
}

fn usize_of(json: &Json) -> Option<usize> {
    json.as_u64().and_then(|number| usize::try_from(number).ok())
}

fn len<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    Ok(Item::made(match call.arguments[0].json() {
        Json::Null => 0,
        Json::String(text) => text.len(),
        Json::Array(items) => items.len(),
        Json::Object(fields) => fields.len(),
        json => return Err(format!("{} has no length", noun(json))),
    }))
}

fn slice<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let json = call.arguments[0].json();
    let length = match json {
        Json::String(text) => text.len(),
        Json::Array(items) => items.len(),
        _ => return Err(format!("{} cannot be sliced", noun(json))),
    };
    let bounds = (1..call.arguments.len()).map(|index| call.number(index)).collect::<Result<Vec<_>, _>>()?;
    let (start, end) = match bounds.as_slice() {
        [] => (0, length),
        [start] => (*start, length),
        [start, end] => (*start, *end),
        _ if json.is_string() => return Err("a string takes at most two bounds".to_owned()),
        [start, end, limit] if end <= limit && *limit <= length => (*start, *end),
        _ => return Err("bounds out of range".to_owned()),
    };
    if start > end || end > length {
        return Err(format!("bounds out of range: {start} to {end} of {length}"));
    }
    match json {
        Json::String(text) => {
            text.get(start..end).map(Item::made).ok_or_else(|| "the bounds cut a character in two".to_owned())
        }
        _ => Ok(Item::made(json.as_array().map_or_else(Vec::new, |items| items[start..end].to_vec()))),
    }
}

fn print<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let mut out = String::new();
    let mut previous_is_text = true;
    for (index, argument) in call.arguments.iter().enumerate() {
        let is_text = argument.json().is_string();
        // Go's Sprint: a blank between operands when neither is a string.
        if index > 0 && !is_text && !previous_is_text {
            out.push(' ');
        }
        value::print(argument.json(), &mut out);
        previous_is_text = is_text;
    }
    Ok(Item::made(out))
}

fn println<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let mut out = String::new();
    for (index, argument) in call.arguments.iter().enumerate() {
        out.push_str(if index > 0 { " " } else { "" });
        value::print(argument.json(), &mut out);
    }
    out.push('\n');
    Ok(Item::made(out))
}

fn printf_call<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let values: Vec<&Json> = call.arguments[1..].iter().map(Item::json).collect();
    let out = printf::format(call.text(0)?, &values, call.budget)?;
    Ok(Item::made(out))
}

fn json<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let json = call.arguments[0].json();
    if call.cells == Cells::Heads && json.is_string() {
        return Ok(call.arguments[0].clone());
    }
    Ok(Item::made(json.to_string()))
}

fn join<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let json = call.arguments[0].json();
    let separator = call.text(1)?;
    let Json::Array(items) = json else {
        return match json {
            Json::Null => Ok(Item::made("")),
            // The head of a column that will hold joined cells.
            Json::String(_) if call.cells == Cells::Heads => Ok(call.arguments[0].clone()),
            _ => Err(format!("argument 1 is {}, not a list", noun(json))),
        };
    };
    let texts: Option<Vec<&str>> = items.iter().map(Json::as_str).collect();
    let texts = texts.ok_or("the list holds something that is no string")?;
    call.afford(texts.iter().map(|text| text.len() + separator.len()).sum())?;
    Ok(Item::made(texts.join(separator)))
}

fn split<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let (text, separator) = (call.text(0)?, call.text(1)?);
    let parts: Vec<Json> = if separator.is_empty() {
        text.chars().map(|c| Json::from(c.to_string())).collect()
    } else {
        text.split(separator).map(Json::from).collect()
    };
    Ok(Item::made(parts))
}

/// Go's `strings.Title`: the first letter of every word.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.push(c);
        } else {
            out.extend(c.to_uppercase());
        }
        inside = if c.is_ascii() { c == '_' || c.is_ascii_alphanumeric() } else { !c.is_whitespace() };
    }
    out
}

fn pad<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let (text, before, after) = (call.text(0)?, call.number(1)?, call.number(2)?);
    if text.is_empty() {
        return Ok(Item::made(""));
    }
    call.afford(before.saturating_add(after).saturating_add(text.len()))?;
    Ok(Item::made(format!("{}{text}{}", " ".repeat(before), " ".repeat(after))))
}

fn truncate<'a>(call: &Call<'a>) -> Result<Item<'a>, String> {
    let (text, length) = (call.text(0)?, call.number(1)?);
    let end = if call.cells == Cells::Heads { text.len() } else { text.floor_char_boundary(length) };
    Ok(Item::made(&text[..end]))
}
