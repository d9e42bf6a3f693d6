//! This command's own input, output and errors, read and written by threads.
//!
//! A terminal or pipe is shared with other programs and must stay blocking, and a slow reader of the output must not keep
//! signals from being forwarded. One thread writes output and errors, so that their order is kept. Threads that are blocked when the
//! command ends end with it.

use std::io::{Read as _, Write as _};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::frames::Target;
use crate::error::{Error, Result};
use crate::task;

/// The most that is read at once.
const CHUNK: usize = 64 << 10;

/// Pieces on their way: one being handled, one next. More would only delay the end.
const QUEUE: usize = 2;

/// Standard input.
#[derive(Debug)]
pub(super) struct Input(mpsc::Receiver<Bytes>);

impl Input {
    /// Begins to read.
    ///
    /// # Errors
    /// When the system has no more threads to give.
    pub(super) fn open() -> Result<Self> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        task::thread("stdin", move || read(&sender))?;
        Ok(Self(receiver))
    }

    /// Returns what was read; `None` at the end of the input. An input that cannot be read ends.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }
}

fn read(sender: &mpsc::Sender<Bytes>) {
    let mut input = std::io::stdin().lock();
    let mut buffer = vec![0; CHUNK];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if sender.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Standard output and errors.
#[derive(Debug)]
pub(super) struct Output {
    sender: mpsc::Sender<(Target, Bytes)>,
    written: oneshot::Receiver<std::io::Result<()>>,
}

impl Output {
    /// Makes a way to write.
    ///
    /// # Errors
    /// When the system has no more threads to give.
    pub(super) fn open() -> Result<Self> {
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let (done, written) = oneshot::channel();
        task::thread("stdout", move || {
            // Nobody waits for it when the command is leaving anyway.
            let _ = done.send(write(&mut receiver));
        })?;
        Ok(Self { sender, written })
    }

    /// Writes a piece; waits when the one before is not yet written.
    ///
    /// # Errors
    /// When output could not be written, such as to a closed pipe.
    pub(super) async fn write(&mut self, target: Target, content: Bytes) -> Result<()> {
        match self.sender.send((target, content)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(unwritten((&mut self.written).await)),
        }
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub(super) async fn finish(self) -> Result<()> {
        drop(self.sender);
        match self.written.await {
            Ok(Ok(())) => Ok(()),
            other => Err(unwritten(other)),
        }
    }
}

fn unwritten(result: Result<std::io::Result<()>, oneshot::error::RecvError>) -> Error {
    match result {
        Ok(Err(error)) => Error::from(error).context("write the output"),
        _ => Error::internal("the output was closed too early"),
    }
}

fn write(receiver: &mut mpsc::Receiver<(Target, Bytes)>) -> std::io::Result<()> {
    while let Some((target, content)) = receiver.blocking_recv() {
        match target {
            Target::Output => {
                let mut output = std::io::stdout().lock();
                output.write_all(&content)?;
                output.flush()?;
            }
            Target::Errors => std::io::stderr().lock().write_all(&content)?,
        }
    }
    Ok(())
}
