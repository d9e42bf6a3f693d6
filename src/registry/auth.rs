//! Logins: from credentials and a challenge to an `Authorization` header.
//!
//! Sources: the distribution project's token authentication and its OAuth2 variant. Headers and secrets are never printed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;
use tokio::time::Instant;

use super::challenge::{self, Challenge};
use super::endpoint::Endpoint;
use super::refusal::Refusal;
use super::retry::{Fault, retry_after};
use super::scope::Scopes;
use super::transport::{Answer, Request, Transport, authority};
use crate::config::docker::DockerConfig;
use crate::config::{Credentials, Scheme, Secret, domain_of};
use crate::error::{Error, Result};
use crate::task;

/// More than any token needs.
const MAX_TOKEN_ANSWER: usize = 1 << 20;

/// How long a token lives when its service does not say.
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);

/// The name the client gives itself at token services.
const CLIENT_ID: &str = "kiln";

type Lookup = dyn Fn(String) -> BoxFuture<'static, Result<Option<Credentials>>> + Send + Sync;

type Fetch = dyn Fn(TokenQuestion) -> BoxFuture<'static, Result<Option<Granted>>> + Send + Sync;

/// Where credentials come from. Asked once per server and session, with the server's name as in image names (`docker.io`).
#[derive(Clone)]
pub struct Provider {
    credentials: Arc<Lookup>,
    /// Who fetches tokens himself; asked before credentials are.
    tokens: Option<Arc<Fetch>>,
}

/// A token that somebody fetches who does not hand out credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenQuestion {
    /// The server's name as in image names.
    pub domain: String,
    /// The address of the token service.
    pub realm: String,
    /// What the server is called there.
    pub service: String,
    /// What the token is to allow.
    pub scopes: Vec<String>,
    /// Whether the server has refused the last one.
    pub refused: bool,
}

/// A token that somebody fetched.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// The token.
    pub token: String,
    /// How long it lives, in seconds; 0 when nobody says.
    pub expires_in_s: u64,
}

impl fmt::Debug for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Granted")
    }
}

