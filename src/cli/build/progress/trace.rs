//! What is known of a build: its steps in the order they began, their output and their parts. Messages in, changes out; no
//! I/O, no clock.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::types::build::{
    SourceDetail, SourcePosition, SourceRange, SourceText, StatusResponse, Vertex, VertexLog, VertexStatus,
    VertexWarning, nanoseconds, pb,
};

/// How many lines of a step's output are kept, for the live view and for a failure.
const TAIL: usize = 20;

/// A line that does not end is taken as one once it is so long, in bytes.
const MAX_LINE: usize = 256 << 10;

/// Steps, by the order in which they began.
#[derive(Debug, Default)]
pub(in crate::cli::build) struct Trace {
    steps: Vec<Step>,
    by_digest: HashMap<String, usize>,
    /// How many steps are known, begun or not.
    known: HashMap<String, String>,
    warnings: Vec<Warning>,
}

/// A step that has begun.
#[derive(Debug)]
pub(in crate::cli::build) struct Step {
    /// What to show for it, in one line.
    pub(in crate::cli::build) name: String,
    /// How it stands.
    pub(in crate::cli::build) state: State,
    /// The last lines of its output.
    pub(in crate::cli::build) tail: VecDeque<String>,
    /// How many lines it has printed in all.
    pub(in crate::cli::build) lines: usize,
    /// The beginnings of lines, by stream.
    open: BTreeMap<i64, Vec<u8>>,
    parts: Vec<Part>,
}

/// How a step stands. Times are in nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::build) enum State {
    Running { since: i64 },
    Done { took_ns: i64 },
    Cached,
    Cancelled,
    Failed { took_ns: i64, error: String },
}

/// A part of a step's work, such as a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::build) struct Part {
    id: String,
    pub(in crate::cli::build) name: String,
    /// Bytes done and in all; 0 and 0 when it is no transfer.
    pub(in crate::cli::build) current: u64,
    pub(in crate::cli::build) total: u64,
    pub(in crate::cli::build) started: i64,
    pub(in crate::cli::build) completed: Option<i64>,
    /// The time of the newest report.
    pub(in crate::cli::build) time: i64,
}

/// Something in the source that deserves attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::build) struct Warning {
    pub(in crate::cli::build) text: String,
    pub(in crate::cli::build) url: String,
    /// The first line it is about, from 1.
    pub(in crate::cli::build) line: Option<i32>,
    /// All of it, as buildx writes it to its metadata file.
    pub(in crate::cli::build) json: serde_json::Value,
    /// What is wanted instead, in words.
    pub(in crate::cli::build) detail: Vec<String>,
    /// The lines it is about.
    pub(in crate::cli::build) source: Option<SourceDetail>,
}

/// What a message changed. Steps are numbered from 1 in the order in which they began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::build) enum Change {
    /// A step began.
    Began(usize),
    /// A step printed a line, so long after it began.
    Line { step: usize, after_ns: i64, text: String },
    /// A part of a step has come further.
    Part { step: usize, part: Part },
    /// A step ended.
    Ended(usize),
}

impl Part {
    /// Returns how long it takes or took.
    pub(in crate::cli::build) fn took_ns(&self, now: i64) -> i64 {
        (self.completed.unwrap_or(now) - self.started).max(0)
    }

    /// Says whether it moves bytes.
    pub(in crate::cli::build) fn is_transfer(&self) -> bool {
        self.current > 0 || self.total > 0
    }
}

impl Step {
    /// Returns the parts in the order they began.
    pub(in crate::cli::build) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Returns the beginning of a line whose end has not come, as text; the newest when both streams have one.
    pub(in crate::cli::build) fn open_line(&self) -> Option<String> {
        self.open.values().rev().find(|open| !open.is_empty()).map(|open| String::from_utf8_lossy(open).into_owned())
    }

    /// Returns when it began, while it runs.
    pub(in crate::cli::build) fn running_since(&self) -> Option<i64> {
        match self.state {
            State::Running { since } => Some(since),
            _ => None,
        }
    }
}

impl Trace {
    /// Returns the step of a number.
    pub(in crate::cli::build) fn step(&self, number: usize) -> &Step {
        &self.steps[number - 1]
    }

    /// Returns the steps that have begun, in order.
    pub(in crate::cli::build) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Returns the step of a digest, if it has begun.
    pub(in crate::cli::build) fn step_of(&self, digest: &str) -> Option<&Step> {
        self.by_digest.get(digest).map(|number| self.step(*number))
    }

    /// Returns how many steps have ended, and how many are known.
    pub(in crate::cli::build) fn counts(&self) -> (usize, usize) {
        let ended = self.steps.iter().filter(|step| step.running_since().is_none()).count();
        (ended, self.known.len())
    }

