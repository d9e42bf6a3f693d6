//! What a sandbox is made of: the value that the engine and the shim fill in.
//!
//! Plain data without behaviour; Docker's defaults are in [`super::defaults`], what becomes of it in `super::prepare`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit};

use super::capability::Capabilities;
use super::cgroup::CgroupSpec;
use super::device::Device;
use super::hooks::Hooks;
use super::seccomp::Profile;
use super::user::User;

pub use crate::sys::mount::Propagation;

/// Everything about an isolated process.
#[derive(Debug)]
pub struct Spec {
    /// Names the control group. Unique among what runs under the same cgroup parent; no `/`.
    pub id: String,
    /// The root file system: a detached mount (`fsmount(2)`, or `open_tree(2)` with a clone). It is used up.
    pub rootfs: OwnedFd,
    /// Whether the root file system is mounted read-only.
    pub readonly_rootfs: bool,
    /// The process.
    pub process: Process,
    /// The namespaces.
    pub namespaces: Namespaces,
    /// The host name; empty leaves the one of the UTS namespace.
    pub hostname: String,
    /// The NIS domain name; empty leaves it.
    pub domainname: String,
    /// Mounts besides Docker's usual ones. One with the target of a usual one replaces that; one on `/dev` replaces all of
    /// `/dev`. Mounted in the order of their depth, equals in the order given.
    pub mounts: Vec<Mount>,
    /// The size of `/dev/shm` in bytes.
    pub shm_size_bytes: u64,
    /// Paths that are hidden. Those that do not exist are passed over.
    pub masked_paths: Vec<String>,
    /// Paths that are read-only. Those that do not exist are passed over.
    pub readonly_paths: Vec<String>,
    /// Whether `/sys` and `/sys/fs/cgroup` may be written to.
    pub writable_sys: bool,
    /// The devices.
    pub devices: Devices,
    /// Kernel parameters, as name and value. Only those that belong to a private namespace are accepted.
    pub sysctls: Vec<(String, String)>,
    /// Programs of the host that run beside it.
    pub hooks: Option<Hooks>,
    /// The control group; `None` runs in the one of this process, without limits and without an account.
    pub cgroup: Option<CgroupSpec>,
    /// Whether a small init reaps processes and forwards signals; the command is its child.
    pub init: bool,
    /// Whether the sandbox is killed when this process ends.
    pub die_with_parent: bool,
}

/// A process within a sandbox.
#[derive(Clone, Debug)]
pub struct Process {
    /// The command and its arguments. The command is searched in `PATH` (of `env`, else Docker's default) unless it has a `/`.
    pub args: Vec<String>,
    /// The environment, as `NAME=value`. `HOME` is added from the user's entry when it is missing.
    pub env: Vec<String>,
    /// The working directory; empty means `/`.
    pub cwd: String,
    /// What is done about a working directory that is missing.
    pub missing_cwd: MissingDir,
    /// Who runs it.
    pub user: User,
    /// What it may do. A user other than root gets these as the bound of what set-uid programs can give.
    pub capabilities: Capabilities,
    /// Whether executing a file can never give privileges.
    pub no_new_privileges: bool,
    /// Which system calls it may make.
    pub seccomp: Seccomp,
    /// The `AppArmor` profile, which must be loaded. Ignored on a host without `AppArmor`, as Docker does.
    pub apparmor: Option<String>,
    /// Limits of resources (see `super::rlimit`); others are inherited.
    pub rlimits: Vec<(Resource, Rlimit)>,
    /// How eagerly the kernel kills it when memory runs out, -1000 to 1000; `None` inherits.
    pub oom_score_adj: Option<i32>,
}

/// What is done about a directory that is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissingDir {
    /// The process is not started.
    Refused,
    /// It is made with all above it, and is root's, as `docker run` does it.
    #[default]
    OfRoot,
    /// It is made with all above it, and what is made is the user's who runs the process, as BuildKit does it.
    OfUser,
}

/// Which system calls a process may make.
#[derive(Clone, Debug)]
pub enum Seccomp {
    /// All of them.
    Unconfined,
    /// Those of a profile.
    Profile(Arc<Profile>),
}

/// Which namespaces a sandbox has of its own. The mount namespace always is.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// The network.
    pub network: Network,
    /// Message queues, semaphores and shared memory. `/dev/shm` is the host's with `Host`; with `Join` the caller mounts the
    /// other sandbox's.
    pub ipc: Namespace,
    /// Processes.
    pub pid: Namespace,
    /// Host and domain name.
    pub uts: Namespace,
    /// The view of control groups.
    pub cgroup: CgroupView,
    /// Users; `None` shares the host's.
    pub user: Option<IdMap>,
}

