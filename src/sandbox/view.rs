//! The file system a sandbox sees: turns root, usual mounts and the caller's mounts into detached mounts and steps.
//!
//! What can be mounted before the process exists is mounted here, detached, with its flags already set; only what belongs to
//! the process's own namespaces (proc, sysfs, message queues) is left to steps. Small files, covers for hidden paths and
//! anything that is a part of something else wait in a *staging* mount, from which the child grafts them.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
use rustix::process::{Gid, Uid};

use super::cgroup::Cgroup;
use super::device::{self, Device, Kind};
use super::failure;
use super::hooks::{self, Bundle};
use super::spec::{Access, Devices, MissingDir, Mount, Namespace, Network, Source, Spec, Tmpfs, outside};
use super::target::{PointKind, Stubs, Targets};
use super::user::Ids;
use crate::error::{Error, Result, ResultExt as _};
use crate::sys::mount::{Change, Extent, Propagation, change};
use crate::sys::plan::{Call, Place, Step};

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

/// The group of terminals, everywhere.
const TTY_GROUP: u32 = 5;

/// Where the staging mount goes: a directory that every host has. Only the child's copy of the host's tree is affected. With
/// hooks it is their bundle instead: they look for the root there, and may want the host's `/proc`.
const STAGING_POINT: &CStr = c"/proc";

/// A file system that has been prepared.
pub(super) struct View {
    /// The steps that assemble it, up to but without entering the root.
    pub(super) steps: Vec<Step>,
    /// The steps that then take from it what the command must not have: parameters, hidden and read-only paths.
    pub(super) restrictions: Vec<Step>,
    pub(super) root: Arc<OwnedFd>,
    /// `/dev/null` of the sandbox.
    pub(super) null: Arc<OwnedFd>,
    /// The terminals, unless the caller mounts something else over them.
    pub(super) terminals: Option<Arc<OwnedFd>>,
    pub(super) stubs: Stubs,
}

/// The first process, as far as the file system depends on it.
pub(super) struct Joining<'a> {
    /// Who runs it.
    pub(super) ids: &'a Ids,
    /// Whether it gets a terminal.
    pub(super) terminal: bool,
}

/// Prepares the file system of a sandbox.
///
/// # Errors
/// `InvalidArgument` for mounts that do not fit their mount points; `Internal` and others when the kernel refuses.
pub(super) fn prepare(
    spec: &mut Spec,
    rootfs: OwnedFd,
    cgroup: Option<&Cgroup>,
    joining: &Joining<'_>,
    bundle: Option<&Bundle>,
) -> Result<View> {
    let root = Arc::new(rootfs);
    let owner = root_owner(spec)?;
    let staging = Staging::new(owner)?;
    if let Some(bundle) = bundle {
        staging
            .write(hooks::CONFIG, bundle.config(), 0o600, owner)
            .map_err(|errno| failure::step("write the configuration for the hooks", errno))?;
    }
    let mut builder = Builder {
        targets: Targets::new(Arc::clone(&root), owner),
        owner,
        root: Arc::clone(&root),
        staging,
        steps: Vec::new(),
        taken: spec.mounts.iter().map(|mount| clean(&mount.target)).collect(),
    };
    let mut mounts = std::mem::take(&mut spec.mounts);
    mounts.sort_by_key(|mount| clean(&mount.target).len());
    builder.add_proc(spec)?;
    let terminals = builder.add_dev(spec, joining.terminal)?;
    builder.add_sys(spec)?;
    if let Some(cgroup) = cgroup {
        builder.add_cgroup(spec, cgroup)?;
    }
    builder.add_shared_memory(spec)?;
    for mount in mounts {
        let target = mount.target.clone();
        builder.add(mount, spec).context(|| format!("mount {target}"))?;
    }
    builder.add_nodes_elsewhere(spec)?;
    if let Some(owner) = cwd_owner(spec, joining.ids)?.filter(|_| !spec.process.cwd.is_empty()) {
        builder.targets.make_directory(&spec.process.cwd, owner)?;
    }
    let assembly = std::mem::take(&mut builder.steps);
    builder.restrict(spec)?;
    if spec.readonly_rootfs {
        let call = Call::Change(Arc::clone(&root), Change::set(RDONLY, Extent::Top));
        builder.steps.push(step("make the root read-only", call));
    }
    let Builder { targets, staging, steps: restrictions, .. } = builder;
    let mut steps = staging.attach_steps(&root, bundle.map_or(STAGING_POINT, Bundle::point));
    steps.extend(assembly);
    let null = Arc::new(staging.open_null()?);
    Ok(View { steps, restrictions, root, null, terminals, stubs: targets.into_stubs() })
}

