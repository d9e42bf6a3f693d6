//! The conversation between engines and a container's shim: attach, wait, signal and resize over unix sockets.
//!
//! A running shim listens on `shim.sock` in the container's directory. Before it runs, engines that want to attach or wait
//! listen themselves, each on a socket in `pending/`, and the shim calls them before it starts the process: nothing the
//! process prints is lost, whichever engine started it. In both cases the engine speaks first, one line of JSON; what follows
//! depends on the request.
//!
//! - `attach`: input bytes from the engine (its half-close ends the input), output frames from the shim, raw with a terminal.
//! - `wait`: one line with the [`Outcome`].
//! - `signal`, `resize`: one line, `{}` or an error.
//! - `exec`: such a line, and then, if it was no error, the streams of the process as for `attach`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, Kind, Result, ResultExt as _};

const SHIM_SOCKET: &str = "shim.sock";
const PENDING: &str = "pending";

/// The longest line of a conversation.
const MAX_LINE: usize = 64 << 10;

/// How long an engine that was called may take to say what it wants.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What an engine wants of a shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Connect to the process's streams.
    Attach {
        /// Whether the engine sends input.
        stdin: bool,
        /// Whether it wants output.
        stdout: bool,
        /// Whether it wants errors.
        stderr: bool,
    },
    /// Say how the process ended.
    Wait {
        /// Whether to wait until an automatic removal is done as well.
        removed: bool,
    },
    /// Send a signal to the process.
    Signal {
        /// Its number.
        signal: i32,
        /// Whether the container is meant to end by it, and so is not to be started again.
        ends: bool,
    },
    /// Set the terminal's size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Start a further process and connect to its streams.
    Exec {
        /// Its id.
        id: String,
        /// Whether nobody connects to it.
        detach: bool,
        /// Rows of its terminal.
        rows: u16,
        /// Columns of its terminal.
        columns: u16,
    },
    /// Set the size of a further process's terminal.
    ResizeExec {
        /// Its id.
        id: String,
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The exit code; 128 + n for signal n.
    pub code: i32,
    /// What went wrong besides.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// The answer to a signal or a resize.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Acknowledgement {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Acknowledgement {
    pub(super) fn of(result: Result<()>) -> Self {
        Self { error: result.err().map(|error| error.to_string()) }
    }
}

/// A container's directory, opened, so that sockets in it can be named in few bytes: the path of a socket may have 107.
#[derive(Debug)]
pub struct Place {
    dir: OwnedFd,
    path: PathBuf,
}

impl Place {
    /// Opens a container's directory.
    ///
    /// # Errors
    /// `NotFound` when the container has no directory.
    pub fn open(path: &Path) -> Result<Self> {
        match rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(dir) => Ok(Self { dir, path: path.to_owned() }),
            Err(rustix::io::Errno::NOENT) => Err(Error::not_found("the container is being removed")),
            Err(errno) => Err(errno).context(|| format!("open {}", path.display())),
        }
    }

    /// A short path of a file in the directory, good for this process only.
    fn short(&self, name: &str) -> String {
        format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd())
    }

    /// Connects to the running shim and sends a request; `None` when no shim listens.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn call(&self, request: &Request) -> Result<Option<UnixStream>> {
        let mut stream = match UnixStream::connect(self.short(SHIM_SOCKET)).await {
            Ok(stream) => stream,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error).context(|| "connect to the container"),
        };
        send(&mut stream, request).await?;
        Ok(Some(stream))
    }

    /// Connects to the shim, or prepares to be called by the one that starts the container.
    ///
    /// # Errors
    /// When no socket can be made.
    pub async fn join(&self, request: Request) -> Result<Joined> {
        let pending = self.listen()?;
        // Only now look for a shim: one that starts after this look finds the socket, an earlier one is found by the look.
        match self.call(&request).await? {
            Some(stream) => Ok(Joined::Running(stream)),
            None => Ok(Joined::Pending(pending, request)),
        }
    }

    fn listen(&self) -> Result<Pending> {
        match rustix::fs::mkdirat(&self.dir, PENDING, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno).context(|| "prepare to attach"),
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| Error::internal(format!("no random numbers: {error}")))?;
        let name = format!("{PENDING}/{:016x}", u64::from_ne_bytes(random));
        let listener = UnixListener::bind(self.short(&name)).context(|| "prepare to attach")?;
        Ok(Pending { listener, path: self.path.join(name) })
    }

    /// Listens as the shim. A socket that a dead shim left is replaced.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(super) fn serve(&self) -> Result<UnixListener> {
        match rustix::fs::unlinkat(&self.dir, SHIM_SOCKET, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(errno).context(|| "replace the container's socket"),
        }
        UnixListener::bind(self.short(SHIM_SOCKET)).context(|| "make the container's socket")
    }

    /// Stops listening as the shim.
    pub(super) fn withdraw(&self) {
        // A socket nobody listens on is as good as none.
        let _ = rustix::fs::unlinkat(&self.dir, SHIM_SOCKET, rustix::fs::AtFlags::empty());
    }

    /// Connects to all engines that wait for the container to start. Those that have died are passed over.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(super) async fn call_pending(&self) -> Result<Vec<UnixStream>> {
        let entries = match std::fs::read_dir(self.path.join(PENDING)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(|| "look for attached clients"),
        };
        let mut streams = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            if let Some(name) = name.to_str()
                && let Ok(stream) = UnixStream::connect(self.short(&format!("{PENDING}/{name}"))).await
            {
                streams.push(stream);
            }
        }
        Ok(streams)
    }

    /// Tells the engines that wait for a container which was removed. Those that wait for a start hear that there will be none.
    /// Blocking, but not for long.
    pub(super) fn dismiss_pending(&self, outcome: &Outcome) {
        let Ok(entries) = std::fs::read_dir(self.path.join(PENDING)) else { return };
        for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
            // It may have died meanwhile.
            let _ = self.dismiss(&name, outcome);
        }
    }

    fn dismiss(&self, name: &str, outcome: &Outcome) -> Result<()> {
        let mut engine = std::os::unix::net::UnixStream::connect(self.short(&format!("{PENDING}/{name}")))?;
        engine.set_read_timeout(Some(PATIENCE))?;
        let mut line = Vec::new();
        BufReader::new((&engine).take(MAX_LINE as u64)).read_until(b'\n', &mut line)?;
        if serde_json::from_slice::<Request>(&line)? == (Request::Wait { removed: true }) {
            let mut line = serde_json::to_vec(outcome)?;
            line.push(b'\n');
            engine.write_all(&line)?;
        }
        Ok(())
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}

