//! What a build reports while it goes on: vertices, transfers, logs and warnings, for any number of watchers.
//!
//! A watcher may come before the build starts or after it has ended. What all watchers have seen is dropped once much has
//! gathered, so that a build that prints for hours does not grow without bound.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use kiln_graph::Digest;
use kiln_graph::graph::Group;
use tokio::sync::Notify;

use crate::task::Clock;

/// One report. Times are in nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// What is going to be looked for or run: the vertices with their names, inputs first. Comes before the first of them begins.
    Steps(Vec<(Digest, String)>),
    /// A vertex has a new state.
    Vertex(VertexState),
    /// A part of a vertex's work has come further.
    Status(Status),
    /// A vertex's process printed something.
    Log {
        /// The vertex.
        vertex: Digest,
        /// 1 is standard output, 2 standard error.
        stream: u8,
        /// What was printed.
        data: Bytes,
        /// When.
        time_ns: i64,
    },
    /// Something in the source deserves attention.
    Warning(Warning),
}

/// A vertex as watchers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct VertexState {
    /// Names it.
    pub digest: Digest,
    /// What to show for it.
    pub name: String,
    /// The vertices it needs.
    pub inputs: Vec<Digest>,
    /// Whether an earlier result was used.
    pub cached: bool,
    /// When it began.
    pub started_ns: Option<i64>,
    /// When it ended.
    pub completed_ns: Option<i64>,
    /// Why it failed.
    pub error: Option<String>,
    /// With which other vertices it is shown.
    pub group: Option<Group>,
}

/// How far a part of a vertex's work has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Names the part within the vertex; also what to show for it.
    pub id: String,
    /// The vertex.
    pub vertex: Digest,
    /// How much is done, in bytes unless 0.
    pub current: u64,
    /// How much there is; 0 when not known.
    pub total: u64,
    /// When it began.
    pub started_ns: i64,
    /// When it ended.
    pub completed_ns: Option<i64>,
    /// When this was reported.
    pub time_ns: i64,
}

/// A warning about the source.
#[derive(Clone, Debug, PartialEq)]
pub struct Warning {
    /// The vertex that stands for the source.
    pub vertex: Digest,
    /// The check, and what it says, in one line.
    pub short: String,
    /// What the check asks for, in words.
    pub detail: Vec<String>,
    /// The check's address in the documentation.
    pub url: String,
    /// The file's name and its text.
    pub file: Option<(String, String)>,
    /// First and last lines, from 1.
    pub lines: Vec<(u32, u32)>,
}

/// Logs beyond this many bytes are dropped once all watchers have seen them.
const KEEP_BYTES: usize = 1 << 20;

/// Logs beyond this many bytes are dropped when nobody watches.
const KEEP_UNSEEN_BYTES: usize = 16 << 20;

#[derive(Debug, Default)]
struct Buffer {
    events: VecDeque<Event>,
    /// How many events were dropped at the front.
    dropped: usize,
    log_bytes: usize,
    /// How much each vertex printed that was dropped before anybody watched, in bytes.
    clipped: HashMap<Digest, usize>,
    /// How many events each watcher has seen; `None` for one that has gone.
    watchers: Vec<Option<usize>>,
    ended: bool,
}

impl Buffer {
    /// Drops what every watcher has seen, when it is worth it.
    fn shrink(&mut self) {
        let seen = self.watchers.iter().flatten().min().copied();
        let keep = if seen.is_some() { KEEP_BYTES } else { KEEP_UNSEEN_BYTES };
        let seen = seen.unwrap_or(usize::MAX);
        while self.log_bytes > keep && self.dropped < seen {
            if let Some(Event::Log { vertex, data, .. }) = self.events.pop_front() {
                self.log_bytes -= data.len();
                if seen == usize::MAX {
                    *self.clipped.entry(vertex).or_default() += data.len();
                }
            }
            self.dropped += 1;
        }
    }
}

#[derive(Debug)]
struct Shared {
    buffer: Mutex<Buffer>,
    changed: Notify,
    clock: Clock,
}

/// Where a build reports to. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Shared>);

