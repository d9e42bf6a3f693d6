//! `POST /build`: clients that know no BuildKit, and those that speak it in this way. The clients are docker's SDK for Python and
//! the docker command where they are installed, and bare HTTP.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use serde_json::Value;
use support::{Daemon, Docker, PATIENCE, Run, eventually, is_installed};

/// The answer to a request: its status, and its body as a list of JSON documents, one a line.
struct Answered {
    status: u16,
    lines: Vec<Value>,
    body: String,
}

impl Answered {
    fn text(&self) -> String {
        self.lines.iter().filter_map(|line| line["stream"].as_str()).collect()
    }

    fn error(&self) -> &str {
        let of_stream = self.lines.last().and_then(|line| line["errorDetail"]["message"].as_str());
        of_stream.or_else(|| self.lines.last()?["message"].as_str()).unwrap_or_default()
    }

    fn id(&self) -> String {
        let of = |line: &Value| line["aux"]["ID"].as_str().map(str::to_owned);
        self.lines.iter().find_map(of).unwrap_or_else(|| panic!("no id: {}", self.body))
    }
}

/// Begins `POST /build` with a query and a body.
fn begin(daemon: &Daemon, path: &str, headers: &str, body: &[u8]) -> UnixStream {
    let socket = daemon.host.strip_prefix("unix://").expect("a unix socket");
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    let length = body.len();
    let head = format!(
        "POST /v1.41{path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/x-tar\r\n\
         Content-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).expect("send a request");
    // A server that refuses does not read it all.
    let _ = stream.write_all(body);
    stream
}

fn answer(mut stream: UnixStream) -> Answered {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read the answer");
    let text = String::from_utf8(bytes).expect("answers are text");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let body =
        if head.to_lowercase().contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_owned() };
    let lines = body.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Answered { status, lines, body }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

fn post(daemon: &Daemon, path: &str, body: &[u8]) -> Answered {
    answer(begin(daemon, path, "", body))
}

/// The scratch directory as an archive.
fn context(daemon: &Daemon, compression: &str) -> Vec<u8> {
    let archive = daemon.kiln.home().join("context.tar");
    let archive = archive.to_str().expect("a path of letters");
    Run::new("tar").args(["-c", compression, "-f", archive, "."]).cwd(daemon.kiln.scratch()).ok();
    std::fs::read(archive).expect("read the archive")
}

#[test]
fn privileged_a_context_in_the_body_is_built_and_told_in_classic_words() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nARG A\nCOPY . /app/\nRUN echo \"printed $A\" && cp /app/a /b\nCMD [\"true\"]\n");
    daemon.kiln.write("a", "one");
    daemon.kiln.write("ignored", "x");
    daemon.kiln.write(".dockerignore", "ignored\n");
    let path = "/build?t=app&t=app:1&buildargs=%7B%22A%22%3A%22x%22%7D&labels=%7B%22l%22%3A%22v%22%7D&rm=1";
    let built = post(&daemon, path, &context(&daemon, "--gzip"));
    assert_eq!(built.status, 200, "{}", built.body);
    let text = built.text();
    for words in [
        "Step 1/3 : FROM ",
        "Step 2/3 : COPY . /app/",
        "Step 3/3 : RUN echo ",
        "\n ---> Running in ",
        "\nprinted x\n",
        &format!("\nSuccessfully built {}\n", &built.id()["sha256:".len()..][..12]),
        "\nSuccessfully tagged app:latest\nSuccessfully tagged app:1\n",
    ] {
        assert!(text.contains(words), "nothing of {words:?} in {text}");
    }
    assert_eq!(daemon.cat("app:1", "/b"), "one");
    assert_eq!(daemon.command(&["run", "--rm", "app", "ls", "/app"]).ok(), "Dockerfile\na");
    let labels = daemon.command(&["image", "inspect", "-f", "{{.Id}} {{.Config.Labels.l}}", "app"]).ok();
    assert_eq!(labels, format!("{} v", built.id()));

    let again = post(&daemon, path, &context(&daemon, "--xz"));
    assert_eq!(again.text().matches(" ---> Using cache\n").count(), 2, "{}", again.text());
    let quiet = post(&daemon, &format!("{path}&q=1"), &context(&daemon, "--zstd"));
    assert_eq!(quiet.text(), format!("{}\n", built.id()));
    // Nothing stays of the contexts.
    let left = daemon.command(&["system", "df", "-v"]).ok();
    assert!(!left.contains("build context"), "{left}");
    let memos = daemon.kiln.root().join("memos").read_dir().expect("list the memos").count();
    assert_eq!(memos, 0, "memos of contexts that are gone");
}

