//! `mount_setattr(2)`: changes flags and propagation of a mount or a whole tree of mounts.
//!
//! The rest of the mount API (`fsopen`, `fsmount`, `open_tree`, `move_mount`) is rustix's.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

/// What happens to mounts that appear below a mount: the `propagation` of `mount_setattr(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Propagation {
    /// Nothing goes either way.
    #[default]
    Private,
    /// Mounts made on the original appear here.
    Slave,
    /// Mounts appear on both sides.
    Shared,
}

/// Which mounts a change is made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The mount itself.
    Top,
    /// The mount and everything mounted below it.
    Tree,
}

/// A change of mounts.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The flags that are set. Flags that are not named stay as they are.
    pub set: MountAttrFlags,
    /// The new propagation; `None` leaves it.
    pub propagation: Option<Propagation>,
    /// Which mounts are changed.
    pub extent: Extent,
}

impl Change {
    /// Sets flags.
    #[must_use]
    pub fn set(set: MountAttrFlags, extent: Extent) -> Self {
        Self { set, propagation: None, extent }
    }

    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.propagation.is_none()
    }
}

/// Changes a mount, which may be detached. Async-signal-safe; allocates nothing. Linux 5.12.
///
/// # Errors
/// The errno: `ENOSYS` before Linux 5.12, `EINVAL` when `mount` is not the root of a mount, `EPERM` without `CAP_SYS_ADMIN`.
pub fn change(mount: BorrowedFd<'_>, change: &Change) -> Result<(), Errno> {
    if change.is_empty() {
        return Ok(());
    }
    let attributes = libc::mount_attr {
        attr_set: u64::from(change.set.bits()),
        attr_clr: 0,
        propagation: match change.propagation {
            None => 0,
            Some(Propagation::Private) => libc::MS_PRIVATE,
            Some(Propagation::Slave) => libc::MS_SLAVE,
            Some(Propagation::Shared) => libc::MS_SHARED,
        },
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if change.extent == Extent::Tree { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a constant, and `attributes` is a live struct of the size that is passed; the kernel reads both
    // during the call only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(super::process::last_errno()) }
}
