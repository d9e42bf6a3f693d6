//! The first process of a container started with `--init`: forwards signals to one child, reaps everything, leaves with its
//! status.
//!
//! It is the very process that [`super::plan`] has set up, so nothing is executed and no file of the host is needed. It runs
//! in raw system calls: what it inherited from the engine's memory (which may hold secrets of others) is unmapped first, and
//! with it libc, its thread-local storage and the heap. It knows no configuration and starts nothing.

use std::arch::asm;

/// The largest page size the architecture can have.
const PAGE: usize = if cfg!(target_arch = "x86_64") { 4096 } else { 65536 };
/// Room for the frames of the functions below.
const STACK: usize = if PAGE > 16384 { PAGE } else { 16384 };
static ALL_SIGNALS: u64 = !0;
const SIGNAL_SET_SIZE: usize = 8;
const NO_HANG: usize = 1;

/// What glibc registers restartable sequences with, per architecture (`RSEQ_SIG`).
const RSEQ_SIGNATURE: usize = if cfg!(target_arch = "x86_64") { 0x5305_3053 } else { 0xd428_bc00 };
/// The size of the area registered until kernels know of more features (`rseq(2)`).
const RSEQ_SIZE: usize = 32;
const RSEQ_UNREGISTER: usize = 1;

unsafe extern "C" {
    // Both are made by the linker.
    static __executable_start: u8;
    static _end: u8;
    // Where glibc (2.35) put the area of restartable sequences, from the thread pointer, and how much of it is in use.
    static __rseq_offset: isize;
    static __rseq_size: u32;
}

/// One system call with up to four arguments, without libc: there is no `errno` here.
///
/// # Safety
/// The call must not change memory or mappings that Rust code after it uses, other than through the pointers given.
#[inline(always)]
unsafe fn call(number: libc::c_long, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's calling convention: it changes rax, rcx and r11 only; the caller answers for the effects.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel's calling convention: it changes x0 only; the caller answers for the effects.
    unsafe {
        asm!("svc 0", in("x8") number as usize, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
            options(nostack));
    }
    result
}

fn exit(status: i32) -> ! {
    loop {
        // SAFETY: ends the process.
        unsafe { call(libc::SYS_exit_group, status.cast_unsigned() as usize, 0, 0, 0) };
    }
}

/// Supervises `child` until it ends, and exits with its status, or with 128 and the number of the signal that ended it.
///
/// All signals must be blocked. Closes every descriptor and unmaps everything but the program and the stack around the
/// caller's frame, so nothing else of the process may be used afterwards.
pub(super) fn supervise(child: i32) -> ! {
    // SAFETY: nothing in this function or after it uses a descriptor.
    unsafe { call(libc::SYS_close_range, 0, u32::MAX as usize, 0, 0) };
    forget_restartable_sequences();
    forget_memory();
    loop {
        let signal = wait_for_signal();
        if signal == libc::SIGCHLD as isize {
            reap(child);
        } else if signal > 0 {
            // SAFETY: sends a signal; touches no memory.
            unsafe { call(libc::SYS_kill, child.cast_unsigned() as usize, signal.cast_unsigned(), 0, 0) };
        }
    }
}

fn wait_for_signal() -> isize {
    let set = &raw const ALL_SIGNALS;
    // SAFETY: the kernel reads one signal set of the size given; no information and no time-out are asked for.
    unsafe { call(libc::SYS_rt_sigtimedwait, set as usize, 0, 0, SIGNAL_SET_SIZE) }
}

/// Collects every child that has ended; does not return when `child` is among them.
fn reap(child: i32) {
    loop {
        let mut status = 0_i32;
        // SAFETY: the kernel writes one integer to `status`, which lives across the call.
        let pid = unsafe { call(libc::SYS_wait4, usize::MAX, &raw mut status as usize, NO_HANG, 0) };
        if pid <= 0 {
            return;
        }
        if pid == child as isize {
            let signal = status & 0x7f;
            exit(if signal == 0 { (status >> 8) & 0xff } else { 128 + signal });
        }
    }
}

/// Tells the kernel not to write to the area of restartable sequences any more, which lies in the thread-local storage that
/// goes: it ends a process whose area it cannot reach with a segmentation fault, as soon as that process has slept.
fn forget_restartable_sequences() {
    // SAFETY: constants of libc, set before `main`.
    let (offset, size) = unsafe { (__rseq_offset, __rseq_size as usize) };
    let area = thread_pointer().wrapping_add_signed(offset);
    for length in [RSEQ_SIZE, size] {
        // SAFETY: takes away a registration; where there is none, or of another length, the kernel refuses.
        unsafe { call(libc::SYS_rseq, area, length, RSEQ_UNREGISTER, RSEQ_SIGNATURE) };
    }
}

fn thread_pointer() -> usize {
    let pointer: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reads the first word of the thread control block, which holds its own address (the ABI of thread-local storage).
    unsafe {
        asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads a register.
    unsafe {
        asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, nomem, preserves_flags));
    }
    pointer
}

/// Unmaps everything but the program's own segments and the stack in use.
fn forget_memory() {
    let here = 0_u8;
    let stack = &raw const here as usize;
    let program = (floor(&raw const __executable_start as usize), ceil(&raw const _end as usize));
    let stack = (floor(stack) - STACK, ceil(stack) + PAGE);
    let (first, second) = if program.0 < stack.0 { (program, stack) } else { (stack, program) };
    unmap(0, first.0);
    unmap(first.1, second.0);
    unmap(second.1, TOP);
}

/// Unmaps a range. Where the kernel refuses the whole (sealed mappings in it, or a top the machine does not have), halves
/// are tried, so that only what really cannot go stays.
fn unmap(from: usize, to: usize) {
    if from >= to {
        return;
    }
    // SAFETY: neither the code that runs nor its stack lies in the range, and nothing else is used from here on.
    let result = unsafe { call(libc::SYS_munmap, from, to - from, 0, 0) };
    if result < 0 && to - from > PAGE {
        let middle = floor(from + (to - from) / 2);
        unmap(from, middle);
        unmap(middle, to);
    }
}

#[cfg(target_arch = "x86_64")]
const TOP: usize = 0x7fff_ffff_f000;
#[cfg(target_arch = "aarch64")]
const TOP: usize = 0xffff_ffff_f000;

fn floor(address: usize) -> usize {
    address & !(PAGE - 1)
}

fn ceil(address: usize) -> usize {
    floor(address + PAGE - 1)
}
