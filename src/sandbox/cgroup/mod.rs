//! Control groups: one group per sandbox, on v1, hybrid and v2 alike, by writing the kernel's files.
//!
//! A group is made before the process starts, and removed after it has ended and everything in it is dead. What the host
//! cannot give becomes a warning. There is no systemd driver: groups are made directly below the root of each hierarchy.

mod devices;
mod layout;
mod limits;
mod stats;

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};

use self::layout::{Controller, Hierarchy, Version};
use crate::error::{Error, Kind, Result, ResultExt as _};

pub use limits::{Limits, Swap};
pub use stats::Stats;

/// Where the groups of sandboxes are unless the caller says otherwise.
pub const DEFAULT_PARENT: &str = "kiln";

/// How long killed processes are waited for, and processes that shall stand still.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the version of control groups that limits are set with on this host, 1 or 2.
#[must_use]
pub fn cgroup_version() -> u8 {
    let on_v1 = |hierarchy: &Hierarchy| hierarchy.version == Version::V1 && !hierarchy.controllers.is_empty();
    if layout::detect().iter().any(on_v1) { 1 } else { 2 }
}

/// Returns an id for a sandbox that this process does not outlive. When it is killed, [`remove_abandoned`] knows its groups.
#[must_use]
pub fn temporary_id(prefix: &str, unique: u64) -> String {
    format!("{prefix}-{}-{unique:016x}", std::process::id())
}

/// Removes groups below [`DEFAULT_PARENT`] whose ids [`temporary_id`] made of a prefix in a process that is no more. Blocking,
/// and cheap. Those that hold processes stay, and so do those of a process whose number another one has now.
pub fn remove_abandoned(prefix: &str) {
    for hierarchy in layout::detect() {
        for dir in subdirectories(&hierarchy.mount.join(DEFAULT_PARENT)) {
            let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if is_abandoned(&name, prefix) {
                // One that cannot be removed is not empty.
                let _ = fs::remove_dir(&dir);
            }
        }
    }
}

/// Says whether [`temporary_id`] made an id of a prefix in a process that is no more.
pub(super) fn is_abandoned(id: &str, prefix: &str) -> bool {
    maker(id, prefix).is_some_and(is_gone)
}

/// The process that made an id.
fn maker(id: &str, prefix: &str) -> Option<Pid> {
    let (pid, unique) = id.strip_prefix(prefix)?.strip_prefix('-')?.split_once('-')?;
    (unique.len() == 16).then(|| Pid::from_raw(pid.parse().ok()?))?
}

fn is_gone(pid: Pid) -> bool {
    rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
}

/// The control group of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupSpec {
    /// The group above it, below the root of each hierarchy; made when it is missing. Empty is [`DEFAULT_PARENT`].
    pub parent: String,
    /// The limits.
    pub limits: Limits,
}

impl Default for CgroupSpec {
    fn default() -> Self {
        Self { parent: DEFAULT_PARENT.to_owned(), limits: Limits::default() }
    }
}

/// A group: one directory in each hierarchy that the host has.
#[derive(Clone, Debug)]
pub struct Cgroup {
    groups: Vec<Group>,
}

/// A directory of a hierarchy.
#[derive(Clone, Debug)]
struct Group {
    version: Version,
    controllers: Vec<Controller>,
    mount: PathBuf,
    dir: PathBuf,
}

impl Cgroup {
    /// Makes the group of a sandbox, with its limits, and returns it with warnings about what the host does not give.
    ///
    /// Blocking. Needs write access to the hierarchies.
    ///
    /// # Errors
    /// `InvalidArgument` for an id or parent that is no path below the root, and for a limit the kernel refuses; `Conflict` when
    /// processes run in the group already.
    pub(super) fn create(spec: &CgroupSpec, id: &str) -> Result<(Self, Vec<String>)> {
        let path = group_path(&spec.parent, id)?;
        let mut warnings = Vec::new();
        let mut groups = Vec::new();
        for hierarchy in layout::detect() {
            if !is_needed(hierarchy, &spec.limits) {
                continue;
            }
            match Group::make(hierarchy, &path) {
                Ok(group) => groups.push(group),
                Err(error) => {
                    let place = hierarchy.mount.display();
                    warnings.push(format!("no control group in {place}: {}", Error::from(error)));
                }
            }
        }
        let cgroup = Self { groups };
        // What a killed engine has left is taken over; what is alive is left alone.
        if !cgroup.pids().is_empty() {
            return Err(Error::conflict(format!("control group {} is in use", cgroup.describe())));
        }
        match cgroup.update(&spec.limits) {
            Ok(more) => {
                warnings.extend(more);
                Ok((cgroup, warnings))
            }
            Err(error) => Err(error.and_cleanup(cgroup.remove())),
        }
    }

