//! `GET /containers/{id}/json`: everything about one container, in the shape of docker's inspect.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Extension, Path, State};
use serde_json::{Map, Value, json};

use super::timestamp;
use crate::api::params::Params;
use crate::api::{Answer, ApiVersion};
use crate::container::Containers;
use crate::container::config::{Config, MountSource, Network, RestartPolicy};
use crate::container::record::{Address, Exited, Record, State as Doing};
use crate::engine::Engine;
use crate::error::Result;
use crate::task;

/// `GET /containers/{id}/json`.
pub(super) async fn inspect(
    State(engine): State<Engine>,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    params: Params,
) -> Answer<Json<Value>> {
    let size = params.flag("size");
    let found = task::blocking(move || {
        let containers = engine.containers();
        let record = containers.find(&id)?;
        let mut value = describe(&engine, &record, version)?;
        if size {
            let bytes = containers.layer_size(&record)?;
            value["SizeRw"] = json!(bytes);
            value["SizeRootFs"] = json!(bytes + image_size(&engine, &record)?);
        }
        Ok(value)
    })
    .await?;
    Ok(Json(found))
}

/// What the layers of a container's image take on the disk, in bytes; 0 when the image has gone.
pub(super) fn image_size(engine: &Engine, record: &Record) -> Result<u64> {
    let lease = engine.containers().lease()?;
    let Some(image) = engine.images().get(&lease, &record.config.image_id)? else { return Ok(0) };
    Ok(engine.images().summary(&lease, image)?.size_bytes)
}

fn describe(engine: &Engine, record: &Record, version: ApiVersion) -> Result<Value> {
    let containers = engine.containers();
    let (config, files) = (&record.config, containers.files(&record.id));
    let args = config.args();
    let mut value = json!({
        "Id": record.id.as_str(),
        "Created": timestamp(Some(record.created_ns)),
        "Path": args.first(),
        "Args": args.get(1..).unwrap_or_default(),
        "State": state(containers, record),
        "Image": config.image_id,
        "ResolvConfPath": files.resolv_conf(),
        "HostnamePath": files.hostname(),
        "HostsPath": files.hosts(),
        "LogPath": if config.io.log.is_some() { files.log().display().to_string() } else { String::new() },
        "Name": format!("/{}", record.name),
        "RestartCount": record.restarts,
        "Driver": engine.store().driver().to_string(),
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": config.host.security.apparmor.as_deref().unwrap_or_default(),
        "ExecIDs": null,
        "HostConfig": host_config(config)?,
        "Mounts": mounts(containers, record),
        "Config": container_config(config),
        "NetworkSettings": network_settings(record, version),
    });
    if version.at_least(52) {
        value["Storage"] = json!({ "RootFS": { "Snapshot": { "Name": engine.store().driver().to_string() } } });
    } else {
        value["GraphDriver"] = json!({ "Name": engine.store().driver().to_string(), "Data": null });
    }
    Ok(value)
}

fn state(containers: &Containers, record: &Record) -> Value {
    let paused = containers.is_paused(record);
    let (status, pid) = match &record.state {
        Doing::Created { .. } => ("created", 0),
        Doing::Running { pid, .. } => (if paused { "paused" } else { "running" }, *pid),
        Doing::Restarting(_) => ("restarting", 0),
        Doing::Exited(_) => ("exited", 0),
    };
    let mut started_ns = None;
    let mut finished_ns = None;
    let (mut oom_killed, mut error) = (false, String::new());
    match &record.state {
        Doing::Created { failure } => error = failure.as_ref().map_or_else(String::new, |(_, text)| text.clone()),
        Doing::Running { started_ns: at, .. } => started_ns = Some(*at),
        Doing::Restarting(exited) | Doing::Exited(exited) => {
            let Exited { started_ns: start, finished_ns: end, .. } = exited;
            (started_ns, finished_ns) = (Some(*start), Some(*end));
            (oom_killed, error) = (exited.oom_killed, exited.error.clone());
        }
    }
    json!({
        "Status": status,
        "Running": record.state.is_live(),
        "Paused": paused,
        "Restarting": status == "restarting",
        "OOMKilled": oom_killed,
        "Dead": false,
        "Pid": pid,
        "ExitCode": record.state.exit_code(),
        "Error": error,
        "StartedAt": timestamp(started_ns),
        "FinishedAt": timestamp(finished_ns),
    })
}

