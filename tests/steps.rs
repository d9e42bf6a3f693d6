//! End-to-end tests of how RUN steps run: what the options of the request do in a step's sandbox, and what is left of a step
//! that failed.

mod support;

use std::path::{Path, PathBuf};

use support::terminal::Terminal;
use support::{Kiln, Outcome, PATIENCE, eventually};

/// A root with busybox and a context directory `app` with this Dockerfile; `None` when not root.
fn project(dockerfile: &str) -> Option<Kiln> {
    Kiln::project(&[("Dockerfile", dockerfile)])
}

fn build(kiln: &Kiln, args: &[&str]) -> Outcome {
    kiln.command(["build", "--progress=plain"]).args(args).arg("app").output()
}

#[test]
fn privileged_the_options_of_a_build_hold_in_its_steps() {
    let run = "grep -c 'db$' /etc/hosts; ulimit -n; df -k /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; \
               grep -q 'gateway$' /etc/hosts && echo gateway";
    let Some(kiln) = project(&format!("FROM busybox\nRUN ({run}) > /seen\n")) else { return };
    let options = [
        "--add-host=db:10.1.2.3",
        "--add-host=gateway:host-gateway",
        "--ulimit=nofile=123:456",
        "--shm-size=3m",
        "--resource=memory=64m,cpu-shares=512",
        "--cpu-quota=50000",
        "-t=app",
    ];
    build(&kiln, &options).expect_code(0);
    assert_eq!(kiln.ok(["run", "--rm", "--network=none", "app", "cat", "/seen"]), "1\n123\n3072\ngateway");
    let again = build(
        &kiln,
        &[
            "--resource=memory=32m",
            "--ulimit=nofile=123:456",
            "--shm-size=3m",
            "--add-host=db:10.1.2.4",
            "--add-host=gateway:host-gateway",
        ],
    );
    let again = again.expect_code(0);
    assert!(again.stderr.contains("CACHED"), "limits and addresses are in no key: {}", again.report());
}

#[test]
fn privileged_steps_run_below_the_control_group_that_was_named() {
    let Some(kiln) = project("FROM busybox\nRUN echo be\"\"gun && sleep 600\n") else { return };
    let parent = format!("kiln-test-{}", std::process::id());
    let option = format!("--cgroup-parent=/{parent}");
    let mut running = kiln.command(["build", "--progress=plain", &option, "app"]).spawn();
    running.until_it_says("begun");
    let parents = || {
        let v1 = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        let all = v1.chain([PathBuf::from("/sys/fs/cgroup")]).map(|hierarchy| hierarchy.join(&parent));
        all.filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    let steps = |parent: &Path| {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("build-")).count()
    };
    assert!(parents().iter().any(|parent| steps(parent) == 1), "{:?}", parents());
    running.signal(rustix::process::Signal::INT);
    running.wait().expect_code(130);
    eventually("the end of the groups", PATIENCE, || parents().iter().all(|parent| steps(parent) == 0).then_some(()));
    for parent in parents() {
        std::fs::remove_dir(parent).expect("the group is empty");
    }
}

#[test]
fn privileged_the_groups_of_a_killed_engine_go_at_the_next_start() {
    let Some(kiln) = project("FROM busybox\nRUN echo be\"\"gun && sleep 600\n") else { return };
    let groups = || {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        let dirs = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|hierarchy| hierarchy.join("kiln"));
        let names = dirs.flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
        names.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let of = |pid: u32| {
        let prefix = format!("build-{pid}-");
        let own = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        groups().into_iter().filter(own).count()
    };
    let mut running = kiln.command(["build", "--progress=plain", "app"]).spawn();
    running.until_it_says("begun");
    // The engine is the child of the command.
    let children = format!("/proc/{0}/task/{0}/children", running.pid().as_raw_nonzero());
    let children = std::fs::read_to_string(children).expect("the command has an engine");
    let engine: u32 = children.split_whitespace().next().expect("one child").parse().expect("a number");
    assert!(of(engine) > 0, "{:?}", groups());
    let pid = rustix::process::Pid::from_raw(i32::try_from(engine).expect("a number of a process"));
    rustix::process::kill_process(pid.expect("not zero"), rustix::process::Signal::KILL).expect("kill the engine");
    running.wait();
    // The step dies with its engine, and an empty group stays until somebody looks.
    eventually("the removal of the groups", PATIENCE, || {
        kiln.ok(["images", "-q"]);
        (of(engine) == 0).then_some(())
    });
}

#[test]
fn privileged_what_a_step_may_not_is_refused_with_what_allows_it() {
    let Some(kiln) = project("FROM busybox\nRUN --security=insecure true\n") else { return };
    build(&kiln, &[]).expect_code(1).expect_stderr(&["security.insecure is not allowed", "--allow security.insecure"]);
    build(&kiln, &["--allow=security.insecure"]).expect_code(0);
    kiln.write("app/Dockerfile", "FROM busybox\nRUN --network=host true\n");
    build(&kiln, &[]).expect_code(1).expect_stderr(&["--allow network.host", "Dockerfile:2"]);
    kiln.write("app/Dockerfile", "FROM busybox\nRUN --device=example.com/none=x,required true\n");
    build(&kiln, &["--allow=device"]).expect_code(1).expect_stderr(&["example.com/none=x", "not registered"]);
    build(&kiln, &["--allow=devices"]).expect_code(1).expect_stderr(&["--allow devices", "device"]);
}

