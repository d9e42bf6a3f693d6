//! Containers as docker's own client sees them, against an engine on a socket: lifecycle, streams, logs, limits, and what is left
//! when engines and shims are killed.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use support::{Kiln, Outcome, PATIENCE, Run, Running, eventually, is_installed, is_root};

/// A root with busybox and an engine that serves it on a socket.
struct Daemon {
    process: Option<Running>,
    kiln: Kiln,
}

impl Daemon {
    /// `None`, with a word about it, when something is missing.
    fn start() -> Option<Self> {
        if !is_root() || !is_installed("docker", "docker.io") {
            return None;
        }
        let mut daemon = Self { process: None, kiln: Kiln::with_busybox() };
        daemon.serve();
        Some(daemon)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.kiln.scratch().join("kiln.sock")
    }

    fn serve(&mut self) {
        let daemon = Run::new(support::KILN).args(["daemon", "--host", &self.host(), "--root"]).arg(self.kiln.root());
        self.process = Some(daemon.env("HOME", self.kiln.home()).within(Duration::from_secs(3600)).spawn());
        let socket = self.socket();
        eventually("the daemon's socket", PATIENCE, || std::os::unix::net::UnixStream::connect(&socket).ok());
    }

    /// Ends the engine and starts another one.
    fn restart(&mut self) {
        let engine = self.process.take().expect("it runs");
        engine.signal(Signal::TERM);
        engine.wait();
        self.serve();
    }

    fn docker<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Run {
        Run::new("docker").args(args).env("DOCKER_HOST", self.host()).env("HOME", self.kiln.home())
    }

    /// Runs a command line, cut at spaces, that must succeed.
    fn ok(&self, line: &str) -> String {
        self.docker(line.split(' ')).ok()
    }

    fn fails(&self, line: &str) -> Outcome {
        self.docker(line.split(' ')).fails()
    }

    /// Runs a shell script in a new container.
    fn script(&self, options: &str, script: &str) -> Outcome {
        let options = options.split(' ').filter(|option| !option.is_empty());
        self.docker(["run"].into_iter().chain(options).chain(["busybox", "sh", "-c", script])).output()
    }

    fn inspect(&self, container: &str, format: &str) -> String {
        self.docker(["inspect", "-f", format, container]).ok()
    }

    /// The process that looks after a container.
    fn shim(&self, container: &str) -> Pid {
        let pid = self.inspect(container, "{{.State.Pid}}");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the container runs");
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a process has a parent");
        Pid::from_raw(parent.trim().parse().expect("a number")).expect("a process")
    }
}

fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

#[test]
fn privileged_streams_and_exit_codes_reach_dockers_client() {
    let Some(daemon) = Daemon::start() else { return };
    let outcome = daemon.script("--rm", "echo out; echo err >&2; exit 3");
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (3, "out\n", "err\n"));
    let echoed = daemon.docker(["run", "--rm", "-i", "busybox", "cat"]).stdin("one\ntwo").ok();
    assert_eq!(echoed, "one\ntwo");
    for (command, code, words) in [
        ("run --rm busybox nope", 127, "executable file not found"),
        ("run --rm busybox /nope", 127, "no such file or directory"),
        ("run --rm busybox /etc", 126, "is a directory"),
        ("run --rm --publish 80:80 busybox true", 125, "--publish"),
    ] {
        let outcome = daemon.fails(command);
        assert_eq!(outcome.code, code, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
    }
    assert_eq!(daemon.ok("ps -aq"), "", "nothing is left of containers that remove themselves");
}

#[test]
fn privileged_a_lot_of_output_arrives_whole_and_in_order() {
    let Some(daemon) = Daemon::start() else { return };
    let outcome = daemon.script("--rm --log-driver none", "i=0; while [ $i -lt 200000 ]; do echo $i; i=$((i+1)); done");
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 200_000);
    assert!(lines.iter().enumerate().all(|(number, line)| line.parse() == Ok(number)));
}

