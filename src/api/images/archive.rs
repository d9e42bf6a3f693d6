//! `GET /images/get`, `GET /images/{name}/get` and `POST /images/load`.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use kiln_graph::Reference;

use super::give_back;
use crate::api::Answer;
use crate::api::params::Params;
use crate::api::progress::{self, Outbox};
use crate::api::stream::{BodyReader, download};
use crate::engine::Engine;
use crate::error::Error;
use crate::image::SaveRequest;
use crate::task::{self, Cancel};

/// `GET /images/get?names=...`.
pub(super) async fn save_several(State(engine): State<Engine>, params: Params) -> Answer<Response> {
    let names: Vec<String> = params.all("names").filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.is_empty() {
        return Err(Error::invalid("no image was named: give names=...").into());
    }
    save(engine, names).await
}

/// Answers with an archive of images.
pub(super) async fn save(engine: Engine, images: Vec<String>) -> Answer<Response> {
    download("application/x-tar", move |out, cancel| {
        let lease = engine.store().lease("save")?;
        engine.images().save(&lease, &SaveRequest { images }, out, cancel)
    })
    .await
}

/// `POST /images/load`.
pub(super) async fn load(State(engine): State<Engine>, body: Body) -> Answer<Response> {
    engine.require_root("loading images")?;
    let outbox = Outbox::default();
    let work = {
        let outbox = outbox.clone();
        async move {
            let cancel = Cancel::new();
            let _stop = cancel.on_drop();
            let images = engine.images().clone();
            let loaded = task::blocking(move || {
                let lease = images.store().lease("load")?;
                images.load(&lease, BodyReader::new(body), &cancel)
            });
            for image in give_back(&engine, loaded.await).await? {
                if image.names.is_empty() {
                    outbox.stream(format!("Loaded image ID: {}\n", image.id));
                }
                for name in image.names.iter().map(Reference::familiar) {
                    outbox.stream(format!("Loaded image: {name}\n"));
                }
            }
            Ok(())
        }
    };
    progress::answer(outbox, work).await
}
