//! Checking credentials, for `login` and `POST /auth` of the Engine API.

use http::header::AUTHORIZATION;
use http::{HeaderValue, Method, StatusCode};

use super::auth::{basic, bearer, name_of, offline_token};
use super::endpoint::Endpoint;
use super::refusal::Refusal;
use super::retry::Fault;
use super::transport::{Answer, Request};
use super::{Client, Credentials, Secret};
use crate::config::domain_of;
use crate::error::{Error, Kind, Result};

/// What came of a login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedIn {
    /// A refresh token to keep instead of the password, where the registry gives one.
    pub identity_token: Option<Secret>,
}

impl Client {
    /// Checks credentials with a registry; the session's own are not used. `server` may be written as docker does, as in
    /// `https://index.docker.io/v1/`.
    ///
    /// # Errors
    /// `Unauthorized` when the registry refuses them; `Unavailable` and `Timeout` when it does not answer.
    pub async fn check_login(&self, server: &str, credentials: &Credentials) -> Result<LoggedIn> {
        let endpoint = Endpoint::of_domain(&self.shared.registries, domain_of(server), "");
        self.retrying(|| self.try_login(&endpoint, credentials)).await
    }

    async fn try_login(&self, endpoint: &Endpoint, credentials: &Credentials) -> Result<LoggedIn, Fault> {
        let doing = || format!("log in to {}", endpoint.name);
        let transport = &self.shared.transport;
        let request = Request::new(Method::GET, endpoint.base()?);
        let answer = transport.send(&request).await.map_err(|fault| fault.context(doing()))?;
        match answer.status() {
            // Nobody needs to log in here.
            StatusCode::OK => return Ok(LoggedIn::default()),
            StatusCode::UNAUTHORIZED => {}
            status => {
                let refusal = Refusal::read(answer).await;
                let error = Error::unavailable(format!("{}: {refusal} (is it a registry?)", doing()));
                return Err(if status.is_server_error() { Fault::passing(error) } else { error.into() });
            }
        }
        let (header, identity_token) = self.prove(endpoint, &answer, credentials).await?;
        let request = request.header(AUTHORIZATION, header);
        let answer = transport.send(&request).await.map_err(|fault| fault.context(doing()))?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(LoggedIn { identity_token });
        }
        let refusal = Refusal::read(answer).await;
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let (server, user) = (&endpoint.name, name_of(credentials));
            return Err(Error::unauthorized(format!("{server} refused {user}: {}", refusal.words())).into());
        }
        Err(Fault::passing(Error::unavailable(format!("{}: {refusal}", doing()))))
    }

    /// Makes the header the server asks for, and a refresh token if it gives one.
    async fn prove(
        &self,
        endpoint: &Endpoint,
        answer: &Answer,
        credentials: &Credentials,
    ) -> Result<(HeaderValue, Option<Secret>), Fault> {
        if let Credentials::RegistryToken(token) = credentials {
            return Ok((bearer(token.expose())?, None));
        }
        match offline_token(&self.shared.transport, endpoint, answer, credentials).await {
            Ok(Some((header, issued))) => {
                let refresh = Some(issued.refresh_token).filter(|token| !token.is_empty());
                Ok((header, refresh.map(Secret::new)))
            }
            Ok(None) => match credentials {
                Credentials::Password { username, password } => Ok((basic(username, password), None)),
                _ => Err(Error::unauthorized(format!("{} wants a user's name and a password", endpoint.name)).into()),
            },
            Err(fault) if fault.kind() == Kind::Unauthorized => Err(fault),
            Err(fault) => Err(fault.context(format!("log in to {}", endpoint.name))),
        }
    }
}
