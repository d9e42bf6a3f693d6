//! HTTP requests over dialled streams: JSON calls, streams of JSON lines, uploads and hijacked connections.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use super::dial::{Dialer, Endpoint};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::task::Tasks;
use crate::types::ErrorBody;

/// The API version requests are sent with, unless the engine knows only older ones.
const VERSION: Version = (1, 51);

/// Returns the newest API version this client speaks.
#[must_use]
pub fn newest_api() -> String {
    format!("{}.{}", VERSION.0, VERSION.1)
}

/// Major and minor.
type Version = (u32, u32);

/// The largest JSON answer that is read into memory.
const MAX_JSON: usize = 256 << 20;

/// The largest headers of a gRPC answer, in bytes.
const MAX_HEADERS: u32 = 16 << 20;

/// A client of one engine. Cloning gives another handle to the same connections.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dialer: Dialer,
    version: OnceCell<Version>,
    idle: Mutex<Vec<SendRequest<Body>>>,
    tasks: Tasks,
}

/// A connection that has left HTTP: raw bytes both ways, and the content type the server announced.
#[derive(Debug)]
pub struct Hijacked {
    /// The stream; half-close is passed on.
    pub io: TokioIo<hyper::upgrade::Upgraded>,
    /// The `Content-Type` of the answer.
    pub content_type: String,
}

impl Client {
    /// Makes a client that opens streams with `dialer` as it needs them.
    #[must_use]
    pub fn new(dialer: Dialer) -> Self {
        Self(Arc::new(Inner { dialer, version: OnceCell::new(), idle: Mutex::default(), tasks: Tasks::new() }))
    }

