//! The one thread that starts processes.
//!
//! The kernel's parent-death signal follows the *thread* that started a process, and joining a namespace for a child affects
//! the calling thread: both need a thread that lives as long as the program and does nothing else. It only clones; waiting for
//! the child to set itself up is its caller's, so that sandboxes start in parallel.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

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

static QUEUE: Mutex<Option<SyncSender<Job>>> = Mutex::new(None);

/// Carries out an order, and returns it with the process. Blocking.
///
/// # Errors
/// When a namespace cannot be joined or the kernel refuses to start a process.
pub(super) fn carry_out(order: Order) -> Result<(Started, Order)> {
    let (sender, receiver) = sync_channel(1);
    submit((order, sender))?;
    let (started, order) =
        receiver.recv().map_err(|_| Error::internal("the thread that starts containers has died"))?;
    Ok((started?, order))
}

/// A thread that could not return to its own namespaces has ended; another takes its place.
fn submit(job: Job) -> Result<()> {
    let mut queue = QUEUE.lock().unwrap_or_else(PoisonError::into_inner);
    let job = match queue.as_ref() {
        None => job,
        Some(sender) => match sender.send(job) {
            Ok(()) => return Ok(()),
            Err(returned) => returned.0,
        },
    };
    // One job at a time is worked on; others wait in their callers.
    let (sender, receiver) = sync_channel::<Job>(1);
    task::thread("spawner", move || {
        let Ok(home) = Home::open() else { return };
        while let Ok((order, outcome)) = receiver.recv() {
            let (started, at_home) = home.carry_out(&order);
            // The caller blocks until this arrives, so it cannot be gone.
            let _ = outcome.send((started, order));
            if !at_home {
                return;
            }
        }
    })?;
    sender
        .send(job)
        .map_err(|_| Error::internal("the thread that starts containers cannot open its own namespaces"))?;
    *queue = Some(sender);
    Ok(())
}

/// The spawner's own namespaces.
struct Home(Vec<(OwnedFd, LinkNameSpaceType)>);

/// Namespaces a thread can join for its children, in the order of joining.
const KINDS: [(&str, LinkNameSpaceType); 4] = [
    ("net", LinkNameSpaceType::Network),
    ("ipc", LinkNameSpaceType::InterProcessCommunication),
    ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
    ("pid", LinkNameSpaceType::ProcessID),
];

impl Home {
    fn open() -> Result<Self> {
        let open = |(name, kind): &(&str, LinkNameSpaceType)| {
            let path = format!("/proc/thread-self/ns/{name}");
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
