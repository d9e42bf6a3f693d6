//! Whether a build gives the same again: two builds without the cache, compared layer by layer and file by file.
//!
//! Layers are compared as the archives that registries get, so everything that would give another digest is a difference.
//! With a time that nothing may be later than (`SOURCE_DATE_EPOCH`), times count as an exporter with `rewrite-timestamp` writes
//! them.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_graph::oci::ImageConfig;
use serde::Serialize;

use super::export::{Product, Variant};
use super::job::Job;
use super::lock;
use crate::error::{Error, Result, ResultExt as _};
use crate::store::{Lease, Snapshot, SnapshotId, Store};
use crate::task::{self, Cancel};

/// The key of the answer that says how two builds differ: JSON in base64.
const VERIFIED: &str = "kiln.verify";

/// So many differences are listed; the rest is counted.
const MAX_LISTED: usize = 1000;

/// Holds the result of the first of two builds until the second one has ended. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub(super) struct Witness(Arc<Mutex<Option<Seen>>>);

#[derive(Debug)]
struct Seen {
    product: Arc<Product>,
    /// Keeps its layers.
    _lease: Lease,
}

/// What two builds have in common and what not.
#[derive(Debug, Default, Serialize)]
pub(super) struct Comparison {
    /// How many layers there are, those of the base included, for all platforms.
    layers: usize,
    /// How many differences there are.
    total: usize,
    /// The first of them.
    differences: Vec<Difference>,
}

/// Something that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Difference {
    platform: String,
    /// The layer's number, from 1, the lowest first; 0 for what is in no layer.
    layer: usize,
    /// The instruction that made the layer.
    step: String,
    /// The file, from the root.
    path: String,
    /// How it differs: `content`, `mode`, `owner`, `mtime`, ...
    what: Vec<String>,
}

impl Witness {
    /// Says whether the first of the builds has ended.
    pub(super) fn has_seen_one(&self) -> bool {
        lock(&self.0).is_some()
    }
}

impl Comparison {
    /// Says whether both builds gave the same.
    pub(super) fn is_same(&self) -> bool {
        self.total == 0
    }

    fn add(&mut self, difference: Difference) {
        self.total += 1;
        if self.differences.len() < MAX_LISTED {
            self.differences.push(difference);
        }
    }
}

impl Job {
    /// Says whether a result is to be exported: always, unless two builds are compared. Then it is the second one's, if it is what
    /// the first one gave, and the answer gets what differs.
    ///
    /// # Errors
    /// When a layer cannot be read.
    pub(super) async fn passes(
        self: &Arc<Self>,
        product: &Arc<Product>,
        response: &mut BTreeMap<String, String>,
    ) -> Result<bool> {
        let Some(witness) = &self.witness else { return Ok(true) };
        let Some(comparison) = self.compare(witness, product).await? else { return Ok(false) };
        let same = comparison.is_same();
        response.insert(VERIFIED.to_owned(), STANDARD.encode(String::from(comparison)));
        Ok(same)
    }

    /// Compares a result with that of the build before; `None` when this is the first one.
    async fn compare(self: &Arc<Self>, witness: &Witness, product: &Arc<Product>) -> Result<Option<Comparison>> {
        let Some(before) = lock(&witness.0).take() else {
            *lock(&witness.0) = Some(Seen { product: Arc::clone(product), _lease: self.lease.clone() });
            return Ok(None);
        };
        let (job, product) = (Arc::clone(self), Arc::clone(product));
        task::blocking(move || {
            let mut comparison = Comparison::default();
            for (one, other) in before.product.variants.iter().zip(&product.variants) {
                job.compare_variants(one, other, product.epoch_ns, &mut comparison)?;
            }
            Ok(Some(comparison))
        })
        .await
    }

