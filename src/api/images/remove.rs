//! `DELETE /images/{name}`, `POST /images/prune` and `POST /images/{name}/tag`.

use std::collections::HashSet;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use kiln_graph::{Digest, Reference};
use serde_json::{Value, json};

use super::list::created_ns;
use super::{json as answer, with_lease};
use crate::api::Answer;
use crate::api::params::{Filters, Params, point_in_time};
use crate::container::record::user_of_image;
use crate::engine::Engine;
use crate::error::Result;
use crate::image::Removal;
use crate::store::Lease;
use crate::task;

const FILTERS: &[&str] = &["dangling", "label", "label!", "until"];

/// `DELETE /images/{name}`. With `noprune`, what the image was made of stays until the next collection.
pub(super) async fn remove(State(engine): State<Engine>, Path(name): Path<String>, params: Params) -> Answer<Response> {
    let (force, collect) = (params.flag("force"), !params.flag("noprune"));
    let removed = task::blocking(move || {
        let removed = engine.images().remove(&name, force, user_of_image)?;
        if collect {
            engine.collect()?;
        }
        Ok(removed)
    });
    Ok(answer(removals(&removed.await?)))
}

fn removals(removed: &[Removal]) -> Vec<Value> {
    let item = |removal: &Removal| match removal {
        Removal::Untagged(name) => json!({ "Untagged": name }),
        Removal::Deleted(id) => json!({ "Deleted": id }),
    };
    removed.iter().map(item).collect()
}

/// `POST /images/prune`.
pub(super) async fn prune(State(engine): State<Engine>, params: Params) -> Answer<Response> {
    let filters = params.filters(FILTERS)?;
    let pruned = task::blocking(move || {
        let unwanted = {
            let lease = engine.store().lease("prune images")?;
            unwanted(&engine, &lease, &filters)?
        };
        let removed = engine.images().prune(|record| unwanted.contains(&record.id), user_of_image)?;
        let freed = engine.collect()?;
        let removed = if removed.is_empty() { Value::Null } else { json!(removals(&removed)) };
        Ok(json!({ "ImagesDeleted": removed, "SpaceReclaimed": freed.bytes }))
    });
    Ok(answer(pruned.await?))
}

/// The images that a prune is about: those without a name, unless `dangling=false` asks for all.
fn unwanted(engine: &Engine, lease: &Lease, filters: &Filters) -> Result<HashSet<Digest>> {
    let dangling_only = filters.flag("dangling")?.unwrap_or(true);
    let now = engine.clock().now_ns();
    let until: Vec<i64> = filters.all("until").iter().map(|text| point_in_time(text, now)).collect::<Result<_>>()?;
    let images = engine.images().list(lease)?.into_iter().filter(|image| {
        (!dangling_only || image.record.names.is_empty())
            && until.iter().all(|time| created_ns(&image.config) <= *time)
            && filters.labels(&image.config.config.labels)
    });
    Ok(images.map(|image| image.record.id).collect())
}

/// `POST /images/{name}/tag?repo=...&tag=...`.
pub(super) async fn tag(engine: Engine, image: &str, params: &Params) -> Answer<StatusCode> {
    let name: Reference = params.text("repo").unwrap_or_default().parse()?;
    let name = match params.text("tag") {
        Some(tag) => name.with_tag(tag)?,
        None => name,
    };
    let image = image.to_owned();
    with_lease(&engine, "tag image", move |engine, _| engine.images().tag(&image, &name)).await?;
    Ok(StatusCode::CREATED)
}
