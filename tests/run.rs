//! End-to-end tests of `run` and its kin with the real binary: what every option does inside, how commands end, terminals.

mod support;

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::terminal::Terminal;
use support::{Kiln, Outcome, PATIENCE, eventually, is_root};

/// A root with busybox; `None` when not root.
fn kiln() -> Option<Kiln> {
    is_root().then(Kiln::with_busybox)
}

/// Runs a shell command in a container with some options, which must succeed; returns what it prints.
fn sh(kiln: &Kiln, options: &[&str], script: &str) -> String {
    run(kiln, options, &["sh", "-c", script]).expect_code(0).stdout.trim_end_matches('\n').to_owned()
}

/// Runs a command in a container without a network.
fn run(kiln: &Kiln, options: &[&str], command: &[&str]) -> Outcome {
    let options = ["run", "--rm", "--network=none"].iter().chain(options);
    kiln.command(options).arg("busybox").args(command).output()
}

/// Starts a shell command in the background under a name.
fn start(kiln: &Kiln, name: &str, options: &[&str], script: &str) -> String {
    let fixed = ["run", "-d", "--network=none", "--name", name];
    kiln.command(fixed).args(options).args(["busybox", "sh", "-c", script]).ok()
}

fn inspect(kiln: &Kiln, name: &str) -> Value {
    let text = kiln.ok(["inspect", name]);
    serde_json::from_str::<Value>(&text).expect("a JSON document")[0].take()
}

/// Waits until a container's log holds something.
fn until_logged(kiln: &Kiln, name: &str, words: &str) {
    eventually(words, PATIENCE, || kiln.ok(["logs", name]).contains(words).then_some(()));
}

/// A limit as the container's own control group shows it, of version 1 or 2.
fn limit(kiln: &Kiln, options: &[&str], v1: &str, v2: &str) -> String {
    sh(kiln, options, &format!("cd /sys/fs/cgroup; cat {v1} 2>/dev/null || cat {v2}"))
}

