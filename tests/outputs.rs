//! End-to-end tests of what becomes of a result: files, archives, images at registries, several platforms, and equal digests.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::{Value, json};
use support::registry::{self, Access, Connection, Registry};
use support::{Kiln, Outcome, command, is_installed};

/// A build with a file, links, modes and an owner.
const FILES: &str = "FROM busybox AS made
RUN mkdir -p /out/d && echo made >/out/file && chmod 4755 /out/file && ln /out/file /out/d/hard && ln -s ../file /out/d/soft
FROM scratch
COPY --from=made /out /
";

/// A build for every platform that runs nothing foreign.
const CROSS: &str = "FROM --platform=$BUILDPLATFORM busybox AS made
RUN echo shared >/shared
ARG TARGETPLATFORM
RUN echo $TARGETPLATFORM >/platform
FROM scratch
COPY --from=made /shared /platform /
";

/// Builds `app`; panics unless it succeeds.
fn build(kiln: &Kiln, args: &[&str]) -> Outcome {
    kiln.command(["build", "--progress=plain"]).args(args).arg("app").output().expect_code(0)
}

/// Builds `app` and returns the image's id.
fn id(kiln: &Kiln, args: &[&str]) -> String {
    kiln.command(["build", "-q"]).args(args).arg("app").ok()
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn metadata(kiln: &Kiln, path: &str) -> Value {
    parse(&fs::read_to_string(kiln.scratch().join(path)).expect("read the metadata file"))
}

/// Returns a document of a layout, by its digest.
fn document(layout: &Path, digest: &Value) -> Value {
    let hex = digest.as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
    parse(&fs::read_to_string(layout.join("blobs/sha256").join(hex)).expect("read a blob"))
}

/// Returns the manifests of the index that a layout is of.
fn manifests(layout: &Path) -> Vec<Value> {
    let top = parse(&fs::read_to_string(layout.join("index.json")).expect("read the index"));
    let index = document(layout, &top["manifests"][0]["digest"]);
    index["manifests"].as_array().unwrap_or_else(|| panic!("no index: {index}")).clone()
}

/// Returns the names and types of an archive's entries, in order.
fn entries(archive: &[u8]) -> BTreeMap<String, tar::Header> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("read an archive").map(|entry| entry.expect("read an entry"));
    entries.map(|entry| (entry.path().expect("a path").display().to_string(), entry.header().clone())).collect()
}

/// Asks the registry for a document as it is.
fn raw(registry: &Registry, name: &str) -> Value {
    let image = format!("docker://{}/{name}", registry.host());
    parse(&command::run("skopeo", ["inspect", "--raw", "--tls-verify=false", &image]))
}

/// Whether the registry's tests can run.
fn has_registry() -> bool {
    registry::is_installed() && is_installed("skopeo", "skopeo")
}

#[test]
fn privileged_a_result_goes_into_a_directory_beside_what_is_there() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", FILES)]) else { return };
    kiln.write("out/kept", "kept");
    kiln.write("out/d", "in the way");
    build(&kiln, &["-o", "out"]);
    let out = kiln.scratch().join("out");
    let file = fs::metadata(out.join("file")).expect("the file is there");
    assert_eq!(
        (fs::read_to_string(out.join("file")).unwrap().as_str(), file.permissions().mode() & 0o7777),
        ("made\n", 0o4755)
    );
    assert_eq!(file.ino(), fs::metadata(out.join("d/hard")).expect("the link is there").ino());
    assert_eq!(fs::read_link(out.join("d/soft")).expect("a link").to_str(), Some("../file"));
    assert_eq!(fs::read_to_string(out.join("kept")).unwrap(), "kept");
    build(&kiln, &["-o", "type=local,dest=out,mode=delete", "--allow=buildx.local.delete"]);
    assert!(!out.join("kept").exists() && out.join("d/hard").exists());
}