/// Makes device nodes on a mount have no effect.
pub(super) fn forbid_devices(mount: BorrowedFd<'_>) -> Result<()> {
    change(mount, &Change::set(NODEV, Extent::Tree)).map_err(|errno| failure::step("forbid devices in the root", errno))
}

/// Mounts a file or directory of the host again, read-only and detached.
pub(super) fn readonly_copy(path: &str) -> Result<OwnedFd> {
    bind(open_path(path)?.as_fd(), &flags(RDONLY, Extent::Top))
}

/// Opens a `/dev/null` that belongs to neither the host nor a container: whoever has it can change its permissions.
pub(super) fn open_null() -> Result<OwnedFd> {
    Staging::new((0, 0))?.open_null()
}

/// Whose a missing working directory is, as the host numbers ids; `None` when it is not made.
fn cwd_owner(spec: &Spec, ids: &Ids) -> Result<Option<(u32, u32)>> {
    match spec.process.missing_cwd {
        MissingDir::Refused => Ok(None),
        MissingDir::OfRoot => root_owner(spec).map(Some),
        MissingDir::OfUser => {
            let Some(map) = &spec.namespaces.user else { return Ok(Some((ids.uid, ids.gid))) };
            let unmapped =
                || Error::invalid(format!("user {}:{} is not mapped in the user namespace", ids.uid, ids.gid));
            let owner = outside(&map.uids, ids.uid).zip(outside(&map.gids, ids.gid));
            owner.map(Some).ok_or_else(unmapped)
        }
    }
}

/// Root's ids as the host numbers them.
fn root_owner(spec: &Spec) -> Result<(u32, u32)> {
    let Some(map) = &spec.namespaces.user else { return Ok((0, 0)) };
    let unmapped = || Error::invalid("the user namespace does not map id 0");
    Ok((outside(&map.uids, 0).ok_or_else(unmapped)?, outside(&map.gids, 0).ok_or_else(unmapped)?))
}

/// The components of an absolute path, so that equal targets compare equal.
fn clean(path: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
        if name == ".." {
            names.pop();
        } else {
            names.push(name.to_owned());
        }
    }
    names
}

/// A small detached file system with things that are grafted into the tree.
struct Staging {
    mount: Arc<OwnedFd>,
    parts: u32,
}

impl Staging {
    fn new(owner: (u32, u32)) -> Result<Self> {
        let doing = |errno| failure::step("prepare the staging file system", errno);
        let mount = tmpfs(&[(c"mode", "755")], NOSUID).map_err(doing)?;
        let device = rustix::fs::makedev(1, 3);
        let mode = Mode::from(0o666);
        rustix::fs::mknodat(&mount, c"null", FileType::CharacterDevice, Mode::empty(), device).map_err(doing)?;
        rustix::fs::chmodat(&mount, c"null", mode, AtFlags::empty()).map_err(doing)?;
        for (name, mode) in [(c"empty", 0o555), (hooks::ROOT, 0o700)] {
            rustix::fs::mkdirat(&mount, name, Mode::from(mode)).map_err(doing)?;
        }
        for name in [c"null", c"empty"] {
            set_owner(mount.as_fd(), name, owner).map_err(doing)?;
        }
        Ok(Self { mount: Arc::new(mount), parts: 0 })
    }

    fn place(&self, name: &CStr) -> Place {
        Place { dir: Some(Arc::clone(&self.mount)), path: name.to_owned() }
    }

    fn next_name(&mut self) -> CString {
        self.parts += 1;
        CString::new(self.parts.to_string()).expect("digits only")
    }

    fn add_file(&mut self, content: &[u8], mode: u32, owner: (u32, u32)) -> Result<Place, Errno> {
        let name = self.next_name();
        self.write(&name, content, mode, owner)?;
        Ok(self.place(&name))
    }