/// A connection to a shim, or the promise of one.
#[derive(Debug)]
pub enum Joined {
    /// The container runs; the request was sent.
    Running(UnixStream),
    /// The container has not started.
    Pending(Pending, Request),
}

impl Joined {
    /// Waits until a shim has the request.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn connected(self) -> Result<UnixStream> {
        match self {
            Self::Running(stream) => Ok(stream),
            Self::Pending(pending, request) => {
                let (mut stream, _) = pending.listener.accept().await?;
                send(&mut stream, &request).await?;
                Ok(stream)
            }
        }
    }
}

/// A socket that a shim will call; removed when dropped.
#[derive(Debug)]
pub struct Pending {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Pending {
    fn drop(&mut self) {
        // It goes with the container's directory at the latest.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Sends one line.
///
/// # Errors
/// `Unavailable` when the other end has gone.
pub(super) async fn send<T: Serialize + Sync>(stream: &mut UnixStream, message: &T) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(gone)
}

/// Receives one line, and not a byte more.
///
/// # Errors
/// `Unavailable` when the other end has gone; `InvalidArgument` for a line that is malformed or too long.
pub(super) async fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<T> {
    let mut line = Vec::new();
    loop {
        // Byte by byte: what follows the line belongs to the stream. Lines are short and rare.
        match stream.read_u8().await.map_err(gone)? {
            b'\n' => return Ok(serde_json::from_slice(&line)?),
            _ if line.len() == MAX_LINE => return Err(Error::invalid("the line is too long")),
            byte => line.push(byte),
        }
    }
}

/// Waits for the outcome that a `wait` asked for.
///
/// # Errors
/// `Unavailable` when the shim died.
pub async fn outcome(stream: &mut UnixStream) -> Result<Outcome> {
    receive(stream).await
}

/// Waits for the answer to a signal or a resize.
///
/// # Errors
/// What the shim answered.
pub async fn acknowledged(stream: &mut UnixStream) -> Result<()> {
    let answer: Acknowledgement = receive(stream).await?;
    answer.error.map_or(Ok(()), |error| Err(Error::internal(error)))
}

fn gone(error: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, "the container has just ended, or its shim was killed").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_shim_finds_who_waited_before_it_started_and_who_comes_later() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(dir.path()).unwrap();
        let early = place.join(Request::Wait { removed: false }).await.unwrap();
        assert!(matches!(early, Joined::Pending(..)));
        let listener = place.serve().unwrap();
        let mut called = place.call_pending().await.unwrap();
        assert_eq!(called.len(), 1);
        let engine = tokio::spawn(async move {
            let mut stream = early.connected().await.unwrap();
            outcome(&mut stream).await.unwrap()
        });
        assert_eq!(receive::<Request>(&mut called[0]).await.unwrap(), Request::Wait { removed: false });
        let ended = Outcome { code: 3, error: String::new() };
        send(&mut called[0], &ended).await.unwrap();
        assert_eq!(engine.await.unwrap(), ended);

        let late = place.join(Request::Signal { signal: 15, ends: true }).await.unwrap();
        assert!(matches!(late, Joined::Running(_)));
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(receive::<Request>(&mut stream).await.unwrap(), Request::Signal { signal: 15, ends: true });
    }

    #[tokio::test]
    async fn sockets_of_the_dead_are_no_shim_and_no_engine() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(dir.path()).unwrap();
        drop(place.serve().unwrap());
        assert!(place.call(&Request::Signal { signal: 9, ends: true }).await.unwrap().is_none());
        let Joined::Pending(pending, _) = place.join(Request::Wait { removed: false }).await.unwrap() else {
            panic!("nobody listens")
        };
        let left = pending.path.clone();
        drop(pending);
        assert!(!left.exists());
        drop(UnixListener::bind(&left).unwrap());
        assert!(place.call_pending().await.unwrap().is_empty());
        place.serve().unwrap();
    }

    #[tokio::test]
    async fn removing_a_container_that_never_started_ends_the_wait_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(dir.path()).unwrap();
        let joined = place.join(Request::Wait { removed: true }).await.unwrap();
        let waiter = tokio::spawn(async move {
            let mut stream = joined.connected().await?;
            outcome(&mut stream).await
        });
        let dismissed = crate::task::blocking(move || {
            place.dismiss_pending(&Outcome::default());
            Ok(())
        });
        dismissed.await.unwrap();
        assert_eq!(waiter.await.unwrap().unwrap(), Outcome::default());
    }
}