    /// Finds out what limits become on this host, by making a group with them and removing it; returns the same warnings as a
    /// sandbox with them. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for an id or parent that is no path below the root, and for a limit the kernel refuses.
    pub fn try_limits(spec: &CgroupSpec, id: &str) -> Result<Vec<String>> {
        let (cgroup, warnings) = Self::create(spec, id)?;
        cgroup.remove()?;
        Ok(warnings)
    }

    /// Finds the group of a sandbox that another process may have made; hierarchies where it does not exist are left out.
    ///
    /// # Errors
    /// `InvalidArgument` for an id or parent that is no path below the root; `NotFound` when it exists nowhere.
    pub fn open(parent: &str, id: &str) -> Result<Self> {
        let path = group_path(parent, id)?;
        let groups: Vec<Group> = layout::detect()
            .iter()
            .map(|hierarchy| Group::describe(hierarchy, &path))
            .filter(|group| group.dir.is_dir())
            .collect();
        if groups.is_empty() {
            return Err(Error::not_found(format!("no control group {}", path.display())));
        }
        Ok(Self { groups })
    }

    /// Changes limits; those that are `None` stay as they are. Returns warnings about what the host does not give.
    ///
    /// # Errors
    /// `InvalidArgument` when the kernel refuses a value, for example less memory than is in use.
    pub fn update(&self, limits: &Limits) -> Result<Vec<String>> {
        limits::apply(self, limits)
    }

    /// Returns what the group uses and has used. What the host does not count is `None` or zero.
    #[must_use]
    pub fn stats(&self) -> Stats {
        stats::read(self)
    }

    /// Returns the processes in the group and below, as this process's namespace numbers them.
    #[must_use]
    pub fn pids(&self) -> Vec<Pid> {
        let mut pids = Vec::new();
        if let Some(group) = self.groups.last() {
            collect_pids(&group.dir, &mut pids);
        }
        pids
    }

