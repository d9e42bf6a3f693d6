//! Content stores of this process for the engine: directories in the form of OCI layouts, which it reads blobs from and, where a
//! cache is to be kept, writes blobs to. The index is not its business: whoever asked for the build writes that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use kiln_graph::{Algorithm, Digest};
use sha2::Digest as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::{ServerStreamingService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::error::{Error, Result, ResultExt as _};
use crate::task::{Owned, blocking};
use crate::types::build::MAX_MESSAGE_BYTES;
use crate::wire::content::{
    CHUNK, INFO, Info, InfoRequest, InfoResponse, READ, ReadContentRequest, ReadContentResponse, STORE_ID, WRITE,
    WriteAction, WriteContentRequest, WriteContentResponse,
};

/// The methods that are served when there are stores.
pub(super) const METHODS: &[&str] = &[INFO, READ, WRITE];

/// Messages on their way to the connection.
const UNDER_WAY: usize = 2;

/// A directory with blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentDir {
    /// Where it is.
    pub path: PathBuf,
    /// Whether the engine may add blobs.
    pub writable: bool,
}

/// The directories, by the names the engine is told.
#[derive(Clone, Debug, Default)]
pub(super) struct ContentDirs(pub(super) Arc<BTreeMap<String, ContentDir>>);

impl ContentDirs {
    /// Answers a call of one of [`METHODS`].
    pub(super) async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path() {
            INFO => {
                let codec = ProstCodec::<InfoResponse, InfoRequest>::default();
                tonic::server::Grpc::new(codec).unary(self, request).await.map(Body::new)
            }
            READ => {
                let codec = ProstCodec::<ReadContentResponse, ReadContentRequest>::default();
                tonic::server::Grpc::new(codec).server_streaming(self, request).await.map(Body::new)
            }
            _ => {
                let codec = ProstCodec::<WriteContentResponse, WriteContentRequest>::default();
                let mut server = tonic::server::Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE_BYTES);
                server.streaming(self, request).await.map(Body::new)
            }
        }
    }

    fn store<T>(&self, request: &Request<T>) -> Result<ContentDir, Status> {
        let id = request.metadata().get(STORE_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
        self.0.get(id).cloned().ok_or_else(|| Status::not_found(format!("no content store {id:?} is offered")))
    }
}

fn refusal(error: &Error) -> Status {
    Status::new(error.kind().codes().1.into(), error.to_string())
}

fn parse(digest: &str) -> Result<Digest, Status> {
    digest.parse().map_err(|_| Status::invalid_argument(format!("{digest:?} is no digest")))
}

/// Where a layout keeps a blob.
fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
}

/// Opens a blob; `NotFound` when there is none.
fn open(dir: &Path, digest: &Digest) -> Result<(File, u64)> {
    let opened = File::open(blob_path(dir, digest)).and_then(|file| Ok((file.metadata()?, file)));
    match opened {
        Ok((metadata, file)) if metadata.is_file() => Ok((file, metadata.len())),
        Ok(_) => Err(Error::not_found(format!("blob {digest} is no file"))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Error::not_found(format!("there is no blob {digest} in {}", dir.display())))
        }
        Err(error) => Err(error).context(|| format!("open blob {digest} in {}", dir.display())),
    }
}

impl UnaryService<InfoRequest> for ContentDirs {
    type Response = InfoResponse;
    type Future = BoxFuture<'static, Result<Response<InfoResponse>, Status>>;

    fn call(&mut self, request: Request<InfoRequest>) -> Self::Future {
        let store = self.store(&request);
        async move {
            let (dir, digest) = (store?.path, parse(&request.into_inner().digest)?);
            let size = blocking(move || open(&dir, &digest)).await.map_err(|error| refusal(&error))?.1;
            let info = Info { digest: digest.to_string(), size: i64::try_from(size).unwrap_or(i64::MAX) };
            Ok(Response::new(InfoResponse { info: Some(info) }))
        }
        .boxed()
    }
}

