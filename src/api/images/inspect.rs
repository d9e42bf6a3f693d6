//! `GET /images/{name}/json`, its `history`, and what a registry says about a name.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use kiln_graph::oci::{Index, media_type};
use kiln_graph::{Platform, Reference};
use serde_json::{Value, json};

use super::list::created_ns;
use super::{json as answer, session, with_lease};
use crate::api::params::Params;
use crate::api::{Answer, ApiVersion};
use crate::engine::Engine;
use crate::error::{Error, Result, ResultExt as _};
use crate::image::{Image, Layer};
use crate::registry::Notes;
use crate::store::Lease;

/// `GET /images/{name}/json`.
pub(super) async fn inspect(engine: Engine, name: &str, params: &Params, version: ApiVersion) -> Answer<Response> {
    let name = name.to_owned();
    let platform = platform(params)?;
    let image = with_lease(&engine, "inspect image", move |engine, lease| {
        let image = engine.images().find(lease, &name)?;
        check_platform(&name, &image, platform.as_ref())?;
        describe(engine, lease, image, version)
    })
    .await?;
    Ok(answer(image))
}

/// Reads the platform of a request: `os/arch[/variant]`, or JSON as newer clients send it.
pub(in crate::api) fn platform(params: &Params) -> Result<Option<Platform>> {
    let Some(text) = params.text("platform") else { return Ok(None) };
    let platform: Platform = if text.starts_with('{') {
        serde_json::from_str::<Platform>(text).context(|| "read the platform")?.normalized()
    } else {
        text.parse().context(|| "read the platform")?
    };
    Ok(Some(platform))
}

/// Makes sure that an image that is here is the one of the wanted platform.
pub(super) fn check_platform(name: &str, image: &Image, wanted: Option<&Platform>) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    let found = image.config.platform();
    if wanted.rank(&found).is_some() {
        return Ok(());
    }
    Err(Error::not_found(format!("image {name} is here for {found}, not for {wanted}")))
}

fn describe(engine: &Engine, lease: &Lease, image: Image, version: ApiVersion) -> Result<Value> {
    let is_whole = engine.images().is_whole(lease, &image)?;
    let summary = engine.images().summary(lease, image)?;
    let (record, config) = (&summary.record, &summary.config);
    let familiar = |names: &[Reference]| names.iter().map(Reference::familiar).collect::<Vec<_>>();
    let tagged = jiff::Timestamp::from_nanosecond(record.added_ns.into()).unwrap_or_default();
    let mut value = json!({
        "Id": record.id,
        "RepoTags": familiar(&record.names),
        "RepoDigests": familiar(&record.repository_digests),
        "Parent": "",
        "Comment": config.history.last().map_or("", |entry| entry.comment.as_str()),
        "Created": config.created,
        "DockerVersion": "",
        "Author": config.author,
        "Config": config.config,
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": summary.size_bytes,
        "GraphDriver": { "Name": engine.store().driver().to_string(), "Data": null },
        "RootFS": { "Type": "layers", "Layers": config.rootfs.diff_ids },
        "Metadata": { "LastTagTime": tagged.to_string() },
    });
    if !is_whole {
        // A field of our own: containers need its layers, which a pull brings.
        value["LayersMissing"] = json!(true);
    }
    if !config.variant.is_empty() {
        value["Variant"] = json!(config.variant);
    }
    if !version.at_least(44) {
        value["VirtualSize"] = json!(summary.size_bytes);
    }
    if version.at_least(48)
        && let Some(digest) = record.manifest
    {
        value["Descriptor"] = json!({ "mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 0 });
    }
    Ok(value)
}

/// `GET /images/{name}/history`, newest first.
pub(super) async fn history(engine: Engine, name: &str) -> Answer<Response> {
    let name = name.to_owned();
    let entries = with_lease(&engine, "history of image", move |engine, lease| {
        let image = engine.images().find(lease, &name)?;
        let created = created_ns(&image.config);
        let mut entries: Vec<Value> =
            engine.images().history(lease, &image)?.iter().map(|layer| entry(layer, created)).collect();
        entries.reverse();
        if let Some(newest) = entries.first_mut() {
            newest["Id"] = json!(image.record.id);
            newest["Tags"] = json!(image.record.names.iter().map(Reference::familiar).collect::<Vec<_>>());
        }
        Ok(entries)
    })
    .await?;
    Ok(answer(entries))
}

fn entry(layer: &Layer, image_ns: i64) -> Value {
    let created = layer.history.created.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    json!({
        "Id": "<missing>",
        "Created": created.map_or(image_ns / 1_000_000_000, jiff::Timestamp::as_second),
        "CreatedBy": layer.history.created_by,
        "Tags": null,
        "Size": layer.size_bytes,
        "Comment": layer.history.comment,
    })
}

/// `GET /distribution/{name}/json`: which manifest a registry has under a name, and for which platforms.
pub(super) async fn distribution(
    State(engine): State<Engine>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Answer<Response> {
    let Some((name, "json")) = path.rsplit_once('/') else {
        return Err(super::page_not_found());
    };
    let name = name.parse::<Reference>()?.with_default_tag();
    let client = session(&engine, &headers, &name, Notes::none());
    let found = client.resolve(&name).await?;
    let platforms: Vec<Platform> = if media_type::is_index(&found.descriptor.media_type) {
        let index: Index = serde_json::from_slice(&found.content).context(|| "read the index")?;
        index.manifests.into_iter().filter_map(|manifest| manifest.platform).filter(|p| p.os != "unknown").collect()
    } else {
        let lease = engine.store().lease("inspect at registry")?;
        let images = engine.images();
        let resolved = images.resolve(&lease, &name, None, crate::image::Policy::Always, &client).await;
        vec![resolved?.config.platform()]
    };
    Ok(answer(json!({ "Descriptor": found.descriptor, "Platforms": platforms })))
}
