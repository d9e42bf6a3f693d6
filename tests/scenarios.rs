//! End-to-end tests of whole jobs: Debian bases from a real registry, compilers and packages installed in builds, images that
//! other programs pull and push, and commands killed in the middle.
//!
//! What packages need comes from the machine's own configuration of apt and pip, by way of the base and of build secrets.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use support::registry::Registry;
use support::{Kiln, PATIENCE, Run, Running, base, command, eventually, is_installed, is_root};

/// Installing packages takes as long as the network does.
const INSTALLING: Duration = Duration::from_secs(900);

/// A registry that holds `debian:base`, and its full name; `None` when something is missing.
fn debian_in_a_registry() -> Option<(Registry, String)> {
    if !is_root() || !support::registry::is_installed() || !is_installed("skopeo", "skopeo") {
        return None;
    }
    let archive = base::debian()?;
    let registry = Registry::start();
    let name = format!("{}/debian:base", registry.host());
    skopeo_push(&archive, &name);
    Some((registry, name))
}

fn skopeo_push(archive: &Path, name: &str) {
    let (from, to) = (format!("docker-archive:{}", archive.display()), format!("docker://{name}"));
    Run::new("skopeo").args(["copy", "-q", "--dest-tls-verify=false", &from, &to]).within(INSTALLING).ok();
}

/// Pulls an image into an OCI layout and unpacks its layers in order; returns the root file system.
fn skopeo_pull(kiln: &Kiln, name: &str) -> PathBuf {
    let (layout, root) = (kiln.scratch().join("layout"), kiln.scratch().join("unpacked"));
    for dir in [&layout, &root] {
        let _ = std::fs::remove_dir_all(dir);
    }
    let (from, to) = (format!("docker://{name}"), format!("oci:{}:it", layout.display()));
    Run::new("skopeo").args(["copy", "-q", "--src-tls-verify=false", &from, &to]).within(INSTALLING).ok();
    std::fs::create_dir(&root).expect("make a directory");
    let read = |digest: &serde_json::Value| {
        let digest = digest.as_str().expect("a digest").trim_start_matches("sha256:");
        layout.join("blobs/sha256").join(digest)
    };
    let parse = |path: PathBuf| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).expect("read a document")).expect("a JSON document")
    };
    let manifest = parse(read(&parse(layout.join("index.json"))["manifests"][0]["digest"]));
    for layer in manifest["layers"].as_array().expect("layers") {
        unpack(&read(&layer["digest"]), &root);
    }
    root
}

/// Applies a compressed layer with tar, then what its whiteouts say.
fn unpack(layer: &Path, root: &Path) {
    let listing = command::run("tar", ["-tf".as_ref(), layer.as_os_str()]);
    for path in listing.lines() {
        let path = Path::new(path);
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some(hidden) = name.strip_prefix(".wh.") else { continue };
        let dir = root.join(path.parent().expect("a file has a directory"));
        let script = if hidden == ".wh..opq" { "rm -rf ./* ./.[!.]*" } else { "rm -rf -- \"$0\"" };
        Run::new("sh").args(["-euc", script, hidden]).cwd(dir).ok();
    }
    let args = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-p", "--exclude=.wh.*", "-xf"];
    Run::new("tar").args(args).arg(layer).arg("-C").arg(root).ok();
}

/// What `find` and `sha256sum` know of a tree, apart from what every container has of its own.
const LISTING: &str = r"cd $0 && find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev \) -prune -o \
    ! -path ./.dockerenv ! -path ./etc/hosts ! -path ./etc/hostname ! -path ./etc/resolv.conf ! -path . ! -path ./etc -printf '%p %y %m %U %G %n %l\n' |
    sed 's/^\(.* d .*\) [0-9]* $/\1/' | LC_ALL=C sort
    find . -xdev \( -path ./proc -o -path ./sys -o -path ./dev \) -prune -o \
    ! -path ./.dockerenv ! -path ./etc/hosts ! -path ./etc/hostname ! -path ./etc/resolv.conf -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";

