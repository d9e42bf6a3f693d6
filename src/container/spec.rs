//! From a container's settings to the sandbox it runs in.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::config::{self, Config, Host, MountSource, Security};
use super::files::Files;
use super::record::{ContainerId, Record};
use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::network::files::{self as network_files, Dns, ExtraHost, HostAddress, Hosts, Reach};
use crate::network::{Endpoint, Network, namespace};
use crate::sandbox::{
    self, Access, Capabilities, Cgroup, CgroupSpec, CgroupView, DEFAULT_PATH, Device, Devices, Limits, Mount,
    Namespace, Namespaces, Process, Profile, Propagation, Seccomp, Source, Spec, Stdio, Swap, Tmpfs, User, WindowSize,
};

/// Checks what can be checked before there is anything to run: names of capabilities and limits, profiles, host names.
///
/// # Errors
/// `InvalidArgument` for what makes no sense; `Unsupported` for what this host does not have.
pub(super) fn check(config: &Config) -> Result<()> {
    let host = &config.host;
    capabilities(&host.security)?;
    seccomp(&host.security)?;
    rlimits(host)?;
    dns(&host.dns)?;
    extra_hosts(host)?;
    if !config.hostname.is_empty() {
        network_files::check_hostname(&config.hostname)?;
        if host.host_namespaces.uts {
            return Err(Error::invalid("conflicting options: hostname and the UTS mode"));
        }
    }
    Ok(())
}

/// Says which limits this host does not give. Blocking; costs nothing for a container without limits.
///
/// # Errors
/// `InvalidArgument` for a limit the kernel refuses, such as a processor that is not there.
pub(super) fn refused_limits(config: &Config, id: &ContainerId) -> Result<Vec<String>> {
    let limits = limits(&config.host);
    if limits == Limits::default() {
        return Ok(Vec::new());
    }
    Cgroup::try_limits(&CgroupSpec { parent: cgroup_parent(&config.host).to_owned(), limits }, id.as_str())
}

/// Makes the sandbox of a container. The files it sees of its network are written here. Blocking.
///
/// # Errors
/// `InvalidArgument`, in docker's words, for a bind whose source is missing, and for settings that cannot be.
pub(super) fn sandbox(
    record: &Record,
    files: &Files,
    rootfs: OwnedFd,
    netns: Option<OwnedFd>,
    network: &Network,
    endpoint: Option<&Endpoint>,
) -> Result<Spec> {
    let config = &record.config;
    let host = &config.host;
    let mut spec = Spec::docker(record.id.as_str(), rootfs, process(config)?);
    spec.namespaces = namespaces(host, netns);
    if !host.host_namespaces.uts {
        spec.hostname.clone_from(&config.hostname);
        spec.domainname.clone_from(&config.domainname);
    }
    spec.readonly_rootfs = host.readonly_rootfs;
    spec.mounts = mounts(record, files, network, endpoint)?;
    spec.shm_size_bytes = host.shm_size_bytes.unwrap_or(sandbox::DEFAULT_SHM_SIZE_BYTES);
    spec.sysctls = host.sysctls.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    spec.cgroup = Some(CgroupSpec { parent: cgroup_parent(host).to_owned(), limits: limits(host) });
    spec.init = host.init;
    if host.security.privileged {
        spec.make_privileged();
        spec.process.capabilities = spec.process.capabilities.adjust(&[], &host.security.cap_drop)?;
        if let Some(seccomp) = seccomp(&host.security)? {
            spec.process.seccomp = seccomp;
        }
    } else {
        spec.devices = Devices::Listed { nodes: devices(host)?, rules: Vec::new() };
    }
    if host.security.unconfined_paths {
        spec.masked_paths.clear();
        spec.readonly_paths.clear();
    }
    Ok(spec)
}

/// How the container's process is connected to its shim.
pub(super) fn stdio(config: &Config) -> Stdio {
    if config.io.tty {
        let [rows, columns] = config.io.console_size;
        return Stdio::Terminal(WindowSize { rows, columns });
    }
    Stdio::Pipes { stdin: config.io.open_stdin }
}

/// Opens the container's control group, if it has one now.
pub(super) fn cgroup(record: &Record) -> Result<Cgroup> {
    Cgroup::open(cgroup_parent(&record.config.host), record.id.as_str())
}

/// Kills what is left in the control group of a container without shim, and removes it.
pub(super) fn remove_cgroup(record: &Record) {
    if let Ok(cgroup) = cgroup(record) {
        cgroup.kill();
        // What hangs in the kernel stays; the group is taken over when the container is started again.
        let _ = cgroup.remove();
    }
}

