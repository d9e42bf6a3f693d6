//! Builds: the BuildKit services on the API's listener, and the upgrades that lead to them.
//!
//! A client reaches the services by HTTP/2 with prior knowledge on the listener itself, or over a connection that it upgrades
//! with `POST /grpc`.

mod attestation;
mod capabilities;
mod classic;
mod container;
mod content;
mod control;
mod convert;
mod exec;
mod failed;
mod gateway;
mod health;
mod history;
mod op_json;
mod running;
pub(super) mod session;
mod trace;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Request, Response, Uri, header};
use axum::response::IntoResponse as _;
use axum::routing::{delete, get, post};
use hyper_util::service::TowerToHyperService;

use self::classic::Classic;
use self::control::Control;
use self::gateway::Gateway;
use self::health::Alive;
use self::running::Builds;
use self::trace::Traces;
use super::Answer;
use super::serve::{Executor, Peer};
use crate::engine::Engine;
use crate::error::Error;
use crate::solver::gateway::Serve;
use crate::types::build::MAX_MESSAGE_BYTES;
use crate::types::build::control_server::ControlServer;
use crate::types::build::frontend::llb_bridge_server::LlbBridgeServer;
use crate::types::build::health::health_server::HealthServer;

/// The routes of builds: the services themselves and the upgrades.
pub(super) fn routes(engine: &Engine) -> Router<Engine> {
    let builds = Builds::new(engine.clock());
    let classic = Classic::new(builds.clone());
    let cancel = classic.clone();
    let services = services(engine, builds);
    let upgraded = services.clone().fallback(unknown).with_state(engine.clone());
    services
        .route("/grpc", post(move |peer, state, request| grpc(upgraded.clone(), peer, state, request)))
        .route("/session", post(session::session))
        .route("/build", post(move |state, params, headers, body| classic.clone().build(state, params, headers, body)))
        .route("/build/cancel", post(move |params| cancel.clone().cancel(params)))
        .route("/failed-steps/{id}", delete(failed::release))
        .route("/failed-steps/{id}/shell", post(failed::shell))
        .route("/failed-steps/{id}/resize", post(failed::resize))
        .route("/failed-steps/{id}/json", get(failed::inspect))
        .route("/failed-steps/{id}/changes", get(failed::changes))
}

fn services(engine: &Engine, builds: Builds) -> Router<Engine> {
    let traces = Traces::new(engine);
    let traced = traces.route();
    let control = Control::new(engine.clone(), builds.clone(), traces);
    let control = ControlServer::new(control).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let gateway = Gateway::new(engine, builds);
    let for_frontends = gateway.clone();
    engine.solver().serve_gateway(Serve::of(move |bridge, line| for_frontends.clone().serve(bridge, line)));
    let gateway = LlbBridgeServer::new(gateway).max_decoding_message_size(MAX_MESSAGE_BYTES);
    Router::new()
        .route_service("/moby.buildkit.v1.Control/{method}", control)
        .route_service("/moby.buildkit.v1.frontend.LLBBridge/{method}", gateway)
        .route_service("/grpc.health.v1.Health/{method}", HealthServer::new(Alive))
        .merge(content::routes(engine))
        .merge(traced)
}

/// `POST /grpc`: the connection becomes HTTP/2 that carries the services alone.
async fn grpc(
    services: Router,
    Extension(peer): Extension<Peer>,
    State(engine): State<Engine>,
    mut request: Request<Body>,
) -> Response<Body> {
    let upgrade = hyper::upgrade::on(&mut request);
    let tasks = engine.tasks().clone();
    let service = TowerToHyperService::new(services.layer(Extension(peer)));
    engine.tasks().spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let stopping = tasks.stopping();
        let builder = hyper::server::conn::http2::Builder::new(Executor::new(tasks));
        tokio::select! {
            // How a connection ends is the client's business.
            _ = builder.serve_connection(upgraded, service) => {}
            () = stopping.cancelled() => {}
        }
    });
    session::switching_protocols("h2c")
}

