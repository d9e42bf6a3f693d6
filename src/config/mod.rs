//! Configuration: files, environment and flags, merged into one validated [`Config`].
//!
//! A flag wins over the environment, the environment over the user's file, the user's file over the system's. Nothing here
//! opens the root directory or talks to anybody, except that [`docker`] runs docker's credential helpers.
//!
//! Everything a file may say (`/etc/kiln/config.toml`, `$XDG_CONFIG_HOME/kiln/config.toml`); relative paths start at its
//! directory:
//!
//! ```toml
//! root = "/srv/kiln"                       # --root, KILN_ROOT
//! host = "unix:///run/kiln/kiln.sock"      # --host, KILN_HOST, DOCKER_HOST
//!
//! [daemon]                                 # where `kiln daemon` listens
//! hosts = ["unix:///run/kiln/kiln.sock", "tcp://0.0.0.0:2376"]
//! group = "kiln"                           # who may use the unix socket
//! tls = { ca = "ca.pem", cert = "cert.pem", key = "key.pem" }
//!
//! [registry."docker.io"]                   # the keys of buildkitd.toml
//! mirrors = ["mirror.example.com", "http://cache.example.com:5000/hub"]
//!
//! [registry."registry.example.com:5000"]
//! http = false                             # plain HTTP; by default only on loopback
//! insecure = false                         # accept any certificate
//! ca = ["ca.pem"]                          # besides the system's, and certs.d
//! [[registry."registry.example.com:5000".keypair]]
//! key = "client.key"
//! cert = "client.pem"
//!
//! [transfer]                               # with one registry
//! downloads = 6                            # blobs at a time
//! uploads = 5
//! attempts = 5                             # of one request, in all
//!
//! [gc]                                     # of the build cache
//! reserved-space = "10%"                   # so much always stays
//! max-used-space = "100gb"
//! min-free-space = "20%"                   # of the disk
//! hard-cap = "200gb"                       # more than this the root never takes
//! [[gc.policy]]                            # instead of the usual policies, with buildkitd.toml's meaning
//! filters = ["type==exec.cachemount"]
//! keep-duration = "48h"
//! max-used-space = "2gb"
//!
//! [builder]
//! max-parallelism = 16                     # steps at a time, all builds together
//! entitlements = ["network.host"]          # what clients may allow steps; all of it by default
//! labels = { team = "a" }                  # of the worker
//! cdi-spec-dirs = ["/etc/cdi"]             # where devices of steps are described
//!
//! [history]                                # of builds: records go that are older and not among the newest
//! max-age = "48h"
//! max-entries = 50
//!
//! [log]                                    # of containers
//! max-size = "10m"
//! max-file = 3
//!
//! [dns]                                    # of containers and steps
//! nameservers = ["192.0.2.1"]
//! search = ["example.com"]
//! options = ["ndots:2"]
//! ```

mod aws;
mod builder;
mod buildkitd;
mod credentials;
mod daemon;
pub mod docker;
mod document;
mod environment;
mod gc;
mod history;
mod keychain;
mod proxy;
mod registries;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub use aws::{Aws, AwsCredentials};
pub use builder::Builder;
pub use buildkitd::BuildkitdFlags;
pub use credentials::{AuthConfig, Credentials, Secret};
pub use daemon::{Daemon, TlsFiles};
pub use environment::{Environment, User};
pub use gc::{Gc, GcLimits, GcPolicy, Space, duration};
pub use history::History;
pub use proxy::Proxies;
pub use registries::{HostConfig, KeyPair, Mirror, Registries, Scheme, Transfer, domain_of};

use crate::error::{Error, Result, ResultExt as _};
use document::{Document, Table};
use registries::{Hosts, TransferFile};

/// The system's configuration file.
pub const SYSTEM_FILE: &str = "/etc/kiln/config.toml";

/// The root directory of the system's user root.
pub const SYSTEM_ROOT: &str = "/var/lib/kiln";

