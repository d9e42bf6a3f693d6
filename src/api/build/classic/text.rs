//! What a build reports, in the words of the classic builder, which SDKs and scripts read.
//!
//! Steps are numbered as they stand in the Dockerfile. Those that change the configuration alone have nothing to run and are no
//! steps here. Steps may run at the same time: then the header of a step is repeated before more of its output.

use std::collections::HashMap;

use kiln_graph::Digest;

use crate::api::progress::Outbox;
use crate::solver::progress::{Event, Status, VertexState};
use crate::types::Progress;

/// A line that is longer than this is passed on in pieces, in bytes.
const MAX_LINE: usize = 64 << 10;

/// What was said so far.
#[derive(Debug, Default)]
pub(super) struct Text {
    steps: HashMap<Digest, Step>,
    total: usize,
    /// The step whose header was printed last.
    current: Option<Digest>,
}

#[derive(Debug)]
struct Step {
    number: usize,
    instruction: String,
    state: State,
    /// The beginning of a line whose end is still to come.
    rest: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Done,
}

/// Returns a line with a warning.
pub(super) fn warning(text: &str) -> Progress {
    stream(format!(" ---> [Warning] {text}\n"))
}

/// Returns the short form of an id.
pub(super) fn short(id: &str) -> &str {
    let hex = id.split_once(':').map_or(id, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

fn stream(text: String) -> Progress {
    Progress { stream: Some(text), ..Progress::default() }
}

/// Returns the instruction of a vertex of a Dockerfile, `[stage 2/3] RUN make`; `None` for what has none.
fn instruction(name: &str) -> Option<&str> {
    let (place, instruction) = name.strip_prefix('[')?.split_once("] ")?;
    let numbered = place.rsplit(' ').next().is_some_and(|last| last.contains('/') && !last.starts_with('/'));
    numbered.then_some(instruction)
}

impl Text {
    /// Says what happened.
    pub(super) fn say(&mut self, events: Vec<Event>, outbox: &Outbox) {
        for event in events {
            match event {
                Event::Steps(steps) => self.expect(steps),
                Event::Vertex(vertex) => self.vertex(&vertex, outbox),
                Event::Status(status) => self.status(&status, outbox),
                Event::Log { vertex, data, .. } => self.log(vertex, &data, outbox),
                Event::Warning(text) => outbox.append(warning(&text.short)),
            }
        }
    }

    fn expect(&mut self, steps: Vec<(Digest, String)>) {
        for (digest, name) in steps {
            let Some(instruction) = instruction(&name) else { continue };
            if self.steps.contains_key(&digest) {
                continue;
            }
            self.total += 1;
            let (number, instruction) = (self.total, instruction.to_owned());
            self.steps.insert(digest, Step { number, instruction, state: State::Waiting, rest: Vec::new() });
        }
    }

    /// Prints the header of a step, unless it is that of what was printed last.
    fn header(&mut self, digest: Digest, outbox: &Outbox) {
        let Some(step) = self.steps.get(&digest) else { return };
        if self.current != Some(digest) {
            outbox.append(stream(format!("Step {}/{} : {}\n", step.number, self.total, step.instruction)));
            self.current = Some(digest);
        }
    }

    fn vertex(&mut self, vertex: &VertexState, outbox: &Outbox) {
        let digest = vertex.digest;
        let Some(state) = self.steps.get(&digest).map(|step| step.state) else { return };
        let id = digest.short();
        if state == State::Waiting && vertex.started_ns.is_some() {
            self.header(digest, outbox);
            let step = self.steps.get_mut(&digest).expect("it was there a moment ago");
            step.state = State::Running;
            if vertex.cached && step.instruction.split(' ').next() != Some("FROM") {
                outbox.append(stream(" ---> Using cache\n".to_owned()));
            } else if step.instruction.starts_with("RUN ") {
                outbox.append(stream(format!(" ---> Running in {id}\n")));
            }
        }
        if vertex.completed_ns.is_some() && state != State::Done {
            self.flush(digest, outbox);
            if vertex.error.is_none() {
                self.header(digest, outbox);
                outbox.append(stream(format!(" ---> {id}\n")));
            }
            if let Some(step) = self.steps.get_mut(&digest) {
                step.state = State::Done;
            }
        }
    }

    /// Layers that are fetched, as a pull shows them.
    fn status(&mut self, status: &Status, outbox: &Outbox) {
        if !self.steps.contains_key(&status.vertex) || !status.id.starts_with("sha256:") {
            return;
        }
        let id = short(&status.id);
        match status.completed_ns {
            Some(_) => outbox.status_of(id, "Download complete"),
            None => outbox.count(id, "Downloading", status.current, status.total),
        }
    }

    /// Passes on whole lines.
    fn log(&mut self, vertex: Digest, data: &[u8], outbox: &Outbox) {
        let Some(step) = self.steps.get_mut(&vertex) else { return };
        step.rest.extend_from_slice(data);
        let end = match step.rest.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            None if step.rest.len() > MAX_LINE => step.rest.len(),
            None => return,
        };
        let lines: Vec<u8> = step.rest.drain(..end).collect();
        self.header(vertex, outbox);
        outbox.append(stream(String::from_utf8_lossy(&lines).into_owned()));
    }

    /// Passes on a last line that has no end.
    fn flush(&mut self, vertex: Digest, outbox: &Outbox) {
        let rest = self.steps.get_mut(&vertex).map(|step| std::mem::take(&mut step.rest)).unwrap_or_default();
        if !rest.is_empty() {
            self.header(vertex, outbox);
            outbox.append(stream(String::from_utf8_lossy(&rest).into_owned() + "\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vertex(name: &str, started: bool, completed: bool, cached: bool) -> Event {
        Event::Vertex(VertexState {
            digest: Digest::of(name.as_bytes()),
            name: name.to_owned(),
            inputs: Vec::new(),
            cached,
            started_ns: started.then_some(1),
            completed_ns: completed.then_some(2),
            error: None,
            group: None,
        })
    }

    fn log(name: &str, text: &'static str) -> Event {
        let vertex = Digest::of(name.as_bytes());
        Event::Log { vertex, stream: 1, data: text.as_bytes().into(), time_ns: 0 }
    }

    fn said(events: Vec<Event>) -> String {
        let outbox = Outbox::default();
        let mut text = Text::default();
        for event in events {
            text.say(vec![event], &outbox);
        }
        outbox.texts().concat()
    }

    #[test]
    fn steps_are_told_as_the_classic_builder_tells_them() {
        let names = ["[1/3] FROM docker.io/library/busybox", "[2/3] COPY a /a", "[3/3] RUN make"];
        let steps = names.iter().map(|name| (Digest::of(name.as_bytes()), (*name).to_owned()));
        let internal = (Digest::of(b"x"), "[internal] load build context".to_owned());
        let text = said(vec![
            vertex("[internal] load build definition", true, true, false),
            Event::Steps(steps.chain([internal]).collect()),
            vertex(names[0], true, true, true),
            vertex(names[1], true, true, true),
            vertex(names[2], true, false, false),
            log(names[2], "one\ntw"),
            log(names[2], "o\nthree"),
            vertex(names[2], true, true, false),
        ]);
        let id = |name: &str| Digest::of(name.as_bytes()).short();
        let expected = format!(
            "Step 1/3 : FROM docker.io/library/busybox\n ---> {}\nStep 2/3 : COPY a /a\n ---> Using cache\n ---> {}\n\
             Step 3/3 : RUN make\n ---> Running in {run}\none\ntwo\nthree\n ---> {run}\n",
            id(names[0]),
            id(names[1]),
            run = id(names[2])
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn output_of_steps_at_the_same_time_is_told_apart() {
        let steps = ["[a 1/1] RUN a", "[b 1/1] RUN b"];
        let all = steps.iter().map(|name| (Digest::of(name.as_bytes()), (*name).to_owned())).collect();
        let text = said(vec![
            Event::Steps(all),
            vertex(steps[0], true, false, false),
            vertex(steps[1], true, false, false),
            log(steps[0], "from a\n"),
            log(steps[1], "from b\n"),
        ]);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(" --->")).collect();
        let expected =
            ["Step 1/2 : RUN a", "Step 2/2 : RUN b", "Step 1/2 : RUN a", "from a", "Step 2/2 : RUN b", "from b"];
        assert_eq!(lines, expected);
    }

    #[test]
    fn only_numbered_vertices_are_instructions() {
        assert_eq!(instruction("[linux/amd64 build 2/12] RUN x] y"), Some("RUN x] y"));
        assert_eq!(instruction("[internal] load build context"), None);
        assert_eq!(instruction("exporting to image"), None);
    }
}
