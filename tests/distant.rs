//! End-to-end tests of images whose layers stay where they are: at a registry, which is asked for its real log.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::registry::{self, Registry};
use support::web::{Answer, Web};
use support::{Daemon, Docker, Kiln, Outcome, command, is_installed, is_root};

/// Whether the tests can run.
fn has_registry() -> bool {
    is_root() && registry::is_installed() && is_installed("skopeo", "skopeo")
}

/// A registry with the image `base:1`.
fn registry_with_base() -> Registry {
    let registry = Registry::start();
    let kiln = Kiln::with_busybox();
    let base = format!("{}/base:1", registry.host());
    kiln.ok(["tag", "busybox", &base]);
    kiln.ok(["push", "-q", &base]);
    registry
}

/// A machine where nothing is but the files of a build on `base:1`.
fn machine(registry: &Registry) -> Kiln {
    let kiln = Kiln::new();
    let steps = "COPY a /a\nRUN cat /proc/sys/kernel/random/uuid >/when\nENV A=b\n";
    kiln.write("app/Dockerfile", format!("FROM {}/base:1\n{steps}", registry.host()));
    kiln.write("app/a", "hello");
    kiln
}

fn build(kiln: &Kiln, args: &[&str]) -> Outcome {
    kiln.command(["build", "--progress=plain"]).args(args).arg("app").output().expect_code(0)
}

/// The digests of the layers of an image at a registry.
fn layers(image: &str) -> Vec<String> {
    let text = command::run("skopeo", ["inspect", "--raw", "--tls-verify=false", &format!("docker://{image}")]);
    let manifest: Value = serde_json::from_str(&text).expect("a manifest");
    let layers = manifest["layers"].as_array().expect("layers");
    layers.iter().map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect()
}

/// How many requests of a method were about one of these blobs.
fn count(requests: &[String], method: &str, layers: &[String]) -> usize {
    let asks = |request: &&String| {
        let request = request.replace("%3A", ":");
        request.starts_with(&format!("{method} ")) && layers.iter().any(|layer| request.contains(layer.as_str()))
    };
    requests.iter().filter(asks).count()
}

/// What is unpacked below a root: the names of its layers' directories.
fn unpacked(kiln: &Kiln) -> BTreeSet<String> {
    let entries = fs::read_dir(kiln.root().join("snapshots")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn blobs(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => blobs(&entry.path()),
            _ => entry.metadata().map_or(0, |metadata| metadata.len()),
        })
        .sum()
}