    fn write(&self, name: &CStr, content: &[u8], mode: u32, owner: (u32, u32)) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.mount, name, flags, Mode::empty())?;
        let mut rest = content;
        while !rest.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
            rest = &rest[written..];
        }
        set_owner(self.mount.as_fd(), name, owner)?;
        rustix::fs::fchmod(&file, Mode::from(mode & 0o7777))
    }

    /// Makes room for a mount of which only a part is wanted.
    fn add_room(&mut self) -> Result<Place, Errno> {
        let name = self.next_name();
        rustix::fs::mkdirat(&self.mount, &name, Mode::from(0o700))?;
        Ok(self.place(&name))
    }

    /// Nothing of the host's can be reached through this one.
    fn open_null(&self) -> Result<OwnedFd> {
        rustix::fs::openat(&self.mount, c"null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .context(|| "open /dev/null")
    }

    fn attach_steps(&self, root: &Arc<OwnedFd>, point: &CStr) -> Vec<Step> {
        let at_host = Place { dir: None, path: point.to_owned() };
        let attach = |mount: &Arc<OwnedFd>, target| Call::Attach { mount: Arc::clone(mount), target };
        vec![
            step("attach the staging file system", attach(&self.mount, at_host)),
            step("attach the root file system", attach(root, self.place(hooks::ROOT))),
        ]
    }
}

fn step(purpose: impl Into<String>, call: Call) -> Step {
    Step { call, purpose: purpose.into() }
}

/// A place in a file system that is mounted in the child only: a parent or the whole is not there to be looked into.
const UNSEEN: Option<Arc<OwnedFd>> = None;

struct Builder {
    targets: Targets,
    owner: (u32, u32),
    root: Arc<OwnedFd>,
    staging: Staging,
    steps: Vec<Step>,
    /// Targets of the caller's mounts.
    taken: HashSet<Vec<String>>,
}

impl Builder {
    /// Whether the caller mounts something at a path, or over all of `/dev` with what is below.
    fn is_taken(&self, path: &str) -> bool {
        let names = clean(path);
        let in_dev = names.len() > 1 && names[0] == "dev" && self.taken.contains(&names[..1]);
        in_dev || self.taken.contains(&names)
    }

    fn place(&self, path: CString) -> Place {
        Place { dir: Some(Arc::clone(&self.root)), path }
    }

    /// Plans that a detached mount is moved to a target.
    fn attach(&mut self, target: &str, kind: PointKind, mount: OwnedFd) -> Result<Arc<OwnedFd>> {
        let path = self.targets.locate(target, kind)?;
        let mount = Arc::new(mount);
        self.targets.mounted(&path, Some(Arc::clone(&mount)));
        let target_place = self.place(path);
        let call = Call::Attach { mount: Arc::clone(&mount), target: target_place };
        self.steps.push(step(format!("mount to {target}"), call));
        Ok(mount)
    }

    /// Plans that a part of an attached mount is put to a target.
    fn graft(&mut self, target: &str, kind: PointKind, source: Place, change: Change) -> Result<()> {
        let path = self.targets.locate(target, kind)?;
        self.targets.mounted(&path, UNSEEN);
        let call = Call::Graft { source, change, target: self.place(path) };
        self.steps.push(step(format!("mount to {target}"), call));
        Ok(())
    }

    /// Plans a file system that the child mounts.
    fn mount(&mut self, target: &str, kind: &CStr, attributes: MountAttrFlags) -> Result<()> {
        let path = self.targets.locate(target, PointKind::Directory)?;
        self.targets.mounted(&path, UNSEEN);
        let call = Call::Mount { kind: kind.to_owned(), attributes, target: self.place(path) };
        self.steps.push(step(format!("mount {} to {target}", kind.to_string_lossy()), call));
        Ok(())
    }

    /// proc shows the namespace of processes, and can only be mounted by who owns that.
    fn add_proc(&mut self, spec: &Spec) -> Result<()> {
        if self.is_taken("/proc") {
            return Ok(());
        }
        if spec.namespaces.user.is_none() || matches!(spec.namespaces.pid, Namespace::Private) {
            return self.mount("/proc", c"proc", NOSUID | NODEV | NOEXEC);
        }
        self.attach_host("/proc", &flags(NOSUID | NODEV | NOEXEC, Extent::Tree))
    }

