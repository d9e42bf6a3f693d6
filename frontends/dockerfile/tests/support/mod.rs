//! Test support: requests written as text, images that exist nowhere, and readable dumps of what lowering gives.

#![expect(clippy::unwrap_used, reason = "a panic here is a failed test, with the place in its message")]

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use kiln_dockerfile::{
    Files, Ignore, ImageKey, ImageName, Lowered, NamedContext, NoCache, Outcome, Refused, Request, ResolvedImage, lower,
};
use kiln_graph::oci::ImageConfig;
use kiln_graph::op::{
    Copy, Exec, FileAction, FileOp, GitSource, HttpSource, Limits, MountKind, NetworkMode, Op, SecurityMode, Source,
};
use kiln_graph::{Diagnostic, Digest, Severity, SourceFile};

/// A request and the images it may find.
pub(crate) struct Case<'a> {
    pub(crate) request: Request<'a>,
    /// Configurations that differ from the usual, by familiar name: JSON merged over the usual one.
    pub(crate) images: BTreeMap<String, serde_json::Value>,
}

impl<'a> Case<'a> {
    /// Reads a request: one option in a line. Builds on and for linux/amd64 unless told otherwise.
    pub(crate) fn new(file: &'a SourceFile, options: &'a str, ignore: Option<&str>) -> Self {
        let mut request = Request::new(file);
        request.build_platforms = vec!["linux/amd64".parse().unwrap()];
        if let Some(text) = ignore {
            let ignore = Ignore::parse(&SourceFile::new(".dockerignore", text)).unwrap();
            request.context = Files::Local { name: "context".to_owned(), ignore };
        }
        let mut case = Self { request, images: BTreeMap::new() };
        for line in options.lines().filter(|line| !line.trim().is_empty()) {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            case.option(key, value);
        }
        case
    }

    fn option(&mut self, key: &str, value: &'a str) {
        let pair = || value.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap();
        let request = &mut self.request;
        match key {
            "target" => request.target = Some(value),
            "arg" => request.build_args.extend([pair()]),
            "label" => request.labels.extend([pair()]),
            "platform" => request.target_platform = Some(value.parse().unwrap()),
            "build-platforms" => request.build_platforms = value.split(' ').map(|p| p.parse().unwrap()).collect(),
            "multi-platform" => request.multi_platform = true,
            "no-cache" if value.is_empty() => request.no_cache = NoCache::All,
            "no-cache" => request.no_cache = NoCache::Stages(value.split(' ').map(str::to_owned).collect()),
            "network" => request.network = if value == "host" { NetworkMode::Host } else { NetworkMode::None },
            "hostname" => value.clone_into(&mut request.hostname),
            "cgroup-parent" => value.clone_into(&mut request.cgroup_parent),
            "cache-namespace" => value.clone_into(&mut request.cache_namespace),
            "add-host" => request.extra_hosts.push(pair()),
            "shm-size" => request.shm_size_bytes = Some(value.parse().unwrap()),
            "epoch" => request.epoch_s = Some(value.parse().unwrap()),
            "context-time" => request.context_time_s = Some(value.parse().unwrap()),
            "named-time" => request.named_time_s = value.split_once(' ').map(|(name, s)| (name.into(), s.parse().ok())),
            "all-stages" => request.all_stages = true,
            "main-context" => request.context = files(value),
            "context" => {
                let (name, what) = value.split_once(' ').unwrap();
                let context = match what.split_once(' ').unwrap() {
                    ("image", reference) => NamedContext::Image(reference.parse().unwrap()),
                    _ => NamedContext::Files(files(what)),
                };
                request.contexts.insert(name.to_owned(), context);
            }
            "image" => {
                let (name, json) = value.split_once(' ').unwrap();
                self.images.insert(name.to_owned(), serde_json::from_str(json).unwrap());
            }
            other => panic!("unknown option {other}"),
        }
    }

    /// Lowers, inventing the images that are asked for.
    pub(crate) fn lower(&self) -> Result<Box<Lowered>, Refused> {
        let mut images = HashMap::new();
        loop {
            match lower(&self.request, &images)? {
                Outcome::Done(lowered) => return Ok(lowered),
                Outcome::Need(needs) => {
                    assert!(!needs.is_empty());
                    for need in needs {
                        let image = self.image(&need.key);
                        assert!(images.insert(need.key, image).is_none(), "asked for twice");
                    }
                }
            }
        }
    }

