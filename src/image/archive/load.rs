//! Reading images from an archive: a docker archive or an OCI layout, in one pass over the stream.
//!
//! Every file of the archive is stored as a blob while it goes by, because its meaning is known only at the end. What turns out
//! not to be needed is collected later.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::str::FromStr as _;

use kiln_graph::oci::{Descriptor, ImageConfig, Index, Manifest, annotation, media_type};
use kiln_graph::{Digest, Platform, Reference};

use super::{DockerManifest, INDEX, MANIFEST};
use crate::error::{Error, Result, ResultExt as _};
use crate::image::{Images, MAX_DOCUMENT, parse_config, record};
use crate::store::compression::Format;
use crate::store::layer::{Passing, What, pass_by};
use crate::store::{Blob, LayerBlob, Lease};
use crate::task::Cancel;

/// More files than any archive of images has.
const MAX_ENTRIES: usize = 100_000;

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its id.
    pub id: Digest,
    /// The names it got; empty for one without names.
    pub names: Vec<Reference>,
}

/// The files of an archive.
#[derive(Default)]
struct Files {
    blobs: HashMap<String, Blob>,
    /// Links within the archive, as old docker versions write them for equal layers.
    links: HashMap<String, String>,
}

/// An image as an archive describes it.
struct Described {
    config: Digest,
    layers: Vec<Blob>,
    manifest: Option<Digest>,
    names: Vec<Reference>,
}

impl Images {
    /// Loads the images of an archive, compressed in whatever way. Blocking; holds no layer in memory.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no archive of images; `Corrupt` when something in it is not what its digest says;
    /// `Exhausted` on a full disk; `Cancelled`. Images that came before the damage are not loaded either.
    pub fn load(&self, lease: &Lease, input: impl Read + Send, cancel: &Cancel) -> Result<Vec<Loaded>> {
        let files = self.ingest_files(lease, input, cancel)?;
        let described = if files.blobs.contains_key(MANIFEST) {
            describe_docker(&files)?
        } else if files.blobs.contains_key(INDEX) {
            self.describe_layout(lease, &files)?
        } else {
            return Err(Error::invalid(format!(
                "this is neither a docker archive nor an OCI layout: it has no {MANIFEST} and no {INDEX} (a root file system is \
                 made an image with `import`)"
            )));
        };
        described.into_iter().map(|image| self.load_image(lease, image, cancel)).collect()
    }

