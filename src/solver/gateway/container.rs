//! Containers of frontends: results, caches and secrets mounted together, in which a frontend runs processes.
//!
//! The first process is the container's init; further ones join its namespaces and end with it. What they write to results is
//! theirs alone and goes with the container, which lives until it is released or its build ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use kiln_graph::op::{
    Exec, LocalSource, MountKind, NetworkMode, Op, SecretEnv, SecurityMode, Source as GraphSource, Ulimit,
};
use kiln_graph::{Edge, Graph, Platform};
use rustix::process::Signal;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::View;
use crate::error::{Error, Result};
use crate::filesync::Entry;
use crate::sandbox::{self, Execution, Exit, Mount, NotStarted, Process, Sandbox, Source, Spec, Stdio, Streams};
use crate::solver::contexts::Locals;
use crate::solver::job::{Entitlement, Job, Shared};
use crate::solver::lock;
use crate::solver::ops::Step;
use crate::solver::value::{FileSystem, Value};
use crate::task::{self, Cancel, Tasks};

pub use crate::sandbox::{Terminal, WindowSize};

/// How many containers a build may have at a time.
const MAX_CONTAINERS: usize = 256;

/// The variable that says where commands are.
const PATH: &str = "PATH";

/// What a container is made of.
#[derive(Clone, Debug, Default)]
pub struct ContainerRequest {
    /// Its file systems, network and names; what is said of a process is not looked at. Inputs are positions in `results`.
    pub exec: Exec,
    /// The results that are mounted, by their names; an empty name is an empty file system.
    pub results: Vec<String>,
    /// Where each mount of the request is in `exec`, `None` for the root: mounts are referred to by these positions.
    pub mounts: Vec<Option<usize>>,
    /// The platform its programs are for; `None` is the host's.
    pub platform: Option<Platform>,
}

/// A process that is to run in a container.
#[derive(Clone, Debug, Default)]
pub struct ProcessRequest {
    /// The argument vector.
    pub args: Vec<String>,
    /// Environment as `KEY=value`.
    pub env: Vec<String>,
    /// Secrets passed as environment variables.
    pub secret_env: Vec<SecretEnv>,
    /// The working directory.
    pub cwd: String,
    /// `user[:group]`; empty means root.
    pub user: String,
    /// Limits of resources.
    pub ulimits: Vec<Ulimit>,
    /// The privileges.
    pub security: SecurityMode,
    /// The parent of the container's control group; looked at for the first process only.
    pub cgroup_parent: String,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// The containers of a build, by the ids that its frontend chose. Dropping them releases all.
#[derive(Debug)]
pub(in crate::solver) struct Containers {
    all: Mutex<HashMap<String, Arc<Container>>>,
    closing: CancellationToken,
    _close_on_drop: DropGuard,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    id: String,
    job: Arc<Job>,
    /// What can be read of each mount; `None` for memory, secrets and agents.
    views: Mutex<Option<Vec<Option<View>>>>,
    state: tokio::sync::Mutex<State>,
    /// The sandbox, once there is one.
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    /// Set when it was released.
    released: CancellationToken,
}

#[derive(Debug)]
enum State {
    /// Everything is mounted and nothing runs.
    Ready {
        step: Step,
        spec: Box<Spec>,
    },
    /// The first process was started.
    Started {
        step: Step,
    },
    Released,
}

/// A process in a container.
#[derive(Debug)]
pub struct Running {
    which: Which,
    streams: Streams,
}

#[derive(Debug)]
enum Which {
    First(Arc<Sandbox>),
    Further(Execution),
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The exit code; 128 and the number of the signal that ended it.
    pub code: u8,
    /// What is to be said about it, when the code is not 0.
    pub reason: Option<String>,
}

impl Containers {
    /// Makes an empty set.
    pub(in crate::solver) fn new() -> Self {
        let closing = CancellationToken::new();
        Self { all: Mutex::default(), closing: closing.clone(), _close_on_drop: closing.drop_guard() }
    }

    /// Finds a container.
    ///
    /// # Errors
    /// `NotFound`.
    pub(in crate::solver) fn get(&self, id: &str) -> Result<Arc<Container>> {
        lock(&self.all).get(id).cloned().ok_or_else(|| unknown(id))
    }

