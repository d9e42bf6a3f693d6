//! Numbers as Go writes them: literals of templates, and floats as `%v`, `%e`, `%f` and `%g` print them.

use super::lex::Kind;

/// Parses a literal: decimal, `0x`, `0o`, `0b` or old octal integers, underscores, decimal floats.
pub(super) fn parse(text: &str) -> Option<Kind> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, body) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'0'..=b'9' | b'_', ..] if !lower.contains(['.', 'e']) => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if lower.contains("__") || lower.ends_with('_') || lower.starts_with('_') {
        return None;
    }
    // An integer that does not fit is an error, not a float.
    if radix != 10 || body.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_') {
        let sign = if negative { "-" } else { "" };
        let unsigned = !body.starts_with(['+', '-']);
        let value = i64::from_str_radix(&format!("{sign}{}", body.replace('_', "")), radix);
        return value.ok().filter(|_| unsigned).map(Kind::Int);
    }
    let decimal = lower.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'+' | b'-'));
    let value: f64 = if decimal { lower.parse().ok()? } else { return None };
    value.is_finite().then_some(Kind::Float(if negative { -value } else { value }))
}

/// Formats a finite float: `verb` is `e`, `f` or `g`; without a precision, as many digits as identify the number.
pub(super) fn float(value: f64, verb: char, precision: Option<usize>) -> String {
    match (verb, precision) {
        ('f', Some(precision)) => format!("{value:.precision$}"),
        ('f', None) => format!("{value}"),
        ('e', _) => exponential(value, precision),
        _ => general(value, precision),
    }
}

/// `1.5e+06`: at least two digits of exponent.
fn exponential(value: f64, precision: Option<usize>) -> String {
    let text = match precision {
        Some(precision) => format!("{value:.precision$e}"),
        None => format!("{value:e}"),
    };
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// `%g`: the shorter of `%e` and `%f`, without trailing zeros (Go's `strconv`, `%e` is used below 1e-4 and from the precision, or 6, on).
fn general(value: f64, precision: Option<usize>) -> String {
    let precision = precision.map(|digits| digits.max(1));
    let scientific = match precision {
        Some(digits) => format!("{value:.*e}", digits - 1),
        None => format!("{value:e}"),
    };
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).count();
    let point = exponent + 1;
    let limit = match precision {
        None => 6,
        Some(precision) if precision > digits && i32::try_from(digits).is_ok_and(|digits| digits >= point) => digits,
        Some(precision) => precision,
    };
    if exponent < -4 || i32::try_from(limit).is_ok_and(|limit| exponent >= limit) {
        return exponential(value, Some(digits - 1));
    }
    let decimals = usize::try_from(i32::try_from(digits).unwrap_or(0) - point).unwrap_or(0);
    format!("{value:.decimals$}")
}