    fn ingest_files(&self, lease: &Lease, input: impl Read + Send, cancel: &Cancel) -> Result<Files> {
        let mut files = Files::default();
        let mut entries = 0;
        pass_by(input, |Passing { path, what, .. }| {
            cancel.check()?;
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(Error::invalid("the archive has too many files to be one of images"));
            }
            let path = normalize("", &String::from_utf8_lossy(&path));
            match what {
                What::File(content) => {
                    let mut writer = self.store.blob_writer(lease)?;
                    copy(content, &mut writer, cancel).context(|| format!("read {path} of the archive"))?;
                    files.links.remove(&path);
                    files.blobs.insert(path, writer.finish()?);
                }
                What::Symlink(target) => {
                    files.link(path.clone(), normalize(parent(&path), &String::from_utf8_lossy(&target)));
                }
                What::HardLink(target) => files.link(path, normalize("", &String::from_utf8_lossy(&target))),
                What::Other => {}
            }
            Ok(())
        })?;
        Ok(files)
    }

    /// Reads an OCI layout: of each index, what runs on this host, else all of it.
    fn describe_layout(&self, lease: &Lease, files: &Files) -> Result<Vec<Described>> {
        let index: Index = files.json(INDEX)?;
        let mut images: BTreeMap<Digest, Described> = BTreeMap::new();
        for descriptor in &index.manifests {
            let names = names_of(descriptor)?;
            let mut manifest = descriptor.clone();
            // Indexes may nest; a few levels are more than anybody writes.
            for _ in 0..4 {
                if !media_type::is_index(&manifest.media_type) {
                    break;
                }
                let inner: Index = self.layout_json(lease, &manifest.digest)?;
                let chosen = inner.choose(&Platform::host()).or_else(|| inner.manifests.first());
                manifest = chosen.cloned().ok_or_else(|| Error::invalid("an index of the archive is empty"))?;
            }
            let parsed: Manifest = self.layout_json(lease, &manifest.digest)?;
            if !matches!(parsed.config.media_type.as_str(), media_type::OCI_CONFIG | media_type::DOCKER_CONFIG) {
                continue;
            }
            let layers = parsed.layers.iter().map(|layer| self.layout_blob(lease, &layer.digest));
            let image = Described {
                config: parsed.config.digest,
                layers: layers.collect::<Result<_>>()?,
                manifest: Some(manifest.digest),
                names,
            };
            images.entry(manifest.digest).and_modify(|known| known.names.extend(image.names.clone())).or_insert(image);
        }
        if images.is_empty() {
            return Err(Error::invalid("the archive contains no image"));
        }
        Ok(images.into_values().collect())
    }

    fn layout_json<T: serde::de::DeserializeOwned>(&self, lease: &Lease, digest: &Digest) -> Result<T> {
        let bytes = self.layout_blob(lease, digest)?.read(MAX_DOCUMENT)?;
        serde_json::from_slice(&bytes).context(|| format!("read blob {digest} of the archive"))
    }

    /// Finds a blob by its digest: the files of the archive were stored under what they hash to, whatever they are called.
    fn layout_blob(&self, lease: &Lease, digest: &Digest) -> Result<Blob> {
        let blob = self.store.blob(lease, digest)?;
        blob.ok_or_else(|| {
            Error::corrupt(format!("blob {digest} is missing from the archive, or its content is damaged"))
        })
    }

    fn load_image(&self, lease: &Lease, image: Described, cancel: &Cancel) -> Result<Loaded> {
        let bytes = self.layout_blob(lease, &image.config)?.read(MAX_DOCUMENT)?;
        let config = parse_config(&bytes)?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() {
            return Err(Error::corrupt(format!(
                "image {} has {} layers, but its configuration lists {}",
                image.config.short(),
                image.layers.len(),
                diff_ids.len()
            )));
        }
        let unpacker = self.store.unpacker(lease, diff_ids)?;
        let missing = unpacker.missing();
        let work = |index: usize| unpacker.layer(index, image.layers[index].open()?, cancel);
        run_in_parallel(&missing, &work)?;
        unpacker.finish(cancel)?;
        let compressed = self.remember(&image, diff_ids, &missing, cancel)?;
        self.keep_foreign(lease, &image, &config, cancel)?;
        // Plain layers can be made again from what was unpacked; only compressed ones are kept as they came.
        let manifest = image.manifest.filter(|_| compressed);
        self.store.root().db().write(|tx| {
            let (now, boot) = (self.clock.now_ns(), self.store.root().boot_id());
            record::insert(tx, &image.config, manifest.as_ref(), now, boot)?;
            image.names.iter().try_for_each(|name| record::set_name(tx, name, &image.config))
        })?;
        Ok(Loaded { id: image.config, names: image.names })
    }

    /// Keeps plain layers that would be other bytes if they were packed again: those of other programs, as a rule.
    fn keep_foreign(&self, lease: &Lease, image: &Described, config: &ImageConfig, cancel: &Cancel) -> Result<()> {
        let rootfs = &config.rootfs;
        let chains = rootfs.chain_ids();
        let plain: Vec<usize> =
            (0..chains.len()).filter(|index| *image.layers[*index].digest() == rootfs.diff_ids[*index]).collect();
        run_in_parallel(&plain, &|index| {
            let diff_id = &rootfs.diff_ids[index];
            if !self.store.layer_blobs(diff_id)?.is_empty() {
                return Ok(());
            }
            let Some(snapshot) = self.store.by_chain(lease, &chains[index])? else { return Ok(()) };
            if self.store.layer_digests(snapshot.id, cancel)?.diff_id == *diff_id {
                return Ok(());
            }
            let blob = &image.layers[index];
            let form = LayerBlob { digest: *blob.digest(), size: blob.size(), media_suffix: String::new() };
            self.store.remember_layer_blob(diff_id, &form)
        })
    }

    /// Remembers the compressed layers of an image; says whether all are compressed. Those that were not `unpacked` just now
    /// could hold anything, and are verified.
    fn remember(&self, image: &Described, diff_ids: &[Digest], unpacked: &[usize], cancel: &Cancel) -> Result<bool> {
        let mut all = true;
        for (index, (blob, diff_id)) in image.layers.iter().zip(diff_ids).enumerate() {
            let mut start = [0; 8];
            let read = blob.open()?.read(&mut start)?;
            let media_suffix = match Format::sniff(&start[..read]) {
                Format::Gzip => "+gzip",
                Format::Zstd => "+zstd",
                Format::Plain | Format::Xz | Format::Bzip2 => {
                    all = false;
                    continue;
                }
            };
            if unpacked.contains(&index) {
                let form =
                    LayerBlob { digest: *blob.digest(), size: blob.size(), media_suffix: media_suffix.to_owned() };
                self.store.remember_layer_blob(diff_id, &form)?;
            } else {
                self.store.verify_layer_blob(diff_id, blob, cancel)?;
            }
        }
        Ok(all)
    }
}

