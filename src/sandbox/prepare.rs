//! From a spec to a plan: decides which steps a process needs, in which order, and prepares what they use.
//!
//! The order is that of runc where it matters: the cgroup before its namespace, mounts before the root is changed, parameters
//! before `/proc/sys` becomes read-only, the bounding set before the user changes, the filter last of all that needs
//! privileges. Assembling the file system is [`super::view`]'s.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::process::{Gid, Pid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, LinkNameSpaceType};

use super::capability::Capabilities;
use super::cgroup::Cgroup;
use super::defaults::DEFAULT_PATH;
use super::failure;
use super::hooks::Meetings;
use super::spec::{IdMap, IdRange, Namespace, Namespaces, Network, Process, Seccomp, Spec};
use super::user::Ids;
use super::view::View;
use crate::error::{Error, Result, ResultExt as _};
use crate::sys::plan::{Call, Command, Place, Plan, Step};

/// Files a process makes are not writable for others, unless it says otherwise.
pub(super) const UMASK: u32 = 0o022;

/// What is common to the first process of a sandbox and further ones.
pub(super) struct Common<'a> {
    pub(super) process: &'a Process,
    pub(super) ids: &'a Ids,
    pub(super) stdio: [Arc<OwnedFd>; 3],
    pub(super) terminal: bool,
    pub(super) init: bool,
    pub(super) die_with_parent: bool,
}

/// What the parent must do between starting a process and letting it go on.
pub(super) struct ParentPart {
    ids: Option<IdMap>,
    /// Limits above those this program has, which only it may raise.
    raised: Vec<(Resource, Rlimit)>,
    oom_score_adj: Option<i32>,
    go: Arc<OwnedFd>,
}

impl ParentPart {
    /// Returns the part and the step that waits for it; `None` when there is nothing to do.
    pub(super) fn new(process: &Process, ids: Option<IdMap>) -> Result<Option<(Self, Step)>> {
        let raised: Vec<_> = process.rlimits.iter().copied().filter(is_raised).collect();
        if ids.is_none() && raised.is_empty() && process.oom_score_adj.is_none() {
            return Ok(None);
        }
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(|| "make a pipe")?;
        let go = Arc::new(writer);
        let wait = Call::Await { reader, writer: Arc::clone(&go) };
        let part = Self { ids, raised, oom_score_adj: process.oom_score_adj, go };
        Ok(Some((part, step("wait for limits and id maps", wait))))
    }

    /// Does it, and lets the process go on. On error the process still waits: kill it.
    pub(super) fn carry_out(self, pid: Pid) -> Result<()> {
        let number = pid.as_raw_nonzero();
        if let Some(map) = &self.ids {
            write_proc(&format!("/proc/{number}/uid_map"), &map_text(&map.uids))?;
            write_proc(&format!("/proc/{number}/gid_map"), &map_text(&map.gids))?;
        }
        for (resource, limit) in &self.raised {
            // The process itself sets what applies in the end.
            let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
            rustix::process::prlimit(Some(pid), *resource, raised)
                .map_err(|errno| failure::step(&format!("set the limit {resource:?}"), errno))?;
        }
        if let Some(score) = self.oom_score_adj {
            write_proc(&format!("/proc/{number}/oom_score_adj"), &score.to_string())
                .context(|| "set oom_score_adj (lowering it needs CAP_SYS_RESOURCE)")?;
        }
        rustix::io::write(&*self.go, b"1").map(drop).context(|| "let the process go on")
    }
}

/// Says whether a hard limit is above this program's own.
fn is_raised((resource, limit): &(Resource, Rlimit)) -> bool {
    match (limit.maximum, rustix::process::getrlimit(*resource).maximum) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(wanted), Some(own)) => wanted > own,
    }
}

/// The kernel takes a whole map in one write.
fn map_text(ranges: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.inside, range.outside, range.length);
    ranges.iter().map(line).collect()
}

fn write_proc(path: &str, text: &str) -> Result<()> {
    std::fs::write(path, text).context(|| format!("write {:?} to {path}", text.trim_end()))
}

pub(super) fn step(purpose: impl Into<String>, call: Call) -> Step {
    Step { call, purpose: purpose.into() }
}

