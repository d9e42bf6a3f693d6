//! End-to-end tests of the daemon: where it listens, who may speak to it, and how it stops.

mod support;

use std::ffi::OsStr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use support::certificates::Certificates;
use support::{Kiln, PATIENCE, Run, Running, eventually, is_installed, is_root};

/// A daemon on sockets of its own.
struct Daemon {
    process: Running,
    kiln: Kiln,
}

impl Daemon {
    /// Starts one and waits until it says that it listens.
    fn start<S: AsRef<OsStr>>(args: &[S]) -> Option<Self> {
        is_root().then(|| {
            let kiln = Kiln::new();
            let mut process = run(&kiln, args).within(Duration::from_secs(600)).spawn();
            process.until_it_says("listening on");
            Self { process, kiln }
        })
    }

    /// Where it says that it listens.
    fn host(&self) -> String {
        eventually("the line with the address", PATIENCE, || {
            let said = self.process.said();
            let (line, _) = said.split_once("listening on ")?.1.split_once('\n')?;
            Some(line.to_owned())
        })
    }
}

fn run<S: AsRef<OsStr>>(kiln: &Kiln, args: &[S]) -> Run {
    Run::new(support::KILN).arg("daemon").arg("--root").arg(kiln.root()).args(args).env("HOME", kiln.home())
}

#[test]
fn privileged_the_socket_is_for_its_owner_and_group_and_goes_with_the_daemon() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("deep/er/kiln.sock");
    let host = format!("unix://{}", socket.display());
    let daemon = Daemon::start(&["-H", &host, "--group", "12345"]).unwrap();
    let metadata = socket.metadata().unwrap();
    assert_eq!((metadata.permissions().mode() & 0o7777, metadata.gid()), (0o660, 12345));
    let version = Run::new(support::KILN).args(["-H", &host, "version"]).ok();
    assert!(version.contains("Server"), "{version}");
    let second = run(&daemon.kiln, &["-H", &host]).fails();
    assert!(second.stderr.contains("another daemon listens"), "{}", second.stderr);
    daemon.process.signal(Signal::TERM);
    assert_eq!(daemon.process.wait().code, 0);
    assert!(!socket.exists(), "the socket stayed behind");
}

#[test]
fn privileged_a_socket_that_a_killed_daemon_left_is_taken_over() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let host = format!("unix://{}", dir.path().join("kiln.sock").display());
    let killed = Daemon::start(&["-H", &host]).unwrap();
    killed.process.kill();
    let _next = Daemon::start(&["-H", &host]).unwrap();
    Run::new(support::KILN).args(["-H", &host, "version"]).ok();
}

#[test]
fn tcp_without_certificates_is_refused_unless_the_user_insists() {
    let kiln = Kiln::new();
    let refused = run(&kiln, &["-H", "tcp://127.0.0.1:0"]).fails();
    assert!(refused.stderr.contains("--tlsverify=false"), "{}", refused.stderr);
    let Some(daemon) = Daemon::start(&["-H", "tcp://127.0.0.1:0", "--tlsverify=false"]) else { return };
    Run::new(support::KILN).args(["-H", &daemon.host(), "version"]).ok();
}

#[test]
fn privileged_over_tls_only_clients_with_a_certificate_are_served() {
    let Some(certificates) = Certificates::make() else { return };
    let daemon = Daemon::start(&certificates.listening()).unwrap();
    let host = daemon.host();
    let client = || Run::new(support::KILN).args(["-H", &host]).env("HOME", daemon.kiln.home());
    client().args(certificates.options("client")).arg("version").ok();
    client().args(["--tlscacert", &certificates.path("ca.pem"), "version"]).fails();
    client().arg("version").fails();
    if is_installed("docker", "docker.io") {
        let docker = Run::new("docker").args(["-H", &host, "--tlsverify"]).args(certificates.options("client"));
        let version = docker.arg("version").ok();
        assert!(version.contains("Server"), "{version}");
    }
}

#[test]
fn privileged_a_supervisor_may_pass_sockets_and_hears_of_the_start() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::new();
    let (path, told) = (kiln.scratch().join("kiln.sock"), kiln.scratch().join("notify"));
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let supervisor = std::os::unix::net::UnixDatagram::bind(&told).unwrap();
    supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut process = activated(&kiln, &listener, &told);
    let mut word = [0; 64];
    let length = supervisor.recv(&mut word).unwrap();
    assert_eq!(&word[..length], b"READY=1");
    let host = format!("unix://{}", path.display());
    Run::new(support::KILN).args(["-H", &host, "version"]).ok();
    rustix::process::kill_process(rustix::process::Pid::from_child(&process), Signal::TERM).unwrap();
    let status = eventually("the daemon's end", PATIENCE, || process.try_wait().unwrap());
    assert!(status.success(), "{status}");
    assert!(path.exists(), "the socket belongs to the supervisor");
}

/// Starts a daemon the way a supervisor does, with the listener as descriptor 3.
fn activated(kiln: &Kiln, listener: &std::os::unix::net::UnixListener, notify: &Path) -> Child {
    let inherited = rustix::io::fcntl_dupfd_cloexec(listener, 10).expect("copy a descriptor");
    // A shell does what a test may not do between fork and exec: it moves the descriptor.
    let script = format!("exec 3<&{fd} \"$@\"", fd = inherited.as_raw_fd());
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).expect("let a program inherit it");
    let mut command = Command::new("bash");
    command.args(["-c", &script, "sh", support::KILN, "daemon", "-H", "fd://", "--root"]).arg(kiln.root());
    command.env("LISTEN_FDS", "1").env_remove("LISTEN_PID").env("NOTIFY_SOCKET", notify).env("HOME", kiln.home());
    command.stdout(Stdio::null()).process_group(0).spawn().expect("start a daemon")
}

