//! What a process does between clone and exec: one ordered list of kernel steps, prepared by the parent.
//!
//! The parent has threads, and the child may even use the parent's memory, so it may only make system calls: nothing here that
//! the child runs allocates, locks, panics or writes anything but its own stack. Everything a step needs (descriptors, strings with their zero bytes, compiled filters) is made by the parent and
//! kept in the [`Plan`]. A step that fails sends its index and errno back; the parent holds the words for it.
//! What steps a container needs, and in what order, is decided in `sandbox::plan`.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType, Timespec, UnshareFlags};

use super::mount::{Change, Extent, change};
use super::seccomp::Filter;

/// Steps, and the command that is executed after them.
#[derive(Debug)]
pub struct Plan {
    /// The command as its user named it, for messages.
    pub name: String,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Whether descriptor 0 becomes the controlling terminal.
    pub terminal: bool,
    /// Whether the process stays as an init and runs the command as its child.
    pub supervise: bool,
    /// The command.
    pub command: Command,
}

impl Plan {
    /// Says whether a child can carry this out in its parent's memory, while its parent waits: not when the parent has
    /// something to do meanwhile, and not when the child stays without executing anything.
    #[must_use]
    pub fn can_share_memory(&self) -> bool {
        let waits = |step: &Step| matches!(step.call, Call::Await { .. } | Call::Meet { .. });
        !self.supervise && !self.steps.iter().any(waits)
    }

    /// Makes the child begin by closing what it has got from its parent and does not need itself. For children that stay for a
    /// while before they execute: as long as a copy of a descriptor is open, whoever reads from it sees no end.
    pub fn close_others(&mut self) {
        let mut needed: Vec<u32> = self.steps.iter().flat_map(|step| step.call.descriptors()).collect();
        needed.sort_unstable();
        let mut gaps = Vec::with_capacity(needed.len() + 1);
        let mut next = 3;
        for number in needed {
            if number > next {
                gaps.push((next, number - 1));
            }
            next = next.max(number + 1);
        }
        gaps.push((next, u32::MAX));
        let purpose = "close the descriptors of others".to_owned();
        self.steps.insert(0, Step { call: Call::CloseOthers(gaps), purpose });
    }
}

/// One step and what it is for.
#[derive(Debug)]
pub struct Step {
    /// What the kernel is asked to do.
    pub call: Call,
    /// What that is for, in words that fit before "no such file or directory".
    pub purpose: String,
}

/// A path beneath a directory. Symbolic links (also absolute ones) cannot leave the directory; magic links are refused.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory, or the root of a mount; `None` is the root of the process.
    pub dir: Option<Arc<OwnedFd>>,
    /// The path, relative to the directory (`.` is the directory itself), or absolute without one.
    pub path: CString,
}

