//! `printf` as Go's `fmt` formats JSON's types.
//!
//! What does not fit a verb is printed as Go prints it, `%!d(string=x)`: templates written for docker keep their output.
//! Explicit argument indexes (`%[1]d`) and Go syntax (`%#v`) are refused.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::Value as Json;

use super::number;
use super::value::{self, sorted, type_name};

/// Widths and precisions beyond this are bad, as in Go.
const MAX_WIDTH: usize = 1_000_000;

#[derive(Clone, Debug, Default)]
struct Spec {
    minus: bool,
    plus: bool,
    space: bool,
    zero: bool,
    sharp: bool,
    width: Option<usize>,
    precision: Option<usize>,
    /// Lists stop growing the output here.
    budget: usize,
}

/// Formats `values`; the error says what is not supported or that the result passes `budget` bytes.
pub(super) fn format(format: &str, values: &[&Json], budget: usize) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if out.len() > budget {
            return Err("the result is too long".to_owned());
        }
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec { budget, ..Spec::parse(&mut chars, &mut values, &mut out)? };
        // `%+v` names the fields of Go's structs; it is no sign.
        spec.plus &= chars.peek() != Some(&'v');
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some('v') if spec.sharp => return Err("`%#v` is not supported".to_owned()),
            Some(verb) => match values.next() {
                None => out.push_str(&format!("%!{verb}(MISSING)")),
                Some(value) => spec.value(value, verb, &mut out),
            },
        }
    }
    if out.len() > budget {
        return Err("the result is too long".to_owned());
    }
    let extra: Vec<String> = values.map(|value| typed(value)).collect();
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Ok(out)
}

/// `string=x`, as Go shows what it could not format.
fn typed(value: &Json) -> String {
    if value.is_null() {
        return "<nil>".to_owned();
    }
    let mut text = format!("{}=", type_name(value));
    value::print(value, &mut text);
    text
}