#[test]
fn privileged_a_container_outlives_the_engine_that_started_it() {
    let Some(mut daemon) = Daemon::start() else { return };
    daemon
        .docker(["run", "-d", "--name", "live", "busybox", "sh", "-c", "echo begun; cat /gate; echo ended; exit 7"])
        .ok();
    daemon.ok("run -d --name other --stop-signal KILL busybox sleep 1000");
    daemon.restart();
    assert_eq!(daemon.inspect("other", "{{.State.Status}}"), "running");
    assert_eq!(daemon.ok("wait live"), "7");
    assert!(daemon.ok("logs live").starts_with("begun"));
    assert_eq!(daemon.inspect("live", "{{.State.Status}} {{.State.ExitCode}}"), "exited 7");
    assert_eq!(daemon.ok("stop other"), "other");
    assert_eq!(daemon.inspect("other", "{{.State.ExitCode}}"), "137");
    // The command's own engine sees the same.
    daemon.ok("rm live other");
}

#[test]
fn privileged_a_container_whose_shim_is_killed_has_ended() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.ok("run -d --name lost busybox sleep 1000");
    daemon.ok("run -d --rm --name vanishing busybox sleep 1000");
    let pid = daemon.inspect("lost", "{{.State.Pid}}");
    let waiting = daemon.docker(["wait", "lost"]).spawn();
    for name in ["lost", "vanishing"] {
        rustix::process::kill_process(daemon.shim(name), Signal::KILL).expect("kill the shim");
    }
    eventually("the end of the container", PATIENCE, || (!is_alive(&pid)).then_some(()));
    assert_eq!(waiting.wait().stdout, "137\n");
    assert_eq!(daemon.inspect("lost", "{{.State.Status}} {{.State.ExitCode}}"), "exited 137");
    assert_eq!(daemon.ok("ps -a --format {{.Names}}"), "lost");
    // It can be used like any other.
    daemon.ok("start lost");
    assert_eq!(daemon.inspect("lost", "{{.State.Running}}"), "true");
    daemon.ok("rm -f lost");
    let left = std::fs::read_dir(daemon.kiln.root().join("containers")).expect("list containers").count();
    assert_eq!(left, 0);
}

#[test]
fn privileged_many_containers_run_at_once_on_one_root() {
    let Some(daemon) = Daemon::start() else { return };
    let script = |number: usize| format!("echo {number}; exit {number}");
    let running: Vec<Running> =
        (0..20).map(|number| daemon.docker(["run", "--rm", "busybox", "sh", "-c", &script(number)]).spawn()).collect();
    for (number, running) in running.into_iter().enumerate() {
        let outcome = running.wait();
        assert_eq!((outcome.code, outcome.stdout), (i32::try_from(number).unwrap(), format!("{number}\n")));
    }
    assert_eq!(daemon.ok("ps -aq"), "");
}

#[test]
fn privileged_a_name_is_given_once_and_freed_by_removal_and_renaming() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.ok("create --name one busybox true");
    let conflict = daemon.fails("create --name one busybox true");
    assert!(conflict.stderr.contains("is already in use by container"), "{}", conflict.stderr);
    daemon.ok("rename one two");
    daemon.ok("create --name one busybox true");
    assert!(daemon.fails("rename one two").stderr.contains("already in use"));
    daemon.ok("rm one");
    assert_eq!(daemon.ok("ps -a --format {{.Names}}:{{.Status}}"), "two:Created");
    assert!(daemon.fails("rm nothing").stderr.contains("No such container: nothing"));
    assert!(daemon.fails("create no-such-image true").stderr.contains("no-such-image"));
}

#[test]
fn privileged_a_running_container_is_removed_by_force_only() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.ok("run -d --name web busybox sleep 1000");
    assert!(daemon.fails("rm web").stderr.contains("container is running"), "docker's words");
    let pid = daemon.inspect("web", "{{.State.Pid}}");
    daemon.ok("rm -f web");
    assert!(!is_alive(&pid));
}

