//! Passing file descriptors over unix sockets (`SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use crate::error::Result;

/// Sends one descriptor. Blocking unless the socket is not.
///
/// # Errors
/// When the other end is closed.
pub fn send_fd(socket: impl AsFd, fd: BorrowedFd<'_>) -> Result<()> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    debug_assert!(fits, "the buffer has room for one descriptor");
    rustix::net::sendmsg(socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one descriptor; `None` when the other end is closed. Blocking unless the socket is not.
///
/// # Errors
/// `WouldBlock` for a non-blocking socket with nothing to read; `InvalidData` for a message without a descriptor.
pub fn recv_fd(socket: impl AsFd) -> std::io::Result<Option<OwnedFd>> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let buffers = &mut [IoSliceMut::new(&mut byte)];
    let received = rustix::net::recvmsg(socket, buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let rights = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let missing = || std::io::Error::new(std::io::ErrorKind::InvalidData, "expected a file descriptor");
    rights.map(Some).ok_or_else(missing)
}

/// Takes over a descriptor that this process was started with, and keeps it from programs it starts.
///
/// # Errors
/// When there is no such descriptor.
pub fn inherit(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: the call only looks whether the number is an open descriptor, and fails otherwise.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // A copy, so that nobody else can own the same number: the original stays open until the process ends.
    Ok(rustix::io::fcntl_dupfd_cloexec(borrowed, fd)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_arrives_at_the_other_end() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut mine, theirs) = UnixStream::pair().unwrap();
        send_fd(&left, theirs.as_fd()).unwrap();
        drop((theirs, left));
        let mut received = UnixStream::from(recv_fd(&right).unwrap().unwrap());
        mine.write_all(b"x").unwrap();
        let mut byte = [0];
        received.read_exact(&mut byte).unwrap();
        assert!(recv_fd(&right).unwrap().is_none(), "a closed socket ends the conversation");
    }
}
