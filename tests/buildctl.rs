//! What `buildctl build` does with LLB on its standard input: a session over messages of `Control.Session`, `Solve` of the definition
//! and `Status`, all on one connection that speaks HTTP/2 from its first byte, over a socket and over TCP with mutual TLS.
//!
//! BuildKit's own command is in no package of the distribution.

mod support;

use std::collections::HashMap;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use kiln::client::{Dialer, Endpoint, TlsFiles};
use kiln::types::build::control_client::ControlClient;
use kiln::types::build::moby::buildkit::secrets::v1::secrets_server::{Secrets, SecretsServer};
use kiln::types::build::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use kiln::types::build::{BytesMessage, Exporter, ListWorkersRequest, SolveRequest, StatusRequest, pb};
use prost::Message as _;
use support::Daemon;
use support::certificates::Certificates;
use support::llb::{Llb, mkfile};
use tokio::io::AsyncWriteExt as _;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// The secrets of the client.
struct Vault;

#[tonic::async_trait]
impl Secrets for Vault {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let data = format!("the {}", request.into_inner().id).into_bytes();
        Ok(Response::new(GetSecretResponse { data }))
    }
}

/// Opens a connection as gRPC's clients do.
async fn connect(endpoint: Endpoint) -> ControlClient<Channel> {
    let dialer = std::sync::Arc::new(Dialer::new(endpoint).expect("a dialer"));
    let connector = tower::service_fn(move |_: http::Uri| {
        let dialer = std::sync::Arc::clone(&dialer);
        async move { dialer.open().await.map(TokioIo::new) }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://buildkitd");
    ControlClient::new(endpoint.connect_with_connector(connector).await.expect("reach the daemon"))
}

/// Opens a session that hands out secrets; it lasts until the tasks are aborted.
async fn open_session(control: &mut ControlClient<Channel>, id: &str) -> [tokio::task::JoinHandle<()>; 2] {
    let (io, theirs) = tokio::io::duplex(64 << 10);
    let services = Router::new().route_service("/moby.buildkit.secrets.v1.Secrets/{method}", SecretsServer::new(Vault));
    let serving = tokio::spawn(async move {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(builder.serve_connection(TokioIo::new(theirs), TowerToHyperService::new(services)).await);
    });
    let (read, mut write) = tokio::io::split(io);
    let sent =
        tokio_util::io::ReaderStream::new(read).map(|data| BytesMessage { data: data.unwrap_or_default().into() });
    let mut request = Request::new(sent);
    for (key, value) in [
        ("x-docker-expose-session-uuid", id),
        ("x-docker-expose-session-name", "buildctl"),
        ("x-docker-expose-session-sharedkey", ""),
        ("x-docker-expose-session-grpc-method", "/moby.buildkit.secrets.v1.Secrets/GetSecret"),
    ] {
        request.metadata_mut().insert(key, value.parse().expect("letters"));
    }
    let mut received = control.session(request).await.expect("open a session").into_inner();
    let pumping = tokio::spawn(async move {
        while let Ok(Some(message)) = received.message().await {
            if write.write_all(&message.data).await.is_err() {
                break;
            }
        }
    });
    [serving, pumping]
}

/// Builds what came in on standard input into an image, and returns what the steps were called.
async fn build(mut control: ControlClient<Channel>, stdin: &[u8], image: &str) -> Result<Vec<String>, Status> {
    let definition = pb::Definition::decode(stdin).expect("LLB");
    let workers = control.list_workers(ListWorkersRequest::default()).await?.into_inner().record;
    assert_eq!(workers.len(), 1, "there is one worker");
    let session = format!("session-of-{image}");
    let tasks = open_session(&mut control, &session).await;
    let attrs = HashMap::from([("name".to_owned(), image.to_owned())]);
    let request = SolveRequest {
        r#ref: format!("build-of-{image}"),
        definition: Some(definition),
        session,
        exporters: vec![Exporter { r#type: "image".into(), attrs }],
        ..SolveRequest::default()
    };
    let status = StatusRequest { r#ref: request.r#ref.clone() };
    let mut following = control.clone();
    let (solved, told) = tokio::join!(control.solve(request), async {
        let mut names = Vec::new();
        let mut statuses = following.status(status).await?.into_inner();
        while let Some(status) = statuses.message().await? {
            names.extend(status.vertexes.into_iter().filter(|step| step.completed.is_some()).map(|step| step.name));
        }
        Ok::<_, Status>(names)
    });
    tasks.into_iter().for_each(|task| task.abort());
    solved?;
    told
}

/// Returns LLB as a client prints it: a file, and a process that has a secret.
fn llb(token: &str) -> Vec<u8> {
    let mut llb = Llb::default();
    let base = llb.busybox();
    let made = llb.file(&base, vec![mkfile("/made", 0o644, "by a file action")]);
    let run = llb.exec(&made, "cat /run/token >/said", &[], |exec| {
        let secret = pb::SecretOpt { id: token.into(), mode: 0o400, ..pb::SecretOpt::default() };
        exec.mounts.push(pb::Mount {
            input: -1,
            dest: "/run/token".into(),
            output: -1,
            mount_type: pb::MountType::Secret.into(),
            secret_opt: Some(secret),
            ..pb::Mount::default()
        });
    });
    llb.about(&run[0]).description.insert("llb.customname".into(), "says the secret".into());
    llb.end(&run[0]).encode_to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_llb_on_standard_input_is_built_by_a_socket() {
    let Some(daemon) = Daemon::start() else { return };
    let endpoint: Endpoint = daemon.host.parse().expect("a host");
    let told = build(connect(endpoint.clone()).await, &llb("token"), "piped").await.unwrap();
    assert!(told.iter().any(|name| name == "says the secret"), "{told:?}");
    assert_eq!(daemon.cat("piped", "/said"), "the token");
    assert_eq!(daemon.cat("piped", "/made"), "by a file action");

    let mut broken = pb::Definition::decode(&*llb("token")).expect("LLB");
    broken.def.remove(0);
    let refused = build(connect(endpoint).await, &broken.encode_to_vec(), "broken").await.unwrap_err();
    assert!(refused.message().contains("sha256:"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_llb_on_standard_input_is_built_over_mutual_tls() {
    let Some(certificates) = Certificates::make() else { return };
    let daemon = Daemon::over_tls(&certificates);
    let host = daemon.also("tcp://");
    let path = |name: &str| certificates.path(name).into();
    let files = TlsFiles { ca: path("ca.pem"), pair: Some((path("client.pem"), path("client.key"))) };
    let endpoint = host.parse::<Endpoint>().expect("a host").with_tls(files);
    build(connect(endpoint).await, &llb("password"), "piped").await.unwrap();
    assert_eq!(daemon.cat("piped", "/said"), "the password");
}
