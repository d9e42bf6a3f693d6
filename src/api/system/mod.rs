//! `/_ping`, `/version`, and what concerns the engine as a whole.

mod df;
mod gc;
mod info;
mod prune;

use axum::Json;
use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::version::ApiVersion;
use crate::engine::Engine;

/// The routes.
pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/_ping", get(ping).head(ping))
        .route("/version", get(version))
        .route("/info", get(info::info))
        .route("/system/df", get(df::df))
        .route("/build/prune", post(prune::build_prune))
        .route("/gc", get(gc::why).post(gc::collect))
}

/// `GET` and `HEAD /_ping`. `Builder-Version: 2` tells the docker CLI to build with BuildKit.
async fn ping() -> impl IntoResponse {
    let headers = [
        (header::CACHE_CONTROL.as_str(), "no-cache, no-store, must-revalidate"),
        (header::PRAGMA.as_str(), "no-cache"),
        (header::CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"),
        ("builder-version", "2"),
        ("swarm", "inactive"),
    ];
    (headers, "OK")
}

/// `GET /version`.
async fn version() -> Json<Value> {
    let uname = rustix::system::uname();
    let kernel = uname.release().to_string_lossy().into_owned();
    let version = env!("CARGO_PKG_VERSION");
    let arch = kiln_graph::Platform::host().architecture;
    Json(json!({
        "Platform": { "Name": "Kiln" },
        "Version": version,
        "ApiVersion": ApiVersion::NEWEST.to_string(),
        "MinAPIVersion": ApiVersion::OLDEST.to_string(),
        "Os": "linux",
        "Arch": arch,
        "KernelVersion": kernel,
        "Components": [{
            "Name": "Engine",
            "Version": version,
            "Details": {
                "ApiVersion": ApiVersion::NEWEST.to_string(),
                "MinAPIVersion": ApiVersion::OLDEST.to_string(),
                "Arch": arch,
                "Os": "linux",
                "KernelVersion": kernel,
                "Experimental": "false",
            },
        }],
    }))
}
