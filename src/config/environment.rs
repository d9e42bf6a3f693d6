//! The environment variables Kiln reads, taken once at start so that everything below works on a value.
//!
//! Variables of the command line alone (`SOURCE_DATE_EPOCH`, `NO_COLOR`, ..) are not here.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Every variable that is looked at. Others are not even copied: they may hold secrets.
const NAMES: &[&str] = &[
    "ALL_PROXY",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_DEFAULT_PROFILE",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_ROLE_ARN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "DOCKER_CERT_PATH",
    "DOCKER_CONFIG",
    "DOCKER_HOST",
    "DOCKER_TLS_VERIFY",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "KILN_CONFIG",
    "KILN_HOST",
    "KILN_ROOT",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "NO_PROXY",
    "PATH",
    "REGISTRY_AUTH_FILE",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Whose defaults apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// The system's: `/var/lib/kiln`, `/etc/kiln`.
    Root,
    /// Those of a home directory.
    Ordinary,
}

/// A snapshot of the process's environment. Empty variables count as unset.
#[derive(Clone)]
pub struct Environment {
    variables: BTreeMap<&'static str, OsString>,
    user: User,
}

impl Environment {
    /// Takes the snapshot of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let user = if rustix::process::geteuid().is_root() { User::Root } else { User::Ordinary };
        let variables = NAMES.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))).collect();
        Self { variables, user }
    }

    /// Makes a snapshot of given variables; names that Kiln does not read are left out.
    #[must_use]
    pub fn of(user: User, variables: &[(&str, &str)]) -> Self {
        let known = |name: &str| NAMES.iter().copied().find(|known| *known == name);
        let variables =
            variables.iter().filter_map(|(name, value)| Some((known(name)?, OsString::from(value)))).collect();
        Self { variables, user }
    }

    /// Returns whose defaults apply.
    #[must_use]
    pub fn user(&self) -> User {
        self.user
    }

    fn value(&self, name: &str) -> Option<&OsStr> {
        debug_assert!(NAMES.contains(&name), "{name} is missing in the list of variables");
        self.variables.get(name).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// Returns a variable as a path.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name).map(PathBuf::from)
    }

    /// Returns the first of several variables that is set, as text.
    ///
    /// # Errors
    /// `InvalidArgument` when it is not UTF-8.
    pub fn text(&self, names: &[&str]) -> Result<Option<&str>> {
        let found = names.iter().find_map(|name| Some((*name, self.value(name)?)));
        found
            .map(|(name, value)| {
                value
                    .to_str()
                    .ok_or_else(|| Error::invalid(format!("environment variable {name}: the value is not UTF-8")))
            })
            .transpose()
    }

    /// Returns `$XDG_CONFIG_HOME`, by default `~/.config`.
    #[must_use]
    pub fn config_home(&self) -> Option<PathBuf> {
        self.path("XDG_CONFIG_HOME").or_else(|| Some(self.path("HOME")?.join(".config")))
    }

    /// Returns the socket a daemon listens on unless told otherwise: `/run/kiln/kiln.sock`, or one in an ordinary user's runtime
    /// directory.
    #[must_use]
    pub fn default_socket(&self) -> PathBuf {
        match (self.user, self.path("XDG_RUNTIME_DIR")) {
            (User::Ordinary, Some(dir)) => dir.join("kiln/kiln.sock"),
            _ => PathBuf::from("/run/kiln/kiln.sock"),
        }
    }

    /// Returns `$XDG_DATA_HOME`, by default `~/.local/share`.
    #[must_use]
    pub fn data_home(&self) -> Option<PathBuf> {
        self.path("XDG_DATA_HOME").or_else(|| Some(self.path("HOME")?.join(".local/share")))
    }
}

impl std::fmt::Debug for Environment {
    /// Names only: proxies' values may hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("set", &self.variables.keys()).field("user", &self.user).finish()
    }
}
