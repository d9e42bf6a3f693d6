//! The Engine API: routes, versions, errors, and the conversion between wire structs and domain types.
//!
//! REST, gRPC (`moby.buildkit.v1`) and the `/grpc` and `/session` upgrades share one router, which any byte stream can be
//! connected to: a socket of a daemon, the socket pair of an engine child, or memory in tests. No behaviour lives here.

mod build;
mod containers;
mod error;
mod serve;
mod system;
mod version;

pub use error::ApiError;
pub use serve::{Peer, Server};
pub use version::ApiVersion;

use axum::Router;
use axum::routing::{any, get, post};

use crate::engine::Engine;
use crate::error::Error;

/// What handlers return: an answer, or an error with its status.
type Answer<T> = Result<T, ApiError>;

/// Builds the router. Paths are without a version: [`Server`] takes it off before.
pub fn router(engine: Engine) -> Router {
    Router::new()
        .route("/_ping", get(system::ping).head(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/session", post(build::session::session))
        .fallback(any(page_not_found))
        .method_not_allowed_fallback(page_not_found)
        .with_state(engine)
}

/// moby answers unknown paths and wrong methods alike.
async fn page_not_found() -> ApiError {
    ApiError::from(Error::not_found("page not found"))
}
