//! The control socket of an engine child: its parent sends one end of a socket pair for every connection it wants.

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::error::Result;
use crate::sys::socket::recv_fd;

/// Where an engine child receives its connections.
#[derive(Debug)]
pub struct Control(UnixStream);

impl Control {
    /// Wraps the socket the parent left on standard input.
    ///
    /// # Errors
    /// When it is no socket.
    pub fn new(socket: OwnedFd) -> Result<Self> {
        from_fd(socket).map(Self)
    }

    /// Waits for the next connection; `None` when the parent has closed the socket or died.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn accept(&self) -> Result<Option<UnixStream>> {
        loop {
            self.0.readable().await?;
            match self.0.try_io(Interest::READABLE, || recv_fd(&self.0)) {
                Ok(received) => return received.map(from_fd).transpose(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn from_fd(fd: OwnedFd) -> Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    Ok(UnixStream::from_std(stream)?)
}