    /// Returns the warnings so far.
    pub(in crate::cli::build) fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Takes a message in. A message has lists by kind; what it says of one step is put together again.
    pub(in crate::cli::build) fn update(&mut self, message: &StatusResponse) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut steps: Vec<&str> = Vec::new();
        let mut vertices: HashMap<&str, Vec<&Vertex>> = HashMap::new();
        for vertex in &message.vertexes {
            let of_step = vertices.entry(&vertex.digest).or_default();
            if of_step.is_empty() {
                steps.push(&vertex.digest);
            }
            of_step.push(vertex);
        }
        let own = |vertex: &str| vertices.contains_key(vertex);
        message.statuses.iter().filter(|status| !own(&status.vertex)).for_each(|s| self.part(s, &mut changes));
        message.logs.iter().filter(|log| !own(&log.vertex)).for_each(|log| self.log(log, &mut changes));
        let (parts, logs) = (by_step(&message.statuses, |s| &s.vertex), by_step(&message.logs, |log| &log.vertex));
        for step in steps {
            vertices[step].iter().for_each(|vertex| self.begin(vertex, &mut changes));
            parts.get(step).into_iter().flatten().for_each(|status| self.part(status, &mut changes));
            logs.get(step).into_iter().flatten().for_each(|log| self.log(log, &mut changes));
            // Last: what a step printed before it ended is in the same message.
            vertices[step].iter().for_each(|vertex| self.end(vertex, &mut changes));
        }
        self.warnings.extend(message.warnings.iter().map(Warning::read));
        changes
    }

    fn begin(&mut self, vertex: &Vertex, changes: &mut Vec<Change>) {
        self.known.entry(vertex.digest.clone()).or_default().clone_from(&vertex.name);
        let Some(since) = vertex.started.as_ref().map(nanoseconds) else { return };
        let state = State::Running { since };
        match self.by_digest.get(&vertex.digest) {
            // A step may go on after it ended: layers of a cached base are fetched when somebody needs them.
            Some(number) if vertex.completed.is_none() => self.steps[*number - 1].state = state,
            Some(_) => {}
            None => {
                let name = one_line(&vertex.name);
                let (tail, open, parts) = Default::default();
                self.steps.push(Step { name, state, tail, lines: 0, open, parts });
                self.by_digest.insert(vertex.digest.clone(), self.steps.len());
                changes.push(Change::Began(self.steps.len()));
            }
        }
    }

    fn end(&mut self, vertex: &Vertex, changes: &mut Vec<Change>) {
        let Some(completed) = vertex.completed.as_ref().map(nanoseconds) else { return };
        let Some(&number) = self.by_digest.get(&vertex.digest) else { return };
        let Some(since) = self.steps[number - 1].running_since() else { return };
        self.close_lines(number, completed - since, changes);
        let took_ns = (completed - vertex.started.as_ref().map_or(since, nanoseconds)).max(0);
        let step = &mut self.steps[number - 1];
        step.state = match vertex.error.as_str() {
            "" if vertex.cached => State::Cached,
            "" => State::Done { took_ns },
            error if is_cancelled(error) => State::Cancelled,
            error => State::Failed { took_ns, error: error.to_owned() },
        };
        changes.push(Change::Ended(number));
    }

    fn part(&mut self, status: &VertexStatus, changes: &mut Vec<Change>) {
        let Some(&number) = self.by_digest.get(&status.vertex) else { return };
        let time = status.timestamp.as_ref().map_or(0, nanoseconds);
        let part = Part {
            id: status.id.clone(),
            name: one_line(if status.name.is_empty() { &status.id } else { &status.name }),
            current: u64::try_from(status.current).unwrap_or(0),
            total: u64::try_from(status.total).unwrap_or(0),
            started: status.started.as_ref().map_or(time, nanoseconds),
            completed: status.completed.as_ref().map(nanoseconds),
            time,
        };
        let parts = &mut self.steps[number - 1].parts;
        match parts.iter_mut().find(|known| known.id == part.id) {
            Some(known) => known.clone_from(&part),
            None => parts.push(part.clone()),
        }
        changes.push(Change::Part { step: number, part });
    }

    fn log(&mut self, log: &VertexLog, changes: &mut Vec<Change>) {
        let Some(&number) = self.by_digest.get(&log.vertex) else { return };
        let step = &mut self.steps[number - 1];
        let after_ns = match (log.timestamp.as_ref(), step.running_since()) {
            (Some(time), Some(since)) => (nanoseconds(time) - since).max(0),
            _ => 0,
        };
        let mut open = step.open.remove(&log.stream).unwrap_or_default();
        open.extend_from_slice(&log.msg);
        let mut begin = 0;
        while let Some(end) = open[begin..].iter().position(|byte| *byte == b'\n').map(|at| begin + at) {
            step.line(number, after_ns, &open[begin..end], changes);
            begin = end + 1;
        }
        open.drain(..begin);
        if open.len() > MAX_LINE {
            step.line(number, after_ns, &std::mem::take(&mut open), changes);
        }
        step.open.insert(log.stream, open);
    }

    /// Takes what has no end as lines.
    fn close_lines(&mut self, number: usize, after_ns: i64, changes: &mut Vec<Change>) {
        let step = &mut self.steps[number - 1];
        for (_, open) in std::mem::take(&mut step.open).into_iter().filter(|(_, open)| !open.is_empty()) {
            step.line(number, after_ns.max(0), &open, changes);
        }
    }
}

