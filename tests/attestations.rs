//! End-to-end tests of what is said about a build: provenance, bills of material, and whether it gives the same again.

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use support::{Kiln, base, command, is_installed, is_root};

/// Builds `app` with these options and its result in the directory `out`.
fn build(kiln: &Kiln, args: &[&str]) {
    kiln.command(["build", "--progress=plain", "-o", "type=local,dest=out"]).args(args).arg("app").ok();
}

/// Reads the predicate of a statement in `out`.
fn predicate(kiln: &Kiln, name: &str) -> Value {
    let text = std::fs::read_to_string(kiln.scratch().join("out").join(name)).expect("read a statement");
    let statement: Value = serde_json::from_str(&text).expect("a statement is JSON");
    statement["predicate"].clone()
}

fn texts<'a>(list: &'a Value, key: &str) -> Vec<&'a str> {
    list.as_array().into_iter().flatten().filter_map(|entry| entry[key].as_str()).collect()
}

/// The names of a document's packages, without the file system itself and the operating system.
fn packages(document: &Value) -> BTreeSet<(String, String)> {
    let list = document["packages"].as_array().into_iter().flatten();
    let found = list.filter(|package| package["externalRefs"].is_array());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    found.map(|package| (text(&package["name"]), text(&package["versionInfo"]))).collect()
}

#[test]
fn privileged_provenance_tells_of_the_base_and_of_no_arguments_unless_asked_for_all() {
    let dockerfile = "FROM busybox\nARG TOKEN\nRUN --mount=type=secret,id=key true\nCOPY file /\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", dockerfile), ("file", "x"), ("../key", "hunter2")]) else { return };
    let common = ["--build-arg", "TOKEN=argument", "--secret", "id=key,src=key", "--label", "l=v"];
    build(&kiln, &[&common[..], &["--provenance=mode=min,builder-id=me"]].concat());
    let min = predicate(&kiln, "provenance.json");
    let definition = &min["buildDefinition"];
    let uris = texts(&definition["resolvedDependencies"], "uri");
    let base = format!("pkg:docker/busybox@latest?platform=linux%2F{}", base::arch());
    assert_eq!(uris, [base.as_str()]);
    assert!(definition["resolvedDependencies"][0]["digest"]["sha256"].is_string());
    let request = &definition["externalParameters"]["request"];
    assert_eq!(request["frontend"], "dockerfile.v0");
    assert_eq!(texts(&request["locals"], "name"), ["context", "dockerfile"]);
    assert_eq!(min["runDetails"]["builder"]["id"], "me");
    assert_eq!(min["runDetails"]["metadata"]["buildkit_completeness"]["request"], false);
    let text = min.to_string();
    assert!(!text.contains("argument") && !text.contains("\"key\"") && !text.contains("llbDefinition"), "{text}");

    build(&kiln, &[&common[..], &["--provenance=mode=max,version=v0.2,filename=all.json"]].concat());
    let max = predicate(&kiln, "all.json");
    assert_eq!(max["buildType"], "https://mobyproject.org/buildkit@v1");
    let parameters = &max["invocation"]["parameters"];
    assert_eq!(
        (&parameters["args"]["build-arg:TOKEN"], &parameters["args"]["label:l"]),
        (&"argument".into(), &"v".into())
    );
    assert_eq!(texts(&parameters["secrets"], "id"), ["key"]);
    let steps = max["buildConfig"]["llbDefinition"].as_array().expect("there are steps");
    assert!(steps.iter().any(|step| step["op"]["Op"]["exec"]["meta"]["args"].to_string().contains("true")));
    let metadata = &max["metadata"]["https://mobyproject.org/buildkit@v1#metadata"];
    assert_eq!(metadata["source"]["infos"][0]["filename"], "Dockerfile");
    let loaded = &metadata["source"]["infos"][0]["llbDefinition"][0]["op"]["Op"]["source"];
    assert_eq!(loaded["identifier"], "local://dockerfile");
    assert!(metadata["layers"].as_object().is_some_and(|layers| !layers.is_empty()));
    for word in ["hunter2", "resourceUsage", "sysUsage"] {
        assert!(!max.to_string().contains(word), "{word}");
    }

    build(&kiln, &[&common[..], &["--no-cache", "--provenance=mode=max,capture-usage=true"]].concat());
    let max = predicate(&kiln, "provenance.json");
    let steps = &max["buildDefinition"]["internalParameters"]["buildConfig"]["llbDefinition"];
    let used = |step: &Value| {
        Some((step["op"]["Op"]["exec"].is_object(), step["resourceUsage"]["samples"].as_array()?.clone()))
    };
    let used: Vec<(bool, Vec<Value>)> = steps.as_array().expect("there are steps").iter().filter_map(used).collect();
    let [(true, samples)] = used.as_slice() else { panic!("{used:?}") };
    let last = samples.last().expect("the end is read");
    assert!(
        last["cpuStat"]["usageNanos"].as_u64() > Some(0) && last["memoryStat"]["peak"].as_u64() > Some(0),
        "{last}"
    );
}

