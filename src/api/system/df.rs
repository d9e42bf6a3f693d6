//! `GET /system/df`: what everything takes on the disk.
//!
//! The sums are those of `du`: layers, blobs, containers, build cache and records each count once, whoever shares them.

use std::collections::HashSet;

use axum::Json;
use axum::extract::{Extension, State};
use serde_json::{Value, json};

use crate::api::images::image_summaries;
use crate::api::params::Params;
use crate::api::{Answer, ApiVersion};
use crate::container::record::{Record, State as ContainerState};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::solver::CacheRecord;
use crate::store::Lease;
use crate::task;

const TYPES: &[&str] = &["container", "image", "volume", "build-cache"];

/// `GET /system/df`.
pub(in crate::api) async fn df(
    State(engine): State<Engine>,
    Extension(version): Extension<ApiVersion>,
    params: Params,
) -> Answer<Json<Value>> {
    if let Some(unknown) = params.all("type").find(|kind| !TYPES.contains(kind)) {
        return Err(Error::invalid(format!("unknown object type: {unknown}")).into());
    }
    let wanted: Vec<&'static str> = TYPES
        .iter()
        .copied()
        .filter(|kind| params.all("type").next().is_none() || params.all("type").any(|asked| asked == *kind))
        .collect();
    Ok(Json(task::blocking(move || collect(&engine, version, &wanted)).await?))
}

fn collect(engine: &Engine, version: ApiVersion, wanted: &[&str]) -> Result<Value> {
    let lease = engine.store().lease("system df")?;
    let usage = engine.store().usage()?;
    let mut answer = json!({ "Images": null, "Containers": null, "Volumes": null, "BuildCache": null });
    let layers = usage.blobs + layers_of_images(engine, &lease)?;
    let cache = engine.solver().usage()?;
    let containers = engine.containers().list()?;
    let (mut items, mut written) = (Vec::new(), 0);
    for record in &containers {
        let size = match engine.store().active(&lease, record.layer)? {
            Some(active) => engine.store().active_usage(&active)?,
            None => 0,
        };
        written += size;
        items.push(container(record, size));
    }
    let cached: u64 = cache.iter().filter(|record| !record.shared).map(|record| record.size_bytes).sum();
    if wanted.contains(&"image") {
        answer["LayersSize"] = json!(layers);
        answer["Images"] = json!(image_summaries(engine, &lease, version)?);
    }
    if wanted.contains(&"container") {
        answer["Containers"] = json!(items);
    }
    if wanted.contains(&"volume") {
        answer["Volumes"] = json!([]);
    }
    if wanted.contains(&"build-cache") {
        answer["BuildCache"] = json!(cache.iter().map(build_cache).collect::<Vec<_>>());
        answer["BuilderSize"] = json!(cached);
    }
    // What docker has no word for: the database, transfers, logs, and what the next collection removes.
    if wanted.len() == TYPES.len() {
        answer["OtherSize"] = json!(usage.total().saturating_sub(layers + written + cached));
    }
    Ok(answer)
}

/// What the unpacked layers of all images take, each counted once, in bytes.
fn layers_of_images(engine: &Engine, lease: &Lease) -> Result<u64> {
    let (mut seen, mut sum) = (HashSet::new(), 0);
    for image in engine.images().list(lease)? {
        for chain in image.config.rootfs.chain_ids() {
            if let Some(snapshot) = engine.store().by_chain(lease, &chain)?
                && seen.insert(snapshot.id)
            {
                sum += engine.store().layer_size(snapshot.id)?;
            }
        }
    }
    Ok(sum)
}

fn container(record: &Record, size_bytes: u64) -> Value {
    let state = match record.state {
        ContainerState::Created { .. } => "created",
        ContainerState::Running { .. } => "running",
        ContainerState::Restarting(_) => "restarting",
        ContainerState::Exited(_) => "exited",
    };
    json!({
        "Id": record.id.as_str(),
        "Names": [format!("/{}", record.name)],
        "Image": record.config.image,
        "ImageID": record.config.image_id,
        "Command": record.config.args().join(" "),
        "Created": record.created_ns / 1_000_000_000,
        "State": state,
        "Status": state,
        "SizeRw": size_bytes,
        "Labels": record.config.labels,
        "Mounts": [],
    })
}

fn build_cache(record: &CacheRecord) -> Value {
    let time = |ns: i64| jiff::Timestamp::from_nanosecond(ns.into()).unwrap_or_default().to_string();
    json!({
        "ID": record.id,
        "Parents": null,
        "Type": record.kind.as_str(),
        "Description": record.description,
        "InUse": record.in_use,
        "Shared": record.shared,
        "Size": record.size_bytes,
        "CreatedAt": time(record.created_ns),
        "LastUsedAt": time(record.used_ns),
        "UsageCount": record.uses,
    })
}
