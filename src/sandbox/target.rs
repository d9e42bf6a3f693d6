//! Where mounts go: finds mount points in the tree as it will look, makes missing ones, and can take those away again.
//!
//! Everything is looked up component by component beneath descriptors of the parts of the tree (the root file system and what
//! is mounted over it), before the process exists; symbolic links are followed as the process would, and so never leave the
//! root. The child looks every path up again beneath the root, so this need not be safe against a tree that changes.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::failure;
use crate::error::{Error, Result, ResultExt as _};
use crate::sys::plan::open_beneath;

/// As many symbolic links as the kernel follows.
const MAX_LINKS: u32 = 40;

/// What a mount point must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PointKind {
    Directory,
    File,
}

/// The tree of mounts as far as it is planned.
pub(super) struct Targets {
    /// The path of each mount (without a leading slash), and its root if that can be looked into before it is mounted.
    mounts: Vec<(String, Option<Arc<OwnedFd>>)>,
    /// Owner of what is made, on the host.
    owner: (Uid, Gid),
    stubs: Stubs,
}

/// Mount points that were made in a root file system because they were missing.
#[derive(Debug, Default)]
pub struct Stubs(Vec<Stub>);

#[derive(Debug)]
struct Stub {
    parent: CString,
    name: String,
    made: Facts,
    parent_before: Timespec,
    parent_after: Timespec,
}

/// What must be the same for a stub to count as untouched.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    mode: u32,
    owner: (u32, u32),
    /// Of a file: its size and modification time. A directory is untouched when it is empty.
    content: Option<(i64, i64, u64)>,
}

impl Facts {
    fn of(stat: &Stat) -> Self {
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let content = is_file.then_some((stat.st_size, stat.st_mtime, stat.st_mtime_nsec));
        Self { mode: stat.st_mode, owner: (stat.st_uid, stat.st_gid), content }
    }
}

impl Targets {
    pub(super) fn new(root: Arc<OwnedFd>, owner: (u32, u32)) -> Self {
        let owner = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        Self { mounts: vec![(String::new(), Some(root))], owner, stubs: Stubs::default() }
    }

    /// Says that a mount will be at a place that [`Targets::locate`] returned.
    pub(super) fn mounted(&mut self, path: &CString, root: Option<Arc<OwnedFd>>) {
        let path = path.to_string_lossy();
        let path = if path == "." { "" } else { &path };
        self.mounts.push((path.to_owned(), root));
    }

    /// Returns the path of a mount point, without symbolic links and relative to the root, after making what is missing.
    pub(super) fn locate(&mut self, target: &str, kind: PointKind) -> Result<CString> {
        let path = self.walk(target, kind).map_err(|errno| match errno {
            Errno::NOTDIR => failure::wrong_kind(target),
            errno => failure::step(&format!("make mount point {target}"), errno),
        })?;
        CString::new(path).map_err(|_| Error::invalid(format!("mount point {target:?} contains a zero byte")))
    }

    fn walk(&mut self, target: &str, kind: PointKind) -> Result<String, Errno> {
        let mut walk = Walk { path: Vec::new(), dirs: vec![self.root_of("")], links: 0, pending: components(target) };
        while let Some(name) = walk.pending.pop_front() {
            let is_last = walk.pending.is_empty();
            self.enter(&mut walk, &name, is_last.then_some(kind))?;
        }
        Ok(if walk.path.is_empty() { ".".to_owned() } else { walk.path.join("/") })
    }

    /// Makes a directory and everything above it, like `mkdir -p`, unless it exists. What is made gets an owner, as the host
    /// numbers ids.
    pub(super) fn make_directory(&mut self, path: &str, owner: (u32, u32)) -> Result<()> {
        let before = self.stubs.0.len();
        let root = std::mem::replace(&mut self.owner, (Uid::from_raw(owner.0), Gid::from_raw(owner.1)));
        let made = self.walk(path, PointKind::Directory);
        self.owner = root;
        made.map_err(|errno| failure::step(&format!("mkdir {path}"), errno))?;
        // It is wanted for itself, so it stays.
        self.stubs.0.truncate(before);
        Ok(())
    }

    pub(super) fn into_stubs(self) -> Stubs {
        self.stubs
    }

    /// The root of what is mounted last at a path.
    fn root_of(&self, path: &str) -> Option<Arc<OwnedFd>> {
        self.mounts.iter().rev().find(|(mount, _)| mount == path).and_then(|(_, root)| root.clone())
    }

