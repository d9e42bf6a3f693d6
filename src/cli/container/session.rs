//! A conversation with a container's processes: this command's input to them, their output to this command.

use bytes::{Bytes, BytesMut};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

use super::detach::{Detector, Keys};
use super::frames::{Frames, Target};
use super::stdio::{Input, Output};
use crate::client::Hijacked;
use crate::error::Result;

/// The most that is read at once.
const CHUNK: usize = 64 << 10;

/// What a conversation consists of.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Whether input is sent.
    pub(super) input: bool,
    /// Whether output or errors are shown.
    pub(super) output: bool,
    /// Whether there is a terminal inside: then nothing is framed, and the keys detach.
    pub(super) tty: bool,
    /// The keys that detach; `None` when nothing does.
    pub(super) keys: Option<Keys>,
}

/// How a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The engine closed it, or all input was sent and no output is wanted.
    Closed,
    /// The user typed the keys.
    Detached,
}

/// Holds the conversation until it ends.
///
/// # Errors
/// When the output cannot be written, the engine reports an error, or the connection breaks.
pub(super) async fn converse(stream: Hijacked, settings: Settings) -> Result<End> {
    let (reader, writer) = tokio::io::split(stream.io);
    // Only a terminal can be left by keys: to a program that reads a pipe they are data.
    let detector = settings.keys.filter(|_| settings.tty && settings.input).map(Detector::new);
    let input = async {
        if settings.input {
            send(writer, Input::open()?, detector).await
        } else {
            // Kept open: closing it would mean the end of the input to engines that have it attached.
            drop(writer);
            Ok(End::Closed)
        }
    };
    if !settings.output {
        return input.await;
    }
    let output = receive(reader, settings.tty);
    tokio::pin!(input, output);
    tokio::select! {
        end = &mut input => match end? {
            End::Detached => Ok(End::Detached),
            End::Closed => output.await,
        },
        end = &mut output => end,
    }
}

/// Sends input until it ends, and then says so; or until the keys are typed.
async fn send(
    mut writer: WriteHalf<TokioIo<Upgraded>>,
    mut input: Input,
    mut detector: Option<Detector>,
) -> Result<End> {
    while let Some(content) = input.next().await {
        let (content, detached) = match &mut detector {
            Some(detector) => {
                let (passed, detached) = detector.feed(&content);
                (Bytes::from(passed), detached)
            }
            None => (content, false),
        };
        // A program that no longer reads is no failure: its output still counts.
        if writer.write_all(&content).await.is_err() {
            return Ok(End::Closed);
        }
        if detached {
            return Ok(End::Detached);
        }
    }
    if let Some(detector) = &mut detector {
        let _ = writer.write_all(&detector.finish()).await;
    }
    let _ = writer.shutdown().await;
    Ok(End::Closed)
}

/// Shows output until the engine closes the stream.
async fn receive(mut reader: ReadHalf<TokioIo<Upgraded>>, tty: bool) -> Result<End> {
    let mut show = Show::new(tty);
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        if reader.read_buf(&mut buffer).await? == 0 {
            break;
        }
        show.write(buffer.split().freeze()).await?;
    }
    show.finish().await?;
    Ok(End::Closed)
}

/// Writes a stream of output, taking frames apart where there are any.
#[derive(Debug)]
pub(super) struct Show {
    frames: Option<Frames>,
    /// Opened when there is something to write.
    output: Option<Output>,
}

impl Show {
    pub(super) fn new(tty: bool) -> Self {
        Self { frames: (!tty).then(Frames::default), output: None }
    }

    /// Writes what a piece of the stream holds.
    ///
    /// # Errors
    /// As [`Output::write`] and [`Frames::next`].
    pub(super) async fn write(&mut self, mut content: Bytes) -> Result<()> {
        let output = match &mut self.output {
            Some(output) => output,
            None => self.output.insert(Output::open()?),
        };
        let Some(frames) = &mut self.frames else { return output.write(Target::Output, content).await };
        while let Some((target, content)) = frames.next(&mut content)? {
            output.write(target, content).await?;
        }
        Ok(())
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// As [`Output::finish`].
    pub(super) async fn finish(self) -> Result<()> {
        match self.output {
            Some(output) => output.finish().await,
            None => Ok(()),
        }
    }
}