#[test]
fn fd_without_a_supervisor_says_what_is_missing() {
    let refused = run(&Kiln::new(), &["-H", "fd://"]).without_env("LISTEN_FDS").fails();
    assert!(refused.stderr.contains("LISTEN_FDS"), "{}", refused.stderr);
}

/// Starts a daemon under the name of BuildKit's.
fn buildkitd(kiln: &Kiln, args: &[&str]) -> Run {
    let name = kiln.home().join("buildkitd");
    if !name.exists() {
        std::os::unix::fs::symlink(support::KILN, &name).expect("make a link");
    }
    Run::new(name).arg("--root").arg(kiln.root()).args(args).env("HOME", kiln.home()).within(Duration::from_secs(600))
}

#[test]
fn privileged_under_buildkits_name_its_flags_and_its_file_are_taken() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    let host = format!("unix://{}", kiln.home().join("buildkitd.sock").display());
    let config = kiln.write(
        "buildkitd.toml",
        "debug = true\n[worker.oci]\nmax-parallelism = 2\nsnapshotter = 'auto'\n[worker.oci.labels]\nteam = 'a'\n\
         [history]\nmaxEntries = 1\nmaxAge = 0\n[dns]\nnameservers = ['192.0.2.7']\n",
    );
    let config = config.to_str().expect("a path of letters");
    let args =
        ["--config", config, "--addr", &host, "--oci-worker=true", "--containerd-worker=false", "--group", "12345"];
    let mut process = buildkitd(&kiln, &args).spawn();
    process.until_it_says("listening on");
    for warning in
        ["buildkitd.toml:1: debug is ignored", "buildkitd.toml:4: worker.oci.snapshotter is ignored", "--oci-worker is"]
    {
        assert!(process.said().contains(warning), "{warning}: {}", process.said());
    }
    assert_eq!(kiln.home().join("buildkitd.sock").metadata().unwrap().gid(), 12345);
    kiln.write("Dockerfile", "FROM busybox\nRUN cp /etc/resolv.conf /seen\n");
    let client = |args: &[&str]| {
        Run::new(support::KILN).args(["-H", &host]).args(args).cwd(kiln.scratch()).env("HOME", kiln.home())
    };
    for _ in 0..2 {
        client(&["build", "-q", "-t", "app", "."]).ok();
    }
    assert_eq!(client(&["history", "ls", "-q"]).ok().lines().count(), 1);
    assert!(client(&["run", "--rm", "app", "cat", "/seen"]).ok().contains("nameserver 192.0.2.7"));
    // Nothing is allowed unless it is said.
    kiln.write("Dockerfile", "FROM busybox\nRUN --network=host true\n");
    let refused = client(&["build", "--allow", "network.host", "."]).fails();
    assert!(refused.stderr.contains("not allowed by build daemon configuration"), "{}", refused.report());
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code, 0);
    let allowing = [&args[..], &["--allow-insecure-entitlement", "network.host"]].concat();
    let mut process = buildkitd(&kiln, &allowing).spawn();
    process.until_it_says("listening on");
    client(&["build", "-q", "--allow", "network.host", "."]).ok();
}

#[test]
fn privileged_buildkits_file_says_which_frontends_run() {
    if !is_root() {
        return;
    }
    let kiln = Kiln::with_busybox();
    let host = format!("unix://{}", kiln.home().join("buildkitd.sock").display());
    let daemon = |text: &str| {
        let config = kiln.write("buildkitd.toml", text);
        let args = ["--config", config.to_str().expect("a path of letters"), "--addr", &host];
        let mut process = buildkitd(&kiln, &args).spawn();
        process.until_it_says("listening on");
        process
    };
    let build = |dockerfile: &str| {
        kiln.write("app/Dockerfile", dockerfile);
        Run::new(support::KILN).args(["-H", &host, "build", "app"]).cwd(kiln.scratch()).env("HOME", kiln.home())
    };
    let allowed = "proxyNetwork = true\n[frontend.'gateway.v0']\nallowedRepositories = ['docker/dockerfile']\n";
    let process = daemon(allowed);
    assert!(process.said().contains("buildkitd.toml:1: proxyNetwork is ignored"), "{}", process.said());
    build("# syntax=docker/dockerfile:1\nFROM busybox\n").ok();
    let refused = build("# syntax=other/frontend\nFROM busybox\n").fails();
    let words = "'docker.io/other/frontend' is not an allowed gateway source";
    assert!(refused.stderr.contains(words), "{}", refused.report());
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code, 0);
    let _process = daemon("[frontend.'dockerfile.v0']\nenabled = false\n");
    let refused = build("FROM busybox\n").fails();
    assert!(refused.stderr.contains("invalid frontend: dockerfile.v0"), "{}", refused.report());
}

#[test]
fn buildkits_file_must_be_there_when_it_is_named_and_mistakes_in_it_have_a_place() {
    let kiln = Kiln::new();
    let config = kiln.write("buildkitd.toml", "[frontend.'gateway.v0']\nallowedRepositories = ['UPPER']\n");
    let refused = buildkitd(&kiln, &["--config", config.to_str().expect("a path of letters")]).fails();
    assert!(refused.stderr.contains("buildkitd.toml:2"), "{}", refused.report());
    let missing = buildkitd(&kiln, &["--config", "/does/not/exist.toml"]).fails();
    assert!(missing.stderr.contains("/does/not/exist.toml"), "{}", missing.report());
}
