//! Blobs: content by digest.
//!
//! A blob's file is complete and verified before it has its name. The record says that it exists; a file without a record is
//! garbage, a record without its file (somebody tidied up by hand) counts as absent.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use kiln_graph::{Algorithm, Digest};
use rusqlite::Connection;
use rustix::fs::{FlockOperation, Mode, OFlags};
use sha2::Digest as _;

use super::lease::Leased;
use super::tree::Metadata;
use super::{Lease, Store, optional};
use crate::error::{Error, Result, ResultExt as _};

/// A blob that exists, and that a lease keeps.
#[derive(Clone, Debug)]
pub struct Blob {
    digest: Digest,
    size: u64,
    path: PathBuf,
}

impl Blob {
    /// Returns the digest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns where the content is, for programs that read files; it is there as long as the lease.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the content, which was verified when it came in.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(&self) -> Result<File> {
        File::open(&self.path).context(|| format!("open blob {}", self.digest))
    }

    /// Reads a small blob, a manifest or a configuration, and verifies it again.
    ///
    /// # Errors
    /// `InvalidArgument` when it has more than `max_bytes`; `Corrupt` when the file has changed since it came in.
    pub fn read(&self, max_bytes: u64) -> Result<Vec<u8>> {
        let context = || format!("read blob {}", self.digest);
        if self.size > max_bytes {
            let why = format!("it has {} bytes, and at most {max_bytes} are accepted here", self.size);
            return Err(Error::invalid(why)).context(context);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(self.size).unwrap_or(0));
        self.open()?.take(self.size + 1).read_to_end(&mut bytes).context(context)?;
        let mut hasher = Hasher::new(self.digest.algorithm());
        hasher.update(&bytes);
        let found = hasher.finish();
        if found != self.digest {
            return Err(Error::corrupt(format!("its content has changed on the disk, to {found}"))).context(context);
        }
        Ok(bytes)
    }
}

impl Store {
    /// Finds a blob and leases it. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn blob(&self, lease: &Lease, digest: &Digest) -> Result<Option<Blob>> {
        self.leased(lease, Leased::Blob, |connection| self.find_blob(connection, digest))
    }

    /// Reads a small blob in the transaction of a collection, where a lease would come too late; `None` when there is none.
    /// Blocking.
    ///
    /// # Errors
    /// As [`Blob::read`].
    pub fn peek_blob(&self, connection: &Connection, digest: &Digest, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        self.find_blob(connection, digest)?.map(|(_, blob)| blob.read(max_bytes)).transpose()
    }

    /// Stores a small blob that is in memory already. Blocking.
    ///
    /// # Errors
    /// `Exhausted` on a full disk.
    pub fn write_blob(&self, lease: &Lease, bytes: &[u8]) -> Result<Blob> {
        if let Some(blob) = self.blob(lease, &Digest::of(bytes))? {
            return Ok(blob);
        }
        let mut writer = self.blob_writer(lease)?;
        writer.write_all(bytes)?;
        writer.finish()
    }

    /// Stores a small blob under a digest that was promised. Blocking.
    ///
    /// # Errors
    /// `Corrupt` when it has another digest; `Exhausted` on a full disk.
    pub fn put_blob(&self, lease: &Lease, digest: &Digest, bytes: &[u8]) -> Result<Blob> {
        if let Some(blob) = self.blob(lease, digest)? {
            return Ok(blob);
        }
        let mut writer = self.writer(lease, digest.algorithm())?;
        writer.write_all(bytes)?;
        writer.finish_as(digest)
    }

    /// Stores a blob that is read from `content`, under a digest that was promised. Blocking.
    ///
    /// # Errors
    /// `Corrupt` when it has another digest; `Exhausted` on a full disk; those of `content`.
    pub fn import_blob(&self, lease: &Lease, digest: &Digest, content: &mut dyn io::Read) -> Result<Blob> {
        let mut writer = self.writer(lease, digest.algorithm())?;
        io::copy(content, &mut writer)?;
        writer.finish_as(digest)
    }

    /// Starts a blob whose digest is not known yet; it will be its SHA-256. Blocking.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn blob_writer(&self, lease: &Lease) -> Result<BlobWriter> {
        self.writer(lease, Algorithm::Sha256)
    }

    fn writer(&self, lease: &Lease, algorithm: Algorithm) -> Result<BlobWriter> {
        let path = self.0.ingest.join(format!("{NEW}{}-{}", lease.id(), self.serial()));
        let file = open_locked(&path)?
            .ok_or_else(|| Error::internal(format!("{} is in use before it exists", path.display())))?;
        let (hasher, size) = (Hasher::new(algorithm), 0);
        Ok(BlobWriter { store: self.clone(), lease: lease.clone(), file, path, hasher, size })
    }

    /// Finds something and leases it, or reports that there is nothing.
    pub(super) fn leased<T>(
        &self,
        lease: &Lease,
        kind: Leased,
        find: impl Fn(&Connection) -> Result<Option<(i64, T)>>,
    ) -> Result<Option<T>> {
        // What the lease keeps already cannot vanish, so then there is nothing to write.
        let db = self.root().db();
        let Some((id, value)) = db.read(&find)? else { return Ok(None) };
        if db.read(|connection| lease.holds(connection, kind, id))? {
            return Ok(Some(value));
        }
        self.leased_in_turn(lease, kind, find)
    }

    /// Finds something and leases it when those who write now have ended: what they are about to record is found.
    pub(super) fn leased_in_turn<T>(
        &self,
        lease: &Lease,
        kind: Leased,
        find: impl FnOnce(&Connection) -> Result<Option<(i64, T)>>,
    ) -> Result<Option<T>> {
        self.root().db().write(|tx| match find(tx)? {
            Some((id, value)) => lease.hold(tx, kind, id).map(|()| Some(value)),
            None => Ok(None),
        })
    }

    pub(super) fn find_blob(&self, connection: &Connection, digest: &Digest) -> Result<Option<(i64, Blob)>> {
        let mut find = connection.prepare_cached("SELECT id, size FROM blobs WHERE digest = ?1 AND NOT removing")?;
        let row = optional(find.query_row([digest.to_string()], |row| Ok((row.get(0)?, row.get::<_, u64>(1)?))))?;
        let Some((id, size)) = row else { return Ok(None) };
        let path = self.blob_path(digest);
        let intact = std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.len() == size);
        Ok(intact.then_some((id, Blob { digest: *digest, size, path })))
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.0.blobs.join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// Gives a complete and verified file its name and its record.
    pub(super) fn adopt(&self, lease: &Lease, file: &File, from: &Path, digest: &Digest, size: u64) -> Result<Blob> {
        let context = || format!("store blob {digest}");
        let allocated = Metadata::of(file).context(context)?.allocated;
        let path = self.blob_path(digest);
        self.root().db().write(|tx| {
            if let Some((id, blob)) = self.find_blob(tx, digest)? {
                // Somebody else was faster.
                lease.hold(tx, Leased::Blob, id)?;
                std::fs::remove_file(from).context(context)?;
                return Ok(blob);
            }
            std::fs::rename(from, &path).context(context)?;
            let id = tx
                .prepare_cached(
                    "INSERT INTO blobs (digest, size, allocated, created_at, boot) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (digest) DO UPDATE SET size = ?2, allocated = ?3, created_at = ?4, boot = ?5, removing = 0
                     RETURNING id",
                )?
                .query_row((digest.to_string(), size, allocated, self.now(), self.root().boot_id()), |row| row.get(0))?;
            lease.hold(tx, Leased::Blob, id)?;
            Ok(Blob { digest: *digest, size, path: path.clone() })
        })
    }
}

