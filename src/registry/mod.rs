//! The distribution client: resolving names, fetching and pushing manifests and blobs, logging in.
//!
//! Speaks the OCI distribution specification 1.1 and what Docker's registries add to it. Bytes go to a [`BlobSink`] and come
//! from a reader, both the caller's: how content is kept is not known here. Unpacking, choosing a platform and which blobs an
//! image consists of are the business of `image`.
//!
//! A [`Client`] is shared by the whole engine: it keeps connections. A [`Client::session`] is one user's view of it, with its
//! own credentials and tokens.

mod auth;
mod challenge;
mod download;
mod endpoint;
mod fetch;
mod login;
mod manifest;
mod object;
mod referrers;
mod refusal;
mod retry;
mod scope;
mod tags;
mod tls;
mod transport;
mod upload;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::{AUTHORIZATION, WARNING};
use http::{HeaderValue, StatusCode};
use kiln_graph::Reference;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use crate::config::{AuthConfig, Aws, AwsCredentials, Credentials, Registries, Secret, domain_of};
pub use auth::{Granted, Provider, TokenQuestion};
pub use download::BlobSink;
pub use fetch::{File, FileHead, FileRequest};
pub use login::LoggedIn;
pub use manifest::Resolved;
pub use object::{ObjectAnswer, ObjectRequest};
pub use retry::Patience;
pub use upload::Pushed;

use crate::config::Scheme;
use crate::error::{Error, Kind, Result};
use auth::Logins;
use endpoint::Endpoint;
use refusal::{Refusal, printable};
use retry::{Attempts, Fault, retry_after};
use scope::Scopes;
use transport::{Answer, Request, Transport};

/// How long a mirror that failed is left alone.
const MIRROR_REST: Duration = Duration::from_mins(1);

/// Different warnings of registries that one session passes on.
const MAX_WARNINGS: usize = 16;

/// Talks to registries. Cloning gives another handle to the same session.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    session: Arc<Session>,
}

/// What all sessions have in common.
#[derive(Debug)]
struct Shared {
    registries: Arc<Registries>,
    patience: Patience,
    transport: Transport,
    downloads: Limits,
    uploads: Limits,
}

/// What belongs to one user's work.
#[derive(Debug)]
struct Session {
    logins: Logins,
    notes: Notes,
    /// Mirrors that failed, and until when they are left alone.
    resting: Mutex<HashMap<String, Instant>>,
    /// Warnings of registries that were passed on.
    warnings: Mutex<HashSet<String>>,
}

impl Client {
    /// Makes a client without credentials. Nothing is opened before the first request.
    #[must_use]
    pub fn new(registries: Registries) -> Self {
        Self::with_patience(registries, Patience::default())
    }

    /// Makes a client that waits as given.
    #[must_use]
    pub fn with_patience(registries: Registries, patience: Patience) -> Self {
        let registries = Arc::new(registries);
        let shared = Shared {
            patience,
            transport: Transport::new(Arc::clone(&registries), patience),
            downloads: Limits::new(registries.transfer.downloads),
            uploads: Limits::new(registries.transfer.uploads),
            registries,
        };
        Self { shared: Arc::new(shared), session: Arc::new(Session::new(Provider::anonymous(), Notes::none())) }
    }

    /// Returns a client with the same connections and limits, and credentials and tokens of its own, for one user's piece of
    /// work. Credentials are asked for once, so a session should not outlive that.
    #[must_use]
    pub fn session(&self, credentials: Provider, notes: Notes) -> Self {
        Self { shared: Arc::clone(&self.shared), session: Arc::new(Session::new(credentials, notes)) }
    }

