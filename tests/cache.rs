//! End-to-end tests of build caches that are shared between machines: each machine is a root directory of its own.

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::registry::{self, Registry};
use support::{Kiln, Outcome, command, is_installed, is_root};

/// Two stages whose results differ with every run, so that equal images share their layers.
const STAGES: &str = "FROM busybox AS build
WORKDIR /src
COPY a .
RUN cat a >out && cat /proc/sys/kernel/random/uuid >when && dd if=/dev/urandom of=/large bs=1M count=2 2>/dev/null
FROM busybox
RUN mkdir /x && cat /proc/sys/kernel/random/uuid >/x/when
COPY --from=build /src/out /out
RUN echo done >/done
";

/// How many steps that has, the base among them.
const STEPS: usize = 7;

/// A machine with the files of the build.
fn machine() -> Kiln {
    let kiln = Kiln::with_busybox();
    kiln.write("app/Dockerfile", STAGES);
    kiln.write("app/a", "hello");
    kiln
}

/// Whether the tests with a registry can run.
fn has_registry() -> bool {
    is_root() && registry::is_installed()
}

/// Builds `app`; panics unless it succeeds.
fn build(kiln: &Kiln, args: &[&str]) -> Outcome {
    kiln.command(["build", "--progress=plain"]).args(args).arg("app").output().expect_code(0)
}

/// How many steps were found.
fn found(outcome: &Outcome) -> usize {
    outcome.stderr.lines().filter(|line| line.ends_with(" CACHED")).count()
}

fn id(kiln: &Kiln, image: &str) -> String {
    kiln.ok(["image", "inspect", "--format={{.Id}}", image])
}

/// What the blobs and the layers of a root take, in bytes.
fn size(kiln: &Kiln) -> u64 {
    fn below(path: &Path) -> u64 {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let of = |entry: fs::DirEntry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => below(&entry.path()),
            _ => entry.metadata().map_or(0, |metadata| metadata.len()),
        };
        entries.map(of).sum()
    }
    ["blobs", "snapshots"].iter().map(|name| below(&kiln.root().join(name))).sum()
}

fn to(registry: &Registry, name: &str, more: &str) -> String {
    format!("type=registry,ref={}/{name}{more}", registry.host())
}

#[test]
fn privileged_an_empty_root_finds_every_step_of_a_cache_and_fetches_what_it_needs() {
    if !has_registry() {
        return;
    }
    let registry = Registry::start();
    let (max, min) = (to(&registry, "cache:max", ""), to(&registry, "cache:min", ""));
    let first = machine();
    build(&first, &["-t", "app", "--cache-to", &format!("{max},mode=max"), "--cache-to", &min]);
    let expected = id(&first, "app");
    for cache in [&max, &min] {
        let other = machine();
        let before = size(&other);
        let kept = build(&other, &["--cache-from", cache, "-o", "type=cacheonly"]);
        assert_eq!(found(&kept), STEPS, "{}", kept.report());
        assert!(size(&other) - before < 100_000, "{cache}: no layer is fetched for nothing");
        let built = build(&other, &["-t", "app", "--cache-from", cache]);
        assert_eq!((found(&built), id(&other, "app")), (STEPS, expected.clone()), "{}", built.report());
        assert!(size(&other) - before < 1_000_000, "{cache}: the other stage is not fetched");
        // What was fetched is in the other machine's own cache now.
        let again = build(&other, &["-t", "again"]);
        let first_step = again.stderr.lines().skip_while(|line| !line.contains("RUN mkdir /x")).nth(1);
        assert!(first_step.is_some_and(|line| line.ends_with("CACHED")), "{}", again.report());
    }
}

#[test]
fn privileged_a_result_that_a_cache_only_names_is_made_when_it_is_needed() {
    if !has_registry() {
        return;
    }
    let registry = Registry::start();
    let (max, min) = (to(&registry, "cache:max", ""), to(&registry, "cache:min", ""));
    let first = machine();
    build(&first, &["-t", "app", "--cache-to", &format!("{max},mode=max"), "--cache-to", &min]);
    let more = format!("{STAGES}COPY --from=build /src/when /when\n");
    first.write("app/Dockerfile", &more);
    build(&first, &["-t", "app"]);
    let when = first.ok(["run", "--rm", "app", "cat", "/when"]);
    for (cache, same) in [(&max, true), (&min, false)] {
        let other = machine();
        other.write("app/Dockerfile", &more);
        let built = build(&other, &["-t", "app", "--cache-from", cache]);
        let own = other.ok(["run", "--rm", "app", "cat", "/when"]);
        assert_eq!(own == when, same, "{}", built.report());
        // The result's own layers are the cache's all the same.
        let uuid = |kiln: &Kiln| kiln.ok(["run", "--rm", "app", "cat", "/x/when"]);
        assert_eq!(uuid(&first), uuid(&other));
    }
}