    /// Stops all processes of the group until [`Cgroup::thaw`]. Blocking until they stand still, at most ten seconds.
    ///
    /// # Errors
    /// `Unsupported` when the host has no freezer; `Timeout` when a process hangs in the kernel: then they go on.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)?;
        if wait_for(|| self.is_frozen()) {
            return Ok(());
        }
        let text = format!("freeze control group {}: a process does not stand still", self.describe());
        Err(Error::timeout(text).and_cleanup(self.thaw()))
    }

    /// Says whether all processes of the group stand still.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        match (self.group(Controller::Freezer), self.v2()) {
            (Some(group), _) => group.read("freezer.state").is_some_and(|state| state.trim() == "FROZEN"),
            (None, Some(group)) => {
                group.read("cgroup.events").is_some_and(|events| events.lines().any(|line| line == "frozen 1"))
            }
            (None, None) => false,
        }
    }

    /// Lets the processes of a frozen group go on.
    ///
    /// # Errors
    /// `Unsupported` when the host has no freezer.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        if let Some(group) = self.group(Controller::Freezer) {
            return group.write("freezer.state", if frozen { "FROZEN" } else { "THAWED" });
        }
        match self.v2() {
            Some(group) => group.write("cgroup.freeze", if frozen { "1" } else { "0" }),
            None => Err(Error::unsupported("this host has no freezer control group; mount one, or use cgroup v2")),
        }
    }

    /// Kills everything in the group and below; returns at once.
    pub fn kill(&self) {
        if let Some(group) = self.v2()
            && group.write("cgroup.kill", "1").is_ok()
        {
            return;
        }
        for pid in self.pids() {
            // It may have ended meanwhile, which is what was wanted.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    /// Kills everything in the group and removes it. Blocking until all processes are gone, at most ten seconds. A group that
    /// does not exist any more is removed already.
    ///
    /// # Errors
    /// `Timeout` when processes do not end (they hang in the kernel).
    pub fn remove(&self) -> Result<()> {
        let mut last = None;
        let removed = wait_for(|| match self.groups.iter().try_for_each(|group| remove_tree(&group.dir)) {
            Ok(()) => true,
            Err(error) => {
                last = Some(error);
                self.kill();
                // A process that is frozen on v1 does not see the signal.
                let _ = self.thaw();
                false
            }
        });
        match last {
            Some(error) if !removed => {
                let text = format!("remove control group {}: processes in it do not end", self.describe());
                Err(Error::timeout(text).with_source(error))
            }
            _ => Ok(()),
        }
    }

    /// The directory a process can be cloned into, on v2 (also beside v1).
    pub(super) fn clone_target(&self) -> Result<Option<OwnedFd>> {
        let Some(group) = self.v2() else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&group.dir, flags, Mode::empty());
        Ok(Some(dir.context(|| format!("open control group {}", group.dir.display()))?))
    }

    /// The files through which a process joins the v1 groups. A single thread that moves itself through `tasks` spares the
    /// kernel a grace period, which `cgroup.procs` costs.
    pub(super) fn join_files(&self) -> Result<Vec<OwnedFd>> {
        let v1 = self.groups.iter().filter(|group| group.version == Version::V1);
        v1.map(|group| {
            let file = group.dir.join("tasks");
            let opened = rustix::fs::open(&file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            opened.context(|| format!("open {}", file.display()))
        })
        .collect()
    }

    /// The directories that a sandbox sees, by the name each has below `/sys/fs/cgroup`; a v2-only host has one without a name.
    pub(super) fn views(&self) -> Vec<(String, &Path)> {
        if let [only] = &self.groups[..]
            && only.version == Version::V2
        {
            return vec![(String::new(), &only.dir)];
        }
        let name = |group: &Group| group.mount.file_name().map(|name| name.to_string_lossy().into_owned());
        self.groups.iter().filter_map(|group| Some((name(group)?, group.dir.as_path()))).collect()
    }

    /// Allows only the devices of the rules, if the host can restrict devices at all; says whether it can.
    pub(super) fn restrict_devices(&self, rules: &[super::device::Rule]) -> Result<bool> {
        if let Some(group) = self.group(Controller::Devices) {
            group.write("devices.deny", "a")?;
            let path = group.dir.join("devices.allow");
            let mut file =
                fs::File::options().write(true).open(&path).context(|| format!("open {}", path.display()))?;
            // The kernel takes one rule in one write.
            rules
                .iter()
                .try_for_each(|rule| file.write_all(rule.to_string().as_bytes()))
                .context(|| format!("write device rules to {}", path.display()))?;
            return Ok(true);
        }
        match self.clone_target()? {
            Some(dir) => devices::attach(dir.as_fd(), rules),
            None => Ok(false),
        }
    }

    fn group(&self, controller: Controller) -> Option<&Group> {
        self.groups.iter().find(|group| group.controllers.contains(&controller))
    }

    fn v2(&self) -> Option<&Group> {
        self.groups.iter().find(|group| group.version == Version::V2)
    }

    fn describe(&self) -> String {
        self.groups.last().map(|group| group.dir.display().to_string()).unwrap_or_default()
    }
}

impl Group {
    fn describe(hierarchy: &Hierarchy, path: &Path) -> Self {
        Self {
            version: hierarchy.version,
            controllers: hierarchy.controllers.clone(),
            mount: hierarchy.mount.clone(),
            dir: hierarchy.mount.join(path),
        }
    }

    /// Makes the directory and those above it, each with the controllers its children need.
    fn make(hierarchy: &Hierarchy, path: &Path) -> io::Result<Self> {
        let mut dir = hierarchy.mount.clone();
        for name in path.components() {
            if hierarchy.version == Version::V2 {
                delegate(&dir, &hierarchy.controllers)?;
            }
            dir.push(name);
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if hierarchy.version == Version::V1 && hierarchy.controllers.contains(&Controller::CpuSet) {
                inherit_cpus(&dir)?;
            }
        }
        Ok(Self::describe(hierarchy, path))
    }

    fn has(&self, file: &str) -> bool {
        self.dir.join(file).exists()
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, value).map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::InvalidInput | io::ErrorKind::ResourceBusy => Kind::InvalidArgument,
                io::ErrorKind::NotFound => Kind::Unsupported,
                _ => Kind::Internal,
            };
            Error::from(error).with_kind(kind).context(format!("write {value:?} to {}", path.display()))
        })
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(file)).ok()
    }
}