#[test]
fn privileged_links_in_a_directory_lead_nothing_out_of_it() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM scratch\nCOPY a d/a\nCOPY a f\n"), ("a", "new")]) else {
        return;
    };
    let outside = kiln.write("outside/f", "old");
    fs::create_dir(kiln.scratch().join("out")).unwrap();
    std::os::unix::fs::symlink(outside.parent().unwrap(), kiln.scratch().join("out/d")).unwrap();
    std::os::unix::fs::symlink(&outside, kiln.scratch().join("out/f")).unwrap();
    build(&kiln, &["-o", "out"]);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "old");
    assert!(!kiln.scratch().join("outside/a").exists());
    for path in ["out/f", "out/d/a"] {
        assert_eq!(fs::read_to_string(kiln.scratch().join(path)).unwrap(), "new", "{path}");
    }
    assert!(!kiln.scratch().join("out/d").is_symlink() && !kiln.scratch().join("out/f").is_symlink());
}

#[test]
fn privileged_a_result_goes_into_an_archive_and_several_ways_at_once() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", FILES)]) else { return };
    let outputs = ["-o", "type=tar,dest=out.tar", "-o", "type=oci,dest=oci.tar", "-o", "out", "--load", "-t", "app"];
    build(&kiln, &outputs);
    let files = entries(&fs::read(kiln.scratch().join("out.tar")).unwrap());
    assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), ["d/", "d/hard", "d/soft", "file"]);
    assert_eq!(files["d/hard"].mode().unwrap(), 0o4755);
    assert!(kiln.scratch().join("out/file").exists() && kiln.scratch().join("oci.tar").exists());
    kiln.ok(["image", "inspect", "app"]);
    // On standard output there is the archive and nothing else.
    command::shell(
        &kiln.scratch(),
        &format!(
            "HOME={} {} --root {} build -q app -o - 2>/dev/null | tar t | grep -x d/hard",
            kiln.home().display(),
            support::KILN,
            kiln.root().display()
        ),
    );
}

#[test]
fn privileged_archives_of_images_are_read_by_others() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM busybox\nRUN echo hi >/made\nCMD [\"cat\", \"/made\"]\n")])
    else {
        return;
    };
    let image = id(&kiln, &["-t", "team/app:1", "-o", "type=docker,dest=docker.tar", "-o", "type=image"]);
    build(&kiln, &["-t", "team/app:1", "-o", "type=oci,dest=layout,tar=false"]);
    let other = Kiln::new();
    other.load(&kiln.scratch().join("docker.tar"));
    assert_eq!(other.ok(["image", "inspect", "--format={{.Id}}", "team/app:1"]), image);
    assert_eq!(other.ok(["run", "--rm", "--network=none", "team/app:1"]), "hi");
    if is_installed("skopeo", "skopeo") {
        let seen =
            parse(&command::run("skopeo", ["inspect", &format!("oci:{}:1", kiln.scratch().join("layout").display())]));
        assert_eq!(
            seen["Architecture"],
            json!(std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"))
        );
        let archive = format!("docker-archive:{}", kiln.scratch().join("docker.tar").display());
        command::run("skopeo", ["copy", "-q", &archive, &format!("dir:{}", kiln.scratch().join("copied").display())]);
    }
}

#[test]
fn privileged_an_image_is_pushed_as_it_is_wanted() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM busybox\nCOPY a /\n"), ("a", "a")]) else { return };
    if !has_registry() {
        return;
    }
    let registry = Registry::start();
    let name = format!("{}/app", registry.host());
    let output = |rest: &str| format!("type=image,push=true,{rest}");
    let special = output(&format!("name={name}:zstd,compression=zstd,compression-level=5,force-compression=true"));
    build(&kiln, &["-o", &special, "--annotation=a.b=c", "--annotation=manifest[linux/none]:x=y"]);
    let manifest = raw(&registry, "app:zstd");
    assert_eq!(manifest["annotations"], json!({ "a.b": "c" }));
    let types: Vec<_> = manifest["layers"].as_array().unwrap().iter().map(|layer| &layer["mediaType"]).collect();
    assert_eq!(types, ["application/vnd.oci.image.layer.v1.tar+zstd"; 2]);

    build(&kiln, &["-o", &output(&format!("name={name}:docker,oci-mediatypes=false"))]);
    let manifest = raw(&registry, "app:docker");
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(manifest["layers"][1]["mediaType"], "application/vnd.docker.image.rootfs.diff.tar.gzip");

    build(&kiln, &["-o", &output(&format!("name={name},push-by-digest=true,store=false")), "--metadata-file=m.json"]);
    let told = metadata(&kiln, "m.json");
    let digest = told["containerimage.digest"].as_str().expect("a digest");
    assert_eq!(told["image.name"], name.as_str());
    assert!(told["buildx.build.ref"].is_string() && told.get("buildx.build.warnings").is_none());
    assert_eq!(told["containerimage.descriptor"]["digest"], digest);
    assert_eq!(raw(&registry, &format!("app@{digest}"))["config"]["digest"], told["containerimage.config.digest"]);
    kiln.fails(["image", "inspect", &format!("{name}:latest")]);
}

