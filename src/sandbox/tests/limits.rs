//! Control groups: limits, counters, and that nothing is left behind.

use super::*;
use crate::error::Kind;

/// The value of a group's file, by its name on v1 and on v2, as the container sees it.
fn value_of(v1: &str, v2: &str) -> String {
    format!("cat /sys/fs/cgroup/{v2} 2>/dev/null || cat /sys/fs/cgroup/{v1}")
}

fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn limited(mut spec: Spec, limits: Limits) -> Spec {
    spec.cgroup = Some(CgroupSpec { limits, ..CgroupSpec::default() });
    spec
}

const MIB: u64 = 1 << 20;

#[test]
fn privileged_a_process_that_runs_out_of_memory_is_reported_with_its_peak() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    for init in [false, true] {
        // tail keeps the only line, which never ends.
        let limits =
            Limits { memory_bytes: Some(32 * MIB), memory_swap: Some(Swap::Total(32 * MIB)), ..Limits::default() };
        let mut spec = limited(fixture.shell("exec tail -n 1 < /dev/zero"), limits);
        spec.init = init;
        let sandbox = spawn(spec, Stdio::Null).unwrap();
        assert_eq!(sandbox.warnings(), [""; 0]);
        let exit = sandbox.wait_blocking().unwrap();
        assert_eq!((exit.code(), exit.is_oom_killed()), (137, true));
        let usage = exit.usage.as_ref().unwrap();
        assert_eq!(usage.memory_limit_bytes, Some(32 * MIB));
        assert!(usage.memory_peak_bytes.unwrap() > 30 * MIB, "{usage:?}");
        assert!(exit.explain().unwrap().starts_with("out of memory: the kernel killed 1 process at a peak of 3"));
    }
}

#[test]
fn privileged_the_number_of_processes_is_limited() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let limits = Limits { pids: Some(4), ..Limits::default() };
    let output = run(limited(fixture.shell("for i in 1 2 3 4 5 6; do sleep 1000 & done; echo unreached"), limits));
    assert!(output.errors.contains("can't fork"), "{output:?}");
    assert_ne!(output.exit.code(), 0);
}

#[test]
fn privileged_limits_are_written_for_the_kernel() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let script = [
        value_of("cpu/cpu.cfs_quota_us", "cpu.max"),
        value_of("cpu/cpu.shares", "cpu.weight"),
        value_of("cpuset/cpuset.cpus", "cpuset.cpus"),
        value_of("pids/pids.max", "pids.max"),
        value_of("memory/memory.soft_limit_in_bytes", "memory.low"),
    ];
    let limits = Limits {
        memory_bytes: Some(64 * MIB),
        memory_reservation_bytes: Some(16 * MIB),
        cpu_shares: Some(512),
        cpuset_cpus: Some("0".to_owned()),
        cpuset_mems: Some("0".to_owned()),
        pids: Some(100),
        ..Limits::default()
    };
    let mut sandbox = spawn(
        limited(fixture.shell(&script.join("; ")), limits.with_nano_cpus(1_500_000_000)),
        Stdio::Pipes { stdin: false },
    )
    .unwrap();
    assert_eq!(sandbox.warnings(), [""; 0]);
    let text = read(sandbox.take_streams().stdout);
    sandbox.wait_blocking().unwrap();
    let (quota, shares) = if is_v2() { ("150000 100000", "59") } else { ("150000", "512") };
    assert_eq!(text.lines().collect::<Vec<_>>(), [quota, shares, "0", "100", "16777216"]);
}

#[test]
fn privileged_a_container_sees_its_own_group_as_the_root() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let output = fixture.run("grep -vE ':(name=|perf|hugetlb|net|rdma|misc|cpuset)' /proc/self/cgroup | cut -d: -f3 | sort -u; cat /sys/fs/cgroup/cgroup.procs 2>/dev/null || cat /sys/fs/cgroup/pids/tasks");
    let lines = output.lines();
    assert_eq!(lines[..2], ["/", "1"]);
}

#[test]
fn privileged_limits_of_a_running_sandbox_can_be_changed() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let limits = Limits { memory_bytes: Some(64 * MIB), ..Limits::default() };
    let sandbox = spawn(limited(fixture.spec(&["sleep", "1000"]), limits), Stdio::Null).unwrap();
    let cgroup = Cgroup::open("", &cgroup_id(&sandbox)).unwrap();
    for mebibytes in [256, 32] {
        let limits = Limits { memory_bytes: Some(mebibytes * MIB), pids: Some(u64::MAX), ..Limits::default() };
        assert_eq!(cgroup.update(&limits).unwrap(), [""; 0]);
        let stats = cgroup.stats();
        assert_eq!((stats.memory_limit_bytes, stats.pids, stats.pids_limit), (Some(mebibytes * MIB), 1, None));
    }
    let error = cgroup.update(&Limits { cpuset_cpus: Some("4095".to_owned()), ..Limits::default() });
    // Without the controller it is a warning, with it a refusal.
    assert!(error.is_ok_and(|warnings| warnings.len() == 1) || is_v2());
}

fn cgroup_id(sandbox: &Sandbox) -> String {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", sandbox.pid().as_raw_nonzero())).unwrap();
    text.lines().find_map(|line| line.split_once(":/kiln/")).unwrap().1.to_owned()
}