/// One thing the kernel is asked to do.
#[derive(Debug)]
pub enum Call {
    /// Waits until the parent has done its part (id maps, limits) and written one byte.
    Await {
        /// The reading end of a pipe.
        reader: OwnedFd,
        /// The writing end, which is the parent's: this copy is closed, so that the parent's end is noticed.
        writer: Arc<OwnedFd>,
    },
    /// Tells the parent, by one byte, that this point is reached, and waits until it answers with one.
    Meet {
        /// The child's end of a pair of sockets.
        own: OwnedFd,
        /// The parent's end: this copy is closed, so that the end of the parent is noticed.
        other: Arc<OwnedFd>,
    },
    /// Closes the descriptors of these ranges, the last one included, but for the one to report through.
    CloseOthers(Vec<(u32, u32)>),
    /// Becomes user and group 0 of a new user namespace.
    BecomeRoot,
    /// Keeps other processes from looking into this one until it executes the command.
    Hide,
    /// Dies when the thread that started this process ends.
    DieWithParent,
    /// Joins a v1 cgroup through its `tasks` file.
    JoinCgroup(OwnedFd),
    /// Makes the current cgroup the root of a new cgroup namespace.
    UnshareCgroup,
    /// Joins namespaces of a process.
    JoinNamespaces(Arc<OwnedFd>, ThreadNameSpaceType),
    /// Leaves the session keyring, which no namespace covers.
    NewKeyring,
    /// Sets the loopback interface of a new network namespace up.
    LoopbackUp,
    /// Stops mounts made here from appearing in the namespace this one was copied from.
    StopPropagation,
    /// Moves a detached mount into place.
    Attach {
        /// The mount.
        mount: Arc<OwnedFd>,
        /// Where it goes.
        target: Place,
    },
    /// Puts a part of a mount that is already attached into another place.
    Graft {
        /// The part.
        source: Place,
        /// Whether mounts below come too, and how the copy is changed.
        change: Change,
        /// Where it goes.
        target: Place,
    },
    /// Hides a path, if it exists, behind an empty file or directory.
    Mask {
        /// What is put over a file.
        file: Place,
        /// What is put over a directory.
        dir: Place,
        /// The path.
        target: Place,
    },
    /// Makes a path, if it exists, read-only.
    Protect(Place),
    /// Changes a mount.
    Change(Arc<OwnedFd>, Change),
    /// Mounts a file system that belongs to the namespaces of the process.
    Mount {
        /// Its type.
        kind: CString,
        /// Its flags.
        attributes: MountAttrFlags,
        /// Where it goes.
        target: Place,
    },
    /// Writes a file in one go.
    Write {
        /// The file.
        target: Place,
        /// The content.
        value: Vec<u8>,
    },
    /// Sets the host name.
    Hostname(Vec<u8>),
    /// Sets the NIS domain name.
    Domainname(Vec<u8>),
    /// Makes a mount the root and leaves the old root behind.
    Pivot(Arc<OwnedFd>),
    /// Sets the mask of permission bits that new files do not get.
    Umask(Mode),
    /// Puts descriptors in places 0, 1 and 2.
    Stdio([Arc<OwnedFd>; 3]),
    /// Sets a limit of a resource, not above the process's own hard limit.
    Limit(Resource, Rlimit),
    /// Starts a session, with descriptor 0 as its terminal when the plan says so.
    Session,
    /// Limits the capabilities that can ever be had again.
    Bound(CapabilitySet),
    /// Changes user and groups; permitted capabilities are kept.
    Identity {
        /// The user.
        uid: Uid,
        /// The group.
        gid: Gid,
        /// The supplementary groups.
        groups: Vec<Gid>,
    },
    /// Sets effective and permitted capabilities, and clears inheritable and ambient ones.
    Capabilities(CapabilitySet),
    /// Changes the working directory, unless an earlier step of this kind has.
    Chdir {
        /// The directory, below the root.
        path: CString,
        /// Whether a refusal is left to a later step, which asks as another user.
        tentative: bool,
    },
    /// Closes all descriptors but 0, 1 and 2 when the command is executed.
    CloseDescriptors,
    /// Gives up privileges that executing a file could bring.
    NoNewPrivileges,
    /// Installs a filter of system calls.
    Seccomp(Arc<Filter>),
}

/// The command: candidates for its file, tried in order, with arguments and environment.
#[derive(Debug)]
pub struct Command {
    /// The paths to try.
    pub candidates: Vec<CString>,
    /// Whether they come from searching `PATH`, so that one that is no executable file is passed over.
    pub search: bool,
    arguments: Strings,
    environment: Strings,
}

impl Command {
    /// Prepares a command.
    #[must_use]
    pub fn new(candidates: Vec<CString>, search: bool, arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        Self { candidates, search, arguments: Strings::new(arguments), environment: Strings::new(environment) }
    }
}

/// Strings with the array of pointers that `execve(2)` wants.
#[derive(Debug)]
struct Strings {
    pointers: Vec<*const libc::c_char>,
    _strings: Vec<CString>,
}

// SAFETY: the pointers lead to the heap memory of the strings beside them, which nobody changes.
unsafe impl Send for Strings {}
// SAFETY: as above; only read.
unsafe impl Sync for Strings {}

impl Strings {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }
}

/// What a child could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// At which point.
    pub at: Point,
    /// Why.
    pub errno: Errno,
}

/// A point in a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The step with this index.
    Step(usize),
    /// Starting the command as a child of the init.
    Fork,
    /// Executing the candidate with this index; `ENOENT` means that the file itself exists and its interpreter does not.
    Exec(usize),
    /// Executing: no candidate exists.
    NotFound,
}

