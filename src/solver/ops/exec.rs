//! RUN: a process in a sandbox over a new layer. What it changes is the layer; nothing is copied.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use kiln_graph::VertexId;
use kiln_graph::op::{Exec, NetworkMode, SecurityMode};
use rustix::process::Signal;

use super::logs;
use super::mounts::Mounts;
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::network::files::{Dns, ExtraHost, HostAddress, Hosts, Reach, hosts, resolv_conf};
use crate::network::{PooledNetns, namespace};
use crate::sandbox::{self, Access, CgroupSpec, Exit, Limits, Network, Process, Sandbox, Source, Spec, Stdio, User};
use crate::solver::job::{Entitlement, Job, Stop, cancelled};
use crate::solver::reporter::Reporter;
use crate::solver::settle::Made;
use crate::store::{self, Active, tree};
use crate::task;

/// BuildKit's host name of build steps.
const HOSTNAME: &str = "buildkitsandbox";

impl Job {
    /// Runs a process on the root file system it names, which gives one layer.
    pub(super) async fn run_exec(
        self: &Arc<Self>,
        id: VertexId,
        exec: &Exec,
        reporter: &Reporter,
        stop: &Stop,
    ) -> Result<Made> {
        self.check(exec)?;
        let vertex = self.graph.vertex(id);
        let base = self.file_system(vertex, exec.root.input)?;
        let prepare = async {
            let snapshot = self.materialize(&base).await?;
            let mounts = self.mounts(id, exec).await?;
            let env = self.environment(exec).await?;
            Ok::<_, Error>((snapshot, mounts, env))
        };
        let (snapshot, mounts, env) = tokio::select! {
            prepared = prepare => prepared?,
            () = stop.stopped() => return Err(cancelled()),
        };
        let (job, step) = (Arc::clone(self), exec.clone());
        let begun = task::blocking(move || job.begin_exec(&step, snapshot, mounts, env)).await?;
        let (begun, exit) = begun.follow(reporter, stop).await?;
        let (commands, valid) = (exec.args.join(" "), exec.valid_exit_codes.clone());
        let snapshot = task::blocking(move || {
            let active = begun.end()?;
            judge(&commands, &exit, &valid)?;
            active.commit()
        });
        let snapshot = snapshot.await?;
        let name = vertex.meta.name.clone();
        Ok(Made { snapshot, base, listing: None, name, has_digests: false })
    }

    /// Refuses what cannot be done, before anything is.
    fn check(&self, exec: &Exec) -> Result<()> {
        let wanted = [
            (exec.network == NetworkMode::Host, Entitlement::NetworkHost),
            (exec.security == SecurityMode::Insecure, Entitlement::SecurityInsecure),
        ];
        for (asked, entitlement) in wanted {
            if asked && !self.entitlements.contains(&entitlement) {
                let word = entitlement.as_str();
                return Err(Error::forbidden(format!("{word} is not allowed; build with --allow {word}")));
            }
        }
        if let Some(device) = exec.devices.iter().find(|device| !device.optional) {
            return Err(Error::unsupported(format!("the device {}: devices are not supported yet", device.name)));
        }
        if exec.root.output.is_none() || exec.root.readonly {
            return Err(Error::unsupported("steps whose root file system is dropped are not supported yet"));
        }
        Ok(())
    }

    /// The environment, with proxies and secrets, which are no part of the step's identity.
    async fn environment(&self, exec: &Exec) -> Result<Vec<String>> {
        let mut env = exec.env.clone();
        env.extend(exec.proxy.env.iter().map(|(name, value)| format!("{name}={value}")));
        for secret in &exec.secret_env {
            let Some(value) = self.secret(&secret.id, secret.optional).await? else { continue };
            let value = String::from_utf8(value)
                .map_err(|_| Error::invalid(format!("secret {} is no text, so it cannot be a variable", secret.id)))?;
            env.push(format!("{}={value}", secret.name));
        }
        Ok(env)
    }

    /// Starts the process. Blocking.
    fn begin_exec(
        &self,
        exec: &Exec,
        snapshot: Option<store::SnapshotId>,
        mut mounts: Mounts,
        env: Vec<String>,
    ) -> Result<Begun> {
        let active = self.solver.deps().store.prepare(&self.lease, snapshot)?;
        let root = active.rootfs()?.mount(store::Access::Volatile)?;
        let netns = match exec.network {
            NetworkMode::Sandbox => Some(self.solver.pool().get()?),
            NetworkMode::Host | NetworkMode::None => None,
        };
        let mut spec = self.spec(exec, root, env, std::mem::take(&mut mounts.mounts))?;
        spec.namespaces.network = match (&netns, exec.network) {
            (Some(netns), _) => Network::Join(netns.netns().try_clone_to_owned().context(|| "open a network")?),
            (None, NetworkMode::Host) => Network::Host,
            (None, _) => Network::None,
        };
        if exec.security == SecurityMode::Insecure {
            spec.make_privileged();
        }
        let privileged = exec.security == SecurityMode::Insecure;
        let sandbox = sandbox::spawn(spec, Stdio::Pipes { stdin: false })
            .map_err(|error| error.context(format!("process {:?}", exec.args.join(" "))))?;
        Ok(Begun { sandbox, active, mounts, netns, privileged })
    }

