//! A raw system call for tests that ask what the kernel, or a filter, answers. Not part of the program.

/// Makes a system call whose arguments are plain numbers, and returns the errno, or 0.
pub(crate) fn errno(number: libc::c_long, arguments: [u64; 3]) -> i32 {
    let [a, b, c] = arguments;
    // SAFETY: callers pass numbers only, so the kernel has no memory of this process to change.
    let result = unsafe { libc::syscall(number, a, b, c, 0, 0, 0) };
    if result == -1 { super::process::last_errno().raw_os_error() } else { 0 }
}