#[test]
fn privileged_layers_are_written_in_estargz_form() {
    let dockerfile =
        "FROM busybox\nCOPY a /\nRUN mkdir /d && head -c 5000000 /dev/zero >/d/large && ln -s large /d/link\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile), ("a", "a")]) else { return };
    if !has_registry() {
        return;
    }
    let registry = Registry::start();
    let name = format!("{}/lazy", registry.host());
    let output = |rest: &str| format!("type=image,name={name}:new,push=true,compression=estargz{rest}");
    build(&kiln, &["-o", &output(""), "--metadata-file=one"]);
    let table = "containerd.io/snapshot/stargz/toc.digest";
    let has_table = |manifest: &Value| -> Vec<bool> {
        let layers = manifest["layers"].as_array().expect("layers");
        layers.iter().map(|layer| layer["annotations"][table].is_string()).collect()
    };
    let manifest = raw(&registry, "lazy:new");
    assert_eq!(manifest["layers"][1]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    assert_eq!(has_table(&manifest), [false, true, true], "the base's layer stays as it is");
    // The same again, and those of the base when that is asked for.
    build(&kiln, &["-o", &output(""), "--metadata-file=two"]);
    assert_eq!(metadata(&kiln, "one")["containerimage.digest"], metadata(&kiln, "two")["containerimage.digest"]);
    build(&kiln, &["-o", &output(",force-compression=true")]);
    assert_eq!(has_table(&raw(&registry, "lazy:new")), [true; 3]);
    // Everybody else sees the files alone, and finds that the layers are what the configuration says.
    let other = Kiln::new();
    for kiln in [&kiln, &other] {
        if kiln.root() == other.root() {
            kiln.ok(["pull", "-q", &format!("{name}:new")]);
        }
        let list = "cat /a; echo; ls -l /d | tail -n +2 | awk '{ print $1, $5, $9 }'; ls / | grep -c stargz";
        let seen = kiln.command(["run", "--rm", "--network=none", &format!("{name}:new"), "sh", "-c", list]).output();
        assert_eq!(seen.stdout, "a\n-rw-r--r-- 5000000 large\nlrwxrwxrwx 5 link\n0\n", "{}", seen.report());
    }
    command::run(
        "skopeo",
        [
            "copy",
            "-q",
            "--src-tls-verify=false",
            &format!("docker://{name}:new"),
            &format!("dir:{}", kiln.scratch().join("copy").display()),
        ],
    );
}

#[test]
fn privileged_a_registry_is_taken_as_it_is_when_that_is_asked_for() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", FILES)]) else { return };
    if !has_registry() {
        return;
    }
    for connection in [Connection::SelfSigned, Connection::Plain] {
        let registry = Registry::start_with(Access::Open, connection);
        let push = format!("type=registry,name={}/app:1", registry.host());
        build(&kiln, &["-o", &format!("{push},registry.insecure=true")]);
        assert!(raw(&registry, "app:1")["config"]["digest"].is_string(), "{connection:?}");
        if connection == Connection::SelfSigned {
            kiln.fails(["build", "-o", &push, "app"]).expect_stderr(&[registry.host()]);
        }
    }
}