/// The network namespace.
#[derive(Debug, Default)]
pub enum Network {
    /// Loopback only, in a new namespace.
    #[default]
    None,
    /// The host's.
    Host,
    /// An existing one, made by the caller.
    Join(OwnedFd),
}

/// A namespace that can be shared.
#[derive(Debug, Default)]
pub enum Namespace {
    /// A new one.
    #[default]
    Private,
    /// The host's.
    Host,
    /// An existing one.
    Join(OwnedFd),
}

/// What a sandbox sees of control groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupView {
    /// Its own group as the root.
    #[default]
    Private,
    /// The host's hierarchy.
    Host,
}

/// How ids of a sandbox relate to those of the host. The id 0 must be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

/// Consecutive ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first id within the sandbox.
    pub inside: u32,
    /// The first id on the host.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

impl IdMap {
    /// Maps ids from 0 on to `length` ids of the host from `base` on.
    #[must_use]
    pub fn shifted(base: u32, length: u32) -> Self {
        let range = vec![IdRange { inside: 0, outside: base, length }];
        Self { uids: range.clone(), gids: range }
    }
}

/// Returns an id on the host, or `None` when it is not mapped.
pub(super) fn outside(ranges: &[IdRange], id: u32) -> Option<u32> {
    let range = ranges.iter().find(|range| id >= range.inside && id - range.inside < range.length)?;
    range.outside.checked_add(id - range.inside)
}

/// Something that is mounted.
#[derive(Debug)]
pub struct Mount {
    /// The absolute mount point; made when it is missing.
    pub target: String,
    /// What is mounted.
    pub source: Source,
    /// Whether it can be written to.
    pub access: Access,
}

/// Whether a mount can be written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// It can.
    #[default]
    ReadWrite,
    /// Neither it nor anything mounted below it can.
    ReadOnly,
    /// It cannot; mounts below it keep their flags.
    ReadOnlyTop,
}

/// What is mounted.
#[derive(Debug)]
pub enum Source {
    /// A file or directory of the host.
    Bind {
        /// The file or directory, opened (`O_PATH` suffices) in this process's mount namespace.
        source: OwnedFd,
        /// Whether mounts below it come too.
        recursive: bool,
        /// What happens to mounts that appear later.
        propagation: Propagation,
    },
    /// A detached mount, or a path within it.
    Detached {
        /// The mount. It is used up.
        mount: OwnedFd,
        /// The path within it; empty means all of it. Symbolic links stay within.
        subpath: String,
    },
    /// Memory.
    Tmpfs(Tmpfs),
    /// A file with this content, which never reaches a disk. It cannot be executed unless its permissions say so.
    File {
        /// The content.
        content: Vec<u8>,
        /// The permission bits.
        mode: u32,
        /// The owner, within the sandbox.
        uid: u32,
        /// The group, within the sandbox.
        gid: u32,
    },
}

/// A file system in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// The largest size in bytes; `None` is the kernel's default, half of the memory.
    pub size_bytes: Option<u64>,
    /// The permission bits of its root.
    pub mode: u32,
    /// Whether programs on it cannot be executed.
    pub noexec: bool,
    /// Whether set-uid bits on it have no effect.
    pub nosuid: bool,
    /// Whether device nodes on it have no effect.
    pub nodev: bool,
}

impl Default for Tmpfs {
    /// What `--tmpfs` gives: as large as the kernel lets it be, for everybody, without programs and devices.
    fn default() -> Self {
        Self { size_bytes: None, mode: 0o1777, noexec: true, nosuid: true, nodev: true }
    }
}

/// The devices of a sandbox, besides null, zero, full, random, urandom, tty and the terminals.
#[derive(Clone, Debug)]
pub enum Devices {
    /// All of the host's, without restriction.
    All,
    /// Those listed.
    Listed {
        /// Devices that get a node.
        nodes: Vec<Device>,
        /// Further rules of the device cgroup, as `--device-cgroup-rule` gives them.
        rules: Vec<super::device::Rule>,
    },
}

/// Where a process's input comes from and its output goes.
#[derive(Debug)]
pub enum Stdio {
    /// Nowhere.
    Null,
    /// Through pipes, whose other ends [`super::Sandbox::take_streams`] gives.
    Pipes {
        /// Whether there is a pipe for input; else it is empty.
        stdin: bool,
    },
    /// Output and errors through one pipe, in the order in which they are written; input is empty.
    OnePipe,
    /// Descriptors of the caller; `None` is `/dev/null`.
    Descriptors {
        /// Input.
        stdin: Option<OwnedFd>,
        /// Output.
        stdout: Option<OwnedFd>,
        /// Errors.
        stderr: Option<OwnedFd>,
    },
    /// A terminal of the sandbox's own.
    Terminal(WindowSize),
}

/// The size of a terminal in characters; 0 is "not known".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}
