//! `LLBBridge.ExecProcess`: one stream of messages for any number of processes in containers of one build.
//!
//! Each process is a task. It says that it has started, sends what is printed, then how it ended, and at last that it is done:
//! nothing comes after that. A process ends with the stream that started it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use bytes::BytesMut;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::container;
use crate::error::{Error, Result};
use crate::solver::bridge::Bridge;
use crate::solver::gateway::container::{Container, Ended, ProcessRequest, Running, WindowSize};
use crate::task::Tasks;
use crate::types::build::frontend::exec_message::Input;
use crate::types::build::frontend::{
    DoneMessage, ExecMessage, ExitMessage, FdMessage, InitMessage, ResizeMessage, StartedMessage,
};
use crate::types::build::google::rpc;

/// How many messages wait for a client that is slow to take them, and how many for a process that is slow to read.
const MESSAGES: usize = 64;

/// What is read of a process at a time, in bytes: what a pipe holds.
const PIECE: usize = 64 << 10;

/// How many processes a stream may have at a time.
const MAX_PROCESSES: usize = 256;

/// The exit code of a process of which none is known: BuildKit's clients show the error instead.
const UNKNOWN_EXIT: u32 = 255;

/// The code of "it is not known" among those of gRPC.
const UNKNOWN: i32 = 2;

const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;

/// The answers of a stream.
pub(super) type Answers = ReceiverStream<Result<ExecMessage, Status>>;

type Sender = mpsc::Sender<Result<ExecMessage, Status>>;

/// Serves a stream of a build's frontend.
pub(super) fn serve(bridge: Weak<Bridge>, incoming: Streaming<ExecMessage>, tasks: &Tasks) -> Answers {
    let (sender, receiver) = mpsc::channel(MESSAGES);
    let stream =
        Stream { bridge, tasks: tasks.clone(), sender, inputs: HashMap::new(), running: FuturesUnordered::new() };
    tasks.spawn(stream.serve(incoming));
    ReceiverStream::new(receiver)
}

/// One stream.
struct Stream {
    bridge: Weak<Bridge>,
    tasks: Tasks,
    sender: Sender,
    /// What leads to the processes, by their ids.
    inputs: HashMap<String, Inputs>,
    /// The processes; each gives its id when it is done.
    running: FuturesUnordered<JoinHandle<String>>,
}

/// What leads to a process. Dropping it ends the process.
struct Inputs {
    /// What it reads; dropped at its end.
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    commands: mpsc::Sender<Command>,
}

enum Command {
    Resize(WindowSize),
    Signal(String),
}

impl Stream {
    async fn serve(mut self, mut incoming: Streaming<ExecMessage>) {
        let (sender, stopping) = (self.sender.clone(), self.tasks.stopping());
        let gone = async {
            tokio::select! {
                () = sender.closed() => {}
                () = stopping.cancelled() => {}
            }
        };
        tokio::pin!(gone);
        let mut is_open = true;
        while is_open || !self.running.is_empty() {
            tokio::select! {
                message = incoming.message(), if is_open => match message {
                    Ok(Some(message)) => tokio::select! {
                        taken = self.take(message) => if let Err(refused) = taken {
                            // The client may have gone.
                            let _ = self.sender.send(Err(refused)).await;
                            break;
                        },
                        () = &mut gone => break,
                    },
                    // Whoever sends no more may still listen.
                    Ok(None) => {
                        is_open = false;
                        self.inputs.values_mut().for_each(|inputs| drop(inputs.stdin.take()));
                    }
                    Err(_) => break,
                },
                Some(done) = self.running.next(), if !self.running.is_empty() => self.forget(done),
                () = &mut gone => break,
            }
        }
        self.inputs.clear();
        while self.running.next().await.is_some() {}
    }

    fn forget(&mut self, done: Result<String, tokio::task::JoinError>) {
        if let Ok(id) = done {
            self.inputs.remove(&id);
        }
    }

