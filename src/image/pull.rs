//! Fetching the layers of an image: downloads and unpacking in parallel, each layer unpacked while it arrives.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _, stream};
use kiln_graph::oci::{Descriptor, media_type};
use kiln_graph::{Digest, Reference};

use super::resolve::{Document, Origin, Remote, Resolved};
use super::{Images, record};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::registry::{BlobSink, Client, File, FileRequest, Progress};
use crate::store::{Blob, Ingest, IngestState, LayerBlob, Lease, SnapshotId, Unpacker};
use crate::task::{self, Cancel};

/// How far a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerStage {
    /// It is here, or there, already.
    Exists,
    /// The registry had it in another repository and took it from there.
    Mounted,
    /// It will be fetched.
    Waiting,
    /// So many bytes have arrived.
    Downloading(u64),
    /// All bytes have arrived and are what they should be.
    Downloaded,
    /// It is unpacked, or sent.
    Done,
}

/// Told how far each layer is.
pub type Report = Arc<dyn Fn(&Descriptor, LayerStage) + Send + Sync>;

/// How many layers are worked on at a time; the registry client limits the downloads among them.
const LAYERS: usize = 8;

/// How often a download's progress is reported, and a download of another process looked after.
const TICK: Duration = Duration::from_millis(100);

/// Where the blobs of layers come from.
pub trait BlobSource: std::fmt::Debug + Send + Sync {
    /// Writes a blob into a sink, from where the sink has it to its end, and has the sink verify it. Returns the sink.
    ///
    /// Dropping the future ends it; the sink is dropped with what it has.
    ///
    /// # Errors
    /// `NotFound` when there is no such blob; `Corrupt` when it is another; what the sink reports.
    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        sink: LayerSink,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<LayerSink>>;

    /// Returns the repository that the blobs are in, when they are in one: its registry can take them from there.
    fn repository(&self) -> Option<&Reference> {
        None
    }
}

/// The blobs of a repository.
#[derive(Debug)]
pub struct RepositoryBlobs {
    /// Talks to the registry.
    pub client: Client,
    /// Names the repository.
    pub name: Reference,
}

impl BlobSource for RepositoryBlobs {
    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        sink: LayerSink,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<LayerSink>> {
        async move {
            if media_type::is_nondistributable(&descriptor.media_type) {
                for place in &descriptor.urls {
                    // Registries may have it, too: then it does not matter whether anybody else has it.
                    if let Ok(file) = self.client.file(&FileRequest::new(place)?).await {
                        let here = sink.offset();
                        return pour(from(file, here), sink, progress).await;
                    }
                }
            }
            self.client.blob(&self.name, descriptor, sink, progress).await
        }
        .boxed()
    }

    fn repository(&self) -> Option<&Reference> {
        Some(&self.name)
    }
}

/// The pieces of a file from an offset on.
fn from(file: File, mut skip: u64) -> impl Stream<Item = Result<Bytes>> + Send {
    let pieces = stream::try_unfold(file, |mut file| async move {
        let piece = file.chunk().await?;
        Ok(piece.map(|piece| (piece, file)))
    });
    pieces.map_ok(move |mut piece: Bytes| {
        let gone = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
        skip -= gone as u64;
        piece.split_off(gone)
    })
}

/// Pieces of a blob between whoever sends it and the sink.
const PIECES: usize = 4;

/// Writes pieces into a sink, and has the sink verify the whole.
///
/// # Errors
/// That of the first piece that is one; what the sink reports. What has arrived is kept.
pub async fn pour(
    pieces: impl Stream<Item = Result<Bytes>> + Send,
    mut sink: LayerSink,
    progress: &Progress,
) -> Result<LayerSink> {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(PIECES);
    let mut arrived = sink.offset();
    let writing = task::blocking(move || {
        while let Some(piece) = receiver.blocking_recv() {
            sink.write(&piece)?;
        }
        Ok(sink)
    });
    let feeding = async move {
        let mut pieces = std::pin::pin!(pieces);
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            arrived += piece.len() as u64;
            progress.set(arrived);
            // A sink that takes no more says why.
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let (fed, written): (Result<()>, _) = tokio::join!(feeding, writing);
    let mut sink = written?;
    fed?;
    task::blocking(move || {
        sink.verify()?;
        Ok(sink)
    })
    .await
}

/// Which blobs of a chain are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All: an image keeps the blobs it came with.
    All,
    /// Those of layers that are not unpacked here.
    Missing,
}

