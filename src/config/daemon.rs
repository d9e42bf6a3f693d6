//! What the configuration says about a daemon: where it listens, who may use it, and how it proves itself.

use std::path::PathBuf;

use super::document::Table;
use crate::error::Result;

/// Where and how a daemon listens; empty and `None` mean "not said".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Daemon {
    /// Addresses: `unix:///path`, `tcp://host:port`, `fd://`.
    pub hosts: Vec<String>,
    /// The group that may use the unix socket, by name or number.
    pub group: Option<String>,
    /// Certificates for TCP.
    pub tls: TlsFiles,
}

/// Certificates and a key, PEM files, as docker and buildkitd name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that vouches for the other side.
    pub ca: Option<PathBuf>,
    /// The certificate to show.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
}

impl TlsFiles {
    /// Returns these files, and those of `other` where none is named.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { ca: self.ca.or(other.ca), cert: self.cert.or(other.cert), key: self.key.or(other.key) }
    }

    /// Whether no file is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    pub(super) fn read(mut table: Table<'_>) -> Result<Self> {
        let files = Self {
            ca: table.take("ca").map(|v| v.path()).transpose()?,
            cert: table.take("cert").map(|v| v.path()).transpose()?,
            key: table.take("key").map(|v| v.path()).transpose()?,
        };
        table.finish()?;
        Ok(files)
    }
}

impl Daemon {
    pub(super) fn read(mut table: Table<'_>) -> Result<Self> {
        let host = |text: &str| Ok::<_, String>(text.to_owned());
        let daemon = Self {
            hosts: table.take("hosts").map(|v| v.list_of(host)).transpose()?.unwrap_or_default(),
            group: table.take("group").map(|v| v.string()).transpose()?,
            tls: table.take("tls").map(|v| TlsFiles::read(v.table()?)).transpose()?.unwrap_or_default(),
        };
        table.finish()?;
        Ok(daemon)
    }

    /// Lays what a file with precedence says over this.
    pub(super) fn overlay(&mut self, over: Self) {
        super::registries::replace(&mut self.hosts, over.hosts);
        self.group = over.group.or(self.group.take());
        self.tls = over.tls.or(std::mem::take(&mut self.tls));
    }
}
