//! The process itself: who it is, what it may do, how it starts, gets signals and ends.

use std::io::{BufRead as _, BufReader, Write as _};

use rustix::process::{Resource, Rlimit};

use super::*;
use crate::error::Kind;

fn named(name: &str, groups: &[&str]) -> User {
    User::Named { name: name.to_owned(), groups: groups.iter().map(ToString::to_string).collect() }
}

#[test]
fn privileged_capabilities_are_dockers_and_none_for_a_user() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let script = "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t'; umask";
    let none = "0000000000000000";
    let default = "00000000a80425fb";
    let expect = |effective: &str, bound: &str, no_new: &str, seccomp: &str| {
        [
            format!("CapInh:{none}"),
            format!("CapPrm:{effective}"),
            format!("CapEff:{effective}"),
            format!("CapBnd:{bound}"),
            format!("CapAmb:{none}"),
            format!("NoNewPrivs:{no_new}"),
            format!("Seccomp:{seccomp}"),
            "0022".to_owned(),
        ]
    };
    assert_eq!(fixture.run(script).lines(), expect(default, default, "0", "2"));

    let mut spec = fixture.shell(script);
    spec.process.user = named("app", &[]);
    assert_eq!(run(spec).lines(), expect(none, default, "0", "2"));

    let mut spec = fixture.shell(script);
    spec.process.capabilities =
        Capabilities::docker_default().adjust(&["KILL".to_owned()], &["ALL".to_owned()]).unwrap();
    spec.process.no_new_privileges = true;
    assert_eq!(run(spec).lines(), expect("0000000000000020", "0000000000000020", "1", "2"));

    let mut spec = fixture.shell(script);
    spec.process.user = named("app", &[]);
    spec.process.no_new_privileges = true;
    spec.process.seccomp = Seccomp::Unconfined;
    assert_eq!(run(spec).lines(), expect(none, default, "1", "0"));
}

#[test]
fn privileged_the_user_comes_from_the_containers_files() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let script = "id -u; id -g; id -G; echo $HOME; echo note > /dev/stderr";
    let mut spec = fixture.shell(script);
    spec.process.user = named("app", &["7"]);
    let output = run(spec);
    assert_eq!(output.lines(), ["1000", "1000", "1000 7 29", "/home/app"]);
    assert_eq!(output.errors, "note\n", "a user may open its own streams again");

    let mut spec = fixture.shell(script);
    spec.process.user = named("4242:4243", &[]);
    spec.process.env.push("HOME=/given".to_owned());
    assert_eq!(run(spec).lines(), ["4242", "4243", "4243", "/given"]);

    let mut spec = fixture.shell(script);
    spec.process.user = named("nobody", &[]);
    let error = spawn(spec, Stdio::Null).unwrap_err();
    assert_eq!(error.to_string(), "unable to find user nobody: no matching entries in passwd file");
    assert_eq!(exit_code(&error), 125);
}

#[test]
fn privileged_the_working_directory_is_made_when_it_is_missing() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell("pwd; stat -c '%u %a' .");
    spec.process.cwd = "/srv/app/".to_owned();
    spec.process.user = named("app", &[]);
    assert_eq!(run(spec).lines(), ["/srv/app", "0 755"]);
    assert!(fixture.root().join("srv/app").is_dir());

    // Only its user may enter, and only root's other capabilities would: both ways are tried.
    let home = fixture.root().join("private");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let mut spec = fixture.shell("pwd");
    spec.process.cwd = "/private".to_owned();
    spec.process.user = named("app", &[]);
    spec.process.capabilities = Capabilities::NONE;
    assert_eq!(run(spec).lines(), ["/private"]);

    let mut spec = fixture.shell("pwd");
    spec.process.cwd = "/etc/passwd".to_owned();
    let error = spawn(spec, Stdio::Null).unwrap_err();
    assert!(error.to_string().ends_with("mkdir /etc/passwd: not a directory"), "{error}");

    let mut spec = fixture.shell("pwd");
    spec.process.cwd = "/missing".to_owned();
    spec.process.missing_cwd = MissingDir::Refused;
    let error = spawn(spec, Stdio::Null).unwrap_err();
    assert_eq!((exit_code(&error), error.kind()), (127, Kind::InvalidArgument));
    assert!(
        error.to_string().ends_with("chdir to cwd (\"/missing\") set in config.json failed: no such file or directory"),
        "{error}"
    );
}