#[test]
fn privileged_stopping_asks_first_and_kills_after_the_time_out() {
    let Some(daemon) = Daemon::start() else { return };
    let trap = "trap 'exit 5' TERM USR1; echo ready; while :; do sleep 0.05; done";
    daemon.docker(["run", "-d", "--name", "polite", "busybox", "sh", "-c", trap]).ok();
    daemon.ok("run -d --name deaf busybox sleep 1000");
    eventually("the trap", PATIENCE, || daemon.ok("logs polite").contains("ready").then_some(()));
    daemon.ok("stop polite");
    assert_eq!(daemon.inspect("polite", "{{.State.ExitCode}}"), "5");
    daemon.ok("stop -t 0 deaf");
    assert_eq!(daemon.inspect("deaf", "{{.State.ExitCode}}"), "137");
    daemon.ok("start polite");
    eventually("the trap", PATIENCE, || (daemon.ok("logs polite").matches("ready").count() == 2).then_some(()));
    daemon.ok("kill -s USR1 polite");
    assert_eq!(daemon.ok("wait polite"), "5");
    assert!(daemon.fails("kill polite").stderr.contains("is not running"));
    assert!(daemon.fails("kill -s NOPE polite").stderr.contains("nvalid signal"));
}

#[test]
fn privileged_a_restart_policy_is_followed_until_a_user_stops_it() {
    let Some(daemon) = Daemon::start() else { return };
    daemon
        .docker([
            "run",
            "-d",
            "--name",
            "fails",
            "--restart",
            "on-failure:2",
            "busybox",
            "sh",
            "-c",
            "echo run; exit 4",
        ])
        .ok();
    eventually("the last attempt", PATIENCE, || {
        (daemon.inspect("fails", "{{.RestartCount}} {{.State.Status}}") == "2 exited").then_some(())
    });
    assert_eq!(daemon.ok("logs fails"), "run\nrun\nrun");
    daemon.docker(["run", "-d", "--name", "always", "--restart", "always", "busybox", "sleep", "0.1"]).ok();
    eventually("a restart", PATIENCE, || (daemon.inspect("always", "{{.RestartCount}}") != "0").then_some(()));
    daemon.ok("stop always");
    assert_eq!(daemon.inspect("always", "{{.State.Status}}"), "exited");
    assert!(daemon.fails("run --rm --restart always busybox true").stderr.contains("conflicting"));
}

#[test]
fn privileged_logs_can_be_selected_and_followed() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.script("--name web", "for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.02; done; printf partial");
    let outcome = daemon.docker(["logs", "web"]).output();
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("out 1\nout 2\nout 3\npartial", "err 1\nerr 2\nerr 3\n")
    );
    let last = daemon.docker(["logs", "--tail", "1", "web"]).output();
    assert_eq!(last.stdout + &last.stderr, "partial");
    let stamped = daemon.ok("logs -t web");
    let first = stamped.split(' ').next().expect("a time");
    assert!(first.len() == 30 && first.ends_with('Z'), "{first}");
    assert_eq!(daemon.ok("logs --since 1h --until 1s web --tail 0"), "");
    daemon
        .docker(["run", "-d", "--name", "slow", "busybox", "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.2; done"])
        .ok();
    assert_eq!(daemon.ok("logs -f slow"), "1\n2\n3");
}

#[test]
fn privileged_log_files_keep_to_their_bounds() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.script("--name loud --log-opt max-size=20k --log-opt max-file=3", "yes 0123456789 | head -n 20000");
    let dir = daemon.kiln.root().join("containers").join(daemon.inspect("loud", "{{.Id}}"));
    let logs: Vec<u64> = std::fs::read_dir(dir)
        .expect("list the container's files")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("-json.log"))
        .map(|entry| entry.metadata().expect("a file").len())
        .collect();
    assert_eq!(logs.len(), 3);
    assert!(logs.iter().all(|size| *size <= 20 << 10), "{logs:?}");
    let lines = daemon.ok("logs loud").lines().count();
    assert!((300..2000).contains(&lines), "{lines}");
    let none = daemon.script("--name quiet --log-driver none", "echo hello");
    assert_eq!(none.stdout, "hello\n");
    assert!(daemon.fails("logs quiet").stderr.contains("does not support reading"));
}

