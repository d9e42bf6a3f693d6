//! Blobs to servers that have them already, break off, forget, stall and let logins expire.

use std::io::Read;

use super::fake::{Fake, Seen, Trick};
use super::logins::Gate;
use super::*;

/// Plays a list of tricks to the PUTs of uploads, one each, and behaves afterwards.
async fn server(tricks: impl IntoIterator<Item = Trick>) -> Fake {
    let tricks: Mutex<Vec<Trick>> = Mutex::new(tricks.into_iter().collect());
    Fake::with(move |seen| {
        let mut tricks = tricks.lock().unwrap();
        if is_upload(seen) && !tricks.is_empty() { tricks.remove(0) } else { Trick::None }
    })
    .await
}

fn is_upload(seen: &Seen) -> bool {
    seen.method == "PUT" && seen.path.contains("/blobs/uploads/")
}

async fn push(client: &Client, server: &Fake, blob: &Bytes) -> Result<Pushed> {
    client.push_blob(&server.image("a"), &layer(blob), source(blob), &[], &Progress::new()).await
}

fn has(server: &Fake, blob: &Bytes) -> bool {
    server.content().blobs.get(&Digest::of(blob).to_string()) == Some(blob)
}

fn ranges(server: &Fake) -> Vec<String> {
    let seen = server.content().seen.clone();
    seen.iter()
        .filter(|seen| is_upload(seen))
        .map(|seen| seen.header("content-range").unwrap_or("all").to_owned())
        .collect()
}

#[tokio::test]
async fn a_blob_is_uploaded_once() {
    let server = Fake::start().await;
    let (blob, progress) = (noise(3_000_000, 1), Progress::new());
    let (client, image) = (plain(), server.image("a"));
    for expected in [Pushed::Uploaded, Pushed::Exists] {
        let pushed = client.push_blob(&image, &layer(&blob), source(&blob), &[], &progress).await.unwrap();
        assert_eq!((pushed, progress.bytes()), (expected, 3_000_000));
    }
    assert!(has(&server, &blob));
    let methods: Vec<String> = server.content().seen.iter().map(|seen| seen.method.to_string()).collect();
    assert_eq!(methods, ["HEAD", "POST", "PUT", "HEAD"]);
    assert_eq!(server.content().seen[2].header("content-length"), Some("3000000"));
    assert_eq!(push(&client, &server, &Bytes::new()).await.unwrap(), Pushed::Uploaded, "an empty blob is one too");
}

#[tokio::test]
async fn a_blob_of_another_repository_is_mounted() {
    let server = Fake::start().await;
    let blob = noise(1000, 2);
    server.add_blob(&blob);
    let gone = Fake::with(|_| Trick::status(404)).await;
    drop(gone);
    let absent = Fake::with(|seen| if seen.method == "HEAD" { Trick::status(404) } else { Trick::None }).await;
    absent.add_blob(&blob);
    let from = ["other.example/x", &format!("{}/a", absent.host()), &format!("{}/base/image:1", absent.host())];
    let from = from.map(|name| name.parse::<Reference>().unwrap());
    let image = absent.image("a");
    let pushed = plain().push_blob(&image, &layer(&blob), source(&blob), &from, &Progress::new()).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted(from[2].clone()));
    let posts: Vec<String> =
        absent.content().seen.iter().filter(|seen| seen.method == "POST").map(|seen| seen.path.clone()).collect();
    let digest = Digest::of(&blob).to_string().replace(':', "%3A");
    assert_eq!(posts, [format!("/v2/a/blobs/uploads/?mount={digest}&from=base%2Fimage")]);
}

#[tokio::test]
async fn what_cannot_be_mounted_is_uploaded_in_the_place_already_made() {
    let server = Fake::start().await;
    let blob = noise(1000, 3);
    let from = ["x", "y"].map(|name| server.image(name));
    let image = server.image("a");
    let pushed = plain().push_blob(&image, &layer(&blob), source(&blob), &from, &Progress::new()).await.unwrap();
    assert!(pushed == Pushed::Uploaded && has(&server, &blob));
    let methods: Vec<String> = server.content().seen.iter().map(|seen| seen.method.to_string()).collect();
    assert_eq!(methods, ["HEAD", "POST", "POST", "DELETE", "PUT"]);
    assert!(server.content().uploads.is_empty());
}

