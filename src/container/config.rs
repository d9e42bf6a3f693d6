//! What a container is made of: the settings it was created with, after the image's defaults were merged in.
//!
//! This is also the form in which records are stored. The Engine API's `Config` and `HostConfig` are converted in `api`; what
//! Kiln cannot do is refused there, so everything here has an effect.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_graph::Digest;
use kiln_graph::oci::ImageConfig;
use serde::{Deserialize, Serialize};

use super::log::Bounds;

/// A container's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The image as it was named.
    pub image: String,
    /// The image's id.
    pub image_id: Digest,
    /// The host name; empty means the first 12 digits of the container's id.
    pub hostname: String,
    /// The NIS domain name.
    pub domainname: String,
    /// `user[:group]`; empty is root.
    pub user: String,
    /// Environment as `KEY=value`, complete but for what every container gets.
    pub env: Vec<String>,
    /// The fixed first words of the command line.
    pub entrypoint: Vec<String>,
    /// The rest of the command line.
    pub cmd: Vec<String>,
    /// The working directory; empty is `/`.
    pub working_dir: String,
    /// Labels, the image's included.
    pub labels: BTreeMap<String, String>,
    /// Ports the image announces.
    pub exposed_ports: Vec<String>,
    /// How the container's input and output are connected.
    pub io: Io,
    /// What stopping means.
    pub stop: Stop,
    /// Where and how it runs.
    pub host: Host,
    /// The `HostConfig` it was created with, as JSON: what it was asked for is shown in the words it was asked in.
    pub shown_host: String,
}

/// Input and output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Whether there is a terminal.
    pub tty: bool,
    /// Whether there is an input at all.
    pub open_stdin: bool,
    /// Whether the input ends when the first attached client's does.
    pub stdin_once: bool,
    /// Which streams the creating client said it would attach to (input, output, errors); only shown.
    pub attach: [bool; 3],
    /// The terminal's first size: rows and columns, 0 when not known.
    pub console_size: [u16; 2],
    /// How much log is kept; `None` keeps none.
    pub log: Option<Bounds>,
}

/// What stopping means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The signal that asks the container to stop; empty is `SIGTERM`.
    pub signal: String,
    /// Seconds until it is killed; `None` is 10, negative never.
    pub timeout_s: Option<i64>,
}

/// Where and how a container runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Whether it is removed when it exits.
    pub auto_remove: bool,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// Whether the root file system is read-only.
    pub readonly_rootfs: bool,
    /// Mounts, in the order given.
    pub mounts: Vec<Mount>,
    /// The network.
    pub network: Network,
    /// Lines for `/etc/hosts`, as `name:address` or `name:host-gateway`.
    pub extra_hosts: Vec<String>,
    /// What replaces the host's resolver settings.
    pub dns: Dns,
    /// Privileges.
    pub security: Security,
    /// Limits.
    pub resources: Resources,
    /// Limits of processes: name, soft, hard; -1 is unlimited.
    pub ulimits: Vec<(String, i64, i64)>,
    /// Kernel parameters.
    pub sysctls: BTreeMap<String, String>,
    /// Whether a small init is process 1.
    pub init: bool,
    /// The size of `/dev/shm` in bytes; `None` is 64 MiB.
    pub shm_size_bytes: Option<u64>,
    /// The parent of the control group; empty is the default.
    pub cgroup_parent: String,
    /// How eagerly the kernel kills it when memory runs out.
    pub oom_score_adj: i32,
    /// Which namespaces are the host's.
    pub host_namespaces: HostNamespaces,
    /// Devices: path on the host, path inside, permissions out of `rwm`.
    pub devices: Vec<(String, String, String)>,
    /// Supplementary groups, names or numbers.
    pub groups: Vec<String>,
}

/// When a container that has ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Unless a user stops it.
    Always,
    /// The same; without a daemon there is nothing that would tell the two apart.
    UnlessStopped,
    /// When its exit code is not 0, so often in a row; 0 is without end.
    OnFailure(u32),
}

/// Namespaces shared with the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNamespaces {
    /// Processes.
    pub pid: bool,
    /// Interprocess communication.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
    /// Control groups.
    pub cgroup: bool,
}

/// The network a container is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// The default bridge.
    #[default]
    Bridge,
    /// The host's.
    Host,
    /// Loopback only.
    None,
}

/// Resolver settings; empty lists take the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl Dns {
    /// Fills lists that are empty.
    pub fn add_defaults(&mut self, servers: Vec<String>, search: Vec<String>, options: Vec<String>) {
        for (list, default) in [(&mut self.servers, servers), (&mut self.search, search), (&mut self.options, options)]
        {
            if list.is_empty() {
                *list = default;
            }
        }
    }
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The absolute path inside.
    pub target: String,
    /// Whether it is read-only.
    pub readonly: bool,
    /// What is mounted.
    pub source: MountSource,
}

impl Mount {
    /// Makes an anonymous volume.
    #[must_use]
    pub fn volume(target: &str) -> Self {
        Self { target: target.to_owned(), readonly: false, source: MountSource::Volume }
    }
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or directory of the host.
    Bind {
        /// Its absolute path.
        path: PathBuf,
        /// Whether a missing directory is made, as `-v` does and `--mount` does not.
        create: bool,
        /// What happens to later mounts: `rprivate`, `private`, `rshared`, `shared`, `rslave`, `slave`; empty is `rprivate`.
        propagation: String,
    },
    /// Memory.
    Tmpfs {
        /// The largest size in bytes.
        size_bytes: Option<u64>,
        /// The permission bits.
        mode: Option<u32>,
        /// Further options of `--tmpfs`, such as `exec`.
        options: Vec<String>,
    },
    /// A directory of the container's own beside its writable layer, which goes with the container. What the image has at
    /// that path is copied into it first.
    Volume,
}