    fn spec(&self, exec: &Exec, root: OwnedFd, env: Vec<String>, mut mounts: Vec<sandbox::Mount>) -> Result<Spec> {
        let hostname = if exec.hostname.is_empty() { HOSTNAME } else { &exec.hostname };
        let user = User::Named { name: exec.user.clone(), groups: Vec::new() };
        let mut process = Process { env, user, cwd: exec.cwd.clone(), ..Process::docker(exec.args.clone()) };
        for limit in &exec.ulimits {
            process.rlimits.push(sandbox::rlimit(&limit.name, limit.soft, limit.hard)?);
        }
        let id = getrandom::u64().map_err(|error| Error::internal(format!("make an id: {error}")))?;
        let mut spec = Spec::docker(format!("build-{id:016x}"), root, process);
        hostname.clone_into(&mut spec.hostname);
        spec.shm_size_bytes = exec.shm_size_bytes.unwrap_or(spec.shm_size_bytes);
        spec.cgroup = Some(CgroupSpec { parent: exec.cgroup_parent.clone(), limits: Limits::default() });
        mounts.insert(0, text_file("/etc/resolv.conf", self.resolv_conf(exec)?));
        mounts.insert(0, text_file("/etc/hosts", self.hosts(exec, hostname)?));
        spec.mounts = mounts;
        Ok(spec)
    }

    fn hosts(&self, exec: &Exec, hostname: &str) -> Result<String> {
        let mut extra = Vec::new();
        let mut gateway = None;
        for (name, address) in &exec.extra_hosts {
            let host: ExtraHost = format!("{name}={address}").parse()?;
            if host.address == HostAddress::Gateway && gateway.is_none() {
                gateway = Some(self.solver.deps().network.host_gateway()?);
            }
            extra.push(host);
        }
        let ipv6 = namespace::has_ipv6();
        hosts(&Hosts { ipv6, loopback_names: &[hostname], extra: &extra, gateway, own: &[] })
    }

    fn resolv_conf(&self, exec: &Exec) -> Result<String> {
        let reach = match exec.network {
            NetworkMode::Host => Reach::Host,
            NetworkMode::Sandbox | NetworkMode::None => Reach::Bridge,
        };
        let host = self.solver.deps().network.host_dns()?;
        Ok(resolv_conf(&host, &Dns::default(), reach).0)
    }
}

fn text_file(target: &str, content: String) -> sandbox::Mount {
    let source = Source::File { content: content.into_bytes(), mode: 0o644, uid: 0, gid: 0 };
    sandbox::Mount { target: target.to_owned(), source, access: Access::ReadOnly }
}

/// A process that runs.
struct Begun {
    sandbox: Sandbox,
    active: Active,
    mounts: Mounts,
    netns: Option<PooledNetns>,
    privileged: bool,
}

impl Begun {
    /// Passes on what it prints until it ends; kills it when it is to stop.
    async fn follow(mut self, reporter: &Reporter, stop: &Stop) -> Result<(Self, Exit)> {
        for warning in self.sandbox.warnings() {
            reporter.log(2, &format!("{warning}\n").into());
        }
        let streams = self.sandbox.take_streams();
        let ended = async {
            let (printed, exit) = tokio::join!(logs::pass_on(streams, reporter), self.sandbox.wait());
            printed.and(exit)
        };
        let result = tokio::select! {
            result = ended => result,
            () = stop.stopped() => {
                self.sandbox.signal(Signal::KILL)?;
                self.sandbox.wait().await.and(Err(cancelled()))
            }
        };
        match result {
            Ok(exit) => Ok((self, exit)),
            Err(error) => {
                let cleanup = task::blocking(move || self.end().map(drop)).await;
                Err(error.and_cleanup(cleanup))
            }
        }
    }

    /// Takes away what the sandbox needed, and returns the tree with what the process changed. Blocking.
    fn end(mut self) -> Result<Active> {
        let stubs = self.sandbox.take_stubs();
        drop(self.sandbox);
        if !stubs.is_empty() {
            stubs.remove(tree::open_root(self.active.dir())?.as_fd())?;
        }
        self.mounts.release();
        match self.netns {
            Some(netns) if !self.privileged => netns.recycle(),
            other => drop(other),
        }
        Ok(self.active)
    }
}

/// Makes an error of an exit that is none of the valid ones, in BuildKit's words.
fn judge(command: &str, exit: &Exit, valid: &[i32]) -> Result<()> {
    let code = exit.code();
    let succeeded = if valid.is_empty() { code == 0 } else { valid.contains(&code) };
    if succeeded {
        return Ok(());
    }
    let why = exit.explain().map(|why| format!(": {why}")).unwrap_or_default();
    let text = format!("process {command:?} did not complete successfully: exit code: {code}{why}");
    let kind = if exit.is_oom_killed() { Kind::Exhausted } else { Kind::Internal };
    Err(Error::new(kind, text))
}