#[test]
fn privileged_running_out_of_memory_is_told_with_the_peak_and_the_limit() {
    let Some(kiln) = project("FROM busybox\nRUN dd if=/dev/zero of=/dev/null bs=64M count=1\n") else { return };
    let failed = build(&kiln, &["--memory=20m"]).expect_code(1);
    failed.expect_stderr(&["exit code: 137: out of memory", "at a peak of", "(the limit is 20.0 MiB)", "Dockerfile:2"]);
}

#[test]
fn privileged_a_step_gets_no_more_of_the_processors_than_it_says() {
    let quota = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d ' ' -f 1 /sys/fs/cgroup/cpu.max";
    let Some(kiln) = project(&format!("FROM busybox\nRUN --cpus=0.5 ({quota}) > /quota\n")) else { return };
    build(&kiln, &["-t", "app"]).expect_code(0);
    assert_eq!(kiln.ok(["run", "--rm", "--network=none", "app", "cat", "/quota"]), "50000");
}

#[test]
fn privileged_what_a_failed_step_changed_is_saved() {
    let dockerfile = "FROM busybox\nRUN echo old > /etc/old\n\
                      RUN rm /etc/old && mkdir -m 750 /made && echo new > /made/file && chown 12:34 /made/file && exit 3\n";
    let Some(kiln) = project(dockerfile) else { return };
    let failed = build(&kiln, &["--on-failure=export=saved"]).expect_code(1);
    let failed = failed.expect_stderr(&["exit code: 3", "saved", "1 removed paths"]);
    let saved = kiln.scratch().join("saved");
    let stat = support::command::run("stat", ["-c", "%u:%g %a", &saved.join("made/file").display().to_string()]);
    assert_eq!(stat, "12:34 644", "{}", failed.report());
    assert_eq!(std::fs::read_to_string(saved.join("made/file")).expect("the file is saved"), "new\n");
    assert_eq!(std::fs::read_to_string(saved.join(".removed")).expect("there is a list"), "/etc/old\n");
    build(&kiln, &["--on-failure=export=saved"]).expect_code(1).expect_stderr(&["not empty"]);
    kiln.write("app/Dockerfile", "FROM busybox\nCOPY missing /\n");
    build(&kiln, &["--on-failure=export=other"]).expect_code(1).expect_stderr(&["no RUN step has failed"]);
}

#[test]
fn privileged_a_shell_opens_where_a_step_failed() {
    let dockerfile = "FROM busybox\nWORKDIR /work\nENV COLOUR=blue\nRUN echo kept > file && exit 3\n";
    let Some(kiln) = project(dockerfile) else { return };
    let mut terminal = Terminal::open(&kiln, [30, 100], ["build", "--progress=plain", "--on-failure=shell", "app"]);
    terminal.until_it_says("exit to leave.");
    terminal.until_raw();
    terminal.keys("echo $(cat file) $COLOUR in $(pwd)\r");
    terminal.until_it_says("kept blue in /work");
    terminal.keys("stty size\r");
    terminal.until_it_says("30 100");
    terminal.resize([40, 120]);
    terminal.keys("until stty size | grep 40; do sleep 0.05; done\r");
    terminal.until_it_says("40 120");
    // The shell would take a key for its own while it reads the line.
    terminal.keys("echo sl\"\"eeps; sleep 600\r");
    terminal.until_it_says("sleeps");
    terminal.keys("\x03");
    terminal.keys("echo and $((1+1))\r");
    terminal.until_it_says("and 2");
    terminal.keys("exit 0\r");
    assert_eq!(terminal.code(), 1, "the build has failed all the same");
}

#[test]
fn privileged_an_image_without_a_shell_gets_kilns_own() {
    let Some(kiln) = project("FROM scratch\nCOPY file /data/file\nWORKDIR /data\nRUN [\"/missing\"]\n") else { return };
    kiln.write("app/file", "content\n");
    let mut terminal = Terminal::open(&kiln, [24, 80], ["build", "--progress=plain", "--on-failure=shell", "app"]);
    terminal.until_it_says("kiln:/data#");
    terminal.keys("cat file; cd / && ls data; echo $HOME\r");
    for words in ["content", "file", "/", "kiln:/#"] {
        terminal.until_it_says(words);
    }
    terminal.keys("exit\r");
    assert_eq!(terminal.code(), 1);
}

#[test]
fn a_shell_without_a_terminal_is_refused_before_the_build() {
    let kiln = Kiln::new();
    kiln.write("app/Dockerfile", "FROM busybox\n");
    let refused = build(&kiln, &["--on-failure=shell"]).expect_code(1);
    refused.expect_stderr(&["--on-failure=shell", "terminal", "--on-failure=export=DIR"]);
    build(&kiln, &["--on-failure=shel"]).expect_code(125).expect_stderr(&["shell or export=DIR"]);
}
