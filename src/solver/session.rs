//! Sessions: what a client offers to its builds while they run: files, secrets, credentials, SSH agents, and uploads.
//!
//! The client is the gRPC server here. It opens a session under an id of its choice, says which methods it serves, and names
//! the id in its build request; either may come first.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bollard_buildkit_proto::health::HealthCheckRequest;
use bollard_buildkit_proto::health::health_client::HealthClient;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_client::SecretsClient;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use bollard_buildkit_proto::moby::filesync::v1::auth_client::AuthClient;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, FetchTokenRequest, GetTokenAuthorityRequest, VerifyTokenAuthorityRequest,
};
use bollard_buildkit_proto::moby::sshforward::v1::ssh_client::SshClient;
use bollard_buildkit_proto::moby::sshforward::v1::{BytesMessage as AgentBytes, CheckAgentRequest};
use bollard_buildkit_proto::moby::upload::v1::BytesMessage as UploadBytes;
use bollard_buildkit_proto::moby::upload::v1::upload_client::UploadClient;
use futures_util::StreamExt as _;
use http::uri::PathAndQuery;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::metadata::{AsciiMetadataValue, MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use super::lock;
use crate::error::{Error, Kind, Result};
use crate::filesync::{self, Filter, Sink};
use crate::registry::Granted;

/// How long a build waits for the session it names.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a client is asked whether it is still there, how long it may take to answer, and how often it may fail to.
const CHECK_EVERY: Duration = Duration::from_secs(5);
const CHECK_PATIENCE: Duration = Duration::from_secs(15);
const CHECK_FAILURES: u32 = 2;

/// How many sessions that have ended are remembered.
const REMEMBERED: usize = 1000;

/// The largest secret; BuildKit's limit.
const MAX_SECRET: usize = 500 << 10;

/// The largest message of an upload, in bytes: BuildKit's clients send 3 MiB at most.
const MAX_MESSAGE: usize = 16 << 20;

/// What clients are called at token services, as with BuildKit.
const CLIENT_ID: &str = "buildkit-client";

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
    /// The ids of those that ended last, the oldest first.
    ended: Mutex<VecDeque<String>>,
    changed: Notify,
}

/// One client's session. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Session {
    pub(super) channel: Channel,
    announced: Arc<Announced>,
    /// Set when the session has ended.
    pub(super) ended: CancellationToken,
}

/// What a client says of a session when it opens it.
#[derive(Clone, Debug, Default)]
pub struct Announced {
    /// Its id.
    pub id: String,
    /// Names the directory that is built from, so that what is transferred of it can be kept.
    pub shared_key: String,
    /// The gRPC methods the client serves, as `/package.Service/Method`, in whatever case.
    pub methods: HashSet<String>,
}

/// Keeps a session open; dropping it closes the session.
#[derive(Debug)]
pub struct Registration {
    sessions: Sessions,
    session: Session,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let id = &self.session.announced.id;
        self.sessions.open().remove(id);
        let mut ended = lock(&self.sessions.0.ended);
        ended.push_back(id.clone());
        if ended.len() > REMEMBERED {
            ended.pop_front();
        }
        drop(ended);
        self.sessions.0.changed.notify_waiters();
        self.session.ended.cancel();
    }
}

impl Registration {
    /// Resolves when the client no longer answers, if it said that it would.
    pub async fn silent(&self) {
        let check = "/grpc.health.v1.Health/Check";
        if !self.session.offers(check) {
            return std::future::pending().await;
        }
        let mut failures = 0;
        while failures < CHECK_FAILURES {
            tokio::time::sleep(CHECK_EVERY).await;
            let mut health = HealthClient::new(self.session.channel.clone());
            let asked = tokio::time::timeout(CHECK_PATIENCE, health.check(HealthCheckRequest::default())).await;
            failures = if matches!(asked, Ok(Ok(_))) { 0 } else { failures + 1 };
        }
    }
}

impl Sessions {
    fn open(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.open.lock().expect("no panic happens while the lock is held")
    }

