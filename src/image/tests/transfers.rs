//! Pulls and pushes: what they keep when they are interrupted, and what they do not believe.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use kiln_graph::oci::{Descriptor, Manifest, media_type};

use super::*;
use crate::registry::tests::fake::{Fake, Seen, Trick};
use crate::registry::tests::plain;
use crate::store::IngestState;
use crate::store::compression::{Compression, Encoder};

fn quiet() -> Report {
    Arc::new(|_, _| {})
}

/// Puts an image of one layer into a registry: the layer's tar, its blob, and what the configuration says its diff ID is.
fn publish(registry: &Fake, tar: &[u8], blob: &Bytes, diff_id: Digest) {
    let host = Platform::host();
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}},"history":[{{"created_by":"{}"}}]}}"#,
        host.architecture,
        tar.len()
    );
    let config = Bytes::from(config);
    registry.add_blob(&config);
    registry.add_blob(blob);
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::new(media_type::OCI_CONFIG, Digest::of(&config), config.len() as u64),
        layers: vec![Descriptor::new(&format!("{}+gzip", media_type::OCI_LAYER), Digest::of(blob), blob.len() as u64)],
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    };
    registry.add_manifest("1", media_type::OCI_MANIFEST, &serde_json::to_string(&manifest).unwrap());
}

/// A layer with one file, and its blob.
fn layer(content: &[u8]) -> (Vec<u8>, Bytes) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, "data", content).unwrap();
    let tar = builder.into_inner().unwrap();
    let mut encoder = Encoder::new(Vec::new(), Compression::GZIP).unwrap();
    encoder.write_all(&tar).unwrap();
    (tar, encoder.finish().unwrap().into())
}

