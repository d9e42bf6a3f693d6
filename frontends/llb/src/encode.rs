//! From a graph to a definition, so that the result of one build can be the input of another.
//!
//! What LLB has no words for is left out: how often a step is tried, and what it may use.

use std::collections::{BTreeMap, HashMap};

use kiln_graph::op::{
    BlobLocator, BlobPlace, Copy, Exec, FileAction, FileOp, Mode, Mount, MountKind, NetworkMode, Op, Owner, OwnerId,
    ResolveMode, SecretFile, SecurityMode, Sharing, Source,
};
use kiln_graph::{Digest, Edge, Graph, Platform, Vertex, VertexId};
use prost::Message as _;

use crate::meta::CUSTOM_NAME;
use crate::ops::{DEFINITION, FILENAME, LLB_BUILDER};
use crate::pb;

/// Writes what a result needs as a definition. Directories of the client that name no session get `session`.
#[must_use]
pub fn encode(graph: &Graph, root: Option<Edge>, session: &str) -> pb::Definition {
    let mut definition = pb::Definition::default();
    let Some(root) = root else { return definition };
    let mut digests: HashMap<VertexId, String> = HashMap::new();
    for id in graph.reachable([root.vertex]) {
        let vertex = graph.vertex(id);
        let inputs = vertex.inputs.iter().map(|edge| input(&digests, *edge)).collect();
        let op = pb::Op {
            inputs,
            op: Some(operation(vertex, session)),
            platform: Some(platform(&vertex.platform)),
            constraints: None,
        };
        let bytes = op.encode_to_vec();
        let digest = Digest::of(&bytes).to_string();
        definition.def.push(bytes);
        definition.metadata.insert(digest.clone(), metadata(vertex));
        digests.insert(id, digest);
    }
    let last = pb::Op { inputs: vec![input(&digests, root)], ..pb::Op::default() };
    definition.def.push(last.encode_to_vec());
    definition
}

/// Writes one operation, whose inputs are named by the digests that their vertices have in the graph.
#[must_use]
pub fn encode_vertex(graph: &Graph, id: VertexId) -> pb::Op {
    let vertex = graph.vertex(id);
    let input = |edge: &Edge| {
        let digest = graph.vertex(edge.vertex).digest().to_string();
        pb::Input { digest, index: edge.output.into() }
    };
    pb::Op {
        inputs: vertex.inputs.iter().map(input).collect(),
        op: Some(operation(vertex, "")),
        platform: Some(platform(&vertex.platform)),
        constraints: None,
    }
}

fn input(digests: &HashMap<VertexId, String>, edge: Edge) -> pb::Input {
    pb::Input { digest: digests[&edge.vertex].clone(), index: edge.output.into() }
}

fn metadata(vertex: &Vertex) -> pb::OpMetadata {
    let meta = &vertex.meta;
    let name = (!meta.name.is_empty()).then(|| (CUSTOM_NAME.to_owned(), meta.name.clone()));
    let group = meta.group.clone();
    pb::OpMetadata {
        ignore_cache: meta.no_cache,
        description: name.into_iter().collect(),
        export_cache: meta.export_cache.map(|value| pb::ExportCache { value }),
        progress_group: group.map(|group| pb::ProgressGroup { id: group.id, name: group.name, weak: group.weak }),
        ..pb::OpMetadata::default()
    }
}

/// Writes a platform.
#[must_use]
pub fn platform(platform: &Platform) -> pb::Platform {
    let Platform { architecture, os, variant, os_version, os_features } = platform.clone();
    pb::Platform { architecture, os, variant, os_version, os_features }
}

pub(crate) fn index(input: Option<u32>) -> i64 {
    input.map_or(-1, i64::from)
}

