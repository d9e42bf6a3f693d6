//! Progress on a terminal: what has ended is printed once and scrolls away, what runs is drawn anew below it.
//!
//! Messages and times in, text with control sequences out. A frame is one piece of text, written at once, and never taller
//! than the screen; lines are cut to its width, so nothing wraps and a step is one line.

use anstyle::{AnsiColor, Style};

use super::trace::{Change, Part, State, Step, Trace};
use super::width::{columns, cut, plain_text};
use super::{nanos, transfer};
use crate::cli::format::duration;
use crate::types::build::StatusResponse;

/// The most lines of output shown of a running step.
const MAX_TAIL: usize = 6;

/// The most transfers shown of a running step.
const MAX_TRANSFERS: usize = 5;

/// Times are put at the right edge, but no farther away than this.
const MAX_WIDTH: usize = 140;

const HIDE_CURSOR: &str = "\x1b[?25l";
/// Makes the cursor visible again.
pub(in crate::cli::build) const SHOW_CURSOR: &str = "\x1b[?25h";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// The size of the screen, in cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli::build) struct Size {
    pub(in crate::cli::build) columns: usize,
    pub(in crate::cli::build) rows: usize,
}

/// Whether words are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli::build) enum Colors {
    On,
    Off,
}

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli::build) enum Outcome {
    Finished,
    Failed,
    Interrupted,
}

/// The view of a build on a terminal.
#[derive(Debug)]
pub(in crate::cli::build) struct Tty {
    trace: Trace,
    colors: Colors,
    began: i64,
    /// Steps that have ended and are not printed yet.
    ended: Vec<usize>,
    /// The widths of the lines of the last frame, which the next one replaces.
    drawn: Vec<usize>,
    hidden: bool,
}

/// A line of a frame: what stands left, what stands at the right edge, and how it looks.
struct Line {
    left: String,
    right: String,
    style: Style,
    keep: Keep,
}

/// What gives way when a line is too narrow for both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// The left side is cut.
    Both,
    /// The right side is left out.
    Left,
}

impl Tty {
    /// Makes the view of a build that begins at `now`, in nanoseconds since 1970.
    pub(super) fn new(colors: Colors, now: i64) -> Self {
        Self { trace: Trace::default(), colors, began: now, ended: Vec::new(), drawn: Vec::new(), hidden: false }
    }

    /// Returns what is known of the build.
    pub(super) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Takes a message in.
    pub(super) fn update(&mut self, message: &StatusResponse) {
        let changes = self.trace.update(message);
        let ended = changes.into_iter().filter_map(|change| match change {
            Change::Ended(step) => Some(step),
            _ => None,
        });
        self.ended.extend(ended);
    }

    /// Returns the text that replaces the last frame by the one of `now`.
    pub(super) fn frame(&mut self, now: i64, size: Size) -> String {
        let width = usable(size);
        let mut text = self.rewind(size);
        text.push_str(&self.take_ended(width));
        let live = self.live(now, size, width);
        self.drawn = live.iter().map(|line| line.columns(width)).collect();
        live.iter().for_each(|line| line.write(&mut text, width, self.colors));
        text.push_str(CLEAR_BELOW);
        text
    }

    /// Returns the text that replaces the last frame by what stays.
    pub(super) fn finish(&mut self, now: i64, size: Size, outcome: Outcome) -> String {
        let width = usable(size);
        let mut text = self.rewind(size);
        text.push_str(&self.take_ended(width));
        for step in self.trace.steps() {
            if let Some(since) = step.running_since() {
                cancelled(step, now - since).write(&mut text, width, self.colors);
            }
        }
        self.summary(now, Some(outcome)).write(&mut text, width, self.colors);
        text.push_str(CLEAR_BELOW);
        text.push_str(SHOW_CURSOR);
        self.drawn.clear();
        self.hidden = false;
        text
    }

    /// Moves to the first line of the last frame. A screen that became narrower has wrapped its lines.
    fn rewind(&mut self, size: Size) -> String {
        let mut text = String::new();
        if !self.hidden {
            self.hidden = true;
            text.push_str(HIDE_CURSOR);
        }
        let rows: usize = self.drawn.iter().map(|columns| columns.div_ceil(size.columns.max(1)).max(1)).sum();
        text.push('\r');
        if rows > 0 {
            text.push_str(&format!("\x1b[{}A", rows.min(size.rows.max(1))));
        }
        text
    }

    fn take_ended(&mut self, width: usize) -> String {
        let mut text = String::new();
        for number in std::mem::take(&mut self.ended) {
            let step = self.trace.step(number);
            ended(step).write(&mut text, width, self.colors);
            // Not transfers, but what a user needs afterwards: an image's id, its names.
            for part in step.parts().iter().filter(|part| !part.is_transfer() && part.completed.is_some()) {
                part_line(part, part.time).write(&mut text, width, self.colors);
            }
        }
        text
    }

