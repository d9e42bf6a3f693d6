//! `GET /images/json`.

use std::collections::HashMap;

use axum::extract::{Extension, State};
use axum::response::Response;
use kiln_graph::oci::{ImageConfig, media_type};
use kiln_graph::{Digest, Reference};
use serde_json::{Value, json};

use super::{json as answer, pattern, with_lease};
use crate::api::params::{Filters, Params, point_in_time};
use crate::api::{Answer, ApiVersion};
use crate::container;
use crate::engine::Engine;
use crate::error::Result;
use crate::image::Summary;
use crate::store::Lease;

const FILTERS: &[&str] = &["before", "dangling", "label", "label!", "reference", "since", "until"];

/// `GET /images/json`.
pub(super) async fn list(
    State(engine): State<Engine>,
    Extension(version): Extension<ApiVersion>,
    params: Params,
) -> Answer<Response> {
    let filters = params.filters(FILTERS)?;
    let shared = params.flag("shared-size");
    let images = with_lease(&engine, "list images", move |engine, lease| {
        let filter = Filter::new(engine, lease, &filters)?;
        let mut images = engine.images().list(lease)?;
        images.retain_mut(|image| filter.keeps(image));
        images.sort_by_key(|image| std::cmp::Reverse(created_ns(&image.config)));
        let shared = if shared { Some(shared_sizes(engine, lease)?) } else { None };
        let users = users(engine, version)?;
        let items = images.iter().map(|image| item(image, version, shared.as_ref(), &users));
        Ok(items.collect::<Vec<Value>>())
    })
    .await?;
    Ok(answer(images))
}

/// Returns what `GET /system/df` tells about images.
pub(in crate::api) fn image_summaries(engine: &Engine, lease: &Lease, version: ApiVersion) -> Result<Vec<Value>> {
    let mut images = engine.images().list(lease)?;
    images.sort_by_key(|image| std::cmp::Reverse(created_ns(&image.config)));
    let shared = shared_sizes(engine, lease)?;
    let users = users(engine, ApiVersion::NEWEST)?;
    Ok(images.iter().map(|image| item(image, version, Some(&shared), &users)).collect())
}

/// How many containers use each image; old clients are told that nobody counted.
fn users(engine: &Engine, version: ApiVersion) -> Result<Option<HashMap<Digest, u64>>> {
    if !version.at_least(51) {
        return Ok(None);
    }
    let mut users: HashMap<Digest, u64> = HashMap::new();
    for record in engine.root().db().read(container::record::all)? {
        *users.entry(record.config.image_id).or_default() += 1;
    }
    Ok(Some(users))
}

/// What of each image other images have as well, in bytes.
fn shared_sizes(engine: &Engine, lease: &Lease) -> Result<HashMap<Digest, u64>> {
    let images = engine.images().list(lease)?;
    let mut times: HashMap<Digest, u32> = HashMap::new();
    for chain in images.iter().flat_map(|image| image.config.rootfs.chain_ids()) {
        *times.entry(chain).or_default() += 1;
    }
    let mut sizes = HashMap::new();
    for image in &images {
        let layers = engine.images().layer_sizes(lease, &image.config)?;
        let shared = image.config.rootfs.chain_ids().into_iter().zip(layers).filter(|(chain, _)| times[chain] > 1);
        sizes.insert(image.record.id, shared.map(|(_, size)| size).sum());
    }
    Ok(sizes)
}

fn item(
    image: &Summary,
    version: ApiVersion,
    shared: Option<&HashMap<Digest, u64>>,
    users: &Option<HashMap<Digest, u64>>,
) -> Value {
    let record = &image.record;
    let mut tags: Vec<String> = record.names.iter().map(Reference::familiar).collect();
    let mut digests: Vec<String> = record.repository_digests.iter().map(Reference::familiar).collect();
    if !version.at_least(43) && tags.is_empty() && digests.is_empty() {
        tags.push("<none>:<none>".to_owned());
        digests.push("<none>@<none>".to_owned());
    }
    let id = record.id.to_string();
    let shared = shared.and_then(|sizes| sizes.get(&record.id)).map_or(json!(-1), |size| json!(size));
    let containers = users.as_ref().map_or(json!(-1), |users| json!(users.get(&record.id).copied().unwrap_or(0)));
    let labels = &image.config.config.labels;
    let mut item = json!({
        "Containers": containers,
        "Created": created_ns(&image.config) / 1_000_000_000,
        "Id": id,
        "Labels": if labels.is_empty() { Value::Null } else { json!(labels) },
        "ParentId": "",
        "RepoDigests": digests,
        "RepoTags": tags,
        "SharedSize": shared,
        "Size": image.size_bytes,
    });
    if !version.at_least(44) {
        item["VirtualSize"] = json!(image.size_bytes);
    }
    if version.at_least(48)
        && let Some(manifest) = record.manifest
    {
        item["Descriptor"] = json!({ "mediaType": media_type::OCI_MANIFEST, "digest": manifest, "size": 0 });
    }
    item
}

/// When an image was made, in nanoseconds since 1970; 0 when it does not say.
pub(super) fn created_ns(config: &ImageConfig) -> i64 {
    let created = config.created.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    created.and_then(|time| i64::try_from(time.as_nanosecond()).ok()).unwrap_or(0)
}

/// What `filters` asks for, with images and times looked up.
struct Filter<'a> {
    filters: &'a Filters,
    dangling: Option<bool>,
    before_ns: Option<i64>,
    since_ns: Option<i64>,
    until_ns: Option<i64>,
}

impl<'a> Filter<'a> {
    fn new(engine: &Engine, lease: &Lease, filters: &'a Filters) -> Result<Self> {
        let times = |key: &str| -> Result<Vec<i64>> {
            let find = |name: &String| Ok(created_ns(&engine.images().find(lease, name)?.config));
            filters.all(key).iter().map(find).collect()
        };
        let until = filters.all("until").iter().map(|text| point_in_time(text, engine.clock().now_ns()));
        Ok(Self {
            filters,
            dangling: filters.flag("dangling")?,
            before_ns: times("before")?.into_iter().min(),
            since_ns: times("since")?.into_iter().max(),
            until_ns: until.collect::<Result<Vec<i64>>>()?.into_iter().min(),
        })
    }

    /// Says whether an image is wanted, and takes away the names that are not.
    fn keeps(&self, image: &mut Summary) -> bool {
        let created = created_ns(&image.config);
        let dangling = image.record.names.is_empty();
        let wanted = self.dangling.is_none_or(|wanted| wanted == dangling)
            && self.before_ns.is_none_or(|time| created < time)
            && self.since_ns.is_none_or(|time| created > time)
            && self.until_ns.is_none_or(|time| created <= time)
            && self.filters.labels(&image.config.config.labels);
        if !wanted || self.filters.all("reference").is_empty() {
            return wanted;
        }
        let asked = |name: &Reference| self.filters.any("reference", |text| pattern::matches_reference(text, name));
        image.record.names.retain(asked);
        image.record.repository_digests.retain(asked);
        !(image.record.names.is_empty() && image.record.repository_digests.is_empty())
    }
}
