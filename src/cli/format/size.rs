//! Amounts of bytes, as docker prints them.

const DECIMAL: &[&str] = &["B", "kB", "MB", "GB", "TB", "PB", "EB"];
const BINARY: &[&str] = &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Formats bytes with powers of 1000 and three digits, as `docker images` does: `0B`, `999B`, `77.8MB`, `1.23GB`.
///
/// Docker prints `1e+03kB` where rounding reaches the next unit; this prints `1MB`.
#[must_use]
pub fn decimal(bytes: u64) -> String {
    with_units(bytes, 1000.0, DECIMAL, 3)
}

/// Formats bytes with powers of 1024 and four digits, as `docker stats` does: `1.945GiB`, `512KiB`.
#[must_use]
pub fn binary(bytes: u64) -> String {
    with_units(bytes, 1024.0, BINARY, 4)
}

/// Formats bytes with powers of 1000 and two decimals, as progress lines do: `418B`, `3.40MB`.
#[must_use]
pub fn fixed(bytes: u64) -> String {
    let (value, unit) = scale(bytes, 1000.0, DECIMAL, |value| (value * 100.0).round() / 100.0);
    if unit == DECIMAL[0] { format!("{value}{unit}") } else { format!("{value:.2}{unit}") }
}

fn with_units(bytes: u64, base: f64, units: &'static [&'static str], digits: usize) -> String {
    // Rounding to so many digits and back leaves a number that prints without trailing zeros.
    let round = |value: f64| format!("{value:.*e}", digits - 1).parse().unwrap_or(value);
    let (value, unit) = scale(bytes, base, units, round);
    format!("{value}{unit}")
}

/// Finds the unit in which the rounded value is below the base.
fn scale(bytes: u64, base: f64, units: &'static [&'static str], round: impl Fn(f64) -> f64) -> (f64, &'static str) {
    #[expect(clippy::cast_precision_loss, reason = "four digits are printed")]
    let mut value = bytes as f64;
    let mut units = units.iter().peekable();
    while let Some(unit) = units.next() {
        if round(value) < base || units.peek().is_none() {
            return (round(value), unit);
        }
        value /= base;
    }
    (round(value), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_docker_prints_them() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1_234, "1.23kB"),
            (77_832_013, "77.8MB"),
            (124_000_000, "124MB"),
            (999_499, "999kB"),
            (1_234_567_890, "1.23GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(decimal(bytes), text);
        }
        for (bytes, text) in [(0, "0B"), (1024, "1KiB"), (2_088_763_392, "1.945GiB"), (1_048_576, "1MiB")] {
            assert_eq!(binary(bytes), text);
        }
        for (bytes, text) in [(0, "0B"), (418, "418B"), (3_397_879, "3.40MB"), (1_470, "1.47kB")] {
            assert_eq!(fixed(bytes), text);
        }
    }

    #[test]
    fn a_size_that_rounds_up_to_the_next_unit_is_printed_in_it() {
        assert_eq!(
            (decimal(999_999), fixed(999_999), binary(1_048_570)),
            ("1MB".into(), "1.00MB".into(), "1MiB".into())
        );
    }
}