/// A layer of a chain that is to be unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainLayer {
    /// Its compressed form.
    pub descriptor: Descriptor,
    /// What it is uncompressed.
    pub diff_id: Digest,
}

impl Images {
    /// Sees to it that a resolved image is here, with its layers unpacked, and returns its snapshot, leased; `None` for an
    /// image without layers. An image that came from a registry is recorded under its name.
    ///
    /// Dropping the future stops the work; what was downloaded so far is kept for the next attempt.
    ///
    /// # Errors
    /// `Corrupt` when a layer is not what the manifest promises; `Exhausted` on a full disk; otherwise what the registry says.
    pub async fn fetch(
        &self,
        lease: &Lease,
        resolved: &Resolved,
        client: &Client,
        report: &Report,
    ) -> Result<Option<SnapshotId>> {
        let remote = match &resolved.origin {
            Origin::Remote(remote) => Arc::clone(remote),
            Origin::Local(_) if resolved.partial => {
                let (store, lease) = (self.store.clone(), lease.clone());
                let chain = resolved.config.rootfs.chain_ids().pop();
                let find = move || chain.map_or(Ok(None), |chain| store.by_chain(&lease, &chain));
                let missing =
                    || Error::not_found(format!("the layers of {} are not unpacked here", resolved.reference));
                return task::blocking(find).await?.map(|snapshot| Some(snapshot.id)).ok_or_else(missing);
            }
            Origin::Local(image) => {
                let (images, lease, image) = (self.clone(), lease.clone(), image.clone());
                return task::blocking(move || images.snapshot(&lease, &image)).await;
            }
            Origin::Elsewhere(image) => {
                let (source, layers) = (Arc::clone(&image.source), image.chain(&resolved.config.rootfs.diff_ids));
                let unpacked = self.unpack(lease, &layers, (source.as_ref(), Wanted::Missing), report).await;
                return unpacked.context(|| format!("unpack {}", resolved.reference));
            }
            Origin::Layout(layout) => {
                let (images, lease, layout) = (self.clone(), lease.clone(), Arc::clone(layout));
                let (config, cancel) = (Arc::clone(&resolved.config), Cancel::new());
                let _stop = cancel.on_drop();
                let stop = cancel.clone();
                let unpack = move || images.unpack_layout(&lease, &layout, &config.rootfs.diff_ids, &stop);
                return task::blocking(unpack).await.context(|| format!("unpack {}", resolved.reference));
            }
        };
        check_layers(&remote)?;
        let diff_ids = &resolved.config.rootfs.diff_ids;
        // Of an image that is meant in part, there are fewer of these.
        let layers = remote.layers.iter().zip(diff_ids);
        let layers: Vec<ChainLayer> = layers
            .map(|(descriptor, diff_id)| ChainLayer { descriptor: descriptor.clone(), diff_id: *diff_id })
            .collect();
        let source = RepositoryBlobs { client: client.clone(), name: remote.name.clone() };
        let snapshot = self.unpack(lease, &layers, (&source, Wanted::All), report).await;
        let snapshot = snapshot.context(|| format!("pull {}", remote.name.familiar()))?;
        if resolved.partial {
            return Ok(snapshot);
        }
        let (images, lease, config) = (self.clone(), lease.clone(), Arc::clone(&resolved.config));
        task::blocking(move || {
            images.record(&lease, &remote, &config.rootfs.diff_ids)?;
            Ok(snapshot)
        })
        .await
    }

