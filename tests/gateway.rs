//! Containers of frontends at clients: processes in results of a build, as debuggers of builds run them.

mod support;

use std::collections::HashMap;

use kiln::types::build::frontend::exec_message::Input;
use kiln::types::build::frontend::{
    ExecMessage, FdMessage, InitMessage, NewContainerRequest, ReadDirRequest, ReadFileRequest, ReleaseContainerRequest,
    ResizeMessage, SignalMessage, StatFileRequest,
};
use kiln::types::build::{Detail, SolveDetail, decode_details, frontend, pb};
use support::frontend::{Frontend, reference};
use support::llb::{Bind, Llb, mkfile};
use support::{Daemon, PATIENCE, eventually};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// A stream of processes.
struct Processes {
    sender: mpsc::Sender<ExecMessage>,
    answers: Streaming<ExecMessage>,
    /// What came for processes that were not asked about yet.
    seen: HashMap<String, Process>,
}

/// What is known of a process.
#[derive(Debug, Default)]
struct Process {
    started: bool,
    stdout: String,
    stderr: String,
    ends: Vec<u32>,
    exit: Option<(u32, String)>,
    done: bool,
}

impl Processes {
    async fn open(client: &mut Frontend) -> Self {
        let (sender, receiver) = mpsc::channel(16);
        let request = client.call(()).map(|()| ReceiverStream::new(receiver));
        let answers = client.bridge.exec_process(request).await.expect("open a stream").into_inner();
        Self { sender, answers, seen: HashMap::new() }
    }

    async fn send(&self, process: &str, input: Input) {
        let message = ExecMessage { process_id: process.to_owned(), input: Some(input) };
        self.sender.send(message).await.expect("the stream is open");
    }

    async fn begin(&self, process: &str, init: InitMessage) {
        self.send(process, Input::Init(init)).await;
    }

    async fn write(&self, process: &str, data: &str) {
        self.send(process, Input::File(FdMessage { fd: 0, eof: false, data: data.into() })).await;
    }

    /// Reads on until something is so of a process.
    async fn until(&mut self, process: &str, is_so: impl Fn(&Process) -> bool) -> Result<&Process, Status> {
        while !self.seen.get(process).is_some_and(&is_so) {
            let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
            let message = answer.unwrap_or_else(|_| panic!("nothing comes any more: {:?}", self.seen))?;
            let message = message.unwrap_or_else(|| panic!("the stream has ended: {:?}", self.seen));
            let known = self.seen.entry(message.process_id).or_default();
            assert!(!known.done, "something came after the end: {:?}", message.input);
            match message.input.expect("a message says something") {
                Input::Started(_) => known.started = true,
                Input::File(FdMessage { fd, eof: true, .. }) => known.ends.push(fd),
                Input::File(FdMessage { fd: 1, data, .. }) => known.stdout += &text(&data),
                Input::File(FdMessage { data, .. }) => known.stderr += &text(&data),
                Input::Exit(exit) => {
                    known.exit = Some((exit.code, exit.error.map(|error| error.message).unwrap_or_default()));
                }
                Input::Done(_) => known.done = true,
                other => panic!("{other:?} is for engines"),
            }
        }
        Ok(&self.seen[process])
    }

    async fn done(&mut self, process: &str) -> &Process {
        self.until(process, |process| process.done).await.expect("the stream goes on")
    }
}

fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

fn shell(container: &str, script: &str) -> InitMessage {
    let args = ["sh", "-c", script].map(str::to_owned).to_vec();
    let meta = pb::Meta { args, cwd: "/".into(), ..pb::Meta::default() };
    InitMessage { container_id: container.into(), meta: Some(meta), fds: vec![0, 1, 2], ..InitMessage::default() }
}

fn root(result: &str) -> pb::Mount {
    pb::Mount { dest: "/".into(), result_id: result.into(), ..pb::Mount::default() }
}

fn container(id: &str, mounts: Vec<pb::Mount>) -> NewContainerRequest {
    NewContainerRequest { container_id: id.into(), mounts, ..NewContainerRequest::default() }
}