#[test]
fn privileged_provenance_tells_what_the_machine_did_while_the_build_ran() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM busybox\nRUN sleep 3\n")]) else { return };
    let samples = |version: &str, metadata: &str| -> Vec<Value> {
        let provenance = format!("--provenance=mode=min,capture-usage=true,version={version}");
        build(&kiln, &[&provenance]);
        let samples =
            predicate(&kiln, "provenance.json").pointer(metadata).expect("there is metadata")["sysUsage"].clone();
        samples.as_array().expect("there are samples").clone()
    };
    let all = samples("v1", "/runDetails/metadata/buildkit_metadata");
    let [first, .., last] = all.as_slice() else { panic!("one while it ran and one at its end: {all:?}") };
    let time = |sample: &Value| sample["timestamp"].as_str().expect("a time").to_owned();
    assert!(time(first) < time(last) && time(first).ends_with('Z'), "{first} {last}");
    let count = |sample: &Value, name: &str| sample["procStat"][name].as_u64().expect("a number");
    for name in ["contextSwitches", "processCreated"] {
        assert!(0 < count(first, name) && count(first, name) <= count(last, name), "{name}: {first} {last}");
    }
    let total = std::fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    let total: u64 = total.split_whitespace().nth(1).expect("its first line has a number").parse().expect("a number");
    assert_eq!(last["memoryStat"]["total"], total);
    assert!(last["cpuStat"]["idle"].as_f64() > Some(0.0) && last["cpuStat"]["user"].as_f64() > Some(0.0), "{last}");
    if Path::new("/proc/pressure/cpu").exists() {
        assert!(
            last["cpuPressure"]["some"]["total"].is_u64() && last["ioPressure"]["full"]["avg10"].is_f64(),
            "{last}"
        );
    }
    // A build that finds everything has the end.
    let metadata = "/metadata/https:~1~1mobyproject.org~1buildkit@v1#metadata";
    assert!(!samples("v0.2", metadata).is_empty());
}

#[test]
fn privileged_nothing_is_attested_unless_asked_for_and_the_metadata_file_tells_all_the_same() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM busybox\nARG A\nRUN true\n")]) else { return };
    let metadata = |mode: Option<&str>| -> Value {
        let build = kiln.command(["build", "--build-arg=A=1", "--metadata-file=meta.json", "-t", "app", "app"]);
        match mode {
            Some(mode) => build.env("BUILDX_METADATA_PROVENANCE", mode).ok(),
            None => build.ok(),
        };
        let text = std::fs::read_to_string(kiln.scratch().join("meta.json")).expect("read the metadata file");
        serde_json::from_str(&text).expect("metadata is JSON")
    };
    let min = metadata(None);
    let provenance = &min["buildx.build.provenance"];
    assert_eq!(provenance["buildDefinition"]["externalParameters"]["configSource"]["path"], "Dockerfile");
    assert!(!provenance.to_string().contains("build-arg:A"));
    assert!(metadata(Some("max"))["buildx.build.provenance"].to_string().contains("build-arg:A"));
    assert!(metadata(Some("disabled")).get("buildx.build.provenance").is_none());
    build(&kiln, &[]);
    assert!(!kiln.scratch().join("out/provenance.json").exists());
}