impl Failure {
    /// The length of the message on the pipe.
    pub const SIZE: usize = 12;

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let (kind, index) = match self.at {
            Point::Step(index) => (0, index),
            Point::Fork => (1, 0),
            Point::Exec(index) => (2, index),
            Point::NotFound => (3, 0),
        };
        let parts = [kind, u32::try_from(index).unwrap_or(u32::MAX), self.errno.raw_os_error().cast_unsigned()];
        let [[a, b, c, d], [e, f, g, h], [i, j, k, l]] = parts.map(u32::to_ne_bytes);
        [a, b, c, d, e, f, g, h, i, j, k, l]
    }

    /// Reads a message.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        let index = u32::from_ne_bytes([e, f, g, h]) as usize;
        let at = match u32::from_ne_bytes([a, b, c, d]) {
            0 => Point::Step(index),
            1 => Point::Fork,
            2 => Point::Exec(index),
            _ => Point::NotFound,
        };
        Self { at, errno: Errno::from_raw_os_error(i32::from_ne_bytes([i, j, k, l])) }
    }
}

/// Runs in the child. `extern "C"` turns a panic into an abort: it must not unwind into the parent's frames.
pub(super) extern "C" fn carry_out(plan: &Plan, reader: RawFd, writer: RawFd) -> ! {
    // SAFETY: the parent's end of the pipe, which this copy of the process does not use.
    unsafe { libc::close(reader) };
    // SAFETY: the descriptor's owner is the parent's; nothing closes this process's copy.
    let report = unsafe { BorrowedFd::borrow_raw(writer) };
    let failure = match run(plan, report) {
        Err(failure) => failure,
        Ok(never) => match never {},
    };
    // Nobody is left to tell when this fails; the exit status says that something went wrong.
    let _ = rustix::io::write(report, &failure.to_bytes());
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(125) }
}

fn run(plan: &Plan, report: BorrowedFd<'_>) -> Result<std::convert::Infallible, Failure> {
    reset_signal_handlers();
    let mut child = Child { report, terminal: plan.terminal, in_directory: false };
    for (index, step) in plan.steps.iter().enumerate() {
        child.take(&step.call).map_err(|errno| Failure { at: Point::Step(index), errno })?;
    }
    if plan.supervise {
        // What `ps` shows; there is no command line.
        let _ = rustix::thread::set_name(c"kiln-init");
        let pid = fork().map_err(|errno| Failure { at: Point::Fork, errno })?;
        if pid != 0 {
            super::init::supervise(pid);
        }
        child.session().map_err(|errno| Failure { at: Point::Fork, errno })?;
    }
    unblock_signals();
    Err(execute(&plan.command))
}

/// What a child remembers between steps.
struct Child<'a> {
    report: BorrowedFd<'a>,
    terminal: bool,
    in_directory: bool,
}

