//! How a process ended, and waiting for it.
//!
//! What is counted in control groups is read by [`super::Sandbox`], before the group goes.

use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::cgroup::Stats;
use crate::error::{Error, Result, ResultExt as _};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

impl Status {
    /// Returns the code that a shell and `docker run` give: 128 and the signal's number for a signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => i32::from(code),
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// How a sandbox ended, and what it used.
#[derive(Clone, Debug)]
pub struct Exit {
    /// How its first process ended.
    pub status: Status,
    /// The last reading of its control group; `None` when it had none.
    pub usage: Option<Stats>,
    /// Why its control group could not be removed, if so.
    pub left_over: Option<String>,
    /// What its hooks failed to do after its end.
    pub warnings: Vec<String>,
}

impl Exit {
    /// Returns the exit code: see [`Status::code`].
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code()
    }

    /// Says whether processes were killed because memory ran out.
    #[must_use]
    pub fn is_oom_killed(&self) -> bool {
        self.usage.as_ref().is_some_and(|usage| usage.oom_kills > 0)
    }

    /// Returns a sentence about an exit that the code alone does not explain: running out of memory, or a signal.
    #[must_use]
    pub fn explain(&self) -> Option<String> {
        const SIGKILL: i32 = 9;
        let signal = match self.status {
            Status::Signal(signal) => Some(signal),
            // An init, or a shell, passes on how its child ended.
            Status::Code(code @ 129..=192) => Some(i32::from(code) - 128),
            Status::Code(_) => None,
        };
        match (self.usage.as_ref().filter(|usage| usage.oom_kills > 0), signal) {
            (Some(usage), _) => Some(OutOfMemory(usage).to_string()),
            (None, Some(SIGKILL)) => {
                Some("killed by signal 9 (SIGKILL) that someone sent; memory had not run out".to_owned())
            }
            (None, Some(signal)) => Some(match name(signal) {
                Some(name) => format!("ended by signal {signal} ({name})"),
                None => format!("ended by signal {signal}"),
            }),
            (None, None) => None,
        }
    }
}

/// The names of signals that end programs, and what they mean to who sees them first.
fn name(signal: i32) -> Option<&'static str> {
    const NAMES: [(i32, &str); 12] = [
        (libc::SIGHUP, "SIGHUP"),
        (libc::SIGINT, "SIGINT"),
        (libc::SIGQUIT, "SIGQUIT"),
        (libc::SIGILL, "SIGILL: the program is not for this processor, or is broken"),
        (libc::SIGABRT, "SIGABRT: the program gave up"),
        (libc::SIGBUS, "SIGBUS: the program crashed"),
        (libc::SIGFPE, "SIGFPE: the program crashed in a calculation"),
        (libc::SIGSEGV, "SIGSEGV: the program crashed"),
        (libc::SIGPIPE, "SIGPIPE: nobody read what the program wrote"),
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGXCPU, "SIGXCPU: the limit of processor time was reached"),
        (libc::SIGXFSZ, "SIGXFSZ: the limit of file sizes was reached"),
    ];
    NAMES.iter().find(|(number, _)| *number == signal).map(|(_, name)| *name)
}

struct OutOfMemory<'a>(&'a Stats);

impl fmt::Display for OutOfMemory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "out of memory: the kernel killed {} ", self.0.oom_kills)?;
        f.write_str(if self.0.oom_kills == 1 { "process" } else { "processes" })?;
        if let Some(peak) = self.0.memory_peak_bytes {
            write!(f, " at a peak of {}", mebibytes(peak))?;
        }
        match self.0.memory_limit_bytes {
            Some(limit) => write!(f, " (the limit is {})", mebibytes(limit)),
            None => f.write_str(" (no limit was set; the host ran out of memory)"),
        }
    }
}

/// One decimal, rounded down.
fn mebibytes(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// A child process that has not been waited for.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
}

impl Child {
    /// Returns when the process has ended, without collecting its status.
    pub(super) async fn ended(&self) -> Result<()> {
        let pidfd = self.pidfd.try_clone().context(|| "wait for a process")?;
        crate::sys::process::ended(pidfd).await.context(|| "wait for a process")
    }

    /// Collects the status. Blocking until the process has ended.
    pub(super) fn collect(&self) -> Result<Status> {
        let wait = || rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        let status =
            rustix::io::retry_on_intr(wait).context(|| format!("wait for process {}", self.pid.as_raw_nonzero()))?;
        let status = status.ok_or_else(|| Error::internal("the kernel reported no exit status"))?;
        Ok(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Status::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
            (None, Some(signal)) => Status::Signal(signal),
            (None, None) => return Err(Error::internal("the kernel reported neither an exit code nor a signal")),
        })
    }

    /// Sends a signal. One that the process no longer can get is no error.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => {
                result.context(|| format!("send signal {} to process {}", signal.as_raw(), self.pid.as_raw_nonzero()))
            }
        }
    }

    /// Says whether the process ends within a time. Blocking.
    pub(super) fn ends_within(&self, time: Duration) -> bool {
        let mut fds = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: Status, oom_kills: u64) -> Exit {
        let usage = Stats {
            oom_kills,
            memory_peak_bytes: Some(67_108_864),
            memory_limit_bytes: Some(67_108_864),
            ..Stats::default()
        };
        Exit { status, usage: Some(usage), left_over: None, warnings: Vec::new() }
    }

    #[test]
    fn exit_137_is_never_left_unexplained() {
        let explain = |status, kills| exit(status, kills).explain().unwrap();
        let oom = "out of memory: the kernel killed 1 process at a peak of 64.0 MiB (the limit is 64.0 MiB)";
        assert_eq!(explain(Status::Signal(9), 1), oom);
        assert_eq!(explain(Status::Code(137), 1), oom);
        assert!(explain(Status::Signal(9), 0).contains("memory had not run out"));
        assert_eq!(explain(Status::Code(143), 0), "ended by signal 15 (SIGTERM)");
        assert_eq!(exit(Status::Code(1), 0).explain(), None);
    }

    #[test]
    fn a_signal_gives_128_and_its_number() {
        assert_eq!((Status::Signal(15).code(), Status::Code(3).code()), (143, 3));
    }
}
