//! Devices that steps ask for, as the Container Device Interface describes them: specifications in `/etc/cdi` and
//! `/var/run/cdi`, in JSON or YAML (`https://github.com/cncf-tags/container-device-interface`, version 0.8 and before).
//!
//! Device nodes, bind mounts, variables, groups and hooks are carried out. Whatever else a specification says (network devices,
//! Intel RDT) is refused by name: leaving it out would give a device that does not work.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_graph::diagnostic::closest;
use kiln_graph::op;
use rustix::fs::{Mode, OFlags};
use saphyr::{LoadableYamlNode as _, Yaml};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result, ResultExt as _};
use crate::sandbox::{self, Access, Device, DeviceAccess, DeviceKind, Hook, HookPoint, Propagation, Source};

/// Where specifications are; a device that is described in several takes the last.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// A specification larger than this is refused.
const MAX_BYTES: u64 = 4 << 20;

/// The annotation that names a class of devices, and the one that allows a device without being asked (BuildKit's names).
const CLASS: &str = "org.mobyproject.buildkit.device.class";
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";

/// What a step gets with its devices.
#[derive(Debug, Default)]
pub(super) struct Injection {
    pub(super) nodes: Vec<Device>,
    pub(super) env: Vec<String>,
    pub(super) groups: Vec<String>,
    pub(super) hooks: Vec<Hook>,
    mounts: Vec<CdiMount>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
    #[serde(default)]
    devices: Vec<CdiDevice>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CdiDevice {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<CdiMount>,
    hooks: Vec<CdiHook>,
    #[serde(rename = "additionalGids")]
    additional_gids: Vec<u32>,
    /// Everything else.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<u32>,
    minor: Option<u32>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CdiMount {
    host_path: PathBuf,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CdiHook {
    hook_name: String,
    path: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    /// In seconds.
    timeout: Option<i64>,
}

/// A device with all that belongs to it.
#[derive(Debug)]
pub(super) struct Known {
    /// `vendor/class=name`.
    pub(super) name: String,
    class: Option<String>,
    pub(super) auto_allow: bool,
    /// Its specification's, which come once however many of its devices are given.
    common: Arc<Edits>,
    /// Its own.
    edits: Edits,
}

/// Reads all specifications. Blocking.
///
/// # Errors
/// With the file: what cannot be read or makes no sense.
pub(super) fn known(directories: &[PathBuf]) -> Result<Vec<Known>> {
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    for file in directories.iter().flat_map(|dir| files(dir)) {
        let spec = read(&file).context(|| format!("read the device specification {}", file.display()))?;
        let common = Arc::new(spec.container_edits);
        for device in spec.devices {
            let name = format!("{}={}", spec.kind, device.name);
            let annotation = |key: &str| device.annotations.get(key).or_else(|| spec.annotations.get(key)).cloned();
            let (class, auto_allow) = (annotation(CLASS), annotation(AUTO_ALLOW).is_some_and(|value| value == "true"));
            let (common, edits) = (Arc::clone(&common), device.container_edits);
            known.insert(name.clone(), Known { name, class, auto_allow, common, edits });
        }
    }
    Ok(known.into_values().collect())
}

/// A directory that is not there holds nothing.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let is_spec = |path: &PathBuf| matches!(path.extension().and_then(|e| e.to_str()), Some("json" | "yaml" | "yml"));
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_spec).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Result<Spec> {
    if std::fs::metadata(path)?.len() > MAX_BYTES {
        return Err(Error::invalid(format!("it is larger than {} MiB", MAX_BYTES >> 20)));
    }
    let text = std::fs::read_to_string(path)?;
    // JSON is YAML.
    let documents = Yaml::load_from_str(&text).map_err(|error| Error::invalid(error.to_string()))?;
    let document = documents.first().ok_or_else(|| Error::invalid("it is empty"))?;
    serde_json::from_value(json(document)).map_err(|error| Error::invalid(error.to_string()))
}

fn json(yaml: &Yaml<'_>) -> Value {
    if let Some(sequence) = yaml.as_sequence() {
        return sequence.iter().map(json).collect();
    }
    if let Some(mapping) = yaml.as_mapping() {
        let entries = mapping.iter().filter_map(|(key, value)| Some((key.as_str()?.to_owned(), json(value))));
        return Value::Object(entries.collect());
    }
    if let Some(number) = yaml.as_integer() {
        return number.into();
    }
    if let Some(truth) = yaml.as_bool() {
        return truth.into();
    }
    yaml.as_str().map_or(Value::Null, Value::from)
}

/// What may be used without being allowed one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Allowed {
    /// Nothing.
    #[default]
    Nothing,
    /// These.
    Named(Vec<String>),
    /// Everything.
    All,
}

impl Allowed {
    fn covers(&self, asked: &str, found: &Known) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => found.auto_allow,
            Self::Named(names) => {
                let kind = found.name.split('=').next().unwrap_or_default();
                let all = format!("{kind}=*");
                let granted = |name: &String| [asked, &found.name, kind, &all].contains(&name.as_str());
                found.auto_allow || names.iter().any(granted)
            }
        }
    }
}