/// What the client sent, with the defaults that docker shows.
fn host_config(config: &Config) -> Result<Value> {
    let mut shown: Map<String, Value> = serde_json::from_str(&config.shown_host)?;
    let host = &config.host;
    let restart = match host.restart {
        RestartPolicy::No => ("no", 0),
        RestartPolicy::Always => ("always", 0),
        RestartPolicy::UnlessStopped => ("unless-stopped", 0),
        RestartPolicy::OnFailure(most) => ("on-failure", most),
    };
    let log = match &config.io.log {
        None => json!({ "Type": "none", "Config": {} }),
        Some(bounds) => json!({
            "Type": "json-file",
            "Config": { "max-size": bounds.max_size_bytes.to_string(), "max-file": bounds.max_files.to_string() },
        }),
    };
    let shared = |is_host: bool, own: &'static str| if is_host { "host" } else { own };
    let namespaces = host.host_namespaces;
    let security = &host.security;
    let masks = |paths: Vec<String>| if security.privileged || security.unconfined_paths { Vec::new() } else { paths };
    let fixed = [
        ("NetworkMode", json!(network_name(host.network))),
        ("RestartPolicy", json!({ "Name": restart.0, "MaximumRetryCount": restart.1 })),
        ("LogConfig", log),
        ("AutoRemove", json!(host.auto_remove)),
        ("Privileged", json!(security.privileged)),
        ("ReadonlyRootfs", json!(host.readonly_rootfs)),
        ("ShmSize", json!(host.shm_size_bytes.unwrap_or(crate::container::DEFAULT_SHM_SIZE_BYTES))),
        ("IpcMode", json!(shared(namespaces.ipc, "private"))),
        ("PidMode", json!(shared(namespaces.pid, ""))),
        ("UTSMode", json!(shared(namespaces.uts, ""))),
        ("CgroupnsMode", json!(shared(namespaces.cgroup, "private"))),
        ("Runtime", json!("kiln")),
        ("MaskedPaths", json!(masks(crate::container::masked_paths()))),
        ("ReadonlyPaths", json!(masks(crate::container::readonly_paths()))),
    ];
    shown.extend(fixed.map(|(name, value)| (name.to_owned(), value)));
    for (name, empty) in [
        ("Binds", Value::Null),
        ("PortBindings", json!({})),
        ("Dns", json!([])),
        ("DnsOptions", json!([])),
        ("DnsSearch", json!([])),
        ("CapAdd", Value::Null),
        ("CapDrop", Value::Null),
        ("ExtraHosts", Value::Null),
        ("SecurityOpt", Value::Null),
        ("Memory", json!(0)),
        ("NanoCpus", json!(0)),
        ("PidsLimit", Value::Null),
        ("Ulimits", Value::Null),
        ("Devices", Value::Null),
        ("OomScoreAdj", json!(0)),
        ("CgroupParent", json!("")),
    ] {
        shown.entry(name).or_insert(empty);
    }
    Ok(Value::Object(shown))
}

