//! Credentials for a registry, in the shapes docker stores and sends them.
//!
//! Nothing here prints a secret: [`Secret`] has no `Display`, and its `Debug` shows nothing.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result, ResultExt as _};

/// A password or token. It does not show up in logs by accident: reading it takes a call of [`Secret::expose`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// Returns the secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What proves to a registry who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A user's name and password (or personal access token).
    Password {
        /// The user's name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token, which the registry's token service exchanges for short-lived ones. Docker calls it identity token.
    IdentityToken {
        /// The user's name, empty when it is not known.
        username: String,
        /// The refresh token.
        token: Secret,
    },
    /// A bearer token that is sent to the registry as it is.
    RegistryToken(Secret),
}

/// The user name that marks the secret as an identity token, by the convention of docker's credential helpers.
pub(super) const TOKEN_USER: &str = "<token>";

impl Credentials {
    /// Makes credentials of a user's name and password.
    #[must_use]
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Password { username: username.into(), password: Secret::new(password) }
    }

    /// Makes credentials of the pair that credential helpers and BuildKit sessions hand out: no user, or the user
    /// `<token>`, means that the secret is an identity token. Two empty texts are no credentials.
    #[must_use]
    pub fn from_pair(username: &str, secret: &str) -> Option<Self> {
        match (username, secret) {
            ("", "") => None,
            ("" | TOKEN_USER, token) => {
                Some(Self::IdentityToken { username: String::new(), token: Secret::new(token) })
            }
            (username, password) => Some(Self::password(username, password)),
        }
    }

    /// Returns the pair that [`Credentials::from_pair`] reads; `None` for a registry token, which has no such form.
    #[must_use]
    pub fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Password { username, password } => Some((username, password.expose())),
            Self::IdentityToken { token, .. } => Some(("", token.expose())),
            Self::RegistryToken(_) => None,
        }
    }

    /// Returns the user's name, or an empty text when the credentials tell none.
    #[must_use]
    pub fn username(&self) -> &str {
        match self {
            Self::Password { username, .. } | Self::IdentityToken { username, .. } => username,
            Self::RegistryToken(_) => "",
        }
    }
}

/// An `AuthConfig`: one entry of `auths` in docker's configuration file, the decoded `X-Registry-Auth` header and the body
/// of `POST /auth` of the Engine API.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct AuthConfig {
    /// The user's name.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// The password.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// Base64 of `username:password`.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub auth: String,
    /// The registry, as the client wrote it.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub serveraddress: String,
    /// A refresh token.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub identitytoken: String,
    /// A bearer token.
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub registrytoken: String,
}

/// Reads `null` as an empty text, as Go does.
fn null_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

impl AuthConfig {
    /// Returns the credentials it holds, if any. Tokens win over a password, as in docker.
    ///
    /// # Errors
    /// `InvalidArgument` when `auth` is not base64 of `username:password`.
    pub fn credentials(&self) -> Result<Option<Credentials>> {
        let (username, password) = if self.auth.is_empty() {
            (self.username.clone(), self.password.clone())
        } else {
            decode_auth(&self.auth)?
        };
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credentials::RegistryToken(Secret::new(&self.registrytoken))));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::IdentityToken { username, token: Secret::new(&self.identitytoken) }));
        }
        Ok(Credentials::from_pair(&username, &password))
    }

    /// Makes the form that requests of the Engine API carry.
    #[must_use]
    pub fn for_request(server: &str, credentials: &Credentials) -> Self {
        let mut auth = Self { serveraddress: server.to_owned(), ..Self::default() };
        credentials.username().clone_into(&mut auth.username);
        match credentials {
            Credentials::Password { password, .. } => password.expose().clone_into(&mut auth.password),
            Credentials::IdentityToken { token, .. } => token.expose().clone_into(&mut auth.identitytoken),
            Credentials::RegistryToken(token) => token.expose().clone_into(&mut auth.registrytoken),
        }
        auth
    }

    /// Makes the form that docker's configuration file stores.
    #[must_use]
    pub(super) fn for_file(credentials: &Credentials) -> Self {
        let mut entry = Self::for_request("", credentials);
        if !(entry.username.is_empty() && entry.password.is_empty()) {
            entry.auth = STANDARD.encode(format!("{}:{}", entry.username, entry.password));
        }
        entry.username.clear();
        entry.password.clear();
        entry
    }
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig").field("serveraddress", &self.serveraddress).finish_non_exhaustive()
    }
}

fn decode_auth(auth: &str) -> Result<(String, String)> {
    let invalid = || Error::invalid("`auth` is not base64 of username:password");
    let bytes = STANDARD.decode(auth.trim()).map_err(|_| invalid())?;
    let text = String::from_utf8(bytes).map_err(|_| invalid())?;
    let (username, password) = text.split_once(':').ok_or_else(invalid)?;
    // Old docker versions padded the password with NULs.
    Ok((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// Reads one [`AuthConfig`] out of JSON and returns the credentials it holds.
///
/// # Errors
/// `InvalidArgument` when it is not one.
pub(super) fn read_entry(value: &serde_json::Value) -> Result<Option<Credentials>> {
    // Not the parser's own error, which would quote the text, secrets and all.
    let invalid = || Error::invalid("the entry is not an object of texts");
    let entry = if value.is_object() { AuthConfig::deserialize(value).ok() } else { None };
    entry.ok_or_else(invalid).and_then(|entry| entry.credentials()).context(|| "read stored credentials")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        let credentials = Credentials::password("user", "hunter2");
        let auth = AuthConfig::for_request("example.com", &credentials);
        assert!(!format!("{credentials:?} {auth:?}").contains("hunter2"));
    }

    #[test]
    fn a_stored_entry_reads_back() {
        for credentials in [
            Credentials::password("user", "pass:with:colons"),
            Credentials::IdentityToken { username: "user".to_owned(), token: Secret::new("t") },
            Credentials::RegistryToken(Secret::new("t")),
        ] {
            let entry = serde_json::to_value(AuthConfig::for_file(&credentials)).unwrap();
            assert_eq!(read_entry(&entry).unwrap(), Some(credentials));
        }
    }

    #[test]
    fn pairs_without_a_user_are_identity_tokens() {
        let token = Some(Credentials::IdentityToken { username: String::new(), token: Secret::new("t") });
        assert_eq!(Credentials::from_pair("<token>", "t"), token);
        assert_eq!(Credentials::from_pair("", "t"), token);
        assert_eq!(Credentials::from_pair("", ""), None);
        assert_eq!(token.as_ref().and_then(Credentials::pair), Some(("", "t")));
        assert_eq!(Credentials::password("u", "p").pair(), Some(("u", "p")));
    }

    #[test]
    fn malformed_entries_are_refused_without_their_secret() {
        for entry in [r#"{"auth": "hunter2"}"#, r#"{"auth": "aHVudGVyMg=="}"#, r#"{"auth": 7}"#, r#"["hunter2"]"#] {
            let value = serde_json::from_str(entry).unwrap();
            let error = read_entry(&value).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let empty = serde_json::json!({"username": null, "identitytoken": null, "email": null});
        assert_eq!(read_entry(&empty).unwrap(), None);
    }
}
