//! The history of builds: what `kiln history` shows with and without a daemon, and what clients of BuildKit's API read.

mod support;

use kiln::client::{Client, Dialer};
use kiln::types::build::control_client::ControlClient;
use kiln::types::build::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRequest, SolveRequest, StatusRequest,
    UpdateBuildHistoryRequest,
};
use kiln::wire::trace::{
    EXPORT, ExportTraceServiceRequest, ExportTraceServiceResponse, ResourceSpans, ScopeSpans, Span,
};
use serde_json::Value;
use support::{Daemon, Kiln, PATIENCE, is_root};
use tonic::transport::Channel;

fn json(kiln: &Kiln, args: &[&str]) -> Value {
    serde_json::from_str(&kiln.ok(args)).expect("JSON")
}

#[test]
fn privileged_builds_are_listed_inspected_and_removed_without_a_daemon() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    kiln.write("Dockerfile", "FROM busybox\nARG A\nRUN echo \"printed $A\"\n");
    kiln.ok(["build", "-q", "-t", "app", "--build-arg", "A=x", "--label", "l=v", "."]);
    kiln.ok(["build", "-q", "-t", "app", "--build-arg", "A=x", "."]);
    kiln.write("Dockerfile", "FROM busybox\nRUN exit 7\n");
    kiln.fails(["build", "-q", "."]);

    let list = kiln.ok(["history", "ls", "--format", "{{.status}} {{.name}}"]);
    let scratch = kiln.scratch().display().to_string();
    assert_eq!(list, format!("Error {scratch}\nCompleted {scratch}\nCompleted {scratch}"));
    assert_eq!(kiln.ok(["history", "ls", "-q", "--filter", "status=error"]).lines().count(), 1);
    kiln.command(["history", "ls", "--filter", "stauts=error"]).fails().expect_stderr(&["did you mean status?"]);

    let failed = json(&kiln, &["history", "inspect", "--format", "json"]);
    assert_eq!(failed["Status"], "error");
    assert!(failed["Error"]["Message"].as_str().unwrap().contains("exit code: 7"), "{failed}");
    let text = kiln.ok(["history", "inspect"]);
    assert!(text.contains("Dockerfile:2") && text.contains("RUN exit 7"), "{text}");

    let first = json(&kiln, &["history", "inspect", "^2", "--format", "json"]);
    assert_eq!(first["BuildArgs"], serde_json::json!([{ "Name": "A", "Value": "x" }]));
    assert_eq!(first["Labels"], serde_json::json!([{ "Name": "l", "Value": "v" }]));
    let named = |step: &Value| step["Name"].as_str().unwrap().contains("RUN echo");
    let result =
        |build: &Value| build["Steps"].as_array().unwrap().iter().find(|step| named(step)).unwrap()["Result"].clone();
    assert_ne!(result(&first), "CACHED");
    assert_eq!(result(&json(&kiln, &["history", "inspect", "^1", "--format", "json"])), "CACHED");
    assert_eq!(first["NumTotalSteps"], first["NumCompletedSteps"]);

    let logs = kiln.ok(["history", "logs", "^2"]);
    assert!(logs.contains("RUN echo") && logs.contains(" printed x"), "{logs}");
    let provenance: Value =
        serde_json::from_str(&kiln.ok(["history", "inspect", "attachment", "^2"])).expect("provenance is JSON");
    assert!(provenance["buildDefinition"].is_object(), "{provenance}");

    let reference = first["Ref"].as_str().unwrap();
    assert_eq!(kiln.ok(["history", "rm", &reference[..20]]), reference);
    assert_eq!(kiln.ok(["history", "rm", "--all"]).lines().count(), 2);
    assert_eq!(kiln.ok(["history", "ls", "-q"]), "");
    assert_eq!(std::fs::read_dir(kiln.root().join("history")).unwrap().count(), 0, "logs go with their records");
    kiln.command(["history", "inspect"]).fails().expect_stderr(&["there is no build"]);
    kiln.command(["history", "open", "x"]).fails().expect_stderr(&["Docker Desktop"]);
    assert!(kiln.ok(["history", "app"]).contains("CREATED BY"), "an image's history is what docker calls so");
}