#[test]
fn privileged_a_build_for_several_platforms_is_an_index() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", CROSS)]) else { return };
    let platforms = "--platform=linux/amd64,linux/arm64";
    let built = build(&kiln, &[platforms, "-t", "app", "--metadata-file=m.json"]);
    // What does not depend on the platform is built once, and the rest says what it is for.
    let steps = built.stderr.lines().filter(|line| line.contains("RUN echo shared") && line.starts_with('#'));
    let steps: BTreeSet<_> = steps.filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(steps.len(), 1, "{}", built.report());
    built.expect_stderr(&["[linux/arm64", "[linux/amd64"]);
    let told = metadata(&kiln, "m.json");
    assert_eq!(told["containerimage.descriptor"]["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert!(told.get("containerimage.config.digest").is_none());
    // Its name stands for what runs here, and the others are not listed.
    let host = kiln.ok(["image", "inspect", "--format={{.Architecture}}", "app"]);
    assert_eq!(host, if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
    assert_eq!(kiln.ok(["images", "-q"]).lines().count(), 2);
    let digest = told["containerimage.digest"].as_str().expect("a digest");
    assert_eq!(kiln.ok(["image", "inspect", "--format={{.Architecture}}", digest]), host);
    // A build finds the other platform, too.
    kiln.write("next/Dockerfile", "FROM app\nLABEL x=y\n");
    let next = kiln.command(["build", "-q", "--platform=linux/arm64", "next"]).ok();
    assert_eq!(kiln.ok(["image", "inspect", "--format={{.Architecture}}", &next]), "arm64");

    // Of what is here for other platforms only, that is said, too.
    kiln.ok(["build", "-q", "--platform=linux/amd64", "-t", "127.0.0.1:1/here", "app"]);
    kiln.write("next/Dockerfile", "FROM 127.0.0.1:1/here\n");
    let refused = kiln.fails(["build", "--platform=linux/s390x", "next"]);
    refused.expect_stderr(&["127.0.0.1:1/here:latest that is here is for linux/amd64 and not for linux/s390x"]);
    kiln.ok(["rmi", "127.0.0.1:1/here"]);

    build(&kiln, &[platforms, "-o", "out", "-o", "type=tar,dest=out.tar", "-o", "type=oci,dest=layout,tar=false"]);
    for (dir, platform) in [("linux_amd64", "linux/amd64\n"), ("linux_arm64", "linux/arm64\n")] {
        let path = kiln.scratch().join("out").join(dir).join("platform");
        assert_eq!(fs::read_to_string(path).unwrap(), platform);
    }
    assert!(entries(&fs::read(kiln.scratch().join("out.tar")).unwrap()).contains_key("linux_arm64/shared"));
    let layout = kiln.scratch().join("layout");
    let found: Vec<_> = manifests(&layout).iter().map(|entry| entry["platform"]["architecture"].clone()).collect();
    assert_eq!(found, ["amd64", "arm64"]);

    // The others go with the name, though the image that runs here has another.
    let alias = kiln.ok(["image", "inspect", "--format={{.Id}}", "app"]);
    kiln.ok(["tag", &alias, "alias"]);
    kiln.ok(["rmi", "app", &next]);
    assert_eq!(kiln.ok(["images", "-qa"]).lines().count(), 2, "busybox and the alias are left");
    kiln.ok(["rmi", "alias"]);
    assert_eq!(kiln.ok(["images", "-qa"]).lines().count(), 1, "the images of the index went with it");
}

#[test]
fn privileged_an_index_is_pushed_with_all_its_images_now_or_later() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", CROSS)]) else { return };
    if !has_registry() {
        return;
    }
    let registry = Registry::start();
    let (now, later) = (format!("{}/now:1", registry.host()), format!("{}/later:1", registry.host()));
    let annotations = ["--annotation=index:i=1", "--annotation=manifest-descriptor[linux/arm64]:d=2"];
    build(&kiln, &[&["--platform=linux/amd64,linux/arm64", "--push", "-t", &now][..], &annotations].concat());
    let index = raw(&registry, "now:1");
    assert_eq!(
        (&index["annotations"], &index["manifests"][1]["annotations"]),
        (&json!({ "i": "1" }), &json!({ "d": "2" }))
    );
    for entry in index["manifests"].as_array().expect("it is an index") {
        let digest = entry["digest"].as_str().expect("a digest");
        let manifest = raw(&registry, &format!("now@{digest}"));
        assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    }
    kiln.ok(["tag", &now, &later]);
    kiln.ok(["builder", "prune", "-af"]);
    kiln.ok(["push", &later]);
    assert_eq!(raw(&registry, "later:1"), index);
}

#[test]
fn privileged_equal_builds_on_two_roots_give_equal_images() {
    let dockerfile = "FROM busybox AS tool
RUN mkdir -p /opt/tool && date >/dev/null && echo x >/opt/tool/x && cp /opt/tool/x /opt/tool/y
FROM busybox
WORKDIR /srv/app
COPY a dir/
RUN echo made >made && ln -s made link && touch /etc/touched && mkdir empty && rm dir/a
COPY --link --from=tool /opt/tool /opt/tool
ENV A=1
CMD [\"true\"]
";
    let Some(one) = Kiln::project(&[("Dockerfile", dockerfile), ("a", "a")]) else { return };
    let two = Kiln::with_busybox();
    let context = one.scratch().join("app");
    let built = |kiln: &Kiln, args: &[&str]| kiln.command(["build", "-q"]).args(args).arg(&context).ok();
    let (first, again) = (built(&one, &["-t", "app"]), built(&two, &[]));
    assert_eq!(first, again);
    assert_eq!(first, built(&one, &["--no-cache"]), "what is built anew is the same");
    let created = one.ok(["image", "inspect", "--format={{.Created}}", "app"]);
    let newest = fs::metadata(context.join("a")).unwrap().mtime();
    assert_eq!(
        created.parse::<jiff::Timestamp>().expect("a time").as_second(),
        newest,
        "it is as old as its newest file"
    );
    // Everything in it has a time of the inputs.
    let times =
        one.ok(["run", "--rm", "--network=none", "app", "stat", "-c", "%Y", "/srv/app/made", "/etc/touched", "/srv"]);
    let base = 1_704_067_200; // 2024-01-01
    for time in times.lines().map(|time| time.parse::<i64>().expect("a number")) {
        assert!(time == newest || time <= base, "{times}");
    }
}

#[test]
fn privileged_attestations_are_stored_beside_images_and_among_files() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM scratch\nCOPY a z /\n"), ("a", "a"), ("z", "z")]) else {
        return;
    };
    let outputs = [
        "-o",
        "out",
        "-o",
        "type=tar,dest=out.tar,attestation-prefix=about-",
        "-o",
        "type=oci,dest=layout,tar=false,oci-artifact=false",
        "-o",
        "type=oci,dest=without,tar=false,attestation-inline=false",
    ];
    build(&kiln, &[&["--provenance=mode=min"][..], &outputs].concat());
    let told = parse(&fs::read_to_string(kiln.scratch().join("out/provenance.json")).unwrap());
    let subjects: Vec<_> = told["subject"].as_array().unwrap().iter().map(|subject| subject["name"].clone()).collect();
    assert_eq!(
        (subjects, &told["predicateType"]),
        (vec![json!("a"), json!("z")], &json!("https://slsa.dev/provenance/v1"))
    );
    let files = entries(&fs::read(kiln.scratch().join("out.tar")).unwrap());
    assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "about-provenance.json", "z"]);

    let layout = kiln.scratch().join("layout");
    let [image, attestation] = &manifests(&layout)[..] else { panic!("an image and its attestation are expected") };
    assert_eq!(attestation["platform"]["architecture"], "unknown");
    assert_eq!(attestation["annotations"]["vnd.docker.reference.digest"], image["digest"]);
    let manifest = document(&layout, &attestation["digest"]);
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.oci.image.config.v1+json");
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.in-toto+json");
    let statement = document(&layout, &manifest["layers"][0]["digest"]);
    let hex = image["digest"].as_str().unwrap().trim_start_matches("sha256:");
    assert_eq!(statement["subject"][0]["digest"]["sha256"], hex);

    let plain = parse(&fs::read_to_string(kiln.scratch().join("without/index.json")).unwrap());
    assert_eq!(plain["manifests"][0]["mediaType"], "application/vnd.oci.image.manifest.v1+json");
}

