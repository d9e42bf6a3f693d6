//! Builds: the BuildKit services on the API's listener, and the upgrades that lead to them.
//!
//! A client reaches the services by HTTP/2 with prior knowledge on the listener itself, or over a connection that it upgrades
//! with `POST /grpc`.

mod control;
mod convert;
mod running;
pub(super) mod session;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Request, Response, Uri, header};
use axum::response::IntoResponse as _;
use axum::routing::post;
use hyper_util::service::TowerToHyperService;

use self::control::Control;
use super::Answer;
use super::serve::{Executor, Peer};
use crate::engine::Engine;
use crate::error::Error;
use crate::types::build::MAX_MESSAGE_BYTES;
use crate::types::build::control_server::ControlServer;

/// The routes of builds: the services themselves and the upgrades.
pub(super) fn routes(engine: &Engine) -> Router<Engine> {
    let services = services(engine);
    let upgraded = services.clone().fallback(unknown).with_state(engine.clone());
    services
        .route("/grpc", post(move |peer, state, request| grpc(upgraded.clone(), peer, state, request)))
        .route("/session", post(session::session))
}

fn services(engine: &Engine) -> Router<Engine> {
    let control = ControlServer::new(Control::new(engine.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES);
    Router::new().route_service("/moby.buildkit.v1.Control/{method}", control)
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
