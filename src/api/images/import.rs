//! `POST /images/create` with `fromSrc=-`: an image of a root file system's archive.

use axum::body::Body;
use axum::response::Response;
use kiln_graph::Reference;
use kiln_graph::oci::ImageConfig;

use super::give_back;
use super::inspect::platform;
use crate::api::Answer;
use crate::api::params::Params;
use crate::api::progress::{self, Outbox};
use crate::api::stream::BodyReader;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::image::Imported;
use crate::solver::changes::container_config;
use crate::task::{self, Cancel};

/// Imports the body.
pub(super) async fn import(engine: Engine, params: &Params, body: Body) -> Answer<Response> {
    engine.require_root("importing images")?;
    let mut config = ImageConfig::default();
    let changes: Vec<&str> = params.all("changes").filter(|change| !change.trim().is_empty()).collect();
    if !changes.is_empty() {
        config.config = container_config(&changes)?;
    }
    if let Some(platform) = platform(params)? {
        (config.os, config.architecture, config.variant) = (platform.os, platform.architecture, platform.variant);
    }
    let imported = Imported {
        config,
        message: params.text("message").unwrap_or("Imported from -").to_owned(),
        name: name(params)?,
    };
    let outbox = Outbox::default();
    let work = {
        let outbox = outbox.clone();
        async move {
            let cancel = Cancel::new();
            let _stop = cancel.on_drop();
            let images = engine.images().clone();
            let id = task::blocking(move || {
                let lease = images.store().lease("import")?;
                images.import(&lease, BodyReader::new(body), imported, &cancel)
            });
            outbox.status(give_back(&engine, id.await).await?.to_string());
            Ok(())
        }
    };
    progress::answer(outbox, work).await
}

fn name(params: &Params) -> Result<Option<Reference>> {
    let Some(repository) = params.text("repo") else { return Ok(None) };
    let name: Reference = repository.parse()?;
    if name.digest().is_some() {
        return Err(Error::invalid("cannot import digest reference"));
    }
    Ok(Some(match params.text("tag") {
        Some(tag) => name.with_tag(tag)?,
        None => name.with_default_tag(),
    }))
}
