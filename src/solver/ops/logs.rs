//! Passing on what a process prints.
//!
//! Standard output and standard error come through one pipe, so that lines are shown in the order in which they were written,
//! which two pipes cannot promise. What is lost is which of the two a line was for: all of it is reported as standard output.
//! Nothing is cut: a client that does not keep up makes the step wait only as far as the engine's memory is concerned.

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

use crate::error::{Result, ResultExt as _};
use crate::sandbox::Streams;
use crate::solver::reporter::Reporter;

/// How much is read at a time, in bytes: what a pipe holds.
const PIECE: usize = 64 << 10;

/// The number of standard output.
const OUTPUT: u8 = 1;

/// Reports what is printed until the last process that has the pipe open has gone.
///
/// # Errors
/// When the pipe cannot be read.
pub(super) async fn pass_on(streams: Streams, reporter: &Reporter) -> Result<()> {
    let Some(stream) = streams.stdout else { return Ok(()) };
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
        reporter.log(OUTPUT, &data);
    }
}
