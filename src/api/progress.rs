//! Progress streams: one JSON document a line while an operation runs, its failure as the last.
//!
//! What fails before the first line is answered with a status; afterwards the status is 200 and the failure is in the stream,
//! as clients expect it. The operation ends with the connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::Response;
use tokio::sync::Notify;

use super::Answer;
use crate::error::Result;
use crate::task;
use crate::types::{ErrorBody, Progress, ProgressCount};

/// Lines on their way to a client. Cloning gives another handle to the same queue.
///
/// Never blocks its writers: a line that only counts replaces its predecessor when that has not been sent yet, so the queue is
/// bounded by the number of things and the stages they go through.
#[derive(Clone, Debug, Default)]
pub(super) struct Outbox(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    lines: Mutex<VecDeque<Progress>>,
    filled: Notify,
    emptied: Notify,
}

/// Who writes without bound waits while more lines than this are on their way.
const ROOM: usize = 256;

impl Outbox {
    /// Adds a line.
    pub(super) fn send(&self, line: Progress) {
        let mut lines = self.lines();
        match lines.iter_mut().rev().find(|waiting| waiting.id.is_some() && waiting.id == line.id) {
            Some(last) if last.status == line.status => *last = line,
            _ => lines.push_back(line),
        }
        drop(lines);
        self.0.filled.notify_one();
    }

    /// Adds a line that replaces no other.
    pub(super) fn append(&self, line: Progress) {
        self.lines().push_back(line);
        self.0.filled.notify_one();
    }

    /// Waits until the client has taken most of what was written: for whoever writes more than stages of things.
    pub(super) async fn room(&self) {
        loop {
            let emptied = self.0.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            if self.lines().len() <= ROOM {
                return;
            }
            emptied.await;
        }
    }

    /// Takes the texts that wait.
    #[cfg(test)]
    pub(super) fn texts(&self) -> Vec<String> {
        self.lines().drain(..).filter_map(|line| line.stream).collect()
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<Progress>> {
        self.0.lines.lock().expect("no panic happens while the lock is held")
    }

    /// Adds a line that says something.
    pub(super) fn status(&self, status: impl Into<String>) {
        self.send(Progress { status: Some(status.into()), ..Progress::default() });
    }

    /// Adds a line that says something about one thing.
    pub(super) fn status_of(&self, id: &str, status: impl Into<String>) {
        let detail = Some(ProgressCount::default());
        self.send(Progress { id: Some(id.to_owned()), status: Some(status.into()), detail, ..Progress::default() });
    }

    /// Adds a line that says how far one thing is, in bytes.
    pub(super) fn count(&self, id: &str, status: &str, current: u64, total: u64) {
        let detail = Some(ProgressCount { current, total });
        self.send(Progress { id: Some(id.to_owned()), status: Some(status.to_owned()), detail, ..Progress::default() });
    }

    /// Adds a line of text, as `load` prints it.
    pub(super) fn stream(&self, text: impl Into<String>) {
        self.send(Progress { stream: Some(text.into()), ..Progress::default() });
    }

    fn take(&self) -> Option<Bytes> {
        let mut lines = self.lines();
        if lines.is_empty() {
            return None;
        }
        let mut out = Vec::new();
        for line in lines.drain(..) {
            serde_json::to_writer(&mut out, &line).expect("a line has a JSON form");
            out.extend_from_slice(b"\r\n");
        }
        drop(lines);
        self.0.emptied.notify_waiters();
        Some(out.into())
    }
}

/// Answers with the lines that `work` sends until it ends.
///
/// # Errors
/// Those of `work`, when it fails before its first line.
pub(super) async fn answer(
    outbox: Outbox,
    work: impl Future<Output = Result<()>> + Send + 'static,
) -> Answer<Response> {
    let work = task::Owned::spawn(work);
    let mut work = Box::pin(work.join());
    let work = tokio::select! {
        biased;
        ended = &mut work => { ended??; None }
        () = outbox.0.filled.notified() => Some(work),
    };
    let lines = futures_util::stream::unfold((outbox, work), async |(outbox, mut work)| {
        loop {
            if let Some(bytes) = outbox.take() {
                return Some((Ok::<_, std::convert::Infallible>(bytes), (outbox, work)));
            }
            let ended = tokio::select! {
                biased;
                ended = work.as_mut()? => ended.and_then(|result| result),
                () = outbox.0.filled.notified() => continue,
            };
            work = None;
            if let Err(error) = ended {
                outbox.send(failure(&error.to_string()));
            }
        }
    });
    let response = Response::builder().header(header::CONTENT_TYPE, "application/json").body(Body::from_stream(lines));
    Ok(response.expect("the response is well formed"))
}

/// Makes the line with which a stream says that it failed.
pub(super) fn failure(message: &str) -> Progress {
    Progress {
        error_detail: Some(ErrorBody { message: message.to_owned() }),
        error: Some(message.to_owned()),
        ..Progress::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    async fn text(response: Response) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_failure_before_the_first_line_is_a_status() {
        let failed = answer(Outbox::default(), async { Err(Error::not_found("no such thing")) }).await;
        assert_eq!(failed.unwrap_err().parts().0, 404);
    }

    #[tokio::test]
    async fn a_failure_after_the_first_line_is_the_last_line() {
        let outbox = Outbox::default();
        let work = {
            let outbox = outbox.clone();
            async move {
                outbox.status_of("latest", "Pulling from a");
                tokio::task::yield_now().await;
                Err(Error::corrupt("wrong digest"))
            }
        };
        let text = text(answer(outbox, work).await.unwrap()).await;
        assert_eq!(
            text,
            "{\"status\":\"Pulling from a\",\"progressDetail\":{},\"id\":\"latest\"}\r\n\
             {\"errorDetail\":{\"message\":\"wrong digest\"},\"error\":\"wrong digest\"}\r\n"
        );
    }

    #[tokio::test]
    async fn counts_that_nobody_reads_do_not_pile_up() {
        let outbox = Outbox::default();
        for current in 0..1000 {
            outbox.count("a", "Downloading", current, 1000);
            outbox.count("b", "Downloading", current, 1000);
        }
        outbox.status_of("a", "Download complete");
        let text = text(answer(outbox, async { Ok(()) }).await.unwrap()).await;
        assert_eq!(text.lines().count(), 3, "{text}");
    }
}