    /// Opens a session.
    #[must_use]
    pub fn register(&self, channel: Channel, announced: Announced) -> Registration {
        let id = announced.id.clone();
        let session = Session { channel, announced: Arc::new(announced), ended: CancellationToken::new() };
        self.open().insert(id, session.clone());
        self.0.changed.notify_waiters();
        Registration { sessions: self.clone(), session }
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
    /// Waits for a session that a definition names, which may be older than its build; one that has ended is not waited for.
    ///
    /// # Errors
    /// `NotFound` when it has ended, `Timeout` when the client does not open it within seconds.
    pub(super) async fn named(&self, id: &str) -> Result<Session> {
        if !self.open().contains_key(id) && lock(&self.0.ended).iter().any(|ended| ended == id) {
            return Err(Error::not_found(format!("the session {id:?} has ended")));
        }
        self.get(id).await
    }

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
    pub(super) fn offers(&self, method: &str) -> bool {
        // Clients do not agree on how the names are written, and BuildKit compares them without regard to case.
        self.announced.methods.iter().any(|announced| announced.eq_ignore_ascii_case(method))
    }

    /// Says whether the client sends files.
    #[must_use]
    pub fn offers_files(&self) -> bool {
        self.offers("/moby.filesync.v1.FileSync/DiffCopy")
    }

    /// Returns what the client calls the directory that is built from.
    #[must_use]
    pub fn shared_key(&self) -> &str {
        &self.announced.shared_key
    }

    /// Waits for a call of the client, or for the end of its session.
    async fn call<T>(&self, call: impl Future<Output = Result<Response<T>, Status>> + Send) -> Result<T, Status> {
        tokio::select! {
            answer = call => answer.map(Response::into_inner),
            () = self.ended.cancelled() => Err(Status::unavailable(ENDED)),
        }
    }

    /// Calls a method for which there is no client of its own.
    ///
    /// # Errors
    /// What the client answered; `Unavailable` when the session ends meanwhile.
    pub(super) async fn unary<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| Error::unavailable(ENDED).with_source(error))?;
        let (path, codec) = (PathAndQuery::from_static(method), ProstCodec::<Q, A>::default());
        self.call(client.unary(Request::new(request), path, codec)).await.map_err(|status| from_status(&status))
    }

    /// Receives files of a directory that the client offers under a name.
    ///
    /// # Errors
    /// `NotFound` when the client offers no such directory; `Unavailable` when the session ends meanwhile; those of
    /// [`filesync::receive`].
    pub async fn files<S: Sink>(&self, dir: &str, filter: &Filter, sink: S) -> Result<S> {
        let (outgoing, said) = filesync::answers();
        let mut request = Request::new(ReceiverStream::new(said));
        let Filter { include, exclude, follow } = filter;
        describe(request.metadata_mut(), "dir-name", &[dir.to_owned()])?;
        describe(request.metadata_mut(), "include-patterns", include)?;
        describe(request.metadata_mut(), "exclude-patterns", exclude)?;
        describe(request.metadata_mut(), "followpaths", follow)?;
        let mut client = FileSyncClient::new(self.channel.clone());
        let incoming = self.call(client.diff_copy(request)).await.map_err(|status| from_status(&status))?;
        tokio::select! {
            received = filesync::receive(incoming, outgoing, sink) => received,
            () = self.ended.cancelled() => Err(Error::unavailable(ENDED)),
        }
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
        match self.call(SecretsClient::new(self.channel.clone()).get_secret(request)).await {
            Ok(GetSecretResponse { data }) => {
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
        match self.call(AuthClient::new(self.channel.clone()).credentials(request)).await {
            Ok(found) => Ok((!found.secret.is_empty()).then_some((found.username, found.secret))),
            Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(None),
            Err(status) => Err(from_status(&status).context(format!("get credentials for {host}"))),
        }
    }

    /// Says whether the client may fetch tokens of registries itself.
    pub(super) fn offers_tokens(&self) -> bool {
        ["FetchToken", "GetTokenAuthority", "VerifyTokenAuthority"]
            .iter()
            .all(|method| self.offers(&format!("/moby.filesync.v1.Auth/{method}")))
    }

    /// Asks for the key that stands for the client's credentials for a host; `None` when it fetches no tokens for it.
    ///
    /// # Errors
    /// What the client answered otherwise.
    pub(super) async fn authority(&self, host: &str, salt: &[u8; 32]) -> Result<Option<[u8; 32]>> {
        let request = GetTokenAuthorityRequest { host: host.to_owned(), salt: salt.to_vec() };
        match self.call(AuthClient::new(self.channel.clone()).get_token_authority(request)).await {
            Ok(answer) => {
                let length = answer.public_key.len();
                let key = answer.public_key.try_into();
                key.map(Some)
                    .map_err(|_| Error::invalid(format!("invalid pubkey length {length} of the client for {host}")))
            }
            Err(status) if is_not_offered(&status) => Ok(None),
            Err(status) => Err(from_status(&status).context(format!("ask for the authority of tokens for {host}"))),
        }
    }

    /// Has the client sign a text with the key that stands for its credentials for a host; `None` when it does not. The signature
    /// stands before the text.
    ///
    /// # Errors
    /// What the client answered otherwise.
    pub(super) async fn sign(&self, host: &str, payload: &[u8; 32], salt: &[u8; 32]) -> Result<Option<Vec<u8>>> {
        let (payload, salt) = (payload.to_vec(), salt.to_vec());
        let request = VerifyTokenAuthorityRequest { host: host.to_owned(), payload, salt };
        match self.call(AuthClient::new(self.channel.clone()).verify_token_authority(request)).await {
            Ok(answer) => Ok(Some(answer.signed)),
            Err(status) if is_not_offered(&status) => Ok(None),
            Err(status) => Err(from_status(&status).context(format!("verify the authority of tokens for {host}"))),
        }
    }

    /// Has the client fetch a token.
    ///
    /// # Errors
    /// What the client, or the service that it asked, answered.
    pub(super) async fn fetch_token(
        &self,
        host: &str,
        realm: String,
        service: String,
        scopes: Vec<String>,
    ) -> Result<Granted> {
        let (client_id, host) = (CLIENT_ID.to_owned(), host.to_owned());
        let request = FetchTokenRequest { client_id, host: host.clone(), realm, service, scopes };
        let answer = self.call(AuthClient::new(self.channel.clone()).fetch_token(request)).await;
        let answer = answer.map_err(|status| from_status(&status).context(format!("fetch a token for {host}")))?;
        Ok(Granted { token: answer.token, expires_in_s: u64::try_from(answer.expires_in).unwrap_or(0) })
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
        let broken = |status: Status| from_status(&status).context(format!("forward the SSH agent {id}"));
        let (read, mut write) = tokio::io::split(io);
        let sent = ReaderStream::with_capacity(read, AGENT_BYTES)
            .take_while(|data| std::future::ready(data.is_ok()))
            .map(|data| AgentBytes { data: data.unwrap_or_default().into() });
        let mut request = Request::new(sent);
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
        let mut request = Request::new(tokio_stream::empty::<UploadBytes>());
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

/// Whether a client says that it does not do this, or not for what it was asked: BuildKit's clients use both codes. A session that
/// has ended is not among it.
fn is_not_offered(status: &Status) -> bool {
    let said = std::error::Error::source(status).is_none() && status.message() != ENDED;
    said && matches!(status.code(), Code::Unimplemented | Code::Unavailable)
}

fn no_agent(id: &str) -> Error {
    Error::not_found(format!("no SSH key {id:?} forwarded from the client (build with --ssh {id})"))
}

pub(super) const ENDED: &str = "the client's session has ended: its connection broke, or it no longer answers";

/// Adds values to what a call is told. Where one cannot stand in a header, all of its key are escaped, and a flag says so.
fn describe(metadata: &mut MetadataMap, key: &'static str, values: &[String]) -> Result<()> {
    let plain = |value: &String| value.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    let escaped = !values.iter().all(plain);
    if escaped {
        let flag = format!("{key}-encoded");
        let flag = tonic::metadata::AsciiMetadataKey::from_bytes(flag.as_bytes());
        metadata.insert(flag.expect("the keys are words"), AsciiMetadataValue::from_static("1"));
    }
    for value in values {
        let value = if escaped { escape(value) } else { value.clone() };
        let value = value.parse().map_err(|_| Error::invalid(format!("{value:?} cannot be sent to the client")))?;
        metadata.append(key, value);
    }
    Ok(())
}

/// Escapes as queries are escaped.
fn escape(value: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    value.bytes().map(byte).collect()
}

pub(super) fn from_status(status: &Status) -> Error {
    // It was not the client that said so.
    if std::error::Error::source(status).is_some() {
        return Error::unavailable(ENDED);
    }
    Error::new(Kind::from_grpc(status.code().into()), status.message())
}
