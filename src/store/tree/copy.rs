//! Copying files and trees: clones where the file system can, in the kernel where it cannot, with holes kept.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::{
    Attributes, Found, Inode, Kind, Metadata, Step, Walk, Xattrs, display, open_dir, open_file, read_link, remove,
};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::Store;
use crate::task::Cancel;

/// Files up to this size are read and written: cheaper than asking for a clone first.
const SMALL: u64 = 16 << 10;
/// How much is copied between two looks at the cancel flag.
const STRETCH: u64 = 16 << 20;

/// Copies the data of an open file into an empty one, both regular.
///
/// Shares the blocks where the file system can clone; otherwise the kernel copies, and holes stay holes. `room` is the store, if any,
/// that has to have room for what is copied. Blocking.
///
/// # Errors
/// `Exhausted` on a full disk, or when there is no room; `Cancelled`; otherwise what the kernel says.
pub fn copy_data(
    from: impl AsFd,
    to: impl AsFd,
    metadata: &Metadata,
    cancel: &Cancel,
    room: Option<&Store>,
) -> Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    if metadata.size == 0 || (metadata.size > SMALL && rustix::fs::ioctl_ficlone(to, from).is_ok()) {
        return Ok(());
    }
    if metadata.allocated >= metadata.size {
        return copy_range((from, to), 0, metadata.size, cancel, room);
    }
    let mut at = 0;
    while let Some((start, end)) = next_data(from, at, metadata.size)? {
        copy_range((from, to), start, end, cancel, room)?;
        at = end;
    }
    Ok(rustix::fs::ftruncate(to, metadata.size)?)
}

/// The next stretch of data at or after `at`; `None` when only a hole is left.
fn next_data(file: BorrowedFd<'_>, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some((start, rustix::fs::seek(file, SeekFrom::Hole(start))?))),
        Err(Errno::NXIO) => Ok(None),
        // The file system does not know holes.
        Err(Errno::INVAL) => Ok(Some((at, size))),
        Err(errno) => Err(errno.into()),
    }
}

fn copy_range(
    (from, to): (BorrowedFd<'_>, BorrowedFd<'_>),
    start: u64,
    end: u64,
    cancel: &Cancel,
    room: Option<&Store>,
) -> Result<()> {
    let make_room = |bytes: u64| room.map_or(Ok(()), |store| store.make_room(bytes));
    let (mut read_at, mut write_at) = (start, start);
    while end - start > SMALL && read_at < end {
        cancel.check()?;
        make_room((end - read_at).min(STRETCH))?;
        let len = usize::try_from((end - read_at).min(STRETCH)).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), len) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // Another file system, or one that cannot: through a buffer then.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let mut buffer = Vec::with_capacity(64 << 10);
    while read_at < end {
        cancel.check()?;
        buffer.clear();
        if rustix::io::pread(from, spare_capacity(&mut buffer), read_at)? == 0 {
            return Ok(());
        }
        buffer.truncate(usize::try_from(end - read_at).unwrap_or(usize::MAX));
        make_room(buffer.len() as u64)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let written = rustix::io::pwrite(to, rest, read_at)?;
            rest = &rest[written..];
            read_at += written as u64;
        }
    }
    Ok(())
}

/// How [`copy_tree`] copies.
#[derive(Clone, Copy, Debug)]
pub struct CopyTree<'a> {
    /// Which extended attributes are copied.
    pub xattrs: fn(&CStr) -> bool,
    /// Stops the copy.
    pub cancel: &'a Cancel,
    /// The store that has to have room for what is copied, if any.
    pub room: Option<&'a Store>,
}