    /// Plans that a directory of the host appears under the same path.
    fn attach_host(&mut self, path: &str, changes: &Change) -> Result<()> {
        let copy = bind(open_path(path)?.as_fd(), changes)?;
        self.attach(path, PointKind::Directory, copy).map(drop)
    }

    /// sysfs shows the network namespace, and can only be mounted by who owns that.
    fn add_sys(&mut self, spec: &Spec) -> Result<()> {
        if self.is_taken("/sys") {
            return Ok(());
        }
        let attributes = NOSUID | NODEV | NOEXEC | if spec.writable_sys { MountAttrFlags::empty() } else { RDONLY };
        if spec.namespaces.user.is_none() || matches!(spec.namespaces.network, Network::None) {
            return self.mount("/sys", c"sysfs", attributes);
        }
        self.attach_host("/sys", &flags(attributes, Extent::Tree))
    }

    fn add_cgroup(&mut self, spec: &Spec, cgroup: &Cgroup) -> Result<()> {
        const TARGET: &str = "/sys/fs/cgroup";
        if self.is_taken(TARGET) || self.is_taken("/sys") {
            return Ok(());
        }
        let attributes = NOSUID | NODEV | NOEXEC | if spec.writable_sys { MountAttrFlags::empty() } else { RDONLY };
        let changes = flags(attributes, Extent::Tree);
        if !spec.is_cgroup_view_private() {
            return self.attach_host(TARGET, &changes);
        }
        let views = cgroup.views();
        if let [(name, dir)] = &views[..]
            && name.is_empty()
        {
            let copy = bind(open_path(dir)?.as_fd(), &changes)?;
            return self.attach(TARGET, PointKind::Directory, copy).map(drop);
        }
        let doing = |errno| failure::step("prepare /sys/fs/cgroup", errno);
        let top = tmpfs(&[(c"mode", "755")], NOSUID | NODEV | NOEXEC).map_err(doing)?;
        for (name, _) in &views {
            rustix::fs::mkdirat(&top, name.as_str(), Mode::from(0o755)).map_err(doing)?;
        }
        let top = self.attach(TARGET, PointKind::Directory, top)?;
        for (name, dir) in &views {
            let copy = bind(open_path(dir)?.as_fd(), &changes)?;
            self.attach(&format!("{TARGET}/{name}"), PointKind::Directory, copy)?;
        }
        change(top.as_fd(), &Change::set(attributes, Extent::Top)).map_err(doing)
    }

    /// Mounts `/dev` with its nodes and links, and returns the terminals.
    fn add_dev(&mut self, spec: &Spec, terminal: bool) -> Result<Option<Arc<OwnedFd>>> {
        if self.is_taken("/dev") {
            return Ok(None);
        }
        let doing = |errno| failure::step("prepare /dev", errno);
        let dev = self.new_dev(spec, terminal).map_err(doing)?;
        self.attach("/dev", PointKind::Directory, dev)?;
        if self.is_taken("/dev/pts") {
            return Ok(None);
        }
        let pts = self.new_terminals(spec).map_err(|errno| failure::step("prepare /dev/pts", errno))?;
        let pts = self.attach("/dev/pts", PointKind::Directory, pts)?;
        if terminal && !self.is_taken("/dev/console") {
            let first = Place { dir: Some(Arc::clone(&pts)), path: c"0".to_owned() };
            let change = Change::set(NOSUID | NOEXEC, Extent::Top);
            self.graft("/dev/console", PointKind::File, first, change)?;
        }
        Ok(Some(pts))
    }

