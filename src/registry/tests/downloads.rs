//! Blobs from servers that break off, lie, stall and recover.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::fake::{Fake, Trick};
use super::*;
use crate::task;

/// Plays a list of tricks to the GETs of blobs, one each, and behaves afterwards.
async fn server(tricks: impl IntoIterator<Item = Trick>) -> Fake {
    let tricks: Mutex<Vec<Trick>> = Mutex::new(tricks.into_iter().collect());
    Fake::with(move |seen| {
        let mut tricks = tricks.lock().unwrap();
        if seen.gets("/blobs/sha256") && !tricks.is_empty() { tricks.remove(0) } else { Trick::None }
    })
    .await
}

/// A sink that calls a function before it takes bytes.
struct Hooked<F>(Memory, F);

impl<F: FnMut() -> Result<()> + Send + 'static> BlobSink for Hooked<F> {
    fn offset(&self) -> u64 {
        self.0.offset()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.1()?;
        self.0.write(bytes)
    }

    fn restart(&mut self) -> Result<()> {
        self.0.restart()
    }

    fn verify(&mut self) -> Result<()> {
        self.0.verify()
    }
}

async fn fetch(client: &Client, server: &Fake, blob: &Bytes) -> Result<Memory> {
    let descriptor = layer(blob);
    client.blob(&server.image("a"), &descriptor, Memory::new(&descriptor), &Progress::new()).await
}

#[tokio::test]
async fn a_blob_arrives_whole_and_is_counted() {
    let server = Fake::start().await;
    let blob = noise(3_000_000, 1);
    server.add_blob(&blob);
    let (descriptor, progress) = (layer(&blob), Progress::new());
    let sink = plain().blob(&server.image("a"), &descriptor, Memory::new(&descriptor), &progress).await.unwrap();
    assert!(sink.bytes == blob && sink.restarts == 0);
    assert_eq!(progress.bytes(), 3_000_000);
}

#[tokio::test]
async fn an_empty_blob_needs_no_request() {
    let server = Fake::start().await;
    let sink = fetch(&plain(), &server, &Bytes::new()).await.unwrap();
    assert!(sink.bytes.is_empty() && server.content().seen.is_empty());
}

#[tokio::test]
async fn a_broken_connection_is_resumed_where_it_broke() {
    let server = server([Trick::Break(1_000_000), Trick::Break(500_000), Trick::Break(1)]).await;
    let blob = noise(3_000_000, 2);
    server.add_blob(&blob);
    let (client, remarks) = with_notes(&plain());
    let sink = fetch(&client, &server, &blob).await.unwrap();
    assert!(sink.bytes == blob && sink.restarts == 0);
    let ranges: Vec<String> =
        server.content().seen.iter().map(|seen| seen.header("range").unwrap_or("none").to_owned()).collect();
    assert_eq!(ranges, ["none", "bytes=1000000-", "bytes=1500000-", "bytes=1500001-"]);
    assert_eq!(server.content().sent, 1_499_999, "the last request fetches the rest and no more");
    let remarks = remarks.lock().unwrap();
    assert!(remarks.len() == 3 && remarks[0].contains("trying again in"), "{remarks:?}");
}

#[tokio::test]
async fn an_interrupted_command_is_resumed_by_the_next() {
    let server = Fake::start().await;
    let blob = noise(300_000, 3);
    server.add_blob(&blob);
    let (descriptor, progress) = (layer(&blob), Progress::new());
    let half = Memory::holding(&blob[..150_000], &descriptor);
    let sink = plain().blob(&server.image("a"), &descriptor, half, &progress).await.unwrap();
    assert!(sink.bytes == blob);
    assert_eq!(server.content().sent, 150_000);
    // All of it there: nothing to fetch, only to check.
    let whole = Memory::holding(&blob, &descriptor);
    plain().blob(&server.image("a"), &descriptor, whole, &progress).await.unwrap();
    assert_eq!((server.content().seen.len(), progress.bytes()), (1, 300_000));
}

