//! `POST /containers/create`: the wire form of a container's settings, checked and converted.
//!
//! Clients send every field with its default; what is not the default and cannot be done is refused by the name of the
//! option that sets it.

use std::collections::{BTreeMap, HashMap};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::json;

use crate::api::Answer;
use crate::api::images::platform;
use crate::api::params::Params;
use crate::container::config::{
    Config, Dns, Host, HostNamespaces, Io, Mount, MountSource, Network, Resources, RestartPolicy, Security, Stop,
};
use crate::container::log::Bounds;
use crate::engine::Engine;
use crate::error::{Error, Result, ResultExt as _};
use crate::task;
use crate::types::{
    ContainerCreateBody, EndpointSettings, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig,
    Mount as WireMount, MountType,
};

/// The smallest memory limit docker accepts.
const MIN_MEMORY: i64 = 6 << 20;

/// `POST /containers/create`.
pub(super) async fn create(
    State(engine): State<Engine>,
    params: Params,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<impl IntoResponse> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if kind.is_none_or(|kind| kind.split(';').next() != Some("application/json")) {
        let found = kind.unwrap_or_default();
        return Err(
            Error::invalid(format!("unsupported Content-Type header ({found}): must be 'application/json'")).into()
        );
    }
    let body: ContainerCreateBody = serde_json::from_slice(&body).context(|| "read the container's settings")?;
    let platform = platform(&params)?;
    let name = params.text("name").map(str::to_owned);
    let created = task::blocking(move || {
        let containers = engine.containers();
        let lease = containers.lease()?;
        let image = body.image.clone().filter(|image| !image.is_empty());
        let image = image.ok_or_else(|| Error::invalid("no image specified"))?;
        let image = containers.image(&lease, &image, platform.as_ref())?;
        let log = engine.config().log;
        let mut config = settings(body, image.record.id, Bounds::of(log.max_size_bytes, log.max_files))?;
        let dns = &engine.config().dns;
        config.host.dns.add_defaults(
            dns.nameservers.iter().map(ToString::to_string).collect(),
            dns.search.clone(),
            dns.options.clone(),
        );
        containers.create(&lease, &image, name.as_deref(), config)
    })
    .await?;
    Ok((StatusCode::CREATED, axum::Json(json!({ "Id": created.id.as_str(), "Warnings": created.warnings }))))
}

/// Converts a request into settings; the image's defaults are not merged in yet. `log` is for requests that leave it open.
///
/// # Errors
/// `InvalidArgument` for what makes no sense, `Unsupported` for what Kiln cannot do.
pub(super) fn settings(body: ContainerCreateBody, image_id: kiln_graph::Digest, log: Bounds) -> Result<Config> {
    let host = body.host_config.unwrap_or_default();
    if let Some(health) = &body.healthcheck {
        refuse_health_check(health)?;
    }
    if let Some(endpoints) = body.networking_config.as_ref().and_then(|networking| networking.endpoints_config.as_ref())
    {
        refuse_endpoint_settings(endpoints)?;
    }
    if body.network_disabled == Some(true) {
        return Err(refused("NetworkDisabled (use --network none)"));
    }
    let shown_host = serde_json::to_string(&host)?;
    let io = Io {
        tty: body.tty.unwrap_or(false),
        open_stdin: body.open_stdin.unwrap_or(false),
        stdin_once: body.stdin_once.unwrap_or(false),
        attach: [body.attach_stdin, body.attach_stdout, body.attach_stderr].map(|flag| flag.unwrap_or(false)),
        console_size: console_size(host.console_size.as_deref()),
        log: log_bounds(host.log_config.as_ref(), log)?,
    };
    let mut host = host_settings(host)?;
    for path in body.volumes.iter().flatten() {
        if !host.mounts.iter().any(|mount| mount.target == *path) {
            host.mounts.push(Mount::volume(path));
        }
    }
    check_targets(&host.mounts)?;
    Ok(Config {
        image: body.image.unwrap_or_default(),
        image_id,
        hostname: body.hostname.unwrap_or_default(),
        domainname: body.domainname.unwrap_or_default(),
        user: body.user.unwrap_or_default(),
        env: body.env.unwrap_or_default(),
        entrypoint: body.entrypoint.unwrap_or_default(),
        cmd: body.cmd.unwrap_or_default(),
        working_dir: working_dir(body.working_dir.unwrap_or_default())?,
        labels: body.labels.unwrap_or_default().into_iter().collect(),
        exposed_ports: body.exposed_ports.unwrap_or_default(),
        io,
        stop: Stop { signal: body.stop_signal.unwrap_or_default(), timeout_s: body.stop_timeout },
        host,
        shown_host,
    })
}