impl Child<'_> {
    fn take(&mut self, call: &Call) -> Result<(), Errno> {
        match call {
            Call::Await { reader, writer } => wait_for_byte(reader, writer),
            Call::Meet { own, other } => {
                write_all(own, b"1")?;
                wait_for_byte(own, other)
            }
            Call::CloseOthers(gaps) => close_ranges(gaps, self.report),
            Call::BecomeRoot => set_identity(Uid::ROOT, Gid::ROOT, &[]),
            Call::Hide => rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable),
            Call::DieWithParent => self.die_with_parent(),
            Call::JoinCgroup(tasks) => write_all(tasks, b"0"),
            Call::UnshareCgroup => unshare_cgroup(),
            Call::JoinNamespaces(process, kinds) => {
                rustix::thread::move_into_thread_name_spaces(process.as_fd(), *kinds)
            }
            Call::NewKeyring => new_keyring(),
            Call::LoopbackUp => loopback_up(),
            Call::StopPropagation => {
                rustix::mount::mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            }
            Call::Attach { mount, target } => attach(mount.as_fd(), target.open()?.as_fd()),
            Call::Graft { source, change, target } => graft(&source.open()?, change, &target.open()?),
            Call::Mask { file, dir, target } => mask(file, dir, target),
            Call::Protect(target) => protect(target),
            Call::Change(mount, changed) => change(mount.as_fd(), changed),
            Call::Mount { kind, attributes, target } => mount(kind, *attributes, target),
            Call::Write { target, value } => write_all(&target.open_with(OFlags::WRONLY)?, value),
            Call::Hostname(name) => rustix::system::sethostname(name),
            Call::Domainname(name) => rustix::system::setdomainname(name),
            Call::Pivot(root) => pivot(root),
            Call::Umask(mask) => {
                rustix::process::umask(*mask);
                Ok(())
            }
            Call::Stdio(descriptors) => take_stdio(descriptors),
            Call::Limit(resource, limit) => rustix::process::setrlimit(*resource, *limit),
            Call::Session => self.session(),
            Call::Bound(keep) => bound(*keep),
            Call::Identity { uid, gid, groups } => {
                rustix::thread::set_keep_capabilities(true)?;
                set_identity(*uid, *gid, groups)
            }
            Call::Capabilities(set) => set_capabilities(*set),
            Call::Chdir { path, tentative } => self.chdir(path, *tentative),
            Call::CloseDescriptors => close_on_exec(),
            Call::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
            Call::Seccomp(filter) => filter.install(),
        }
    }

    /// `PR_SET_PDEATHSIG` says nothing when the parent has died already; its end of the pipe does.
    fn die_with_parent(&self) -> Result<(), Errno> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        let mut pipe = [PollFd::from_borrowed_fd(self.report, PollFlags::empty())];
        poll(&mut pipe, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let [pipe] = pipe;
        if pipe.revents().contains(PollFlags::ERR) { Err(Errno::SRCH) } else { Ok(()) }
    }

    fn session(&self) -> Result<(), Errno> {
        rustix::process::setsid()?;
        if self.terminal { rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()) } else { Ok(()) }
    }

    /// Magic links are refused, so that no descriptor that is still open leads out of the root.
    fn chdir(&mut self, path: &CStr, tentative: bool) -> Result<(), Errno> {
        if self.in_directory {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let result = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
            .and_then(rustix::process::fchdir);
        match result {
            Err(Errno::ACCESS) if tentative => Ok(()),
            Err(errno) => Err(errno),
            Ok(()) => {
                self.in_directory = true;
                Ok(())
            }
        }
    }
}

impl Call {
    /// The numbers of the descriptors it uses.
    fn descriptors(&self) -> Vec<u32> {
        let number = |fd: &OwnedFd| fd.as_raw_fd().cast_unsigned();
        let of_place = |place: &Place| place.dir.iter().map(|dir| number(dir)).collect::<Vec<_>>();
        match self {
            Self::Await { reader, writer: other } | Self::Meet { own: reader, other } => {
                vec![number(reader), number(other)]
            }
            Self::JoinCgroup(file) => vec![number(file)],
            Self::JoinNamespaces(fd, _) | Self::Change(fd, _) | Self::Pivot(fd) => vec![number(fd)],
            Self::Attach { mount, target } => [vec![number(mount)], of_place(target)].concat(),
            Self::Graft { source, target, .. } => [source, target].map(of_place).concat(),
            Self::Mask { file, dir, target } => [file, dir, target].map(of_place).concat(),
            Self::Protect(target) | Self::Mount { target, .. } | Self::Write { target, .. } => of_place(target),
            Self::Stdio(descriptors) => descriptors.iter().map(|fd| number(fd)).collect(),
            Self::CloseOthers(_)
            | Self::BecomeRoot
            | Self::Hide
            | Self::DieWithParent
            | Self::UnshareCgroup
            | Self::NewKeyring
            | Self::LoopbackUp
            | Self::StopPropagation
            | Self::Hostname(_)
            | Self::Domainname(_)
            | Self::Umask(_)
            | Self::Limit(..)
            | Self::Session
            | Self::Bound(_)
            | Self::Identity { .. }
            | Self::Capabilities(_)
            | Self::Chdir { .. }
            | Self::CloseDescriptors
            | Self::NoNewPrivileges
            | Self::Seccomp(_) => Vec::new(),
        }
    }
}