    /// Returns the same client for whoever takes the registry of a reference as it is: with any certificate, or without TLS where
    /// it has none. Asks it once.
    pub async fn insecure(&self, reference: &Reference) -> Self {
        let with = |http| {
            let mut registries = (*self.shared.registries).clone();
            let host = registries.host_mut(reference.domain());
            (host.insecure, host.http) = (Some(true), Some(http));
            let client = Self::with_patience(registries, self.shared.patience);
            Self { session: Arc::clone(&self.session), ..client }
        };
        let tls = with(false);
        match tls.has_manifest(reference).await {
            Err(error) if error.kind() == Kind::Unavailable => with(true),
            _ => tls,
        }
    }

    fn registry(&self, reference: &Reference) -> Endpoint {
        Endpoint::registry(&self.shared.registries, reference)
    }

    /// Returns the mirrors to try before the registry: those configured that did not fail lately.
    fn mirrors(&self, reference: &Reference) -> Vec<Endpoint> {
        let mut mirrors = Endpoint::mirrors(&self.shared.registries, reference);
        if !mirrors.is_empty() {
            let now = Instant::now();
            let mut resting = self.session.resting();
            resting.retain(|_, until| *until > now);
            mirrors.retain(|mirror| !resting.contains_key(&mirror.name));
        }
        mirrors
    }

    /// Goes on without a mirror; one that is in trouble itself, rather than without the image, is left alone for a while.
    fn skip(&self, mirror: &Endpoint, error: &Error) {
        self.session.notes.say(&format!("mirror {} is skipped: {error}", mirror.name));
        if error.kind() != Kind::NotFound {
            self.session.resting().insert(mirror.name.clone(), Instant::now() + MIRROR_REST);
        }
    }

    /// Returns where credentials for AWS are.
    #[must_use]
    pub fn aws(&self) -> &Aws {
        &self.shared.registries.aws
    }

    fn attempts(&self) -> Attempts {
        Attempts::new(self.shared.patience, self.shared.registries.transfer.attempts)
    }

    /// Tries something until it is done or fails for good.
    async fn retrying<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        self.retrying_with(self.attempts(), attempt).await
    }

    async fn retrying_with<T, F>(&self, mut attempts: Attempts, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(fault) => attempts.pause(fault, &self.session.notes).await?,
            }
        }
    }

    /// Sends a request once, or twice when the server wants to know who asks. Answers that mean the same everywhere are
    /// faults: not allowed, too busy, broken.
    async fn call(&self, endpoint: &Endpoint, access: &Access<'_>, request: &Request) -> Result<Answer, Fault> {
        let sent = self.authorize(endpoint, access).await?;
        let mut answer = self.send(endpoint, access, request, sent.as_ref()).await?;
        if let Some(better) = self.challenged(endpoint, access, &answer, sent.as_ref()).await? {
            answer = self.send(endpoint, access, request, Some(&better)).await?;
        }
        self.session.pass_on_warnings(endpoint, &answer);
        self.judge(endpoint, access, answer).await
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        access: &Access<'_>,
        request: &Request,
        login: Option<&HeaderValue>,
    ) -> Result<Answer, Fault> {
        let request = with_login(request.clone(), endpoint, login);
        self.shared.transport.send(&request).await.map_err(|fault| fault.context(access))
    }

    /// Returns the `Authorization` header to send without being asked.
    async fn authorize(&self, endpoint: &Endpoint, access: &Access<'_>) -> Result<Option<HeaderValue>, Fault> {
        let header = self.session.logins.header(&self.shared.transport, endpoint, &access.scopes).await;
        self.or_denied(endpoint, access, header).await
    }

    /// Returns the header to answer a challenge with, if the answer is one and there is something better to send.
    async fn challenged(
        &self,
        endpoint: &Endpoint,
        access: &Access<'_>,
        answer: &Answer,
        sent: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Fault> {
        if answer.status() != StatusCode::UNAUTHORIZED || !endpoint.is_origin_of(answer.url()) {
            return Ok(None);
        }
        let (logins, transport) = (&self.session.logins, &self.shared.transport);
        let header = logins.challenged(transport, endpoint, &access.scopes, answer, sent).await;
        self.or_denied(endpoint, access, header).await
    }

    /// A token service that refuses an anonymous user refuses the image.
    async fn or_denied<T>(
        &self,
        endpoint: &Endpoint,
        access: &Access<'_>,
        result: Result<T, Fault>,
    ) -> Result<T, Fault> {
        let fault = match result {
            Err(fault) if fault.kind() == Kind::Unauthorized => fault,
            other => return other.map_err(|fault| fault.context(access)),
        };
        let identity = self.session.logins.identity(endpoint).await;
        let refused = fault.into_error();
        Err(match identity.credentials {
            Some(_) => Error::unauthorized(format!("{refused} (log in again with `kiln login {}`)", endpoint.name)),
            None => access.denied(endpoint, &identity, &refused.to_string()),
        }
        .into())
    }

    async fn judge(&self, endpoint: &Endpoint, access: &Access<'_>, answer: Answer) -> Result<Answer, Fault> {
        let wait = retry_after(answer.headers());
        let passing = |text: String| Err(Fault::after(Error::unavailable(format!("{access}: {text}")), wait));
        match answer.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if endpoint.is_origin_of(answer.url()) => {
                let refusal = Refusal::read(answer).await;
                let identity = self.session.logins.identity(endpoint).await;
                Err(access.denied(endpoint, &identity, &refusal.words()).into())
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let refusal = Refusal::read(answer).await;
                let identity = self.session.logins.identity(endpoint).await;
                let login = format!(" (who is logged in may do more: `kiln login {}`)", endpoint.name);
                passing(format!("{refusal}{}", if identity.credentials.is_none() { login } else { String::new() }))
            }
            // Storage behind a registry refuses addresses whose signature is too old; the registry signs new ones.
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => passing(Refusal::read(answer).await.to_string()),
            _ => Ok(answer),
        }
    }
}