#[tokio::test]
async fn a_server_without_ranges_is_put_up_with() {
    let whole = |blob: &Bytes| Trick::Answer(200, Vec::new(), blob.clone());
    let blob = noise(300_000, 4);
    let server = server([Trick::Break(100_000), whole(&blob)]).await;
    server.add_blob(&blob);
    let sink = fetch(&plain(), &server, &blob).await.unwrap();
    assert!(sink.bytes == blob && sink.restarts == 0, "who reads along must not see the start again");
}

#[tokio::test]
async fn wrong_bytes_of_an_earlier_command_are_fetched_again() {
    let server = Fake::start().await;
    let blob = noise(300_000, 5);
    server.add_blob(&blob);
    let descriptor = layer(&blob);
    for wrong in [noise(150_000, 6), noise(400_000, 6), noise(300_000, 6)] {
        let sink = Memory::holding(&wrong, &descriptor);
        let sink = plain().blob(&server.image("a"), &descriptor, sink, &Progress::new()).await.unwrap();
        assert!(sink.bytes == blob && sink.restarts == 1);
    }
}

#[tokio::test]
async fn a_blob_with_another_digest_is_refused_and_named() {
    let (blob, other) = (noise(1000, 7), noise(1000, 8));
    let server = Fake::start().await;
    server.content().blobs.insert(Digest::of(&blob).to_string(), other);
    let error = fetch(&plain(), &server, &blob).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    let text = error.to_string();
    let image = server.image("a").familiar();
    assert!(
        text.contains(&format!("download blob {} of {image}", Digest::of(&blob))) && text.contains("not sha256"),
        "{text}"
    );
    assert_eq!(server.content().seen.len(), 1, "the same server would send the same again");
}

#[tokio::test]
async fn pieces_that_do_not_fit_are_fetched_once_more_in_one() {
    let (blob, other) = (noise(1000, 9), noise(1000, 10));
    let server = server([Trick::Break(500), Trick::Break(100), Trick::Break(100)]).await;
    server.content().blobs.insert(Digest::of(&blob).to_string(), other);
    let error = fetch(&plain(), &server, &blob).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(server.content().seen.len(), 5, "four requests in pieces, then one for the whole");
}

#[tokio::test]
async fn a_server_that_lies_about_the_length_is_refused() {
    let blob = noise(1000, 11);
    for (body, words) in [(noise(999, 11), "the server has 999"), (noise(1001, 11), "the server has 1001")] {
        let server = server([Trick::Answer(200, Vec::new(), body)]).await;
        let error = fetch(&plain(), &server, &blob).await.unwrap_err();
        assert!(error.kind() == Kind::Corrupt && error.to_string().contains(words), "{error}");
    }
    let endless = server([Trick::Endless]).await;
    endless.add_blob(&blob);
    let error = fetch(&plain(), &endless, &blob).await.unwrap_err();
    assert!(error.kind() == Kind::Corrupt && error.to_string().contains("the server sends more"), "{error}");
}

#[tokio::test]
async fn a_server_that_sends_another_part_is_refused() {
    let blob = noise(1000, 12);
    let part = Trick::Answer(206, vec![("content-range", "bytes 900-999/1000".to_owned())], blob.slice(900..));
    let server = server([Trick::Break(500), part]).await;
    server.add_blob(&blob);
    // Once in pieces, then in one.
    let sink = fetch(&plain(), &server, &blob).await.unwrap();
    assert!(sink.bytes == blob && sink.restarts == 1);
}

