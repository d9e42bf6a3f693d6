//! Root file systems: what a chain of snapshots looks like to whoever mounts it, and the two drivers that can.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::sched::CloneFlags;
use rustix::fs::{AtFlags, IFlags, Mode};

use super::layer::Marks;
use super::tree::{self, Kind, Metadata};
use super::{Store, optional};
use crate::error::{Error, Result, ResultExt as _};
use crate::state::{FileLock, LockMode, Root};
use crate::sys::overlay::{Overlay, Stacked, clone_dir};
use crate::task;

/// How snapshots are kept. Decided once for a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Each snapshot holds its changes; the kernel's overlay puts them together.
    Overlay,
    /// The same in a user namespace, where overlay keeps its marks in `user.overlay.*` attributes.
    OverlayUser,
    /// Each snapshot is a copy of its parent with the changes made: slow and large, but needs nothing of the kernel.
    Native,
}

impl Driver {
    /// How layers are unpacked.
    pub(super) fn marks(self) -> Marks {
        match self {
            Self::Overlay => Marks::Trusted,
            Self::OverlayUser => Marks::User,
            Self::Native => Marks::Files,
        }
    }

    /// Returns the word that BuildKit's workers have for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overlay | Self::OverlayUser => "overlayfs",
            Self::Native => "native",
        }
    }

    pub(super) fn is_overlay(self) -> bool {
        self != Self::Native
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlay => "overlay",
            Self::OverlayUser => "overlay-user",
            Self::Native => "native",
        })
    }
}

impl FromStr for Driver {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Overlay, Self::OverlayUser, Self::Native];
        let known = all.into_iter().find(|driver| driver.to_string() == text);
        known.ok_or_else(|| {
            Error::invalid(format!("no such storage driver: {text} (there are overlay, overlay-user and native)"))
        })
    }
}

/// How a root file system is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing can be changed. What an active holds already is shown.
    ReadOnly,
    /// For a build step: the kernel skips every sync, because nothing counts before the step has ended.
    Volatile,
    /// For a container: what it syncs reaches the disk.
    Durable,
}

/// The directories a root file system is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rootfs {
    /// To be mounted as an overlay.
    Overlay {
        /// The directories to stack, the topmost first; at least two.
        lowers: Vec<PathBuf>,
        /// The directory changes go to, and the one beside it that the kernel works in.
        upper: Option<(PathBuf, PathBuf)>,
        /// Whether marks are in `user.overlay.*`.
        user_xattrs: bool,
    },
    /// A directory that holds everything, and may be written if `writable`.
    Dir {
        /// The directory.
        path: PathBuf,
        /// Whether it belongs to an active.
        writable: bool,
    },
}

impl Rootfs {
    /// Mounts it, detached: the mount vanishes with the descriptor, unless it is moved into a mount namespace. The descriptor
    /// is good for `openat2(2)`; to list the directory itself, open `.` in it. Blocking.
    ///
    /// An active must not be mounted twice at a time, nor be written past its mount.
    ///
    /// # Errors
    /// `Conflict` when a snapshot is to be written; `Unsupported` for more layers than the kernel stacks; otherwise what the
    /// kernel says. Needs CAP_SYS_ADMIN in the user namespace.
    pub fn mount(&self, access: Access) -> Result<OwnedFd> {
        let read_only = access == Access::ReadOnly;
        let committed = || Error::conflict("a committed snapshot cannot be mounted writable");
        match self {
            Self::Dir { writable: false, .. } if !read_only => Err(committed()),
            Self::Dir { path, .. } => clone_dir(path, read_only),
            Self::Overlay { lowers, upper: Some((upper, _)), user_xattrs } if read_only => {
                let lowers: Vec<_> = std::iter::once(upper).chain(lowers).cloned().collect();
                mount_overlay(&Overlay { lowers: &lowers, upper: None, user_xattrs: *user_xattrs, volatile: false })
            }
            Self::Overlay { upper: None, .. } if !read_only => Err(committed()),
            Self::Overlay { lowers, upper, user_xattrs } => {
                if let Some((_, work)) = upper {
                    forget_volatile(work)?;
                }
                let upper = upper.as_ref().map(|(upper, work)| (upper.as_path(), work.as_path()));
                let volatile = access == Access::Volatile;
                mount_overlay(&Overlay { lowers, upper, user_xattrs: *user_xattrs, volatile })
            }
        }
    }
}

/// Removes the mark by which the kernel refuses an upper directory that was mounted volatile before: it fears a power cut
/// meanwhile, after which no active that was mounted so is used any more.
fn forget_volatile(work: &Path) -> Result<()> {
    tree::remove_tree(&work.join("work/incompat"))
}

