//! What a run reports, to all builds that wait for it.
//!
//! A build that comes later gets what was printed before, as far as that is still there.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::progress::{Event, Part, Progress, VertexState};
use super::value::Keep;
use crate::error::Error;

/// How much of what was printed is kept for builds that come later, in bytes.
const BACKLOG: usize = 1 << 20;

/// The stream of what Kiln itself has to say about a run: standard error.
const NOTES: u8 = 2;

/// Where a run reports to. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub(super) struct Reporter(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    watchers: Vec<(Progress, VertexState)>,
    /// When it began; `None` while it waits for a place.
    started_ns: Option<i64>,
    backlog: Vec<(u8, Bytes, i64)>,
    backlog_bytes: usize,
    /// How much was printed that is no longer in the backlog, in bytes.
    dropped_bytes: usize,
    /// What of the step the builds want to be kept when it fails.
    keep: Keep,
}

impl Reporter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic happens while the lock is held")
    }

    /// Adds a build that waits for the run; the vertex is its own name for it, `keep` what it wants to be kept of the step when
    /// that fails.
    pub(super) fn join(&self, progress: Progress, mut vertex: VertexState, keep: Keep) {
        let mut state = self.state();
        state.keep = state.keep.max(keep);
        if state.started_ns.is_some() {
            vertex.started_ns = Some(progress.now_ns());
            progress.report(Event::Vertex(vertex.clone()));
            if state.dropped_bytes > 0 {
                let text = format!("[{} bytes were printed before]\n", state.dropped_bytes);
                let (vertex, time_ns) = (vertex.digest, progress.now_ns());
                progress.report(Event::Log { vertex, stream: NOTES, data: text.into(), time_ns });
            }
            for (stream, data, time_ns) in &state.backlog {
                let (vertex, stream, data, time_ns) = (vertex.digest, *stream, data.clone(), *time_ns);
                progress.report(Event::Log { vertex, stream, data, time_ns });
            }
        }
        state.watchers.push((progress, vertex));
    }

    /// Says that the run begins.
    pub(super) fn begin(&self) {
        let mut state = self.state();
        for (progress, vertex) in &mut state.watchers {
            vertex.started_ns = Some(progress.now_ns());
            progress.report(Event::Vertex(vertex.clone()));
        }
        state.started_ns = state.watchers.first().map(|(progress, _)| progress.now_ns()).or(Some(0));
    }

    /// Passes on what the run's process printed. `stream` is 1 for standard output and 2 for standard error.
    pub(super) fn log(&self, stream: u8, data: &Bytes) {
        let mut state = self.state();
        let mut time_ns = 0;
        for (progress, vertex) in &state.watchers {
            time_ns = progress.now_ns();
            progress.report(Event::Log { vertex: vertex.digest, stream, data: data.clone(), time_ns });
        }
        state.backlog_bytes += data.len();
        state.backlog.push((stream, data.clone(), time_ns));
        if state.backlog_bytes > BACKLOG {
            let half = state.backlog.len().div_ceil(2);
            let dropped: usize = state.backlog.drain(..half).map(|(_, data, _)| data.len()).sum();
            state.backlog_bytes -= dropped;
            state.dropped_bytes += dropped;
        }
    }

    /// Begins a part of the run's work, for each build that waits for it now.
    pub(super) fn parts(&self, id: &str, total: u64) -> Vec<Part> {
        self.state().watchers.iter().map(|(progress, vertex)| progress.part(vertex.digest, id, total)).collect()
    }

    /// Tells something about the run, among what its process prints.
    pub(super) fn note(&self, text: &str) {
        self.log(NOTES, &format!("{text}\n").into());
    }

    /// Says what builds want to be kept of the step when it fails.
    pub(super) fn keep(&self) -> Keep {
        self.state().keep
    }

    /// Says that the run has ended.
    pub(super) fn end(&self, error: Option<&Error>) {
        let mut state = self.state();
        if state.started_ns.is_none() {
            return;
        }
        for (progress, vertex) in &mut state.watchers {
            vertex.completed_ns = Some(progress.now_ns());
            vertex.error = error.map(ToString::to_string);
            progress.report(Event::Vertex(vertex.clone()));
        }
    }
}