    /// Sees to it that a chain of layers, the lowest first, is here and unpacked, and returns its snapshot, leased; `None` for no
    /// layers. `wanted` says which blobs are fetched.
    ///
    /// Dropping the future stops the work; what was fetched so far is kept for the next attempt.
    ///
    /// # Errors
    /// `Corrupt` when a layer is not what its diff ID promises; `Exhausted` on a full disk; otherwise those of the source.
    pub async fn unpack(
        &self,
        lease: &Lease,
        layers: &[ChainLayer],
        (source, wanted): (&dyn BlobSource, Wanted),
        report: &Report,
    ) -> Result<Option<SnapshotId>> {
        let unpacker = {
            let (store, lease) = (self.store.clone(), lease.clone());
            let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
            Arc::new(task::blocking(move || store.unpacker(&lease, &diff_ids)).await?)
        };
        let missing = unpacker.missing();
        let cancel = Cancel::new();
        let _stop = cancel.on_drop();
        let layers = layers.iter().enumerate();
        let layers = layers.filter(|(index, _)| wanted == Wanted::All || missing.contains(index));
        let work = layers.map(|(index, layer)| Fetch {
            images: self,
            lease,
            source,
            report,
            layer: &layer.descriptor,
            diff_id: Some(&layer.diff_id),
            unpacker: missing.contains(&index).then(|| (Arc::clone(&unpacker), index)),
            cancel: &cancel,
        });
        // Collected, because the compiler cannot see that a stream that maps references to futures may change threads.
        let work: Vec<_> = work.map(Fetch::run).collect();
        let fetched = stream::iter(work).buffer_unordered(LAYERS);
        if let Err(error) = fetched.try_for_each(|()| std::future::ready(Ok(()))).await {
            cancel.cancel();
            abandoned(unpacker).await;
            return Err(error);
        }
        let cancel = cancel.clone();
        task::blocking(move || Arc::into_inner(unpacker).expect("all layers have ended").finish(&cancel)).await
    }

    /// Sees to it that the blob of a layer is here, and returns it, leased.
    ///
    /// # Errors
    /// `Corrupt` when it is not what its diff ID promises; otherwise those of the source.
    pub async fn bring(
        &self,
        lease: &Lease,
        layer: &ChainLayer,
        source: &dyn BlobSource,
        report: &Report,
    ) -> Result<Blob> {
        let cancel = Cancel::new();
        let _stop = cancel.on_drop();
        let ChainLayer { descriptor, diff_id } = layer;
        let diff_id = Some(diff_id);
        let fetch =
            Fetch { images: self, lease, source, report, layer: descriptor, diff_id, unpacker: None, cancel: &cancel };
        fetch.run().await?;
        self.leased_blob(lease, descriptor.digest).await
    }

    /// Sees to it that a blob, whatever is in it, is here, and returns it, leased.
    ///
    /// # Errors
    /// `Corrupt` when it is not what its digest promises; otherwise those of the source.
    pub async fn fetch_blob(
        &self,
        lease: &Lease,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        report: &Report,
    ) -> Result<Blob> {
        let cancel = Cancel::new();
        let fetch = Fetch {
            images: self,
            lease,
            source,
            report,
            layer: descriptor,
            diff_id: None,
            unpacker: None,
            cancel: &cancel,
        };
        fetch.run().await?;
        self.leased_blob(lease, descriptor.digest).await
    }

    /// Fetches a small blob into the store, unless it is here, and returns its content.
    ///
    /// # Errors
    /// `InvalidArgument` when it is larger than `max_bytes`; otherwise those of the source.
    pub async fn document_of(
        &self,
        lease: &Lease,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        max_bytes: u64,
    ) -> Result<Bytes> {
        if descriptor.size > max_bytes {
            let (digest, size) = (descriptor.digest, descriptor.size);
            return Err(Error::invalid(format!(
                "{digest} has {size} bytes, and at most {max_bytes} are accepted here"
            )));
        }
        let report: Report = Arc::new(|_, _| {});
        let blob = self.fetch_blob(lease, descriptor, source, &report).await?;
        task::blocking(move || Ok(blob.read(max_bytes)?.into())).await
    }

