//! `POST /build`: builds of clients that know no BuildKit (version 1: a context in the body, text as the answer), and of those
//! that speak it in this way (version 2: a session, and BuildKit's own reports in the answer).
//!
//! Both are the same build as `Control.Solve` does. A context in the body is unpacked while it arrives.

mod named;
mod params;
mod text;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use serde_json::{Value, json};

use self::named::{Arrival, Named};
use self::params::{Asked, From, Version};
use self::text::Text;
use super::running::Builds;
use super::{convert, history};
use crate::api::Answer;
use crate::api::params::Params;
use crate::api::progress::{self, Outbox};
use crate::api::stream::BodyReader;
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::solver::progress::{Event, Watcher};
use crate::solver::{Built, Failure, ReceivedContext};
use crate::task::{self, Cancel};
use crate::types::Progress;

/// Names BuildKit's reports in an answer of version 2.
const TRACE: &str = "moby.buildkit.trace";

/// Names the image's id there.
const IMAGE_ID: &str = "moby.image.id";

/// The builds that clients begin in this way. Cloning gives another handle.
#[derive(Clone, Debug)]
pub(super) struct Classic {
    builds: Builds,
    named: Named,
}

impl Classic {
    pub(super) fn new(builds: Builds) -> Self {
        Self { builds, named: Named::default() }
    }

    /// `POST /build`.
    pub(super) async fn build(
        self,
        State(engine): State<Engine>,
        params: Params,
        headers: HeaderMap,
        body: Body,
    ) -> Answer<Response> {
        if let Some(id) = params.text("buildid").and_then(|id| id.strip_prefix("upload-request:")) {
            self.named.upload(id, body).await?;
            return Ok(StatusCode::OK.into_response());
        }
        let asked = params::parse(&params, &headers)?;
        engine.require_root("building images")?;
        let outbox = Outbox::default();
        let work = self.work(engine, asked, body, outbox.clone());
        progress::answer(outbox, work).await
    }

    /// `POST /build/cancel`. A build that is not there has ended.
    pub(super) async fn cancel(self, params: Params) -> Answer<StatusCode> {
        let id = params.text("id").ok_or_else(|| Error::invalid("build ID not provided"))?;
        self.named.cancel(id);
        Ok(StatusCode::OK)
    }

    async fn work(self, engine: Engine, asked: Asked, body: Body, outbox: Outbox) -> Result<()> {
        let id = asked.build_id.clone();
        let cancelled = id.as_deref().map(|id| self.named.begin(id));
        let work = Box::pin(self.run(engine, asked, body, outbox));
        match &cancelled {
            None => work.await,
            Some(guard) => tokio::select! {
                ended = work => ended,
                () = guard.cancelled() => Err(Error::cancelled("build cancelled")),
            },
        }
    }

    async fn run(&self, engine: Engine, mut asked: Asked, body: Body, outbox: Outbox) -> Result<()> {
        let context = match &asked.from {
            From::Elsewhere => None,
            From::Body => Some(receive(&engine, Arrival::of(body)).await?),
            From::Upload => {
                let id = asked.build_id.as_deref().unwrap_or_default();
                Some(receive(&engine, self.named.arrival(id).await?).await?)
            }
        };
        for name in ["context", "dockerfile"] {
            let path = context.as_ref().map(|context| (name.to_owned(), context.path().to_owned()));
            asked.request.locals.extend(path);
        }
        let built = self.solve(&engine, &asked, &outbox).await;
        // Removing it writes to the disk and to the database.
        task::blocking(move || {
            drop(context);
            Ok(())
        })
        .await?;
        match built {
            Ok(built) => finish(&asked, &built, &outbox),
            // Who is told of a mistake in the request before anything else gets a status; everything else is in the stream.
            Err(failure) if failure.error.kind() == Kind::InvalidArgument => return Err(failure.error),
            Err(failure) => outbox.append(progress::failure(&failure.error.to_string())),
        }
        Ok(())
    }

    /// Builds and reports meanwhile.
    async fn solve(&self, engine: &Engine, asked: &Asked, outbox: &Outbox) -> Result<Built, Failure> {
        let reference = reference()?;
        let running = self.builds.begin(&reference)?;
        let recording = history::record(engine, &asked.request, &reference, running.progress());
        running.without_bridge();
        let (progress, watcher) = (running.progress().clone(), running.progress().watch());
        let building = async {
            let built = Box::pin(engine.solver().build(asked.request.clone(), progress)).await;
            drop(running);
            built
        };
        let (built, ()) = tokio::join!(building, report(asked, watcher, outbox));
        let status = built.as_ref().map_err(convert::failure);
        history::end(recording, status.as_ref().copied()).await;
        built
    }
}

/// Passes on what a build reports, in the form that was asked for, no faster than the client reads it.
async fn report(asked: &Asked, mut watcher: Watcher, outbox: &Outbox) {
    let mut text = Text::default();
    while let Some(events) = watcher.next().await {
        match asked.version {
            Version::Classic if asked.quiet => {}
            Version::Classic => text.say(events, outbox),
            Version::BuildKit => traces(events, outbox),
        }
        outbox.room().await;
    }
}

fn traces(events: Vec<Event>, outbox: &Outbox) {
    for response in convert::responses(events) {
        outbox.append(aux(Some(TRACE), Value::from(STANDARD.encode(response.encode_to_vec()))));
    }
}

fn aux(id: Option<&str>, value: Value) -> Progress {
    Progress { id: id.map(str::to_owned), aux: Some(value), ..Progress::default() }
}

/// Tells the client what came of it.
fn finish(asked: &Asked, built: &Built, outbox: &Outbox) {
    let keys = ["containerimage.config.digest", "containerimage.digest"];
    let Some(id) = keys.iter().find_map(|key| built.response.get(*key)) else { return };
    match asked.version {
        Version::BuildKit => outbox.append(aux(Some(IMAGE_ID), json!({ "ID": id }))),
        Version::Classic if asked.quiet => outbox.stream(format!("{id}\n")),
        Version::Classic => {
            outbox.append(aux(None, json!({ "ID": id })));
            outbox.stream(format!("Successfully built {}\n", text::short(id)));
            for tag in &asked.tags {
                outbox.stream(format!("Successfully tagged {}\n", tag.familiar()));
            }
        }
    }
}

/// Unpacks a context while it arrives.
async fn receive(engine: &Engine, arrival: Arrival) -> Result<Arc<ReceivedContext>> {
    let Arrival { body, read } = arrival;
    let solver = engine.solver().clone();
    let cancel = Cancel::new();
    let _stop = cancel.on_drop();
    let received = task::blocking(move || solver.receive_context(BodyReader::new(body), &cancel)).await;
    // Who uploads it waits for this.
    drop(read);
    received.map(Arc::new).map_err(|error| match error.kind() {
        // It is the client's archive that is damaged.
        Kind::Corrupt | Kind::Unsupported => error.with_kind(Kind::InvalidArgument),
        _ => error,
    })
}

/// A name for a build whose client chose none.
fn reference() -> Result<String> {
    let unique = getrandom::u64().map_err(|error| Error::internal(format!("make an id: {error}")))?;
    Ok(format!("classic-{unique:016x}"))
}