#[test]
fn privileged_failures_are_statuses_before_the_build_and_in_the_stream_after() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nRUN echo before; exit 7\n");
    let failed = post(&daemon, "/build", &context(&daemon, "--gzip"));
    assert_eq!(failed.status, 200);
    assert!(failed.error().contains("exit code: 7") && failed.text().contains("before\n"), "{}", failed.body);
    let refused = post(&daemon, "/build?squash=1", &[]);
    assert_eq!(refused.status, 400);
    assert!(refused.error().contains("squash"), "{}", refused.body);
    let damaged = post(&daemon, "/build", b"this is no archive, and it is longer than any header of one is");
    assert_eq!(damaged.status, 400, "{}", damaged.body);
    daemon.dockerfile("FROM busybox\nRUNN x\n");
    let wrong = post(&daemon, "/build", &context(&daemon, "--gzip"));
    assert_eq!(wrong.status, 400);
    assert!(wrong.error().contains("RUNN"), "{}", wrong.body);
    daemon.dockerfile("FROM registry.invalid/nothing\n");
    let missing = post(&daemon, "/build", &context(&daemon, "--gzip"));
    assert_eq!(missing.status, 200);
    assert!(missing.error().contains("registry.invalid/nothing"), "{}", missing.body);
}

#[test]
fn privileged_version_2_tells_what_buildkit_tells() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nRUN echo printed\n");
    let built = post(&daemon, "/build?version=2&t=two", &context(&daemon, "--gzip"));
    assert_eq!(built.status, 200, "{}", built.body);
    let of = |id: &str| built.lines.iter().filter(|line| line["id"] == id).map(|line| line["aux"].clone()).collect();
    let (traces, ids): (Vec<Value>, Vec<Value>) = (of("moby.buildkit.trace"), of("moby.image.id"));
    let logs: Vec<u8> = traces.iter().flat_map(|trace| logs(trace.as_str().expect("base64"))).collect();
    assert_eq!(String::from_utf8_lossy(&logs), "printed\n");
    let id = daemon.command(&["image", "inspect", "-f", "{{.Id}}", "two"]).ok();
    assert_eq!(ids, [serde_json::json!({ "ID": id })]);

    // The context comes in a request of its own.
    let build = begin(&daemon, "/build?version=2&remote=upload-request&buildid=up&t=up", "", &[]);
    let upload = post(&daemon, "/build?buildid=upload-request:up", &context(&daemon, "--gzip"));
    assert_eq!(upload.status, 200, "{}", upload.body);
    assert!(answer(build).body.contains("moby.image.id"));
    daemon.command(&["image", "inspect", "up"]).ok();
}

/// What the steps of a report of BuildKit printed.
fn logs(report: &str) -> Vec<u8> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(report).expect("base64");
    let report: kiln::types::build::StatusResponse = prost::Message::decode(bytes.as_slice()).expect("a report");
    report.logs.into_iter().flat_map(|log| log.msg).collect()
}