    async fn leased_blob(&self, lease: &Lease, digest: Digest) -> Result<Blob> {
        let (store, lease) = (self.store.clone(), lease.clone());
        let blob = task::blocking(move || store.blob(&lease, &digest)).await?;
        blob.ok_or_else(|| Error::internal("a blob has gone while it was leased"))
    }

    /// Records a fetched image under its name.
    fn record(&self, lease: &Lease, remote: &Remote, diff_ids: &[Digest]) -> Result<()> {
        let documents = [Some(&remote.manifest), Some(&remote.config), remote.index.as_ref()];
        for Document { digest, bytes } in documents.into_iter().flatten() {
            self.store.put_blob(lease, digest, bytes)?;
        }
        for (layer, diff_id) in remote.layers.iter().zip(diff_ids) {
            let form = LayerBlob {
                digest: layer.digest,
                size: layer.size,
                media_suffix: suffix(&layer.media_type).to_owned(),
            };
            self.store.remember_layer_blob(diff_id, &form)?;
        }
        let id = remote.config.digest;
        self.store.root().db().write(|tx| {
            record::insert(tx, &id, Some(&remote.manifest.digest), self.clock.now_ns(), self.store.root().boot_id())?;
            if remote.name.tag().is_some() {
                record::set_name(tx, &remote.name.without_digest(), &id)?;
            }
            let repository = remote.name.repository();
            for document in [Some(&remote.manifest), remote.index.as_ref()].into_iter().flatten() {
                record::set_repository_digest(tx, &repository, &document.digest, &id)?;
            }
            Ok(())
        })
    }
}

/// Waits until the blocking work on a given-up pull has ended, so that a caller that is told of the failure finds nothing
/// half-made: dropping a future does not stop what it started on the blocking pool.
async fn abandoned(unpacker: Arc<Unpacker>) {
    while Arc::strong_count(&unpacker) > 1 {
        tokio::time::sleep(TICK).await;
    }
}

/// Refuses layers that are none.
pub(super) fn check_layers(remote: &Remote) -> Result<()> {
    for layer in &remote.layers {
        let known = layer.media_type.contains(".image.layer.") || layer.media_type.contains(".image.rootfs.");
        if !known {
            return Err(Error::unsupported(format!(
                "{} has a layer of the unknown type {}",
                remote.name.familiar(),
                layer.media_type
            )));
        }
    }
    Ok(())
}

/// What a layer's media type says about its compression, as the OCI types spell it.
#[must_use]
pub fn suffix(media_type: &str) -> &'static str {
    match media_type {
        text if text.ends_with("gzip") => "+gzip",
        text if text.ends_with("zstd") => "+zstd",
        _ => "",
    }
}

/// The work on one layer.
struct Fetch<'a> {
    images: &'a Images,
    lease: &'a Lease,
    source: &'a dyn BlobSource,
    report: &'a Report,
    layer: &'a Descriptor,
    /// What it is uncompressed; `None` for what is no layer.
    diff_id: Option<&'a Digest>,
    /// Where it is unpacked, and as which layer; `None` when that was done earlier.
    unpacker: Option<(Arc<Unpacker>, usize)>,
    cancel: &'a Cancel,
}