/// Copies a file of the archive, looking at the flag now and then.
fn copy(from: &mut dyn Read, to: &mut dyn Write, cancel: &Cancel) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        cancel.check()?;
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read])?;
    }
}

/// Runs the work on all cores.
fn run_in_parallel(layers: &[usize], work: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<()> {
    use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
    let results: Vec<Result<()>> = layers.par_iter().map(|index| work(*index)).collect();
    results.into_iter().collect()
}

impl Files {
    fn link(&mut self, path: String, target: String) {
        self.blobs.remove(&path);
        self.links.insert(path, target);
    }

    /// Finds a file, following links of the archive.
    fn get(&self, path: &str) -> Result<&Blob> {
        let mut path = normalize("", path);
        for _ in 0..16 {
            if let Some(blob) = self.blobs.get(&path) {
                return Ok(blob);
            }
            match self.links.get(&path) {
                Some(target) => path.clone_from(target),
                None => break,
            }
        }
        Err(Error::corrupt(format!("{path} is missing from the archive")))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        let bytes = self.get(path)?.read(MAX_DOCUMENT)?;
        serde_json::from_slice(&bytes).context(|| format!("read {path} of the archive"))
    }
}

fn describe_docker(files: &Files) -> Result<Vec<Described>> {
    let entries: Vec<DockerManifest> = files.json(MANIFEST)?;
    let manifests = layout_manifests(files);
    entries
        .into_iter()
        .map(|entry| {
            let config = *files.get(&entry.config)?.digest();
            let layers = entry.layers.iter().map(|layer| files.get(layer).cloned()).collect::<Result<_>>()?;
            let names = entry.repo_tags.unwrap_or_default();
            let names =
                names.iter().map(|name| Ok(Reference::from_str(name)?.with_default_tag())).collect::<Result<_>>()?;
            Ok(Described { config, layers, manifest: manifests.get(&config).copied(), names })
        })
        .collect()
}

/// In an archive that is an OCI layout as well, the manifests by their configurations.
fn layout_manifests(files: &Files) -> HashMap<Digest, Digest> {
    let Ok(index) = files.json::<Index>(INDEX) else { return HashMap::new() };
    let manifests = index.manifests.iter().filter_map(|descriptor| {
        let path = format!("blobs/{}/{}", descriptor.digest.algorithm().as_str(), descriptor.digest.hex());
        let manifest: Manifest = files.json(&path).ok()?;
        Some((manifest.config.digest, descriptor.digest))
    });
    manifests.collect()
}

fn names_of(descriptor: &Descriptor) -> Result<Vec<Reference>> {
    let full = descriptor.annotations.get(annotation::IMAGE_NAME);
    let short = descriptor.annotations.get(annotation::REF_NAME);
    // The short form is only a tag, unless a tool put a whole name there.
    let name = full.or_else(|| short.filter(|name| name.contains(['/', ':'])));
    name.map_or_else(|| Ok(Vec::new()), |name| Ok(vec![Reference::from_str(name)?.with_default_tag()]))
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Joins a path to a directory of the archive, resolving `.` and `..` as text.
fn normalize(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_old_archives_are_resolved_within_the_archive() {
        assert_eq!(normalize("abc", "../def/layer.tar"), "def/layer.tar");
        assert_eq!(normalize("", "./../../etc/passwd"), "etc/passwd");
        assert_eq!(parent("a/b/c"), "a/b");
    }
}