#[test]
fn privileged_the_packages_of_an_image_are_listed() {
    let files = [
        (
            "Dockerfile",
            "FROM busybox AS deps\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nCOPY lock/ /app/\nFROM busybox\nARG BUILDKIT_SBOM_SCAN_CONTEXT=true\nCOPY rootfs/ /\nCOPY --from=deps /app/Cargo.lock /Cargo.lock.old\n",
        ),
        ("lock/Cargo.lock", "[[package]]\nname = \"crate\"\nversion = \"1.2.3\"\n"),
        ("rootfs/etc/os-release", "ID=debian\nVERSION_ID=12\n"),
        ("rootfs/var/lib/dpkg/status", "Package: libx\nStatus: install ok installed\nVersion: 2\nArchitecture: all\n"),
        ("rootfs/app/go.mod", "module m\nrequire example.org/dep v0.1.0\n"),
        ("hidden/Cargo.lock", "[[package]]\nname = \"unseen\"\nversion = \"0\"\n"),
        (".dockerignore", "hidden\n"),
    ];
    let Some(kiln) = Kiln::project(&files) else { return };
    build(&kiln, &["--sbom"]);
    let document = predicate(&kiln, "sbom.spdx.json");
    assert_eq!(document["spdxVersion"], "SPDX-2.3");
    let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    assert_eq!(packages(&document), [pair("example.org/dep", "v0.1.0"), pair("libx", "2")].into());
    let files = texts(&document["files"], "fileName");
    assert_eq!(files, ["./app/go.mod", "./var/lib/dpkg/status"]);
    assert_eq!(packages(&predicate(&kiln, "sbom-deps.spdx.json")), [pair("crate", "1.2.3")].into());
    let context = packages(&predicate(&kiln, "sbom-context.spdx.json"));
    assert!(context.contains(&pair("crate", "1.2.3")) && !context.contains(&pair("unseen", "0")), "{context:?}");

    // The same again is the same document.
    let before = std::fs::read(kiln.scratch().join("out/sbom.spdx.json")).expect("read a document");
    build(&kiln, &["--sbom"]);
    assert_eq!(std::fs::read(kiln.scratch().join("out/sbom.spdx.json")).expect("read a document"), before);
}

#[test]
fn privileged_a_debian_has_the_packages_that_dpkg_tells_of() {
    if !is_root() {
        return;
    }
    let Some(debian) = base::debian() else { return };
    let kiln = Kiln::new();
    kiln.load(&debian);
    kiln.write("app/Dockerfile", "FROM debian\n");
    kiln.command(["build", "-o", "type=local,dest=out", "--sbom", "app"]).ok();
    let told =
        kiln.ok(["run", "--rm", "--network=none", "debian", "dpkg-query", "-W", "-f", "${Package} ${Version}\\n"]);
    let told: BTreeSet<(String, String)> = told
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect();
    assert!(told.len() > 50);
    let document = predicate(&kiln, "sbom.spdx.json");
    assert_eq!(packages(&document), told);
    let licences = document["packages"].as_array().into_iter().flatten();
    assert!(licences.filter(|package| package["licenseDeclared"] != "NOASSERTION").count() > 20);
}