impl Provider {
    /// Nobody is logged in anywhere.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::of(|_| async { Ok(None) })
    }

    /// Credentials for one server, such as those of a request of the Engine API. `server` may be written as docker does
    /// (`https://index.docker.io/v1/`).
    #[must_use]
    pub fn one(server: &str, credentials: Credentials) -> Self {
        let domain = domain_of(server).to_owned();
        Self::of(move |asked| {
            let found = (asked == domain).then(|| credentials.clone());
            async { Ok(found) }
        })
    }

    /// Credentials from docker's configuration file and its credential helpers.
    #[must_use]
    pub fn docker(config: DockerConfig) -> Self {
        let config = Arc::new(config);
        Self::of(move |domain| {
            let config = Arc::clone(&config);
            task::blocking(move || config.credentials(&domain))
        })
    }

    /// Credentials from a function, such as a call to the session of a build's client.
    #[must_use]
    pub fn of<F>(lookup: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Option<Credentials>>> + Send + 'static,
    {
        Self { credentials: Arc::new(move |domain| Box::pin(lookup(domain))), tokens: None }
    }

    /// Asks for tokens first; credentials are asked for where `None` comes back.
    #[must_use]
    pub fn with_tokens<F>(self, fetch: impl Fn(TokenQuestion) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Option<Granted>>> + Send + 'static,
    {
        Self { tokens: Some(Arc::new(move |question| Box::pin(fetch(question)))), ..self }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Provider")
    }
}

/// The logins of one session, by server.
#[derive(Debug)]
pub(super) struct Logins {
    provider: Provider,
    servers: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Login>>>>,
}

/// What is known about logging in to one server. Its lock is held while a token is fetched, so that parallel requests share
/// the token instead of each fetching one.
#[derive(Debug, Default)]
struct Login {
    identity: Option<Identity>,
    wanted: Option<Wanted>,
    tokens: BTreeMap<Scopes, Token>,
    /// Whether the server has refused the last token.
    refused: bool,
}

/// Who asks, and why nobody does when the credentials could not be had: then the request is tried without, for most images
/// are public, and only a refusal brings the trouble up.
#[derive(Clone, Debug, Default)]
pub(super) struct Identity {
    pub(super) credentials: Option<Credentials>,
    pub(super) trouble: Option<String>,
}

/// What the server asked for when it was last asked.
#[derive(Clone, Debug)]
enum Wanted {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

#[derive(Debug)]
struct Token {
    header: HeaderValue,
    renew_at: Instant,
}

/// An answer of a token service.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Issued {
    token: String,
    access_token: String,
    expires_in: u64,
    pub(super) refresh_token: String,
}

impl Logins {
    pub(super) fn new(provider: Provider) -> Self {
        Self { provider, servers: Mutex::default() }
    }

    fn login(&self, endpoint: &Endpoint) -> Arc<tokio::sync::Mutex<Login>> {
        let mut servers = self.servers.lock().expect("no panic happens while the lock is held");
        Arc::clone(servers.entry(endpoint.name.clone()).or_default())
    }

    /// Returns the header for a request, or `None` for a server that has not asked for one yet.
    pub(super) async fn header(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        scopes: &Scopes,
    ) -> Result<Option<HeaderValue>, Fault> {
        let login = self.login(endpoint);
        let mut login = login.lock().await;
        match &login.wanted {
            None => Ok(None),
            Some(_) => self.answer(&mut login, transport, endpoint, scopes, scopes).await,
        }
    }

    /// Returns the header a server wants that answered 401 to a request with the header `sent`, or `None` when there is
    /// nothing better to send.
    pub(super) async fn challenged(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        scopes: &Scopes,
        answer: &Answer,
        sent: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Fault> {
        let login = self.login(endpoint);
        let mut login = login.lock().await;
        let Some((wanted, asked)) = choose(&challenges(answer), endpoint)? else { return Ok(None) };
        login.wanted = Some(wanted);
        if login.tokens.get(scopes).is_some_and(|token| Some(&token.header) == sent) {
            login.tokens.remove(scopes);
            login.refused = true;
        }
        let all = scopes.clone().and(&asked);
        let header = self.answer(&mut login, transport, endpoint, scopes, &all).await?;
        Ok(header.filter(|header| Some(header) != sent))
    }

    /// Returns who asks a server.
    pub(super) async fn identity(&self, endpoint: &Endpoint) -> Identity {
        let login = self.login(endpoint);
        let mut login = login.lock().await;
        self.identify(&mut login, endpoint).await
    }

    async fn identify(&self, login: &mut Login, endpoint: &Endpoint) -> Identity {
        if login.identity.is_none() {
            login.identity = Some(match (self.provider.credentials)(endpoint.name.clone()).await {
                Ok(credentials) => Identity { credentials, trouble: None },
                Err(error) => Identity { credentials: None, trouble: Some(error.to_string()) },
            });
        }
        login.identity.clone().unwrap_or_default()
    }

    /// Makes the header: the token cached under `scopes`, else a new one for `request`, which may be more.
    async fn answer(
        &self,
        login: &mut Login,
        transport: &Transport,
        endpoint: &Endpoint,
        scopes: &Scopes,
        request: &Scopes,
    ) -> Result<Option<HeaderValue>, Fault> {
        if let Some(header) = self.granted(login, endpoint, scopes, request).await? {
            return Ok(Some(header));
        }
        let credentials = self.identify(login, endpoint).await.credentials;
        let (realm, service) = match (&login.wanted, &credentials) {
            (_, Some(Credentials::RegistryToken(token))) => return Ok(Some(bearer(token.expose())?)),
            (Some(Wanted::Basic), Some(Credentials::Password { username, password })) => {
                return Ok(Some(basic(username, password)));
            }
            (Some(Wanted::Bearer { realm, service }), _) => (realm.clone(), service.clone()),
            _ => return Ok(None),
        };
        let now = Instant::now();
        login.tokens.retain(|_, token| token.renew_at > now);
        if let Some(token) = login.tokens.get(scopes) {
            return Ok(Some(token.header.clone()));
        }
        let asked = TokenRequest { realm: &realm, service: service.as_deref(), scopes: request, offline: false };
        let issued = asked.fetch(transport, endpoint, credentials.as_ref()).await?;
        let header = issued.header(&realm)?;
        let token = Token { header: header.clone(), renew_at: now + issued.useful_for() };
        login.tokens.insert(scopes.clone(), token);
        Ok(Some(header))
    }
}

impl Logins {
    /// Makes the header of a token that somebody else fetches; `None` when nobody does for this server.
    async fn granted(
        &self,
        login: &mut Login,
        endpoint: &Endpoint,
        scopes: &Scopes,
        request: &Scopes,
    ) -> Result<Option<HeaderValue>> {
        let (Some(fetch), Some(Wanted::Bearer { realm, service })) = (&self.provider.tokens, &login.wanted) else {
            return Ok(None);
        };
        let now = Instant::now();
        login.tokens.retain(|_, token| token.renew_at > now);
        if let Some(token) = login.tokens.get(scopes) {
            return Ok(Some(token.header.clone()));
        }
        let question = TokenQuestion {
            domain: endpoint.name.clone(),
            realm: realm.to_string(),
            service: service.clone().unwrap_or_default(),
            scopes: request.words().collect(),
            refused: std::mem::take(&mut login.refused),
        };
        let Some(Granted { token, expires_in_s }) = fetch(question).await? else { return Ok(None) };
        let header = bearer(&token)?;
        let issued = Issued { expires_in: expires_in_s, ..Issued::default() };
        let token = Token { header: header.clone(), renew_at: now + issued.useful_for() };
        login.tokens.insert(scopes.clone(), token);
        Ok(Some(header))
    }
}

/// Asks a server's token service for a token that outlives this session, as `login` does. `None` when the server does not
/// work with tokens: then `Basic` authentication is what it wants, or nothing.
pub(super) async fn offline_token(
    transport: &Transport,
    endpoint: &Endpoint,
    answer: &Answer,
    credentials: &Credentials,
) -> Result<Option<(HeaderValue, Issued)>, Fault> {
    let Some((Wanted::Bearer { realm, service }, scopes)) = choose(&challenges(answer), endpoint)? else {
        return Ok(None);
    };
    let asked = TokenRequest { realm: &realm, service: service.as_deref(), scopes: &scopes, offline: true };
    let issued = asked.fetch(transport, endpoint, Some(credentials)).await?;
    Ok(Some((issued.header(&realm)?, issued)))
}

fn challenges(answer: &Answer) -> Vec<Challenge> {
    let lines = answer.headers().get_all(WWW_AUTHENTICATE);
    challenge::parse(lines.iter().filter_map(|line| line.to_str().ok()))
}

/// Picks the challenge to meet, tokens before passwords, and returns the scopes it names.
fn choose(challenges: &[Challenge], endpoint: &Endpoint) -> Result<Option<(Wanted, Scopes)>> {
    let bearer = challenges.iter().find_map(|challenge| match challenge {
        Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
        Challenge::Basic => None,
    });
    match bearer {
        Some((realm, service, scope)) => {
            let realm = check_realm(realm, endpoint)?;
            let scopes = Scopes::parse(scope.as_deref().unwrap_or_default());
            Ok(Some((Wanted::Bearer { realm, service: service.clone() }, scopes)))
        }
        None if challenges.contains(&Challenge::Basic) => Ok(Some((Wanted::Basic, Scopes::default()))),
        None => Ok(None),
    }
}

/// Checks the address of a token service, which gets the credentials: a registry that is reached by TLS must not have them
/// sent in the clear.
fn check_realm(realm: &str, endpoint: &Endpoint) -> Result<Url> {
    let refused = |why: &str| Error::unavailable(format!("registry {} names a token service {why}", endpoint.name));
    let url = Url::parse(realm).map_err(|_| refused("whose address is none"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if endpoint.scheme == Scheme::Http => Ok(url),
        "http" => Err(refused(&format!("at {}, which does not use TLS; it gets no credentials", authority(&url)))),
        other => Err(refused(&format!("with an address of the scheme `{other}`"))),
    }
}

/// What is asked of a token service.
struct TokenRequest<'a> {
    realm: &'a Url,
    service: Option<&'a str>,
    scopes: &'a Scopes,
    /// Whether a refresh token is wanted too.
    offline: bool,
}

impl TokenRequest<'_> {
    async fn fetch(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        credentials: Option<&Credentials>,
    ) -> Result<Issued, Fault> {
        let request = match credentials {
            Some(Credentials::IdentityToken { token, .. }) => self.by_refresh_token(token),
            Some(Credentials::Password { username, password }) => {
                self.by_get(Some(username)).header(AUTHORIZATION, basic(username, password))
            }
            Some(Credentials::RegistryToken(_)) | None => self.by_get(None),
        };
        let answer = transport.send(&request).await?;
        let status = answer.status();
        if status.is_success() {
            let body = answer.read(MAX_TOKEN_ANSWER).await?;
            // The parser's own words would quote the token.
            let unusable = || self.useless("an answer that holds no token");
            return serde_json::from_slice(&body).map_err(|_| unusable().into());
        }
        let wait = retry_after(answer.headers());
        let refusal = Refusal::read(answer).await;
        if !matches!(status.as_u16(), 400 | 401 | 403) {
            let error = Error::unavailable(format!("fetch a token: {refusal}"));
            let passes = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            return Err(if passes { Fault::after(error, wait) } else { error.into() });
        }
        let text = match credentials {
            Some(credentials) => format!("{} refused {}: {}", endpoint.name, name_of(credentials), refusal.words()),
            None => refusal.words(),
        };
        Err(Error::unauthorized(text).into())
    }

    fn by_get(&self, account: Option<&str>) -> Request {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            let scopes = self.scopes.words();
            let optional = [("service", self.service), ("account", account)];
            query.extend_pairs(optional.into_iter().filter_map(|(key, value)| Some((key, value?))));
            query.extend_pairs(scopes.map(|scope| ("scope", scope)));
            query.append_pair("client_id", CLIENT_ID);
            if self.offline {
                query.append_pair("offline_token", "true");
            }
        }
        Request::new(Method::GET, url)
    }

    fn by_refresh_token(&self, token: &Secret) -> Request {
        // The body is a form, which is written like a query.
        let mut form = Url::parse("form:").expect("the text is a URL");
        let pairs = [
            ("grant_type", "refresh_token"),
            ("service", self.service.unwrap_or_default()),
            ("client_id", CLIENT_ID),
            ("refresh_token", token.expose()),
            ("scope", &self.scopes.to_string()),
        ];
        form.query_pairs_mut().extend_pairs(pairs);
        let body = Bytes::copy_from_slice(form.query().unwrap_or_default().as_bytes());
        Request::new(Method::POST, self.realm.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
            .body(body)
    }

    fn useless(&self, what: &str) -> Error {
        Error::unavailable(format!("the token service {} sent {what}", authority(self.realm)))
    }
}

impl Issued {
    fn header(&self, realm: &Url) -> Result<HeaderValue> {
        let token = [&self.token, &self.access_token].into_iter().find(|token| !token.is_empty());
        let none = || Error::unavailable(format!("the token service {} sent no token", authority(realm)));
        bearer(token.ok_or_else(none)?)
    }

    /// How long to use the token: a little less than it lives, for clocks differ and requests travel.
    fn useful_for(&self) -> Duration {
        let lifetime = match self.expires_in {
            0 => DEFAULT_LIFETIME,
            seconds => Duration::from_secs(seconds.min(24 * 3600)),
        };
        lifetime - (lifetime / 5).min(Duration::from_secs(10))
    }
}

/// Names who shows credentials.
pub(super) fn name_of(credentials: &Credentials) -> String {
    match credentials.username() {
        "" => "the stored token".to_owned(),
        user => format!("user {user}"),
    }
}

pub(super) fn basic(username: &str, password: &Secret) -> HeaderValue {
    let text = format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.expose())));
    sensitive(&text).expect("base64 has a header form")
}

