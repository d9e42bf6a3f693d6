//! Values of options: sizes, processors, key-value pairs, comma-separated lists.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result, ResultExt as _};

/// Reads a number of bytes: `512`, `64k`, `1.5g`, `10MiB`. Units are powers of 1024, as docker reads them.
///
/// # Errors
/// `InvalidArgument` with an example.
pub(super) fn bytes(text: &str) -> Result<i64> {
    let invalid =
        || Error::invalid(format!("invalid size {text:?}: expected a number with b, k, m or g, such as 512m"));
    let lower = text.trim().to_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let factor = match unit.trim().trim_end_matches('b').trim_end_matches('i') {
        "" => 1_u32,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => return bytes(&format!("{number}g"))?.checked_mul(1 << 10).ok_or_else(invalid),
        _ => return Err(invalid()),
    };
    let value = number.parse::<f64>().map_err(|_| invalid())? * f64::from(factor);
    if !(0.0..9e18).contains(&value) {
        return Err(invalid());
    }
    #[expect(clippy::cast_possible_truncation, reason = "the range was checked, fractions of a byte are dropped")]
    Ok(value as i64)
}

/// Reads a number of processors, such as `1.5`, in units of 10⁻⁹.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn nano_cpus(text: &str) -> Result<i64> {
    let value: f64 = text.parse().map_err(|_| Error::invalid(format!("invalid number of CPUs: {text:?}")))?;
    if !(0.0..1e6).contains(&value) {
        return Err(Error::invalid(format!("invalid number of CPUs: {text:?}")));
    }
    #[expect(clippy::cast_possible_truncation, reason = "the range was checked")]
    Ok((value * 1e9).round() as i64)
}

/// Reads a length of time as Go writes it: `300ms`, `1.5s`, `1h30m`; `0` needs no unit.
///
/// # Errors
/// `InvalidArgument` with an example.
pub(super) fn duration(text: &str) -> Result<Duration> {
    let invalid = || Error::invalid(format!("invalid duration {text:?}: expected numbers with units, such as 1m30s"));
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut total_s) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let unit_s = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(invalid()),
        };
        total_s += number.parse::<f64>().map_err(|_| invalid())? * unit_s;
        rest = after;
    }
    // Go's durations end at 2^63 nanoseconds.
    if text.is_empty() || total_s > 9.2e9 {
        return Err(invalid());
    }
    Duration::try_from_secs_f64(total_s).map_err(|_| invalid())
}

/// Reads values of `--filter`: `name=value`, each option one value.
///
/// # Errors
/// `InvalidArgument` for an entry that is no filter.
pub(super) fn filters(entries: &[String]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut filters = BTreeMap::<String, Vec<String>>::new();
    for entry in entries {
        let (name, value) = entry
            .split_once('=')
            .ok_or_else(|| Error::invalid(format!("invalid filter {entry:?}: expected name=value")))?;
        filters.entry(name.trim().to_lowercase()).or_default().push(value.trim().to_owned());
    }
    Ok(filters)
}

/// Splits `key=value` entries; a missing value is empty.
pub(super) fn map(entries: &[String]) -> HashMap<String, String> {
    let split = |entry: &String| match entry.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (entry.clone(), String::new()),
    };
    entries.iter().map(split).collect()
}

/// Shortens a text to so many characters, the last of which then is an ellipsis.
pub(super) fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['\u{2026}']).collect()
}

/// Reads lines of `KEY=value` files; blank lines and lines that begin with `#` are skipped.
///
/// # Errors
/// `NotFound` when a file is missing; `InvalidArgument` for names with blanks.
pub(super) fn files(paths: &[std::path::PathBuf]) -> Result<Vec<String>> {
    let mut entries = Vec::new();
    for path in paths {
        entries.extend(file(path)?);
    }
    Ok(entries)
}

fn file(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).context(|| format!("open {}", path.display()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            let place = format!("{}:{}", path.display(), number + 1);
            return Err(Error::invalid(format!(
                "{place}: a variable's name is empty or contains white space: {line:?}"
            )));
        }
        entries.push(line.to_owned());
    }
    Ok(entries)
}

