//! `clone3(2)`: starts a process that carries out a [`Plan`], and tells how that went.
//!
//! Signals and everything else about a process descriptor are rustix's.

use std::io::Read as _;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::plan::{self, Failure, Plan};

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A process that has been started but may still be setting itself up.
#[derive(Debug)]
pub struct Started {
    /// Its number here.
    pub pid: Pid,
    /// Its descriptor.
    pub pidfd: OwnedFd,
    /// How it tells what went wrong.
    pub report: Report,
}

/// The reading end of the pipe through which a failing child says what failed.
#[derive(Debug)]
pub struct Report(OwnedFd);

/// Starts a process in new namespaces that carries out `plan` and executes its command.
///
/// `namespaces` are `CLONE_NEW*` flags. `cgroup` is a v2 cgroup directory the process starts in. The parent-death signal of
/// a plan is tied to the calling *thread*: call from one that lives as long as the process should. The child is a copy of
/// this process, so the cost grows with its resident memory.
///
/// # Errors
/// The errno of `pipe2(2)` or `clone3(2)`: `EPERM` without the privilege, `ENOSPC` or `EAGAIN` when a limit of namespaces or
/// processes is reached.
pub fn start(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, plan: &Plan) -> Result<Started, Errno> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let mut pidfd: i32 = -1;
    let mut arguments = libc::clone_args {
        flags: namespaces | u64::from(libc::CLONE_PIDFD.cast_unsigned()),
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    let blocked = BlockedSignals::new();
    let pid = clone3(&arguments)?;
    if pid == 0 {
        plan::carry_out(plan, reader.as_raw_fd(), writer.as_raw_fd());
    }
    drop(blocked);
    let pid = Pid::from_raw(pid).expect("the kernel gives positive numbers to children");
    // SAFETY: clone3 has just stored this descriptor, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Started { pid, pidfd, report: Report(reader) })
}

/// Returns 0 in the child.
fn clone3(arguments: &libc::clone_args) -> Result<i32, Errno> {
    // SAFETY: without CLONE_VM the child gets a copy of everything, and goes on in `plan::carry_out`, which never returns and
    // keeps to async-signal-safe work. `arguments` is a live struct of the size that is passed.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const *arguments, size_of::<libc::clone_args>()) };
    i32::try_from(pid).ok().filter(|pid| *pid >= 0).ok_or_else(last_errno)
}

impl Report {
    /// Waits until the process executes its command or fails, and returns the failure. Blocking.
    ///
    /// A process that dies without a word (killed from outside, or by its own seccomp profile) counts as executing: its exit
    /// status tells.
    #[must_use]
    pub fn wait(self) -> Option<Failure> {
        let mut message = [0; Failure::SIZE];
        std::fs::File::from(self.0).read_exact(&mut message).ok()?;
        Some(Failure::from_bytes(message))
    }
}

/// Waits until the process of a descriptor has ended. Needs a tokio runtime with I/O.
///
/// # Errors
/// When the descriptor cannot be watched.
pub async fn ended(pidfd: OwnedFd) -> std::io::Result<()> {
    // SAFETY: the descriptor is owned by the registration, so its number means the same file until that ends.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
    watched.readable().await.map(drop)
}

/// Blocks all signals of this thread until it is dropped, so that no handler runs in a child that cannot afford one.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn new() -> Self {
        let all = full_set();
        let mut before = full_set();
        // SAFETY: both sets live across the call; the thread's mask is restored on drop.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
        Self(before)
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set was filled by the kernel in `new`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

fn full_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: initialises the set it is given.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: initialised a line above.
    unsafe { set.assume_init() }
}

/// The `errno` of the raw system call that has just failed.
pub(super) fn last_errno() -> Errno {
    // `last_os_error` always carries a code.
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
