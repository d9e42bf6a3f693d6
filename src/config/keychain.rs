//! Docker's credential helpers: programs `docker-credential-<name>` that keep secrets in a keychain.
//!
//! The protocol: an action as the only argument, the server's name or a JSON object on standard input, JSON on standard
//! output; on failure the explanation is on standard output too.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::credentials::{Credentials, TOKEN_USER};
use crate::error::{Error, Kind, Result, ResultExt as _};

/// What a helper prints when it has nothing for a server. Every helper uses these words; there is no exit code for it.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// One helper, by the name in docker's configuration.
#[derive(Debug)]
pub(super) struct Keychain<'a> {
    pub(super) name: &'a str,
    /// Where programs are looked for, when not in this process's own `PATH`.
    pub(super) path: Option<OsString>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "ServerURL", default)]
    server: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl Keychain<'_> {
    fn program(&self) -> String {
        format!("docker-credential-{}", self.name)
    }

    /// Asks for the credentials of a server. Blocking, for as long as the helper waits for its user.
    pub(super) fn get(&self, server: &str) -> Result<Option<Credentials>> {
        let Some(output) = self.run("get", server)? else { return Ok(None) };
        // The parser's error would quote the secret.
        let entry: Entry = serde_json::from_slice(&output).map_err(|_| {
            Error::invalid(format!("{} answered `get` with something other than credentials", self.program()))
        })?;
        Ok(Credentials::from_pair(&entry.username, &entry.secret))
    }

    /// Stores credentials for a server, replacing earlier ones. Blocking.
    pub(super) fn store(&self, server: &str, credentials: &Credentials) -> Result<()> {
        let (username, secret) = match credentials {
            Credentials::Password { username, password } => (username.as_str(), password),
            Credentials::IdentityToken { token, .. } => (TOKEN_USER, token),
            Credentials::RegistryToken(_) => {
                return Err(Error::unsupported("credential helpers cannot keep a registry token"));
            }
        };
        let entry =
            Entry { server: server.to_owned(), username: username.to_owned(), secret: secret.expose().to_owned() };
        let input = serde_json::to_string(&entry).expect("an object of texts has a JSON form");
        self.run("store", &input).map(drop)
    }

    /// Forgets the credentials of a server; says whether there were any. Blocking.
    pub(super) fn erase(&self, server: &str) -> Result<bool> {
        Ok(self.run("erase", server)?.is_some())
    }

    /// Returns the servers it has credentials for. Blocking.
    pub(super) fn list(&self) -> Result<Vec<String>> {
        let Some(output) = self.run("list", "")? else { return Ok(Vec::new()) };
        let servers: std::collections::BTreeMap<String, serde::de::IgnoredAny> = serde_json::from_slice(&output)
            .map_err(|_| {
                Error::invalid(format!("{} answered `list` with something other than a list", self.program()))
            })?;
        Ok(servers.into_keys().collect())
    }

    /// Runs an action; `None` when the helper says it has nothing for the server.
    fn run(&self, action: &str, input: &str) -> Result<Option<Vec<u8>>> {
        let program = self.program();
        let doing = || format!("run the credential helper `{program} {action}`");
        let mut command = Command::new(&program);
        command.arg(action).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(format!(
                "credential helper `{program}` is not in PATH (docker's config.json names it in credsStore or credHelpers)"
            )),
            _ => Error::from(error).context(doing()),
        })?;
        let mut stdin = child.stdin.take().expect("standard input was piped");
        // A helper that fails early does not read its input; what it says counts, not the broken pipe.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().context(doing)?;
        if output.status.success() {
            return Ok(Some(output.stdout));
        }
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
        if stdout == NOT_FOUND {
            return Ok(None);
        }
        let text = [stdout, stderr].into_iter().find(|text| !text.is_empty());
        let text = text.unwrap_or_else(|| output.status.to_string());
        Err(Error::new(Kind::Internal, text).context(doing()))
    }
}
