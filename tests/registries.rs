//! What Kiln promises about registries, with the real binary, a real registry, and one that misbehaves.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use sha2::{Digest as _, Sha256};

use support::command::shell;
use support::meddler::{Meddle, Meddler};
use support::registry::{Access, Connection, PASSWORD, Registry, USER};
use support::{Kiln, PATIENCE, Running, eventually, is_installed, is_root};

/// Says whether a real registry can be had and images can be unpacked.
fn ready() -> bool {
    is_root() && support::registry::is_installed()
}

/// Bytes that no compressor makes smaller, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let blocks = (0..length.div_ceil(32) as u64).flat_map(|block| {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(block.to_le_bytes());
        hash.finalize()
    });
    blocks.take(length).collect()
}

/// Makes an image of one layer that takes about `length` bytes compressed.
fn image(kiln: &Kiln, name: &str, seed: u64, length: usize) {
    kiln.write("tree/data", noise(seed, length));
    shell(&kiln.scratch(), "tar --sort=name --mtime=@0 -C tree -cf tree.tar .");
    kiln.ok(["import", "tree.tar", name]);
}

/// A registry that holds an image of `length` bytes under `app:1`.
fn with_image(length: usize) -> Registry {
    let registry = Registry::start();
    let kiln = Kiln::new();
    let name = format!("{}/app:1", registry.host());
    image(&kiln, &name, 1, length);
    kiln.ok(["push", "-q", &name]);
    registry
}

fn ids(kiln: &Kiln) -> String {
    kiln.ok(["images", "-q", "--no-trunc"])
}

/// Makes sure that what failed left nothing that looks like an image.
fn nothing_is_half_made(kiln: &Kiln) {
    assert_eq!(ids(kiln), "");
    let snapshots = std::fs::read_dir(kiln.root().join("snapshots")).map_or(0, Iterator::count);
    kiln.ok(["image", "prune", "-f"]);
    let left = std::fs::read_dir(kiln.root().join("snapshots")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "of {snapshots} trees some are not collected");
}

