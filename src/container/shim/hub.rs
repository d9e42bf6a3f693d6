//! Who is connected to a shim: clients attached to one run of the container, and those who wait for its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::container::link::{self, Outcome};
use crate::container::log::{LogWriter, Output};
use crate::error::Result;
use crate::task::{Clock, Tasks};

/// How much is read from the container at a time.
const CHUNK: usize = 32 << 10;
/// The header of a frame: stream, three zeros, length.
const HEADER: usize = 8;
/// How many chunks a client may be behind before the container waits for it: together 512 KiB.
const BEHIND: usize = 16;
/// How many chunks of input wait for the container.
const INPUT: usize = 4;

/// One run's clients. Cloning gives another handle.
#[derive(Clone, Debug)]
pub(super) struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    framing: Framing,
    stdin_once: bool,
    clients: Mutex<Vec<Client>>,
    log: Mutex<Option<LogWriter>>,
    clock: Clock,
    input: mpsc::Sender<Input>,
    /// The tasks that write to clients: they end when all was written.
    writers: Tasks,
}

/// How output is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// In frames that name the stream.
    Frames,
    /// As it comes: with a terminal there is one stream only.
    Raw,
}

#[derive(Debug)]
struct Client {
    id: u64,
    stdout: bool,
    stderr: bool,
    output: mpsc::Sender<Bytes>,
}

/// What clients send.
#[derive(Debug)]
pub(super) enum Input {
    Data(Bytes),
    End,
}

impl Hub {
    /// Makes a hub without clients. What they send comes out of the receiver.
    pub(super) fn new(
        framing: Framing,
        stdin_once: bool,
        log: Option<LogWriter>,
        clock: Clock,
    ) -> (Self, mpsc::Receiver<Input>) {
        let (input, receiver) = mpsc::channel(INPUT);
        let inner = Inner {
            framing,
            stdin_once,
            clients: Mutex::default(),
            log: Mutex::new(log),
            clock,
            input,
            writers: Tasks::new(),
        };
        (Self(Arc::new(inner)), receiver)
    }

    /// Adds a client.
    pub(super) fn attach(&self, stream: UnixStream, stdin: bool, stdout: bool, stderr: bool) {
        let (reader, writer) = stream.into_split();
        let (output, receiver) = mpsc::channel(BEHIND);
        {
            let mut clients = self.clients();
            let id = clients.last().map_or(0, |client| client.id + 1);
            clients.push(Client { id, stdout, stderr, output });
        }
        self.0.writers.spawn(write_out(receiver, writer));
        if stdin {
            let (input, once) = (self.0.input.clone(), self.0.stdin_once);
            // It ends with the client or the shim.
            Tasks::new().spawn(read_in(reader, input, once));
        }
    }

    /// Copies one of the container's outputs to the log and the clients until it ends.
    pub(super) async fn pump(&self, mut from: pipe::Receiver, output: Output) {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(HEADER + CHUNK);
            buffer.extend_from_slice(&[0; HEADER]);
            match from.read_buf(&mut buffer).await {
                // A terminal ends with an error when the last process has closed it.
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let mut chunk = buffer.split();
            self.log(output, &chunk[HEADER..]);
            let message = match self.0.framing {
                Framing::Raw => chunk.split_off(HEADER).freeze(),
                Framing::Frames => {
                    let len = u32::try_from(chunk.len() - HEADER).expect("a chunk is small");
                    chunk[0] = if output == Output::Stdout { 1 } else { 2 };
                    chunk[4..HEADER].copy_from_slice(&len.to_be_bytes());
                    chunk.freeze()
                }
            };
            self.send(output, &message).await;
        }
    }

    async fn send(&self, output: Output, message: &Bytes) {
        let wants = |client: &Client| match output {
            Output::Stdout => client.stdout || self.0.framing == Framing::Raw && client.stderr,
            Output::Stderr => client.stderr,
        };
        let receivers: Vec<(u64, mpsc::Sender<Bytes>)> = self
            .clients()
            .iter()
            .filter(|client| wants(client))
            .map(|client| (client.id, client.output.clone()))
            .collect();
        for (id, receiver) in receivers {
            if receiver.send(message.clone()).await.is_err() {
                self.clients().retain(|client| client.id != id);
            }
        }
    }