/// What flags say; each wins over everything else.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`: the only file to read.
    pub config: Option<PathBuf>,
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--host`.
    pub host: Option<String>,
    /// `--tlsverify`.
    pub tlsverify: bool,
    /// `--tlscacert`, `--tlscert` and `--tlskey`.
    pub tls: TlsFiles,
}

/// How container logs are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Bytes at which a log file is rotated.
    pub max_size_bytes: Option<u64>,
    /// Files kept, at least 1.
    pub max_files: Option<u64>,
}

/// What containers' `/etc/resolv.conf` says instead of the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers.
    pub nameservers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options, such as `ndots:2`.
    pub options: Vec<String>,
}

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory everything is kept under; absolute.
    pub root: PathBuf,
    /// The daemon to speak to, such as `unix:///run/kiln/kiln.sock`, when one was named.
    pub host: Option<String>,
    /// What a TCP connection to a daemon is secured with; `None` for plain TCP.
    pub tls: Option<TlsFiles>,
    /// What a daemon needs.
    pub daemon: Daemon,
    /// What the registry client needs.
    pub registries: Registries,
    /// The size of the build cache.
    pub gc: Gc,
    /// How builds run.
    pub builder: Builder,
    /// The history of builds.
    pub history: History,
    /// Container logs.
    pub log: Log,
    /// Containers' name resolution.
    pub dns: Dns,
}

impl Config {
    /// Reads the files and merges everything. Blocking, but only small local files.
    ///
    /// The files are `/etc/kiln/config.toml` and `$XDG_CONFIG_HOME/kiln/config.toml`; either may be missing. `--config` or
    /// `KILN_CONFIG` names one file to read instead of both, which must exist.
    ///
    /// # Errors
    /// `InvalidArgument` with file, line and key for anything that is not understood; unknown keys are errors.
    pub fn load(flags: &Flags, environment: &Environment) -> Result<Self> {
        let named = flags.config.clone().or_else(|| environment.path("KILN_CONFIG"));
        let file = match named {
            Some(path) => File::read(&path)?,
            None => read_default_files(Path::new(SYSTEM_FILE), environment)?,
        };
        Self::merge(flags, environment, file)
    }

    fn merge(flags: &Flags, environment: &Environment, file: File) -> Result<Self> {
        let root = flags.root.clone().or_else(|| environment.path("KILN_ROOT")).or(file.root);
        let root = match root {
            Some(root) => std::path::absolute(&root).context(|| format!("find the directory {}", root.display()))?,
            None => default_root(environment)?,
        };
        let named = environment.text(&["KILN_HOST", "DOCKER_HOST"])?.map(str::to_owned);
        let proxies = Proxies::from_environment(environment)?;
        let certs_dirs = certs_dirs(environment);
        Ok(Self {
            root,
            host: flags.host.clone().or(named).or(file.host),
            tls: client_tls(flags, environment)?,
            daemon: file.daemon,
            registries: Registries::new(file.registries, certs_dirs, proxies, file.transfer.finish())
                .with_aws(Aws::of(environment)),
            gc: file.gc,
            builder: file.builder,
            history: file.history,
            log: file.log,
            dns: file.dns,
        })
    }
}

/// Reads docker's flags and variables: `--tlsverify` or `DOCKER_TLS_VERIFY` (anything but empty) asks for TLS, and files that are
/// not named are `ca.pem`, `cert.pem` and `key.pem` of `DOCKER_CERT_PATH`, else of docker's directory. The key pair may be absent.
fn client_tls(flags: &Flags, environment: &Environment) -> Result<Option<TlsFiles>> {
    let asked = environment.text(&["DOCKER_TLS_VERIFY"])?.is_some_and(|value| !value.is_empty());
    if !flags.tlsverify && !asked && flags.tls.is_empty() {
        return Ok(None);
    }
    let dir = environment.path("DOCKER_CERT_PATH").or_else(|| environment.path("DOCKER_CONFIG"));
    let dir = dir.or_else(|| Some(environment.path("HOME")?.join(".docker")));
    let file = |name: &str| dir.as_ref().map(|dir| dir.join(name));
    let existing = |name: &str| file(name).filter(|path| path.exists());
    let usual = TlsFiles { ca: file("ca.pem"), cert: existing("cert.pem"), key: existing("key.pem") };
    let files = flags.tls.clone().or(usual);
    match (&files.ca, &files.cert, &files.key) {
        (Some(_), Some(_), Some(_)) | (Some(_), None, None) => Ok(Some(files)),
        (None, _, _) => {
            Err(Error::invalid("TLS needs an authority to trust: give --tlscacert or set DOCKER_CERT_PATH"))
        }
        _ => Err(Error::invalid("a client certificate and its key go together: give both --tlscert and --tlskey")),
    }
}

