//! Listeners: unix and TCP sockets of the daemon's own, and those a supervisor has opened.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use super::Address;
use super::arguments::Settings;
use crate::api::{Peer, Server};
use crate::config::Environment;
use crate::error::{Error, Result, ResultExt as _};
use crate::sys::socket;
use crate::task::Tasks;

/// The group that may use the socket, where there is one of this name and no other is asked for.
const GROUP: &str = "kiln";

/// The first descriptor a supervisor passes.
const FIRST_INHERITED: i32 = 3;

/// How long a client may take to prove itself.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// How long a listener rests when the process has no descriptors left.
const REST: Duration = Duration::from_millis(100);

/// A socket that clients connect to.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Arc<Socket>,
    name: String,
    tls: Option<Arc<ServerConfig>>,
    _bound: Option<Bound>,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// The name of a socket in the file system; it goes with the listener.
#[derive(Debug)]
struct Bound(PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        // Somebody else may have removed it; then there is nothing left to do.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A connection that was accepted.
enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Listener {
    /// Listens on an address; `fd://` may be several sockets. Must be called in a runtime.
    ///
    /// # Errors
    /// `Conflict` when another daemon listens there; `InvalidArgument` for a group that does not exist.
    pub(super) fn open(
        address: &Address,
        settings: &Settings,
        tls: Option<&Arc<ServerConfig>>,
        environment: &Environment,
    ) -> Result<Vec<Self>> {
        match address {
            Address::Unix(path) => {
                let (socket, bound) = listen_unix(path, settings.group.as_deref())?;
                Ok(vec![Self::new(socket, None, Some(bound))?])
            }
            Address::Tcp(host) => Ok(vec![Self::new(listen_tcp(host)?, tls, None)?]),
            Address::Inherited => {
                inherited(environment)?.into_iter().map(|socket| Self::new(socket, tls, None)).collect()
            }
        }
    }

    fn new(socket: Socket, tls: Option<&Arc<ServerConfig>>, bound: Option<Bound>) -> Result<Self> {
        let (name, tls) = match &socket {
            Socket::Unix(listener) => {
                let address = listener.local_addr()?;
                let path =
                    address.as_pathname().map_or_else(|| "(unnamed)".to_owned(), |path| path.display().to_string());
                (format!("unix://{path}"), None)
            }
            Socket::Tcp(listener) => (format!("tcp://{}", listener.local_addr()?), tls.cloned()),
        };
        Ok(Self { socket: Arc::new(socket), name, tls, _bound: bound })
    }

    /// Accepts connections in the background until the engine stops.
    pub(super) fn serve(&self, server: Server, tasks: &Tasks) {
        let (socket, tls) = (Arc::clone(&self.socket), self.tls.clone());
        let (stopping, handshakes) = (tasks.stopping(), tasks.clone());
        tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stopping.cancelled() => return,
                    accepted = socket.accept() => accepted,
                };
                match accepted {
                    Ok(Accepted::Unix(stream)) => server.connect(stream, Peer::Client),
                    Ok(Accepted::Tcp(stream)) => connect_tcp(stream, tls.as_ref(), &server, &handshakes),
                    // Too many open files, or a client that has gone already: others are still served.
                    Err(_) => tokio::time::sleep(REST).await,
                }
            }
        });
    }
}

impl Socket {
    async fn accept(&self) -> std::io::Result<Accepted> {
        match self {
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
            Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| Accepted::Tcp(stream)),
        }
    }
}

/// Serves a connection over TCP, after the handshake if there has to be one, which nobody else waits for.
fn connect_tcp(stream: TcpStream, tls: Option<&Arc<ServerConfig>>, server: &Server, tasks: &Tasks) {
    // A connection on which this fails is only slower.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return server.connect(stream, Peer::Client) };
    let (tls, server, stopping) = (TlsAcceptor::from(Arc::clone(tls)), server.clone(), tasks.stopping());
    tasks.spawn(async move {
        let handshake = tokio::time::timeout(HANDSHAKE, tls.accept(stream));
        tokio::select! {
            () = stopping.cancelled() => {}
            // TLS has told a client without a proper certificate why; there is nobody else to tell.
            done = handshake => if let Ok(Ok(stream)) = done {
                server.connect(stream, Peer::Client);
            },
        }
    });
}

/// Listens on a socket that its owner and a group may use, in the place of one that nobody listens on any more.
fn listen_unix(path: &Path, group: Option<&str>) -> Result<(Socket, Bound)> {
    let doing = || format!("listen on unix://{}", path.display());
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::conflict(format!("another daemon listens on unix://{}", path.display())));
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).context(doing)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(doing),
        _ => {}
    }
    let listener = UnixListener::bind(path).context(doing)?;
    let bound = Bound(path.to_owned());
    // Until here only the owner may connect: connecting needs the right to write, which the umask never gives to others.
    if let Some(gid) = group_id(group)? {
        std::os::unix::fs::chown(path, None, Some(gid)).context(doing)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).context(doing)?;
    Ok((Socket::Unix(listener), bound))
}

/// Finds a group by name or number; without a name, Kiln's own if there is one.
fn group_id(group: Option<&str>) -> Result<Option<u32>> {
    if let Some(gid) = group.and_then(|group| group.parse().ok()) {
        return Ok(Some(gid));
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group.unwrap_or(GROUP))).then(|| fields.nth(1)?.parse().ok())?
    });
    match (found, group) {
        (None, Some(group)) => Err(Error::invalid(format!(
            "there is no group {group:?}: make it with `groupadd {group}`, or name another"
        ))),
        (found, _) => Ok(found),
    }
}

fn listen_tcp(address: &str) -> Result<Socket> {
    let doing = || format!("listen on tcp://{address}");
    let listener = std::net::TcpListener::bind(address).context(doing)?;
    listener.set_nonblocking(true).context(doing)?;
    Ok(Socket::Tcp(TcpListener::from_std(listener).context(doing)?))
}

/// Takes the sockets a supervisor has opened (`LISTEN_FDS`), which must be meant for this process (`LISTEN_PID`).
fn inherited(environment: &Environment) -> Result<Vec<Socket>> {
    let number =
        |name: &str| -> Result<Option<i32>> { Ok(environment.text(&[name])?.and_then(|text| text.parse().ok())) };
    let mine = number("LISTEN_PID")?.is_none_or(|pid| pid == std::process::id().cast_signed());
    let count = number("LISTEN_FDS")?.filter(|count| mine && (1..=64).contains(count));
    let Some(count) = count else {
        return Err(Error::invalid(
            "fd://: no sockets were passed (LISTEN_FDS); start the daemon by a systemd socket unit, or listen on unix:// or tcp://",
        ));
    };
    (FIRST_INHERITED..FIRST_INHERITED + count).map(|fd| from_supervisor(socket::inherit(fd)?)).collect()
}

fn from_supervisor(fd: OwnedFd) -> Result<Socket> {
    let doing = || "take over a socket of the supervisor";
    let address = rustix::net::getsockname(&fd).context(doing)?;
    if address.address_family() == rustix::net::AddressFamily::UNIX {
        let listener = std::os::unix::net::UnixListener::from(fd);
        listener.set_nonblocking(true).context(doing)?;
        return Ok(Socket::Unix(UnixListener::from_std(listener).context(doing)?));
    }
    let listener = std::net::TcpListener::from(fd);
    listener.set_nonblocking(true).context(doing)?;
    Ok(Socket::Tcp(TcpListener::from_std(listener).context(doing)?))
}
