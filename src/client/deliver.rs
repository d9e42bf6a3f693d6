//! Taking what the engine sends for an exporter (`moby.filesync.v1.FileSend`): a stream of bytes into a file, or files into a
//! directory.
//!
//! Which of the two comes depends on the exporter, so messages are decoded here and not by the generated service. A file is
//! replaced when all of it has come, and not before.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use crate::error::{Error, Result, ResultExt as _};
use crate::filesync::{self, Folder, Packet};
use crate::task::{self, Owned};
use crate::types::build::{BytesMessage, MAX_MESSAGE_BYTES};

/// The method that is served.
pub(super) const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// Names the exporter whose output comes, by its number in the request.
const EXPORTER: &str = "buildkit-attachable-exporter-id";

/// Messages that have come and are not written yet, of at most four MiB each.
const UNDER_WAY: usize = 4;

/// Where the output of an exporter goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Bytes to a file.
    File(PathBuf),
    /// Bytes to standard output.
    Stdout,
    /// The files of an archive, which is an OCI layout, to a directory.
    Layout(PathBuf),
    /// Files to a directory, which is made when it is missing.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Whether what was there and did not come is removed.
        delete: bool,
    },
}

/// Takes the output of an exporter.
pub(super) async fn take(outputs: Arc<Vec<Option<Delivery>>>, request: http::Request<Body>) -> http::Response<Body> {
    let mut server = tonic::server::Grpc::new(Raw).max_decoding_message_size(MAX_MESSAGE_BYTES);
    server.streaming(Taker(outputs), request).await.map(Body::new)
}

struct Taker(Arc<Vec<Option<Delivery>>>);

impl StreamingService<Bytes> for Taker {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let delivery = delivery(&self.0, &request);
        async move {
            let incoming = request.into_inner();
            match delivery? {
                Delivery::Directory { path, delete } => directory(path, delete, incoming).await.map(Response::new),
                other => {
                    bytes(other, incoming).await.map_err(|error| refusal(&error))?;
                    Ok(Response::new(stream::empty().boxed()))
                }
            }
        }
        .boxed()
    }
}

/// Finds out whose output comes: that of the exporter of a number or, from old engines, of the only one.
fn delivery(outputs: &[Option<Delivery>], request: &Request<Streaming<Bytes>>) -> Result<Delivery, Status> {
    let number = request.metadata().get(EXPORTER).and_then(|value| value.to_str().ok());
    let found = match number {
        Some(number) => number.parse().ok().and_then(|number: usize| outputs.get(number)?.clone()),
        None => {
            let mut all = outputs.iter().flatten();
            all.next().filter(|_| all.next().is_none()).cloned()
        }
    };
    found.ok_or_else(|| Status::invalid_argument("nothing is wanted of this exporter"))
}

fn refusal(error: &Error) -> Status {
    Status::new(error.kind().codes().1.into(), error.to_string())
}

/// Takes a stream of bytes.
async fn bytes(delivery: Delivery, mut incoming: Streaming<Bytes>) -> Result<()> {
    let (sender, receiver) = mpsc::channel(UNDER_WAY);
    let writing = Owned::spawn(task::blocking(move || write(&delivery, Pieces { receiver, piece: Bytes::new() })));
    loop {
        let piece = match incoming.message().await {
            Ok(Some(message)) => {
                BytesMessage::decode(message).map(|message| Bytes::from(message.data)).map_err(|error| {
                    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("a message of the engine: {error}"))
                })
            }
            Ok(None) => break,
            // Not all has come, so nothing is to be kept.
            Err(status) => Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, status.message().to_owned())),
        };
        let broken = piece.is_err();
        if sender.send(piece).await.is_err() || broken {
            break;
        }
    }
    drop(sender);
    writing.join().await?
}

fn write(delivery: &Delivery, mut from: Pieces) -> Result<()> {
    match delivery {
        Delivery::Stdout => {
            let mut out = std::io::stdout().lock();
            std::io::copy(&mut from, &mut out).and_then(|_| out.flush()).context(|| "write to standard output")
        }
        Delivery::File(path) => replace(path, from),
        Delivery::Layout(path) => layout(path, from),
        Delivery::Directory { .. } => Err(Error::internal("a directory takes files, not bytes")),
    }
}

