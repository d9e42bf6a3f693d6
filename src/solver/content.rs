//! Content stores of clients: blobs of caches and layouts that are at the client, through its session.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use http::uri::PathAndQuery;
use kiln_graph::Digest;
use kiln_graph::oci::Descriptor;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::session::{ENDED, Session, from_status};
use crate::error::{Error, Result, ResultExt as _};
use crate::image::{BlobSource, LayerSink, pour};
use crate::registry::{BlobSink as _, Progress};
use crate::wire::content::{
    INFO, InfoRequest, InfoResponse, READ, ReadContentRequest, ReadContentResponse, STORE_ID, WRITE, WriteAction,
    WriteContentRequest, WriteContentResponse,
};

/// A content store of a client.
#[derive(Clone, Debug)]
pub(super) struct ContentStore {
    session: Session,
    id: String,
}

impl ContentStore {
    /// Names a store of a client.
    ///
    /// # Errors
    /// `Unsupported` when the client serves none.
    pub(super) fn of(session: Session, id: String) -> Result<Self> {
        if !session.offers(READ) {
            return Err(Error::unsupported(format!("the client does not offer the content store {id:?}")));
        }
        Ok(Self { session, id })
    }

    async fn client(&self) -> Result<Grpc<Channel>> {
        let mut client = Grpc::new(self.session.channel.clone());
        client.ready().await.map_err(|error| Error::unavailable(ENDED).with_source(error))?;
        Ok(client)
    }

    fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        let id = self.id.parse();
        let id =
            id.map_err(|_| Error::invalid(format!("the content store {:?} cannot be named in a header", self.id)))?;
        request.metadata_mut().insert(STORE_ID, id);
        Ok(request)
    }

    /// Waits for an answer of the client, or for the end of its session.
    async fn or_ended<T>(&self, call: impl Future<Output = Result<T, Status>> + Send) -> Result<T, Status> {
        tokio::select! {
            answer = call => answer,
            () = self.session.ended.cancelled() => Err(Status::unavailable(ENDED)),
        }
    }

    /// Returns the size of a blob; `None` when there is none of this digest.
    ///
    /// # Errors
    /// When the client refuses or its session ends.
    pub(super) async fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let request = self.request(InfoRequest { digest: digest.to_string() })?;
        let mut client = self.client().await?;
        let codec = ProstCodec::<InfoRequest, InfoResponse>::default();
        let answer = self.or_ended(client.unary(request, PathAndQuery::from_static(INFO), codec)).await;
        match answer {
            Ok(answer) => {
                let info = answer.into_inner().info.unwrap_or_default();
                u64::try_from(info.size).map(Some).map_err(|_| Error::invalid("a blob of the client has no size"))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(from_status(&status)).context(|| format!("look for {digest} at the client")),
        }
    }

    /// Returns the descriptor of a blob of which the digest is known only; its type is left empty.
    ///
    /// # Errors
    /// `NotFound` when there is none; otherwise as [`Self::size`].
    pub(super) async fn describe(&self, digest: &Digest) -> Result<Descriptor> {
        let size = self.size(digest).await?;
        let size = size.ok_or_else(|| Error::not_found(format!("the client has no blob {digest}")))?;
        Ok(Descriptor::new("", *digest, size))
    }

    async fn read(&self, digest: &Digest, offset: u64) -> Result<impl Stream<Item = Result<Bytes>> + Send + use<>> {
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        let request = self.request(ReadContentRequest { digest: digest.to_string(), offset, size: 0 })?;
        let mut client = self.client().await?;
        let codec = ProstCodec::<ReadContentRequest, ReadContentResponse>::default();
        let call = client.server_streaming(request, PathAndQuery::from_static(READ), codec);
        let answer = self.or_ended(call).await.map_err(|status| from_status(&status))?.into_inner();
        let pieces = answer.map(|piece| piece.map(|piece| piece.data).map_err(|status| from_status(&status)));
        // Whoever takes the pieces notices that some are missing.
        Ok(pieces.take_until(self.session.ended.clone().cancelled_owned()))
    }

    /// Sees to it that a blob is there. `content` gives it piece by piece.
    ///
    /// # Errors
    /// `Unsupported` when the client takes none; when it refuses or its session ends; those of `content`.
    pub(super) async fn write(
        &self,
        descriptor: &Descriptor,
        mut content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    ) -> Result<()> {
        if !self.session.offers(WRITE) {
            return Err(Error::unsupported("the client's content store cannot be written to"));
        }
        let (sender, receiver) = mpsc::channel::<WriteContentRequest>(1);
        let total = i64::try_from(descriptor.size).unwrap_or(i64::MAX);
        let message = |action: WriteAction, offset: i64, data: Bytes| WriteContentRequest {
            action: action.into(),
            r#ref: format!("kiln-{}", descriptor.digest),
            total,
            expected: descriptor.digest.to_string(),
            offset,
            data,
            ..WriteContentRequest::default()
        };
        let gone = |_| Error::unavailable(ENDED);
        sender.send(message(WriteAction::Stat, 0, Bytes::new())).await.map_err(gone)?;
        let request = self.request(ReceiverStream::new(receiver))?;
        let mut client = self.client().await?;
        let codec = ProstCodec::<WriteContentRequest, WriteContentResponse>::default();
        let opened = self.or_ended(client.streaming(request, PathAndQuery::from_static(WRITE), codec)).await;
        // Who has it already says so, now or as the first answer.
        let Some(opened) = unless_there(opened)? else { return Ok(()) };
        let mut answers = opened.into_inner();
        if unless_there(self.or_ended(answers.message()).await)?.is_none() {
            return Ok(());
        }
        let mut offset = 0_i64;
        while let Some(piece) = content.next().await {
            let piece = piece?;
            let length = i64::try_from(piece.len()).unwrap_or(i64::MAX);
            sender.send(message(WriteAction::Write, offset, piece)).await.map_err(gone)?;
            offset += length;
            self.or_ended(answers.message()).await.map_err(|status| from_status(&status))?;
        }
        sender.send(message(WriteAction::Commit, offset, Bytes::new())).await.map_err(gone)?;
        unless_there(self.or_ended(answers.message()).await).map(drop)
    }
}

/// `None` when what was to be written is there.
fn unless_there<T>(answer: Result<T, Status>) -> Result<Option<T>> {
    match answer {
        Err(status) if status.code() == Code::AlreadyExists => Ok(None),
        answer => answer.map(Some).map_err(|status| from_status(&status)),
    }
}

impl BlobSource for ContentStore {
    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        sink: LayerSink,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<LayerSink>> {
        async move {
            let read = self.read(&descriptor.digest, sink.offset()).await;
            let read = read.context(|| format!("read {} at the client", descriptor.digest))?;
            pour(read, sink, progress).await
        }
        .boxed()
    }
}