pub(super) fn bearer(token: &str) -> Result<HeaderValue> {
    sensitive(&format!("Bearer {token}")).ok_or_else(|| Error::invalid("the token has characters no token may have"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Registries;

    fn endpoint(domain: &str) -> Endpoint {
        Endpoint::of_domain(&Registries::default(), domain, "a")
    }

    #[test]
    fn a_token_service_without_tls_gets_no_credentials_of_a_registry_with_tls() {
        let error = check_realm("http://auth.example/token", &endpoint("r.example")).unwrap_err().to_string();
        assert!(error.contains("auth.example, which does not use TLS"), "{error}");
        assert!(check_realm("http://auth.example/token", &endpoint("localhost:5000")).is_ok());
        assert!(check_realm("https://auth.example/token", &endpoint("r.example")).is_ok());
        assert!(check_realm("file:///etc/passwd", &endpoint("localhost:5000")).is_err());
        assert!(check_realm("", &endpoint("localhost:5000")).is_err());
    }

    #[test]
    fn tokens_are_renewed_before_they_end() {
        for (seconds, useful) in [(0, 50), (300, 290), (10, 8), (u64::MAX, 24 * 3600 - 10)] {
            let issued = Issued { expires_in: seconds, ..Issued::default() };
            assert_eq!(issued.useful_for(), Duration::from_secs(useful), "{seconds}");
        }
    }

    #[test]
    fn a_token_request_says_what_it_wants() {
        let realm = Url::parse("https://auth.example/token?x=1").unwrap();
        let scopes = Scopes::push("b").and(&Scopes::pull("a/c"));
        let asked = TokenRequest { realm: &realm, service: Some("reg"), scopes: &scopes, offline: false };
        assert_eq!(
            asked.by_get(Some("me")).url.as_str(),
            "https://auth.example/token?x=1&service=reg&account=me&scope=repository%3Aa%2Fc%3Apull\
             &scope=repository%3Ab%3Apull%2Cpush&client_id=kiln"
        );
        let posted = asked.by_refresh_token(&Secret::new("t&s"));
        assert_eq!(
            posted.body.unwrap(),
            "grant_type=refresh_token&service=reg&client_id=kiln&refresh_token=t%26s\
             &scope=repository%3Aa%2Fc%3Apull+repository%3Ab%3Apull%2Cpush"
        );
    }

    #[test]
    fn headers_with_secrets_are_not_shown() {
        let header = basic("user", &Secret::new("hunter2"));
        assert_eq!(format!("{header:?}"), "Sensitive");
    }
}
