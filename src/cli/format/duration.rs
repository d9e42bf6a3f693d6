//! Lengths of time, as docker and BuildKit print them.

use std::time::Duration;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Formats a length of time in words, as docker does: `Less than a second`, `3 seconds`, `About an hour`, `2 weeks`.
///
/// Callers add `ago` or `Up`.
#[must_use]
pub fn words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    // Docker rounds hours to the nearest, everything else down.
    let hours = (seconds + HOUR / 2) / HOUR;
    match (seconds, hours) {
        (0, _) => "Less than a second".to_owned(),
        (1, _) => "1 second".to_owned(),
        (2..MINUTE, _) => format!("{seconds} seconds"),
        (MINUTE..120, _) => "About a minute".to_owned(),
        (120..HOUR, _) => format!("{} minutes", seconds / MINUTE),
        (_, ..=1) => "About an hour".to_owned(),
        (_, ..48) => format!("{hours} hours"),
        (_, ..336) => format!("{} days", hours / 24),
        (_, ..1_440) => format!("{} weeks", hours / 24 / 7),
        (_, ..17_520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / DAY / 365),
    }
}

/// Formats seconds with one decimal, as BuildKit's progress does: `0.1s`, `75.0s`.
#[must_use]
pub fn seconds(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}

/// Formats a length of time in at most six characters up to a hundred hours: `0.1s`, `59.9s`, `2m03s`, `1h05m`.
#[must_use]
pub fn clock(duration: Duration) -> String {
    // What would round to 60.0s is a minute already.
    if duration.as_millis() < 59_950 {
        return seconds(duration);
    }
    let total = duration.as_secs().max(MINUTE);
    if total < HOUR {
        format!("{}m{:02}s", total / MINUTE, total % MINUTE)
    } else {
        format!("{}h{:02}m", total / HOUR, total % HOUR / MINUTE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_docker_prints_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (59 * MINUTE + 59, "59 minutes"),
            (HOUR, "About an hour"),
            (HOUR + HOUR / 2 - 1, "About an hour"),
            (HOUR + HOUR / 2, "2 hours"),
            (47 * HOUR, "47 hours"),
            (48 * HOUR, "2 days"),
            (14 * DAY, "2 weeks"),
            (60 * DAY, "2 months"),
            (730 * DAY, "2 years"),
        ] {
            assert_eq!(words(Duration::from_secs(seconds)), text, "{seconds} s");
        }
    }

    #[test]
    fn times_of_steps_stay_narrow() {
        for (millis, text) in [
            (0, "0.0s"),
            (1_249, "1.2s"),
            (59_949, "59.9s"),
            (59_950, "1m00s"),
            (123_000, "2m03s"),
            (3_900_000, "1h05m"),
        ] {
            assert_eq!(clock(Duration::from_millis(millis)), text);
        }
        assert_eq!(seconds(Duration::from_millis(75_000)), "75.0s");
    }
}