/// Checks may be switched off, or given without content as some clients do.
fn refuse_health_check(health: &HealthConfig) -> Result<()> {
    let test = health.test.as_ref().and_then(|test| test.first());
    let numbers = [health.interval, health.timeout, health.retries, health.start_period, health.start_interval];
    match test.map(String::as_str) {
        Some("NONE") => Ok(()),
        Some(_) => Err(refused("health checks (--health-cmd)")),
        None if numbers.iter().any(|number| number.unwrap_or(0) != 0) => Err(refused("health checks (--health-*)")),
        None => Ok(()),
    }
}

/// What a container can be told about its network is its name.
fn refuse_endpoint_settings(endpoints: &HashMap<String, EndpointSettings>) -> Result<()> {
    if endpoints.len() > 1 {
        return Err(refused("several networks (--network)"));
    }
    let given = |text: Option<&String>| text.is_some_and(|text| !text.is_empty());
    for settings in endpoints.values() {
        let addresses = settings.ipam_config.as_ref();
        let unsupported = [
            ("--ip", given(addresses.and_then(|addresses| addresses.ipv4_address.as_ref()))),
            ("--ip6", given(addresses.and_then(|addresses| addresses.ipv6_address.as_ref()))),
            ("--network-alias", settings.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty())),
            ("--mac-address", given(settings.mac_address.as_ref())),
            ("--link", settings.links.as_ref().is_some_and(|links| !links.is_empty())),
            ("--network driver-opt", settings.driver_opts.as_ref().is_some_and(|options| !options.is_empty())),
        ];
        if let Some((name, _)) = unsupported.into_iter().find(|(_, set)| *set) {
            return Err(refused(name));
        }
    }
    Ok(())
}

fn refused(what: &str) -> Error {
    Error::unsupported(format!("{what}: not supported by this version of Kiln"))
}

fn working_dir(path: String) -> Result<String> {
    if path.is_empty() || path.starts_with('/') {
        return Ok(path);
    }
    Err(Error::invalid(format!("the working directory '{path}' is invalid, it needs to be an absolute path")))
}

fn console_size(size: Option<&[usize]>) -> [u16; 2] {
    let narrow = |size: usize| u16::try_from(size).unwrap_or(u16::MAX);
    match size {
        Some([rows, columns]) => [narrow(*rows), narrow(*columns)],
        _ => [0, 0],
    }
}

fn log_bounds(log: Option<&HostConfigLogConfig>, mut bounds: Bounds) -> Result<Option<Bounds>> {
    let Some(log) = log else { return Ok(Some(bounds)) };
    match log.typ.as_deref().unwrap_or_default() {
        "" | "json-file" => {}
        "none" => return Ok(None),
        other => return Err(refused(&format!("log driver {other} (--log-driver)"))),
    }
    for (name, value) in log.config.iter().flatten() {
        let invalid = || Error::invalid(format!("invalid value {value:?} of the log option {name}"));
        match name.as_str() {
            "max-size" => bounds.max_size_bytes = parse_size(value).ok_or_else(invalid)?,
            "max-file" => bounds.max_files = value.parse().ok().filter(|count| *count > 0).ok_or_else(invalid)?,
            other => return Err(refused(&format!("log option {other} (--log-opt)"))),
        }
    }
    Ok(Some(bounds))
}

