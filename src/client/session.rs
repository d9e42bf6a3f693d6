//! A session: while it is open, the engine may ask this process for secrets, credentials, SSH agents and a context, and send
//! it files.
//!
//! This side is the gRPC server, over a connection it opened itself with `POST /session`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use http::Method;
use hyper_util::rt::TokioExecutor;
use hyper_util::service::TowerToHyperService;
use tonic::{Request, Response, Status};

use super::content::{self, ContentDir, ContentDirs};
use super::deliver::{self, Delivery, SEND};
use super::forward::{Agents, Uploads};
use super::http::Client;
use super::share::Directories;
use crate::error::{Error, Result};
use crate::task::{Owned, blocking};
use crate::types::build::health::health_check_response::ServingStatus;
use crate::types::build::health::health_server::{Health, HealthServer};
use crate::types::build::health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};
use crate::types::build::moby::buildkit::secrets::v1::secrets_server::{Secrets, SecretsServer};
use crate::types::build::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use crate::types::build::moby::filesync::v1::auth_server::{Auth, AuthServer};
use crate::types::build::moby::filesync::v1::file_sync_server::FileSyncServer;
use crate::types::build::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use crate::types::build::moby::sshforward::v1::ssh_server::SshServer;
use crate::types::build::moby::upload::v1::upload_server::UploadServer;

/// The methods that are always served, as the engine is told them.
const METHODS: &[&str] = &[
    "/grpc.health.v1.Health/Check",
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    "/moby.filesync.v1.Auth/Credentials",
    SEND,
];

/// Those that are served when there is an agent.
const OF_AGENTS: &[&str] = &["/moby.sshforward.v1.SSH/CheckAgent", "/moby.sshforward.v1.SSH/ForwardAgent"];

/// Those that are served when there is something to upload.
const OF_UPLOADS: &[&str] = &["/moby.upload.v1.Upload/Pull"];

/// Those that are served when there are directories.
const OF_DIRECTORIES: &[&str] = &["/moby.filesync.v1.FileSync/DiffCopy"];

/// Looks something up by name; may block.
pub type Lookup<T> = Arc<dyn Fn(&str) -> Result<Option<T>> + Send + Sync>;

/// What the engine may ask for.
#[derive(Clone)]
pub struct Offer {
    /// Secrets by id.
    pub secrets: Lookup<Vec<u8>>,
    /// User name and password (or token) by the registry's host.
    pub credentials: Lookup<(String, String)>,
    /// Where what the engine sends for each exporter of the request goes; `None` for those that send nothing.
    pub outputs: Vec<Option<Delivery>>,
    /// SSH agents.
    pub agents: Agents,
    /// A context that comes in by standard input.
    pub uploads: Uploads,
    /// Directories, by the names the engine is told.
    pub dirs: BTreeMap<String, PathBuf>,
    /// Content stores, by the names the engine is told.
    pub content: BTreeMap<String, ContentDir>,
    /// Names the directory that is built from among those of all clients, so that the engine can keep what it gets of it.
    pub shared_key: String,
}

impl Offer {
    /// Offers secrets and credentials alone.
    #[must_use]
    pub fn new(secrets: Lookup<Vec<u8>>, credentials: Lookup<(String, String)>) -> Self {
        Self {
            secrets,
            credentials,
            outputs: Vec::new(),
            agents: Agents::default(),
            uploads: Uploads::default(),
            dirs: BTreeMap::new(),
            content: BTreeMap::new(),
            shared_key: String::new(),
        }
    }

    fn methods(&self) -> impl Iterator<Item = &'static str> + use<> {
        let agents = if self.agents.0.is_empty() { &[][..] } else { OF_AGENTS };
        let uploads = if self.uploads.is_empty() { &[][..] } else { OF_UPLOADS };
        let dirs = if self.dirs.is_empty() { &[][..] } else { OF_DIRECTORIES };
        let content = if self.content.is_empty() { &[][..] } else { content::METHODS };
        METHODS.iter().chain(agents).chain(uploads).chain(dirs).chain(content).copied()
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer").finish_non_exhaustive()
    }
}