#[test]
fn privileged_nothing_in_an_image_is_later_than_the_epoch() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM busybox\nCOPY a /\nRUN echo >/made\n"), ("a", "a")]) else {
        return;
    };
    let epoch = "1700000000";
    let with_variable = kiln.command(["build", "-q", "app"]).env("SOURCE_DATE_EPOCH", epoch).ok();
    assert_eq!(with_variable, id(&kiln, &["--build-arg", &format!("SOURCE_DATE_EPOCH={epoch}")]));
    let created = kiln.ok(["image", "inspect", "--format={{.Created}}", &with_variable]);
    assert_eq!(created, "2023-11-14T22:13:20Z");

    let plain = "compression=uncompressed,rewrite-timestamp=true,source-date-epoch=1600000000";
    build(&kiln, &["-o", &format!("type=oci,dest=layout,tar=false,{plain}")]);
    let layout = kiln.scratch().join("layout");
    let top = parse(&fs::read_to_string(layout.join("index.json")).unwrap());
    let manifest = document(&layout, &top["manifests"][0]["digest"]);
    let config = document(&layout, &manifest["config"]["digest"]);
    assert_eq!(config["created"], "2020-09-13T12:26:40Z");
    assert_eq!(config["history"][0]["created"], "2024-01-01T00:00:00Z", "the base stays what it is");
    for layer in &manifest["layers"].as_array().unwrap()[1..] {
        let hex = layer["digest"].as_str().unwrap().trim_start_matches("sha256:");
        for (path, header) in entries(&fs::read(layout.join("blobs/sha256").join(hex)).unwrap()) {
            assert!(header.mtime().unwrap() <= 1_600_000_000, "{path}");
        }
    }

    build(&kiln, &["-o", "type=local,dest=out,source-date-epoch=1500000000"]);
    assert_eq!(fs::metadata(kiln.scratch().join("out/a")).unwrap().mtime(), 1_500_000_000);
}

