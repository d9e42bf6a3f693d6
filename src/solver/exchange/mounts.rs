//! Cache mounts that travel with a cache: archives in chunks, each a blob, so that a mount that changed a little sends a little.
//!
//! BuildKit's caches have none. The list of chunks is a field of the configuration of our own, which others do not look at.

use std::collections::BTreeSet;
use std::io::{Read, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use kiln_graph::Digest;
use kiln_graph::oci::Descriptor;
use kiln_graph::op::{MountKind, Op, Sharing};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::chunk::{Cutter, MAX};
use super::gather::Scope;
use super::place::{Content, Place};
use crate::error::{Error, Result, ResultExt as _};
use crate::image::{BlobSource, Images};
use crate::solver::cache;
use crate::solver::job::{Begun, Job};
use crate::solver::ops::Wanted;
use crate::store::layer::{self, ExtractOptions, Style};
use crate::store::{Lease, tree};
use crate::task::{self, Cancel, Owned};

/// What a chunk is.
const CHUNK: &str = "application/vnd.kiln.cachemount.chunk.v0+zstd";

/// How chunks are compressed: more takes longer than sending does.
const LEVEL: i32 = 3;

/// How many chunks are sent or fetched at a time, and how many wait to be.
const UNDER_WAY: usize = 6;

/// The most a mount may unpack to, in chunks: a limit for what comes from elsewhere.
const MAX_CHUNKS: usize = 400_000;

/// A cache mount in a cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MountEntry {
    /// The name it is asked for by.
    pub(super) name: String,
    /// The chunks of its archive, in order.
    pub(super) chunks: Vec<ChunkEntry>,
}

/// A chunk of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChunkEntry {
    /// Its compressed form.
    pub(super) blob: Digest,
    /// The size of that in bytes.
    pub(super) size: u64,
}

impl ChunkEntry {
    pub(super) fn descriptor(&self) -> Descriptor {
        Descriptor::new(CHUNK, self.blob, self.size)
    }
}

/// Returns the names of the cache mounts that graphs use, without those that begin with content of a step.
fn names(scopes: &[Scope]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for scope in scopes {
        for id in scope.job.graph.reachable(scope.roots.iter().copied()) {
            let Op::Exec(exec) = &scope.job.graph.vertex(id).op else { continue };
            names.extend(exec.mounts.iter().filter_map(|mount| match &mount.kind {
                MountKind::Cache { id, input: None, .. } if !id.contains('\0') => Some(id.clone()),
                _ => None,
            }));
        }
    }
    names
}

/// What messages call a mount: its id in the Dockerfile. Frontends put a namespace before it, as a rule an empty one.
fn shown(name: &str) -> &str {
    name.strip_prefix('/').unwrap_or(name)
}

/// Sends the cache mounts of a build to a place.
///
/// # Errors
/// When one cannot be read; when the place does not answer or refuses.
pub(super) async fn export(scopes: &[Scope], place: &Place, begun: &Begun) -> Result<Vec<MountEntry>> {
    let mut entries = Vec::new();
    // All graphs of a build see the same mounts.
    let Some(Scope { job, .. }) = scopes.first() else { return Ok(entries) };
    for name in names(scopes) {
        let shown = shown(&name);
        let part = begun.part(format!("writing cache mount {shown}"), 0);
        let sent = export_one(job, &name, place).await.context(|| format!("write the cache mount {shown}"))?;
        part.complete();
        match sent {
            Some((entry, sent)) => {
                let (chunks, all, bytes) = (sent.len(), entry.chunks.len(), sent.iter().sum::<u64>());
                let what = format!("sent {chunks} of {all} chunks of cache mount {shown}, {bytes} bytes");
                begun.part(what, 0).complete();
                entries.push(entry);
            }
            // It was not used here: what a cache has of it stays there.
            None => entries.extend(carry_over(job, &name, place).await?),
        }
    }
    Ok(entries)
}

/// Sends one; returns also the sizes of the chunks that were not there. `None` when this engine has no such mount.
async fn export_one(job: &Arc<Job>, name: &str, place: &Place) -> Result<Option<(MountEntry, Vec<u64>)>> {
    let (asking, wanted) = (Arc::clone(job), name.to_owned());
    let find = move || asking.solver.deps().store.root().db().read(|c| cache::find_mount(c, &wanted, 0));
    if task::blocking(find).await?.is_none() {
        return Ok(None);
    }
    // Nobody changes it meanwhile.
    let wanted = Wanted { name: name.to_owned(), sharing: Sharing::Locked, seed: None, restore: false };
    let mount = job.cache_mount(wanted).await?;
    let (sender, receiver) = mpsc::channel::<Result<Bytes>>(UNDER_WAY);
    let cancel = Cancel::new();
    let _given_up = cancel.on_drop();
    let stop = cancel.clone();
    let reading = Owned::spawn(task::blocking(move || {
        let sent = write(mount.path(), &sender, &stop);
        // It is used until here.
        drop(mount);
        sent
    }));
    let pieces = futures_util::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let send = |blob: Result<Bytes>| async move {
        let blob = blob?;
        let entry = ChunkEntry { blob: Digest::of(&blob), size: blob.len() as u64 };
        let is_new = place.put(&entry.descriptor(), Content::Bytes(blob)).await?;
        Ok::<_, Error>((entry, is_new))
    };
    let sent: Vec<(ChunkEntry, bool)> = pieces.map(send).buffered(UNDER_WAY).try_collect().await?;
    reading.join().await??;
    let new = sent.iter().filter(|(_, is_new)| *is_new).map(|(chunk, _)| chunk.size).collect();
    let chunks = sent.into_iter().map(|(chunk, _)| chunk).collect();
    Ok(Some((MountEntry { name: name.to_owned(), chunks }, new)))
}

