//! Files by HTTP: what ADD names, archives that are contexts, and what clients upload under an address of their own.

use std::ffi::CString;
use std::sync::Arc;

use bytes::Bytes;
use kiln_graph::op::{FileVerification, HttpSource};
use kiln_graph::{Algorithm, Digest, VertexId};
use serde::Serialize;
use sha2::Digest as _;
use tokio::sync::mpsc;

use super::records::{self, Fetched};
use super::{FileAnswer, Material, Pin};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::registry::{self, FileHead, FileRequest};
use crate::signature::{self, Expired, Terms};
use crate::solver::job::Job;
use crate::solver::key::Parts;
use crate::solver::reporter::Reporter;
use crate::solver::session::{UPLOAD_HOST, Upload};
use crate::solver::settle::Made;
use crate::solver::value::{FileSystem, Layer};
use crate::store::tree::{self, Attributes, Time, Xattrs};
use crate::store::{Active, SnapshotId};
use crate::task::{self, Cancel};

/// The largest file that is fetched, in bytes.
const MAX_BYTES: u64 = 64 << 30;

/// How often a transfer that breaks is begun anew.
const ATTEMPTS: usize = 3;

/// Pieces of a file on their way to the disk: enough that neither side waits for the other's hiccups.
const PIECES: usize = 16;

/// The permissions of a file whose source does not say.
const MODE: u32 = 0o600;

/// Which file an address stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) digest: Digest,
    name: String,
    modified: Option<String>,
}

impl Version {
    fn of(http: &HttpSource, fetched: &Fetched) -> Result<Self> {
        let name = file_name(http, fetched.head.name.as_deref())?;
        Ok(Self { digest: fetched.digest, name, modified: fetched.head.modified.clone() })
    }
}

impl Version {
    /// Says what the file is to whoever asked.
    pub(super) fn answer(&self) -> FileAnswer {
        let modified_s = self.modified.as_deref().and_then(time_of).map(|time| time.seconds);
        FileAnswer { digest: self.digest, name: self.name.clone(), modified_s }
    }
}

/// What identifies a file: what it is, not where it is from.
pub(super) fn identity(http: &HttpSource, version: &Version) -> Parts {
    let mut parts = described(http, &version.name, &http.checksum.unwrap_or(version.digest));
    if http.checksum.is_none() {
        parts.add("modified", version.modified.clone().unwrap_or_default());
    }
    parts
}

/// What identifies a file whose digest is given, so that no server has to be asked.
pub(super) fn promised(http: &HttpSource) -> Option<Parts> {
    Some(described(http, &file_name(http, None).ok()?, &http.checksum?))
}

/// What BuildKit calls a file.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PeerKey<'a> {
    filename: &'a str,
    perm: u32,
    #[serde(rename = "UID")]
    uid: u32,
    #[serde(rename = "GID")]
    gid: u32,
    checksum: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_mod_time: Option<&'a str>,
}

/// Returns what BuildKit calls a file; of one whose digest is given, no server is asked.
pub(super) fn peer_key(http: &HttpSource, version: Option<&Version>) -> Option<String> {
    let promised = file_name(http, None).ok()?;
    let (filename, checksum, last_mod_time) = match (http.checksum, version) {
        (Some(checksum), _) => (promised.as_str(), checksum, None),
        (None, version) => {
            version.map(|version| (version.name.as_str(), version.digest, version.modified.as_deref()))?
        }
    };
    let last_mod_time = last_mod_time.filter(|time| !time.is_empty());
    let (perm, uid, gid) = (http.mode.unwrap_or(0), http.uid, http.gid);
    let key = PeerKey { filename, perm, uid, gid, checksum, last_mod_time };
    Some(Digest::of(serde_json::to_string(&key).ok()?.as_bytes()).to_string())
}

fn described(http: &HttpSource, name: &str, digest: &Digest) -> Parts {
    let mut parts = Parts::default();
    parts.add("operation", "http");
    parts.add("content", digest.to_string());
    parts.add("name", name);
    parts.add("mode", format!("{:o} {}:{}", http.mode.unwrap_or(MODE), http.uid, http.gid));
    // A layer that was recorded with them was verified by them when it was made.
    if let Some(FileVerification { keys, signature }) = http.verification.as_deref() {
        parts.add("keys", blake3::hash(keys.as_bytes()).to_string());
        parts.add("signature", blake3::hash(signature.as_bytes()).to_string());
    }
    parts
}

