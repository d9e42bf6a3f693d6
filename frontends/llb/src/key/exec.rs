//! Processes: how BuildKit's frontend writes them, and what counts of their mounts.

use kiln_graph::op::{Exec, InputIndex};
use kiln_graph::{Digest, Platform};

use super::{Form, Selected, Taken, Written, json, topmost};
use crate::{encode, pb};

/// Where a here-document that begins with `#!` is mounted, without and with the slash that BuildKit writes.
const SCRIPTS: (&str, &str) = ("/dev/pipes", "/dev/pipes/");

/// The client's agent, unless another one is named.
const AGENT: &str = "default";

/// Writes a process as BuildKit's frontend for Dockerfiles does: mounts in order of their targets, then secrets and agents.
pub(super) fn written(exec: &Exec) -> Written {
    let mut op = encode::exec_op(exec);
    let is_secret = |mount: &pb::Mount| mount.secret_opt.is_some() || mount.ssh_opt.is_some();
    let (mut secrets, mut mounts): (Vec<pb::Mount>, Vec<pb::Mount>) = op.mounts.into_iter().partition(is_secret);
    for mount in &mut mounts {
        if mount.dest == SCRIPTS.0 {
            SCRIPTS.1.clone_into(&mut mount.dest);
        }
        if mount.mount_type == i32::from(pb::MountType::Tmpfs) {
            mount.tmpfs_opt.get_or_insert_default();
        }
    }
    for mount in &mut secrets {
        // These fields are not set for them.
        (mount.input, mount.output, mount.readonly) = (0, 0, false);
        // Nor is the name of an agent that no flag names.
        mount.ssh_opt.iter_mut().filter(|agent| agent.id == AGENT).for_each(|agent| agent.id.clear());
    }
    // The secrets come before the agents, each in the order in which they are written.
    secrets.sort_by_key(|mount| mount.ssh_opt.is_some());
    mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
    let mut inputs: Vec<InputIndex> = Vec::new();
    for mount in &mut mounts {
        if let Ok(input) = InputIndex::try_from(mount.input) {
            let at = inputs.iter().position(|known| *known == input).unwrap_or_else(|| {
                inputs.push(input);
                inputs.len() - 1
            });
            mount.input = i64::try_from(at).unwrap_or(i64::MAX);
        }
    }
    mounts.extend(secrets);
    op.mounts = mounts;
    Written { op: pb::op::Op::Exec(op), inputs }
}

/// Returns the digest of a process, and what it takes of its inputs.
pub(super) fn key(form: Form, exec: &pb::ExecOp, platform: &Platform, inputs: usize) -> Option<(Digest, Vec<Taken>)> {
    let is_newer =
        !exec.cdi_devices.is_empty() || exec.meta.as_ref().is_some_and(|meta| !meta.valid_exit_codes.is_empty());
    if form == Form::Gogo && is_newer {
        return None;
    }
    let mut paths: Vec<Vec<String>> = vec![Vec::new(); inputs];
    let mut by_content = vec![false; inputs];
    for mount in &exec.mounts {
        // The older versions take the fields that are not set for a mount of input 0.
        let is_bare = [pb::MountType::Secret, pb::MountType::Ssh, pb::MountType::Tmpfs]
            .into_iter()
            .any(|kind| mount.mount_type == i32::from(kind));
        if mount.input == -1 || (form == Form::Plain && is_bare) {
            continue;
        }
        let input = usize::try_from(mount.input).ok()?;
        let path = joined(&mount.selector);
        by_content[..].get(input)?;
        by_content[input] = is_known_by_content(mount, &path);
        paths[input].push(path);
    }
    let taken = paths.into_iter().zip(by_content).map(|(paths, by_content)| {
        let selector = (!paths.is_empty()).then(|| Digest::of(paths.join("\0").as_bytes()));
        Taken { selector, content: by_content.then(|| selected(paths)) }
    });
    Some((json::digest(&json::ExecText::new(form, exec, platform)), taken.collect()))
}

/// What a step may change is known by content only if all of it is there: files beside what is mounted would come along.
fn is_known_by_content(mount: &pb::Mount, path: &str) -> bool {
    let is_safe = mount.output == -1 || mount.readonly || path == "/";
    match pb::MountContentCache::try_from(mount.content_cache) {
        Ok(pb::MountContentCache::Off) => false,
        Ok(pb::MountContentCache::On) => is_safe,
        _ => is_safe && mount.dest != "/",
    }
}

fn selected(paths: Vec<String>) -> Vec<Selected> {
    let paths = topmost(paths);
    if paths.iter().any(|path| path == "/") {
        return vec![Selected::default()];
    }
    paths.into_iter().map(|path| Selected { path, follow_links: true, ..Selected::default() }).collect()
}

/// As Go's `path.Join("/", selector)`.
fn joined(selector: &str) -> String {
    let mut components: Vec<&str> = Vec::new();
    for component in selector.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            name => components.push(name),
        }
    }
    format!("/{}", components.join("/"))
}