/// Waits for a state that the kernel does not announce on all versions; says whether it came.
fn wait_for(mut reached: impl FnMut() -> bool) -> bool {
    let mut pause = Duration::from_micros(100);
    let mut waited = Duration::ZERO;
    while !reached() {
        if waited >= TIMEOUT {
            return false;
        }
        std::thread::sleep(pause);
        waited += pause;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    true
}

/// Controllers cost time per group, so a group is made only where it says or limits something that is wanted.
fn is_needed(hierarchy: &Hierarchy, limits: &Limits) -> bool {
    let only_cpuset = hierarchy.controllers == [Controller::CpuSet];
    !only_cpuset || limits.cpuset_cpus.is_some() || limits.cpuset_mems.is_some()
}

/// Gives controllers to the children of a v2 group, as far as it has them. A group that holds processes itself cannot (the
/// rule of no internal processes); its children then have fewer files, and limits that need them become warnings.
fn delegate(dir: &Path, wanted: &[Controller]) -> io::Result<()> {
    let enabled = fs::read_to_string(dir.join("cgroup.subtree_control"))?;
    let available = fs::read_to_string(dir.join("cgroup.controllers"))?;
    let lists = |list: &str, name: &str| list.split_whitespace().any(|entry| entry == name);
    for name in wanted.iter().filter_map(|controller| controller.v2_name()) {
        if lists(&available, name) && !lists(&enabled, name) {
            match fs::write(dir.join("cgroup.subtree_control"), format!("+{name}")) {
                Err(error) if !matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::Unsupported) => {
                    return Err(error);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// A v1 cpuset is empty when it is made, and nothing can join it then.
fn inherit_cpus(dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = dir.join(file);
        if fs::read_to_string(&own)?.trim().is_empty()
            && let Some(above) = dir.parent()
        {
            fs::write(own, fs::read_to_string(above.join(file))?.trim())?;
        }
    }
    Ok(())
}

fn collect_pids(dir: &Path, pids: &mut Vec<Pid>) {
    let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(listed.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
    for child in subdirectories(dir) {
        collect_pids(&child, pids);
    }
}

/// Groups below are made by processes of the sandbox that may.
fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let children = subdirectories(dir);
            if children.is_empty() {
                return Err(error);
            }
            children.iter().try_for_each(|child| remove_tree(child))?;
            fs::remove_dir(dir)
        }
        result => result,
    }
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The path of a group below the root of a hierarchy.
fn group_path(parent: &str, id: &str) -> Result<PathBuf> {
    let parent = if parent.is_empty() { DEFAULT_PARENT } else { parent };
    let is_name = |name: &str| !name.is_empty() && name != "." && name != "..";
    if id.contains('/') || !is_name(id) {
        return Err(Error::invalid(format!("sandbox id {id:?}: expected a name without \"/\"")));
    }
    let mut path = PathBuf::new();
    for name in parent.split('/').filter(|name| !name.is_empty()) {
        if !is_name(name) {
            return Err(Error::invalid(format!(
                "cgroup parent {parent:?} contains {name:?}; expected a path below the root"
            )));
        }
        path.push(name);
    }
    Ok(path.join(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_id_tells_who_made_it() {
        let id = temporary_id("build", 7);
        let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap());
        assert_eq!(maker(&id, "build"), own);
        assert!(!is_gone(own.unwrap()));
        for other in ["build-00000000000000aa", "build-x-00000000000000aa", "buildx-1-00000000000000aa", "build-1-a"] {
            assert_eq!(maker(other, "build"), None, "{other}");
        }
    }

    #[test]
    fn a_group_path_stays_below_the_root() {
        assert_eq!(group_path("", "a").unwrap(), Path::new("kiln/a"));
        assert_eq!(group_path("/x//y/", "a").unwrap(), Path::new("x/y/a"));
        for (parent, id) in [("../x", "a"), ("x", ".."), ("x", "a/b"), ("x", "")] {
            assert_eq!(group_path(parent, id).unwrap_err().kind(), Kind::InvalidArgument);
        }
    }
}
