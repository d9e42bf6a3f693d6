//! Where caches are written to.

use std::io::{Cursor, Read, Seek as _, SeekFrom};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use kiln_graph::Reference;
use kiln_graph::oci::Descriptor;
use tokio::sync::mpsc;

use super::objects::Objects;
use crate::error::{Error, Result};
use crate::image::BlobSource;
use crate::registry::{Client, Progress, Pushed};
use crate::solver::content::ContentStore;
use crate::store::Blob;
use crate::task::{self, Owned};
use crate::wire::content::CHUNK;

/// Where a cache is written to.
#[derive(Debug)]
pub(super) enum Place {
    /// A repository.
    Registry {
        client: Client,
        name: Reference,
        /// Repositories that may have its blobs.
        mounts: Vec<Reference>,
    },
    /// A directory of the client, which names the manifest itself.
    Client(ContentStore),
    /// Objects, without a manifest.
    Objects(Objects),
}

/// A blob's content.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Blob(Blob),
    Bytes(Bytes),
}

impl Content {
    /// Opens it at an offset. Blocking.
    fn open(&self, offset: u64) -> Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Blob(blob) => {
                let mut file = blob.open()?;
                file.seek(SeekFrom::Start(offset))?;
                Box::new(file)
            }
            Self::Bytes(bytes) => {
                let mut content = Cursor::new(bytes.clone());
                content.set_position(offset);
                Box::new(content)
            }
        })
    }
}

/// Pieces between a file and whoever sends them.
const PIECES: usize = 2;

impl Content {
    /// Returns it in pieces.
    fn pieces(self) -> impl Stream<Item = Result<Bytes>> + Send + Unpin {
        let (sender, receiver) = mpsc::channel(PIECES);
        let reading = Owned::spawn(task::blocking(move || {
            let mut content = match self.open(0) {
                Ok(content) => content,
                Err(error) => {
                    // Nobody may want it.
                    let _ = sender.blocking_send(Err(error));
                    return Ok(());
                }
            };
            loop {
                let mut piece = Vec::with_capacity(CHUNK);
                let read = (&mut content).take(CHUNK as u64).read_to_end(&mut piece);
                let (piece, is_last) = match read {
                    Ok(0) => return Ok(()),
                    Ok(_) => (Ok(Bytes::from(piece)), false),
                    Err(error) => (Err(error.into()), true),
                };
                // Nobody may want the rest.
                if sender.blocking_send(piece).is_err() || is_last {
                    return Ok(());
                }
            }
        }));
        let pieces = stream::unfold((receiver, reading), async |(mut receiver, reading)| {
            receiver.recv().await.map(|piece| (piece, (receiver, reading)))
        });
        Box::pin(pieces.fuse())
    }
}

impl Place {
    /// Says whether a blob is there, taking it from where else the place may have it; `source` is where it is known to be.
    ///
    /// # Errors
    /// When the place does not answer or refuses.
    pub(super) async fn has(&self, descriptor: &Descriptor, source: Option<&dyn BlobSource>) -> Result<bool> {
        match self {
            Self::Registry { client, name, mounts } => {
                let repository = source.and_then(BlobSource::repository);
                let from: Vec<Reference> = repository.into_iter().chain(mounts).cloned().collect();
                Ok(client.adopt_blob(name, descriptor, &from).await?.is_some())
            }
            Self::Client(store) => Ok(store.size(&descriptor.digest).await?.is_some()),
            Self::Objects(objects) => objects.has(&descriptor.digest).await,
        }
    }

    /// Sees to it that a blob is there; says whether it had to be sent.
    ///
    /// # Errors
    /// When the place does not answer or refuses.
    pub(super) async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<bool> {
        match self {
            Self::Registry { client, name, mounts } => {
                let open = move |offset| content.open(offset);
                let pushed = client.push_blob(name, descriptor, open, mounts, &Progress::new()).await?;
                Ok(pushed == Pushed::Uploaded)
            }
            Self::Client(_) | Self::Objects(_) if self.has(descriptor, None).await? => Ok(false),
            Self::Client(store) => store.write(descriptor, content.pieces()).await.map(|()| true),
            Self::Objects(objects) => objects.put(descriptor, content.pieces()).await.map(|()| true),
        }
    }

    /// Makes a manifest, whose blobs are there, the one that the place's name stands for.
    ///
    /// # Errors
    /// When the place does not answer or refuses.
    pub(super) async fn publish(&self, manifest: &Descriptor, content: Bytes) -> Result<()> {
        match self {
            Self::Registry { client, name, .. } => {
                client.push_manifest(name, &manifest.media_type, content).await.map(drop)
            }
            Self::Client(store) => store.write(manifest, Content::Bytes(content).pieces()).await,
            Self::Objects(_) => Err(Error::internal("objects have no manifest")),
        }
    }
}