/// Reads `10m`; the units are powers of 1024, as docker reads them.
fn parse_size(text: &str) -> Option<u64> {
    let lower = text.to_lowercase();
    let digits = lower.trim_end_matches('b').trim_end_matches('i');
    let (number, unit) = digits.split_at(digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len()));
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|size| *size > 0)
}

fn host_settings(host: HostConfig) -> Result<Host> {
    refuse_unsupported(&host)?;
    let namespaces = host_namespaces(&host)?;
    let network = network(host.network_mode.as_deref().unwrap_or_default())?;
    let security = security(&host)?;
    let resources = resources(&host)?;
    let mounts = mounts(&host)?;
    let restart = restart(&host)?;
    let oom_score_adj = host.oom_score_adj.unwrap_or(0);
    let oom_score_adj =
        i32::try_from(oom_score_adj).ok().filter(|adj| (-1000..=1000).contains(adj)).ok_or_else(|| {
            Error::invalid(format!("invalid value {oom_score_adj}, range for oom score adj is [-1000, 1000]"))
        })?;
    let shm_size_bytes = match host.shm_size.unwrap_or(0) {
        0 => None,
        size => Some(u64::try_from(size).map_err(|_| Error::invalid("SHM size can not be less than 0"))?),
    };
    let ulimits = host.ulimits.unwrap_or_default().into_iter().map(|limit| {
        let (soft, hard) = (limit.soft.unwrap_or(0), limit.hard.unwrap_or(0));
        (limit.name.unwrap_or_default(), soft, hard)
    });
    let devices = host.devices.unwrap_or_default().into_iter().map(|device| {
        let outside = device.path_on_host.unwrap_or_default();
        let inside = device.path_in_container.filter(|path| !path.is_empty()).unwrap_or_else(|| outside.clone());
        (outside, inside, device.cgroup_permissions.filter(|p| !p.is_empty()).unwrap_or_else(|| "rwm".to_owned()))
    });
    Ok(Host {
        auto_remove: host.auto_remove.unwrap_or(false),
        restart,
        readonly_rootfs: host.readonly_rootfs.unwrap_or(false),
        mounts,
        network,
        extra_hosts: host.extra_hosts.unwrap_or_default(),
        dns: Dns {
            servers: host.dns.unwrap_or_default(),
            search: host.dns_search.unwrap_or_default(),
            options: host.dns_options.unwrap_or_default(),
        },
        security,
        resources,
        ulimits: ulimits.collect(),
        sysctls: host.sysctls.unwrap_or_default().into_iter().collect(),
        init: host.init.unwrap_or(false),
        shm_size_bytes,
        cgroup_parent: host.cgroup_parent.unwrap_or_default(),
        oom_score_adj,
        host_namespaces: namespaces,
        devices: devices.collect(),
        groups: host.group_add.unwrap_or_default(),
    })
}

