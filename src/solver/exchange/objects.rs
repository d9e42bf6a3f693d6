//! Caches in object stores and in caches of build services: a configuration under a name, and layers by their digests. There are
//! no manifests: the configuration says of each layer what manifests say elsewhere.

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use http::StatusCode;
use kiln_graph::Digest;
use kiln_graph::oci::{Descriptor, media_type};

use super::azblob::Azure;
use super::config::{self, CacheConfig};
use super::gha::Gha;
use super::s3::S3;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::image::{BlobSource, LayerSink, pour};
use crate::registry::{BlobSink as _, ObjectAnswer, Progress};

/// Where a cache is.
#[derive(Clone, Debug)]
pub(super) enum Objects {
    S3(S3),
    Gha(Gha),
    Azure(Azure),
}

impl Objects {
    /// Says whether a blob is there, and sees to it that it stays for a while.
    ///
    /// # Errors
    /// When the service does not answer or refuses.
    pub(super) async fn has(&self, digest: &Digest) -> Result<bool> {
        match self {
            Self::S3(s3) => s3.has(digest).await,
            Self::Gha(gha) => gha.has(digest).await,
            Self::Azure(azure) => azure.has(digest).await,
        }
    }

    /// Writes a blob that is not there.
    ///
    /// # Errors
    /// When the service does not answer or refuses; those of `content`.
    pub(super) async fn put(
        &self,
        descriptor: &Descriptor,
        content: impl Stream<Item = Result<Bytes>> + Send + Unpin,
    ) -> Result<()> {
        let sending = async {
            match self {
                Self::S3(s3) => s3.put(descriptor, content).await,
                Self::Gha(gha) => gha.put(descriptor, content).await,
                Self::Azure(azure) => azure.put(descriptor, content).await,
            }
        };
        self.in_time(descriptor, sending).await
    }

    /// Reads the configuration; `NotFound` when there is none yet.
    ///
    /// # Errors
    /// When the service does not answer or refuses.
    pub(super) async fn config(&self) -> Result<Bytes> {
        match self {
            Self::S3(s3) => s3.config().await,
            Self::Gha(gha) => gha.config().await,
            Self::Azure(azure) => azure.config().await,
        }
    }

    /// Writes the configuration, whose layers are there.
    ///
    /// # Errors
    /// When the service does not answer or refuses.
    pub(super) async fn set_config(&self, config: &Bytes) -> Result<()> {
        match self {
            Self::S3(s3) => s3.set_config(config).await,
            Self::Gha(gha) => gha.set_config(config).await,
            Self::Azure(azure) => azure.set_config(config).await,
        }
    }

    /// How many layers are sent at a time.
    pub(super) fn uploads(&self) -> usize {
        match self {
            Self::S3(s3) => s3.uploads,
            Self::Gha(_) | Self::Azure(_) => 4,
        }
    }

    /// Gives the transfer of a blob up when it takes longer than was allowed.
    async fn in_time<T>(&self, descriptor: &Descriptor, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let Self::Gha(gha) = self else { return work.await };
        let limit = gha.timeout();
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            let digest = descriptor.digest;
            Err(Error::new(Kind::Timeout, format!("the transfer of {digest} took longer than {limit:?} (timeout)")))
        })
    }
}

impl BlobSource for Objects {
    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        sink: LayerSink,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<LayerSink>> {
        let reading = async move {
            let (digest, offset) = (&descriptor.digest, sink.offset());
            let answer = match self {
                Self::S3(s3) => s3.blob(digest, offset).await,
                Self::Gha(gha) => gha.blob(digest, offset).await,
                Self::Azure(azure) => azure.blob(digest, offset).await,
            };
            let answer = answer.context(|| format!("read {digest}"))?;
            let partly = answer.status() == StatusCode::PARTIAL_CONTENT;
            let skip = if partly { 0 } else { offset };
            pour(skipping(pieces(answer), skip), sink, progress).await
        };
        self.in_time(descriptor, reading).boxed()
    }
}

fn pieces(answer: ObjectAnswer) -> impl Stream<Item = Result<Bytes>> + Send {
    stream::unfold(Some(answer), async |answer| {
        let mut answer = answer?;
        match answer.chunk().await {
            Ok(piece) => piece.map(|piece| (Ok(piece), Some(answer))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// Leaves the first bytes out, of a service that does not know ranges.
fn skipping(
    pieces: impl Stream<Item = Result<Bytes>> + Send,
    mut skip: u64,
) -> impl Stream<Item = Result<Bytes>> + Send {
    pieces.map(move |piece| {
        piece.map(|mut piece| {
            let gone = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            skip -= gone as u64;
            piece.split_off(gone)
        })
    })
}

/// Collects pieces to parts of a size; the last one may be smaller. `None` at the end.
pub(super) async fn part(
    content: &mut (impl Stream<Item = Result<Bytes>> + Send + Unpin),
    size: usize,
) -> Result<Option<Bytes>> {
    let mut part = BytesMut::with_capacity(size.min(8 << 20));
    while part.len() < size {
        match content.next().await {
            Some(piece) => part.extend_from_slice(&piece?),
            None => break,
        }
    }
    Ok((!part.is_empty()).then(|| part.freeze()))
}

/// Reads the configuration of the first name that has one; `place` is where it is looked for.
///
/// # Errors
/// `NotFound` when no name has one; when the service does not answer or refuses.
pub(super) async fn first_config<'a>(
    names: &'a [String],
    place: &str,
    get: impl Fn(&'a str) -> BoxFuture<'a, Result<ObjectAnswer>>,
) -> Result<Bytes> {
    let limit = usize::try_from(config::MAX_BYTES).unwrap_or(usize::MAX);
    for name in names {
        let answer = get(name).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => {}
            status if status.is_success() => return answer.read(limit).await,
            _ => return Err(answer.refused().await),
        }
    }
    Err(Error::not_found(format!("the {place} has no cache {}", names.join(", "))))
}

/// Returns the descriptors of a configuration's layers.
///
/// # Errors
/// `InvalidArgument` when the configuration does not say what they are.
pub(super) fn layers(config: &CacheConfig) -> Result<Vec<Descriptor>> {
    let layer = |layer: &config::CacheLayer| {
        let known = layer.annotations.as_ref().filter(|known| known.diff_id.is_some() && known.size > 0);
        let known =
            known.ok_or_else(|| Error::invalid(format!("the cache does not say what layer {} is", layer.blob)))?;
        let kind = if known.media_type.is_empty() { media_type::OCI_LAYER_GZIP } else { &known.media_type };
        Ok(Descriptor::new(kind, layer.blob, known.size))
    };
    config.layers.iter().map(layer).collect()
}
