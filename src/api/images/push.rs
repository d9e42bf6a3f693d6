//! `POST /images/{name}/push`.

use std::sync::Arc;

use axum::http::HeaderMap;
use axum::response::Response;
use kiln_graph::Reference;
use serde_json::json;

use super::inspect::{check_platform, platform};
use super::session;
use crate::api::Answer;
use crate::api::params::Params;
use crate::api::progress::{self, Outbox};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::image::{LayerStage, Report, record};
use crate::registry::{Client, Notes};
use crate::store::compression::Compression;
use crate::task;
use crate::types::Progress;

/// Pushes one tag, or all that are here when none is named.
pub(super) async fn push(engine: Engine, name: &str, params: &Params, headers: &HeaderMap) -> Answer<Response> {
    let mut name: Reference = name.parse()?;
    if let Some(tag) = params.text("tag") {
        name = name.with_tag(tag)?;
    }
    if name.digest().is_some() {
        return Err(Error::invalid("cannot push a digest reference").into());
    }
    let platform = platform(params)?;
    let outbox = Outbox::default();
    let notes = {
        let outbox = outbox.clone();
        Notes::to(move |remark| outbox.status(remark))
    };
    let client = session(&engine, headers, &name, notes);
    let tags = tags(&engine, &name).await?;
    let work = {
        let outbox = outbox.clone();
        async move {
            outbox.status(format!("The push refers to repository [{}]", name.repository()));
            for tag in &tags {
                push_one(&engine, &client, tag, platform.as_ref(), &outbox).await?;
            }
            Ok(())
        }
    };
    progress::answer(outbox, work).await
}

async fn tags(engine: &Engine, name: &Reference) -> Result<Vec<Reference>> {
    if name.tag().is_some() {
        return Ok(vec![name.clone()]);
    }
    let (root, repository) = (engine.root().clone(), name.repository());
    let records = task::blocking(move || root.db().read(record::all)).await?;
    let names = records.into_iter().flat_map(|record| record.names);
    let mut tags: Vec<Reference> = names.filter(|known| known.repository() == repository).collect();
    tags.sort();
    if tags.is_empty() {
        let (repository, familiar) = (name.repository(), name.familiar_repository());
        return Err(Error::not_found(format!(
            "An image does not exist locally with the tag: {repository} (tag one with `kiln tag IMAGE {familiar}`)"
        )));
    }
    Ok(tags)
}

async fn push_one(
    engine: &Engine,
    client: &Client,
    name: &Reference,
    platform: Option<&kiln_graph::Platform>,
    outbox: &Outbox,
) -> Result<()> {
    let (lease, image) = {
        let (images, wanted) = (engine.images().clone(), name.to_string());
        let found = task::blocking(move || {
            let lease = images.store().lease("push")?;
            let image = images.find(&lease, &wanted)?;
            Ok((lease, image))
        });
        found.await.map_err(|error| missing(error, name))?
    };
    check_platform(&name.familiar(), &image, platform)?;
    let report = report(outbox.clone());
    let pushed = engine.images().push(&lease, &image, name, Compression::GZIP, client, &report).await?;
    let tag = name.tag().unwrap_or_default();
    let (digest, size) = (pushed.manifest.digest, pushed.manifest.size);
    outbox.status(format!("{tag}: digest: {digest} size: {size}"));
    let aux = json!({ "Tag": tag, "Digest": digest, "Size": size });
    outbox.send(Progress { aux: Some(aux), ..Progress::default() });
    Ok(())
}

fn missing(error: Error, name: &Reference) -> Error {
    if error.kind() != crate::error::Kind::NotFound {
        return error;
    }
    Error::not_found(format!("An image does not exist locally with the tag: {}", name.familiar()))
}

fn report(outbox: Outbox) -> Report {
    Arc::new(move |layer, stage| {
        let id = layer.digest.short();
        match stage {
            LayerStage::Exists => outbox.status_of(&id, "Layer already exists"),
            LayerStage::Mounted => outbox.status_of(&id, "Mounted from another repository"),
            LayerStage::Waiting => outbox.status_of(&id, "Preparing"),
            LayerStage::Downloading(bytes) => outbox.count(&id, "Pushing", bytes, layer.size),
            LayerStage::Downloaded => {}
            LayerStage::Done => outbox.status_of(&id, "Pushed"),
        }
    })
}