#[tokio::test]
async fn a_repository_this_user_may_not_read_is_no_obstacle() {
    let gate = Gate::new(99);
    let server = Fake::with(move |seen| match seen.path.contains("secret") {
        true => Trick::error(403, "DENIED"),
        false => gate.play(seen),
    })
    .await;
    let blob = noise(1000, 4);
    let client = as_user(&plain(), server.host(), "user", "hunter2");
    let from = [server.image("secret")];
    let image = server.image("a");
    let pushed = client.push_blob(&image, &layer(&blob), source(&blob), &from, &Progress::new()).await.unwrap();
    assert!(pushed == Pushed::Uploaded && has(&server, &blob));
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_the_registry_has_it() {
    let server = server([Trick::BreakUpload(1_000_000), Trick::BreakUpload(500_000)]).await;
    let blob = noise(3_000_000, 5);
    assert_eq!(push(&plain(), &server, &blob).await.unwrap(), Pushed::Uploaded);
    assert!(has(&server, &blob));
    assert_eq!(ranges(&server), ["all", "1000000-2999999", "1500000-2999999"]);
}

#[tokio::test]
async fn an_upload_whose_answer_got_lost_is_not_sent_again() {
    let server = server([Trick::LoseAnswer]).await;
    let blob = noise(100_000, 6);
    assert_eq!(push(&plain(), &server, &blob).await.unwrap(), Pushed::Uploaded);
    assert!(has(&server, &blob));
    assert_eq!(ranges(&server), ["all"]);
}

#[tokio::test]
async fn a_registry_that_forgot_an_upload_gets_all_of_it_again() {
    let broken = std::sync::atomic::AtomicBool::new(false);
    let server = Fake::with(move |seen| {
        if is_upload(seen) && !broken.swap(true, Ordering::SeqCst) {
            return Trick::BreakUpload(1000);
        }
        // As docker's registry answers when it has part of a request.
        if seen.gets("/blobs/uploads/") { Trick::error(404, "BLOB_UPLOAD_INVALID") } else { Trick::None }
    })
    .await;
    let blob = noise(100_000, 7);
    assert_eq!(push(&plain(), &server, &blob).await.unwrap(), Pushed::Uploaded);
    assert!(has(&server, &blob));
    assert_eq!(ranges(&server), ["all", "all"]);
}

#[tokio::test]
async fn a_registry_that_cannot_go_on_gets_all_of_it_again() {
    let server = server([Trick::BreakUpload(1000), Trick::status(416)]).await;
    let blob = noise(100_000, 8);
    assert_eq!(push(&plain(), &server, &blob).await.unwrap(), Pushed::Uploaded);
    assert!(has(&server, &blob));
    assert_eq!(ranges(&server), ["all", "1000-99999", "all"]);
}

#[tokio::test]
async fn a_login_that_expires_during_a_push_is_renewed() {
    // Each token serves two requests: it runs out in the middle of every blob.
    let gate = Gate::new(2);
    let server = Fake::with(move |seen| gate.play(seen)).await;
    let client = as_user(&plain(), server.host(), "user", "hunter2");
    for seed in 0..5 {
        let blob = noise(1_000_000, 100 + seed);
        assert_eq!(push(&client, &server, &blob).await.unwrap(), Pushed::Uploaded);
        assert!(has(&server, &blob));
    }
    client.push_manifest(&server.image("a"), media_type::OCI_MANIFEST, MANIFEST.into()).await.unwrap();
}

#[tokio::test]
async fn an_upload_to_another_host_takes_no_credentials_along() {
    let storage = server([Trick::BreakUpload(1000)]).await;
    storage.content().uploads.insert("u".to_owned(), bytes::BytesMut::new());
    let place = format!("http://{}/v2/a/blobs/uploads/u", storage.host());
    let registry = Fake::with(move |seen| match (seen.header("authorization"), seen.method.as_str()) {
        (None, _) => Trick::Answer(401, vec![("www-authenticate", "Basic".to_owned())], Bytes::new()),
        (_, "POST") => Trick::Answer(202, vec![("location", place.clone())], Bytes::new()),
        _ => Trick::None,
    })
    .await;
    let client = as_user(&plain(), registry.host(), "user", "hunter2");
    let blob = noise(100_000, 14);
    assert_eq!(push(&client, &registry, &blob).await.unwrap(), Pushed::Uploaded);
    assert!(has(&storage, &blob));
    let methods: Vec<String> = storage.content().seen.iter().map(|seen| seen.method.to_string()).collect();
    assert_eq!(methods, ["PUT", "GET", "PUT"]);
    assert_eq!(storage.count(|seen| seen.header("authorization").is_some()), 0);
}

#[tokio::test]
async fn an_upload_that_stalls_goes_on() {
    let impatient = Patience { stall: Duration::from_millis(300), ..patience() };
    let client = Client::with_patience(Registries::default(), impatient);
    let server = server([Trick::StallUpload(1_000_000)]).await;
    let blob = noise(40_000_000, 9);
    assert_eq!(push(&client, &server, &blob).await.unwrap(), Pushed::Uploaded);
    assert!(has(&server, &blob));
}

#[tokio::test]
async fn an_upload_without_an_answer_is_given_up() {
    let impatient = Patience { stall: Duration::from_millis(100), answer: Duration::from_millis(100), ..patience() };
    let client = Client::with_patience(Registries::default(), impatient);
    let server = Fake::with(|seen| if is_upload(seen) { Trick::StallUpload(usize::MAX) } else { Trick::None }).await;
    let error = push(&client, &server, &noise(1000, 10)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.to_string().ends_with("did not answer within 100ms (gave up after 5 attempts)"), "{error}");
}

#[tokio::test]
async fn a_source_that_fails_ends_the_push_with_its_own_error() {
    let server = Fake::start().await;
    let blob = noise(1_000_000, 11);
    let push = |result: fn(Bytes) -> Result<Box<dyn Read + Send>>| {
        let (image, descriptor, blob) = (server.image("a"), layer(&blob), blob.clone());
        async move {
            let source = move |_| result(blob.clone());
            plain().push_blob(&image, &descriptor, source, &[], &Progress::new()).await.unwrap_err()
        }
    };
    let error = push(|_| Err(Error::not_found("the blob was collected"))).await;
    assert!(error.kind() == Kind::NotFound && error.to_string().ends_with(": the blob was collected"), "{error}");

    let error = push(|blob| Ok(Box::new(Cursor::new(blob.slice(..600_000))))).await;
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().ends_with("the content to push ends after 600000 of 1000000 bytes"), "{error}");

    let error = push(|blob| Ok(Box::new(Cursor::new(vec![7; blob.len()])))).await;
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().ends_with("answered 400 bad request: digest invalid"), "{error}");
}