/// Gives variables without a value that of this command's environment; those it does not have are left out.
pub(super) fn with_environment(entries: Vec<String>) -> Vec<String> {
    entries.into_iter().filter_map(filled).collect()
}

fn filled(entry: String) -> Option<String> {
    if entry.contains('=') {
        return Some(entry);
    }
    std::env::var(&entry).ok().map(|value| format!("{entry}={value}"))
}

/// Puts the variables of files and options together, as docker does. One without a value gets that of this command's
/// environment; if there is none, it is left out if a file names it, and sent bare if an option does, which takes it away
/// from those of the image.
///
/// # Errors
/// As [`files`].
pub(super) fn variables(paths: &[std::path::PathBuf], options: &[String]) -> Result<Vec<String>> {
    let mut variables = with_environment(files(paths)?);
    for entry in options {
        if entry.is_empty() || entry.starts_with('=') {
            return Err(Error::invalid(format!("invalid environment variable: {entry:?}")));
        }
        variables.push(filled(entry.clone()).unwrap_or_else(|| entry.clone()));
    }
    Ok(variables)
}

/// Splits `a=b,c,"d=e,f"` into its fields, as `--mount` and `--secret` are written (RFC 4180: a field that begins with a
/// quote ends at the next one, doubled quotes stand for one). A field without `=` has no value.
///
/// # Errors
/// `InvalidArgument` for an open quote.
pub(super) fn csv(text: &str) -> Result<Vec<(String, Option<String>)>> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let field = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (field, after) = unquote(quoted)
                    .ok_or_else(|| Error::invalid(format!("{text:?} has a quote that is not closed")))?;
                rest = after;
                field
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let (field, after) = rest.split_at(end);
                rest = after;
                field.to_owned()
            }
        };
        fields.push(match field.split_once('=') {
            Some((key, value)) => (key.trim().to_owned(), Some(value.to_owned())),
            None => (field.trim().to_owned(), None),
        });
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(fields),
            None => return Err(Error::invalid(format!("{text:?}: unexpected text after a quote"))),
        }
    }
}

/// Reads up to the closing quote; returns the text and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Some((field, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, value) in [("0", 0), ("512", 512), ("64k", 65_536), ("1.5G", 1_610_612_736), ("10MiB", 10 << 20)] {
            assert_eq!(bytes(text).unwrap(), value);
        }
        for text in ["", "x", "1x", "-1", "1..5", "99999999t"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn processors_are_counted_in_billionths() {
        assert_eq!(nano_cpus("1.5").unwrap(), 1_500_000_000);
        assert!(nano_cpus("-1").is_err() && nano_cpus("many").is_err());
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (text, millis) in [("0", 0), ("300ms", 300), ("1.5s", 1_500), ("1h30m", 5_400_000), ("1m0.25s", 60_250)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "5", "s", "1x", "1.1.1s", "-1s", "1e99h", "99999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn filters_of_one_name_are_gathered() {
        let filters = filters(&["label=a=b".to_owned(), "Label=c".to_owned(), "status=exited".to_owned()]).unwrap();
        assert_eq!(filters["label"], ["a=b", "c"]);
        assert_eq!(filters["status"], ["exited"]);
        assert!(super::filters(&["x".to_owned()]).is_err());
    }

    #[test]
    fn fields_may_be_quoted() {
        let fields = csv(r#"type=bind,"source=/a,b",readonly,"x=""y""""#).unwrap();
        let expected = [("type", Some("bind")), ("source", Some("/a,b")), ("readonly", None), ("x", Some("\"y\""))];
        assert_eq!(fields, expected.map(|(key, value)| (key.to_owned(), value.map(str::to_owned))));
        assert!(csv("\"open").is_err());
    }

    #[test]
    fn variable_files_name_the_line_that_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vars");
        std::fs::write(&path, "# comment\nA=1\n\n  B=two words\nC\n").unwrap();
        assert_eq!(file(&path).unwrap(), ["A=1", "B=two words", "C"]);
        std::fs::write(&path, "A=1\nBAD NAME=2\n").unwrap();
        assert!(file(&path).unwrap_err().to_string().contains("vars:2:"));
    }
}
