//! Files by HTTP that belong to no registry: what ADD names, and archives that are build contexts.
//!
//! Uses the client's connections, proxies and trust. Credentials are the caller's; what a file means, where it is kept and
//! whether it is still fresh is not known here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_DISPOSITION, ETAG, HeaderMap, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Url;

use super::retry::{Fault, retry_after};
use super::transport::{Answer, Request};
use super::{Client, transport};
use crate::config::Scheme;
use crate::error::{Error, Kind, Result};

/// A file to be fetched.
#[derive(Clone, Debug)]
pub struct FileRequest {
    url: Url,
    authorization: Option<HeaderValue>,
    /// The entity tag of what is here already: an unchanged file is answered with [`FileHead::unchanged`].
    pub known: Option<String>,
    /// Further headers.
    headers: HeaderMap,
}

/// What a server says about a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileHead {
    /// Whether it is what [`FileRequest::known`] names.
    pub unchanged: bool,
    /// Its entity tag, as the server wrote it.
    pub etag: Option<String>,
    /// When it changed, as the server wrote it.
    pub modified: Option<String>,
    /// The name that the server proposes.
    pub name: Option<String>,
    /// How many bytes it has, if the server says so.
    pub size: Option<u64>,
}

/// A file that arrives.
#[derive(Debug)]
pub struct File {
    /// What the server said first.
    pub head: FileHead,
    answer: Answer,
    shown: String,
}

impl FileRequest {
    /// Reads an address. A user and a password in it become a header.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no address of HTTP.
    pub fn new(address: &str) -> Result<Self> {
        let invalid = |why: &str| Error::invalid(format!("{}: {why}", without_password(address)));
        let mut url = Url::parse(address).map_err(|error| invalid(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(invalid("it is no address of a file by HTTP"));
        }
        let mut authorization = None;
        if !url.username().is_empty() || url.password().is_some() {
            let pair = format!("{}:{}", url.username(), url.password().unwrap_or_default());
            let value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)));
            authorization = Some(value.map_err(|_| invalid("its password cannot be sent"))?);
            let stripped = url.set_username("").and_then(|()| url.set_password(None));
            stripped.map_err(|()| invalid("its password cannot be sent"))?;
        }
        url.set_fragment(None);
        Ok(Self { url, authorization, known: None, headers: HeaderMap::new() })
    }

    /// Sends this `Authorization` header.
    ///
    /// # Errors
    /// `InvalidArgument` for a value that cannot be sent; it is not repeated.
    pub fn authorize(&mut self, value: &str) -> Result<()> {
        let mut value = HeaderValue::try_from(value.trim())
            .map_err(|_| Error::invalid("the secret cannot be sent as a header: it contains line breaks"))?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(())
    }

    /// Sends a header.
    ///
    /// # Errors
    /// `InvalidArgument` for what cannot be sent.
    pub fn header(&mut self, name: &str, value: &str) -> Result<()> {
        let invalid = || Error::invalid(format!("{name:?}: {value:?} cannot be sent as a header"));
        let name = HeaderName::try_from(name).map_err(|_| invalid())?;
        self.headers.insert(name, HeaderValue::try_from(value).map_err(|_| invalid())?);
        Ok(())
    }

    /// Returns host and port, as far as the address names a port.
    #[must_use]
    pub fn host(&self) -> String {
        transport::authority(&self.url)
    }

    /// Returns the path of the address, with its escapes.
    #[must_use]
    pub fn path(&self) -> &str {
        self.url.path()
    }

    /// Returns the address without credentials.
    #[must_use]
    pub fn shown(&self) -> String {
        self.url.to_string()
    }

    /// Returns the `Authorization` header that is sent.
    #[must_use]
    pub fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }

    fn request(&self, method: Method) -> Request {
        let mut headers = self.headers.clone();
        headers.extend(self.authorization.clone().map(|value| (AUTHORIZATION, value)));
        let known = self.known.as_ref().and_then(|etag| HeaderValue::try_from(etag).ok());
        headers.extend(known.map(|value| (IF_NONE_MATCH, value)));
        Request { headers, ..Request::new(method, self.url.clone()) }
    }
}

/// An address for messages: what could be a password is left out.
fn without_password(address: &str) -> String {
    match address.split_once("://").map(|(scheme, rest)| (scheme, rest.split_once('@'))) {
        Some((scheme, Some((user, rest)))) if !user.contains('/') => format!("{scheme}://{rest}"),
        _ => address.to_owned(),
    }
}

impl Client {
    /// Returns the proxy that requests for a file go through, if any.
    #[must_use]
    pub fn proxy_of(&self, request: &FileRequest) -> Option<String> {
        let scheme = if request.url.scheme() == "http" { Scheme::Http } else { Scheme::Https };
        let port = request.url.port_or_known_default().unwrap_or(scheme.default_port());
        self.shared.registries.proxies.lookup(scheme, request.url.host_str()?, port).map(str::to_owned)
    }