    /// Takes a message. What is for a process that has ended is dropped: the client could not know.
    async fn take(&mut self, message: ExecMessage) -> Result<(), Status> {
        let id = message.process_id;
        if id.is_empty() {
            return Err(Status::invalid_argument("a message names no process (ExecMessage.ProcessID)"));
        }
        match message.input {
            Some(Input::Init(init)) => self.begin(id, init),
            Some(Input::File(FdMessage { fd, eof, data })) => {
                if fd != STDIN {
                    return Err(Status::invalid_argument(format!("a process does not read from descriptor {fd}")));
                }
                let Some(inputs) = self.inputs.get_mut(&id) else { return Ok(()) };
                if let Some(stdin) = &inputs.stdin
                    && !data.is_empty()
                {
                    // One that has closed its input, or ended, reads nothing.
                    let _ = stdin.send(data).await;
                }
                if eof {
                    inputs.stdin = None;
                }
                Ok(())
            }
            Some(Input::Resize(ResizeMessage { rows, cols })) => {
                let cells = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
                self.command(&id, Command::Resize(WindowSize { rows: cells(rows), columns: cells(cols) })).await;
                Ok(())
            }
            Some(Input::Signal(signal)) => {
                self.command(&id, Command::Signal(signal.name)).await;
                Ok(())
            }
            Some(Input::Started(_) | Input::Exit(_) | Input::Done(_)) | None => {
                Err(Status::invalid_argument("a message that is not for the engine (ExecMessage.Input)"))
            }
        }
    }

    async fn command(&self, id: &str, command: Command) {
        if let Some(inputs) = self.inputs.get(id) {
            // It may have ended.
            let _ = inputs.commands.send(command).await;
        }
    }

    fn begin(&mut self, id: String, init: InitMessage) -> Result<(), Status> {
        if self.inputs.contains_key(&id) {
            return Err(Status::invalid_argument(format!("there is a process {id} already")));
        }
        if self.inputs.len() >= MAX_PROCESSES {
            return Err(Status::resource_exhausted(format!(
                "a stream has at most {MAX_PROCESSES} processes at a time"
            )));
        }
        let (stdin, to_read) = mpsc::channel(MESSAGES);
        let (commands, to_do) = mpsc::channel(MESSAGES);
        let stdin = init.fds.contains(&STDIN).then_some(stdin);
        self.inputs.insert(id.clone(), Inputs { stdin, commands });
        let wanted = [STDOUT, STDERR].map(|fd| init.fds.contains(&fd));
        let found = self.find(init);
        let out = Out { id, sender: self.sender.clone() };
        let process = async move {
            // A client that has gone does not care.
            let _ = run(found, &out, to_read, to_do, wanted).await;
            out.id
        };
        self.running.push(self.tasks.spawn(process));
        Ok(())
    }

    fn find(&self, init: InitMessage) -> Result<(Arc<Container>, ProcessRequest)> {
        let bridge = self.bridge.upgrade().ok_or_else(|| Error::not_found("the build has ended"))?;
        let container = bridge.container(&init.container_id)?;
        Ok((container, container::process(init)?))
    }
}

/// Where a process's messages go.
struct Out {
    id: String,
    sender: Sender,
}

impl Out {
    /// Sends a message.
    ///
    /// # Errors
    /// `Cancelled` when the client has gone.
    async fn send(&self, input: Input) -> Result<()> {
        let message = ExecMessage { process_id: self.id.clone(), input: Some(input) };
        self.sender.send(Ok(message)).await.map_err(|_| Error::cancelled("the client went away"))
    }

    async fn exit(&self, code: u32, reason: Option<(i32, String)>) -> Result<()> {
        let error = reason.map(|(code, message)| rpc::Status { code, message, details: Vec::new() });
        self.send(Input::Exit(ExitMessage { code, error })).await
    }

    async fn end_of(&self, fd: u32) -> Result<()> {
        self.send(Input::File(FdMessage { fd, eof: true, data: Vec::new() })).await
    }
}

/// Runs a process from its start to the message that it is done.
async fn run(
    found: Result<(Arc<Container>, ProcessRequest)>,
    out: &Out,
    stdin: mpsc::Receiver<Vec<u8>>,
    commands: mpsc::Receiver<Command>,
    wanted: [bool; 2],
) -> Result<()> {
    let started = match found {
        Ok((container, request)) => container.start(request).await,
        Err(error) => Err(error),
    };
    // Clients wait for this even when there is nothing to come.
    let told = out.send(Input::Started(StartedMessage {})).await;
    match started {
        Ok(running) => follow(running, out, stdin, commands, wanted).await?,
        Err(error) => {
            let code = Container::exit_code(&error).map_or(UNKNOWN_EXIT, u32::from);
            out.exit(code, Some((error.kind().codes().1, error.to_string()))).await?;
            for (fd, _) in [STDOUT, STDERR].into_iter().zip(wanted).filter(|(_, wanted)| *wanted) {
                out.end_of(fd).await?;
            }
        }
    }
    told?;
    out.send(Input::Done(DoneMessage {})).await
}

