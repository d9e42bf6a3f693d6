//! The texts that BuildKit hashes: its Go structures as Go's `encoding/json` writes them.
//!
//! Fields stand in the order of the protocol's messages. Whether an index of 0 is written, and what the number of a user is
//! called, changed when BuildKit took another protobuf generator: that is what [`Form`] tells apart.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_graph::{Digest, Platform};
use serde::Serialize;

use super::Form;
use crate::pb;

fn no<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Returns the digest of a structure.
pub(super) fn digest(value: &impl Serialize) -> Digest {
    Digest::of(text(value).as_bytes())
}

/// Writes a structure; Go writes some characters, which stand within strings only, as escapes.
fn text(value: &impl Serialize) -> String {
    let plain = serde_json::to_string(value).expect("texts and numbers can be written as JSON");
    let mut escaped = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

/// An index of a message: Go's newer structures leave out 0.
fn index(form: Form, index: i64) -> Option<i64> {
    (form == Form::Gogo || index != 0).then_some(index)
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ExecText {
    #[serde(rename = "Type")]
    kind: &'static str,
    exec: Exec,
    #[serde(rename = "OS")]
    os: String,
    arch: String,
    #[serde(skip_serializing_if = "no")]
    variant: String,
    #[serde(rename = "OSVersion", skip_serializing_if = "no")]
    os_version: String,
    #[serde(rename = "OSFeatures", skip_serializing_if = "no")]
    os_features: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Exec {
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<Meta>,
    #[serde(skip_serializing_if = "no")]
    mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "no")]
    network: i32,
    #[serde(skip_serializing_if = "no")]
    security: i32,
    #[serde(skip_serializing_if = "no")]
    secretenv: Vec<SecretEnv>,
    #[serde(skip_serializing_if = "no")]
    cdi_devices: Vec<CdiDevice>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(skip_serializing_if = "no")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "no")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "no")]
    cwd: String,
    #[serde(skip_serializing_if = "no")]
    user: String,
    #[serde(skip_serializing_if = "no")]
    extra_hosts: Vec<HostIp>,
    #[serde(skip_serializing_if = "no")]
    hostname: String,
    #[serde(skip_serializing_if = "no")]
    ulimit: Vec<Ulimit>,
    #[serde(skip_serializing_if = "no")]
    cgroup_parent: String,
    #[serde(skip_serializing_if = "no")]
    remove_mount_stubs_recursive: bool,
    #[serde(skip_serializing_if = "no")]
    valid_exit_codes: Vec<i32>,
}

/// The address is no part of a step's identity.
#[derive(PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct HostIp {
    #[serde(skip_serializing_if = "no")]
    host: String,
}

#[derive(PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ulimit {
    #[serde(skip_serializing_if = "no")]
    name: String,
    #[serde(skip_serializing_if = "no")]
    soft: i64,
    #[serde(skip_serializing_if = "no")]
    hard: i64,
}

#[derive(PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct SecretEnv {
    #[serde(rename = "ID", skip_serializing_if = "no")]
    id: String,
    #[serde(skip_serializing_if = "no")]
    name: String,
    #[serde(skip_serializing_if = "no")]
    optional: bool,
}

#[derive(PartialEq, Serialize)]
struct CdiDevice {
    #[serde(skip_serializing_if = "no")]
    name: String,
    #[serde(skip_serializing_if = "no")]
    optional: bool,
}

/// What is mounted of an input is no part of a step's identity.
#[derive(PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<i64>,
    #[serde(skip_serializing_if = "no")]
    dest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<i64>,
    #[serde(skip_serializing_if = "no")]
    readonly: bool,
    #[serde(skip_serializing_if = "no")]
    mount_type: i32,
    #[serde(rename = "TmpfsOpt", skip_serializing_if = "Option::is_none")]
    tmpfs_opt: Option<TmpfsOpt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_opt: Option<CacheOpt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_opt: Option<SecretOpt>,
    #[serde(rename = "SSHOpt", skip_serializing_if = "Option::is_none")]
    ssh_opt: Option<SecretOpt>,
    #[serde(rename = "resultID", skip_serializing_if = "no")]
    result_id: String,
    #[serde(skip_serializing_if = "no")]
    content_cache: i32,
}

#[derive(PartialEq, Serialize)]
struct TmpfsOpt {
    #[serde(skip_serializing_if = "no")]
    size: i64,
}

#[derive(PartialEq, Serialize)]
struct CacheOpt {
    #[serde(rename = "ID", skip_serializing_if = "no")]
    id: String,
    #[serde(skip_serializing_if = "no")]
    sharing: i32,
}

