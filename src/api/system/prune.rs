//! `POST /build/prune`.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::api::Answer;
use crate::api::params::{Filters, Params, point_in_time};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::solver::gc::Limits;
use crate::solver::{CacheKind, PruneFilter};
use crate::task;

const FILTERS: &[&str] = &["id", "type", "until", "unused-for"];

/// `POST /build/prune`.
pub(in crate::api) async fn build_prune(State(engine): State<Engine>, params: Params) -> Answer<Json<Value>> {
    let bytes = |names: &[&str]| names.iter().find_map(|name| params.text(name)).map_or(Ok(0), space);
    let limits = Limits {
        reserved: bytes(&["reserved-space", "keep-storage"])?,
        max_used: bytes(&["max-used-space"])?,
        min_free: bytes(&["min-free-space"])?,
    };
    let filter = filter(&params.filters(FILTERS)?, params.flag("all"), limits, engine.clock().now_ns())?;
    let pruned = task::blocking(move || {
        let pruned = engine.solver().prune(&filter)?;
        let freed = engine.collect()?;
        let ids: Vec<String> = pruned.into_iter().map(|record| record.id).collect();
        let ids = if ids.is_empty() { Value::Null } else { json!(ids) };
        Ok(json!({ "CachesDeleted": ids, "SpaceReclaimed": freed.bytes }))
    });
    Ok(Json(pruned.await?))
}

fn filter(filters: &Filters, all: bool, limits: Limits, now_ns: i64) -> Result<PruneFilter> {
    let kind = |text: &String| CacheKind::parse(text);
    let times = filters.all("until").iter().chain(filters.all("unused-for"));
    let times = times.map(|text| Ok(now_ns.saturating_sub(point_in_time(text, now_ns)?)));
    let unused_ns = times.collect::<Result<Vec<i64>>>()?.into_iter().max();
    Ok(PruneFilter {
        all,
        ids: filters.all("id").to_vec(),
        kinds: filters.all("type").iter().map(kind).collect::<Result<_>>()?,
        unused_for: unused_ns.and_then(|ns| u64::try_from(ns).ok()).map(Duration::from_nanos),
        limits,
    })
}

fn space(text: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::invalid(format!("invalid amount of space {text:?}")))
}
