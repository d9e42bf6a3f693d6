//! Traces of builds: what clients say they did for a build, with what its steps were, kept with its record in the history.
//!
//! A client that traces names its trace when it asks for a build (`traceparent`), and sends spans before and after that to
//! `TraceService`. They belong to the builds of that trace. What comes within seconds of the end of a build is kept, or until the
//! client says that it has sent all (`UpdateBuildHistory{Finalize}`).

mod spans;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use self::spans::Stub;
use crate::engine::Engine;
use crate::solver::history::History;
use crate::solver::progress::{Event, Progress, VertexState};
use crate::task::{self, Tasks};
use crate::types::build::MAX_MESSAGE_BYTES;
use crate::wire::trace::{EXPORT, ExportTraceServiceRequest, ExportTraceServiceResponse};

/// How long spans are waited for after the end of a build, as with BuildKit.
const PATIENCE: Duration = Duration::from_secs(3);

/// The most spans of a trace that are kept.
const MAX_SPANS: usize = 10_000;

/// The header that names a client's trace, and the span for which it asks.
const PARENT: &str = "traceparent";

/// The traces of the builds of an engine. Cloning gives another handle.
#[derive(Clone, Debug)]
pub(super) struct Traces {
    inner: Arc<Mutex<Inner>>,
    history: History,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct Inner {
    /// What came for builds, by their traces.
    open: HashMap<[u8; 16], Open>,
    /// Builds that have ended and whose traces are not written yet, by their references.
    ending: HashMap<String, Ending>,
}

/// A trace that builds belong to.
#[derive(Debug, Default)]
struct Open {
    builds: usize,
    spans: Vec<Stub>,
}

#[derive(Clone, Debug)]
struct Ending {
    /// Set when the client has sent all.
    complete: CancellationToken,
    /// Set when the trace is written.
    written: CancellationToken,
}

/// What a client says of the trace that a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    trace: [u8; 16],
    span: [u8; 8],
}

impl Parent {
    /// Reads the header; `None` when the client does not trace.
    pub(super) fn of(metadata: &MetadataMap) -> Option<Self> {
        Self::parse(metadata.get(PARENT)?.to_str().ok()?)
    }

    /// Reads `00-TRACE-SPAN-FLAGS`, as W3C's recommendation has it.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
        let (trace, span) = (spans::bytes::<16>(trace)?, spans::bytes::<8>(span)?);
        (version.len() == 2 && trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span })
    }
}

/// A build whose trace is kept.
#[derive(Debug)]
pub(super) struct Tracing {
    belonging: Belonging,
    reference: String,
    parent: Parent,
    /// The states of steps, the last of each.
    steps: tokio::task::JoinHandle<Vec<VertexState>>,
}

impl Traces {
    /// Makes the traces of an engine.
    pub(super) fn new(engine: &Engine) -> Self {
        Self { inner: Arc::default(), history: engine.history().clone(), tasks: engine.tasks().clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic happens while the lock is held")
    }

    /// The route of the service.
    pub(super) fn route(&self) -> Router<Engine> {
        let traces = self.clone();
        let export = move |request: http::Request<Body>| {
            let service = traces.clone();
            async move {
                let codec = ProstCodec::<ExportTraceServiceResponse, ExportTraceServiceRequest>::default();
                let mut server = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE_BYTES);
                server.unary(service, request).await.map(Body::new)
            }
        };
        Router::new().route(EXPORT, post(export))
    }

    /// Begins the trace of a build.
    pub(super) fn begin(&self, reference: &str, parent: Parent, progress: &Progress) -> Tracing {
        self.lock().open.entry(parent.trace).or_default().builds += 1;
        let mut watcher = progress.watch();
        let steps = self.tasks.spawn(async move {
            let mut steps: HashMap<_, VertexState> = HashMap::new();
            while let Some(events) = watcher.next().await {
                for event in events {
                    if let Event::Vertex(state) = event
                        && (steps.len() < MAX_SPANS || steps.contains_key(&state.digest))
                    {
                        steps.insert(state.digest, state);
                    }
                }
            }
            steps.into_values().collect()
        });
        let belonging = Belonging { traces: self.clone(), trace: parent.trace };
        Tracing { belonging, reference: reference.to_owned(), parent, steps }
    }

    /// Adds what a client did to the traces that builds belong to; the rest is nobody's.
    fn add(&self, request: ExportTraceServiceRequest) {
        let mut inner = self.lock();
        for (trace, span) in spans::of(request) {
            if let Some(open) = inner.open.get_mut(&trace).filter(|open| open.spans.len() < MAX_SPANS) {
                open.spans.push(span);
            }
        }
    }

    /// Waits until what the client sent for a build is written; at once for one whose trace is not kept.
    pub(super) async fn finalize(&self, reference: &str) {
        let ending = self.lock().ending.get(reference).cloned();
        if let Some(ending) = ending {
            ending.complete.cancel();
            ending.written.cancelled().await;
        }
    }
}

impl Tracing {
    /// Ends the trace with its build, whose record is there: it is written once nothing more comes.
    pub(super) fn end(self) {
        let Self { belonging, reference, parent, steps } = self;
        let traces = belonging.traces.clone();
        let ending = Ending { complete: CancellationToken::new(), written: CancellationToken::new() };
        traces.lock().ending.insert(reference.clone(), ending.clone());
        let (tasks, stopping) = (traces.tasks.clone(), traces.tasks.stopping());
        tasks.spawn(async move {
            let steps = steps.await.unwrap_or_default();
            tokio::select! {
                () = ending.complete.cancelled() => {}
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(PATIENCE) => {}
            }
            let mut spans = belonging.spans();
            drop(belonging);
            spans.extend(steps.iter().filter_map(|step| spans::of_step(parent, step)));
            let (history, name) = (traces.history.clone(), reference.clone());
            let text = spans::lines(&mut spans);
            // Losing it loses nothing that was built.
            let _ = task::blocking(move || history.attach_trace(&name, &text)).await;
            traces.lock().ending.remove(&reference);
            ending.written.cancel();
        });
    }
}

/// Says that a build belongs to a trace, until it is dropped.
#[derive(Debug)]
struct Belonging {
    traces: Traces,
    trace: [u8; 16],
}

impl Belonging {
    /// Returns what came for the trace.
    fn spans(&self) -> Vec<Stub> {
        self.traces.lock().open.get(&self.trace).map(|open| open.spans.clone()).unwrap_or_default()
    }
}

impl Drop for Belonging {
    fn drop(&mut self) {
        let mut inner = self.traces.lock();
        let Some(open) = inner.open.get_mut(&self.trace) else { return };
        open.builds -= 1;
        if open.builds == 0 {
            inner.open.remove(&self.trace);
        }
    }
}

impl UnaryService<ExportTraceServiceRequest> for Traces {
    type Response = ExportTraceServiceResponse;
    type Future = BoxFuture<'static, Result<Response<ExportTraceServiceResponse>, Status>>;

    fn call(&mut self, request: Request<ExportTraceServiceRequest>) -> Self::Future {
        self.add(request.into_inner());
        async { Ok(Response::new(ExportTraceServiceResponse {})) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_of_a_call_is_read() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = Parent::parse(text).unwrap();
        assert_eq!((parent.trace[0], parent.trace[15], parent.span[0]), (0x0a, 0x9c, 0xb7));
        for bad in [
            "",
            "00",
            "00-0-1-01",
            &text.replace("0af7", "xxxx"),
            &text.replace("b7ad6b7169203331", "0000000000000000"),
        ] {
            assert_eq!(Parent::parse(bad), None, "{bad}");
        }
    }
}
