//! Passing on what a process prints.

use std::os::fd::OwnedFd;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

use crate::error::{Result, ResultExt as _};
use crate::sandbox::Streams;
use crate::solver::reporter::Reporter;

/// How much is read at a time, in bytes: what a pipe holds.
const PIECE: usize = 64 << 10;

/// Reports what comes from both streams until the last process that has them open has gone.
///
/// # Errors
/// When a stream cannot be read.
pub(super) async fn pass_on(streams: Streams, reporter: &Reporter) -> Result<()> {
    let (out, err) = tokio::join!(follow(streams.stdout, 1, reporter), follow(streams.stderr, 2, reporter));
    out.and(err)
}

async fn follow(stream: Option<OwnedFd>, number: u8, reporter: &Reporter) -> Result<()> {
    let Some(stream) = stream else { return Ok(()) };
    let context = || "read what a step prints";
    rustix::io::ioctl_fionbio(&stream, true).context(context)?;
    let mut stream = Receiver::from_owned_fd(stream).context(context)?;
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < PIECE / 16 {
            buffer.reserve(PIECE);
        }
        if stream.read_buf(&mut buffer).await.context(context)? == 0 {
            return Ok(());
        }
        let data: Bytes = buffer.split().freeze();
        reporter.log(number, &data);
    }
}