pub(super) fn material(http: &HttpSource, digest: &Digest) -> Option<Material> {
    let request = FileRequest::new(&http.url).ok().filter(|request| request.host() != UPLOAD_HOST)?;
    Some(Material { uri: request.shown(), digest: digest.to_string() })
}

/// The name a file gets: the source's, the server's, that of the address.
pub(super) fn file_name(http: &HttpSource, proposed: Option<&str>) -> Result<String> {
    let own = Some(http.filename.as_str()).filter(|name| !name.is_empty());
    // What is known by its digest must not depend on what a server says about it.
    let proposed = proposed.filter(|_| http.checksum.is_none());
    let of_address = || FileRequest::new(&http.url).ok()?.path().rsplit('/').next().map(str::to_owned);
    let name = own.or(proposed).map(str::to_owned).or_else(of_address).filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| "download".to_owned());
    if matches!(name.as_str(), "." | "..") || name.contains(['/', '\0']) || name.len() > 255 {
        return Err(Error::invalid(format!("{name:?} cannot be the name of a file")));
    }
    Ok(name)
}

/// Something that arrives.
enum Incoming {
    File(registry::File),
    Upload(Upload),
}

impl Incoming {
    fn head(&self) -> FileHead {
        match self {
            Self::File(file) => file.head.clone(),
            Self::Upload(_) => FileHead::default(),
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::File(file) => file.chunk().await,
            Self::Upload(upload) => upload.chunk().await,
        }
    }
}

impl Job {
    /// Finds out whether a file is the one that was fetched before; `None` when that cannot be said without fetching it.
    pub(super) async fn pin_file(self: &Arc<Self>, http: &HttpSource) -> Result<Option<Version>> {
        let request = FileRequest::new(&http.url)?;
        if http.checksum.is_some() {
            return Ok(None);
        }
        let Some(known) = self.fetched_before(http).await? else { return Ok(None) };
        if request.host() == UPLOAD_HOST {
            // The client sends it once, under an address that nothing else ever has.
            return Version::of(http, &known).map(Some);
        }
        let mut request = self.authorized(request, http).await?;
        request.known.clone_from(&known.head.etag);
        let Some(head) = self.registry.file_head(&request).await? else { return Ok(None) };
        Ok(if is_same(&known.head, &head) { Some(Version::of(http, &known)?) } else { None })
    }

    async fn fetched_before(self: &Arc<Self>, http: &HttpSource) -> Result<Option<Fetched>> {
        let (root, url) = (self.solver.deps().store.root().clone(), http.url.clone());
        task::blocking(move || root.db().read(|connection| records::find(connection, &url))).await
    }

    /// Adds what the client has for the host: a header, or a token for one.
    async fn authorized(&self, mut request: FileRequest, http: &HttpSource) -> Result<FileRequest> {
        for (name, value) in &http.headers {
            request.header(name, value)?;
        }
        let Some(session) = self.session.get().await? else { return Ok(request) };
        if !http.header_secret.is_empty() {
            // As with BuildKit, nothing is sent when the client has no such secret.
            if let Some(header) = session.secret_text(&http.header_secret).await? {
                request.authorize(&header)?;
            }
            return Ok(request);
        }
        let host = request.host();
        let without_port = host.split_once(':').map(|(name, _)| name.to_owned());
        for host in std::iter::once(host).chain(without_port) {
            if let Some(header) = session.secret_text(&format!("HTTP_AUTH_HEADER_{host}")).await? {
                request.authorize(&header)?;
                break;
            }
            if let Some(token) = session.secret_text(&format!("HTTP_AUTH_TOKEN_{host}")).await? {
                request.authorize(&format!("Bearer {}", token.trim()))?;
                break;
            }
        }
        Ok(request)
    }

