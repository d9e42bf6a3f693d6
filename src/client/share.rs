//! Directories of this process for the engine: it asks for a tree by its name, and gets what has changed since it asked last.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::filesync::{self, Filter, Packet, Source};
use crate::task::{Owned, blocking};
use crate::types::build::moby::filesync::v1::file_sync_server::FileSync;

/// The directories, by the names the engine is told.
#[derive(Clone, Debug, Default)]
pub(super) struct Directories(pub(super) Arc<BTreeMap<String, PathBuf>>);

type Packets = Pin<Box<dyn Stream<Item = Result<Packet, Status>> + Send>>;

#[tonic::async_trait]
impl FileSync for Directories {
    type DiffCopyStream = Packets;
    type TarStreamStream = Packets;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        let metadata = request.metadata();
        let name = values(metadata, "dir-name")?.pop().unwrap_or_default();
        let dir = self.0.get(&name).cloned();
        let dir = dir.ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let filter = Filter {
            include: values(metadata, "include-patterns")?,
            exclude: values(metadata, "exclude-patterns")?,
            follow: values(metadata, "followpaths")?,
        };
        let source = blocking(move || Source::open(&dir, filter)).await;
        let source = source.map_err(|error| Status::new(error.kind().codes().1.into(), error.to_string()))?;
        let (say, said) = filesync::outgoing();
        // It ends when the engine goes; what goes wrong is said on the wire.
        let sending = Owned::spawn(filesync::send(source, request.into_inner(), say));
        let packets = stream::unfold((said, sending), async |(mut said, sending)| {
            let packet = said.recv().await?;
            Some((Ok(packet), (said, sending)))
        });
        Ok(Response::new(Box::pin(packets)))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        Err(Status::unimplemented("directories are sent by DiffCopy only"))
    }
}

/// The values of a key; where one could not stand in a header, all are escaped as queries are.
fn values(metadata: &MetadataMap, key: &str) -> Result<Vec<String>, Status> {
    let escaped = metadata.contains_key(format!("{key}-encoded").as_str());
    let bad = || Status::invalid_argument(format!("the values of {key} are malformed"));
    let value = |value: &tonic::metadata::AsciiMetadataValue| {
        let text = value.to_str().map_err(|_| bad())?;
        if escaped { unescape(text).ok_or_else(bad) } else { Ok(text.to_owned()) }
    };
    metadata.get_all(key).iter().map(value).collect()
}

/// `None` for what is no escaped text.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_were_escaped_are_read() {
        let mut metadata = MetadataMap::new();
        metadata.append("followpaths", "a%2Fb+c%C3%A9".parse().unwrap());
        metadata.insert("followpaths-encoded", "1".parse().unwrap());
        metadata.append("exclude-patterns", "a%2Fb".parse().unwrap());
        metadata.append("exclude-patterns", "!x".parse().unwrap());
        assert_eq!(values(&metadata, "followpaths").unwrap(), ["a/b cé"]);
        assert_eq!(values(&metadata, "exclude-patterns").unwrap(), ["a%2Fb", "!x"]);
        assert_eq!((unescape("%zz"), unescape("%4")), (None, None));
    }
}