impl ServerStreamingService<ReadContentRequest> for ContentDirs {
    type Response = ReadContentResponse;
    type ResponseStream = futures_util::stream::BoxStream<'static, Result<ReadContentResponse, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<ReadContentRequest>) -> Self::Future {
        let store = self.store(&request);
        async move {
            let (dir, request) = (store?.path, request.into_inner());
            let digest = parse(&request.digest)?;
            let number = |number: i64| u64::try_from(number).map_err(|_| Status::out_of_range("a negative range"));
            let (offset, size) = (number(request.offset)?, number(request.size)?);
            let opened = blocking(move || {
                let (mut file, length) = open(&dir, &digest)?;
                file.seek(SeekFrom::Start(offset))?;
                Ok((file, length))
            });
            let (file, length) = opened.await.map_err(|error| refusal(&error))?;
            if offset > length {
                return Err(Status::out_of_range(format!("blob {digest} has {length} bytes")));
            }
            let rest = if size == 0 { length - offset } else { size.min(length - offset) };
            let (sender, receiver) = mpsc::channel(UNDER_WAY);
            let reading = Owned::spawn(blocking(move || {
                send(file, request.offset, rest, &sender);
                Ok(())
            }));
            let pieces = futures_util::stream::unfold((ReceiverStream::new(receiver), reading), async |mut state| {
                state.0.next().await.map(|piece| (piece, state))
            });
            Ok(Response::new(pieces.boxed()))
        }
        .boxed()
    }
}

/// Sends what is left of a file; ends early when nobody takes it.
fn send(file: File, offset: i64, rest: u64, to: &mpsc::Sender<Result<ReadContentResponse, Status>>) {
    let (mut file, mut offset) = (file.take(rest), offset);
    loop {
        let mut piece = Vec::with_capacity(CHUNK);
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut piece);
        let message = match read {
            Ok(0) => return,
            Ok(_) => Ok(ReadContentResponse { offset, data: Bytes::from(piece) }),
            Err(error) => Err(Status::data_loss(error.to_string())),
        };
        let broken = message.is_err();
        offset += message.as_ref().map_or(0, |message| i64::try_from(message.data.len()).unwrap_or_default());
        if to.blocking_send(message).is_err() || broken {
            return;
        }
    }
}

impl StreamingService<WriteContentRequest> for ContentDirs {
    type Response = WriteContentResponse;
    type ResponseStream = futures_util::stream::BoxStream<'static, Result<WriteContentResponse, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<WriteContentRequest>>) -> Self::Future {
        let store = self.store(&request);
        async move {
            let store = store?;
            if !store.writable {
                return Err(Status::permission_denied("this content store is not written to"));
            }
            let state = (request.into_inner(), Some(Writing::Nothing(store.path)));
            let answers = futures_util::stream::unfold(state, async |(mut messages, writing)| {
                let writing = writing?;
                let message = match messages.message().await {
                    Ok(message) => message?,
                    Err(status) => return Some((Err(status), (messages, None))),
                };
                // In whole steps on the blocking pool: hashing and writing.
                match blocking(move || writing.step(&message)).await {
                    Ok(Ok((answer, writing))) => Some((Ok(answer), (messages, writing))),
                    Ok(Err(status)) => Some((Err(status), (messages, None))),
                    Err(error) => Some((Err(refusal(&error)), (messages, None))),
                }
            });
            Ok(Response::new(answers.boxed()))
        }
        .boxed()
    }
}

/// A blob that is written.
enum Writing {
    /// Nothing was said about it; the directory it will be in.
    Nothing(PathBuf),
    Open(Box<Partial>),
}

/// A blob of which something is there.
struct Partial {
    dir: PathBuf,
    file: File,
    temporary: PathBuf,
    hash: sha2::Sha256,
    written: u64,
    total: i64,
    expected: Option<Digest>,
}