#[test]
fn privileged_what_rpm_itself_installed_is_listed() {
    if !is_installed("rpm", "rpm") {
        return;
    }
    let spec = "Name: hello\nVersion: 2.1\nRelease: 3\nEpoch: 1\nSummary: greets\nLicense: MIT\nBuildArch: noarch\n\
        %description\nGreets.\n%install\nmkdir -p %{buildroot}/usr/share\necho hi >%{buildroot}/usr/share/hello\n\
        %files\n/usr/share/hello\n";
    let os = "NAME=Fedora\nID=fedora\nVERSION_ID=40\n";
    let files = [("Dockerfile", "FROM scratch\nCOPY root /\n"), ("../hello.spec", spec), ("root/etc/os-release", os)];
    let Some(kiln) = Kiln::project(&files) else { return };
    let script = "rpmbuild -bb --define \"_topdir $PWD/top\" hello.spec >log 2>&1
        for place in /var/lib/rpm /usr/lib/sysimage/rpm; do
            rpm --root $PWD/app/root --define '_db_backend sqlite' --define \"_dbpath $place\" --nodeps -i top/RPMS/noarch/*.rpm >>log 2>&1
            mv app/root$place $(basename $(dirname $place))
        done";
    command::shell(&kiln.scratch(), script);
    // Newer distributions keep it in the second place.
    for (place, kept) in [("var/lib/rpm", "lib"), ("usr/lib/sysimage/rpm", "sysimage")] {
        let to = kiln.scratch().join("app/root").join(place);
        std::fs::create_dir_all(to.parent().expect("it has one")).expect("make a directory");
        std::fs::rename(kiln.scratch().join(kept), &to).expect("move a database");
        build(&kiln, &["--sbom"]);
        let document = predicate(&kiln, "sbom.spdx.json");
        assert_eq!(packages(&document), [("hello".to_owned(), "2.1-3".to_owned())].into());
        let told = document["packages"].to_string();
        assert!(
            told.contains("pkg:rpm/fedora/hello@2.1-3?arch=noarch") && told.contains("epoch=1") && told.contains("MIT"),
            "{told}"
        );
        std::fs::remove_dir_all(to).expect("remove a database");
    }
}

