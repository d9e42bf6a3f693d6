//! Blobs of images as files: from a repository of a registry, or from an OCI layout of the client.
//!
//! A blob is known by its digest, so nobody is asked before it is fetched. It goes through the store, where transfers that broke
//! off go on; what is there already is not fetched.

use std::ffi::CString;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use kiln_graph::oci::Descriptor;
use kiln_graph::op::{BlobLocator, BlobPlace, ImageBlob};
use kiln_graph::{Digest, Reference, VertexId};
use serde::Serialize;

use super::Material;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::image::{BlobSource, LayerStage, Report, RepositoryBlobs};
use crate::sbom::Purl;
use crate::solver::contexts;
use crate::solver::job::Job;
use crate::solver::key::Parts;
use crate::solver::lock;
use crate::solver::reporter::Reporter;
use crate::solver::settle::Made;
use crate::solver::value::{FileSystem, Layer};
use crate::store::tree::{self, Attributes, Time, Xattrs};
use crate::store::{Active, Blob, SnapshotId};
use crate::task::{self, Cancel};
use crate::wire::content::LAYOUT;

/// The largest blob that is fetched, in bytes: that of files by HTTP.
const MAX_BYTES: u64 = 64 << 30;

/// The permissions of a file whose source does not say.
const MODE: u32 = 0o600;

/// Bytes that are copied between two looks at whether to go on.
const PIECE: u64 = 8 << 20;

/// What identifies a blob's file: what it is, not where it is from.
pub(super) fn identity(file: &ImageBlob) -> Parts {
    let mut parts = Parts::default();
    parts.add("operation", "blob");
    parts.add("content", file.blob.digest.to_string());
    parts.add("name", file_name(file));
    parts.add("mode", format!("{:o} {}:{}", file.mode.unwrap_or(MODE), file.uid, file.gid));
    parts
}

/// What BuildKit calls a blob's file.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PeerKey<'a> {
    digest: Digest,
    filename: &'a str,
    perm: u32,
    #[serde(rename = "UID")]
    uid: u32,
    #[serde(rename = "GID")]
    gid: u32,
}

/// Returns what BuildKit calls a blob's file.
pub(super) fn peer_key(file: &ImageBlob) -> Option<String> {
    let ImageBlob { blob, filename, mode, uid, gid } = file;
    let key = PeerKey { digest: blob.digest, filename, perm: mode.unwrap_or(0), uid: *uid, gid: *gid };
    Some(Digest::of(serde_json::to_string(&key).ok()?.as_bytes()).to_string())
}

/// Says what a blob is, for provenance.
pub(super) fn material(locator: &BlobLocator) -> Material {
    let digest = locator.digest.to_string();
    let uri = match &locator.place {
        BlobPlace::Registry(name) => Purl::of_path("docker", &name.familiar_repository(), ""),
        BlobPlace::Layout { name, .. } => Purl::of_path("oci", name, ""),
    };
    Material { uri: uri.with("digest", digest.as_str()).with("ref_type", "blob").to_string(), digest }
}

/// Says which bundle a repository's commit is from, for provenance. `repository` is its address, with the reference.
pub(super) fn bundle_material(locator: &BlobLocator, repository: &str) -> Material {
    // BuildKit names what has no digest in its name by a tag.
    let uri = match &locator.place {
        BlobPlace::Registry(name) => Purl::of_path("docker", &name.familiar_repository(), "latest"),
        BlobPlace::Layout { name, .. } => Purl::of_path("oci", name, "latest"),
    };
    let uri = uri.with("ref_type", "bundle").with("vcs_url", repository);
    Material { uri: uri.to_string(), digest: locator.digest.to_string() }
}

/// The name of a blob's file. As with BuildKit, of a path the last component counts, and what cannot be a name becomes `download`.
fn file_name(file: &ImageBlob) -> String {
    if file.filename.is_empty() {
        return file.blob.digest.hex();
    }
    let name = file.filename.trim();
    let name = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let odd = matches!(name, "" | "." | "..") || name.len() > 255 || name.chars().any(char::is_control);
    if odd { "download".to_owned() } else { name.to_owned() }
}