fn partial_bytes(kiln: &Kiln) -> u64 {
    let Ok(entries) = std::fs::read_dir(kiln.root().join("ingest")) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Ends a command and the engine it started as `kill -9` does.
fn kill_all(running: Running) {
    let pid = running.pid().as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("list children");
    let engines: Vec<Pid> = children.split(' ').filter_map(|pid| Pid::from_raw(pid.trim().parse().ok()?)).collect();
    assert!(!engines.is_empty(), "the command has no engine");
    for engine in &engines {
        rustix::process::kill_process(*engine, Signal::KILL).expect("kill the engine");
    }
    running.kill();
    for engine in engines {
        let gone = || rustix::process::test_kill_process(engine).is_err().then_some(());
        eventually("the end of the engine", PATIENCE, gone);
    }
}

#[test]
fn privileged_a_pull_that_was_killed_goes_on_where_it_stopped() {
    if !ready() {
        return;
    }
    const SIZE: usize = 8 << 20;
    let registry = with_image(SIZE);
    let meddler =
        Meddler::before(registry.host(), |asked| if asked.is_blob() { Meddle::Slow(2 << 20) } else { Meddle::Not });
    let kiln = Kiln::new();
    let name = format!("{}/app:1", meddler.host());
    let pull = kiln.command(["pull", &name]).spawn();
    eventually("a part of the layer", PATIENCE, || (partial_bytes(&kiln) > 2 << 20).then_some(()));
    kill_all(pull);
    let before = partial_bytes(&kiln);
    meddler.now(|_| Meddle::Not);
    kiln.ok(["pull", &name]);
    let layers = meddler.asked(|asked| asked.is_blob() && asked.from.is_some());
    assert_eq!(layers.len(), 1, "{:?}", meddler.asked(|_| true));
    assert_eq!(layers[0].from, Some(before), "bytes that were there are not fetched again");
    assert_eq!(kiln.ok(["images", "--format", "{{.Repository}}"]), format!("{}/app", meddler.host()));
}

#[test]
fn privileged_a_connection_that_breaks_is_taken_up_again() {
    if !ready() {
        return;
    }
    let registry = with_image(4 << 20);
    let meddler = Meddler::before(registry.host(), |asked| {
        if asked.is_blob() && asked.from.is_none() { Meddle::Cut(1 << 20) } else { Meddle::Not }
    });
    let kiln = Kiln::new();
    kiln.ok(["pull", &format!("{}/app:1", meddler.host())]);
    let resumed = meddler.asked(|asked| asked.is_blob() && asked.from.is_some());
    assert_eq!(resumed.len(), 1);
    assert!(resumed[0].from >= Some(512 << 10), "{resumed:?}");
}

#[test]
fn privileged_busy_servers_are_asked_again() {
    if !ready() {
        return;
    }
    let registry = with_image(1 << 10);
    let times = std::sync::atomic::AtomicUsize::new(0);
    let meddler = Meddler::before(registry.host(), move |asked| {
        let first = asked.path.contains("/manifests/") && times.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
        if first { Meddle::Status(503) } else { Meddle::Not }
    });
    let kiln = Kiln::new();
    kiln.ok(["pull", &format!("{}/app:1", meddler.host())]);
}

#[test]
fn privileged_a_push_that_was_killed_is_repeated_cleanly() {
    if !ready() {
        return;
    }
    let registry = Registry::start();
    let meddler =
        Meddler::before(registry.host(), |asked| if asked.is_upload() { Meddle::Slow(1 << 20) } else { Meddle::Not });
    let kiln = Kiln::new();
    let name = format!("{}/app:1", meddler.host());
    image(&kiln, &name, 2, 4 << 20);
    let push = kiln.command(["push", &name]).spawn();
    eventually("an upload", PATIENCE, || (!meddler.asked(support::meddler::Asked::is_upload).is_empty()).then_some(()));
    kill_all(push);
    meddler.now(|_| Meddle::Not);
    kiln.ok(["push", &name]);
    let other = Kiln::new();
    other.ok(["pull", &name]);
    assert_eq!(ids(&other), ids(&kiln));
}

#[test]
fn privileged_content_that_is_not_what_its_digest_says_is_refused() {
    if !ready() {
        return;
    }
    let registry = with_image(64 << 10);
    for meddle in [Meddle::Flip, Meddle::Cut(10_000)] {
        let meddler = Meddler::before(registry.host(), move |asked| match asked.from {
            None if asked.is_blob() => meddle,
            // What was cut off never comes.
            Some(_) => Meddle::Cut(0),
            None => Meddle::Not,
        });
        let kiln = Kiln::new();
        let config = kiln.write("kiln.toml", "[transfer]\nattempts = 2\n");
        let name = format!("{}/app:1", meddler.host());
        let failed = kiln.command(["pull", &name]).env("KILN_CONFIG", config).fails();
        failed.expect_stderr(&["sha256:"]);
        nothing_is_half_made(&kiln);
        // The same command works as soon as the registry does.
        meddler.now(|_| Meddle::Not);
        kiln.ok(["pull", &name]);
    }
}

#[test]
fn privileged_a_registry_that_stops_answering_does_not_hold_a_command_for_ever() {
    if !ready() {
        return;
    }
    let registry = with_image(1 << 10);
    let meddler = Meddler::before(registry.host(), |asked| {
        if asked.path.contains("/manifests/") { Meddle::Silence } else { Meddle::Not }
    });
    let kiln = Kiln::new();
    let config = kiln.write("kiln.toml", "[transfer]\nattempts = 1\n");
    let name = format!("{}/app:1", meddler.host());
    let failed = kiln.command(["pull", &name]).env("KILN_CONFIG", config).fails();
    failed.expect_stderr(&[meddler.host()]);
    nothing_is_half_made(&kiln);
}

#[test]
fn privileged_what_is_not_there_is_named() {
    if !ready() {
        return;
    }
    let registry = with_image(1 << 10);
    let kiln = Kiln::new();
    let host = registry.host();
    kiln.fails(["pull", &format!("{host}/app:2")]).expect_stderr(&["app:2 not found"]);
    kiln.fails(["pull", &format!("{host}/nope")]).expect_stderr(&["nope:latest not found"]);
    let failed = kiln.fails(["pull", "--platform", "linux/s390x", &format!("{host}/app:1")]);
    failed.expect_stderr(&["linux/s390x", "linux/"]);
    kiln.fails(["pull", "Not-A-Name"]).expect_stderr(&["Not-A-Name"]);
    kiln.fails(["push", &format!("{host}/never-tagged")]).expect_stderr(&["does not exist locally", "never-tagged"]);
    let closed = "127.0.0.1:1/app";
    let config = kiln.write("kiln.toml", "[transfer]\nattempts = 1\n");
    kiln.command(["pull", closed]).env("KILN_CONFIG", config).fails().expect_stderr(&["127.0.0.1:1"]);
    nothing_is_half_made(&kiln);
}

#[test]
fn privileged_a_login_is_checked_stored_used_and_forgotten() {
    if !ready() {
        return;
    }
    let registry = Registry::start_with(Access::Password, Connection::Plain);
    let kiln = Kiln::new();
    let host = registry.host();
    let name = format!("{host}/app:1");
    image(&kiln, &name, 3, 1 << 10);
    kiln.fails(["push", &name]).expect_stderr(&["push access denied", &format!("kiln login {host}")]);
    let login = |password: &str| {
        kiln.command(["login", "-u", USER, "--password-stdin", host]).stdin(format!("{password}\n")).output()
    };
    login("wrong").expect_code(1).expect_stderr(&[host]);
    let file = kiln.home().join(".docker/config.json");
    assert!(!file.exists(), "wrong credentials are not stored");
    login(PASSWORD).expect_code(0).expect_stdout(&["Login Succeeded"]);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    kiln.ok(["push", &name]);
    kiln.ok(["rmi", &name]);
    kiln.ok(["pull", &name]);
    kiln.ok(["logout", host]);
    kiln.fails(["pull", &name]).expect_stderr(&["pull access denied"]);
}

#[test]
fn privileged_credentials_come_from_helpers() {
    if !ready() {
        return;
    }
    let registry = Registry::start_with(Access::Password, Connection::Plain);
    let kiln = Kiln::new();
    let host = registry.host();
    let helper = kiln.write(
        "bin/docker-credential-test",
        format!("#!/bin/sh\nread server\ncase $1 in get) echo '{{\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}';; esac\n"),
    );
    std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", helper.parent().unwrap().display(), std::env::var("PATH").unwrap());
    std::fs::create_dir(kiln.home().join(".docker")).unwrap();
    let name = format!("{host}/app:1");
    image(&kiln, &name, 4, 1 << 10);
    for config in [format!("{{\"credHelpers\":{{\"{host}\":\"test\"}}}}"), "{\"credsStore\":\"test\"}".to_owned()] {
        std::fs::write(kiln.home().join(".docker/config.json"), config).unwrap();
        kiln.command(["push", &name]).env("PATH", &path).ok();
    }
}

#[test]
fn privileged_a_registry_with_a_certificate_of_its_own_is_trusted_when_told_so() {
    if !ready() || !is_installed("openssl", "openssl") {
        return;
    }
    let registry = Registry::start_with(Access::Open, Connection::Tls);
    let kiln = Kiln::new();
    let host = registry.host();
    let name = format!("{host}/app:1");
    image(&kiln, &name, 5, 1 << 10);
    let distrust =
        kiln.write("distrust.toml", format!("[registry.\"{host}\"]\nhttp = false\n[transfer]\nattempts = 1\n"));
    kiln.command(["push", &name]).env("KILN_CONFIG", distrust).fails().expect_stderr(&["certificate"]);
    let ca = registry.ca().display().to_string();
    let trust = kiln.write("trust.toml", format!("[registry.\"{host}\"]\nhttp = false\nca = [\"{ca}\"]\n"));
    kiln.command(["push", &name]).env("KILN_CONFIG", &trust).ok();
    kiln.ok(["rmi", &name]);
    kiln.command(["--config"]).arg(&trust).args(["pull", &name]).ok();
}

#[test]
fn privileged_mirrors_and_proxies_lead_to_an_image() {
    if !ready() {
        return;
    }
    let registry = with_image(1 << 10);
    let meddler = Meddler::before(registry.host(), |_| Meddle::Not);
    let kiln = Kiln::new();
    let mirrored = format!("[registry.\"mirrored.invalid\"]\nmirrors = [\"http://{}\"]\n", meddler.host());
    let config = kiln.write("mirror.toml", mirrored);
    kiln.command(["pull", "mirrored.invalid/app:1"]).env("KILN_CONFIG", config).ok();
    assert_eq!(kiln.ok(["images", "--format", "{{.Repository}}"]), "mirrored.invalid/app");
    kiln.ok(["rmi", "mirrored.invalid/app:1"]);

    let config = kiln.write("proxy.toml", "[registry.\"proxied.invalid\"]\nhttp = true\n");
    let proxy = format!("http://{}", meddler.host());
    kiln.command(["pull", "proxied.invalid/app:1"]).env("KILN_CONFIG", config).env("HTTP_PROXY", proxy).ok();
    assert!(!meddler.asked(|asked| asked.host == "proxied.invalid" && asked.is_blob()).is_empty());
}

#[test]
fn privileged_what_a_registry_has_is_not_sent_again() {
    if !ready() {
        return;
    }
    let registry = Registry::start();
    let meddler = Meddler::before(registry.host(), |_| Meddle::Not);
    let kiln = Kiln::new();
    let [one, two] = ["one", "two"].map(|name| format!("{}/{name}:1", meddler.host()));
    image(&kiln, &one, 6, 1 << 20);
    kiln.command(["push", &one]).output().expect_code(0).expect_stdout(&["Pushed", "1: digest: sha256:"]);
    meddler.now(|_| Meddle::Not);
    kiln.command(["push", &one]).output().expect_code(0).expect_stdout(&["Layer already exists"]);
    assert!(meddler.asked(support::meddler::Asked::is_upload).is_empty());
    kiln.ok(["tag", &one, &two]);
    meddler.now(|_| Meddle::Not);
    kiln.command(["push", &two]).output().expect_code(0).expect_stdout(&["Mounted from"]);
    assert!(meddler.asked(support::meddler::Asked::is_upload).is_empty());
    assert!(!meddler.asked(|asked| asked.method == "POST" && asked.path.contains("mount=")).is_empty());
}

#[test]
fn privileged_all_tags_are_pushed_and_pulled() {
    if !ready() {
        return;
    }
    let registry = Registry::start();
    let kiln = Kiln::new();
    let host = registry.host();
    image(&kiln, &format!("{host}/app:1"), 7, 1 << 10);
    kiln.ok(["tag", &format!("{host}/app:1"), &format!("{host}/app:2")]);
    kiln.ok(["push", "-a", &format!("{host}/app")]);
    let other = Kiln::new();
    other.ok(["pull", "-a", &format!("{host}/app")]);
    let mut tags: Vec<String> = other.ok(["images", "--format", "{{.Tag}}"]).lines().map(str::to_owned).collect();
    tags.sort();
    assert_eq!(tags, ["1", "2"]);
    other.fails(["pull", "-a", &format!("{host}/app:1")]).expect_stderr(&["--all-tags"]);
}

/// Unpacks an image's layers with skopeo and tar, and returns what is in them as `tar` lists it.
fn listed_by_skopeo(dir: &Path, source: &str) -> String {
    let script = format!(
        "rm -rf got tree && skopeo copy -q --src-tls-verify=false {source} dir:got && mkdir tree && \
         for layer in $(python3 -c 'import json; print(*[l[\"digest\"][7:] for l in json.load(open(\"got/manifest.json\"))[\"layers\"]])'); \
         do case $(head -c4 got/$layer | od -An -tx1) in *'28 b5 2f fd'*) zstd -dc got/$layer;; *'1f 8b'*) gzip -dc got/$layer;; \
         *) cat got/$layer;; esac | tar -xp -C tree; done; cd tree && find . -type f -print0 | sort -z | xargs -0 sha256sum"
    );
    shell(dir, &script)
}

#[test]
fn privileged_images_go_to_and_from_skopeo() {
    if !ready() || !is_installed("skopeo", "skopeo") || !is_installed("zstd", "zstd") {
        return;
    }
    let registry = Registry::start();
    let kiln = Kiln::with_busybox();
    let host = registry.host();
    let pushed = format!("{host}/busybox:kiln");
    kiln.ok(["tag", "busybox", &pushed]);
    kiln.ok(["push", &pushed]);
    let scratch = kiln.scratch();
    let listing = listed_by_skopeo(&scratch, &format!("docker://{pushed}"));
    assert!(listing.contains("busybox"), "{listing}");
    let archive = support::base::busybox().display().to_string();
    for (number, options) in
        ["--format oci --dest-compress-format gzip", "--format oci --dest-compress-format zstd", "--format v2s2"]
            .iter()
            .enumerate()
    {
        let name = format!("{host}/skopeo:{number}");
        shell(
            &scratch,
            &format!("skopeo copy -q --dest-tls-verify=false {options} docker-archive:{archive} docker://{name}"),
        );
        let other = Kiln::new();
        other.ok(["pull", &name]);
        let layers = |kiln: &Kiln, name: &str| kiln.ok(["inspect", "-f", "{{json .RootFS.Layers}}", name]);
        assert_eq!(layers(&other, &name), layers(&kiln, "busybox"), "{options}");
        assert_eq!(other.ok(["run", "--rm", &name, "echo", "hello"]), "hello");
    }
}

#[test]
fn privileged_a_layer_that_leaves_its_root_is_refused() {
    if !ready() || !is_installed("skopeo", "skopeo") {
        return;
    }
    let registry = Registry::start();
    let kiln = Kiln::new();
    let name = format!("{}/evil:1", registry.host());
    let target = kiln.scratch().join("outside");
    for kind in ["dots", "link"] {
        push_evil(&kiln.scratch(), kind, &target, &name);
        let outcome = kiln.command(["pull", &name]).output();
        assert!(!target.exists(), "{kind}: {}", outcome.report());
        if kind == "dots" {
            outcome.expect_code(1).expect_stderr(&["..", "evil:1"]);
            nothing_is_half_made(&kiln);
        }
    }
}

/// Pushes an image with a layer that tries to write `target` on the host.
fn push_evil(dir: &Path, kind: &str, target: &Path, name: &str) {
    let script = format!(
        r#"
import hashlib, io, json, os, shutil, tarfile
shutil.rmtree("evil", ignore_errors=True); os.makedirs("evil/blobs/sha256")
def blob(data):
    digest = hashlib.sha256(data).hexdigest(); open("evil/blobs/sha256/" + digest, "wb").write(data)
    return {{"digest": "sha256:" + digest, "size": len(data)}}
raw = io.BytesIO(); tar = tarfile.open(fileobj=raw, mode="w")
target = "{target}"
def add(name, data=b"x", **fields):
    info = tarfile.TarInfo(name); info.size = len(data) if not fields else 0
    for key, value in fields.items(): setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data) if not fields else None)
if "{kind}" == "dots": add("../" * 30 + target[1:])
else:
    add("way", type=tarfile.SYMTYPE, linkname=os.path.dirname(target)); add("way/" + os.path.basename(target))
tar.close(); layer = blob(raw.getvalue()); layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar"
config = blob(json.dumps({{"architecture": "{arch}", "os": "linux", "rootfs": {{"type": "layers", "diff_ids": [layer["digest"]]}}, "config": {{}}}}).encode())
config["mediaType"] = "application/vnd.oci.image.config.v1+json"
manifest = blob(json.dumps({{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer]}}).encode())
manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json"
json.dump({{"schemaVersion": 2, "manifests": [manifest]}}, open("evil/index.json", "w")); open("evil/oci-layout", "w").write('{{"imageLayoutVersion":"1.0.0"}}')
"#,
        target = target.display(),
        arch = kiln_graph::Platform::host().architecture,
    );
    std::fs::write(dir.join("evil.py"), script).expect("write a script");
    shell(dir, &format!("python3 evil.py && skopeo copy -q --dest-tls-verify=false oci:evil docker://{name}"));
}

