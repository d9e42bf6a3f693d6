//! Docker's defaults for a container, as data: what is hidden, read-only, and mounted, and what `--privileged` changes.
//!
//! Facts from moby's `oci` package. Nothing here touches the system but the list of processors.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use super::capability::Capabilities;
use super::cgroup::CgroupSpec;
use super::seccomp::Profile;
use super::spec::{CgroupView, Devices, MissingDir, Namespace, Namespaces, Network, Process, Seccomp, Spec};
use super::user::User;

/// Where commands are searched when the environment does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The size of `/dev/shm` in bytes unless it is given.
pub const DEFAULT_SHM_SIZE_BYTES: u64 = 64 << 20;

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Returns the paths that are hidden: those that tell about the host, or let processors be watched.
#[must_use]
pub fn masked_paths() -> Vec<String> {
    static THERMAL: OnceLock<Vec<String>> = OnceLock::new();
    let thermal = THERMAL.get_or_init(thermal_throttle_paths);
    MASKED.iter().map(ToString::to_string).chain(thermal.iter().cloned()).collect()
}

/// Returns the paths that are read-only.
#[must_use]
pub fn readonly_paths() -> Vec<String> {
    READ_ONLY.iter().map(ToString::to_string).collect()
}

fn thermal_throttle_paths() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/devices/system/cpu") else { return Vec::new() };
    let paths = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let is_cpu = name.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok());
        (is_cpu && entry.path().join("thermal_throttle").exists())
            .then(|| format!("/sys/devices/system/cpu/{name}/thermal_throttle"))
    });
    let mut paths: Vec<String> = paths.collect();
    paths.sort();
    paths
}

impl Spec {
    /// Returns what `docker run` gives a container that asks for nothing: all namespaces of its own but the users', no network,
    /// the default capabilities and seccomp profile, a control group without limits.
    #[must_use]
    pub fn docker(id: impl Into<String>, rootfs: OwnedFd, process: Process) -> Self {
        Self {
            id: id.into(),
            rootfs,
            readonly_rootfs: false,
            process,
            namespaces: Namespaces::default(),
            hostname: String::new(),
            domainname: String::new(),
            mounts: Vec::new(),
            shm_size_bytes: DEFAULT_SHM_SIZE_BYTES,
            masked_paths: masked_paths(),
            readonly_paths: readonly_paths(),
            writable_sys: false,
            devices: Devices::Listed { nodes: Vec::new(), rules: Vec::new() },
            sysctls: Vec::new(),
            hooks: None,
            cgroup: Some(CgroupSpec::default()),
            init: false,
            die_with_parent: true,
        }
    }

    /// Takes the restrictions away that `--privileged` takes away: all capabilities and devices, no seccomp profile, nothing
    /// hidden or read-only. Namespaces and limits stay.
    pub fn make_privileged(&mut self) {
        self.process.make_privileged();
        self.masked_paths.clear();
        self.readonly_paths.clear();
        self.writable_sys = true;
        self.devices = Devices::All;
    }

    /// Adds the kernel parameters that Docker sets in a private network namespace: every group may ping, and every port may be
    /// bound without privileges. Ranges of groups cannot be set from a user namespace.
    pub fn add_network_sysctls(&mut self) {
        if matches!(self.namespaces.network, Network::Host) {
            return;
        }
        if self.namespaces.user.is_none() {
            self.sysctls.push(("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned()));
        }
        self.sysctls.push(("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()));
    }

    pub(super) fn is_cgroup_view_private(&self) -> bool {
        self.namespaces.cgroup == CgroupView::Private
    }

    pub(super) fn shares_ipc(&self) -> bool {
        !matches!(self.namespaces.ipc, Namespace::Private)
    }
}

impl Process {
    /// Returns a process of root with Docker's default restrictions, in `/`, with [`DEFAULT_PATH`].
    #[must_use]
    pub fn docker(args: Vec<String>) -> Self {
        Self {
            args,
            env: vec![format!("PATH={DEFAULT_PATH}")],
            cwd: String::new(),
            missing_cwd: MissingDir::OfRoot,
            user: User::default(),
            capabilities: Capabilities::docker_default(),
            no_new_privileges: false,
            seccomp: Seccomp::Profile(Profile::builtin()),
            apparmor: None,
            rlimits: Vec::new(),
            oom_score_adj: None,
        }
    }

    /// Takes the restrictions of the process itself away: see [`Spec::make_privileged`].
    pub fn make_privileged(&mut self) {
        self.capabilities = Capabilities::all();
        self.seccomp = Seccomp::Unconfined;
        self.apparmor = None;
    }
}
