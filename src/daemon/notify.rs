//! What a supervisor is told: systemd's protocol of one datagram per change of state.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::config::Environment;
use crate::error::{Error, Result};

/// The supervisor that started this daemon, if it wants to know how the daemon is.
#[derive(Debug)]
pub(super) struct Supervisor(Option<SocketAddr>);

impl Supervisor {
    /// Reads `NOTIFY_SOCKET`: an absolute path, or a name in the abstract namespace after an `@`.
    ///
    /// # Errors
    /// `InvalidArgument` when the address is malformed.
    pub(super) fn from_environment(environment: &Environment) -> Result<Self> {
        let Some(path) = environment.path("NOTIFY_SOCKET") else { return Ok(Self(None)) };
        let bytes = path.as_os_str().as_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(OsStr::from_bytes(bytes)),
        };
        let wrong = |error| Error::invalid(format!("NOTIFY_SOCKET={}", path.display())).with_source(error);
        address.map(|address| Self(Some(address))).map_err(wrong)
    }

    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// A supervisor that does not listen is not the daemon's problem.
    fn tell(&self, state: &str) {
        if let (Some(address), Ok(socket)) = (&self.0, UnixDatagram::unbound()) {
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }
}
