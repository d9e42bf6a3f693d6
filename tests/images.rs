//! Images outside builds and registries, with the real binary: lists, archives, removal, what they take on the disk.

mod support;

use std::path::Path;
use std::time::Instant;

use support::command::shell;
use support::{Kiln, is_installed, is_root};

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

/// Makes an image of a tree with a file of `length` bytes.
fn import(kiln: &Kiln, name: &str, length: usize) -> String {
    kiln.write(format!("{name}/data"), name.as_bytes().repeat(length / name.len() + 1));
    shell(&kiln.scratch(), &format!("tar --sort=name --mtime=@0 -C {name} -cf {name}.tar ."));
    kiln.ok(["import", &format!("{name}.tar"), name])
}

#[test]
fn privileged_an_image_is_listed_inspected_tagged_and_removed() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    let id = kiln.ok(["images", "-q", "--no-trunc", "busybox"]);
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    let table = kiln.ok(["image", "ls"]);
    assert!(table.starts_with("REPOSITORY   TAG       IMAGE ID       CREATED"), "{table}");
    assert_eq!(kiln.ok(["inspect", "-f", "{{.Id}} {{index .RepoTags 0}}", "busybox"]), format!("{id} busybox:latest"));
    let history = kiln.ok(["history", "--format", "{{.ID}} {{.CreatedBy}}", "busybox"]);
    assert_eq!(history, format!("{} busybox", &id[7..19]));
    kiln.ok(["tag", "busybox", "a.example/b/c:1"]);
    assert_eq!(lines(&kiln.ok(["images", "-q"])).len(), 2, "a row for each name");
    assert_eq!(kiln.ok(["images", "--filter", "reference=a.example/*/*", "--format", "{{.Tag}}"]), "1");
    kiln.fails(["rmi", &id[7..19]]).expect_stderr(&["must be forced"]);
    assert_eq!(kiln.ok(["rmi", "busybox"]), "Untagged: busybox:latest");
    let removed = kiln.ok(["rmi", "a.example/b/c:1"]);
    assert_eq!(lines(&removed), ["Untagged: a.example/b/c:1", &format!("Deleted: {id}")]);
    assert_eq!(kiln.ok(["images", "-q"]), "");
    kiln.fails(["inspect", "busybox"]).expect_stdout(&["[]"]).expect_stderr(&["No such object: busybox"]);
    kiln.fails(["rmi", "busybox"]).expect_stderr(&["No such image: busybox"]);
    kiln.ok(["rmi", "-f", "busybox"]);
    kiln.fails(["tag", "busybox", "x"]).expect_stderr(&["No such image: busybox"]);
    let pinned = format!("x:1@{id}");
    kiln.fails(["tag", &id, &pinned]).expect_stderr(&[&pinned, "cannot have a digest"]);
    kiln.fails(["history", "busybox"]).expect_stderr(&["No such image: busybox"]);
    kiln.fails(["save", "-o", "x.tar", "busybox"]).expect_stderr(&["No such image: busybox"]);
    assert!(!kiln.scratch().join("x.tar").exists(), "a failed save leaves no file");
}

#[test]
fn privileged_filters_pick_images() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    let old = kiln.ok(["images", "-q"]);
    kiln.write("tree/x", "x");
    shell(&kiln.scratch(), "tar -C tree -cf t.tar .");
    kiln.ok(["import", "-c", "LABEL tier=front", "-c", "CMD [\"/bin/x\"]", "-m", "by hand", "t.tar", "labelled"]);
    let nameless = kiln.ok(["import", "t.tar"]);
    let picked = |filter: &str| kiln.ok(["images", "-q", "--filter", filter]);
    let labelled = kiln.ok(["images", "-q", "labelled"]);
    assert_eq!(picked("label=tier=front"), labelled);
    assert_eq!(picked("label=tier=back"), "");
    assert_eq!(picked("dangling=true"), &nameless[7..19]);
    assert_eq!(picked("before=labelled"), old);
    assert_eq!(picked("until=2024-06-01"), old);
    assert!(!picked("since=busybox").contains(&old));
    assert_eq!(kiln.ok(["inspect", "-f", "{{json .Config.Cmd}} {{.Comment}}", "labelled"]), "[\"/bin/x\"] by hand");
    kiln.fails(["images", "--filter", "colour=red"]).expect_stderr(&["invalid filter 'colour'"]);
    kiln.fails(["import", "-c", "RUN x", "t.tar"]).expect_stderr(&["RUN is not a valid change command"]);
    assert_eq!(kiln.command(["image", "prune"]).stdin("n\n").output().expect_code(0).stdout.lines().count(), 2);
    let pruned = kiln.ok(["image", "prune", "-f"]);
    assert!(pruned.contains(&format!("deleted: {nameless}")) && pruned.contains("Total reclaimed space:"), "{pruned}");
    assert_eq!(lines(&kiln.ok(["images", "-q"])).len(), 2);
    kiln.ok(["image", "prune", "-af"]);
    assert_eq!(kiln.ok(["images", "-q"]), "");
}

