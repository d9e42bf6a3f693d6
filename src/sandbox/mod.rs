//! Sandboxes: a [`Spec`] in, an isolated process out.
//!
//! [`spawn`] prepares everything (mounts, descriptors, filters, strings) in this process, clones one process into its
//! namespaces, and lets it carry out an ordered list of kernel steps up to executing the command: no helper process, no second
//! executable. [`exec()`] runs a further process in a sandbox. Build steps and containers use the same two functions.
//!
//! It makes neither root file systems nor networks, keeps no records, copies no output, and sets nothing up on the host
//! besides control groups and, for hooks, a small directory. Linux 5.12 is needed (`mount_setattr`); cgroup v1, hybrid and v2 all work.
//!
//! **What a container may learn of Kiln itself.** The process is not dumpable until it executes, all descriptors but three
//! close then, and its command cannot be `/proc/self/exe`, so that the program file of the engine is not handed in
//! (CVE-2019-5736). An interpreter line can still name it; the file cannot be written to as long as an engine runs it, and
//! never when that engine was executed through [`own_program`].

mod capability;
mod cgroup;
mod defaults;
mod device;
mod emulation;
mod exec;
mod exit;
mod failure;
mod hooks;
mod prepare;
mod rlimit;
mod seccomp;
mod security;
pub mod signal;
mod spawner;
mod spec;
mod sysctl;
mod target;
mod terminal;
mod user;
mod view;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use self::exit::Child;
use self::hooks::{Attendant, Bundle};
use self::prepare::{Common, ParentPart};
use self::spawner::Order;
use self::user::Ids;
use self::view::Joining;
use crate::error::{Error, Result, ResultExt as _};
use crate::sys::process::Started;
use crate::task;

pub use crate::sys::process::limit_file_size;
pub use capability::Capabilities;
pub use cgroup::{
    Cgroup, CgroupSpec, DEFAULT_PARENT, Limits, Stats, Swap, cgroup_version, remove_abandoned, temporary_id,
};
pub use defaults::{DEFAULT_PATH, DEFAULT_SHM_SIZE_BYTES, masked_paths, readonly_paths};
pub use device::{Device, DeviceAccess, Kind as DeviceKind, Rule as DeviceRule};
pub use emulation::{obstacle, platforms};
pub use exec::{Execution, exec};
pub use exit::{Exit, Status};
pub use failure::{NotStarted, exit_code};
pub use hooks::{Hook, HookPoint, Hooks, remove_abandoned_bundles};
pub use rlimit::rlimit;
pub use seccomp::Profile;
pub use security::SecurityOptions;
pub use spec::{
    Access, CgroupView, Devices, IdMap, IdRange, MissingDir, Mount, Namespace, Namespaces, Network, Process,
    Propagation, Seccomp, Source, Spec, Stdio, Tmpfs, WindowSize,
};
pub use target::Stubs;
pub use terminal::{Streams, Terminal, TerminalStream};
pub use user::{Ids as UserIds, NamedOwner, User, owner_by_names};

/// How long a dropped sandbox is waited for after it was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A running sandbox. Dropping it kills everything in it, waits for that, and removes its control group.
#[derive(Debug)]
pub struct Sandbox {
    child: Child,
    cgroup: Option<Cgroup>,
    bundle: Option<Arc<Bundle>>,
    terminal: Option<Terminal>,
    streams: Streams,
    stubs: Stubs,
    warnings: Vec<String>,
    exit: Arc<Mutex<Option<Exit>>>,
}

/// Starts a sandbox, and returns when it executes its command. Blocking for one to three milliseconds: call on the blocking
/// pool. Needs root (all capabilities in the user namespace of this process). From the first start on this process is not
/// dumpable: only root can look into its memory. Hooks take their own time.
///
/// # Errors
/// With [`exit_code`] 127 when the command, its interpreter or something it needs does not exist, 126 when it may not be
/// executed, 125 otherwise; the text keeps Docker's phrases. `InvalidArgument` for contradictory input, `Unsupported` for what
/// this kernel cannot do, `Exhausted` at limits of the host. A hook that fails is named with what it printed. Nothing is left behind but mount points made in the root file
/// system.
pub fn spawn(mut spec: Spec, stdio: Stdio) -> Result<Sandbox> {
    check_names(&spec)?;
    let ids = spec.process.user.resolve(spec.rootfs.as_fd())?;
    let mut warnings = limit_to_own_capabilities(&mut spec)?;
    let cgroup = match &spec.cgroup {
        Some(wanted) => {
            let (cgroup, more) = Cgroup::create(wanted, &spec.id)?;
            warnings.extend(more);
            Some(cgroup)
        }
        None => None,
    };
    let remove = |error: Error| error.and_cleanup(cgroup.as_ref().map_or(Ok(()), Cgroup::remove));
    let bundle = Bundle::make(&mut spec, &ids).map_err(remove)?.map(Arc::new);
    let begun = restrict_devices(&mut spec, cgroup.as_ref())
        .and_then(|warning| {
            warnings.extend(warning);
            start(spec, stdio, &ids, cgroup.as_ref(), bundle.as_deref())
        })
        .map_err(remove)
        .map_err(|error| match &bundle {
            Some(bundle) => bundle.ended().into_iter().fold(error, |error, more| error.and_cleanup(Err(more))),
            None => error,
        })?;
    let Begun { child, terminal, streams, stubs } = begun;
    let sandbox = Sandbox { child, cgroup, bundle, terminal, streams, stubs, warnings, exit: Arc::default() };
    if let Some(bundle) = &sandbox.bundle {
        bundle.started(sandbox.pid())?;
    }
    Ok(sandbox)
}