/// What the name of a file in `ingest` begins with when its digest is not known yet. Nobody can resume such a file.
pub(super) const NEW: &str = "new-";

/// A blob being written; dropped unfinished, it is gone.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    lease: Lease,
    file: File,
    path: PathBuf,
    hasher: Hasher,
    size: u64,
}

impl BlobWriter {
    /// Stores what was written. Blocking.
    ///
    /// # Errors
    /// When the file system or the database fails.
    pub fn finish(mut self) -> Result<Blob> {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::new(Algorithm::Sha256));
        self.store.adopt(&self.lease, &self.file, &self.path, &hasher.finish(), self.size)
    }

    /// Stores what was written if it has the digest that was promised.
    fn finish_as(self, digest: &Digest) -> Result<Blob> {
        let found = self.hasher.clone().finish();
        if found != *digest {
            return Err(Error::corrupt(format!("store blob {digest}: its content has the digest {found}")));
        }
        self.finish()
    }
}

impl Write for BlobWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.store.make_room(data.len() as u64)?;
        let written = self.file.write(data).map_err(|error| named(error, "of a new digest"))?;
        self.hasher.update(&data[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // A finished one has moved on; what cannot be removed now is removed by a collection.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Says in an error which blob could not be written.
pub(super) fn named(error: io::Error, blob: &str) -> io::Error {
    Error::from(error).context(format!("write blob {blob}")).into()
}

/// Opens a file in `ingest` and locks it, making it when it is missing; `None` when another holds it.
pub(super) fn open_locked(path: &Path) -> Result<Option<File>> {
    let context = || format!("open {}", path.display());
    loop {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).context(context)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked.context(context)?,
        }
        // Its last holder may have renamed or removed it between our opening and our locking it.
        let named = rustix::fs::lstat(path).is_ok_and(|named| {
            rustix::fs::fstat(file.as_fd()).is_ok_and(|open| (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino))
        });
        if named {
            return Ok(Some(file.into()));
        }
    }
}

/// A hash of either algorithm, in progress.
#[derive(Clone, Debug)]
pub(super) enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
        }
    }

    pub(super) fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(data),
            Self::Sha512(hash) => hash.update(data),
        }
    }

    pub(super) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::sha256(hash.finalize().into()),
            Self::Sha512(hash) => Digest::sha512(hash.finalize().into()),
        }
    }
}