#[test]
fn privileged_a_build_that_is_found_is_pushed_without_fetching_a_layer() {
    if !has_registry() {
        return;
    }
    let (registry, elsewhere) = (registry_with_base(), Registry::start());
    let [cache, app, other] = ["cache:1", "team/app:1", "other:1"].map(|name| format!("{}/{name}", registry.host()));
    let (cache_to, cache_from) = (format!("type=registry,ref={cache},mode=max"), format!("type=registry,ref={cache}"));
    let first = machine(&registry);
    build(&first, &["-t", &app, "--push", "--cache-to", &cache_to]);
    let layers_of_app = layers(&app);
    assert_eq!(layers_of_app.len(), 3, "that of the base and two of its own");
    let id = first.ok(["image", "inspect", "--format={{.Id}}", &app]);
    registry.take_requests();

    // Another repository of the registry takes them from that of the cache.
    let second = machine(&registry);
    let pushed = build(&second, &["-t", &other, "--push", "--cache-from", &cache_from]);
    let requests = registry.take_requests();
    assert_eq!(count(&requests, "GET", &layers_of_app), 0, "{requests:#?}\n{}", pushed.report());
    assert_eq!(count(&requests, "PUT", &layers_of_app), 0, "{requests:#?}");
    assert_eq!(count(&requests, "POST", &layers_of_app), 3, "each is mounted: {requests:#?}");
    assert_eq!(unpacked(&second), BTreeSet::new(), "nothing is unpacked");
    assert_eq!(layers(&other), layers_of_app);
    // What was pushed is known here, and its layers come when somebody needs them.
    assert_eq!(second.ok(["image", "inspect", "--format={{.Id}}", &other]), id);
    assert_eq!(second.ok(["run", "--rm", &other, "cat", "/a"]), "hello");
    let when = |kiln: &Kiln, image: &str| kiln.ok(["run", "--rm", image, "cat", "/when"]);
    assert_eq!(when(&second, &other), when(&first, &app));

    // Another registry gets them, blob by blob.
    let third = machine(&registry);
    let copy = format!("{}/app:1", elsewhere.host());
    registry.take_requests();
    build(&third, &["-t", &copy, "--push", "--cache-from", &cache_from]);
    let (asked, got) = (registry.take_requests(), elsewhere.take_requests());
    assert_eq!(count(&asked, "GET", &layers_of_app), 3, "{asked:#?}");
    assert_eq!(count(&got, "PUT", &layers_of_app), 3, "{got:#?}");
    assert_eq!((unpacked(&third), layers(&copy)), (BTreeSet::new(), layers_of_app.clone()));
    // Now it has them, so nothing moves.
    let fourth = machine(&registry);
    build(&fourth, &["-t", &copy, "--push", "--cache-from", &cache_from]);
    assert_eq!(count(&registry.take_requests(), "GET", &layers_of_app), 0);
    assert_eq!(count(&elsewhere.take_requests(), "PUT", &layers_of_app), 0);
    let fresh = Kiln::new();
    assert_eq!(fresh.ok(["run", "--rm", &copy, "cat", "/a"]), "hello");
}

#[test]
fn privileged_layers_of_a_base_are_mounted_and_come_when_they_are_wanted() {
    if !has_registry() {
        return;
    }
    let registry = registry_with_base();
    let base = format!("{}/base:1", registry.host());
    let of_base = layers(&base);
    let kiln = Kiln::new();
    kiln.write("app/Dockerfile", format!("FROM {base}\nENV A=b\nCMD [\"env\"]\n"));
    registry.take_requests();
    let [app, whole, zstd] = ["app:1", "whole:1", "zstd:1"].map(|name| format!("{}/{name}", registry.host()));
    build(&kiln, &["-t", &app, "--push"]);
    assert_eq!(count(&registry.take_requests(), "GET", &of_base), 0, "nothing works on the base's files");
    assert_eq!((layers(&app), unpacked(&kiln)), (of_base.clone(), BTreeSet::new()));
    // A cache that is copied takes layers from the repository it was read from.
    let more = |name: &str| format!("type=image,name={name},push=true");
    build(&kiln, &["-o", &format!("{},store=true", more(&whole))]);
    assert_eq!(count(&registry.take_requests(), "GET", &of_base), 1, "all of it is kept here");
    assert!(!unpacked(&kiln).is_empty() && blobs(&kiln.root().join("blobs")) > 100_000);
    let empty = Kiln::new();
    empty.write("app/Dockerfile", format!("FROM {base}\nENV A=c\n"));
    let forced = format!("{},compression=zstd,force-compression=true", more(&zstd));
    build(&empty, &["-o", &forced]);
    assert_eq!(count(&registry.take_requests(), "GET", &of_base), 1, "it is compressed anew");
    assert_ne!(layers(&zstd), of_base);
}

