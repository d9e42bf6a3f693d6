//! Signals by name and number, as docker's and BuildKit's clients write them.

use rustix::process::Signal;

use crate::error::{Error, Result};

/// `SIGKILL`.
pub const KILL: i32 = 9;
/// `SIGTERM`.
pub const TERM: i32 = 15;

/// The highest number.
const MAX: i32 = 64;
/// The first and the last real-time signal, as glibc counts.
const RTMIN: i32 = 34;

/// Names of the numbers from 1 on; the same on x86-64 and aarch64 (`man 7 signal`).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// Other names of some.
const ALIASES: [(&str, i32); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];

/// Reads a signal's number or name, with or without `SIG`, in any case; `RTMIN+3` and `RTMAX-2`, too.
///
/// # Errors
/// `InvalidArgument` in docker's words.
pub fn parse(text: &str) -> Result<i32> {
    number(text).ok_or_else(|| Error::invalid(format!("Invalid signal: {text}")))
}

/// Returns the signal of a number.
#[must_use]
pub fn of(number: i32) -> Option<Signal> {
    crate::sys::process::signal(number)
}

fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=MAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |base: i32, rest: &str, sign: char| {
        let offset = if rest.is_empty() { 0 } else { rest.strip_prefix(sign)?.parse::<i32>().ok()? };
        let number = if sign == '+' { base.checked_add(offset)? } else { base.checked_sub(offset)? };
        (RTMIN..=MAX).contains(&number).then_some(number)
    };
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return real_time(RTMIN, rest, '+');
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return real_time(MAX, rest, '-');
    }
    let alias = ALIASES.iter().find(|(name, _)| *name == bare).map(|(_, number)| *number);
    alias.or_else(|| NAMES.iter().position(|name| *name == bare).and_then(|at| i32::try_from(at + 1).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_users_write_them() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("sigusr1", 10), ("SIGRTMIN+3", 37), ("RTMAX-14", 50), ("64", 64)]
        {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "SIGNOPE", "RTMIN+99", "RTMIN-1", "-9"] {
            assert_eq!(parse(text).unwrap_err().to_string(), format!("Invalid signal: {text}"));
        }
    }
}
