//! Running a program of the host for a source: in an environment of its own, bounded in time and in what it may write.
//!
//! Knows nothing of git. The program and what it starts are one process group, which is killed as a whole.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::error::{Error, Result, ResultExt as _};
use crate::sandbox;
use crate::task::Cancel;

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a program is not looked at when it says nothing, to see whether it is to stop.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// The longest standard output that is read, in bytes.
const MAX_OUTPUT: usize = 64 << 20;

/// How much of the end of standard error is kept for messages, in bytes.
const MAX_ERRORS: usize = 8 << 10;

/// A program that is to be run.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<(String, OsString)>,
    pub(super) dir: PathBuf,
    /// The longest file it may write, in bytes.
    pub(super) max_file: u64,
    /// How long it may take in all.
    pub(super) patience: Duration,
}

/// What a program said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

impl Program {
    /// Runs it to its end. `listen` gets what it writes to standard error, as it comes. Blocking.
    ///
    /// # Errors
    /// `NotFound` when it is not installed; `Timeout` and `Cancelled` when it was killed; `Exhausted` when it says too much.
    pub(super) fn run(&self, cancel: &Cancel, listen: &dyn Fn(&[u8])) -> Result<Said> {
        let mut command = Command::new(self.name);
        command.args(&self.args).env_clear().env("PATH", PATH).envs(self.env.iter().map(|(key, value)| (key, value)));
        command.current_dir(&self.dir).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sandbox::limit_file_size(&mut command, self.max_file);
        let child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(format!("the program {0} is not installed", self.name)),
            _ => Error::from(error).context(format!("start {}", self.name)),
        })?;
        Running::new(child)?.follow(self, cancel, listen)
    }
}

/// A program that runs; dropping it kills it.
struct Running {
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    ended: bool,
}

impl Running {
    fn new(mut child: Child) -> Result<Self> {
        let pid = Pid::from_child(&child);
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pid, pidfd, ended: false }),
            Err(errno) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(errno).context(|| "watch a program")
            }
        }
    }

    fn follow(&mut self, program: &Program, cancel: &Cancel, listen: &dyn Fn(&[u8])) -> Result<Said> {
        let started = Instant::now();
        let mut stdout = Pipe::new(self.child.stdout.take().map(OwnedFd::from))?;
        let mut stderr = Pipe::new(self.child.stderr.take().map(OwnedFd::from))?;
        let (mut printed, mut errors) = (Vec::new(), Vec::new());
        loop {
            cancel.check()?;
            if started.elapsed() > program.patience {
                return Err(Error::timeout(format!("{} was stopped after {:?}", program.name, program.patience)));
            }
            let over = wait(&self.pidfd, &[&stdout, &stderr])?;
            stdout.read(&mut |data| printed.extend_from_slice(data))?;
            stderr.read(&mut |data| {
                listen(data);
                errors.extend_from_slice(data);
                let excess = errors.len().saturating_sub(MAX_ERRORS);
                errors.drain(..excess);
            })?;
            if printed.len() > MAX_OUTPUT {
                return Err(Error::new(crate::error::Kind::Exhausted, format!("{} says too much", program.name)));
            }
            if over {
                break;
            }
        }
        // What it left behind goes as long as its number is its own.
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        let status = self.child.wait().context(|| "wait for a program")?;
        self.ended = true;
        Ok(Said { status, stdout: printed, stderr: String::from_utf8_lossy(&errors).into_owned() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Waits until a program has ended or written something, a little; says whether it has ended.
fn wait(pidfd: &OwnedFd, pipes: &[&Pipe]) -> Result<bool> {
    let mut watched = vec![PollFd::new(pidfd, PollFlags::IN)];
    watched.extend(pipes.iter().filter_map(|pipe| pipe.0.as_ref()).map(|fd| PollFd::new(fd, PollFlags::IN)));
    match poll(&mut watched, Some(&LOOK)) {
        Ok(_) | Err(Errno::INTR) => Ok(!watched[0].revents().is_empty()),
        Err(errno) => Err(errno).context(|| "watch a program"),
    }
}

/// The reading end of a pipe that is never waited for; `None` after its end.
struct Pipe(Option<OwnedFd>);

impl Pipe {
    fn new(fd: Option<OwnedFd>) -> Result<Self> {
        let fd = fd.ok_or_else(|| Error::internal("a stream was not piped"))?;
        rustix::io::ioctl_fionbio(fd.as_fd(), true).context(|| "prepare a pipe")?;
        Ok(Self(Some(fd)))
    }

    /// Reads what is there.
    fn read(&mut self, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        let Some(fd) = &self.0 else { return Ok(()) };
        let mut file = std::fs::File::from(fd.try_clone().context(|| "read from a program")?);
        let mut buffer = [0; 16 << 10];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => {
                    self.0 = None;
                    return Ok(());
                }
                Ok(count) => take(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context(|| "read from a program"),
            }
        }
    }
}

impl Said {
    /// Says how it ended, for messages: `exit status 128`, `signal 9`.
    pub(super) fn ending(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "an unknown status".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn sh(script: &str) -> Program {
        Program {
            name: "sh",
            args: vec!["-c".into(), script.into()],
            env: vec![("GREETING".to_owned(), "hello".into())],
            dir: "/".into(),
            max_file: 1 << 20,
            patience: Duration::from_secs(60),
        }
    }

    #[test]
    fn a_program_has_the_environment_it_is_given_and_no_other() {
        let said = sh("echo $GREETING $HOME; echo oops >&2; exit 3").run(&Cancel::new(), &|_| {}).unwrap();
        assert_eq!((said.stdout.as_slice(), said.stderr.as_str()), (&b"hello\n"[..], "oops\n"));
        assert_eq!(said.ending(), "exit status 3");
        assert_eq!(
            Program { name: "no-such-program", ..sh("") }.run(&Cancel::new(), &|_| {}).unwrap_err().kind(),
            Kind::NotFound
        );
    }

    #[test]
    fn a_program_is_stopped_when_it_takes_too_long_or_nobody_waits() {
        let slow = Program { patience: Duration::from_millis(1), ..sh("sleep 1000 & wait") };
        assert_eq!(slow.run(&Cancel::new(), &|_| {}).unwrap_err().kind(), Kind::Timeout);
        let cancel = Cancel::new();
        let heard = |_: &[u8]| cancel.cancel();
        assert_eq!(sh("echo x >&2; sleep 1000").run(&cancel, &heard).unwrap_err().kind(), Kind::Cancelled);
    }

    #[test]
    fn files_of_a_program_have_a_largest_size() {
        let dir = tempfile::tempdir().unwrap();
        let writes = Program { dir: dir.path().to_owned(), ..sh("head -c 5000000 /dev/zero > big") };
        let said = writes.run(&Cancel::new(), &|_| {}).unwrap();
        assert!(!said.status.success(), "{}", said.ending());
        assert!(dir.path().join("big").metadata().unwrap().len() <= 1 << 20);
    }
}
