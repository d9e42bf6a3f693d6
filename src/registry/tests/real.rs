//! The client against docker's own registry, with skopeo as the other client.

use std::process::Command;

use super::docker_registry::{self, Access as Who, Connection, PASSWORD, Registry, USER};
use super::*;

fn start(who: Who, connection: Connection) -> Option<Registry> {
    docker_registry::is_installed().then(|| Registry::start_with(who, connection))
}

fn named(registry: &Registry, name: &str) -> Reference {
    format!("{}/{name}", registry.host()).parse().unwrap()
}

/// Pushes an image of some layers and returns its manifest's digest.
async fn push_image(client: &Client, image: &Reference, layers: &[Bytes]) -> Result<Digest> {
    let config =
        Bytes::from_static(br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#);
    let push = |blob: &Bytes| {
        let (blob, descriptor) = (source(blob), layer(blob));
        async move { client.push_blob(image, &descriptor, blob, &[], &Progress::new()).await }
    };
    futures_util::future::try_join_all(layers.iter().chain([&config]).map(push)).await?;
    let mut config = layer(&config);
    media_type::OCI_CONFIG.clone_into(&mut config.media_type);
    let layers = layers.iter().map(layer).collect();
    let manifest = kiln_graph::oci::Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config,
        layers,
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    };
    let manifest = serde_json::to_vec(&manifest).unwrap();
    client.push_manifest(image, media_type::OCI_MANIFEST, manifest.into()).await
}

async fn pull_layers(client: &Client, image: &Reference) -> Result<Vec<Vec<u8>>> {
    let resolved = client.resolve(image).await?;
    let manifest: kiln_graph::oci::Manifest = serde_json::from_slice(&resolved.content).unwrap();
    let pull = |descriptor: Descriptor| async move {
        client.blob(image, &descriptor, Memory::new(&descriptor), &Progress::new()).await.map(|sink| sink.bytes)
    };
    futures_util::future::try_join_all(manifest.layers.into_iter().map(pull)).await
}

fn skopeo(arguments: &[&str]) -> Option<String> {
    let output = match Command::new("skopeo").args(arguments).output() {
        Ok(output) => output,
        Err(_) => {
            eprintln!("skipped: skopeo is not installed (apt-get install skopeo)");
            return None;
        }
    };
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn an_image_goes_to_a_registry_and_comes_back() {
    let Some(registry) = start(Who::Open, Connection::Plain) else { return };
    let layers: Vec<Bytes> = (0..8).map(|seed| noise(1_000_000, seed)).collect();
    let (client, image) = (plain(), named(&registry, "team/app:1.0"));
    let digest = push_image(&client, &image, &layers).await.unwrap();
    assert_eq!(client.lookup(&image).await.unwrap().digest, digest);
    assert_eq!(pull_layers(&client, &image).await.unwrap(), layers);
    assert_eq!(pull_layers(&client, &image.with_digest(digest)).await.unwrap(), layers);
    assert_eq!(client.tags(&image).await.unwrap(), ["1.0"]);
    assert!(client.has_manifest(&image).await.unwrap());
    assert!(client.has_blob(&image, &layer(&layers[0])).await.unwrap());
    assert!(!client.has_blob(&image, &layer(&noise(1, 99))).await.unwrap());

    let (other, first) = (named(&registry, "other"), &layers[0]);
    let (from, progress) = ([image.clone()], Progress::new());
    let mounted = client.push_blob(&other, &layer(first), source(first), &from, &progress).await.unwrap();
    assert_eq!(mounted, Pushed::Mounted(image));

    let missing = named(&registry, "team/app:2.0");
    let error = client.resolve(&missing).await.unwrap_err().to_string();
    assert!(error.contains("no tag `2.0` in repository"), "{error}");
    let missing = named(&registry, "nobody/nothing");
    let error = client.tags(&missing).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("nobody/nothing not found: repository name not known"), "{error}");
}

#[tokio::test]
async fn skopeo_reads_what_is_pushed_and_writes_what_can_be_pulled() {
    let Some(registry) = start(Who::Open, Connection::Plain) else { return };
    let (client, here, there) = (plain(), named(&registry, "here"), named(&registry, "there:x"));
    let layers = [noise(100_000, 1), noise(200_000, 2)];
    let digest = push_image(&client, &here, &layers).await.unwrap();
    let url = format!("docker://{here}:latest");
    let Some(inspected) = skopeo(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &url]) else { return };
    assert_eq!(inspected.trim(), digest.to_string());
    let plain_http = ["copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests"];
    skopeo(&[&plain_http[..], &[&url, &format!("docker://{there}")]].concat()).unwrap();
    assert_eq!(pull_layers(&client, &there).await.unwrap(), layers);
    assert_eq!(client.lookup(&there).await.unwrap().digest, digest);
}

