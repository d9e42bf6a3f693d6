//! `GET /info`: what the engine is and what the host can do.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::api::Answer;
use crate::container::record::{Record, State as ContainerState};
use crate::engine::{Engine, Host};
use crate::error::Result;
use crate::image::record;
use crate::task;

/// `GET /info`.
pub(in crate::api) async fn info(State(engine): State<Engine>) -> Answer<Json<Value>> {
    Ok(Json(task::blocking(move || collect(&engine)).await?))
}

fn collect(engine: &Engine) -> Result<Value> {
    let host = Host::read(engine.root().path());
    let mut info = described(engine, &host);
    let containers = engine.containers().list()?;
    let runs = |record: &&Record| matches!(record.state, ContainerState::Running { .. });
    let up = containers.iter().filter(runs).count();
    let paused = containers.iter().filter(runs).filter(|record| engine.containers().is_paused(record)).count();
    let images = engine.root().db().read(record::all)?.len();
    let counts = json!({
        "Containers": containers.len(),
        "ContainersRunning": up - paused,
        "ContainersPaused": paused,
        "ContainersStopped": containers.len() - up,
        "Images": images,
        "Warnings": warnings(engine, &host),
    });
    merge(&mut info, counts);
    merge(&mut info, limits());
    merge(&mut info, registries(engine));
    Ok(info)
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn described(engine: &Engine, host: &Host) -> Value {
    let uname = rustix::system::uname();
    let text = |value: &std::ffi::CStr| value.to_string_lossy().into_owned();
    let now = jiff::Timestamp::from_nanosecond(engine.clock().now_ns().into()).unwrap_or_default();
    let commit = json!({ "ID": "" });
    json!({
        "ID": engine.root().path(),
        "Name": text(uname.nodename()),
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "Driver": engine.store().driver().to_string(),
        "DriverStatus": [["Backing Filesystem", host.backing_fs]],
        "DockerRootDir": engine.root().path(),
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null"],
            "Authorization": null,
            "Log": ["json-file", "none"],
        },
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": host.cgroup_version.to_string(),
        "KernelVersion": text(uname.release()),
        "OperatingSystem": host.operating_system,
        "OSVersion": host.os_version,
        "OSType": "linux",
        "Architecture": text(uname.machine()),
        "NCPU": host.cpus,
        "MemTotal": host.memory_bytes,
        "SystemTime": now.to_string(),
        "SecurityOptions": security_options(host),
        "Runtimes": { "kiln": { "path": "kiln" } },
        "DefaultRuntime": "kiln",
        "Swarm": { "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "", "RemoteManagers": null },
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "kiln",
        "ContainerdCommit": commit,
        "RuncCommit": commit,
        "InitCommit": commit,
        "Labels": [],
        "ExperimentalBuild": false,
        "Debug": false,
        "NFd": 0,
        "NGoroutines": 0,
        "NEventsListener": 0,
        "GenericResources": null,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "CDISpecDirs": [],
    })
}

fn security_options(host: &Host) -> Vec<&'static str> {
    let mut options = vec!["name=seccomp,profile=builtin"];
    if host.cgroup_version == 2 {
        options.push("name=cgroupns");
    }
    options
}

/// Which limits of containers are enforced.
fn limits() -> Value {
    json!({
        "MemoryLimit": true,
        "SwapLimit": true,
        "CpuCfsPeriod": true,
        "CpuCfsQuota": true,
        "CPUShares": true,
        "CPUSet": true,
        "PidsLimit": true,
        "OomKillDisable": false,
        "IPv4Forwarding": true,
        "BridgeNfIptables": false,
        "BridgeNfIp6tables": false,
    })
}

fn registries(engine: &Engine) -> Value {
    let hub = engine.config().registries.host("docker.io");
    let mirrors: Vec<String> = hub.mirrors.iter().map(ToString::to_string).collect();
    json!({
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "AllowNondistributableArtifactsCIDRs": null,
            "AllowNondistributableArtifactsHostnames": null,
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
            "IndexConfigs": {
                "docker.io": { "Name": "docker.io", "Mirrors": mirrors, "Secure": true, "Official": true },
            },
            "Mirrors": mirrors,
        },
    })
}

/// What a user should know because it will be in the way. Looking needs privileges, and not having them is told elsewhere.
fn warnings(engine: &Engine, host: &Host) -> Vec<String> {
    let mut warnings = engine.network().obstacles().unwrap_or_default();
    if let Ok(Some(note)) = engine.store().driver_note() {
        warnings.push(format!("WARNING: {note}"));
    }
    if host.memory_bytes == 0 {
        warnings.push("WARNING: /proc is not mounted: much will not work".to_owned());
    }
    warnings
}