#[test]
fn privileged_what_changed_is_made_and_nothing_else() {
    if !has_registry() {
        return;
    }
    let registry = Registry::start();
    let cache = to(&registry, "cache", "");
    build(&machine(), &["-t", "app", "--cache-to", &format!("{cache},mode=max")]);
    let other = machine();
    other.write("app/a", "changed");
    let built = build(&other, &["-t", "app", "--cache-from", &cache]);
    assert_eq!(found(&built), 3, "the base, WORKDIR and the first RUN of the last stage: {}", built.report());
    assert_eq!(other.ok(["run", "--rm", "app", "cat", "/out"]), "changed");
    let ignored = machine();
    let built = build(&ignored, &["--no-cache", "--cache-from", &cache]);
    assert_eq!(found(&built), 2, "the base and WORKDIR, as without an import: {}", built.report());
}

#[test]
fn privileged_a_cache_is_found_in_an_image_and_copied_to_another_place() {
    if !has_registry() {
        return;
    }
    let registry = Registry::start();
    let image = format!("{}/app:1", registry.host());
    let first = machine();
    build(&first, &["-t", &image, "--push", "--cache-to=type=inline"]);
    let (other, copy) = (machine(), to(&registry, "copy", ",mode=max"));
    // Nothing is here: the layers go from one repository to the other.
    let built = build(&other, &["--cache-from", &image, "--cache-to", &copy, "-o", "type=cacheonly"]);
    assert_eq!(found(&built), STEPS, "{}", built.report());
    let third = machine();
    let built = build(&third, &["-t", "app", "--cache-from", &to(&registry, "copy", ""), "--cache-to=type=inline"]);
    assert_eq!((found(&built), id(&third, "app")), (STEPS, id(&first, &image)), "{}", built.report());
    third.ok(["run", "--rm", "app", "test", "-e", "/done"]);
}

#[test]
fn privileged_a_cache_has_the_form_that_is_asked_for() {
    if !has_registry() || !is_installed("skopeo", "skopeo") {
        return;
    }
    let registry = Registry::start();
    let kiln = machine();
    let manifest = |more: &str| {
        build(&kiln, &["--cache-to", &to(&registry, "form", more), "-o", "type=cacheonly"]);
        let name = format!("docker://{}/form", registry.host());
        let text = command::run("skopeo", ["inspect", "--raw", "--tls-verify=false", &name]);
        serde_json::from_str::<Value>(&text).expect("a manifest")
    };
    let config = json!("application/vnd.buildkit.cacheconfig.v0");
    let image = manifest("");
    assert_eq!(image["config"]["mediaType"], config);
    assert_eq!(image["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    let index = manifest(",image-manifest=false");
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    let entries = index["manifests"].as_array().expect("entries");
    assert_eq!(entries.last().expect("an entry")["mediaType"], config);
    let docker = manifest(",oci-mediatypes=false,compression=uncompressed,force-compression=true");
    assert_eq!(docker["mediaType"], "application/vnd.docker.distribution.manifest.list.v2+json");
    assert_eq!(docker["manifests"][0]["mediaType"], "application/vnd.docker.image.rootfs.diff.tar");
    assert_eq!(manifest(""), image, "the same build gives the same cache");
    let built = build(&machine(), &["--cache-from", &to(&registry, "form", ""), "-o", "type=cacheonly"]);
    assert_eq!(found(&built), STEPS, "{}", built.report());
}

#[test]
fn privileged_a_cache_that_cannot_be_read_is_no_failure_and_one_that_cannot_be_written_is() {
    if !has_registry() {
        return;
    }
    let registry = Registry::start();
    let kiln = machine();
    let built = build(&kiln, &["--cache-from", &to(&registry, "missing", ""), "-t", "app"]);
    assert!(
        built.stderr.contains("importing cache manifest from") && built.stderr.contains("missing"),
        "{}",
        built.report()
    );
    // Nobody listens at the port of a registry that has ended.
    let gone = to(&Registry::start(), "x", "");
    let failed = kiln.command(["build", "--progress=plain", "--cache-to", &gone, "app"]).output().expect_code(1);
    assert!(failed.stderr.contains("export the cache to registry"), "{}", failed.report());
    let built = build(&kiln, &["-t", "good", "--cache-to", &format!("{gone},ignore-error=true")]);
    assert!(built.stderr.contains("the cache was not exported"), "{}", built.report());
    id(&kiln, "good");
}

/// Pushes a cache whose configuration was meddled with, and returns its name.
fn meddled(registry: &Registry, dir: &Path, cache: &str, meddle: impl FnOnce(&mut Value)) -> String {
    let layout = dir.join("layout");
    let _ = fs::remove_dir_all(&layout);
    let from = format!("docker://{}/{cache}", registry.host());
    let at = format!("oci:{}:x", layout.display());
    command::run("skopeo", ["copy", "-q", "--src-tls-verify=false", &from, &at]);
    let read = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).expect("read")).expect("JSON");
    let blob =
        |digest: &Value| layout.join("blobs/sha256").join(digest.as_str().expect("a digest").replace("sha256:", ""));
    let write = |value: &Value| {
        let bytes = serde_json::to_vec(value).expect("JSON");
        let file = dir.join("new");
        fs::write(&file, &bytes).expect("write");
        let hex = command::run("sha256sum", [&file]).split(' ').next().expect("a sum").to_owned();
        fs::rename(&file, layout.join("blobs/sha256").join(&hex)).expect("rename");
        (json!(format!("sha256:{hex}")), json!(bytes.len()))
    };
    let mut index = read(&layout.join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]["digest"]));
    let mut config = read(&blob(&manifest["config"]["digest"]));
    meddle(&mut config);
    (manifest["config"]["digest"], manifest["config"]["size"]) = write(&config);
    (index["manifests"][0]["digest"], index["manifests"][0]["size"]) = write(&manifest);
    fs::write(layout.join("index.json"), serde_json::to_vec(&index).expect("JSON")).expect("write");
    let name = format!("{}/meddled", registry.host());
    command::run("skopeo", ["copy", "-q", "--dest-tls-verify=false", &at, &format!("docker://{name}")]);
    name
}

