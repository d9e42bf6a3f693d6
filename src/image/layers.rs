//! Making images out of snapshots: configurations and records of what was built, committed or imported here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_graph::oci::{History, ImageConfig, RootFs, chain_id};
use kiln_graph::{Digest, Reference};

use super::distant::{Stack, StackLayer};
use super::{Images, record};
use crate::error::{Error, Result};
use crate::store::layer::{Style, Times};
use crate::store::{Blob, Lease, Snapshot, SnapshotId};
use crate::task::Cancel;

/// An image to be made.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// The configuration; its `rootfs` is filled in, `created` and the times of its history where they are missing: with those
    /// that stand for its layers.
    pub config: ImageConfig,
    /// Its root file system.
    pub root: Stack,
    /// The time, in nanoseconds since 1970, that nothing in the image may be later than.
    pub epoch_ns: Option<i64>,
}

/// A configuration with records of the build cache, as BuildKit writes them.
#[derive(serde::Serialize)]
struct WithCache<'a> {
    #[serde(flatten)]
    config: &'a ImageConfig,
    #[serde(rename = "moby.buildkit.cache.v0")]
    records: String,
}

/// An image with a complete configuration.
#[derive(Clone, Debug)]
pub struct Configured {
    /// Its id: the digest of the configuration.
    pub id: Digest,
    /// The configuration.
    pub config: ImageConfig,
    /// The configuration's bytes.
    pub bytes: Vec<u8>,
    /// Its layers, the lowest first.
    pub layers: Vec<StackLayer>,
}

impl Images {
    /// Returns the snapshots a root file system is made of, the lowest first. Blocking.
    ///
    /// # Errors
    /// `NotFound` when one has gone.
    pub fn chain(&self, lease: &Lease, top: Option<SnapshotId>) -> Result<Vec<Snapshot>> {
        let mut chain = Vec::new();
        let mut next = top;
        while let Some(id) = next {
            let snapshot = self.store.snapshot(lease, id)?;
            let snapshot = snapshot.ok_or_else(|| Error::not_found(format!("no such snapshot: {id}")))?;
            next = snapshot.parent;
            chain.push(snapshot);
        }
        chain.reverse();
        Ok(chain)
    }

    /// Makes the layers above the lowest `kept` ones again, with no time in them later than `latest_s` (in seconds since 1970), and
    /// returns the topmost, leased. Blocking.
    ///
    /// # Errors
    /// `NotFound` when a layer has gone; `Exhausted` on a full disk; `Cancelled`.
    pub fn clamp_times(
        &self,
        lease: &Lease,
        top: Option<SnapshotId>,
        kept: usize,
        latest_s: i64,
        cancel: &Cancel,
    ) -> Result<Option<SnapshotId>> {
        let chain = self.chain(lease, top)?;
        let style = Style { times: Times::AtMost(latest_s), ..Style::default() };
        let (mut diff_ids, mut blobs) = (Vec::new(), Vec::new());
        for (at, snapshot) in chain.iter().enumerate() {
            if at < kept {
                let known = snapshot.diff_id;
                diff_ids.push(known.ok_or_else(|| Error::internal("a layer of the image was not identified"))?);
                blobs.push(None);
                continue;
            }
            let mut writer = self.store.blob_writer(lease)?;
            diff_ids.push(self.store.write_layer_as(snapshot.id, &style, &mut writer, cancel)?.diff_id);
            blobs.push(Some(writer.finish()?));
        }
        self.unpack_again(lease, &diff_ids, &blobs, cancel)
    }

