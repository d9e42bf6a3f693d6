//! Measures how long a sandbox takes from `spawn` to the end of its command, with and without parts of it.
//!
//! `cargo bench --bench sandbox` as root; `/bin/busybox` must be static. Prints milliseconds.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use kiln::sandbox::{Network, Process, Sandbox, Seccomp, Spec, Stdio, spawn};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

const RUNS: usize = 200;

fn main() {
    // `cargo nextest` and `cargo bench` ask every target for its tests.
    if !rustix::process::geteuid().is_root() || std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let dir = std::env::temp_dir().join(format!("kiln-bench-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("bin")).expect("a temporary directory can be made");
    std::fs::copy("/bin/busybox", dir.join("bin/true")).expect("busybox-static is installed");
    println!("{:<44} {:>7} {:>7} {:>7} {:>7}", "milliseconds", "p50", "p95", "min", "started");
    measure("docker's defaults", &dir, |_| ());
    measure("host network", &dir, |spec| spec.namespaces.network = Network::Host);
    measure("no control group", &dir, |spec| spec.cgroup = None);
    measure("host network, no control group", &dir, |spec| {
        spec.namespaces.network = Network::Host;
        spec.cgroup = None;
    });
    measure("host network, no control group, no filter", &dir, |spec| {
        spec.namespaces.network = Network::Host;
        spec.cgroup = None;
        spec.process.seccomp = Seccomp::Unconfined;
    });
    measure("with an init", &dir, |spec| spec.init = true);
    // The child begins as a copy of this process.
    let resident = vec![1_u8; 256 << 20];
    measure("256 MiB resident in the engine", &dir, |_| ());
    drop(resident);
    std::fs::remove_dir_all(&dir).expect("the temporary directory can be removed");
}

fn measure(name: &str, root: &Path, change: impl Fn(&mut Spec)) {
    let (mut starts, mut totals) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let mut spec = Spec::docker(format!("bench-{}-{run}", std::process::id()), detached(root), process());
        change(&mut spec);
        let begin = Instant::now();
        let sandbox = spawn(spec, Stdio::Null).expect("the sandbox starts");
        starts.push(begin.elapsed());
        finish(&sandbox);
        totals.push(begin.elapsed());
    }
    starts.sort();
    totals.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let quantile = |part: usize| ms(totals[totals.len() * part / 100]);
    println!(
        "{name:<44} {:>7.2} {:>7.2} {:>7.2} {:>7.2}",
        quantile(50),
        quantile(95),
        ms(totals[0]),
        ms(starts[starts.len() / 2])
    );
}

fn finish(sandbox: &Sandbox) {
    let exit = sandbox.wait_blocking().expect("the sandbox can be waited for");
    assert_eq!(exit.code(), 0, "the command succeeds");
}

fn process() -> Process {
    Process::docker(vec!["/bin/true".to_owned()])
}

fn detached(path: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).expect("the directory can be mounted")
}
