//! Further processes in a running sandbox.

use super::*;
use crate::error::Kind;

fn idle(fixture: &Fixture) -> Spec {
    fixture.shell("exec sleep 1000")
}

fn execute(sandbox: &Sandbox, process: &Process) -> (String, Status) {
    let mut execution = exec(sandbox.pid(), sandbox.cgroup(), process, Stdio::Pipes { stdin: false }).unwrap();
    let streams = execution.take_streams();
    let text = read(streams.stdout) + &read(streams.stderr);
    (text, execution.wait_blocking().unwrap())
}

#[test]
fn privileged_a_further_process_joins_all_namespaces_and_the_group() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = idle(&fixture);
    spec.hostname = "box".to_owned();
    let sandbox = spawn(spec, Stdio::Null).unwrap();
    let script = "for n in pid net mnt uts ipc cgroup user; do test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) || echo $n; done; \
                  hostname; cat /proc/self/cgroup | cut -d: -f3 | sort -u | tr '\\n' ' '; grep CapEff /proc/self/status; exit 7";
    let (text, status) = execute(&sandbox, &process(&["sh", "-c", script]));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], status), ("box", Status::Code(7)), "{text}");
    assert!(text.ends_with("CapEff:\t00000000a80425fb\n"), "{text}");
    assert_eq!(sandbox.cgroup().unwrap().pids().len(), 1, "it has left the group");
}

#[test]
fn privileged_a_further_process_has_its_own_user_directory_and_environment() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let sandbox = spawn(idle(&fixture), Stdio::Null).unwrap();
    let mut process = process(&["sh", "-c", "id -un; pwd; echo $WORD $HOME"]);
    process.user = User::Named { name: "app".to_owned(), groups: Vec::new() };
    process.cwd = "/tmp".to_owned();
    process.env.push("WORD=x".to_owned());
    assert_eq!(execute(&sandbox, &process), ("app\n/tmp\nx /home/app\n".to_owned(), Status::Code(0)));
    process.args[0] = "nothing".to_owned();
    let error = exec(sandbox.pid(), sandbox.cgroup(), &process, Stdio::Null).unwrap_err();
    assert_eq!(exit_code(&error), 127);
    assert!(error.to_string().ends_with("exec: \"nothing\": executable file not found in $PATH"), "{error}");
}

#[test]
fn privileged_a_further_process_can_have_a_terminal() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let sandbox = spawn(idle(&fixture), Stdio::Null).unwrap();
    let process = process(&["sh", "-c", "tty; stty size; echo x > /dev/tty"]);
    let size = WindowSize { rows: 5, columns: 6 };
    let execution = exec(sandbox.pid(), None, &process, Stdio::Terminal(size)).unwrap();
    let mut bytes = Vec::new();
    let _ = fs::File::from(execution.terminal().unwrap().try_clone().unwrap()).read_to_end(&mut bytes);
    assert_eq!(String::from_utf8(bytes).unwrap(), "/dev/pts/0\r\n5 6\r\nx\r\n");
    assert_eq!(execution.wait_blocking().unwrap(), Status::Code(0));
}

#[test]
fn privileged_a_further_process_enters_a_user_namespace() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    std::os::unix::fs::chown(fixture.root(), Some(100_000), Some(100_000)).unwrap();
    let mut spec = idle(&fixture);
    spec.namespaces.user = Some(IdMap::shifted(100_000, 65_536));
    spec.init = true;
    let sandbox = spawn(spec, Stdio::Null).unwrap();
    let (text, status) =
        execute(&sandbox, &process(&["sh", "-c", "id -u; touch /x; stat -c %u /x; echo e > /dev/stderr"]));
    assert_eq!((text.as_str(), status), ("0\n0\ne\n", Status::Code(0)));
}

#[test]
fn privileged_nothing_can_be_executed_in_a_sandbox_that_has_ended() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let sandbox = spawn(fixture.spec(&["true"]), Stdio::Null).unwrap();
    sandbox.wait_blocking().unwrap();
    let error = exec(sandbox.pid(), None, &process(&["true"]), Stdio::Null).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
}

#[test]
fn privileged_a_dropped_execution_is_killed() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let sandbox = spawn(idle(&fixture), Stdio::Null).unwrap();
    let execution = exec(sandbox.pid(), sandbox.cgroup(), &process(&["sleep", "1000"]), Stdio::Null).unwrap();
    assert_eq!(sandbox.cgroup().unwrap().pids().len(), 2);
    drop(execution);
    assert_eq!(sandbox.cgroup().unwrap().pids().len(), 1);
}