    /// Makes the layers above the lowest `kept` ones again in eStargz form, and returns the topmost, leased. Blocking.
    ///
    /// # Errors
    /// As for [`Self::clamp_times`]; `InvalidArgument` and `Unsupported` for layers that cannot have the form.
    pub fn estargz(
        &self,
        lease: &Lease,
        top: Option<SnapshotId>,
        kept: usize,
        level: u32,
        cancel: &Cancel,
    ) -> Result<Option<SnapshotId>> {
        let chain = self.chain(lease, top)?;
        let (mut diff_ids, mut blobs, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let mut below = None;
        for (at, snapshot) in chain.iter().enumerate() {
            let known = snapshot.diff_id.ok_or_else(|| Error::internal("a layer of the image was not identified"))?;
            let made =
                if at < kept { None } else { Some(self.store.estargz_layer(lease, snapshot.id, level, cancel)?) };
            let diff_id = made.as_ref().map_or(known, |made| made.diff_id);
            let chain = chain_id(below, diff_id);
            below = Some(chain);
            times.push((chain, snapshot.as_of.unwrap_or(snapshot.created_at)));
            diff_ids.push(diff_id);
            blobs.push(made.map(|made| made.blob));
        }
        let top = self.unpack_again(lease, &diff_ids, &blobs, cancel)?;
        // They are as old as what they were made of.
        self.store.note_times(&times)?;
        Ok(top)
    }

    /// Unpacks layers that were made again; `None` stands for those that are still there.
    fn unpack_again(
        &self,
        lease: &Lease,
        diff_ids: &[Digest],
        blobs: &[Option<Blob>],
        cancel: &Cancel,
    ) -> Result<Option<SnapshotId>> {
        let unpacker = self.store.unpacker(lease, diff_ids)?;
        for missing in unpacker.missing() {
            let blob = blobs[missing].as_ref();
            let blob = blob.ok_or_else(|| Error::internal("a layer of the base has gone"))?;
            unpacker.layer(missing, blob.open()?, cancel)?;
        }
        unpacker.finish(cancel)
    }

    /// Completes the configuration of an image whose layers are identified snapshots, and stores it, leased. Blocking.
    ///
    /// # Errors
    /// `Internal` when the history does not fit the layers, or a layer was not identified.
    pub fn configure(&self, lease: &Lease, new: NewImage) -> Result<Configured> {
        self.configure_with(lease, new, |_| Ok(None))
    }

    /// Does what [`Self::configure`] does; `cache` makes records of the build cache, of the diff IDs of the image's layers, which
    /// are written into the configuration.
    ///
    /// # Errors
    /// As [`Self::configure`], and those of `cache`.
    pub fn configure_with(
        &self,
        lease: &Lease,
        new: NewImage,
        cache: impl FnOnce(&[Digest]) -> Result<Option<Vec<u8>>>,
    ) -> Result<Configured> {
        let layers: Vec<StackLayer> = match new.root {
            Stack::Here(top) => self.chain(lease, top)?.into_iter().map(StackLayer::Here).collect(),
            Stack::Distant(layers) => layers.into_iter().map(StackLayer::Distant).collect(),
        };
        let diff_ids: Option<Vec<Digest>> = layers.iter().map(StackLayer::diff_id).collect();
        let diff_ids = diff_ids.ok_or_else(|| Error::internal("a layer of the image was not identified"))?;
        let mut config = new.config;
        config.rootfs = RootFs { diff_ids, ..RootFs::default() };
        let times: Vec<i64> = layers.iter().map(StackLayer::time_ns).collect();
        fill_times(&mut config, &times, new.epoch_ns)?;
        let bytes = match cache(&config.rootfs.diff_ids)? {
            None => serde_json::to_vec(&config)?,
            Some(records) => serde_json::to_vec(&WithCache { config: &config, records: STANDARD.encode(records) })?,
        };
        let id = *self.store.write_blob(lease, &bytes)?.digest();
        Ok(Configured { id, config, bytes, layers })
    }

    /// Records an image that has no manifest yet, and gives it names. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn record_plain(&self, image: &Configured, names: &[Reference]) -> Result<()> {
        self.store.root().db().write(|tx| {
            record::insert(tx, &image.id, None, self.clock.now_ns(), self.store.root().boot_id())?;
            names.iter().try_for_each(|name| record::set_name(tx, &name.clone().with_default_tag(), &image.id))
        })
    }

    /// Records an image whose layers are identified snapshots, and returns its id. Blocking.
    ///
    /// # Errors
    /// As for [`Images::configure`].
    pub fn create(&self, lease: &Lease, new: NewImage, names: &[Reference]) -> Result<Digest> {
        let image = self.configure(lease, new)?;
        self.record_plain(&image, names)?;
        Ok(image.id)
    }
}