#[test]
fn privileged_archives_of_all_sorts_are_loaded() {
    if !is_root() || !is_installed("skopeo", "skopeo") {
        return;
    }
    let kiln = Kiln::with_busybox();
    let id = kiln.ok(["images", "-q", "--no-trunc"]);
    kiln.ok(["tag", "busybox", "other:2"]);
    kiln.ok(["save", "-o", "both.tar", "busybox", "other:2"]);
    let scratch = kiln.scratch();
    shell(
        &scratch,
        "skopeo copy -q docker-archive:both.tar:busybox:latest docker-archive:docker.tar:busybox:latest
         skopeo copy -q docker-archive:both.tar:busybox:latest oci-archive:oci.tar:busybox:latest
         gzip -k docker.tar; bzip2 -k oci.tar; xz -k docker.tar; zstd -q oci.tar",
    );
    let layers = ["inspect", "-f", "{{json .RootFS.Layers}}", "busybox"];
    for archive in ["both.tar", "docker.tar", "oci.tar", "docker.tar.gz", "oci.tar.bz2", "docker.tar.xz", "oci.tar.zst"]
    {
        let other = Kiln::new();
        let path = scratch.join(archive);
        let said = other.command(["load", "-i"]).arg(&path).ok();
        assert!(said.contains("Loaded image: busybox:latest"), "{archive}: {said}");
        // skopeo writes the configuration anew for another format.
        if archive.starts_with("oci") {
            assert_eq!(other.ok(layers), kiln.ok(layers), "{archive}");
        } else {
            assert_eq!(other.ok(["images", "-q", "--no-trunc", "busybox"]), id, "{archive}");
        }
        assert_eq!(other.ok(["run", "--rm", "busybox", "echo", "hello"]), "hello", "{archive}");
        if archive == "both.tar" {
            assert_eq!(other.ok(["images", "-q", "--no-trunc", "other:2"]), id);
        }
    }
    // From a pipe, and to one.
    let other = Kiln::new();
    let bytes = std::fs::read(scratch.join("docker.tar")).unwrap();
    other.command(["load", "-q"]).stdin(bytes).ok();
    let first = other.ok(["inspect", "-f", "{{.Id}}", "busybox"]);
    assert_eq!(first, id);
}

#[test]
fn privileged_a_saved_image_is_the_same_each_time() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    kiln.ok(["save", "-o", "one.tar", "busybox"]);
    kiln.ok(["save", "-o", "two.tar", "busybox"]);
    shell(&kiln.scratch(), "cmp one.tar two.tar");
}

#[test]
fn privileged_damaged_archives_are_refused_whole() {
    if !is_root() {
        return;
    }
    let good = Kiln::with_busybox();
    good.ok(["save", "-o", "good.tar", "busybox"]);
    shell(
        &good.scratch(),
        "head -c 500000 good.tar > short.tar; echo hello > text.tar; tar cf empty.tar --files-from /dev/null; tar cf tree.tar text.tar",
    );
    let kiln = Kiln::new();
    for (archive, words) in
        [("short.tar", "archive"), ("text.tar", "archive"), ("empty.tar", "archive"), ("tree.tar", "manifest.json")]
    {
        let failed = kiln.command(["load", "-i"]).arg(good.scratch().join(archive)).fails();
        failed.expect_stderr(&[words]);
    }
    kiln.fails(["load", "-i", "missing.tar"]).expect_stderr(&["missing.tar", "no such file"]);
    assert_eq!(kiln.ok(["images", "-q"]), "");
}

fn du(path: &Path) -> u64 {
    let said = support::command::run("du", ["-s", "-B1", &path.display().to_string()]);
    said.split('\t').next().and_then(|bytes| bytes.parse().ok()).expect("du prints a number first")
}