#[test]
fn privileged_a_c_project_is_compiled_in_one_stage_and_copied_into_an_empty_one() {
    let Some((registry, debian)) = debian_in_a_registry() else { return };
    let kiln = Kiln::new();
    kiln.write("app/main.c", "#include <stdio.h>\nint main(void) { puts(\"compiled in a build\"); return 0; }\n");
    kiln.write(
        "app/Dockerfile",
        format!(
            "FROM {debian} AS build\n\
             RUN --mount=type=cache,target=/var/cache/apt,sharing=locked apt-get update && \
             apt-get install -y --no-install-recommends gcc libc6-dev\n\
             WORKDIR /src\nCOPY main.c .\nRUN gcc -O2 -static -o /program main.c\n\
             FROM scratch\nCOPY --from=build /program /program\nENTRYPOINT [\"/program\"]\n"
        ),
    );
    let name = format!("{}/team/compiled:1", registry.host());
    kiln.command(["build", "--progress=plain", "--push", "-t", &name, "app"]).within(INSTALLING).ok();
    assert_eq!(kiln.ok(["run", "--rm", &name]), "compiled in a build");

    // What was pushed is what was built, for others and for another engine.
    let root = skopeo_pull(&kiln, &name);
    assert_eq!(command::run(root.join("program").to_str().expect("a path"), [""; 0]), "compiled in a build");
    assert_eq!(command::shell(&root, "find . -mindepth 1"), "./program");
    assert_eq!(Kiln::new().ok(["run", "--rm", &name]), "compiled in a build");

    // A changed source file does not install the compiler again.
    kiln.write("app/main.c", "#include <stdio.h>\nint main(void) { puts(\"changed\"); return 0; }\n");
    let again = kiln.command(["build", "--progress=plain", "-t", "again", "app"]).output().expect_code(0);
    assert!(again.elapsed < Duration::from_secs(60) && again.stderr.contains("CACHED"), "{}", again.report());
    assert_eq!(kiln.ok(["run", "--rm", "again"]), "changed");
}

#[test]
fn privileged_a_python_project_gets_its_packages() {
    let Some((_registry, debian)) = debian_in_a_registry() else { return };
    let Some(pip) = pip_configuration() else { return };
    let kiln = Kiln::new();
    kiln.write("pip.conf", pip);
    kiln.write("app/requirements.txt", "itsdangerous\n");
    kiln.write(
        "app/main.py",
        "from itsdangerous import URLSafeSerializer as S\ns = S('key')\nprint(s.loads(s.dumps('packages work')))\n",
    );
    kiln.write(
        "app/Dockerfile",
        format!(
            "FROM {debian}\nRUN apt-get update && apt-get install -y --no-install-recommends python3-venv\n\
             WORKDIR /app\nRUN python3 -m venv /venv\nCOPY requirements.txt .\n\
             RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca,target=/run/ca.crt \
             --mount=type=cache,target=/root/.cache/pip /venv/bin/pip install -r requirements.txt\n\
             COPY main.py .\nCMD [\"/venv/bin/python\", \"main.py\"]\n"
        ),
    );
    let secrets = ["--secret=id=pip,src=pip.conf", "--secret=id=ca,src=/etc/ssl/certs/ca-certificates.crt"];
    kiln.command(["build", "--progress=plain", "-t", "py"]).args(secrets).arg("app").within(INSTALLING).ok();
    assert_eq!(kiln.ok(["run", "--rm", "--network=none", "py"]), "packages work");
}

/// What the machine's pip is told about indexes, for a build; `None` when pip is missing or reaches none.
fn pip_configuration() -> Option<String> {
    if !is_installed("pip", "python3-pip") {
        return None;
    }
    let probe = ["download", "-q", "--no-deps", "--no-cache-dir", "-d", "/dev/shm/kiln-test-pip", "itsdangerous"];
    let probe = Run::new("pip").args(probe).output();
    let _ = std::fs::remove_dir_all("/dev/shm/kiln-test-pip");
    if probe.code != 0 {
        eprintln!("skipped: pip of this machine reaches no index: {}", probe.stderr);
        return None;
    }
    let listed = Run::new("pip").args(["config", "list"]).ok();
    let wanted = ["index-url", "extra-index-url", "trusted-host"];
    let settings = listed.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        let key = key.rsplit('.').next()?;
        wanted.contains(&key).then(|| format!("{key} = {}\n", value.trim_matches('\'')))
    });
    Some(format!("[global]\ncert = /run/ca.crt\n{}", settings.collect::<String>()))
}