#[tokio::test]
async fn a_registry_with_passwords_lets_in_who_knows_one() {
    let Some(registry) = start(Who::Password, Connection::Plain) else { return };
    let image = named(&registry, "app");
    let user = as_user(&plain(), registry.host(), USER, PASSWORD);
    let layers = [noise(100_000, 1)];
    push_image(&user, &image, &layers).await.unwrap();
    assert_eq!(pull_layers(&user, &image).await.unwrap(), layers);
    user.check_login(registry.host(), &Credentials::password(USER, PASSWORD)).await.unwrap();

    let error = plain().resolve(&image).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("pull access denied for {}", image.repository())), "{error}");
    let error = push_image(&plain(), &image, &layers).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unauthorized);
    let wrong = Credentials::password(USER, "wrong");
    assert_eq!(user.check_login(registry.host(), &wrong).await.unwrap_err().kind(), Kind::Unauthorized);
}

#[tokio::test]
async fn docker_logins_are_used() {
    use crate::config::docker::DockerConfig;
    use crate::config::{Environment, User};
    let Some(registry) = start(Who::Password, Connection::Plain) else { return };
    let home = tempfile::tempdir().unwrap();
    let environment = Environment::of(User::Ordinary, &[("DOCKER_CONFIG", home.path().to_str().unwrap())]);
    DockerConfig::load(&environment).unwrap().login(registry.host(), &Credentials::password(USER, PASSWORD)).unwrap();
    let config = DockerConfig::load(&environment).unwrap();
    let client = plain().session(Provider::docker(config), Notes::none());
    push_image(&client, &named(&registry, "app"), &[noise(1000, 1)]).await.unwrap();
}

#[tokio::test]
async fn a_registry_with_tls_is_trusted_when_its_authority_is() {
    for connection in [Connection::Tls, Connection::SelfSigned] {
        let Some(registry) = start(Who::Open, connection) else { return };
        let image = named(&registry, "app");
        let mut registries = Registries::default();
        registries.host_mut(registry.host()).ca = vec![registry.ca()];
        let layers = [noise(1_000_000, 1)];
        let client = client(registries);
        push_image(&client, &image, &layers).await.unwrap();
        assert_eq!(pull_layers(&client, &image).await.unwrap(), layers);
    }
}

#[tokio::test]
async fn a_registry_that_wants_a_certificate_is_shown_one() {
    let Some(registry) = start(Who::Open, Connection::MutualTls) else { return };
    let image = named(&registry, "app");
    let mut registries = Registries::default();
    registries.host_mut(registry.host()).ca = vec![registry.ca()];
    // TLS 1.3 tells of the missing certificate only after the handshake, and HTTP/2 has then lost the reason.
    let error = client(registries.clone()).resolve(&image).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);

    let pair = crate::config::KeyPair { key: registry.client_key(), cert: registry.client_cert() };
    registries.host_mut(registry.host()).keypairs = vec![pair.clone()];
    push_image(&client(registries.clone()), &image, &[noise(1000, 1)]).await.unwrap();

    registries.host_mut(registry.host()).keypairs = vec![crate::config::KeyPair { key: registry.ca(), ..pair }];
    let error = client(registries).resolve(&image).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("read a private key from "), "{error}");
}

#[tokio::test]
async fn certificates_are_found_where_docker_keeps_them() {
    let Some(registry) = start(Who::Open, Connection::Tls) else { return };
    let home = tempfile::tempdir().unwrap();
    let certs = home.path().join("docker/certs.d").join(registry.host());
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::copy(registry.ca(), certs.join("ca.crt")).unwrap();
    let file = home.path().join("config.toml");
    std::fs::write(&file, format!("[registry.\"{}\"]\nhttp = false\n", registry.host())).unwrap();
    let flags = crate::config::Flags { config: Some(file), ..Default::default() };
    let variables = [("XDG_CONFIG_HOME", home.path().to_str().unwrap()), ("HOME", "/nowhere")];
    let environment = crate::config::Environment::of(crate::config::User::Ordinary, &variables);
    let config = crate::config::Config::load(&flags, &environment).unwrap();
    push_image(&client(config.registries), &named(&registry, "app"), &[noise(1000, 1)]).await.unwrap();
}

