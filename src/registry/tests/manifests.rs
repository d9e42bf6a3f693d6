//! Resolving names, and documents that are not what they should be.

use super::fake::{Fake, Trick};
use super::*;

const INDEX: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

async fn sending(media_type: &str, body: impl Into<Bytes>) -> Fake {
    let (media_type, body) = (media_type.to_owned(), body.into());
    Fake::with(move |_| Trick::Answer(200, vec![("content-type", media_type.clone())], body.clone())).await
}

async fn resolve(server: &Fake, name: &str) -> Result<Resolved> {
    plain().resolve(&server.image(name)).await
}

#[tokio::test]
async fn a_name_is_resolved_by_tag_and_by_digest() {
    let server = Fake::start().await;
    let digest = server.add_manifest("1.0", media_type::DOCKER_MANIFEST_LIST, INDEX);
    let expected = Descriptor::new(media_type::DOCKER_MANIFEST_LIST, digest, INDEX.len() as u64);
    for name in ["a:1.0".to_owned(), format!("a@{digest}"), format!("a:other@{digest}")] {
        let resolved = resolve(&server, &name).await.unwrap();
        assert_eq!(resolved.descriptor, expected);
        assert_eq!((&resolved.content[..], resolved.server.as_str()), (INDEX.as_bytes(), server.host()));
        assert_eq!(plain().lookup(&server.image(&name)).await.unwrap(), expected);
    }
    let seen = server.content().seen.clone();
    assert!(seen.iter().all(|seen| seen.header("accept").is_some_and(|accept| accept.split(", ").count() == 4)));
    assert_eq!(seen.iter().filter(|seen| seen.method == "HEAD").count(), 3);
    assert_eq!(seen[0].header("user-agent"), Some(concat!("kiln/", env!("CARGO_PKG_VERSION"))));
}

#[tokio::test]
async fn a_lookup_falls_back_to_the_document_when_the_head_tells_too_little() {
    let server = Fake::with(|seen| match seen.method.as_str() {
        "HEAD" => Trick::Head(|head| drop(head.remove("docker-content-digest"))),
        _ => Trick::None,
    })
    .await;
    let digest = server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    assert_eq!(plain().lookup(&server.image("a")).await.unwrap().digest, digest);
    assert_eq!(server.content().seen.len(), 2);
}

#[tokio::test]
async fn an_unknown_tag_repository_or_digest_is_named() {
    let server = Fake::start().await;
    let (host, digest) = (server.host(), Digest::of(b"nothing"));
    for (name, expected) in [
        (
            "a/b:nope".to_owned(),
            format!("manifest for {host}/a/b:nope not found: no tag `nope` in repository `{host}/a/b`"),
        ),
        ("a".to_owned(), format!("manifest for {host}/a not found: no tag `latest` in repository `{host}/a`")),
        (
            format!("a@{digest}"),
            format!("manifest for {host}/a@{digest} not found: no such digest in repository `{host}/a`"),
        ),
    ] {
        let error = resolve(&server, &name).await.unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (Kind::NotFound, expected));
        assert_eq!(plain().lookup(&server.image(&name)).await.unwrap_err().kind(), Kind::NotFound);
        assert!(!plain().has_manifest(&server.image(&name)).await.unwrap());
    }
    let empty = Fake::with(|_| Trick::error(404, "NAME_UNKNOWN")).await;
    let error = resolve(&empty, "a").await.unwrap_err().to_string();
    assert!(error.ends_with(&format!("{} has no repository `a`", empty.host())), "{error}");
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let server = Fake::start().await;
    let digest = server.add_manifest("x", media_type::OCI_MANIFEST, MANIFEST);
    server.content().manifests.get_mut(&digest.to_string()).unwrap().1 = INDEX.replace("[]", "[ ]").into();
    server.content().manifests.get_mut(&digest.to_string()).unwrap().0 = media_type::OCI_INDEX.to_owned();
    let error = resolve(&server, &format!("a@{digest}")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains(&format!("not {digest}")), "{error}");

    let lying = Fake::with(|_| {
        Trick::Head(|head| {
            let digest = Digest::of(b"else").to_string();
            head.insert("docker-content-digest", digest.parse().unwrap());
        })
    })
    .await;
    lying.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    assert_eq!(resolve(&lying, "a").await.unwrap_err().kind(), Kind::Corrupt);
}