    fn image(&self, key: &ImageKey) -> ResolvedImage {
        let ImageName::Registry(reference) = &key.image else { panic!("images of layouts are not invented") };
        let mut config = serde_json::json!({
            "architecture": key.platform.architecture,
            "os": key.platform.os,
            "variant": key.platform.variant,
            "created": "2020-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["sh"]},
            "history": [{"created_by": "base"}],
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"base")]},
        });
        let name = reference.familiar();
        if let Some(changes) = self.images.get(name.strip_suffix(":latest").unwrap_or(&name)) {
            merge(&mut config, changes);
        }
        let config: ImageConfig = serde_json::from_value(config).unwrap();
        let digest = Digest::of(format!("{reference} {}", key.platform).as_bytes());
        ResolvedImage { config, id: digest, reference: reference.with_digest(digest) }
    }
}

fn files(text: &str) -> Files {
    match text.split_once(' ').unwrap() {
        ("local", name) => Files::Local { name: name.to_owned(), ignore: Ignore::default() },
        ("git", remote) => Files::Git(GitSource { remote: remote.to_owned(), ..GitSource::default() }),
        ("archive", url) => {
            Files::Archive(HttpSource { url: url.to_owned(), filename: "context".to_owned(), ..HttpSource::default() })
        }
        (other, _) => panic!("unknown kind of files {other}"),
    }
}

