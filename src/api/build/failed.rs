//! `/failed-steps/{id}`: a shell in a failed step that is kept, and what the step changed. Kiln's own: docker has no such
//! paths, and BuildKit's clients put a container together themselves (`LLBBridge.NewContainer`) to the same end.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::api::Answer;
use crate::api::containers::streams::{RAW, size, upgraded_to_tcp};
use crate::api::params::Params;
use crate::api::stream::download;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::solver::failed::{Inspection, Inspector, Terminal, WindowSize};

/// The longest body of these requests.
const MAX_BODY: usize = 1 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ShellBody {
    /// The command; none is a shell.
    cmd: Vec<String>,
    /// Variables besides the step's.
    env: Vec<String>,
    /// Rows and columns.
    console_size: [u16; 2],
}

/// `POST /failed-steps/{id}/shell`. The connection becomes the terminal of a shell (or of another command) in the step's sandbox.
pub(super) async fn shell(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    mut request: Request<Body>,
) -> Answer<Response> {
    if !request.headers().contains_key(header::UPGRADE) {
        return Err(Error::unsupported("a shell without upgrading the connection; use Upgrade: tcp").into());
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY).await;
    let body = body.map_err(|error| Error::invalid(format!("read the request: {error}")))?;
    let body =
        if body.is_empty() { ShellBody::default() } else { serde_json::from_slice(&body).map_err(Error::from)? };
    let ShellBody { cmd: args, env, console_size: [rows, columns] } = body;
    let inspection = Inspection { args, env, terminal: Some(WindowSize { rows, columns }) };
    let inspector = engine.solver().failed_step(&id)?.open(inspection).await?;
    let stopping = engine.tasks().stopping();
    engine.tasks().spawn(async move {
        let client = tokio::select! {
            upgraded = upgrade => upgraded.ok(),
            () = stopping.cancelled() => None,
        };
        // How a connection ends is the client's business.
        let _ = serve(client.map(TokioIo::new), inspector, stopping.cancelled()).await;
    });
    Ok(upgraded_to_tcp(RAW))
}

/// Connects a client with a terminal until the process has ended or the client has gone, which ends the process.
async fn serve(
    client: Option<TokioIo<Upgraded>>,
    inspector: Inspector,
    stopping: impl Future<Output = ()>,
) -> Result<()> {
    let terminal = inspector.sandbox().terminal().map(Terminal::stream).transpose()?;
    let mut connection = None;
    if let (Some(client), Some(terminal)) = (client, terminal) {
        let (mut typed, mut shown) = tokio::io::split(client);
        let (mut from_terminal, mut to_terminal) = tokio::io::split(terminal);
        tokio::select! {
            // The process has ended when its terminal has.
            copied = tokio::io::copy(&mut from_terminal, &mut shown) => drop(copied?),
            copied = tokio::io::copy(&mut typed, &mut to_terminal) => drop(copied?),
            () = stopping => {}
        }
        connection = Some(shown);
    }
    inspector.sandbox().signal(Signal::KILL)?;
    inspector.end().await?;
    // Who sees the end of the stream finds the exit code.
    if let Some(mut writer) = connection {
        writer.shutdown().await?;
    }
    Ok(())
}

/// `POST /failed-steps/{id}/resize`.
pub(super) async fn resize(State(engine): State<Engine>, Path(id): Path<String>, params: Params) -> Answer<StatusCode> {
    let (rows, columns) = size(&params)?;
    engine.solver().failed_step(&id)?.resize(WindowSize { rows, columns })?;
    Ok(StatusCode::OK)
}

/// `GET /failed-steps/{id}/json`.
pub(super) async fn inspect(State(engine): State<Engine>, Path(id): Path<String>) -> Answer<Json<Value>> {
    let step = engine.solver().failed_step(&id)?;
    Ok(Json(json!({ "Id": id, "Name": step.name(), "ExitCode": step.exit_code() })))
}

/// `GET /failed-steps/{id}/changes`: a layer's archive.
pub(super) async fn changes(State(engine): State<Engine>, Path(id): Path<String>) -> Answer<Response> {
    let step = engine.solver().failed_step(&id)?;
    download("application/x-tar", move |out, cancel| step.write_changes(out, cancel)).await
}

/// `DELETE /failed-steps/{id}`.
pub(super) async fn release(State(engine): State<Engine>, Path(id): Path<String>, _: Bytes) -> Answer<StatusCode> {
    engine.solver().release_failed(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