/// Passes on what a process prints and reads until it has ended. A client that has gone ends it.
async fn follow(
    mut running: Running,
    out: &Out,
    stdin: mpsc::Receiver<Vec<u8>>,
    commands: mpsc::Receiver<Command>,
    [stdout, stderr]: [bool; 2],
) -> Result<()> {
    let streams = running.take_streams();
    if let Some(terminal) = running.terminal() {
        let (read, write) = tokio::io::split(terminal.stream()?);
        let printed = pass_on(Some(read), out, STDOUT, stdout);
        let (printed, lived) = tokio::join!(printed, live(running, out, feed(Some(write), stdin), commands));
        return printed.and(lived);
    }
    let input =
        streams.stdin.map(|fd| nonblocking(fd).and_then(|fd| Ok(pipe::Sender::from_owned_fd(fd)?))).transpose()?;
    let output = |fd: OwnedFd| nonblocking(fd).and_then(|fd| Ok(pipe::Receiver::from_owned_fd(fd)?));
    let (from_stdout, from_stderr) = (streams.stdout.map(output).transpose()?, streams.stderr.map(output).transpose()?);
    let (printed, errors, lived) = tokio::join!(
        pass_on(from_stdout, out, STDOUT, stdout),
        pass_on(from_stderr, out, STDERR, stderr),
        live(running, out, feed(input, stdin), commands),
    );
    printed.and(errors).and(lived)
}

fn nonblocking(fd: OwnedFd) -> Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Sends what is printed, to its end; what the client does not want is read and dropped.
async fn pass_on(stream: Option<impl AsyncRead + Unpin>, out: &Out, fd: u32, wanted: bool) -> Result<()> {
    let Some(mut stream) = stream else { return Ok(()) };
    let mut buffer = BytesMut::new();
    let mut told = Ok(());
    loop {
        buffer.reserve(PIECE);
        // A pipe that cannot be read has no more to say.
        if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
            break;
        }
        let data = buffer.split();
        if wanted && told.is_ok() {
            told = out.send(Input::File(FdMessage { fd, eof: false, data: data.to_vec() })).await;
        }
    }
    told?;
    if wanted { out.end_of(fd).await } else { Ok(()) }
}

/// Writes what a process is to read. It does not end by itself.
async fn feed(stream: Option<impl AsyncWrite + Unpin>, mut stdin: mpsc::Receiver<Vec<u8>>) {
    let mut stream = stream;
    while let Some(data) = stdin.recv().await {
        if let Some(writer) = &mut stream
            && writer.write_all(&data).await.is_err()
        {
            // It reads no more.
            stream = None;
        }
    }
    drop(stream);
    std::future::pending::<()>().await;
}

/// Does what the client asks for until the process has ended, and says how it ended.
async fn live(
    running: Running,
    out: &Out,
    feed: impl Future<Output = ()>,
    mut commands: mpsc::Receiver<Command>,
) -> Result<()> {
    let obey = async {
        while let Some(command) = commands.recv().await {
            // What cannot be done to it is not worth its end.
            let _ = match command {
                Command::Resize(size) => running.terminal().map_or(Ok(()), |terminal| terminal.resize(size)),
                Command::Signal(name) => running.signal_by_name(&name),
            };
        }
        // The stream has ended.
        let _ = running.kill();
        std::future::pending::<()>().await;
    };
    let watched = tokio::select! {
        ended = running.ended() => ended,
        () = feed => Ok(()),
        () = obey => Ok(()),
    };
    let ended = match watched {
        Ok(()) => running.end().await,
        Err(error) => Err(error),
    };
    match ended {
        Ok(Ended { code, reason }) => out.exit(u32::from(code), reason.map(|reason| (UNKNOWN, reason))).await,
        // Whoever waits for its end is told that there is one, although nobody knows which.
        Err(error) => out.exit(UNKNOWN_EXIT, Some((error.kind().codes().1, error.to_string()))).await,
    }
}