/// Answers what nobody serves: in gRPC's way, when the caller speaks gRPC, else as moby does.
pub(super) async fn unknown(headers: HeaderMap, uri: Uri) -> Response<Body> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content_type.is_some_and(|value| value.starts_with("application/grpc")) {
        return tonic::Status::unimplemented(format!("this engine does not serve {}", uri.path())).into_http();
    }
    let answer: Answer<()> = Err(Error::not_found("page not found").into());
    answer.into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio_stream::StreamExt as _;
    use tonic::transport::Channel;

    use super::*;
    use crate::api::Server;
    use crate::config::{Config, Environment, Flags, User};
    use crate::filesync::{Files, Filter, Packet};
    use crate::types::build::control_client::ControlClient;
    use crate::types::build::moby::buildkit::secrets::v1::secrets_server::{Secrets, SecretsServer};
    use crate::types::build::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
    use crate::types::build::moby::filesync::v1::file_sync_server::{FileSync, FileSyncServer};
    use crate::types::build::{BytesMessage, InfoRequest, ListWorkersRequest, SolveRequest};

    /// A server of an engine with a root of its own.
    struct World {
        engine: Engine,
        server: Server,
        _root: tempfile::TempDir,
    }

    impl World {
        /// Opens an engine, which only root may do.
        fn open() -> Option<Self> {
            if !rustix::process::geteuid().is_root() {
                return None;
            }
            let root = tempfile::tempdir().unwrap();
            let flags = Flags { root: Some(root.path().to_owned()), ..Flags::default() };
            let config = Config::load(&flags, &Environment::of(User::Root, &[])).unwrap();
            let engine = Engine::open(config).unwrap();
            Some(Self { server: Server::new(engine.clone()), engine, _root: root })
        }

        fn connect(&self, peer: Peer) -> DuplexStream {
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            self.server.connect(theirs, peer);
            ours
        }

        async fn control(&self, peer: Peer) -> ControlClient<Channel> {
            ControlClient::new(channel(self.connect(peer)).await)
        }
    }

    async fn channel(io: DuplexStream) -> Channel {
        let mut io = Some(io);
        let connector = tower::service_fn(move |_: Uri| {
            let io = io.take().map(TokioIo::new);
            async move { io.ok_or_else(|| std::io::Error::other("there is one connection only")) }
        });
        tonic::transport::Endpoint::from_static("http://kiln").connect_with_connector(connector).await.unwrap()
    }

    #[tokio::test]
    async fn privileged_the_services_answer_on_the_listener_itself() {
        let Some(world) = World::open() else { return };
        let mut control = world.control(Peer::Client).await;
        let workers = control.list_workers(ListWorkersRequest::default()).await.unwrap().into_inner();
        assert_eq!(workers.record[0].platforms[0].os, "linux");
        for label in ["executor", "hostname", "network", "snapshotter", "moby.host-gateway-ip"] {
            let label = format!("org.mobyproject.buildkit.worker.{label}");
            assert!(workers.record[0].labels.contains_key(&label), "{label}");
        }
        assert!(!workers.record[0].gc_policy.is_empty());
        let request = SolveRequest { r#ref: "r".into(), frontend: "other.v1".into(), ..SolveRequest::default() };
        let refused = control.solve(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unimplemented, "{refused}");
        assert!(refused.message().contains("other.v1"), "{refused}");
    }

    #[tokio::test]
    async fn privileged_the_services_answer_after_an_upgrade() {
        let Some(world) = World::open() else { return };
        let mut io = world.connect(Peer::Client);
        let request = b"POST /v1.41/grpc HTTP/1.1\r\nHost: kiln\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
        io.write_all(request).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        let info = ControlClient::new(channel(io).await).info(InfoRequest {}).await.unwrap().into_inner();
        assert!(info.buildkit_version.unwrap().version.starts_with('v'));
    }

    #[tokio::test]
    async fn privileged_the_engine_says_that_it_is_alive() {
        use crate::types::build::health::HealthCheckRequest;
        use crate::types::build::health::health_client::HealthClient;
        let Some(world) = World::open() else { return };
        let mut health = HealthClient::new(channel(world.connect(Peer::Client)).await);
        let mut ask = async |service: &str| health.check(HealthCheckRequest { service: service.to_owned() }).await;
        assert_eq!(ask("").await.unwrap().into_inner().status, 1);
        assert_eq!(ask("moby.buildkit.v1.Control").await.unwrap().into_inner().status, 1);
        assert_eq!(ask("other").await.unwrap_err().code(), tonic::Code::NotFound);
    }

    #[tokio::test]
    async fn privileged_a_service_nobody_has_is_refused_in_the_way_of_grpc() {
        let Some(world) = World::open() else { return };
        let channel = channel(world.connect(Peer::Client)).await;
        let mut secrets = crate::types::build::moby::buildkit::secrets::v1::secrets_client::SecretsClient::new(channel);
        let refused = secrets.get_secret(GetSecretRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unimplemented);
        assert!(refused.message().contains("Secrets/GetSecret"), "{refused}");
    }

    struct Vault;

    #[tonic::async_trait]
    impl Secrets for Vault {
        async fn get_secret(
            &self,
            request: tonic::Request<GetSecretRequest>,
        ) -> Result<tonic::Response<GetSecretResponse>, tonic::Status> {
            let data = request.into_inner().id.into_bytes();
            Ok(tonic::Response::new(GetSecretResponse { data }))
        }
    }

    #[tokio::test]
    async fn privileged_a_session_over_messages_hands_out_secrets() {
        let Some(world) = World::open() else { return };
        let service = Router::new()
            .route_service("/moby.buildkit.secrets.v1.Secrets/{method}", SecretsServer::from_arc(Arc::new(Vault)));
        let _serving = serve_session(&world, service, "/moby.buildkit.secrets.v1.Secrets/GetSecret").await;
        let session = world.engine.sessions().get("s1").await.unwrap();
        assert_eq!(session.secret("token").await.unwrap().as_deref(), Some(&b"token"[..]));
        assert_eq!(session.credentials("example.com").await.unwrap(), None, "the method was not announced");
    }

    /// Begins to send files and never does.
    struct Silent(Arc<tokio::sync::Notify>);

    type Nothing = tokio_stream::Pending<Result<Packet, tonic::Status>>;

    #[tonic::async_trait]
    impl FileSync for Silent {
        type DiffCopyStream = Nothing;
        type TarStreamStream = Nothing;

        async fn diff_copy(
            &self,
            _: tonic::Request<tonic::Streaming<Packet>>,
        ) -> Result<tonic::Response<Nothing>, tonic::Status> {
            self.0.notify_one();
            Ok(tonic::Response::new(tokio_stream::pending()))
        }

        async fn tar_stream(
            &self,
            _: tonic::Request<tonic::Streaming<Packet>>,
        ) -> Result<tonic::Response<Nothing>, tonic::Status> {
            Err(tonic::Status::unimplemented("not asked for"))
        }
    }

    #[tokio::test]
    async fn privileged_the_end_of_a_session_ends_what_waits_for_it() {
        let Some(world) = World::open() else { return };
        let asked = Arc::new(tokio::sync::Notify::new());
        let silent = FileSyncServer::new(Silent(Arc::clone(&asked)));
        let service = Router::new().route_service("/moby.filesync.v1.FileSync/{method}", silent);
        let serving = serve_session(&world, service, "/moby.filesync.v1.FileSync/DiffCopy").await;
        let session = world.engine.sessions().get("s1").await.unwrap();
        let waiting =
            tokio::spawn(async move { session.files("context", &Filter::default(), Files::new(1)).await.map(drop) });
        asked.notified().await;
        serving.into_iter().for_each(|task| task.abort());
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Unavailable, "{error}");
        let text = error.to_string();
        assert!(text.contains("broke") || text.contains("ended"), "{text}");
    }

    /// Opens the session `s1` over messages, which serves one method; it lasts until the tasks are aborted.
    async fn serve_session(world: &World, service: Router, method: &str) -> [tokio::task::JoinHandle<()>; 2] {
        let (io, theirs) = tokio::io::duplex(64 << 10);
        let serving = tokio::spawn(async move {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(theirs), TowerToHyperService::new(service)).await);
        });
        let (read, mut write) = tokio::io::split(io);
        let sent =
            tokio_util::io::ReaderStream::new(read).map(|data| BytesMessage { data: data.unwrap_or_default().into() });
        let mut request = tonic::Request::new(sent);
        let metadata = request.metadata_mut();
        metadata.insert("x-docker-expose-session-uuid", "s1".parse().expect("letters"));
        metadata.insert("x-docker-expose-session-grpc-method", method.parse().expect("letters"));
        let opened = world.control(Peer::Client).await.session(request).await;
        let mut received = opened.expect("open a session").into_inner();
        let pumping = tokio::spawn(async move {
            while let Ok(Some(message)) = received.message().await {
                if write.write_all(&message.data).await.is_err() {
                    break;
                }
            }
        });
        [serving, pumping]
    }
}