fn container_config(config: &Config) -> Value {
    let io = &config.io;
    let set = |names: &[String]| -> Map<String, Value> { names.iter().map(|name| (name.clone(), json!({}))).collect() };
    let volumes: Vec<String> = config
        .host
        .mounts
        .iter()
        .filter(|mount| mount.source == MountSource::Volume)
        .map(|mount| mount.target.clone())
        .collect();
    let or_null = |map: Map<String, Value>| if map.is_empty() { Value::Null } else { Value::Object(map) };
    let mut value = json!({
        "Hostname": config.hostname,
        "Domainname": config.domainname,
        "User": config.user,
        "AttachStdin": io.attach[0],
        "AttachStdout": io.attach[1],
        "AttachStderr": io.attach[2],
        "Tty": io.tty,
        "OpenStdin": io.open_stdin,
        "StdinOnce": io.stdin_once,
        "Env": config.env,
        "Cmd": if config.cmd.is_empty() { Value::Null } else { json!(config.cmd) },
        "Image": config.image,
        "Volumes": or_null(set(&volumes)),
        "WorkingDir": config.working_dir,
        "Entrypoint": if config.entrypoint.is_empty() { Value::Null } else { json!(config.entrypoint) },
        "OnBuild": null,
        "Labels": config.labels,
    });
    let mut add = |name: &str, wanted: bool, content: Value| {
        if wanted {
            value[name] = content;
        }
    };
    add("ExposedPorts", !config.exposed_ports.is_empty(), Value::Object(set(&config.exposed_ports)));
    add("StopSignal", !config.stop.signal.is_empty(), json!(config.stop.signal));
    add("StopTimeout", config.stop.timeout_s.is_some(), json!(config.stop.timeout_s));
    value
}

/// The mounts as `MountPoint`s.
pub(super) fn mounts(containers: &Containers, record: &Record) -> Vec<Value> {
    let files = containers.files(&record.id);
    let mounts = record.config.host.mounts.iter().enumerate();
    mounts
        .filter_map(|(index, mount)| {
            let mode = if mount.readonly { "ro" } else { "" };
            let mut point =
                json!({ "Destination": mount.target, "Mode": mode, "RW": !mount.readonly, "Propagation": "" });
            match &mount.source {
                MountSource::Bind { path, propagation, .. } => {
                    point["Type"] = json!("bind");
                    point["Source"] = json!(path);
                    point["Propagation"] = json!(if propagation.is_empty() { "rprivate" } else { propagation });
                }
                MountSource::Volume => {
                    point["Type"] = json!("volume");
                    point["Name"] = json!("");
                    point["Driver"] = json!("local");
                    point["Source"] = json!(files.volume(index));
                }
                // Docker lists those of `--tmpfs` in HostConfig only.
                MountSource::Tmpfs { .. } => return None,
            }
            Some(point)
        })
        .collect()
}

/// The name of a network mode.
pub(super) fn network_name(network: Network) -> &'static str {
    match network {
        Network::Bridge => "bridge",
        Network::Host => "host",
        Network::None => "none",
    }
}

/// The endpoints by network name.
pub(super) fn networks(record: &Record) -> BTreeMap<&'static str, Value> {
    let name = network_name(record.config.host.network);
    let address = record.address.as_ref();
    let text = |of: fn(&Address) -> String| address.map(of).unwrap_or_default();
    let endpoint = json!({
        "IPAMConfig": null,
        "Links": null,
        "Aliases": null,
        "DriverOpts": null,
        "GwPriority": 0,
        "NetworkID": text(|address| address.network.clone()),
        "EndpointID": text(|address| address.endpoint.clone()),
        "Gateway": text(|address| address.gateway.to_string()),
        "IPAddress": text(|address| address.ip.to_string()),
        "MacAddress": text(|address| address.mac.clone()),
        "IPPrefixLen": address.map_or(0, |address| address.prefix_len),
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": null,
    });
    BTreeMap::from([(name, endpoint)])
}

fn network_settings(record: &Record, version: ApiVersion) -> Value {
    let networks = networks(record);
    let mut settings = json!({ "SandboxID": "", "SandboxKey": "", "Ports": {} });
    if !version.at_least(52) {
        // Old clients read the default bridge's endpoint here.
        let bridge = networks.get("bridge").cloned().unwrap_or_default();
        for (name, none) in [
            ("EndpointID", json!("")),
            ("Gateway", json!("")),
            ("IPAddress", json!("")),
            ("IPPrefixLen", json!(0)),
            ("MacAddress", json!("")),
            ("GlobalIPv6Address", json!("")),
            ("GlobalIPv6PrefixLen", json!(0)),
            ("IPv6Gateway", json!("")),
        ] {
            settings[name] = bridge.get(name).cloned().unwrap_or(none);
        }
    }
    settings["Networks"] = json!(networks);
    settings
}