    /// Blocking.
    fn compare_variants(
        &self,
        one: &Variant,
        other: &Variant,
        epoch_ns: Option<i64>,
        comparison: &mut Comparison,
    ) -> Result<()> {
        let images = &self.solver.deps().images;
        let chains = [images.chain(&self.lease, one.snapshot()?)?, images.chain(&self.lease, other.snapshot()?)?];
        let [first, second] = &chains;
        let platform = one.platform.to_string();
        let differs = |layer: usize, step: &str, path: &str, what: Vec<String>| Difference {
            platform: platform.clone(),
            layer,
            step: step.to_owned(),
            path: path.to_owned(),
            what,
        };
        if one.config != other.config {
            comparison.add(differs(0, "", "", vec!["configuration".to_owned()]));
        }
        if first.len() != second.len() {
            let counts = format!("{} layers in the first build, {} in the second", first.len(), second.len());
            comparison.add(differs(0, "", "", vec![counts]));
        }
        comparison.layers += second.len();
        let steps = steps(&other.config, second.len());
        for (at, (one, other)) in first.iter().zip(second).enumerate() {
            if one.diff_id == other.diff_id {
                continue;
            }
            self.cancel.check()?;
            let store = &self.solver.deps().store;
            let (one, other) = (listing(store, one, &self.cancel)?, listing(store, other, &self.cancel)?);
            for (path, what) in compare(&one, &other, epoch_ns) {
                comparison.add(differs(at + 1, &steps[at], &path, what));
            }
        }
        Ok(())
    }
}

/// Returns the instruction of each layer; a base whose history is shorter than its layers has none for the lowest.
fn steps(config: &ImageConfig, layers: usize) -> Vec<String> {
    let with_layers = config.history.iter().rev().filter(|entry| !entry.empty_layer);
    let mut steps: Vec<String> = with_layers.map(|entry| entry.created_by.clone()).take(layers).collect();
    steps.resize(layers, String::new());
    steps.reverse();
    steps
}

/// What an archive says of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    kind: u8,
    mode: u32,
    owner: (u64, u64),
    mtime_ns: i128,
    link: Vec<u8>,
    device: (Option<u32>, Option<u32>),
    attributes: BTreeMap<String, Vec<u8>>,
    hash: [u8; 32],
}

/// Reads a layer. Holds a few hundred bytes for each file.
fn listing(store: &Store, snapshot: &Snapshot, cancel: &Cancel) -> Result<BTreeMap<Vec<u8>, Entry>> {
    let (reader, writer) = io::pipe()?;
    let id: SnapshotId = snapshot.id;
    let write = move || {
        let mut writer = io::BufWriter::with_capacity(1 << 20, writer);
        let written = store.write_layer(id, &mut writer, cancel);
        written.and_then(|_| Ok(io::Write::flush(&mut writer)?))
    };
    let (written, read) = task::beside("layer", write, move || entries(io::BufReader::with_capacity(1 << 20, reader)))?;
    // A reader that gave up is why the writer did.
    let entries = read.context(|| format!("read layer {id}"))?;
    written.context(|| format!("write layer {id}"))?;
    Ok(entries)
}

fn entries(archive: impl Read) -> Result<BTreeMap<Vec<u8>, Entry>> {
    let mut found = BTreeMap::new();
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let header = entry.header();
        let mut read = Entry {
            kind: header.entry_type().as_byte(),
            mode: header.mode()?,
            owner: (header.uid()?, header.gid()?),
            mtime_ns: i128::from(header.mtime()?) * 1_000_000_000,
            device: (header.device_major().unwrap_or_default(), header.device_minor().unwrap_or_default()),
            ..Entry::default()
        };
        for extension in entry.pax_extensions()?.into_iter().flatten() {
            let extension = extension?;
            let (key, value) = (extension.key().unwrap_or_default(), extension.value_bytes());
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                read.attributes.insert(name.to_owned(), value.to_vec());
            } else if key == "mtime" {
                read.mtime_ns = time_ns(&String::from_utf8_lossy(value)).unwrap_or(read.mtime_ns);
            }
        }
        read.link = entry.link_name_bytes().map(|name| name.to_vec()).unwrap_or_default();
        let path = entry.path_bytes().to_vec();
        let mut hash = blake3::Hasher::new();
        hash.update_reader(&mut entry)?;
        read.hash = *hash.finalize().as_bytes();
        found.insert(path, read);
    }
    // The rest of the archive, so that its writer does not fail.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(found)
}

/// Reads seconds with a fraction.
fn time_ns(text: &str) -> Option<i128> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos = format!("{fraction:0<9}").get(..9)?.parse::<i128>().ok()?;
    let seconds: i128 = seconds.parse().ok()?;
    Some(seconds * 1_000_000_000 + if text.starts_with('-') { -nanos } else { nanos })
}