    /// Asks about a file without fetching it; `None` when the server does not answer such questions.
    ///
    /// # Errors
    /// As [`Client::file`].
    pub async fn file_head(&self, request: &FileRequest) -> Result<Option<FileHead>> {
        let sent = request.request(Method::HEAD);
        let answer = self.retrying(|| async {
            let answer = self.shared.transport.send(&sent).await?;
            passing(&answer, request).map_or(Ok(answer), Err)
        });
        let answer = answer.await.map_err(|error| error.context(format!("fetch {}", request.shown())))?;
        // Servers that know GET only say so in many ways; GET will tell what is wrong.
        let usable = answer.status().is_success() || answer.status() == StatusCode::NOT_MODIFIED;
        Ok(usable.then(|| head(&answer)))
    }

    /// Begins to fetch a file. Redirects are followed, a limited number of times.
    ///
    /// # Errors
    /// Each names the address, and the status if there was an answer: `NotFound`, `Unauthorized`, `Forbidden`, ..., `Unavailable`
    /// and `Timeout` when there was none, after some attempts.
    pub async fn file(&self, request: &FileRequest) -> Result<File> {
        let sent = request.request(Method::GET);
        let answer = self.retrying(|| async {
            let answer = self.shared.transport.send(&sent).await?;
            passing(&answer, request).map_or(Ok(answer), Err)
        });
        let shown = request.shown();
        let answer = answer.await.map_err(|error| error.context(format!("fetch {shown}")))?;
        let not_modified = answer.status() == StatusCode::NOT_MODIFIED && request.known.is_some();
        if !answer.status().is_success() && !not_modified {
            return Err(refused(answer.status(), request).context(format!("fetch {shown}")));
        }
        Ok(File { head: head(&answer), answer, shown })
    }
}

impl File {
    /// Returns the next bytes, `None` at the end.
    ///
    /// # Errors
    /// `Unavailable` when the connection breaks before the end; `Timeout` when nothing comes any more.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let broken = |fault: Fault| fault.into_error().context(format!("fetch {}", self.shown));
        self.answer.chunk().await.map_err(broken)
    }
}

fn head(answer: &Answer) -> FileHead {
    let text = |name| answer.header(name).map(str::to_owned);
    FileHead {
        unchanged: answer.status() == StatusCode::NOT_MODIFIED,
        etag: text(ETAG),
        modified: text(LAST_MODIFIED),
        name: answer.header(CONTENT_DISPOSITION).and_then(proposed_name),
        size: answer.announced_length(),
    }
}

/// The name in a `Content-Disposition`, without directories.
fn proposed_name(header: &str) -> Option<String> {
    let fields = header.split(';').filter_map(|field| field.trim().split_once('='));
    let value = fields.into_iter().find(|(key, _)| key.trim().eq_ignore_ascii_case("filename"))?.1.trim();
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    let name = value.rsplit(['/', '\\']).next().unwrap_or_default();
    (!matches!(name, "" | "." | "..")).then(|| name.to_owned())
}

/// Answers that may be another one a little later.
fn passing(answer: &Answer, request: &FileRequest) -> Option<Fault> {
    let passing = matches!(answer.status().as_u16(), 429 | 502 | 503 | 504);
    passing.then(|| Fault::after(refused(answer.status(), request), retry_after(answer.headers())))
}

fn refused(status: StatusCode, request: &FileRequest) -> Error {
    let kind = match Kind::from_http(status.as_u16()) {
        Kind::Internal | Kind::NotModified => Kind::Unavailable,
        kind => kind,
    };
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let host = request.host();
            format!(" (give a token with --secret id=HTTP_AUTH_TOKEN_{host}, or a header with HTTP_AUTH_HEADER_{host})")
        }
        _ => String::new(),
    };
    Error::new(kind, format!("invalid response status {status}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_servers_propose_are_single_components() {
        for (header, name) in [
            ("attachment; filename=\"a b.tar\"", Some("a b.tar")),
            ("attachment; filename=x.tgz", Some("x.tgz")),
            ("attachment; FileName=\"../../etc/passwd\"", Some("passwd")),
            ("attachment; filename=\"..\"", None),
            ("inline", None),
        ] {
            assert_eq!(proposed_name(header).as_deref(), name, "{header}");
        }
    }

    #[test]
    fn credentials_of_an_address_are_sent_and_never_shown() {
        let request = FileRequest::new("http://me:secret@example.com:8080/a?b#c").unwrap();
        assert_eq!(request.shown(), "http://example.com:8080/a?b");
        assert_eq!(request.host(), "example.com:8080");
        assert_eq!(request.authorization.unwrap(), "Basic bWU6c2VjcmV0");
        for address in ["ftp://me:secret@a/b", "http://me:secret@", "https://"] {
            let error = FileRequest::new(address).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
