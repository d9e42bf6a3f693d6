//! The steps of a build as provenance repeats them in mode max: LLB's operations in their JSON form, and where in the source
//! they stand.
//!
//! Names and numbers are those of BuildKit's protocol. Steps are named `step0`, `step1`, ... in the order of the graph, where
//! inputs come before what uses them; the last one stands for the result. Secrets are here by their ids only.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_graph::graph::Meta;
use kiln_graph::op::{
    Copy, Exec, FileAction, FileOp, LocalSource, Mode, Mount, MountKind, NetworkMode, Op, Owner, OwnerId, ResolveMode,
    SecretFile, SecurityMode, Sharing, Source,
};
use kiln_graph::{Edge, Graph, Platform, Vertex, VertexId};
use serde_json::{Map, Value, json};

use super::rfc3339;
use crate::sandbox::Stats;
use crate::solver::ops::Reading;

/// What steps are called.
pub(super) type Names = HashMap<VertexId, String>;

/// Names steps by their position.
pub(super) fn names(order: &[VertexId]) -> Names {
    order.iter().enumerate().map(|(at, id)| (*id, format!("step{at}"))).collect()
}

/// Writes the steps, which vertex each of them is, and what those used that were read.
pub(super) fn build_config(
    graph: &Graph,
    order: &[VertexId],
    root: Option<Edge>,
    names: &Names,
    readings: &HashMap<VertexId, Vec<Reading<Stats>>>,
) -> Value {
    let input = |edge: &Edge| Value::from(format!("{}:{}", names[&edge.vertex], edge.output));
    let mut steps = Vec::new();
    let mut mapping = Map::new();
    for id in order {
        let vertex = graph.vertex(*id);
        let mut step = json!({"id": names[id], "op": operation(vertex)});
        if !vertex.inputs.is_empty() {
            step["inputs"] = vertex.inputs.iter().map(input).collect();
        }
        if let Some(readings) = readings.get(id).filter(|readings| !readings.is_empty()) {
            step["resourceUsage"] = json!({"samples": readings.iter().map(sample).collect::<Vec<_>>()});
        }
        steps.push(step);
        mapping.insert(vertex.digest().to_string(), names[id].clone().into());
    }
    if let Some(root) = root {
        steps.push(json!({"id": format!("step{}", order.len()), "op": {"Op": null}, "inputs": [input(&root)]}));
    }
    json!({"llbDefinition": steps, "digestMapping": mapping})
}

/// Writes how the client's own Dockerfile was come by.
fn loading(filename: &str) -> Value {
    let follow = [filename, &format!("{filename}.dockerignore"), &filename.to_lowercase()].map(str::to_owned).to_vec();
    let name = "dockerfile".to_owned();
    let local = LocalSource { key_hint: name.clone(), name, follow, ..LocalSource::default() };
    let mut graph = Graph::new();
    let local = graph.add(Op::Source(Source::Local(local)), Vec::new(), Platform::host(), Meta::default());
    build_config(&graph, &[local], Some(local.into()), &names(&[local]), &HashMap::new())
}

/// What a step's processes used until then.
fn sample(reading: &Reading<Stats>) -> Value {
    let Reading { at_ns, stats } = reading;
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    json!({
        "timestamp": rfc3339(*at_ns),
        "cpuStat": {
            "usageNanos": nanos(stats.cpu),
            "userNanos": nanos(stats.cpu_user),
            "systemNanos": nanos(stats.cpu_system),
            "nrPeriods": stats.cpu_periods,
            "nrThrottled": stats.cpu_throttled_periods,
            "throttledNanos": nanos(stats.cpu_throttled),
        },
        "memoryStat": Message::default()
            .must("anon", stats.memory_anon_bytes)
            .must("file", stats.memory_file_bytes)
            .set("peak", stats.memory_peak_bytes)
            .set("oomKillEvents", stats.oom_kills)
            .done(),
        "ioStat": {"readBytes": stats.io_read_bytes, "writeBytes": stats.io_written_bytes},
        "pidsStat": {"current": stats.pids},
    })
}

