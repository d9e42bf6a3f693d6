//! Opening byte streams to an engine: a daemon's unix or TCP socket, or an engine child of this process.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::{Error, Result, ResultExt as _};
use crate::sys::socket;
use crate::tls;

/// The first argument that makes this binary an engine child; no command has such a name.
pub const ENGINE_ROLE: &str = "-engine";

/// Where the engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A daemon's unix socket.
    Unix(PathBuf),
    /// A daemon's TCP address, `host:port`.
    Tcp(String),
    /// The same, over TLS.
    Tls(String, TlsFiles),
    /// No daemon: this binary, started as an engine child with these arguments.
    Child(Vec<OsString>),
}

/// Certificates and a key, PEM files, that make a connection over TCP trusted on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that vouches for the daemon.
    pub ca: PathBuf,
    /// The certificate to show, and its key.
    pub pair: Option<(PathBuf, PathBuf)>,
}

impl Endpoint {
    /// Makes a TCP address one that is spoken to over TLS; others stay as they are.
    #[must_use]
    pub fn with_tls(self, files: TlsFiles) -> Self {
        match self {
            Self::Tcp(address) => Self::Tls(address, files),
            other => other,
        }
    }
}

impl std::str::FromStr for Endpoint {
    type Err = Error;

    /// Parses `unix:///path`, `tcp://host:port` or an absolute path, as `DOCKER_HOST` is written.
    fn from_str(text: &str) -> Result<Self> {
        let hint = "expected unix:///path/to/socket or tcp://host:port";
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp" | "http", address)) if !address.is_empty() => {
                let address = address.trim_end_matches('/');
                let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                Ok(Self::Tcp(if has_port { address.to_owned() } else { format!("{address}:2375") }))
            }
            None if text.starts_with('/') => Ok(Self::Unix(text.into())),
            _ => Err(Error::invalid(format!("invalid host {text:?}: {hint}"))),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) | Self::Tls(address, _) => write!(f, "tcp://{address}"),
            Self::Child(_) => f.write_str("an engine of this command's own"),
        }
    }
}

/// Opens streams to one endpoint. For [`Endpoint::Child`] it owns the child; dropping it lets the child finish.
#[derive(Debug)]
pub struct Dialer {
    endpoint: Endpoint,
    tls: Option<Arc<ClientConfig>>,
    child: Option<Mutex<EngineChild>>,
}

#[derive(Debug)]
struct EngineChild {
    process: Child,
    control: Option<OwnedFd>,
}

impl Dialer {
    /// Prepares to open streams; starts the engine child, if that is the endpoint. Needs no runtime.
    ///
    /// # Errors
    /// When the child cannot be started; `InvalidArgument` for certificates that cannot be read.
    pub fn new(endpoint: Endpoint) -> Result<Self> {
        let (mut child, mut tls) = (None, None);
        match &endpoint {
            Endpoint::Child(args) => child = Some(Mutex::new(EngineChild::start(args)?)),
            Endpoint::Tls(_, files) => tls = Some(client_config(files)?),
            Endpoint::Unix(_) | Endpoint::Tcp(_) => {}
        }
        Ok(Self { endpoint, tls, child })
    }

    /// Returns where streams lead.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// `Unavailable` when nobody listens or the child has died.
    pub async fn open(&self) -> Result<Stream> {
        match &self.endpoint {
            Endpoint::Unix(path) => connect_unix(path).await,
            Endpoint::Tcp(address) => connect_tcp(address).await.map(Stream::Tcp),
            Endpoint::Tls(address, _) => {
                let config = self.tls.as_ref().expect("the certificates were read with the dialer");
                connect_tls(address, config).await
            }
            Endpoint::Child(_) => {
                let child = self.child.as_ref().expect("the child was started with the dialer");
                let stream = child.lock().expect("no panic happens while the lock is held").open()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(UnixStream::from_std(stream)?))
            }
        }
    }

    /// Tells the engine child that no more requests come and waits until it has finished. Blocking, at most `grace`.
    pub fn close(&self, grace: Duration) {
        if let Some(child) = &self.child {
            child.lock().expect("no panic happens while the lock is held").finish(grace);
        }
    }
}