impl Job {
    /// Fetches a blob, whose file becomes a layer of its own.
    pub(super) async fn run_blob(
        self: &Arc<Self>,
        id: VertexId,
        file: &ImageBlob,
        reporter: &Reporter,
    ) -> Result<Layer> {
        let blob = self.fetch_blob(&file.blob, Some(reporter)).await?;
        let cancel = Cancel::new();
        let _stop = cancel.on_drop();
        let writing = Writing {
            name: file_name(file),
            attributes: Attributes {
                mode: file.mode.unwrap_or(MODE),
                uid: file.uid,
                gid: file.gid,
                mtime: Time::default(),
                xattrs: Xattrs::default(),
            },
        };
        let (job, stop) = (Arc::clone(self), cancel.clone());
        let snapshot = task::blocking(move || {
            let active = job.solver.deps().store.prepare(&job.lease, None)?;
            writing.write(active, &blob, &stop)
        });
        let snapshot = snapshot.await.context(|| format!("write {}", file.blob.address()))?;
        let vertex = self.graph.vertex(id);
        let work = self.fetching(vertex, Some(identity(file)));
        let name = vertex.meta.name.clone();
        Ok(self.settle(work, Made { snapshot, base: FileSystem::Empty, listing: None, name, has_digests: false }))
    }

    /// Sees to it that a blob is in the store, and returns it, leased by this build. `reporter` is told how far that is.
    ///
    /// # Errors
    /// `NotFound` when nobody has it; `Corrupt` when it is another one; `InvalidArgument` for one that is too large; what the
    /// registry or the client says.
    pub(super) async fn fetch_blob(
        self: &Arc<Self>,
        locator: &BlobLocator,
        reporter: Option<&Reporter>,
    ) -> Result<Blob> {
        let (job, digest) = (Arc::clone(self), locator.digest);
        let known = task::blocking(move || job.solver.deps().store.blob(&job.lease, &digest)).await?;
        if let Some(known) = known {
            return Ok(known);
        }
        let fetched = match &locator.place {
            BlobPlace::Registry(name) => self.blob_of_registry(name, &locator.digest, reporter).await,
            place @ BlobPlace::Layout { .. } => {
                self.blob_of_layout(place.layout().unwrap_or_default(), &locator.digest, reporter).await
            }
        };
        fetched.context(|| format!("fetch {}", locator.address()))
    }