pub(crate) fn operation(vertex: &Vertex, session: &str) -> pb::op::Op {
    match &vertex.op {
        Op::Source(source) => pb::op::Op::Source(source_op(source, session)),
        Op::Exec(exec) => pb::op::Op::Exec(exec_op(exec)),
        Op::File(file) => pb::op::Op::File(file_op(file, vertex.inputs.len())),
        Op::Merge => {
            let inputs = (0..).take(vertex.inputs.len()).map(|input| pb::MergeInput { input }).collect();
            pb::op::Op::Merge(pb::MergeOp { inputs })
        }
        Op::Diff { lower, upper } => pb::op::Op::Diff(pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: index(*lower) }),
            upper: Some(pb::UpperDiffInput { input: index(*upper) }),
        }),
        Op::Build { filename } => pb::op::Op::Build(pb::BuildOp {
            builder: LLB_BUILDER,
            inputs: BTreeMap::from([(DEFINITION.to_owned(), pb::BuildInput { input: 0 })]),
            def: None,
            attrs: BTreeMap::from([(FILENAME.to_owned(), filename.clone())]),
        }),
    }
}

/// Attributes; what is empty is left out.
#[derive(Default)]
struct Attributes(BTreeMap<String, String>);

impl Attributes {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.0.insert(name.to_owned(), value);
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        self.set(name, if value { "true" } else { "" });
    }

    /// Writes which layout has a blob, if one has; returns the blob's address.
    fn blob(&mut self, blob: &BlobLocator) -> String {
        if let BlobPlace::Layout { store, .. } = &blob.place {
            self.set("oci.store", store.as_str());
        }
        blob.address()
    }

    /// The attributes of a source that is one file.
    fn file(&mut self, name: &str, mode: Option<u32>, uid: u32, gid: u32) {
        let id = |id: u32| if id == 0 { String::new() } else { id.to_string() };
        self.set("http.filename", name);
        self.set("http.perm", mode.map(|mode| format!("0{mode:o}")).unwrap_or_default());
        self.set("http.uid", id(uid));
        self.set("http.gid", id(gid));
    }

    fn list(&mut self, name: &str, list: &[String]) {
        if !list.is_empty() {
            self.set(name, serde_json::to_string(list).expect("texts can be written as JSON"));
        }
    }
}