/// Finds what steps ask for, as BuildKit selects: `vendor/class=name`, `vendor/class=*`, `vendor/class` (the first), or the class
/// that an annotation gives.
///
/// # Errors
/// `NotFound` for a device that is required and not there, `Forbidden` for one that is not allowed, `Unsupported` for what is
/// not carried out.
pub(super) fn inject(asked: &[op::Device], known: &[Known], allowed: &Allowed) -> Result<Injection> {
    let mut injection = Injection::default();
    let mut given: Vec<&Known> = Vec::new();
    for device in asked {
        let found = select(&device.name, known);
        if found.is_empty() && !device.optional {
            return Err(missing(&device.name, known));
        }
        for found in found {
            if !allowed.covers(&device.name, found) {
                // BuildKit leaves an optional one out.
                if device.optional {
                    continue;
                }
                let (asked, name) = (&device.name, &found.name);
                return Err(Error::forbidden(format!(
                    "device {asked} is not allowed; build with --allow device={name}"
                )));
            }
            if given.iter().any(|other| other.name == found.name) {
                continue;
            }
            let doing = || format!("device {}", found.name);
            if !given.iter().any(|other| Arc::ptr_eq(&other.common, &found.common)) {
                injection.add(&found.common, found).context(doing)?;
            }
            injection.add(&found.edits, found).context(doing)?;
            given.push(found);
        }
    }
    Ok(injection)
}

fn select<'a>(asked: &str, known: &'a [Known]) -> Vec<&'a Known> {
    let (kind, name) = asked.split_once('=').unwrap_or((asked, ""));
    let of_kind = || known.iter().filter(|device| device.name.split('=').next() == Some(kind));
    let found: Vec<&Known> = match name {
        _ if !kind.contains('/') => Vec::new(),
        "" => of_kind().take(1).collect(),
        "*" => of_kind().collect(),
        _ => known.iter().filter(|device| device.name == asked).collect(),
    };
    if found.is_empty() {
        known.iter().filter(|device| device.class.as_deref() == Some(asked)).collect()
    } else {
        found
    }
}

fn missing(name: &str, known: &[Known]) -> Error {
    let names: Vec<&str> = known.iter().map(|device| device.name.as_str()).collect();
    let hint = match closest(name, names.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None if names.is_empty() => format!("there are no device specifications in {}", DIRECTORIES.join(" and ")),
        None => format!("there are {}", names.join(", ")),
    };
    Error::not_found(format!("device {name} is required and not registered: {hint}"))
}

impl Injection {
    fn add(&mut self, edits: &Edits, device: &Known) -> Result<()> {
        if let Some((key, _)) = edits.others.iter().find(|(_, value)| !is_nothing(value)) {
            return Err(Error::unsupported(format!("its specification has {key}, which is not supported")));
        }
        self.env.extend(edits.env.iter().cloned());
        self.groups.extend(edits.additional_gids.iter().map(ToString::to_string));
        self.mounts.extend(edits.mounts.iter().cloned());
        for node in &edits.device_nodes {
            self.nodes.push(node.device()?);
        }
        for hook in &edits.hooks {
            self.hooks.push(hook.hook(&device.name).context(|| format!("its hook {} {}", hook.hook_name, hook.path))?);
        }
        Ok(())
    }

