//! What clients do for their builds by their sessions: fetch tokens for registries, and say what becomes of a result.

mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln::types::build::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use kiln::types::build::{SolveRequest, frontend};
use kiln::wire::exporter::{
    ExporterRequest, FINALIZE, FIND, FinalizeExportRequest, FinalizeExportResponse, FindExportersRequest,
    FindExportersResponse,
};
use kiln_graph::Digest;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::json;
use support::Daemon;
use support::base::arch;
use support::frontend::Frontend;
use support::llb::{Llb, mkfile};
use support::session::Methods;
use support::web::{Answer, Web};
use tonic::Status;

const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
const FETCH: &str = "/moby.filesync.v1.Auth/FetchToken";
const AUTHORITY: &str = "/moby.filesync.v1.Auth/GetTokenAuthority";
const VERIFY: &str = "/moby.filesync.v1.Auth/VerifyTokenAuthority";

/// A registry of one image without layers, which wants tokens of a service that it has itself.
fn registry() -> Web {
    let config = json!({ "architecture": arch(), "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } });
    let config = config.to_string();
    let digest = Digest::of(config.as_bytes()).to_string();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": config.len() },
        "layers": [],
    });
    let manifest = manifest.to_string();
    Web::start(move |request| {
        if request.path == "/token" {
            let basic = format!("Basic {}", STANDARD.encode("me:secret"));
            let known = request.header("authorization") == Some(&basic);
            return if known { Answer::new(200, r#"{"token": "good"}"#) } else { Answer::new(401, "") };
        }
        if request.header("authorization") != Some("Bearer good") {
            let host = request.header("host").unwrap_or_default();
            let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"kitchen\"");
            return Answer::new(401, "").header("WWW-Authenticate", &challenge);
        }
        match request.path.as_str() {
            "/v2/app/manifests/1" => Answer::new(200, manifest.as_str()).header("Content-Type", media_type),
            path if path == format!("/v2/app/blobs/{digest}") => Answer::new(200, config.as_str()),
            "/v2/" => Answer::new(200, "{}"),
            _ => Answer::new(404, ""),
        }
    })
}

/// What a client was asked.
#[derive(Debug, Default)]
struct Asked {
    scopes: Vec<String>,
    verified: usize,
    credentials: usize,
}

/// A client that fetches tokens with a key of its own; without one it hands out credentials.
async fn log_in(daemon: &Daemon, id: &str, seed: Option<u8>) -> (Arc<Mutex<Asked>>, tokio::task::JoinHandle<()>) {
    let key = move || Ed25519KeyPair::from_seed_unchecked(&[seed.unwrap_or_default(); 32]).expect("a key");
    let asked: Arc<Mutex<Asked>> = Arc::default();
    let (fetching, verifying, handing) = (Arc::clone(&asked), Arc::clone(&asked), Arc::clone(&asked));
    let methods = Methods::default()
        .unary(CREDENTIALS, move |_: CredentialsRequest| {
            handing.lock().expect("nobody panics with it").credentials += 1;
            Ok(CredentialsResponse { username: "me".into(), secret: "secret".into() })
        })
        .unary(AUTHORITY, move |request: GetTokenAuthorityRequest| {
            assert_eq!(request.salt.len(), 32);
            if seed.is_none() {
                return Err(Status::unavailable("client side tokens disabled"));
            }
            Ok(GetTokenAuthorityResponse { public_key: key().public_key().as_ref().to_vec() })
        })
        .unary(VERIFY, move |request: VerifyTokenAuthorityRequest| {
            verifying.lock().expect("nobody panics with it").verified += 1;
            let signed = [key().sign(&request.payload).as_ref(), &request.payload].concat();
            Ok(VerifyTokenAuthorityResponse { signed })
        })
        .unary(FETCH, move |request: FetchTokenRequest| {
            assert_eq!((request.service.as_str(), request.realm.ends_with("/token")), ("kitchen", true));
            fetching.lock().expect("nobody panics with it").scopes.extend(request.scopes);
            Ok(FetchTokenResponse { token: "good".into(), expires_in: 300, issued_at: 0 })
        });
    (asked, methods.open(daemon, id).await)
}

/// Has a build look an image up whose client has this session.
async fn look_up(daemon: &Daemon, session: &str, image: &str) -> Result<String, Status> {
    let mut client = Frontend::open(daemon, &format!("looks-{session}")).await;
    client.session = session.to_owned();
    let build = client.begin("looks");
    let request = frontend::ResolveImageConfigRequest {
        r#ref: image.to_owned(),
        resolve_mode: "pull".into(),
        ..frontend::ResolveImageConfigRequest::default()
    };
    let request = client.call(request);
    let answer = client.bridge.resolve_image_config(request).await;
    build.abort();
    answer.map(|answer| answer.into_inner().digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_clients_fetch_tokens_and_share_them_with_whom_they_are() {
    let Some(daemon) = Daemon::start() else { return };
    let web = registry();
    let image = format!("{}/app:1", web.host());
    let (first, one) = log_in(&daemon, "first", Some(1)).await;
    look_up(&daemon, "first", &image).await.unwrap();
    let fetched = first.lock().unwrap().scopes.clone();
    assert_eq!(fetched, ["repository:app:pull"]);
    // Somebody with the same credentials proves that, and needs no token of his own.
    let (second, two) = log_in(&daemon, "second", Some(1)).await;
    look_up(&daemon, "second", &image).await.unwrap();
    {
        let asked = second.lock().unwrap();
        assert_eq!((asked.scopes.len(), asked.verified, asked.credentials), (0, 1, 0), "{asked:?}");
    }
    let (third, three) = log_in(&daemon, "third", Some(2)).await;
    look_up(&daemon, "third", &image).await.unwrap();
    assert_eq!(third.lock().unwrap().scopes, ["repository:app:pull"]);
    assert!(!web.asked().iter().any(|asked| asked.contains("/token")), "{:?}", web.asked());
    // A client that fetches none hands out credentials.
    let (fourth, four) = log_in(&daemon, "fourth", None).await;
    look_up(&daemon, "fourth", &image).await.unwrap();
    assert!(fourth.lock().unwrap().credentials > 0);
    assert!(web.asked().iter().any(|asked| asked.contains("/token")), "{:?}", web.asked());
    for session in [one, two, three, four] {
        session.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_client_says_what_becomes_of_a_result() {
    let Some(daemon) = Daemon::start() else { return };
    let told: Arc<Mutex<HashMap<String, String>>> = Arc::default();
    let finalized = Arc::clone(&told);
    let session = Methods::default()
        .unary(FIND, |request: FindExportersRequest| {
            assert!(request.metadata.contains_key("containerimage.config"), "{:?}", request.metadata.keys());
            let attrs = HashMap::from([("name".to_owned(), "found".to_owned())]);
            Ok(FindExportersResponse { exporters: vec![ExporterRequest { r#type: "image".into(), attrs }] })
        })
        .unary(FINALIZE, move |request: FinalizeExportRequest| {
            finalized.lock().unwrap().extend(request.exporter_response);
            Ok(FinalizeExportResponse {})
        });
    let session = session.open(&daemon, "exporting").await;
    let client = Frontend::open(&daemon, "exports").await;
    let solve = async |name: &str, enable_session_exporter: bool| {
        let mut llb = Llb::default();
        let base = llb.busybox();
        let made = llb.file(&base, vec![mkfile("/made", 0o644, "made")]);
        let request = SolveRequest {
            r#ref: name.into(),
            session: "exporting".into(),
            definition: Some(llb.end(&made)),
            enable_session_exporter,
            ..SolveRequest::default()
        };
        client.control.clone().solve(request).await.map(|answer| answer.into_inner().exporter_response)
    };
    assert!(solve("without", false).await.unwrap().is_empty(), "nobody was asked");
    let response = solve("with", true).await.unwrap();
    assert_eq!(response["image.name"], "docker.io/library/found:latest");
    assert_eq!(daemon.cat("found", "/made"), "made");
    assert_eq!(*told.lock().unwrap(), response);
    session.abort();
}
