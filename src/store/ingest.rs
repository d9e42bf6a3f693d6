//! Ingests: blobs that come from outside, under a digest that was promised.
//!
//! What has arrived stays when the transfer breaks off, and the next one resumes it. One process at a time writes a blob,
//! which a lock on the partial file sees to. Others in this process may follow: read what has arrived, and wait for more.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use kiln_graph::Digest;

use super::blob::{Hasher, named, open_locked};
use super::lease::Leased;
use super::{Blob, Lease, Store};
use crate::error::{Error, Kind, Result, ResultExt as _};

/// What became of the wish to ingest a blob.
#[derive(Debug)]
pub enum IngestState {
    /// The blob is there already, and leased now.
    Exists(Blob),
    /// Somebody else, perhaps another process, is ingesting it: ask again in a while.
    Busy,
    /// The caller is to write it.
    Ready(Ingest),
}

impl Store {
    /// Starts or resumes an ingest. `size` is what the blob's descriptor says, if anything does. Blocking; reads what an
    /// earlier transfer has left.
    ///
    /// # Errors
    /// When the file system or the database fails.
    pub fn ingest(&self, lease: &Lease, digest: &Digest, size: Option<u64>) -> Result<IngestState> {
        if let Some(blob) = self.blob(lease, digest)? {
            return Ok(IngestState::Exists(blob));
        }
        let path = self.partial_path(digest);
        let Some(file) = open_locked(&path)? else { return Ok(IngestState::Busy) };
        // Its last writer may have finished between the first look and the lock, or have renamed its file and be about to record it.
        if let Some(blob) = self.leased_in_turn(lease, Leased::Blob, |connection| self.find_blob(connection, digest))? {
            std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
            return Ok(IngestState::Exists(blob));
        }
        let progress = Arc::new(Progress::default());
        let (store, lease, digest) = (self.clone(), lease.clone(), *digest);
        let hasher = Box::new(Hasher::new(digest.algorithm()));
        let mut ingest = Ingest { store, lease, digest, size, file, path, hasher, progress };
        ingest.resume()?;
        Ok(IngestState::Ready(ingest))
    }

    pub(super) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.0.ingest.join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()))
    }
}

/// A blob that is coming in. Dropped uncommitted, it keeps what has arrived for the next one.
#[derive(Debug)]
pub struct Ingest {
    store: Store,
    lease: Lease,
    digest: Digest,
    size: Option<u64>,
    file: File,
    path: PathBuf,
    hasher: Box<Hasher>,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    written: u64,
    /// How often it started over; who has read bytes of an earlier start must not go on.
    restarts: u64,
    outcome: Option<Outcome>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Committed,
    Abandoned,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens while the lock is held")
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl Ingest {
    /// Returns the digest it will have.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns how many bytes are there; the transfer goes on from here.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.progress.lock().written
    }

