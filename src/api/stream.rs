//! Bodies for blocking code: an archive that is written becomes an answer, a request's body becomes a reader.

use std::io::{Read, Write};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::Response;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::Answer;
use crate::error::{Error, Result};
use crate::task::{self, Cancel};

/// Bytes handed over at a time.
const CHUNK: usize = 256 << 10;

/// Chunks under way: enough to keep both sides busy.
const CHUNKS: usize = 4;

/// Answers with what a blocking function writes. It is cancelled when the client goes away.
///
/// # Errors
/// Those of `produce`, when it fails before its first chunk; later ones break the connection, so that nobody takes the part for
/// the whole.
pub(super) async fn download(
    content_type: &'static str,
    produce: impl FnOnce(&mut dyn Write, &Cancel) -> Result<()> + Send + 'static,
) -> Answer<Response> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(CHUNKS);
    let cancel = Cancel::new();
    let guard = cancel.on_drop();
    let work = task::Owned::spawn(task::blocking(move || {
        let mut writer = std::io::BufWriter::with_capacity(CHUNK, ChunkWriter(sender));
        produce(&mut writer, &cancel)?;
        Ok(writer.flush()?)
    }));
    let Some(first) = receiver.recv().await else {
        work.join().await??;
        return Ok(response(content_type, Body::empty()));
    };
    let state = (Some(first), receiver, Some(work), guard);
    let chunks = futures_util::stream::unfold(state, async |(first, mut receiver, mut work, guard)| {
        if let Some(first) = first {
            return Some((Ok(first), (None, receiver, work, guard)));
        }
        if let Some(chunk) = receiver.recv().await {
            return Some((Ok(chunk), (None, receiver, work, guard)));
        }
        let failed = work.take()?.join().await.and_then(|result| result).err()?;
        Some((Err(failed), (None, receiver, None, guard)))
    });
    Ok(response(content_type, Body::from_stream(chunks)))
}

fn response(content_type: &'static str, body: Body) -> Response {
    Response::builder().header(header::CONTENT_TYPE, content_type).body(body).expect("the response is well formed")
}

struct ChunkWriter(mpsc::Sender<Bytes>);

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map_err(|_| Error::cancelled("the client went away"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A request's body, for blocking code. Must be read on the blocking pool.
pub(super) struct BodyReader {
    chunks: mpsc::Receiver<std::io::Result<Bytes>>,
    current: Bytes,
    _pump: task::Owned<()>,
}

impl BodyReader {
    /// Starts to read a body. Dropping the reader stops that.
    pub(super) fn new(body: Body) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS);
        let pump = task::Owned::spawn(async move {
            let mut body = body.into_data_stream();
            while let Some(chunk) = body.next().await {
                let chunk = chunk.map_err(|error| std::io::Error::from(Error::cancelled(format!("upload: {error}"))));
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        Self { chunks, current: Bytes::new(), _pump: pump }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_archive_that_fails_midway_breaks_off() {
        let broken = download("application/x-tar", |out, _| {
            out.write_all(&vec![1; 3 * CHUNK])?;
            Err(Error::corrupt("a blob is damaged"))
        });
        let body = broken.await.unwrap().into_body();
        assert!(axum::body::to_bytes(body, 1 << 30).await.is_err());
        let refused = download("application/x-tar", |_, _| Err(Error::not_found("No such image: x"))).await;
        assert_eq!(refused.unwrap_err().parts().0, 404);
    }

    #[tokio::test]
    async fn a_body_is_read_to_its_end() {
        let body = Body::from(vec![7; 1 << 20]);
        let mut reader = BodyReader::new(body);
        let read = task::blocking(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all)?;
            Ok(all)
        });
        assert_eq!(read.await.unwrap(), vec![7; 1 << 20]);
    }
}