/// A build whose Dockerfile was lowered, and its result.
async fn lowered(daemon: &Daemon, name: &str) -> (Frontend, String) {
    let mut client = Frontend::open(daemon, name).await;
    // The build ends with the frontend.
    drop(client.begin(name));
    let solved = client.solve().await.expect("lower the Dockerfile");
    let id = reference(&solved);
    (client, id)
}

async fn new_container(client: &mut Frontend, request: NewContainerRequest) -> Result<(), Status> {
    let request = client.call(request);
    client.bridge.new_container(request).await.map(drop)
}

async fn release(client: &mut Frontend, id: &str) -> Result<(), Status> {
    let request = client.call(ReleaseContainerRequest { container_id: id.into() });
    client.bridge.release_container(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_processes_run_in_a_container_of_results() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nRUN mkdir /d && echo hello > /d/f\n");
    let (mut client, result) = lowered(&daemon, "runs").await;
    let mounts = vec![
        root(&result),
        pb::Mount {
            dest: "/again".into(),
            result_id: result.clone(),
            selector: "/d".into(),
            readonly: true,
            ..Default::default()
        },
        pb::Mount { dest: "/memory".into(), mount_type: pb::MountType::Tmpfs.into(), ..Default::default() },
        pb::Mount {
            dest: "/cache".into(),
            mount_type: pb::MountType::Cache.into(),
            cache_opt: Some(pb::CacheOpt { id: "gateway".into(), sharing: 0 }),
            ..Default::default()
        },
    ];
    let request = NewContainerRequest {
        hostname: "kitchen".into(),
        extra_hosts: vec![pb::HostIp { host: "stove".into(), ip: "192.0.2.7".into() }],
        ..container("c", mounts)
    };
    new_container(&mut client, request.clone()).await.unwrap();
    assert!(new_container(&mut client, request).await.unwrap_err().message().contains("exists"));

    let mut stream = Processes::open(&mut client).await;
    // The first is the container's init: it waits for its input to end.
    stream.begin("init", shell("c", "echo init > /d/g; cat; echo gone >&2; exit 3")).await;
    stream.until("init", |process| process.started).await.unwrap();
    let script = "cat /d/f /d/g /again/f; hostname; grep -c stove /etc/hosts; touch /again/x || echo refused; \
                  echo kept > /cache/k; grep -c ' /memory tmpfs' /proc/mounts; cat /proc/1/cmdline | tr '\\0' ' ' | cut -c 1-5";
    stream.begin("further", shell("c", script)).await;
    let further = stream.done("further").await;
    assert_eq!(further.stdout, "hello\ninit\nhello\nkitchen\n1\nrefused\n1\nsh -c\n", "{further:?}");
    assert_eq!(further.exit, Some((0, String::new())));
    assert_eq!(further.ends.len(), 2);

    // What the container holds is seen from outside, by mount.
    let read = |file_path: &str, mount_index: i32| ReadFileRequest {
        r#ref: "c".into(),
        file_path: file_path.into(),
        mount_index,
        ..Default::default()
    };
    for (path, mount, content) in [("/d/g", 0, "init\n"), ("/f", 1, "hello\n"), ("k", 3, "kept\n")] {
        let request = client.call(read(path, mount));
        let data = client.bridge.read_file_container(request).await.unwrap().into_inner().data;
        assert_eq!(String::from_utf8(data).unwrap(), content, "{path}");
    }
    for (path, mount) in [("/proc/self/status", 0), ("/x", 2), ("/x", 9)] {
        let request = client.call(read(path, mount));
        client.bridge.read_file_container(request).await.expect_err(path);
    }
    let request = client.call(ReadDirRequest { r#ref: "c".into(), dir_path: "/d".into(), ..Default::default() });
    let list = client.bridge.read_dir_container(request).await.unwrap().into_inner().entries;
    assert_eq!(list.iter().map(|stat| stat.path.as_str()).collect::<Vec<_>>(), ["f", "g"]);
    let request = client.call(StatFileRequest { r#ref: "c".into(), path: "/d/f".into(), ..Default::default() });
    assert_eq!(client.bridge.stat_file_container(request).await.unwrap().into_inner().stat.unwrap().size, 6);

    stream.write("init", "spoken\n").await;
    stream.send("init", Input::File(FdMessage { fd: 0, eof: true, data: Vec::new() })).await;
    let init = stream.done("init").await;
    assert_eq!((init.stdout.as_str(), init.stderr.as_str()), ("spoken\n", "gone\n"));
    assert_eq!(init.exit, Some((3, "exit code: 3".into())));
    // Without its init a container runs nothing.
    stream.begin("late", shell("c", "true")).await;
    let (code, why) = stream.done("late").await.exit.clone().unwrap();
    assert!(code == 255 && why.contains("has stopped"), "{code} {why}");
    release(&mut client, "c").await.unwrap();
    assert_eq!(release(&mut client, "c").await.unwrap_err().code(), Code::NotFound);

    // What was written to a result is in no other container, what was written to a cache is.
    let cache = pb::CacheOpt { id: "gateway".into(), sharing: 0 };
    let kept = pb::Mount {
        dest: "/cache".into(),
        mount_type: pb::MountType::Cache.into(),
        cache_opt: Some(cache),
        ..Default::default()
    };
    new_container(&mut client, container("other", vec![root(&result), kept])).await.unwrap();
    stream.begin("other", shell("other", "ls /d; cat /cache/k")).await;
    assert_eq!(stream.done("other").await.stdout, "f\nkept\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_process_has_a_terminal_signals_and_a_size() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nRUN true\n");
    let (mut client, result) = lowered(&daemon, "terminal").await;
    new_container(&mut client, container("c", vec![root(&result)])).await.unwrap();
    let mut stream = Processes::open(&mut client).await;
    let script = "trap 'stty size' WINCH; trap 'echo got usr1' USR1; trap 'exit 9' TERM; tty; echo $TERM; echo ready; \
                  while :; do read -t 1 line && echo \"<$line>\"; done";
    stream.begin("t", InitMessage { tty: true, fds: vec![0, 1], ..shell("c", script) }).await;
    stream.until("t", |process| process.stdout.contains("ready")).await.unwrap();
    stream.send("t", Input::Resize(ResizeMessage { rows: 33, cols: 77 })).await;
    stream.until("t", |process| process.stdout.contains("33 77")).await.unwrap();
    stream.send("t", Input::Signal(SignalMessage { name: "USR1".into() })).await;
    stream.until("t", |process| process.stdout.contains("got usr1")).await.unwrap();
    stream.write("t", "typed\n").await;
    stream.until("t", |process| process.stdout.contains("<typed>")).await.unwrap();
    // A second one with a terminal of its own.
    stream.begin("u", InitMessage { tty: true, fds: vec![0, 1], ..shell("c", "tty; kill -TERM 1") }).await;
    let further = stream.done("u").await;
    assert!(further.stdout.contains("/dev/pts/"), "{further:?}");
    let first = stream.done("t").await;
    assert!(first.stdout.contains("/dev/pts/0") && first.stdout.contains("xterm"), "{first:?}");
    assert_eq!(first.exit, Some((9, "exit code: 9".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_a_container_cannot_do_is_said_and_hurts_no_other() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nRUN true\n");
    let (mut client, result) = lowered(&daemon, "refuses").await;
    let host = NewContainerRequest { network: pb::NetMode::Host.into(), ..container("h", vec![root(&result)]) };
    let foreign = NewContainerRequest {
        platform: Some(pb::Platform { os: "plan9".into(), architecture: "amd64".into(), ..Default::default() }),
        ..container("p", vec![root(&result)])
    };
    let secret = pb::Mount {
        dest: "/s".into(),
        mount_type: pb::MountType::Secret.into(),
        secret_opt: Some(pb::SecretOpt { id: "nobody-has-it".into(), ..Default::default() }),
        ..Default::default()
    };
    for (request, word) in [
        (host, "network.host"),
        (foreign, "plan9"),
        (container("none", Vec::new()), "root file system"),
        (container("unknown", vec![root("no-such-result")]), "no-such-result"),
        (container("relative", vec![root(&result), pb::Mount { dest: "x".into(), ..Default::default() }]), "absolute"),
        (container("secret", vec![root(&result), secret]), "nobody-has-it"),
    ] {
        let refused = new_container(&mut client, request).await.unwrap_err();
        assert!(refused.message().contains(word), "{word}: {refused}");
    }
    new_container(&mut client, container("c", vec![pb::Mount { readonly: true, ..root(&result) }])).await.unwrap();
    let mut stream = Processes::open(&mut client).await;
    stream.begin("lives", shell("c", "touch /x || echo read-only; cat")).await;
    stream.until("lives", |process| process.stdout.contains("read-only")).await.unwrap();
    let insecure = InitMessage { security: pb::SecurityMode::Insecure.into(), ..shell("c", "true") };
    let command = pb::Meta { args: vec!["/no/such/command".into()], cwd: "/".into(), ..Default::default() };
    let missing = InitMessage { meta: Some(command), ..shell("c", "") };
    let secretenv = vec![pb::SecretEnv { id: "nobody-has-it".into(), name: "S".into(), optional: false }];
    for (process, init, code, word) in [
        ("insecure", insecure, 255, "security.insecure"),
        ("missing", missing, 127, "/no/such/command"),
        ("elsewhere", shell("nowhere", "true"), 255, "nowhere"),
        ("secret", InitMessage { secretenv, ..shell("c", "true") }, 255, "nobody-has-it"),
    ] {
        stream.begin(process, init).await;
        let done = stream.done(process).await;
        let (exit, why) = done.exit.clone().unwrap();
        assert!(done.started && exit == code && why.contains(word), "{process}: {exit} {why}");
    }
    stream.write("lives", "still\n").await;
    stream.until("lives", |process| process.stdout.contains("still")).await.unwrap();
    stream.begin("lives", shell("c", "true")).await;
    let refused = stream.until("lives", |process| process.done).await.unwrap_err();
    assert!(refused.message().contains("already"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_containers_end_with_their_stream_their_release_and_their_build() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.dockerfile("FROM busybox\nRUN true\n");
    let marker = |number: u32| format!("sleep 97{number}{}", std::process::id());
    let runs = |number: u32| {
        let script = format!("ps -eo args | grep -c '^{}$' || true", marker(number));
        support::command::run("sh", ["-c", &script]).trim() != "0"
    };
    let started = |number| eventually("the process runs", PATIENCE, || runs(number).then_some(()));
    let ended = |number| eventually("the process has ended", PATIENCE, || (!runs(number)).then_some(()));

    let mut client = Frontend::open(&daemon, "ends").await;
    let built = client.begin("ends");
    let solved = client.solve().await.unwrap();
    let result = reference(&solved);
    for id in ["streamed", "released", "left"] {
        new_container(&mut client, container(id, vec![root(&result)])).await.unwrap();
    }
    let stream = Processes::open(&mut client).await;
    stream.begin("p", shell("streamed", &format!("{} & wait", marker(1)))).await;
    started(1);
    drop(stream);
    ended(1);
    let mut stream = Processes::open(&mut client).await;
    stream.begin("p", shell("released", &format!("exec {}", marker(2)))).await;
    started(2);
    release(&mut client, "released").await.unwrap();
    ended(2);
    assert_eq!(stream.done("p").await.exit.as_ref().unwrap().0, 137);
    stream.begin("q", shell("left", &format!("exec {}", marker(3)))).await;
    started(3);
    client.answer(solved).await;
    built.await.unwrap().unwrap();
    ended(3);

    // A client that dies takes its containers along.
    let mut client = Frontend::open(&daemon, "dies").await;
    let built = client.begin("dies");
    let result = reference(&client.solve().await.unwrap());
    new_container(&mut client, container("c", vec![root(&result)])).await.unwrap();
    let stream = Processes::open(&mut client).await;
    stream.begin("p", shell("c", &format!("exec {}", marker(4)))).await;
    started(4);
    built.abort();
    ended(4);
    drop((stream, client));
    let mounts =
        || std::fs::read_to_string("/proc/mounts").unwrap().matches(&*daemon.kiln.root().to_string_lossy()).count();
    eventually("nothing is mounted", PATIENCE, || (mounts() == 0).then_some(()));
}

/// Runs a shell command in a new container, and returns what it says.
async fn says(client: &mut Frontend, id: &str, mounts: Vec<pb::Mount>, script: &str) -> String {
    new_container(client, container(id, mounts)).await.expect("make a container");
    let mut processes = Processes::open(client).await;
    processes.begin("p", shell(id, script)).await;
    let said = processes.done("p").await.stdout.clone();
    release(client, id).await.expect("release the container");
    said
}

/// The mounts of a failed step, as buildx makes a container of them: of what it worked on, or of what it left.
fn mounts_of(solve: &SolveDetail, ids: &[String]) -> Vec<pb::Mount> {
    let op = solve.op.as_ref().expect("the operation");
    let mounts = op["exec"]["mounts"].as_array().expect("the mounts of a process");
    assert_eq!((solve.input_ids.len(), solve.mount_ids.len()), (mounts.len(), mounts.len()), "{solve:?}");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mount = |(mount, id): (&serde_json::Value, &String)| pb::Mount {
        dest: text(&mount["dest"]),
        selector: text(&mount["selector"]),
        readonly: mount["readonly"] == true,
        result_id: id.clone(),
        ..pb::Mount::default()
    };
    mounts.iter().zip(ids).map(mount).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_failed_step_can_be_looked_into() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = Frontend::open(&daemon, "fails").await;
    drop(client.begin("fails"));
    let mut llb = Llb::default();
    let base = llb.busybox();
    let seed = llb.file(&None, vec![mkfile("/seed", 0o644, "seed")]);
    let binds = [Bind::of(&seed, "/read"), Bind::kept(&seed, "/written")];
    let failing = llb.run(&base, "echo root > /left; echo more >> /written/seed; exit 7", &binds).remove(0);
    llb.about(&failing).description.insert("llb.customname".into(), "the one that fails".into());
    let digest = failing.clone().expect("a step").digest;
    let solve = frontend::SolveRequest { definition: Some(llb.end(&failing)), evaluate: true, ..Default::default() };
    let request = client.call(solve);
    let status = client.bridge.solve(request).await.unwrap_err();
    assert!(status.message().contains("exit code: 7"), "{status}");
    let details = decode_details(status.details());
    let vertex =
        details.iter().find_map(|detail| if let Detail::Vertex(vertex) = detail { Some(vertex) } else { None });
    assert_eq!(vertex.expect("the step's digest").digest, digest);
    // Clients of some versions do not read the one with a description.
    let mut solves = details.iter().filter_map(|detail| match detail {
        Detail::Solve(solve) => Some(solve),
        _ => None,
    });
    assert!(solves.next().expect("what the step was").description.is_empty());
    let solve = solves.next().expect("what the step was, with its name");
    assert_eq!(solve.description["llb.customname"], "the one that fails");
    assert_eq!(solve.op.as_ref().unwrap()["exec"]["meta"]["args"][0], "sh");
    let look = "cat /left /written/seed /read/seed 2>&1";
    let said = says(&mut client, "after", mounts_of(solve, &solve.mount_ids), look).await;
    assert_eq!(said, "root\nseedmore\nseed");
    let said = says(&mut client, "before", mounts_of(solve, &solve.input_ids), look).await;
    assert!(said.contains("can't open '/left'") && said.ends_with("seedseed"), "{said}");

    // A copy that fails is named, too; there is no process to look into.
    let mut llb = Llb::default();
    let seed = llb.file(&None, vec![mkfile("/seed", 0o644, "seed")]);
    let copied = llb.file(&None, vec![support::llb::copy(&seed, "/gone", "/x", |_| {})]);
    let solve = frontend::SolveRequest { definition: Some(llb.end(&copied)), evaluate: true, ..Default::default() };
    let request = client.call(solve);
    let status = client.bridge.solve(request).await.unwrap_err();
    let solve = decode_details(status.details()).into_iter().find_map(|detail| match detail {
        Detail::Solve(solve) => solve.op,
        _ => None,
    });
    assert_eq!(solve.expect("the operation")["file"]["actions"][0]["copy"]["src"], "/gone");
}