impl Place {
    fn open(&self) -> Result<OwnedFd, Errno> {
        self.open_with(OFlags::PATH)
    }

    fn open_with(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve(flags, ResolveFlags::empty())
    }

    fn resolve(&self, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        match &self.dir {
            Some(dir) => open_beneath(dir.as_fd(), &self.path, flags, resolve),
            None => {
                let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
                rustix::fs::openat2(CWD, &self.path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
            }
        }
    }

    /// Opens a path that kernel file systems offer under exactly this name: no symbolic links at all.
    fn open_exactly(&self) -> Result<Option<OwnedFd>, Errno> {
        match self.resolve(OFlags::PATH, ResolveFlags::NO_SYMLINKS) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// Opens a path below a directory as if that were the root. Async-signal-safe.
///
/// # Errors
/// The errno of `openat2(2)`; `ELOOP` for a magic link.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &CStr, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..128 {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename or mount somewhere on the machine raced with a `..`.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

fn wait_for_byte(reader: &OwnedFd, writer: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: nothing in this copy of the process uses the descriptor, and its owner is never dropped here.
    unsafe { libc::close(writer.as_raw_fd()) };
    let mut byte = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(reader, &mut byte))? {
        0 => Err(Errno::CANCELED),
        _ => Ok(()),
    }
}

fn write_all(file: &OwnedFd, value: &[u8]) -> Result<(), Errno> {
    match rustix::io::retry_on_intr(|| rustix::io::write(file, value))? {
        written if written == value.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

fn unshare_cgroup() -> Result<(), Errno> {
    // SAFETY: of the things that can be unshared only open files matter to memory safety.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
}

/// A kernel without keyrings, or a user whose quota of keys is used up, has nothing to leave.
fn new_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is touched.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<libc::c_char>()) };
    if result >= 0 {
        return Ok(());
    }
    match super::process::last_errno() {
        Errno::NOSYS | Errno::DQUOT | Errno::PERM => Ok(()),
        errno => Err(errno),
    }
}

fn loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: the struct is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = libc::c_char::from_ne_bytes([b'l']);
    request.ifr_name[1] = libc::c_char::from_ne_bytes([b'o']);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads one request, which lives across the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(super::process::last_errno()) }
}

fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
}

fn graft(source: &OwnedFd, changed: &Change, target: &OwnedFd) -> Result<(), Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if changed.extent == Extent::Tree {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let copy = rustix::mount::open_tree(source, c"", flags)?;
    change(copy.as_fd(), changed)?;
    attach(copy.as_fd(), target.as_fd())
}

fn mask(file: &Place, dir: &Place, target: &Place) -> Result<(), Errno> {
    let Some(target) = target.open_exactly()? else { return Ok(()) };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode);
    let cover = if kind == FileType::Directory { dir } else { file };
    graft(&cover.open()?, &Change::set(MountAttrFlags::MOUNT_ATTR_RDONLY, Extent::Top), &target)
}

fn protect(target: &Place) -> Result<(), Errno> {
    let Some(target) = target.open_exactly()? else { return Ok(()) };
    graft(&target, &Change::set(MountAttrFlags::MOUNT_ATTR_RDONLY, Extent::Tree), &target)
}

fn mount(kind: &CStr, attributes: MountAttrFlags, target: &Place) -> Result<(), Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), c"source", kind)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    attach(mount.as_fd(), target.open()?.as_fd())
}

/// Stacks the old root on the new one and takes it off again, so that no directory is needed for it: see `pivot_root(2)`.
fn pivot(root: &OwnedFd) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(c".", c".")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

fn take_stdio(descriptors: &[Arc<OwnedFd>; 3]) -> Result<(), Errno> {
    let [stdin, stdout, stderr] = descriptors;
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)
}

/// The highest capability any kernel may know of; those this kernel does not know answer `EINVAL`.
const MAX_CAPABILITIES: u32 = 63;

fn bound(keep: CapabilitySet) -> Result<(), Errno> {
    for number in 0..MAX_CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Err(Errno::INVAL) => return Ok(()),
            result => result?,
        }
    }
    Ok(())
}