impl Progress {
    /// Makes an empty report.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Shared { buffer: Mutex::default(), changed: Notify::new(), clock }))
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.0.buffer.lock().expect("no panic happens while the lock is held")
    }

    /// Returns the time in nanoseconds since 1970.
    #[must_use]
    pub fn now_ns(&self) -> i64 {
        self.0.clock.now_ns()
    }

    /// Reports something.
    pub fn report(&self, event: Event) {
        let mut buffer = self.buffer();
        if let Event::Log { data, .. } = &event {
            buffer.log_bytes += data.len();
        }
        buffer.events.push_back(event);
        buffer.shrink();
        drop(buffer);
        self.0.changed.notify_waiters();
    }

    /// Says that nothing more comes.
    pub fn end(&self) {
        self.buffer().ended = true;
        self.0.changed.notify_waiters();
    }

    /// Begins to watch, from the first event that is still there.
    #[must_use]
    pub fn watch(&self) -> Watcher {
        let mut buffer = self.buffer();
        let (seen, time_ns) = (buffer.dropped, self.now_ns());
        buffer.watchers.push(Some(seen));
        let notice = |(vertex, bytes): (&Digest, &usize)| {
            let data = format!("[{bytes} bytes were printed before anybody watched]\n").into();
            Event::Log { vertex: *vertex, stream: 2, data, time_ns }
        };
        let missed = buffer.clipped.iter().map(notice).collect();
        Watcher { progress: self.clone(), number: buffer.watchers.len() - 1, missed }
    }

    /// Begins a part of a vertex's work that is reported as it goes on.
    #[must_use]
    pub fn part(&self, vertex: Digest, id: impl Into<String>, total: u64) -> Part {
        let started_ns = self.now_ns();
        let status =
            Status { id: id.into(), vertex, current: 0, total, started_ns, completed_ns: None, time_ns: started_ns };
        self.report(Event::Status(status.clone()));
        Part { progress: self.clone(), status: Mutex::new(status) }
    }
}

/// A part of a vertex's work.
#[derive(Debug)]
pub struct Part {
    progress: Progress,
    status: Mutex<Status>,
}

/// Parts report at most so often.
const INTERVAL_NS: i64 = 100_000_000;

impl Part {
    /// Sets what is done; it may go back when a transfer begins anew. Reports now and then only.
    pub fn update(&self, current: u64) {
        let now = self.progress.now_ns();
        let mut status = self.status.lock().expect("no panic happens while the lock is held");
        status.current = current;
        if now - status.time_ns >= INTERVAL_NS {
            status.time_ns = now;
            self.progress.report(Event::Status(status.clone()));
        }
    }

    /// Reports that this part is complete.
    pub fn complete(self) {
        let now = self.progress.now_ns();
        let mut status = self.status.into_inner().expect("no panic happens while the lock is held");
        status.time_ns = now;
        status.completed_ns = Some(now);
        status.current = status.current.max(status.total);
        self.progress.report(Event::Status(status));
    }
}

/// Receives what a build reports.
#[derive(Debug)]
pub struct Watcher {
    progress: Progress,
    number: usize,
    /// Says what was dropped before.
    missed: Vec<Event>,
}

impl Watcher {
    /// Waits for the next events; `None` when the build has ended and all was seen.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        if !self.missed.is_empty() {
            return Some(std::mem::take(&mut self.missed));
        }
        loop {
            let changed = self.progress.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut buffer = self.progress.buffer();
                let seen = buffer.watchers[self.number].unwrap_or_default();
                let new: Vec<Event> = buffer.events.range(seen - buffer.dropped..).cloned().collect();
                if !new.is_empty() {
                    buffer.watchers[self.number] = Some(seen + new.len());
                    buffer.shrink();
                    return Some(new);
                }
                if buffer.ended {
                    return None;
                }
            }
            changed.await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.progress.buffer().watchers[self.number] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &[u8]) -> Event {
        Event::Log { vertex: Digest::of(b"v"), stream: 1, data: Bytes::copy_from_slice(text), time_ns: 0 }
    }

    #[tokio::test]
    async fn a_late_watcher_sees_everything_and_the_end() {
        let progress = Progress::new(Clock::system());
        progress.report(log(b"a"));
        let mut watcher = progress.watch();
        progress.report(log(b"b"));
        assert_eq!(watcher.next().await, Some(vec![log(b"a"), log(b"b")]));
        let waiting = tokio::spawn(async move { (watcher.next().await, watcher.next().await) });
        tokio::task::yield_now().await;
        progress.report(log(b"c"));
        tokio::task::yield_now().await;
        progress.end();
        assert_eq!(waiting.await.unwrap(), (Some(vec![log(b"c")]), None));
    }

    #[tokio::test]
    async fn who_comes_late_is_told_what_was_dropped() {
        let progress = Progress::new(Clock::system());
        let text = vec![b'x'; KEEP_UNSEEN_BYTES / 2];
        (0..4).for_each(|_| progress.report(log(&text)));
        let mut watcher = progress.watch();
        let Some([Event::Log { data, .. }]) = watcher.next().await.as_deref().map(|events| [events[0].clone()]) else {
            panic!("a notice comes first")
        };
        let expected = format!("[{KEEP_UNSEEN_BYTES} bytes were printed before anybody watched]\n");
        assert_eq!(data, expected.as_bytes());
        assert_eq!(watcher.next().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_talkative_build_with_an_attentive_watcher_stays_small() {
        let progress = Progress::new(Clock::system());
        let mut watcher = progress.watch();
        let text = vec![b'x'; 10_000];
        for _ in 0..2000 {
            progress.report(log(&text));
            watcher.next().await.unwrap();
        }
        assert!(progress.buffer().log_bytes <= KEEP_BYTES + text.len());
        assert!(progress.buffer().events.len() < 200);
    }
}