    /// Opens what is mounted.
    ///
    /// # Errors
    /// When something on the host is not there.
    pub(super) fn mounts(&self) -> Result<Vec<sandbox::Mount>> {
        self.mounts.iter().map(CdiMount::mount).collect()
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

impl Node {
    fn device(&self) -> Result<Device> {
        let access = self.permissions.as_deref().map_or(Ok(DeviceAccess::ALL), str::parse)?;
        let mut device = match (self.kind.as_deref(), self.major, self.minor) {
            (Some(kind @ ("c" | "u" | "b")), Some(major), Some(minor)) => Device {
                path: self.path.clone(),
                kind: if kind == "b" { DeviceKind::Block } else { DeviceKind::Character },
                major,
                minor,
                mode: 0o666,
                uid: 0,
                gid: 0,
                access,
            },
            (Some("p"), ..) => {
                return Err(Error::unsupported(format!("{} is a pipe, which is not supported", self.path)));
            }
            _ => Device::from_host(self.host_path.as_deref().unwrap_or(Path::new(&self.path)), &self.path, access)?,
        };
        device.mode = self.file_mode.unwrap_or(device.mode);
        device.uid = self.uid.unwrap_or(device.uid);
        device.gid = self.gid.unwrap_or(device.gid);
        Ok(device)
    }
}

impl CdiHook {
    fn hook(&self, device: &str) -> Result<Hook> {
        let names = || HookPoint::ALL.map(HookPoint::name).join(", ");
        let point = HookPoint::ALL.into_iter().find(|point| point.name() == self.hook_name);
        let point = point.ok_or_else(|| Error::invalid(format!("there is no such hook; there are {}", names())))?;
        if !self.path.starts_with('/') {
            return Err(Error::invalid("its path is not absolute"));
        }
        if let Some(entry) =
            self.env.iter().find(|entry| !matches!(entry.split_once('='), Some((name, _)) if !name.is_empty()))
        {
            return Err(Error::invalid(format!("its variable {entry:?} is not NAME=value")));
        }
        let seconds = |timeout: i64| u64::try_from(timeout).ok().filter(|seconds| *seconds > 0);
        let timeout = match self.timeout.map(|timeout| (timeout, seconds(timeout))) {
            None => None,
            Some((_, Some(seconds))) => Some(Duration::from_secs(seconds)),
            Some((timeout, None)) => {
                return Err(Error::invalid(format!("its timeout is {timeout}, and must be at least a second")));
            }
        };
        let (path, args, env) = (self.path.clone(), self.args.clone(), self.env.clone());
        Ok(Hook { point, path, args, env, timeout, origin: format!("device {device}") })
    }
}

impl CdiMount {
    fn mount(&self) -> Result<sandbox::Mount> {
        let unknown = |option: &&String| {
            !matches!(option.as_str(), "ro" | "rw" | "bind" | "rbind" | "nosuid" | "nodev" | "private" | "rprivate")
        };
        if let Some(option) = self.options.iter().find(unknown) {
            let path = self.container_path.as_str();
            return Err(Error::unsupported(format!(
                "the mount of {path} has the option {option}, which is not supported"
            )));
        }
        let source = rustix::fs::open(&self.host_path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .context(|| format!("open {}", self.host_path.display()))?;
        let has = |wanted: &str| self.options.iter().any(|option| option == wanted);
        let source = Source::Bind { source, recursive: has("rbind"), propagation: Propagation::Private };
        let access = if has("ro") { Access::ReadOnly } else { Access::ReadWrite };
        Ok(sandbox::Mount { target: self.container_path.clone(), source, access })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "cdiVersion: '0.6.0'\nkind: example.com/gpu\nannotations:\n  org.mobyproject.buildkit.device.class: gpu\n\
        containerEdits:\n  env: [COMMON=1]\ndevices:\n- name: one\n  containerEdits:\n    env: ['ONE=1']\n    deviceNodes:\n    \
        - path: /dev/gpu-one\n      hostPath: /dev/null\n      permissions: rw\n    mounts:\n    - hostPath: /etc\n      \
        containerPath: /gpu\n      options: [ro, rbind]\n- name: two\n  annotations:\n    \
        org.mobyproject.buildkit.device.autoallow: 'true'\n  containerEdits:\n    additionalGids: [44]\n";

    fn specs(texts: &[(&str, &str)]) -> Result<Vec<Known>> {
        let dir = tempfile::tempdir()?;
        for (name, text) in texts {
            std::fs::write(dir.path().join(name), text)?;
        }
        known(&[dir.path().to_owned(), dir.path().join("missing")])
    }

    fn ask(names: &[&str], optional: bool) -> Vec<op::Device> {
        names.iter().map(|name| op::Device { name: (*name).to_owned(), optional }).collect()
    }

    #[test]
    fn a_device_brings_nodes_mounts_variables_and_groups() {
        let known = specs(&[("gpu.yaml", SPEC)]).unwrap();
        let one = inject(&ask(&["example.com/gpu"], false), &known, &Allowed::All).unwrap();
        assert_eq!(one.env, ["COMMON=1", "ONE=1"], "what is a device's own comes later, and so wins");
        assert_eq!(
            (one.nodes[0].path.as_str(), one.nodes[0].minor, one.nodes[0].access.mknod),
            ("/dev/gpu-one", 3, false)
        );
        assert_eq!(one.mounts().unwrap()[0].access, Access::ReadOnly);
        let all = inject(&ask(&["example.com/gpu=*"], false), &known, &Allowed::All).unwrap();
        assert_eq!((all.env, all.groups), (one.env, vec!["44".to_owned()]));
        assert_eq!(inject(&ask(&["gpu"], false), &known, &Allowed::All).unwrap().nodes.len(), 1);
        let json = r#"{"kind":"a.b/c","devices":[{"name":"d","containerEdits":{"deviceNodes":[{"path":"/dev/x","type":"b","major":7,"minor":8,"fileMode":384}]}}]}"#;
        let block = inject(&ask(&["a.b/c=d"], false), &specs(&[("x.json", json)]).unwrap(), &Allowed::All).unwrap();
        assert_eq!((block.nodes[0].kind, block.nodes[0].major, block.nodes[0].mode), (DeviceKind::Block, 7, 0o600));
    }

    #[test]
    fn a_device_must_be_there_and_be_allowed() {
        let known = specs(&[("gpu.yaml", SPEC)]).unwrap();
        let error =
            |name: &str, allowed: &Allowed| inject(&ask(&[name], false), &known, allowed).unwrap_err().to_string();
        let one = "example.com/gpu=one";
        assert!(error(one, &Allowed::Nothing).ends_with("build with --allow device=example.com/gpu=one"));
        assert!(error("example.com/gpu=on", &Allowed::All).contains("did you mean example.com/gpu=one?"));
        assert!(inject(&ask(&["example.com/gpu=two"], false), &known, &Allowed::Nothing).is_ok(), "it allows itself");
        let named = Allowed::Named(vec!["example.com/gpu".to_owned()]);
        assert!(inject(&ask(&[one], false), &known, &named).is_ok());
        for (name, allowed) in [("none", Allowed::All), (one, Allowed::Nothing)] {
            assert!(inject(&ask(&[name], true), &known, &allowed).unwrap().env.is_empty(), "{name}");
        }
    }

    #[test]
    fn the_hooks_of_a_specification_run_once_and_before_those_of_its_devices() {
        let hook = "{hookName: createContainer, path: /usr/bin/link, args: [link, --all], env: ['A=1'], timeout: 5}";
        let text = SPEC
            .replace("env: [COMMON=1]", &format!("hooks: [{hook}]"))
            .replace("additionalGids: [44]", "hooks: [{hookName: poststop, path: /bin/true}]");
        let known = specs(&[("gpu.yaml", &text)]).unwrap();
        let asked = ask(&["example.com/gpu=*", "example.com/gpu=two"], false);
        let hooks = inject(&asked, &known, &Allowed::All).unwrap().hooks;
        let points: Vec<HookPoint> = hooks.iter().map(|hook| hook.point).collect();
        assert_eq!(points, [HookPoint::CreateContainer, HookPoint::Poststop]);
        let expected = Hook {
            point: HookPoint::CreateContainer,
            path: "/usr/bin/link".to_owned(),
            args: vec!["link".to_owned(), "--all".to_owned()],
            env: vec!["A=1".to_owned()],
            timeout: Some(Duration::from_secs(5)),
            origin: "device example.com/gpu=one".to_owned(),
        };
        assert_eq!(hooks[0], expected);
        assert_eq!((hooks[1].timeout, hooks[1].args.len()), (None, 0));
    }

    #[test]
    fn hooks_that_make_no_sense_are_refused_with_device_hook_and_reason() {
        for (hook, reason) in [
            ("hookName: later, path: /bin/true", "there are prestart, createRuntime, createContainer,"),
            ("hookName: poststop, path: bin/true", "its path is not absolute"),
            ("hookName: poststop, path: /bin/true, timeout: 0", "its timeout is 0"),
            ("hookName: poststop, path: /bin/true, env: [A]", "its variable \"A\" is not NAME=value"),
        ] {
            let text = SPEC.replace("additionalGids: [44]", &format!("hooks: [{{{hook}}}]"));
            let known = specs(&[("gpu.yaml", &text)]).unwrap();
            let error = inject(&ask(&["example.com/gpu=two"], false), &known, &Allowed::All).unwrap_err().to_string();
            assert!(error.starts_with("device example.com/gpu=two: its hook ") && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn what_is_not_carried_out_is_refused_by_name() {
        let rdt = SPEC.replace("additionalGids: [44]", "intelRdt: {closID: one}");
        let known = specs(&[("gpu.yaml", &rdt)]).unwrap();
        let error = inject(&ask(&["example.com/gpu=two"], false), &known, &Allowed::All).unwrap_err();
        assert!(error.to_string().contains("intelRdt"), "{error}");
        assert!(specs(&[("bad.json", "{")]).unwrap_err().to_string().contains("bad.json"));
    }
}
