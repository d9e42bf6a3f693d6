//! Removing trees, however deep they are.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};

use super::{Kind, list, open_dir};
use crate::error::ResultExt as _;

/// Below this, subdirectories are moved up to the directory that is being removed, so that the number of open directories
/// stays small.
const DEEP: usize = 64;

/// Removes a path and everything below it. What does not exist is removed already. Blocking.
///
/// # Errors
/// When the kernel refuses, with the path.
pub fn remove_tree(path: &Path) -> crate::error::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(crate::error::Error::internal(format!("{} has no parent to be removed from", path.display())));
    };
    let context = || format!("remove {}", path.display());
    let name = CString::new(name.as_encoded_bytes()).map_err(|_| crate::error::Error::invalid("a path holds a NUL"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => remove(&parent, &name).context(context),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).context(context),
    }
}

/// Removes a name and, when it is a directory, everything in it. A name that does not exist is removed already.
///
/// Other processes may remove from the same tree meanwhile. A directory that its owner may not write is made writable first.
///
/// # Errors
/// As `unlinkat(2)`.
pub fn remove(dir: impl AsFd, name: &CStr) -> Result<()> {
    let dir = dir.as_fd();
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let Some(top) = open_for_removal(dir, name)? else { return Ok(()) };
    let mut moved = 0;
    while empty(&top, &top, 0, &mut moved)? {}
    drop(top);
    gone(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
}

/// Empties a directory; says whether it moved deep subdirectories up to `top`, which then has to be emptied again.
fn empty(dir: &OwnedFd, top: &OwnedFd, depth: usize, moved: &mut u64) -> Result<bool> {
    let mut again = false;
    for entry in list(dir)? {
        let name = entry.name.as_c_str();
        if entry.kind(dir).or_else(absent)? != Kind::Dir {
            gone(rustix::fs::unlinkat(dir, name, AtFlags::empty()))?;
        } else if depth == DEEP {
            move_up(dir, name, top, moved)?;
            again = true;
        } else if let Some(child) = open_for_removal(dir.as_fd(), name)? {
            again |= empty(&child, top, depth + 1, moved)?;
            gone(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))?;
        }
    }
    Ok(again)
}

/// Moves a directory to the top under a name that nothing there has.
fn move_up(dir: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> Result<()> {
    loop {
        *moved += 1;
        let place = CString::new(format!(".removing-{}-{moved}", std::process::id())).expect("digits hold no NUL");
        match gone(rustix::fs::renameat_with(dir, name, top, place, RenameFlags::NOREPLACE)) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

fn open_for_removal(dir: std::os::fd::BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>> {
    match open_dir(dir, name) {
        Ok(child) => {
            // Root may remove from any directory; for others a directory must be writable, whatever the tree says.
            if !rustix::process::geteuid().is_root() {
                rustix::fs::fchmod(&child, Mode::RWXU)?;
            }
            Ok(Some(child))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            open_dir(dir, name).map(Some)
        }
        Err(errno) => Err(errno),
    }
}

fn gone(result: Result<()>) -> Result<()> {
    if result == Err(Errno::NOENT) { Ok(()) } else { result }
}

/// Takes what another process has removed for a file, which is removed no matter whether it is there.
fn absent(errno: Errno) -> Result<Kind> {
    if errno == Errno::NOENT { Ok(Kind::File) } else { Err(errno) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_the_limit_of_open_files_is_removed() {
        let root = tempfile::tempdir().unwrap();
        rustix::fs::mkdirat(rustix::fs::CWD, root.path().join("t"), Mode::RWXU).unwrap();
        let mut dir = super::super::open_root(&root.path().join("t")).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&dir, c"d", Mode::RWXU).unwrap();
            rustix::fs::openat(&dir, c"f", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            dir = open_dir(&dir, c"d").unwrap();
        }
        remove_tree(&root.path().join("t")).unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        remove_tree(&root.path().join("t")).unwrap();
        remove_tree(&root.path().join("no/such")).unwrap();
    }

    #[test]
    fn a_link_is_removed_and_not_what_it_points_to() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("outside/x")).unwrap();
        std::fs::create_dir(root.path().join("t")).unwrap();
        std::os::unix::fs::symlink("../outside", root.path().join("t/link")).unwrap();
        remove_tree(&root.path().join("t")).unwrap();
        assert!(root.path().join("outside/x").exists());
    }
}