fn mount_overlay(overlay: &Overlay<'_>) -> Result<OwnedFd> {
    match overlay.mount()? {
        Stacked::Mounted(mount) => Ok(mount),
        Stacked::NeedsJoining => {
            let apart = || {
                nix::sched::unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
                    .map_err(std::io::Error::from)
                    .context(|| "leave the mount namespace")?;
                overlay.mount_joined()
            };
            task::beside("mount", apart, || ()).context(|| "start a thread")?.0
        }
    }
}

/// The setting that says why the driver is not the one that everybody wants.
const NOTE: &str = "driver_note";

impl Store {
    /// Returns why snapshots are kept as copies although nobody asked for that, in words for the user. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn driver_note(&self) -> Result<Option<String>> {
        self.root().db().read(|connection| {
            let mut find = connection.prepare_cached("SELECT value FROM store_settings WHERE name = ?1")?;
            optional(find.query_row([NOTE], |row| row.get(0)))
        })
    }
}

/// Returns the driver of a store; the first time, decides it.
pub(super) fn choose_driver(root: &Root, snapshots: &Path, wanted: Option<Driver>) -> Result<Driver> {
    let recorded = |connection: &rusqlite::Connection| -> Result<Option<Driver>> {
        let mut find = connection.prepare_cached("SELECT value FROM store_settings WHERE name = 'driver'")?;
        optional(find.query_row([], |row| row.get::<_, String>(0)))?.map(|name| name.parse()).transpose()
    };
    let driver = match root.db().read(recorded)? {
        Some(driver) => driver,
        None => {
            let _alone = FileLock::acquire(&snapshots.with_file_name("driver.lock"), LockMode::Exclusive)?;
            spread(snapshots);
            let (driver, note) = match wanted {
                Some(driver) => (driver, None),
                None => probe(snapshots)?,
            };
            root.db().write(|tx| {
                let settings = [("driver", Some(driver.to_string())), (NOTE, note.clone())];
                for (name, value) in settings.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
                    tx.execute("INSERT OR IGNORE INTO store_settings VALUES (?1, ?2)", (name, value))?;
                }
                recorded(tx)?.ok_or_else(|| Error::internal("the driver was not recorded"))
            })?
        }
    };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != driver) {
        return Err(Error::conflict(format!(
            "{} keeps its snapshots with the driver {driver}, not {wanted}; use another --root",
            root.path().display()
        )));
    }
    Ok(driver)
}

/// Asks ext4 to lay out each directory in `dir` apart from the others, since they have little to do with one another.
///
/// Otherwise all snapshots crowd into one block group, where making files can become a hundred times slower while it is full
/// of files that were just removed. Other file systems do not know the flag.
fn spread(dir: &Path) {
    /// FS_TOPDIR_FL of `ioctl_iflags(2)`, which rustix has no name for.
    const TOPDIR: IFlags = IFlags::from_bits_retain(0x0002_0000);
    if let Ok(dir) = tree::open_root(dir) {
        // Only speed depends on it.
        let _ = rustix::fs::ioctl_getflags(&dir).and_then(|flags| rustix::fs::ioctl_setflags(&dir, flags | TOPDIR));
    }
}

/// Finds out by trying whether an overlay works here: mounting it, and taking something away. If not, says why.
fn probe(snapshots: &Path) -> Result<(Driver, Option<String>)> {
    let mut why = "whiteouts do not work".to_owned();
    for driver in [Driver::Overlay, Driver::OverlayUser] {
        let dir = snapshots.join("probe");
        tree::remove_tree(&dir)?;
        let works = try_overlay(&dir, driver);
        tree::remove_tree(&dir)?;
        match works {
            Ok(true) => return Ok((driver, None)),
            Ok(false) => {}
            Err(error) if error.kind() == crate::error::Kind::Exhausted => return Err(error),
            // No kernel module, no right to, a file system that cannot be an upper one.
            Err(error) => why = error.to_string(),
        }
    }
    let note = format!(
        "layers are kept as full copies, which is slow, because overlay file systems cannot be used here: {why}"
    );
    Ok((Driver::Native, Some(note)))
}

fn try_overlay(dir: &Path, driver: Driver) -> Result<bool> {
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| dir.join(name));
    for dir in [&lower, &upper, &work] {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(lower.join("file"), "")?;
    let user_xattrs = driver == Driver::OverlayUser;
    let rootfs = Rootfs::Overlay { lowers: vec![lower], upper: Some((upper.clone(), work)), user_xattrs };
    let mount = rootfs.mount(Access::Volatile)?;
    rustix::fs::unlinkat(&mount, c"file", AtFlags::empty())?;
    rustix::fs::mkdirat(&mount, c"dir", Mode::RWXU)?;
    let upper = tree::open_root(&upper)?;
    let mark = Metadata::at(&upper, c"file")?;
    Ok(mark.kind == Kind::Char && mark.rdev == (0, 0))
}