    /// Fetches a file, which becomes a layer of its own.
    pub(super) async fn run_http(
        self: &Arc<Self>,
        id: VertexId,
        http: &HttpSource,
        reporter: &Reporter,
        cancel: &Cancel,
    ) -> Result<Layer> {
        let mut attempt = 1;
        let (snapshot, fetched) = loop {
            let incoming = self.open_file(http).await?;
            match self.receive(http, incoming, reporter, cancel).await {
                Err(error) if attempt < ATTEMPTS && matches!(error.kind(), Kind::Unavailable | Kind::Timeout) => {
                    reporter.log(2, &format!("{error}; trying again\n").into());
                    attempt += 1;
                }
                received => break received?,
            }
        };
        let version = Version::of(http, &fetched)?;
        let parts = identity(http, &version);
        self.pins.set(&kiln_graph::op::Source::Http(http.clone()), Pin::File(version));
        let (root, url, now) = (self.solver.deps().store.root().clone(), http.url.clone(), self.progress.now_ns());
        let is_upload = FileRequest::new(&url)?.host() == UPLOAD_HOST;
        if is_upload || fetched.head.etag.is_some() || fetched.head.modified.is_some() {
            task::blocking(move || root.db().write(|tx| records::record(tx, &url, &fetched, now))).await?;
        }
        let vertex = self.graph.vertex(id);
        let work = self.fetching(vertex, Some(parts));
        let name = vertex.meta.name.clone();
        Ok(self.settle(work, Made { snapshot, base: FileSystem::Empty, listing: None, name, has_digests: false }))
    }

    async fn open_file(&self, http: &HttpSource) -> Result<Incoming> {
        let request = FileRequest::new(&http.url)?;
        if request.host() == UPLOAD_HOST {
            let session = self.session.get().await?;
            let session = session.ok_or_else(|| Error::unsupported("an upload without a session"))?;
            return Ok(Incoming::Upload(session.upload(UPLOAD_HOST, request.path()).await?));
        }
        Ok(Incoming::File(self.registry.file(&self.authorized(request, http).await?).await?))
    }

    /// Writes a file into a layer while it arrives.
    async fn receive(
        self: &Arc<Self>,
        http: &HttpSource,
        mut incoming: Incoming,
        reporter: &Reporter,
        cancel: &Cancel,
    ) -> Result<(SnapshotId, Fetched)> {
        let head = incoming.head();
        let shown = FileRequest::new(&http.url)?.shown();
        let file = Arriving {
            name: file_name(http, head.name.as_deref())?,
            attributes: Attributes {
                mode: http.mode.unwrap_or(MODE),
                uid: http.uid,
                gid: http.gid,
                mtime: head.modified.as_deref().and_then(time_of).unwrap_or_default(),
                xattrs: Xattrs::default(),
            },
            checksum: http.checksum,
            verification: http.verification.clone(),
            now_s: self.progress.now_ns() / 1_000_000_000,
        };
        let (sender, receiver) = mpsc::channel(PIECES);
        let (job, cancel) = (Arc::clone(self), cancel.clone());
        let writing = task::blocking(move || {
            let active = job.solver.deps().store.prepare(&job.lease, None)?;
            file.write(active, receiver, &cancel)
        });
        let parts = reporter.parts("downloading", head.size.unwrap_or(0));
        let receiving = async {
            let mut size = 0;
            while let Some(chunk) = incoming.chunk().await? {
                size += chunk.len() as u64;
                if size > MAX_BYTES {
                    return Err(Error::invalid(format!("it is larger than {} GiB", MAX_BYTES >> 30)));
                }
                parts.iter().for_each(|part| part.update(size));
                if sender.send(chunk).await.is_err() {
                    // The writer says why.
                    break;
                }
            }
            drop(sender);
            Ok(())
        };
        let (received, written) = tokio::join!(receiving, writing);
        received.context(|| format!("fetch {shown}"))?;
        let (snapshot, digest) = written.context(|| format!("fetch {shown}"))?;
        parts.into_iter().for_each(crate::solver::progress::Part::complete);
        Ok((snapshot, Fetched { head, digest }))
    }
}

/// Says whether a server speaks of the file that is known. Without an entity tag, its time and size must be the same.
fn is_same(known: &FileHead, now: &FileHead) -> bool {
    match (&known.etag, &now.etag) {
        _ if now.unchanged => true,
        (Some(known), Some(now)) => known.trim_start_matches("W/") == now.trim_start_matches("W/"),
        (None, None) => known.modified.is_some() && (&known.modified, known.size) == (&now.modified, now.size),
        _ => false,
    }
}