    /// Keeps a container until it is released, its build has ended, or the engine stops.
    ///
    /// # Errors
    /// `Conflict` when there is one of its id, `Exhausted` when there are too many; the container is released then.
    pub(in crate::solver) async fn keep(&self, container: Container, tasks: &Tasks) -> Result<Arc<Container>> {
        let container = Arc::new(container);
        if let Err(refused) = self.add(&container) {
            return Err(refused.and_cleanup(container.release().await));
        }
        let (closing, stopping, kept) = (self.closing.clone(), tasks.stopping(), Arc::clone(&container));
        tasks.spawn(async move {
            tokio::select! {
                () = container.released.cancelled() => {}
                () = closing.cancelled() => {}
                () = stopping.cancelled() => {}
            }
            // Nobody is left to be told; what is left over is found by its control group when an engine starts.
            let _ = container.release().await;
            let _ = task::blocking(move || {
                drop(container);
                Ok(())
            })
            .await;
        });
        Ok(kept)
    }

    fn add(&self, container: &Arc<Container>) -> Result<()> {
        let mut all = lock(&self.all);
        if all.contains_key(&container.id) {
            return Err(Error::conflict(format!("container {} exists already", container.id)));
        }
        if all.len() >= MAX_CONTAINERS {
            return Err(Error::exhausted(format!("a build has at most {MAX_CONTAINERS} containers at a time")));
        }
        all.insert(container.id.clone(), Arc::clone(container));
        Ok(())
    }

    /// Forgets a container, and ends what runs in it.
    ///
    /// # Errors
    /// `NotFound`; when what runs in it cannot be ended.
    pub(in crate::solver) async fn release(&self, id: &str) -> Result<()> {
        let container = lock(&self.all).remove(id);
        container.ok_or_else(|| unknown(id))?.release().await
    }

    /// Releases all.
    ///
    /// # Errors
    /// The first failure.
    pub(in crate::solver) async fn release_all(&self) -> Result<()> {
        let all: Vec<_> = lock(&self.all).drain().map(|(_, container)| container).collect();
        let released = futures_util::future::join_all(all.iter().map(|container| container.release())).await;
        released.into_iter().collect()
    }
}

fn unknown(id: &str) -> Error {
    Error::not_found(format!("container {id:?} previously released or not created"))
}

impl Container {
    /// Makes a container: brings here what it mounts and mounts it. `values` are the results, in the order of the request.
    ///
    /// # Errors
    /// `Forbidden` without an entitlement; when something to mount is not there.
    pub(in crate::solver) async fn new(
        shared: &Shared,
        id: &str,
        request: ContainerRequest,
        values: Vec<Value>,
    ) -> Result<Self> {
        if request.exec.network == NetworkMode::Host {
            shared.entitlements.require(Entitlement::NetworkHost)?;
        }
        let ContainerRequest { exec, mounts, platform, .. } = request;
        let platform = platform.unwrap_or_else(Platform::host);
        let refused = platform.clone();
        if let Some(obstacle) = task::blocking(move || Ok(sandbox::obstacle(&refused))).await? {
            return Err(Error::unsupported(format!("a container for {platform}: {obstacle}")));
        }
        let (job, vertex) = job(shared, &exec, values, platform);
        let root = job.file_system(job.graph.vertex(vertex), exec.root.input)?;
        let step = job.prepare(vertex, &exec, &root).await?;
        let (state, views) = task::blocking(move || {
            let mut spec = step.spec()?;
            spec.readonly_rootfs = exec.root.readonly;
            let views = mounts.iter().map(|at| view(&exec, &spec, *at)).collect::<Result<_>>()?;
            Ok((State::Ready { step, spec: Box::new(spec) }, views))
        })
        .await?;
        Ok(Self {
            id: id.to_owned(),
            job,
            views: Mutex::new(Some(views)),
            state: tokio::sync::Mutex::new(state),
            sandbox: Mutex::default(),
            released: CancellationToken::new(),
        })
    }

    /// Starts a process: the container's init, or another beside it.
    ///
    /// # Errors
    /// As [`sandbox::spawn`]; `Forbidden` without an entitlement; `NotFound` for a secret; `Conflict` when the container's init has
    /// ended.
    pub async fn start(self: &Arc<Self>, request: ProcessRequest) -> Result<Running> {
        if request.security == SecurityMode::Insecure {
            self.job.entitlements.require(Entitlement::SecurityInsecure)?;
        }
        if request.args.is_empty() {
            return Err(Error::invalid("the process has no arguments"));
        }
        let (exec, terminal, cgroup_parent) = exec_of(request);
        let env = self.job.environment(&exec).await?;
        let stdio = if terminal { Stdio::Terminal(WindowSize::default()) } else { Stdio::Pipes { stdin: true } };
        let container = Arc::clone(self);
        task::blocking(move || {
            let mut state = container.state.blocking_lock();
            match std::mem::replace(&mut *state, State::Released) {
                State::Ready { step, mut spec } => {
                    let process = step.process(&exec, env);
                    if let Some(group) = &mut spec.cgroup {
                        group.parent = cgroup_parent;
                    }
                    *state = State::Started { step };
                    container.first(*spec, process?, exec.security, stdio)
                }
                State::Started { step } => {
                    let process = step.process(&exec, env);
                    *state = State::Started { step };
                    container.further(process?, exec.security, stdio)
                }
                State::Released => Err(container.gone()),
            }
        })
        .await
    }

