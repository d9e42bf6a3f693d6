//! Request bodies out of files and standard input.

use std::io::Read;
use std::path::Path;

use axum::body::{Body, Bytes};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::error::{Result, ResultExt as _};
use crate::task;

/// Bytes sent at a time.
const CHUNK: usize = 256 << 10;

/// Chunks under way: one read, one sent.
const CHUNKS: usize = 2;

/// Makes a body of a file.
///
/// # Errors
/// When it cannot be opened.
pub(super) fn file(path: &Path) -> Result<Body> {
    let file = std::fs::File::open(path).context(|| format!("open {}", path.display()))?;
    reader(file)
}

/// Makes a body of standard input.
///
/// # Errors
/// When the system has no more threads to give.
pub(super) fn stdin() -> Result<Body> {
    reader(std::io::stdin())
}

fn reader(mut input: impl Read + Send + 'static) -> Result<Body> {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    // A thread of its own, because it may wait for a terminal or a pipe for ever; it ends with the command.
    task::thread("upload", move || {
        loop {
            let mut chunk = vec![0; CHUNK];
            match input.read(&mut chunk) {
                Ok(0) => return,
                Ok(read) => {
                    chunk.truncate(read);
                    if sender.blocking_send(Ok(Bytes::from(chunk))).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The body breaks off, and so does the request; nobody is left to tell.
                    let _ = sender.blocking_send(Err(error));
                    return;
                }
            }
        }
    })?;
    Ok(Body::from_stream(ReceiverStream::new(receiver)))
}