#[test]
fn privileged_a_working_directory_cannot_lead_out_through_a_descriptor() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    for cwd in (3..64).map(|fd| format!("/proc/self/fd/{fd}")).chain(["/proc/self/cwd".to_owned()]) {
        let mut spec = fixture.shell("true");
        spec.process.cwd = cwd.clone();
        spec.process.missing_cwd = MissingDir::Refused;
        spec.cgroup = None;
        assert!(spawn(spec, Stdio::Null).is_err(), "{cwd}");
    }
}

#[test]
fn privileged_a_command_that_cannot_start_says_why_as_docker_does() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let root = fixture.root();
    for (name, content, mode) in
        [("plain", "x", 0o644), ("orphan", "#!/no/interpreter\n", 0o755), ("garbage", "\x7fELFgarbage", 0o755)]
    {
        fs::write(root.join("bin").join(name), content).unwrap();
        fs::set_permissions(root.join("bin").join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let cases = [
        ("nothing", 127, "exec: \"nothing\": executable file not found in $PATH"),
        ("plain", 127, "exec: \"plain\": executable file not found in $PATH"),
        ("/bin/nothing", 127, "exec: \"/bin/nothing\": stat /bin/nothing: no such file or directory"),
        ("/bin/sh/x", 127, "exec: \"/bin/sh/x\": stat /bin/sh/x: not a directory"),
        ("/bin/plain", 126, "exec: \"/bin/plain\": permission denied"),
        ("/etc", 126, "exec: \"/etc\": is a directory"),
        (
            "orphan",
            127,
            "exec /bin/orphan: no such file or directory (the file exists; the interpreter or loader that it names does not exist in the image)",
        ),
        ("garbage", 126, "exec /bin/garbage: exec format error (not a program for"),
    ];
    for (command, code, text) in cases {
        let error = spawn(fixture.spec(&[command]), Stdio::Null).unwrap_err();
        let expected = format!("unable to start container process: {text}");
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert_eq!((exit_code(&error), error.kind()), (code, Kind::InvalidArgument), "{command}");
    }
    let error = spawn(fixture.spec(&[]), Stdio::Null).unwrap_err();
    assert_eq!((exit_code(&error), error.to_string().as_str()), (125, "no command specified"));
}

#[test]
fn privileged_a_command_is_found_as_execvp_finds_it() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let root = fixture.root();
    // Earlier in the path: a directory, a file that is no program, a dangling link.
    fs::create_dir_all(root.join("a/tool")).unwrap();
    fs::create_dir_all(root.join("b")).unwrap();
    fs::write(root.join("b/tool"), "").unwrap();
    fs::create_dir_all(root.join("c")).unwrap();
    symlink("/nowhere", root.join("c/tool")).unwrap();
    fs::create_dir_all(root.join("d")).unwrap();
    fs::write(root.join("d/tool"), "#!/bin/sh\necho \"$0 $1\"\n").unwrap();
    fs::set_permissions(root.join("d/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec = fixture.spec(&["tool", "one"]);
    spec.process.env = vec!["PATH=/a:/b:/c:/d:/bin".to_owned()];
    assert_eq!(run(spec).lines(), ["/d/tool one"]);
}

#[test]
fn privileged_exit_codes_and_signals_are_passed_on() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    assert_eq!(fixture.run("exit 42").exit.status, Status::Code(42));
    let sandbox = spawn(fixture.spec(&["sleep", "1000"]), Stdio::Null).unwrap();
    sandbox.signal(Signal::KILL).unwrap();
    let exit = sandbox.wait_blocking().unwrap();
    assert_eq!((exit.status, exit.code(), exit.is_oom_killed()), (Status::Signal(9), 137, false));
    sandbox.signal(Signal::KILL).unwrap();
    assert_eq!(sandbox.wait_blocking().unwrap().code(), 137, "waiting again gives the same");
}

/// Starts a script, waits until it prints a line, and returns that with the rest of its output.
fn ready(spec: Spec) -> (Sandbox, BufReader<fs::File>) {
    let mut sandbox = spawn(spec, Stdio::Pipes { stdin: false }).unwrap();
    let mut output = BufReader::new(fs::File::from(sandbox.take_streams().stdout.unwrap()));
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (sandbox, output)
}

#[test]
fn privileged_signals_reach_the_command_also_through_an_init() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    for init in [false, true] {
        let mut spec = fixture.shell("trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.01; done");
        spec.init = init;
        let (sandbox, mut output) = ready(spec);
        sandbox.signal(Signal::TERM).unwrap();
        assert_eq!(sandbox.wait_blocking().unwrap().code(), 3);
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "got\n");
    }
}

