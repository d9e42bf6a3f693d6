//! Further processes in a container: `POST /containers/{id}/exec` and `/exec/{id}/...`.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use super::streams::{MULTIPLEXED, RAW, frame, size, splice, upgraded_to_tcp};
use crate::api::params::Params;
use crate::api::{Answer, ApiVersion};
use crate::container::{ExecConfig, ExecStarted};
use crate::engine::Engine;
use crate::error::{Error, Result, ResultExt as _};
use crate::task;

/// The longest body of these requests.
const MAX_BODY: usize = 1 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreateBody {
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    tty: bool,
    env: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    privileged: bool,
    user: String,
    working_dir: String,
}

/// `POST /containers/{id}/exec`.
pub(super) async fn create(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    body: Bytes,
) -> Answer<(StatusCode, Json<Value>)> {
    let body: CreateBody = serde_json::from_slice(&body).context(|| "read the settings of the process")?;
    let config = ExecConfig {
        args: body.cmd.unwrap_or_default(),
        env: body.env.unwrap_or_default(),
        working_dir: body.working_dir,
        user: body.user,
        privileged: body.privileged,
        tty: body.tty,
        attach: [body.attach_stdin, body.attach_stdout, body.attach_stderr],
    };
    let exec = task::blocking(move || engine.containers().create_exec(&id, &config)).await?;
    Ok((StatusCode::CREATED, Json(json!({ "Id": exec }))))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StartBody {
    detach: bool,
    console_size: Option<[u16; 2]>,
}

/// `POST /exec/{id}/start`. Unless it is detached, the connection becomes the streams of the process.
pub(super) async fn start(
    State(engine): State<Engine>,
    axum::extract::Extension(version): axum::extract::Extension<ApiVersion>,
    Path(id): Path<String>,
    mut request: Request<Body>,
) -> Answer<Response> {
    let upgrade = hyper::upgrade::on(&mut request);
    let is_upgrade = request.headers().contains_key(header::UPGRADE);
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY).await;
    let body = body.map_err(|error| Error::invalid(format!("read the request: {error}")))?;
    let body: StartBody =
        if body.is_empty() { StartBody::default() } else { serde_json::from_slice(&body).map_err(Error::from)? };
    let containers = engine.containers().clone();
    let started = containers.start_exec(&id, body.detach, body.console_size.unwrap_or_default()).await?;
    if body.detach {
        return match started {
            ExecStarted::Streams(_) => Ok(StatusCode::OK.into_response()),
            ExecStarted::Failed(text) => Err(Error::invalid(text).into()),
        };
    }
    if !is_upgrade {
        return Err(Error::unsupported("starting a process without upgrading the connection; use Upgrade: tcp").into());
    }
    let owned = id.clone();
    let tty = task::blocking(move || Ok(containers.find_exec(&owned)?.config.tty)).await?;
    let stopping = engine.tasks().stopping();
    engine.tasks().spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        tokio::select! {
            // How a connection ends is the client's business.
            _ = converse(TokioIo::new(upgraded), started, tty) => {}
            () = stopping.cancelled() => {}
        }
    });
    Ok(upgraded_to_tcp(if tty || !version.at_least(42) { RAW } else { MULTIPLEXED }))
}

async fn converse(mut client: TokioIo<hyper::upgrade::Upgraded>, started: ExecStarted, tty: bool) -> Result<()> {
    match started {
        ExecStarted::Streams(shim) => splice(client, shim).await,
        ExecStarted::Failed(text) => {
            let text = format!("{text}\r\n");
            let bytes = if tty { Bytes::from(text) } else { frame(1, text.as_bytes()) };
            client.write_all(&bytes).await?;
            Ok(client.shutdown().await?)
        }
    }
}

/// `POST /exec/{id}/resize`.
pub(super) async fn resize(State(engine): State<Engine>, Path(id): Path<String>, params: Params) -> Answer<StatusCode> {
    let (rows, columns) = size(&params)?;
    engine.containers().resize_exec(&id, rows, columns).await?;
    Ok(StatusCode::OK)
}

/// `GET /exec/{id}/json`.
pub(super) async fn inspect(State(engine): State<Engine>, Path(id): Path<String>) -> Answer<Json<Value>> {
    let exec = task::blocking(move || engine.containers().find_exec(&id)).await?;
    let config = &exec.config;
    let running = exec.started && exec.exit_code.is_none();
    Ok(Json(json!({
        "ID": exec.id,
        "Running": running,
        "ExitCode": exec.exit_code,
        "ProcessConfig": {
            "tty": config.tty,
            "entrypoint": config.args.first(),
            "arguments": config.args.get(1..).unwrap_or_default(),
            "privileged": config.privileged,
            "user": config.user,
        },
        "OpenStdin": config.attach[0],
        "OpenStdout": config.attach[1],
        "OpenStderr": config.attach[2],
        "CanRemove": !running,
        "ContainerID": exec.container.as_str(),
        "DetachKeys": "",
        "Pid": exec.pid.unwrap_or(0),
    })))
}
