//! Sessions: the client becomes a gRPC server, and this engine its client, over one connection (`POST /session`) or one stream
//! of messages (`Control.Session`).

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use futures_util::{Stream, StreamExt as _};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_util::io::ReaderStream;

use crate::api::Answer;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::solver::session::Announced;
use crate::types::build::BytesMessage;

const ID: &str = "X-Docker-Expose-Session-Uuid";

/// What is on its way in a session over messages, in each direction.
const PIPE_BYTES: usize = 64 << 10;
const SHARED_KEY: &str = "X-Docker-Expose-Session-Sharedkey";
const METHOD: &str = "X-Docker-Expose-Session-Grpc-Method";

/// `POST /session`.
pub(in crate::api) async fn session(
    State(engine): State<Engine>,
    mut request: Request<Body>,
) -> Answer<Response<Body>> {
    let announced = announced(request.headers())?;
    let upgrade = hyper::upgrade::on(&mut request);
    engine.tasks().clone().spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        keep(&engine, TokioIo::new(upgraded), announced).await;
    });
    Ok(switching_protocols("h2c"))
}

/// `Control.Session`: the same over a stream of messages, as buildkitd's clients have it.
///
/// # Errors
/// `InvalidArgument` when the metadata does not name the session.
pub(super) fn over_messages(
    engine: &Engine,
    request: tonic::Request<tonic::Streaming<BytesMessage>>,
) -> Result<impl Stream<Item = Result<BytesMessage, tonic::Status>> + Send + use<>> {
    let announced = announced(&request.metadata().clone().into_headers())?;
    let mut messages = request.into_inner();
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let (read, mut write) = tokio::io::split(theirs);
    let tasks = engine.tasks();
    let stopping = tasks.stopping();
    tasks.spawn(async move {
        let pump = async {
            while let Ok(Some(message)) = messages.message().await {
                if write.write_all(&message.data).await.is_err() {
                    break;
                }
            }
            // Who reads the other end sees the end of the session.
            let _ = write.shutdown().await;
        };
        tokio::select! {
            () = pump => {}
            () = stopping.cancelled() => {}
        }
    });
    let engine = engine.clone();
    tasks.spawn(async move { keep(&engine, ours, announced).await });
    let sent = ReaderStream::with_capacity(read, PIPE_BYTES);
    Ok(sent.map(|data| match data {
        Ok(data) => Ok(BytesMessage { data: data.into() }),
        Err(error) => Err(tonic::Status::unavailable(error.to_string())),
    }))
}

/// Keeps a session open until its connection ends.
async fn keep<T>(engine: &Engine, io: T, announced: Announced)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok((channel, closed)) = channel(io).await else { return };
    let open = engine.sessions().register(channel, announced);
    let stopping = engine.tasks().stopping();
    tokio::select! {
        _ = closed => {}
        () = open.silent() => {}
        () = stopping.cancelled() => {}
    }
}

/// The answer that turns a connection into another protocol.
pub(in crate::api) fn switching_protocols(protocol: &'static str) -> Response<Body> {
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, protocol)
        .body(Body::empty())
        .expect("the response is well formed")
}

fn announced(headers: &HeaderMap) -> Result<Announced> {
    let text = |value: &HeaderValue| value.to_str().map(str::to_owned).ok();
    let id = headers.get(ID).and_then(text).filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| Error::invalid(format!("the header {ID} is missing")))?;
    let shared_key = headers.get(SHARED_KEY).and_then(text).unwrap_or_default();
    Ok(Announced { id, shared_key, methods: headers.get_all(METHOD).iter().filter_map(text).collect() })
}

/// Makes a gRPC channel of one connection; the receiver resolves when the connection ends.
async fn channel<T>(io: T) -> Result<(tonic::transport::Channel, tokio::sync::oneshot::Receiver<()>)>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (end, closed) = tokio::sync::oneshot::channel();
    let mut connection = Some(Watched { io, _end: end });
    // The channel asks for a second connection when the first breaks: there is none.
    let connector = tower::service_fn(move |_: Uri| {
        let io = connection.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::ConnectionAborted));
        async move { io.map(TokioIo::new) }
    });
    let channel = tonic::transport::Endpoint::from_static("http://session")
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::unavailable("open the session").with_source(error))?;
    Ok((channel, closed))
}

/// A connection that tells when it is dropped.
struct Watched<T> {
    io: T,
    _end: tokio::sync::oneshot::Sender<()>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