impl Spec {
    /// Reads flags, width and precision.
    fn parse(
        chars: &mut Peekable<Chars<'_>>,
        values: &mut std::slice::Iter<'_, &Json>,
        out: &mut String,
    ) -> Result<Self, String> {
        let mut spec = Self::default();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | ' ' | '0' | '#')) {
            match flag {
                '-' => spec.minus = true,
                '+' => spec.plus = true,
                ' ' => spec.space = true,
                '0' => spec.zero = true,
                _ => spec.sharp = true,
            }
        }
        spec.width = count(chars, values, "%!(BADWIDTH)", out, |negative| spec.minus |= negative);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = count(chars, values, "%!(BADPREC)", out, |_| {}).or(Some(0));
        }
        if chars.peek() == Some(&'[') {
            return Err("argument indexes (`%[1]d`) are not supported".to_owned());
        }
        Ok(spec)
    }

    fn value(&self, value: &Json, verb: char, out: &mut String) {
        match (value, verb) {
            (_, 'T') => self.pad(type_name(value), out),
            (Json::Null, 'v') => self.pad("<nil>", out),
            (Json::Null, _) => out.push_str(&format!("%!{verb}(<nil>)")),
            (Json::Bool(value), 't' | 'v') => self.pad(&value.to_string(), out),
            (Json::String(text), 's' | 'v') => self.pad(self.cut(text), out),
            (Json::String(text), 'q') => self.pad(&quote(self.cut(text)), out),
            (Json::String(text), 'x' | 'X') => self.pad(&hex_text(self.cut(text), verb), out),
            (Json::Number(number), _) => match number.as_f64() {
                Some(float) if number.is_f64() => self.float(float, verb, value, out),
                _ => self.integer(number, verb, value, out),
            },
            (Json::Array(items), _) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if out.len() > self.budget {
                        break;
                    }
                    out.push_str(if index == 0 { "" } else { " " });
                    self.element(item, verb, out);
                }
                out.push(']');
            }
            (Json::Object(fields), _) => {
                out.push_str("map[");
                for (index, (key, item)) in sorted(fields).into_iter().enumerate() {
                    if out.len() > self.budget {
                        break;
                    }
                    out.push_str(if index == 0 { "" } else { " " });
                    self.value(&Json::from(key.as_str()), verb, out);
                    out.push(':');
                    self.element(item, verb, out);
                }
                out.push(']');
            }
            _ => bad(value, verb, out),
        }
    }

    /// Inside lists and objects Go prints nil plainly for `%v` and `%s`.
    fn element(&self, value: &Json, verb: char, out: &mut String) {
        if value.is_null() && matches!(verb, 'v' | 's') {
            let text = if verb == 'v' { "<nil>" } else { "%!s(<nil>)" };
            self.pad(text, out);
        } else {
            self.value(value, verb, out);
        }
    }

    /// A string's precision counts characters.
    fn cut<'t>(&self, text: &'t str) -> &'t str {
        let end = self.precision.and_then(|count| text.char_indices().nth(count)).map_or(text.len(), |(at, _)| at);
        &text[..end]
    }

    fn pad(&self, text: &str, out: &mut String) {
        let missing = self.width.unwrap_or(0).saturating_sub(text.chars().count());
        let blanks = if self.zero && !self.minus { "0" } else { " " }.repeat(missing);
        if self.minus {
            out.push_str(text);
            out.push_str(&blanks);
        } else {
            out.push_str(&blanks);
            out.push_str(text);
        }
    }

    /// Pads a number; zeros go between sign and digits.
    fn pad_number(&self, negative: bool, digits: &str, out: &mut String) {
        let sign = match (negative, self.plus, self.space) {
            (true, _, _) => "-",
            (false, true, _) => "+",
            (false, false, true) => " ",
            (false, false, false) => "",
        };
        let zeros = if self.zero && !self.minus {
            self.width.unwrap_or(0).saturating_sub(sign.len() + digits.len())
        } else {
            0
        };
        let plain = Self { zero: false, ..self.clone() };
        plain.pad(&format!("{sign}{}{digits}", "0".repeat(zeros)), out);
    }

    fn integer(&self, number: &serde_json::Number, verb: char, value: &Json, out: &mut String) {
        let signed = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)).unwrap_or(0);
        let size = signed.unsigned_abs();
        let character = || u32::try_from(signed).ok().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER);
        let prefix = |prefix: &'static str| if self.sharp { prefix } else { "" };
        let digits = match verb {
            'd' | 'v' => size.to_string(),
            'b' => format!("{}{size:b}", prefix("0b")),
            'o' => format!("{}{size:o}", prefix("0")),
            'O' => format!("0o{size:o}"),
            'x' => format!("{}{size:x}", prefix("0x")),
            'X' => format!("{}{size:X}", prefix("0X")),
            'c' => return self.pad(&character().to_string(), out),
            'q' => return self.pad(&format!("{:?}", character()), out),
            'U' => return self.pad(&format!("U+{size:04X}"), out),
            _ => return bad(value, verb, out),
        };
        match self.precision {
            Some(0) if size == 0 => self.pad("", out),
            // A precision is the least number of digits, and turns padding with zeros off.
            Some(least) => {
                let plain = Self { zero: false, ..self.clone() };
                plain.pad_number(signed < 0, &format!("{digits:0>least$}"), out);
            }
            None => self.pad_number(signed < 0, &digits, out),
        }
    }

    fn float(&self, value: f64, verb: char, json: &Json, out: &mut String) {
        let size = value.abs();
        let text = match verb {
            'v' | 'g' | 'G' => number::float(size, 'g', self.precision),
            'f' | 'F' => number::float(size, 'f', Some(self.precision.unwrap_or(6))),
            'e' | 'E' => number::float(size, 'e', Some(self.precision.unwrap_or(6))),
            _ => return bad(json, verb, out),
        };
        let text = if verb.is_ascii_uppercase() { text.to_uppercase() } else { text };
        self.pad_number(value.is_sign_negative(), &text, out);
    }
}

fn bad(value: &Json, verb: char, out: &mut String) {
    out.push_str(&format!("%!{verb}({})", typed(value)));
}

/// Reads a width or precision: digits, or `*` for the next value.
fn count(
    chars: &mut Peekable<Chars<'_>>,
    values: &mut std::slice::Iter<'_, &Json>,
    complaint: &str,
    out: &mut String,
    mut negative: impl FnMut(bool),
) -> Option<usize> {
    if chars.next_if_eq(&'*').is_some() {
        let value = values.next().and_then(|value| value.as_i64());
        negative(value.is_some_and(i64::is_negative));
        let size = value.and_then(|value| usize::try_from(value.unsigned_abs()).ok()).filter(|size| *size <= MAX_WIDTH);
        if size.is_none() {
            out.push_str(complaint);
        }
        return size;
    }
    let mut size = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        chars.next();
        size = Some(size.unwrap_or(0usize).saturating_mul(10).saturating_add(digit as usize));
    }
    if size.is_some_and(|size| size > MAX_WIDTH) {
        out.push_str(complaint);
        return None;
    }
    size
}

fn hex_text(text: &str, verb: char) -> String {
    let digit = |byte: u8| if verb == 'x' { format!("{byte:02x}") } else { format!("{byte:02X}") };
    text.bytes().map(digit).collect()
}

/// A string as Go's `%q` prints it.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\x1f' | '\x7f' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            '\u{80}'..='\u{9f}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}