/// Writes the sources and the places of steps in them; `None` when no step has a place. `loaded` is the path of the Dockerfile, if it
/// was a file of the client.
pub(super) fn source(graph: &Graph, order: &[VertexId], names: &Names, loaded: Option<&str>) -> Option<Value> {
    let mut locations = Map::new();
    for id in order {
        let Some(location) = graph.vertex(*id).meta.location else { continue };
        let Some(file) = graph.sources().get(location.file as usize) else { continue };
        let (first, last) = file.lines(location.span);
        let mut place = json!({"ranges": [{"start": {"line": first}, "end": {"line": last}}]});
        if location.file > 0 {
            place["sourceIndex"] = location.file.into();
        }
        locations.insert(names[id].clone(), json!({"locations": [place]}));
    }
    let info = |file: &kiln_graph::SourceFile| json!({"filename": file.name(), "language": "Dockerfile", "data": STANDARD.encode(file.text())});
    let mut infos: Vec<Value> = graph.sources().iter().map(info).collect();
    if let (Some(filename), Some(Value::Object(first))) = (loaded, infos.first_mut())
        && let Value::Object(loading) = loading(filename)
    {
        first.extend(loading);
    }
    (!locations.is_empty()).then(|| json!({"locations": locations, "infos": infos}))
}

/// Builds an object, leaving out what has the protocol's default.
#[derive(Default)]
struct Message(Map<String, Value>);

