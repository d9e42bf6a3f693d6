//! Plain progress: every event a line of its own, which begins with its step's number. Messages in, text out.

use std::collections::HashMap;
use std::time::Duration;

use super::trace::{Change, Part, State, Trace};
use super::{nanos, transfer};
use crate::cli::format::duration;
use crate::types::build::StatusResponse;

/// Transfers are reported so often, in nanoseconds.
const INTERVAL_NS: i64 = 2_000_000_000;

/// Times of parts below this are not worth showing.
const WORTH_SHOWING: Duration = Duration::from_millis(50);

/// The plain view of a build.
#[derive(Debug, Default)]
pub(in crate::cli::build) struct Plain {
    trace: Trace,
    /// When each part was last reported, by step and name.
    reported: HashMap<(usize, String), i64>,
}

impl Plain {
    /// Returns what is known of the build.
    pub(super) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Takes a message in and returns what to print.
    pub(super) fn update(&mut self, message: &StatusResponse) -> String {
        let changes = self.trace.update(message);
        changes.into_iter().map(|change| self.text(change)).collect()
    }

    /// Returns what to print at the end, for steps that did not get to theirs.
    pub(super) fn finish(&self) -> String {
        let steps = self.trace.steps().iter().enumerate();
        let running = steps.filter(|(_, step)| step.running_since().is_some());
        running.map(|(at, _)| format!("#{} {}\n", at + 1, ended(&State::Cancelled))).collect()
    }

    fn text(&mut self, change: Change) -> String {
        match change {
            Change::Began(step) => {
                let gap = if step == 1 { "" } else { "\n" };
                format!("{gap}#{step} {}\n", self.trace.step(step).name)
            }
            Change::Line { step, after_ns, text } => {
                format!("#{step} {:.3} {text}\n", nanos(after_ns).as_secs_f64())
            }
            Change::Part { step, part } => self.part(step, &part).unwrap_or_default(),
            Change::Ended(step) => format!("#{step} {}\n", ended(&self.trace.step(step).state)),
        }
    }

    fn part(&mut self, step: usize, part: &Part) -> Option<String> {
        let last = self.reported.entry((step, part.name.clone())).or_insert(part.started);
        if part.completed.is_none() && part.time - *last < INTERVAL_NS {
            return None;
        }
        *last = part.time;
        let took = nanos(part.took_ns(part.time));
        let words = [
            Some(part.name.clone()),
            transfer(part),
            (took >= WORTH_SHOWING).then(|| duration::seconds(took)),
            part.completed.map(|_| "done".to_owned()),
        ];
        Some(format!("#{step} {}\n", words.into_iter().flatten().collect::<Vec<_>>().join(" ")))
    }
}

fn ended(state: &State) -> String {
    match state {
        State::Running { .. } => "...".to_owned(),
        State::Done { took_ns } => format!("DONE {}", duration::seconds(nanos(*took_ns))),
        State::Cached => "CACHED".to_owned(),
        State::Cancelled => "CANCELED".to_owned(),
        State::Failed { error, .. } => format!("ERROR: {error}"),
    }
}