/// Copies everything below `from` to below `to`: files, directories, links, nodes, with owners, modes, times and attributes.
///
/// Files that are one file under several names stay so. Directories that exist are kept and take the metadata of those
/// copied; anything else in the way is replaced. Sockets are left out. The metadata of the two roots is left alone. Uses all
/// cores. Blocking.
///
/// # Errors
/// `Exhausted` on a full disk; `Cancelled`; `Unsupported` for a tree that is too deep; otherwise what the kernel says, with
/// the path. The copy is left partly made.
pub fn copy_tree(from: OwnedFd, to: OwnedFd, options: CopyTree<'_>) -> Result<()> {
    let root = Arc::new(to);
    let mut copy = Copy { options, links: HashMap::new(), files: Vec::new(), finished: Vec::new(), root: &root };
    let mut open = vec![(Arc::clone(&root), None)];
    let mut walk = Walk::new(from)?;
    while let Some(step) = walk.step()? {
        options.cancel.check()?;
        let (target, _) = open.last().expect("the root stays until the walk ends");
        match step {
            Step::Enter(found, source) => {
                let context = || format!("copy {}", display(&found.path));
                let dir = make_dir(target, &found.name).context(context)?;
                let metadata = Metadata::of(&source).context(context)?;
                let xattrs = Xattrs::of(&source, options.xattrs).context(context)?;
                open.push((Arc::new(dir), Some(Attributes::of(&metadata, xattrs))));
            }
            Step::Pass(found) => copy.files.push((found, Arc::clone(target))),
            Step::Leave => copy.finished.extend(open.pop()),
        }
        if copy.files.len() + copy.finished.len() >= BATCH {
            copy.flush()?;
        }
    }
    copy.flush()
}

/// How many files and finished directories are gathered, so that several threads have something to do.
const BATCH: usize = 128;

struct Copy<'a> {
    options: CopyTree<'a>,
    root: &'a Arc<OwnedFd>,
    files: Vec<(Found, Arc<OwnedFd>)>,
    /// Directories whose content has been met, to be given their metadata once it is copied.
    finished: Vec<(Arc<OwnedFd>, Option<Attributes>)>,
    /// The first path of each file that has several.
    links: HashMap<Inode, CString>,
}

impl Copy<'_> {
    fn flush(&mut self) -> Result<()> {
        let results: Vec<Result<Option<Metadata>>> =
            self.files.par_iter().map(|(found, target)| self.copy_single(found, target)).collect();
        for ((found, target), result) in std::mem::take(&mut self.files).into_iter().zip(results) {
            if let Some(metadata) = result? {
                self.copy_linked(&found, &target, &metadata).context(|| format!("copy {}", display(&found.path)))?;
            }
        }
        for (dir, attributes) in self.finished.drain(..) {
            if let Some(attributes) = attributes {
                attributes.apply(&dir).context(|| "set the metadata of a directory")?;
            }
        }
        Ok(())
    }

    /// Copies a file with one name; one with several is left to [`Self::copy_linked`], in order.
    fn copy_single(&self, found: &Found, target: &OwnedFd) -> Result<Option<Metadata>> {
        let context = || format!("copy {}", display(&found.path));
        let metadata = Metadata::at(&found.parent, &found.name).context(context)?;
        if metadata.links > 1 {
            return Ok(Some(metadata));
        }
        self.copy_file(found, target, &metadata).context(context)?;
        Ok(None)
    }

    fn copy_linked(&mut self, found: &Found, target: &OwnedFd, metadata: &Metadata) -> Result<()> {
        if let Some(first) = self.links.get(&metadata.inode) {
            return replacing(target, &found.name, || {
                rustix::fs::linkat(self.root, first, target, &found.name, AtFlags::empty())
            })
            .map_err(Error::from);
        }
        self.copy_file(found, target, metadata)?;
        let path = CString::new(found.path.clone()).expect("names of files hold no NUL");
        self.links.insert(metadata.inode, path);
        Ok(())
    }

    fn copy_file(&self, found: &Found, target: &OwnedFd, metadata: &Metadata) -> Result<()> {
        let name = found.name.as_c_str();
        match metadata.kind {
            Kind::File => {
                let source = open_file(&found.parent, name)?;
                let file = replacing(target, name, || create_file(target, name))?;
                copy_data(&source, &file, metadata, self.options.cancel, self.options.room)?;
                Attributes::of(metadata, Xattrs::of(&source, self.options.xattrs)?).apply(&file)?;
                return Ok(());
            }
            Kind::Symlink => {
                let link = CString::new(read_link(&found.parent, name)?).map_err(|_| Errno::INVAL)?;
                replacing(target, name, || rustix::fs::symlinkat(&link, target, name))?;
            }
            Kind::Char | Kind::Block | Kind::Fifo => {
                replacing(target, name, || make_node(target, name, metadata.kind, metadata.rdev))?;
            }
            Kind::Dir => return Err(Error::conflict("the tree changed while it was copied")),
            Kind::Socket => return Ok(()),
        }
        let xattrs = Xattrs::at(&found.parent, name, self.options.xattrs)?;
        Attributes::of(metadata, xattrs).apply_at(target, name, metadata.kind)?;
        Ok(())
    }
}

