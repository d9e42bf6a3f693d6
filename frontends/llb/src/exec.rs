//! Processes: their mounts, which of them are outputs, and what they run with.

use kiln_graph::op::{
    Device, Exec, Mount, MountKind, NetworkMode, Op, Proxy, Root, SecretEnv, SecretFile, SecurityMode, Sharing, Ulimit,
};

use crate::graph::{Adding, Output, bounded};
use crate::pb;
use crate::refusal::Refusal;

/// What is in `PATH` when the process's environment does not say, as with BuildKit.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An output while the mounts are read.
enum Given {
    /// An output of the process, by its number.
    Own(u32),
    /// What was mounted, unchanged.
    Input(Output),
}

/// Reads the mounts.
#[derive(Default)]
struct Mounts {
    root: Option<Root>,
    others: Vec<Mount>,
    given: Vec<Given>,
    own: u32,
}

/// Reads a process, and says what its outputs are.
pub(crate) fn read(mut adding: Adding<'_, '_>, op: pb::ExecOp) -> Result<Vec<Output>, Refusal> {
    let meta = op.meta.ok_or_else(|| Refusal::malformed("exec.meta", "it is missing"))?;
    if meta.args.is_empty() {
        return Err(Refusal::malformed("exec.meta.args", "there is no command"));
    }
    for (field, length) in [
        ("exec.mounts", op.mounts.len()),
        ("exec.secretenv", op.secretenv.len()),
        ("exec.cdiDevices", op.cdi_devices.len()),
        ("exec.meta.extraHosts", meta.extra_hosts.len()),
        ("exec.meta.ulimit", meta.ulimit.len()),
        ("exec.meta.validExitCodes", meta.valid_exit_codes.len()),
    ] {
        bounded(field, length)?;
    }
    adding.default_name(meta.args.join(" "));
    let mut mounts = Mounts::default();
    for (at, mount) in op.mounts.iter().enumerate() {
        mounts.read(&mut adding, mount, &format!("exec.mounts[{at}]"))?;
    }
    let root = mounts.root.ok_or_else(|| Refusal::malformed("exec.mounts", "none of them is the root file system"))?;
    let exec = Exec {
        root,
        mounts: mounts.others,
        network: network(op.network)?,
        security: security(op.security)?,
        secret_env: op
            .secretenv
            .into_iter()
            .map(|pb::SecretEnv { id, name, optional }| SecretEnv { id, name, optional })
            .collect(),
        devices: op.cdi_devices.into_iter().map(|pb::CdiDevice { name, optional }| Device { name, optional }).collect(),
        ..process(meta)?
    };
    let edge = adding.finish(Op::Exec(Box::new(exec)));
    let output = |given| match given {
        Given::Own(output) => Some(kiln_graph::Edge { output, ..edge }),
        Given::Input(output) => output,
    };
    Ok(mounts.given.into_iter().map(output).collect())
}

fn process(meta: pb::Meta) -> Result<Exec, Refusal> {
    let pb::Meta { args, mut env, cwd, user, proxy_env, extra_hosts, hostname, ulimit, cgroup_parent, .. } = meta;
    for (field, texts) in [("exec.meta.args", &args), ("exec.meta.env", &env)] {
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(Refusal::malformed(field, "a text holds a NUL"));
        }
    }
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(PATH.to_owned());
    }
    Ok(Exec {
        args,
        env: env.into(),
        cwd: absolute(&cwd),
        user,
        hostname,
        proxy: proxy_env.map(proxy).unwrap_or_default(),
        extra_hosts: extra_hosts.into_iter().map(|pb::HostIp { host, ip }| (host, ip)).collect(),
        ulimits: ulimit.into_iter().map(|pb::Ulimit { name, soft, hard }| Ulimit { name, soft, hard }).collect(),
        cgroup_parent,
        valid_exit_codes: meta.valid_exit_codes,
        ..Exec::default()
    })
}

