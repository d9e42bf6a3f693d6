//! HTTP as registries need it: connections made when they are needed, redirects that do not leak, and what a failure of the
//! network means.
//!
//! Knows nothing of repositories and tokens. Credentials are headers given by the caller; they go to the origin they were
//! meant for and to no other.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{Method, StatusCode};
use reqwest::{Body, Url};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::retry::{Fault, Patience};
use super::tls;
use crate::config::{Registries, Scheme, domain_of};
use crate::error::{Error, Kind, Result};
use crate::task;

const MAX_REDIRECTS: usize = 10;

/// What a server may send over HTTP/2 before it hears that the bytes were taken, for one blob (as Go's client has it: at a
/// distance of 100 ms it allows 40 MB/s) and for all on a connection.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 6 * STREAM_WINDOW;

/// A request that can be sent again.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
}

impl Request {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: None }
    }

    pub(super) fn header(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.insert(name, value.into());
        self
    }

    pub(super) fn body(mut self, body: Bytes) -> Self {
        self.body = Some(body);
        self
    }
}

/// The head of an answer, and its body still to be read.
#[derive(Debug)]
pub(super) struct Answer {
    response: reqwest::Response,
    patience: Patience,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// Returns the address that answered, after redirects.
    pub(super) fn url(&self) -> &Url {
        self.response.url()
    }

    /// Returns the length the server announced for the body.
    pub(super) fn announced_length(&self) -> Option<u64> {
        self.header(http::header::CONTENT_LENGTH)?.parse().ok()
    }

    /// Returns the next bytes of the body, `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        let stall = self.patience.stall;
        match tokio::time::timeout(stall, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(explain(&error, self.url())),
            Err(_) => {
                let text = format!("{} stopped sending: nothing came for {stall:?}", authority(self.url()));
                Err(Fault::passing(Error::timeout(text)))
            }
        }
    }

    /// Reads the whole body of a document, in no more time than an answer may take to begin.
    ///
    /// # Errors
    /// `Corrupt` when it is longer than `limit` bytes, before more than that is held.
    pub(super) async fn read(mut self, limit: usize) -> Result<Bytes, Fault> {
        let (url, patience) = (self.url().clone(), self.patience.answer);
        match tokio::time::timeout(patience, self.read_all(limit)).await {
            Ok(body) => body,
            Err(_) => Err(no_answer(&url, patience)),
        }
    }

    async fn read_all(&mut self, limit: usize) -> Result<Bytes, Fault> {
        let too_long = Error::corrupt(format!("{} sent more than {limit} bytes", authority(self.url())));
        let announced = usize::try_from(self.announced_length().unwrap_or(0)).unwrap_or(usize::MAX);
        let mut body = BytesMut::new();
        if announced <= limit {
            body.reserve(announced);
            while let Some(chunk) = self.chunk().await? {
                if body.len() + chunk.len() > limit {
                    return Err(too_long.into());
                }
                body.extend_from_slice(&chunk);
            }
            return Ok(body.freeze());
        }
        Err(too_long.into())
    }
}

/// Makes connections and keeps them.
#[derive(Debug)]
pub(super) struct Transport {
    registries: Arc<Registries>,
    patience: Patience,
    roots: OnceCell<Arc<RootCertStore>>,
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
}

/// Which client a request uses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ClientKey {
    /// The one for everything without TLS.
    Plain,
    /// The one with the TLS settings of a host.
    Tls(String),
}

impl Transport {
    pub(super) fn new(registries: Arc<Registries>, patience: Patience) -> Self {
        Self { registries, patience, roots: OnceCell::new(), clients: Mutex::default() }
    }