/// The calls are those of the kernel, for this thread: libc's would try to reach the parent's other threads.
fn set_identity(uid: Uid, gid: Gid, groups: &[Gid]) -> Result<(), Errno> {
    rustix::thread::set_thread_groups(groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

fn set_capabilities(set: CapabilitySet) -> Result<(), Errno> {
    let sets = CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

fn close_on_exec() -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: sets a flag of descriptors; nothing is closed while this process uses it.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(super::process::last_errno()) }
}

fn close_ranges(ranges: &[(u32, u32)], keep: BorrowedFd<'_>) -> Result<(), Errno> {
    let keep = keep.as_raw_fd().cast_unsigned();
    for (first, last) in ranges.iter().copied() {
        if (first..=last).contains(&keep) {
            if keep > first {
                close_range(first, keep - 1)?;
            }
            if last > keep {
                close_range(keep + 1, last)?;
            }
        } else {
            close_range(first, last)?;
        }
    }
    Ok(())
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: what is closed is this process's own copy of descriptors that no step of its plan uses, and nothing else runs in it.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(super::process::last_errno()) }
}

/// Ignored signals stay ignored across exec, and Rust ignores SIGPIPE.
fn reset_signal_handlers() {
    for signal in 1..=64 {
        // SAFETY: restores the default; a number that libc keeps for itself or that has no handler is refused, no more.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

fn unblock_signals() {
    let none = 0_u64;
    // SAFETY: the kernel reads one signal set of its own size, 8 bytes.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
}

fn fork() -> Result<i32, Errno> {
    // The default seccomp profile answers clone3 with ENOSYS, and is in force here; clone is allowed.
    // SAFETY: a copy of this process, without a new stack; both go on in `run`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    i32::try_from(pid).ok().filter(|pid| *pid >= 0).ok_or_else(super::process::last_errno)
}

/// Tries the candidates as `execvp(3)` does, and says why none was executed.
fn execute(command: &Command) -> Failure {
    for (index, path) in command.candidates.iter().enumerate() {
        let errno = execute_one(path, command);
        match (errno, look_at(path)) {
            (Errno::NOENT | Errno::NOTDIR | Errno::ACCESS, Looks::Absent | Looks::Unusable | Looks::Directory)
                if command.search => {}
            (Errno::ACCESS, Looks::Directory) => return Failure { at: Point::Exec(index), errno: Errno::ISDIR },
            (Errno::NOENT | Errno::NOTDIR, Looks::Absent) => return Failure { at: Point::NotFound, errno },
            (errno, _) => return Failure { at: Point::Exec(index), errno },
        }
    }
    Failure { at: Point::NotFound, errno: Errno::NOENT }
}

/// What stands at a path that could not be executed.
enum Looks {
    Absent,
    Directory,
    /// A file that nobody may execute, or something that is no file.
    Unusable,
    Executable,
}

fn look_at(path: &CStr) -> Looks {
    match rustix::fs::statat(CWD, path, AtFlags::empty()) {
        Err(_) => Looks::Absent,
        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Looks::Directory,
            FileType::RegularFile if stat.st_mode & 0o111 != 0 => Looks::Executable,
            _ => Looks::Unusable,
        },
    }
}

/// Returns only on failure.
///
/// A magic link is refused: `/proc/self/exe` still is the program that made this container, and executing it would hand the
/// container a reference to a file of the host (CVE-2019-5736).
fn execute_one(path: &CStr, command: &Command) -> Errno {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    if let Err(Errno::LOOP) = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        return Errno::ACCESS;
    }
    // Another thread of the parent may have copied itself while it wrote the very file; such copies end within moments.
    for _ in 0..100 {
        // SAFETY: the path ends in a zero byte; both arrays end in a null pointer and lead to strings that `command` owns.
        unsafe {
            libc::execve(path.as_ptr(), command.arguments.pointers.as_ptr(), command.environment.pointers.as_ptr())
        };
        let errno = super::process::last_errno();
        if errno != Errno::TXTBSY {
            return errno;
        }
        let _ = rustix::thread::nanosleep(&Timespec { tv_sec: 0, tv_nsec: 2_000_000 });
    }
    Errno::TXTBSY
}