#[derive(PartialEq, Serialize)]
struct SecretOpt {
    #[serde(rename = "ID", skip_serializing_if = "no")]
    id: String,
    #[serde(skip_serializing_if = "no")]
    uid: u32,
    #[serde(skip_serializing_if = "no")]
    gid: u32,
    #[serde(skip_serializing_if = "no")]
    mode: u32,
    #[serde(skip_serializing_if = "no")]
    optional: bool,
}

impl ExecText {
    /// Writes a process; the proxies, the addresses of hosts and what is taken of mounts are left out.
    pub(super) fn new(form: Form, exec: &pb::ExecOp, platform: &Platform) -> Self {
        let mounts = if is_plain_root(&exec.mounts) { &[][..] } else { &exec.mounts };
        let Platform { architecture, os, variant, os_version, os_features } = platform.clone();
        Self {
            kind: "buildkit.exec.v0",
            exec: Exec {
                meta: exec.meta.as_ref().map(Meta::new),
                mounts: mounts.iter().map(|mount| Mount::new(form, mount)).collect(),
                network: exec.network,
                security: exec.security,
                secretenv: exec
                    .secretenv
                    .iter()
                    .map(|env| SecretEnv { id: env.id.clone(), name: env.name.clone(), optional: env.optional })
                    .collect(),
                cdi_devices: exec
                    .cdi_devices
                    .iter()
                    .map(|device| CdiDevice { name: device.name.clone(), optional: device.optional })
                    .collect(),
            },
            os,
            arch: architecture,
            variant,
            os_version,
            os_features,
        }
    }
}

/// The one mount of a step that has its root file system only is left out: versions that forgot all mounts named it so.
fn is_plain_root(mounts: &[pb::Mount]) -> bool {
    let [root] = mounts else { return false };
    let pb::Mount { dest, readonly, mount_type, cache_opt, secret_opt, ssh_opt, result_id, .. } = root;
    dest == "/"
        && !readonly
        && *mount_type == i32::from(pb::MountType::Bind)
        && (cache_opt.is_none() && secret_opt.is_none() && ssh_opt.is_none())
        && result_id.is_empty()
}

impl Meta {
    fn new(meta: &pb::Meta) -> Self {
        Self {
            args: meta.args.clone(),
            env: meta.env.clone(),
            cwd: meta.cwd.clone(),
            user: meta.user.clone(),
            extra_hosts: meta.extra_hosts.iter().map(|host| HostIp { host: host.host.clone() }).collect(),
            hostname: meta.hostname.clone(),
            ulimit: meta
                .ulimit
                .iter()
                .map(|limit| Ulimit { name: limit.name.clone(), soft: limit.soft, hard: limit.hard })
                .collect(),
            cgroup_parent: meta.cgroup_parent.clone(),
            remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
            valid_exit_codes: meta.valid_exit_codes.clone(),
        }
    }
}

impl Mount {
    fn new(form: Form, mount: &pb::Mount) -> Self {
        Self {
            input: index(form, mount.input),
            dest: mount.dest.clone(),
            output: index(form, mount.output),
            readonly: mount.readonly,
            mount_type: mount.mount_type,
            tmpfs_opt: mount.tmpfs_opt.as_ref().map(|tmpfs| TmpfsOpt { size: tmpfs.size }),
            cache_opt: mount.cache_opt.as_ref().map(|cache| CacheOpt::new(cache, &mount.dest)),
            secret_opt: mount.secret_opt.as_ref().map(|secret| SecretOpt {
                id: secret.id.clone(),
                uid: secret.uid,
                gid: secret.gid,
                mode: secret.mode,
                optional: secret.optional,
            }),
            ssh_opt: mount.ssh_opt.as_ref().map(|agent| SecretOpt {
                id: agent.id.clone(),
                uid: agent.uid,
                gid: agent.gid,
                mode: agent.mode,
                optional: agent.optional,
            }),
            result_id: mount.result_id.clone(),
            content_cache: mount.content_cache,
        }
    }
}

impl CacheOpt {
    /// The name of a cache directory is no part of a step's identity, unless it is the one that a Dockerfile gives by default.
    fn new(cache: &pb::CacheOpt, dest: &str) -> Self {
        let is_default = cache.sharing == 0
            && (cache.id == dest || cache.id.split_once('/').is_some_and(|(_, trimmed)| trimmed == dest));
        if is_default { Self { id: cache.id.clone(), sharing: 0 } } else { Self { id: String::new(), sharing: 0 } }
    }
}

#[derive(Serialize)]
pub(super) struct FileText {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Actions")]
    actions: Vec<String>,
    /// On what each action works and what it gives.
    #[serde(skip_serializing_if = "no")]
    indexes: Vec<[i64; 3]>,
}