    fn is_mount(&self, path: &str) -> bool {
        self.mounts.iter().any(|(mount, _)| mount == path)
    }

    /// Whether a path belongs to the root file system itself.
    fn is_in_root(&self, path: &str) -> bool {
        !self.mounts.iter().skip(1).any(|(mount, _)| path.strip_prefix(mount).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Takes one component of a path. `last` is what it must be when it is the last one.
    fn enter(&mut self, walk: &mut Walk, name: &str, last: Option<PointKind>) -> Result<(), Errno> {
        if name == ".." {
            walk.leave();
            return Ok(());
        }
        let Some(dir) = walk.dirs.last().cloned().flatten() else {
            // Below a file system that exists only in the child.
            walk.path.push(name.to_owned());
            walk.dirs.push(None);
            return Ok(());
        };
        let fd = match rustix::fs::openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        {
            Err(Errno::NOENT) => self.make(walk, &dir, name, last.unwrap_or(PointKind::Directory))?,
            fd => fd?,
        };
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Symlink => return walk.follow(&fd),
            FileType::Directory if last == Some(PointKind::File) => return Err(Errno::NOTDIR),
            FileType::Directory => {}
            _ if last != Some(PointKind::File) => return Err(Errno::NOTDIR),
            _ => {}
        }
        walk.path.push(name.to_owned());
        let path = walk.path.join("/");
        walk.dirs.push(if self.is_mount(&path) { self.root_of(&path) } else { Some(Arc::new(fd)) });
        Ok(())
    }

    fn make(&mut self, walk: &Walk, dir: &OwnedFd, name: &str, kind: PointKind) -> Result<OwnedFd, Errno> {
        let before = mtime(&rustix::fs::fstat(dir)?);
        match kind {
            PointKind::Directory => {
                rustix::fs::mkdirat(dir, name, Mode::from(0o755))?;
                // The mask of this process does not apply.
                rustix::fs::chmodat(dir, name, Mode::from(0o755), AtFlags::empty())?;
            }
            PointKind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name, flags, Mode::from(0o644))?;
            }
        }
        rustix::fs::chownat(dir, name, Some(self.owner.0), Some(self.owner.1), AtFlags::SYMLINK_NOFOLLOW)?;
        let fd = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let parent = walk.path.join("/");
        if self.is_in_root(&format!("{parent}/{name}")) {
            self.stubs.0.push(Stub {
                parent: CString::new(if parent.is_empty() { ".".to_owned() } else { parent })
                    .map_err(|_| Errno::INVAL)?,
                name: name.to_owned(),
                made: Facts::of(&rustix::fs::fstat(&fd)?),
                parent_before: before,
                parent_after: mtime(&rustix::fs::fstat(dir)?),
            });
        }
        Ok(fd)
    }
}

/// A path that is being looked up.
struct Walk {
    /// The components so far, free of links.
    path: Vec<String>,
    /// The root, and a directory for each component; `None` where nothing can be looked at yet.
    dirs: Vec<Option<Arc<OwnedFd>>>,
    links: u32,
    pending: VecDeque<String>,
}

impl Walk {
    fn leave(&mut self) {
        if self.path.pop().is_some() {
            self.dirs.pop();
        }
    }

    fn follow(&mut self, link: &OwnedFd) -> Result<(), Errno> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let target = rustix::fs::readlinkat(link, c"", Vec::new())?;
        let target = target.to_str().map_err(|_| Errno::ILSEQ)?;
        if target.starts_with('/') {
            self.path.clear();
            self.dirs.truncate(1);
        }
        for name in components(target).into_iter().rev() {
            self.pending.push_front(name);
        }
        Ok(())
    }
}

fn components(path: &str) -> VecDeque<String> {
    path.split('/').filter(|name| !name.is_empty() && *name != ".").map(str::to_owned).collect()
}

fn mtime(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

impl Stubs {
    /// Says how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Says whether nothing was made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes the mount points, and gives their parents the modification times they had.
    ///
    /// `root` is the root file system, writable and without the sandbox's mounts; for an overlay its upper directory serves as
    /// well. A mount point that the process changed, filled or removed is left as it is, and so is its parent.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(self, root: BorrowedFd<'_>) -> Result<()> {
        for stub in self.0.iter().rev() {
            stub.remove(root)
                .context(|| format!("remove mount point {}/{}", stub.parent.to_string_lossy(), stub.name))?;
        }
        Ok(())
    }
}