async fn pull(world: &World, name: &Reference) -> Result<()> {
    let client = plain();
    let resolved = world.images.resolve(&world.lease, name, None, Policy::Always, &client).await?;
    world.images.fetch(&world.lease, &resolved, &client, &quiet()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_where_an_interrupted_command_stopped() {
    let registry = Fake::start().await;
    let (tar, blob) = layer(&noise(3_000_000, 1));
    publish(&registry, &tar, &blob, Digest::of(&tar));
    let world = World::new();
    // What a command that was killed has left.
    let IngestState::Ready(mut ingest) = world.store().ingest(&world.lease, &Digest::of(&blob), None).unwrap() else {
        panic!()
    };
    ingest.write_all(&blob[..2_000_000]).unwrap();
    drop(ingest);
    let name = registry.image("app:1");
    pull(&world, &name).await.unwrap();
    let asked = registry.content().seen.iter().find(|seen| seen.gets(&Digest::of(&blob).to_string())).cloned().unwrap();
    assert_eq!(asked.header("range"), Some("bytes=2000000-"));
    assert_eq!(world.read(&name.to_string(), "data"), Some(noise(3_000_000, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_given_up_leaves_no_image_and_keeps_what_arrived() {
    let (tar, blob) = layer(&noise(3_000_000, 2));
    let digest = Digest::of(&blob).to_string();
    let stalls = digest.clone();
    let registry = Fake::with(move |seen: &Seen| {
        if seen.gets(&stalls) && seen.header("range").is_none() { Trick::StallAfter(1_000_000) } else { Trick::None }
    })
    .await;
    publish(&registry, &tar, &blob, Digest::of(&tar));
    let world = World::new();
    let name = registry.image("app:1");
    {
        let arrived = Arc::new(tokio::sync::Notify::new());
        let told = Arc::clone(&arrived);
        let report: Report = Arc::new(move |_, stage| {
            if matches!(stage, LayerStage::Downloading(bytes) if bytes > 500_000) {
                told.notify_one();
            }
        });
        let client = plain();
        let resolved = world.images.resolve(&world.lease, &name, None, Policy::Always, &client).await.unwrap();
        tokio::select! {
            _ = world.images.fetch(&world.lease, &resolved, &client, &report) => panic!("the registry stalls"),
            () = arrived.notified() => {}
        }
    }
    assert_eq!(world.images.list(&world.lease).unwrap().len(), 0);
    // Once what was given up has ended, the next pull goes on.
    pull(&world, &name).await.unwrap();
    let ranges = registry.count(|seen| seen.gets(&digest) && seen.header("range").is_some());
    assert_eq!(ranges, 1);
    assert_eq!(world.read(&name.to_string(), "data"), Some(noise(3_000_000, 2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_the_configuration_promises_is_refused() {
    let registry = Fake::start().await;
    let (tar, blob) = layer(b"promised");
    let (_, other) = layer(b"something else");
    publish(&registry, &tar, &other, Digest::of(&tar));
    let world = World::new();
    let name = registry.image("app:1");
    let error = pull(&world, &name).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains(&Digest::of(&tar).to_string()), "{error}");
    assert_eq!(world.images.list(&world.lease).unwrap().len(), 0);
    // With the right layer here already, the wrong blob is still not taken for it.
    publish(&registry, &tar, &blob, Digest::of(&tar));
    pull(&world, &name).await.unwrap();
    publish(&registry, &tar, &other, Digest::of(&tar));
    let error = pull(&world, &name).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    let known: Vec<_> =
        world.store().layer_blobs(&Digest::of(&tar)).unwrap().into_iter().map(|form| form.digest).collect();
    assert_eq!(known, [Digest::of(&blob)]);
    assert_eq!(world.read(&name.to_string(), "data"), Some(b"promised".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lies_or_cuts_off_leaves_no_image() {
    let (tar, blob) = layer(&noise(400_000, 4));
    for trick in ["wrong content", "truncated"] {
        let registry = Fake::start().await;
        publish(&registry, &tar, &blob, Digest::of(&tar));
        let lie = match trick {
            "truncated" => blob.slice(..200_000),
            _ => Bytes::from(noise(blob.len(), 5)),
        };
        registry.content().blobs.insert(Digest::of(&blob).to_string(), lie);
        let world = World::new();
        let name = registry.image("app:1");
        let error = pull(&world, &name).await.unwrap_err();
        assert!(error.to_string().contains(&Digest::of(&blob).to_string()), "{trick}: {error}");
        world.assert_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pull_one_image_at_once_and_it_is_downloaded_once() {
    let registry = Fake::start().await;
    let (tar, blob) = layer(&noise(2_000_000, 6));
    publish(&registry, &tar, &blob, Digest::of(&tar));
    let world = World::new();
    let name = registry.image("app:1");
    let pulls = (0..6).map(|_| {
        // Handles of their own, as processes have.
        let images = open(&world.dir.path().join("root"));
        let lease = images.store().lease("another").unwrap();
        let name = name.clone();
        async move {
            let client = plain();
            let resolved = images.resolve(&lease, &name, None, Policy::Always, &client).await?;
            images.fetch(&lease, &resolved, &client, &quiet()).await.map(drop)
        }
    });
    futures_util::future::try_join_all(pulls).await.unwrap();
    assert_eq!(registry.count(|seen| seen.gets(&Digest::of(&blob).to_string())), 1);
    assert_eq!(world.read(&name.to_string(), "data"), Some(noise(2_000_000, 6)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_built_on_a_pulled_one_is_pushed_with_the_layer_as_it_came() {
    let (tar, blob) = layer(&noise(300_000, 7));
    let from = Fake::start().await;
    publish(&from, &tar, &blob, Digest::of(&tar));
    let world = World::new();
    let base = from.image("base:1");
    pull(&world, &base).await.unwrap();
    let snapshot = {
        let base = world.images.find(&world.lease, &base.to_string()).unwrap();
        let active = world.store().prepare(&world.lease, world.images.snapshot(&world.lease, &base).unwrap()).unwrap();
        std::fs::write(active.dir().join("mine"), "mine").unwrap();
        let made = active.commit().unwrap();
        let digests = world.store().layer_digests(made, &Cancel::new()).unwrap();
        world.store().identify(&world.lease, made, &digests).unwrap().id
    };
    let config =
        ImageConfig { os: "linux".to_owned(), architecture: Platform::host().architecture, ..ImageConfig::default() };
    let new = NewImage { config, root: Stack::Here(Some(snapshot)), epoch_ns: None };
    world.images.create(&world.lease, new, &[reference("mine:1")]).unwrap();
    // The base goes, by name and from whoever has it; the image built on it can still be pushed.
    world.images.remove(&base.to_string(), true, |_, _| Ok(None)).unwrap();
    let World { dir, images, lease } = world;
    drop(lease);
    let roots = |connection: &rusqlite::Connection| {
        let mut roots = store::Roots::default();
        images.add_roots(connection, &mut roots).map(|()| roots)
    };
    images.store().collect(std::time::Duration::ZERO, roots).unwrap();
    let lease = images.store().lease("push").unwrap();
    let world = World { dir, images, lease };
    let to = Fake::start().await;
    let image = world.images.find(&world.lease, "mine:1").unwrap();
    let name = to.image("pushed:1");
    world.images.push(&world.lease, &image, &name, Compression::ZSTD, &plain(), &quiet()).await.unwrap();
    assert!(to.content().blobs.contains_key(&Digest::of(&blob).to_string()), "the base's layer as it came");
    let fresh = World::new();
    pull(&fresh, &name).await.unwrap();
    assert_eq!(fresh.read(&name.to_string(), "mine"), Some(b"mine".to_vec()));
    assert_eq!(fresh.read(&name.to_string(), "data"), Some(noise(300_000, 7)));
}