    /// Fetches a blob of a repository. Manifests are not among them at registries, and are meant, too.
    async fn blob_of_registry(
        self: &Arc<Self>,
        name: &Reference,
        digest: &Digest,
        reporter: Option<&Reporter>,
    ) -> Result<Blob> {
        match self.registry.blob_size(name, digest).await {
            Ok(size) => {
                let source = RepositoryBlobs { client: self.registry.clone(), name: name.clone() };
                self.fetch_from(&source, &Descriptor::new("", *digest, size), reporter).await
            }
            Err(missing) if missing.kind() == Kind::NotFound => {
                let manifest = match self.registry.resolve(&name.with_digest(*digest)).await {
                    Ok(manifest) => manifest,
                    Err(error) if error.kind() == Kind::NotFound => return Err(missing),
                    Err(error) => return Err(error),
                };
                let (job, digest) = (Arc::clone(self), *digest);
                let put = move || job.solver.deps().store.put_blob(&job.lease, &digest, &manifest.content);
                task::blocking(put).await
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a blob of a layout: in place, or through the client's session.
    async fn blob_of_layout(
        self: &Arc<Self>,
        name: &str,
        digest: &Digest,
        reporter: Option<&Reporter>,
    ) -> Result<Blob> {
        if let Some(path) = self.locals.paths.get(&contexts::layout_key(name)).cloned() {
            let (job, digest) = (Arc::clone(self), *digest);
            return task::blocking(move || {
                let images = &job.solver.deps().images;
                images.import_from_layout(&job.lease, &path, &digest, MAX_BYTES)
            })
            .await;
        }
        let store = self.session.content_store(format!("{LAYOUT}{name}")).await?;
        let descriptor = store.describe(digest).await?;
        self.fetch_from(&store, &descriptor, reporter).await
    }

    async fn fetch_from(
        &self,
        source: &dyn BlobSource,
        blob: &Descriptor,
        reporter: Option<&Reporter>,
    ) -> Result<Blob> {
        if blob.size > MAX_BYTES {
            return Err(Error::invalid(format!("it is larger than {} GiB", MAX_BYTES >> 30)));
        }
        let parts = reporter.map(|reporter| reporter.parts(&blob.digest.to_string(), blob.size));
        let parts = Arc::new(std::sync::Mutex::new(parts.unwrap_or_default()));
        let shown = Arc::clone(&parts);
        let report: Report = Arc::new(move |_, stage| {
            if let LayerStage::Downloading(bytes) = stage {
                lock(&shown).iter().for_each(|part| part.update(bytes));
            }
        });
        let fetched = self.solver.deps().images.fetch_blob(&self.lease, blob, source, &report).await?;
        std::mem::take(&mut *lock(&parts)).into_iter().for_each(crate::solver::progress::Part::complete);
        Ok(fetched)
    }
}

/// A file that is being written.
struct Writing {
    name: String,
    attributes: Attributes,
}

impl Writing {
    /// Blocking.
    fn write(self, active: Active, blob: &Blob, cancel: &Cancel) -> Result<SnapshotId> {
        let name = CString::new(self.name).map_err(|_| Error::invalid("the name contains a zero byte"))?;
        let dir = tree::open_root(active.dir())?;
        let mut file = std::fs::File::from(tree::create_file(&dir, &name)?);
        let mut content = blob.open()?;
        // As much at a time as the kernel copies by itself.
        while std::io::copy(&mut (&mut content).take(PIECE), &mut file)? > 0 {
            cancel.check()?;
        }
        file.flush()?;
        self.attributes.apply(&file)?;
        drop((file, dir));
        active.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(filename: &str) -> ImageBlob {
        let digest = Digest::of(b"x");
        let place = BlobPlace::Registry("example.com/a/b".parse().unwrap());
        let (blob, filename) = (BlobLocator { place, digest }, filename.to_owned());
        ImageBlob { blob, filename, mode: Some(0o644), uid: 1, gid: 2 }
    }

    #[test]
    fn names_are_those_of_buildkit() {
        assert_eq!(file_name(&blob("")), Digest::of(b"x").hex());
        for (given, name) in [
            ("foo.txt", "foo.txt"),
            ("  name with spaces.txt  ", "name with spaces.txt"),
            ("a/b/c.txt", "c.txt"),
            ("資料.txt", "資料.txt"),
            (".", "download"),
            ("..", "download"),
            ("../", "download"),
            ("a\0b", "download"),
            ("a\nb", "download"),
        ] {
            assert_eq!(file_name(&blob(given)), name, "{given:?}");
        }
    }

    #[test]
    fn a_blob_is_what_buildkit_calls_it_wherever_it_is_from() {
        let file = blob("f");
        let digest = file.blob.digest;
        let text = format!("{{\"Digest\":\"{digest}\",\"Filename\":\"f\",\"Perm\":420,\"UID\":1,\"GID\":2}}");
        assert_eq!(peer_key(&file).unwrap(), Digest::of(text.as_bytes()).to_string());
        let place = BlobPlace::Layout { name: "own".into(), store: String::new() };
        let local = ImageBlob { blob: BlobLocator { place, digest }, ..file.clone() };
        assert_eq!(identity(&local).key(), identity(&file).key());
        let uri = material(&file.blob).uri;
        assert_eq!(uri, format!("pkg:docker/example.com/a/b?digest={digest}&ref_type=blob"));
        let uri = bundle_material(&local.blob, "https://a/b.git").uri;
        assert!(uri.starts_with("pkg:oci/own@latest?ref_type=bundle&vcs_url="), "{uri}");
    }
}