fn refuse_unsupported(host: &HostConfig) -> Result<()> {
    fn some<T>(list: Option<&Vec<T>>) -> bool {
        list.is_some_and(|list| !list.is_empty())
    }
    let number = |number: Option<i64>| number.unwrap_or(0) != 0;
    let runtime = host.runtime.as_deref().unwrap_or_default();
    let userns = host.userns_mode.as_deref().unwrap_or_default();
    let unsupported = [
        ("published ports (--publish)", host.port_bindings.as_ref().is_some_and(|ports| !ports.is_empty())),
        ("published ports (--publish-all)", host.publish_all_ports == Some(true)),
        ("--volumes-from", some(host.volumes_from.as_ref())),
        ("--volume-driver", host.volume_driver.as_ref().is_some_and(|driver| !driver.is_empty())),
        ("--link", some(host.links.as_ref())),
        ("--gpus", some(host.device_requests.as_ref())),
        ("--device-cgroup-rule", some(host.device_cgroup_rules.as_ref())),
        ("--blkio-weight", host.blkio_weight.unwrap_or(0) != 0),
        ("--blkio-weight-device", some(host.blkio_weight_device.as_ref())),
        ("--device-read-bps", some(host.blkio_device_read_bps.as_ref())),
        ("--device-write-bps", some(host.blkio_device_write_bps.as_ref())),
        ("--device-read-iops", some(host.blkio_device_read_iops.as_ref())),
        ("--device-write-iops", some(host.blkio_device_write_iops.as_ref())),
        ("--cpu-rt-period", number(host.cpu_realtime_period)),
        ("--cpu-rt-runtime", number(host.cpu_realtime_runtime)),
        ("--memory-swappiness", host.memory_swappiness.is_some_and(|value| value != -1)),
        ("--oom-kill-disable", host.oom_kill_disable == Some(true)),
        ("--storage-opt", host.storage_opt.as_ref().is_some_and(|options| !options.is_empty())),
        ("--runtime", !matches!(runtime, "" | "runc")),
        ("--userns", !matches!(userns, "" | "host")),
        ("--annotation", host.annotations.as_ref().is_some_and(|annotations| !annotations.is_empty())),
    ];
    match unsupported.into_iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(refused(name)),
        None => Ok(()),
    }
}