/// A small file system of its own as a root directory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(dir: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&dir).expect("make a directory");
        support::command::run(
            "mount",
            ["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", &dir.display().to_string()],
        );
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        support::command::run("umount", ["-l", &self.0.display().to_string()]);
    }
}

#[test]
fn privileged_a_full_disk_is_said_and_leaves_nothing() {
    if !ready() {
        return;
    }
    let registry = with_image(8 << 20);
    let kiln = Kiln::new();
    let _disk = SmallDisk::mount(kiln.root(), "6m");
    let name = format!("{}/app:1", registry.host());
    kiln.fails(["pull", &name]).expect_stderr(&["app:1", "no space left"]);
    nothing_is_half_made(&kiln);
}

#[test]
fn privileged_who_is_not_root_is_told_what_to_do() {
    if !ready() || !is_installed("setpriv", "util-linux") {
        return;
    }
    let registry = with_image(1 << 10);
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let copy = dir.path().join("kiln");
    std::fs::copy(support::KILN, &copy).unwrap();
    let name = format!("{}/app:1", registry.host());
    let pull = |root: &str| {
        support::Run::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&copy)
            .args(["--root", root, "pull", &name])
            .env("HOME", dir.path())
            .within(Duration::from_secs(60))
            .fails()
    };
    pull("/var/lib/kiln-not-writable").expect_stderr(&["root"]);
    pull(&dir.path().join("own").display().to_string()).expect_stderr(&["root"]);
}
