//! Containers: create, start, attach, exec, logs, wait, stop, inspect, list, remove.

mod create;
mod exec;
mod inspect;
mod lifecycle;
mod list;
pub(super) mod streams;
mod top;

use axum::Router;
use axum::routing::{delete, get, post};

use crate::engine::Engine;

/// The routes.
pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/containers/create", post(create::create))
        .route("/containers/json", get(list::list))
        .route("/containers/prune", post(lifecycle::prune))
        .route("/containers/{id}", delete(lifecycle::remove))
        .route("/containers/{id}/json", get(inspect::inspect))
        .route("/containers/{id}/start", post(lifecycle::start))
        .route("/containers/{id}/stop", post(lifecycle::stop))
        .route("/containers/{id}/restart", post(lifecycle::restart))
        .route("/containers/{id}/kill", post(lifecycle::kill))
        .route("/containers/{id}/pause", post(lifecycle::pause))
        .route("/containers/{id}/unpause", post(lifecycle::unpause))
        .route("/containers/{id}/rename", post(lifecycle::rename))
        .route("/containers/{id}/wait", post(lifecycle::wait))
        .route("/containers/{id}/attach", post(streams::attach))
        .route("/containers/{id}/resize", post(streams::resize))
        .route("/containers/{id}/logs", get(streams::logs))
        .route("/containers/{id}/top", get(top::top))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/exec/{id}/json", get(exec::inspect))
}

/// A time as docker prints it: RFC 3339 with nanoseconds; what has not happened is the year 1.
fn timestamp(ns: Option<i64>) -> String {
    let time = ns.and_then(|ns| jiff::Timestamp::from_nanosecond(ns.into()).ok());
    time.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |time| time.to_string())
}