#[test]
fn privileged_output_errors_and_exit_codes_are_the_containers() {
    let Some(kiln) = kiln() else { return };
    let outcome = run(&kiln, &[], &["sh", "-c", "echo out; echo err >&2; exit 7"]).expect_code(7);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    run(&kiln, &[], &["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).expect_code(137);
    run(&kiln, &[], &["sh", "-c", "exit 255"]).expect_code(255);
}

#[test]
fn privileged_what_cannot_be_started_ends_with_dockers_codes() {
    let Some(kiln) = kiln() else { return };
    run(&kiln, &[], &["nope"]).expect_code(127).expect_stderr(&["\"nope\": executable file not found"]);
    run(&kiln, &[], &["/nope"]).expect_code(127).expect_stderr(&["/nope", "no such file or directory"]);
    run(&kiln, &[], &["/etc/passwd"]).expect_code(126).expect_stderr(&["permission denied"]);
    run(&kiln, &[], &["/etc"]).expect_code(126);
    run(&kiln, &["-m", "1m"], &["true"]).expect_code(125).expect_stderr(&["Minimum memory limit"]);
    run(&kiln, &["-m", "lots"], &["true"]).expect_code(125).expect_stderr(&["invalid size \"lots\""]);
    run(&kiln, &["--bogus"], &["true"]).expect_code(125).expect_stderr(&["--bogus"]);
    run(&kiln, &["--env-file", "nowhere"], &["true"]).expect_code(125).expect_stderr(&["nowhere"]);
    assert_eq!(kiln.ok(["ps", "-aq"]), "", "--rm removes what was never started");
}

#[test]
fn privileged_an_unknown_image_is_named_and_never_pulled_means_never() {
    let Some(kiln) = kiln() else { return };
    let never = ["run", "--rm", "--pull", "never", "unknown:tag", "true"];
    kiln.command(never).output().expect_code(125).expect_stderr(&["unknown:tag"]);
    let missing = ["run", "--rm", "127.0.0.1:9/unknown:tag", "true"];
    let outcome = kiln.command(missing).output().expect_code(125);
    outcome.expect_stderr(&["Unable to find image '127.0.0.1:9/unknown:tag' locally", "127.0.0.1:9"]);
}

#[test]
fn privileged_input_is_passed_on_and_its_end_too() {
    let Some(kiln) = kiln() else { return };
    let cat = |options: &[&str]| kiln.command(["run", "--rm", "--network=none"]).args(options).args(["busybox", "cat"]);
    let megabytes = vec![b'x'; 3 << 20];
    let outcome = cat(&["-i"]).stdin(megabytes.clone()).output().expect_code(0);
    assert!(outcome.stdout.as_bytes() == megabytes, "{} bytes came back", outcome.stdout.len());
    assert_eq!(cat(&[]).stdin("not for it").ok(), "", "without -i there is no input");
}

#[test]
fn privileged_streams_are_chosen_by_attach() {
    let Some(kiln) = kiln() else { return };
    let script = ["sh", "-c", "echo out; echo err >&2"];
    let outcome = run(&kiln, &["-a", "stdout"], &script).expect_code(0);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", ""));
    let outcome = run(&kiln, &["-a", "STDERR"], &script).expect_code(0);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", "err\n"));
    run(&kiln, &["-a", "nothing"], &script).expect_code(125).expect_stderr(&["STDIN, STDOUT and STDERR"]);
}

#[test]
fn privileged_a_container_in_the_background_outlives_the_command() {
    let Some(kiln) = kiln() else { return };
    let id = start(&kiln, "web", &["--label", "tier=front"], "echo ready; sleep 1000");
    assert_eq!((id.len(), kiln.ok(["ps", "-q", "--no-trunc"])), (64, id.clone()));
    until_logged(&kiln, "web", "ready");
    assert_eq!(kiln.ok(["ps", "--format", "{{.Names}} {{.Image}} {{.State}}"]), "web busybox running");
    assert_eq!(kiln.ok(["ps", "-q", "--filter", "label=tier=back"]), "");
    assert_eq!(inspect(&kiln, "web")["State"]["Running"], true);
    kiln.fails(["rm", "web"]).expect_stderr(&["container is running"]);
    assert_eq!(kiln.ok(["stop", "-t", "0", "web"]), "web");
    assert_eq!(kiln.ok(["wait", "web"]), "137");
    assert_eq!(kiln.ok(["ps", "-a", "--format", "{{.Status}}"]).split(" (").next(), Some("Exited"));
    assert_eq!(kiln.ok(["start", "web"]), "web");
    assert_eq!(kiln.ok(["kill", "-s", "TERM", "web"]), "web");
    assert_eq!(kiln.ok(["rm", "-f", "web"]), "web");
    assert_eq!(kiln.ok(["ps", "-aq"]), "");
}

#[test]
fn privileged_commands_name_what_they_do_not_find() {
    let Some(kiln) = kiln() else { return };
    for command in ["stop", "start", "kill", "rm", "wait", "logs", "inspect", "attach", "restart", "top"] {
        kiln.fails([command, "nowhere"]).expect_code(1).expect_stderr(&["nowhere"]);
    }
    start(&kiln, "one", &[], "true");
    run(&kiln, &["--name", "one"], &["true"]).expect_code(125).expect_stderr(&["/one", "already in use"]);
    let outcome = kiln.command(["rm", "-f", "nowhere", "one"]).output().expect_code(0);
    assert_eq!(outcome.stdout, "one\n", "the others are removed all the same");
}

#[test]
fn privileged_the_environment_is_set() {
    let Some(kiln) = kiln() else { return };
    let file = kiln.write("vars", "# comment\nFILE=from a file\nGIVEN\nABSENT\nBOTH=file\n");
    let file = file.to_str().expect("a path of ASCII");
    let options = ["-e", "A=1", "-e", "EMPTY=", "-e", "BOTH=option", "--env-file", file, "-e", "PATH"];
    let command = kiln.command(["run", "--rm", "--network=none"]).args(options).args(["busybox", "env"]);
    let env = command.env("GIVEN", "from outside").ok();
    for line in ["A=1", "EMPTY=", "BOTH=option", "FILE=from a file", "GIVEN=from outside"] {
        assert!(env.lines().any(|has| has == line), "{line} in {env}");
    }
    assert!(!env.contains("ABSENT") && !env.contains("BOTH=file"), "{env}");
    assert!(env.lines().any(|line| line.starts_with("HOSTNAME=")) && env.contains("HOME=/root"), "{env}");
}

#[test]
fn privileged_user_directory_and_entrypoint_are_set() {
    let Some(kiln) = kiln() else { return };
    assert_eq!(sh(&kiln, &["-u", "1000:2000", "--group-add", "50"], "id -u; id -g; id -G"), "1000\n2000\n2000 50");
    assert_eq!(sh(&kiln, &["--user", "nobody"], "id -un; echo $HOME"), "nobody\n/home");
    run(&kiln, &["-u", "stranger"], &["true"]).expect_code(125).expect_stderr(&["stranger"]);
    assert_eq!(sh(&kiln, &["-w", "/made/for/it"], "pwd"), "/made/for/it");
    run(&kiln, &["-w", "relative"], &["true"]).expect_code(125).expect_stderr(&["absolute"]);
    assert_eq!(run(&kiln, &["--entrypoint", "echo"], &["a", "-n"]).stdout, "a -n\n");
    assert_eq!(run(&kiln, &["--entrypoint", ""], &["echo", "b"]).stdout, "b\n");
}

#[test]
fn privileged_binds_and_memory_are_mounted() {
    let Some(kiln) = kiln() else { return };
    let host = kiln.write("data/file", "content").parent().map(Path::to_path_buf).expect("it has a directory");
    let host = host.to_str().expect("a path of ASCII");
    assert_eq!(sh(&kiln, &["-v", &format!("{host}:/d")], "cat /d/file; echo new >/d/made"), "content");
    assert_eq!(std::fs::read_to_string(Path::new(host).join("made")).expect("it was made"), "new\n");
    let read_only = format!("{host}:/d:ro");
    let denied = "touch /d/x 2>/dev/null || echo denied";
    assert_eq!(sh(&kiln, &["-v", &read_only], denied), "denied");
    assert_eq!(sh(&kiln, &["-v", "./data:/d"], "cat /d/file"), "content", "relative to the current directory");
    assert_eq!(sh(&kiln, &["--mount", &format!("type=bind,src={host},dst=/d,readonly")], denied), "denied");
    let missing = ["--mount", "type=bind,src=/nowhere/at/all,dst=/d"];
    run(&kiln, &missing, &["true"]).expect_code(125).expect_stderr(&["/nowhere/at/all"]);
    let size = "df -k /t | tail -n 1 | awk '{print $2}'";
    assert_eq!(sh(&kiln, &["--tmpfs", "/t:size=1m"], size), "1024");
    assert_eq!(sh(&kiln, &["--mount", "type=tmpfs,dst=/t,tmpfs-size=2m,tmpfs-mode=700"], size), "2048");
    assert_eq!(sh(&kiln, &["--shm-size", "3m"], &size.replace("/t", "/dev/shm")), "3072");
}

#[test]
fn privileged_a_read_only_root_is_read_only() {
    let Some(kiln) = kiln() else { return };
    let script = "touch /x 2>/dev/null || echo denied; touch /t/x && echo allowed";
    assert_eq!(sh(&kiln, &["--read-only", "--tmpfs", "/t"], script), "denied\nallowed");
}

#[test]
fn privileged_names_and_addresses_are_written_to_etc() {
    let Some(kiln) = kiln() else { return };
    assert_eq!(sh(&kiln, &["-h", "box"], "hostname; cat /etc/hostname"), "box\nbox");
    let hosts = sh(&kiln, &["--hostname", "box", "--add-host", "db:10.0.0.5"], "cat /etc/hosts");
    assert!(hosts.lines().any(|line| line.split_whitespace().eq(["10.0.0.5", "db"])), "{hosts}");
    let options = ["--dns", "10.0.0.1", "--dns-search", "example.org", "--dns-option", "ndots:2"];
    let resolv = sh(&kiln, &options, "cat /etc/resolv.conf");
    for line in ["nameserver 10.0.0.1", "search example.org", "options ndots:2"] {
        assert!(resolv.contains(line), "{line} in {resolv}");
    }
}

#[test]
fn privileged_networks_are_those_asked_for() {
    let Some(kiln) = kiln() else { return };
    assert_eq!(sh(&kiln, &[], "ls /sys/class/net"), "lo");
    let script = ["busybox", "sh", "-c", "ls -d /sys/class/net/*"];
    let bridge = kiln.command(["run", "--rm"]).args(script).ok();
    assert!(bridge.contains("/eth0"), "{bridge}");
    let own = std::fs::read_link("/proc/self/ns/net").expect("read a link");
    let host = kiln.command(["run", "--rm", "--network", "host", "busybox", "readlink", "/proc/self/ns/net"]).ok();
    assert_eq!(host, own.to_str().expect("a name of ASCII"));
    let unknown = kiln.command(["run", "--rm", "--network", "elsewhere", "busybox", "true"]).output();
    unknown.expect_code(125).expect_stderr(&["elsewhere"]);
}

#[test]
fn privileged_capabilities_and_profiles_are_applied() {
    let Some(kiln) = kiln() else { return };
    let status = |options: &[&str], name: &str| {
        sh(&kiln, options, &format!("grep -w {name} /proc/self/status | awk '{{print $2}}'"))
    };
    assert_eq!(status(&[], "CapEff"), "00000000a80425fb", "docker's default");
    assert_eq!(status(&["--cap-drop", "all"], "CapEff"), "0000000000000000");
    assert_eq!(status(&["--cap-drop", "ALL", "--cap-add", "net_admin"], "CapEff"), "0000000000001000");
    run(&kiln, &["--cap-add", "bogus"], &["true"]).expect_code(125).expect_stderr(&["BOGUS"]);
    assert_eq!((status(&[], "Seccomp"), status(&[], "NoNewPrivs")), ("2".to_owned(), "0".to_owned()));
    assert_eq!(status(&["--security-opt", "seccomp=unconfined"], "Seccomp"), "0");
    assert_eq!(status(&["--security-opt", "no-new-privileges"], "NoNewPrivs"), "1");
    let privileged = status(&["--privileged"], "CapEff");
    assert!(u64::from_str_radix(&privileged, 16).expect("a set of bits") & (1 << 21) != 0, "{privileged}");
    let masked = "head -c 1 /proc/kcore 2>/dev/null | wc -c";
    assert_eq!(sh(&kiln, &[], masked), "0");
}

#[test]
fn privileged_resources_are_limited() {
    let Some(kiln) = kiln() else { return };
    assert_eq!(limit(&kiln, &["-m", "64m"], "memory/memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(limit(&kiln, &["--pids-limit", "20"], "pids/pids.max", "pids.max"), "20");
    let cpus = limit(&kiln, &["--cpus", "0.5"], "cpu/cpu.cfs_quota_us", "cpu.max");
    assert_eq!(cpus.split(' ').next(), Some("50000"));
    let fork_bomb = "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo survived";
    let outcome = run(&kiln, &["--pids-limit", "4"], &["sh", "-c", fork_bomb]);
    assert!(outcome.stderr.contains("fork") && !outcome.stdout.contains("survived"), "{}", outcome.report());
    let allowed = sh(&kiln, &["--cpuset-cpus", "0"], "grep Cpus_allowed_list /proc/self/status | awk '{print $2}'");
    assert_eq!(allowed, "0");
    assert_eq!(sh(&kiln, &["--ulimit", "nofile=512:1024"], "ulimit -Sn; ulimit -Hn"), "512\n1024");
    assert_eq!(sh(&kiln, &["--oom-score-adj", "300"], "cat /proc/self/oom_score_adj"), "300");
}

#[test]
fn privileged_too_much_memory_ends_the_container() {
    let Some(kiln) = kiln() else { return };
    let script = "head -c 200m /dev/zero | tail -c 199m >/dev/null";
    let options = ["-m", "32m", "--memory-swap", "32m"];
    start(&kiln, "hog", &options, &format!("exec sh -c '{script}'"));
    assert_ne!(kiln.ok(["wait", "hog"]), "0");
    assert_eq!(inspect(&kiln, "hog")["State"]["OOMKilled"], true);
}

#[test]
fn privileged_an_init_reaps_and_passes_the_exit_code_on() {
    let Some(kiln) = kiln() else { return };
    assert_eq!(sh(&kiln, &["--init"], "[ $$ != 1 ] && echo child"), "child");
    run(&kiln, &["--init"], &["sh", "-c", "sleep 0.1; exit 3"]).expect_code(3);
    let orphan = "sh -c 'sleep 0 & exit' ; sleep 0.3; ps -o stat | grep -c Z";
    assert_eq!(run(&kiln, &["--init"], &["sh", "-c", orphan]).stdout.trim(), "0");
}

#[test]
fn privileged_stopping_uses_the_signal_and_the_time_asked_for() {
    let Some(kiln) = kiln() else { return };
    let trap = "trap 'echo usr1; exit 5' USR1; trap 'echo term' TERM; echo ready; while true; do sleep 0.05; done";
    start(&kiln, "polite", &["--stop-signal", "USR1"], trap);
    until_logged(&kiln, "polite", "ready");
    assert_eq!(kiln.ok(["stop", "polite"]), "polite");
    assert_eq!((kiln.ok(["wait", "polite"]), kiln.ok(["logs", "-n1", "polite"])), ("5".to_owned(), "usr1".to_owned()));
    start(&kiln, "stubborn", &["--stop-timeout", "1"], trap);
    until_logged(&kiln, "stubborn", "ready");
    let outcome = kiln.command(["stop", "stubborn"]).output().expect_code(0);
    assert!((Duration::from_millis(900)..Duration::from_secs(9)).contains(&outcome.elapsed), "{}", outcome.report());
    assert_eq!(kiln.ok(["wait", "stubborn"]), "137");
}

#[test]
fn privileged_logs_are_chosen_by_time_and_number() {
    let Some(kiln) = kiln() else { return };
    start(&kiln, "talker", &[], "echo one; echo two; echo three; sleep 2; echo four; sleep 1000");
    until_logged(&kiln, "talker", "four");
    assert_eq!(kiln.ok(["logs", "talker"]), "one\ntwo\nthree\nfour");
    assert_eq!(kiln.ok(["logs", "--tail", "2", "talker"]), "three\nfour");
    assert_eq!(kiln.ok(["logs", "-n", "0", "talker"]), "");
    let stamped = kiln.ok(["logs", "-t", "-n", "1", "talker"]);
    let (time, line) = stamped.split_once(' ').expect("a time before the line");
    assert_eq!((time.len(), line), (30, "four"), "nanoseconds, always nine digits");
    assert_eq!(kiln.ok(["logs", "--since", time, "talker"]), "four");
    let third = kiln.ok(["logs", "-t", "-n", "2", "talker"]);
    let third = third.split(' ').next().expect("a time before the line");
    assert_eq!(kiln.ok(["logs", "--since", "1h", "--until", third, "-n", "1", "talker"]), "three");
    assert_eq!(kiln.ok(["logs", "--until", "1h", "talker"]), "");
    let mut following = kiln.command(["logs", "-f", "talker"]).spawn();
    following.until_it_says("four");
    assert!(following.is_running());
    kiln.ok(["kill", "talker"]);
    assert_eq!(following.wait().expect_code(0).stdout, "one\ntwo\nthree\nfour\n");
}

#[test]
fn privileged_logs_are_bounded_by_default() {
    let Some(kiln) = kiln() else { return };
    let options = ["--log-opt", "max-size=20k", "--log-opt", "max-file=2"];
    start(&kiln, "chatty", &options, "for i in $(seq 20000); do echo line $i; done");
    assert_eq!(kiln.ok(["wait", "chatty"]), "0");
    let kept = kiln.ok(["logs", "chatty"]);
    assert!(kept.ends_with("line 20000") && kept.len() < 60_000, "{} bytes", kept.len());
    start(&kiln, "quiet", &["--log-driver", "none"], "echo unheard");
    kiln.ok(["wait", "quiet"]);
    run(&kiln, &["--log-driver", "syslog"], &["true"]).expect_code(125).expect_stderr(&["syslog"]);
}

#[test]
fn privileged_the_configuration_bounds_logs_of_containers_that_do_not_say() {
    let Some(kiln) = kiln() else { return };
    let config = kiln.write("config.toml", "[log]\nmax-size = \"20k\"\nmax-file = 2\n").display().to_string();
    kiln.ok(["--config", &config, "create", "--name", "chatty", "busybox", "true"]);
    let kept = kiln.ok(["inspect", "-f", "{{json .HostConfig.LogConfig.Config}}", "chatty"]);
    assert_eq!(kept, r#"{"max-size":"20000","max-file":"2"}"#);
}

#[test]
fn privileged_the_id_is_written_to_a_file() {
    let Some(kiln) = kiln() else { return };
    let file = kiln.scratch().join("id");
    let option = format!("--cidfile={}", file.display());
    let id = kiln.command(["create", "--network=none", &option, "busybox", "true"]).ok();
    assert_eq!(std::fs::read_to_string(&file).expect("it was written"), id);
    run(&kiln, &[&option], &["true"]).expect_code(125).expect_stderr(&["container ID file found"]);
}

#[test]
fn privileged_a_created_container_is_started_with_its_streams() {
    let Some(kiln) = kiln() else { return };
    kiln.ok(["create", "-i", "--network=none", "--name", "made", "busybox", "sh", "-c", "cat; exit 4"]);
    assert_eq!(kiln.ok(["ps", "-a", "--format", "{{.Status}}"]), "Created");
    let outcome = kiln.command(["start", "-ai", "made"]).stdin("hello").output().expect_code(4);
    assert_eq!(outcome.stdout, "hello");
    assert_eq!(kiln.ok(["rename", "made", "named"]), "");
    assert_eq!(kiln.ok(["container", "ls", "-a", "--format", "{{.Names}}"]), "named");
    let pruned = kiln.ok(["container", "prune", "-f"]);
    assert!(pruned.starts_with("Deleted Containers:\n"), "{pruned}");
    assert_eq!(kiln.ok(["ps", "-aq"]), "");
}

#[test]
fn privileged_a_platform_that_is_not_there_is_named() {
    let Some(kiln) = kiln() else { return };
    let other = if support::base::arch() == "amd64" { "linux/arm64" } else { "linux/amd64" };
    let never = run(&kiln, &["--pull=never", "--platform", other], &["true"]).expect_code(125);
    never.expect_stderr(&[other]);
    let own = format!("linux/{}", support::base::arch());
    run(&kiln, &["--platform", &own], &["true"]).expect_code(0);
}

#[test]
fn privileged_signals_are_passed_on() {
    let Some(kiln) = kiln() else { return };
    let script = "trap 'echo got; exit 6' INT TERM HUP USR1; echo ready; while true; do sleep 0.05; done";
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::USR1] {
        let options = ["run", "--rm", "--network=none", "busybox", "sh", "-c", script];
        let mut running = kiln.command(options).spawn();
        running.until_it_says("ready");
        running.signal(signal);
        assert_eq!(running.wait().expect_code(6).stdout, "ready\ngot\n");
    }
}

#[test]
fn privileged_a_command_that_does_not_pass_signals_on_leaves_the_container() {
    let Some(kiln) = kiln() else { return };
    let options = ["run", "--sig-proxy=false", "--network=none", "--name", "left", "busybox"];
    let mut running =
        kiln.command(options).args(["sh", "-c", "echo ready; while sleep 0.1; do echo tick; done"]).spawn();
    running.until_it_says("ready");
    running.signal(Signal::TERM);
    running.wait().expect_code(143);
    assert_eq!(inspect(&kiln, "left")["State"]["Running"], true);
    let mut attached = kiln.command(["attach", "--no-stdin", "left"]).spawn();
    attached.until_it_says("tick");
    kiln.ok(["kill", "left"]);
    attached.wait().expect_code(137);
}

#[test]
fn privileged_a_terminal_has_its_size_and_keys() {
    let Some(kiln) = kiln() else { return };
    let mut terminal = Terminal::open(&kiln, [33, 101], ["run", "--rm", "-it", "--network=none", "busybox", "sh"]);
    terminal.until_it_says("# ");
    terminal.until_raw();
    terminal.keys("tty; stty size\n");
    terminal.until_it_says("33 101\r\n");
    terminal.resize([44, 55]);
    eventually("the new size", PATIENCE, || {
        terminal.keys("stty size\n");
        std::thread::sleep(Duration::from_millis(50));
        terminal.said().contains("44 55").then_some(())
    });
    terminal.keys("sleep 1000\n");
    terminal.until_it_says("sleep 1000");
    eventually("a prompt again", PATIENCE, || {
        // The shell itself may still read what is typed.
        terminal.keys([3]);
        std::thread::sleep(Duration::from_millis(50));
        terminal.said().contains("# ").then_some(())
    });
    terminal.keys("exit 9\n");
    assert_eq!(terminal.code(), 9);
    assert!(!terminal.is_raw(), "the terminal is as it was");
}

#[test]
fn privileged_keys_leave_a_container_running() {
    let Some(kiln) = kiln() else { return };
    let options = ["run", "-it", "--network=none", "--name", "kept", "busybox", "sh"];
    let mut terminal = Terminal::open(&kiln, [24, 80], options);
    terminal.until_it_says("# ");
    terminal.until_raw();
    terminal.keys([16, 17]);
    assert_eq!(terminal.code(), 0);
    assert!(!terminal.is_raw());
    assert_eq!(inspect(&kiln, "kept")["State"]["Running"], true);

    let mut terminal = Terminal::open(&kiln, [24, 80], ["attach", "--detach-keys", "ctrl-x,y", "kept"]);
    terminal.until_raw();
    terminal.keys("echo al''ive\n");
    terminal.until_it_says("alive");
    terminal.keys([24, b'y']);
    assert_eq!(terminal.code(), 0);

    std::fs::create_dir_all(kiln.home().join(".docker")).expect("make a directory");
    std::fs::write(kiln.home().join(".docker/config.json"), r#"{"detachKeys": "ctrl-e,e"}"#).expect("write a file");
    let mut terminal = Terminal::open(&kiln, [24, 80], ["attach", "kept"]);
    terminal.until_raw();
    terminal.keys([5, b'e']);
    assert_eq!(terminal.code(), 0);

    let mut terminal = Terminal::open(&kiln, [24, 80], ["attach", "kept"]);
    terminal.until_raw();
    terminal.keys("exit 3\n");
    assert_eq!(terminal.code(), 3);
}

#[test]
fn privileged_a_signal_restores_the_terminal() {
    let Some(kiln) = kiln() else { return };
    let options = ["run", "--rm", "-it", "--sig-proxy=false", "--network=none", "busybox", "sh"];
    let mut terminal = Terminal::open(&kiln, [24, 80], options);
    terminal.until_it_says("# ");
    terminal.until_raw();
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.code(), 143);
    assert!(!terminal.is_raw());
}

#[test]
fn privileged_a_terminal_inside_needs_one_outside() {
    let Some(kiln) = kiln() else { return };
    run(&kiln, &["-it"], &["true"]).expect_code(1).expect_stderr(&["the input device is not a TTY"]);
    let outcome = run(&kiln, &["-t"], &["sh", "-c", "tty; echo err >&2"]).expect_code(0);
    assert_eq!(outcome.stdout, "/dev/pts/0\r\nerr\r\n", "both streams are the terminal's");
}

#[test]
fn privileged_a_reader_that_goes_away_does_not_hang_the_command() {
    let Some(kiln) = kiln() else { return };
    let kiln_line = format!("{} --root {}", support::KILN, kiln.root().display());
    let line = format!("{kiln_line} run --rm --network=none --name endless busybox yes | head -n 1");
    let outcome = support::Run::new("sh").args(["-c", &line]).env("HOME", kiln.home()).output();
    assert_eq!(outcome.expect_code(0).stdout, "y\n");
    kiln.command(["rm", "-f", "endless"]).output();
}

#[test]
fn privileged_what_the_engine_cannot_do_is_refused_by_name() {
    let Some(kiln) = kiln() else { return };
    for (options, name) in [
        (["-p", "80:80"], "--publish"),
        (["--health-cmd", "true"], "--health-cmd"),
        (["--health-interval", "5s"], "--health-*"),
        (["--ip", "10.0.0.2"], "--ip"),
        (["--network-alias", "web"], "--network-alias"),
        (["--volumes-from", "other"], "--volumes-from"),
        (["--memory-swappiness", "10"], "--memory-swappiness"),
        (["--storage-opt", "size=1G"], "--storage-opt"),
        (["--runtime", "other"], "--runtime"),
        (["--device-cgroup-rule", "c 1:3 r"], "--device-cgroup-rule"),
    ] {
        run(&kiln, &options, &["true"]).expect_code(125).expect_stderr(&[name, "not supported"]);
    }
    assert_eq!(kiln.ok(["ps", "-aq"]), "");
}

#[test]
fn privileged_further_processes_run_in_a_container() {
    let Some(kiln) = kiln() else { return };
    start(&kiln, "host", &["-e", "A=1"], "sleep 1000");
    let exec = |options: &[&str], command: &[&str]| kiln.command(["exec"]).args(options).arg("host").args(command);
    assert_eq!(exec(&["-e", "B=2"], &["sh", "-c", "echo $A $B"]).ok(), "1 2");
    assert_eq!(exec(&["-w", "/tmp", "-u", "nobody"], &["sh", "-c", "pwd; id -un"]).ok(), "/tmp\nnobody");
    assert_eq!(exec(&["-i"], &["cat"]).stdin("typed").ok(), "typed");
    let outcome = exec(&[], &["sh", "-c", "echo out; echo err >&2; exit 9"]).output().expect_code(9);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    exec(&[], &["nope"]).output().expect_code(127);
    exec(&["-d"], &["touch", "/made"]).ok();
    eventually("the file", PATIENCE, || (exec(&[], &["test", "-e", "/made"]).output().code == 0).then_some(()));
    exec(&["-it"], &["true"]).fails().expect_stderr(&["the input device is not a TTY"]);
    kiln.fails(["exec", "nowhere", "true"]).expect_stderr(&["nowhere"]);

    let mut terminal = Terminal::open(&kiln, [33, 101], ["exec", "-it", "host", "sh"]);
    terminal.until_it_says("# ");
    terminal.until_raw();
    terminal.keys("stty size; exit 6\n");
    terminal.until_it_says("33 101\r\n");
    assert_eq!(terminal.code(), 6);
    assert!(!terminal.is_raw());
    kiln.ok(["rm", "-f", "host"]);
}