    /// Starts over, for a server that cannot go on in the middle. Whoever follows and has read something gets an error.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).context(|| format!("empty {}", self.path.display()))?;
        *self.hasher = Hasher::new(self.digest.algorithm());
        self.progress.update(|state| (state.written, state.restarts) = (0, state.restarts + 1));
        Ok(())
    }

    /// Returns a reader of the blob that waits for what has not arrived yet.
    ///
    /// It ends once the blob is committed, so whoever has read it to the end has read what the digest says; it fails when the
    /// ingest is abandoned. It must be read on another thread than the one that writes.
    ///
    /// # Errors
    /// When the file cannot be opened once more.
    pub fn follow(&self) -> Result<Follow> {
        let file = self.file.try_clone().context(|| format!("open {}", self.path.display()))?;
        let restarts = self.progress.lock().restarts;
        Ok(Follow { file, progress: Arc::clone(&self.progress), at: 0, restarts, digest: self.digest })
    }

    /// Verifies the blob and stores it. Blocking.
    ///
    /// # Errors
    /// `Corrupt` when size or digest differ from what was promised; nothing is kept then.
    pub fn commit(mut self) -> Result<Blob> {
        let written = self.offset();
        let context = || format!("store blob {}", self.digest);
        if let Some(size) = self.size.filter(|size| *size != written) {
            let why = format!("{written} bytes arrived, and its descriptor says {size}");
            let error = Error::corrupt(why).context(context());
            return Err(error.and_cleanup(self.remove()));
        }
        let hasher = std::mem::replace(&mut *self.hasher, Hasher::new(self.digest.algorithm()));
        let found = hasher.finish();
        if found != self.digest {
            let error = Error::corrupt(format!("what arrived has the digest {found}")).context(context());
            return Err(error.and_cleanup(self.remove()));
        }
        let blob = self.store.adopt(&self.lease, &self.file, &self.path, &self.digest, written)?;
        self.progress.update(|state| state.outcome = Some(Outcome::Committed));
        Ok(blob)
    }

    /// Gives up and keeps nothing.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn discard(self) -> Result<()> {
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        std::fs::remove_file(&self.path).context(|| format!("remove {}", self.path.display()))
    }

    /// Hashes what an earlier transfer has left.
    fn resume(&mut self) -> Result<()> {
        let mut buffer = vec![0; 256 << 10];
        let mut written = 0;
        loop {
            let read = self.file.read_at(&mut buffer, written).context(|| format!("read {}", self.path.display()))?;
            if read == 0 {
                break;
            }
            self.hasher.update(&buffer[..read]);
            written += read as u64;
        }
        if self.size.is_some_and(|size| size < written) {
            return self.restart();
        }
        self.progress.update(|state| state.written = written);
        Ok(())
    }
}

impl Write for Ingest {
    /// Takes the next bytes. More than were promised are refused at once, before they fill the disk.
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let at = self.offset();
        if let Some(size) = self.size.filter(|size| at + data.len() as u64 > *size) {
            let why = format!("blob {}: more bytes arrive than the {size} that its descriptor says", self.digest);
            return Err(Error::corrupt(why).into());
        }
        if let Err(full) = self.store.make_room(data.len() as u64) {
            // What has arrived would be in the way of everything else, as on a full disk.
            let _ = self.restart();
            return Err(full.into());
        }
        let written = self.file.write_at(data, at).map_err(|error| {
            // On a full disk nothing else could be done either, not even collecting garbage.
            if error.kind() == io::ErrorKind::StorageFull {
                let _ = self.restart();
            }
            named(error, &self.digest.to_string())
        })?;
        self.hasher.update(&data[..written]);
        self.progress.update(|state| state.written += written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        self.progress.update(|state| {
            state.outcome.get_or_insert(Outcome::Abandoned);
        });
    }
}

/// Reads a blob while it comes in; see [`Ingest::follow`].
#[derive(Debug)]
pub struct Follow {
    file: File,
    progress: Arc<Progress>,
    at: u64,
    restarts: u64,
    digest: Digest,
}

impl Follow {
    /// Waits until there is something to read; returns how many bytes, or `None` at the end.
    fn wait(&mut self) -> io::Result<Option<u64>> {
        let mut state = self.progress.lock();
        loop {
            if state.restarts != self.restarts {
                if self.at > 0 {
                    return Err(self.failed("the transfer started over"));
                }
                self.restarts = state.restarts;
            }
            match state.outcome {
                Some(Outcome::Abandoned) => return Err(self.failed("the transfer broke off")),
                _ if state.written > self.at => return Ok(Some(state.written - self.at)),
                Some(Outcome::Committed) => return Ok(None),
                None => state = self.progress.changed.wait(state).expect("no panic happens while it is held"),
            }
        }
    }

    fn failed(&self, why: &str) -> io::Error {
        Error::new(Kind::Unavailable, format!("blob {}: {why}", self.digest)).into()
    }
}

impl Read for Follow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(available) = self.wait()? {
            let len = buffer.len().min(usize::try_from(available).unwrap_or(usize::MAX));
            let read = self.file.read_at(&mut buffer[..len], self.at)?;
            // What was read is of this transfer only if that has not started over meanwhile.
            if self.progress.lock().restarts == self.restarts {
                if read == 0 && len > 0 {
                    return Err(self.failed("its file has become shorter"));
                }
                self.at += read as u64;
                return Ok(read);
            }
        }
        Ok(0)
    }
}
