//! RUN: a process in a sandbox over a new layer. What it changes is the layer; nothing is copied.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kiln_graph::VertexId;
use kiln_graph::op::{Exec, MountKind, NetworkMode, SecurityMode};
use rustix::process::Signal;

use super::exit::{Ended, Unsuccessful, judge};
use super::logs;
use super::meter::Meter;
use super::step::{Equipment, Step};
use super::times::{self, Touched};
use crate::error::{Error, Kind, Result};
use crate::sandbox::{self, Cgroup, Limits, Sandbox, Stats, Stdio};
use crate::solver::devices::{self, Injection};
use crate::solver::job::{Entitlement, Job, Stop, cancelled};
use crate::solver::lock;
use crate::solver::reporter::Reporter;
use crate::solver::settle::Made;
use crate::solver::value::{Failed, FileSystem, Keep, Remains};
use crate::store::Store;
use crate::task;

impl Job {
    /// Runs a process on the file systems it names; returns what its outputs are, by their numbers.
    pub(super) async fn run_exec(
        self: &Arc<Self>,
        id: VertexId,
        exec: &Exec,
        reporter: &Reporter,
        stop: &Stop,
    ) -> Result<Vec<Made>, Failed> {
        self.check(exec)?;
        let vertex = self.graph.vertex(id);
        let base = self.file_system(vertex, exec.root.input)?;
        let step = tokio::select! {
            prepared = self.prepare(id, exec, &base) => prepared?,
            () = stop.stopped() => return Err(cancelled().into()),
        };
        let platform = vertex.platform.clone();
        let obstacle = task::blocking(move || Ok(sandbox::obstacle(&platform))).await?;
        // It may run all the same: what an image says of its platform is not always so.
        obstacle.iter().for_each(|obstacle| reporter.note(obstacle));
        let started_ns = self.progress.now_ns();
        let (mut step, outcome) = attempts(step, reporter, stop).await?;
        lock(&self.readings).insert(id, std::mem::take(&mut step.readings));
        let outcome = outcome.map_err(|unsuccessful| unsuccessful.with_obstacle(obstacle));
        let name = vertex.meta.name.clone();
        match outcome {
            Ok(()) => {
                let bases = self.bases(id, exec)?;
                let job = Arc::clone(self);
                let made = task::blocking(move || {
                    let mut made = Vec::with_capacity(bases.len());
                    for (tree, base) in step.into_outputs().into_iter().zip(bases) {
                        let as_of = job.as_of(&base)?;
                        times::settle(tree.dir(), Touched::Anything, as_of, started_ns)?;
                        let snapshot = tree.commit_as_of(as_of)?;
                        made.push(Made { snapshot, base, listing: None, name: name.clone(), has_digests: false });
                    }
                    Ok(made)
                });
                Ok(made.await?)
            }
            Err(error) if error.kind() != Kind::Cancelled && reporter.keep() == Keep::Step => {
                Err(Failed::with(error, Remains::Step(self.solver.keep_failed(step, name)?)))
            }
            Err(error) => {
                let keep = error.kind() != Kind::Cancelled && reporter.keep() == Keep::Files;
                let left = task::blocking(move || if keep { step.into_left().map(Some) } else { Ok(step.give_up()) });
                match left.await? {
                    Some(left) => Err(Failed::with(error, Remains::Files(Arc::new(left)))),
                    None => Err(error.into()),
                }
            }
        }
    }

    /// Brings everything here that a step needs.
    ///
    /// # Errors
    /// When an image cannot be fetched, something to mount is not there, or the store or the network fails.
    pub(in crate::solver) async fn prepare(
        self: &Arc<Self>,
        id: VertexId,
        exec: &Exec,
        base: &FileSystem,
    ) -> Result<Step> {
        let snapshot = self.materialize(base).await?;
        let mounts = self.mounts(id, exec).await?;
        let env = self.environment(exec).await?;
        let (job, exec) = (Arc::clone(self), exec.clone());
        task::blocking(move || {
            let devices = if exec.devices.is_empty() { Injection::default() } else { job.devices(&exec)? };
            Step::new(job, exec, snapshot, Equipment { mounts, env, devices })
        })
        .await
    }

    /// Finds the devices that a step asks for. Blocking.
    fn devices(&self, exec: &Exec) -> Result<Injection> {
        let known = devices::known(&self.solver.deps().device_directories)?;
        devices::inject(&exec.devices, &known, &self.entitlements.devices)
    }

    /// Refuses what cannot be done, before anything is.
    fn check(&self, exec: &Exec) -> Result<()> {
        if exec.network == NetworkMode::Host {
            self.entitlements.require(Entitlement::NetworkHost)?;
        }
        if exec.security == SecurityMode::Insecure {
            self.entitlements.require(Entitlement::SecurityInsecure)?;
        }
        Ok(())
    }

    /// Returns what the outputs of a process lie on, by their numbers.
    fn bases(&self, id: VertexId, exec: &Exec) -> Result<Vec<FileSystem>> {
        let binds = exec.mounts.iter().filter_map(|mount| match mount.kind {
            MountKind::Bind { input, output: Some(output), .. } => Some((output, input)),
            _ => None,
        });
        let root = exec.root.output.map(|output| (output, exec.root.input));
        let mut inputs: Vec<_> = root.into_iter().chain(binds).collect();
        inputs.sort_unstable();
        let vertex = self.graph.vertex(id);
        inputs.into_iter().map(|(_, input)| self.file_system(vertex, input)).collect()
    }

