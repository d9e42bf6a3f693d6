//! A container's input and output: attach, resize, logs.

use std::io::Write as _;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::api::params::{Params, point_in_time};
use crate::api::{Answer, ApiVersion};
use crate::container::log::{Entry, Output, Range};
use crate::container::record::Record;
use crate::container::{Attachment, Containers};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::task::{self, Cancel};

pub(super) const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";
pub(in crate::api) const RAW: &str = "application/vnd.docker.raw-stream";

/// How much is copied at a time.
const CHUNK: usize = 32 << 10;
/// Chunks of log under way.
const CHUNKS: usize = 8;

/// `POST /containers/{id}/attach`. The connection becomes the container's streams; to a container that does not run yet it
/// does so, too, and waits for the start.
pub(super) async fn attach(
    State(engine): State<Engine>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    params: Params,
    mut request: Request<Body>,
) -> Answer<Response> {
    let [stdin, stdout, stderr] = ["stdin", "stdout", "stderr"].map(|name| params.flag(name));
    let (stream, logs) = (params.flag("stream"), params.flag("logs"));
    let containers = engine.containers().clone();
    let (record, attachment) = if stream {
        let attachment = containers.attach(&id, [stdin, stdout, stderr]).await?;
        (attachment.record.clone(), Some(attachment))
    } else {
        (containers.look_up(&id).await?, None)
    };
    let history = logs.then(|| History { containers, record: record.clone(), stdout, stderr });
    let is_upgrade = request.headers().contains_key(header::UPGRADE);
    if !is_upgrade {
        // Old clients take the connection over without saying so; output reaches them as a body.
        let (sender, receiver) = mpsc::channel(CHUNKS);
        engine.tasks().spawn(async move { drop(stream_output(history, attachment, sender).await) });
        return Ok(streaming(RAW, receiver));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let stopping = engine.tasks().stopping();
    engine.tasks().spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        tokio::select! {
            // How a connection ends is the client's business.
            _ = converse(TokioIo::new(upgraded), history, attachment) => {}
            () = stopping.cancelled() => {}
        }
    });
    Ok(upgraded_to_tcp(stream_type(&record, version)))
}

fn stream_type(record: &Record, version: ApiVersion) -> &'static str {
    if record.config.io.tty || !version.at_least(42) { RAW } else { MULTIPLEXED }
}

/// The answer after which the connection is a raw stream.
pub(in crate::api) fn upgraded_to_tcp(content_type: &'static str) -> Response {
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "tcp")
        .body(Body::empty())
        .expect("the response is well formed")
}

/// What a container has printed before.
struct History {
    containers: Containers,
    record: Record,
    stdout: bool,
    stderr: bool,
}

impl History {
    fn read(self, sink: &mut dyn FnMut(Bytes) -> Result<()>) -> Result<()> {
        let (tty, range) = (self.record.config.io.tty, Range::default());
        self.containers.read_log(&self.record, range, false, &Cancel::new(), &mut |entry| {
            let wanted = if entry.output == Output::Stdout { self.stdout } else { self.stderr };
            if wanted { sink(encode(&entry, tty, false)) } else { Ok(()) }
        })
    }

    /// Passes it on in chunks.
    async fn send(self, sender: mpsc::Sender<Bytes>) -> Result<()> {
        task::blocking(move || self.read(&mut |bytes| sender.blocking_send(bytes).map_err(|_| client_gone()))).await
    }
}

fn client_gone() -> Error {
    Error::cancelled("the client went away")
}

async fn stream_output(
    history: Option<History>,
    attachment: Option<Attachment>,
    sender: mpsc::Sender<Bytes>,
) -> Result<()> {
    if let Some(history) = history {
        history.send(sender.clone()).await?;
    }
    let Some(attachment) = attachment else { return Ok(()) };
    let mut shim = attachment.connected().await?;
    let mut buffer = bytes::BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        if shim.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        sender.send(buffer.split().freeze()).await.map_err(|_| client_gone())?;
    }
}

/// Connects a client with a container until the container has ended or the client has gone.
async fn converse(
    mut client: TokioIo<hyper::upgrade::Upgraded>,
    history: Option<History>,
    attachment: Option<Attachment>,
) -> Result<()> {
    if let Some(history) = history {
        let (sender, mut receiver) = mpsc::channel(CHUNKS);
        let reading = task::Owned::spawn(history.send(sender));
        while let Some(bytes) = receiver.recv().await {
            client.write_all(&bytes).await?;
        }
        reading.join().await??;
    }
    if let Some(attachment) = attachment {
        splice(client, attachment.connected().await?).await?;
    } else {
        client.shutdown().await?;
    }
    Ok(())
}