    /// Returns the exit code that stands for a command that could not be executed; `None` when it was not about the command.
    #[must_use]
    pub fn exit_code(error: &Error) -> Option<u8> {
        error.cause::<NotStarted>().map(NotStarted::exit_code)
    }

    fn gone(&self) -> Error {
        Error::conflict(format!("container {} has stopped", self.id))
    }

    /// Blocking.
    fn first(&self, mut spec: Spec, process: Process, security: SecurityMode, stdio: Stdio) -> Result<Running> {
        let command = process.args.join(" ");
        spec.process = process;
        if security == SecurityMode::Insecure {
            spec.make_privileged();
        }
        let started = sandbox::spawn(spec, stdio);
        let mut sandbox = started.map_err(|error| error.context(format!("process {command:?}")))?;
        let streams = sandbox.take_streams();
        let sandbox = Arc::new(sandbox);
        *lock(&self.sandbox) = Some(Arc::clone(&sandbox));
        Ok(Running { which: Which::First(sandbox), streams })
    }

    /// Blocking.
    fn further(&self, mut process: Process, security: SecurityMode, stdio: Stdio) -> Result<Running> {
        let sandbox = lock(&self.sandbox).clone();
        // It did not start.
        let sandbox = sandbox.ok_or_else(|| self.gone())?;
        if security == SecurityMode::Insecure {
            process.make_privileged();
        }
        let command = process.args.join(" ");
        let started = sandbox.exec(&process, stdio);
        let mut execution = started.map_err(|error| match error.kind() {
            crate::error::Kind::Conflict => self.gone(),
            _ => error.context(format!("process {command:?}")),
        })?;
        let streams = execution.take_streams();
        Ok(Running { which: Which::Further(execution), streams })
    }

    fn view(&self, mount: usize) -> Result<View> {
        let views = lock(&self.views);
        let views = views.as_ref().ok_or_else(|| self.gone())?;
        match views.get(mount) {
            Some(Some(view)) => view.try_clone(),
            Some(None) => Err(Error::invalid(format!("mount {mount} has no files that can be read from outside"))),
            None => Err(Error::invalid(format!("container {} has no mount {mount}", self.id))),
        }
    }

    /// Reads a part of a file of a mount; without a length, to its end.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` for what is no file and for more than is read at once.
    pub async fn read_file(&self, mount: usize, path: String, offset: u64, length: Option<u64>) -> Result<Vec<u8>> {
        let view = self.view(mount)?;
        task::blocking(move || view.read(&path, offset, length)).await
    }

    /// Lists a directory of a mount: names that match a pattern, all when it is empty.
    ///
    /// # Errors
    /// As for [`Self::read_file`].
    pub async fn read_dir(&self, mount: usize, path: String, pattern: String) -> Result<Vec<Entry>> {
        let view = self.view(mount)?;
        task::blocking(move || view.list(&path, &pattern)).await
    }

    /// Says what a path of a mount is, not following a symbolic link at its end.
    ///
    /// # Errors
    /// As for [`Self::read_file`].
    pub async fn stat_file(&self, mount: usize, path: String) -> Result<Entry> {
        let view = self.view(mount)?;
        task::blocking(move || view.stat(&path)).await
    }

