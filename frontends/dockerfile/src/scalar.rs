//! Single values as Go reads and writes them: booleans, sizes, durations, quoted strings.
//!
//! The language and the texts in an image's history are defined by Go's standard library and docker's `go-units`.

/// Reads a boolean as `strconv.ParseBool` does.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Reads a size as `units.RAMInBytes` does: a number with a binary unit, for example `64m` or `1.5 GiB`.
pub(crate) fn size_bytes(text: &str) -> Option<u64> {
    let unit_start = text.rfind(|c: char| c.is_ascii_digit() || c == '.').map_or(0, |at| at + 1);
    let (number, unit) = text.split_at(unit_start);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" if unit.is_empty() || unit == "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    if unit.len() > 3 || unit.ends_with('i') || !number.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let size = number.parse::<f64>().ok()? * 1024_f64.powi(power);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked; fractions of bytes are cut off"
    )]
    (size < i64::MAX as f64).then_some(size as u64)
}

/// Reads a decimal number of processors, `0.5` or `2`, in billionths; digits beyond the ninth are cut off.
pub(crate) fn nano_cpus(text: &str) -> Option<u64> {
    let decimal = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let nano = scaled(text, NS_PER_S).filter(|_| decimal)?;
    u64::try_from(nano).ok()
}

const NS_PER_S: i64 = 1_000_000_000;

/// Reads a duration as `time.ParseDuration` does, in nanoseconds: `1h15m30.5s`, `300ms`, `-2us`, `0`.
pub(crate) fn duration_ns(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i64 = 0;
    loop {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit_ns = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => NS_PER_S,
            "m" => 60 * NS_PER_S,
            "h" => 3600 * NS_PER_S,
            _ => return None,
        };
        total = total.checked_add(scaled(number, unit_ns)?)?;
        if tail.is_empty() {
            return Some(if negative { -total } else { total });
        }
        rest = tail;
    }
}

/// Multiplies a decimal number by a whole one, cutting off what is left.
fn scaled(number: &str, unit: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Digits beyond the 18th say less than a nanosecond.
    let digits = &fraction[..fraction.len().min(18)];
    let fraction: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let scale = 10_i128.pow(u32::try_from(digits.len()).ok()?);
    let part = i64::try_from(fraction * i128::from(unit) / scale).ok()?;
    whole.checked_mul(unit)?.checked_add(part)
}