#[test]
fn privileged_a_hostile_cache_gives_no_wrong_result() {
    if !has_registry() || !is_installed("skopeo", "skopeo") {
        return;
    }
    let registry = Registry::start();
    let first = machine();
    build(&first, &["-t", "app", "--cache-to", &to(&registry, "cache", ",mode=max")]);
    let circle = |config: &mut Value| {
        let records = config["records"].as_array_mut().expect("records");
        let last = records.len() - 1;
        records[0]["inputs"] = json!([[{ "link": last }]]);
        records[last]["inputs"] = json!([[{ "link": 0 }]]);
    };
    let beyond = |config: &mut Value| config["layers"][0]["parent"] = json!(9999);
    for meddle in [&circle as &dyn Fn(&mut Value), &beyond] {
        let name = meddled(&registry, &first.scratch(), "cache", meddle);
        let other = machine();
        let built = build(&other, &["-t", "app", "--cache-from", &name]);
        assert_eq!(found(&built), 1, "the cache is refused: {}", built.report());
        assert!(built.stderr.contains("ERROR"), "and that is said: {}", built.report());
    }
    // Layers that are not what the records say: what is unpacked is what was promised, or it fails.
    let name = meddled(&registry, &first.scratch(), "cache", |config| {
        let layers = config["layers"].as_array_mut().expect("layers");
        let (one, two) = (layers[1]["blob"].clone(), layers[2]["blob"].clone());
        (layers[1]["blob"], layers[2]["blob"]) = (two, one);
    });
    let other = machine();
    let failed = other.command(["build", "--progress=plain", "-t", "app", "--cache-from", &name, "app"]).output();
    if failed.code == 0 {
        assert_eq!(id(&other, "app"), id(&first, "app"));
    } else {
        assert!(failed.stderr.contains("digest"), "{}", failed.report());
    }
}

#[test]
fn privileged_a_cache_is_kept_in_a_directory_of_the_client() {
    if !is_root() {
        return;
    }
    let first = machine();
    let dir = first.scratch().join("cache dir");
    let local = |key: &str, more: &str| format!("\"type=local\",\"{key}={}\"{more}", dir.display());
    // What is not there yet is no failure.
    let built =
        build(&first, &["-t", "app", "--cache-from", &local("src", ""), "--cache-to", &local("dest", ",mode=max")]);
    assert!(built.stderr.contains("there is no cache in"), "{}", built.report());
    let read = || serde_json::from_slice::<Value>(&fs::read(dir.join("index.json")).expect("an index")).expect("JSON");
    assert_eq!(read()["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "latest");
    let other = machine();
    let built = build(&other, &["-t", "app", "--cache-from", &local("src", "")]);
    assert_eq!((found(&built), id(&other, "app")), (STEPS, id(&first, "app")), "{}", built.report());
    // Another name beside the first, and a blob that was damaged.
    build(&other, &["-o", "type=cacheonly", "--cache-to", &local("dest", ",tag=other")]);
    assert_eq!(read()["manifests"].as_array().map(Vec::len), Some(2));
    let third = machine();
    let refused = third.command(["build", "--cache-from", &local("src", ",tag=none"), "app"]).output().expect_code(1);
    assert!(refused.stderr.contains("no cache none"), "{}", refused.report());
    assert!(!dir.join("ingest").exists() || fs::read_dir(dir.join("ingest")).expect("list").next().is_none());
}
