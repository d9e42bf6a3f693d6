//! Removing what a test left behind: processes, the network, mounts, then the files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln::network::{Config, Naming, Network, SCHEMA};
use kiln::state::Root;
use kiln::task::Clock;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use super::eventually;

/// Ends every process that belongs to a directory, unmounts what is mounted below it and removes it.
///
/// A process belongs to it when its command line names it (engines, shims), or when its root directory is below it
/// (containers).
pub(super) fn remove(dir: &Path) {
    eventually("the end of the test's processes", Duration::from_secs(20), || {
        let left = processes_of(dir);
        for pid in &left {
            let _ = rustix::process::kill_process(*pid, Signal::KILL);
        }
        left.is_empty().then_some(())
    });
    remove_network(&dir.join("root"));
    // The last mounted first.
    for mount in mounts_below(dir).iter().rev() {
        let _ = rustix::mount::unmount(mount, UnmountFlags::DETACH);
    }
    // What is left goes with the temporary directory; a failure there is not the test's.
    let _ = std::fs::remove_dir_all(dir);
}

/// Removes the root's bridge and its firewall table, which would keep a subnet from others.
fn remove_network(root: &Path) {
    if !root.join("kiln.db").exists() || !rustix::process::geteuid().is_root() {
        return;
    }
    let config = Config { naming: Naming::ByPath, ..Config::default() };
    let destroyed = Root::open(root, &[SCHEMA])
        .and_then(|root| Network::open(root, Clock::system(), config))
        .and_then(|network| network.destroy());
    if let Err(error) = destroyed {
        eprintln!("the test's network stays: {error}");
    }
}

fn processes_of(dir: &Path) -> Vec<Pid> {
    let own = std::process::id();
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| *id != own && belongs(*id, dir)).filter_map(|id| Pid::from_raw(id.try_into().ok()?)).collect()
}

fn belongs(id: u32, dir: &Path) -> bool {
    let proc = PathBuf::from(format!("/proc/{id}"));
    let rooted = std::fs::read_link(proc.join("root")).is_ok_and(|root| root.starts_with(dir));
    let name = dir.as_os_str().as_encoded_bytes();
    let named = || std::fs::read(proc.join("cmdline")).is_ok_and(|line| line.windows(name.len()).any(|at| at == name));
    rooted || named()
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(dir)).collect()
}