#[test]
fn privileged_the_log_of_a_build_that_prints_much_is_whole() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    kiln.write("Dockerfile", "FROM busybox\nRUN seq 1 400000\n");
    kiln.ok(["build", "-q", "."]);
    let logs = kiln.ok(["history", "logs"]);
    let output = logs.lines().filter(|line| !line.contains("RUN"));
    let lines = output.filter(|line| line.rsplit(' ').next().is_some_and(|word| word.parse::<u32>().is_ok()));
    assert_eq!(lines.count(), 400_000);
}

#[test]
fn privileged_limits_of_the_history_are_configured() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    let config = kiln.write("config.toml", "[history]\nmax-age = \"0s\"\nmax-entries = 1\n");
    kiln.write("Dockerfile", "FROM busybox\n");
    for _ in 0..3 {
        kiln.command(["build", "-q", "--config"]).arg(&config).arg(".").ok();
    }
    assert_eq!(kiln.ok(["history", "ls", "-q"]).lines().count(), 1);
}

async fn control(host: &str) -> ControlClient<Channel> {
    let client = Client::new(Dialer::new(host.parse().expect("a host")).expect("a dialer"));
    ControlClient::new(client.grpc().await.expect("reach the build service"))
}

/// Waits for the next event about a build.
async fn next(events: &mut tonic::Streaming<BuildHistoryEvent>) -> (BuildHistoryEventType, String) {
    let event = tokio::time::timeout(PATIENCE, events.message()).await.expect("an event in time");
    let event = event.expect("no error").expect("the stream goes on");
    (event.r#type(), event.record.unwrap_or_default().r#ref)
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_clients_hear_of_builds_as_they_begin_end_and_go() {
    let Some(daemon) = Daemon::start() else { return };
    let mut control = control(&daemon.host).await;
    let probe = BuildHistoryRequest { active_only: true, r#ref: "none".into(), early_exit: true, ..Default::default() };
    let mut probed = control.listen_build_history(probe).await.unwrap().into_inner();
    assert!(probed.message().await.unwrap().is_none(), "buildx asks so whether there is a history");

    let mut events = control.listen_build_history(BuildHistoryRequest::default()).await.unwrap().into_inner();
    daemon.dockerfile("FROM busybox\nRUN --mount=type=cache,target=/c,id=gate echo begun; until [ -e /c/go ]; do sleep 0.1; done; rm /c/go\n");
    let mut building = daemon.command(&["build", "--progress=plain", "."]).spawn();
    let (kind, reference) = next(&mut events).await;
    assert_eq!(kind, BuildHistoryEventType::Started);
    building.until_it_says("begun");

    // Another engine of the root sees it, and reads along.
    let list = daemon.kiln.ok(["history", "ls", "--format", "{{.ref}} {{.status}}"]);
    assert_eq!(list, format!("{reference} Running"));
    let mut following = daemon.kiln.command(["history", "logs", &reference]).spawn();
    following.until_it_says("begun");
    daemon.kiln.command(["history", "rm", &reference]).fails().expect_stderr(&["still running"]);

    // A build lets it go on.
    daemon.kiln.write("gate/Dockerfile", "FROM busybox\nRUN --mount=type=cache,target=/c,id=gate touch /c/go\n");
    daemon.command(&["build", "-q", "gate"]).ok();
    assert_eq!(building.wait().code, 0);
    assert_eq!(following.wait().code, 0);
    let (mut seen, mut second) = (Vec::new(), String::new());
    while seen.len() < 3 {
        let (kind, of) = next(&mut events).await;
        if of != reference {
            second.clone_from(&of);
        }
        seen.push((kind, of == reference));
    }
    assert!(seen.contains(&(BuildHistoryEventType::Complete, true)), "{seen:?}");

    let mut replayed = control.status(StatusRequest { r#ref: reference.clone() }).await.unwrap().into_inner();
    let mut printed = Vec::new();
    while let Some(status) = replayed.message().await.unwrap() {
        printed.extend(status.logs.into_iter().flat_map(|log| log.msg));
    }
    assert_eq!(String::from_utf8_lossy(&printed), "begun\n");

    let pin = UpdateBuildHistoryRequest { r#ref: reference.clone(), pinned: true, ..Default::default() };
    control.update_build_history(pin).await.unwrap();
    assert_eq!(next(&mut events).await, (BuildHistoryEventType::Complete, reference.clone()));
    for reference in [&reference, &second] {
        let delete = UpdateBuildHistoryRequest { r#ref: reference.clone(), delete: true, ..Default::default() };
        control.update_build_history(delete).await.unwrap();
        assert_eq!(next(&mut events).await, (BuildHistoryEventType::Deleted, reference.clone()));
    }
    let unknown = UpdateBuildHistoryRequest { r#ref: "unknown".into(), delete: true, ..Default::default() };
    assert_eq!(control.update_build_history(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(daemon.command(&["history", "ls", "-q"]).ok(), "");
}

#[test]
fn privileged_a_build_whose_engine_was_killed_is_not_running_for_ever() {
    let Some(daemon) = Daemon::start() else { return };
    let marker = format!("sleep 96{}", std::process::id());
    daemon.dockerfile(&format!("FROM busybox\nRUN echo begun; exec {marker}\n"));
    let mut building = daemon.command(&["build", "--progress=plain", "."]).spawn();
    building.until_it_says("begun");
    let Daemon { process, kiln, .. } = daemon;
    process.kill();
    assert_ne!(building.wait().code, 0);
    let list = kiln.ok(["history", "ls", "--format", "{{.status}}"]);
    assert_eq!(list, "Error");
    assert!(kiln.ok(["history", "inspect"]).contains("the engine ended before the build did"));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_build_is_kept_with_what_its_client_did_for_it() {
    let Some(daemon) = Daemon::start() else { return };
    let client = Client::new(Dialer::new(daemon.host.parse().unwrap()).unwrap());
    let channel = client.grpc().await.unwrap();
    let mut control = ControlClient::new(channel.clone());
    let (trace, above) = ([7; 16], [9; 8]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut request = tonic::Request::new(SolveRequest {
        r#ref: "traced".into(),
        frontend: "dockerfile.v0".into(),
        frontend_attrs: [("kiln.dockerfile".to_owned(), "RlJPTSBidXN5Ym94ClJVTiB0cnVlCg==".to_owned())].into(),
        ..SolveRequest::default()
    });
    let parent = format!("00-{}-{}-01", hex(&trace), hex(&above));
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    control.solve(request).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let span = |trace: [u8; 16], name: &str| Span {
        trace_id: trace.to_vec(),
        span_id: above.to_vec(),
        name: name.into(),
        ..Span::default()
    };
    let of_scope = ScopeSpans { spans: vec![span(trace, "ours"), span([1; 16], "others")], ..ScopeSpans::default() };
    let spans = ResourceSpans { resource: None, scope_spans: vec![of_scope] };
    let codec = tonic_prost::ProstCodec::<ExportTraceServiceRequest, ExportTraceServiceResponse>::default();
    let spans = tonic::Request::new(ExportTraceServiceRequest { resource_spans: vec![spans] });
    grpc.unary(spans, http::uri::PathAndQuery::from_static(EXPORT), codec).await.unwrap();
    let update = UpdateBuildHistoryRequest { r#ref: "traced".into(), finalize: true, ..Default::default() };
    control.update_build_history(update).await.unwrap();
    let asked = BuildHistoryRequest { r#ref: "traced".into(), early_exit: true, ..BuildHistoryRequest::default() };
    let record = control.listen_build_history(asked).await.unwrap().into_inner().message().await.unwrap().unwrap();
    let trace = record.record.unwrap().trace.expect("the record has a trace");
    assert_eq!(trace.media_type, "application/vnd.buildkit.otlp.json.v0");
    let text = client.builder().await.unwrap().content(&trace.digest, 1 << 20).await.unwrap();
    let spans: Vec<Value> =
        String::from_utf8(text).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named = |name: &str| spans.iter().find(|span| span["Name"].as_str().unwrap().contains(name));
    assert!(named("ours").is_some() && named("others").is_none(), "{spans:?}");
    let step = named("RUN true").expect("the step has a span");
    assert_eq!(step["Parent"]["SpanID"], hex(&above));
}
