//! Operations as errors carry them: the JSON form of the protocol's messages, which BuildKit's clients read. Those of some versions
//! refuse fields they do not know, so what is as it usually is is left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::types::build::pb;
use pb::file_action::Action;
use pb::op::Op as Kind;
use pb::user_opt::User;

/// A field that says something even when it is 0: it is one of several that may be there.
const CHOICE: &str = "byID";

/// Writes an operation.
pub(super) fn op(op: &pb::Op) -> Value {
    let inputs: Vec<Value> =
        op.inputs.iter().map(|input| json!({ "digest": input.digest, "index": input.index })).collect();
    let platform = op.platform.as_ref().map(|platform| {
        json!({
            "Architecture": platform.architecture,
            "OS": platform.os,
            "Variant": platform.variant,
            "OSVersion": platform.os_version,
            "OSFeatures": platform.os_features,
        })
    });
    let mut message = Map::from_iter([("inputs".to_owned(), inputs.into()), ("platform".to_owned(), platform.into())]);
    message.extend(op.op.as_ref().map(|kind| {
        let (name, value) = of_kind(kind);
        (name.to_owned(), value)
    }));
    compact(message.into())
}

fn of_kind(kind: &Kind) -> (&'static str, Value) {
    match kind {
        Kind::Exec(exec) => ("exec", self::exec(exec)),
        Kind::Source(source) => ("source", json!({ "identifier": source.identifier, "attrs": source.attrs })),
        Kind::File(file) => ("file", json!({ "actions": file.actions.iter().map(action).collect::<Vec<_>>() })),
        Kind::Build(build) => ("build", json!({ "builder": build.builder, "attrs": build.attrs })),
        Kind::Merge(merge) => {
            let inputs: Vec<Value> = merge.inputs.iter().map(|input| json!({ "input": input.input })).collect();
            ("merge", json!({ "inputs": inputs }))
        }
        Kind::Diff(diff) => {
            let lower = diff.lower.map(|lower| json!({ "input": lower.input }));
            let upper = diff.upper.map(|upper| json!({ "input": upper.input }));
            ("diff", json!({ "lower": lower, "upper": upper }))
        }
    }
}

/// Leaves out what is as it usually is.
fn compact(value: Value) -> Value {
    let is_usual = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(_) | Value::Bool(true) => false,
    };
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, compact(value)));
            fields.filter(|(name, value)| name == CHOICE || !is_usual(value)).collect::<Map<_, _>>().into()
        }
        Value::Array(values) => values.into_iter().map(compact).collect(),
        other => other,
    }
}

fn exec(exec: &pb::ExecOp) -> Value {
    let secrets = exec.secretenv.iter();
    let secrets: Vec<Value> =
        secrets.map(|secret| json!({ "ID": secret.id, "name": secret.name, "optional": secret.optional })).collect();
    let devices = exec.cdi_devices.iter();
    let devices: Vec<Value> =
        devices.map(|device| json!({ "name": device.name, "optional": device.optional })).collect();
    json!({
        "meta": exec.meta.as_ref().map(meta),
        "mounts": exec.mounts.iter().map(mount).collect::<Vec<_>>(),
        "network": exec.network,
        "security": exec.security,
        "secretenv": secrets,
        "cdiDevices": devices,
    })
}

fn meta(meta: &pb::Meta) -> Value {
    let hosts = meta.extra_hosts.iter();
    let hosts: Vec<Value> = hosts.map(|host| json!({ "Host": host.host, "IP": host.ip })).collect();
    let limits = meta.ulimit.iter();
    let limits: Vec<Value> =
        limits.map(|limit| json!({ "Name": limit.name, "Soft": limit.soft, "Hard": limit.hard })).collect();
    let proxy = meta.proxy_env.as_ref().map(|proxy| {
        json!({
            "http_proxy": proxy.http_proxy,
            "https_proxy": proxy.https_proxy,
            "ftp_proxy": proxy.ftp_proxy,
            "no_proxy": proxy.no_proxy,
            "all_proxy": proxy.all_proxy,
        })
    });
    json!({
        "args": meta.args,
        "env": meta.env,
        "cwd": meta.cwd,
        "user": meta.user,
        "proxy_env": proxy,
        "extraHosts": hosts,
        "hostname": meta.hostname,
        "ulimit": limits,
        "cgroupParent": meta.cgroup_parent,
        "removeMountStubsRecursive": meta.remove_mount_stubs_recursive,
        "validExitCodes": meta.valid_exit_codes,
    })
}

