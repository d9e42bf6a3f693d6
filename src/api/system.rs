//! `/_ping`, `/version` and `/info`.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::Answer;
use super::version::ApiVersion;
use crate::engine::Engine;

/// `GET` and `HEAD /_ping`. `Builder-Version: 2` tells the docker CLI to build with BuildKit.
pub(super) async fn ping() -> impl IntoResponse {
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
pub(super) async fn version() -> Json<Value> {
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

/// `GET /info`.
pub(super) async fn info(State(engine): State<Engine>) -> Answer<Json<Value>> {
    let uname = rustix::system::uname();
    Ok(Json(json!({
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "OSType": "linux",
        "OperatingSystem": "Linux",
        "Architecture": uname.machine().to_string_lossy(),
        "KernelVersion": uname.release().to_string_lossy(),
        "Name": uname.nodename().to_string_lossy(),
        "DockerRootDir": engine.root().path(),
        "Swarm": { "LocalNodeState": "inactive" },
        "IndexServerAddress": "https://index.docker.io/v1/",
    })))
}
