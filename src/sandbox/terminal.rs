//! Where a process's input comes from and its output goes: pipes, descriptors, or a pseudo-terminal of the sandbox's own.
//!
//! Copying bytes, logs and detaching are the container's business.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Gid, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::failure;
use super::spec::{Stdio, WindowSize};
use crate::error::{Error, Result, ResultExt as _};
use crate::sys::plan::open_beneath;

pub use crate::sys::terminal::TerminalStream;

/// The file system type of pseudo-terminals: `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// This side of a process's pipes.
#[derive(Debug, Default)]
pub struct Streams {
    /// Writes to its standard input.
    pub stdin: Option<OwnedFd>,
    /// Reads from its standard output.
    pub stdout: Option<OwnedFd>,
    /// Reads from its standard error.
    pub stderr: Option<OwnedFd>,
}

/// The controlling side of a process's terminal. Reads what it prints, writes what it reads; reading ends with `EIO` when the
/// last process that has the terminal open has gone.
#[derive(Debug)]
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Returns another descriptor for the same terminal.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn try_clone(&self) -> Result<OwnedFd> {
        self.0.try_clone().context(|| "duplicate the terminal")
    }

    /// Returns the terminal as a stream. Needs a runtime with I/O; all descriptors of it stop blocking.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn stream(&self) -> Result<TerminalStream> {
        TerminalStream::new(self.try_clone()?).context(|| "watch the terminal")
    }

    /// Changes the size; the foreground processes get `SIGWINCH`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        resize(self.0.as_fd(), size).context(|| "resize the terminal")
    }
}

fn resize(master: BorrowedFd<'_>, size: WindowSize) -> Result<(), Errno> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size)
}

/// Both sides of a process's input and output.
pub(super) struct Ends {
    /// The process's side.
    pub(super) inner: [Arc<OwnedFd>; 3],
    pub(super) streams: Streams,
    pub(super) terminal: Option<Terminal>,
}

/// Opens input and output. `owner` is the process's user on the host: it may open its own streams again, through
/// `/dev/stderr` for example. `open_terminal` opens a new terminal.
pub(super) fn open(
    stdio: Stdio,
    null: &Arc<OwnedFd>,
    owner: u32,
    open_terminal: impl FnOnce() -> Result<OwnedFd>,
) -> Result<Ends> {
    let or_null = |fd: Option<OwnedFd>| fd.map_or_else(|| Arc::clone(null), Arc::new);
    match stdio {
        Stdio::Null => Ok(Ends {
            inner: [Arc::clone(null), Arc::clone(null), Arc::clone(null)],
            streams: Streams::default(),
            terminal: None,
        }),
        Stdio::Descriptors { stdin, stdout, stderr } => {
            Ok(Ends { inner: [stdin, stdout, stderr].map(or_null), streams: Streams::default(), terminal: None })
        }
        Stdio::Pipes { stdin } => {
            let (input, to_input) = if stdin { pipe(owner).map(|(r, w)| (Some(r), Some(w)))? } else { (None, None) };
            let (from_output, output) = pipe(owner)?;
            let (from_errors, errors) = pipe(owner)?;
            let streams = Streams { stdin: to_input, stdout: Some(from_output), stderr: Some(from_errors) };
            Ok(Ends { inner: [or_null(input), Arc::new(output), Arc::new(errors)], streams, terminal: None })
        }
        Stdio::OnePipe => {
            let (reader, writer) = pipe(owner)?;
            let writer = Arc::new(writer);
            let streams = Streams { stdout: Some(reader), ..Streams::default() };
            Ok(Ends { inner: [Arc::clone(null), Arc::clone(&writer), writer], streams, terminal: None })
        }
        Stdio::Terminal(size) => {
            let master = open_terminal()?;
            let doing = || "set up the terminal";
            rustix::pty::unlockpt(&master).context(doing)?;
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let slave = Arc::new(rustix::pty::ioctl_tiocgptpeer(&master, flags).context(doing)?);
            rustix::fs::fchown(&slave, Some(Uid::from_raw(owner)), None).context(doing)?;
            if size != WindowSize::default() {
                resize(master.as_fd(), size).context(doing)?;
            }
            let inner = [Arc::clone(&slave), Arc::clone(&slave), slave];
            Ok(Ends { inner, streams: Streams::default(), terminal: Some(Terminal(master)) })
        }
    }
}

fn pipe(owner: u32) -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(|| "make a pipe")?;
    rustix::fs::fchown(&writer, Some(Uid::from_raw(owner)), None::<Gid>).context(|| "give a pipe to its user")?;
    Ok((reader, writer))
}

/// Opens a new terminal of a `devpts` mount.
pub(super) fn open_master(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(mount, c"ptmx", flags, Mode::empty()).map_err(|errno| failure::step("open a terminal", errno))
}

/// Opens a new terminal in the root of a running sandbox, which may have put anything in that place.
pub(super) fn open_master_in(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK;
    let terminals = open_beneath(root, c"dev/pts", OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS)
        .map_err(|errno| failure::step("open /dev/pts of the container", errno))?;
    let kind = rustix::fs::fstatfs(&terminals).context(|| "look at /dev/pts of the container")?.f_type;
    if kind.cast_unsigned() != DEVPTS_MAGIC {
        return Err(Error::conflict("the container has no terminals: /dev/pts is not a devpts file system"));
    }
    let master = open_beneath(terminals.as_fd(), c"ptmx", flags, ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV)
        .map_err(|errno| failure::step("open a terminal of the container", errno))?;
    let blocking = rustix::fs::fcntl_getfl(&master).context(|| "open a terminal")? & !OFlags::NONBLOCK;
    rustix::fs::fcntl_setfl(&master, blocking).context(|| "open a terminal")?;
    Ok(master)
}
