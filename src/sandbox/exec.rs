//! A further process in a running sandbox, as `docker exec` and health checks need it.
//!
//! It joins the namespaces and the control group of the sandbox's first process, which may belong to another engine.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use super::Sandbox;
use super::cgroup::Cgroup;
use super::exit::{Child, Status};
use super::failure;
use super::prepare::{self, Common, ParentPart};
use super::spawner::Order;
use super::spec::{Process, Stdio};
use super::terminal::{self, Streams, Terminal};
use super::view;
use crate::error::{Error, Result, ResultExt as _};
use crate::sys::plan::{Call, Step};

/// A process that runs in a sandbox beside its first one. Dropping it kills that process (not its children).
#[derive(Debug)]
pub struct Execution {
    child: Child,
    terminal: Option<Terminal>,
    streams: Streams,
    ended: bool,
}

/// Runs a process in the sandbox whose first process is `pid`, and returns when it executes its command. `cgroup` is the
/// sandbox's (see [`Cgroup::open`]); without it the process stays in the group of this one. The process dies with this one.
/// Blocking for about a millisecond. Needs root.
///
/// # Errors
/// As [`super::spawn`]; `Conflict` when `pid` has ended.
pub fn exec(pid: Pid, cgroup: Option<&Cgroup>, process: &Process, stdio: Stdio) -> Result<Execution> {
    join(Target::open(pid)?, cgroup, process, stdio)
}

impl Sandbox {
    /// Runs another process in it, as [`exec`] does.
    ///
    /// # Errors
    /// As there: `Conflict` when its first process has ended.
    pub fn exec(&self, process: &Process, stdio: Stdio) -> Result<Execution> {
        let target = Target::open(self.pid())?;
        // Its number is its own until its end was collected; after that it may be anybody's.
        if self.is_collected() {
            return Err(gone(self.pid()));
        }
        join(target, self.cgroup(), process, stdio)
    }
}

fn gone(pid: Pid) -> Error {
    Error::conflict(format!("process {} of the container is not running", pid.as_raw_nonzero()))
}

fn join(target: Target, cgroup: Option<&Cgroup>, process: &Process, stdio: Stdio) -> Result<Execution> {
    let ids = process.user.resolve(target.root.as_fd())?;
    let has_terminal = matches!(stdio, Stdio::Terminal(_));
    let owner = target.host_uid(ids.uid)?;
    let null = Arc::new(view::open_null()?);
    let ends = terminal::open(stdio, &null, owner, || terminal::open_master_in(target.root.as_fd()))?;
    let common =
        Common { process, ids: &ids, stdio: ends.inner, terminal: has_terminal, init: false, die_with_parent: true };
    let (parent_part, wait) = ParentPart::new(process, None)?.unzip();
    let mut steps: Vec<Step> = wait.into_iter().collect();
    steps.extend(prepare::entry_steps(true, cgroup)?);
    let call = Call::JoinNamespaces(Arc::clone(&target.pidfd), target.shared);
    steps.push(Step { call, purpose: format!("join the namespaces of process {}", target.pid.as_raw_nonzero()) });
    if target.shared.contains(ThreadNameSpaceType::USER) {
        steps.push(Step { call: Call::BecomeRoot, purpose: "become root of the user namespace".to_owned() });
    }
    steps.extend(prepare::process_steps(&common)?);
    let plan = prepare::finish(&common, steps)?;
    drop(common);
    let join = target.pid_namespace.map(|fd| (fd, LinkNameSpaceType::ProcessID)).into_iter().collect();
    let cgroup = cgroup.map_or(Ok(None), Cgroup::clone_target)?;
    let child = super::launch(Order { namespaces: 0, join, cgroup, plan }, parent_part, None)?;
    Ok(Execution { child, terminal: ends.terminal, streams: ends.streams, ended: false })
}

