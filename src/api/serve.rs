//! Connections: HTTP/1 with upgrades and HTTP/2 on any byte stream, and the sources such streams come from.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::Extension;
use axum::http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use axum::response::IntoResponse as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tower::ServiceExt as _;

use super::error::ApiError;
use super::version::{self, ApiVersion, Versioned};
use crate::engine::{Control, Engine};
use crate::error::{Error, Result};
use crate::task::Tasks;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The command that started this engine: same credentials, same file system.
    Parent,
    /// Anybody who may open the daemon's socket.
    Client,
}

/// Runs the streams of HTTP/2 connections as tasks that are joined before the engine exits.
#[derive(Clone, Debug)]
pub(super) struct Executor(Tasks);

impl Executor {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self(tasks)
    }
}

impl<F: Future<Output: Send + 'static> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// Serves one engine on any number of connections. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Server {
    router: Router,
    tasks: Tasks,
}

impl Server {
    /// Makes a server of `engine`'s API.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        let tasks = engine.tasks().clone();
        Self { router: super::router(engine), tasks }
    }

    /// Makes a server that answers every request with the reason why there is no engine, so that it reaches the user the way
    /// every other error does.
    #[must_use]
    pub fn refusing(error: &Error, tasks: Tasks) -> Self {
        let (kind, reason) = (error.kind(), error.to_string());
        let refuse = async move |headers: HeaderMap| refusal(&headers, Error::new(kind, reason.clone()));
        Self { router: Router::new().fallback(refuse), tasks }
    }

    /// Serves one connection in the background until it ends.
    pub fn connect(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let router = self.router.clone().layer(Extension(peer));
        let service = hyper::service::service_fn(move |request| handle(router.clone(), request));
        let stopping = self.tasks.stopping();
        let executor = Executor::new(self.tasks.clone());
        self.tasks.spawn(async move {
            let builder = hyper_util::server::conn::auto::Builder::new(executor);
            // How a connection ends is the client's business: handlers are dropped with it, which cancels their work.
            tokio::select! {
                _ = builder.serve_connection_with_upgrades(TokioIo::new(io), service) => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    /// Serves the connections that arrive over `control` until the parent closes it: the life of an engine child.
    ///
    /// # Errors
    /// When `control` fails.
    pub async fn serve_control(&self, control: Control) -> Result<()> {
        while let Some(stream) = control.accept().await? {
            self.connect(stream, Peer::Parent);
        }
        Ok(())
    }
}

/// An error in the form that the request expects.
fn refusal(headers: &HeaderMap, error: Error) -> Response<Body> {
    let is_grpc =
        headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        let (_, code, _) = error.kind().codes();
        return tonic::Status::new(code.into(), error.to_string()).into_http();
    }
    ApiError::from(error).into_response()
}

/// Takes the version off the path, routes the request, and adds the headers that every answer has.
async fn handle(router: Router, request: Request<Incoming>) -> std::result::Result<Response<Body>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let (version, path) = match version::split(parts.uri.path()) {
        Versioned::Served(version, path) => (version, path.to_owned()),
        Versioned::Refused(message) => return Ok(ApiError::from(Error::invalid(message)).into_response()),
    };
    let target = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let Ok(uri) = target.parse::<Uri>() else {
        return Ok(ApiError::from(Error::invalid("malformed path")).into_response());
    };
    parts.uri = uri;
    parts.extensions.insert(version);
    let response = router.oneshot(Request::from_parts(parts, Body::new(body))).await;
    let Ok(response) = response;
    Ok(with_headers(response))
}

fn with_headers(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    let newest = ApiVersion::NEWEST.to_string();
    headers.insert("Api-Version", HeaderValue::from_str(&newest).expect("a version is printable"));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.entry(header::SERVER).or_insert(HeaderValue::from_static(concat!(
        "Kiln/",
        env!("CARGO_PKG_VERSION"),
        " (linux)"
    )));
    response
}
