//! Mirrors and proxies: who is asked first, and who when that fails.

use super::fake::{Fake, Trick};
use super::*;
use crate::config::{Config, Environment, Flags, User};

/// A client with mirrors for the registry at `domain`.
fn mirrored(domain: &str, mirrors: &[&Fake]) -> Client {
    let mut registries = Registries::default();
    registries.host_mut(domain).mirrors = mirrors.iter().map(|mirror| mirror.host().parse().unwrap()).collect();
    client(registries)
}

fn add_image(server: &Fake) -> Digest {
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST)
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_told_whose_image_it_is() {
    let (registry, mirror) = (Fake::start().await, Fake::start().await);
    add_image(&mirror);
    let blob = noise(1000, 1);
    mirror.add_blob(&blob);
    let (client, image, descriptor) = (mirrored(registry.host(), &[&mirror]), registry.image("a"), layer(&blob));
    assert_eq!(client.resolve(&image).await.unwrap().server, mirror.host());
    client.lookup(&image).await.unwrap();
    client.blob(&image, &descriptor, Memory::new(&descriptor), &Progress::new()).await.unwrap();
    assert!(registry.content().seen.is_empty());
    let told = mirror.count(|seen| seen.query("ns").as_deref() == Some(registry.host()));
    assert_eq!(told, 3);
}

#[tokio::test]
async fn mirrors_that_lack_the_image_lie_or_fail_are_skipped_with_a_note() {
    let (registry, empty, broken) =
        (Fake::start().await, Fake::start().await, Fake::with(|_| Trick::status(500)).await);
    let lying = Fake::start().await;
    let digest = add_image(&registry);
    let wrong = (
        media_type::OCI_MANIFEST.to_owned(),
        Bytes::from_static(b"{\"schemaVersion\":2,\"config\":{},\"layers\":[ ]}"),
    );
    lying.content().manifests.insert(digest.to_string(), wrong);
    let client = mirrored(registry.host(), &[&empty, &broken, &lying]);
    let (client, remarks) = with_notes(&client);
    let image = registry.image("a").with_digest(digest);
    assert_eq!(client.resolve(&image).await.unwrap().server, registry.host());
    let text = remarks.lock().unwrap().join("\n");
    for (mirror, words) in
        [(&empty, "no such digest"), (&broken, "500 internal server error"), (&lying, "has the digest")]
    {
        let line = text.lines().find(|line| line.starts_with(&format!("mirror {} is skipped: ", mirror.host())));
        assert!(line.is_some_and(|line| line.contains(words)), "{text}");
    }
    // The second time only the one that merely lacks the image is asked.
    let before = [&empty, &broken, &lying].map(|mirror| mirror.content().seen.len());
    client.resolve(&image).await.unwrap();
    let after = [&empty, &broken, &lying].map(|mirror| mirror.content().seen.len());
    assert_eq!(after, [before[0] + 1, before[1], before[2]]);
}

#[tokio::test]
async fn a_mirror_that_is_away_is_left_alone_for_a_minute() {
    let (registry, mirror) = (Fake::start().await, Fake::with(|_| Trick::status(502)).await);
    add_image(&registry);
    let (client, image) = (mirrored(registry.host(), &[&mirror]), registry.image("a"));
    for _ in 0..3 {
        client.resolve(&image).await.unwrap();
    }
    assert_eq!(mirror.content().seen.len(), 5, "one request with its attempts");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    client.resolve(&image).await.unwrap();
    assert_eq!(mirror.content().seen.len(), 10);
}

#[tokio::test]
async fn a_blob_begun_at_a_mirror_is_finished_at_the_registry() {
    let breaks = std::sync::atomic::AtomicUsize::new(0);
    let mirror = Fake::with(move |_| match breaks.fetch_add(1, Ordering::SeqCst) {
        0 => Trick::Break(600_000),
        _ => Trick::status(503),
    })
    .await;
    let registry = Fake::start().await;
    let blob = noise(1_000_000, 2);
    mirror.add_blob(&blob);
    registry.add_blob(&blob);
    let (client, descriptor) = (mirrored(registry.host(), &[&mirror]), layer(&blob));
    let sink = Memory::new(&descriptor);
    let sink = client.blob(&registry.image("a"), &descriptor, sink, &Progress::new()).await.unwrap();
    assert!(sink.bytes == blob && sink.restarts == 0);
    assert_eq!(registry.content().seen[0].header("range"), Some("bytes=600000-"));
}

#[tokio::test]
async fn a_mirror_with_wrong_bytes_does_not_spoil_the_blob() {
    let (registry, mirror) = (Fake::start().await, Fake::start().await);
    let blob = noise(1000, 3);
    registry.add_blob(&blob);
    mirror.content().blobs.insert(Digest::of(&blob).to_string(), noise(1000, 4));
    let (client, descriptor) = (mirrored(registry.host(), &[&mirror]), layer(&blob));
    let sink = Memory::new(&descriptor);
    let sink = client.blob(&registry.image("a"), &descriptor, sink, &Progress::new()).await.unwrap();
    assert!(sink.bytes == blob && sink.restarts == 1);
}

#[tokio::test]
async fn a_registrys_credentials_are_not_for_its_mirrors() {
    let basic = || Trick::Answer(401, vec![("www-authenticate", "Basic".to_owned())], Bytes::new());
    let mirror = Fake::with(move |_| basic()).await;
    let registry =
        Fake::with(move |seen| if seen.header("authorization").is_none() { basic() } else { Trick::None }).await;
    add_image(&registry);
    let client = as_user(&mirrored(registry.host(), &[&mirror]), registry.host(), "user", "hunter2");
    client.resolve(&registry.image("a")).await.unwrap();
    assert_eq!(mirror.count(|seen| seen.header("authorization").is_some()), 0);
    assert_eq!(registry.count(|seen| seen.header("authorization").is_some()), 1);
}

#[tokio::test]
async fn pushes_never_go_to_a_mirror() {
    let (registry, mirror) = (Fake::start().await, Fake::start().await);
    let blob = noise(1000, 5);
    let (client, image) = (mirrored(registry.host(), &[&mirror]), registry.image("a"));
    client.push_blob(&image, &layer(&blob), source(&blob), &[], &Progress::new()).await.unwrap();
    client.push_manifest(&image, media_type::OCI_MANIFEST, MANIFEST.into()).await.unwrap();
    assert!(mirror.content().seen.is_empty() && !registry.content().seen.is_empty());
}

#[tokio::test]
async fn requests_go_through_the_proxy_of_the_environment() {
    let proxy = Fake::with(|seen| {
        assert_eq!(seen.header("proxy-authorization"), Some("Basic dXNlcjpwYXNz"));
        Trick::None
    })
    .await;
    add_image(&proxy);
    let url = format!("http://user:pass@{}", proxy.host());
    let variables = [("HTTP_PROXY", url.as_str()), ("KILN_CONFIG", "/dev/null"), ("KILN_ROOT", "/nowhere")];
    let config = Config::load(&Flags::default(), &Environment::of(User::Root, &variables)).unwrap();
    let mut registries = config.registries;
    registries.host_mut("registry.invalid").http = Some(true);
    let resolved = client(registries).resolve(&"registry.invalid/a".parse().unwrap()).await.unwrap();
    assert_eq!(resolved.server, "registry.invalid");
    assert_eq!(proxy.content().seen[0].header("host"), Some("registry.invalid"));
}