/// A process that executes its command, and this side of it.
struct Begun {
    child: Child,
    terminal: Option<Terminal>,
    streams: Streams,
    stubs: Stubs,
}

/// Names of a namespace that is not the sandbox's own are not changed.
fn check_names(spec: &Spec) -> Result<()> {
    let has_names = !spec.hostname.is_empty() || !spec.domainname.is_empty();
    if has_names && !matches!(spec.namespaces.uts, Namespace::Private) {
        return Err(Error::invalid("a host or domain name needs a UTS namespace of the container's own"));
    }
    Ok(())
}

/// Only what this process may do itself can be passed on.
fn limit_to_own_capabilities(spec: &mut Spec) -> Result<Vec<String>> {
    if spec.namespaces.user.is_some() {
        return Ok(Vec::new());
    }
    let held = rustix::thread::capabilities(None).context(|| "read the capabilities of this process")?.permitted;
    let wanted = spec.process.capabilities;
    let missing = wanted.without(Capabilities::from_bits(held.bits()));
    if missing == Capabilities::NONE {
        return Ok(Vec::new());
    }
    spec.process.capabilities = wanted.without(missing);
    Ok(vec![format!("Kiln itself runs without {missing}; the container does, too")])
}

/// Where the host cannot restrict devices, the container can make none, and those in its image have no effect.
fn restrict_devices(spec: &mut Spec, cgroup: Option<&Cgroup>) -> Result<Option<String>> {
    let Devices::Listed { nodes, rules } = &spec.devices else { return Ok(None) };
    let mut allowed = device::standard_rules();
    allowed.extend(nodes.iter().map(Device::rule));
    allowed.extend(rules);
    if cgroup.map_or(Ok(false), |cgroup| cgroup.restrict_devices(&allowed))? {
        return Ok(None);
    }
    spec.process.capabilities = spec.process.capabilities.without(Capabilities::MKNOD);
    view::forbid_devices(spec.rootfs.as_fd())?;
    Ok(cgroup.map(|_| "this host cannot restrict devices; the container gets no CAP_MKNOD".to_owned()))
}

fn start(mut spec: Spec, stdio: Stdio, ids: &Ids, cgroup: Option<&Cgroup>, bundle: Option<&Bundle>) -> Result<Begun> {
    let has_terminal = matches!(stdio, Stdio::Terminal(_));
    let rootfs = spec.rootfs.try_clone().context(|| "duplicate the root file system's descriptor")?;
    let mut view = view::prepare(&mut spec, rootfs, cgroup, &Joining { ids, terminal: has_terminal }, bundle)?;
    let owner = spec.namespaces.user.as_ref().map_or(Some(ids.uid), |map| spec::outside(&map.uids, ids.uid));
    let owner = owner.ok_or_else(|| Error::invalid(format!("user {} is not mapped in the user namespace", ids.uid)))?;
    let terminals = view.terminals.take();
    let ends = terminal::open(stdio, &view.null, owner, || match &terminals {
        Some(mount) => terminal::open_master(mount.as_fd()),
        None => {
            Err(Error::invalid("a terminal needs the container's own /dev/pts, over which something else is mounted"))
        }
    })?;
    let stubs = std::mem::take(&mut view.stubs);
    let common = Common {
        process: &spec.process,
        ids,
        stdio: ends.inner,
        terminal: has_terminal,
        init: spec.init,
        die_with_parent: spec.die_with_parent,
    };
    let (parent_part, wait) = ParentPart::new(&spec.process, spec.namespaces.user.clone())?.unzip();
    let attendant = bundle.map(|bundle| Attendant::new(bundle, &spec.process, ids, cgroup)).transpose()?;
    let (attendant, meetings) = attendant.unzip();
    let plan = prepare::sandbox_plan(&spec, view, cgroup, wait, &common, meetings.unwrap_or_default())?;
    drop(common);
    let (namespaces, join) = prepare::namespaces(spec.namespaces);
    let cgroup = cgroup.map_or(Ok(None), Cgroup::clone_target)?;
    let child = launch(Order { namespaces, join, cgroup, plan }, parent_part, attendant)?;
    Ok(Begun { child, terminal: ends.terminal, streams: ends.streams, stubs })
}

