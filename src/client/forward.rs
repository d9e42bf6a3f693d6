//! What a session forwards and uploads: SSH agents, and contexts on standard input.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::ReaderStream;
use tonic::{Request, Response, Status, Streaming};

use crate::error::{Error, Result};
use crate::task::{self, Owned};
use crate::types::build::moby::sshforward::v1 as ssh;
use crate::types::build::moby::upload::v1 as upload;

/// How much of an upload is sent at a time, in bytes.
const UPLOAD_BYTES: usize = 1 << 20;

/// Messages of an upload that are read ahead.
const UPLOAD_AHEAD: usize = 4;

/// How much of an agent's answer is read at a time, in bytes.
const AGENT_BYTES: usize = 32 << 10;

/// A connection to an SSH agent.
pub trait AgentIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> AgentIo for T {}

/// Connects to an SSH agent.
pub type Agent = Arc<dyn Fn() -> BoxFuture<'static, Result<Box<dyn AgentIo>>> + Send + Sync>;

/// SSH agents by name.
#[derive(Clone, Default)]
pub struct Agents(pub BTreeMap<String, Agent>);

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What is uploaded, with its address.
type Upload = (String, Box<dyn Read + Send>);

/// Something that is uploaded once.
#[derive(Clone, Default)]
pub struct Uploads(Arc<Mutex<Option<Upload>>>);

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploads").finish_non_exhaustive()
    }
}

impl Uploads {
    /// Offers something under an address, `http://HOST/ID`.
    #[must_use]
    pub fn new(upload: Option<Upload>) -> Self {
        Self(Arc::new(Mutex::new(upload)))
    }

    /// Whether there is something to upload.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().expect("no panic happens while the lock is held").is_none()
    }

    fn take(&self, address: &str) -> Option<Box<dyn Read + Send>> {
        let mut upload = self.0.lock().expect("no panic happens while the lock is held");
        upload.take_if(|(known, _)| known == address).map(|(_, content)| content)
    }
}

fn text<'r, T>(request: &'r Request<T>, key: &str) -> Result<&'r str, Status> {
    let value = request.metadata().get(key).and_then(|value| value.to_str().ok());
    value.ok_or_else(|| Status::invalid_argument(format!("{key} is missing")))
}

fn refusal(error: &Error) -> Status {
    Status::new(error.kind().codes().1.into(), error.to_string())
}

#[tonic::async_trait]
impl upload::upload_server::Upload for Uploads {
    type PullStream = ReceiverStream<Result<upload::BytesMessage, Status>>;

    async fn pull(
        &self,
        request: Request<Streaming<upload::BytesMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let address = format!("http://{}{}", text(&request, "urlhost")?, text(&request, "urlpath")?);
        let content = self.take(&address);
        let mut content = content.ok_or_else(|| Status::not_found(format!("nothing is uploaded as {address}")))?;
        let (sender, receiver) = mpsc::channel(UPLOAD_AHEAD);
        // A thread of its own, which may be left behind: a read of standard input ends when its writer wants.
        let read = move || {
            loop {
                let mut data = Vec::new();
                let read = content.by_ref().take(UPLOAD_BYTES as u64).read_to_end(&mut data);
                let message = match read {
                    Ok(0) => return,
                    Ok(_) => Ok(upload::BytesMessage { data }),
                    Err(error) => Err(Status::unavailable(format!("read the context: {error}"))),
                };
                let failed = message.is_err();
                if sender.blocking_send(message).is_err() || failed {
                    return;
                }
            }
        };
        task::thread("upload", read).map_err(|error| refusal(&error))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl ssh::ssh_server::Ssh for Agents {
    type ForwardAgentStream = Pin<Box<dyn Stream<Item = Result<ssh::BytesMessage, Status>> + Send>>;

    async fn check_agent(
        &self,
        request: Request<ssh::CheckAgentRequest>,
    ) -> Result<Response<ssh::CheckAgentResponse>, Status> {
        let id = request.into_inner().id;
        let id = if id.is_empty() { "default" } else { &id };
        match self.0.contains_key(id) {
            true => Ok(Response::new(ssh::CheckAgentResponse {})),
            false => Err(Status::not_found(format!("unset ssh forward key {id}"))),
        }
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<ssh::BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let id = text(&request, "buildkit.ssh.id").unwrap_or("default").to_owned();
        let connect = self.0.get(&id).ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))?;
        let io = connect().await.map_err(|error| refusal(&error))?;
        let (read, mut write) = tokio::io::split(io);
        let mut received = request.into_inner();
        let writing = Owned::spawn(async move {
            while let Ok(Some(message)) = received.message().await {
                if write.write_all(&message.data).await.is_err() {
                    return;
                }
            }
            let _ = write.shutdown().await;
        });
        let sent = ReaderStream::with_capacity(read, AGENT_BYTES).map(move |data| {
            // Lives as long as the answers do.
            let _ = &writing;
            let data = data.map_err(|error| Status::unavailable(format!("read from the agent: {error}")))?;
            Ok(ssh::BytesMessage { data: data.into() })
        });
        Ok(Response::new(Box::pin(sent)))
    }
}
