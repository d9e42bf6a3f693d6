//! LLB: graphs that a client writes itself, each operation against its meaning.

mod support;

use kiln::types::build::frontend::{self, EvaluateRequest, Ref, result};
use kiln::types::build::{SolveRequest, pb};
use support::asking::Asking;
use support::frontend::Frontend;
use support::llb::{Bind, Llb, Node, copy, mkdir, mkfile, remove, symlink};
use support::web::{Answer, Web};
use support::{Daemon, PATIENCE, Run, eventually, is_installed};

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_definition_is_built_and_exported() {
    let Some(daemon) = Daemon::start() else { return };
    let mut llb = Llb::default();
    let base = llb.busybox();
    let made = llb.file(&base, vec![mkdir("/app/dir", 0o750), mkfile("/app/dir/f", 0o640, "hello")]);
    let ran = llb.sh(&made, "cat /app/dir/f > /copied && echo $PATH > /path");
    let client = Frontend::open(&daemon, "direct").await;
    let attrs = std::collections::HashMap::from([("name".to_owned(), "built".to_owned())]);
    let request = SolveRequest {
        r#ref: "direct".into(),
        session: client.session.clone(),
        definition: Some(llb.end(&ran)),
        exporters: vec![kiln::types::build::Exporter { r#type: "image".into(), attrs }],
        ..SolveRequest::default()
    };
    let response = client.control.clone().solve(request).await.unwrap().into_inner().exporter_response;
    assert!(response.contains_key("containerimage.digest"), "{response:?}");
    assert_eq!(daemon.cat("built", "/copied"), "hello");
    assert_eq!(daemon.cat("built", "/path"), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let ls = ["run", "--rm", "built", "stat", "-c", "%a %u:%g", "/app/dir", "/app/dir/f"];
    assert_eq!(daemon.command(&ls).ok(), "750 0:0\n640 0:0");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_client_asks_for_definitions_and_looks_at_results() {
    let Some(daemon) = Daemon::start() else { return };
    let mut asking = Asking::open(&daemon, "asks").await;
    let mut llb = Llb::default();
    let base = llb.busybox();
    let step = llb.sh(&base, "mkdir /d && echo one > /d/f && chmod 600 /d/f && chown 5:6 /d/f");
    let id = asking.solve(llb.end(&step)).await.unwrap();
    asking.evaluate(&id).await.unwrap();
    assert_eq!(asking.read(&id, "/d/f").await.unwrap(), "one\n");
    assert_eq!(
        (asking.list(&id, "/d").await, asking.stat(&id, "/d/f").await),
        (vec!["f".to_owned()], "600 5:6".to_owned())
    );

    // A process with two outputs beside its root runs once, and later steps see each of them.
    let mut llb = Llb::default();
    let base = llb.busybox();
    let seed = llb.file(&None, vec![mkfile("/kept", 0o644, "kept")]);
    let script = "cat /proc/sys/kernel/random/uuid | tee /a/id > /b/id; cat /a/kept > /b/copy";
    let outputs = llb.run(&base, script, &[Bind::kept(&seed, "/a"), Bind::kept(&None, "/b")]);
    let [_, a, b] = outputs.as_slice() else { panic!("{outputs:?}") };
    let compare = [Bind::of(a, "/x"), Bind::of(b, "/y")];
    let last = llb.run(&base, "cmp /x/id /y/id && ls /x > /out && cat /y/copy >> /out", &compare).remove(0);
    assert_eq!(asking.cat(llb.clone().end(&last), "/out").await.unwrap(), "id\nkept\nkept");

    // A result comes back as a definition. Clients in Go take a list of places that is not written for a null pointer.
    let mut definition = llb.end(&last);
    let places = definition.metadata.keys().map(|digest| (digest.clone(), pb::Locations::default()));
    definition.source = Some(pb::Source { locations: places.collect(), ..pb::Source::default() });
    let returned = asking.result_of(definition.clone()).await.unwrap().def.expect("the result's definition");
    assert_eq!(returned.def, definition.def);
    assert!(returned.source.expect("where it stands").locations.is_empty());
    asking.build.abort();
}

/// What busybox says of paths, each on a line.
const STAT: &str = "stat -c '%n %a %u:%g %h %F'";

#[tokio::test(flavor = "multi_thread")]
async fn privileged_file_actions_do_what_they_say() {
    let Some(daemon) = Daemon::start() else { return };
    let mut asking = Asking::open(&daemon, "files").await;
    let mut llb = Llb::default();
    let base = llb.busybox();
    let from = llb.sh(
        &base,
        "mkdir -p /src/sub && echo 1 > /src/a.txt && echo 2 > /src/b.log && echo 3 > /src/sub/c.txt && ln /src/a.txt /src/hard \
         && ln -s a.txt /src/soft && chmod 4711 /src/b.log && mkfifo /src/pipe",
    );
    let owner = pb::ChownOpt {
        user: Some(pb::UserOpt { user: Some(pb::user_opt::User::ById(7)) }),
        group: Some(pb::UserOpt { user: Some(pb::user_opt::User::ById(8)) }),
    };
    let made = llb.file(
        &base,
        vec![
            mkdir("/d/e", 0o711),
            mkfile("/d/f", 0o604, "data"),
            copy(&from, "/src", "/all", |copy| copy.dir_copy_contents = true),
            copy(&from, "/src", "/some/", |copy| {
                copy.dir_copy_contents = true;
                copy.create_dest_path = true;
                copy.include_patterns = vec!["**/*.txt".into()];
                copy.exclude_patterns = vec!["sub".into()];
            }),
            copy(&from, "/src/*.log", "/wild/", |copy| {
                copy.allow_wildcard = true;
                copy.create_dest_path = true;
                copy.mode_str = "u=rw,go=".into();
                copy.owner = Some(owner.clone());
            }),
            copy(&from, "/src/soft", "/followed", |copy| copy.follow_symlink = true),
            symlink("/d/link", "f"),
            remove("/all/b.log", |_| {}),
            remove("/all/*.txt", |rm| rm.allow_wildcard = true),
            remove("/never", |rm| rm.allow_not_found = true),
        ],
    );
    let script = format!(
        "{STAT} /d/e /d/f /all/hard /all/pipe /some/a.txt /wild/b.log > /out; readlink /d/link >> /out; readlink /all/soft >> /out; \
         ls /all /some /wild >> /out; cat /followed >> /out"
    );
    let told = llb.sh(&made, &script);
    let out = asking.cat(llb.end(&told), "/out").await.unwrap();
    let expected = "/d/e 711 0:0 2 directory\n/d/f 604 0:0 1 regular file\n/all/hard 644 0:0 1 regular file\n\
         /all/pipe 644 0:0 1 fifo\n/some/a.txt 644 0:0 1 regular file\n/wild/b.log 600 7:8 1 regular file\nf\na.txt\n\
         /all:\nhard\npipe\nsoft\nsub\n\n/some:\na.txt\n\n/wild:\nb.log\n1\n";
    assert_eq!(out, expected);

    // What is not there is an error, with the path.
    let mut llb = Llb::default();
    let base = llb.busybox();
    let missing = llb.file(&base, vec![copy(&base, "/no/such", "/x", |_| {})]);
    let error = asking.cat(llb.end(&missing), "/x").await.unwrap_err();
    assert!(error.message().contains("no/such"), "{error}");
    asking.build.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_actions_that_branch_are_several_layers_and_outputs() {
    let Some(daemon) = Daemon::start() else { return };
    let mut asking = Asking::open(&daemon, "branches").await;
    let mut llb = Llb::default();
    let action = |(_, action): (Node, pb::file_action::Action), input, secondary_input, output| pb::FileAction {
        input,
        secondary_input,
        output,
        action: Some(action),
    };
    // 0 is on nothing; 1 and 2 go on from it; 3 copies from 1 into 2.
    let file = pb::FileOp {
        actions: vec![
            action(mkfile("/common", 0o644, "c"), -1, -1, -1),
            action(mkfile("/one", 0o644, "1"), 0, -1, 1),
            action(mkfile("/two", 0o644, "2"), 0, -1, -1),
            action(copy(&None, "/one", "/from-one", |_| {}), 2, 1, 0),
        ],
    };
    let both = llb.add(&pb::Op { op: Some(pb::op::Op::File(file)), ..pb::Op::default() });
    let second = both.clone().map(|both| pb::Input { index: 1, ..both });
    let first = asking.solve(llb.clone().end(&both)).await.unwrap();
    assert_eq!(asking.list(&first, "/").await, ["common", "from-one", "two"]);
    let second = asking.solve(llb.end(&second)).await.unwrap();
    assert_eq!(asking.list(&second, "/").await, ["common", "one"]);
    asking.build.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_merges_and_differences_keep_deletions() {
    let Some(daemon) = Daemon::start() else { return };
    let mut asking = Asking::open(&daemon, "merges").await;
    let mut llb = Llb::default();
    let base = llb.busybox();
    let first = llb.sh(&base, "mkdir /d && echo 1 > /d/one && echo both > /d/both && echo x > /gone");
    let second = llb.sh(
        &first,
        "rm /gone && echo 2 > /d/two && rm /d/both && setfattr -n user.note -v hi /d/two 2>/dev/null || true",
    );
    let delta = llb.diff(&first, &second);
    let id = asking.solve(llb.clone().end(&delta)).await.unwrap();
    assert_eq!(
        (asking.list(&id, "/").await, asking.list(&id, "/d").await),
        (vec!["d".to_owned()], vec!["two".to_owned()])
    );

    // On another file system, the difference takes away what it took away from its own.
    let other =
        llb.file(&None, vec![mkdir("/d", 0o755), mkfile("/d/both", 0o644, "other"), mkfile("/gone", 0o644, "other")]);
    let other = llb.file(&other, vec![mkfile("/d/kept", 0o644, "kept")]);
    let merged = llb.merge(&[&other, &delta]);
    let id = asking.solve(llb.clone().end(&merged)).await.unwrap();
    assert_eq!(
        (asking.list(&id, "/").await, asking.list(&id, "/d").await),
        (vec!["d".to_owned()], ["kept", "two"].map(str::to_owned).to_vec())
    );

    // File systems that were not made on one another.
    let apart = llb.diff(&other, &first);
    let back = llb.merge(&[&other, &apart]);
    let script = "test ! -e /a/d/kept && cat /a/d/both /a/gone > /out";
    let told = llb.run(&base, script, &[Bind::of(&back, "/a")]).remove(0);
    assert_eq!(asking.cat(llb.clone().end(&told), "/out").await.unwrap(), "both\nx\n");

    // Nothing is left of a difference with itself, or with nothing.
    let same = llb.diff(&first, &first);
    let nothing = llb.merge(&[&None, &same, &None]);
    assert!(nothing.is_some() && same.is_some());
    let whole = llb.diff(&None, &first);
    let told = llb
        .run(&base, "ls /w/d > /out; ls -A /n >> /out", &[Bind::of(&whole, "/w"), Bind::of(&nothing, "/n")])
        .remove(0);
    assert_eq!(asking.cat(llb.end(&told), "/out").await.unwrap(), "both\none\n");
    asking.build.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_merge_is_exported_as_the_layers_it_is_made_of() {
    let Some(daemon) = Daemon::start() else { return };
    let client = Frontend::open(&daemon, "merged").await;
    let mut llb = Llb::default();
    let base = llb.busybox();
    let tool = llb.sh(&base, "echo tool > /usr-tool && rm -rf /etc/gone");
    let delta = llb.diff(&base, &tool);
    let data = llb.file(&None, vec![mkfile("/data", 0o644, "data")]);
    let merged = llb.merge(&[&base, &data, &delta]);
    let attrs = std::collections::HashMap::from([("name".to_owned(), "merged".to_owned())]);
    let request = SolveRequest {
        r#ref: "merged".into(),
        session: client.session.clone(),
        definition: Some(llb.end(&merged)),
        exporters: vec![kiln::types::build::Exporter { r#type: "image".into(), attrs }],
        ..SolveRequest::default()
    };
    client.control.clone().solve(request).await.unwrap();
    assert_eq!(
        (daemon.cat("merged", "/data"), daemon.cat("merged", "/usr-tool")),
        ("data".to_owned(), "tool".to_owned())
    );
    // The archive holds what the store shows.
    let tar = daemon.kiln.scratch().join("merged.tar");
    daemon.command(&["save", "-o", tar.to_str().unwrap(), "merged"]).ok();
    let layers = daemon.command(&["image", "inspect", "-f", "{{len .RootFS.Layers}}", "merged"]).ok();
    assert_eq!(layers, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_mounts_and_settings_of_processes_take_effect() {
    let Some(daemon) = Daemon::start() else { return };
    let mut asking = Asking::open(&daemon, "execs").await;
    let mut llb = Llb::default();
    let base = llb.busybox();
    let data = llb.file(&None, vec![mkdir("/sub", 0o755), mkfile("/sub/f", 0o644, "part")]);
    let part = Bind { selector: "/sub", ..Bind::of(&data, "/part") };
    let free = Bind { readonly: false, ..Bind::of(&data, "/free") };
    let script = "cat /part/f > /out; ! touch /part/x 2>/dev/null; touch /free/x; echo $PWD $HOST $http_proxy >> /out; hostname >> /out; \
        id -u >> /out; grep extra /etc/hosts >> /out; ulimit -n >> /out; df -m /mem | tail -1 | awk '{print $2}' >> /out; touch /cache/a; \
        ls /cache >> /out; exit 3";
    let step = llb.exec(&base, script, &[part, free], |exec| {
        let meta = exec.meta.as_mut().expect("it has one");
        meta.cwd = "/work/dir".into();
        meta.env = vec!["HOST=h".into(), "PATH=/bin:/usr/bin:/sbin".into()];
        meta.user = "0".into();
        meta.hostname = "named".into();
        meta.extra_hosts = vec![pb::HostIp { host: "extra".into(), ip: "10.1.2.3".into() }];
        meta.ulimit = vec![pb::Ulimit { name: "nofile".into(), soft: 77, hard: 99 }];
        meta.valid_exit_codes = vec![3];
        meta.proxy_env = Some(pb::ProxyEnv { http_proxy: "http://proxy:1".into(), ..pb::ProxyEnv::default() });
        let mount = |dest: &str, kind: pb::MountType| pb::Mount {
            input: -1,
            output: -1,
            dest: dest.into(),
            mount_type: kind.into(),
            ..pb::Mount::default()
        };
        let tmpfs_opt = Some(pb::TmpfsOpt { size: 3 << 20 });
        exec.mounts.push(pb::Mount { tmpfs_opt, ..mount("/mem", pb::MountType::Tmpfs) });
        let cache_opt = Some(pb::CacheOpt { id: "c".into(), sharing: 0 });
        exec.mounts.push(pb::Mount { cache_opt, ..mount("/cache", pb::MountType::Cache) });
        let secret_opt = Some(pb::SecretOpt { id: "none".into(), optional: true, ..pb::SecretOpt::default() });
        exec.mounts.push(pb::Mount { secret_opt, ..mount("/secret", pb::MountType::Secret) });
        exec.network = pb::NetMode::None.into();
    });
    let out = asking.cat(llb.end(&step[0]), "/out").await.unwrap();
    assert_eq!(out, "part/work/dir h http://proxy:1\nnamed\n0\n10.1.2.3\textra\n77\n3\na\n");
    asking.build.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_definition_that_a_step_makes_is_built() {
    let Some(daemon) = Daemon::start() else { return };
    let mut asking = Asking::open(&daemon, "nested").await;
    let mut inner = Llb::default();
    let base = inner.busybox();
    let step = inner.sh(&base, "echo inner > /made");
    let bytes = prost::Message::encode_to_vec(&inner.end(&step));
    let mut llb = Llb::default();
    let file = pb::FileActionMkFile { path: "/def".into(), mode: 0o644, data: bytes, owner: None, timestamp: -1 };
    let holder = llb.file(&None, vec![(None, pb::file_action::Action::Mkfile(file))]);
    let build = |filename: &str| pb::BuildOp {
        builder: -1,
        inputs: [("buildkit.llb.definition".to_owned(), pb::BuildInput { input: 0 })].into(),
        def: None,
        attrs: support::llb::attrs(&[("llbbuild.filename", filename)]),
    };
    let inputs = vec![holder.clone().expect("an operation")];
    let op = |filename: &str| pb::Op {
        inputs: inputs.clone(),
        op: Some(pb::op::Op::Build(build(filename))),
        ..pb::Op::default()
    };
    let built = llb.add(&op("/def"));
    let on_it = llb.file(&built, vec![mkfile("/outer", 0o644, "outer")]);
    let id = asking.solve(llb.clone().end(&on_it)).await.unwrap();
    assert_eq!(
        (asking.read(&id, "/made").await.unwrap(), asking.read(&id, "/outer").await.unwrap()),
        ("inner\n".into(), "outer".into())
    );
    let wrong = llb.add(&op("/other"));
    let error = asking.cat(llb.end(&wrong), "/x").await.unwrap_err();
    assert!(error.message().contains("/other"), "{error}");
    asking.build.abort();
}

/// What `Status` said of a build, vertex by vertex.
async fn vertices(client: &Frontend) -> Vec<kiln::types::build::Vertex> {
    let request = kiln::types::build::StatusRequest { r#ref: client.reference.clone() };
    let mut status = client.control.clone().status(request).await.expect("watch a build").into_inner();
    let mut vertices = Vec::new();
    while let Some(response) = status.message().await.expect("a status") {
        vertices.extend(response.vertexes);
    }
    vertices
}

/// Builds a definition from beginning to end, without keeping it.
async fn build(daemon: &Daemon, name: &str, definition: pb::Definition) -> Vec<kiln::types::build::Vertex> {
    let client = Frontend::open(daemon, name).await;
    let request = SolveRequest {
        r#ref: name.into(),
        session: client.session.clone(),
        definition: Some(definition),
        ..SolveRequest::default()
    };
    client.control.clone().solve(request).await.expect("build a definition");
    vertices(&client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_steps_are_known_by_the_received_digests_and_found_again() {
    let Some(daemon) = Daemon::start() else { return };
    let graph = |word: &str, no_cache: bool| {
        let mut llb = Llb::default();
        let base = llb.busybox();
        let step = llb.sh(&base, &format!("echo {word} > /word"));
        llb.about(&step).ignore_cache = no_cache;
        llb.about(&step).progress_group = Some(pb::ProgressGroup { id: "g".into(), name: "group".into(), weak: false });
        (step.clone().expect("a step").digest, llb.end(&step))
    };
    let (digest, definition) = graph("one", false);
    let cached = |vertices: &[kiln::types::build::Vertex], digest: &str| -> Option<bool> {
        let last = vertices.iter().rfind(|vertex| vertex.digest == digest && vertex.completed.is_some())?;
        Some(last.cached)
    };
    let first = build(&daemon, "first", definition.clone()).await;
    assert_eq!(cached(&first, &digest), Some(false), "{first:?}");
    let group = first.iter().find(|vertex| vertex.digest == digest).and_then(|vertex| vertex.progress_group.clone());
    assert_eq!(group.map(|group| group.name).as_deref(), Some("group"));
    assert_eq!(cached(&build(&daemon, "again", definition).await, &digest), Some(true));
    let (_, uncached) = graph("one", true);
    assert_eq!(cached(&build(&daemon, "uncached", uncached).await, &digest), Some(false));
    let (other, changed) = graph("two", false);
    assert_eq!(cached(&build(&daemon, "changed", changed).await, &other), Some(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_nobody_looks_at_is_neither_fetched_nor_run() {
    let Some(daemon) = Daemon::start() else { return };
    let mut asking = Asking::open(&daemon, "lazy").await;
    // No registry is there, but nobody needs the image.
    let mut llb = Llb::default();
    let nowhere = llb.source("docker-image://127.0.0.1:9/no/such:1", &[]);
    let step = llb.sh(&nowhere, "exit 9");
    let id = asking.solve(llb.clone().end(&step)).await.unwrap();
    let base = llb.busybox();
    let fine = llb.sh(&base, "echo fine > /f");
    assert_eq!(asking.cat(llb.clone().end(&fine), "/f").await.unwrap(), "fine\n");
    let error = asking.evaluate(&id).await.unwrap_err();
    assert!(error.message().contains("127.0.0.1:9"), "{error}");
    // What was evaluated at once fails at once.
    let failing = llb.sh(&base, "exit 9");
    let definition = Some(llb.end(&failing));
    let request = frontend::SolveRequest { definition, evaluate: true, ..frontend::SolveRequest::default() };
    let request = asking.client.call(request);
    let error = asking.client.bridge.solve(request).await.unwrap_err();
    assert!(error.message().contains("exit code: 9"), "{error}");
    asking.build.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_equal_steps_of_two_graphs_at_once_run_once() {
    let Some(daemon) = Daemon::start() else { return };
    let graph = |extra: &str| {
        let mut llb = Llb::default();
        let base = llb.busybox();
        let step = llb.sh(&base, "cat /proc/sys/kernel/random/uuid > /id && sleep 2");
        let last = llb.file(&step, vec![mkfile("/extra", 0o644, extra)]);
        llb.end(&last)
    };
    let mut one = Asking::open(&daemon, "one").await;
    let mut two = Asking::open(&daemon, "two").await;
    let (first, second) = tokio::join!(one.cat(graph("1"), "/id"), two.cat(graph("2"), "/id"));
    assert_eq!(first.unwrap(), second.unwrap());
    one.build.abort();
    two.build.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_client_that_dies_leaves_no_step_and_no_mount() {
    let Some(daemon) = Daemon::start() else { return };
    let marker = format!("sleep 97{}", std::process::id());
    let runs = || {
        let found = support::command::run("sh", ["-c", &format!("ps -eo args | grep -c '^{marker}$' || true")]);
        found.trim() != "0"
    };
    let mut asking = Asking::open(&daemon, "dies").await;
    let mut llb = Llb::default();
    let base = llb.busybox();
    let outputs = llb.run(&base, &marker, &[Bind::kept(&None, "/out")]);
    let id = asking.solve(llb.end(&outputs[1])).await.unwrap();
    let request = asking.client.call(EvaluateRequest { r#ref: id });
    let mut bridge = asking.client.bridge.clone();
    let evaluating = tokio::spawn(async move { bridge.evaluate(request).await.map(drop) });
    eventually("the step runs", PATIENCE, || runs().then_some(()));
    asking.build.abort();
    evaluating.abort();
    drop(asking);
    eventually("nothing runs any more", PATIENCE, || (!runs()).then_some(()));
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let root = daemon.kiln.root().display().to_string();
    eventually("nothing is mounted", PATIENCE, || (!mounts().contains(&root)).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_bad_definitions_are_refused_and_hurt_no_other() {
    let Some(daemon) = Daemon::start() else { return };
    let mut asking = Asking::open(&daemon, "bad").await;
    let good = || {
        let mut llb = Llb::default();
        let base = llb.busybox();
        let step = llb.sh(&base, "echo good > /f");
        (step.clone(), llb.end(&step))
    };
    let (step, definition) = good();
    let digest = step.expect("a step").digest;
    let without_base = pb::Definition { def: definition.def[1..].to_vec(), ..definition.clone() };
    let torn = {
        let mut def = definition.def.clone();
        let half = def[1].len() / 2;
        def[1].truncate(half);
        pb::Definition { def, ..definition.clone() }
    };
    let cases = [
        (without_base, tonic::Code::InvalidArgument, "has no operation"),
        (torn, tonic::Code::InvalidArgument, "LLB"),
        (
            pb::Definition { def: vec![b"\x08".to_vec(); 100_000], ..pb::Definition::default() },
            tonic::Code::ResourceExhausted,
            "100000",
        ),
        (pb::Definition { def: vec![vec![0x4a, 0]], ..pb::Definition::default() }, tonic::Code::Unimplemented, "(9)"),
        (
            pb::Definition { def: vec![vec![0xff; 64]], ..pb::Definition::default() },
            tonic::Code::InvalidArgument,
            "no operation",
        ),
    ];
    for (definition, code, word) in cases {
        // To a frontend, every failure is unknown, as with BuildKit; the text says which it is.
        let refused = asking.solve(definition.clone()).await.unwrap_err();
        assert!(refused.message().contains(word), "{refused}");
        let request =
            SolveRequest { r#ref: format!("bad-{word}"), definition: Some(definition), ..SolveRequest::default() };
        let refused = asking.client.control.clone().solve(request).await.unwrap_err();
        assert!(refused.code() == code && refused.message().contains(word), "{:?} {refused}", refused.code());
    }
    let refused = asking.cat(without(&definition, &digest), "/f").await.unwrap_err();
    assert!(refused.message().contains("inputs[0].digest"), "{refused}");
    assert_eq!(asking.cat(good().1, "/f").await.unwrap(), "good\n", "the build and the daemon go on");
    asking.build.abort();
}

/// Leaves an operation out of a definition.
fn without(definition: &pb::Definition, digest: &str) -> pb::Definition {
    let other = |bytes: &&Vec<u8>| kiln_graph::Digest::of(bytes).to_string() != digest;
    pb::Definition { def: definition.def.iter().filter(other).cloned().collect(), ..definition.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_definitions_are_inputs_of_frontends() {
    let Some(daemon) = Daemon::start() else { return };
    let mut asking = Asking::open(&daemon, "inputs").await;
    let mut llb = Llb::default();
    let text = "FROM base\nCOPY --from=more /m /more\nCOPY file /file\nRUN echo $SET > /set\n";
    let context = llb.file(&None, vec![mkfile("/Dockerfile", 0o644, text), mkfile("/file", 0o600, "context")]);
    let context = llb.end(&context);
    let mut llb = Llb::default();
    let base = llb.busybox();
    let base = llb.sh(&base, "echo base > /base");
    let base = llb.end(&base);
    let mut llb = Llb::default();
    let from = llb.busybox();
    let outputs = llb.run(&from, "echo m > /out/m", &[Bind::kept(&None, "/out")]);
    let more = llb.end(&outputs[1]);
    // The second output of a process, and an image whose configuration comes along.
    let config = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        format!(
            r#"{{"architecture":"{}","os":"linux","config":{{"Env":["SET=from-config","PATH=/bin:/usr/bin:/sbin"]}}}}"#,
            "amd64"
        ),
    );
    let opt = [
        ("context:base", "input:base".to_owned()),
        ("context:more", "input:more".to_owned()),
        ("input-metadata:base", format!(r#"{{"containerimage.config":"{config}"}}"#)),
    ];
    let request = frontend::SolveRequest {
        frontend: "dockerfile.v0".into(),
        frontend_opt: opt.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        frontend_inputs: [("context", context), ("base", base), ("more", more)]
            .map(|(name, definition)| (name.to_owned(), definition))
            .into(),
        ..frontend::SolveRequest::default()
    };
    let request = asking.client.call(request);
    let solved = asking.client.bridge.solve(request).await.unwrap().into_inner().result.unwrap();
    let Some(result::Result::Ref(Ref { id, def: Some(whole) })) = solved.result else { panic!("{solved:?}") };
    for (path, content) in [("/base", "base\n"), ("/more", "m\n"), ("/file", "context"), ("/set", "from-config\n")] {
        assert_eq!(asking.read(&id, path).await.unwrap(), content, "{path}");
    }
    // The result is a definition itself, which gives the same.
    assert_eq!(asking.cat(whole, "/set").await.unwrap(), "from-config\n");
    let missing = frontend::SolveRequest {
        frontend: "dockerfile.v0".into(),
        frontend_opt: [("context:x".to_owned(), "input:none".to_owned())].into(),
        ..frontend::SolveRequest::default()
    };
    let missing = asking.client.call(missing);
    let refused = asking.client.bridge.solve(missing).await.unwrap_err();
    assert!(refused.message().contains("invalid input none for x"), "{refused}");
    asking.build.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_session_that_has_ended_is_replaced_by_that_of_the_build() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.kiln.write("file", "of the context");
    // A definition that names the session of a client that has gone.
    let mut old = Asking::open(&daemon, "old").await;
    let mut llb = Llb::default();
    let local = llb.source("local://context", &[("local.session", &old.client.session)]);
    let made = llb.file(&None, vec![copy(&local, "/file", "/copied", |_| {})]);
    let definition = llb.end(&made);
    assert_eq!(old.cat(definition.clone(), "/copied").await.unwrap(), "of the context");
    old.build.abort();
    drop(old);
    let mut asking = Asking::open(&daemon, "new").await;
    assert_eq!(asking.cat(definition.clone(), "/copied").await.unwrap(), "of the context");
    asking.build.abort();
    // Without a session of its own, a build says what is missing.
    let request = SolveRequest { r#ref: "none".into(), definition: Some(definition), ..SolveRequest::default() };
    let refused = asking.client.control.clone().solve(request).await.unwrap_err();
    assert!(refused.message().contains("session") && refused.message().contains("has ended"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_sources_are_looked_at_and_brought() {
    let Some(daemon) = Daemon::start() else { return };
    if !is_installed("git", "git") {
        return;
    }
    let mut asking = Asking::open(&daemon, "sources").await;
    let repos = daemon.kiln.scratch().join("repos");
    let script = "mkdir repos; git init -q -b main work; cd work; git config user.email a@b; git config user.name a
        echo first > file; git add -A; git commit -qm first; git tag -a v1 -m one; git rev-parse HEAD v1
        git clone -q --bare . ../repos/repo.git";
    let told = Run::new("sh").args(["-euc", script]).cwd(daemon.kiln.scratch()).ok();
    let (commit, tag) = told.split_once('\n').expect("two ids");
    let git = Web::git(repos, |_| true);
    let web = Web::start(|request| {
        match request.header("x-none").is_none() && request.header("accept") == Some("text/plain") {
            true => Answer::new(200, "file")
                .header("etag", "\"1\"")
                .header("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT"),
            false => Answer::new(403, ""),
        }
    });
    let mut look = async |identifier: String, attrs: &[(&str, &str)]| {
        let source = Some(pb::SourceOp { identifier, attrs: support::llb::attrs(attrs) });
        let request = frontend::ResolveSourceMetaRequest { source, ..Default::default() };
        let request = asking.client.call(request);
        asking.client.bridge.resolve_source_meta(request).await.map(tonic::Response::into_inner)
    };
    let image = look("docker-image://docker.io/library/busybox:latest".into(), &[]).await.unwrap().image.unwrap();
    assert!(image.digest.starts_with("sha256:") && !image.config.is_empty());
    let url = git.url("repo.git");
    let full = [("git.fullurl", url.as_str())];
    let found = look("git://x/repo.git#v1".into(), &full).await.unwrap().git.unwrap();
    assert_eq!(
        (found.checksum.as_str(), found.commit_checksum.as_str(), found.r#ref.as_str()),
        (tag, commit, "refs/tags/v1")
    );
    let file = web.url("dir/name.txt");
    let accept = [("http.header.accept", "text/plain")];
    let found = look(file.clone(), &accept).await.unwrap().http.unwrap();
    assert_eq!((found.checksum, found.filename.as_str()), (kiln_graph::Digest::of(b"file").to_string(), "name.txt"));
    assert_eq!(found.last_modified.unwrap().seconds, 1_704_067_200);
    assert!(look("ftp://x/y".into(), &[]).await.unwrap_err().message().contains("ftp"));

    let mut llb = Llb::default();
    let base = llb.busybox();
    let checkout = llb.source("git://x/repo.git#main", &[("git.fullurl", &url), ("git.checksum", commit)]);
    let fetched = llb.source(&file, &[accept[0], ("http.perm", "0640"), ("http.uid", "3"), ("http.filename", "other")]);
    let local = llb.source(
        "local://context",
        &[("local.includepattern", "[\"wanted\"]"), ("local.session", &asking.client.session)],
    );
    daemon.kiln.write("wanted", "wanted");
    daemon.kiln.write("unwanted", "unwanted");
    let binds = [Bind::of(&checkout, "/git"), Bind::of(&fetched, "/http"), Bind::of(&local, "/local")];
    let script =
        "cat /git/file > /out; stat -c '%a %u' /http/other >> /out; cat /http/other >> /out; ls /local >> /out";
    let told = llb.run(&base, script, &binds).remove(0);
    assert_eq!(asking.cat(llb.clone().end(&told), "/out").await.unwrap(), "first\n640 3\nfilewanted\n");
    // A directory of the client is a result, and a root file system.
    let id = asking.solve(llb.clone().end(&local)).await.unwrap();
    assert_eq!(asking.list(&id, "/").await, ["wanted"]);
    let wrong = llb
        .source("git://x/repo.git#main", &[("git.fullurl", &url), ("git.checksum", &tag.replace(|_: char| true, "0"))]);
    let error = asking.cat(llb.end(&wrong), "/file").await.unwrap_err();
    assert!(error.message().contains("checksum"), "{error}");
    asking.build.abort();
}