    /// Returns the lines of what runs, and below them the summary.
    fn live(&self, now: i64, size: Size, width: usize) -> Vec<Line> {
        let rows = size.rows.saturating_sub(2).max(1);
        let running: Vec<&Step> = self.trace.steps().iter().filter(|step| step.running_since().is_some()).collect();
        let mut lines = Vec::new();
        let shown = if running.len() > rows { rows - 1 } else { running.len() };
        let mut spare = rows - shown.min(rows);
        for (at, step) in running.iter().take(shown).enumerate() {
            lines.push(running_line(step, now));
            let share = spare.div_ceil(shown - at);
            let details = details(step, now, share, width);
            spare -= details.len();
            lines.extend(details);
        }
        if running.len() > shown {
            let text = format!(" => and {} more steps", running.len() - shown);
            lines.push(Line::new(text, String::new(), Style::new().dimmed()));
        }
        lines.push(self.summary(now, None));
        lines
    }

    fn summary(&self, now: i64, outcome: Option<Outcome>) -> Line {
        let (ended, known) = self.trace.counts();
        let took = duration::clock(nanos(now - self.began));
        let (word, style) = match outcome {
            None => ("", Style::new().bold()),
            Some(Outcome::Finished) => (" FINISHED", AnsiColor::Green.on_default()),
            Some(Outcome::Failed) => (" FAILED", AnsiColor::Red.on_default()),
            Some(Outcome::Interrupted) => (" CANCELED", AnsiColor::Yellow.on_default()),
        };
        Line::new(format!("[+] Building {took} ({ended}/{known}){word}"), String::new(), style)
    }
}

/// The last column stays free: a terminal may wrap after it.
fn usable(size: Size) -> usize {
    size.columns.saturating_sub(1).clamp(20, MAX_WIDTH)
}

fn ended(step: &Step) -> Line {
    let (word, took, style) = match &step.state {
        State::Done { took_ns } => ("", *took_ns, AnsiColor::Cyan.on_default()),
        State::Cached | State::Running { .. } => ("CACHED ", 0, AnsiColor::Cyan.on_default()),
        State::Cancelled => ("CANCELED ", 0, AnsiColor::Yellow.on_default()),
        State::Failed { took_ns, .. } => ("ERROR ", *took_ns, AnsiColor::Red.on_default()),
    };
    Line::new(format!(" => {word}{}", step.name), duration::clock(nanos(took)), style)
}

fn cancelled(step: &Step, took_ns: i64) -> Line {
    let style = AnsiColor::Yellow.on_default();
    Line::new(format!(" => CANCELED {}", step.name), duration::clock(nanos(took_ns)), style)
}

fn running_line(step: &Step, now: i64) -> Line {
    let took = nanos(now - step.running_since().unwrap_or(now));
    Line::new(format!(" => {}", step.name), duration::clock(took), Style::new().bold())
}

/// Returns at most `rows` lines about a running step: its transfers first, then the end of its output.
fn details(step: &Step, now: i64, rows: usize, width: usize) -> Vec<Line> {
    let open: Vec<&Part> = step.parts().iter().filter(|part| part.completed.is_none()).collect();
    let shown = open.len().min(MAX_TRANSFERS).min(rows);
    let mut lines: Vec<Line> = open[..shown].iter().map(|part| part_line(part, now)).collect();
    let tail = step.tail.iter().cloned().chain(step.open_line());
    let tail: Vec<String> = tail.map(|line| plain_text(&line)).filter(|line| !line.trim().is_empty()).collect();
    let skip = tail.len().saturating_sub(MAX_TAIL.min(rows - shown));
    let style = Style::new().dimmed();
    lines.extend(tail.into_iter().skip(skip).map(|text| {
        let left = cut(&format!(" => => # {text}"), width);
        Line::new(left, String::new(), style)
    }));
    lines
}

fn part_line(part: &Part, now: i64) -> Line {
    let took = duration::clock(nanos(part.took_ns(now)));
    let right = transfer(part).map_or_else(|| took.clone(), |bytes| format!("{bytes} {took:>6}"));
    let style = if part.completed.is_some() { AnsiColor::Cyan.on_default() } else { Style::new() };
    let line = Line::new(format!(" => => {}", part.name), right, style);
    // An image's id is worth more than how long it took to write it.
    if part.is_transfer() { line } else { line.keeping_left() }
}

impl Line {
    fn new(left: String, right: String, style: Style) -> Self {
        Self { left, right, style, keep: Keep::Both }
    }

    fn keeping_left(self) -> Self {
        Self { keep: Keep::Left, ..self }
    }

    fn text(&self, width: usize) -> String {
        if self.right.is_empty() {
            return cut(&self.left, width);
        }
        let room = width.saturating_sub(columns(&self.right) + 1);
        if self.keep == Keep::Left && columns(&self.left) > room {
            return cut(&self.left, width);
        }
        let left = cut(&self.left, room);
        let gap = width.saturating_sub(columns(&left) + columns(&self.right));
        format!("{left}{}{}", " ".repeat(gap), self.right)
    }

    fn columns(&self, width: usize) -> usize {
        columns(&self.text(width))
    }

    fn write(&self, out: &mut String, width: usize, colors: Colors) {
        let text = self.text(width);
        match colors {
            Colors::On => out.push_str(&format!("{}{text}{}", self.style.render(), self.style.render_reset())),
            Colors::Off => out.push_str(&text),
        }
        out.push_str(CLEAR_LINE);
        out.push_str("\r\n");
    }
}