/// Lists what differs, by path.
fn compare(
    one: &BTreeMap<Vec<u8>, Entry>,
    other: &BTreeMap<Vec<u8>, Entry>,
    epoch_ns: Option<i64>,
) -> Vec<(String, Vec<String>)> {
    let shown = |path: &[u8]| format!("/{}", String::from_utf8_lossy(path).trim_matches('/'));
    let mut found = Vec::new();
    for (path, entry) in one {
        let what = match other.get(path) {
            None => vec!["only in the first build".to_owned()],
            Some(again) => entry.differences(again, epoch_ns),
        };
        if !what.is_empty() {
            found.push((shown(path), what));
        }
    }
    for path in other.keys().filter(|path| !one.contains_key(*path)) {
        found.push((shown(path), vec!["only in the second build".to_owned()]));
    }
    found.sort();
    found
}

impl Entry {
    fn differences(&self, other: &Self, epoch_ns: Option<i64>) -> Vec<String> {
        let time = |ns: i128| epoch_ns.map_or(ns, |epoch| ns.min(i128::from(epoch)));
        let mut found = Vec::new();
        let mut add = |differs: bool, what: String| {
            if differs {
                found.push(what);
            }
        };
        add(self.kind != other.kind, "sort of file".to_owned());
        add(self.hash != other.hash, "content".to_owned());
        add(self.link != other.link, "link target".to_owned());
        add(self.device != other.device, "device".to_owned());
        add(self.mode != other.mode, format!("mode ({:o}, {:o})", self.mode & 0o7777, other.mode & 0o7777));
        let owner = |entry: &Self| format!("{}:{}", entry.owner.0, entry.owner.1);
        add(self.owner != other.owner, format!("owner ({}, {})", owner(self), owner(other)));
        add(time(self.mtime_ns) != time(other.mtime_ns), "mtime".to_owned());
        let names = self.attributes.keys().chain(other.attributes.keys());
        let mut names: Vec<&String> =
            names.filter(|name| self.attributes.get(*name) != other.attributes.get(*name)).collect();
        names.sort();
        names.dedup();
        for name in names {
            add(true, format!("xattr {name}"));
        }
        found
    }
}

impl From<Comparison> for String {
    fn from(comparison: Comparison) -> Self {
        serde_json::to_string(&comparison).map_err(Error::from).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mtime_ns: i128) -> Entry {
        Entry { kind: b'0', mode: 0o644, mtime_ns, ..Entry::default() }
    }

    fn files(files: &[(&str, Entry)]) -> BTreeMap<Vec<u8>, Entry> {
        files.iter().map(|(path, entry)| (path.as_bytes().to_vec(), entry.clone())).collect()
    }

    #[test]
    fn every_sort_of_difference_is_named() {
        let other = Entry {
            mode: 0o600,
            owner: (1, 2),
            hash: [1; 32],
            attributes: [("user.x".to_owned(), vec![1])].into(),
            ..entry(1)
        };
        let one = files(&[("a", entry(0)), ("same", entry(5)), ("gone", entry(0))]);
        let two = files(&[("a", other), ("same", entry(5)), ("new/", entry(0))]);
        let found = compare(&one, &two, None);
        let a = ["content", "mode (644, 600)", "owner (0:0, 1:2)", "mtime", "xattr user.x"];
        assert_eq!(found[0], ("/a".to_owned(), a.map(str::to_owned).to_vec()));
        assert_eq!(found[1], ("/gone".to_owned(), vec!["only in the first build".to_owned()]));
        assert_eq!(found[2], ("/new".to_owned(), vec!["only in the second build".to_owned()]));
    }

    #[test]
    fn times_after_the_epoch_count_as_the_epoch() {
        let (one, two) = (files(&[("a", entry(100))]), files(&[("a", entry(200))]));
        assert_eq!(compare(&one, &two, None).len(), 1);
        assert_eq!(compare(&one, &two, Some(150)).len(), 1);
        assert_eq!(compare(&one, &two, Some(100)), []);
        assert_eq!((time_ns("1.5"), time_ns("-2"), time_ns("x")), (Some(1_500_000_000), Some(-2_000_000_000), None));
    }
}
