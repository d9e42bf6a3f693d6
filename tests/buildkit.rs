//! Clients of BuildKit's API against the daemon: Kiln's own command, and a frontend at the client as buildx has it.

mod support;

use kiln::types::build::frontend::{
    EvaluateRequest, PingRequest, ReadDirRequest, ReadFileRequest, ReturnRequest, StatFileRequest,
};
use kiln::types::build::google;
use support::frontend::{Frontend, reference};
use support::{Daemon, PATIENCE, eventually};

#[test]
fn privileged_the_command_builds_with_a_daemon_and_sends_what_changed() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nCOPY . /app/\nRUN cat /app/a > /copied\n");
    daemon.kiln.write(".dockerignore", "ignored\n");
    daemon.kiln.write("a", "one");
    daemon.kiln.write("ignored/x", "x");
    let build = ["build", "--progress=plain", "-t", "app", "."];
    daemon.command(&build).ok();
    assert_eq!(daemon.cat("app", "/copied"), "one");
    assert_eq!(daemon.command(&["run", "--rm", "app", "ls", "/app"]).ok(), "Dockerfile\na");
    let again = daemon.command(&build).output();
    assert!(again.stderr.contains("CACHED"), "{}", again.report());
    daemon.kiln.write("a", "two!");
    std::fs::remove_file(daemon.kiln.scratch().join(".dockerignore")).unwrap();
    daemon.command(&build).ok();
    assert_eq!(daemon.cat("app", "/copied"), "two!");
    assert_eq!(daemon.command(&["run", "--rm", "app", "ls", "/app"]).ok(), "Dockerfile\na\nignored");
    let stdin = daemon.command(&["build", "-q", "-t", "in", "-f", "-", "."]).stdin("FROM busybox\nCOPY a /b\n");
    stdin.ok();
    assert_eq!(daemon.cat("in", "/b"), "two!");
    let usage = daemon.command(&["builder", "du"]).ok();
    assert!(usage.contains("mount"), "what is kept of the context is listed: {usage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_frontend_at_the_client_asks_looks_and_returns() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox AS base\nRUN mkdir /d && echo hello > /d/f && ln -s f /d/link\nENV A=b\n");
    let mut client = Frontend::open(&daemon, "looks").await;
    // The call waits for its build.
    let early = client.call(PingRequest {});
    let mut bridge = client.bridge.clone();
    let early = tokio::spawn(async move { bridge.ping(early).await });
    let built = client.begin("looked");
    let pong = early.await.unwrap().unwrap().into_inner();
    assert!(pong.frontend_api_caps.iter().any(|cap| cap.id == "solve.base" && cap.enabled));
    assert!(pong.frontend_api_caps.iter().any(|cap| cap.id == "gateway.exec" && cap.enabled));

    let solved = client.solve().await.unwrap();
    let id = reference(&solved);
    let config = String::from_utf8(solved.metadata["containerimage.config"].clone()).unwrap();
    assert!(config.contains("A=b"), "{config}");
    let evaluate = client.call(EvaluateRequest { r#ref: id.clone() });
    client.bridge.evaluate(evaluate).await.unwrap();
    let read = client.call(ReadFileRequest { r#ref: id.clone(), file_path: "/d/link".into(), ..Default::default() });
    assert_eq!(client.bridge.read_file(read).await.unwrap().into_inner().data, b"hello\n");
    let list = client.call(ReadDirRequest { r#ref: id.clone(), dir_path: "/d".into(), ..Default::default() });
    let list = client.bridge.read_dir(list).await.unwrap().into_inner().entries;
    assert_eq!(list.iter().map(|stat| stat.path.as_str()).collect::<Vec<_>>(), ["f", "link"]);
    let stat = client.call(StatFileRequest { r#ref: id.clone(), path: "/d/link".into(), ..Default::default() });
    let stat = client.bridge.stat_file(stat).await.unwrap().into_inner().stat.unwrap();
    assert_eq!(stat.linkname, "f");
    for (path, code) in
        [("/d/missing", tonic::Code::NotFound), ("/../../../../etc/hostname-of-nobody", tonic::Code::NotFound)]
    {
        let read = client.call(ReadFileRequest { r#ref: id.clone(), file_path: path.into(), ..Default::default() });
        let refused = client.bridge.read_file(read).await.unwrap_err();
        assert!(refused.message().contains("no such file") || refused.code() == code, "{path}: {refused}");
    }
    let unknown = client.call(EvaluateRequest { r#ref: "unknown".into() });
    assert!(client.bridge.evaluate(unknown).await.unwrap_err().message().contains("unknown"));

    client.answer(solved).await;
    let response = built.await.unwrap().unwrap().exporter_response;
    assert_eq!(response["image.name"], "docker.io/library/looked:latest");
    assert_eq!(daemon.cat("looked", "/d/f"), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_failed_step_is_reported_with_its_place() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nRUN exit 7\n");
    let mut client = Frontend::open(&daemon, "fails").await;
    let built = client.begin("failed");
    let solved = client.solve().await.unwrap();
    client.answer(solved).await;
    let failed = built.await.unwrap().unwrap_err();
    assert!(failed.message().contains("exit code: 7"), "{failed}");
    let details = kiln::types::build::decode_details(failed.details());
    let lines = details.iter().find_map(|detail| match detail {
        kiln::types::build::Detail::Source(source) => Some(source.ranges[0].start.line),
        _ => None,
    });
    assert_eq!(lines, Some(2), "{details:?}");

    daemon.dockerfile("FROM busybox\nRUNN x\n");
    let mut client = Frontend::open(&daemon, "refused").await;
    let built = client.begin("refused");
    let refused = client.solve().await.unwrap_err();
    assert!(refused.message().contains("RUNN"), "{refused}");
    // Clients refuse a status whose details have another code.
    let status: google::rpc::Status = prost::Message::decode(refused.details()).unwrap();
    assert_eq!(status.code, i32::from(refused.code()));
    let error = google::rpc::Status { code: 2, message: "given up".into(), details: Vec::new() };
    let request = client.call(ReturnRequest { result: None, error: Some(error) });
    client.bridge.r#return(request).await.unwrap();
    assert_eq!(built.await.unwrap().unwrap_err().message(), "given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_equal_steps_of_two_clients_at_once_run_once() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /id && sleep 2\n");
    let mut clients = Vec::new();
    for name in ["one", "two"] {
        let mut client = Frontend::open(&daemon, name).await;
        let built = client.begin(name);
        let solved = client.solve().await.unwrap();
        clients.push((client, built, solved));
    }
    let mut ends = Vec::new();
    for (mut client, built, solved) in clients {
        client.answer(solved).await;
        ends.push((client, built));
    }
    for (_client, built) in ends {
        built.await.unwrap().unwrap();
    }
    assert_eq!(daemon.cat("one", "/id"), daemon.cat("two", "/id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_client_that_dies_leaves_nothing_running() {
    let Some(daemon) = Daemon::start() else { return };
    let marker = format!("sleep 98{}", std::process::id());
    daemon.dockerfile(&format!("FROM busybox\nRUN {marker}\n"));
    let runs =
        || support::command::run("sh", ["-c", &format!("ps -eo args | grep -c '^{marker}$' || true")]).trim() != "0";
    let mut client = Frontend::open(&daemon, "dies").await;
    let built = client.begin("dead");
    let solved = client.solve().await.unwrap();
    client.answer(solved).await;
    eventually("the step runs", PATIENCE, || runs().then_some(()));
    built.abort();
    drop(client);
    eventually("nothing runs any more", PATIENCE, || (!runs()).then_some(()));
    // The daemon goes on.
    daemon.dockerfile("FROM busybox\nRUN true\n");
    daemon.command(&["build", "-q", "."]).ok();
}

#[test]
fn privileged_a_daemon_reads_layouts_and_caches_at_the_client() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM scratch\nCOPY a /base\n");
    daemon.kiln.write("a", "from the layout");
    daemon.command(&["build", "-o", "type=oci,dest=layout,tar=false", "."]).ok();
    daemon.dockerfile("FROM base AS from\nFROM busybox\nCOPY --from=from /base /b\nRUN cat /b >/c\n");
    let build = ["build", "--progress=plain", "--build-context", "base=oci-layout://layout"];
    let (export, import) = (["--cache-to=type=local,dest=kept,mode=max"], ["--cache-from=type=local,src=kept"]);
    daemon.command(&[&build[..], &export, &["-t", "one", "."]].concat()).ok();
    assert_eq!(daemon.cat("one", "/c"), "from the layout");
    daemon.command(&["builder", "prune", "-a", "-f"]).ok();
    daemon.command(&["rmi", "one"]).ok();
    let again = daemon.command(&[&build[..], &import, &["-t", "two", "."]].concat()).output();
    assert_eq!(again.code, 0, "{}", again.report());
    let found = again.stderr.lines().filter(|line| line.ends_with(" CACHED")).count();
    assert!(found >= 3, "{}", again.report());
    assert_eq!(daemon.cat("two", "/c"), "from the layout");
}
