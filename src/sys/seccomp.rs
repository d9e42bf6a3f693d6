//! Installs a compiled seccomp filter. Compiling one is `sandbox`'s work.

use rustix::io::Errno;

/// One instruction of classic BPF, as the kernel reads it.
pub type Instruction = libc::sock_filter;

/// A filter program that is ready to be installed.
pub struct Filter {
    instructions: Vec<Instruction>,
    flags: FilterFlags,
}

/// How a filter is installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FilterFlags {
    /// Whether actions other than "allow" are logged by the kernel.
    pub log: bool,
    /// Whether the mitigation against speculative store bypass is left off.
    pub allow_speculation: bool,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter").field("instructions", &self.instructions.len()).field("flags", &self.flags).finish()
    }
}

impl Filter {
    /// Wraps a program. The kernel checks it again when it is installed.
    #[must_use]
    pub fn new(instructions: Vec<Instruction>, flags: FilterFlags) -> Self {
        Self { instructions, flags }
    }

    /// Returns the program.
    #[must_use]
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Installs the filter for the calling thread and everything it starts; it cannot be taken off again.
    ///
    /// Needs `no_new_privs` or `CAP_SYS_ADMIN`. Async-signal-safe; allocates nothing.
    ///
    /// # Errors
    /// The errno: `EINVAL` for a program the kernel refuses (more than 4096 instructions among others).
    pub fn install(&self) -> Result<(), Errno> {
        let length = u16::try_from(self.instructions.len()).map_err(|_| Errno::INVAL)?;
        let program = libc::sock_fprog { len: length, filter: self.instructions.as_ptr().cast_mut() };
        let mut flags = 0;
        if self.flags.log {
            flags |= libc::SECCOMP_FILTER_FLAG_LOG;
        }
        if self.flags.allow_speculation {
            flags |= libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        }
        // SAFETY: `program` points to `len` instructions that `self` keeps alive; the kernel copies them and writes nothing.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
        if result == 0 { Ok(()) } else { Err(super::process::last_errno()) }
    }
}
