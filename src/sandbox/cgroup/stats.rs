//! What a group uses and has used, read from the kernel's files of either version.

use std::time::Duration;

use super::{Cgroup, Controller, Group, Version};

/// A reading of a group's counters. What the host does not count is `None` or zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Memory in use, in bytes, with the page cache.
    pub memory_usage_bytes: u64,
    /// The most memory that ever was in use, in bytes. v2 counts it since Linux 5.19.
    pub memory_peak_bytes: Option<u64>,
    /// The limit of memory in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Memory that is no file's, in bytes.
    pub memory_anon_bytes: u64,
    /// Memory that is the page cache, in bytes.
    pub memory_file_bytes: u64,
    /// The part of the page cache that can be dropped first, in bytes; Docker does not count it as used.
    pub memory_inactive_file_bytes: u64,
    /// How many processes were killed because memory ran out.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids: u64,
    /// The most processes and threads that ever were. Counted since Linux 6.10.
    pub pids_peak: Option<u64>,
    /// The limit of processes and threads.
    pub pids_limit: Option<u64>,
    /// Processor time.
    pub cpu: Duration,
    /// Processor time in programs.
    pub cpu_user: Duration,
    /// Processor time in the kernel.
    pub cpu_system: Duration,
    /// How many periods had a processor quota.
    pub cpu_periods: u64,
    /// In how many of them the quota was used up.
    pub cpu_throttled_periods: u64,
    /// How long processes waited for the next period.
    pub cpu_throttled: Duration,
    /// Bytes read from block devices.
    pub io_read_bytes: u64,
    /// Bytes written to block devices.
    pub io_written_bytes: u64,
}

pub(super) fn read(cgroup: &Cgroup) -> Stats {
    let mut stats = Stats::default();
    for group in &cgroup.groups {
        match group.version {
            Version::V1 => read_v1(group, &mut stats),
            Version::V2 => read_v2(group, cgroup, &mut stats),
        }
    }
    stats
}

fn read_v1(group: &Group, stats: &mut Stats) {
    for controller in &group.controllers {
        match controller {
            Controller::Memory => read_memory_v1(group, stats),
            Controller::Pids => read_pids(group, stats),
            Controller::CpuAccount => {
                let [user, system] = group.values("cpuacct.stat", ["user", "system"]);
                stats.cpu = Duration::from_nanos(group.number("cpuacct.usage").unwrap_or(0));
                stats.cpu_user = from_ticks(user);
                stats.cpu_system = from_ticks(system);
            }
            Controller::Cpu => {
                let [periods, throttled, time] =
                    group.values("cpu.stat", ["nr_periods", "nr_throttled", "throttled_time"]);
                stats.cpu_periods = periods;
                stats.cpu_throttled_periods = throttled;
                stats.cpu_throttled = Duration::from_nanos(time);
            }
            Controller::Io => {
                let text = group.read("blkio.throttle.io_service_bytes_recursive").unwrap_or_default();
                (stats.io_read_bytes, stats.io_written_bytes) = (sum_v1(&text, "Read"), sum_v1(&text, "Write"));
            }
            Controller::CpuSet | Controller::Devices | Controller::Freezer => {}
        }
    }
}

fn read_memory_v1(group: &Group, stats: &mut Stats) {
    stats.memory_usage_bytes = group.number("memory.usage_in_bytes").unwrap_or(0);
    stats.memory_peak_bytes = group.number("memory.max_usage_in_bytes");
    // "No limit" is the largest multiple of the page size.
    stats.memory_limit_bytes = group.number("memory.limit_in_bytes").filter(|limit| *limit < i64::MAX as u64 & !0xffff);
    [stats.memory_anon_bytes, stats.memory_file_bytes, stats.memory_inactive_file_bytes] =
        group.values("memory.stat", ["total_rss", "total_cache", "total_inactive_file"]);
    [stats.oom_kills] = group.values("memory.oom_control", ["oom_kill"]);
}

/// A v2 tree beside v1 controllers has the files of none.
fn read_v2(group: &Group, cgroup: &Cgroup, stats: &mut Stats) {
    if cgroup.group(Controller::Memory).is_some_and(|memory| memory.version == Version::V2) {
        stats.memory_usage_bytes = group.number("memory.current").unwrap_or(0);
        stats.memory_peak_bytes = group.number("memory.peak");
        stats.memory_limit_bytes = group.number("memory.max");
        [stats.memory_anon_bytes, stats.memory_file_bytes, stats.memory_inactive_file_bytes] =
            group.values("memory.stat", ["anon", "file", "inactive_file"]);
        [stats.oom_kills] = group.values("memory.events", ["oom_kill"]);
    }
    if cgroup.group(Controller::Pids).is_some_and(|pids| pids.version == Version::V2) {
        read_pids(group, stats);
    }
    // Processor time is counted without a controller, but beside v1 it is counted there.
    if cgroup.group(Controller::CpuAccount).is_none() {
        let [usage, user, system, periods, throttled, time] = group.values(
            "cpu.stat",
            ["usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"],
        );
        stats.cpu = Duration::from_micros(usage);
        stats.cpu_user = Duration::from_micros(user);
        stats.cpu_system = Duration::from_micros(system);
        stats.cpu_periods = periods;
        stats.cpu_throttled_periods = throttled;
        stats.cpu_throttled = Duration::from_micros(time);
    }
    if cgroup.group(Controller::Io).is_some_and(|io| io.version == Version::V2) {
        let text = group.read("io.stat").unwrap_or_default();
        (stats.io_read_bytes, stats.io_written_bytes) = (sum_v2(&text, "rbytes="), sum_v2(&text, "wbytes="));
    }
}

fn read_pids(group: &Group, stats: &mut Stats) {
    stats.pids = group.number("pids.current").unwrap_or(0);
    stats.pids_peak = group.number("pids.peak");
    stats.pids_limit = group.number("pids.max");
}

impl Group {
    /// The number a file holds; `None` for `max`, and when there is no such file.
    fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    /// The numbers of a file with a name and a number on each line; 0 for names that are not there.
    fn values<const N: usize>(&self, file: &str, names: [&str; N]) -> [u64; N] {
        let text = self.read(file).unwrap_or_default();
        names.map(|name| value(&text, name))
    }
}

fn value(text: &str, name: &str) -> u64 {
    let of_line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(of_line).unwrap_or(0)
}

/// Lines such as `8:0 Read 4096`.
fn sum_v1(text: &str, operation: &str) -> u64 {
    let of_line = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        (fields.next()? == operation).then(|| fields.next()?.parse::<u64>().ok())?
    };
    text.lines().filter_map(of_line).sum()
}

/// Lines such as `8:0 rbytes=4096 wbytes=0 rios=1`.
fn sum_v2(text: &str, key: &str) -> u64 {
    text.split_whitespace().filter_map(|field| field.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

/// The kernel shows programs 100 ticks a second, whatever it counts itself.
fn from_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_both_versions_are_read() {
        assert_eq!(value("low 0\noom 3\noom_kill 2\n", "oom_kill"), 2);
        assert_eq!(value("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "oom_kill"), 1);
        assert_eq!(sum_v1("8:0 Read 10\n8:0 Write 5\n8:16 Read 1\nTotal 16\n", "Read"), 11);
        assert_eq!(sum_v2("8:0 rbytes=7 wbytes=1\n8:16 rbytes=3 wbytes=2\n", "wbytes="), 3);
    }
}
