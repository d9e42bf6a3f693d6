//! Hooks: programs that run at points of a sandbox's life, as the OCI runtime specification has them (`config.md`, "POSIX-platform
//! Hooks"; `runtime.md`, "Lifecycle"). Which namespaces they run in, and what they are told, is as runc does it.
//!
//! The first process stops where hooks are due ([`Meetings`]), and this process runs them meanwhile. They find the root file system
//! by the configuration in their *bundle*: a directory of the host over which the sandbox's own mount namespace has the staging
//! file system. So `<bundle>/root` is the root with all its mounts there, and on the host a link that leads there. Of a process
//! that has ended there is no root any more.
//!
//! The configuration has neither the environment (which may hold secrets) nor the mounts. Hooks are the host's own: what they do is
//! not limited.

use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, Mode};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};
use serde_json::json;

use super::cgroup::{self, Cgroup};
use super::exec::Target;
use super::exit::{Child, Status};
use super::prepare::{self, Common, ParentPart, step};
use super::spawner::{self, Order};
use super::spec::{Process, Spec};
use super::user::Ids;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::sys::plan::{Call, Command, Plan, Point, Step};
use crate::sys::process::Started;
use crate::task::Cancel;

/// The root file system within the staging file system, and so within a bundle.
pub(super) const ROOT: &CStr = c"root";
/// The configuration within a bundle.
pub(super) const CONFIG: &CStr = c"config.json";

/// The version of the runtime specification that configuration and state follow.
const OCI_VERSION: &str = "1.2.0";

/// How much of what a failing hook printed is told.
const MAX_OUTPUT_BYTES: u64 = 4096;

/// How often a running hook is asked whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// The hooks of a sandbox.
#[derive(Clone, Debug)]
pub struct Hooks {
    /// The directory in which bundles are made; only root can enter it.
    pub directory: PathBuf,
    /// The hooks; those of one point run in this order.
    pub list: Vec<Hook>,
    /// Ends the hooks of a start that nobody waits for any more.
    pub cancel: Cancel,
}

/// A program and when it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// When it runs, and where.
    pub point: HookPoint,
    /// Its absolute path, on the host or, for [`HookPoint::StartContainer`], in the sandbox.
    pub path: String,
    /// Its arguments; the first one is the name it is called by. Without any that is its path.
    pub args: Vec<String>,
    /// Its whole environment, as `NAME=value`.
    pub env: Vec<String>,
    /// How long it may take; `None` is for ever.
    pub timeout: Option<Duration>,
    /// Who wants it, for messages.
    pub origin: String,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    /// As `CreateRuntime`, and before that (deprecated).
    Prestart,
    /// On the host, when everything is mounted.
    CreateRuntime,
    /// In the namespaces of the sandbox but with the host's root, when everything is mounted.
    CreateContainer,
    /// In the sandbox, as its command and just before it.
    StartContainer,
    /// On the host, when the command was executed.
    Poststart,
    /// On the host, when the sandbox is gone.
    Poststop,
}