/// Gives history entries the time of their layer, and those without a layer the time before them. No clock is read, so that the
/// same build gives the same image again.
fn fill_times(config: &mut ImageConfig, layers: &[i64], epoch_ns: Option<i64>) -> Result<()> {
    let with_layer = config.history.iter().filter(|entry| !entry.empty_layer).count();
    if config.history.is_empty() || with_layer < layers.len() {
        // Bases without a complete history: pad at the bottom.
        let missing = layers.len() - with_layer.min(layers.len());
        let padding = History { comment: "buildkit.exporter.image.v0".to_owned(), ..History::default() };
        config.history.splice(0..0, std::iter::repeat_n(padding, missing));
    } else if with_layer > layers.len() {
        return Err(Error::internal(format!("the history has {with_layer} layers, the file system {}", layers.len())));
    }
    let text = |ns: i64| rfc3339(epoch_ns.map_or(ns, |epoch| ns.min(epoch)));
    // Instructions before the first new layer have its time; if there is none, that of the base.
    let first_new = config.history.iter().filter(|entry| !entry.empty_layer).position(|entry| entry.created.is_none());
    let mut last = first_new.map(|at| text(layers[at]));
    let mut of_base = None;
    let mut layers = layers.iter();
    for entry in &mut config.history {
        let layer = if entry.empty_layer { None } else { layers.next().copied() };
        match &entry.created {
            Some(created) => of_base = of_base.max(Some(created.clone())),
            None => {
                last = layer.map(text).or(last);
                entry.created = last.clone().or_else(|| of_base.clone()).or_else(|| Some(text(0)));
            }
        }
    }
    if config.created.is_none() {
        let newest = config.history.iter().filter_map(|entry| entry.created.clone()).max();
        // A base may be later than the epoch; what is made of it is said to be of that time, as the user wants it.
        config.created = epoch_ns.map(rfc3339).or(newest).or_else(|| Some(text(0)));
    }
    Ok(())
}

/// Writes a time as Go's `RFC3339Nano` does.
pub(super) fn rfc3339(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(ns.into()).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(created_by: &str, empty_layer: bool, created: Option<&str>) -> History {
        History {
            created_by: created_by.to_owned(),
            empty_layer,
            created: created.map(str::to_owned),
            ..History::default()
        }
    }

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn history_gets_the_times_of_its_layers() {
        let base = "1970-01-01T00:00:05Z";
        let mut config = ImageConfig {
            history: vec![
                entry("base", false, Some(base)),
                entry("ENV", true, None),
                entry("RUN", false, None),
                entry("CMD", true, None),
            ],
            ..ImageConfig::default()
        };
        fill_times(&mut config, &[9 * SECOND, 7 * SECOND], None).unwrap();
        let times: Vec<&str> = config.history.iter().map(|entry| entry.created.as_deref().unwrap()).collect();
        assert_eq!(times, [base, "1970-01-01T00:00:07Z", "1970-01-01T00:00:07Z", "1970-01-01T00:00:07Z"]);
        assert_eq!(config.created.as_deref(), Some("1970-01-01T00:00:07Z"));
    }

    #[test]
    fn an_image_that_adds_no_layer_is_as_old_as_its_base() {
        let base = "1970-01-01T00:00:05Z";
        let history = vec![entry("base", false, Some(base)), entry("ENV", true, None)];
        let mut config = ImageConfig { history, ..ImageConfig::default() };
        fill_times(&mut config, &[9 * SECOND], None).unwrap();
        assert_eq!((config.history[1].created.as_deref(), config.created.as_deref()), (Some(base), Some(base)));
        let mut empty = ImageConfig::default();
        fill_times(&mut empty, &[], None).unwrap();
        assert_eq!(empty.created.as_deref(), Some("1970-01-01T00:00:00Z"));
    }

    #[test]
    fn nothing_is_later_than_the_epoch_and_missing_history_is_padded() {
        let mut config = ImageConfig { history: vec![entry("RUN", false, None)], ..ImageConfig::default() };
        fill_times(&mut config, &[SECOND, 8 * SECOND], Some(2 * SECOND)).unwrap();
        assert_eq!(config.history.len(), 2);
        assert_eq!(config.history[1].created.as_deref(), Some("1970-01-01T00:00:02Z"));
        let mut config = ImageConfig { history: vec![entry("RUN", false, None)], ..ImageConfig::default() };
        assert!(fill_times(&mut config, &[], None).is_err());
    }
}
