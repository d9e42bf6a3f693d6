//! Overlay file systems and directory clones as detached mounts: a mount that only its descriptor knows.
//!
//! A detached mount is no part of any mount namespace until `move_mount(2)` puts it into one; it vanishes with its
//! descriptor. Which directories to stack, and where the mount goes, is the callers' business.
#![expect(unsafe_code, reason = "rustix has no mount_setattr(2)")]

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, open_tree,
};

use crate::error::{Error, Result, ResultExt as _};

/// How many lower directories the kernel stacks (`OVL_MAX_STACK`).
pub const MAX_LOWERS: usize = 500;

/// The longest value `fsconfig(2)` takes, without the NUL.
const MAX_VALUE: usize = 255;

/// An overlay to be mounted.
#[derive(Clone, Debug)]
pub struct Overlay<'a> {
    /// The directories to stack, the topmost first; at least one, and two when there is no upper directory.
    pub lowers: &'a [PathBuf],
    /// The writable directory and the empty directory beside it that the kernel works in. Without it the mount is
    /// read-only.
    pub upper: Option<(&'a Path, &'a Path)>,
    /// Whether the marks are `user.overlay.*` attributes, which a user namespace needs, rather than `trusted.overlay.*`.
    pub user_xattrs: bool,
    /// Whether the kernel may skip every sync to the upper directory.
    pub volatile: bool,
}

/// What to do when the kernel has no `lowerdir+` (before 6.7).
#[derive(Debug)]
pub enum Stacked {
    /// The mount.
    Mounted(OwnedFd),
    /// The lower directories must be given in one string: see [`Overlay::mount_joined`].
    NeedsJoining,
}