#[test]
fn privileged_an_init_reaps_orphans_and_passes_the_end_on() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell("echo $$; (sleep 0.01 &) ; until test $(ps -o pid,comm | grep -c sleep) = 0; do :; done; ps -o stat | grep -c Z; exit 5");
    spec.init = true;
    let output = run(spec);
    assert_eq!((output.text.as_str(), output.exit.code()), ("2\n0\n", 5));

    // With the default action; a first process would not get it.
    let mut spec = fixture.spec(&["sleep", "1000"]);
    spec.init = true;
    let sandbox = spawn(spec, Stdio::Null).unwrap();
    sandbox.signal(Signal::TERM).unwrap();
    assert_eq!(sandbox.wait_blocking().unwrap().status, Status::Code(143));

    let mut spec = fixture.spec(&["nothing"]);
    spec.init = true;
    assert_eq!(exit_code(&spawn(spec, Stdio::Null).unwrap_err()), 127);
}

#[test]
fn privileged_an_init_keeps_nothing_of_the_engines_memory() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell("echo ready; exec sleep 1000");
    spec.init = true;
    let (sandbox, _output) = ready(spec);
    let proc_dir = PathBuf::from(format!("/proc/{}", sandbox.pid().as_raw_nonzero()));
    let maps = || fs::read_to_string(proc_dir.join("maps")).unwrap();
    // Memory without a file: the end of the program's data, and a few pages of stack.
    let anonymous = || -> u64 {
        let size = |line: &str| {
            let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            if line.contains('/') || line.contains("[v") { 0 } else { number(to) - number(from) }
        };
        maps().lines().map(size).sum()
    };
    wait_until(|| anonymous() < 128 << 10, maps);
    assert!(!maps().contains("[heap]"));
    assert_eq!(fs::read_dir(proc_dir.join("fd")).unwrap().count(), 0, "and no descriptors");
    let status = fs::read_to_string(proc_dir.join("status")).unwrap();
    assert!(status.contains("CapEff:\t00000000a80425fb") && status.contains("Seccomp:\t2"), "{status}");
}

#[test]
fn privileged_limits_and_scores_are_those_asked_for() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell("ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj");
    let limit = Rlimit { current: Some(10), maximum: Some(20) };
    spec.process.rlimits.push((Resource::Nofile, limit));
    spec.process.oom_score_adj = Some(321);
    assert_eq!(run(spec).lines(), ["10", "20", "321"]);
}

#[test]
fn privileged_an_apparmor_profile_must_exist_where_there_is_apparmor() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let confined = |profile: &str| {
        let mut spec = fixture.shell("true");
        spec.process.apparmor = Some(profile.to_owned());
        spawn(spec, Stdio::Null).and_then(|sandbox| sandbox.wait_blocking())
    };
    assert_eq!(confined("unconfined").unwrap().code(), 0);
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    match confined("no-such-profile") {
        Ok(exit) => assert!(!enabled && exit.code() == 0),
        Err(error) => {
            assert!(enabled && error.to_string().contains("\"no-such-profile\" (it must be loaded)"), "{error}");
        }
    }
}

#[test]
fn privileged_input_goes_through_pipes_and_ends() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut sandbox = spawn(fixture.spec(&["cat"]), Stdio::Pipes { stdin: true }).unwrap();
    let streams = sandbox.take_streams();
    fs::File::from(streams.stdin.unwrap()).write_all(b"hello").unwrap();
    assert_eq!(read(streams.stdout), "hello");
    assert_eq!(sandbox.wait_blocking().unwrap().code(), 0);
}

/// Reads a terminal until the last process that has it open is gone.
fn read_terminal(terminal: &Terminal) -> String {
    let mut file = fs::File::from(terminal.try_clone().unwrap());
    let mut bytes = Vec::new();
    // The end is told by an error.
    let _ = file.read_to_end(&mut bytes);
    String::from_utf8(bytes).unwrap().replace('\r', "")
}

