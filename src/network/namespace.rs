//! Network namespaces: making one, and running code inside one.
//!
//! A namespace is kept by a file descriptor only; nothing is bind-mounted. When the last descriptor is closed and the
//! last process in it has ended, the kernel removes it with its interfaces. A thread that entered a namespace never
//! returns to a pool: it ends.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::sys::netlink::Netlink;
use crate::task;

/// Loopback is the first interface of every namespace.
const LOOPBACK: u32 = 1;

/// Makes a network namespace that holds loopback only, which is up. This is all of the network `none`.
///
/// Any process in it may bind any port and send ICMP echo requests, as in Docker's containers
/// (`net.ipv4.ip_unprivileged_port_start` and `net.ipv4.ping_group_range`; a sandbox sets other sysctls). The namespace
/// belongs to the caller's user namespace. Blocking, about 0.7 ms.
///
/// # Errors
/// `Forbidden` without CAP_SYS_ADMIN; `Exhausted` when there are too many namespaces already.
pub fn create() -> Result<OwnedFd> {
    let make = || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(refused)?;
        allow_ping()?;
        write_sysctl("net/ipv4/ip_unprivileged_port_start", "0")?;
        Netlink::new().set_up(LOOPBACK).context(|| "bring loopback up")?;
        current()
    };
    on_thread(make).context(|| "make a network namespace")
}

/// Runs an operation inside a network namespace, on a thread of its own, and returns what it returns. Blocking.
///
/// # Errors
/// Those of `operation`; `Forbidden` without CAP_SYS_ADMIN.
pub fn within<T: Send + 'static>(
    netns: BorrowedFd<'_>,
    operation: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let netns = netns.try_clone_to_owned()?;
    on_thread(move || {
        nix::sched::setns(&netns, CloneFlags::CLONE_NEWNET).map_err(refused).context(|| "enter a network namespace")?;
        operation()
    })
}

/// Lets every group make ping sockets in the calling thread's network namespace.
fn allow_ping() -> Result<()> {
    const FILE: &str = "/proc/sys/net/ipv4/ping_group_range";
    match std::fs::write(FILE, "0 2147483647") {
        // The caller's user namespace does not map all groups. Docker leaves the range alone there, too.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result.context(|| format!("write {FILE}")),
    }
}

/// Opens the calling thread's network namespace.
pub(super) fn current() -> Result<OwnedFd> {
    const FILE: &str = "/proc/thread-self/ns/net";
    rustix::fs::open(FILE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(|| format!("open {FILE}"))
}

/// Sets a sysctl of the calling thread's network namespace, named by its path below `/proc/sys`.
pub(super) fn write_sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    std::fs::write(&path, value).context(|| format!("write {value:?} to {}", path.display()))
}

/// Keeps an interface of the calling thread's network namespace free of IPv6: no addresses, and no believing what
/// routers, real ones or a neighbouring container's fakes, advertise.
pub(super) fn disable_ipv6(interface: &str) -> Result<()> {
    if has_ipv6() { write_sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "1") } else { Ok(()) }
}

/// Says whether the kernel has IPv6, and so a new namespace's loopback the address `::1`.
#[must_use]
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

fn on_thread<T: Send + 'static>(body: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match task::thread("kiln-netns", body)?.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn refused(errno: nix::Error) -> Error {
    let error = Error::from(std::io::Error::from(errno));
    match errno {
        nix::Error::EPERM => error.with_kind(Kind::Forbidden),
        nix::Error::ENOSPC | nix::Error::EUSERS => error.with_kind(Kind::Exhausted),
        _ => error,
    }
}