impl Overlay<'_> {
    /// Mounts the overlay, giving the kernel one lower directory at a time.
    ///
    /// Redirects and metadata-only copies are off, so that an upper directory is a complete layer by itself. Needs
    /// CAP_SYS_ADMIN in the user namespace.
    ///
    /// # Errors
    /// `Unsupported` for more than [`MAX_LOWERS`] lower directories; otherwise what the kernel says, in its own words
    /// where it offers any.
    pub fn mount(&self) -> Result<Stacked> {
        self.check()?;
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context(|| "open the overlay file system")?;
        let explained = |errno| explain(&fs, errno);
        fsconfig_set_string(&fs, "source", "overlay").map_err(|errno| explained(errno).context("name the overlay"))?;
        let base = common_dir(&self.paths());
        let dir = open_path(&base)?;
        for (at, lower) in self.lowers.iter().enumerate() {
            match fsconfig_set_string(&fs, "lowerdir+", option_path(lower, &base, &dir)) {
                Ok(()) => {}
                Err(Errno::INVAL) if at == 0 => return Ok(Stacked::NeedsJoining),
                Err(errno) => return Err(explained(errno).context(format!("stack {}", lower.display()))),
            }
        }
        if let Some((upper, work)) = self.upper {
            for (key, path) in [("upperdir", upper), ("workdir", work)] {
                fsconfig_set_string(&fs, key, option_path(path, &base, &dir))
                    .map_err(|errno| explained(errno).context(format!("stack {}", path.display())))?;
            }
        }
        for (key, value) in self.settings() {
            match value {
                Some(value) => fsconfig_set_string(&fs, key, value),
                None => fsconfig_set_flag(&fs, key),
            }
            .map_err(|errno| explained(errno).context(format!("set overlay option {key}")))?;
        }
        fsconfig_create(&fs).map_err(|errno| explained(errno).context("mount an overlay"))?;
        let attributes = if self.upper.is_some() { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
        let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|errno| explained(errno).context("mount an overlay"))?;
        Ok(Stacked::Mounted(mount))
    }

    /// Mounts the overlay as kernels before 6.7 want it: all directories in one page of options.
    ///
    /// Relative names save space in that page, so this changes the working directory, and it mounts into the mount
    /// namespace. **Call it on a thread of its own** that has left both behind with `unshare(CLONE_FS | CLONE_NEWNS)`.
    ///
    /// # Errors
    /// As [`Self::mount`]; `Unsupported` when the names do not fit a page.
    pub fn mount_joined(&self) -> Result<OwnedFd> {
        self.check()?;
        let base = common_dir(&self.paths());
        let options = CString::new(self.joined_options(&base)?).map_err(|_| Error::invalid("a path holds a NUL"))?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context(|| "make mounts private")?;
        rustix::process::chdir(&base).context(|| format!("enter {}", base.display()))?;
        let flags = if self.upper.is_some() { MountFlags::empty() } else { MountFlags::RDONLY };
        rustix::mount::mount("overlay", &base, "overlay", flags, options.as_c_str()).context(|| "mount an overlay")?;
        open_tree(CWD, &base, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .context(|| "detach an overlay")
    }

    fn joined_options(&self, base: &Path) -> Result<Vec<u8>> {
        const PAGE: usize = 4096;
        let relative = |path: &Path| escape(path.strip_prefix(base).unwrap_or(path).as_os_str());
        let lowers: Vec<_> = self.lowers.iter().map(|lower| relative(lower)).collect();
        let mut options = b"lowerdir=".to_vec();
        options.extend(lowers.join(&b':'));
        if let Some((upper, work)) = self.upper {
            for (key, path) in [("upperdir", upper), ("workdir", work)] {
                options.extend(format!(",{key}=").into_bytes());
                options.extend(relative(path));
            }
        }
        for (key, value) in self.settings() {
            options.extend(value.map_or_else(|| format!(",{key}"), |value| format!(",{key}={value}")).into_bytes());
        }
        if options.len() >= PAGE {
            return Err(Error::unsupported(format!(
                "{} layers are too many for this kernel, whose overlay options must fit {PAGE} bytes (Linux 6.7 lifts that)",
                self.lowers.len()
            )));
        }
        Ok(options)
    }

    fn settings(&self) -> Vec<(&'static str, Option<&'static str>)> {
        let mut settings = vec![("redirect_dir", Some("nofollow")), ("metacopy", Some("off")), ("index", Some("off"))];
        if self.user_xattrs {
            // Implies the two settings about redirects and metadata, and refuses to see them said again.
            settings = vec![("userxattr", None), ("index", Some("off"))];
        }
        if self.volatile && self.upper.is_some() {
            settings.push(("volatile", None));
        }
        settings
    }

    fn paths(&self) -> Vec<&Path> {
        let upper = self.upper.into_iter().flat_map(|(upper, work)| [upper, work]);
        self.lowers.iter().map(PathBuf::as_path).chain(upper).collect()
    }

    fn check(&self) -> Result<()> {
        if self.lowers.len() > MAX_LOWERS {
            return Err(Error::unsupported(format!(
                "a root file system of {} layers: the kernel's overlay stacks at most {MAX_LOWERS}",
                self.lowers.len()
            )));
        }
        Ok(())
    }
}

/// Makes a detached mount of a directory, as a bind mount would show it.
///
/// # Errors
/// What the kernel says. Needs CAP_SYS_ADMIN in the user namespace.
pub fn clone_dir(path: &Path, read_only: bool) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, path, flags).context(|| format!("clone the mount of {}", path.display()))?;
    if read_only {
        set_read_only(&mount).context(|| format!("make the mount of {} read-only", path.display()))?;
    }
    Ok(mount)
}

fn set_read_only(mount: &OwnedFd) -> Result<(), std::io::Error> {
    let attributes = libc::mount_attr {
        attr_set: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a NUL-terminated literal, `attributes` lives across the call and its size is the one passed; the
    // kernel reads both and keeps neither. `mount` is open because it is borrowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// The kernel's own words about a failure, which it leaves in the file system context, after the error.
fn explain(fs: &OwnedFd, errno: Errno) -> Error {
    let mut buffer = [0; 512];
    let words = rustix::io::read(fs, &mut buffer).map(|n| String::from_utf8_lossy(&buffer[..n]).trim().to_owned());
    let error = Error::from(errno);
    match words.ok().filter(|words| !words.is_empty()) {
        Some(words) => Error::new(error.kind(), format!("{error} ({})", words.trim_start_matches("e overlay: "))),
        None => error,
    }
}

/// The directory that all of `paths` lie in.
fn common_dir(paths: &[&Path]) -> PathBuf {
    let Some((first, others)) = paths.split_first() else { return PathBuf::from("/") };
    let above = first.ancestors().skip(1);
    above.into_iter().find(|dir| others.iter().all(|path| path.starts_with(dir))).unwrap_or(Path::new("/")).to_owned()
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("open {}", path.display()))
}

/// Names a directory to `fsconfig(2)`: as it is, or, where that is too long or holds characters that some kernels take as
/// escapes and separators, by way of the open directory `dir` above it.
fn option_path(path: &Path, base: &Path, dir: &OwnedFd) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let special = bytes.iter().any(|byte| matches!(byte, b'\\' | b':' | b','));
    if bytes.len() <= MAX_VALUE && !special {
        return path.to_owned();
    }
    Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(path.strip_prefix(base).unwrap_or(path))
}