/// `testdata/outputs/config.json` is what the BuildKit of dockerd 26.1.5 wrote for `config.dockerfile`, without times and digests.
/// EXPOSE is as later versions write it: the peer's Go map of ports has become a list.
#[test]
fn privileged_configuration_and_history_are_those_of_buildkit() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/outputs");
    let dockerfile = fs::read_to_string(testdata.join("config.dockerfile")).unwrap();
    let Some(kiln) = Kiln::project(&[("Dockerfile", &dockerfile), ("hello", "hello\n")]) else { return };
    build(&kiln, &["--network=none", "-o", "type=oci,dest=layout,tar=false"]);
    let layout = kiln.scratch().join("layout");
    let top = parse(&fs::read_to_string(layout.join("index.json")).unwrap());
    let manifest = document(&layout, &top["manifests"][0]["digest"]);
    let mut config = document(&layout, &manifest["config"]["digest"]);
    let object = config.as_object_mut().expect("an object");
    assert!(object.remove("created").is_some() && object.remove("rootfs").is_some());
    for entry in object["history"].as_array_mut().expect("a history") {
        assert!(entry.as_object_mut().and_then(|entry| entry.remove("created")).is_some(), "{entry}");
    }
    let mut expected = parse(&fs::read_to_string(testdata.join("config.json")).unwrap());
    expected["architecture"] = config["architecture"].clone();
    assert_eq!(config, expected, "{config:#}");
}

#[test]
fn privileged_what_is_wrong_about_an_output_is_said() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]) else { return };
    for (args, words) in [
        (&["-o", "type=image,compresion=zstd"][..], "did you mean compression?"),
        (&["-o", "type=image,compression=estargz,oci-mediatypes=false"], "OCI media types only"),
        (&["-o", "type=image,compression=nydus"], "nydus is not supported"),
        (&["-o", "type=locl,dest=x"], "did you mean local?"),
        (&["-o", "type=local,dest=x,mode=delete"], "buildx.local.delete"),
        (&["--annotation=index:a=b"], "for an index"),
        (&["--platform=linux/amd64,linux/arm64", "-o", "type=docker,dest=x.tar"], "several platforms"),
        (&["-o", "type=image,push=true"], "--tag"),
    ] {
        kiln.command(["build"]).args(args).arg("app").fails().expect_stderr(&[words]);
    }
    assert!(!kiln.scratch().join("x").exists() && !kiln.scratch().join("x.tar").exists());
}