fn merge(into: &mut serde_json::Value, changes: &serde_json::Value) {
    match (into, changes) {
        (serde_json::Value::Object(into), serde_json::Value::Object(changes)) => {
            for (key, value) in changes {
                merge(into.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (into, changes) => *into = changes.clone(),
    }
}

/// Shortens digests, which say nothing to a reader.
fn short(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("sha256:") {
        let digest = at + "sha256:".len();
        out.push_str(&rest[..digest]);
        let hex = rest[digest..].find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len() - digest);
        out.push_str(&rest[digest..digest + hex.min(6)]);
        rest = &rest[digest + hex..];
    }
    out + rest
}

/// Dumps all of a result.
pub(crate) fn dump(lowered: &Lowered, file: &SourceFile) -> String {
    let mut out = String::new();
    for id in lowered.graph.ids() {
        let vertex = lowered.graph.vertex(id);
        let inputs: Vec<String> = vertex.inputs.iter().map(|edge| edge.vertex.index().to_string()).collect();
        let from = if inputs.is_empty() { String::new() } else { format!(" <- {}", inputs.join(" ")) };
        let flags = [(vertex.meta.no_cache, " no-cache"), (vertex.meta.internal, " internal")];
        let flags: String = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        writeln!(out, "{}: {}{from} ({}){flags}", id.index(), kind(&vertex.op), vertex.platform).unwrap();
        writeln!(out, "    name {}", short(&vertex.meta.name)).unwrap();
        let location = vertex.meta.location.expect("every step has a place");
        let source = &lowered.graph.sources()[location.file as usize];
        let (first, last) = source.lines(location.span);
        let lines = if first == last { first.to_string() } else { format!("{first}-{last}") };
        let name = if location.file == 0 { String::new() } else { format!(" of {}", short(source.name())) };
        writeln!(out, "    line {lines}{name}").unwrap();
        for detail in details(&vertex.op) {
            writeln!(out, "    {}", short(&detail)).unwrap();
        }
    }
    let root = lowered.root.map_or_else(|| "nothing".to_owned(), |edge| edge.vertex.index().to_string());
    writeln!(out, "root {root} ({})", lowered.platform).unwrap();
    if let Some(ImageKey { image: ImageName::Registry(base), platform }) = &lowered.base {
        writeln!(out, "base {} ({platform})", short(&base.familiar())).unwrap();
    }
    for (name, edge) in &lowered.scan {
        writeln!(out, "scan {name} {}", edge.vertex.index()).unwrap();
    }
    if let Some(epoch) = lowered.epoch_s {
        writeln!(out, "epoch {epoch}").unwrap();
    }
    if !lowered.context_paths.is_empty() {
        writeln!(out, "context paths {:?}", lowered.context_paths).unwrap();
    }
    let mut config = lowered.config.clone();
    let history = std::mem::take(&mut config.history);
    writeln!(out, "{}", short(&serde_json::to_string_pretty(&config).unwrap())).unwrap();
    for entry in history {
        let layer = if entry.empty_layer { "empty" } else { "layer" };
        let created = entry.created.map(|created| format!(" {created}")).unwrap_or_default();
        let foreign = if entry.comment == "buildkit.dockerfile.v0" { "" } else { " foreign" };
        writeln!(out, "{layer}{foreign}{created} {}", entry.created_by.escape_debug()).unwrap();
    }
    if !lowered.warnings.is_empty() {
        out.push_str(&render(&lowered.warnings, file));
    }
    out
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::Source(Source::Image(_)) => "image",
        Op::Source(Source::Local(_)) => "local",
        Op::Source(Source::Git(_)) => "git",
        Op::Source(Source::Http(_)) => "http",
        Op::Source(Source::OciLayout(_)) => "oci-layout",
        Op::Source(Source::Blob(_)) => "blob",
        Op::Exec(_) => "exec",
        Op::File(_) => "file",
        Op::Merge => "merge",
        Op::Diff { .. } => "diff",
        Op::Build { .. } => "build",
    }
}

fn details(op: &Op) -> Vec<String> {
    match op {
        Op::Source(source) => source_details(source),
        Op::Exec(exec) => exec_details(exec),
        Op::File(FileOp { base, actions }) => {
            let base = base.map_or_else(|| "on nothing".to_owned(), |base| format!("on input {base}"));
            std::iter::once(base).chain(actions.iter().map(action)).collect()
        }
        Op::Merge | Op::Diff { .. } | Op::Build { .. } => Vec::new(),
    }
}

fn source_details(source: &Source) -> Vec<String> {
    match source {
        Source::Image(image) => vec![format!("reference {} {:?}", image.reference, image.resolve)],
        Source::Local(local) => {
            let mut lines = vec![format!("of {}", local.name)];
            let lists = [("follow", &local.follow), ("include", &local.include), ("exclude", &local.exclude)];
            lines.extend(lists.iter().filter(|(_, l)| !l.is_empty()).map(|(name, list)| format!("{name} {list:?}")));
            lines
        }
        Source::Git(git) => vec![format!("{git:?}")],
        Source::Http(http) => vec![format!("{http:?}")],
        Source::OciLayout(layout) => vec![format!("{layout:?}")],
        Source::Blob(blob) => vec![format!("{blob:?}")],
    }
}

fn exec_details(exec: &Exec) -> Vec<String> {
    let mut lines = vec![format!("args {:?}", exec.args), format!("env {:?}", exec.env)];
    let mut add = |given: bool, line: String| lines.extend(given.then_some(line));
    add(!exec.build_args.is_empty(), format!("build args {:?}", exec.build_args));
    add(exec.cwd != "/", format!("cwd {}", exec.cwd));
    add(!exec.user.is_empty(), format!("user {}", exec.user));
    add(!exec.hostname.is_empty(), format!("hostname {}", exec.hostname));
    add(exec.root.input != Some(0), format!("root {:?}", exec.root.input));
    add(exec.network != NetworkMode::Sandbox, format!("network {:?}", exec.network));
    add(exec.security != SecurityMode::Sandbox, format!("security {:?}", exec.security));
    for mount in &exec.mounts {
        let readonly = if mount.readonly { " ro" } else { "" };
        let kind = match &mount.kind {
            MountKind::Bind { input, selector, output: None } => format!("bind {input:?} {selector:?}"),
            MountKind::Cache { id, sharing, input, selector } => {
                format!("cache {id:?} {sharing:?} {input:?} {selector:?}")
            }
            other => format!("{other:?}"),
        };
        add(true, format!("mount {}{readonly} {kind}", mount.target));
    }
    for secret in &exec.secret_env {
        add(true, format!("secret variable {secret:?}"));
    }
    add(!exec.proxy.env.is_empty(), format!("proxy {:?}", exec.proxy.env));
    add(!exec.extra_hosts.is_empty(), format!("hosts {:?}", exec.extra_hosts));
    add(exec.shm_size_bytes.is_some(), format!("shm {:?}", exec.shm_size_bytes));
    add(!exec.cgroup_parent.is_empty(), format!("cgroup {}", exec.cgroup_parent));
    add(!exec.devices.is_empty(), format!("devices {:?}", exec.devices));
    add(exec.retries > 0, format!("retries {}", exec.retries));
    add(exec.timeout_ns.is_some(), format!("timeout {:?} ns", exec.timeout_ns));
    add(exec.limits != Limits::default(), format!("{:?}", exec.limits));
    lines
}

fn action(action: &FileAction) -> String {
    match action {
        FileAction::Copy(copy) => copy_details(copy),
        FileAction::Mkfile { path, data, mode, owner, mtime_ns } => {
            let data = String::from_utf8_lossy(data);
            format!("mkfile {path} {mode:o} {data:?}{}{}", some(" owner", owner), some(" time", mtime_ns))
        }
        FileAction::Mkdir { path, mode, parents, owner, mtime_ns } => {
            let parents = if *parents { " -p" } else { "" };
            format!("mkdir{parents} {path} {mode:o}{}{}", some(" owner", owner), some(" time", mtime_ns))
        }
        other => format!("{other:?}"),
    }
}

fn some<T: std::fmt::Debug>(name: &str, value: &Option<T>) -> String {
    value.as_ref().map(|value| format!("{name} {value:?}")).unwrap_or_default()
}

/// A copy, with the flags that differ from those of COPY from a context.
fn copy_details(copy: &Copy) -> String {
    let usual = Copy::default();
    let mut line = format!("copy {} {} -> {}", some("input", &copy.from), copy.source, copy.dest);
    let mut add = |given: bool, text: String| {
        if given {
            line.push(' ');
            line.push_str(&text);
        }
    };
    add(copy.owner.is_some(), some("owner", &copy.owner));
    add(copy.mode.is_some(), some("mode", &copy.mode));
    add(copy.mtime_ns.is_some(), some("time", &copy.mtime_ns));
    add(copy.unpack, "unpack".to_owned());
    let flags = [
        ("follow-symlinks", copy.follow_symlinks, usual.follow_symlinks),
        ("contents-only", copy.contents_only, usual.contents_only),
        ("create-dest-path", copy.create_dest_path, usual.create_dest_path),
        ("wildcard", copy.wildcard, usual.wildcard),
        ("allow-empty-wildcard", copy.allow_empty_wildcard, usual.allow_empty_wildcard),
        ("replace-existing", copy.replace_existing, usual.replace_existing),
    ];
    for (name, value, usual) in flags {
        add(value != usual, format!("{}{name}", if value { "" } else { "no-" }));
    }
    for (name, list) in [("include", &copy.include), ("exclude", &copy.exclude), ("required", &copy.required)] {
        add(!list.is_empty(), format!("{name} {list:?}"));
    }
    line
}

/// Renders diagnostics with the line, a caret and the hint.
pub(crate) fn render(diagnostics: &[Diagnostic], file: &SourceFile) -> String {
    let mut out = String::new();
    for diagnostic in diagnostics {
        let severity = match (diagnostic.severity, diagnostic.rule) {
            (Severity::Error, _) => "error".to_owned(),
            (Severity::Warning, Some(rule)) => format!("warning[{rule}]"),
            (Severity::Warning, None) => "warning".to_owned(),
        };
        writeln!(out, "{severity}: {}", short(&diagnostic.message)).unwrap();
        if let Some(span) = diagnostic.span {
            let position = file.position(span.start);
            let line = file.line(position.line).unwrap_or_default();
            let text = file.slice(span).lines().next().unwrap_or_default();
            let pad: String =
                line.chars().take(position.column as usize - 1).map(|c| if c == '\t' { c } else { ' ' }).collect();
            let number = position.line.to_string();
            writeln!(out, "  {number} | {line}").unwrap();
            writeln!(out, "  {} | {pad}{}", " ".repeat(number.len()), "^".repeat(text.chars().count().max(1))).unwrap();
        }
        if let Some(hint) = &diagnostic.hint {
            writeln!(out, "  = {hint}").unwrap();
        }
    }
    out
}
