//! Starting, stopping, waiting for and removing containers.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::Answer;
use crate::api::params::{Params, point_in_time};
use crate::container::Condition;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::task;

/// What most of these answer.
const DONE: StatusCode = StatusCode::NO_CONTENT;

/// `POST /containers/{id}/start`.
pub(super) async fn start(State(engine): State<Engine>, Path(id): Path<String>, body: Bytes) -> Answer<StatusCode> {
    // Settings in the body of a start were removed from docker long ago; `{}` and `null` are still sent.
    const LONGEST: usize = 7;
    if body.len() > LONGEST {
        return Err(Error::invalid(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        )
        .into());
    }
    engine.containers().start(&id).await?;
    Ok(DONE)
}

/// `POST /containers/{id}/stop`.
pub(super) async fn stop(State(engine): State<Engine>, Path(id): Path<String>, params: Params) -> Answer<StatusCode> {
    engine.containers().stop(&id, params.text("signal"), seconds(&params)?).await?;
    Ok(DONE)
}

/// `POST /containers/{id}/restart`.
pub(super) async fn restart(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    params: Params,
) -> Answer<StatusCode> {
    engine.containers().restart(&id, params.text("signal"), seconds(&params)?).await?;
    Ok(DONE)
}

fn seconds(params: &Params) -> Result<Option<i64>> {
    let parse = |text: &str| text.parse().map_err(|_| Error::invalid(format!("invalid number of seconds: {text:?}")));
    params.text("t").map(parse).transpose()
}

/// `POST /containers/{id}/kill`.
pub(super) async fn kill(State(engine): State<Engine>, Path(id): Path<String>, params: Params) -> Answer<StatusCode> {
    engine.containers().kill(&id, params.text("signal").unwrap_or_default()).await?;
    Ok(DONE)
}

/// `POST /containers/{id}/pause`.
pub(super) async fn pause(State(engine): State<Engine>, Path(id): Path<String>) -> Answer<StatusCode> {
    task::blocking(move || engine.containers().pause(&id)).await?;
    Ok(DONE)
}

/// `POST /containers/{id}/unpause`.
pub(super) async fn unpause(State(engine): State<Engine>, Path(id): Path<String>) -> Answer<StatusCode> {
    task::blocking(move || engine.containers().unpause(&id)).await?;
    Ok(DONE)
}

/// `POST /containers/{id}/rename`.
pub(super) async fn rename(State(engine): State<Engine>, Path(id): Path<String>, params: Params) -> Answer<StatusCode> {
    let name = params.text("name").unwrap_or_default().to_owned();
    task::blocking(move || engine.containers().rename(&id, &name)).await?;
    Ok(DONE)
}

/// `POST /containers/{id}/wait`. The header is sent at once: it tells the client that the end cannot be missed any more.
pub(super) async fn wait(State(engine): State<Engine>, Path(id): Path<String>, params: Params) -> Answer<Response> {
    let condition = match params.text("condition") {
        None | Some("not-running") => Condition::NotRunning,
        Some("next-exit") => Condition::NextExit,
        Some("removed") => Condition::Removed,
        Some(other) => return Err(Error::invalid(format!("invalid condition: {other:?}")).into()),
    };
    let waiting = engine.containers().wait(&id, condition).await?;
    let answer = async move {
        let answer = match waiting.outcome().await {
            Ok(outcome) if outcome.error.is_empty() => json!({ "StatusCode": outcome.code }),
            Ok(outcome) => json!({ "StatusCode": outcome.code, "Error": { "Message": outcome.error } }),
            Err(error) => json!({ "StatusCode": -1, "Error": { "Message": error.to_string() } }),
        };
        Ok::<_, std::convert::Infallible>(Bytes::from(format!("{answer}\n")))
    };
    let body = Body::from_stream(futures_util::stream::once(answer));
    let response = Response::builder().header(header::CONTENT_TYPE, "application/json").body(body);
    Ok(response.expect("the response is well formed"))
}

/// `DELETE /containers/{id}`. Volumes of a container's own go with it in any case: nobody else can use them.
pub(super) async fn remove(State(engine): State<Engine>, Path(id): Path<String>, params: Params) -> Answer<StatusCode> {
    if params.flag("link") {
        return Err(Error::unsupported("removing links (--link): not supported by this version of Kiln").into());
    }
    engine.containers().remove(&id, params.flag("force")).await?;
    Ok(DONE)
}

/// `POST /containers/prune`.
pub(super) async fn prune(State(engine): State<Engine>, params: Params) -> Answer<Json<Value>> {
    let filters = params.filters(&["label", "label!", "until"])?;
    let now_ns = engine.clock().now_ns();
    let until = filters.all("until").first().map(|text| point_in_time(text, now_ns)).transpose()?;
    let removed = task::blocking(move || {
        engine.containers().prune(|record| {
            until.is_none_or(|until| record.created_ns < until) && filters.labels(&record.config.labels)
        })
    })
    .await?;
    let (ids, bytes) = removed;
    let ids: Vec<&str> = ids.iter().map(crate::container::record::ContainerId::as_str).collect();
    Ok(Json(json!({ "ContainersDeleted": ids, "SpaceReclaimed": bytes })))
}