impl Message {
    fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        let default = match &value {
            Value::Null => true,
            Value::Bool(value) => !value,
            Value::Number(number) => number.as_i64() == Some(0),
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(object) => object.is_empty(),
        };
        if !default {
            self.0.insert(key.to_owned(), value);
        }
        self
    }

    /// Sets a field even to the default.
    fn must(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

fn operation(vertex: &Vertex) -> Value {
    let op = match &vertex.op {
        Op::Source(source) => json!({"source": source_op(source)}),
        Op::Exec(exec) => json!({"exec": exec_op(exec)}),
        Op::File(file) => json!({"file": file_op(file, vertex.inputs.len())}),
        Op::Merge => {
            let inputs: Vec<Value> = (0..vertex.inputs.len()).map(|at| json!({"input": at})).collect();
            json!({"merge": {"inputs": inputs}})
        }
        Op::Diff { lower, upper } => {
            let side = |input: &Option<u32>| json!({"input": input.map_or(-1, i64::from)});
            json!({"diff": {"lower": side(lower), "upper": side(upper)}})
        }
        Op::Build { filename } => json!({"build": {
            "builder": -1,
            "inputs": {"buildkit.llb.definition": {"input": 0}},
            "attrs": {"llbbuild.filename": filename},
        }}),
    };
    let platform = if has_platform(&vertex.op) { platform(&vertex.platform) } else { Value::Null };
    Message::default().must("Op", op).set("platform", platform).must("constraints", json!({})).done()
}

/// Says whether LLB names a platform with an operation: files are the same on all of them.
fn has_platform(op: &Op) -> bool {
    match op {
        Op::Source(source) => matches!(source, Source::Image(_) | Source::OciLayout(_)),
        Op::Exec(_) | Op::Build { .. } => true,
        Op::File(_) | Op::Merge | Op::Diff { .. } => false,
    }
}

fn platform(platform: &Platform) -> Value {
    Message::default()
        .set("Architecture", platform.architecture.as_str())
        .set("OS", platform.os.as_str())
        .set("Variant", platform.variant.as_str())
        .set("OSVersion", platform.os_version.as_str())
        .done()
}

fn source_op(source: &Source) -> Value {
    let mut attrs = Message::default();
    let yes = |on: bool| if on { "true" } else { "" };
    let list = |patterns: &[String]| if patterns.is_empty() { Value::Null } else { json!(patterns).to_string().into() };
    let identifier = match source {
        Source::Image(image) => {
            attrs = attrs.set("image.resolvemode", if image.resolve == ResolveMode::Pull { "pull" } else { "" });
            format!("docker-image://{}", image.reference)
        }
        Source::Local(local) => {
            attrs = attrs
                .set("local.excludepatterns", list(&local.exclude))
                .set("local.followpaths", list(&local.follow))
                .set("local.includepattern", list(&local.include))
                .set("local.sharedkeyhint", local.key_hint.as_str())
                .set("local.metadatatransfer", yes(local.listed_but.is_some()))
                .set("local.metadatatransferexclude", list(local.listed_but.as_deref().unwrap_or_default()));
            format!("local://{}", local.name)
        }
        Source::Git(git) => {
            attrs = attrs
                .set("git.keepgitdir", yes(git.keep_git_dir))
                .set("git.checksum", git.checksum.as_str())
                .set("git.skipsubmodules", yes(git.skip_submodules))
                .set("git.bundle", git.bundle.as_ref().map(|bundle| bundle.address()).unwrap_or_default())
                .set("git.checkoutbundle", yes(git.as_bundle));
            let remote = super::provenance::without_credentials(&git.remote);
            let remote = remote.split_once("://").map_or(remote.as_str(), |(_, rest)| rest);
            let subdir = if git.subdir.is_empty() { String::new() } else { format!(":{}", git.subdir) };
            let fragment = format!("{}{subdir}", git.reference);
            format!("git://{remote}{}{fragment}", if fragment.is_empty() { "" } else { "#" })
        }
        Source::Http(http) => {
            let checksum = http.checksum.as_ref().map(ToString::to_string).unwrap_or_default();
            attrs = attrs
                .set("http.checksum", checksum)
                .set("http.filename", http.filename.as_str())
                .set("http.perm", http.mode.map(|mode| format!("0{mode:o}")).unwrap_or_default());
            super::provenance::without_credentials(&http.url)
        }
        Source::OciLayout(layout) => format!("oci-layout://{}@{}", layout.name, layout.digest),
        Source::Blob(_) => {
            let op = kiln_llb::encode_source(source);
            attrs = op.attrs.iter().fold(attrs, |attrs, (name, value)| attrs.set(name, value.as_str()));
            op.identifier
        }
    };
    Message::default().set("identifier", identifier).set("attrs", attrs.done()).done()
}

fn exec_op(exec: &Exec) -> Value {
    let hosts = exec.extra_hosts.iter().map(|(host, ip)| json!({"Host": host, "IP": ip}));
    let ulimits = exec.ulimits.iter().map(|limit| json!({"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard}));
    // Proxies are not part of a step, and may hold credentials.
    let meta = Message::default()
        .set("args", exec.args.clone())
        .set("env", exec.env.to_vec())
        .set("cwd", exec.cwd.as_str())
        .set("user", exec.user.as_str())
        .set("extraHosts", hosts.collect::<Vec<_>>())
        .set("hostname", exec.hostname.as_str())
        .set("ulimit", ulimits.collect::<Vec<_>>())
        .set("removeMountStubsRecursive", true);
    let root = Message::default()
        .must("input", exec.root.input.map_or(-1, i64::from))
        .set("dest", "/")
        .must("output", exec.root.output.map_or(-1, i64::from))
        .set("readonly", exec.root.readonly);
    let mounts: Vec<Value> = std::iter::once(root.done()).chain(exec.mounts.iter().map(mount)).collect();
    let secrets = exec.secret_env.iter().map(|secret| {
        Message::default()
            .set("ID", secret.id.as_str())
            .set("name", secret.name.as_str())
            .set("optional", secret.optional)
            .done()
    });
    let devices = exec
        .devices
        .iter()
        .map(|device| Message::default().set("name", device.name.as_str()).set("optional", device.optional).done());
    Message::default()
        .set("meta", meta.done())
        .set("mounts", mounts)
        .set(
            "network",
            match exec.network {
                NetworkMode::Sandbox => 0,
                NetworkMode::Host => 1,
                NetworkMode::None => 2,
            },
        )
        .set("security", i32::from(exec.security == SecurityMode::Insecure))
        .set("secretenv", secrets.collect::<Vec<_>>())
        .set("cdiDevices", devices.collect::<Vec<_>>())
        .done()
}

fn mount(mount: &Mount) -> Value {
    let (mut input, mut output, mut selector, mut kind, mut readonly) = (None, None, "", 0, mount.readonly);
    let mut option = None;
    match &mount.kind {
        MountKind::Bind { input: from, selector: path, output: to } => {
            (input, output, selector) = (*from, *to, path.as_str());
        }
        // These have neither input nor output, for which clients write zeros.
        MountKind::Secret(secret) => {
            (kind, option) = (1, Some(("secretOpt", file(secret))));
            (input, output, readonly) = (Some(0), Some(0), false);
        }
        MountKind::Ssh(agent) => {
            (kind, option) = (2, Some(("SSHOpt", file(agent))));
            (input, output, readonly) = (Some(0), Some(0), false);
        }
        MountKind::Cache { id, sharing, input: from, selector: path } => {
            let sharing = match sharing {
                Sharing::Shared => 0,
                Sharing::Private => 1,
                Sharing::Locked => 2,
            };
            (input, selector, kind) = (*from, path.as_str(), 3);
            option = Some(("cacheOpt", Message::default().set("ID", id.as_str()).set("sharing", sharing).done()));
        }
        MountKind::Tmpfs { size_bytes } => {
            kind = 4;
            option = size_bytes.map(|size| ("TmpfsOpt", json!({"size": size})));
        }
    }
    let message = Message::default()
        .must("input", input.map_or(-1, i64::from))
        .set("selector", selector)
        .set("dest", mount.target.as_str())
        .must("output", output.map_or(-1, i64::from))
        .set("readonly", readonly)
        .set("mountType", kind);
    match option {
        Some((key, value)) => message.set(key, value).done(),
        None => message.done(),
    }
}

fn file(secret: &SecretFile) -> Value {
    Message::default()
        .set("ID", secret.id.as_str())
        .set("uid", secret.uid)
        .set("gid", secret.gid)
        .set("mode", secret.mode)
        .set("optional", secret.optional)
        .done()
}

/// Each action works on what the one before it gave: inputs above those of the operation are outputs of actions.
fn file_op(file: &FileOp, inputs: usize) -> Value {
    let last = file.actions.len().saturating_sub(1);
    let mut actions = Vec::new();
    for (at, action) in file.actions.iter().enumerate() {
        let before = match at.checked_sub(1) {
            Some(before) => i64::try_from(inputs + before).unwrap_or(i64::MAX),
            None => file.base.map_or(-1, i64::from),
        };
        let (name, value, from) = file_action(action);
        actions.push(json!({
            "Action": {name: value},
            "input": before,
            "secondaryInput": from.map_or(-1, i64::from),
            "output": if at == last { 0 } else { -1 },
        }));
    }
    json!({"actions": actions})
}

fn file_action(action: &FileAction) -> (&'static str, Value, Option<u32>) {
    let time = |mtime_ns: &Option<i64>| mtime_ns.map_or(-1, |ns| ns);
    let owned = |owner: &Option<Owner>| owner.as_ref().map_or(Value::Null, self::owner);
    match action {
        FileAction::Copy(copy) => ("copy", copy_action(copy), copy.from),
        FileAction::Mkfile { path, data, mode, owner, mtime_ns } => {
            let value = Message::default()
                .set("path", path.as_str())
                .set("mode", *mode)
                .set("data", STANDARD.encode(data))
                .set("owner", owned(owner))
                .set("timestamp", time(mtime_ns));
            ("mkfile", value.done(), None)
        }
        FileAction::Mkdir { path, mode, parents, owner, mtime_ns } => {
            let value = Message::default()
                .set("path", path.as_str())
                .set("mode", *mode)
                .set("makeParents", *parents)
                .set("owner", owned(owner))
                .set("timestamp", time(mtime_ns));
            ("mkdir", value.done(), None)
        }
        FileAction::Symlink { path, target, owner, mtime_ns } => {
            let value = Message::default()
                .set("oldpath", target.as_str())
                .set("newpath", path.as_str())
                .set("owner", owned(owner))
                .set("timestamp", time(mtime_ns));
            ("symlink", value.done(), None)
        }
        FileAction::Remove { path, allow_missing, wildcard } => {
            let value = Message::default()
                .set("path", path.as_str())
                .set("allowNotFound", *allow_missing)
                .set("allowWildcard", *wildcard);
            ("rm", value.done(), None)
        }
    }
}

fn copy_action(copy: &Copy) -> Value {
    let (mode, mode_text) = match &copy.mode {
        None => (-1, ""),
        Some(Mode::Octal(bits)) => (i64::from(*bits), ""),
        Some(Mode::Symbolic(text)) => (-1, text.as_str()),
    };
    Message::default()
        .set("src", copy.source.as_str())
        .set("dest", copy.dest.as_str())
        .set("owner", copy.owner.as_ref().map_or(Value::Null, owner))
        .set("mode", mode)
        .set("followSymlink", copy.follow_symlinks)
        .set("dirCopyContents", copy.contents_only)
        .set("attemptUnpackDockerCompatibility", copy.unpack)
        .set("createDestPath", copy.create_dest_path)
        .set("allowWildcard", copy.wildcard)
        .set("allowEmptyWildcard", copy.allow_empty_wildcard)
        .set("timestamp", copy.mtime_ns.unwrap_or(-1))
        .set("include_patterns", copy.include.clone())
        .set("exclude_patterns", copy.exclude.clone())
        .set("alwaysReplaceExistingDestPaths", copy.replace_existing)
        .set("modeStr", mode_text)
        .done()
}

fn owner(owner: &Owner) -> Value {
    let one = |id: &OwnerId| match id {
        OwnerId::Id(id) => json!({"User": {"byID": id}}),
        OwnerId::Name(name) => json!({"User": {"byName": {"name": name}}}),
    };
    Message::default().set("user", one(&owner.user)).set("group", owner.group.as_ref().map_or(Value::Null, one)).done()
}

#[cfg(test)]
mod tests {
    use kiln_graph::graph::Location;
    use kiln_graph::op::{Root, SecretEnv};
    use kiln_graph::{SourceFile, Span};

    use super::*;

    #[test]
    fn steps_are_written_as_llb_with_their_places() {
        let mut graph = Graph::new();
        graph.add_source(SourceFile::new("Dockerfile", "FROM scratch\nCOPY a /\nRUN x\n"));
        let place =
            |start, end| Meta { location: Some(Location { file: 0, span: Span::new(start, end) }), ..Meta::default() };
        let host = Platform::new("linux", "amd64", "");
        let local = LocalSource { name: "context".to_owned(), exclude: vec!["x".to_owned()], ..LocalSource::default() };
        let local = graph.add(Op::Source(Source::Local(local)), Vec::new(), host.clone(), Meta::default());
        let copy = Copy { from: Some(0), source: "/a".to_owned(), mode: Some(Mode::Octal(0o644)), ..Copy::default() };
        let file = FileOp { base: None, actions: vec![FileAction::Copy(Box::new(copy))] };
        let file = graph.add(Op::File(file), vec![local.into()], host.clone(), place(13, 21));
        let exec = Exec {
            args: vec!["x".to_owned()],
            root: Root { input: Some(0), ..Root::default() },
            network: NetworkMode::None,
            secret_env: vec![SecretEnv { id: "key".to_owned(), name: "KEY".to_owned(), optional: false }],
            ..Exec::default()
        };
        let exec = graph.add(Op::Exec(Box::new(exec)), vec![file.into()], host, place(22, 27));
        let order = graph.reachable([exec]);
        let names = names(&order);
        let config = build_config(&graph, &order, Some(exec.into()), &names, &HashMap::new());
        let steps = config["llbDefinition"].as_array().unwrap();
        assert_eq!(steps[0]["op"]["Op"]["source"]["identifier"], "local://context");
        assert_eq!(steps[0]["op"]["Op"]["source"]["attrs"]["local.excludepatterns"], "[\"x\"]");
        assert_eq!(steps[1]["inputs"], json!(["step0:0"]));
        let action = &steps[1]["op"]["Op"]["file"]["actions"][0];
        assert_eq!((&action["input"], &action["secondaryInput"]), (&json!(-1), &json!(0)));
        assert_eq!(action["Action"]["copy"]["mode"], 0o644);
        let run = &steps[2]["op"]["Op"]["exec"];
        assert_eq!(run["mounts"], json!([{"input": 0, "dest": "/", "output": 0}]));
        assert_eq!((&run["network"], &run["secretenv"][0]["ID"]), (&json!(2), &json!("key")));
        assert_eq!(steps[3], json!({"id": "step3", "op": {"Op": null}, "inputs": ["step2:0"]}));
        assert_eq!(config["digestMapping"][graph.vertex(exec).digest().to_string()], "step2");
        let source = source(&graph, &order, &names, Some("Dockerfile")).unwrap();
        assert_eq!(
            source["locations"]["step2"],
            json!({"locations": [{"ranges": [{"start": {"line": 3}, "end": {"line": 3}}]}]})
        );
        assert_eq!(source["infos"][0]["filename"], "Dockerfile");
        let loading = &source["infos"][0]["llbDefinition"];
        assert_eq!(loading[0]["op"]["Op"]["source"]["identifier"], "local://dockerfile");
        assert_eq!(loading[1], json!({"id": "step1", "op": {"Op": null}, "inputs": ["step0:0"]}));
    }
}