/// Each setting in both spellings.
fn proxy(proxy: pb::ProxyEnv) -> Proxy {
    let pb::ProxyEnv { http_proxy, https_proxy, ftp_proxy, no_proxy, all_proxy } = proxy;
    let settings = [
        ("http_proxy", http_proxy),
        ("https_proxy", https_proxy),
        ("ftp_proxy", ftp_proxy),
        ("no_proxy", no_proxy),
        ("all_proxy", all_proxy),
    ];
    let given = settings.into_iter().filter(|(_, value)| !value.is_empty());
    Proxy {
        env: given.flat_map(|(name, value)| [(name.to_uppercase(), value.clone()), (name.to_owned(), value)]).collect(),
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn network(mode: i32) -> Result<NetworkMode, Refusal> {
    match pb::NetMode::try_from(mode) {
        Ok(pb::NetMode::Unset) => Ok(NetworkMode::Sandbox),
        Ok(pb::NetMode::Host) => Ok(NetworkMode::Host),
        Ok(pb::NetMode::None) => Ok(NetworkMode::None),
        Err(_) => Err(unknown("exec.network", mode)),
    }
}

fn security(mode: i32) -> Result<SecurityMode, Refusal> {
    match pb::SecurityMode::try_from(mode) {
        Ok(pb::SecurityMode::Sandbox) => Ok(SecurityMode::Sandbox),
        Ok(pb::SecurityMode::Insecure) => Ok(SecurityMode::Insecure),
        Err(_) => Err(unknown("exec.security", mode)),
    }
}

fn unknown(field: impl Into<String>, value: i32) -> Refusal {
    Refusal::unsupported(field, format!("the value {value} is not known"))
}

impl Mounts {
    fn read(&mut self, adding: &mut Adding<'_, '_>, mount: &pb::Mount, field: &str) -> Result<(), Refusal> {
        let kind = pb::MountType::try_from(mount.mount_type);
        let kind = kind.map_err(|_| unknown(format!("{field}.mountType"), mount.mount_type))?;
        // What on and off are about is how a result is found again; content decides here in any case.
        pb::MountContentCache::try_from(mount.content_cache)
            .map_err(|_| unknown(format!("{field}.contentCache"), mount.content_cache))?;
        if mount.dest.is_empty() || mount.dest.contains('\0') {
            return Err(Refusal::malformed(format!("{field}.dest"), "it is no path"));
        }
        let input = adding.source_of(mount.input, &format!("{field}.input"))?;
        let is_root = mount.dest == "/";
        if is_root {
            return self.root(adding, mount, (kind, input), field);
        }
        let selector = mount.selector.clone();
        let kind = match kind {
            pb::MountType::Bind => {
                let output = match mount.output {
                    // What cannot be written is given on as it came.
                    0.. if mount.readonly => {
                        self.output(mount.output, Given::Input(input), field)?;
                        None
                    }
                    _ => self.own(mount.output, field)?,
                };
                let input = if output.is_some() { adding.whole_of(input) } else { adding.paths_of(input) };
                MountKind::Bind { input, selector, output }
            }
            pb::MountType::Cache => {
                let options = mount.cache_opt.as_ref().ok_or_else(|| missing(field, "cacheOpt"))?;
                if mount.output >= 0 {
                    if mount.input < 0 {
                        let reason = "a cache mount without an input has no output";
                        return Err(Refusal::malformed(format!("{field}.output"), reason));
                    }
                    self.output(mount.output, Given::Input(input), field)?;
                }
                let sharing = match pb::CacheSharingOpt::try_from(options.sharing) {
                    Ok(pb::CacheSharingOpt::Shared) => Sharing::Shared,
                    Ok(pb::CacheSharingOpt::Private) => Sharing::Private,
                    Ok(pb::CacheSharingOpt::Locked) => Sharing::Locked,
                    Err(_) => return Err(unknown(format!("{field}.cacheOpt.sharing"), options.sharing)),
                };
                let input = adding.paths_of(input);
                MountKind::Cache { id: options.id.clone(), sharing, input, selector }
            }
            pb::MountType::Tmpfs => {
                let size = mount.tmpfs_opt.as_ref().map_or(0, |options| options.size);
                MountKind::Tmpfs { size_bytes: u64::try_from(size).ok().filter(|size| *size > 0) }
            }
            pb::MountType::Secret => {
                let options = mount.secret_opt.clone().ok_or_else(|| missing(field, "secretOpt"))?;
                let pb::SecretOpt { id, uid, gid, mode, optional } = options;
                MountKind::Secret(SecretFile { id, uid, gid, mode: mode & 0o777, optional })
            }
            pb::MountType::Ssh => {
                let options = mount.ssh_opt.clone().ok_or_else(|| missing(field, "SSHOpt"))?;
                let pb::SshOpt { id, uid, gid, mode, optional } = options;
                let id = if id.is_empty() { "default".to_owned() } else { id };
                MountKind::Ssh(SecretFile { id, uid, gid, mode: mode & 0o777, optional })
            }
        };
        self.others.push(Mount { target: absolute(&mount.dest), readonly: mount.readonly, kind });
        Ok(())
    }

    fn root(
        &mut self,
        adding: &mut Adding<'_, '_>,
        mount: &pb::Mount,
        (kind, input): (pb::MountType, Output),
        field: &str,
    ) -> Result<(), Refusal> {
        if kind != pb::MountType::Bind {
            return Err(Refusal::malformed(format!("{field}.mountType"), "the root file system must be a bind mount"));
        }
        if self.root.is_some() {
            return Err(Refusal::malformed(format!("{field}.dest"), "there is a root file system already"));
        }
        if !mount.selector.trim_matches('/').is_empty() {
            let reason = "the root file system is a whole one, and no part";
            return Err(Refusal::unsupported(format!("{field}.selector"), reason));
        }
        let output = self.own(mount.output, field)?;
        self.root = Some(Root { input: adding.whole_of(input), readonly: mount.readonly, output });
        Ok(())
    }

    /// Takes an output of the process; -1 is none.
    fn own(&mut self, output: i64, field: &str) -> Result<Option<u32>, Refusal> {
        if output == -1 {
            return Ok(None);
        }
        self.output(output, Given::Own(self.own), field)?;
        self.own += 1;
        Ok(Some(self.own - 1))
    }

    /// Outputs are numbered in the order of the mounts, which BuildKit relies on.
    fn output(&mut self, output: i64, given: Given, field: &str) -> Result<(), Refusal> {
        if usize::try_from(output) != Ok(self.given.len()) {
            let expected = self.given.len();
            let reason = format!("the next output must have the number {expected}, or -1 for none; it has {output}");
            return Err(Refusal::malformed(format!("{field}.output"), reason));
        }
        self.given.push(given);
        Ok(())
    }
}

fn missing(field: &str, option: &str) -> Refusal {
    Refusal::malformed(format!("{field}.{option}"), "it is missing")
}