/// Layers of bases that are not to be distributed come from where their manifest says, and go on only when nobody minds.
#[test]
fn privileged_layers_that_are_not_to_be_distributed_are_kept_so_when_that_is_asked_for() {
    if !has_registry() || !is_installed("curl", "curl") {
        return;
    }
    let registry = registry_with_base();
    let base = format!("{}/base", registry.host());
    let manifest = command::run("skopeo", ["inspect", "--raw", "--tls-verify=false", &format!("docker://{base}:1")]);
    let mut manifest: Value = serde_json::from_str(&manifest).expect("a manifest");
    let layer = layers(&format!("{base}:1")).remove(0);
    let blob = Command::new("curl").args(["-s", &format!("http://{}/v2/base/blobs/{layer}", registry.host())]).output();
    let blob = blob.expect("run curl").stdout;
    let web = Web::start(move |_| Answer::new(200, blob.clone()));
    let place = web.url("layer.tar.gz");
    manifest["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
    manifest["layers"][0]["urls"] = json!([place]);
    let kiln = Kiln::new();
    let file = kiln.write("manifest.json", manifest.to_string());
    let to = format!("http://{}/v2/base/manifests/foreign", registry.host());
    let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
    let data = format!("@{}", file.display());
    command::run("curl", ["-sSf", "-X", "PUT", "-H", kind, "--data-binary", &data, &to]);
    kiln.write("app/Dockerfile", format!("FROM {base}:foreign\nRUN echo a >/a\n"));
    let image = |name: &str| format!("{}/{name}:1", registry.host());
    registry.take_requests();
    build(&kiln, &["-o", &format!("type=image,name={},push=true,prefer-nondist-layers=true", image("kept"))]);
    let requests = registry.take_requests();
    assert_eq!(web.asked(), ["GET /layer.tar.gz"], "it is where its manifest says");
    assert_eq!(count(&requests, "GET", std::slice::from_ref(&layer)), 0, "{requests:#?}");
    assert_eq!(count(&requests, "PUT", std::slice::from_ref(&layer)), 0, "{requests:#?}");
    assert_eq!(count(&requests, "POST", std::slice::from_ref(&layer)), 0, "{requests:#?}");
    let shown = |name: &str| {
        let name = format!("docker://{}", image(name));
        let text = command::run("skopeo", ["inspect", "--raw", "--tls-verify=false", &name]);
        serde_json::from_str::<Value>(&text).expect("a manifest")["layers"][0].clone()
    };
    let kept = shown("kept");
    assert_eq!(kept["mediaType"], manifest["layers"][0]["mediaType"]);
    assert_eq!((&kept["digest"], &kept["urls"]), (&json!(layer), &json!([place])));
    build(&kiln, &["-o", &format!("type=image,name={},push=true", image("sent"))]);
    let sent = shown("sent");
    assert_eq!(sent["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    assert_eq!((&sent["digest"], sent.get("urls")), (&json!(layer), None));
    // An image of it is pulled as it was pushed.
    let other = Kiln::new();
    assert_eq!(other.ok(["run", "--rm", &image("kept"), "cat", "/a"]), "a");
    assert_eq!(web.asked(), ["GET /layer.tar.gz"]);
}

/// Buildx runs the frontend itself, and says nothing of what stays here.
#[test]
fn privileged_buildx_pushes_what_is_found_without_fetching_it() {
    let Some(docker) = Docker::with_buildx() else { return };
    if !has_registry() {
        return;
    }
    let registry = registry_with_base();
    let [cache, app, other] = ["cache:1", "app:1", "other:1"].map(|name| format!("{}/{name}", registry.host()));
    let cache_to = format!("type=registry,ref={cache},mode=max");
    build(&machine(&registry), &["-t", &app, "--push", "--cache-to", &cache_to]);
    let layers_of_app = layers(&app);
    registry.take_requests();
    let daemon = Daemon::of(machine(&registry), &[]);
    let from = format!("type=registry,ref={cache}");
    let args = [
        "buildx",
        "build",
        "--progress=plain",
        "--push",
        "--provenance=false",
        "--cache-from",
        &from,
        "-t",
        &other,
        "app",
    ];
    let pushed = daemon.docker(&docker, &args).output().expect_code(0);
    let requests = registry.take_requests();
    assert_eq!(count(&requests, "GET", &layers_of_app), 0, "{requests:#?}\n{}", pushed.report());
    assert_eq!(layers(&other), layers_of_app);
}
