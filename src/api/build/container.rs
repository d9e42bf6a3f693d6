//! Containers of frontends: from BuildKit's messages to the solver's types.

use kiln_graph::op::{Mount, MountKind, NetworkMode, Root, SecretEnv, SecretFile, SecurityMode, Sharing, Ulimit};

use crate::error::{Error, Result};
use crate::solver::gateway::container::{ContainerRequest, ProcessRequest};
use crate::types::build::frontend::{InitMessage, NewContainerRequest};
use crate::types::build::pb;

/// The most mounts of a container.
const MAX_MOUNTS: usize = 1000;

/// Reads what a container is made of.
///
/// # Errors
/// `InvalidArgument` for what makes no sense, `Unsupported`, by name, for what is not there.
pub(super) fn request(request: NewContainerRequest) -> Result<ContainerRequest> {
    if request.container_id.is_empty() {
        return Err(Error::invalid("the container has no id (NewContainerRequest.ContainerID)"));
    }
    if let Some(filter) = request.constraints.and_then(|constraints| constraints.filter.into_iter().next()) {
        return Err(Error::unsupported(format!("choosing a worker by {filter:?}: there is one worker only")));
    }
    if request.mounts.len() > MAX_MOUNTS {
        return Err(Error::invalid(format!("a container has at most {MAX_MOUNTS} mounts")));
    }
    let mut asked =
        ContainerRequest { platform: request.platform.map(kiln_llb::decode_platform), ..ContainerRequest::default() };
    let mut has_root = false;
    for mount in request.mounts {
        let place = add_mount(&mut asked, mount)?;
        if place.is_none() && std::mem::replace(&mut has_root, true) {
            return Err(Error::invalid("a container has one root file system"));
        }
        asked.mounts.push(place);
    }
    if !has_root {
        return Err(Error::invalid("the container has no root file system: no mount at /"));
    }
    asked.exec.network = network(request.network)?;
    asked.exec.hostname = request.hostname;
    asked.exec.extra_hosts = request.extra_hosts.into_iter().map(|host| (host.host, host.ip)).collect();
    Ok(asked)
}

/// Adds a mount, and returns its position; `None` is the root.
fn add_mount(asked: &mut ContainerRequest, mount: pb::Mount) -> Result<Option<usize>> {
    let target = mount.dest.clone();
    if !target.starts_with('/') {
        return Err(Error::invalid(format!("the mount point {target:?} is no absolute path")));
    }
    let kind = pb::MountType::try_from(mount.mount_type);
    let kind = kind.map_err(|_| Error::unsupported(format!("mounts of type {}", mount.mount_type)))?;
    let mut result = |id: String| {
        asked.results.push(id);
        u32::try_from(asked.results.len() - 1).ok()
    };
    if target.trim_matches('/').is_empty() {
        if kind != pb::MountType::Bind || !mount.selector.trim_matches('/').is_empty() {
            return Err(Error::unsupported("a root file system that is not all of a result"));
        }
        asked.exec.root = Root { input: result(mount.result_id), readonly: mount.readonly, output: Some(0) };
        return Ok(None);
    }
    let missing = |what: &str| Error::invalid(format!("the mount at {target} has no {what}"));
    let selector = mount.selector;
    let kind = match kind {
        pb::MountType::Bind => MountKind::Bind { input: result(mount.result_id), selector, output: None },
        pb::MountType::Cache => {
            let cache = mount.cache_opt.ok_or_else(|| missing("CacheOpt"))?;
            let input = if mount.result_id.is_empty() { None } else { result(mount.result_id) };
            MountKind::Cache { id: cache.id, sharing: sharing(cache.sharing)?, input, selector }
        }
        pb::MountType::Tmpfs => {
            let size = mount.tmpfs_opt.map(|tmpfs| tmpfs.size).filter(|size| *size > 0);
            MountKind::Tmpfs { size_bytes: size.map(i64::unsigned_abs) }
        }
        pb::MountType::Secret => {
            let pb::SecretOpt { id, uid, gid, mode, optional } =
                mount.secret_opt.ok_or_else(|| missing("SecretOpt"))?;
            MountKind::Secret(SecretFile { id, uid, gid, mode, optional })
        }
        pb::MountType::Ssh => {
            let pb::SshOpt { id, uid, gid, mode, optional } = mount.ssh_opt.ok_or_else(|| missing("SSHOpt"))?;
            MountKind::Ssh(SecretFile { id, uid, gid, mode, optional })
        }
    };
    asked.exec.mounts.push(Mount { target, readonly: mount.readonly, kind });
    Ok(Some(asked.exec.mounts.len() - 1))
}

fn sharing(sharing: i32) -> Result<Sharing> {
    match pb::CacheSharingOpt::try_from(sharing) {
        Ok(pb::CacheSharingOpt::Shared) => Ok(Sharing::Shared),
        Ok(pb::CacheSharingOpt::Private) => Ok(Sharing::Private),
        Ok(pb::CacheSharingOpt::Locked) => Ok(Sharing::Locked),
        Err(_) => Err(Error::invalid(format!("{sharing} is no way to share a cache"))),
    }
}

fn network(mode: i32) -> Result<NetworkMode> {
    match pb::NetMode::try_from(mode) {
        Ok(pb::NetMode::Unset) => Ok(NetworkMode::Sandbox),
        Ok(pb::NetMode::Host) => Ok(NetworkMode::Host),
        Ok(pb::NetMode::None) => Ok(NetworkMode::None),
        Err(_) => Err(Error::invalid(format!("{mode} is no network mode"))),
    }
}

/// Reads what is to run in a container.
///
/// # Errors
/// `InvalidArgument` for what makes no sense.
pub(super) fn process(message: InitMessage) -> Result<ProcessRequest> {
    let meta = message.meta.unwrap_or_default();
    let security = match pb::SecurityMode::try_from(message.security) {
        Ok(pb::SecurityMode::Sandbox) => SecurityMode::Sandbox,
        Ok(pb::SecurityMode::Insecure) => SecurityMode::Insecure,
        Err(_) => return Err(Error::invalid(format!("{} is no security mode", message.security))),
    };
    let secret = |secret: pb::SecretEnv| SecretEnv { id: secret.id, name: secret.name, optional: secret.optional };
    let limit = |limit: pb::Ulimit| Ulimit { name: limit.name, soft: limit.soft, hard: limit.hard };
    Ok(ProcessRequest {
        args: meta.args,
        env: meta.env,
        secret_env: message.secretenv.into_iter().map(secret).collect(),
        cwd: meta.cwd,
        user: meta.user,
        ulimits: meta.ulimit.into_iter().map(limit).collect(),
        security,
        cgroup_parent: meta.cgroup_parent,
        terminal: message.tty,
    })
}