type Stepped = Result<(WriteContentResponse, Option<Writing>), Status>;

impl Writing {
    /// Does what a message says. Blocking.
    fn step(self, message: &WriteContentRequest) -> Result<Stepped> {
        let mut partial = match self {
            Self::Open(partial) => partial,
            Self::Nothing(dir) => match Partial::open(dir, message)? {
                Ok(partial) => Box::new(partial),
                Err(status) => return Ok(Err(status)),
            },
        };
        let action = WriteAction::try_from(message.action).unwrap_or(WriteAction::Stat);
        if !message.data.is_empty() {
            if u64::try_from(message.offset).ok() != Some(partial.written) {
                let written = partial.written;
                return Ok(Err(Status::out_of_range(format!("{written} bytes were written, not {}", message.offset))));
            }
            partial.file.write_all(&message.data).context(|| format!("write {}", partial.temporary.display()))?;
            partial.hash.update(&message.data);
            partial.written += message.data.len() as u64;
        }
        let offset = i64::try_from(partial.written).unwrap_or(i64::MAX);
        let mut answer =
            WriteContentResponse { action: message.action, offset, total: partial.total, ..Default::default() };
        if action != WriteAction::Commit {
            return Ok(Ok((answer, Some(Self::Open(partial)))));
        }
        match partial.commit(message)? {
            Ok(digest) => {
                answer.digest = digest.to_string();
                Ok(Ok((answer, None)))
            }
            Err(status) => Ok(Err(status)),
        }
    }
}

impl Partial {
    fn open(dir: PathBuf, message: &WriteContentRequest) -> Result<Result<Self, Status>> {
        if message.r#ref.is_empty() {
            return Ok(Err(Status::invalid_argument("what is written has no name (ref)")));
        }
        let expected = match message.expected.as_str() {
            "" => None,
            digest => match parse(digest) {
                Ok(digest) if digest.algorithm() == Algorithm::Sha256 => Some(digest),
                Ok(digest) => return Ok(Err(Status::unimplemented(format!("{digest}: blobs are written by SHA-256")))),
                Err(status) => return Ok(Err(status)),
            },
        };
        if expected.is_some_and(|expected| open(&dir, &expected).is_ok()) {
            return Ok(Err(Status::already_exists(format!("content {}: already exists", message.expected))));
        }
        let ingest = dir.join("ingest");
        std::fs::create_dir_all(&ingest).context(|| format!("make {}", ingest.display()))?;
        let unique = getrandom::u64().map_err(|error| Error::internal(format!("make a name: {error}")))?;
        let temporary = ingest.join(format!("{unique:016x}"));
        let file = File::create_new(&temporary).context(|| format!("make {}", temporary.display()))?;
        let (hash, total) = (sha2::Sha256::new(), message.total);
        Ok(Ok(Self { dir, file, temporary, hash, written: 0, total, expected }))
    }

    /// Gives a blob its name, if it is what was promised.
    fn commit(&self, message: &WriteContentRequest) -> Result<Result<Digest, Status>> {
        let found = Digest::sha256(self.hash.clone().finalize().into());
        let promised = [message.total, self.total].into_iter().find(|total| *total > 0);
        if promised.is_some_and(|total| u64::try_from(total).ok() != Some(self.written)) {
            return Ok(Err(Status::failed_precondition(format!("{} bytes were written", self.written))));
        }
        let named = if message.expected.is_empty() { self.expected } else { message.expected.parse().ok() };
        if named.is_some_and(|expected| expected != found) {
            return Ok(Err(Status::failed_precondition(format!("what was written has the digest {found}"))));
        }
        let path = blob_path(&self.dir, &found);
        let parent = path.parent().unwrap_or(&self.dir);
        std::fs::create_dir_all(parent).context(|| format!("make {}", parent.display()))?;
        std::fs::rename(&self.temporary, &path).context(|| format!("write {}", path.display()))?;
        Ok(Ok(found))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // One that is complete has moved on.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