async fn connect_unix(path: &Path) -> Result<Stream> {
    match UnixStream::connect(path).await {
        Ok(stream) => Ok(Stream::Unix(stream)),
        Err(error) => Err(unavailable(&format!("unix://{}", path.display()), error)),
    }
}

async fn connect_tcp(address: &str) -> Result<TcpStream> {
    match TcpStream::connect(address).await {
        Ok(stream) => {
            stream.set_nodelay(true)?;
            Ok(stream)
        }
        Err(error) => Err(unavailable(&format!("tcp://{address}"), error)),
    }
}

async fn connect_tls(address: &str, config: &Arc<ClientConfig>) -> Result<Stream> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .map_err(|error| Error::invalid(format!("invalid host name in tcp://{address}")).with_source(error))?;
    let stream = connect_tcp(address).await?;
    let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await.map_err(|error| {
        Error::unavailable(format!("cannot connect to the engine at tcp://{address} over TLS")).with_source(error)
    })?;
    Ok(Stream::Tls(Box::new(stream)))
}

fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default TLS versions")
        .with_root_certificates(tls::read_authorities(&files.ca)?);
    let Some((cert, key)) = &files.pair else { return Ok(Arc::new(builder.with_no_client_auth())) };
    let (chain, private) = tls::read_pair(cert, key)?;
    let config = builder.with_client_auth_cert(chain, private).map_err(|error| {
        Error::invalid(format!("certificate {} and key {}", cert.display(), key.display())).with_source(error)
    })?;
    Ok(Arc::new(config))
}

fn unavailable(address: &str, error: std::io::Error) -> Error {
    let hint = match error.kind() {
        std::io::ErrorKind::PermissionDenied => "you may not use this socket; ask for membership of its group",
        _ => "is the daemon running?",
    };
    Error::unavailable(format!("cannot connect to the engine at {address} ({hint})")).with_source(error)
}

impl EngineChild {
    fn start(args: &[OsString]) -> Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        // Its own process group: Ctrl-C reaches this command alone, which then decides what to cancel.
        let process = Command::new("/proc/self/exe")
            .args(args)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context(|| "start the engine")?;
        Ok(Self { process, control: Some(ours.into()) })
    }

    fn open(&mut self) -> Result<std::os::unix::net::UnixStream> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let sent = match &self.control {
            Some(control) => socket::send_fd(control, theirs.as_fd()),
            None => Err(Error::internal("the engine was told to finish")),
        };
        sent.map_err(|error| match self.process.try_wait() {
            Ok(Some(status)) => Error::unavailable(format!("the engine stopped unexpectedly ({status})")),
            _ => error,
        })?;
        Ok(ours)
    }

    fn finish(&mut self, grace: Duration) {
        self.control = None;
        if let Ok(fd) = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(&self.process),
            rustix::process::PidfdFlags::empty(),
        ) {
            let timeout = rustix::time::Timespec::try_from(grace).ok();
            let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
            // Whether it ended in time does not matter: it goes on by itself.
            let _ = rustix::event::poll(&mut fds, timeout.as_ref());
        }
        // Reaps it when it has ended.
        let _ = self.process.try_wait();
    }
}

/// A byte stream to an engine.
#[derive(Debug)]
pub enum Stream {
    /// Over a unix socket.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_written_as_docker_writes_them() {
        for (text, endpoint) in [
            ("unix:///run/x.sock", Endpoint::Unix("/run/x.sock".into())),
            ("/run/x.sock", Endpoint::Unix("/run/x.sock".into())),
            ("tcp://10.0.0.1", Endpoint::Tcp("10.0.0.1:2375".into())),
            ("tcp://10.0.0.1:99/", Endpoint::Tcp("10.0.0.1:99".into())),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap(), endpoint);
        }
        for text in ["", "unix://relative", "ssh://host", "host:1"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_socket_nobody_listens_on_is_named_in_the_error() {
        let dialer = Dialer::new("unix:///nonexistent/x.sock".parse().unwrap()).unwrap();
        let error = dialer.open().await.unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Unavailable);
        assert!(error.to_string().contains("unix:///nonexistent/x.sock"), "{error}");
    }
}
