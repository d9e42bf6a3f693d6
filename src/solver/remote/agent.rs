//! SSH agents of clients as sockets here: for the `ssh` that git runs, and for RUN steps that mount one.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustix::fs::{Mode, OFlags};
use tokio::net::UnixListener;

use crate::error::{Error, Result, ResultExt as _};
use crate::solver::session::Session;
use crate::task::Owned;

/// The socket's name in its directory.
const NAME: &str = "agent";

/// How many may talk to one agent at a time; others wait.
const MAX_CONNECTIONS: usize = 64;

/// A socket that leads to an agent of the client. Dropping it closes and removes it.
#[derive(Debug)]
pub(in crate::solver) struct AgentSocket {
    dir: PathBuf,
    _serving: Owned<()>,
}

/// Who may use a socket.
#[derive(Clone, Copy, Debug)]
pub(in crate::solver) struct SocketOwner {
    pub(in crate::solver) uid: u32,
    pub(in crate::solver) gid: u32,
    pub(in crate::solver) mode: u32,
}

impl AgentSocket {
    /// Makes a socket below `parent` for an agent of the client.
    ///
    /// # Errors
    /// `NotFound` when the client forwards no such agent.
    pub(in crate::solver) async fn open(
        session: &Session,
        id: &str,
        parent: &Path,
        owner: SocketOwner,
    ) -> Result<Self> {
        session.check_agent(id).await?;
        let unique = getrandom::u64().map_err(|error| Error::internal(format!("make an id: {error}")))?;
        let dir = parent.join(format!("{unique:016x}"));
        let context = || format!("make a socket for the SSH agent {id}");
        std::fs::create_dir(&dir).context(context)?;
        let guard = Removal(dir);
        // The directory is not for those who find the socket by a mount.
        std::fs::set_permissions(&guard.0, std::fs::Permissions::from_mode(0o700)).context(context)?;
        let opened = open_dir(&guard.0).context(context)?;
        // An address of a socket has 107 bytes at most, which a path may exceed.
        let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", opened.as_raw_fd()));
        let listener = UnixListener::bind(&path).context(context)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(owner.mode & 0o777)).context(context)?;
        chown(&path, Some(owner.uid), Some(owner.gid)).context(context)?;
        let (session, id) = (session.clone(), id.to_owned());
        let serving = Owned::spawn(async move { serve(listener, &session, &id).await });
        Ok(Self { dir: guard.keep(), _serving: serving })
    }

    /// Returns the socket's path.
    pub(in crate::solver) fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    /// Opens the socket as something to mount.
    pub(in crate::solver) fn to_mount(&self) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::open(self.path(), flags, Mode::empty()).context(|| "open the socket of an SSH agent")
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        drop(Removal(std::mem::take(&mut self.dir)));
    }
}

/// Removes the directory of a socket.
struct Removal(PathBuf);

impl Removal {
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            // Whatever is left is a socket that nobody listens on.
            let _ = std::fs::remove_file(self.0.join(NAME));
            let _ = std::fs::remove_dir(&self.0);
        }
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

async fn serve(listener: UnixListener, session: &Session, id: &str) {
    let mut talking = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if talking.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => talking.push(session.forward_agent(id, stream)),
                Err(_) => return,
            },
            // Whoever talks sees the end of the connection.
            Some(_) = talking.next(), if !talking.is_empty() => {}
        }
    }
}
