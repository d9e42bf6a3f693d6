//! The threads that start processes, and do nothing else.
//!
//! The kernel's parent-death signal follows the *thread* that started a process, joining a namespace for a child affects the
//! calling thread, and a child that uses its parent's memory stops it until it executes: all this needs threads of our own,
//! which live as long as the program.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::failure;
use crate::error::{Error, Result, ResultExt as _};
use crate::sys::plan::Plan;
use crate::sys::process::{Started, start};
use crate::task;

/// What is to be started, and in which namespaces.
#[derive(Debug)]
pub(super) struct Order {
    /// `CLONE_NEW*` flags.
    pub(super) namespaces: u64,
    /// Existing namespaces the process starts in.
    pub(super) join: Vec<(OwnedFd, LinkNameSpaceType)>,
    /// The v2 cgroup the process starts in.
    pub(super) cgroup: Option<OwnedFd>,
    pub(super) plan: Plan,
}

/// An order with the place its outcome goes to.
type Job = (Order, SyncSender<(Result<Started>, Order)>);

/// Spawners that wait for work. There are as many in all as ever were needed at once.
static IDLE: Mutex<Vec<SyncSender<Job>>> = Mutex::new(Vec::new());

/// Carries out an order, and returns it with the process. Blocking.
///
/// # Errors
/// When a namespace cannot be joined or the kernel refuses to start a process.
pub(super) fn carry_out(order: Order) -> Result<(Started, Order)> {
    let idle = lock().pop();
    let spawner = idle.map_or_else(new_spawner, Ok)?;
    let gone = || Error::internal("a thread that starts containers has died");
    let (sender, receiver) = sync_channel(1);
    spawner.send((order, sender)).map_err(|_| gone())?;
    let (started, order) = receiver.recv().map_err(|_| gone())?;
    Ok((started?, order))
}

fn lock() -> MutexGuard<'static, Vec<SyncSender<Job>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One that cannot return to its own namespaces ends instead of taking further orders. Processes it has started may end with
/// it; such an error of the kernel has not been seen.
fn new_spawner() -> Result<SyncSender<Job>> {
    // Whoever has taken a spawner gives it one job.
    let (sender, receiver) = sync_channel::<Job>(1);
    let own = sender.clone();
    let home = Home::get()?;
    task::thread("spawner", move || {
        while let Ok((order, outcome)) = receiver.recv() {
            let (started, at_home) = home.carry_out(&order);
            if !at_home {
                return;
            }
            lock().push(own.clone());
            // The caller blocks until this arrives, so it cannot be gone.
            let _ = outcome.send((started, order));
        }
    })?;
    Ok(sender)
}

/// The namespaces of this process, to which spawners return.
struct Home(Vec<(OwnedFd, LinkNameSpaceType)>);

/// Namespaces a thread can join for its children, in the order of joining.
const KINDS: [(&str, LinkNameSpaceType); 4] = [
    ("net", LinkNameSpaceType::Network),
    ("ipc", LinkNameSpaceType::InterProcessCommunication),
    ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
    ("pid", LinkNameSpaceType::ProcessID),
];

impl Home {
    fn get() -> Result<&'static Self> {
        static HOME: OnceLock<Home> = OnceLock::new();
        match HOME.get() {
            Some(home) => Ok(home),
            None => Self::open().map(|home| HOME.get_or_init(|| home)),
        }
    }

    fn open() -> Result<Self> {
        let open = |(name, kind): &(&str, LinkNameSpaceType)| {
            let path = format!("/proc/self/ns/{name}");
            let file = std::fs::File::open(&path).context(|| format!("open {path}"))?;
            Ok((OwnedFd::from(file), *kind))
        };
        KINDS.iter().map(open).collect::<Result<_>>().map(Self)
    }

    /// Says also whether the thread is back in its own namespaces.
    fn carry_out(&self, order: &Order) -> (Result<Started>, bool) {
        let joined = order.join.iter().try_for_each(|(fd, kind)| {
            move_into_link_name_space(fd.as_fd(), Some(*kind))
                .map_err(|errno| failure::step(&format!("join the {} namespace", name_of(*kind)), errno))
        });
        let started = joined.and_then(|()| {
            start(order.namespaces, order.cgroup.as_ref().map(|fd| fd.as_fd()), &order.plan)
                .map_err(|errno| failure::step("start a process in new namespaces", errno))
        });
        (started, self.return_from(order).is_ok())
    }

    fn return_from(&self, order: &Order) -> Result<(), Errno> {
        let was_left = |kind: LinkNameSpaceType| order.join.iter().any(|(_, joined)| *joined == kind);
        let mut left = self.0.iter().filter(|(_, kind)| was_left(*kind));
        left.try_for_each(|(fd, kind)| move_into_link_name_space(fd.as_fd(), Some(*kind)))
    }
}

fn name_of(kind: LinkNameSpaceType) -> &'static str {
    KINDS.iter().find(|(_, other)| *other == kind).map_or("requested", |(name, _)| name)
}
