//! Where a daemon listens, as docker and buildkitd write it.

use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A unix socket at an absolute path.
    Unix(PathBuf),
    /// `host:port`, which may be a name.
    Tcp(String),
    /// The sockets that systemd opened, all of them.
    Inherited,
}

impl FromStr for Address {
    type Err = Error;

    /// Parses `unix:///path`, `tcp://host:port` or `fd://`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |what: &str| Error::invalid(format!("cannot listen on {text:?}: {what}"));
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("unix", _)) => Err(wrong("the socket needs an absolute path, such as unix:///run/kiln/kiln.sock")),
            Some(("tcp", address)) => {
                let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
                match port {
                    Some(_) => Ok(Self::Tcp(address.to_owned())),
                    None => Err(wrong("TCP needs an address and a port, such as tcp://127.0.0.1:2376")),
                }
            }
            Some(("fd", "" | "/")) => Ok(Self::Inherited),
            Some(("fd", _)) => Err(wrong("fd:// takes all sockets that the supervisor passes, and no name")),
            _ => Err(wrong("expected unix:///path/to/socket, tcp://host:port or fd://")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Inherited => f.write_str("fd://"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_docker_writes_them() {
        for text in ["unix:///run/x.sock", "tcp://127.0.0.1:2376", "tcp://[::1]:0", "tcp://localhost:1", "fd://"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_listened_on_is_refused_with_what_can() {
        for (text, hint) in [
            ("unix://run/x.sock", "absolute path"),
            ("tcp://127.0.0.1", "a port"),
            ("tcp://127.0.0.1:99999", "a port"),
            ("fd://3", "no name"),
            ("npipe:////./pipe/x", "expected unix://"),
            ("", "expected unix://"),
        ] {
            assert!(text.parse::<Address>().unwrap_err().to_string().contains(hint), "{text}");
        }
    }
}