    fn new_dev(&self, spec: &Spec, terminal: bool) -> Result<OwnedFd, Errno> {
        let options = [
            (c"mode", "755"),
            (c"size", "65536k"),
            (c"uid", &*self.owner.0.to_string()),
            (c"gid", &self.owner.1.to_string()),
        ];
        let dev = tmpfs(&options, NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME)?;
        for (name, mode) in [(c"pts", 0o755), (c"shm", 0o1777), (c"mqueue", 0o1777)] {
            rustix::fs::mkdirat(&dev, name, Mode::from(mode))?;
            set_owner(dev.as_fd(), name, self.owner)?;
        }
        let links = [
            (c"pts/ptmx", c"ptmx"),
            (c"/proc/self/fd", c"fd"),
            (c"/proc/self/fd/0", c"stdin"),
            (c"/proc/self/fd/1", c"stdout"),
            (c"/proc/self/fd/2", c"stderr"),
            (c"/proc/kcore", c"core"),
        ];
        for (target, name) in links {
            rustix::fs::symlinkat(target, &dev, name)?;
            set_owner(dev.as_fd(), name, self.owner)?;
        }
        if terminal {
            rustix::fs::openat(&dev, c"console", OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC, Mode::from(0o600))?;
        }
        // Nodes of the caller come first, so that one in the place of a usual one wins.
        let wanted = match &spec.devices {
            Devices::All => device::host_nodes(),
            Devices::Listed { nodes, .. } => nodes.clone(),
        };
        for node in wanted.into_iter().chain(device::standard_nodes()) {
            self.make_node_in_dev(dev.as_fd(), &node)?;
        }
        Ok(dev)
    }

    /// Makes a node if its place is below `/dev` and nothing is there.
    fn make_node_in_dev(&self, dev: BorrowedFd<'_>, node: &Device) -> Result<(), Errno> {
        let path = clean(&node.path);
        let Some(("dev", names)) = path.split_first().map(|(first, rest)| (first.as_str(), rest)) else {
            return Ok(());
        };
        for depth in 1..names.len() {
            match rustix::fs::mkdirat(dev, names[..depth].join("/"), Mode::from(0o755)) {
                Err(Errno::EXIST) | Ok(()) => {}
                Err(errno) => return Err(errno),
            }
        }
        let name = CString::new(names.join("/")).map_err(|_| Errno::INVAL)?;
        match make_node(dev, &name, node, self.owner) {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        }
    }

    /// Plans nodes whose place is not in the sandbox's own `/dev`.
    fn add_nodes_elsewhere(&mut self, spec: &Spec) -> Result<()> {
        let Devices::Listed { nodes, .. } = &spec.devices else { return Ok(()) };
        let dev_is_own = !self.is_taken("/dev");
        for node in nodes {
            if dev_is_own && clean(&node.path).first().is_some_and(|name| name == "dev") {
                continue;
            }
            let doing = |errno| failure::step(&format!("make device {}", node.path), errno);
            let name = self.staging.next_name();
            make_node(self.staging.mount.as_fd(), &name, node, self.owner).map_err(doing)?;
            let source = self.staging.place(&name);
            self.graft(&node.path, PointKind::File, source, Change::set(NOSUID | NOEXEC, Extent::Top))?;
        }
        Ok(())
    }

    fn new_terminals(&self, spec: &Spec) -> Result<OwnedFd, Errno> {
        let group = match &spec.namespaces.user {
            Some(map) => outside(&map.gids, TTY_GROUP).unwrap_or(self.owner.1),
            None => TTY_GROUP,
        };
        let options = [(c"ptmxmode", "0666"), (c"mode", "0620"), (c"gid", &*group.to_string())];
        let terminals = file_system(c"devpts", &options, NOSUID | NOEXEC)?;
        for name in [c".", c"ptmx"] {
            set_owner(terminals.as_fd(), name, self.owner)?;
        }
        Ok(terminals)
    }

    fn add_shared_memory(&mut self, spec: &Spec) -> Result<()> {
        // Message queues of another namespace can only be mounted by who owns that.
        let has_queues = spec.namespaces.user.is_none() || !spec.shares_ipc();
        if has_queues && !self.is_taken("/dev/mqueue") {
            self.mount("/dev/mqueue", c"mqueue", NOSUID | NODEV | NOEXEC)?;
        }
        if self.is_taken("/dev/shm") {
            return Ok(());
        }
        if matches!(spec.namespaces.ipc, Namespace::Host) {
            return self.attach_host("/dev/shm", &flags(NOSUID | NODEV | NOEXEC, Extent::Top));
        }
        let size = spec.shm_size_bytes.to_string();
        let (uid, gid) = (self.owner.0.to_string(), self.owner.1.to_string());
        let options = [(c"mode", "1777"), (c"size", &*size), (c"uid", &uid), (c"gid", &gid)];
        let shm = tmpfs(&options, NOSUID | NODEV | NOEXEC).map_err(|errno| failure::step("prepare /dev/shm", errno))?;
        self.attach("/dev/shm", PointKind::Directory, shm).map(drop)
    }