fn mount(mount: &pb::Mount) -> Value {
    let owned = |id: &str, uid: u32, gid: u32, mode: u32, optional: bool| json!({ "ID": id, "uid": uid, "gid": gid, "mode": mode, "optional": optional });
    let secret = mount.secret_opt.as_ref();
    let agent = mount.ssh_opt.as_ref();
    json!({
        "input": mount.input,
        "selector": mount.selector,
        "dest": mount.dest,
        "output": mount.output,
        "readonly": mount.readonly,
        "mountType": mount.mount_type,
        "TmpfsOpt": mount.tmpfs_opt.as_ref().map(|tmpfs| json!({ "size": tmpfs.size })),
        "cacheOpt": mount.cache_opt.as_ref().map(|cache| json!({ "ID": cache.id, "sharing": cache.sharing })),
        "secretOpt": secret.map(|secret| owned(&secret.id, secret.uid, secret.gid, secret.mode, secret.optional)),
        "SSHOpt": agent.map(|agent| owned(&agent.id, agent.uid, agent.gid, agent.mode, agent.optional)),
        "contentCache": mount.content_cache,
    })
}

fn action(action: &pb::FileAction) -> Value {
    let of_kind = action.action.as_ref().map(|action| match action {
        Action::Copy(copy) => ("copy".to_owned(), self::copy(copy)),
        Action::Mkfile(file) => (
            "mkfile".to_owned(),
            json!({
                "path": file.path,
                "mode": file.mode,
                "data": STANDARD.encode(&file.data),
                "owner": file.owner.as_ref().map(owner),
                "timestamp": file.timestamp,
            }),
        ),
        Action::Mkdir(dir) => (
            "mkdir".to_owned(),
            json!({
                "path": dir.path,
                "mode": dir.mode,
                "makeParents": dir.make_parents,
                "owner": dir.owner.as_ref().map(owner),
                "timestamp": dir.timestamp,
            }),
        ),
        Action::Rm(rm) => (
            "rm".to_owned(),
            json!({
                "path": rm.path,
                "allowNotFound": rm.allow_not_found,
                "allowWildcard": rm.allow_wildcard,
            }),
        ),
        Action::Symlink(link) => (
            "symlink".to_owned(),
            json!({
                "oldpath": link.oldpath,
                "newpath": link.newpath,
                "owner": link.owner.as_ref().map(owner),
                "timestamp": link.timestamp,
            }),
        ),
    });
    let mut message = Map::from_iter([
        ("input".to_owned(), action.input.into()),
        ("secondaryInput".to_owned(), action.secondary_input.into()),
        ("output".to_owned(), action.output.into()),
    ]);
    message.extend(of_kind);
    message.into()
}

fn copy(copy: &pb::FileActionCopy) -> Value {
    json!({
        "src": copy.src,
        "dest": copy.dest,
        "owner": copy.owner.as_ref().map(owner),
        "mode": copy.mode,
        "modeStr": copy.mode_str,
        "followSymlink": copy.follow_symlink,
        "dirCopyContents": copy.dir_copy_contents,
        "attemptUnpackDockerCompatibility": copy.attempt_unpack_docker_compatibility,
        "createDestPath": copy.create_dest_path,
        "allowWildcard": copy.allow_wildcard,
        "allowEmptyWildcard": copy.allow_empty_wildcard,
        "timestamp": copy.timestamp,
        "include_patterns": copy.include_patterns,
        "exclude_patterns": copy.exclude_patterns,
        "alwaysReplaceExistingDestPaths": copy.always_replace_existing_dest_paths,
        "required_paths": copy.required_paths,
    })
}

fn owner(owner: &pb::ChownOpt) -> Value {
    json!({ "user": owner.user.as_ref().map(user), "group": owner.group.as_ref().map(user) })
}

fn user(user: &pb::UserOpt) -> Value {
    match &user.user {
        Some(User::ByName(named)) => json!({ "byName": { "name": named.name, "input": named.input } }),
        Some(User::ById(id)) => json!({ CHOICE: id }),
        None => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_written_without_what_is_usual() {
        let meta = pb::Meta { args: vec!["true".into()], cwd: "/".into(), ..pb::Meta::default() };
        let mount = |dest: &str, input| pb::Mount { dest: dest.into(), input, ..pb::Mount::default() };
        let exec = pb::ExecOp { meta: Some(meta), mounts: vec![mount("/", 0), mount("/m", -1)], ..Default::default() };
        let exec = pb::Op { op: Some(Kind::Exec(exec)), ..pb::Op::default() };
        let expected = json!({ "exec": {
            "meta": { "args": ["true"], "cwd": "/" },
            "mounts": [{ "dest": "/" }, { "dest": "/m", "input": -1 }],
        }});
        assert_eq!(op(&exec), expected);
        let root = pb::UserOpt { user: Some(User::ById(0)) };
        let file = pb::FileActionMkFile {
            path: "/f".into(),
            data: b"data".to_vec(),
            owner: Some(pb::ChownOpt { user: Some(root), group: None }),
            ..pb::FileActionMkFile::default()
        };
        let action = pb::FileAction { output: -1, action: Some(Action::Mkfile(file)), ..pb::FileAction::default() };
        let file = pb::Op { op: Some(Kind::File(pb::FileOp { actions: vec![action] })), ..pb::Op::default() };
        let made = json!({ "path": "/f", "data": "ZGF0YQ==", "owner": { "user": { "byID": 0 } } });
        assert_eq!(op(&file), json!({ "file": { "actions": [{ "output": -1, "mkfile": made }] } }));
    }
}