fn escape(path: &OsStr) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path.as_bytes() {
        if matches!(byte, b'\\' | b':' | b',') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(root: &Path, count: usize) -> Vec<PathBuf> {
        let layer = |n: usize| {
            let dir = root.join(n.to_string()).join("fs");
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("top"), n.to_string()).unwrap();
            std::fs::write(dir.join(format!("file{n}")), "x").unwrap();
            dir
        };
        (0..count).rev().map(layer).collect()
    }

    fn names(mount: &OwnedFd) -> usize {
        let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
        std::fs::read_dir(path).unwrap().count()
    }

    fn mounted(overlay: &Overlay<'_>) -> OwnedFd {
        match overlay.mount().unwrap() {
            Stacked::Mounted(mount) => mount,
            Stacked::NeedsJoining => joined(overlay),
        }
    }

    fn joined(overlay: &Overlay<'_>) -> OwnedFd {
        std::thread::scope(|scope| {
            let body = || {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS | nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
                overlay.mount_joined().unwrap()
            };
            scope.spawn(body).join().unwrap()
        })
    }

    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("skipped: mounting needs root");
        }
        root
    }

    #[test]
    fn privileged_the_most_layers_the_kernel_takes_are_stacked() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let lowers = layers(dir.path(), MAX_LOWERS + 1);
        let overlay = |lowers| Overlay { lowers, upper: None, user_xattrs: false, volatile: false };
        assert_eq!(names(&mounted(&overlay(&lowers[1..]))), MAX_LOWERS + 1);
        let error = overlay(&lowers).mount().unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Unsupported);
        assert!(error.to_string().contains("501 layers"), "{error}");
    }

    #[test]
    fn privileged_older_kernels_get_as_many_layers_as_fit_a_page() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let lowers = layers(dir.path(), MAX_LOWERS);
        let overlay = |lowers| Overlay { lowers, upper: None, user_xattrs: false, volatile: false };
        assert_eq!(names(&joined(&overlay(&lowers))), MAX_LOWERS + 1);
        let error = overlay(&lowers).joined_options(Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("500 layers"), "{error}");
    }

    #[test]
    fn privileged_a_path_may_be_long_and_hold_separators() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a:b,c\\d").join("x".repeat(200)).join("y".repeat(200));
        let lowers = layers(&root, 2);
        let (upper, work) = (root.join("u/fs"), root.join("u/work"));
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir_all(&work).unwrap();
        let upper = Some((upper.as_path(), work.as_path()));
        let overlay = Overlay { lowers: &lowers, upper, user_xattrs: false, volatile: true };
        assert_eq!(names(&mounted(&overlay)), 3);
    }

    #[test]
    fn privileged_what_the_kernel_says_is_passed_on() {
        if !is_root() {
            return;
        }
        let lowers = [PathBuf::from("/nonexistent/a"), PathBuf::from("/nonexistent/b")];
        let overlay = Overlay { lowers: &lowers, upper: None, user_xattrs: false, volatile: false };
        let error = overlay.mount().unwrap_err().to_string();
        assert!(error.contains("no such file"), "{error}");
    }

    #[test]
    fn privileged_a_cloned_directory_can_be_read_only() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mount = clone_dir(dir.path(), true).unwrap();
        let make = |mount: &OwnedFd| rustix::fs::mkdirat(mount, "x", Mode::RWXU);
        assert_eq!(make(&mount), Err(Errno::ROFS));
        make(&clone_dir(dir.path(), false).unwrap()).unwrap();
    }
}
