//! What there is to tell about images: sizes, layers, history.

use std::sync::Arc;

use kiln_graph::Digest;
use kiln_graph::oci::{History, ImageConfig};

use super::record::{self, Record};
use super::{Image, Images};
use crate::error::Result;
use crate::store::Lease;

/// An image in a list.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Its record.
    pub record: Record,
    /// Its configuration.
    pub config: Arc<ImageConfig>,
    /// What its layers take on the disk, in bytes; layers of several images count for each.
    pub size_bytes: u64,
}

/// An entry of an image's history with the layer it made.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The entry.
    pub history: History,
    /// What the layer takes on the disk, in bytes; 0 for an entry without a layer.
    pub size_bytes: u64,
}

impl Images {
    /// Returns all images, newest first. One whose configuration is damaged is left out, and so are those that an index has
    /// for other platforms. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn list(&self, lease: &Lease) -> Result<Vec<Summary>> {
        let (records, members) =
            self.store.root().db().read(|connection| Ok((record::all(connection)?, record::members(connection)?)))?;
        let records = records.into_iter().filter(|record| !members.contains(&record.id));
        let images = records.filter_map(|record| self.open(lease, record).ok());
        images.map(|image| self.summary(lease, image)).collect()
    }

    /// Returns what a list tells of one image. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn summary(&self, lease: &Lease, image: Image) -> Result<Summary> {
        let size_bytes = self.layer_sizes(lease, &image.config)?.iter().sum();
        Ok(Summary { record: image.record, config: image.config, size_bytes })
    }

    /// Returns an image's history, oldest first. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn history(&self, lease: &Lease, image: &Image) -> Result<Vec<Layer>> {
        let mut sizes = self.layer_sizes(lease, &image.config)?.into_iter();
        let entries = image.config.history.iter().map(|history| {
            let size_bytes = if history.empty_layer { 0 } else { sizes.next().unwrap_or(0) };
            Layer { history: history.clone(), size_bytes }
        });
        Ok(entries.collect())
    }

    /// Returns what each layer takes on the disk in bytes, the lowest first: unpacked or, where it is not, compressed. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn layer_sizes(&self, lease: &Lease, config: &ImageConfig) -> Result<Vec<u64>> {
        let rootfs = &config.rootfs;
        let layers = rootfs.chain_ids().into_iter().zip(&rootfs.diff_ids);
        layers.map(|(chain_id, diff_id)| self.layer_size(lease, &chain_id, diff_id)).collect()
    }

    fn layer_size(&self, lease: &Lease, chain_id: &Digest, diff_id: &Digest) -> Result<u64> {
        if let Some(snapshot) = self.store.by_chain(lease, chain_id)? {
            return Ok(snapshot.allocated.or(snapshot.tar_size).unwrap_or(0));
        }
        Ok(self.store.layer_blobs(diff_id)?.first().map_or(0, |blob| blob.size))
    }
}
