//! A RUN that is ready to run: its tree, its mounts, its environment and its network.
//!
//! It can be started several times, one time after the other: to try it again, and to look into it after it failed.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use kiln_graph::op::{Exec, NetworkMode, SecurityMode};

use super::meter::Reading;
use super::mounts::Mounts;
use crate::error::{Error, Result, ResultExt as _};
use crate::network::files::{ExtraHost, HostAddress, Hosts, Reach, hosts, resolv_conf};
use crate::network::{PooledNetns, namespace};
use crate::sandbox::{
    self, Access, CgroupSpec, Devices, Hooks, MissingDir, Network, Process, Sandbox, Source, Spec, Stats, Stdio, Stubs,
    User,
};
use crate::solver::devices::Injection;
use crate::solver::job::Job;
use crate::solver::unmade::Left;
use crate::solver::value::Layer;
use crate::store::{self, Active, SnapshotId, tree};
use crate::task::Cancel;

/// BuildKit's host name of build steps.
const HOSTNAME: &str = "buildkitsandbox";

/// What the names of steps' control groups begin with.
pub(in crate::solver) const GROUP_PREFIX: &str = "build";

/// Where bundles for hooks are, below the root directory.
pub(in crate::solver) const BUNDLES: &str = "bundles";

/// A step that is ready to run.
#[derive(Debug)]
pub(in crate::solver) struct Step {
    pub(in crate::solver) job: Arc<Job>,
    pub(in crate::solver) exec: Exec,
    /// The environment, with proxies and secrets, which are no part of the step's identity.
    pub(in crate::solver) env: Vec<String>,
    /// What it changes, over what it lies on.
    tree: Active,
    mounts: Mounts,
    devices: Injection,
    netns: Option<PooledNetns>,
    /// What its last process used.
    pub(super) readings: Vec<Reading<Stats>>,
}

/// What a step runs with.
#[derive(Debug, Default)]
pub(super) struct Equipment {
    pub(super) mounts: Mounts,
    /// The environment, with proxies and secrets.
    pub(super) env: Vec<String>,
    pub(super) devices: Injection,
}

impl Step {
    /// Makes a step. Blocking.
    ///
    /// # Errors
    /// When the store or the network fails.
    pub(super) fn new(job: Arc<Job>, exec: Exec, below: Option<SnapshotId>, equipment: Equipment) -> Result<Self> {
        let Equipment { mounts, mut env, devices } = equipment;
        env.extend(devices.env.iter().cloned());
        let tree = job.solver.deps().store.prepare(&job.lease, below)?;
        let netns = match exec.network {
            NetworkMode::Sandbox => Some(job.solver.pool().get()?),
            NetworkMode::Host | NetworkMode::None => None,
        };
        Ok(Self { job, exec, env, tree, mounts, devices, netns, readings: Vec::new() })
    }

    /// Takes back what it has changed, in its tree and in bind mounts. What is in cache mounts stays. Blocking.
    ///
    /// # Errors
    /// When the store fails.
    pub(in crate::solver) fn renew(&mut self) -> Result<()> {
        let (store, lease) = (&self.job.solver.deps().store, &self.job.lease);
        self.tree = store.prepare(lease, self.tree.base())?;
        self.mounts.renew(store, lease)
    }

    /// Starts its process, or another in its place; `change` has the last word about the sandbox. Blocking. One at a time:
    /// [`Self::leave`] comes before the next start.
    ///
    /// # Errors
    /// As [`sandbox::spawn`].
    pub(in crate::solver) fn start(&self, stdio: Stdio, change: impl FnOnce(&mut Spec)) -> Result<Sandbox> {
        let mut spec = self.spec()?;
        change(&mut spec);
        let command = spec.process.args.join(" ");
        sandbox::spawn(spec, stdio).map_err(|error| error.context(format!("process {command:?}")))
    }