    /// Returns where the engine is.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        self.0.dialer.endpoint()
    }

    /// Returns the dialer, to finish an engine child.
    #[must_use]
    pub fn dialer(&self) -> &Dialer {
        &self.0.dialer
    }

    /// Calls `GET path` and reads a JSON answer.
    ///
    /// # Errors
    /// What the engine answered, with the kind that its status stands for.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, Body::empty(), None).await
    }

    /// Calls `POST path` with a JSON body and reads a JSON answer; use `()` for an answer without content.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T> {
        let body = serde_json::to_vec(body)?;
        self.call(Method::POST, path, Body::from(body), Some("application/json")).await
    }

    /// Calls `POST path` without a body.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub async fn post_empty<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::POST, path, Body::empty(), None).await
    }

    /// Calls `DELETE path`.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::DELETE, path, Body::empty(), None).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body,
        content_type: Option<&str>,
    ) -> Result<T> {
        let mut request = self.request(method, path);
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let response = self.send(request.body(body).expect("the request is well formed")).await?;
        let content = http_body_util::Limited::new(response.into_body(), MAX_JSON)
            .collect()
            .await
            .map_err(|error| Error::unavailable(format!("read the engine's answer: {error}")))?
            .to_bytes();
        let content = if content.is_empty() { Bytes::from_static(b"null") } else { content };
        serde_json::from_slice(&content).map_err(|e| Error::internal(format!("unexpected answer to {path}: {e}")))
    }

    /// Begins a request for a path without version, such as `/containers/json?all=1`.
    #[must_use]
    pub fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder().method(method).uri(path).header(header::HOST, "kiln")
    }

    /// Sends a request and returns the answer with its body unread; error statuses become errors.
    ///
    /// # Errors
    /// As for [`Client::get`]; `Unavailable` when the connection breaks.
    pub async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>> {
        let (major, minor) = *self.0.version.get_or_try_init(|| self.negotiate()).await?;
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() =
            format!("/v{major}.{minor}{path}").parse().expect("a path with another in front of it is a path");
        self.exchange(request).await
    }

    /// Finds the newest version both sides know. An engine child is this program and need not be asked.
    async fn negotiate(&self) -> Result<Version> {
        if matches!(self.endpoint(), Endpoint::Child(_)) {
            return Ok(VERSION);
        }
        let ping = self.request(Method::GET, "/_ping").body(Body::empty()).expect("the request is well formed");
        let response = self.exchange(ping).await?;
        let theirs = response.headers().get("api-version").and_then(|version| version.to_str().ok());
        let theirs = theirs.and_then(|version| {
            let (major, minor) = version.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        // Reads the answer to its end, which frees the connection.
        let _ = http_body_util::Limited::new(response.into_body(), 1 << 20).collect().await;
        Ok(theirs.map_or(VERSION, |theirs: Version| theirs.min(VERSION)))
    }

    /// Sends a request as it is.
    async fn exchange(&self, request: Request<Body>) -> Result<Response<Incoming>> {
        let mut sender = self.sender().await?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        self.0.idle.lock().expect("no panic happens while the lock is held").push(sender);
        if status.is_success() { Ok(response) } else { Err(failure(response).await) }
    }

    /// Calls `method path` and reads the answer as a stream of JSON lines.
    ///
    /// # Errors
    /// As for [`Client::get`].
    pub async fn lines<T: DeserializeOwned>(&self, request: Request<Body>) -> Result<Lines<T>> {
        let response = self.send(request).await?;
        Ok(Lines { body: response.into_body(), buffer: BytesMut::new(), line: std::marker::PhantomData })
    }

    /// Sends a request that turns its connection into a raw stream (`Connection: Upgrade`).
    ///
    /// # Errors
    /// As for [`Client::get`]; `Unsupported` when the server does not upgrade.
    pub async fn hijack(&self, request: http::request::Builder, protocol: &str, body: Body) -> Result<Hijacked> {
        let request = request
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, protocol)
            .body(body)
            .expect("the request is well formed");
        let response = self.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::unsupported(format!("the engine does not upgrade connections to {protocol}")));
        }
        let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_owned();
        let io = TokioIo::new(hyper::upgrade::on(response).await.map_err(broken)?);
        Ok(Hijacked { io, content_type })
    }

    /// Opens a gRPC channel through `POST /grpc`, which every engine with BuildKit inside understands.
    ///
    /// # Errors
    /// As for [`Client::hijack`].
    pub async fn grpc(&self) -> Result<tonic::transport::Channel> {
        let client = self.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let client = client.clone();
            async move {
                let hijacked = client.hijack(client.request(Method::POST, "/grpc"), "h2c", Body::empty()).await?;
                Ok::<_, Error>(TokioIo::new(hijacked.io))
            }
        });
        tonic::transport::Endpoint::from_static("http://kiln")
            // The details of an error hold sources and travel in a header.
            .http2_max_header_list_size(MAX_HEADERS)
            .connect_with_connector(connector)
            .await
            .map_err(|error| Error::unavailable("open the engine's build service").with_source(error))
    }

    async fn sender(&self) -> Result<SendRequest<Body>> {
        loop {
            let idle = self.0.idle.lock().expect("no panic happens while the lock is held").pop();
            let Some(mut sender) = idle else { break };
            // A connection whose last answer was not read to its end is busy for ever, one that was closed is of no use.
            if sender.is_ready() && sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = self.0.dialer.open().await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Its end is seen by whoever uses the connection.
        self.0.tasks.spawn(async move { drop(connection.with_upgrades().await) });
        Ok(sender)
    }
}

fn broken(error: hyper::Error) -> Error {
    Error::unavailable("the connection to the engine broke").with_source(error)
}

async fn failure(response: Response<Incoming>) -> Error {
    let status = response.status();
    let content = http_body_util::Limited::new(response.into_body(), 1 << 20).collect().await;
    let content = content.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let message = match serde_json::from_slice::<ErrorBody>(&content) {
        Ok(body) => body.message,
        Err(_) if content.is_empty() => status.canonical_reason().unwrap_or("unknown error").to_lowercase(),
        Err(_) => String::from_utf8_lossy(&content).trim().to_owned(),
    };
    Error::new(Kind::from_http(status.as_u16()), message)
}

/// A stream of JSON documents, one a line.
#[derive(Debug)]
pub struct Lines<T> {
    body: Incoming,
    buffer: BytesMut,
    line: std::marker::PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// Returns the next document; `None` at the end of the stream.
    ///
    /// # Errors
    /// `Unavailable` when the connection breaks; `InvalidArgument` for a line that is not what was expected.
    pub async fn next(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(serde_json::from_slice(&line).context(|| "read the engine's progress")?));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                Some(Err(error)) => return Err(broken(error)),
                None if self.buffer.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => self.buffer.extend_from_slice(b"\n"),
            }
        }
    }
}
