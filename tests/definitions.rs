//! Definitions: what their sources and mounts may be besides the usual, from the client's side and from the engine's.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use kiln::client::{Agent, AgentIo, Agents, ContentDir, Offer};
use kiln::types::build::sourcepolicy::{Policy, PolicyAction, Rule, Selector};
use kiln::types::build::{CacheOptions, CacheOptionsEntry, SolveRequest, frontend, pb};
use kiln_graph::Digest;
use support::asking::Asking;
use support::frontend::Frontend;
use support::llb::{Bind, Llb, attrs, mkfile};
use support::registry::{self, Access, Connection, PASSWORD, Registry, USER};
use support::web::Web;
use support::{Daemon, Kiln, command, is_installed, is_root};

fn none() -> Offer {
    Offer::new(Arc::new(|_| Ok(None)), Arc::new(|_| Ok(None)))
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_images_have_the_layers_and_the_digest_that_are_asked_for() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nCOPY Dockerfile /one\nCOPY Dockerfile /two\n");
    daemon.command(&["build", "-q", "-t", "layered", "."]).ok();
    let mut asking = Asking::open(&daemon, "limits").await;
    let name = "docker-image://docker.io/library/layered:latest";
    let mut of = async |given: &[(&str, &str)]| {
        let mut llb = Llb::default();
        let image = llb.source(name, given);
        let listed = llb.sh(&image, "ls /one /two > /listed 2>&1 || true");
        asking.cat(llb.end(&listed), "/listed").await
    };
    assert_eq!(of(&[]).await.unwrap(), "/one\n/two\n");
    let limited = of(&[("image.layerlimit", "2")]).await.unwrap();
    assert!(limited.contains("/one\n") && limited.contains("/two: No such file"), "{limited}");
    let other = format!("sha256:{}", "0".repeat(64));
    let refused = of(&[("image.checksum", &other)]).await.unwrap_err();
    assert!(refused.message().contains("does not match expected checksum"), "{refused}");
    asking.build.abort();

    let mut asking = Asking::open(&daemon, "checksum").await;
    let source = Some(pb::SourceOp { identifier: name.into(), attrs: attrs(&[]) });
    let request = frontend::ResolveSourceMetaRequest { source, ..frontend::ResolveSourceMetaRequest::default() };
    let request = asking.client.call(request);
    let digest = asking.client.bridge.resolve_source_meta(request).await.unwrap().into_inner().image.unwrap().digest;
    let mut llb = Llb::default();
    let image = llb.source(name, &[("image.checksum", &digest)]);
    assert!(asking.cat(llb.end(&image), "/one").await.unwrap().starts_with("FROM busybox"));
    asking.build.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_layouts_of_the_client_are_sources() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM scratch\nCOPY Dockerfile /one\nCOPY Dockerfile /two\n");
    daemon.command(&["build", "-o", "type=oci,dest=layout,tar=false", "."]).ok();
    let path = daemon.kiln.scratch().join("layout");
    let index = std::fs::read(path.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let content = BTreeMap::from([("oci:kept".to_owned(), ContentDir { path, writable: false })]);
    let client = Frontend::open_with(&daemon, "layouts", Offer { content, ..none() }).await;
    let mut asking = Asking::of(client);
    let mut of = async |given: &[(&str, &str)]| {
        let mut llb = Llb::default();
        let image = llb.source(&format!("oci-layout://any@{digest}"), given);
        let id = asking.solve(llb.end(&image)).await.unwrap();
        asking.list(&id, "/").await
    };
    assert_eq!(of(&[("oci.store", "kept")]).await, ["one", "two"]);
    assert_eq!(of(&[("oci.store", "kept"), ("oci.layerlimit", "1")]).await, ["one"]);
    asking.build.abort();
}

/// Puts a blob, and a manifest that points at it, into a registry that wants a password; returns their digests.
fn upload(registry: &Registry, dir: &Path, blob: &[u8]) -> (Digest, Digest) {
    let digest = Digest::of(blob);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest.to_string(), "size": blob.len()},
        "layers": [],
    });
    let manifest = manifest.to_string();
    std::fs::write(dir.join("blob"), blob).expect("write a file of the test");
    std::fs::write(dir.join("manifest"), &manifest).expect("write a file of the test");
    let script = format!(
        "to=http://{}/v2/some/blobs
        place=$(curl -fsu {USER}:{PASSWORD} -X POST -D - $to/blobs/uploads/ | tr -d '\\r' | sed -n 's/^Location: //Ip')
        curl -fsu {USER}:{PASSWORD} -X PUT --data-binary @blob -H 'Content-Type: application/octet-stream' \"$place&digest={digest}\"
        curl -fsu {USER}:{PASSWORD} -X PUT --data-binary @manifest \
            -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' $to/manifests/latest",
        registry.host()
    );
    command::shell(dir, &script);
    (digest, Digest::of(manifest.as_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_blobs_of_registries_and_layouts_are_files() {
    if !registry::is_installed() {
        return;
    }
    let Some(daemon) = Daemon::start() else { return };
    let registry = Registry::start_with(Access::Password, Connection::Plain);
    let (digest, manifest) = upload(&registry, &daemon.kiln.scratch(), b"of a registry\n");
    let name = format!("docker-image+blob://{}/some/blobs", registry.host());
    let layout = daemon.kiln.scratch().join("layout");
    let (kept, forged) = (Digest::of(b"of a layout\n"), Digest::of(b"something else\n"));
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    std::fs::write(layout.join("blobs/sha256").join(kept.hex()), "of a layout\n").unwrap();
    std::fs::write(layout.join("blobs/sha256").join(forged.hex()), "forged\n").unwrap();
    let content = BTreeMap::from([("oci:kept".to_owned(), ContentDir { path: layout, writable: false })]);
    let blob = |name: &str, digest: Digest, attrs: &[(&str, &str)]| {
        let mut llb = Llb::default();
        let file = llb.source(&format!("{name}@{digest}"), attrs);
        llb.end(&file)
    };

    // Whoever may not pull cannot have it.
    let mut stranger = Asking::open(&daemon, "stranger").await;
    let refused = stranger.cat(blob(&name, digest, &[]), "/x").await.unwrap_err();
    assert!(refused.message().contains("some/blobs") && !refused.message().contains("has no blob"), "{refused}");
    stranger.build.abort();

    let credentials = Arc::new(|_: &str| Ok(Some((USER.to_owned(), PASSWORD.to_owned()))));
    let offer = Offer { content, ..Offer::new(Arc::new(|_| Ok(None)), credentials) };
    let client = Frontend::open_with(&daemon, "blobs", offer).await;
    let mut asking = Asking::of(client);
    let given = [("http.filename", "dir/named"), ("http.perm", "0640"), ("http.uid", "7"), ("http.gid", "8")];
    let mut llb = Llb::default();
    let file = llb.source(&format!("{name}@{digest}"), &given);
    let base = llb.busybox();
    let script = "stat -c '%n %a %u:%g %Y' /in/* > /out; cat /in/* >> /out";
    let told = llb.run(&base, script, &[Bind::of(&file, "/in")]).remove(0);
    assert_eq!(asking.cat(llb.end(&told), "/out").await.unwrap(), "/in/named 640 7:8 0\nof a registry\n");
    let plain = asking.solve(blob(&name, digest, &[("image.recordtype", "internal")])).await.unwrap();
    assert_eq!(asking.list(&plain, "/").await, [digest.hex()]);
    assert_eq!(asking.stat(&plain, &digest.hex()).await, "600 0:0");
    // A manifest is one, too, though registries keep it elsewhere.
    let found = asking.cat(blob(&name, manifest, &[]), &manifest.hex()).await.unwrap();
    assert!(found.contains(&digest.to_string()), "{found}");

    let of_layout = "oci-layout+blob://example.com/any";
    let store = [("oci.store", "kept"), ("http.filename", "f")];
    assert_eq!(asking.cat(blob(of_layout, kept, &store), "/f").await.unwrap(), "of a layout\n");
    let wrong = asking.cat(blob(of_layout, forged, &store), "/f").await.unwrap_err();
    assert!(wrong.message().contains(&forged.to_string()) && wrong.message().contains("digest"), "{wrong}");
    for (name, attrs) in [(name.as_str(), &store[1..]), (of_layout, &store[..])] {
        let missing = asking.cat(blob(name, Digest::of(b"nobody has this"), attrs), "/f").await.unwrap_err();
        assert!(missing.message().contains("no blob") && missing.message().contains("+blob://"), "{missing}");
    }
    // What is known by its digest is the same wherever it is from: no server is asked for it again.
    let nowhere = blob("docker-image+blob://127.0.0.1:9/no/such", digest, &given);
    assert_eq!(asking.cat(nowhere, "/named").await.unwrap(), "of a registry\n");

    let source = Some(pb::SourceOp { identifier: format!("{name}@{digest}"), attrs: attrs(&given) });
    let request = frontend::ResolveSourceMetaRequest { source: source.clone(), ..Default::default() };
    let request = asking.client.call(request);
    let answer = asking.client.bridge.resolve_source_meta(request).await.unwrap().into_inner();
    assert_eq!((answer.source, answer.image, answer.http), (source, None, None));
    asking.build.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_directory_may_be_listed_and_sent_in_part() {
    let Some(daemon) = Daemon::start() else { return };
    for name in ["data", "dir/file1", "dir/file2", "dir/sub/bar1", "dir/sub2/bar3", "foo"] {
        daemon.kiln.write(name, name);
    }
    let mut asking = Asking::open(&daemon, "listed").await;
    let exceptions = ("local.metadatatransferexclude", "[\"dir/**/*1\",\"foo\"]");
    let listed = [("local.metadatatransfer", "true"), exceptions, ("local.excludepatterns", "[\"dir/sub2\"]")];
    let script = "find /in -mindepth 1 | sort > /out; cat /in/dir/file1 >> /out
        grep -o 'd[a-z]*/[a-z0-9]*\\|data\\|foo' /in/.fsutil-metadata >> /out; stat -c %a /in/.fsutil-metadata >> /out";
    let mut of = async |attrs: &[(&str, &str)], script: &str| {
        let mut llb = Llb::default();
        let context = llb.source("local://context", attrs);
        let base = llb.busybox();
        let told = llb.run(&base, script, &[Bind::of(&context, "/in")]).remove(0);
        asking.cat(llb.end(&told), "/out").await.unwrap()
    };
    let expected = "/in/.fsutil-metadata\n/in/dir\n/in/dir/file1\n/in/dir/sub\n/in/dir/sub/bar1\n/in/foo\ndir/file1\
        data\ndir/file1\ndir/file2\ndir/sub\ndir/sub\nfoo\n644\n";
    assert_eq!(of(&listed, script).await, expected);
    // The same directory in full is another one.
    assert_eq!(of(&[], "test ! -e /in/.fsutil-metadata && cat /in/dir/file2 > /out").await, "dir/file2");
    asking.build.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_repositories_come_from_bundles_and_become_bundles() {
    let Some(daemon) = Daemon::start() else { return };
    if !is_installed("git", "git") {
        return;
    }
    let scratch = daemon.kiln.scratch();
    let script = "mkdir repos; git init -q -b main work; cd work; git config user.email a@b; git config user.name a
        echo first > file; git add -A; git commit -qm first; echo second > file; git commit -qam second; git tag -a v1 -m one
        git rev-parse HEAD HEAD^; git clone -q --bare . ../repos/repo.git";
    let told = command::shell(&scratch, script);
    let [commit, first] = told.lines().collect::<Vec<_>>()[..] else { panic!("{told}") };
    let web = Web::git(scratch.join("repos"), |_| true);
    let url = web.url("repo.git");
    let layout = scratch.join("layout");
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let kept = ContentDir { path: layout.clone(), writable: false };
    let content = BTreeMap::from([("oci:kept".to_owned(), kept)]);
    let mut asking = Asking::of(Frontend::open_with(&daemon, "bundles", Offer { content, ..none() }).await);
    let source = |reference: &str, attrs: &[(&str, &str)]| {
        let mut llb = Llb::default();
        let git = llb.source(&format!("git://x/repo.git#{reference}"), attrs);
        llb.end(&git)
    };

    // A plain checkout has nothing of what led to it; a bundle has.
    let plain = source("main", &[("git.fullurl", &url)]);
    assert_eq!(asking.cat(plain, "/file").await.unwrap(), "second\n");
    let definition = source("main", &[("git.fullurl", &url), ("git.checkoutbundle", "true")]);
    let id = asking.solve(definition).await.unwrap();
    assert_eq!(asking.list(&id, "/").await, ["bundle"]);
    assert_eq!(asking.stat(&id, "/bundle").await, "644 0:0");
    let bundle = asking.bytes(&id, "/bundle").await.unwrap();
    std::fs::write(scratch.join("bundle"), &bundle).unwrap();
    let script = "git clone -q -b main bundle out; cd out; git log --format=%s; git for-each-ref --format='%(refname)' refs/remotes";
    assert_eq!(command::shell(&scratch, script), "second\nfirst\nrefs/remotes/origin/main");

    // From a bundle, the repository is not asked.
    let digest = Digest::of(&bundle);
    std::fs::write(layout.join("blobs/sha256").join(digest.hex()), &bundle).unwrap();
    let at = format!("oci-layout+blob://not/real@{digest}");
    let given = |checksum: &'static str| {
        [
            ("git.fullurl", "https://127.0.0.1:9/x.git"),
            ("git.bundle", ""),
            ("oci.store", "kept"),
            ("git.checksum", checksum),
        ]
    };
    let mut of = async |reference: &str, checksum: &str, keep: bool| {
        let mut attrs = given("");
        (attrs[1].1, attrs[3].1) = (&at, checksum);
        let attrs = [&attrs[..], if keep { &[("git.keepgitdir", "true")] } else { &[] }].concat();
        asking.cat(source(reference, &attrs), if keep { "/.git/HEAD" } else { "/file" }).await
    };
    assert_eq!(of("main", commit, false).await.unwrap(), "second\n");
    assert_eq!(of(first, &first[..7], false).await.unwrap(), "first\n");
    assert_eq!(of("", first, false).await.unwrap(), "first\n");
    assert_eq!(of("main", commit, true).await.unwrap().trim(), commit);
    let nobody = "1".repeat(40);
    for (reference, checksum, words) in [
        ("other", commit, ["not/real", "does not contain the reference \"other\""]),
        ("main", first, ["not/real", "expected checksum to match"]),
        ("", nobody.as_str(), ["not/real", &nobody]),
    ] {
        let refused = of(reference, checksum, false).await.unwrap_err();
        assert!(words.iter().all(|word| refused.message().contains(word)), "{refused}");
    }

    let mut attrs = given("");
    (attrs[1].1, attrs[3].1) = (&at, commit);
    let look = pb::SourceOp { identifier: "git://x/repo.git#main".into(), attrs: support::llb::attrs(&attrs) };
    let selector = Selector { identifier: "oci-layout+blob://*".into(), ..Selector::default() };
    let rule = Rule { action: PolicyAction::Deny.into(), selector: Some(selector), updates: None };
    for (policies, word) in [(vec![], None), (vec![Policy { version: 1, rules: vec![rule] }], Some("bundle"))] {
        let request = frontend::ResolveSourceMetaRequest {
            source: Some(look.clone()),
            source_policies: policies,
            ..frontend::ResolveSourceMetaRequest::default()
        };
        let request = asking.client.call(request);
        match (asking.client.bridge.resolve_source_meta(request).await, word) {
            (Ok(answer), None) => {
                let git = answer.into_inner().git.unwrap();
                assert_eq!((git.checksum.as_str(), git.r#ref.as_str()), (commit, "refs/heads/main"));
            }
            (Err(denied), Some(word)) => {
                assert!(denied.message().contains(word) && denied.message().contains("not/real"), "{denied}");
            }
            other => panic!("{other:?}"),
        }
    }
    asking.build.abort();
}

/// How many records the caches in a directory have.
fn records(dir: &Path) -> usize {
    let blobs = std::fs::read_dir(dir.join("blobs/sha256")).expect("the cache has blobs");
    let configs = blobs.filter_map(|blob| {
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(blob.ok()?.path()).ok()?).ok()?;
        json["records"].as_array().map(Vec::len)
    });
    configs.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_step_says_whether_it_is_part_of_an_exported_cache() {
    let Some(daemon) = Daemon::start() else { return };
    let mut found = Vec::new();
    for (name, value) in [("with", None), ("without", Some(false))] {
        let path = daemon.kiln.scratch().join(name);
        std::fs::create_dir(&path).unwrap();
        let stores = BTreeMap::from([(format!("local:{name}"), ContentDir { path: path.clone(), writable: true })]);
        let client = Frontend::open_with(&daemon, name, Offer { content: stores, ..none() }).await;
        let mut llb = Llb::default();
        let base = llb.busybox();
        let below = llb.sh(&base, "echo below > /below");
        llb.about(&below).export_cache = value.map(|value| pb::ExportCache { value });
        let made = llb.sh(&below, "echo made > /made");
        let attrs = [("dest", name), ("mode", "max")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let export = CacheOptionsEntry { r#type: "local".into(), attrs: HashMap::from(attrs) };
        let request = SolveRequest {
            r#ref: name.into(),
            session: client.session.clone(),
            definition: Some(llb.end(&made)),
            cache: Some(CacheOptions { exports: vec![export], ..CacheOptions::default() }),
            ..SolveRequest::default()
        };
        client.control.clone().solve(request).await.unwrap();
        found.push(records(&path));
    }
    assert!(found[1] < found[0], "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_agents_and_devices_are_there_for_steps_that_ask_for_them() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    let spec = r#"{"cdiVersion":"0.6.0","kind":"example.com/gpu","devices":[{"name":"one","containerEdits":{
        "env":["GPU=one"],"deviceNodes":[{"path":"/dev/gpu0","hostPath":"/dev/zero"}]}}]}"#;
    kiln.write("cdi/gpu.json", spec);
    let dir = kiln.scratch().join("cdi");
    let config = kiln.write("kiln.toml", format!("[builder]\ncdi-spec-dirs = [{dir:?}]\n"));
    let daemon = Daemon::of(kiln, &["--config", config.to_str().unwrap()]);
    let agent: Agent = Arc::new(|| async { Ok(Box::new(tokio::io::duplex(1).0) as Box<dyn AgentIo>) }.boxed());
    let agents = Agents(BTreeMap::from([("mine".to_owned(), agent)]));
    let client = Frontend::open_with(&daemon, "mounts", Offer { agents, ..none() }).await;
    let solve = async |name: &str, device: &str, agent: &str, optional: bool| {
        let mut llb = Llb::default();
        let base = llb.busybox();
        let seed = llb.file(&base, vec![mkfile("/seed", 0o644, name)]);
        let script = "if test -e /agent; then stat -c '%F %a %u' /agent; fi > /told
            dd if=/dev/gpu0 bs=1 count=2 2> /dev/null | wc -c >> /told; echo ${GPU-} >> /told";
        let ran = llb.exec(&seed, script, &[], |exec| {
            exec.mounts.push(pb::Mount {
                input: -1,
                output: -1,
                dest: "/agent".into(),
                mount_type: pb::MountType::Ssh.into(),
                ssh_opt: Some(pb::SshOpt { id: agent.into(), uid: 3, gid: 4, mode: 0o640, optional }),
                ..pb::Mount::default()
            });
            exec.cdi_devices.push(pb::CdiDevice { name: device.into(), optional });
        });
        let attrs = HashMap::from([("name".to_owned(), name.to_owned())]);
        let request = SolveRequest {
            r#ref: name.into(),
            session: client.session.clone(),
            definition: Some(llb.end(&ran[0])),
            entitlements: vec!["device=example.com/gpu=one".into()],
            exporters: vec![kiln::types::build::Exporter { r#type: "image".into(), attrs }],
            ..SolveRequest::default()
        };
        client.control.clone().solve(request).await.map(|_| daemon.cat(name, "/told"))
    };
    assert_eq!(solve("both", "example.com/gpu=one", "mine", false).await.unwrap(), "socket 640 3\n2\none");
    assert_eq!(solve("neither", "example.com/none=one", "none", true).await.unwrap(), "0");
    let refused = solve("agent", "example.com/gpu=one", "none", false).await.unwrap_err();
    assert!(refused.message().contains("none"), "{refused}");
    let refused = solve("device", "example.com/gpu=two", "mine", false).await.unwrap_err();
    assert!(refused.message().contains("example.com/gpu=two"), "{refused}");
}
