//! What a build shows while it goes on. The views are pure: messages and times in, text out; [`Display`] chooses one of them.

mod plain;
mod rawjson;
#[cfg(test)]
mod tests;
pub(super) mod trace;
mod tty;
mod width;

use std::time::Duration;

pub(super) use tty::{Colors, Outcome, SHOW_CURSOR, Size};
pub(super) use width::plain_text;

use self::plain::Plain;
use self::trace::{Part, Trace};
use self::tty::Tty;
use crate::cli::format::size;
use crate::types::build::StatusResponse;

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Mode {
    /// `tty` on a terminal, else `plain`
    #[default]
    Auto,
    /// A line a step, running steps with the end of their output
    Tty,
    /// Every event a line
    Plain,
    /// Every event a line of JSON
    Rawjson,
    /// Nothing but errors and the image's id
    #[value(alias = "none")]
    Quiet,
}

/// The view of a build.
#[derive(Debug)]
pub(super) enum Display {
    Tty(Tty),
    Plain(Plain),
    Rawjson(Trace),
    Quiet(Trace),
}

impl Display {
    /// Makes the view of a build that begins at `now`, in nanoseconds since 1970. `terminal` says whether it is shown on one.
    pub(super) fn new(mode: Mode, terminal: bool, colors: Colors, now: i64) -> Self {
        match mode {
            Mode::Auto if terminal => Self::Tty(Tty::new(colors, now)),
            Mode::Tty => Self::Tty(Tty::new(colors, now)),
            Mode::Auto | Mode::Plain => Self::Plain(Plain::default()),
            Mode::Rawjson => Self::Rawjson(Trace::default()),
            Mode::Quiet => Self::Quiet(Trace::default()),
        }
    }

    /// Returns what is known of the build.
    pub(super) fn trace(&self) -> &Trace {
        match self {
            Self::Tty(view) => view.trace(),
            Self::Plain(view) => view.trace(),
            Self::Rawjson(trace) | Self::Quiet(trace) => trace,
        }
    }

    /// Takes a message in and returns what to print at once.
    pub(super) fn update(&mut self, message: &StatusResponse) -> String {
        match self {
            Self::Tty(view) => {
                view.update(message);
                String::new()
            }
            Self::Plain(view) => view.update(message),
            Self::Rawjson(trace) => {
                trace.update(message);
                rawjson::line(message)
            }
            Self::Quiet(trace) => {
                trace.update(message);
                String::new()
            }
        }
    }

    /// Says whether time alone changes what is shown.
    pub(super) fn is_animated(&self) -> bool {
        matches!(self, Self::Tty(_))
    }

    /// Returns what to print as time goes by.
    pub(super) fn frame(&mut self, now: i64, size: Size) -> String {
        match self {
            Self::Tty(view) => view.frame(now, size),
            Self::Plain(_) | Self::Rawjson(_) | Self::Quiet(_) => String::new(),
        }
    }

    /// Returns what to print at the end: warnings are among it.
    pub(super) fn finish(&mut self, now: i64, size: Size, outcome: Outcome, detail: Detail) -> String {
        let mut text = match self {
            Self::Tty(view) => view.finish(now, size, outcome),
            Self::Plain(view) => view.finish(),
            Self::Rawjson(_) | Self::Quiet(_) => return String::new(),
        };
        text.push_str(&warnings(self.trace(), detail));
        text
    }
}

/// How much is printed of warnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// A line each.
    Short,
    /// What each check asks for and where it is described, too (`--debug`).
    Full,
}

fn warnings(trace: &Trace, detail: Detail) -> String {
    let warnings = trace.warnings();
    if warnings.is_empty() {
        return String::new();
    }
    let plural = if warnings.len() == 1 { "" } else { "s" };
    let lines = warnings.iter().map(|warning| {
        let place = warning.line.map(|line| format!(" (line {line})"));
        let place = place.filter(|place| !warning.text.ends_with(place.as_str())).unwrap_or_default();
        let mut text = format!(" - {}{place}\n", warning.text);
        if detail == Detail::Full {
            warning.detail.iter().for_each(|line| text.push_str(&format!("{line}\n")));
            if !warning.url.is_empty() {
                text.push_str(&format!("More info: {}\n", warning.url));
            }
            text.push_str(&excerpt_of(warning));
            text.push('\n');
        }
        text
    });
    let expand = if detail == Detail::Short { " (use --debug to expand)" } else { "" };
    format!("\n {} warning{plural} found{expand}:\n{}", warnings.len(), lines.collect::<String>())
}

/// The lines a warning is about, without styles.
fn excerpt_of(warning: &trace::Warning) -> String {
    let excerpt = warning.source.as_ref().map(super::failure::excerpt).unwrap_or_default();
    anstream::adapter::strip_str(&excerpt).to_string()
}

/// Returns how far a transfer is, as `3.40MB / 10.00MB`; `None` when a part is none.
fn transfer(part: &Part) -> Option<String> {
    match (part.current, part.total) {
        (0, 0) => None,
        (current, 0) => Some(size::fixed(current)),
        (current, total) if current == total && part.completed.is_some() => Some(size::fixed(current)),
        (current, total) => Some(format!("{} / {}", size::fixed(current), size::fixed(total))),
    }
}

/// Returns a length of time; a negative one is none.
fn nanos(ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}
