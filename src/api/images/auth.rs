//! Who asks a registry: `X-Registry-Auth` of requests, and `POST /auth`.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use kiln_graph::Reference;
use serde_json::{Value, json};

use crate::api::Answer;
use crate::engine::Engine;
use crate::error::Error;
use crate::registry::{AuthConfig, Client, Notes, Provider};

const HEADER: &str = "X-Registry-Auth";

/// Returns the registry client with the credentials a request carries for an image's registry. Without any, or with what is not
/// understood, nobody is logged in: moby does likewise.
pub(in crate::api) fn session(engine: &Engine, headers: &HeaderMap, name: &Reference, notes: Notes) -> Client {
    let credentials = headers.get(HEADER).and_then(|value| decode(value.as_bytes())?.credentials().ok()?);
    let provider = credentials.map(|credentials| Provider::one(name.domain(), credentials));
    engine.registry().session(provider.unwrap_or_else(Provider::anonymous), notes)
}

fn decode(header: &[u8]) -> Option<AuthConfig> {
    // Some clients use the alphabet of ordinary base64.
    let bytes = URL_SAFE.decode(header).or_else(|_| STANDARD.decode(header)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// `POST /auth`.
pub(super) async fn check(State(engine): State<Engine>, Json(auth): Json<AuthConfig>) -> Answer<Json<Value>> {
    let server = if auth.serveraddress.is_empty() { "docker.io" } else { &auth.serveraddress };
    let credentials = auth.credentials()?.ok_or_else(|| Error::invalid("no user name and no password given"))?;
    let logged_in = engine.registry().check_login(server, &credentials).await?;
    let token = logged_in.identity_token.as_ref().map_or("", |token| token.expose());
    Ok(Json(json!({ "Status": "Login Succeeded", "IdentityToken": token })))
}