/// Writes a source; a directory of the client that names no session gets `session`, if that has a name.
pub(crate) fn source_op(source: &Source, session: &str) -> pb::SourceOp {
    let mut attrs = Attributes::default();
    let identifier = match source {
        Source::Image(image) => {
            attrs.set("image.resolvemode", if image.resolve == ResolveMode::Pull { "pull" } else { "" });
            attrs.set("image.checksum", image.checksum.map(|digest| digest.to_string()).unwrap_or_default());
            attrs.set("image.layerlimit", image.layer_limit.map(|limit| limit.to_string()).unwrap_or_default());
            format!("docker-image://{}", image.reference)
        }
        Source::Local(local) => {
            attrs.list("local.excludepatterns", &local.exclude);
            attrs.list("local.includepattern", &local.include);
            attrs.list("local.followpaths", &local.follow);
            attrs.set("local.session", if local.session.is_empty() { session } else { &local.session });
            attrs.set("local.sharedkeyhint", local.key_hint.as_str());
            attrs.flag("local.metadatatransfer", local.listed_but.is_some());
            attrs.list("local.metadatatransferexclude", local.listed_but.as_deref().unwrap_or_default());
            format!("local://{}", local.name)
        }
        Source::Git(git) => {
            attrs.set("git.fullurl", git.remote.as_str());
            attrs.flag("git.keepgitdir", git.keep_git_dir);
            attrs.flag("git.skipsubmodules", git.skip_submodules);
            attrs.flag("git.fetchbycommit", git.fetch_by_commit);
            attrs.set("git.checksum", git.checksum.as_str());
            attrs.set("git.mtime", if git.commit_mtime { "commit" } else { "" });
            attrs.set("git.authheadersecret", git.access.header_secret.as_str());
            attrs.set("git.authtokensecret", git.access.token_secret.as_str());
            attrs.set("git.mountsshsock", git.access.agent.as_str());
            attrs.set("git.knownsshhosts", git.access.known_hosts.as_str());
            if let Some(verification) = &git.verification {
                attrs.set("git.sig.pubkey", verification.keys.as_str());
                attrs.flag("git.sig.rejectexpired", verification.reject_expired);
                attrs.flag("git.sig.requiresignedtag", verification.require_signed_tag);
                attrs.flag("git.sig.ignoresignedtag", verification.ignore_signed_tag);
            }
            attrs.flag("git.checkoutbundle", git.as_bundle);
            let bundle = git.bundle.as_ref().map(|bundle| attrs.blob(bundle));
            attrs.set("git.bundle", bundle.unwrap_or_default());
            let remote = git.remote.split_once("://").map_or(git.remote.as_str(), |(_, rest)| rest);
            let subdir = if git.subdir.is_empty() { String::new() } else { format!(":{}", git.subdir) };
            let fragment = format!("{}{subdir}", git.reference);
            format!("git://{remote}{}{fragment}", if fragment.is_empty() { "" } else { "#" })
        }
        Source::Http(http) => {
            attrs.set("http.checksum", http.checksum.map(|digest| digest.to_string()).unwrap_or_default());
            attrs.file(&http.filename, http.mode, http.uid, http.gid);
            attrs.set("http.authheadersecret", http.header_secret.as_str());
            http.headers.iter().for_each(|(name, value)| attrs.set(&format!("http.header.{name}"), value.as_str()));
            if let Some(verification) = &http.verification {
                attrs.set("http.sig.pubkey", verification.keys.as_str());
                attrs.set("http.sig.signature", verification.signature.as_str());
            }
            http.url.clone()
        }
        Source::OciLayout(layout) => {
            attrs.set("oci.layerlimit", layout.layer_limit.map(|limit| limit.to_string()).unwrap_or_default());
            format!("oci-layout://{}@{}", layout.name, layout.digest)
        }
        Source::Blob(file) => {
            attrs.file(&file.filename, file.mode, file.uid, file.gid);
            attrs.blob(&file.blob)
        }
    };
    pb::SourceOp { identifier, attrs: attrs.0 }
}