fn restart(host: &HostConfig) -> Result<RestartPolicy> {
    let Some(policy) = &host.restart_policy else { return Ok(RestartPolicy::No) };
    let name = policy.name.as_ref().map(ToString::to_string).unwrap_or_default();
    let retries = policy.maximum_retry_count.unwrap_or(0);
    let restart = match name.as_str() {
        "" | "no" => RestartPolicy::No,
        "always" => RestartPolicy::Always,
        "unless-stopped" => RestartPolicy::UnlessStopped,
        "on-failure" => {
            let max = u32::try_from(retries);
            RestartPolicy::OnFailure(max.map_err(|_| Error::invalid("maximum retry count cannot be negative"))?)
        }
        other => return Err(Error::invalid(format!("invalid restart policy: unknown policy '{other}'"))),
    };
    if retries != 0 && !matches!(restart, RestartPolicy::OnFailure(_)) {
        return Err(Error::invalid("invalid restart policy: maximum retry count can only be used with 'on-failure'"));
    }
    if host.auto_remove == Some(true) && restart != RestartPolicy::No {
        return Err(Error::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    Ok(restart)
}

fn host_namespaces(host: &HostConfig) -> Result<HostNamespaces> {
    let mode = |option: &str, value: Option<&str>, private: &[&str]| match value.unwrap_or_default() {
        "" => Ok(false),
        "host" => Ok(true),
        other if private.contains(&other) => Ok(false),
        other => Err(refused(&format!("--{option} {other}"))),
    };
    Ok(HostNamespaces {
        pid: mode("pid", host.pid_mode.as_deref(), &["private"])?,
        ipc: mode("ipc", host.ipc_mode.as_deref(), &["private", "shareable"])?,
        uts: mode("uts", host.uts_mode.as_deref(), &["private"])?,
        cgroup: host.cgroupns_mode == Some(HostConfigCgroupnsModeEnum::HOST),
    })
}

fn network(mode: &str) -> Result<Network> {
    match mode {
        "" | "default" | "bridge" => Ok(Network::Bridge),
        "host" => Ok(Network::Host),
        "none" => Ok(Network::None),
        other => Err(refused(&format!("--network {other} (bridge, host and none are)"))),
    }
}

fn security(host: &HostConfig) -> Result<Security> {
    let names = |list: Option<&Vec<String>>| -> Vec<String> {
        let bare = |name: &String| name.to_uppercase().trim_start_matches("CAP_").to_owned();
        list.into_iter().flatten().map(bare).collect()
    };
    let masks = [host.masked_paths.as_ref(), host.readonly_paths.as_ref()];
    if masks.iter().any(|paths| paths.is_some_and(|paths| !paths.is_empty())) {
        return Err(refused("lists of masked and read-only paths"));
    }
    let mut security = Security {
        privileged: host.privileged.unwrap_or(false),
        cap_add: names(host.cap_add.as_ref()),
        cap_drop: names(host.cap_drop.as_ref()),
        unconfined_paths: masks.iter().any(Option::is_some),
        ..Security::default()
    };
    for option in host.security_opt.iter().flatten() {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => security.no_new_privileges = false,
            ("seccomp", "builtin") => security.seccomp = None,
            ("seccomp", profile) => security.seccomp = Some(profile.to_owned()),
            ("apparmor", profile) => security.apparmor = Some(profile.to_owned()),
            ("label", "disable") => {}
            ("label", _) => return Err(refused("SELinux labels (--security-opt label)")),
            _ => return Err(Error::invalid(format!("invalid --security-opt: {option:?}"))),
        }
    }
    Ok(security)
}

fn resources(host: &HostConfig) -> Result<Resources> {
    let positive = |name: &str, value: Option<i64>| {
        u64::try_from(value.unwrap_or(0)).map_err(|_| Error::invalid(format!("{name} must not be negative")))
    };
    let memory = host.memory.unwrap_or(0);
    if memory != 0 && memory < MIN_MEMORY {
        return Err(Error::invalid("Minimum memory limit allowed is 6MB"));
    }
    let swap = host.memory_swap.unwrap_or(0);
    if memory == 0 && swap > 0 {
        return Err(Error::invalid("You should always set the Memory limit when using Memoryswap limit, see usage"));
    }
    if swap > 0 && swap < memory {
        return Err(Error::invalid("Minimum memoryswap limit should be larger than memory limit, see usage"));
    }
    let nano_cpus = positive("--cpus", host.nano_cpus)?;
    let (quota, period) = (host.cpu_quota.unwrap_or(0), positive("--cpu-period", host.cpu_period)?);
    if nano_cpus > 0 && (quota > 0 || period > 0) {
        return Err(Error::invalid("Conflicting options: Nano CPUs and CPU Period/Quota cannot both be set"));
    }
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    if nano_cpus > available * 1_000_000_000 {
        return Err(Error::invalid(format!(
            "range of CPUs is from 0.01 to {available}.00, as there are only {available} CPUs available"
        )));
    }
    Ok(Resources {
        memory_bytes: positive("--memory", host.memory)?,
        memory_swap_bytes: swap,
        memory_reservation_bytes: positive("--memory-reservation", host.memory_reservation)?,
        nano_cpus,
        cpu_shares: positive("--cpu-shares", host.cpu_shares)?,
        cpu_quota_us: quota,
        cpu_period_us: period,
        cpuset_cpus: host.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: host.cpuset_mems.clone().unwrap_or_default(),
        pids: host.pids_limit.unwrap_or(0).max(0),
    })
}

fn mounts(host: &HostConfig) -> Result<Vec<Mount>> {
    let binds = host.binds.iter().flatten().map(|bind| parse_bind(bind));
    let mounts = host.mounts.iter().flatten().map(convert_mount);
    let tmpfs: BTreeMap<_, _> = host.tmpfs.iter().flatten().collect();
    let tmpfs = tmpfs.into_iter().map(|(target, options)| parse_tmpfs(target, options));
    binds.chain(mounts).chain(tmpfs).collect()
}

fn check_targets(mounts: &[Mount]) -> Result<()> {
    for (index, mount) in mounts.iter().enumerate() {
        if !mount.target.starts_with('/') {
            let target = &mount.target;
            return Err(Error::invalid(format!("invalid mount path: '{target}' mount path must be absolute")));
        }
        if mount.target.trim_end_matches('/').is_empty() {
            return Err(Error::invalid("invalid specification: destination can't be '/'"));
        }
        if mounts[..index].iter().any(|other| other.target == mount.target) {
            return Err(Error::invalid(format!("Duplicate mount point: {}", mount.target)));
        }
    }
    Ok(())
}

/// Reads `-v`: `source:target[:options]`.
fn parse_bind(text: &str) -> Result<Mount> {
    let invalid = |why: &str| Error::invalid(format!("invalid volume specification: '{text}': {why}"));
    let (source, target, options) = match text.split(':').collect::<Vec<_>>().as_slice() {
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        [target] => return Ok(Mount::volume(target)),
        _ => return Err(invalid("expected source:target[:options]")),
    };
    if !source.starts_with('/') {
        return Err(refused(&format!("named volumes (-v {text}); bind a directory by its absolute path")));
    }
    let (mut readonly, mut propagation) = (false, String::new());
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => readonly = true,
            // `z` and `Z` relabel for SELinux, the others are for Docker Desktop: docker ignores them elsewhere, too.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "rprivate" | "private" | "rshared" | "shared" | "rslave" | "slave" => propagation = option.to_owned(),
            other => return Err(invalid(&format!("unknown option {other:?}"))),
        }
    }
    let source = MountSource::Bind { path: source.into(), create: true, propagation };
    Ok(Mount { target: target.to_owned(), readonly, source })
}

