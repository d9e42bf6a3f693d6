//! What is configured about registries: mirrors, plain HTTP, certificates, limits.
//!
//! Only facts; which address a pull then talks to is decided by the registry client.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::Aws;
use super::document::{Table, Value};
use super::proxy::Proxies;
use crate::error::{Error, Kind, Result, ResultExt as _};

/// The domain of Docker Hub in image names.
const DOCKER_HUB: &str = "docker.io";

/// Other names that Docker Hub's registry goes by.
const DOCKER_HUB_ALIASES: &[&str] = &["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// Returns the domain that stands in image names for a server as users and docker's files write it.
///
/// A scheme and a path are cut off (`https://index.docker.io/v1/`), and Docker Hub's host names become `docker.io`; an empty
/// server is Docker Hub.
#[must_use]
pub fn domain_of(server: &str) -> &str {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() || DOCKER_HUB_ALIASES.contains(&host) { DOCKER_HUB } else { host }
}

/// How to speak to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// Returns `http` or `https`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Returns the port that URLs leave out.
    #[must_use]
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A server that is asked before the registry itself: `[scheme://]host[:port][/prefix]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// How to speak to it, if the configuration says so.
    pub scheme: Option<Scheme>,
    /// Its host and port, under which its own section is looked up.
    pub host: String,
    /// What its repository names start with, without slashes at the ends; often empty. As in buildkitd.toml, it comes after
    /// `/v2/`.
    pub prefix: String,
}

impl FromStr for Mirror {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            None => (None, text),
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some((other, _)) => return Err(format!("unknown scheme `{other}` in {text:?} (expected http or https)")),
        };
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        check_host(host)?;
        let prefix = prefix.trim_matches('/');
        if prefix.contains(['?', '#', '@', ' ']) {
            return Err(format!("{text:?} is not an address such as mirror.example.com or mirror.example.com/prefix"));
        }
        Ok(Self { scheme, host: host.to_owned(), prefix: prefix.to_owned() })
    }
}

impl std::fmt::Display for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.scheme {
            Some(Scheme::Http) => f.write_str("http://")?,
            Some(Scheme::Https) => f.write_str("https://")?,
            None => {}
        }
        f.write_str(&self.host)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

fn check_host(host: &str) -> Result<(), String> {
    // The grammar of hosts is that of image names; the path is only there to make a whole one.
    let name = format!("{host}/x");
    let parsed: kiln_graph::Reference = name.parse().map_err(|_| format!("{host:?} is not host[:port]"))?;
    let known = parsed.domain() == host || DOCKER_HUB_ALIASES.contains(&host);
    // `registry` alone would be a directory in an image name, but is a fine host here.
    let label = host.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if known || label { Ok(()) } else { Err(format!("{host:?} is not host[:port]")) }
}

/// A client certificate and its key, PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// The private key's file.
    pub key: PathBuf,
    /// The certificate's file.
    pub cert: PathBuf,
}

/// What is configured about one registry; `None` and empty mean "not said".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Servers to pull from before the registry itself, in order.
    pub mirrors: Vec<Mirror>,
    /// Whether it speaks plain HTTP.
    pub http: Option<bool>,
    /// Whether its certificate is accepted unseen.
    pub insecure: Option<bool>,
    /// Files with certificates of authorities to trust besides the system's.
    pub ca: Vec<PathBuf>,
    /// Client certificates to show.
    pub keypairs: Vec<KeyPair>,
}

impl HostConfig {
    fn read(value: Value<'_>) -> Result<Self> {
        let mut table = value.table()?;
        let list_of_paths = |value: Value<'_>| value.list()?.iter().map(Value::path).collect::<Result<Vec<_>>>();
        let config = Self {
            mirrors: table.take("mirrors").map(|v| v.list_of(str::parse)).transpose()?.unwrap_or_default(),
            http: table.take("http").map(|v| v.bool()).transpose()?,
            insecure: table.take("insecure").map(|v| v.bool()).transpose()?,
            ca: table.take("ca").map(list_of_paths).transpose()?.unwrap_or_default(),
            keypairs: table.take("keypair").map(read_keypairs).transpose()?.unwrap_or_default(),
        };
        table.finish()?;
        Ok(config)
    }

    /// Lays the settings of a file that wins over these. A list replaces the other list.
    fn overlay(&mut self, over: Self) {
        self.http = over.http.or(self.http);
        self.insecure = over.insecure.or(self.insecure);
        replace(&mut self.ca, over.ca);
        replace(&mut self.mirrors, over.mirrors);
        replace(&mut self.keypairs, over.keypairs);
    }
}

pub(super) fn replace<T>(list: &mut Vec<T>, over: Vec<T>) {
    if !over.is_empty() {
        *list = over;
    }
}

fn read_keypairs(value: Value<'_>) -> Result<Vec<KeyPair>> {
    let read = |item: Value<'_>| {
        let missing = |key: &str| item.error(format!("`{key}` is missing (a key pair has `key` and `cert`)"));
        let (no_key, no_cert) = (missing("key"), missing("cert"));
        let mut table = item.table()?;
        let key = table.take("key").ok_or(no_key)?.path()?;
        let cert = table.take("cert").ok_or(no_cert)?.path()?;
        table.finish()?;
        Ok(KeyPair { key, cert })
    };
    value.list()?.into_iter().map(read).collect()
}

/// Limits on traffic with registries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Blobs downloaded from one registry at the same time.
    pub downloads: usize,
    /// Blobs uploaded to one registry at the same time.
    pub uploads: usize,
    /// How often a request is tried in all before it fails.
    pub attempts: u32,
}

impl Default for Transfer {
    fn default() -> Self {
        Self { downloads: 6, uploads: 5, attempts: 5 }
    }
}

/// [`Transfer`] as a file gives it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TransferFile {
    downloads: Option<u64>,
    uploads: Option<u64>,
    attempts: Option<u64>,
}

impl TransferFile {
    pub(super) fn read(mut table: Table<'_>) -> Result<Self> {
        let transfer = Self {
            downloads: table.take("downloads").map(|v| v.integer(1..=64)).transpose()?,
            uploads: table.take("uploads").map(|v| v.integer(1..=64)).transpose()?,
            attempts: table.take("attempts").map(|v| v.integer(1..=100)).transpose()?,
        };
        table.finish()?;
        Ok(transfer)
    }

    /// Makes one limit of both directions.
    pub(super) fn of_concurrency(limit: Option<u64>) -> Self {
        Self { downloads: limit, uploads: limit, attempts: None }
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self {
            downloads: self.downloads.or(other.downloads),
            uploads: self.uploads.or(other.uploads),
            attempts: self.attempts.or(other.attempts),
        }
    }

    pub(super) fn finish(self) -> Transfer {
        let default = Transfer::default();
        let size = |value: Option<u64>, default| value.and_then(|v| usize::try_from(v).ok()).unwrap_or(default);
        Transfer {
            downloads: size(self.downloads, default.downloads),
            uploads: size(self.uploads, default.uploads),
            attempts: self.attempts.and_then(|v| u32::try_from(v).ok()).unwrap_or(default.attempts),
        }
    }
}

/// Everything the registry client is configured with.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    hosts: BTreeMap<String, HostConfig>,
    certs_dirs: Vec<PathBuf>,
    /// Which proxy leads to which host.
    pub proxies: Proxies,
    /// Limits on traffic.
    pub transfer: Transfer,
    /// Where credentials for AWS are, for caches in its stores.
    pub aws: Aws,
}

impl Registries {
    pub(super) fn new(hosts: Hosts, certs_dirs: Vec<PathBuf>, proxies: Proxies, transfer: Transfer) -> Self {
        Self { hosts: hosts.0, certs_dirs, proxies, transfer, aws: Aws::default() }
    }

    /// Adds where credentials for AWS are.
    pub(super) fn with_aws(self, aws: Aws) -> Self {
        Self { aws, ..self }
    }

    /// Returns what is configured about a registry, by its domain in image names (or, for a mirror, its host and port).
    #[must_use]
    pub fn host(&self, domain: &str) -> HostConfig {
        self.hosts.get(domain).cloned().unwrap_or_default()
    }

    /// Says whether anything is configured about a registry.
    #[must_use]
    pub fn has_host(&self, domain: &str) -> bool {
        self.hosts.contains_key(domain)
    }

    /// Returns what is configured about a registry, to change it.
    pub fn host_mut(&mut self, domain: &str) -> &mut HostConfig {
        self.hosts.entry(domain.to_owned()).or_default()
    }

    /// Returns the configuration of a registry together with what its directories under `certs.d` hold: every `*.crt` is an
    /// authority's certificate, every `*.cert` a client's, whose key is the `.key` file beside it (docker's convention).
    ///
    /// # Errors
    /// `InvalidArgument` for a certificate without its key or a key without its certificate; `Internal` when a directory
    /// cannot be read.
    pub fn host_with_certs(&self, domain: &str) -> Result<HostConfig> {
        let mut config = self.host(domain);
        for dir in &self.certs_dirs {
            read_certs_dir(&dir.join(domain), &mut config)?;
        }
        Ok(config)
    }
}

fn read_certs_dir(dir: &Path, config: &mut HostConfig) -> Result<()> {
    let mut files: Vec<PathBuf> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(());
        }
        Err(error) => return Err(error).context(|| format!("read certificates in {}", dir.display())),
    };
    files.sort();
    let has_extension = |path: &PathBuf, extension: &str| path.extension().is_some_and(|found| found == extension);
    for file in &files {
        if has_extension(file, "crt") {
            config.ca.push(file.clone());
        } else if has_extension(file, "cert") {
            let key = file.with_extension("key");
            check_pair(&files, file, &key)?;
            config.keypairs.push(KeyPair { key, cert: file.clone() });
        } else if has_extension(file, "key") {
            check_pair(&files, file, &file.with_extension("cert"))?;
        }
    }
    Ok(())
}

fn check_pair(files: &[PathBuf], file: &Path, partner: &PathBuf) -> Result<()> {
    if files.contains(partner) {
        return Ok(());
    }
    let (file, partner) = (file.display(), partner.display());
    Err(Error::new(Kind::InvalidArgument, format!("{file}: the file that goes with it, {partner}, is missing")))
}

/// The `[registry]` section of one file.
#[derive(Debug, Default)]
pub(super) struct Hosts(BTreeMap<String, HostConfig>);

impl Hosts {
    pub(super) fn read(mut table: Table<'_>) -> Result<Self> {
        let mut hosts = BTreeMap::new();
        for (key, value) in table.take_rest() {
            check_host(&key).map_err(|why| value.error(why))?;
            let domain = domain_of(&key).to_owned();
            let config = HostConfig::read(value)?;
            hosts.insert(domain, config);
        }
        Ok(Self(hosts))
    }

    /// Lays the sections of a file that wins over these, key by key.
    pub(super) fn overlay(&mut self, over: Self) {
        for (domain, config) in over.0 {
            self.0.entry(domain).or_default().overlay(config);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_known_by_the_domain_of_image_names() {
        for (server, domain) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("docker.io", "docker.io"),
            ("", "docker.io"),
            ("https://example.com:5000/v2/", "example.com:5000"),
            ("localhost:5000", "localhost:5000"),
        ] {
            assert_eq!(domain_of(server), domain, "{server}");
        }
    }

    #[test]
    fn mirrors_are_hosts_with_an_optional_scheme_and_prefix() {
        let mirror = |text: &str| text.parse::<Mirror>();
        let made =
            |scheme, host: &str, prefix: &str| Ok(Mirror { scheme, host: host.to_owned(), prefix: prefix.to_owned() });
        assert_eq!(mirror("mirror.example.com"), made(None, "mirror.example.com", ""));
        assert_eq!(mirror("http://localhost:5000/"), made(Some(Scheme::Http), "localhost:5000", ""));
        assert_eq!(mirror("https://h.example/proxy/hub"), made(Some(Scheme::Https), "h.example", "proxy/hub"));
        assert_eq!(mirror("mirror"), made(None, "mirror", ""));
        for text in ["ftp://x.example", "", "http://", "a b.example", "x.example/?q", "user@x.example"] {
            assert!(mirror(text).is_err(), "{text}");
        }
    }

    #[test]
    fn certificates_lie_where_docker_looks_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("example.com:5000");
        std::fs::create_dir(&host).unwrap();
        for name in ["ca.crt", "more.crt", "client.cert", "client.key", "README"] {
            std::fs::write(host.join(name), "").unwrap();
        }
        let registries = Registries { certs_dirs: vec![dir.path().to_owned()], ..Registries::default() };
        let config = registries.host_with_certs("example.com:5000").unwrap();
        assert_eq!(config.ca, [host.join("ca.crt"), host.join("more.crt")]);
        assert_eq!(config.keypairs, [KeyPair { key: host.join("client.key"), cert: host.join("client.cert") }]);
        assert_eq!(registries.host_with_certs("example.com").unwrap(), HostConfig::default());

        std::fs::remove_file(host.join("client.key")).unwrap();
        let error = registries.host_with_certs("example.com:5000").unwrap_err();
        assert!(error.to_string().contains("client.key, is missing"), "{error}");
    }
}