pub(crate) fn exec_op(exec: &Exec) -> pb::ExecOp {
    let proxy = |name: &str| {
        let found = exec.proxy.env.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let proxy_env = pb::ProxyEnv {
        http_proxy: proxy("http_proxy"),
        https_proxy: proxy("https_proxy"),
        ftp_proxy: proxy("ftp_proxy"),
        no_proxy: proxy("no_proxy"),
        all_proxy: proxy("all_proxy"),
    };
    let meta = pb::Meta {
        args: exec.args.clone(),
        env: exec.env.to_vec(),
        cwd: exec.cwd.clone(),
        user: exec.user.clone(),
        proxy_env: (!exec.proxy.env.is_empty()).then_some(proxy_env),
        extra_hosts: exec
            .extra_hosts
            .iter()
            .map(|(host, ip)| pb::HostIp { host: host.clone(), ip: ip.clone() })
            .collect(),
        hostname: exec.hostname.clone(),
        ulimit: exec
            .ulimits
            .iter()
            .map(|limit| pb::Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
            .collect(),
        cgroup_parent: exec.cgroup_parent.clone(),
        remove_mount_stubs_recursive: true,
        valid_exit_codes: exec.valid_exit_codes.clone(),
    };
    let root = pb::Mount {
        input: index(exec.root.input),
        dest: "/".to_owned(),
        output: index(exec.root.output),
        readonly: exec.root.readonly,
        ..pb::Mount::default()
    };
    let mut mounts: Vec<pb::Mount> = std::iter::once(root).chain(exec.mounts.iter().map(mount)).collect();
    mounts.extend(exec.shm_size_bytes.map(shared_memory));
    // Outputs are numbered in the order of the mounts.
    mounts.sort_by_key(|mount| if mount.output < 0 { i64::MAX } else { mount.output });
    let secrets = exec.secret_env.iter();
    let devices = exec.devices.iter();
    pb::ExecOp {
        meta: Some(meta),
        mounts,
        network: match exec.network {
            NetworkMode::Sandbox => pb::NetMode::Unset,
            NetworkMode::Host => pb::NetMode::Host,
            NetworkMode::None => pb::NetMode::None,
        }
        .into(),
        security: match exec.security {
            SecurityMode::Sandbox => pb::SecurityMode::Sandbox,
            SecurityMode::Insecure => pb::SecurityMode::Insecure,
        }
        .into(),
        secretenv: secrets
            .map(|secret| pb::SecretEnv { id: secret.id.clone(), name: secret.name.clone(), optional: secret.optional })
            .collect(),
        cdi_devices: devices
            .map(|device| pb::CdiDevice { name: device.name.clone(), optional: device.optional })
            .collect(),
    }
}

fn shared_memory(size: u64) -> pb::Mount {
    pb::Mount {
        input: -1,
        output: -1,
        dest: "/dev/shm".to_owned(),
        mount_type: pb::MountType::Tmpfs.into(),
        tmpfs_opt: Some(pb::TmpfsOpt { size: i64::try_from(size).unwrap_or(i64::MAX) }),
        ..pb::Mount::default()
    }
}

fn mount(mount: &Mount) -> pb::Mount {
    let plain = pb::Mount {
        input: -1,
        output: -1,
        dest: mount.target.clone(),
        readonly: mount.readonly,
        ..pb::Mount::default()
    };
    match &mount.kind {
        MountKind::Bind { input, selector, output } => {
            pb::Mount { input: index(*input), output: index(*output), selector: selector.clone(), ..plain }
        }
        MountKind::Cache { id, sharing, input, selector } => {
            let sharing = match sharing {
                Sharing::Shared => pb::CacheSharingOpt::Shared,
                Sharing::Private => pb::CacheSharingOpt::Private,
                Sharing::Locked => pb::CacheSharingOpt::Locked,
            };
            pb::Mount {
                input: index(*input),
                selector: selector.clone(),
                mount_type: pb::MountType::Cache.into(),
                cache_opt: Some(pb::CacheOpt { id: id.clone(), sharing: sharing.into() }),
                ..plain
            }
        }
        MountKind::Tmpfs { size_bytes } => pb::Mount {
            mount_type: pb::MountType::Tmpfs.into(),
            tmpfs_opt: size_bytes.map(|size| pb::TmpfsOpt { size: i64::try_from(size).unwrap_or(i64::MAX) }),
            ..plain
        },
        MountKind::Secret(SecretFile { id, uid, gid, mode, optional }) => {
            let (id, uid, gid, mode, optional) = (id.clone(), *uid, *gid, *mode, *optional);
            let secret_opt = Some(pb::SecretOpt { id, uid, gid, mode, optional });
            pb::Mount { mount_type: pb::MountType::Secret.into(), secret_opt, ..plain }
        }
        MountKind::Ssh(SecretFile { id, uid, gid, mode, optional }) => {
            let (id, uid, gid, mode, optional) = (id.clone(), *uid, *gid, *mode, *optional);
            let ssh_opt = Some(pb::SshOpt { id, uid, gid, mode, optional });
            pb::Mount { mount_type: pb::MountType::Ssh.into(), ssh_opt, ..plain }
        }
    }
}

/// Each action works on what the one before it gave: numbers above those of the inputs are actions.
pub(crate) fn file_op(file: &FileOp, inputs: usize) -> pb::FileOp {
    let nothing = [FileAction::Mkdir { path: "/".to_owned(), mode: 0o755, parents: true, owner: None, mtime_ns: None }];
    let actions = if file.actions.is_empty() { &nothing[..] } else { &file.actions };
    let last = actions.len() - 1;
    let number = |at: usize| i64::try_from(at).unwrap_or(i64::MAX);
    let mut base = index(file.base);
    let mut written = Vec::with_capacity(actions.len());
    for (at, action) in actions.iter().enumerate() {
        let from = match action {
            FileAction::Copy(copy) => copy.from,
            _ => None,
        };
        written.push(pb::FileAction {
            input: base,
            secondary_input: index(from),
            output: if at == last { 0 } else { -1 },
            action: Some(file_action(action, base)),
        });
        base = number(inputs + at);
    }
    pb::FileOp { actions: written }
}

fn file_action(action: &FileAction, base: i64) -> pb::file_action::Action {
    let bits = |mode: u32| i32::try_from(mode).unwrap_or(-1);
    let owned = |owner: &Option<Owner>| owner.as_ref().map(|owner| chown(owner, base));
    match action {
        FileAction::Copy(copy) => pb::file_action::Action::Copy(copy_action(copy, base)),
        FileAction::Mkfile { path, data, mode, owner, mtime_ns } => {
            pb::file_action::Action::Mkfile(pb::FileActionMkFile {
                path: path.clone(),
                mode: bits(*mode),
                data: data.clone(),
                owner: owned(owner),
                timestamp: mtime_ns.unwrap_or(-1),
            })
        }
        FileAction::Mkdir { path, mode, parents, owner, mtime_ns } => {
            pb::file_action::Action::Mkdir(pb::FileActionMkDir {
                path: path.clone(),
                mode: bits(*mode),
                make_parents: *parents,
                owner: owned(owner),
                timestamp: mtime_ns.unwrap_or(-1),
            })
        }
        FileAction::Symlink { path, target, owner, mtime_ns } => {
            pb::file_action::Action::Symlink(pb::FileActionSymlink {
                oldpath: target.clone(),
                newpath: path.clone(),
                owner: owned(owner),
                timestamp: mtime_ns.unwrap_or(-1),
            })
        }
        FileAction::Remove { path, allow_missing, wildcard } => pb::file_action::Action::Rm(pb::FileActionRm {
            path: path.clone(),
            allow_not_found: *allow_missing,
            allow_wildcard: *wildcard,
        }),
    }
}

fn copy_action(copy: &Copy, base: i64) -> pb::FileActionCopy {
    let (mode, mode_str) = match &copy.mode {
        None => (-1, String::new()),
        Some(Mode::Octal(bits)) => (i32::try_from(*bits).unwrap_or(-1), String::new()),
        Some(Mode::Symbolic(text)) => (-1, text.clone()),
    };
    pb::FileActionCopy {
        src: copy.source.clone(),
        dest: copy.dest.clone(),
        owner: copy.owner.as_ref().map(|owner| chown(owner, base)),
        mode,
        follow_symlink: copy.follow_symlinks,
        dir_copy_contents: copy.contents_only,
        attempt_unpack_docker_compatibility: copy.unpack,
        create_dest_path: copy.create_dest_path,
        allow_wildcard: copy.wildcard,
        allow_empty_wildcard: copy.allow_empty_wildcard,
        timestamp: copy.mtime_ns.unwrap_or(-1),
        include_patterns: copy.include.clone(),
        exclude_patterns: copy.exclude.clone(),
        always_replace_existing_dest_paths: copy.replace_existing,
        mode_str,
        required_paths: copy.required.clone(),
    }
}

fn chown(owner: &Owner, base: i64) -> pb::ChownOpt {
    let one = |id: &OwnerId| {
        let user = match id {
            OwnerId::Id(id) => pb::user_opt::User::ById(*id),
            OwnerId::Name(name) => pb::user_opt::User::ByName(pb::NamedUserOpt { name: name.clone(), input: base }),
        };
        pb::UserOpt { user: Some(user) }
    };
    pb::ChownOpt { user: Some(one(&owner.user)), group: owner.group.as_ref().map(one) }
}
