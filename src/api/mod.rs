//! The Engine API: routes, versions, errors, and the conversion between wire structs and domain types.
//!
//! REST, gRPC (`moby.buildkit.v1`) and the `/grpc` and `/session` upgrades share one router, which any byte stream can be
//! connected to: a socket of a daemon, the socket pair of an engine child, or memory in tests. No behaviour lives here.

mod build;
mod containers;
mod error;
mod images;
mod networks;
mod params;
mod progress;
mod serve;
mod stream;
mod system;
mod version;

pub use error::ApiError;
pub use serve::{Peer, Server};
pub use version::ApiVersion;

use axum::Router;
use axum::routing::any;

use crate::engine::Engine;

/// What handlers return: an answer, or an error with its status.
type Answer<T> = Result<T, ApiError>;

/// Builds the router. Paths are without a version: [`Server`] takes it off before.
pub fn router(engine: Engine) -> Router {
    Router::new()
        .merge(system::routes())
        .merge(build::routes(&engine))
        .merge(images::routes())
        .merge(networks::routes())
        .merge(containers::routes())
        .fallback(any(build::unknown))
        .method_not_allowed_fallback(build::unknown)
        .with_state(engine)
}