impl Session {
    fn new(credentials: Provider, notes: Notes) -> Self {
        Self { logins: Logins::new(credentials), notes, resting: Mutex::default(), warnings: Mutex::default() }
    }

    /// Passes on what a registry wants its users to know (distribution spec, "Warnings"), each warning once.
    fn pass_on_warnings(&self, endpoint: &Endpoint, answer: &Answer) {
        for warning in answer.headers().get_all(WARNING) {
            let text = warning.to_str().ok().and_then(|text| text.strip_prefix("299 - \"")?.strip_suffix('"'));
            let Some(text) = text else { continue };
            let remark = format!("registry {} warns: {}", endpoint.name, printable(&text.replace("\\\"", "\"")));
            let mut seen = self.warnings.lock().expect("no panic happens while the lock is held");
            if seen.len() < MAX_WARNINGS && seen.insert(remark.clone()) {
                drop(seen);
                self.notes.say(&remark);
            }
        }
    }

    fn resting(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.resting.lock().expect("no panic happens while the lock is held")
    }
}

/// Adds the proof of who asks, unless the request goes elsewhere: a registry may name any address for an upload.
fn with_login(mut request: Request, endpoint: &Endpoint, login: Option<&HeaderValue>) -> Request {
    if endpoint.is_origin_of(&request.url) {
        request.headers.extend(login.map(|login| (AUTHORIZATION, login.clone())));
    }
    request
}

/// Makes the error of an answer that nothing else is known about.
async fn unexpected(endpoint: &Endpoint, access: &Access<'_>, answer: Answer) -> Error {
    let kind =
        if answer.status().is_client_error() { Kind::from_http(answer.status().as_u16()) } else { Kind::Unavailable };
    // What servers that expect TLS answer to plain HTTP.
    let tls = answer.status() == StatusCode::BAD_REQUEST && endpoint.scheme == Scheme::Http;
    let refusal = Refusal::read(answer).await;
    let hint = if tls && !refusal.has_words() {
        format!(
            " (if {0} uses TLS, set `http = false` under [registry.\"{0}\"] in Kiln's configuration)",
            endpoint.name
        )
    } else {
        String::new()
    };
    Error::new(kind, format!("{access}: {refusal}{hint}"))
}

