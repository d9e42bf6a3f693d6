//! The history of builds: what was asked, how it went, what came of it.
//!
//! A record is a row of the database; the log is a file below the root that is written while the build runs and never clipped.
//! The log's lock says that its engine is alive: the record of a build whose engine died is completed by whoever looks next.
//! The history does not know the form of a log: who begins a record says how reports are written.

mod record;
mod recorder;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_graph::Digest;
use tokio::sync::Notify;

pub use record::SCHEMA;
pub use recorder::{Encode, Recording};

use super::progress::Watcher;
use super::request::{Document, Exporter};
use crate::error::{Error, Result, ResultExt as _};
use crate::state::{FileLock, LockMode, Root};
use crate::task::{Clock, Tasks};

/// What is kept: a record goes when it is older than `max_age` and there are more than `max_entries`, unless it is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How old a record may get, whatever their number.
    pub max_age: Duration,
    /// How many there may be, however old.
    pub max_entries: u64,
}

impl Default for Limits {
    /// BuildKit's: 48 hours, 50 records.
    fn default() -> Self {
        Self { max_age: Duration::from_hours(48), max_entries: 50 }
    }
}

/// A build that begins.
#[derive(Clone, Debug)]
pub struct NewBuild {
    /// Its client's name for it.
    pub reference: String,
    /// What to show for it: its context, or its image.
    pub name: String,
    /// The frontend.
    pub frontend: String,
    /// What the frontend was asked.
    pub attrs: BTreeMap<String, String>,
    /// What becomes of the result.
    pub exporters: Vec<Exporter>,
}

/// How a build failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failed {
    /// The code of gRPC; 1 is a build that was cancelled.
    pub code: i32,
    /// Why.
    pub message: String,
    /// All of it, as the client got it: a `google.rpc.Status`.
    pub status: Vec<u8>,
}

/// How a build ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How it failed; `None` for one that did not.
    pub failed: Option<Failed>,
    /// What the client was told.
    pub response: BTreeMap<String, String>,
    /// What is said about the result.
    pub documents: Vec<Document>,
}

/// How far a build came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Steps that were found.
    pub cached: u64,
    /// All steps.
    pub total: u64,
    /// Steps that ended well.
    pub completed: u64,
    /// Warnings about the source.
    pub warnings: u64,
}

/// Content of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// A document about a result, without its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Where the text is.
    pub content: Content,
    /// What it says, as a URI.
    pub predicate_type: String,
    /// The platform of the result; empty for the only one.
    pub platform: String,
}

/// The record of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    row: i64,
    /// What was asked.
    pub build: NewBuild,
    /// When it began, in nanoseconds since 1970.
    pub created_ns: i64,
    /// When it ended; `None` while it runs.
    pub completed_ns: Option<i64>,
    /// How it failed, if it did.
    pub failed: Option<Failed>,
    /// What the client was told.
    pub response: BTreeMap<String, String>,
    /// How far it came.
    pub counts: Counts,
    /// Whether it stays, whatever the limits.
    pub pinned: bool,
    /// How often the record changed.
    pub generation: u64,
    /// The log, when it is complete.
    pub log: Option<Content>,
    /// What is said about the result.
    pub attached: Vec<Attached>,
    /// The status of a failed build, as content.
    pub status: Option<Content>,
    /// What was done for it, and when.
    pub trace: Option<Content>,
}

impl PartialEq for NewBuild {
    fn eq(&self, other: &Self) -> bool {
        self.reference == other.reference
    }
}

impl Eq for NewBuild {}

/// Content that is read.
#[derive(Debug)]
pub enum Stored {
    /// A document.
    Bytes(Vec<u8>),
    /// A log.
    File(File),
}

/// The history of a root directory. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct History(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: Root,
    clock: Clock,
    tasks: Tasks,
    limits: Limits,
    changed: Notify,
}

impl History {
    /// Opens the history of a root that was opened with [`SCHEMA`].
    #[must_use]
    pub fn new(root: Root, clock: Clock, tasks: Tasks, limits: Limits) -> Self {
        Self(Arc::new(Inner { root, clock, tasks, limits, changed: Notify::new() }))
    }

    /// Begins the record of a build. `encode` writes its reports; what the build reports from now on is written down.
    ///
    /// A history that cannot be written stops no build.
    #[must_use]
    pub fn begin(&self, build: NewBuild, watcher: Watcher, encode: Encode) -> Recording {
        Recording::begin(self.clone(), build, watcher, encode)
    }