#[tokio::test]
async fn a_registry_nobody_vouches_for_is_refused_unless_that_is_asked_for() {
    for (connection, why) in
        [(Connection::Tls, "its authority is not known here"), (Connection::SelfSigned, "nobody vouches for it")]
    {
        let Some(registry) = start(Who::Open, connection) else { return };
        let image = named(&registry, "app");
        let mut registries = Registries::default();
        registries.host_mut(registry.host()).http = Some(false);
        let error = client(registries.clone()).resolve(&image).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        let text = error.to_string();
        let place = format!("[registry.\"{}\"]", registry.host());
        assert!(text.contains(&format!("is not trusted: {why} (")) && text.contains(&place), "{text}");
        assert!(!text.contains("attempts"), "trust does not come by trying again: {text}");

        registries.host_mut(registry.host()).insecure = Some(true);
        let error = client(registries).resolve(&image).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_even_when_it_is_listed() {
    let Some(registry) = start(Who::Open, Connection::SelfSigned) else { return };
    let port = registry.host().rsplit(':').next().unwrap();
    let mut registries = Registries::default();
    let host = format!("127.0.0.2:{port}");
    registries.host_mut(&host).ca = vec![registry.ca()];
    // docker-registry listens on one address only, so the other one is reached by way of a tunnel.
    let (from, to) = (host.clone(), registry.host().to_owned());
    let listener = tokio::net::TcpListener::bind(&from).await.unwrap();
    let tunnel = crate::task::Owned::spawn(async move {
        while let Ok((mut inner, _)) = listener.accept().await {
            let mut outer = tokio::net::TcpStream::connect(&to).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
        }
    });
    let error = client(registries).resolve(&format!("{host}/app").parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("is not trusted: "), "{error}");
    drop(tunnel);
}

/// A proxy that tunnels every connection to one address; returns its own.
async fn tunnelling_proxy(to: String) -> (String, crate::task::Owned<()>) {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tasks = crate::task::Tasks::new();
    let serve = async move {
        while let Ok((inner, _)) = listener.accept().await {
            let to = to.clone();
            tasks.spawn(async move {
                let mut inner = BufReader::new(inner);
                let mut line = String::new();
                inner.read_line(&mut line).await.unwrap();
                assert!(line.starts_with("CONNECT registry.invalid:443 "), "{line}");
                while line != "\r\n" {
                    line.clear();
                    inner.read_line(&mut line).await.unwrap();
                }
                inner.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let mut outer = tokio::net::TcpStream::connect(&to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
            });
        }
    };
    (address, crate::task::Owned::spawn(serve))
}

#[tokio::test]
async fn tls_goes_through_a_proxy() {
    let Some(registry) = start(Who::Open, Connection::Tls) else { return };
    let (proxy, _running) = tunnelling_proxy(registry.host().to_owned()).await;
    let variables = [("HTTPS_PROXY", proxy.as_str()), ("KILN_CONFIG", "/dev/null"), ("KILN_ROOT", "/nowhere")];
    let environment = crate::config::Environment::of(crate::config::User::Root, &variables);
    let mut registries = crate::config::Config::load(&Default::default(), &environment).unwrap().registries;
    registries.host_mut("registry.invalid").insecure = Some(true);
    let image = "registry.invalid/app".parse().unwrap();
    push_image(&client(registries), &image, &[noise(1000, 1)]).await.unwrap();
}

#[tokio::test]
async fn the_wrong_protocol_is_found_out() {
    let Some(tls) = start(Who::Open, Connection::Tls) else { return };
    let error = plain().resolve(&named(&tls, "app")).await.unwrap_err().to_string();
    assert!(error.contains(&format!("set `http = false` under [registry.\"{}\"]", tls.host())), "{error}");

    let http = Registry::start();
    let mut registries = Registries::default();
    registries.host_mut(http.host()).http = Some(false);
    let error = client(registries).resolve(&named(&http, "app")).await.unwrap_err().to_string();
    assert!(error.contains(&format!("set `http = true` under [registry.\"{}\"]", http.host())), "{error}");
}

#[tokio::test]
async fn a_download_survives_a_restart_of_the_registry_in_a_mirror() {
    // A pull-through pair: the mirror is empty, the registry has the image.
    let Some(registry) = start(Who::Open, Connection::Plain) else { return };
    let mirror = Registry::start();
    let image = named(&registry, "app");
    let layers = [noise(1_000_000, 1), noise(500_000, 2)];
    push_image(&plain(), &image, &layers).await.unwrap();
    let mut registries = Registries::default();
    registries.host_mut(registry.host()).mirrors = vec![mirror.host().parse().unwrap()];
    let client = client(registries);
    assert_eq!(pull_layers(&client, &image).await.unwrap(), layers);
    drop(mirror);
    assert_eq!(pull_layers(&client, &image).await.unwrap(), layers);
}