impl FileText {
    /// Puts actions together; those that work one on the other in the usual way need no indexes.
    pub(super) fn new(actions: Vec<String>, indexes: Vec<[i64; 3]>) -> Self {
        let indexes = if is_usual(&indexes) { Vec::new() } else { indexes };
        Self { kind: "buildkit.file.v0", actions, indexes }
    }
}

/// As BuildKit has it, with the number of actions where that of inputs may have been meant.
fn is_usual(indexes: &[[i64; 3]]) -> bool {
    let count = i64::try_from(indexes.len()).unwrap_or(i64::MAX);
    !indexes.is_empty()
        && (0..).zip(indexes).all(|(at, [input, secondary, output])| {
            *input == if at == 0 { 0 } else { count + at - 1 }
                && (*secondary == -1 || *secondary == 1)
                && *output == if at == count - 1 { 0 } else { -1 }
        })
}

/// Writes an action as it is hashed: JSON within base64.
pub(super) fn action(form: Form, action: &pb::file_action::Action, source: Option<&str>) -> String {
    use pb::file_action::Action;
    let owner = |owner: Option<&pb::ChownOpt>| owner.map(|owner| Chown::new(form, owner));
    let text = match action {
        Action::Copy(copy) => text(&Copy {
            src: source.unwrap_or(&copy.src).to_owned(),
            dest: copy.dest.clone(),
            owner: owner(copy.owner.as_ref()),
            mode: copy.mode,
            follow_symlink: copy.follow_symlink,
            dir_copy_contents: copy.dir_copy_contents,
            attempt_unpack_docker_compatibility: copy.attempt_unpack_docker_compatibility,
            create_dest_path: copy.create_dest_path,
            allow_wildcard: copy.allow_wildcard,
            allow_empty_wildcard: copy.allow_empty_wildcard,
            timestamp: copy.timestamp,
            include_patterns: copy.include_patterns.clone(),
            exclude_patterns: copy.exclude_patterns.clone(),
            always_replace_existing_dest_paths: copy.always_replace_existing_dest_paths,
            mode_str: copy.mode_str.clone(),
            required_paths: copy.required_paths.clone(),
        }),
        Action::Mkfile(file) => text(&Mkfile {
            path: file.path.clone(),
            mode: file.mode,
            data: STANDARD.encode(&file.data),
            owner: owner(file.owner.as_ref()),
            timestamp: file.timestamp,
        }),
        Action::Mkdir(dir) => text(&Mkdir {
            path: dir.path.clone(),
            mode: dir.mode,
            make_parents: dir.make_parents,
            owner: owner(dir.owner.as_ref()),
            timestamp: dir.timestamp,
        }),
        Action::Rm(rm) => text(&Remove {
            path: rm.path.clone(),
            allow_not_found: rm.allow_not_found,
            allow_wildcard: rm.allow_wildcard,
        }),
        Action::Symlink(link) => text(&Symlink {
            oldpath: link.oldpath.clone(),
            newpath: link.newpath.clone(),
            owner: owner(link.owner.as_ref()),
            timestamp: link.timestamp,
        }),
    };
    STANDARD.encode(text)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Copy {
    #[serde(skip_serializing_if = "no")]
    src: String,
    #[serde(skip_serializing_if = "no")]
    dest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Chown>,
    #[serde(skip_serializing_if = "no")]
    mode: i32,
    #[serde(skip_serializing_if = "no")]
    follow_symlink: bool,
    #[serde(skip_serializing_if = "no")]
    dir_copy_contents: bool,
    #[serde(skip_serializing_if = "no")]
    attempt_unpack_docker_compatibility: bool,
    #[serde(skip_serializing_if = "no")]
    create_dest_path: bool,
    #[serde(skip_serializing_if = "no")]
    allow_wildcard: bool,
    #[serde(skip_serializing_if = "no")]
    allow_empty_wildcard: bool,
    #[serde(skip_serializing_if = "no")]
    timestamp: i64,
    #[serde(rename = "include_patterns", skip_serializing_if = "no")]
    include_patterns: Vec<String>,
    #[serde(rename = "exclude_patterns", skip_serializing_if = "no")]
    exclude_patterns: Vec<String>,
    #[serde(skip_serializing_if = "no")]
    always_replace_existing_dest_paths: bool,
    #[serde(skip_serializing_if = "no")]
    mode_str: String,
    #[serde(rename = "required_paths", skip_serializing_if = "no")]
    required_paths: Vec<String>,
}

#[derive(Serialize)]
struct Mkfile {
    #[serde(skip_serializing_if = "no")]
    path: String,
    #[serde(skip_serializing_if = "no")]
    mode: i32,
    #[serde(skip_serializing_if = "no")]
    data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Chown>,
    #[serde(skip_serializing_if = "no")]
    timestamp: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Mkdir {
    #[serde(skip_serializing_if = "no")]
    path: String,
    #[serde(skip_serializing_if = "no")]
    mode: i32,
    #[serde(skip_serializing_if = "no")]
    make_parents: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Chown>,
    #[serde(skip_serializing_if = "no")]
    timestamp: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Remove {
    #[serde(skip_serializing_if = "no")]
    path: String,
    #[serde(skip_serializing_if = "no")]
    allow_not_found: bool,
    #[serde(skip_serializing_if = "no")]
    allow_wildcard: bool,
}

#[derive(Serialize)]
struct Symlink {
    #[serde(skip_serializing_if = "no")]
    oldpath: String,
    #[serde(skip_serializing_if = "no")]
    newpath: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<Chown>,
    #[serde(skip_serializing_if = "no")]
    timestamp: i64,
}

#[derive(Serialize)]
struct Chown {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserOpt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<UserOpt>,
}

#[derive(Serialize)]
struct UserOpt {
    #[serde(rename = "User")]
    user: Option<User>,
}

/// A user; the number 0 is left out by all versions.
#[derive(Default, Serialize)]
struct User {
    #[serde(rename = "byName", skip_serializing_if = "Option::is_none")]
    by_name: Option<Named>,
    #[serde(rename = "byID", skip_serializing_if = "no")]
    by_id: u32,
    #[serde(rename = "byId", skip_serializing_if = "no")]
    by_id_plain: u32,
}

#[derive(Serialize)]
struct Named {
    #[serde(skip_serializing_if = "no")]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<i64>,
}

impl Chown {
    fn new(form: Form, owner: &pb::ChownOpt) -> Self {
        let one = |user: &pb::UserOpt| UserOpt { user: user.user.as_ref().map(|user| User::new(form, user)) };
        Self { user: owner.user.as_ref().map(one), group: owner.group.as_ref().map(one) }
    }
}

impl User {
    fn new(form: Form, user: &pb::user_opt::User) -> Self {
        match (user, form) {
            (pb::user_opt::User::ByName(named), _) => {
                let named = Named { name: named.name.clone(), input: index(form, named.input) };
                Self { by_name: Some(named), ..Self::default() }
            }
            (pb::user_opt::User::ById(id), Form::Gogo) => Self { by_id: *id, ..Self::default() },
            (pb::user_opt::User::ById(id), Form::Plain) => Self { by_id_plain: *id, ..Self::default() },
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct MergeText {
    #[serde(rename = "Type")]
    kind: &'static str,
    merge: Merge,
}

#[derive(Serialize)]
struct Merge {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<InputText>,
}

#[derive(Serialize)]
struct InputText {
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<i64>,
}

impl MergeText {
    pub(super) fn new(form: Form, merge: &pb::MergeOp) -> Self {
        let inputs = merge.inputs.iter().map(|merged| InputText { input: index(form, merged.input) });
        Self { kind: "buildkit.merge.v0", merge: Merge { inputs: inputs.collect() } }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DiffText {
    #[serde(rename = "Type")]
    kind: &'static str,
    diff: Diff,
}

#[derive(Serialize)]
struct Diff {
    #[serde(skip_serializing_if = "Option::is_none")]
    lower: Option<InputText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upper: Option<InputText>,
}

impl DiffText {
    pub(super) fn new(form: Form, diff: &pb::DiffOp) -> Self {
        let side = |input: i64| InputText { input: index(form, input) };
        let lower = diff.lower.as_ref().map(|lower| side(lower.input));
        let upper = diff.upper.as_ref().map(|upper| side(upper.input));
        Self { kind: "buildkit.diff.v0", diff: Diff { lower, upper } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped_as_go_does() {
        assert_eq!(
            text(&"a<b>&\"\\\n\t\u{1}\u{8}\u{c}\u{2028}\u{7f}é/"),
            "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\n\\t\\u0001\\b\\f\\u2028\u{7f}é/\""
        );
    }

    #[test]
    fn indexes_are_left_out_where_buildkit_leaves_them_out() {
        assert!(is_usual(&[[0, 1, 0]]) && is_usual(&[[0, -1, 0]]) && is_usual(&[[0, 1, -1], [2, 1, 0]]));
        assert!(!is_usual(&[[-1, 0, 0]]) && !is_usual(&[[0, 1, -1], [3, 2, 0]]) && !is_usual(&[]));
    }
}