#[tokio::test]
async fn what_is_no_manifest_is_refused_by_name() {
    let v1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    for (media_type, body, kind, words) in [
        ("text/html", "<html>Please log in</html>", Kind::Unavailable, "a web page came instead"),
        (v1, r#"{"schemaVersion":1,"fsLayers":[]}"#, Kind::Unsupported, "schema 1"),
        (media_type::OCI_INDEX, MANIFEST, Kind::Corrupt, "looks like"),
        ("application/json", r#"{"hello":"world"}"#, Kind::Unsupported, "application/json"),
        (media_type::OCI_MANIFEST, "", Kind::Corrupt, "not a JSON object"),
    ] {
        let server = sending(media_type, body).await;
        let error = resolve(&server, "a:b").await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(words) && text.contains(&server.image("a:b").familiar()), "{text}");
    }
}

#[tokio::test]
async fn a_manifest_without_an_end_is_not_read_to_its_end() {
    let endless = Fake::with(|_| Trick::Endless).await;
    endless.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    let error = resolve(&endless, "a").await.unwrap_err();
    assert!(error.kind() == Kind::Corrupt && error.to_string().contains("more than 4194304 bytes"), "{error}");

    let large = sending(media_type::OCI_MANIFEST, vec![b' '; (4 << 20) + 1]).await;
    let error = resolve(&large, "a").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
}

#[tokio::test]
async fn a_truncated_manifest_is_fetched_again() {
    let broken = std::sync::atomic::AtomicBool::new(false);
    let server = Fake::with(move |_| match broken.swap(true, Ordering::SeqCst) {
        false => Trick::Break(10),
        true => Trick::None,
    })
    .await;
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    assert_eq!(resolve(&server, "a").await.unwrap().content, MANIFEST);
}

#[tokio::test]
async fn a_manifest_is_fetched_by_its_descriptor() {
    let server = Fake::start().await;
    let digest = server.add_manifest("x", media_type::OCI_MANIFEST, MANIFEST);
    let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, digest, MANIFEST.len() as u64);
    assert_eq!(plain().manifest(&server.image("a:x"), &descriptor).await.unwrap(), MANIFEST);
    descriptor.size += 1;
    let error = plain().manifest(&server.image("a:x"), &descriptor).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
}