/// What a request is for: decides which token it gets and how a refusal is put.
#[derive(Debug)]
struct Access<'a> {
    /// What is being done, for example `fetch the manifest of`.
    doing: &'a str,
    reference: &'a Reference,
    right: Right,
    scopes: Scopes,
}

/// The right a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Pull,
    Push,
}

impl<'a> Access<'a> {
    fn pull(doing: &'a str, reference: &'a Reference, endpoint: &Endpoint) -> Self {
        Self { doing, reference, right: Right::Pull, scopes: Scopes::pull(&endpoint.repository) }
    }

    fn push(doing: &'a str, reference: &'a Reference, endpoint: &Endpoint) -> Self {
        Self { doing, reference, right: Right::Push, scopes: Scopes::push(&endpoint.repository) }
    }

    /// Makes the error of a refusal. That of a pull is `NotFound` and begins as docker's does, because registries hide
    /// whether a private repository exists, and clients read both.
    fn denied(&self, endpoint: &Endpoint, identity: &auth::Identity, words: &str) -> Error {
        let (repository, server) = (self.reference.familiar_repository(), &endpoint.name);
        let login = format!("`kiln login {server}`");
        let (kind, text) = match (self.right, identity.credentials.as_ref().map(auth::name_of)) {
            (Right::Pull, None) => (
                Kind::NotFound,
                format!("pull access denied for {repository}, repository does not exist or may require {login}"),
            ),
            (Right::Pull, Some(user)) => (
                Kind::NotFound,
                format!("pull access denied for {repository}, repository does not exist or {user} may not read it"),
            ),
            (Right::Push, None) => {
                (Kind::Unauthorized, format!("push access denied for {repository}, log in first with {login}"))
            }
            (Right::Push, Some(user)) => (
                Kind::Forbidden,
                format!("push access denied for {repository}, {user} may not write to it at {server}"),
            ),
        };
        let trouble = identity.trouble.as_ref();
        let trouble = trouble.map_or_else(String::new, |why| format!(" (stored credentials could not be read: {why})"));
        Error::new(kind, format!("{text}: {words}{trouble}"))
    }
}

impl fmt::Display for Access<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.doing, self.reference.familiar())
    }
}

/// Where remarks go that a user may want to see and that are no errors: a retry, a mirror that was skipped.
#[derive(Clone)]
pub struct Notes(Arc<dyn Fn(&str) + Send + Sync>);

impl Notes {
    /// Drops all remarks.
    #[must_use]
    pub fn none() -> Self {
        Self::to(|_| {})
    }

    /// Gives each remark, one line of text, to a function that must not block.
    #[must_use]
    pub fn to(show: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(show))
    }

    fn say(&self, remark: &str) {
        (self.0)(remark);
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Notes")
    }
}

/// How many bytes of one transfer are there, for whoever draws a bar. Cloning gives another handle to the same count.
///
/// Starts at what an earlier, interrupted download left, and may go back when a transfer starts anew.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Makes a count of zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the count.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets the count.
    pub fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

/// Limits what is under way at the same time, for each registry apart.
#[derive(Debug)]
struct Limits {
    most: usize,
    registries: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Limits {
    fn new(most: usize) -> Self {
        Self { most, registries: Mutex::default() }
    }

    /// Waits for a turn; it ends when the permit is dropped.
    async fn turn(&self, domain: &str) -> tokio::sync::OwnedSemaphorePermit {
        let semaphore = {
            let mut registries = self.registries.lock().expect("no panic happens while the lock is held");
            Arc::clone(registries.entry(domain.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.most))))
        };
        semaphore.acquire_owned().await.expect("the semaphore is never closed")
    }
}

#[cfg(test)]
pub(crate) mod tests;