    /// Lists all records, the oldest first. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn list(&self) -> Result<Vec<Record>> {
        let records = self.0.root.db().read(|connection| record::all(connection, None))?;
        self.completed(records)
    }

    /// Finds the record of a build. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn find(&self, reference: &str) -> Result<Option<Record>> {
        let records = self.0.root.db().read(|connection| record::all(connection, Some(reference)))?;
        Ok(self.completed(records)?.pop())
    }

    /// Completes the records of builds whose engines are gone.
    fn completed(&self, mut records: Vec<Record>) -> Result<Vec<Record>> {
        for found in records.iter_mut().filter(|found| found.completed_ns.is_none()) {
            if self.is_running(found.row)? {
                continue;
            }
            let reference = found.build.reference.clone();
            self.complete_dead(found.row)?;
            let again = self.0.root.db().read(|connection| record::all(connection, Some(&reference)))?.pop();
            if let Some(again) = again {
                *found = again;
            }
        }
        Ok(records)
    }

    fn complete_dead(&self, row: i64) -> Result<()> {
        let message = "the engine ended before the build did".to_owned();
        let outcome = Outcome { failed: Some(Failed { code: 10, message, status: Vec::new() }), ..Outcome::default() };
        let log = recorder::digest_of(&self.log_path(row)?).ok();
        let now_ns = self.0.clock.now_ns();
        self.0.root.db().write(|tx| record::complete(tx, row, now_ns, &outcome, None, log.as_ref()))
    }

    /// Says whether an engine still writes a log.
    fn is_running(&self, row: i64) -> Result<bool> {
        let path = self.log_path(row)?;
        // Asking makes no file.
        Ok(path.exists() && FileLock::try_acquire(&path, LockMode::Shared)?.is_none())
    }

    /// Opens a log, and says whether more comes. Blocking.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_log(&self, record: &Record) -> Result<(File, bool)> {
        let path = self.log_path(record.row)?;
        let file = File::open(&path).context(|| format!("open the log of the build {}", record.build.reference))?;
        Ok((file, record.completed_ns.is_none()))
    }

    /// Reads content: a log that is complete, or a document. Blocking.
    ///
    /// # Errors
    /// When it cannot be read; `Corrupt` when a log is not what it was.
    pub fn content(&self, digest: &Digest) -> Result<Option<Stored>> {
        let (document, log) =
            self.0.root.db().read(|connection| {
                Ok((record::document(connection, digest)?, record::row_of_log(connection, digest)?))
            })?;
        if let Some(document) = document {
            return Ok(Some(Stored::Bytes(document)));
        }
        let Some((row, size)) = log else { return Ok(None) };
        let file = File::open(self.log_path(row)?).context(|| format!("open the log {digest}"))?;
        if file.metadata()?.len() != size {
            return Err(Error::corrupt(format!("the log {digest} was cut off, perhaps by a power cut")));
        }
        Ok(Some(Stored::File(file)))
    }

    /// Adds the trace of a build to its record; one that has gone needs none. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn attach_trace(&self, reference: &str, trace: &[u8]) -> Result<()> {
        self.0.root.db().write(|tx| record::attach_trace(tx, reference, trace))?;
        self.0.changed.notify_waiters();
        Ok(())
    }

    /// Pins a record, so that it stays, or unpins it. Blocking.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn pin(&self, reference: &str, pinned: bool) -> Result<()> {
        let changed = self.0.root.db().write(|tx| record::pin(tx, reference, pinned))?;
        self.0.changed.notify_waiters();
        if changed { Ok(()) } else { Err(missing(reference)) }
    }

    /// Removes the record of a build that has ended. Blocking.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while the build runs.
    pub fn remove(&self, reference: &str) -> Result<()> {
        let found = self.find(reference)?.ok_or_else(|| missing(reference))?;
        if found.completed_ns.is_none() {
            return Err(Error::conflict(format!("the build {reference} is still running")));
        }
        self.0.root.db().write(|tx| record::remove(tx, found.row))?;
        self.forget_logs(&[found.row])
    }

    /// Removes what is beyond the limits, and logs without a record. Blocking.
    ///
    /// # Errors
    /// When the database or the file system fails.
    pub fn tidy(&self) -> Result<()> {
        let Limits { max_age, max_entries } = self.0.limits;
        let max_age_ns = i64::try_from(max_age.as_nanos()).unwrap_or(i64::MAX);
        let oldest_ns = self.0.clock.now_ns().saturating_sub(max_age_ns);
        let rows = self.0.root.db().write(|tx| record::remove_old(tx, oldest_ns, max_entries))?;
        if rows.is_empty() { Ok(()) } else { self.forget_logs(&rows) }
    }

    /// Removes logs that a crash has left without a record. Blocking.
    ///
    /// # Errors
    /// When the database or the file system fails.
    pub fn remove_orphans(&self) -> Result<()> {
        let dir = self.0.root.subdir("history")?;
        for entry in std::fs::read_dir(&dir).context(|| format!("list {}", dir.display()))? {
            let path = entry?.path();
            let row = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            let Some(row) = row else { continue };
            // A record appears before its log does.
            if !self.0.root.db().read(|connection| record::exists(connection, row))? && !self.is_running(row)? {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn forget_logs(&self, rows: &[i64]) -> Result<()> {
        self.0.changed.notify_waiters();
        rows.iter().try_for_each(|row| remove_file(&self.log_path(*row)?))
    }

    fn log_path(&self, row: i64) -> Result<PathBuf> {
        Ok(self.0.root.subdir("history")?.join(format!("{row}.log")))
    }

    /// Returns what is told when a record of this engine changes. Records of others change without notice.
    #[must_use]
    pub fn changed(&self) -> &Notify {
        &self.0.changed
    }
}

fn missing(reference: &str) -> Error {
    Error::not_found(format!("no record of a build {reference:?}"))
}

fn remove_file(path: &std::path::Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