/// Returns the sum of what `system df` lists, in bytes.
fn df(kiln: &Kiln) -> u64 {
    let said = kiln.ok(["system", "df", "-v", "--format", "json"]);
    let usage: serde_json::Value = serde_json::from_str(&said).expect("system df prints JSON");
    let sum = |list: &str, field: &str| -> u64 {
        let items = usage[list].as_array().map_or(&[][..], Vec::as_slice);
        let own = items.iter().filter(|item| item["Shared"] != true);
        own.map(|item| item[field].as_u64().expect("sizes are numbers")).sum()
    };
    let number = |field: &str| usage[field].as_u64().expect("sizes are numbers");
    number("LayersSize") + sum("Containers", "SizeRw") + sum("BuildCache", "Size") + number("OtherSize")
}

#[test]
fn privileged_df_agrees_with_du() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    import(&kiln, "first", 20 << 20);
    import(&kiln, "second", 3 << 20);
    kiln.write("context/Dockerfile", "FROM busybox\nRUN dd if=/dev/zero of=/a bs=1M count=7\nCOPY . /b\n");
    kiln.write("context/file", vec![7; 5 << 20]);
    kiln.ok(["build", "-q", "-t", "built", "context"]);
    // A layer of two images, and one of the cache alone.
    kiln.write("context/Dockerfile", "FROM busybox\nRUN dd if=/dev/zero of=/a bs=1M count=7\nRUN echo\n");
    kiln.ok(["build", "-q", "-t", "again", "context"]);
    kiln.ok(["run", "--name", "writes", "busybox", "dd", "if=/dev/zero", "of=/c", "bs=1M", "count=4"]);
    kiln.ok(["rmi", "built"]);
    check_df(&kiln);
    kiln.ok(["rm", "writes"]);
    kiln.ok(["rmi", "first", "again"]);
    check_df(&kiln);
    kiln.ok(["system", "prune", "-af"]);
    for dir in ["snapshots", "blobs/sha256", "ingest"] {
        let entries = std::fs::read_dir(kiln.root().join(dir)).unwrap().flatten().map(|entry| entry.file_name());
        let left: Vec<_> = entries.filter(|name| !name.to_string_lossy().starts_with("empty")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn check_df(kiln: &Kiln) {
    let (said, found) = (df(kiln), du(&kiln.root()));
    let percent = said.abs_diff(found) * 100 / found;
    assert!(percent < 2, "df says {said}, du {found}\n{}", kiln.ok(["system", "df"]));
}

#[test]
fn privileged_collections_and_loads_do_not_harm_each_other() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    let archive = support::base::busybox();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (kiln, archive) = (&kiln, &archive);
            scope.spawn(move || {
                for round in 0..6 {
                    let name = format!("busy{number}:{round}");
                    kiln.command(["load", "-q", "-i"]).arg(archive).ok();
                    // Somebody may remove `busybox` between the two; the image has another name by then or is not there.
                    let tagged = kiln.command(["tag", "busybox", &name]).output();
                    if tagged.code == 0 {
                        assert_eq!(kiln.ok(["run", "--rm", &name, "echo", "hello"]), "hello");
                        kiln.ok(["rmi", &name]);
                    }
                }
            });
        }
        for _ in 0..2 {
            let kiln = &kiln;
            scope.spawn(move || {
                for _ in 0..8 {
                    kiln.ok(["image", "prune", "-f"]);
                    kiln.command(["rmi", "busybox"]).output();
                }
            });
        }
    });
    kiln.load(&archive);
    assert_eq!(kiln.ok(["run", "--rm", "busybox", "echo", "hello"]), "hello", "after {:?}", start.elapsed());
}

#[test]
fn privileged_an_image_in_use_stays() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    kiln.ok(["run", "--name", "user", "busybox", "true"]);
    kiln.fails(["rmi", "busybox"]).expect_stderr(&["must be forced", "stopped container"]);
    kiln.ok(["image", "prune", "-af"]);
    assert_eq!(lines(&kiln.ok(["images", "-q"])).len(), 1);
    kiln.ok(["rm", "user"]);
    kiln.ok(["rmi", "busybox"]);
}

#[test]
fn privileged_info_and_version_say_what_answers() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::new();
    let info = kiln.ok(["info"]);
    assert!(info.contains("Engine:     an engine of this command's own"), "{info}");
    assert!(info.contains(&format!("Root Dir: {}", kiln.root().canonicalize().unwrap().display())), "{info}");
    assert_eq!(kiln.ok(["version", "--format", "{{.Client.Version}}"]), env!("CARGO_PKG_VERSION"));
    assert_eq!(kiln.ok(["info", "-f", "{{.OSType}}"]), "linux");
    let failed = kiln.fails(["-H", "unix:///nonexistent.sock", "images"]);
    failed.expect_stderr(&["unix:///nonexistent.sock", "is the daemon running?"]);
}