    /// Adds a mount of the caller.
    fn add(&mut self, mount: Mount, spec: &Spec) -> Result<()> {
        let Mount { target, source, access } = mount;
        if !target.starts_with('/') {
            return Err(Error::invalid("the mount point is not an absolute path"));
        }
        let readonly = match access {
            Access::ReadWrite => Change::set(MountAttrFlags::empty(), Extent::Top),
            Access::ReadOnly => Change::set(RDONLY, Extent::Tree),
            Access::ReadOnlyTop => Change::set(RDONLY, Extent::Top),
        };
        match source {
            Source::Bind { source, recursive, propagation } => {
                let kind = kind_of(source.as_fd())?;
                let extent = if recursive { Extent::Tree } else { Extent::Top };
                let copy = bind(
                    source.as_fd(),
                    &Change { set: MountAttrFlags::empty(), propagation: Some(propagation), extent },
                )?;
                make_readonly(copy.as_fd(), &readonly)?;
                self.attach(&target, kind, copy)?;
            }
            Source::Detached { mount, subpath } if subpath.is_empty() => {
                make_readonly(mount.as_fd(), &readonly)?;
                self.attach(&target, kind_of(mount.as_fd())?, mount)?;
            }
            Source::Detached { mount, subpath } => self.add_part(&target, mount, &subpath, readonly)?,
            Source::Tmpfs(options) => {
                let mount = self.new_tmpfs(&options).map_err(|errno| failure::step("make a tmpfs", errno))?;
                make_readonly(mount.as_fd(), &readonly)?;
                self.attach(&target, PointKind::Directory, mount)?;
            }
            Source::File { content, mode, uid, gid } => {
                let owner = host_ids(spec, uid, gid)?;
                let file = self
                    .staging
                    .add_file(&content, mode, owner)
                    .map_err(|errno| failure::step("write the file", errno))?;
                let noexec = if mode & 0o111 == 0 { NOEXEC } else { MountAttrFlags::empty() };
                let flags = readonly.set | NOSUID | NODEV | noexec;
                self.graft(&target, PointKind::File, file, Change::set(flags, Extent::Top))?;
            }
        }
        Ok(())
    }

    /// A part of a detached mount can be copied only once that is attached somewhere.
    fn add_part(&mut self, target: &str, mount: OwnedFd, subpath: &str, readonly: Change) -> Result<()> {
        let invalid = |_| Error::invalid("the path contains a zero byte");
        let path = CString::new(format!("./{}", subpath.trim_start_matches('/'))).map_err(invalid)?;
        let part =
            crate::sys::plan::open_beneath(mount.as_fd(), &path, OFlags::PATH, rustix::fs::ResolveFlags::empty());
        let kind =
            kind_of(part.map_err(|errno| failure::step(&format!("find {subpath} in the mount"), errno))?.as_fd())?;
        let mount = Arc::new(mount);
        let room = self.staging.add_room().map_err(|errno| failure::step("make room for the mount", errno))?;
        self.steps.push(step("attach the mount", Call::Attach { mount: Arc::clone(&mount), target: room }));
        self.graft(target, kind, Place { dir: Some(mount), path }, readonly)
    }

    fn new_tmpfs(&self, options: &Tmpfs) -> Result<OwnedFd, Errno> {
        let mut keys = vec![
            (c"mode", format!("{:o}", options.mode & 0o7777)),
            (c"uid", self.owner.0.to_string()),
            (c"gid", self.owner.1.to_string()),
        ];
        keys.extend(options.size_bytes.map(|size| (c"size", size.to_string())));
        let keys: Vec<(&CStr, &str)> = keys.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut attributes = MountAttrFlags::empty();
        attributes.set(NOEXEC, options.noexec);
        attributes.set(NOSUID, options.nosuid);
        attributes.set(NODEV, options.nodev);
        tmpfs(&keys, attributes)
    }