/// Archives a directory, cuts and compresses it.
fn write(dir: &std::path::Path, sender: &mpsc::Sender<Result<Bytes>>, cancel: &Cancel) -> Result<()> {
    let root = tree::open_root(dir)?;
    let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    let mut cutter = Cutter::new(|chunk: Vec<u8>| {
        let compressed = zstd::bulk::compress(&chunk, LEVEL)?;
        sender.blocking_send(Ok(compressed.into())).map_err(|_| gone())
    });
    let written = layer::archive_tree(root, &Style::default(), &mut cutter, cancel).and_then(|()| {
        layer::end_archive(&mut cutter)?;
        Ok(cutter.flush()?)
    });
    written?;
    Ok(cutter.finish()?)
}

/// Copies what an imported cache has of a mount.
async fn carry_over(job: &Arc<Job>, name: &str, place: &Place) -> Result<Option<MountEntry>> {
    let Some((entry, source)) = job.caches().mount(name) else { return Ok(None) };
    let images = &job.solver.deps().images;
    for chunk in &entry.chunks {
        let descriptor = chunk.descriptor();
        if !place.has(&descriptor, Some(source.as_ref())).await? {
            let content = images.document_of(&job.lease, &descriptor, source.as_ref(), MAX as u64 * 2).await?;
            place.put(&descriptor, Content::Bytes(content)).await?;
        }
    }
    Ok(Some(entry.clone()))
}

impl Job {
    /// Fills a new directory with what an imported cache has of a mount of this name. Says whether there was something.
    ///
    /// # Errors
    /// When the cache cannot be read, or holds no archive.
    pub(in crate::solver) async fn restore_mount(
        self: &Arc<Self>,
        name: &str,
        into: std::path::PathBuf,
    ) -> Result<bool> {
        let Some((entry, source)) = self.caches().mount(name) else { return Ok(false) };
        if entry.chunks.len() > MAX_CHUNKS {
            return Err(Error::invalid(format!("the cache mount {name} has {} chunks", entry.chunks.len())));
        }
        let (entry, source) = (entry.clone(), Arc::clone(source));
        let begun = Begun::internal(&self.progress, &format!("restoring cache mount {}", shown(name)))?;
        let restored = fetch(&self.solver.deps().images, &self.lease, &entry, source.as_ref(), into).await;
        begun.end(restored.as_ref().err());
        restored.map(|()| true)
    }
}

async fn fetch(
    images: &Images,
    lease: &Lease,
    entry: &MountEntry,
    source: &dyn BlobSource,
    into: std::path::PathBuf,
) -> Result<()> {
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Bytes>(UNDER_WAY);
    let cancel = Cancel::new();
    let _given_up = cancel.on_drop();
    let stop = cancel.clone();
    let unpacking = Owned::spawn(task::blocking(move || {
        let root = tree::open_root(&into)?;
        layer::extract(Chunks { receiver, chunk: Vec::new(), at: 0 }, root, ExtractOptions::new(&stop)).map(drop)
    }));
    let get = |chunk: &ChunkEntry| {
        let descriptor = chunk.descriptor();
        async move { images.document_of(lease, &descriptor, source, MAX as u64 * 2).await }
    };
    // Collected, because the compiler cannot see that a stream that maps references to futures may change threads.
    let work: Vec<_> = entry.chunks.iter().map(get).collect();
    let mut chunks = futures_util::stream::iter(work).buffered(UNDER_WAY);
    let mut sender = Some(sender);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        let Some(to) = sender.take() else { break };
        // Waiting for the disk is for other threads.
        sender = task::blocking(move || Ok(to.send(chunk).is_ok().then_some(to))).await?;
    }
    drop((chunks, sender));
    unpacking.join().await?
}

/// The archive, of its chunks.
struct Chunks {
    receiver: std::sync::mpsc::Receiver<Bytes>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.chunk.len() {
            let Ok(next) = self.receiver.recv() else { return Ok(0) };
            // A chunk that unpacks to more is none of ours.
            (self.chunk, self.at) = (zstd::bulk::decompress(&next, MAX)?, 0);
        }
        let len = buffer.len().min(self.chunk.len() - self.at);
        buffer[..len].copy_from_slice(&self.chunk[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}