    /// Takes away what a sandbox has left in the tree besides what its processes did. Blocking.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub(in crate::solver) fn leave(&self, mut sandbox: Sandbox) -> Result<()> {
        let stubs = sandbox.take_stubs();
        drop(sandbox);
        self.clear(stubs)
    }

    /// Removes mount points that were made in the tree for a sandbox that has ended. Blocking.
    ///
    /// # Errors
    /// When the tree cannot be read.
    pub(in crate::solver) fn clear(&self, stubs: Stubs) -> Result<()> {
        if stubs.is_empty() { Ok(()) } else { stubs.remove(tree::open_root(self.tree.dir())?.as_fd()) }
    }

    /// Gives everything back but the tree, which holds what was changed. Blocking.
    pub(in crate::solver) fn into_tree(self) -> Active {
        self.into_parts().0
    }

    /// Gives everything back but the trees that are outputs, in the order of their numbers. Blocking.
    pub(in crate::solver) fn into_outputs(self) -> Vec<Active> {
        let root = self.exec.root.output;
        let (tree, mut outputs) = self.into_parts();
        outputs.extend(root.map(|output| (output, tree)));
        outputs.sort_by_key(|(output, _)| *output);
        outputs.into_iter().map(|(_, tree)| tree).collect()
    }

    /// Gives everything back, and returns no files. Blocking.
    pub(super) fn give_up(self) -> Option<Left> {
        drop(self.into_tree());
        None
    }

    /// Gives everything back but what its process could write to and nobody else can. Blocking.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn into_left(self) -> Result<Left> {
        let lease = self.job.lease.clone();
        let (tree, mounts) = self.into_trees();
        let layer = |tree: Active| Ok::<_, Error>(Layer::unfinished(tree.commit()?, lease.clone()));
        let mounts = mounts.into_trees().into_iter().map(|(target, tree)| Ok((target, layer(tree)?)));
        Ok(Left { mounts: mounts.collect::<Result<_>>()?, root: layer(tree)? })
    }

    fn into_parts(self) -> (Active, Vec<(u32, Active)>) {
        let (tree, mounts) = self.into_trees();
        (tree, mounts.into_outputs())
    }

    fn into_trees(self) -> (Active, Mounts) {
        let Self { exec, tree, mounts, netns, .. } = self;
        match netns {
            Some(netns) if exec.security != SecurityMode::Insecure => netns.recycle(),
            other => drop(other),
        }
        (tree, mounts)
    }

    /// Returns the store that its files are in.
    pub(in crate::solver) fn store(&self) -> &store::Store {
        &self.job.solver.deps().store
    }

    /// Returns the tree with what was changed.
    pub(in crate::solver) fn tree(&self) -> &Active {
        &self.tree
    }

    /// Describes a process in its sandbox: the command, the user and the limits of `exec`, and an environment. Privileges are not
    /// among it.
    ///
    /// # Errors
    /// `InvalidArgument` for a limit that does not exist.
    pub(in crate::solver) fn process(&self, exec: &Exec, env: Vec<String>) -> Result<Process> {
        let user = User::Named { name: exec.user.clone(), groups: self.devices.groups.clone() };
        let mut process = Process {
            env,
            user,
            cwd: exec.cwd.clone(),
            missing_cwd: MissingDir::OfUser,
            ..Process::docker(exec.args.clone())
        };
        for limit in &exec.ulimits {
            process.rlimits.push(sandbox::rlimit(&limit.name, limit.soft, limit.hard)?);
        }
        Ok(process)
    }

    /// Describes its sandbox, with everything mounted. Blocking. One at a time, as for [`Self::start`].
    ///
    /// # Errors
    /// When something cannot be mounted.
    pub(in crate::solver) fn spec(&self) -> Result<Spec> {
        let exec = &self.exec;
        let root = self.tree.rootfs()?.mount(store::Access::Volatile)?;
        let process = self.process(exec, self.env.clone())?;
        let hostname = if exec.hostname.is_empty() { HOSTNAME } else { &exec.hostname };
        let id = getrandom::u64().map_err(|error| Error::internal(format!("make an id: {error}")))?;
        let mut spec = Spec::docker(sandbox::temporary_id(GROUP_PREFIX, id), root, process);
        hostname.clone_into(&mut spec.hostname);
        spec.readonly_rootfs = exec.root.readonly;
        spec.shm_size_bytes = exec.shm_size_bytes.unwrap_or(spec.shm_size_bytes);
        spec.cgroup = Some(CgroupSpec { parent: exec.cgroup_parent.clone(), limits: self.job.limits(exec) });
        spec.mounts =
            vec![text_file("/etc/hosts", self.hosts(hostname)?), text_file("/etc/resolv.conf", self.resolv_conf()?)];
        spec.mounts.extend(self.devices.mounts()?);
        spec.mounts.extend(self.mounts.mount(&self.job.solver.deps().store)?);
        if let Devices::Listed { nodes, .. } = &mut spec.devices {
            nodes.extend(self.devices.nodes.iter().cloned());
        }
        spec.namespaces.network = match (&self.netns, exec.network) {
            (Some(netns), _) => Network::Join(netns.netns().try_clone_to_owned().context(|| "open a network")?),
            (None, NetworkMode::Host) => Network::Host,
            (None, _) => Network::None,
        };
        if exec.security == SecurityMode::Insecure {
            spec.make_privileged();
        }
        if !self.devices.hooks.is_empty() {
            let directory = self.store().root().subdir(BUNDLES)?;
            spec.hooks = Some(Hooks { directory, list: self.devices.hooks.clone(), cancel: Cancel::new() });
        }
        Ok(spec)
    }

    fn hosts(&self, hostname: &str) -> Result<String> {
        let mut extra = Vec::new();
        let mut gateway = None;
        for (name, address) in &self.exec.extra_hosts {
            let host: ExtraHost = format!("{name}={address}").parse()?;
            if host.address == HostAddress::Gateway && gateway.is_none() {
                gateway = Some(self.job.solver.deps().network.host_gateway()?);
            }
            extra.push(host);
        }
        let ipv6 = namespace::has_ipv6();
        hosts(&Hosts { ipv6, loopback_names: &[hostname], extra: &extra, gateway, own: &[] })
    }

    fn resolv_conf(&self) -> Result<String> {
        let reach = match self.exec.network {
            NetworkMode::Host => Reach::Host,
            NetworkMode::Sandbox | NetworkMode::None => Reach::Bridge,
        };
        let host = self.job.solver.deps().network.host_dns()?;
        Ok(resolv_conf(&host, &self.job.solver.deps().settings.dns, reach).0)
    }
}

fn text_file(target: &str, content: String) -> sandbox::Mount {
    let source = Source::File { content: content.into_bytes(), mode: 0o644, uid: 0, gid: 0 };
    sandbox::Mount { target: target.to_owned(), source, access: Access::ReadOnly }
}