/// The steps of the first process of a sandbox.
pub(super) fn sandbox_plan(
    spec: &Spec,
    view: View,
    cgroup: Option<&Cgroup>,
    wait: Option<Step>,
    common: &Common<'_>,
    meetings: Meetings,
) -> Result<Plan> {
    let stays = meetings.created.is_some() || meetings.starting.is_some();
    let mut steps = Vec::with_capacity(96);
    steps.extend(wait);
    if spec.namespaces.user.is_some() {
        steps.push(step("become root of the user namespace", Call::BecomeRoot));
    }
    steps.extend(entry_steps(common.die_with_parent, cgroup)?);
    if spec.is_cgroup_view_private() && cgroup.is_some() {
        steps.push(step("create a cgroup namespace", Call::UnshareCgroup));
    }
    if matches!(spec.namespaces.network, Network::None) {
        steps.push(step("set up the loopback interface", Call::LoopbackUp));
    }
    steps.push(step("separate from the host's mounts", Call::StopPropagation));
    steps.extend(view.steps);
    steps.extend(meetings.created);
    steps.extend(view.restrictions);
    if !spec.hostname.is_empty() {
        steps.push(step(
            format!("set the host name {:?}", spec.hostname),
            Call::Hostname(spec.hostname.clone().into_bytes()),
        ));
    }
    if !spec.domainname.is_empty() {
        let name = spec.domainname.clone().into_bytes();
        steps.push(step(format!("set the domain name {:?}", spec.domainname), Call::Domainname(name)));
    }
    steps.push(step(
        "enter the root file system (the host's own root must not be the initial ramfs)",
        Call::Pivot(view.root),
    ));
    steps.extend(process_steps(common)?);
    steps.extend(meetings.starting);
    let mut plan = finish(common, steps)?;
    if stays {
        plan.close_others();
    }
    Ok(plan)
}

/// The first steps of every process: nobody looks in, nobody outlives the engine, and the group accounts from the start.
pub(super) fn entry_steps(die_with_parent: bool, cgroup: Option<&Cgroup>) -> Result<Vec<Step>> {
    let mut steps = vec![step("hide from other processes", Call::Hide)];
    if die_with_parent {
        steps.push(step("tie the process to its parent", Call::DieWithParent));
    }
    if let Some(cgroup) = cgroup {
        steps.extend(
            cgroup.join_files()?.into_iter().map(|file| step("join the control group", Call::JoinCgroup(file))),
        );
    }
    steps.push(step("leave the session keyring", Call::NewKeyring));
    Ok(steps)
}

/// The steps that turn a process in its namespaces into the one that was asked for.
pub(super) fn process_steps(common: &Common<'_>) -> Result<Vec<Step>> {
    let Common { process, ids, .. } = common;
    let bound = process.capabilities;
    let granted = if ids.uid == 0 { bound } else { Capabilities::NONE };
    let mut steps = vec![
        step("set the file mode mask", Call::Umask(Mode::from(UMASK))),
        step("set up standard input and output", Call::Stdio(common.stdio.clone())),
    ];
    if !common.init {
        steps.push(step("start a session on the terminal", Call::Session));
    }
    steps.extend(apparmor_step(process)?);
    let cwd = CString::new(if process.cwd.is_empty() { "/" } else { &process.cwd });
    let cwd = cwd.map_err(|_| Error::invalid("the working directory contains a zero byte"))?;
    let chdir = |tentative| {
        // runc's words; clients look for the ending.
        let purpose = format!("chdir to cwd ({:?}) set in config.json failed", cwd.to_string_lossy());
        step(purpose, Call::Chdir { path: cwd.clone(), tentative })
    };
    steps.extend([
        step("limit the capabilities", Call::Bound(set(bound))),
        chdir(true),
        step(format!("become user {}", ids.uid), identity(ids)),
        step("keep what the filter needs", Call::Capabilities(set(granted.with(FILTER)))),
        chdir(false),
        step("mark descriptors to be closed", Call::CloseDescriptors),
    ]);
    // From here on nothing opens a file: the limit of descriptors may be lower than what that takes.
    let limit = |(resource, limit): &(Resource, Rlimit)| {
        step(format!("set the limit {resource:?}"), Call::Limit(*resource, *limit))
    };
    steps.extend(process.rlimits.iter().map(limit));
    if common.die_with_parent {
        // Changing the user has untied it.
        steps.push(step("tie the process to its parent", Call::DieWithParent));
    }
    let drop = step(format!("set the capabilities {granted}"), Call::Capabilities(set(granted)));
    let filter = match &process.seccomp {
        Seccomp::Unconfined => None,
        Seccomp::Profile(profile) => {
            Some(step("install the seccomp filter", Call::Seccomp(profile.filter(process.capabilities)?)))
        }
    };
    if process.no_new_privileges {
        // Then the filter needs no privilege and comes last, so that it need not allow what is before it.
        steps.push(drop);
        steps.push(step("give up new privileges", Call::NoNewPrivileges));
        steps.extend(filter);
    } else {
        steps.extend(filter);
        steps.push(drop);
    }
    Ok(steps)
}