fn cgroup_parent(host: &Host) -> &str {
    if host.cgroup_parent.is_empty() { sandbox::DEFAULT_PARENT } else { &host.cgroup_parent }
}

/// Makes the process of a container out of its settings.
pub(super) fn process(config: &Config) -> Result<Process> {
    let host = &config.host;
    let mut process = Process::docker(config.args());
    process.env = environment(config);
    process.cwd.clone_from(&config.working_dir);
    process.user = User::Named { name: config.user.clone(), groups: host.groups.clone() };
    process.capabilities = capabilities(&host.security)?;
    process.no_new_privileges = host.security.no_new_privileges;
    if let Some(seccomp) = seccomp(&host.security)? {
        process.seccomp = seccomp;
    }
    process.apparmor.clone_from(&host.security.apparmor);
    process.rlimits = rlimits(host)?;
    process.oom_score_adj = Some(host.oom_score_adj).filter(|adj| *adj != 0);
    Ok(process)
}

/// What every container gets, overridden by what it was given.
fn environment(config: &Config) -> Vec<String> {
    let mut base = vec![format!("PATH={DEFAULT_PATH}"), format!("HOSTNAME={}", config.hostname)];
    if config.io.tty {
        base.push("TERM=xterm".to_owned());
    }
    config::merge_env(&base, &config.env)
}

fn capabilities(security: &Security) -> Result<Capabilities> {
    Capabilities::docker_default().adjust(&security.cap_add, &security.cap_drop)
}

fn seccomp(security: &Security) -> Result<Option<Seccomp>> {
    match security.seccomp.as_deref() {
        None => Ok(None),
        Some("unconfined") => Ok(Some(Seccomp::Unconfined)),
        Some(profile) => Ok(Some(Seccomp::Profile(Arc::new(Profile::from_json(profile)?)))),
    }
}

fn rlimits(host: &Host) -> Result<Vec<(rustix::process::Resource, rustix::process::Rlimit)>> {
    host.ulimits.iter().map(|(name, soft, hard)| sandbox::rlimit(name, *soft, *hard)).collect()
}

fn namespaces(host: &Host, netns: Option<OwnedFd>) -> Namespaces {
    let shared = |is_host: bool| if is_host { Namespace::Host } else { Namespace::Private };
    Namespaces {
        network: netns.map_or(sandbox::Network::Host, sandbox::Network::Join),
        ipc: shared(host.host_namespaces.ipc),
        pid: shared(host.host_namespaces.pid),
        uts: shared(host.host_namespaces.uts),
        cgroup: if host.host_namespaces.cgroup { CgroupView::Host } else { CgroupView::Private },
        user: None,
    }
}

fn limits(host: &Host) -> Limits {
    let resources = &host.resources;
    let some = |value: u64| (value != 0).then_some(value);
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    let limits = Limits {
        memory_bytes: some(resources.memory_bytes),
        memory_swap: match resources.memory_swap_bytes {
            0 => None,
            total => Some(u64::try_from(total).map_or(Swap::Unlimited, Swap::Total)),
        },
        memory_reservation_bytes: some(resources.memory_reservation_bytes),
        cpu_quota_us: u64::try_from(resources.cpu_quota_us).ok().filter(|quota| *quota > 0),
        cpu_period_us: some(resources.cpu_period_us),
        cpu_shares: some(resources.cpu_shares),
        cpuset_cpus: text(&resources.cpuset_cpus),
        cpuset_mems: text(&resources.cpuset_mems),
        pids: u64::try_from(resources.pids).ok().filter(|pids| *pids > 0),
    };
    if resources.nano_cpus == 0 { limits } else { limits.with_nano_cpus(resources.nano_cpus) }
}

fn devices(host: &Host) -> Result<Vec<Device>> {
    host.devices
        .iter()
        .map(|(outside, inside, access)| Device::from_host(Path::new(outside), inside, access.parse()?))
        .collect()
}