impl HookPoint {
    /// All of them, in the order in which they come.
    pub const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    /// Returns the specification's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// What the container's status is then called.
    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::StartContainer => "created",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

/// Removes bundles of sandboxes whose ids [`super::temporary_id`] made of a prefix in a process that is no more. Blocking, and
/// cheap.
pub fn remove_abandoned_bundles(directory: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if cgroup::is_abandoned(&entry.file_name().to_string_lossy(), prefix) {
            // What stays is two small files.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The steps at which the first process waits while hooks run.
#[derive(Debug, Default)]
pub(super) struct Meetings {
    /// When everything is mounted.
    pub(super) created: Option<Step>,
    /// When everything is done but executing the command.
    pub(super) starting: Option<Step>,
}

/// The directory that hooks are told of, with what they are to do. Dropping it removes the directory.
#[derive(Debug)]
pub(super) struct Bundle {
    id: String,
    dir: PathBuf,
    point: CString,
    config: Vec<u8>,
    hooks: Hooks,
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Nobody is left to be told; `remove_abandoned_bundles` finds it.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Bundle {
    /// Takes the hooks of a sandbox, and makes a bundle if there are any. Blocking.
    pub(super) fn make(spec: &mut Spec, ids: &Ids) -> Result<Option<Self>> {
        let Some(hooks) = spec.hooks.take().filter(|hooks| !hooks.list.is_empty()) else { return Ok(None) };
        // A link in the path would lead out of the sandbox's view of it.
        let directory = fs::canonicalize(&hooks.directory);
        let dir = directory.context(|| format!("find {}", hooks.directory.display()))?.join(&spec.id);
        let process = &spec.process;
        let config = json!({
            "ociVersion": OCI_VERSION,
            "root": {"path": dir.join(name(ROOT)), "readonly": spec.readonly_rootfs},
            "process": {
                "user": {"uid": ids.uid, "gid": ids.gid, "additionalGids": ids.groups},
                "args": process.args,
                "cwd": if process.cwd.is_empty() { "/" } else { &process.cwd },
            },
            "hostname": spec.hostname,
        });
        let point = c_string(dir.as_os_str().as_bytes())?;
        let failed = || format!("make the bundle {} for hooks", dir.display());
        DirBuilder::new().mode(0o700).create(&dir).context(failed)?;
        let bundle = Self { id: spec.id.clone(), dir: dir.clone(), point, config: config.to_string().into(), hooks };
        let file = File::options().write(true).create_new(true).mode(0o600).open(dir.join(name(CONFIG)));
        file.and_then(|file| file.write_all_at(&bundle.config, 0)).context(failed)?;
        Ok(Some(bundle))
    }

    /// The directory.
    pub(super) fn point(&self) -> &CStr {
        &self.point
    }

    /// The configuration.
    pub(super) fn config(&self) -> &[u8] {
        &self.config
    }

    fn of(&self, point: HookPoint) -> impl Iterator<Item = &Hook> {
        self.hooks.list.iter().filter(move |hook| hook.point == point)
    }

    fn has(&self, points: &[HookPoint]) -> bool {
        points.iter().any(|point| self.of(*point).next().is_some())
    }

    /// Makes `<bundle>/root` lead to a directory in the view that a process has.
    fn lead_to(&self, process: Pid, dir: &Path) -> Result<()> {
        let link = self.dir.join(name(ROOT));
        let target = format!("/proc/{}/root{}", process.as_raw_nonzero(), dir.display());
        self.forget_root().and_then(|()| symlink(target, &link)).context(|| format!("make {}", link.display()))
    }

    fn forget_root(&self) -> std::io::Result<()> {
        match fs::remove_file(self.dir.join(name(ROOT))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Runs what is to run once the command was executed. Blocking.
    ///
    /// # Errors
    /// When one fails: the sandbox is to be ended.
    pub(super) fn started(&self, pid: Pid) -> Result<()> {
        if !self.has(&[HookPoint::Poststart]) {
            return Ok(());
        }
        self.lead_to(pid, Path::new(""))?;
        let run = |hook| self.run(hook, Some(pid.as_raw_nonzero().get()), |stdio| self.on_host(stdio));
        self.of(HookPoint::Poststart).try_for_each(run)
    }

    /// Runs what is to run once the sandbox is gone, and returns what went wrong with that. Blocking.
    pub(super) fn ended(&self) -> Vec<String> {
        let forgotten = self.forget_root().err().map(|error| format!("clear {}: {error}", self.dir.display()));
        let run = |hook| self.run(hook, None, |stdio| self.on_host(stdio)).err().map(|error| error.to_string());
        forgotten.into_iter().chain(self.of(HookPoint::Poststop).filter_map(run)).collect()
    }

    /// What a hook runs in on the host.
    fn on_host(&self, stdio: [Arc<OwnedFd>; 3]) -> Result<Surroundings> {
        let mut steps = vec![step("set up standard input and output", Call::Stdio(stdio))];
        steps.push(chdir(&self.dir)?);
        steps.push(step("mark descriptors to be closed", Call::CloseDescriptors));
        Ok(Surroundings { steps, ..Surroundings::default() })
    }

    /// Runs one hook until it ends.
    fn run(
        &self,
        hook: &Hook,
        pid: Option<i32>,
        surroundings: impl FnOnce([Arc<OwnedFd>; 3]) -> Result<Surroundings>,
    ) -> Result<()> {
        let Hook { point, path, origin, .. } = hook;
        let mut state = json!({"ociVersion": OCI_VERSION, "id": self.id, "status": point.status()});
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        state["bundle"] = json!(self.dir);
        let name = || format!("the hook {} {path} of {origin}", point.name());
        let output = memory(b"").context(name)?;
        let input = Arc::new(OwnedFd::from(memory(state.to_string().as_bytes()).context(name)?));
        let ends = Arc::new(OwnedFd::from(output.try_clone().context(name)?));
        let Surroundings { steps, join, cgroup, parent_part } =
            surroundings([input, Arc::clone(&ends), ends]).context(name)?;
        let plan = Plan {
            name: path.clone(),
            steps,
            terminal: false,
            supervise: false,
            command: hook.command().context(name)?,
        };
        let (child, failure) = begin(Order { namespaces: 0, join, cgroup, plan }, parent_part).context(name)?;
        // Nothing of the end of a run that was cancelled is a matter of its cancelling.
        let cancel = if *point == HookPoint::Poststop { &Cancel::new() } else { &self.hooks.cancel };
        let ended = wait(&child, hook.timeout, cancel)?;
        let (kind, what) = match (failure, ended) {
            (Some(failure), _) => (Kind::InvalidArgument, failure),
            (None, Ended::By(Status::Code(0))) => return Ok(()),
            (None, Ended::By(Status::Code(code))) => (Kind::Internal, format!("failed with exit code {code}")),
            (None, Ended::By(Status::Signal(signal))) => (Kind::Internal, format!("was ended by signal {signal}")),
            (None, Ended::Late(timeout)) => {
                (Kind::Timeout, format!("was killed because it took longer than its timeout of {timeout:?}"))
            }
            (None, Ended::Cancelled(error)) => return Err(error),
        };
        let printed = tail(&output);
        let printed = if printed.is_empty() { "it printed nothing" } else { &printed };
        Err(Error::new(kind, format!("{} {what}: {printed}", name())))
    }
}

impl Hook {
    fn command(&self) -> Result<Command> {
        let strings = |list: &[String]| list.iter().map(|text| c_string(text.as_bytes())).collect::<Result<Vec<_>>>();
        let path = c_string(self.path.as_bytes())?;
        let arguments = if self.args.is_empty() { vec![path.clone()] } else { strings(&self.args)? };
        Ok(Command::new(vec![path], false, arguments, strings(&self.env)?))
    }
}

/// What runs the hooks that come before the command, while the first process waits.
pub(super) struct Attendant<'a> {
    bundle: &'a Bundle,
    process: &'a Process,
    ids: &'a Ids,
    cgroup: Option<&'a Cgroup>,
    created: Option<Arc<OwnedFd>>,
    starting: Option<Arc<OwnedFd>>,
}

impl<'a> Attendant<'a> {
    /// Arranges the meetings with the first process.
    ///
    /// # Errors
    /// At the limit of descriptors.
    pub(super) fn new(
        bundle: &'a Bundle,
        process: &'a Process,
        ids: &'a Ids,
        cgroup: Option<&'a Cgroup>,
    ) -> Result<(Self, Meetings)> {
        let arrange = |points: &[HookPoint]| if bundle.has(points) { meeting().map(Some) } else { Ok(None) };
        let created = arrange(&[HookPoint::Prestart, HookPoint::CreateRuntime, HookPoint::CreateContainer])?;
        let starting = arrange(&[HookPoint::StartContainer])?;
        let ((created, our_created), (starting, our_starting)) = (created.unzip(), starting.unzip());
        let attendant = Self { bundle, process, ids, cgroup, created: our_created, starting: our_starting };
        Ok((attendant, Meetings { created, starting }))
    }

    /// Meets the first process, and runs the hooks. On error it still waits: kill it. One that ends before it comes is no error
    /// here: it tells why itself. Blocking.
    ///
    /// # Errors
    /// When a hook fails.
    pub(super) fn carry_out(self, child: &Child) -> Result<()> {
        let bundle = self.bundle;
        let pid = child.pid.as_raw_nonzero().get();
        if let Some(socket) = &self.created
            && arrives(child, socket)?
        {
            bundle.lead_to(child.pid, &bundle.dir.join(name(ROOT)))?;
            for point in [HookPoint::Prestart, HookPoint::CreateRuntime] {
                let run = |hook| bundle.run(hook, Some(pid), |stdio| bundle.on_host(stdio));
                bundle.of(point).try_for_each(run)?;
            }
            let run = |hook| bundle.run(hook, own_number(child.pid), |stdio| self.beside(child.pid, stdio));
            bundle.of(HookPoint::CreateContainer).try_for_each(run)?;
            dismiss(socket)?;
        }
        if let Some(socket) = &self.starting
            && arrives(child, socket)?
        {
            let run = |hook| bundle.run(hook, own_number(child.pid), |stdio| self.within(child.pid, stdio));
            bundle.of(HookPoint::StartContainer).try_for_each(run)?;
            dismiss(socket)?;
        }
        Ok(())
    }

    /// The namespaces of the first process, with what is its root at that time.
    fn joined(&self, pid: Pid) -> Result<Surroundings> {
        let target = Target::open(pid)?;
        let mut steps = prepare::entry_steps(true, self.cgroup)?;
        let call = Call::JoinNamespaces(Arc::clone(&target.pidfd), target.shared);
        steps.push(step("join the namespaces of the container", call));
        if target.shared.contains(ThreadNameSpaceType::USER) {
            steps.push(step("become root of the user namespace", Call::BecomeRoot));
        }
        let join = target.pid_namespace.map(|fd| (fd, LinkNameSpaceType::ProcessID)).into_iter().collect();
        let cgroup = self.cgroup.map_or(Ok(None), Cgroup::clone_target)?;
        Ok(Surroundings { steps, join, cgroup, parent_part: None })
    }

    /// As root of the host, at the root that is not entered yet.
    fn beside(&self, pid: Pid, stdio: [Arc<OwnedFd>; 3]) -> Result<Surroundings> {
        let mut surroundings = self.joined(pid)?;
        surroundings.steps.extend([
            step("set the file mode mask", Call::Umask(Mode::from(prepare::UMASK))),
            step("set up standard input and output", Call::Stdio(stdio)),
            chdir(&self.bundle.dir.join(name(ROOT)))?,
            step("mark descriptors to be closed", Call::CloseDescriptors),
        ]);
        Ok(surroundings)
    }

    /// With the rights of the command.
    fn within(&self, pid: Pid, stdio: [Arc<OwnedFd>; 3]) -> Result<Surroundings> {
        let Surroundings { steps: joining, join, cgroup, .. } = self.joined(pid)?;
        let (process, ids) = (self.process, self.ids);
        let common = Common { process, ids, stdio, terminal: false, init: false, die_with_parent: true };
        let (parent_part, wait) = ParentPart::new(process, None)?.unzip();
        let mut steps: Vec<Step> = wait.into_iter().collect();
        steps.extend(joining);
        steps.extend(prepare::process_steps(&common)?);
        Ok(Surroundings { steps, join, cgroup, parent_part })
    }
}

/// What a hook runs in.
#[derive(Default)]
struct Surroundings {
    steps: Vec<Step>,
    join: Vec<(OwnedFd, LinkNameSpaceType)>,
    cgroup: Option<OwnedFd>,
    parent_part: Option<ParentPart>,
}

/// How a hook ended.
enum Ended {
    By(Status),
    Late(Duration),
    Cancelled(Error),
}

/// Starts a hook; says also why its program was not executed, if so.
fn begin(order: Order, parent_part: Option<ParentPart>) -> Result<(Child, Option<String>)> {
    let (Started { pid, pidfd, report }, order) = spawner::carry_out(order)?;
    let child = Child { pid, pidfd };
    if let Err(error) = parent_part.map_or(Ok(()), |part| part.carry_out(pid)) {
        let killed = child.signal(Signal::KILL).and_then(|()| child.collect().map(drop));
        return Err(error.and_cleanup(killed));
    }
    let why = report.wait().map(|failure| {
        let purpose = match failure.at {
            Point::Step(index) => order.plan.steps.get(index).map(|step| step.purpose.as_str()),
            Point::Fork | Point::Exec(_) | Point::NotFound => None,
        };
        format!("could not be started: {}: {}", purpose.unwrap_or("execute it"), Error::from(failure.errno))
    });
    Ok((child, why))
}

/// Waits for a hook, and kills it when its time is up or nobody wants it any more. What it has started itself goes on.
fn wait(child: &Child, timeout: Option<Duration>, cancel: &Cancel) -> Result<Ended> {
    let mut left = timeout;
    let end = loop {
        let pause = left.map_or(LOOK, |left| left.min(LOOK));
        if child.ends_within(pause) {
            return child.collect().map(Ended::By);
        }
        left = left.map(|left| left - pause);
        match (left, timeout, cancel.check()) {
            (_, _, Err(error)) => break Ended::Cancelled(error),
            (Some(Duration::ZERO), Some(timeout), _) => break Ended::Late(timeout),
            _ => {}
        }
    };
    child.signal(Signal::KILL)?;
    child.collect().map(|_| end)
}

/// Makes a step at which the first process waits, and our end of what it waits at.
fn meeting() -> Result<(Step, Arc<OwnedFd>)> {
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (own, other) = pair.context(|| "make a pair of sockets")?;
    let other = Arc::new(other);
    let call = Call::Meet { own, other: Arc::clone(&other) };
    Ok((step("wait for hooks", call), other))
}

/// Waits for the first process at a meeting; says whether it came.
fn arrives(child: &Child, socket: &OwnedFd) -> Result<bool> {
    let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&child.pidfd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut fds, None)).context(|| "wait for the container")?;
    if !fds[0].revents().contains(PollFlags::IN) {
        return Ok(false);
    }
    let mut byte = [0];
    rustix::io::read(socket, &mut byte).map(|read| read == 1).context(|| "wait for the container")
}

fn dismiss(socket: &OwnedFd) -> Result<()> {
    rustix::io::write(socket, b"1").map(drop).context(|| "let the container go on")
}

/// The number of a process as it sees itself.
fn own_number(pid: Pid) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}

fn chdir(dir: &Path) -> Result<Step> {
    let path = c_string(dir.as_os_str().as_bytes())?;
    Ok(step(format!("enter {}", dir.display()), Call::Chdir { path, tentative: false }))
}

/// A file in memory, to be read from its beginning.
fn memory(content: &[u8]) -> Result<File> {
    let file = File::from(rustix::fs::memfd_create(c"kiln-hook", MemfdFlags::CLOEXEC)?);
    file.write_all_at(content, 0)?;
    Ok(file)
}

/// The end of what a hook printed.
fn tail(output: &File) -> String {
    let length = output.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = vec![0; usize::try_from(length.min(MAX_OUTPUT_BYTES)).unwrap_or_default()];
    let read = output.read_at(&mut bytes, length.saturating_sub(MAX_OUTPUT_BYTES)).unwrap_or_default();
    String::from_utf8_lossy(&bytes[..read]).trim().to_owned()
}

fn name(name: &CStr) -> &str {
    name.to_str().expect("names of ours are ASCII")
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::invalid("a path, argument or variable of a hook contains a zero byte"))
}