#[tokio::test]
async fn a_blob_that_is_too_large_for_a_proxy_says_so() {
    let server = Fake::with(|seen| if is_upload(seen) { Trick::status(413) } else { Trick::None }).await;
    let error = push(&plain(), &server, &noise(1000, 12)).await.unwrap_err();
    assert!(error.to_string().contains("does not take 1000 bytes at once"), "{error}");
}

#[tokio::test]
async fn a_registry_that_takes_no_uploads_is_named() {
    let server = Fake::with(|seen| match seen.method.as_str() {
        "POST" => Trick::error(405, "UNSUPPORTED"),
        _ => Trick::None,
    })
    .await;
    let error = push(&plain(), &server, &noise(10, 13)).await.unwrap_err();
    assert!(error.to_string().contains("answered 405 method not allowed: unsupported"), "{error}");
}

#[tokio::test]
async fn pushes_run_in_parallel_up_to_the_limit() {
    let server = Fake::start().await;
    let mut registries = Registries::default();
    registries.transfer.uploads = 3;
    let client = client(registries);
    let image = server.image("a");
    let pushes = (0..20).map(|seed| {
        let blob = noise(200_000, 200 + seed);
        let (client, image) = (client.clone(), image.clone());
        async move { client.push_blob(&image, &layer(&blob), source(&blob), &[], &Progress::new()).await }
    });
    let pushed = futures_util::future::try_join_all(pushes).await.unwrap();
    assert!(pushed.iter().all(|pushed| *pushed == Pushed::Uploaded));
    let content = server.content();
    assert_eq!((content.blobs.len(), content.connections), (20, 3));
}