    /// Ends what runs in it, and gives back what it held. Doing so again does nothing.
    async fn release(&self) -> Result<()> {
        self.released.cancel();
        let mut state = self.state.lock().await;
        let held = std::mem::replace(&mut *state, State::Released);
        let (views, sandbox) = (lock(&self.views).take(), lock(&self.sandbox).take());
        let ended = match &sandbox {
            Some(sandbox) => match sandbox.signal(Signal::KILL) {
                Ok(()) => sandbox.wait().await.map(drop),
                refused => refused,
            },
            None => Ok(()),
        };
        task::blocking(move || {
            drop((views, sandbox));
            match held {
                State::Ready { step, spec } => {
                    drop(spec);
                    drop(step.into_tree());
                }
                State::Started { step } => drop(step.into_tree()),
                State::Released => {}
            }
            ended
        })
        .await
    }
}

/// Makes the job of a container: its graph is one step that has the results as inputs.
fn job(shared: &Shared, exec: &Exec, values: Vec<Value>, platform: Platform) -> (Arc<Job>, kiln_graph::VertexId) {
    let mut graph = Graph::new();
    let input = |(number, _): (usize, &Value)| {
        let source = LocalSource { name: format!("result {number} of a frontend"), ..LocalSource::default() };
        let op = Op::Source(GraphSource::Local(source));
        graph.add(op, Vec::new(), platform.clone(), kiln_graph::graph::Meta::default())
    };
    let ids: Vec<_> = values.iter().enumerate().map(input).collect();
    let inputs = ids.iter().map(|id| Edge::from(*id)).collect();
    let op = Op::Exec(Box::new(exec.clone()));
    let vertex = graph.add(op, inputs, platform, kiln_graph::graph::Meta::default());
    let locals = Locals::none(shared.solver.memos(), shared.progress.now_ns());
    let job = Job::of(shared, graph, HashMap::new(), locals, Cancel::new());
    for (id, value) in ids.into_iter().zip(values) {
        job.set_value(id, value);
    }
    (job, vertex)
}

/// Returns the value of a result that is an empty file system.
pub(in crate::solver) fn nothing() -> Value {
    Value::FileSystem(FileSystem::Empty)
}

/// Reads what is said of a process, with the variables that BuildKit adds.
fn exec_of(request: ProcessRequest) -> (Exec, bool, String) {
    let ProcessRequest { args, mut env, secret_env, cwd, user, ulimits, security, cgroup_parent, terminal } = request;
    let mut default = |name: &str, value: &str| {
        if !env.iter().any(|entry| entry.split_once('=').is_some_and(|(known, _)| known == name)) {
            env.push(format!("{name}={value}"));
        }
    };
    default(PATH, sandbox::DEFAULT_PATH);
    if terminal {
        default("TERM", "xterm");
    }
    let exec = Exec { args, env: env.into(), secret_env, cwd, user, ulimits, security, ..Exec::default() };
    (exec, terminal, cgroup_parent)
}

/// Opens what a mount shows, before it is mounted.
fn view(exec: &Exec, spec: &Spec, at: Option<usize>) -> Result<Option<View>> {
    let Some(at) = at else { return Ok(Some(View::without_mounts(spec.rootfs.try_clone()?))) };
    let Some(wanted) = exec.mounts.get(at) else { return Ok(None) };
    if !matches!(wanted.kind, MountKind::Bind { .. } | MountKind::Cache { .. }) {
        return Ok(None);
    }
    let mount = spec.mounts.iter().rev().find(|mount| mount.target == wanted.target);
    match mount.map(|Mount { source, .. }| source) {
        Some(Source::Detached { mount, subpath }) => View::without_mounts(mount.try_clone()?).below(subpath).map(Some),
        Some(Source::Bind { source, .. }) => Ok(Some(View::without_mounts(source.try_clone()?))),
        _ => Ok(None),
    }
}

impl Running {
    /// Takes this side of its pipes, when it has no terminal.
    pub fn take_streams(&mut self) -> Streams {
        std::mem::take(&mut self.streams)
    }

    /// Returns its terminal, when it has one.
    #[must_use]
    pub fn terminal(&self) -> Option<&Terminal> {
        match &self.which {
            Which::First(sandbox) => sandbox.terminal(),
            Which::Further(execution) => execution.terminal(),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match &self.which {
            Which::First(sandbox) => sandbox.signal(signal),
            Which::Further(execution) => execution.signal(signal),
        }
    }

    /// Sends it a signal by its name, with or without `SIG`.
    ///
    /// # Errors
    /// `InvalidArgument` for one that does not exist; when the kernel refuses.
    pub fn signal_by_name(&self, name: &str) -> Result<()> {
        let number = sandbox::signal::parse(name)?;
        let signal = sandbox::signal::of(number);
        self.signal(signal.ok_or_else(|| Error::invalid(format!("Invalid signal: {name}")))?)
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// Waits until it has ended; [`Self::end`] comes after that.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub async fn ended(&self) -> Result<()> {
        match &self.which {
            Which::First(sandbox) => sandbox.wait().await.map(drop),
            Which::Further(execution) => execution.ended().await,
        }
    }

    /// Waits for its end, and says how it ended.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub async fn end(self) -> Result<Ended> {
        let (code, explained) = match self.which {
            Which::First(sandbox) => {
                let exit: Exit = sandbox.wait().await?;
                (exit.code(), exit.explain())
            }
            Which::Further(execution) => (execution.wait().await?.code(), None),
        };
        let explained = explained.map(|text| format!(": {text}")).unwrap_or_default();
        let reason = (code != 0).then(|| format!("exit code: {code}{explained}"));
        Ok(Ended { code: u8::try_from(code).unwrap_or(u8::MAX), reason })
    }
}
