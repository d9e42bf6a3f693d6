//! `clone3(2)`: starts a process that carries out a [`Plan`], and tells how that went.
//!
//! Signals and everything else about a process descriptor are rustix's.

use std::arch::asm;
use std::ffi::c_void;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::process::Command;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::plan::{self, Failure, Plan};

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Makes a program that is about to be started, and all that it starts, write no file longer than this, in bytes.
pub fn limit_file_size(command: &mut Command, bytes: u64) {
    use std::os::unix::process::CommandExt as _;
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    let set = move || rustix::process::setrlimit(Resource::Fsize, limit).map_err(std::io::Error::from);
    // SAFETY: between fork and exec the closure makes one system call, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(set) };
}

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
/// a plan is tied to the calling *thread*: call from one that lives as long as the process should.
///
/// If the plan allows it (see [`Plan::can_share_memory`]), the child uses this process's memory until it executes, on a stack of
/// its own, as `vfork(2)` does: then the call takes until that moment, and no longer for a large process than for a small
/// one. A child that hides itself hides this process, too: other users cannot look into its memory from then on.
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
    // Lives until the child has left it: with CLONE_VFORK the call returns no earlier.
    let stack = if plan.can_share_memory() { Some(Stack::new()?) } else { None };
    if let Some(stack) = &stack {
        arguments.flags |= u64::from((libc::CLONE_VM | libc::CLONE_VFORK).cast_unsigned());
        arguments.stack = stack.0 as u64;
        arguments.stack_size = STACK_SIZE as u64;
    }
    let context = Context { plan, reader: reader.as_raw_fd(), writer: writer.as_raw_fd() };
    let blocked = BlockedSignals::new();
    let pid = clone3(&arguments, &context);
    drop(blocked);
    let pid = Pid::from_raw(pid?).expect("the kernel gives positive numbers to children");
    // SAFETY: clone3 has just stored this descriptor, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Started { pid, pidfd, report: Report(reader) })
}

/// What a child begins with.
struct Context<'a> {
    plan: &'a Plan,
    reader: RawFd,
    writer: RawFd,
}

/// Where a child begins.
extern "C" fn enter(context: &Context<'_>) -> ! {
    plan::carry_out(context.plan, context.reader, context.writer)
}

/// Starts a child that goes on in [`enter`], never in the code that called this: that code's stack may be shared.
fn clone3(arguments: &libc::clone_args, context: &Context<'_>) -> Result<i32, Errno> {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: in the parent this is a system call that changes rax, rcx and r11, and writes the pidfd. The child calls a function
    // that does not return, on its copy of this stack or on a stack of its own; the arguments outlive its use of them, because
    // it has either a copy of everything or (CLONE_VFORK) the parent's thread waiting.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "and rsp, -16",
            "mov rdi, r12",
            "call {enter}",
            "ud2",
            "2:",
            enter = sym enter,
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") &raw const *arguments,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") &raw const *context,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above; the system call changes x0 only.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "bl {enter}",
            "brk 1",
            "2:",
            enter = sym enter,
            in("x8") libc::SYS_clone3 as usize,
            inlateout("x0") &raw const *arguments => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x20") &raw const *context,
        );
    }
    match i32::try_from(result) {
        Ok(pid) if pid >= 0 => Ok(pid),
        Ok(errno) => Err(Errno::from_raw_os_error(-errno)),
        Err(_) => Err(Errno::OVERFLOW),
    }
}

/// Far more than the steps of a plan use.
const STACK_SIZE: usize = 256 << 10;
/// Below the stack nothing is mapped that an overflow could reach.
const GUARD_SIZE: usize = 64 << 10;

/// A stack for a child that shares this process's memory.
struct Stack(*mut c_void);

impl Stack {
    fn new() -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no other.
        let bottom =
            unsafe { mmap_anonymous(ptr::null_mut(), GUARD_SIZE + STACK_SIZE, ProtFlags::empty(), MapFlags::PRIVATE) }?;
        // SAFETY: within the mapping made above.
        let stack = Self(unsafe { bottom.byte_add(GUARD_SIZE) });
        // SAFETY: the range is the upper part of the mapping, which nobody uses yet.
        unsafe { mprotect(stack.0, STACK_SIZE, MprotectFlags::READ | MprotectFlags::WRITE) }?;
        Ok(stack)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: within the mapping that `new` made.
        let bottom = unsafe { self.0.byte_sub(GUARD_SIZE) };
        // SAFETY: the child that used it has executed or ended, and no reference into it exists here. It cannot fail for a
        // mapping that exists.
        let _ = unsafe { munmap(bottom, GUARD_SIZE + STACK_SIZE) };
    }
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

/// Returns the signal of a number, to be sent to another process; real-time signals are included.
#[must_use]
pub fn signal(number: i32) -> Option<Signal> {
    /// The first number that glibc leaves to programs (`SIGRTMIN`), and the kernel's last.
    const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
    if !REAL_TIME.contains(&number) {
        return Signal::from_named_raw(number);
    }
    // SAFETY: the number is valid and not one that libc reserves for itself.
    Some(unsafe { Signal::from_raw_unchecked(number) })
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
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
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