/// Privileges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Whether the container may do everything.
    pub privileged: bool,
    /// Capabilities added to the default, without `CAP_`; `ALL` is all.
    pub cap_add: Vec<String>,
    /// Capabilities taken away.
    pub cap_drop: Vec<String>,
    /// Whether executing a file can never give privileges.
    pub no_new_privileges: bool,
    /// The seccomp profile as JSON; `None` is the default, `unconfined` none.
    pub seccomp: Option<String>,
    /// The `AppArmor` profile; `None` is the default where the host has it.
    pub apparmor: Option<String>,
    /// Whether kernel interfaces in `/proc` and `/sys` are neither hidden nor read-only.
    pub unconfined_paths: bool,
}

/// Limits of a container; 0 and empty are unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Memory and swap together in bytes; -1 is unlimited swap, 0 is twice the memory.
    pub memory_swap_bytes: i64,
    /// Memory that is left when memory runs short, in bytes.
    pub memory_reservation_bytes: u64,
    /// Processor time in units of 10⁻⁹ processors.
    pub nano_cpus: u64,
    /// Processor time relative to other containers; the default is 1024.
    pub cpu_shares: u64,
    /// Processor time within a period, in microseconds.
    pub cpu_quota_us: i64,
    /// The length of a period in microseconds.
    pub cpu_period_us: u64,
    /// Processors it may use, as `0-2,4`.
    pub cpuset_cpus: String,
    /// Memory nodes it may use.
    pub cpuset_mems: String,
    /// Processes and threads.
    pub pids: i64,
}

impl Config {
    /// Returns the command line.
    #[must_use]
    pub fn args(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }

    /// Fills in what the image prescribes and the caller did not.
    ///
    /// An entrypoint of the caller's discards the image's command; variables and labels are merged by name, the caller's
    /// winning (moby, `daemon/config/runconfig`). A variable without `=` removes the image's.
    pub fn merge_image(&mut self, image: &ImageConfig) {
        let defaults = &image.config;
        if self.entrypoint.is_empty() {
            if self.cmd.is_empty() {
                self.cmd.clone_from(&defaults.cmd);
            }
            self.entrypoint.clone_from(&defaults.entrypoint);
        }
        // `--entrypoint ""` arrives as one empty word: no entrypoint, and the image's is not taken either.
        self.entrypoint.retain(|word| !word.is_empty());
        self.env = merge_env(&defaults.env, &self.env);
        for (text, default) in [(&mut self.user, &defaults.user), (&mut self.working_dir, &defaults.working_dir)] {
            if text.is_empty() {
                text.clone_from(default);
            }
        }
        if self.stop.signal.is_empty() {
            self.stop.signal.clone_from(&defaults.stop_signal);
        }
        self.stop.timeout_s = self.stop.timeout_s.or(defaults.stop_timeout);
        for (key, value) in &defaults.labels {
            self.labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        for port in defaults.exposed_ports.keys() {
            if !self.exposed_ports.contains(port) {
                self.exposed_ports.push(port.clone());
            }
        }
        for path in defaults.volumes.keys() {
            let path = path.trim_end_matches('/');
            let covered = self.host.mounts.iter().any(|mount| mount.target.trim_end_matches('/') == path);
            if path.starts_with('/') && !covered {
                self.host.mounts.push(Mount::volume(path));
            }
        }
    }
}

/// Merges `KEY=value` lists: `over` replaces by name, keeps the place of what it replaces, and removes with a bare name.
#[must_use]
pub fn merge_env(base: &[String], over: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split_once('=').map_or_else(|| entry.to_owned(), |(name, _)| name.to_owned());
    let mut merged: Vec<String> = base.to_vec();
    for entry in over {
        let place = merged.iter().position(|known| name(known) == name(entry));
        match (place, entry.contains('=')) {
            (Some(at), true) => merged[at].clone_from(entry),
            (Some(at), false) => drop(merged.remove(at)),
            (None, true) => merged.push(entry.clone()),
            (None, false) => {}
        }
    }
    merged
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Settings with defaults everywhere.
    pub(crate) fn config() -> Config {
        Config {
            image: "busybox".to_owned(),
            image_id: Digest::of(b""),
            hostname: String::new(),
            domainname: String::new(),
            user: String::new(),
            env: Vec::new(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            working_dir: String::new(),
            labels: BTreeMap::new(),
            exposed_ports: Vec::new(),
            io: Io::default(),
            stop: Stop::default(),
            host: Host::default(),
            shown_host: "{}".to_owned(),
        }
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_command_line_follows_dockers_rules() {
        let mut image = ImageConfig::default();
        image.config.entrypoint = words("/entry");
        image.config.cmd = words("default");
        for (entrypoint, cmd, args) in
            [("", "", "/entry default"), ("", "x y", "/entry x y"), ("/mine", "", "/mine"), ("/mine", "x", "/mine x")]
        {
            let mut config = Config { entrypoint: words(entrypoint), cmd: words(cmd), ..config() };
            config.merge_image(&image);
            assert_eq!(config.args(), words(args));
        }
        let mut config = Config { entrypoint: vec![String::new()], cmd: words("sh"), ..config() };
        config.merge_image(&image);
        assert_eq!(config.args(), words("sh"));
    }

    #[test]
    fn variables_are_replaced_in_place_and_removed_by_a_bare_name() {
        let merged = merge_env(&words("A=1 B=2 C=3"), &words("B=x C D=4 E"));
        assert_eq!(merged, words("A=1 B=x D=4"));
    }
}