    /// Plans kernel parameters, hidden and read-only paths, in this order: parameters lie below a read-only path.
    fn restrict(&mut self, spec: &Spec) -> Result<()> {
        for (name, value) in &spec.sysctls {
            let path = super::sysctl::path(name, spec)?;
            let call = Call::Write { target: self.place(path), value: value.clone().into_bytes() };
            self.steps.push(step(format!("set sysctl {name}={value}"), call));
        }
        let relative =
            |path: &str| CString::new(clean(path).join("/")).map_err(|_| Error::invalid("a path contains a zero byte"));
        for path in &spec.masked_paths {
            let target = self.place(relative(path)?);
            let call = Call::Mask { file: self.staging.place(c"null"), dir: self.staging.place(c"empty"), target };
            self.steps.push(step(format!("hide {path}"), call));
        }
        for path in &spec.readonly_paths {
            let call = Call::Protect(self.place(relative(path)?));
            self.steps.push(step(format!("make {path} read-only"), call));
        }
        Ok(())
    }
}

/// A copy of a mount with these flags, into which nothing propagates.
fn flags(set: MountAttrFlags, extent: Extent) -> Change {
    Change { propagation: Some(Propagation::Private), ..Change::set(set, extent) }
}

fn make_node(dir: BorrowedFd<'_>, name: &CStr, node: &Device, root: (u32, u32)) -> Result<(), Errno> {
    let kind = if node.kind == Kind::Block { FileType::BlockDevice } else { FileType::CharacterDevice };
    rustix::fs::mknodat(dir, name, kind, Mode::empty(), rustix::fs::makedev(node.major, node.minor))?;
    set_owner(dir, name, if (node.uid, node.gid) == (0, 0) { root } else { (node.uid, node.gid) })?;
    // The mask of this process does not apply.
    rustix::fs::chmodat(dir, name, Mode::from(node.mode), AtFlags::empty())
}

fn host_ids(spec: &Spec, uid: u32, gid: u32) -> Result<(u32, u32)> {
    let Some(map) = &spec.namespaces.user else { return Ok((uid, gid)) };
    match (outside(&map.uids, uid), outside(&map.gids, gid)) {
        (Some(uid), Some(gid)) => Ok((uid, gid)),
        _ => Err(Error::invalid(format!("owner {uid}:{gid} is not mapped in the user namespace"))),
    }
}

fn set_owner(dir: BorrowedFd<'_>, name: &CStr, owner: (u32, u32)) -> Result<(), Errno> {
    // Files are made as root's.
    if owner == (0, 0) {
        return Ok(());
    }
    rustix::fs::chownat(
        dir,
        name,
        Some(Uid::from_raw(owner.0)),
        Some(Gid::from_raw(owner.1)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

fn kind_of(file: BorrowedFd<'_>) -> Result<PointKind> {
    let mode = rustix::fs::fstat(file).context(|| "look at the source")?.st_mode;
    Ok(if FileType::from_raw_mode(mode) == FileType::Directory { PointKind::Directory } else { PointKind::File })
}

fn make_readonly(mount: BorrowedFd<'_>, readonly: &Change) -> Result<()> {
    change(mount, readonly).map_err(|errno| failure::step("make the mount read-only", errno))
}

fn open_path(path: impl AsRef<Path>) -> Result<OwnedFd> {
    let path = path.as_ref();
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failure::step(&format!("open {}", path.display()), errno))
}

/// Copies a mount, or a tree of mounts, of this mount namespace; the copy is detached.
fn bind(source: BorrowedFd<'_>, changes: &Change) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if changes.extent == Extent::Tree {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let copy = rustix::mount::open_tree(source, c"", flags).map_err(|errno| failure::step("copy the mount", errno))?;
    change(copy.as_fd(), changes).map_err(|errno| failure::step("set the flags of the mount", errno))?;
    Ok(copy)
}

fn tmpfs(options: &[(&CStr, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    file_system(c"tmpfs", options, attributes)
}

/// Makes a detached mount of a new file system, whose source `mount` and `df` show as its kind, as with other engines.
pub(super) fn file_system(
    kind: &CStr,
    options: &[(&CStr, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), c"source", kind)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
