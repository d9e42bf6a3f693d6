//! The engine's side of a container's input and output: attaching, resizing, reading logs.

use tokio::net::UnixStream;

use super::Containers;
use super::link::{self, Joined, Request};
use super::log::{Entry, LogReader, Range};
use super::record::{Record, State};
use crate::error::{Error, Kind, Result};
use crate::task::Cancel;

/// A container that is attached to, now or as soon as it starts.
#[derive(Debug)]
pub struct Attachment {
    /// The container.
    pub record: Record,
    joined: Joined,
}

impl Attachment {
    /// Waits until the container runs, and returns the stream: output comes framed, or raw with a terminal; what is written
    /// is input.
    ///
    /// # Errors
    /// `Unavailable` when the container is removed before it runs.
    pub async fn connected(self) -> Result<UnixStream> {
        self.joined.connected().await
    }
}

impl Containers {
    /// Attaches to a container; to one that does not run, for when it is started. From here on nothing it prints is lost.
    ///
    /// # Errors
    /// `Conflict`, in docker's words, when it is paused or restarting.
    pub async fn attach(&self, reference: &str, [stdin, stdout, stderr]: [bool; 3]) -> Result<Attachment> {
        let record = self.look_up(reference).await?;
        if let State::Restarting(_) = record.state {
            return Err(Error::conflict(format!(
                "Container {} is restarting, wait until the container is running",
                record.id
            )));
        }
        if self.is_paused(&record) {
            return Err(Error::conflict(format!(
                "Container {} is paused, unpause the container before attach",
                record.id
            )));
        }
        let joined = self.place(&record)?.join(Request::Attach { stdin, stdout, stderr }).await?;
        Ok(Attachment { record, joined })
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// `Conflict` when it does not run; `InvalidArgument` when it has no terminal.
    pub async fn resize(&self, reference: &str, rows: u16, columns: u16) -> Result<()> {
        let record = self.look_up(reference).await?;
        let not_running = || Error::conflict(format!("Container {} is not running", record.id));
        let Some(mut shim) = self.place(&record)?.call(&Request::Resize { rows, columns }).await? else {
            return Err(not_running());
        };
        match link::acknowledged(&mut shim).await {
            Err(error) if error.kind() == Kind::Unavailable => Err(not_running()),
            answered => answered,
        }
    }

    /// Makes sure that a container keeps a log.
    ///
    /// # Errors
    /// `Unsupported` in docker's words.
    pub fn check_log(&self, record: &Record) -> Result<()> {
        if record.config.io.log.is_some() {
            return Ok(());
        }
        Err(Error::unsupported("configured logging driver does not support reading"))
    }

    /// Passes a container's log to `sink`; with `follow`, until it has ended for good. Blocking; set `cancel` to end it.
    ///
    /// # Errors
    /// `Unsupported` when it keeps no log; those of `sink`; `Cancelled`.
    pub fn read_log(
        &self,
        record: &Record,
        range: Range,
        follow: bool,
        cancel: &Cancel,
        sink: &mut dyn FnMut(Entry) -> Result<()>,
    ) -> Result<()> {
        self.check_log(record)?;
        let files = self.files(&record.id);
        let mut reader = LogReader::new(&files.log(), range);
        if follow { reader.follow(cancel, &|| files.has_shim(), sink) } else { reader.read(sink) }
    }
}