    /// Appends to the log. A full disk costs the container its log, not its life.
    fn log(&self, output: Output, bytes: &[u8]) {
        let mut log = self.0.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = log.as_mut() {
            let _ = log.write(output, bytes, self.0.clock.now_ns());
        }
    }

    /// Ends all clients, after what was sent to them has arrived or `grace` is over.
    pub(super) async fn close(&self, grace: Duration) {
        let finished = {
            let mut log = self.0.log.lock().unwrap_or_else(PoisonError::into_inner);
            log.take().map(|mut log| log.finish(self.0.clock.now_ns()))
        };
        // As for every write to the log.
        drop(finished);
        self.disconnect();
        self.0.writers.shutdown(grace).await;
    }

    /// Sends nothing more to clients.
    pub(super) fn disconnect(&self) {
        self.clients().clear();
    }

    fn clients(&self) -> MutexGuard<'_, Vec<Client>> {
        self.0.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write_out(mut chunks: mpsc::Receiver<Bytes>, mut client: OwnedWriteHalf) {
    while let Some(chunk) = chunks.recv().await {
        if client.write_all(&chunk).await.is_err() {
            return;
        }
    }
    // The client may have gone.
    let _ = client.shutdown().await;
}

async fn read_in(mut client: OwnedReadHalf, input: mpsc::Sender<Input>, once: bool) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        match client.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) if input.send(Input::Data(buffer.split().freeze())).await.is_err() => return,
            Ok(_) => {}
        }
    }
    if once {
        // The container may have ended.
        let _ = input.send(Input::End).await;
    }
}

/// Writes what clients send to the container until it ends or takes no more.
pub(super) async fn feed(mut input: mpsc::Receiver<Input>, to: pipe::Sender) {
    let mut to = Some(to);
    while let Some(message) = input.recv().await {
        match (message, &mut to) {
            (Input::End, _) => to = None,
            (Input::Data(bytes), Some(stdin)) => {
                if stdin.write_all(&bytes).await.is_err() {
                    to = None;
                }
            }
            // Clients that send to a container that takes nothing must not be stopped by it.
            (Input::Data(_), None) => {}
        }
    }
}

/// Those who wait for the container's end.
#[derive(Debug, Default)]
pub(super) struct Waiters(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    streams: Vec<(UnixStream, bool)>,
    /// How the container ended, once it has for good.
    last: Option<Outcome>,
}

impl Waiters {
    /// Adds one, which is answered at once when the container has ended.
    pub(super) async fn add(&self, mut stream: UnixStream, removed: bool) {
        let last = {
            let mut waiting = self.lock();
            match &waiting.last {
                Some(last) if !removed => last.clone(),
                _ => return waiting.streams.push((stream, removed)),
            }
        };
        // It may have gone.
        let _ = link::send(&mut stream, &last).await;
    }

    /// Tells those who wait for the end of a run.
    pub(super) async fn ended(&self, outcome: &Outcome, for_good: bool) {
        let streams = {
            let mut waiting = self.lock();
            if for_good {
                waiting.last = Some(outcome.clone());
            }
            let (told, kept) = std::mem::take(&mut waiting.streams).into_iter().partition(|(_, removed)| !removed);
            waiting.streams = kept;
            told
        };
        tell(streams, outcome).await;
    }

    /// Tells those who wait for the removal.
    pub(super) async fn removed(&self, outcome: &Outcome) {
        let streams = std::mem::take(&mut self.lock().streams);
        tell(streams, outcome).await;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn tell(streams: Vec<(UnixStream, bool)>, outcome: &Outcome) {
    for (mut stream, _) in streams {
        // It may have gone.
        let _ = link::send(&mut stream, outcome).await;
    }
}

/// Makes this side of a pipe or a terminal fit for tokio.
pub(super) fn receiver(fd: std::os::fd::OwnedFd) -> Result<pipe::Receiver> {
    nonblocking(&fd)?;
    Ok(pipe::Receiver::from_owned_fd_unchecked(fd)?)
}

/// As [`receiver`], for writing.
pub(super) fn sender(fd: std::os::fd::OwnedFd) -> Result<pipe::Sender> {
    nonblocking(&fd)?;
    Ok(pipe::Sender::from_owned_fd_unchecked(fd)?)
}

fn nonblocking(fd: &std::os::fd::OwnedFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