#[test]
fn privileged_a_frozen_sandbox_goes_on_when_it_is_thawed() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let sandbox = spawn(fixture.shell("while :; do :; done"), Stdio::Null).unwrap();
    let cgroup = sandbox.cgroup().unwrap();
    wait_until(|| cgroup.stats().cpu.as_millis() > 5, || format!("{:?}", cgroup.stats()));
    cgroup.freeze().unwrap();
    assert!(cgroup.is_frozen());
    let frozen_at = cgroup.stats().cpu;
    assert_eq!(cgroup.stats().cpu, frozen_at);
    cgroup.thaw().unwrap();
    assert!(!cgroup.is_frozen());
    wait_until(|| cgroup.stats().cpu > frozen_at, || "it stays frozen".to_owned());
    cgroup.freeze().unwrap();
    drop(sandbox);
}

#[test]
fn privileged_two_sandboxes_cannot_have_one_group() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let first = spawn(fixture.spec(&["sleep", "1000"]), Stdio::Null).unwrap();
    let mut spec = fixture.spec(&["true"]);
    spec.id = cgroup_id(&first);
    let error = spawn(spec, Stdio::Null).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
    assert_eq!(first.cgroup().unwrap().pids().len(), 1, "the first one lives");
}

#[test]
fn privileged_a_dropped_sandbox_takes_everything_with_it() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell("sleep 1000 & sleep 1000 & echo ready; wait");
    // Without a namespace of its own the kernel does not kill what is left.
    spec.namespaces.pid = Namespace::Host;
    let mut sandbox = spawn(spec, Stdio::Pipes { stdin: false }).unwrap();
    let mut line = [0; 6];
    fs::File::from(sandbox.take_streams().stdout.unwrap()).read_exact(&mut line).unwrap();
    let cgroup = sandbox.cgroup().unwrap().clone();
    let pids = cgroup.pids();
    assert_eq!(pids.len(), 3);
    drop(sandbox);
    assert_eq!(cgroup.pids(), []);
    assert!(Cgroup::remove(&cgroup).is_ok(), "a group that is gone counts as removed");
}

#[test]
fn privileged_processes_that_outlive_the_first_are_killed() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let mut spec = fixture.shell("sleep 1000 & exit 0");
    spec.namespaces.pid = Namespace::Host;
    let sandbox = spawn(spec, Stdio::Null).unwrap();
    let cgroup = sandbox.cgroup().unwrap().clone();
    let exit = sandbox.wait_blocking().unwrap();
    assert_eq!((exit.code(), exit.left_over), (0, None));
    assert_eq!(cgroup.pids(), []);
}

#[test]
fn privileged_a_failed_start_leaves_no_group() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::new();
    let spec = fixture.spec(&["nothing"]);
    let id = spec.id.clone();
    spawn(spec, Stdio::Null).unwrap_err();
    assert_eq!(Cgroup::open("", &id).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn privileged_two_hundred_sandboxes_leave_nothing_behind() {
    if !is_root() {
        return;
    }
    // In a process of its own: what other tests open and mount meanwhile does not count.
    let test = "sandbox::tests::limits::two_hundred_sandboxes";
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    let output = alone.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "counts what a process holds, for another test"]
fn two_hundred_sandboxes() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let private = rustix::mount::MountPropagationFlags::REC | rustix::mount::MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change("/", private).unwrap();
    let fixture = Fixture::new();
    run(fixture.spec(&["true"]));
    let counts = || {
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        (descriptors, mounts, children)
    };
    let before = counts();
    let groups = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for turn in 0..25 {
                    let mut spec = fixture.spec(if turn % 5 == 4 { &["nothing"] } else { &["true"] });
                    spec.init = turn % 3 == 0;
                    groups.lock().unwrap().push(spec.id.clone());
                    if let Ok(sandbox) = spawn(spec, Stdio::Pipes { stdin: false }) {
                        // Some are waited for, some dropped.
                        assert!(turn % 2 == 0 || sandbox.wait_blocking().unwrap().code() == 0);
                    }
                }
            });
        }
    });
    assert_eq!(counts(), before);
    for id in groups.into_inner().unwrap() {
        assert_eq!(Cgroup::open("", &id).unwrap_err().kind(), Kind::NotFound);
    }
    assert!(std::process::Command::new("true").status().is_ok(), "and no zombies hold this process back");
}

#[test]
fn privileged_groups_of_a_killed_process_are_removed_and_others_stay() {
    if !is_root() {
        return;
    }
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let gone = child.id();
    child.wait().unwrap();
    let prefix = format!("abandoned{}", std::process::id());
    let make = |id: &str| Cgroup::create(&CgroupSpec::default(), id).unwrap().0;
    let (abandoned, own) = (format!("{prefix}-{gone}-{:016x}", 1), temporary_id(&prefix, 2));
    make(&abandoned);
    let own_group = make(&own);
    remove_abandoned(&prefix);
    let there = |id: &str| Cgroup::open(DEFAULT_PARENT, id).is_ok();
    let seen = (there(&abandoned), there(&own));
    own_group.remove().unwrap();
    assert_eq!(seen, (false, true));
}
