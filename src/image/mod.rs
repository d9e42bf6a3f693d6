//! Images: names, manifests, platform choice, pull and push, unpacking by chain ID, archives.
//!
//! An image's id is the digest of its configuration, wherever it is shown. Images of registries keep their manifest and their
//! compressed layers byte for byte; images built here get both when something needs them.

mod archive;
mod assemble;
mod attested;
mod distant;
mod layers;
mod layout;
mod list;
mod pull;
mod push;
pub mod record;
mod remove;
mod resolve;

use std::sync::Arc;

use kiln_graph::oci::ImageConfig;
use kiln_graph::{Digest, Reference};

pub use archive::{Imported, Layout, Loaded, SaveRequest};
pub use assemble::{
    Assembled, AssembledImage, AssembledLayer, Assembly, Document, Form, Predicate, Subject, Top, statement,
};
pub use attested::Chain;
pub use distant::{DistantLayer, Stack, StackLayer};
pub use layers::{Configured, NewImage};
pub use list::{Layer, Summary};
pub use pull::{BlobSource, ChainLayer, LayerSink, LayerStage, Report, RepositoryBlobs, Wanted, pour, suffix};
pub use push::Pushed;
pub use remove::Removal;
pub use resolve::{Policy, Resolved};

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::store::{Lease, SnapshotId, Store};
use crate::task::Clock;

/// The largest configuration or manifest that is read.
const MAX_DOCUMENT: u64 = 8 << 20;

/// The images of a store. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Images {
    store: Store,
    clock: Clock,
}

/// An image that is here.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its record.
    pub record: record::Record,
    /// Its configuration.
    pub config: Arc<ImageConfig>,
    /// The configuration's bytes, whose digest is the id.
    pub config_bytes: Arc<[u8]>,
}

impl Images {
    /// Makes a handle to the images of a store that was opened with [`record::SCHEMA`].
    #[must_use]
    pub fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock }
    }

    /// Returns the store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Finds the image a user means; see [`record::find`]. Its configuration is leased. Blocking.
    ///
    /// # Errors
    /// `NotFound` in docker's words; `Corrupt` when the configuration is missing or malformed.
    pub fn find(&self, lease: &Lease, text: &str) -> Result<Image> {
        let (record, _) = self.store.root().db().read(|connection| record::find(connection, text))?;
        self.open(lease, record)
    }

    /// Finds the image of an id. Its configuration is leased. Blocking.
    ///
    /// # Errors
    /// As for [`Images::find`].
    pub fn get(&self, lease: &Lease, id: &Digest) -> Result<Option<Image>> {
        let record = self.store.root().db().read(|connection| record::get(connection, id))?;
        record.map(|record| self.open(lease, record)).transpose()
    }

    /// Reads the configuration of an image.
    fn open(&self, lease: &Lease, record: record::Record) -> Result<Image> {
        let bytes = self.document(lease, &record.id).context(|| format!("read image {}", record.id.short()))?;
        let config = parse_config(&bytes).map_err(|error| error.with_kind(Kind::Corrupt))?;
        Ok(Image { record, config: Arc::new(config), config_bytes: bytes.into() })
    }

    /// Reads a small blob that must be there.
    fn document(&self, lease: &Lease, digest: &Digest) -> Result<Vec<u8>> {
        let blob = self.store.blob(lease, digest)?;
        let blob = blob.ok_or_else(|| Error::corrupt(format!("blob {digest} is missing from the store")))?;
        blob.read(MAX_DOCUMENT)
    }

    /// Returns the snapshot of an image's root file system, leased; `None` for an image without layers. Blocking.
    ///
    /// # Errors
    /// `NotFound` when its layers are not unpacked here.
    pub fn snapshot(&self, lease: &Lease, image: &Image) -> Result<Option<SnapshotId>> {
        let Some(chain) = image.config.rootfs.chain_ids().pop() else { return Ok(None) };
        match self.store.by_chain(lease, &chain)? {
            Some(snapshot) => Ok(Some(snapshot.id)),
            None => Err(Error::not_found(format!(
                "the layers of image {} are not unpacked here; pull it again",
                image.record.id.short()
            ))),
        }
    }

    /// Says whether an image's layers are here, unpacked. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn is_whole(&self, lease: &Lease, image: &Image) -> Result<bool> {
        match self.snapshot(lease, image) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives an image another name. Blocking.
    ///
    /// # Errors
    /// `NotFound` when there is no such image; `InvalidArgument` for a name with a digest.
    pub fn tag(&self, image: &str, name: &Reference) -> Result<Digest> {
        if name.digest().is_some() {
            return Err(Error::invalid("refusing to create a tag with a digest reference"));
        }
        self.store.root().db().write(|tx| {
            let (record, named_by) = record::find(tx, image)?;
            let name = name.clone().with_default_tag();
            let index = match &named_by {
                record::NamedBy::Name(known) => record::index_of(tx, known)?,
                record::NamedBy::Id => None,
            };
            match index {
                Some(index) => record::set_index_name(tx, &name, &index)?,
                None => record::set_name(tx, &name, &record.id)?,
            }
            Ok(record.id)
        })
    }
}

/// Reads an image configuration.
fn parse_config(bytes: &[u8]) -> Result<ImageConfig> {
    let config: ImageConfig = serde_json::from_slice(bytes).context(|| "read the image configuration")?;
    if config.rootfs.kind != "layers" {
        return Err(Error::unsupported(format!("a root file system of type {:?}", config.rootfs.kind)));
    }
    Ok(config)
}

#[cfg(test)]
mod tests;
