//! Single requests to services that keep objects by HTTP: object stores, and the caches of build services. What is asked, and how
//! it is signed, is the caller's business; this sends it, again where that may help, and reads the answer.

use std::fmt;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use reqwest::Url;

use super::Client;
use super::refusal::printable;
use super::retry::{Attempts, Fault, retry_after};
use super::transport::{Answer, Request};
use crate::error::{Error, Kind, Result};

/// What is read of a refusal, in bytes.
const MAX_REFUSAL: usize = 64 << 10;

/// A request. What it holds may be secret: it shows its address only, without its query.
#[derive(Clone)]
pub struct ObjectRequest {
    /// The method.
    pub method: Method,
    /// The address.
    pub url: Url,
    /// Its headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Its body.
    pub body: Bytes,
    /// How often it is tried, unless as often as is configured for registries.
    pub attempts: Option<u32>,
}

impl fmt::Debug for ObjectRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.shown())
    }
}

impl ObjectRequest {
    fn shown(&self) -> String {
        format!("{}{}", self.url.origin().ascii_serialization(), self.url.path())
    }
}

/// The head of an answer, and its body still to be read.
#[derive(Debug)]
pub struct ObjectAnswer {
    answer: Answer,
    shown: String,
}

impl Client {
    /// Sends a request, and again when the service is busy or the connection breaks. Any other answer is one.
    ///
    /// # Errors
    /// `Unavailable` and `Timeout` when there is no answer, after some attempts.
    pub async fn object(&self, request: &ObjectRequest) -> Result<ObjectAnswer> {
        let mut sent = Request::new(request.method.clone(), request.url.clone()).body(request.body.clone());
        sent.headers.extend(request.headers.iter().cloned());
        let shown = request.shown();
        let most = request.attempts.unwrap_or(self.shared.registries.transfer.attempts);
        let attempts = Attempts::new(self.shared.patience, most);
        let answer = self.retrying_with(attempts, || async {
            let answer = self.shared.transport.send(&sent).await?;
            if !matches!(answer.status().as_u16(), 429 | 500 | 502 | 503 | 504) {
                return Ok(answer);
            }
            let (status, wait) = (answer.status(), retry_after(answer.headers()));
            Err(Fault::after(Error::unavailable(format!("{shown} answers {status}")), wait))
        });
        let answer = answer.await.map_err(|error| error.context(format!("{request:?}")))?;
        Ok(ObjectAnswer { answer, shown: format!("{request:?}") })
    }
}

impl ObjectAnswer {
    /// Returns the status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.answer.status()
    }

    /// Returns a header.
    #[must_use]
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.answer.header(name)
    }

    /// Returns the next bytes of the body, `None` at its end.
    ///
    /// # Errors
    /// `Unavailable` when the connection breaks before the end; `Timeout` when nothing comes any more.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        self.answer.chunk().await.map_err(|fault| fault.into_error().context(&self.shown))
    }

    /// Reads the whole body.
    ///
    /// # Errors
    /// `Corrupt` when it is longer than `limit` bytes; as [`Self::chunk`].
    pub async fn read(self, limit: usize) -> Result<Bytes> {
        let Self { answer, shown } = self;
        answer.read(limit).await.map_err(|fault| fault.into_error().context(shown))
    }

    /// Makes an error of an answer that refuses.
    pub async fn refused(self) -> Error {
        let status = self.answer.status();
        let kind = match Kind::from_http(status.as_u16()) {
            Kind::Internal | Kind::NotModified => Kind::Unavailable,
            kind => kind,
        };
        let shown = self.shown.clone();
        let words = self.read(MAX_REFUSAL).await.unwrap_or_default();
        let words = printable(String::from_utf8_lossy(&words).trim());
        let words: String = words.chars().take(300).collect();
        Error::new(kind, format!("{shown}: it answers {status} {words}"))
    }
}