/// Reads an HTTP date.
fn time_of(text: &str) -> Option<Time> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Time { seconds: time.as_second(), nanos: 0 })
}

/// A file that is being written.
struct Arriving {
    name: String,
    attributes: Attributes,
    checksum: Option<Digest>,
    verification: Option<Box<FileVerification>>,
    now_s: i64,
}

impl Arriving {
    /// Blocking.
    fn write(self, active: Active, mut pieces: mpsc::Receiver<Bytes>, cancel: &Cancel) -> Result<(SnapshotId, Digest)> {
        use std::io::Write as _;
        let name = CString::new(self.name).map_err(|_| Error::invalid("the name contains a zero byte"))?;
        let dir = tree::open_root(active.dir())?;
        let mut file = std::fs::File::from(tree::create_file(&dir, &name)?);
        let mut sha256 = sha2::Sha256::new();
        let mut sha512 = self.checksum.filter(|sum| sum.algorithm() == Algorithm::Sha512).map(|_| sha2::Sha512::new());
        while let Some(piece) = pieces.blocking_recv() {
            cancel.check()?;
            file.write_all(&piece)?;
            sha256.update(&piece);
            sha512.iter_mut().for_each(|hash| hash.update(&piece));
        }
        cancel.check()?;
        let digest = Digest::sha256(sha256.finalize().into());
        let found = sha512.map_or(digest, |hash| Digest::sha512(hash.finalize().into()));
        if let Some(expected) = self.checksum.filter(|expected| *expected != found) {
            return Err(Error::corrupt(format!("digest mismatch: it is {found}, not {expected}")));
        }
        if let Some(FileVerification { keys, signature }) = self.verification.as_deref() {
            // The key may have expired since; it was good when it signed.
            let terms = Terms { keys, expired: Expired::Accepted, now_s: self.now_s };
            let file = std::fs::File::from(tree::open_file_made(&dir, &name)?);
            signature::verify_file(&file, signature, &terms)?;
        }
        self.attributes.apply(&file)?;
        drop((file, dir));
        Ok((active.commit()?, digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(url: &str, filename: &str) -> HttpSource {
        HttpSource { url: url.to_owned(), filename: filename.to_owned(), ..HttpSource::default() }
    }

    #[test]
    fn a_file_is_named_by_its_source_the_server_or_its_address() {
        let name = |url: &str, own: &str, proposed| file_name(&source(url, own), proposed).unwrap();
        assert_eq!(name("http://a/b/c.tar?x", "", None), "c.tar");
        assert_eq!(name("http://a/b/", "", None), "download");
        assert_eq!(name("http://a/b", "", Some("d")), "d");
        assert_eq!(name("http://a/b", "own", Some("d")), "own");
        assert!(file_name(&source("http://a/b", "../x"), None).is_err());
        assert!(file_name(&source("http://a/..", ".."), None).is_err());
    }

    #[test]
    fn a_file_is_the_same_by_its_tag_or_else_by_time_and_size() {
        let head = |etag: Option<&str>, modified: Option<&str>, size| FileHead {
            etag: etag.map(str::to_owned),
            modified: modified.map(str::to_owned),
            size,
            ..FileHead::default()
        };
        let tagged = head(Some("\"1\""), Some("x"), Some(1));
        assert!(is_same(&tagged, &head(Some("W/\"1\""), Some("y"), None)));
        assert!(!is_same(&tagged, &head(Some("\"2\""), Some("x"), Some(1))));
        assert!(is_same(&tagged, &FileHead { unchanged: true, ..FileHead::default() }));
        let timed = head(None, Some("x"), Some(1));
        assert!(is_same(&timed, &head(None, Some("x"), Some(1))));
        assert!(!is_same(&timed, &head(None, Some("x"), Some(2))));
        assert!(!is_same(&head(None, None, None), &head(None, None, None)));
    }

    #[test]
    fn times_of_servers_are_read() {
        assert_eq!(time_of("Wed, 21 Oct 2015 07:28:00 GMT").unwrap().seconds, 1_445_412_480);
        assert_eq!(time_of("yesterday"), None);
    }
}