/// Writes a duration as `time.Duration.String` does: `0s`, `1.5ms`, `5m0s`, `1h0m0.25s`.
pub(crate) fn format_duration(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let ns = ns.unsigned_abs();
    let second = NS_PER_S.unsigned_abs();
    let decimal = |value: u64, unit: u64| {
        let text = format!("{}.{:0width$}", value / unit, value % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let text = match ns {
        0 => "0s".to_owned(),
        _ if ns < 1_000 => format!("{ns}ns"),
        _ if ns < 1_000_000 => format!("{}\u{b5}s", decimal(ns, 1_000)),
        _ if ns < second => format!("{}ms", decimal(ns, 1_000_000)),
        _ => {
            let (minutes, seconds) = (ns / second / 60, decimal(ns % (60 * second), second));
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// Writes a time, given in seconds since 1970, as Go's JSON does: `2006-01-02T15:04:05Z`. Years beyond 9999 have no such form.
pub(crate) fn timestamp(seconds: i64) -> Option<String> {
    const DAY: i64 = 86_400;
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Days since 1 March of year 0, so that leap days end their years; 146 097 days make 400 years.
    let days = days.checked_add(719_468)?;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let text = format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z");
    (0..=9999).contains(&year).then_some(text)
}

/// Writes a string as Go's `%q` does.
pub(crate) fn quote(text: &str) -> String {
    format!("\"{}\"", text.chars().map(|c| escape(c, '"')).collect::<String>())
}

/// Writes a number as Go's `%q` does: as the character of that number, `'\x02'`.
pub(crate) fn quote_number(number: u32) -> String {
    format!("'{}'", escape(char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER), '\''))
}

/// Writes a character between quotes of a kind.
fn escape(c: char, quote: char) -> String {
    match c {
        '\\' => "\\\\".to_owned(),
        '\u{7}' => "\\a".to_owned(),
        '\u{8}' => "\\b".to_owned(),
        '\u{c}' => "\\f".to_owned(),
        '\n' => "\\n".to_owned(),
        '\r' => "\\r".to_owned(),
        '\t' => "\\t".to_owned(),
        '\u{b}' => "\\v".to_owned(),
        c if c == quote => format!("\\{c}"),
        c if is_printable(c) => c.to_string(),
        c if c < ' ' || c == '\u{7f}' => format!("\\x{:02x}", u32::from(c)),
        c if u32::from(c) <= 0xffff => format!("\\u{:04x}", u32::from(c)),
        c => format!("\\U{:08x}", u32::from(c)),
    }
}

/// Writes strings as Go's `%q` does with a slice: `["a" "b"]`.
pub(crate) fn quote_all(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| quote(text)).collect::<Vec<_>>().join(" "))
}

/// Letters, marks, numbers, punctuation, symbols and the space.
fn is_printable(c: char) -> bool {
    // Behind another character, `escape_debug` escapes just the categories that are not printable.
    c.is_ascii_graphic() || c == ' ' || (!c.is_ascii() && format!("a{c}").escape_debug().eq(['a', c]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [
            ("0", 0),
            ("32", 32),
            ("32b", 32),
            ("1k", 1024),
            ("1.5 KiB", 1536),
            ("64MB", 64 << 20),
            ("1g", 1 << 30),
            ("2Tb", 2 << 40),
        ] {
            assert_eq!(size_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "b", "k", "1x", "1kk", "1ki", "1bb", "1bib", "-1", "1 2", "1e3", "99999999p", "1ib"] {
            assert_eq!(size_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, ns, printed) in [
            ("0", 0, "0s"),
            ("5m", 300 * NS_PER_S, "5m0s"),
            ("1h15m30.918s", 4_530_918_000_000, "1h15m30.918s"),
            ("1.5ms", 1_500_000, "1.5ms"),
            ("-2us", -2_000, "-2\u{b5}s"),
            ("+.5s", 500_000_000, "500ms"),
            ("1.s", NS_PER_S, "1s"),
            ("7ns", 7, "7ns"),
            ("100h", 360_000 * NS_PER_S, "100h0m0s"),
            ("0.0000000000000000001s", 0, "0s"),
        ] {
            assert_eq!(duration_ns(text), Some(ns), "{text}");
            assert_eq!(format_duration(ns), printed, "{text}");
        }
        for text in ["", "5", "-", "s", ".s", "1d", "1 s", "1.2.3s", "9999999999h", "--1s"] {
            assert_eq!(duration_ns(text), None, "{text}");
        }
    }

    #[test]
    fn processors_are_counted_in_billionths() {
        for (text, nano) in [("2", 2_000_000_000), ("0.5", 500_000_000), (".25", 250_000_000), ("0", 0)] {
            assert_eq!(nano_cpus(text), Some(nano), "{text}");
        }
        for text in ["", ".", "-1", "+1", "1e3", "x", "1.2.3", "99999999999"] {
            assert_eq!(nano_cpus(text), None, "{text}");
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(timestamp(seconds).as_deref(), Some(text));
        }
        assert!(timestamp(253_402_300_800).is_none() && timestamp(i64::MAX).is_none() && timestamp(i64::MIN).is_none());
    }

    #[test]
    fn strings_are_quoted_as_go_quotes_them() {
        assert_eq!(quote("a\"b\\c\n\t\u{1}\u{7f}"), r#""a\"b\\c\n\t\x01\x7f""#);
        assert_eq!(
            quote("é 日本 🚀 e\u{301} \u{a0} \u{200b} \u{e000} \u{10ffff}"),
            "\"é 日本 🚀 e\u{301} \\u00a0 \\u200b \\ue000 \\U0010ffff\""
        );
        assert_eq!(
            quote_all(&["/bin/sh".to_owned(), "-c".to_owned(), "echo \"x\"".to_owned()]),
            r#"["/bin/sh" "-c" "echo \"x\""]"#
        );
        for (number, quoted) in
            [(0, r"'\x00'"), (2, r"'\x02'"), (10, r"'\n'"), (34, "'\"'"), (39, r"'\''"), (300, "'Ĭ'")]
        {
            assert_eq!(quote_number(number), quoted);
        }
        assert_eq!(quote_number(0xd800), "'\u{fffd}'");
    }
}