/// An open session; dropping it closes the connection.
#[derive(Debug)]
pub struct Session {
    _serving: Owned<()>,
}

impl Client {
    /// Opens a session under an id of the caller's choice and serves it in the background.
    ///
    /// # Errors
    /// `Unsupported` when the engine has no sessions; `Unavailable` when the connection breaks.
    pub async fn session(&self, id: &str, offer: Offer) -> Result<Session> {
        let mut request = self
            .request(Method::POST, "/session")
            .header("X-Docker-Expose-Session-Uuid", id)
            .header("X-Docker-Expose-Session-Name", "kiln")
            .header("X-Docker-Expose-Session-Sharedkey", &offer.shared_key);
        for method in offer.methods() {
            request = request.header("X-Docker-Expose-Session-Grpc-Method", method);
        }
        let hijacked = self.hijack(request, "h2c", Body::empty()).await?;
        let service = TowerToHyperService::new(services(offer));
        let serving = Owned::spawn(async move {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // The engine closes the connection when it no longer needs it.
            let _ = builder.serve_connection(hijacked.io.into_inner(), service).await;
        });
        Ok(Session { _serving: serving })
    }
}

fn services(mut offer: Offer) -> Router {
    let outputs = Arc::new(std::mem::take(&mut offer.outputs));
    let (agents, uploads) = (offer.agents.clone(), offer.uploads.clone());
    let dirs = Directories(Arc::new(std::mem::take(&mut offer.dirs)));
    let content = ContentDirs(Arc::new(std::mem::take(&mut offer.content)));
    let service = Service(offer);
    let stores = content::METHODS.iter().fold(Router::new(), |router, method| {
        let content = content.clone();
        router.route(method, post(move |request| content.clone().answer(request)))
    });
    stores
        .route_service("/moby.sshforward.v1.SSH/{method}", SshServer::new(agents))
        .route_service("/moby.filesync.v1.FileSync/{method}", FileSyncServer::new(dirs))
        .route_service("/moby.upload.v1.Upload/{method}", UploadServer::new(uploads))
        .route_service("/moby.buildkit.secrets.v1.Secrets/{method}", SecretsServer::new(service.clone()))
        .route_service("/moby.filesync.v1.Auth/{method}", AuthServer::new(service.clone()))
        .route_service("/grpc.health.v1.Health/{method}", HealthServer::new(service))
        .route(SEND, post(move |request| deliver::take(Arc::clone(&outputs), request)))
}

#[derive(Clone, Debug)]
struct Service(Offer);

/// Runs a lookup on the blocking pool: a credential helper may wait for its user.
async fn look_up<T: Send + 'static>(lookup: &Lookup<T>, name: String) -> Result<Option<T>, Status> {
    let lookup = Arc::clone(lookup);
    blocking(move || lookup(&name)).await.map_err(|error| refusal(&error))
}

fn refusal(error: &Error) -> Status {
    Status::new(error.kind().codes().1.into(), error.to_string())
}

#[tonic::async_trait]
impl Secrets for Service {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        match look_up(&self.0.secrets, id.clone()).await? {
            Some(data) => Ok(Response::new(GetSecretResponse { data })),
            None => Err(Status::not_found(format!("secret {id} not found"))),
        }
    }
}

#[tonic::async_trait]
impl Auth for Service {
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        // Nobody's credentials are empty ones, as docker's clients answer.
        let found = look_up(&self.0.credentials, request.into_inner().host).await?;
        let (username, secret) = found.unwrap_or_default();
        Ok(Response::new(CredentialsResponse { username, secret }))
    }

    async fn fetch_token(&self, _: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        Err(Status::unimplemented("this client hands out credentials, not tokens"))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("this client hands out credentials, not tokens"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("this client hands out credentials, not tokens"))
    }
}

#[tonic::async_trait]
impl Health for Service {
    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("only Check is there"))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only Check is there"))
    }
}