#[test]
fn privileged_a_pushed_image_is_pulled_by_skopeo_and_unpacks_to_the_same_files() {
    let Some((registry, debian)) = debian_in_a_registry() else { return };
    let kiln = Kiln::new();
    kiln.write(
        "app/Dockerfile",
        format!(
            "FROM {debian}\n\
             RUN mkdir -p /odd/dir && echo x > /odd/file && ln /odd/file /odd/hard && ln -s nowhere /odd/link && \
             mkfifo /odd/fifo && chmod 4755 /odd/file && chown 1000:1001 /odd/hard && rm -rf /usr/share/doc /etc/motd && \
             rm -rf /var/cache && mkdir /var/cache && echo new > /var/cache/new\n\
             COPY --chown=7:8 data /odd/\nUSER 1:1\n"
        ),
    );
    kiln.write("app/data", "data");
    let name = format!("{}/odd:1", registry.host());
    kiln.command(["build", "-q", "-t", &name, "app"]).within(INSTALLING).ok();
    kiln.command(["push", &name]).within(INSTALLING).ok();
    let root = skopeo_pull(&kiln, &name);
    let theirs = Run::new("sh").args(["-euc", LISTING]).arg(&root).within(INSTALLING).ok();
    let ours = ["run", "--rm", "--user=0", "--network=none", &name, "sh", "-euc", LISTING, "/"];
    let ours = kiln.command(ours).within(INSTALLING).ok();
    same_lines(&ours, &theirs);
    assert!(ours.contains("./odd/fifo p"), "{ours}");
}

/// Fails with the lines that differ, not with all of them.
fn same_lines(ours: &str, theirs: &str) {
    let missing = |a: &str, b: &str| {
        let b: std::collections::HashSet<_> = b.lines().collect();
        a.lines().filter(|line| !b.contains(line)).take(20).map(|line| format!("{line}\n")).collect::<String>()
    };
    assert!(ours == theirs, "only ours:\n{}only theirs:\n{}", missing(ours, theirs), missing(theirs, ours));
}

#[test]
fn privileged_an_image_that_skopeo_pushed_runs() {
    if !is_root() || !support::registry::is_installed() || !is_installed("skopeo", "skopeo") {
        return;
    }
    let registry = Registry::start();
    let name = format!("{}/tools/busybox:from-skopeo", registry.host());
    skopeo_push(&base::busybox(), &name);
    let kiln = Kiln::new();
    assert_eq!(kiln.ok(["run", "--rm", &name, "echo", "hello"]), "hello");
    kiln.fails(["run", "--rm", &format!("{}/tools/busybox:none", registry.host()), "true"]).expect_stderr(&["none"]);
}

/// A root with an image of a layer too large to be moved in an instant, called `name`.
fn with_a_large_image(name: &str) -> Kiln {
    let kiln = Kiln::with_busybox();
    command::shell(
        &kiln.scratch(),
        "mkdir app && head -c 60000000 /dev/urandom > app/large && cp app/large app/other && echo x >> app/other",
    );
    kiln.write("app/Dockerfile", "FROM busybox\nCOPY large /\nCOPY other /\nRUN sha256sum /large /other > /sums\n");
    kiln.command(["build", "-q", "-t", name, "app"]).within(INSTALLING).ok();
    kiln
}

const CHECK: &str = "sha256sum -c /sums";

/// Starts a command again and again, killing it later each time, until it gets to its end; then once more undisturbed.
fn kill_until_done(mut start: impl FnMut() -> Run) {
    let mut patience = Duration::from_millis(20);
    loop {
        let mut running: Running = start().within(INSTALLING).spawn();
        std::thread::sleep(patience);
        if !running.is_running() {
            running.wait().expect_code(0);
            break;
        }
        running.kill();
        patience = patience * 3 / 2;
    }
    start().within(INSTALLING).ok();
}

#[test]
fn privileged_pushes_and_pulls_survive_being_killed() {
    if !is_root() || !support::registry::is_installed() {
        return;
    }
    let registry = Registry::start();
    let name = format!("{}/large:1", registry.host());
    let kiln = with_a_large_image(&name);
    kill_until_done(|| kiln.command(["push", "-q", &name]));

    let puller = Kiln::new();
    kill_until_done(|| puller.command(["pull", "-q", &name]));
    puller.ok(["run", "--rm", "--network=none", &name, "sh", "-c", CHECK]);
    assert_nothing_half_made(&puller);
}

#[test]
fn privileged_builds_survive_being_killed() {
    if !is_root() {
        return;
    }
    let kiln = with_a_large_image("large");
    // Never seen, so that nothing is cached.
    command::shell(&kiln.scratch(), "echo more >> app/large; echo more >> app/other");
    kill_until_done(|| kiln.command(["build", "-q", "-t", "large", "app"]));
    kiln.ok(["run", "--rm", "--network=none", "large", "sh", "-c", CHECK]);
    assert_nothing_half_made(&kiln);
}

/// Nothing of killed commands stays mounted, and what they left can be pruned.
fn assert_nothing_half_made(kiln: &Kiln) {
    kiln.ok(["system", "prune", "-f"]);
    let root = kiln.root();
    eventually("the end of mounts", PATIENCE, || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
        (!mounts.contains(root.to_str().expect("a path in UTF-8"))).then_some(())
    });
}
