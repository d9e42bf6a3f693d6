//! `POST /images/create` with `fromImage`: a pull.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::http::HeaderMap;
use axum::response::Response;
use kiln_graph::{Digest, Platform, Reference};

use super::inspect::platform;
use super::{give_back, session};
use crate::api::Answer;
use crate::api::params::Params;
use crate::api::progress::{self, Outbox};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::image::{LayerStage, Policy, Report};
use crate::registry::{Client, Notes};
use crate::task;

/// Pulls one image, or all tags of a repository when neither tag nor digest is named.
pub(super) async fn pull(engine: Engine, image: &str, params: &Params, headers: &HeaderMap) -> Answer<Response> {
    engine.require_root("pulling images")?;
    let name = name(image, params.text("tag"))?;
    let platform = platform(params)?;
    let outbox = Outbox::default();
    let notes = {
        let outbox = outbox.clone();
        Notes::to(move |remark| outbox.status(remark))
    };
    let client = session(&engine, headers, &name, notes);
    let all = name.tag().is_none() && name.digest().is_none();
    let work = {
        let outbox = outbox.clone();
        async move {
            let names = if all { all_tags(&client, &name).await? } else { vec![name.clone()] };
            for name in &names {
                let pulled = pull_one(&engine, &client, name, platform.as_ref(), &outbox).await;
                give_back(&engine, pulled).await?;
            }
            Ok(())
        }
    };
    progress::answer(outbox, work).await
}

/// Puts the two parts of a name together: `tag` may be a digest.
fn name(image: &str, tag: Option<&str>) -> Result<Reference> {
    let name: Reference = image.parse()?;
    Ok(match tag {
        None => name,
        Some(tag) if tag.contains(':') => name.with_digest(tag.parse()?),
        Some(tag) => name.with_tag(tag)?,
    })
}

async fn all_tags(client: &Client, name: &Reference) -> Result<Vec<Reference>> {
    let tags = client.tags(name).await?;
    if tags.is_empty() {
        return Err(Error::not_found(format!("repository {} has no tags", name.familiar())));
    }
    tags.iter().map(|tag| Ok(name.with_tag(tag)?)).collect()
}

async fn pull_one(
    engine: &Engine,
    client: &Client,
    name: &Reference,
    platform: Option<&Platform>,
    outbox: &Outbox,
) -> Result<()> {
    let lease = {
        let store = engine.store().clone();
        task::blocking(move || store.lease("pull")).await?
    };
    let before = known(engine, name).await?;
    let resolved = engine.images().resolve(&lease, name, platform, Policy::Always, client).await?;
    if let Some(platform) = platform
        && platform.rank(&resolved.config.platform()).is_none()
    {
        let found = resolved.config.platform();
        return Err(Error::not_found(format!("{} is offered for {found} only, not for {platform}", name.familiar())));
    }
    let what = name.tag().map_or_else(|| name.familiar(), str::to_owned);
    outbox.status_of(&what, format!("Pulling from {}", short_path(name)));
    engine.images().fetch(&lease, &resolved, client, &report(outbox.clone())).await?;
    if let Some(digest) = resolved.reference.digest() {
        outbox.status(format!("Digest: {digest}"));
    }
    outbox.status(if before == Some(resolved.id) {
        format!("Status: Image is up to date for {}", name.familiar())
    } else {
        format!("Status: Downloaded newer image for {}", name.familiar())
    });
    Ok(())
}

/// The repository without its registry, as docker names it there.
fn short_path(name: &Reference) -> &str {
    name.path()
}

async fn known(engine: &Engine, name: &Reference) -> Result<Option<Digest>> {
    let (root, name) = (engine.root().clone(), name.clone());
    let record = move || root.db().read(|connection| crate::image::record::by_name(connection, &name));
    Ok(task::blocking(record).await?.map(|record| record.id))
}

/// Turns the stages of layers into docker's words. A layer whose blob is here but not its files is unpacked as well.
fn report(outbox: Outbox) -> Report {
    let last: Mutex<HashMap<Digest, LayerStage>> = Mutex::default();
    Arc::new(move |layer, stage| {
        let id = layer.digest.short();
        let before = last.lock().expect("no panic happens while the lock is held").insert(layer.digest, stage);
        match stage {
            LayerStage::Exists | LayerStage::Mounted => outbox.status_of(&id, "Already exists"),
            LayerStage::Waiting => outbox.status_of(&id, "Pulling fs layer"),
            LayerStage::Downloading(bytes) => outbox.count(&id, "Downloading", bytes, layer.size),
            LayerStage::Downloaded => {
                outbox.status_of(&id, "Download complete");
                outbox.status_of(&id, "Extracting");
            }
            LayerStage::Done if before == Some(LayerStage::Exists) => {}
            LayerStage::Done => outbox.status_of(&id, "Pull complete"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_tag_make_a_reference() {
        let digest = Digest::of(b"x");
        for (image, tag, expected) in [
            ("ubuntu", Some("24.04"), "docker.io/library/ubuntu:24.04".to_owned()),
            ("ubuntu:1", None, "docker.io/library/ubuntu:1".to_owned()),
            ("ubuntu", None, "docker.io/library/ubuntu".to_owned()),
            ("a.example/b", Some(&*digest.to_string()), format!("a.example/b@{digest}")),
        ] {
            assert_eq!(name(image, tag).unwrap().to_string(), expected);
        }
        assert!(name("Ubuntu", None).is_err() && name("ubuntu", Some("a b")).is_err());
    }
}