#[test]
fn privileged_clients_attach_before_and_after_the_start() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.ok("create -i --name echo busybox cat");
    assert_eq!(daemon.docker(["start", "-a", "-i", "echo"]).stdin("hello").ok(), "hello");
    // It says that it listens until somebody speaks, so that who attaches can tell.
    let script = "(while :; do echo ready; sleep 0.05; done) & read line; kill $!; wait; echo got $line; exit 6";
    daemon.docker(["run", "-d", "-i", "--name", "shared", "busybox", "sh", "-c", script]).ok();
    let mut watching = daemon.docker(["attach", "--no-stdin", "shared"]).spawn();
    watching.until_it_says("ready");
    let mut talking = daemon.docker(["attach", "shared"]).open_stdin().spawn();
    talking.until_it_says("ready");
    std::io::Write::write_all(&mut talking.stdin(), b"words\n").expect("write to docker");
    for outcome in [watching.wait(), talking.wait()] {
        assert_eq!(outcome.code, 6);
        assert!(outcome.stdout.ends_with("ready\ngot words\n"), "{}", outcome.stdout);
    }
}

#[test]
fn privileged_a_terminal_has_its_size_and_one_stream() {
    let Some(daemon) = Daemon::start() else { return };
    // `script` gives docker a terminal of its own.
    let line = "stty rows 33 cols 99; docker run --rm -it busybox sh -c 'tty; stty size; echo err >&2'";
    let outcome = Run::new("script").args(["-qec", line, "/dev/null"]).env("DOCKER_HOST", daemon.host()).output();
    assert_eq!(outcome.code, 0, "{}", outcome.stdout);
    for words in ["/dev/pts/0\r\n", "33 99\r\n", "err\r\n"] {
        assert!(outcome.stdout.contains(words), "{}", outcome.stdout);
    }
}

#[test]
fn privileged_further_processes_run_in_a_container() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.ok("run -d --name box -e FOO=bar -w /tmp busybox sleep 1000");
    let outcome = daemon.docker(["exec", "box", "sh", "-c", "echo $FOO; pwd; echo err >&2; exit 4"]).output();
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (4, "bar\n/tmp\n", "err\n"));
    assert_eq!(daemon.docker(["exec", "-i", "box", "cat"]).stdin("hello").ok(), "hello");
    assert_eq!(daemon.ok("exec -u 7:8 -w / -e FOO=baz box sh -c id"), "uid=7 gid=8 groups=8");
    assert_eq!(daemon.fails("exec box nope").code, 127);
    daemon.docker(["exec", "-d", "box", "sh", "-c", "echo done > /tmp/mark; sleep 1000"]).ok();
    eventually("the detached process", PATIENCE, || {
        (daemon.docker(["exec", "box", "cat", "/tmp/mark"]).output().stdout == "done\n").then_some(())
    });
    daemon.ok("rm -f box");
    assert!(daemon.fails("exec box true").stderr.contains("No such container"));
}

