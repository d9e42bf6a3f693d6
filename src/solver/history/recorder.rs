//! Writing down a build while it runs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use kiln_graph::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{Content, Counts, Failed, History, NewBuild, Outcome, record};
use crate::error::{Error, Result, ResultExt as _};
use crate::solver::progress::{Event, VertexState, Watcher};
use crate::state::{FileLock, LockMode};
use crate::task;

/// Writes reports as the log holds them.
pub type Encode = fn(Vec<Event>) -> Vec<u8>;

/// What is written at once, in bytes, and how long less may wait for it: others may read along.
const PIECE: usize = 256 << 10;
const DELAY: Duration = Duration::from_secs(1);

/// A build that is being recorded. Dropped without an outcome, the build was cancelled.
#[derive(Debug)]
pub struct Recording {
    outcome: oneshot::Sender<Outcome>,
    written: JoinHandle<Result<()>>,
}

impl Recording {
    pub(super) fn begin(history: History, build: NewBuild, watcher: Watcher, encode: Encode) -> Self {
        let (sender, outcome) = oneshot::channel();
        let tasks = history.0.tasks.clone();
        let written = tasks.spawn(write(history, build, watcher, encode, outcome));
        Self { outcome: sender, written }
    }

    /// Writes down how the build ended, after its reports have.
    ///
    /// # Errors
    /// When the record could not be written.
    pub async fn end(self, outcome: Outcome) -> Result<()> {
        // Who writes may have failed, and says so below.
        let _ = self.outcome.send(outcome);
        self.written.await.map_err(|_| Error::cancelled("the engine is stopping"))?
    }
}

async fn write(
    history: History,
    build: NewBuild,
    mut watcher: Watcher,
    encode: Encode,
    outcome: oneshot::Receiver<Outcome>,
) -> Result<()> {
    let opened = history.clone();
    let mut log = task::blocking(move || Log::open(&opened, &build)).await?;
    history.changed().notify_waiters();
    let (mut tally, mut piece) = (Tally::default(), Vec::new());
    let mut flush = tokio::time::interval(DELAY);
    loop {
        tokio::select! {
            events = watcher.next() => {
                let Some(events) = events else { break };
                events.iter().for_each(|event| tally.add(event));
                piece.extend(encode(events));
                if piece.len() < PIECE {
                    continue;
                }
            }
            _ = flush.tick() => {}
        }
        if !piece.is_empty() {
            let bytes = std::mem::take(&mut piece);
            log = task::blocking(move || log.append(&bytes)).await?;
        }
    }
    let outcome = outcome.await.unwrap_or_else(|_| Outcome { failed: Some(cancelled()), ..Outcome::default() });
    let ended = history.clone();
    task::blocking(move || log.append(&piece)?.complete(&ended, &outcome, tally.counts())).await?;
    history.changed().notify_waiters();
    Ok(())
}

/// What clients look for.
fn cancelled() -> Failed {
    Failed { code: 1, message: "context canceled".to_owned(), status: Vec::new() }
}

/// A log that is being written.
struct Log {
    row: i64,
    file: File,
    hash: Sha256,
    size: u64,
    _running: FileLock,
}

impl Log {
    fn open(history: &History, build: &NewBuild) -> Result<Self> {
        let now_ns = history.0.clock.now_ns();
        history.0.root.db().write(|tx| {
            let row = record::insert(tx, build, now_ns)?;
            let path = history.log_path(row)?;
            // Before the record appears, so that nobody takes the build for dead.
            let running = FileLock::try_acquire(&path, LockMode::Exclusive)?;
            let running = running.ok_or_else(|| Error::internal("a log is in use before it exists"))?;
            let file = File::options().append(true).open(&path).context(|| format!("open {}", path.display()))?;
            Ok(Self { row, file, hash: Sha256::new(), size: 0, _running: running })
        })
    }

    fn append(mut self, bytes: &[u8]) -> Result<Self> {
        self.file.write_all(bytes).context(|| "write the log of a build")?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(self)
    }

    fn complete(self, history: &History, outcome: &Outcome, counts: Counts) -> Result<()> {
        let content = Content { digest: Digest::sha256(self.hash.finalize().into()), size: self.size };
        let now_ns = history.0.clock.now_ns();
        let db = history.0.root.db();
        db.write(|tx| record::complete(tx, self.row, now_ns, outcome, Some(counts), Some(&content)))?;
        history.tidy()
    }
}

/// Reads a log that somebody left.
pub(super) fn digest_of(path: &Path) -> Result<Content> {
    let mut file = File::open(path)?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 256 << 10]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(Content { digest: Digest::sha256(hash.finalize().into()), size });
        }
        hash.update(&buffer[..read]);
        size += read as u64;
    }
}

/// Counts steps by what was last said of them.
#[derive(Debug, Default)]
struct Tally {
    steps: HashMap<Digest, Step>,
    warnings: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Step {
    cached: bool,
    completed: bool,
}

impl Tally {
    fn add(&mut self, event: &Event) {
        match event {
            Event::Steps(steps) => {
                for (digest, _) in steps {
                    self.steps.entry(*digest).or_default();
                }
            }
            Event::Vertex(VertexState { digest, cached, completed_ns, error, .. }) => {
                let completed = completed_ns.is_some() && error.is_none();
                self.steps.insert(*digest, Step { cached: *cached, completed });
            }
            Event::Warning(_) => self.warnings += 1,
            Event::Status(_) | Event::Log { .. } => {}
        }
    }

    fn counts(&self) -> Counts {
        let count = |is: fn(&Step) -> bool| self.steps.values().filter(|step| is(step)).count() as u64;
        Counts {
            cached: count(|step| step.cached),
            total: self.steps.len() as u64,
            completed: count(|step| step.completed),
            warnings: self.warnings,
        }
    }
}