impl Fetch<'_> {
    async fn run(self) -> Result<()> {
        loop {
            let (store, lease) = (self.images.store.clone(), self.lease.clone());
            let (digest, size) = (self.layer.digest, self.layer.size);
            match task::blocking(move || store.ingest(&lease, &digest, Some(size))).await? {
                IngestState::Exists(blob) => {
                    (self.report)(self.layer, LayerStage::Exists);
                    return self.unpack(blob).await;
                }
                // Another process is at it.
                IngestState::Busy => tokio::time::sleep(TICK).await,
                IngestState::Ready(ingest) => {
                    (self.report)(self.layer, LayerStage::Waiting);
                    let blob = self.download(ingest).await?;
                    return match blob {
                        Some(blob) => self.unpack(blob).await,
                        None => Ok(()),
                    };
                }
            }
        }
    }

    /// Downloads a layer and unpacks it meanwhile. Returns the blob when it has yet to be unpacked.
    async fn download(&self, ingest: Ingest) -> Result<Option<Blob>> {
        let unpacking = match &self.unpacker {
            Some((unpacker, index)) => {
                let (unpacker, index, cancel) = (Arc::clone(unpacker), *index, self.cancel.clone());
                let follow = ingest.follow()?;
                Some(task::Owned::spawn(task::blocking(move || unpacker.layer(index, follow, &cancel))))
            }
            None => None,
        };
        let progress = Progress::new();
        let blob = {
            let (images, lease, layer) = (self.images.clone(), self.lease.clone(), self.layer.clone());
            let sink = LayerSink { images, lease, layer, ingest: Some(ingest), blob: None };
            let transfer = self.source.blob(self.layer, sink, &progress);
            tokio::pin!(transfer);
            loop {
                tokio::select! {
                    sink = &mut transfer => break sink?.blob.ok_or_else(|| Error::internal("a blob was not verified"))?,
                    () = tokio::time::sleep(TICK) => {
                        (self.report)(self.layer, LayerStage::Downloading(progress.bytes()));
                    }
                }
            }
        };
        (self.report)(self.layer, LayerStage::Downloaded);
        let Some(unpacking) = unpacking else { return Ok(Some(blob)) };
        match unpacking.join().await? {
            Ok(()) => {
                (self.report)(self.layer, LayerStage::Done);
                Ok(None)
            }
            // The transfer began anew under the reader's feet; the blob is whole now.
            Err(error) if error.kind() == Kind::Unavailable => Ok(Some(blob)),
            Err(error) => Err(error),
        }
    }

    async fn unpack(&self, blob: Blob) -> Result<()> {
        let Some((unpacker, index)) = &self.unpacker else {
            let Some(diff_id) = self.diff_id.copied() else { return Ok(()) };
            // The layer was unpacked from another blob; this one could hold anything.
            let (store, cancel) = (self.images.store.clone(), self.cancel.clone());
            return task::blocking(move || store.verify_layer_blob(&diff_id, &blob, &cancel)).await;
        };
        let (unpacker, index, cancel) = (Arc::clone(unpacker), *index, self.cancel.clone());
        task::blocking(move || unpacker.layer(index, blob.open()?, &cancel)).await?;
        (self.report)(self.layer, LayerStage::Done);
        Ok(())
    }
}

/// Lets a source write into the store: the ingest while it is written, then the blob.
#[derive(Debug)]
pub struct LayerSink {
    images: Images,
    lease: Lease,
    layer: Descriptor,
    ingest: Option<Ingest>,
    blob: Option<Blob>,
}

impl LayerSink {
    fn ingest(&mut self) -> Result<&mut Ingest> {
        self.ingest.as_mut().ok_or_else(|| Error::internal("the blob was stored already"))
    }
}

impl BlobSink for LayerSink {
    fn offset(&self) -> u64 {
        match (&self.ingest, &self.blob) {
            (Some(ingest), _) => ingest.offset(),
            (None, Some(blob)) => blob.size(),
            (None, None) => 0,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.ingest()?.write_all(bytes)?)
    }

    fn restart(&mut self) -> Result<()> {
        if let Some(ingest) = &mut self.ingest {
            return ingest.restart();
        }
        // What was wrong has been removed.
        match self.images.store.ingest(&self.lease, &self.layer.digest, Some(self.layer.size))? {
            IngestState::Ready(ingest) => self.ingest = Some(ingest),
            IngestState::Exists(blob) => self.blob = Some(blob),
            IngestState::Busy => return Err(Error::conflict("another process is downloading this layer")),
        }
        Ok(())
    }

    fn verify(&mut self) -> Result<()> {
        if self.blob.is_none() {
            let ingest = self.ingest.take().ok_or_else(|| Error::internal("there is nothing to verify"))?;
            self.blob = Some(ingest.commit()?);
        }
        Ok(())
    }
}