#[test]
fn privileged_mounts_are_what_was_asked_for() {
    let Some(daemon) = Daemon::start() else { return };
    let file = daemon.kiln.write("data/file", "hello");
    let data = file.parent().expect("a directory").display().to_string();
    let readonly = daemon.script(&format!("--rm -v {data}:/data:ro"), "cat /data/file; touch /data/new");
    assert!(readonly.code != 0 && readonly.stdout == "hello", "{}", readonly.stderr);
    daemon.script(&format!("--rm -v {data}/made/by/docker:/data"), "touch /data/new").expect_code(0);
    assert!(file.with_file_name("made").join("by/docker/new").exists());
    let missing = daemon.fails(&format!("run --mount type=bind,source={data}/missing,target=/x busybox true"));
    assert!(missing.stderr.contains("bind source path does not exist"), "{}", missing.stderr);
    let tmpfs =
        daemon.script("--rm --tmpfs /t:size=1m", "df /t | tail -1; dd if=/dev/zero of=/t/x bs=1M count=2 2>/dev/null");
    assert!(tmpfs.code != 0 && tmpfs.stdout.contains("1024"), "{}", tmpfs.stdout);
    // A volume begins with what the image has there, and goes with the container.
    let volume = daemon.script("--name vol -v /bin", "ls /bin/busybox; mount | grep -c ' /bin '");
    assert_eq!(volume.stdout, "/bin/busybox\n1\n", "{}", volume.stderr);
    let source = daemon.inspect("vol", "{{(index .Mounts 0).Source}}");
    assert!(Path::new(&source).join("busybox").exists());
    daemon.ok("rm vol");
    assert!(!Path::new(&source).exists());
    assert!(daemon.fails("run --rm -v named:/x busybox true").stderr.contains("named volumes"));
}

#[test]
fn privileged_limits_and_privileges_reach_the_kernel() {
    let Some(daemon) = Daemon::start() else { return };
    let status = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; ulimit -n; id -u; hostname; touch /x";
    let options =
        "--rm --cap-drop ALL --security-opt no-new-privileges --ulimit nofile=64:64 -u 7 --hostname box --read-only";
    let outcome = daemon.script(options, status);
    assert_eq!(outcome.stdout, "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n64\n7\nbox\n");
    assert!(outcome.stderr.contains("Read-only file system"), "{}", outcome.stderr);
    let oom = daemon.script("--name oom -m 16m", "tail /dev/zero");
    assert_eq!(oom.code, 137);
    assert_eq!(daemon.inspect("oom", "{{.State.OOMKilled}}"), "true");
    let cpuset = daemon.fails("run --rm --cpuset-cpus 4000 busybox true");
    assert!(cpuset.code == 125 && cpuset.stderr.contains("cpuset"), "{}", cpuset.stderr);
    let init = daemon.script("--rm --init", "cat /proc/1/comm; sleep 0.01 & wait");
    assert_ne!(init.stdout, "sh\n");
}

#[test]
fn privileged_the_list_says_what_containers_are_doing() {
    let Some(daemon) = Daemon::start() else { return };
    daemon.ok("run -d --name up --label a=1 busybox sleep 1000");
    daemon.docker(["run", "--name", "done", "--label", "a=2", "busybox", "sh", "-c", "exit 3"]).fails();
    daemon.ok("create --name new busybox true");
    assert_eq!(daemon.ok("ps --format {{.Names}}"), "up");
    assert_eq!(daemon.ok("ps -a --format {{.Names}}"), "new\ndone\nup");
    assert!(
        daemon.docker(["ps", "-a", "--format", "{{.Status}}", "--filter", "name=done"]).ok().starts_with("Exited (3) ")
    );
    assert!(daemon.docker(["ps", "--format", "{{.Status}}"]).ok().starts_with("Up "));
    for (filter, names) in [
        ("status=exited", "done"),
        ("exited=3", "done"),
        ("label=a", "done\nup"),
        ("label=a=1", "up"),
        ("name=^/up$", "up"),
        ("ancestor=busybox", "new\ndone\nup"),
        ("since=done", "new"),
        ("before=done", "up"),
    ] {
        assert_eq!(daemon.docker(["ps", "-a", "--format", "{{.Names}}", "--filter", filter]).ok(), names, "{filter}");
    }
    assert!(daemon.fails("ps --filter nope=1").stderr.contains("invalid filter"));
    daemon.ok("pause up");
    assert!(daemon.docker(["ps", "--format", "{{.Status}}"]).ok().ends_with("(Paused)"));
    assert!(daemon.fails("attach up").stderr.contains("paused"));
    daemon.ok("unpause up");
    assert!(daemon.ok("top up").contains("sleep 1000"));
    daemon.ok("container prune -f");
    assert_eq!(daemon.ok("ps -a --format {{.Names}}"), "up");
}
