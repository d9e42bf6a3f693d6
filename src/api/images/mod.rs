//! Images: list, inspect, pull, push, load, save, import, tag, remove, prune; and the registries' logins.

mod archive;
mod auth;
mod import;
mod inspect;
mod list;
mod pattern;
mod pull;
mod push;
mod remove;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};

use super::params::Params;
use super::{Answer, ApiError, ApiVersion};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::store::Lease;
use crate::task;

pub(super) use auth::session;
pub(super) use inspect::platform;
pub(super) use list::image_summaries;

/// The routes. An image's name may contain slashes, so it is cut out of the rest of the path here.
pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/auth", post(auth::check))
        .route("/images/json", get(list::list))
        .route("/images/create", post(create))
        .route("/images/load", post(archive::load))
        .route("/images/get", get(archive::save_several))
        .route("/images/prune", post(remove::prune))
        .route("/images/{*name}", get(get_image).post(post_image).delete(remove::remove))
        .route("/distribution/{*name}", get(inspect::distribution))
}

async fn get_image(
    State(engine): State<Engine>,
    Extension(version): Extension<ApiVersion>,
    Path(path): Path<String>,
    params: Params,
) -> Answer<Response> {
    match path.rsplit_once('/') {
        Some((name, "json")) => inspect::inspect(engine, name, &params, version).await,
        Some((name, "history")) => inspect::history(engine, name).await,
        Some((name, "get")) => archive::save(engine, vec![name.to_owned()]).await,
        _ => Err(page_not_found()),
    }
}

async fn post_image(
    State(engine): State<Engine>,
    Path(path): Path<String>,
    params: Params,
    headers: HeaderMap,
) -> Answer<Response> {
    match path.rsplit_once('/') {
        Some((name, "push")) => push::push(engine, name, &params, &headers).await,
        Some((name, "tag")) => {
            remove::tag(engine, name, &params).await.map(axum::response::IntoResponse::into_response)
        }
        _ => Err(page_not_found()),
    }
}

/// `POST /images/create`: a pull, or an import when there is a source.
async fn create(State(engine): State<Engine>, params: Params, headers: HeaderMap, body: Body) -> Answer<Response> {
    match (params.text("fromImage"), params.text("fromSrc")) {
        (Some(image), _) => pull::pull(engine, image, &params, &headers).await,
        (None, Some("-")) => import::import(engine, &params, body).await,
        (None, Some(_)) => {
            Err(Error::unsupported("importing from a URL is not supported: download the archive and import the file")
                .into())
        }
        (None, None) => Err(Error::invalid("one of fromImage and fromSrc is required").into()),
    }
}

/// Runs a blocking operation on the images under a lease of its own.
async fn with_lease<T: Send + 'static>(
    engine: &Engine,
    label: &'static str,
    operation: impl FnOnce(&Engine, &Lease) -> Result<T> + Send + 'static,
) -> Result<T> {
    let engine = engine.clone();
    task::blocking(move || {
        let lease = engine.store().lease(label)?;
        operation(&engine, &lease)
    })
    .await
}

/// After a failure for want of space, gives back what the operation took: otherwise nothing else could be done either.
async fn give_back<T>(engine: &Engine, result: Result<T>) -> Result<T> {
    if let Err(error) = &result
        && error.kind() == Kind::Exhausted
    {
        let engine = engine.clone();
        // The failure itself is what matters; the next collection tries again.
        let _ = task::blocking(move || engine.collect()).await;
    }
    result
}

/// moby answers unknown paths and wrong methods alike.
fn page_not_found() -> ApiError {
    Error::not_found("page not found").into()
}

/// Answers with JSON.
fn json(value: impl serde::Serialize) -> Response {
    axum::Json(value).into_response()
}
