//! The flags of `kiln daemon`, merged with what the configuration says.

use std::path::PathBuf;

use super::Address;
use crate::config::{Daemon, Environment, Flags, TlsFiles};
use crate::error::{Error, Result};

/// Serves the Engine API on a socket until it is told to stop.
#[derive(Debug, clap::Parser)]
#[command(name = "kiln daemon", version)]
pub struct Arguments {
    /// Directory that holds everything Kiln keeps
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// File with settings, instead of the usual ones
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen: unix:///path, tcp://host:port or fd:// (default: unix:///run/kiln/kiln.sock)
    #[arg(short = 'H', long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// Group that may use the unix socket (default: kiln, where there is such a group)
    #[arg(short = 'G', long, value_name = "GROUP")]
    group: Option<String>,
    /// Admit over TCP only clients with a certificate; false admits everybody
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tlsverify: Option<bool>,
    /// Certificates of the authority that vouches for clients
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,
    /// Certificate to show to clients
    #[arg(long, value_name = "FILE")]
    tlscert: Option<PathBuf>,
    /// Private key of the certificate
    #[arg(long, value_name = "FILE")]
    tlskey: Option<PathBuf>,
}

impl Arguments {
    /// Returns what says which configuration is read.
    pub(super) fn flags(&self) -> Flags {
        Flags { root: self.root.clone(), config: self.config.clone(), ..Flags::default() }
    }
}

/// Where and how to listen.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) hosts: Vec<Address>,
    pub(super) group: Option<String>,
    /// `None`: TCP is not encrypted.
    pub(super) tls: Option<Tls>,
}

/// How a daemon proves itself over TCP, and who may speak to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    /// The authority that has to vouch for a client; `None` admits everybody.
    pub(super) ca: Option<PathBuf>,
}

impl Settings {
    /// Lays the flags over the configuration.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed address, for TCP without certificates unless the user insists, and for an incomplete set
    /// of files.
    pub(super) fn merge(arguments: Arguments, config: &Daemon, environment: &Environment) -> Result<Self> {
        let named = if arguments.hosts.is_empty() { config.hosts.clone() } else { arguments.hosts };
        let mut hosts: Vec<Address> = named.iter().map(|host| host.parse()).collect::<Result<_>>()?;
        if hosts.is_empty() {
            hosts.push(Address::Unix(environment.default_socket()));
        }
        let flags = TlsFiles { ca: arguments.tlscacert, cert: arguments.tlscert, key: arguments.tlskey };
        let tls = tls(flags.or(config.tls.clone()), arguments.tlsverify)?;
        let open = hosts.iter().find(|host| matches!(host, Address::Tcp(_)));
        if let (Some(host), None, None | Some(true)) = (open, &tls, arguments.tlsverify) {
            return Err(Error::invalid(format!(
                "{host}: whoever reaches this port would be root on this machine. Give --tlscacert, --tlscert and --tlskey to \
                 admit only clients with a certificate, or insist with --tlsverify=false"
            )));
        }
        Ok(Self { hosts, group: arguments.group.or(config.group.clone()), tls })
    }

    /// Takes what BuildKit's flags and file say: without an authority, TLS admits every client, and TCP without TLS is taken as
    /// meant.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed address and for a certificate without its key.
    pub(super) fn of_buildkitd(config: &Daemon) -> Result<Self> {
        let hosts = config.hosts.iter().map(|host| host.parse()).collect::<Result<_>>()?;
        let verify = config.tls.ca.is_none().then_some(false);
        Ok(Self { hosts, group: config.group.clone(), tls: tls(config.tls.clone(), verify)? })
    }

    /// Returns an address where everybody is served.
    pub(super) fn open_to_everybody(&self) -> Option<&Address> {
        let open = self.tls.as_ref().is_none_or(|tls| tls.ca.is_none());
        self.hosts.iter().find(|host| open && matches!(host, Address::Tcp(_)))
    }
}

fn tls(files: TlsFiles, verify: Option<bool>) -> Result<Option<Tls>> {
    if files.is_empty() {
        return Ok(None);
    }
    let missing =
        |flag: &str| Error::invalid(format!("TLS needs a certificate, its key and an authority: give {flag}"));
    let cert = files.cert.ok_or_else(|| missing("--tlscert"))?;
    let key = files.key.ok_or_else(|| missing("--tlskey"))?;
    let ca = match (files.ca, verify) {
        (_, Some(false)) => None,
        (Some(ca), _) => Some(ca),
        (None, _) => {
            return Err(missing("--tlscacert, or --tlsverify=false to admit every client"));
        }
    };
    Ok(Some(Tls { cert, key, ca }))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::User;

    fn settings(line: &str) -> Result<Settings> {
        let arguments = Arguments::try_parse_from(std::iter::once("daemon").chain(line.split_whitespace())).unwrap();
        let config = Daemon { group: Some("wheel".to_owned()), ..Daemon::default() };
        Settings::merge(arguments, &config, &Environment::of(User::Root, &[]))
    }

    #[test]
    fn the_default_is_one_unix_socket() {
        let settings = settings("").unwrap();
        assert_eq!(settings.hosts, [Address::Unix("/run/kiln/kiln.sock".into())]);
        assert_eq!((settings.group.as_deref(), settings.tls), (Some("wheel"), None));
    }

    #[test]
    fn tcp_wants_certificates_of_both_sides_unless_the_user_insists() {
        let files = "--tlscert c --tlskey k";
        for line in ["", "--tlsverify", files, "--tlscacert a", "--tlscacert a --tlscert c"] {
            assert!(settings(&format!("-H tcp://0.0.0.0:1 {line}")).is_err(), "{line}");
        }
        let ca = |line: &str| settings(&format!("-H tcp://0.0.0.0:1 {line}")).unwrap().tls.map(|tls| tls.ca);
        assert_eq!(ca(&format!("--tlscacert a {files}")), Some(Some("a".into())));
        assert_eq!(ca(&format!("--tlsverify=false {files}")), Some(None));
        assert_eq!(ca("--tlsverify=false"), None);
    }
}