    /// Sends a request and follows redirects of GET and HEAD. Any status is an answer, not a fault.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, Fault> {
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = request.headers.clone();
            if url.origin() != request.url.origin() {
                headers.remove(AUTHORIZATION);
            }
            let body = request.body.clone().map(Body::from);
            let answer = self.exchange(&request.method, &url, headers, body).await?;
            match redirect(&answer, request)? {
                Some(next) => url = next,
                None => return Ok(answer),
            }
        }
        let text = format!("{} redirected more than {MAX_REDIRECTS} times", authority(&request.url));
        Err(Error::unavailable(text).into())
    }

    async fn exchange(
        &self,
        method: &Method,
        url: &Url,
        headers: HeaderMap,
        body: Option<Body>,
    ) -> Result<Answer, Fault> {
        let exchange = self.start(method, url, headers, body).await?;
        match tokio::time::timeout(self.patience.answer, exchange).await {
            Ok(answered) => self.answer(answered, url),
            Err(_) => Err(no_answer(url, self.patience.answer)),
        }
    }

    /// Sends a body that is made while it is sent. `sent` counts the bytes that were taken from it, of `length` in all: as
    /// long as it grows, the transfer may take its time.
    pub(super) async fn upload(
        &self,
        request: &Request,
        body: Body,
        length: u64,
        sent: impl Fn() -> u64,
    ) -> Result<Answer, Fault> {
        let Request { method, url, headers, .. } = request;
        let mut headers = headers.clone();
        headers.insert(http::header::CONTENT_LENGTH, length.into());
        let exchange = self.start(method, url, headers, Some(body)).await?;
        let mut exchange = std::pin::pin!(exchange);
        let (mut before, mut moved) = (sent(), Instant::now());
        loop {
            let look = self.patience.stall / 10;
            if let Ok(answered) = tokio::time::timeout(look, &mut exchange).await {
                return self.answer(answered, url);
            }
            let now = sent();
            if now != before {
                (before, moved) = (now, Instant::now());
            } else if now < length && moved.elapsed() >= self.patience.stall {
                let (server, stall) = (authority(url), self.patience.stall);
                let text = format!("{server} stopped receiving: it took nothing for {stall:?}");
                return Err(Fault::passing(Error::timeout(text)));
            } else if now == length && moved.elapsed() >= self.patience.finish(length) {
                return Err(no_answer(url, self.patience.finish(length)));
            }
        }
    }

    fn answer(&self, answered: reqwest::Result<reqwest::Response>, url: &Url) -> Result<Answer, Fault> {
        match answered {
            Ok(response) => Ok(Answer { response, patience: self.patience }),
            Err(error) => Err(explain(&error, url)),
        }
    }

    async fn start(
        &self,
        method: &Method,
        url: &Url,
        headers: HeaderMap,
        body: Option<Body>,
    ) -> Result<impl Future<Output = reqwest::Result<reqwest::Response>> + use<>> {
        let client = self.client(url).await?;
        let mut request = reqwest::Request::new(method.clone(), url.clone());
        *request.headers_mut() = headers;
        *request.body_mut() = body;
        Ok(client.execute(request))
    }

    async fn client(&self, url: &Url) -> Result<reqwest::Client> {
        let key = match url.scheme() {
            "http" => ClientKey::Plain,
            _ => ClientKey::Tls(self.settings_of(url)),
        };
        if let Some(client) = self.lock().get(&key) {
            return Ok(client.clone());
        }
        let config = match &key {
            ClientKey::Plain => tls::without_trust(),
            ClientKey::Tls(domain) => self.tls_config(domain.clone()).await?,
        };
        // Two tasks that come here at once both build one, and the second is kept.
        let client = self.build(config)?;
        self.lock().insert(key, client.clone());
        Ok(client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ClientKey, reqwest::Client>> {
        self.clients.lock().expect("no panic happens while the lock is held")
    }

    /// Returns the name under which settings for a URL's host are kept.
    fn settings_of(&self, url: &Url) -> String {
        let name = authority(url);
        let with_port = format!("{name}:{}", Scheme::Https.default_port());
        if url.port().is_none() && self.registries.has_host(&with_port) {
            return with_port;
        }
        domain_of(&name).to_owned()
    }

    async fn tls_config(&self, domain: String) -> Result<ClientConfig> {
        let load = || task::blocking(|| Ok(Arc::new(tls::system_roots())));
        let roots = Arc::clone(self.roots.get_or_try_init(load).await?);
        let registries = Arc::clone(&self.registries);
        task::blocking(move || tls::client_config(&registries.host_with_certs(&domain)?, &roots)).await
    }

    fn build(&self, config: ClientConfig) -> Result<reqwest::Client> {
        let registries = Arc::clone(&self.registries);
        let proxy = reqwest::Proxy::custom(move |url| {
            let scheme = if url.scheme() == "http" { Scheme::Http } else { Scheme::Https };
            let port = url.port_or_known_default().unwrap_or(scheme.default_port());
            registries.proxies.lookup(scheme, url.host_str()?, port).map(str::to_owned)
        });
        let mut headers = HeaderMap::new();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("kiln/", env!("CARGO_PKG_VERSION"))));
        reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .proxy(proxy)
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(self.patience.connect)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .build()
            .map_err(|error| Error::internal("prepare an HTTP client").with_source(error))
    }
}

/// Returns host and port as image names write them: without the scheme's own port.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Returns where an answer sends the request, if it does.
fn redirect(answer: &Answer, request: &Request) -> Result<Option<Url>, Fault> {
    let moved = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    if !moved || !matches!(request.method, Method::GET | Method::HEAD) {
        return Ok(None);
    }
    answer.header(LOCATION).map(|location| follow(answer.url(), location)).transpose().map_err(Fault::from)
}