fn convert_mount(mount: &WireMount) -> Result<Mount> {
    let target = mount.target.clone().unwrap_or_default();
    let invalid = |why: &str| Error::invalid(format!("invalid mount config for {target}: {why}"));
    let source = mount.source.clone().unwrap_or_default();
    let source = match mount.typ {
        Some(MountType::BIND) => {
            if !source.starts_with('/') {
                return Err(invalid("the source of a bind must be an absolute path"));
            }
            let options = mount.bind_options.clone().unwrap_or_default();
            let special = [options.non_recursive, options.read_only_non_recursive];
            if special.contains(&Some(true)) {
                return Err(refused("non-recursive binds (bind-recursive)"));
            }
            MountSource::Bind {
                path: source.into(),
                create: options.create_mountpoint.unwrap_or(false),
                propagation: options.propagation.map(|propagation| propagation.to_string()).unwrap_or_default(),
            }
        }
        Some(MountType::TMPFS) => {
            if !source.is_empty() {
                return Err(invalid("a tmpfs has no source"));
            }
            let options = mount.tmpfs_options.clone().unwrap_or_default();
            let words = options.options.unwrap_or_default().into_iter().map(|words| words.join("="));
            MountSource::Tmpfs {
                size_bytes: options.size_bytes.and_then(|size| u64::try_from(size).ok()).filter(|size| *size > 0),
                mode: options.mode.and_then(|mode| u32::try_from(mode).ok()),
                options: words.collect(),
            }
        }
        Some(MountType::VOLUME) if source.is_empty() && mount.volume_options.is_none() => MountSource::Volume,
        Some(MountType::VOLUME) => return Err(refused("named volumes, and options of volumes")),
        Some(other) => return Err(refused(&format!("mounts of type {other} (bind and tmpfs are)"))),
        None => return Err(invalid("the type is missing")),
    };
    Ok(Mount { target, readonly: mount.read_only.unwrap_or(false), source })
}