/// The container's own mounts and the three files of its network, unless something of its own lies there.
fn mounts(record: &Record, files: &Files, network: &Network, endpoint: Option<&Endpoint>) -> Result<Vec<Mount>> {
    let wanted = &record.config.host.mounts;
    let mut mounts: Vec<Mount> =
        wanted.iter().enumerate().map(|(index, mount)| convert(mount, &files.volume(index))).collect::<Result<_>>()?;
    write_network_files(record, files, network, endpoint)?;
    let own =
        [("/etc/hosts", files.hosts()), ("/etc/hostname", files.hostname()), ("/etc/resolv.conf", files.resolv_conf())];
    for (target, path) in own {
        if !wanted.iter().any(|mount| mount.target == target) {
            let source = Source::Bind { source: open(&path)?, recursive: false, propagation: Propagation::Private };
            mounts.push(Mount { target: target.to_owned(), source, access: Access::ReadWrite });
        }
    }
    Ok(mounts)
}

fn convert(mount: &config::Mount, volume: &Path) -> Result<Mount> {
    let source = match &mount.source {
        MountSource::Bind { path, create, propagation } => {
            let propagation = match propagation.as_str() {
                "rshared" | "shared" => Propagation::Shared,
                "rslave" | "slave" => Propagation::Slave,
                _ => Propagation::Private,
            };
            if *create && !path.exists() {
                std::fs::create_dir_all(path)
                    .context(|| format!("error while creating mount source path '{}'", path.display()))?;
            }
            Source::Bind { source: open(path)?, recursive: true, propagation }
        }
        MountSource::Volume => {
            Source::Bind { source: open(volume)?, recursive: false, propagation: Propagation::Private }
        }
        MountSource::Tmpfs { size_bytes, mode, options } => {
            let mut tmpfs = Tmpfs { size_bytes: *size_bytes, ..Tmpfs::default() };
            tmpfs.mode = mode.unwrap_or(tmpfs.mode);
            for option in options {
                match option.as_str() {
                    "exec" => tmpfs.noexec = false,
                    "suid" => tmpfs.nosuid = false,
                    "dev" => tmpfs.nodev = false,
                    _ => {}
                }
            }
            Source::Tmpfs(tmpfs)
        }
    };
    let access = if mount.readonly { Access::ReadOnly } else { Access::ReadWrite };
    Ok(Mount { target: mount.target.clone(), source, access })
}

fn open(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        if errno == rustix::io::Errno::NOENT {
            return Error::invalid(format!("bind source path does not exist: {}", path.display()));
        }
        Error::from(errno).context(format!("open {}", path.display()))
    })
}

fn write_network_files(record: &Record, files: &Files, network: &Network, endpoint: Option<&Endpoint>) -> Result<()> {
    let config = &record.config;
    let extra = extra_hosts(&config.host)?;
    let on_host = config.host.network == config::Network::Host;
    let hosts = if on_host && extra.is_empty() {
        std::fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        let needs_gateway = extra.iter().any(|host| host.address == HostAddress::Gateway);
        let gateway = if needs_gateway { Some(network.host_gateway()?) } else { None };
        let name = match config.domainname.as_str() {
            "" => config.hostname.clone(),
            domain => format!("{}.{domain}", config.hostname),
        };
        let own: Vec<(IpAddr, &str)> =
            endpoint.iter().map(|endpoint| (endpoint.address.into(), name.as_str())).collect();
        let ipv6 = namespace::has_ipv6();
        network_files::hosts(&Hosts { ipv6, loopback_names: &[], extra: &extra, gateway, own: &own })?
    };
    write(&files.hosts(), &hosts)?;
    write(&files.hostname(), &network_files::hostname(&config.hostname))?;
    let reach = if on_host { Reach::Host } else { Reach::Bridge };
    let (resolv_conf, _) = network_files::resolv_conf(&network.host_dns()?, &dns(&config.host.dns)?, reach);
    write(&files.resolv_conf(), &resolv_conf)
}

/// Writes in place: the file may be mounted in a container that is being started again.
fn write(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o644).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let mut file = options.open(path).context(|| format!("write {}", path.display()))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).context(|| format!("write {}", path.display()))?;
    // The engine's umask must not keep the container's users from reading it.
    rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(0o644)).context(|| format!("write {}", path.display()))
}

fn extra_hosts(host: &Host) -> Result<Vec<ExtraHost>> {
    host.extra_hosts.iter().map(|text| text.parse()).collect()
}

fn dns(dns: &config::Dns) -> Result<Dns> {
    let address = |text: &String| {
        text.parse::<IpAddr>()
            .map_err(|_| Error::new(Kind::InvalidArgument, format!("invalid IP address in --dns: {text}")))
    };
    let servers = dns.servers.iter().map(address).collect::<Result<_>>()?;
    Dns::new(servers, dns.search.clone(), dns.options.clone())
}