impl Step {
    fn line(&mut self, number: usize, after_ns: i64, bytes: &[u8], changes: &mut Vec<Change>) {
        let text = String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes)).into_owned();
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(text.clone());
        self.lines += 1;
        changes.push(Change::Line { step: number, after_ns, text });
    }
}

impl Warning {
    fn read(warning: &VertexWarning) -> Self {
        let line = warning.ranges.first().and_then(|range| range.start).map(|start| start.line);
        let position = |position: Option<pb::Position>| {
            let line = position.map_or(0, |position| position.line);
            SourcePosition { line: line.try_into().unwrap_or(0), character: 0 }
        };
        let source = warning.info.as_ref().map(|info| SourceDetail {
            info: SourceText {
                filename: info.filename.clone(),
                data: info.data.clone(),
                language: info.language.clone(),
            },
            ranges: warning
                .ranges
                .iter()
                .map(|range| SourceRange { start: position(range.start), end: position(range.end) })
                .collect(),
            finding: None,
        });
        Self {
            text: one_line(&String::from_utf8_lossy(&warning.short)),
            url: warning.url.clone(),
            line,
            json: super::rawjson::warning_json(warning),
            detail: warning.detail.iter().map(|line| one_line(&String::from_utf8_lossy(line))).collect(),
            source,
        }
    }
}

fn by_step<T>(all: &[T], step: impl Fn(&T) -> &String) -> HashMap<&str, Vec<&T>> {
    let mut groups: HashMap<&str, Vec<&T>> = HashMap::new();
    all.iter().for_each(|one| groups.entry(step(one)).or_default().push(one));
    groups
}

/// Says whether a step ended only because the build did.
fn is_cancelled(error: &str) -> bool {
    error == "cancelled" || error.ends_with("context canceled")
}

/// Returns a text without line breaks and without what could move the cursor.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::build::timestamp;

    fn vertex(name: &str, started: Option<i64>, completed: Option<i64>) -> Vertex {
        let (started, completed) = (started.map(timestamp), completed.map(timestamp));
        Vertex { digest: name.to_owned(), name: name.to_owned(), started, completed, ..Vertex::default() }
    }

    fn log(vertex: &str, msg: &[u8]) -> VertexLog {
        VertexLog { vertex: vertex.to_owned(), timestamp: Some(timestamp(10)), stream: 1, msg: msg.to_vec() }
    }

    fn line(step: usize, text: &str) -> Change {
        Change::Line { step, after_ns: 9, text: text.to_owned() }
    }

    #[test]
    fn output_that_comes_with_the_end_of_its_step_precedes_it() {
        let mut trace = Trace::default();
        let message = StatusResponse {
            vertexes: vec![vertex("a", Some(1), None), vertex("a", Some(1), Some(10))],
            logs: vec![log("a", b"one\ntwo"), log("a", b"!\r\nthree")],
            ..StatusResponse::default()
        };
        let expected = [Change::Began(1), line(1, "one"), line(1, "two!"), line(1, "three"), Change::Ended(1)];
        assert_eq!(trace.update(&message), expected);
        assert_eq!((trace.step(1).lines, trace.counts()), (3, (1, 1)));
    }

    #[test]
    fn what_a_message_says_of_a_step_stays_together() {
        let mut trace = Trace::default();
        let message = StatusResponse {
            vertexes: ["a", "b"].map(|name| vertex(name, Some(1), Some(10))).to_vec(),
            logs: vec![log("b", b"b\n"), log("a", b"a\n")],
            ..StatusResponse::default()
        };
        let a = [Change::Began(1), line(1, "a"), Change::Ended(1)];
        let b = [Change::Began(2), line(2, "b"), Change::Ended(2)];
        assert_eq!(trace.update(&message), [a, b].concat());
    }

    #[test]
    fn a_step_that_goes_on_after_it_ended_does_not_begin_twice() {
        let mut trace = Trace::default();
        let mut update = |vertex| trace.update(&StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() });
        assert_eq!(update(vertex("a", None, None)), []);
        assert_eq!(update(vertex("a", Some(1), Some(2))), [Change::Began(1), Change::Ended(1)]);
        assert_eq!(update(vertex("a", Some(3), None)), []);
        assert_eq!(update(vertex("a", Some(3), Some(4))), [Change::Ended(1)]);
    }

    #[test]
    fn a_line_without_end_does_not_grow_for_ever() {
        let mut trace = Trace::default();
        let begin = StatusResponse { vertexes: vec![vertex("a", Some(1), None)], ..StatusResponse::default() };
        trace.update(&begin);
        let logs = vec![log("a", &vec![b'x'; MAX_LINE + 1])];
        let changes = trace.update(&StatusResponse { logs, ..StatusResponse::default() });
        assert!(matches!(changes.as_slice(), [Change::Line { text, .. }] if text.len() == MAX_LINE + 1));
    }

    #[test]
    fn names_are_one_line() {
        assert_eq!(one_line("RUN a \\\n  && b\x1b[2J"), "RUN a \\ && b [2J");
    }
}