/// Reads `--tmpfs target:options`.
fn parse_tmpfs(target: &str, options: &str) -> Result<Mount> {
    let (mut readonly, mut size_bytes, mut mode, mut rest) = (false, None, None, Vec::new());
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let invalid = || Error::invalid(format!("invalid tmpfs option {option:?} of {target}"));
        match option.split_once('=') {
            Some(("size", size)) => size_bytes = Some(parse_size(size).ok_or_else(invalid)?),
            Some(("mode", text)) => mode = Some(u32::from_str_radix(text, 8).map_err(|_| invalid())?),
            None if option == "ro" => readonly = true,
            None if option == "rw" => {}
            None if matches!(option, "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev") => {
                rest.push(option.to_owned());
            }
            _ => return Err(invalid()),
        }
    }
    Ok(Mount { target: target.to_owned(), readonly, source: MountSource::Tmpfs { size_bytes, mode, options: rest } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use kiln_graph::Digest;

    fn convert(host: &serde_json::Value) -> Result<Config> {
        let body = serde_json::json!({ "Image": "busybox", "Cmd": ["true"], "HostConfig": host });
        settings(serde_json::from_value(body).unwrap(), Digest::of(b""), Bounds::default())
    }

    #[test]
    fn what_the_docker_cli_sends_without_options_is_accepted() {
        let defaults = include_str!("../../../testdata/api/host-config-defaults.json");
        let config = convert(&serde_json::from_str(defaults).unwrap()).unwrap();
        assert_eq!(config.host, Host::default());
        assert_eq!(config.io.console_size, [30, 120]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_its_name() {
        for (host, name) in [
            (serde_json::json!({"PortBindings": {"80/tcp": [{"HostPort": "80"}]}}), "--publish"),
            (serde_json::json!({"Binds": ["data:/data"]}), "named volumes"),
            (serde_json::json!({"NetworkMode": "mynet"}), "--network mynet"),
            (serde_json::json!({"LogConfig": {"Type": "syslog"}}), "log driver syslog"),
            (serde_json::json!({"DeviceRequests": [{"Count": -1}]}), "--gpus"),
        ] {
            let error = convert(&host).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for host in [
            serde_json::json!({"Memory": 1000}),
            serde_json::json!({"MemorySwap": 1_000_000_000}),
            serde_json::json!({"NanoCpus": 1, "CpuQuota": 5}),
            serde_json::json!({"NanoCpus": 9_000_000_000_000_i64}),
            serde_json::json!({"Binds": ["/a:b"]}),
            serde_json::json!({"Binds": ["/a:/"]}),
            serde_json::json!({"Binds": ["/a:/b", "/c:/b"]}),
            serde_json::json!({"Binds": ["/a:/b:huh"]}),
            serde_json::json!({"SecurityOpt": ["whatever"]}),
            serde_json::json!({"OomScoreAdj": 5000}),
            serde_json::json!({"Tmpfs": {"/x": "size=huge"}}),
        ] {
            let error = convert(&host).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{host}: {error}");
        }
    }

    #[test]
    fn mounts_are_read_in_all_their_forms() {
        let config = convert(&serde_json::json!({
            "Binds": ["/a:/b:ro,rslave"],
            "Mounts": [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1024, "Mode": 448}},
                       {"Type": "bind", "Source": "/s", "Target": "/m", "ReadOnly": true}],
            "Tmpfs": {"/u": "size=64m,mode=700,exec"},
        }))
        .unwrap();
        let bind = |path: &str, create, propagation: &str| MountSource::Bind {
            path: path.into(),
            create,
            propagation: propagation.to_owned(),
        };
        let tmpfs = |size: u64, mode: u32, options: &[&str]| MountSource::Tmpfs {
            size_bytes: Some(size),
            mode: Some(mode),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let expected = [
            ("/b", true, bind("/a", true, "rslave")),
            ("/t", false, tmpfs(1024, 0o700, &[])),
            ("/m", true, bind("/s", false, "")),
            ("/u", false, tmpfs(64 << 20, 0o700, &["exec"])),
        ];
        let expected = expected.map(|(target, readonly, source)| Mount { target: target.to_owned(), readonly, source });
        assert_eq!(config.host.mounts, expected);
    }

    #[test]
    fn security_options_are_read() {
        let config = convert(&serde_json::json!({
            "CapAdd": ["cap_net_admin"], "CapDrop": ["ALL"], "MaskedPaths": [], "ReadonlyPaths": [],
            "SecurityOpt": ["no-new-privileges", "seccomp=unconfined", "label=disable"],
        }))
        .unwrap();
        let security = config.host.security;
        assert_eq!((security.cap_add, security.cap_drop), (vec!["NET_ADMIN".to_owned()], vec!["ALL".to_owned()]));
        assert!(security.no_new_privileges && security.unconfined_paths);
        assert_eq!(security.seccomp.as_deref(), Some("unconfined"));
    }
}
