//! End-to-end tests of build caches that are shared between machines: each machine is a root directory of its own.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use support::registry::{self, Registry};
use support::stores::{Entries, Objects, OldEntries, actions, azure, old_actions, s3};
use support::web::{Answer, Web};
use support::{Daemon, Docker, Kiln, Outcome, PATIENCE, command, eventually, is_installed, is_root};

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
fn privileged_a_cache_in_estargz_form_is_found() {
    if !has_registry() || !is_installed("skopeo", "skopeo") {
        return;
    }
    let registry = Registry::start();
    build(&machine(), &["-t", "app", "--cache-to", &to(&registry, "cache", ",mode=max,compression=estargz")]);
    let name = format!("docker://{}/cache", registry.host());
    let manifest = command::run("skopeo", ["inspect", "--raw", "--tls-verify=false", &name]);
    assert!(manifest.contains("containerd.io/snapshot/stargz/toc.digest"), "{manifest}");
    let other = machine();
    let built = build(&other, &["-t", "app", "--cache-from", &to(&registry, "cache", "")]);
    assert_eq!(found(&built), STEPS, "{}", built.report());
    assert_eq!(other.ok(["run", "--rm", "app", "cat", "/out"]), "hello");
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

/// Exchanges the blobs of the two last layers.
fn with_swapped_layers(config: &mut Value) {
    let layers = config["layers"].as_array_mut().expect("layers");
    let last = layers.len() - 1;
    let (one, two) = (layers[last - 1]["blob"].clone(), layers[last]["blob"].clone());
    (layers[last - 1]["blob"], layers[last]["blob"]) = (two, one);
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
    let name = meddled(&registry, &first.scratch(), "cache", with_swapped_layers);
    let other = machine();
    let built = build(&other, &["-t", "app", "--cache-from", &name]);
    assert!(built.stderr.contains("the build begins again without the imported caches"), "{}", built.report());
    assert_eq!(other.ok(["run", "--rm", "app", "cat", "/out"]), "hello");
}

/// Buildx runs the frontend itself, so the build cannot begin again as a whole.
#[test]
fn privileged_a_frontend_at_the_client_gets_its_result_without_a_cache_that_is_broken() {
    let Some(docker) = Docker::with_buildx() else { return };
    if !has_registry() || !is_installed("skopeo", "skopeo") {
        return;
    }
    let registry = Registry::start();
    let first = machine();
    build(&first, &["-t", "app", "--cache-to", &to(&registry, "cache", ",mode=max")]);
    let name = meddled(&registry, &first.scratch(), "cache", with_swapped_layers);
    let daemon = Daemon::of(machine(), &[]);
    let from = format!("type=registry,ref={name}");
    let built =
        daemon.docker(&docker, &["buildx", "build", "--progress=plain", "--cache-from", &from, "-t", "app", "app"]);
    let built = built.output().expect_code(0);
    assert!(built.stderr.contains("without the imported caches"), "{}", built.report());
    assert_eq!(daemon.cat("app", "/out"), "hello");
}

/// Leaves those records of a cache that BuildKit knows: Kiln's own names are no SHA-256.
fn without_own_records(config: &mut Value) {
    let records = config["records"].as_array().expect("records").clone();
    let is_own = |record: &Value| record["digest"].as_str().is_some_and(|name| name.starts_with("blake3:"));
    let mut positions = BTreeMap::new();
    for at in (0..records.len()).filter(|at| !is_own(&records[*at])) {
        positions.insert(at, positions.len());
    }
    assert!(positions.len() < records.len(), "there are records of both kinds");
    let kept = positions.keys().map(|at| {
        let mut record = records[*at].clone();
        for links in record["inputs"].as_array_mut().into_iter().flatten() {
            let links = links.as_array_mut().expect("links");
            let position = |link: &Value| positions.get(&(link["link"].as_u64().expect("a position") as usize));
            links.retain(|link| position(link).is_some());
            links.iter_mut().for_each(|link| link["link"] = json!(position(link)));
        }
        record
    });
    config["records"] = json!(kept.collect::<Vec<Value>>());
}

/// As BuildKit would have written it: so nothing of Kiln's own helps.
#[test]
fn privileged_what_buildkit_knows_of_a_cache_is_enough_to_find_all_of_it() {
    if !has_registry() || !is_installed("skopeo", "skopeo") {
        return;
    }
    let registry = Registry::start();
    let first = machine();
    let (max, min) = (to(&registry, "max", ",mode=max"), to(&registry, "min", ""));
    build(&first, &["-t", "app", "--cache-to", &max, "--cache-to", &min]);
    for cache in ["max", "min"] {
        let name = meddled(&registry, &first.scratch(), cache, without_own_records);
        let other = machine();
        let built = build(&other, &["-t", "app", "--cache-from", &name]);
        assert_eq!((found(&built), id(&other, "app")), (STEPS, id(&first, "app")), "{}", built.report());
        // What is only named is made when it is needed, on what is made for it.
        let changed = machine();
        changed.write("app/Dockerfile", format!("{STAGES}COPY --from=build /src/when /src/out /\n"));
        let built = build(&changed, &["-t", "app", "--cache-from", &name]);
        assert_eq!(changed.ok(["run", "--rm", "app", "cat", "/out"]), "hello", "{}", built.report());
        // Content decides.
        let other = machine();
        other.write("app/a", "changed");
        let built = build(&other, &["-t", "app", "--cache-from", &name]);
        let steps = if cache == "max" { 3 } else { 2 };
        assert_eq!(
            found(&built),
            steps,
            "the first RUN of the last stage, and WORKDIR if it is there: {}",
            built.report()
        );
        assert_eq!(other.ok(["run", "--rm", "app", "cat", "/out"]), "changed");
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
    // What no name needs any more is removed when that is asked for, and nothing else.
    let blobs = || fs::read_dir(dir.join("blobs/sha256")).expect("list").count();
    first.write("app/a", "other");
    build(&first, &["-t", "later", "--cache-to", &local("dest", ",mode=max")]);
    let all = blobs();
    build(&first, &["-t", "later", "--cache-to", &local("dest", ",mode=max,reset=true")]);
    assert!(blobs() < all, "{all} before");
    let fresh = machine();
    fresh.write("app/a", "other");
    let built = build(&fresh, &["-t", "app", "--cache-from", &local("src", "")]);
    assert_eq!((found(&built), id(&fresh, "app")), (STEPS, id(&first, "later")), "{}", built.report());
    // Another name beside the first, and a blob that was damaged.
    build(&other, &["-o", "type=cacheonly", "--cache-to", &local("dest", ",tag=other")]);
    assert_eq!(read()["manifests"].as_array().map(Vec::len), Some(2));
    let third = machine();
    let refused = third.command(["build", "--cache-from", &local("src", ",tag=none"), "app"]).output().expect_code(1);
    assert!(refused.stderr.contains("no cache none"), "{}", refused.report());
    assert!(!dir.join("ingest").exists() || fs::read_dir(dir.join("ingest")).expect("list").next().is_none());
}

#[test]
fn privileged_a_cache_is_kept_in_an_object_store() {
    if !is_root() {
        return;
    }
    let objects = Arc::new(Mutex::new(Objects::default()));
    let shared = Arc::clone(&objects);
    let web = Web::start(move |request| s3(&shared, request));
    let cache = format!(
        "type=s3,bucket=b,region=eu-north-1,endpoint_url={},access_key_id=KEY,secret_access_key=SECRET,prefix=p/,name=one;two",
        web.url("")
    );
    let first = machine();
    // More than one part.
    let large = STAGES.replace("count=2", "count=20");
    first.write("app/Dockerfile", &large);
    build(&first, &["-t", "app", "--cache-to", &format!("{cache},mode=max")]);
    {
        let objects = objects.lock().unwrap();
        assert!(
            objects.parts.is_empty() && objects.whole.contains_key("/b/p/manifests/one"),
            "{:?}",
            objects.whole.keys()
        );
        assert!(objects.whole.contains_key("/b/p/manifests/two"));
        assert!(objects.whole.keys().any(|key| key.starts_with("/b/p/blobs/sha256%3A")));
    }
    let more = format!("{large}COPY --from=build /large /large\n");
    let other = machine();
    other.write("app/Dockerfile", &more);
    // Credentials are where AWS's own tools look for them, too.
    let keys = "[ci]\naws_access_key_id = KEY\naws_secret_access_key = SECRET\n";
    fs::create_dir(other.home().join(".aws")).expect("make a directory");
    fs::write(other.home().join(".aws/credentials"), keys).expect("write");
    let short =
        cache.replace(",access_key_id=KEY,secret_access_key=SECRET", ",retry_max_attempts=5,retry_mode=standard");
    let args = ["build", "--progress=plain", "-t", "app", "--cache-from", &short, "--cache-to", &short, "app"];
    let built = other.command(args).env("AWS_PROFILE", "ci").output().expect_code(0);
    assert_eq!(found(&built), STEPS, "{}", built.report());
    assert_eq!(other.ok(["run", "--rm", "app", "wc", "-c", "/large"]).split(' ').next(), Some("20971520"));
    assert!(objects.lock().unwrap().touched > 0, "what is old is made new");
    let denied = cache.replace("=KEY", "=OTHER");
    let built = build(
        &machine(),
        &["-o", "type=cacheonly", "--cache-from", &denied, "--cache-to", &format!("{denied},ignore-error=true")],
    );
    assert!(built.stderr.contains("AccessDenied") && !built.stderr.contains("SECRET"), "{}", built.report());
}

#[test]
fn privileged_a_cache_is_kept_in_that_of_github_actions() {
    if !is_root() {
        return;
    }
    let entries = Arc::new(Mutex::new(Entries::default()));
    let shared = Arc::clone(&entries);
    let web = Web::start(move |request| actions(&shared, request.header("host").unwrap_or_default(), request));
    let cache = "type=gha,scope=test";
    let run = |kiln: &Kiln, args: &[&str]| {
        let command = kiln.command(["build", "--progress=plain"]).args(args).arg("app");
        command.env("ACTIONS_RESULTS_URL", web.url("")).env("ACTIONS_RUNTIME_TOKEN", "TOKEN").output().expect_code(0)
    };
    let first = machine();
    run(&first, &["-t", "app", "--cache-to", &format!("{cache},mode=max")]);
    let other = machine();
    let built = run(&other, &["-t", "app", "--cache-from", cache, "--cache-to", cache]);
    assert_eq!((found(&built), id(&other, "app")), (STEPS, id(&first, "app")), "{}", built.report());
    let names = entries.lock().unwrap().complete.clone();
    let hash = "e3b0c442";
    for number in [1, 2] {
        assert!(names.contains(&format!("index-test-1-{hash}#{number}")), "{names:?}");
    }
    assert!(names.iter().any(|name| name.starts_with("buildkit-blob-1-sha256:")));
    // What was written last is read.
    let third = machine();
    let built = run(&third, &["-o", "type=cacheonly", "--cache-from", cache]);
    assert_eq!(found(&built), STEPS, "{}", built.report());
}

#[test]
fn privileged_a_cache_is_kept_in_the_old_one_of_github_actions() {
    if !is_root() {
        return;
    }
    let entries = Arc::new(Mutex::new(OldEntries::default()));
    let shared = Arc::clone(&entries);
    let web = Web::start(move |request| old_actions(&shared, request.header("host").unwrap_or_default(), request));
    let cache = format!("type=gha,scope=old,version=1,url={},token=TOKEN,timeout=5m", web.url(""));
    let first = machine();
    first.write("app/Dockerfile", STAGES.replace("count=2", "count=20"));
    build(&first, &["-t", "app", "--cache-to", &format!("{cache},mode=max")]);
    let other = machine();
    other.write("app/Dockerfile", STAGES.replace("count=2", "count=20"));
    let built = build(&other, &["-t", "app", "--cache-from", &cache, "--cache-to", &cache]);
    assert_eq!((found(&built), id(&other, "app")), (STEPS, id(&first, "app")), "{}", built.report());
    let entries = entries.lock().unwrap();
    assert_eq!(entries.complete.iter().filter(|(key, _)| key.starts_with("index-old-1-e3b0c442#")).count(), 2);
    assert!(entries.complete.iter().any(|(_, content)| content.len() > 16 << 20), "one is sent in pieces");
}

#[test]
fn privileged_a_cache_is_kept_in_azures_blob_storage() {
    if !is_root() {
        return;
    }
    let objects = Arc::new(Mutex::new(Objects::default()));
    let shared = Arc::clone(&objects);
    let web = Web::start(move |request| azure(&shared, request));
    let cache = format!(
        "type=azblob,account_url={},account_name=account,secret_access_key=a2V5,prefix=p,name=one;two",
        web.url("account")
    );
    let first = machine();
    first.write("app/Dockerfile", STAGES.replace("count=2", "count=20"));
    build(&first, &["-t", "app", "--cache-to", &format!("{cache},mode=max")]);
    {
        let objects = objects.lock().unwrap();
        let names: Vec<&String> = objects.whole.keys().collect();
        assert!(objects.parts.is_empty(), "{names:?}");
        for name in ["manifests/one", "manifests/two", "blobs/sha256%3A"] {
            let name = format!("/account/buildkit-cache/p/{name}");
            assert!(names.iter().any(|known| known.starts_with(&name)), "{name}: {names:?}");
        }
    }
    let other = machine();
    other.write("app/Dockerfile", STAGES.replace("count=2", "count=20"));
    let built = build(&other, &["-t", "app", "--cache-from", &cache, "--cache-to", &cache]);
    assert_eq!((found(&built), id(&other, "app")), (STEPS, id(&first, "app")), "{}", built.report());
    let denied = cache.replace("=account,", "=other,");
    let built = build(&machine(), &["-o", "type=cacheonly", "--cache-from", &denied]);
    assert!(built.stderr.contains("AuthenticationFailed") && !built.stderr.contains("a2V5"), "{}", built.report());
}

#[test]
fn privileged_cache_mounts_travel_with_a_cache() {
    if !has_registry() {
        return;
    }
    let registry = Registry::start();
    let cache = to(&registry, "cache", "");
    let dockerfile = |step: &str| {
        format!("FROM busybox\nRUN --mount=type=cache,target=/m --mount=type=cache,id=other,target=/o {step}\n")
    };
    let first = machine();
    let steps = [
        "dd if=/dev/urandom of=/m/large bs=1M count=24 2>/dev/null && echo a >/m/small && ln /m/large /m/link && chown 7:8 /m/small",
        "echo b >/m/small",
    ];
    let sent = steps.map(|step| {
        first.write("app/Dockerfile", dockerfile(step));
        let built = build(&first, &["-o", "type=cacheonly", "--cache-to", &format!("{cache},mounts=true")]);
        let line = built.stderr.lines().find(|line| line.contains("chunks of cache mount /m"));
        let line = line.unwrap_or_else(|| panic!("{}", built.report()));
        let words: Vec<&str> = line.split("sent ").nth(1).expect("what was sent").split(' ').collect();
        (words[0].parse::<usize>().expect("a number"), words[2].parse::<usize>().expect("a number"))
    });
    assert!(sent[0].0 == sent[0].1 && sent[0].1 > 8, "all is new: {sent:?}");
    assert!((1..=2).contains(&sent[1].0) && sent[1].1 > 8, "what changed is sent: {sent:?}");
    let ask = "sh -c 'cat /m/small; stat -c %u:%g:%h /m/small /m/link; wc -c </m/large; ls /o' >/found";
    let found_by = |args: &[&str]| {
        let other = machine();
        other.write("app/Dockerfile", dockerfile(ask));
        build(&other, &[&["-t", "app"], args].concat());
        other.ok(["run", "--rm", "app", "cat", "/found"])
    };
    assert_eq!(found_by(&["--cache-from", &cache]), "b\n7:8:1\n0:0:2\n25165824");
    assert!(!found_by(&["--cache-from", &format!("{cache},mounts=false")]).contains("25165824"));
}

#[test]
fn privileged_layers_are_sent_while_the_build_still_runs() {
    if !has_registry() {
        return;
    }
    let registry = Registry::start();
    let go = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&go);
    let web = Web::start(move |_| Answer::new(if asked.load(Ordering::SeqCst) { 200 } else { 404 }, "go"));
    let kiln = machine();
    let wait = format!("until wget -q -O /go {}; do sleep 0.1; done", web.url("go"));
    let dockerfile = format!("FROM busybox\nRUN echo first >/first\nRUN --network=host {wait}\n");
    kiln.write("app/Dockerfile", dockerfile);
    let (cache, allow) = (to(&registry, "cache", ",mode=max"), "--allow=network.host");
    let running = kiln.command(["build", "-o", "type=cacheonly", allow, "--cache-to", &cache, "app"]).spawn();
    // No manifest is there, so what is there was sent ahead.
    let layers = registry.storage().join("docker/registry/v2/repositories/cache/_layers/sha256");
    let sent = || fs::read_dir(&layers).ok().and_then(|mut entries| entries.next()).map(drop);
    eventually("a layer is at the registry", PATIENCE, sent);
    assert!(!layers.with_file_name("_manifests").join("tags").exists());
    go.store(true, Ordering::SeqCst);
    running.wait().expect_code(0);
    let other = machine();
    other.write("app/Dockerfile", fs::read(kiln.scratch().join("app/Dockerfile")).expect("read"));
    let built = build(&other, &["-o", "type=cacheonly", allow, "--cache-from", &to(&registry, "cache", "")]);
    assert_eq!(found(&built), 3, "{}", built.report());
}