/// Resolves a `Location`. Never from TLS to plain text: a server behind a proxy that believes to be reached by plain HTTP is
/// reached by TLS again, another server is refused.
///
/// # Errors
/// `Unavailable` naming the server when the location is no usable address.
pub(super) fn follow(from: &Url, location: &str) -> Result<Url> {
    let refused = |why: &str| Error::unavailable(format!("{} redirects to {why}", authority(from)));
    let mut next = from.join(location).map_err(|_| refused("something that is no address"))?;
    match (from.scheme(), next.scheme()) {
        ("http", "http") | (_, "https") => Ok(next),
        ("https", "http") if next.host_str() == from.host_str() => {
            // The port is the one that was connected to: what the server believes is the proxy's inner side.
            let port = from.port();
            next.set_scheme("https").and_then(|()| next.set_port(port)).map_err(|()| refused("a strange address"))?;
            Ok(next)
        }
        ("https", "http") => Err(refused(&format!("{}, which does not use TLS", authority(&next)))),
        _ => Err(refused(&format!("an address of the scheme `{}`", next.scheme()))),
    }
}

fn no_answer(url: &Url, waited: Duration) -> Fault {
    Fault::passing(Error::timeout(format!("{} did not answer within {waited:?}", authority(url))))
}

/// The next cause of an error. `io::Error` hides its own behind `get_ref`.
fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>() {
        Some(io) => io.get_ref().map(|inner| inner as _),
        None => error.source(),
    }
}

/// An error and all its causes.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| cause(*error))
}

/// The words of the innermost cause. Outer ones only say that a request did not work, and name its URL, which may be signed.
fn root_cause(error: &reqwest::Error) -> String {
    let Some(last) = causes(error).last() else { return "unknown error".to_owned() };
    match last.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
        Some(code) => Error::from(io::Error::from_raw_os_error(code)).to_string(),
        None => last.to_string(),
    }
}

/// Says what a failure of the network means and whether it may pass.
fn explain(error: &reqwest::Error, url: &Url) -> Fault {
    let server = authority(url);
    let cause = root_cause(error);
    let wrong = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>());
    if let Some(wrong) = wrong.and_then(|wrong| explain_tls(wrong, &server)) {
        return wrong.into();
    }
    if error.is_dns() {
        let text = format!("cannot find the host {server}: {cause} (check the name, and the network's DNS)");
        return Fault::once(Error::unavailable(text));
    }
    if error.is_connect() {
        let kind = if error.is_timeout() { Kind::Timeout } else { Kind::Unavailable };
        return Fault::once(Error::new(kind, format!("cannot connect to {server}: {cause}")));
    }
    Fault::passing(Error::unavailable(format!("the connection to {server} broke: {cause}")))
}

fn explain_tls(error: &rustls::Error, server: &str) -> Option<Error> {
    let section = format!("[registry.\"{}\"] in Kiln's configuration", domain_of(server));
    let text = match error {
        rustls::Error::InvalidMessage(_) => format!(
            "{server} does not speak TLS (if it is meant to serve plain HTTP, set `http = true` under {section})"
        ),
        rustls::Error::InvalidCertificate(why) => explain_certificate(why, server, &section),
        rustls::Error::AlertReceived(alert) => format!("{server} refused the TLS connection: {alert:?}"),
        _ => return None,
    };
    Some(Error::unavailable(text))
}

fn explain_certificate(error: &CertificateError, server: &str, section: &str) -> String {
    let why = match error {
        CertificateError::UnknownIssuer => "its authority is not known here".to_owned(),
        // Among them a certificate that is its own authority.
        CertificateError::Other(_) => "nobody vouches for it".to_owned(),
        other => return format!("the certificate of {server} is not trusted: {other}"),
    };
    format!(
        "the certificate of {server} is not trusted: {why} (if you trust it, name its authority's file, or its own, with \
         `ca = [\"file\"]` under {section}, or put it into /etc/kiln/certs.d/{server}/ca.crt)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_never_leaves_tls() {
        let from = |text: &str| Url::parse(text).unwrap();
        let to = |base: &str, location: &str| follow(&from(base), location).map(|url| url.to_string());
        assert_eq!(to("https://a.example/v2/", "/b?c").unwrap(), "https://a.example/b?c");
        assert_eq!(to("http://a.example:5000/", "http://b.example/x").unwrap(), "http://b.example/x");
        assert_eq!(to("http://a.example/", "https://b.example/x").unwrap(), "https://b.example/x");
        assert_eq!(to("https://a.example/", "http://a.example/x").unwrap(), "https://a.example/x");
        assert_eq!(to("https://a.example:8443/", "http://a.example/x").unwrap(), "https://a.example:8443/x");
        let error = to("https://a.example/", "http://b.example/x").unwrap_err().to_string();
        assert_eq!(error, "a.example redirects to b.example, which does not use TLS");
        for location in ["ftp://b.example/", "file:///etc/passwd", "http://[", "//"] {
            assert!(to("https://a.example/", location).is_err(), "{location}");
        }
    }
}
