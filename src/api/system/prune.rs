//! `POST /build/prune`.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::api::Answer;
use crate::api::params::{Filters, Params, point_in_time};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::solver::{CacheKind, PruneFilter};
use crate::task;

const FILTERS: &[&str] = &["id", "type", "until", "unused-for"];

/// `POST /build/prune`.
pub(in crate::api) async fn build_prune(State(engine): State<Engine>, params: Params) -> Answer<Json<Value>> {
    if params.text("min-free-space").is_some_and(|text| text != "0") {
        return Err(Error::unsupported("pruning up to an amount of free space is not supported yet").into());
    }
    let keep = ["max-used-space", "reserved-space", "keep-storage"].iter().find_map(|name| params.text(name));
    let filter = filter(&params.filters(FILTERS)?, params.flag("all"), keep, engine.clock().now_ns())?;
    let pruned = task::blocking(move || {
        let pruned = engine.solver().prune(&filter)?;
        let freed = engine.collect()?;
        let ids: Vec<String> = pruned.into_iter().map(|record| record.id).collect();
        let ids = if ids.is_empty() { Value::Null } else { json!(ids) };
        Ok(json!({ "CachesDeleted": ids, "SpaceReclaimed": freed.bytes }))
    });
    Ok(Json(pruned.await?))
}

fn filter(filters: &Filters, all: bool, keep: Option<&str>, now_ns: i64) -> Result<PruneFilter> {
    let kind = |text: &String| CacheKind::parse(text);
    let times = filters.all("until").iter().chain(filters.all("unused-for"));
    let times = times.map(|text| Ok(now_ns.saturating_sub(point_in_time(text, now_ns)?)));
    let unused_ns = times.collect::<Result<Vec<i64>>>()?.into_iter().max();
    let keep =
        keep.map(|text| text.parse::<u64>().map_err(|_| Error::invalid(format!("invalid amount of space {text:?}"))));
    Ok(PruneFilter {
        all,
        ids: filters.all("id").to_vec(),
        kinds: filters.all("type").iter().map(kind).collect::<Result<_>>()?,
        unused_for: unused_ns.and_then(|ns| u64::try_from(ns).ok()).map(Duration::from_nanos),
        keep_bytes: keep.transpose()?.filter(|bytes| *bytes > 0),
    })
}
