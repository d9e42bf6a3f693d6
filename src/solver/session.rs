//! Sessions: what a client offers to its builds while they run: secrets, credentials, SSH agents, and files on their way.
//!
//! The client is the gRPC server here. It opens a session under an id of its choice, says which methods it serves, and names
//! the id in its build request; either may come first.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::secrets::v1::GetSecretRequest;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_client::SecretsClient;
use bollard_buildkit_proto::moby::filesync::v1::CredentialsRequest;
use bollard_buildkit_proto::moby::filesync::v1::auth_client::AuthClient;
use bollard_buildkit_proto::moby::sshforward::v1::ssh_client::SshClient;
use bollard_buildkit_proto::moby::sshforward::v1::{BytesMessage as AgentBytes, CheckAgentRequest};
use bollard_buildkit_proto::moby::upload::v1::BytesMessage as UploadBytes;
use bollard_buildkit_proto::moby::upload::v1::upload_client::UploadClient;
use futures_util::StreamExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio_util::io::ReaderStream;
use tonic::Code;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use crate::error::{Error, Kind, Result};

/// How long a build waits for the session it names.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest secret; BuildKit's limit.
const MAX_SECRET: usize = 500 << 10;

/// The largest message of an upload, in bytes: BuildKit's clients send 3 MiB at most.
const MAX_MESSAGE: usize = 16 << 20;

/// The host of addresses that stand for what a client uploads: `http://buildkit-session/ID`.
pub const UPLOAD_HOST: &str = "buildkit-session";

const FORWARD_AGENT: &str = "/moby.sshforward.v1.SSH/ForwardAgent";

/// What is read of an agent's client at a time, in bytes; its messages are small.
const AGENT_BYTES: usize = 32 << 10;

/// The open sessions of an engine. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    open: Mutex<HashMap<String, Session>>,
    changed: Notify,
}

/// One client's session. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Session {
    channel: Channel,
    methods: Arc<HashSet<String>>,
}

/// Keeps a session open; dropping it closes the session.
#[derive(Debug)]
pub struct Registration {
    sessions: Sessions,
    id: String,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.sessions.open().remove(&self.id);
        self.sessions.0.changed.notify_waiters();
    }
}

impl Sessions {
    fn open(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.open.lock().expect("no panic happens while the lock is held")
    }

    /// Opens a session. `methods` are the gRPC methods the client serves, as `/package.Service/Method`.
    #[must_use]
    pub fn register(&self, id: &str, channel: Channel, methods: HashSet<String>) -> Registration {
        self.open().insert(id.to_owned(), Session { channel, methods: Arc::new(methods) });
        self.0.changed.notify_waiters();
        Registration { sessions: self.clone(), id: id.to_owned() }
    }

    /// Waits for a session.
    ///
    /// # Errors
    /// `Timeout` when the client does not open it within seconds.
    pub async fn get(&self, id: &str) -> Result<Session> {
        let find = async {
            loop {
                let changed = self.0.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(session) = self.open().get(id) {
                    return session.clone();
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, find)
            .await
            .map_err(|_| Error::timeout(format!("no active session for {id:?}: the client did not open it")))
    }
}

impl Sessions {
    /// Waits until a session is not open.
    pub async fn closed(&self, id: &str) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.open().contains_key(id) {
                return;
            }
            changed.await;
        }
    }
}

impl Session {
    fn offers(&self, method: &str) -> bool {
        self.methods.contains(method)
    }