/// Creates a file that does not exist, for its owner only.
///
/// # Errors
/// `EXIST`; others as `openat(2)`.
pub fn create_file(dir: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
}

/// Opens a file that [`create_file`] made, which nobody else uses yet, for reading and writing.
///
/// # Errors
/// As `openat(2)`.
pub fn open_file_made(dir: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, name, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Makes a device node or a named pipe, for its owner only.
///
/// # Errors
/// As `mknodat(2)`.
pub fn make_node(dir: impl AsFd, name: &CStr, kind: Kind, (major, minor): (u32, u32)) -> rustix::io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(dir, name, kind.file_type(), mode, rustix::fs::makedev(major, minor))
}

/// Makes a directory, for its owner only, or takes one that exists, and opens it. Anything else of that name is replaced.
///
/// # Errors
/// As `mkdirat(2)` and `openat(2)`.
pub fn make_dir(dir: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let dir = dir.as_fd();
    match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    match open_dir(dir, name) {
        Err(Errno::NOTDIR | Errno::LOOP) => {
            remove(dir, name)?;
            rustix::fs::mkdirat(dir, name, Mode::RWXU)?;
            open_dir(dir, name)
        }
        opened => opened,
    }
}

/// Makes something under a name; what stands there already goes first.
///
/// # Errors
/// Those of `make`, and of removing what stood there.
pub fn replacing<T>(
    dir: impl AsFd,
    name: &CStr,
    mut make: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    match make() {
        Err(Errno::EXIST) => {
            remove(dir, name)?;
            make()
        }
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};

    use super::super::open_root;
    use super::*;

    fn copy(from: &std::path::Path, to: &std::path::Path) {
        let options = CopyTree { xattrs: |_| true, cancel: &Cancel::new(), room: None };
        copy_tree(open_root(from).unwrap(), open_root(to).unwrap(), options).unwrap();
    }

    #[test]
    fn a_copy_keeps_data_links_modes_and_times() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::create_dir(&to).unwrap();
        for n in 0..300 {
            std::fs::write(from.join(format!("a/b/{n}")), vec![7; n * 113]).unwrap();
        }
        std::fs::hard_link(from.join("a/b/9"), from.join("a/linked")).unwrap();
        std::os::unix::fs::symlink("b/9", from.join("a/soft")).unwrap();
        std::fs::set_permissions(from.join("a/b/9"), std::fs::Permissions::from_mode(0o4711)).unwrap();
        std::fs::write(to.join("a"), "in the way").unwrap();
        copy(&from, &to);
        for n in 0..300 {
            assert_eq!(std::fs::read(to.join(format!("a/b/{n}"))).unwrap(), vec![7; n * 113]);
        }
        let meta = |path: &str| std::fs::symlink_metadata(to.join(path)).unwrap();
        assert_eq!(meta("a/linked").ino(), meta("a/b/9").ino());
        assert_eq!(meta("a/b/9").mode() & 0o7777, 0o4711);
        assert_eq!(std::fs::read_link(to.join("a/soft")).unwrap().to_str(), Some("b/9"));
        assert_eq!(meta("a/b").modified().unwrap(), std::fs::metadata(from.join("a/b")).unwrap().modified().unwrap());
        let stray = meta("a/linked").ino();
        assert_ne!(stray, std::fs::metadata(from.join("a/linked")).unwrap().ino(), "a copy is not a link");
    }

    #[test]
    fn holes_stay_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for dir in [&from, &to] {
            std::fs::create_dir(dir).unwrap();
        }
        let mut file = std::fs::File::create(from.join("sparse")).unwrap();
        file.write_all(b"start").unwrap();
        file.write_all_at(b"middle", 5 << 20).unwrap();
        file.set_len(9 << 20).unwrap();
        copy(&from, &to);
        let mut copied = std::fs::File::open(to.join("sparse")).unwrap();
        let meta = copied.metadata().unwrap();
        assert_eq!(meta.len(), 9 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        let mut middle = [0; 6];
        copied.seek(std::io::SeekFrom::Start(5 << 20)).unwrap();
        copied.read_exact(&mut middle).unwrap();
        assert_eq!(&middle, b"middle");
    }
}