impl Stub {
    fn remove(&self, root: BorrowedFd<'_>) -> Result<(), Errno> {
        let parent = match open_beneath(root, &self.parent, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS)
        {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            parent => parent?,
        };
        let now = match rustix::fs::statat(&parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            now => now?,
        };
        if Facts::of(&now) != self.made {
            return Ok(());
        }
        let untouched = mtime(&rustix::fs::fstat(&parent)?) == self.parent_after;
        let flags = if self.made.content.is_some() { AtFlags::empty() } else { AtFlags::REMOVEDIR };
        match rustix::fs::unlinkat(&parent, &self.name, flags) {
            Err(Errno::NOTEMPTY) => return Ok(()),
            result => result?,
        }
        if !untouched {
            return Ok(());
        }
        let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: keep, last_modification: self.parent_before };
        rustix::fs::utimensat(parent.as_fd(), c".", &times, AtFlags::empty())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> Arc<OwnedFd> {
        Arc::new(fs::File::open(path).unwrap().into())
    }

    fn targets(root: &Path) -> Targets {
        let owner = fs::metadata(root).unwrap();
        Targets::new(open(root), (owner.uid(), owner.gid()))
    }

    fn locate(targets: &mut Targets, path: &str, kind: PointKind) -> String {
        targets.locate(path, kind).unwrap().into_string().unwrap()
    }

    #[test]
    fn a_mount_point_behind_symbolic_links_stays_within_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("run")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("/run", root.join("absolute")).unwrap();
        symlink("../../../../outside", root.join("up")).unwrap();
        symlink(dir.path().join("outside"), root.join("host")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let mut targets = targets(&root);
        assert_eq!(locate(&mut targets, "/absolute/x", PointKind::Directory), "run/x");
        assert_eq!(locate(&mut targets, "/up/x", PointKind::Directory), "outside/x");
        assert!(locate(&mut targets, "/host/x", PointKind::File).ends_with("outside/x"));
        assert_eq!(locate(&mut targets, "/../..", PointKind::Directory), ".");
        assert!(targets.locate("/loop/x", PointKind::File).unwrap_err().to_string().contains("symbolic link"));
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
    }

    #[test]
    fn a_mount_point_below_an_earlier_mount_is_made_in_that_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (root, volume) = (dir.path().join("root"), dir.path().join("volume"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&volume).unwrap();
        let mut targets = targets(&root);
        let data = targets.locate("/data", PointKind::Directory).unwrap();
        targets.mounted(&data, Some(open(&volume)));
        symlink("/data", root.join("link")).unwrap();
        assert_eq!(locate(&mut targets, "/link/inner/file", PointKind::File), "data/inner/file");
        assert!(volume.join("inner/file").is_file());
        assert_eq!(targets.into_stubs().len(), 1);
    }

    #[test]
    fn a_directory_over_a_file_is_refused_in_dockers_words() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = targets(dir.path()).locate("/file", PointKind::Directory).unwrap_err();
        assert!(
            error.to_string().contains("Are you trying to mount a directory onto a file (or vice-versa)?"),
            "{error}"
        );
        assert_eq!(failure::exit_code(&error), 127);
        let error = targets(dir.path()).locate("/", PointKind::File);
        assert!(error.is_ok(), "the root has no component to check");
    }

    #[test]
    fn stubs_are_removed_without_a_trace_unless_they_were_used() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let old = Timespec { tv_sec: 1_000_000, tv_nsec: 5 };
        let times = Timestamps { last_access: old, last_modification: old };
        for path in ["etc", "."] {
            rustix::fs::utimensat(open(dir.path()), path, &times, AtFlags::empty()).unwrap();
        }
        let mut targets = targets(dir.path());
        for (path, kind) in [
            ("/etc/hosts", PointKind::File),
            ("/etc/resolv.conf", PointKind::File),
            ("/a/b/c", PointKind::Directory),
            ("/used", PointKind::Directory),
        ] {
            targets.locate(path, kind).unwrap();
        }
        fs::write(dir.path().join("used/file"), "").unwrap();
        targets.into_stubs().remove(open(dir.path()).as_fd()).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(dir.path().join("used/file").exists());
        let etc = fs::metadata(dir.path().join("etc")).unwrap();
        assert_eq!((etc.mtime(), etc.mtime_nsec()), (1_000_000, 5));
        assert_eq!(fs::read_dir(dir.path().join("etc")).unwrap().count(), 0);
    }
}