    /// Asks for a secret; `None` when the client has none of that name.
    ///
    /// # Errors
    /// What the client answered otherwise.
    pub async fn secret(&self, id: &str) -> Result<Option<Vec<u8>>> {
        if !self.offers("/moby.buildkit.secrets.v1.Secrets/GetSecret") {
            return Ok(None);
        }
        let request = GetSecretRequest { id: id.to_owned(), annotations: HashMap::new() };
        match SecretsClient::new(self.channel.clone()).get_secret(request).await {
            Ok(response) => {
                let data = response.into_inner().data;
                if data.len() > MAX_SECRET {
                    return Err(Error::invalid(format!("secret {id} is larger than {} KiB", MAX_SECRET >> 10)));
                }
                Ok(Some(data))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(from_status(&status).context(format!("get secret {id}"))),
        }
    }

    /// Asks for a secret that is text.
    ///
    /// # Errors
    /// As for [`Session::secret`]; `InvalidArgument` for one that is no text.
    pub async fn secret_text(&self, id: &str) -> Result<Option<String>> {
        let Some(secret) = self.secret(id).await? else { return Ok(None) };
        let text = String::from_utf8(secret).map_err(|_| Error::invalid(format!("the secret {id} is no text")))?;
        Ok(Some(text).filter(|text| !text.trim().is_empty()))
    }

    /// Asks for the user name and the password (or token) for a registry's host; `None` when the client has none.
    ///
    /// # Errors
    /// What the client answered otherwise.
    pub async fn credentials(&self, host: &str) -> Result<Option<(String, String)>> {
        if !self.offers("/moby.filesync.v1.Auth/Credentials") {
            return Ok(None);
        }
        let request = CredentialsRequest { host: host.to_owned() };
        match AuthClient::new(self.channel.clone()).credentials(request).await {
            Ok(response) => {
                let found = response.into_inner();
                Ok((!found.secret.is_empty()).then_some((found.username, found.secret)))
            }
            Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(None),
            Err(status) => Err(from_status(&status).context(format!("get credentials for {host}"))),
        }
    }

    /// Says whether the client forwards an SSH agent of this name.
    ///
    /// # Errors
    /// `NotFound` in BuildKit's words, with what to do, when it does not.
    pub async fn check_agent(&self, id: &str) -> Result<()> {
        if !self.offers(FORWARD_AGENT) {
            return Err(no_agent(id));
        }
        let request = CheckAgentRequest { id: id.to_owned() };
        match SshClient::new(self.channel.clone()).check_agent(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::Unimplemented => Err(no_agent(id)),
            Err(status) => Err(from_status(&status).with_kind(Kind::NotFound).context(no_agent(id).to_string())),
        }
    }

    /// Connects somebody with an SSH agent of the client until either side ends.
    ///
    /// # Errors
    /// When the client ends the session or breaks off.
    pub async fn forward_agent(&self, id: &str, io: impl AsyncRead + AsyncWrite + Send + 'static) -> Result<()> {
        let broken = |status: tonic::Status| from_status(&status).context(format!("forward the SSH agent {id}"));
        let (read, mut write) = tokio::io::split(io);
        let sent = ReaderStream::with_capacity(read, AGENT_BYTES)
            .take_while(|data| std::future::ready(data.is_ok()))
            .map(|data| AgentBytes { data: data.unwrap_or_default().into() });
        let mut request = tonic::Request::new(sent);
        request.metadata_mut().insert("buildkit.ssh.id", metadata(id)?);
        let mut received =
            SshClient::new(self.channel.clone()).forward_agent(request).await.map_err(broken)?.into_inner();
        while let Some(message) = received.message().await.map_err(broken)? {
            write.write_all(&message.data).await?;
        }
        write.shutdown().await?;
        Ok(())
    }

    /// Begins to receive what the client uploads under an address.
    ///
    /// # Errors
    /// `Unsupported` when it uploads nothing; what it answered otherwise.
    pub async fn upload(&self, host: &str, path: &str) -> Result<Upload> {
        if !self.offers("/moby.upload.v1.Upload/Pull") {
            return Err(Error::unsupported(format!("the client does not upload http://{host}{path}")));
        }
        let mut request = tonic::Request::new(tokio_stream::empty::<UploadBytes>());
        request.metadata_mut().insert("urlhost", metadata(host)?);
        request.metadata_mut().insert("urlpath", metadata(path)?);
        let mut client = UploadClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        match client.pull(request).await {
            Ok(answer) => Ok(Upload(answer.into_inner())),
            Err(status) => Err(from_status(&status).context(format!("receive http://{host}{path}"))),
        }
    }
}

/// What a client uploads, as it arrives.
#[derive(Debug)]
pub struct Upload(tonic::Streaming<UploadBytes>);

impl Upload {
    /// Returns the next bytes, `None` at the end.
    ///
    /// # Errors
    /// When the client breaks off.
    pub async fn chunk(&mut self) -> Result<Option<bytes::Bytes>> {
        match self.0.message().await {
            Ok(message) => Ok(message.map(|message| message.data.into())),
            Err(status) => Err(from_status(&status).context("receive what the client uploads")),
        }
    }
}

fn metadata(text: &str) -> Result<MetadataValue<tonic::metadata::Ascii>> {
    text.parse().map_err(|_| Error::invalid(format!("{text:?} cannot be sent in a header")))
}

fn no_agent(id: &str) -> Error {
    Error::not_found(format!("no SSH key {id:?} forwarded from the client (build with --ssh {id})"))
}

fn from_status(status: &tonic::Status) -> Error {
    Error::new(Kind::from_grpc(status.code().into()), status.message())
}