#[test]
fn privileged_a_scanner_image_makes_the_list() {
    let scanner = r#"#!/bin/sh
set -e
for source in $BUILDKIT_SCAN_SOURCE $BUILDKIT_SCAN_SOURCE_EXTRAS/*; do
    [ -e "$source" ] || continue
    ! touch "$source/x" 2> /dev/null
    echo "{\"_type\": \"https://in-toto.io/Statement/v0.1\", \"predicateType\": \"https://spdx.dev/Document\", \"predicate\":
        {\"name\": \"$BUILDKIT_SCAN_DEPTH $(cd $source && echo *)\"}}" > "$BUILDKIT_SCAN_DESTINATION/$(basename $source).spdx.json"
done
"#;
    let files = [
        (
            "Dockerfile",
            "FROM scratch AS first\nARG BUILDKIT_SBOM_SCAN_STAGE=true\nCOPY a /\nFROM scratch\nCOPY --from=first a /b\n",
        ),
        ("a", ""),
        ("../scanner/Dockerfile", "FROM busybox\nCOPY --chmod=755 scan /\nENTRYPOINT [\"/scan\"]\n"),
        ("../scanner/scan", scanner),
    ];
    let Some(kiln) = Kiln::project(&files) else { return };
    kiln.ok(["build", "-t", "scanner", "scanner"]);
    build(&kiln, &["--attest", "type=sbom,generator=scanner,depth=7"]);
    assert_eq!(predicate(&kiln, "sbom.spdx.json")["name"], "7 b");
    assert_eq!(predicate(&kiln, "sbom-first.spdx.json")["name"], "7 a");

    kiln.write("scanner/scan", "#!/bin/sh\nexit 0\n");
    kiln.ok(["build", "-t", "scanner", "scanner"]);
    let silent = kiln.fails(["build", "--sbom=generator=scanner", "app"]);
    silent.expect_stderr(&["left no document"]);
}

#[test]
fn privileged_a_build_that_gives_the_same_again_passes_and_another_is_shown_file_by_file() {
    let same = "FROM busybox\nCOPY file /srv/file\nRUN touch -d @1 /srv/made /srv && mkdir /srv/dir && touch -d @1 /srv/dir /srv\n";
    let Some(kiln) = Kiln::project(&[("Dockerfile", same), ("file", "x")]) else { return };
    let verify = |args: &[&str]| {
        kiln.command(["build", "--progress=plain", "--verify", "-t", "app"])
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .args(args)
            .arg("app")
    };
    verify(&[]).output().expect_code(0).expect_stderr(&["reproducible: "]);
    kiln.ok(["image", "inspect", "app"]);

    let another = "FROM busybox\nRUN head -c 8 /dev/urandom > /srv-random && echo x > /etc/fixed\nRUN chmod 6$(($(od -An -N1 -tu1 /dev/urandom) % 2))0 /etc/passwd; readlink /proc/self/ns/uts > /fresh-$(cat /proc/sys/kernel/random/uuid)\n";
    kiln.write("app/Dockerfile", another);
    kiln.ok(["rmi", "app"]);
    let outcome = verify(&[]).output().expect_code(1);
    let outcome = outcome.expect_stderr(&[
        "not reproducible: ",
        "RUN /bin/sh -c head -c 8 /dev/urandom",
        "/srv-random",
        "content",
    ]);
    let outcome = outcome.expect_stderr(&["only in the first build", "only in the second build"]);
    assert!(!outcome.stderr.lines().any(|line| line.trim_start().starts_with("/etc/fixed")), "{}", outcome.stderr);
    // What differs is not exported.
    kiln.fails(["image", "inspect", "app"]);
}

/// Reads the JSON documents of an OCI archive, by path.
fn documents(archive: &Path) -> std::collections::BTreeMap<String, Value> {
    let mut archive = tar::Archive::new(std::fs::File::open(archive).expect("open an archive"));
    let entries = archive.entries().expect("read an archive").map(|entry| entry.expect("read an archive"));
    entries
        .filter_map(|entry| {
            let path = entry.path().expect("a path").to_string_lossy().into_owned();
            serde_json::from_reader(entry).ok().map(|document| (path, document))
        })
        .collect()
}

#[test]
fn privileged_statements_stand_in_the_index_beside_the_image_they_are_about() {
    let Some(kiln) = Kiln::project(&[("Dockerfile", "FROM busybox\nRUN true\n")]) else { return };
    kiln.ok(["build", "-t", "team/app:1", "--sbom", "--provenance=mode=max", "-o", "type=oci,dest=app.tar", "app"]);
    let documents = documents(&kiln.scratch().join("app.tar"));
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        &documents[&format!("blobs/{}", digest.replace(':', "/"))]
    };
    let index = blob(&documents["index.json"]["manifests"][0]);
    let [image, attached] = index["manifests"].as_array().expect("an index").as_slice() else {
        panic!("expected an image and what is said about it: {index}")
    };
    assert_eq!(attached["platform"], serde_json::json!({"architecture": "unknown", "os": "unknown"}));
    assert_eq!(attached["annotations"]["vnd.docker.reference.digest"], image["digest"]);
    let layers = blob(attached)["layers"].as_array().expect("layers");
    let kinds: Vec<&str> =
        layers.iter().filter_map(|layer| layer["annotations"]["in-toto.io/predicate-type"].as_str()).collect();
    assert_eq!(kinds, ["https://spdx.dev/Document", "https://slsa.dev/provenance/v1"]);
    for layer in layers {
        let subject = &blob(layer)["subject"][0];
        let name = format!("pkg:docker/team/app@1?platform=linux%2F{}", base::arch());
        assert_eq!(subject["name"], name);
        let digest = format!("sha256:{}", subject["digest"]["sha256"].as_str().expect("a digest"));
        assert_eq!(image["digest"], digest);
    }
    let told = blob(&layers[1])["predicate"]["runDetails"]["metadata"]["buildkit_metadata"]["layers"].clone();
    let steps: Vec<&Value> = told.as_object().expect("layers of steps").values().collect();
    let held = blob(image)["layers"].clone();
    assert!(steps.iter().any(|step| step[0] == held), "{held} among {steps:?}");
    // Who wants no attestations, gets an image and no index.
    kiln.ok(["build", "-t", "team/app:1", "--provenance=false", "-o", "type=oci,dest=plain.tar", "app"]);
    let plain = self::documents(&kiln.scratch().join("plain.tar"));
    assert_eq!(plain["index.json"]["manifests"][0]["mediaType"], "application/vnd.oci.image.manifest.v1+json");
}
