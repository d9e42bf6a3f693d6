//! Sessions: what a client offers to its builds while they run: secrets and credentials.
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
use tokio::sync::Notify;
use tonic::Code;
use tonic::transport::Channel;

use crate::error::{Error, Kind, Result};

/// How long a build waits for the session it names.
const PATIENCE: Duration = Duration::from_secs(10);

/// The largest secret; BuildKit's limit.
const MAX_SECRET: usize = 500 << 10;

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
}

fn from_status(status: &tonic::Status) -> Error {
    Error::new(Kind::from_grpc(status.code().into()), status.message())
}