#[test]
fn privileged_a_terminal_has_its_size_and_controls_the_session() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    for init in [false, true] {
        let script = "tty; stty size; echo here > /dev/tty; echo there > /dev/console; stat -c '%u %a' /dev/pts/0; ps -o pid,tty | grep -c 136,0";
        let mut spec = fixture.shell(script);
        spec.init = init;
        spec.process.user = named("app", &[]);
        let sandbox = spawn(spec, Stdio::Terminal(WindowSize { rows: 33, columns: 101 })).unwrap();
        let text = read_terminal(sandbox.terminal().unwrap());
        assert!(text.starts_with("/dev/pts/0\n33 101\nhere\nthere\n1000 620\n"), "{text}");
        assert_eq!(sandbox.wait_blocking().unwrap().code(), 0);
    }
}

#[test]
fn privileged_a_resized_terminal_tells_the_command() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let spec = fixture.shell("trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.01; done");
    let sandbox = spawn(spec, Stdio::Terminal(WindowSize::default())).unwrap();
    let terminal = sandbox.terminal().unwrap();
    let mut output = BufReader::new(fs::File::from(terminal.try_clone().unwrap()));
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    terminal.resize(WindowSize { rows: 10, columns: 20 }).unwrap();
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), "10 20");
    assert_eq!(sandbox.wait_blocking().unwrap().code(), 0);
}

#[test]
fn privileged_a_key_at_the_terminal_interrupts_the_command() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell("echo ready; exec sleep 1000");
    spec.init = true;
    let sandbox = spawn(spec, Stdio::Terminal(WindowSize::default())).unwrap();
    let mut terminal = fs::File::from(sandbox.terminal().unwrap().try_clone().unwrap());
    let mut line = String::new();
    BufReader::new(terminal.try_clone().unwrap()).read_line(&mut line).unwrap();
    terminal.write_all(b"\x03").unwrap();
    assert_eq!(sandbox.wait_blocking().unwrap().code(), 130);
}

#[tokio::test]
async fn privileged_waiting_can_be_given_up_and_taken_up_again() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let sandbox = spawn(fixture.spec(&["sleep", "1000"]), Stdio::Null).unwrap();
    let short = Duration::from_millis(5);
    assert!(tokio::time::timeout(short, sandbox.wait()).await.is_err());
    sandbox.signal(Signal::KILL).unwrap();
    let (one, two) = tokio::join!(sandbox.wait(), sandbox.wait());
    assert_eq!((one.unwrap().code(), two.unwrap().code()), (137, 137));
}

/// The other process of [`privileged_a_sandbox_dies_with_its_engine`].
#[test]
#[ignore = "holds a sandbox for another test until it is killed"]
fn holder() {
    let fixture = Fixture::new();
    let mut spec = fixture.spec(&["sleep", "1000"]);
    spec.process.user = named("app", &[]);
    spec.namespaces.pid = Namespace::Host;
    let id = spec.id.clone();
    let sandbox = spawn(spec, Stdio::Null).unwrap();
    println!("holding {} {id} {}", sandbox.pid().as_raw_nonzero(), fixture.path().display());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

#[test]
fn privileged_a_sandbox_dies_with_its_engine() {
    if !is_root() {
        return;
    }
    let program = std::env::current_exe().unwrap();
    let mut engine = std::process::Command::new(program)
        .args(["--exact", "sandbox::tests::process::holder", "--ignored", "--nocapture"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(engine.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.contains("holding ")).unwrap();
    let words: Vec<&str> = line.split("holding ").nth(1).unwrap().split(' ').collect();
    let pid = Pid::from_raw(words[0].parse().unwrap()).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    engine.kill().unwrap();
    engine.wait().unwrap();
    let child = Child { pid, pidfd };
    assert!(child.ends_within(KILL_TIMEOUT));
    // What a killed engine leaves is found by name.
    Cgroup::open(DEFAULT_PARENT, words[1]).unwrap().remove().unwrap();
    assert_eq!(Cgroup::open("", words[1]).unwrap_err().kind(), Kind::NotFound);
    fs::remove_dir_all(words[2]).unwrap();
}
