//! Sending a client the files that an exporter makes for it (`moby.filesync.v1.FileSend`).

use std::io::Write;
use std::pin::pin;

use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use bollard_buildkit_proto::moby::filesync::packet::file_send_client::FileSendClient;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic_prost::ProstCodec;

use super::session::{ENDED, Session, from_status};
use crate::error::{Error, Kind, Result};
use crate::filesync::{self, Source};
use crate::task;

/// The service that takes files.
const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// Names the exporter whose files are sent, by its number in the request.
const EXPORTER: &str = "buildkit-attachable-exporter-id";

/// Says that the files are of several platforms.
const MULTI_PLATFORM: &str = "buildkit-exporter-multi-platform";

/// What a message of a stream holds, in bytes; clients take up to four MiB.
const PIECE: usize = 1 << 20;

/// Messages on their way to the client.
const UNDER_WAY: usize = 4;

impl Session {
    /// Makes sure that the client takes files.
    fn check_takes_files(&self) -> Result<()> {
        if self.offers(SEND) {
            return Ok(());
        }
        Err(Error::unsupported("the client takes no files: its session does not serve FileSend"))
    }

    /// Sends the client an exporter's output as a stream of bytes that `write` writes, on the blocking pool. Returns when the client
    /// has taken it all. Dropping the future ends the transfer, and the client then knows that it is not complete.
    ///
    /// # Errors
    /// Those of `write`; what the client says.
    pub async fn send_bytes(
        &self,
        exporter: usize,
        write: impl FnOnce(&mut dyn Write) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        tokio::select! {
            sent = self.pass_bytes(exporter, write) => sent,
            () = self.ended.cancelled() => Err(Error::unavailable(ENDED)),
        }
    }

    async fn pass_bytes(
        &self,
        exporter: usize,
        write: impl FnOnce(&mut dyn Write) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        self.check_takes_files()?;
        let (sender, receiver) = mpsc::channel(UNDER_WAY);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert(EXPORTER, exporter.into());
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let taking = async move {
            client.ready().await.map_err(|error| Error::unavailable(format!("the session of the client: {error}")))?;
            let codec: ProstCodec<BytesMessage, BytesMessage> = ProstCodec::default();
            let answer = client.streaming(request, PathAndQuery::from_static(SEND), codec).await;
            let mut answers = answer.map_err(|status| from_status(&status))?.into_inner();
            while answers.message().await.map_err(|status| from_status(&status))?.is_some() {}
            Ok(())
        };
        let writing = task::blocking(move || {
            let mut pieces = Pieces { sender, piece: Vec::with_capacity(PIECE) };
            let written = write(&mut pieces).and_then(|()| Ok(pieces.flush()?));
            Ok((written, pieces.sender))
        });
        tokio::pin!(taking, writing);
        let (written, sender) = tokio::select! {
            taken = &mut taking => {
                let early = || Err(Error::unavailable("the client closed the stream of files early"));
                return taken.and_then(|()| early()).map_err(|error| error.context("send files to the client".to_owned()));
            }
            done = &mut writing => done?,
        };
        if let Err(error) = written {
            // Who does not listen any more has said why.
            return if error.kind() == Kind::Unavailable { taking.await.and(Err(error)) } else { Err(error) };
        }
        // The end of the stream says that all was sent.
        drop(sender);
        taking.await.map_err(|error| error.context("send files to the client".to_owned()))
    }
}

impl Session {
    /// Sends the client an exporter's output as files. Returns when the client has them all. Dropping the future ends the
    /// transfer.
    ///
    /// # Errors
    /// What cannot be read; what the client says.
    pub async fn send_tree(&self, exporter: usize, source: Source, multi_platform: bool) -> Result<()> {
        tokio::select! {
            sent = self.pass_tree(exporter, source, multi_platform) => sent,
            () = self.ended.cancelled() => Err(Error::unavailable(ENDED)),
        }
    }

    async fn pass_tree(&self, exporter: usize, source: Source, multi_platform: bool) -> Result<()> {
        self.check_takes_files()?;
        let (outgoing, receiver) = filesync::outgoing();
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert(EXPORTER, exporter.into());
        if multi_platform {
            request.metadata_mut().insert(MULTI_PLATFORM, MetadataValue::from_static("true"));
        }
        let mut client = FileSendClient::new(self.channel.clone());
        let context = || "send files to the client".to_owned();
        // Some clients answer at all only when they have received something.
        let answered = stream::once(async move { client.diff_copy(request).await.map(tonic::Response::into_inner) });
        let mut answers = pin!(answered.try_flatten());
        let sent = filesync::send(source, &mut answers, outgoing).await;
        // Who stops early says why at the end.
        while let Some(rest) = answers.next().await {
            rest.map_err(|status| from_status(&status).context(context()))?;
        }
        sent.map_err(|error| error.context(context()))
    }
}

/// Cuts what is written into messages.
struct Pieces {
    sender: mpsc::Sender<BytesMessage>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let taken = data.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&data[..taken]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.sender.blocking_send(BytesMessage { data }).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}