    /// The environment, with proxies and secrets, which are no part of the step's identity.
    ///
    /// # Errors
    /// `NotFound` for a secret that the client does not have, `InvalidArgument` for one that is no text.
    pub(in crate::solver) async fn environment(&self, exec: &Exec) -> Result<Vec<String>> {
        let mut env = exec.env.to_vec();
        env.extend(exec.proxy.env.iter().map(|(name, value)| format!("{name}={value}")));
        for secret in &exec.secret_env {
            let Some(value) = self.secret(&secret.id, secret.optional).await? else { continue };
            let value = String::from_utf8(value)
                .map_err(|_| Error::invalid(format!("secret {} is no text, so it cannot be a variable", secret.id)))?;
            env.push(format!("{}={value}", secret.name));
        }
        Ok(env)
    }

    /// What a step may use: its own limits before those of the request.
    pub(super) fn limits(&self, exec: &Exec) -> Limits {
        let mut limits = self.request_limits.clone();
        if let Some(bytes) = exec.limits.memory_bytes {
            limits = Limits { memory_bytes: Some(bytes), memory_swap: None, ..limits };
        }
        exec.limits.nano_cpus.map_or(limits.clone(), |nano_cpus| limits.with_nano_cpus(nano_cpus))
    }
}

/// Runs a step until it succeeds or has failed as often as it may. The step comes back with what the last try has left.
async fn attempts(mut step: Step, reporter: &Reporter, stop: &Stop) -> Result<(Step, Result<(), Unsuccessful>)> {
    let tries = step.exec.retries.saturating_add(1);
    let mut number = 1;
    loop {
        let (back, outcome) = attempt(step, reporter, stop).await?;
        step = back;
        let Err(unsuccessful) = outcome else { return Ok((step, Ok(()))) };
        // Trying again what did not even start would end the same way.
        let Some(reason) = unsuccessful.reason.as_ref().filter(|_| number < tries) else {
            let tried = if number > 1 { unsuccessful.after(number, tries) } else { unsuccessful };
            return Ok((step, Err(tried)));
        };
        number += 1;
        reporter.note(&format!("{reason}; try {number} of {tries} begins with clean files"));
        let renewed = async { task::blocking(move || step.renew().map(|()| step)).await };
        step = renewed.await?;
    }
}

/// Runs a step once.
async fn attempt(step: Step, reporter: &Reporter, stop: &Stop) -> Result<(Step, Result<(), Unsuccessful>)> {
    let cancel = stop.flag().clone();
    let begin = move || {
        let started = step.start(Stdio::OnePipe, |spec| {
            if let Some(hooks) = &mut spec.hooks {
                hooks.cancel = cancel;
            }
        });
        Ok((step, started))
    };
    let (mut step, mut sandbox) = match task::blocking(begin).await? {
        (step, Ok(sandbox)) => (step, sandbox),
        // A hook was waited for.
        (step, Err(error)) if error.kind() == Kind::Cancelled => return Ok((step, Err(cancelled().into()))),
        (step, Err(error)) => return Ok((step, Err(error.into()))),
    };
    let timeout = step.exec.timeout_ns.map(Duration::from_nanos);
    let store = step.store().clone();
    let mut meter = Meter::new();
    let now_ns = || step.job.progress.now_ns();
    let cgroup = sandbox.cgroup().cloned();
    // A few files that the kernel makes when they are read. A group that has just been removed has no counters.
    let read = || cgroup.as_ref().map(Cgroup::stats).filter(|stats| *stats != Stats::default());
    let metered = meter.run(read, now_ns);
    let ended = follow(&mut sandbox, timeout, reporter, stop, full(store), metered).await;
    let used = ended.as_ref().ok().and_then(|ended| ended.exit.usage.clone());
    step.readings = meter.end(step.job.progress.now_ns(), used);
    ended.iter().flat_map(|ended| &ended.exit.warnings).for_each(|warning| reporter.note(warning));
    let end = move || {
        let left = step.leave(sandbox);
        Ok((step, left))
    };
    let (step, left) = task::blocking(end).await?;
    let outcome = match ended {
        Ok(ended) => left.map_err(Unsuccessful::from).and_then(|()| judge(&step.exec, &ended)),
        Err(error) => Err(error.and_cleanup(left).into()),
    };
    Ok((step, outcome))
}

/// Waits until there is no room for what is written; for ever without a cap.
async fn full(store: Store) -> Error {
    if !store.is_capped() {
        return std::future::pending().await;
    }
    loop {
        let store = store.clone();
        match task::blocking(move || store.watch_room()).await {
            Ok(Some(pause)) => tokio::time::sleep(pause).await,
            Ok(None) => return std::future::pending().await,
            Err(error) => return error,
        }
    }
}

/// Passes on what a sandbox prints until it ends; kills it when it takes too long, is to stop, or fills the store.
async fn follow(
    sandbox: &mut Sandbox,
    timeout: Option<Duration>,
    reporter: &Reporter,
    stop: &Stop,
    full: impl Future<Output = Error>,
    metered: impl Future<Output = Infallible>,
) -> Result<Ended> {
    sandbox.warnings().iter().for_each(|warning| reporter.note(warning));
    let streams = sandbox.take_streams();
    let sandbox = &*sandbox;
    let ended = async {
        let (printed, exit) = tokio::join!(logs::pass_on(streams, reporter), sandbox.wait());
        printed.and(exit)
    };
    let late = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(ended);
    tokio::select! {
        exit = &mut ended => Ok(Ended { exit: exit?, timed_out: None }),
        () = late => {
            sandbox.signal(Signal::KILL)?;
            // What it printed until then is there to be read.
            Ok(Ended { exit: ended.await?, timed_out: timeout })
        }
        () = stop.stopped() => {
            sandbox.signal(Signal::KILL)?;
            sandbox.wait().await.and(Err(cancelled()))
        }
        never = metered => match never {},
        error = full => {
            sandbox.signal(Signal::KILL)?;
            ended.await.and(Err(error))
        }
    }
}