/// Copies both ways, with half-closes, until the container's side has ended.
pub(super) async fn splice(client: TokioIo<hyper::upgrade::Upgraded>, shim: UnixStream) -> Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_shim, mut to_shim) = shim.into_split();
    let input = async {
        // A client that breaks off ends its input, too.
        let _ = tokio::io::copy(&mut from_client, &mut to_shim).await;
        let _ = to_shim.shutdown().await;
        // The output goes on.
        std::future::pending::<()>().await;
    };
    let output = async {
        tokio::io::copy(&mut from_shim, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::select! {
        () = input => {}
        copied = output => copied?,
    }
    Ok(())
}

/// `POST /containers/{id}/resize`.
pub(super) async fn resize(State(engine): State<Engine>, Path(id): Path<String>, params: Params) -> Answer<StatusCode> {
    let (rows, columns) = size(&params)?;
    engine.containers().resize(&id, rows, columns).await?;
    Ok(StatusCode::OK)
}

/// Reads a terminal's size.
pub(in crate::api) fn size(params: &Params) -> Result<(u16, u16)> {
    let number = |name| {
        let text = params.text(name).unwrap_or_default();
        let number: u32 =
            text.parse().map_err(|_| Error::invalid(format!("invalid resize parameter {name}: {text:?}")))?;
        Ok::<_, Error>(u16::try_from(number).unwrap_or(u16::MAX))
    };
    Ok((number("h")?, number("w")?))
}

/// `GET /containers/{id}/logs`.
pub(super) async fn logs(
    State(engine): State<Engine>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    params: Params,
) -> Answer<Response> {
    let (stdout, stderr) = (params.flag("stdout"), params.flag("stderr"));
    if !stdout && !stderr {
        return Err(Error::invalid("Bad parameters: you must choose at least one stream").into());
    }
    let (follow, timestamps) = (params.flag("follow"), params.flag("timestamps"));
    let now_ns = engine.clock().now_ns();
    // 0 is what clients send for "not given".
    let time = |name| {
        let text = params.text(name).filter(|text| *text != "0");
        text.map(|text| point_in_time(text, now_ns)).transpose()
    };
    let range = Range { tail: tail(&params), since_ns: time("since")?, until_ns: time("until")? };
    let containers = engine.containers().clone();
    let record = containers.look_up(&id).await?;
    containers.check_log(&record)?;
    let content_type = stream_type(&record, version);
    let (sender, receiver) = mpsc::channel::<Bytes>(CHUNKS);
    let cancel = Cancel::new();
    let reading = Reading { containers, record, range, follow, stdout, stderr, timestamps, sender };
    let (work, flag) = (engine.tasks().clone(), cancel.clone());
    let stopping = engine.tasks().stopping();
    work.spawn(async move {
        let _cancelled = flag.on_drop();
        tokio::select! {
            // A failure is told in the stream.
            _ = task::blocking(move || reading.read(&cancel)) => {}
            () = stopping.cancelled() => {}
        }
    });
    Ok(streaming(content_type, receiver))
}

/// Like docker, everything that is no number means all.
fn tail(params: &Params) -> Option<usize> {
    params.text("tail").and_then(|text| text.parse().ok())
}

struct Reading {
    containers: Containers,
    record: Record,
    range: Range,
    follow: bool,
    stdout: bool,
    stderr: bool,
    timestamps: bool,
    sender: mpsc::Sender<Bytes>,
}

impl Reading {
    fn read(self, cancel: &Cancel) -> Result<()> {
        let tty = self.record.config.io.tty;
        let read = self.containers.read_log(&self.record, self.range, self.follow, cancel, &mut |entry| {
            let wanted = if entry.output == Output::Stdout { self.stdout } else { self.stderr };
            if !wanted {
                return Ok(());
            }
            self.sender.blocking_send(encode(&entry, tty, self.timestamps)).map_err(|_| client_gone())
        });
        if let Err(error) = &read
            && error.kind() != crate::error::Kind::Cancelled
        {
            let text = format!("Error grabbing logs: {error}\n");
            // The client may have gone.
            let _ = self.sender.blocking_send(frame(SYSTEM_ERROR, text.as_bytes()));
        }
        read
    }
}

/// The stream that carries errors of the engine.
const SYSTEM_ERROR: u8 = 3;

fn encode(entry: &Entry, tty: bool, timestamps: bool) -> Bytes {
    let mut text = Vec::with_capacity(entry.text.len() + 40);
    if timestamps {
        let time = jiff::Timestamp::from_nanosecond(entry.time_ns.into()).unwrap_or_default();
        // Always nine digits, so that lines can be sorted and aligned.
        write!(text, "{time:.9} ").expect("writing to a vector does not fail");
    }
    text.extend_from_slice(&entry.text);
    match (tty, entry.output) {
        (true, _) => Bytes::from(text),
        (false, Output::Stdout) => frame(1, &text),
        (false, Output::Stderr) => frame(2, &text),
    }
}

/// Puts bytes into a frame: stream, three zeros, length.
pub(super) fn frame(stream: u8, bytes: &[u8]) -> Bytes {
    let len = u32::try_from(bytes.len()).expect("entries are short");
    let mut frame = Vec::with_capacity(8 + bytes.len());
    frame.extend_from_slice(&[stream, 0, 0, 0]);
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(bytes);
    Bytes::from(frame)
}

fn streaming(content_type: &'static str, receiver: mpsc::Receiver<Bytes>) -> Response {
    let chunks = futures_util::stream::unfold(receiver, async |mut receiver| {
        let chunk = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), receiver))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