/// Starts a process and waits until it executes its command.
fn launch(order: Order, parent_part: Option<ParentPart>, attendant: Option<Attendant<'_>>) -> Result<Child> {
    let (Started { pid, pidfd, report }, order) = spawner::carry_out(order)?;
    let child = Child { pid, pidfd };
    let prepared = parent_part.map_or(Ok(()), |part| part.carry_out(pid));
    let error = match prepared.and_then(|()| attendant.map_or(Ok(()), |attendant| attendant.carry_out(&child))) {
        Err(error) => error,
        Ok(()) => match report.wait() {
            None => return Ok(child),
            Some(failure) => failure::of_child(&order.plan, failure),
        },
    };
    let killed = child.signal(Signal::KILL).and_then(|()| child.collect().map(drop));
    Err(error.and_cleanup(killed))
}

impl Sandbox {
    /// Returns the number of its first process, as this process's namespace counts.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Returns the descriptor of its first process.
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

    /// Returns its control group.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Returns what was asked for and the host could not give.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Takes the list of mount points that were made in the root file system. A build removes them after the step.
    pub fn take_stubs(&mut self) -> Stubs {
        std::mem::take(&mut self.stubs)
    }

    /// Sends a signal to its first process (or, through its init, to the command). A process that has ended gets none, which is
    /// no error. The kernel drops signals to a first process that has no handler for them, except `SIGKILL` and `SIGSTOP`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.lock().is_some() { Ok(()) } else { self.child.signal(signal) }
    }

    /// Waits until it has ended, then kills what is left of it, reads its counters, removes its control group and runs the hooks
    /// that come after that. Can be called
    /// any number of times, also at the same time. Needs a runtime with I/O.
    ///
    /// # Errors
    /// When the status cannot be had; leftovers are in [`Exit::left_over`].
    pub async fn wait(&self) -> Result<Exit> {
        if let Some(exit) = self.lock().clone() {
            return Ok(exit);
        }
        self.child.ended().await?;
        let pidfd = self.child.pidfd.try_clone().context(|| "wait for a process")?;
        let child = Child { pid: self.child.pid, pidfd };
        let (cgroup, bundle, exit) = (self.cgroup.clone(), self.bundle.clone(), Arc::clone(&self.exit));
        task::blocking(move || finish(&child, cgroup.as_ref(), bundle.as_deref(), &exit)).await
    }

    /// Does what [`Sandbox::wait`] does, blocking.
    ///
    /// # Errors
    /// As there.
    pub fn wait_blocking(&self) -> Result<Exit> {
        finish(&self.child, self.cgroup.as_ref(), self.bundle.as_deref(), &self.exit)
    }

    /// Whether its end was collected.
    fn is_collected(&self) -> bool {
        self.lock().is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Exit>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Collects a sandbox that has ended. The lock is held meanwhile, so that it happens once.
fn finish(child: &Child, cgroup: Option<&Cgroup>, bundle: Option<&Bundle>, slot: &Mutex<Option<Exit>>) -> Result<Exit> {
    // Waiting itself needs no lock: signals are still sent.
    while !child.ends_within(Duration::from_secs(3600)) {}
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(exit) = slot.as_ref() {
        return Ok(exit.clone());
    }
    let status = child.collect()?;
    let usage = cgroup.map(Cgroup::stats);
    let left_over = cgroup.and_then(|cgroup| cgroup.remove().err()).map(|error| error.to_string());
    let warnings = bundle.map(Bundle::ended).unwrap_or_default();
    let exit = Exit { status, usage, left_over, warnings };
    *slot = Some(exit.clone());
    Ok(exit)
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.lock().is_some() {
            return;
        }
        // Nobody is left to be told of failures; what a hanging process leaves behind is found by its control group.
        let _ = self.child.signal(Signal::KILL);
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
            let _ = cgroup.thaw();
        }
        if self.child.ends_within(KILL_TIMEOUT) {
            let _ = finish(&self.child, self.cgroup.as_ref(), self.bundle.as_deref(), &self.exit);
        }
    }
}

/// Opens this program through a read-only mount of its own, which exists nowhere else.
///
/// A program that supervises sandboxes and may be killed before them is best executed through this descriptor (as
/// `/proc/self/fd/<number>`): its `/proc/<pid>/exe`, should a container get hold of it, can then never be written to.
/// Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// When the kernel refuses the mount.
pub fn own_program() -> Result<OwnedFd> {
    view::readonly_copy("/proc/self/exe")
}