fn read_default_files(system: &Path, environment: &Environment) -> Result<File> {
    let user = environment.config_home().map(|dir| dir.join("kiln/config.toml"));
    let mut file = File::default();
    for path in [Some(system.to_owned()), user].into_iter().flatten() {
        match File::read(&path) {
            Ok(over) => file.overlay(over),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(file)
}

fn is_missing(error: &Error) -> bool {
    error.kind() == crate::error::Kind::NotFound
}

fn default_root(environment: &Environment) -> Result<PathBuf> {
    match environment.user() {
        User::Root => Ok(PathBuf::from(SYSTEM_ROOT)),
        User::Ordinary => environment
            .data_home()
            .map(|dir| dir.join("kiln"))
            .ok_or_else(|| Error::invalid("no root directory: set HOME, XDG_DATA_HOME or KILN_ROOT, or give --root")),
    }
}

/// Directories with one directory of certificates per registry; an ordinary user's own come last.
fn certs_dirs(environment: &Environment) -> Vec<PathBuf> {
    let mut dirs = vec![PathBuf::from("/etc/docker/certs.d"), PathBuf::from("/etc/kiln/certs.d")];
    if let (User::Ordinary, Some(home)) = (environment.user(), environment.config_home()) {
        dirs.extend([home.join("docker/certs.d"), home.join("kiln/certs.d")]);
    }
    dirs
}

/// What one file says.
#[derive(Debug, Default)]
struct File {
    root: Option<PathBuf>,
    host: Option<String>,
    daemon: Daemon,
    registries: Hosts,
    transfer: TransferFile,
    gc: Gc,
    builder: Builder,
    history: History,
    log: Log,
    dns: Dns,
}

impl File {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let error = Error::from(error).context(format!("read the configuration file {}", path.display()));
            if missing { error.with_kind(crate::error::Kind::NotFound) } else { error }
        })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let document = Document::new(path, text);
        let mut top = document.parse()?;
        let file = Self {
            root: top.take("root").map(|v| v.path()).transpose()?,
            host: top.take("host").map(|v| v.string()).transpose()?,
            daemon: top.take("daemon").map(|v| Daemon::read(v.table()?)).transpose()?.unwrap_or_default(),
            registries: top.take("registry").map(|v| Hosts::read(v.table()?)).transpose()?.unwrap_or_default(),
            transfer: top.take("transfer").map(|v| TransferFile::read(v.table()?)).transpose()?.unwrap_or_default(),
            gc: top.take("gc").map(|v| Gc::read(v.table()?)).transpose()?.unwrap_or_default(),
            builder: top.take("builder").map(|v| Builder::read(v.table()?)).transpose()?.unwrap_or_default(),
            history: top.take("history").map(|v| History::read(v.table()?)).transpose()?.unwrap_or_default(),
            log: top.take("log").map(|v| Log::read(v.table()?)).transpose()?.unwrap_or_default(),
            dns: top.take("dns").map(|v| Dns::read(v.table()?)).transpose()?.unwrap_or_default(),
        };
        top.finish()?;
        Ok(file)
    }

    /// Lays a file that wins over this one.
    fn overlay(&mut self, over: Self) {
        self.root = over.root.or(self.root.take());
        self.host = over.host.or(self.host.take());
        self.daemon.overlay(over.daemon);
        self.registries.overlay(over.registries);
        self.transfer = over.transfer.or(self.transfer);
        self.gc.overlay(over.gc);
        self.builder.overlay(over.builder);
        self.history.overlay(over.history);
        self.log.max_size_bytes = over.log.max_size_bytes.or(self.log.max_size_bytes);
        self.log.max_files = over.log.max_files.or(self.log.max_files);
        registries::replace(&mut self.dns.nameservers, over.dns.nameservers);
        registries::replace(&mut self.dns.search, over.dns.search);
        registries::replace(&mut self.dns.options, over.dns.options);
    }
}

impl Log {
    fn read(mut table: Table<'_>) -> Result<Self> {
        let log = Self {
            max_size_bytes: table.take("max-size").map(|v| v.size()).transpose()?,
            max_files: table.take("max-file").map(|v| v.integer(1..=1000)).transpose()?,
        };
        table.finish()?;
        Ok(log)
    }
}

impl Dns {
    fn read(mut table: Table<'_>) -> Result<Self> {
        let address = |text: &str| text.parse().map_err(|_| format!("{text:?} is not an IP address"));
        let word = |text: &str| {
            let plain = !text.contains(|c: char| c.is_whitespace() || c.is_control());
            if plain { Ok(text.to_owned()) } else { Err(format!("{text:?} is not a single word")) }
        };
        let dns = Self {
            nameservers: table.take("nameservers").map(|v| v.list_of(address)).transpose()?.unwrap_or_default(),
            search: table.take("search").map(|v| v.list_of(word)).transpose()?.unwrap_or_default(),
            options: table.take("options").map(|v| v.list_of(word)).transpose()?.unwrap_or_default(),
        };
        table.finish()?;
        Ok(dns)
    }
}

#[cfg(test)]
mod tests;
