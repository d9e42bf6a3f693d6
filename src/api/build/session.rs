//! `POST /session`: the client becomes a gRPC server, and this engine its client, over one connection.

use std::collections::HashSet;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;

use crate::api::Answer;
use crate::engine::Engine;
use crate::error::{Error, Result};

const ID: &str = "X-Docker-Expose-Session-Uuid";
const METHOD: &str = "X-Docker-Expose-Session-Grpc-Method";

/// `POST /session`.
pub(in crate::api) async fn session(
    State(engine): State<Engine>,
    mut request: Request<Body>,
) -> Answer<Response<Body>> {
    let (id, methods) = announced(request.headers())?;
    let upgrade = hyper::upgrade::on(&mut request);
    let stopping = engine.tasks().stopping();
    engine.tasks().clone().spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let Ok((channel, closed)) = channel(upgraded).await else { return };
        let _open = engine.sessions().register(&id, channel, methods);
        tokio::select! {
            _ = closed => {}
            () = stopping.cancelled() => {}
        }
    });
    Ok(switching_protocols("h2c"))
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

fn announced(headers: &HeaderMap) -> Result<(String, HashSet<String>)> {
    let text = |value: &HeaderValue| value.to_str().map(str::to_owned).ok();
    let id = headers.get(ID).and_then(text).filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| Error::invalid(format!("the header {ID} is missing")))?;
    Ok((id, headers.get_all(METHOD).iter().filter_map(text).collect()))
}

/// Makes a gRPC channel of one connection; the receiver resolves when the connection ends.
async fn channel(
    upgraded: hyper::upgrade::Upgraded,
) -> Result<(tonic::transport::Channel, tokio::sync::oneshot::Receiver<()>)> {
    let (end, closed) = tokio::sync::oneshot::channel();
    let mut connection = Some(Watched { io: TokioIo::new(upgraded), _end: end });
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
struct Watched {
    io: TokioIo<hyper::upgrade::Upgraded>,
    _end: tokio::sync::oneshot::Sender<()>,
}

impl tokio::io::AsyncRead for Watched {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Watched {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