#[tokio::test]
async fn a_pushed_manifest_keeps_its_bytes_and_type() {
    let server = Fake::start().await;
    let (image, content) = (server.image("a:x"), Bytes::from_static(MANIFEST.as_bytes()));
    let digest = plain().push_manifest(&image, media_type::DOCKER_MANIFEST, content.clone()).await.unwrap();
    assert_eq!(digest, Digest::of(&content));
    let resolved = plain().resolve(&image).await.unwrap();
    assert_eq!(
        (resolved.content, resolved.descriptor.media_type.as_str()),
        (content.clone(), media_type::DOCKER_MANIFEST)
    );
    let other = image.with_digest(Digest::of(b"else"));
    let error = plain().push_manifest(&other, media_type::OCI_MANIFEST, content).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn a_refused_manifest_passes_on_the_registrys_words() {
    let server = Fake::with(|_| Trick::error(400, "MANIFEST_BLOB_UNKNOWN")).await;
    let error =
        plain().push_manifest(&server.image("a:x"), media_type::OCI_MANIFEST, MANIFEST.into()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().ends_with("answered 400 bad request: manifest blob unknown"), "{error}");
}

#[tokio::test]
async fn tags_come_in_pages() {
    let server = Fake::with(|seen| {
        let page = |tags: &str, next: Option<&str>| {
            let link = next.map(|next| ("link", format!("<{next}>; rel=\"next\"")));
            Trick::Answer(200, link.into_iter().collect(), format!(r#"{{"name":"a","tags":{tags}}}"#).into())
        };
        match seen.query("last").as_deref() {
            None => page(r#"["1","2"]"#, Some("/v2/a/tags/list?n=2&last=2")),
            Some("2") => page(r#"["3"]"#, Some("tags/list?last=3")),
            _ => Trick::Answer(200, Vec::new(), r#"{"name":"a","tags":null}"#.into()),
        }
    })
    .await;
    // The second link is relative to its page, as RFC 3986 has it, so it leads nowhere but to the last page.
    assert_eq!(plain().tags(&server.image("a")).await.unwrap(), ["1", "2", "3"]);

    let circle = Fake::with(|seen| {
        let link = format!("<{}>; rel=\"next\"", seen.path);
        Trick::Answer(200, vec![("link", link)], r#"{"tags":["x"]}"#.into())
    })
    .await;
    let error = plain().tags(&circle.image("a")).await.unwrap_err().to_string();
    assert!(error.contains("a list without an end"), "{error}");
    let empty = Fake::start().await;
    assert_eq!(plain().tags(&empty.image("a")).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn nobody_at_home_is_named_with_the_address() {
    let server = Fake::start().await;
    let (image, host) = (server.image("a"), server.host().to_owned());
    drop(server);
    let refused = async {
        loop {
            // The server's task closes its socket a moment after it was told to.
            match plain().resolve(&image).await {
                Err(error) if error.to_string().contains("connection refused") => return error,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
    assert_eq!(error.kind(), Kind::Unavailable);
    let expected = format!(
        "fetch the manifest of {host}/a: cannot connect to {host}: connection refused (gave up after 2 attempts)"
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn an_unknown_host_is_named() {
    // Reserved by RFC 6761: never resolves.
    let error = plain().resolve(&"registry.invalid/a".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("cannot find the host registry.invalid"), "{error}");
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let impatient = Patience { connect: Duration::from_millis(200), answer: Duration::from_millis(200), ..patience() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    for (http, words) in [(true, "did not answer within"), (false, "cannot connect to")] {
        let mut registries = Registries::default();
        registries.host_mut(&host).http = Some(http);
        let client = Client::with_patience(registries, impatient);
        let error = client.resolve(&format!("{host}/a").parse().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Timeout, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn a_document_that_drips_is_given_up() {
    let impatient = Patience { answer: Duration::from_millis(300), ..patience() };
    let client = Client::with_patience(Registries::default(), impatient);
    let server = Fake::with(|_| Trick::StallAfter(5)).await;
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    let error = client.resolve(&server.image("a")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
}

#[tokio::test]
async fn a_warning_of_a_registry_is_passed_on_once() {
    let server = Fake::with(|_| {
        Trick::Head(|head| drop(head.insert("warning", "299 - \"this \\\"tag\\\" retires soon\"".parse().unwrap())))
    })
    .await;
    server.add_manifest("latest", media_type::OCI_MANIFEST, MANIFEST);
    let (client, remarks) = with_notes(&plain());
    for _ in 0..3 {
        client.resolve(&server.image("a")).await.unwrap();
    }
    let expected = format!("registry {} warns: this \"tag\" retires soon", server.host());
    assert_eq!(*remarks.lock().unwrap(), [expected]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_can_be_spawned() {
    let server = Fake::start().await;
    let (client, image, blob) = (plain(), server.image("a"), noise(1000, 1));
    let tasks = crate::task::Tasks::new();
    let pushed = {
        let (client, image, blob) = (client.clone(), image.clone(), blob.clone());
        tasks.spawn(async move { client.push_blob(&image, &layer(&blob), source(&blob), &[], &Progress::new()).await })
    };
    assert_eq!(pushed.await.unwrap().unwrap(), Pushed::Uploaded);
    let pulled = tasks.spawn(async move {
        let descriptor = layer(&blob);
        client.blob(&image, &descriptor, Memory::new(&descriptor), &Progress::new()).await?;
        client.push_manifest(&image, media_type::OCI_MANIFEST, MANIFEST.into()).await?;
        client.resolve(&image).await
    });
    assert_eq!(pulled.await.unwrap().unwrap().content, MANIFEST);
}