/// The first process of a sandbox, and what is needed to join it.
pub(super) struct Target {
    pid: Pid,
    pub(super) pidfd: Arc<OwnedFd>,
    proc_dir: PathBuf,
    root: OwnedFd,
    /// The namespaces that differ from ours, without the one of processes.
    pub(super) shared: ThreadNameSpaceType,
    pub(super) pid_namespace: Option<OwnedFd>,
}

const NAMESPACES: [(&str, ThreadNameSpaceType); 6] = [
    ("user", ThreadNameSpaceType::USER),
    ("mnt", ThreadNameSpaceType::MOUNT),
    ("net", ThreadNameSpaceType::NETWORK),
    ("ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
    ("uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
    ("cgroup", ThreadNameSpaceType::CONTROL_GROUP),
];

impl Target {
    pub(super) fn open(pid: Pid) -> Result<Self> {
        let number = pid.as_raw_nonzero();
        let gone = || gone(pid);
        let pidfd = Arc::new(rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?);
        let proc_dir = PathBuf::from(format!("/proc/{number}"));
        let root =
            rustix::fs::open(proc_dir.join("root"), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let differs = |name: &str| {
            let ours = std::fs::read_link(format!("/proc/self/ns/{name}"));
            let theirs = std::fs::read_link(proc_dir.join("ns").join(name));
            matches!((ours, theirs), (Ok(ours), Ok(theirs)) if ours != theirs)
        };
        let shared = NAMESPACES
            .iter()
            .filter(|(name, _)| differs(name))
            .fold(ThreadNameSpaceType::empty(), |all, (_, kind)| all | *kind);
        let pid_namespace =
            if differs("pid") { File::open(proc_dir.join("ns/pid")).ok().map(OwnedFd::from) } else { None };
        let child = Child { pid, pidfd: pidfd.try_clone().context(|| "duplicate a descriptor")? };
        // The number meant this process all along if it still runs.
        if child.ends_within(Duration::ZERO) {
            return Err(gone());
        }
        let root = root.map_err(|errno| failure::step("open the root of the container", errno))?;
        Ok(Self { pid, pidfd, proc_dir, root, shared, pid_namespace })
    }

    /// The number a user of the sandbox has here.
    fn host_uid(&self, uid: u32) -> Result<u32> {
        let path = self.proc_dir.join("uid_map");
        let map = std::fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
        let of_line = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse::<u32>);
            let (inside, outside, length) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
            let offset = uid.checked_sub(inside)?;
            (offset < length).then(|| outside.checked_add(offset))?
        };
        map.lines()
            .find_map(of_line)
            .ok_or_else(|| Error::invalid(format!("user {uid} is not mapped in the container")))
    }
}

impl Execution {
    /// Returns its number, as this process's namespace counts.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Returns its descriptor.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// Returns its terminal, when it was started with one.
    #[must_use]
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    /// Takes this side of its pipes, when it was started with pipes.
    pub fn take_streams(&mut self) -> Streams {
        std::mem::take(&mut self.streams)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.child.signal(signal)
    }

    /// Waits until it has ended, without collecting its status: [`Self::wait`] comes after that. Needs a runtime with I/O.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub async fn ended(&self) -> Result<()> {
        self.child.ended().await
    }

    /// Waits until it has ended. Needs a runtime with I/O.
    ///
    /// # Errors
    /// When the status cannot be had.
    pub async fn wait(mut self) -> Result<Status> {
        self.child.ended().await?;
        let status = self.child.collect();
        self.ended = true;
        status
    }

    /// Waits until it has ended, blocking.
    ///
    /// # Errors
    /// When the status cannot be had.
    pub fn wait_blocking(mut self) -> Result<Status> {
        self.ended = true;
        self.child.collect()
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        if !self.ended && self.child.signal(Signal::KILL).is_ok() && self.child.ends_within(super::KILL_TIMEOUT) {
            // Only a zombie is lost when this fails.
            let _ = self.child.collect();
        }
    }
}