/// Installing a filter without giving up new privileges needs `CAP_SYS_ADMIN`.
const FILTER: Capabilities = Capabilities::SYS_ADMIN;

fn set(capabilities: Capabilities) -> CapabilitySet {
    CapabilitySet::from_bits_retain(capabilities.bits())
}

fn identity(ids: &Ids) -> Call {
    Call::Identity {
        uid: Uid::from_raw(ids.uid),
        gid: Gid::from_raw(ids.gid),
        groups: ids.groups.iter().map(|group| Gid::from_raw(*group)).collect(),
    }
}

/// On a host without `AppArmor` a profile is ignored.
fn apparmor_step(process: &Process) -> Result<Option<Step>> {
    const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
    let Some(profile) = &process.apparmor else { return Ok(None) };
    if !std::fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y')) {
        return Ok(None);
    }
    if profile.contains('\0') {
        return Err(Error::invalid("the AppArmor profile's name contains a zero byte"));
    }
    let target = Place { dir: None, path: c"/proc/thread-self/attr/exec".to_owned() };
    let purpose = format!("apply the AppArmor profile {profile:?} (it must be loaded)");
    Ok(Some(step(purpose, Call::Write { target, value: format!("exec {profile}").into_bytes() })))
}

/// Adds the command to the steps.
pub(super) fn finish(common: &Common<'_>, steps: Vec<Step>) -> Result<Plan> {
    let process = common.process;
    let Some(name) = process.args.first().filter(|name| !name.is_empty()) else {
        return Err(Error::invalid("no command specified"));
    };
    let strings = |list: &[String]| {
        let convert = |text: &String| CString::new(text.as_str());
        list.iter()
            .map(convert)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Error::invalid("a command, argument or environment variable contains a zero byte"))
    };
    let mut environment = process.env.clone();
    if variable(&environment, "HOME").is_none() {
        environment.push(format!("HOME={}", common.ids.home));
    }
    let candidates = strings(&candidates(name, variable(&environment, "PATH")))?;
    let command = Command::new(candidates, !name.contains('/'), strings(&process.args)?, strings(&environment)?);
    Ok(Plan { name: name.clone(), steps, terminal: common.terminal, supervise: common.init, command })
}

/// The last entry for a name counts, as in a shell.
fn variable<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// The paths that a command may have. An empty entry of `PATH` is the working directory.
fn candidates(name: &str, path: Option<&str>) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let join =
        |dir: &str| if dir.is_empty() { format!("./{name}") } else { format!("{}/{name}", dir.trim_end_matches('/')) };
    path.unwrap_or(DEFAULT_PATH).split(':').map(join).collect()
}

/// The namespaces a sandbox gets new, as `CLONE_NEW*` flags, and those it joins.
pub(super) fn namespaces(namespaces: Namespaces) -> (u64, Vec<(OwnedFd, LinkNameSpaceType)>) {
    let mut flags = libc::CLONE_NEWNS;
    let mut join = Vec::new();
    if namespaces.user.is_some() {
        flags |= libc::CLONE_NEWUSER;
    }
    match namespaces.network {
        Network::None => flags |= libc::CLONE_NEWNET,
        Network::Host => {}
        Network::Join(fd) => join.push((fd, LinkNameSpaceType::Network)),
    }
    for (namespace, flag, kind) in [
        (namespaces.ipc, libc::CLONE_NEWIPC, LinkNameSpaceType::InterProcessCommunication),
        (namespaces.uts, libc::CLONE_NEWUTS, LinkNameSpaceType::HostNameAndNISDomainName),
        (namespaces.pid, libc::CLONE_NEWPID, LinkNameSpaceType::ProcessID),
    ] {
        match namespace {
            Namespace::Private => flags |= flag,
            Namespace::Host => {}
            Namespace::Join(fd) => join.push((fd, kind)),
        }
    }
    (u64::from(flags.cast_unsigned()), join)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_without_a_slash_is_searched_in_path() {
        assert_eq!(candidates("sh", Some("/a:/b/::")), ["/a/sh", "/b/sh", "./sh", "./sh"]);
        assert_eq!(candidates("./sh", Some("/a")), ["./sh"]);
        assert_eq!(candidates("sh", None).len(), 6);
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let environment = ["PATH=/a", "PATHS=/x", "PATH=/b"].map(str::to_owned);
        assert_eq!(variable(&environment, "PATH"), Some("/b"));
        assert_eq!(variable(&environment, "HOME"), None);
    }
}