/// Writes a file whole or not at all. What is no regular file (`/dev/stdout`, a pipe) is written into.
fn replace(path: &Path, mut from: impl Read) -> Result<()> {
    let doing = || format!("write {}", path.display());
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        let mut file = File::options().write(true).open(path).context(doing)?;
        return std::io::copy(&mut from, &mut file).map(drop).context(doing);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary)
        .and_then(|mut file| std::io::copy(&mut from, &mut file))
        .and_then(|_| std::fs::rename(&temporary, path));
    if written.is_err() {
        // It is there only if it could be made.
        let _ = std::fs::remove_file(&temporary);
    }
    written.context(doing)
}

/// Unpacks an OCI layout: only the files that layouts have, by their names.
fn layout(path: &Path, from: impl Read) -> Result<()> {
    let doing = || format!("write {}", path.display());
    std::fs::create_dir_all(path.join("blobs/sha256")).context(doing)?;
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries().context(doing)? {
        let mut entry = entry.context(doing)?;
        if entry.header().entry_type() != tar::EntryType::Regular {
            continue;
        }
        let name = entry.path().context(doing)?.into_owned();
        if !is_of_layout(&name) {
            return Err(Error::invalid(format!("{} is no file of an OCI layout", name.display())).context(doing()));
        }
        let target = path.join(&name);
        if name.starts_with("blobs") && target.is_file() {
            // It has the name of its content.
            std::io::copy(&mut entry, &mut std::io::sink()).context(doing)?;
        } else {
            replace(&target, &mut entry)?;
        }
    }
    Ok(())
}

fn is_of_layout(name: &Path) -> bool {
    let Some(name) = name.to_str() else { return false };
    let is_digest = |hex: &str| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    matches!(name, "index.json" | "oci-layout" | "manifest.json")
        || name.strip_prefix("blobs/sha256/").is_some_and(is_digest)
}

/// Takes files; the answer goes on while they come.
async fn directory(
    path: PathBuf,
    delete: bool,
    incoming: Streaming<Bytes>,
) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
    let folder = task::blocking(move || Folder::open(&path, delete)).await.map_err(|error| refusal(&error))?;
    let packets = incoming.map(|message| {
        Packet::decode(message?).map_err(|error| Status::invalid_argument(format!("a message of the engine: {error}")))
    });
    let (sender, receiver) = filesync::answers();
    let taking = Owned::spawn(filesync::receive(packets, sender, folder));
    let answers = ReceiverStream::new(receiver).map(|packet| Ok(Bytes::from(packet.encode_to_vec())));
    // The end of the answer says how it went.
    let end = stream::once(async move { taking.join().await.and_then(|taken| taken.map(drop)) });
    let end = end.filter_map(|ended| std::future::ready(ended.err().map(|error| Err(refusal(&error)))));
    Ok(answers.chain(end).boxed())
}

/// What has come, as a stream.
struct Pieces {
    receiver: mpsc::Receiver<std::io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let len = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

/// Messages as they are.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_file_is_replaced_only_by_all_of_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        std::fs::write(&path, "old").unwrap();
        let (sender, receiver) = mpsc::channel(2);
        sender.try_send(Ok(Bytes::from_static(b"new"))).unwrap();
        sender.try_send(Err(std::io::ErrorKind::UnexpectedEof.into())).unwrap();
        assert!(replace(&path, Pieces { receiver, piece: Bytes::new() }).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        replace(&path, &b"new"[..]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_layout_holds_nothing_but_its_files() {
        let hex = "0123456789abcdef".repeat(4);
        for (name, expected) in [
            ("index.json", true),
            ("oci-layout", true),
            (&format!("blobs/sha256/{hex}"), true),
            ("../index.json", false),
            ("blobs/sha256/../../x", false),
            ("/index.json", false),
            ("other", false),
        ] {
            assert_eq!(is_of_layout(Path::new(name)), expected, "{name}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        header.set_entry_type(tar::EntryType::Regular);
        header.as_mut_bytes()[..9].copy_from_slice(b"../escape");
        header.set_cksum();
        tar.append(&header, &b"x"[..]).unwrap();
        let error = layout(&dir.path().join("layout"), tar.into_inner().unwrap().as_slice()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(!dir.path().join("escape").exists());
    }
}