#[tokio::test]
async fn a_download_that_stalls_is_resumed_and_one_that_never_moves_fails() {
    let impatient = Patience { stall: Duration::from_millis(200), ..patience() };
    let client = Client::with_patience(Registries::default(), impatient);
    let blob = noise(300_000, 13);
    let server = server([Trick::StallAfter(100_000)]).await;
    server.add_blob(&blob);
    assert!(fetch(&client, &server, &blob).await.unwrap().bytes == blob);

    let stuck = Fake::with(|_| Trick::StallAfter(0)).await;
    stuck.add_blob(&blob);
    let error = fetch(&client, &stuck, &blob).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    let text = error.to_string();
    assert!(text.ends_with("(gave up after 5 attempts)") && text.contains("stopped sending"), "{text}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let impatient = Patience { answer: Duration::from_millis(100), ..patience() };
    let client = Client::with_patience(Registries::default(), impatient);
    let server = Fake::with(|_| Trick::Silence).await;
    let error = fetch(&client, &server, &noise(10, 14)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.to_string().contains(&format!("{} did not answer", server.host())), "{error}");
}

#[tokio::test]
async fn attempts_begin_anew_whenever_bytes_arrive() {
    // Twenty breaks with five attempts: every request brings a little.
    let server = server((0..20).map(|_| Trick::Break(10_000))).await;
    let blob = noise(300_000, 15);
    server.add_blob(&blob);
    assert!(fetch(&plain(), &server, &blob).await.unwrap().bytes == blob);
}

#[tokio::test]
async fn a_busy_or_broken_server_is_tried_again_as_it_asks() {
    let wait = vec![("retry-after", "1".to_owned())];
    let server = server([Trick::status(500), Trick::status(503), Trick::Answer(429, wait, Bytes::new())]).await;
    let blob = noise(1000, 16);
    server.add_blob(&blob);
    let before = Instant::now();
    assert!(fetch(&plain(), &server, &blob).await.unwrap().bytes == blob);
    assert!(before.elapsed() >= Duration::from_secs(1), "the server asked for a second");
}

#[tokio::test]
async fn too_many_requests_in_the_end_say_what_to_do() {
    let server = Fake::with(|_| Trick::error(429, "TOOMANYREQUESTS")).await;
    let error = fetch(&plain(), &server, &noise(10, 17)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    let text = error.to_string();
    assert!(text.contains("429 too many requests") && text.contains("kiln login"), "{text}");
}

#[tokio::test]
async fn a_missing_blob_is_named_and_not_asked_for_again() {
    let server = Fake::start().await;
    let blob = noise(10, 18);
    let error = fetch(&plain(), &server, &blob).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    let (digest, host) = (Digest::of(&blob), server.host());
    let expected = format!(
        "download blob {digest} of {host}/a: {host} does not have it, so the image is incomplete there (its publisher should \
         push it again)"
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(server.content().seen.len(), 1);
}

#[tokio::test]
async fn a_sink_that_fails_ends_the_download_with_its_own_error() {
    let server = Fake::start().await;
    let blob = noise(8_000_000, 19);
    server.add_blob(&blob);
    let descriptor = layer(&blob);
    let full = Hooked(Memory::new(&descriptor), || Err(Error::exhausted("no space left on device")));
    let result = plain().blob(&server.image("a"), &descriptor, full, &Progress::new()).await;
    let error = result.map(drop).unwrap_err();
    assert!(error.kind() == Kind::Exhausted && error.to_string().ends_with("no space left on device"), "{error}");
}

#[tokio::test]
async fn a_dropped_download_keeps_what_arrived() {
    struct Kept(Memory, std::sync::mpsc::Sender<Vec<u8>>);
    impl BlobSink for Kept {
        fn offset(&self) -> u64 {
            self.0.offset()
        }
        fn write(&mut self, bytes: &[u8]) -> Result<()> {
            self.0.write(bytes)
        }
        fn restart(&mut self) -> Result<()> {
            self.0.restart()
        }
        fn verify(&mut self) -> Result<()> {
            self.0.verify()
        }
    }
    impl Drop for Kept {
        fn drop(&mut self) {
            let _ = self.1.send(std::mem::take(&mut self.0.bytes));
        }
    }
    let blob = noise(3_000_000, 20);
    let server = server([Trick::StallAfter(2_000_000)]).await;
    server.add_blob(&blob);
    let (sender, receiver) = std::sync::mpsc::channel();
    let (descriptor, progress, client) = (layer(&blob), Progress::new(), plain());
    let image = server.image("a");
    let sink = Kept(Memory::new(&descriptor), sender);
    let arrived = async {
        while progress.bytes() < 2_000_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        _ = client.blob(&image, &descriptor, sink, &progress) => panic!("the server stalls"),
        () = arrived => {}
    }
    let kept = task::blocking(move || Ok(receiver.recv().unwrap())).await.unwrap();
    assert!(kept.len() >= 1_000_000 && blob.starts_with(&kept), "{}", kept.len());
}

#[tokio::test]
async fn no_more_downloads_run_at_once_than_configured() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let server = Fake::start().await;
    let mut registries = Registries::default();
    registries.transfer.downloads = 2;
    let client = client(registries);
    let image = server.image("a");
    let downloads = (0..8).map(|seed| {
        let blob = noise(500_000, 100 + seed);
        server.add_blob(&blob);
        let (client, image, descriptor) = (client.clone(), image.clone(), layer(&blob));
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        let sink = Hooked(Memory::new(&descriptor), move || {
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            now.fetch_sub(1, SeqCst);
            Ok(())
        });
        async move { client.blob(&image, &descriptor, sink, &Progress::new()).await.map(drop) }
    });
    futures_util::future::try_join_all(downloads).await.unwrap();
    assert!(most.load(SeqCst) <= 2, "{}", most.load(SeqCst));
}

#[tokio::test]
async fn a_redirect_to_another_host_takes_no_credentials_along() {
    let storage = Fake::start().await;
    let blob = noise(1000, 21);
    let digest = storage.add_blob(&blob);
    let elsewhere = format!("http://{}/v2/x/blobs/{digest}?signature=1", storage.host());
    let registry = Fake::with(move |seen| match seen.header("authorization") {
        None => Trick::Answer(401, vec![("www-authenticate", "Basic realm=r".to_owned())], Bytes::new()),
        Some(_) => Trick::Answer(307, vec![("location", elsewhere.clone())], Bytes::new()),
    })
    .await;
    let client = as_user(&plain(), registry.host(), "user", "secret");
    assert!(fetch(&client, &registry, &blob).await.unwrap().bytes == blob);
    assert_eq!(registry.count(|seen| seen.header("authorization").is_some()), 1);
    assert_eq!(storage.content().seen.len(), 1);
    assert_eq!(storage.count(|seen| seen.header("authorization").is_some()), 0);
}

#[tokio::test]
async fn redirects_in_a_circle_come_to_an_end() {
    let server = Fake::with(|seen| Trick::Answer(302, vec![("location", seen.path.clone())], Bytes::new())).await;
    let error = fetch(&plain(), &server, &noise(10, 22)).await.unwrap_err();
    assert!(error.to_string().contains("redirected more than 10 times"), "{error}");
}

#[tokio::test]
async fn storage_that_refuses_a_stale_signature_is_asked_again_by_way_of_the_registry() {
    let refusals = AtomicUsize::new(0);
    let storage = Fake::with(move |_| match refusals.fetch_add(1, SeqCst) {
        0 => Trick::status(403),
        _ => Trick::None,
    })
    .await;
    let blob = noise(1000, 23);
    let digest = storage.add_blob(&blob);
    let elsewhere = format!("http://{}/v2/x/blobs/{digest}", storage.host());
    let registry = Fake::with(move |_| Trick::Answer(307, vec![("location", elsewhere.clone())], Bytes::new())).await;
    assert!(fetch(&plain(), &registry, &blob).await.unwrap().bytes == blob);
    assert_eq!(registry.content().seen.len(), 2);
}

#[tokio::test]
async fn two_thousand_requests_use_a_handful_of_connections() {
    let server = Fake::start().await;
    let (client, image, progress) = (plain(), server.image("a"), Progress::new());
    let blob = noise(1000, 24);
    server.add_blob(&blob);
    let descriptor = layer(&blob);
    for _ in 0..200 {
        let ten = (0..10).map(|_| client.blob(&image, &descriptor, Memory::new(&descriptor), &progress));
        futures_util::future::try_join_all(ten).await.unwrap();
    }
    // Every descriptor of the client is a connection, and each has an end at the server.
    let content = server.content();
    assert!(content.connections <= Registries::default().transfer.downloads, "{}", content.connections);
    assert_eq!(content.seen.len(), 2000);
}