#[test]
fn privileged_a_build_is_cancelled_by_its_name_and_by_its_clients_end() {
    let Some(daemon) = Daemon::start() else { return };
    let marker = format!("sleep 97{}", std::process::id());
    daemon.dockerfile(&format!("FROM busybox\nRUN {marker}\n"));
    let runs =
        || support::command::run("sh", ["-c", &format!("ps -eo args | grep -c '^{marker}$' || true")]).trim() != "0";
    let archive = context(&daemon, "--gzip");
    let build = begin(&daemon, "/build?buildid=mine", "", &archive);
    eventually("the step runs", PATIENCE, || runs().then_some(()));
    assert_eq!(post(&daemon, "/build/cancel?id=mine", &[]).status, 200);
    assert!(answer(build).error().contains("cancel"));
    eventually("nothing runs any more", PATIENCE, || (!runs()).then_some(()));

    let build = begin(&daemon, "/build", "", &archive);
    eventually("the step runs", PATIENCE, || runs().then_some(()));
    drop(build);
    eventually("nothing runs any more", PATIENCE, || (!runs()).then_some(()));

    // The daemon's own end ends it, too.
    let build = begin(&daemon, "/build", "", &archive);
    eventually("the step runs", PATIENCE, || runs().then_some(()));
    daemon.process.signal(Signal::TERM);
    assert_eq!(daemon.process.wait().code, 0);
    assert!(!runs(), "the step outlives the daemon");
    drop(build);
}

#[test]
fn privileged_docker_s_sdk_for_python_builds() {
    if !is_installed("python3", "python3") || !has_python_docker() {
        return;
    }
    let Some(daemon) = Daemon::start() else { return };
    daemon
        .dockerfile("FROM busybox AS base\nARG A\nCOPY a /a\nRUN echo printed $A && cp /a /b\nFROM base\nRUN exit 3\n");
    daemon.kiln.write("a", "one");
    let script = r#"
import docker, sys
client = docker.DockerClient(base_url=sys.argv[1], timeout=120)
image, log = client.images.build(path=".", tag="py:1", target="base", buildargs={"A": "x"}, labels={"l": "v"})
text = "".join(line.get("stream", "") for line in log)
assert "printed x" in text and "Successfully tagged py:1" in text, text
assert image.tags == ["py:1"] and image.labels["l"] == "v", (image.tags, image.labels)
try:
    client.images.build(path=".")
except docker.errors.BuildError as error:
    assert "exit code: 3" in str(error), error
else:
    raise AssertionError("it should have failed")
try:
    client.images.build(path=".", squash=True)
except docker.errors.APIError as error:
    assert error.status_code == 400, error
else:
    raise AssertionError("squash should have been refused")
print(image.id)
"#;
    let id = Run::new("python3").args(["-c", script, &daemon.host]).cwd(daemon.kiln.scratch()).ok();
    assert_eq!(id, daemon.command(&["image", "inspect", "-f", "{{.Id}}", "py:1"]).ok());
    assert_eq!(daemon.cat("py:1", "/b"), "one");
}

fn has_python_docker() -> bool {
    let found = Run::new("python3").args(["-c", "import docker"]).output().code == 0;
    if !found {
        eprintln!("skipped: docker's SDK for Python is not installed (apt-get install python3-docker)");
    }
    found
}

#[test]
fn privileged_the_docker_command_builds_without_buildkit() {
    let Some(docker) = Docker::with_buildx() else { return };
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nCOPY a /a\nRUN cp /a /b\n");
    daemon.kiln.write("a", "one");
    let docker = |args: &[&str]| daemon.docker(&docker, args).env("DOCKER_BUILDKIT", "0");
    let said = docker(&["build", "-t", "cli", "--iidfile", "id", "."]).ok();
    assert!(said.contains("Step 3/3 : RUN cp /a /b") && said.contains("Successfully tagged cli:latest"), "{said}");
    let id = std::fs::read_to_string(daemon.kiln.scratch().join("id")).expect("the file with the id");
    assert_eq!(id, daemon.command(&["image", "inspect", "-f", "{{.Id}}", "cli"]).ok());
    assert_eq!(daemon.cat("cli", "/b"), "one");
    let stdin = docker(&["build", "-q", "-"]).stdin("FROM busybox\nRUN true\n").ok();
    assert!(stdin.starts_with("sha256:"), "{stdin}");
    daemon.dockerfile("FROM busybox\nRUN exit 4\n");
    let failed = docker(&["build", "."]).fails();
    assert!(failed.stderr.contains("exit code: 4"), "{}", failed.report());
}
