//! `/gc`: what a collection would do and why, and doing it. Kiln's own: docker has nothing like it.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::api::Answer;
use crate::engine::Engine;
use crate::error::Result;
use crate::solver::{CacheRecord, PruneFilter};
use crate::store::Kept;
use crate::task;

/// `POST /gc`: applies the policies and removes what nobody needs.
pub(super) async fn collect(State(engine): State<Engine>) -> Answer<Json<Value>> {
    let collected = task::blocking(move || {
        let forgotten = engine.solver().enforce(engine.policies())?;
        let freed = engine.collect()?;
        let records: Vec<String> = forgotten.into_iter().map(|record| record.id).collect();
        Ok(json!({
            "CachesDeleted": records,
            "Blobs": freed.blobs,
            "Snapshots": freed.snapshots,
            "SpaceReclaimed": freed.bytes,
        }))
    });
    Ok(Json(collected.await?))
}

/// `GET /gc`: what would become of everything, and why.
pub(super) async fn why(State(engine): State<Engine>) -> Answer<Json<Value>> {
    let explained = task::blocking(move || explain(&engine));
    Ok(Json(explained.await?))
}

fn explain(engine: &Engine) -> Result<Value> {
    let policies = engine.policies();
    let records = engine.solver().foresee(policies)?;
    let record = |(record, policy): &(CacheRecord, Option<usize>)| {
        json!({
            "ID": record.id,
            "Type": record.kind.as_str(),
            "Description": record.description,
            "Size": record.size_bytes,
            "Removed": policy.is_some(),
            "Why": reason(record, policy.and_then(|number| Some((number, policies.get(number)?))), policies.is_empty()),
        })
    };
    let object = |kept: &Kept| {
        json!({
            "ID": kept.id,
            "Type": kept.what.as_str(),
            "Size": kept.size_bytes,
            "Removed": kept.holders.is_empty(),
            "KeptBy": kept.holders,
        })
    };
    Ok(json!({
        "Records": records.iter().map(record).collect::<Vec<_>>(),
        "Objects": engine.why()?.iter().map(object).collect::<Vec<_>>(),
    }))
}

/// Why a record goes or stays.
fn reason(record: &CacheRecord, policy: Option<(usize, &PruneFilter)>, unlimited: bool) -> String {
    match policy {
        Some((number, policy)) => format!("policy {}: {}", number + 1, words(policy)),
        None if record.in_use => "a build uses it".to_owned(),
        None if unlimited => "nothing goes by itself: there are no policies".to_owned(),
        None if record.shared => "an image is made of it, and the cache is within its limits".to_owned(),
        None => "the cache is within its limits".to_owned(),
    }
}

/// A policy in words.
fn words(policy: &PruneFilter) -> String {
    let PruneFilter { all: _, ids: _, kinds, unused_for, limits } = policy;
    let mut words = Vec::new();
    if !kinds.is_empty() {
        words.push(kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", "));
    }
    words.extend(unused_for.map(|time| format!("not needed for {} h", time.as_secs() / 3600)));
    let mb = |bytes: u64| format!("{} MB", bytes / 1_000_000);
    let amounts = [("more than", limits.max_used), ("less free than", limits.min_free), ("reserved", limits.reserved)];
    words.extend(amounts.iter().filter(|(_, bytes)| *bytes > 0).map(|(what, bytes)| format!("{what} {}", mb(*bytes))));
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::solver::CacheKind;
    use crate::solver::gc::Limits;

    #[test]
    fn policies_are_told_in_words() {
        let policy = PruneFilter {
            kinds: vec![CacheKind::Local, CacheKind::Git],
            unused_for: Some(Duration::from_hours(48)),
            limits: Limits { max_used: 512_000_000, ..Limits::default() },
            ..PruneFilter::default()
        };
        assert_eq!(words(&policy), "source.local, source.git.checkout; not needed for 48 h; more than 512 MB");
    }
}
