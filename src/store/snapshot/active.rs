//! Actives: trees that are still written.

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{ActiveId, LayerForm, NewSnapshot, SnapshotId, find};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::layer::keeps_xattr;
use crate::store::lease::Leased;
use crate::store::rootfs::{Access, Rootfs};
use crate::store::tree::{self, Attributes, CopyTree, Metadata, Xattrs};
use crate::store::{Lease, Store, optional};
use crate::task::Cancel;

/// A tree that is being written.
///
/// Dropped, it is gone, unless it was committed, or kept for as long as the roots of collections name it.
#[derive(Debug)]
pub struct Active {
    store: Store,
    lease: Lease,
    id: ActiveId,
    base: Option<SnapshotId>,
    fs: PathBuf,
    remove_on_drop: bool,
}

/// The states of a tree in its record.
pub(in crate::store) const ACTIVE: i64 = 0;
pub(in crate::store) const COMMITTED: i64 = 1;
pub(in crate::store) const REMOVING: i64 = 2;

impl Store {
    /// Makes a tree to be written, on a snapshot or on nothing. Blocking; the copying driver copies the parent.
    ///
    /// The root takes the metadata of the parent's; on nothing, it is 0755 and root's.
    ///
    /// # Errors
    /// `NotFound` when there is no such snapshot; `Exhausted` on a full disk, or when the hard cap leaves no room.
    pub fn prepare(&self, lease: &Lease, base: Option<SnapshotId>) -> Result<Active> {
        self.make_room(0)?;
        let active = self.start_active(lease, base)?;
        if let (false, Some(base)) = (self.driver().is_overlay(), base) {
            let below = self.top_dir(base)?;
            let options = CopyTree { xattrs: keeps_xattr, cancel: &Cancel::new(), room: Some(self) };
            tree::copy_tree(tree::open_root(&below)?, tree::open_root(&active.fs)?, options)
                .context(|| format!("copy snapshot {base}"))?;
            // The root's own times changed with everything that was put into it.
            active.take_root_attributes(&below)?;
            std::fs::write(active.copied_mark(), "").context(|| "mark the end of a copy")?;
        }
        Ok(active)
    }

    /// Makes an empty tree with its record.
    pub(in crate::store) fn start_active(&self, lease: &Lease, base: Option<SnapshotId>) -> Result<Active> {
        let id = self.root().db().write(|tx| {
            if let Some(base) = base {
                find(tx, "id = ?1", base)?.ok_or_else(|| base.missing())?;
            }
            tx.prepare_cached("INSERT INTO trees (state, base, created_at) VALUES (?1, ?2, ?3)")?.execute((
                ACTIVE,
                base,
                self.now(),
            ))?;
            let id = tx.last_insert_rowid();
            lease.hold(tx, Leased::Tree, id)?;
            Ok(ActiveId(id))
        })?;
        let (store, lease, fs) = (self.clone(), lease.clone(), self.tree_fs(id.0));
        let active = Active { store, lease, id, base, fs, remove_on_drop: true };
        active.make_dirs().context(|| format!("make active {id}"))?;
        Ok(active)
    }

    /// Opens an active that was kept, and leases it; `None` when it is gone. Dropping it does not remove it. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn active(&self, lease: &Lease, id: ActiveId) -> Result<Option<Active>> {
        let base = self.leased(lease, Leased::Tree, |connection| {
            let mut find = connection.prepare_cached("SELECT base FROM trees WHERE id = ?1 AND state = ?2")?;
            let base = optional(find.query_row((id, ACTIVE), |row| row.get::<_, Option<SnapshotId>>(0)))?;
            Ok(base.map(|base| (id.0, base)))
        })?;
        Ok(base.map(|base| {
            let (store, lease, fs) = (self.clone(), lease.clone(), self.tree_fs(id.0));
            Active { store, lease, id, base, fs, remove_on_drop: false }
        }))
    }

    /// The directory a snapshot is mounted from: all of it for the copying driver, else its topmost layer.
    pub(in crate::store) fn top_dir(&self, id: SnapshotId) -> Result<PathBuf> {
        let tree = self.root().db().read(|connection| {
            let mut find = connection.prepare_cached("SELECT tree FROM snapshots WHERE id = ?1")?;
            optional(find.query_row([id], |row| row.get(0)))?.ok_or_else(|| id.missing())
        })?;
        Ok(self.tree_fs(tree))
    }
}

impl Active {
    /// Returns its number, under which a kept one is found again.
    #[must_use]
    pub fn id(&self) -> ActiveId {
        self.id
    }

    /// Returns the snapshot it lies on.
    #[must_use]
    pub fn base(&self) -> Option<SnapshotId> {
        self.base
    }

    /// Returns the directory of the tree: with overlay it holds the changes only, in overlay's own form.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.fs
    }

    /// Returns the root file system with the tree as its writable part. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn rootfs(&self) -> Result<Rootfs> {
        Ok(match self.store.rootfs(self.base)? {
            Rootfs::Dir { .. } => Rootfs::Dir { path: self.fs.clone(), writable: true },
            Rootfs::Overlay { lowers, user_xattrs, .. } => {
                Rootfs::Overlay { lowers, upper: Some((self.fs.clone(), self.work())), user_xattrs }
            }
        })
    }

    /// Opens a directory of the root file system to be written directly, without a mount in between, which is faster where
    /// many files are made. Symbolic links in `path` are resolved within the root. Blocking.
    ///
    /// With overlay, the directory holds only what this tree changes: a new file replaces one below of the same name, and a
    /// new directory merges with one below. Directories that are missing are made as `missing` says. The active must not be
    /// mounted, neither now nor while the directory is written.
    ///
    /// # Errors
    /// `InvalidArgument` when something on the way is no directory; otherwise what the kernel says.
    pub fn dir_at(&self, path: &Path, missing: &Attributes) -> Result<OwnedFd> {
        let context = || format!("open directory {} in active {}", path.display(), self.id);
        let overlay = self.store.driver().is_overlay();
        let root = if overlay { self.rootfs()?.mount(Access::Volatile)? } else { tree::open_root(&self.fs)? };
        let dir = make_path(&root, path, missing).context(context)?;
        if !overlay {
            return Ok(dir);
        }
        // Setting a mode again makes overlay copy the directory up, with all above it.
        let mode = Metadata::of(&dir).context(context)?.mode;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode)).context(context)?;
        let real = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).context(context)?;
        drop((dir, root));
        let real = Path::new(".").join(real.strip_prefix("/").unwrap_or(&real));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        tree::openat2(tree::open_root(&self.fs)?, &real, flags, Mode::empty(), resolve).context(context)
    }

    /// Opens the layer of a snapshot, so that unchanged files of it can be linked into this tree instead of being copied.
    ///
    /// What is linked must never be written again, here or there. The snapshot stays as long as this is active. Blocking; the
    /// first time, reads the metadata of the whole layer.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn reuse(&self, donor: SnapshotId) -> Result<OwnedFd> {
        let layer = self.store.root().db().write(|tx| {
            let mut find = tx.prepare_cached("SELECT layer FROM snapshots WHERE id = ?1")?;
            let layer: i64 = optional(find.query_row([donor], |row| row.get(0)))?.ok_or_else(|| donor.missing())?;
            self.lease.hold(tx, Leased::Snapshot, donor.0)?;
            tx.prepare_cached("INSERT OR IGNORE INTO loans (tree, donor) VALUES (?1, ?2)")?
                .execute((self.id, layer))?;
            Ok(layer)
        })?;
        // Before a file has names elsewhere, because then it is no longer seen whose it is.
        self.store.measure(layer)?;
        tree::open_root(&self.store.tree_fs(layer))
    }

    /// Opens a tree that snapshots hold, as [`Self::reuse`] does: the caller holds a lease on one of them.
    pub(in crate::store) fn borrow(&self, tree: i64) -> Result<OwnedFd> {
        self.store.root().db().write(|tx| {
            let sql = "INSERT OR IGNORE INTO loans (tree, donor) VALUES (?1, ?2)";
            tx.prepare_cached(sql)?.execute((self.id, tree))?;
            Ok(())
        })?;
        self.store.measure(tree)?;
        tree::open_root(&self.store.tree_fs(tree))
    }

    /// Makes it a snapshot, leased as the active was. Blocking.
    ///
    /// It must not be mounted any more.
    ///
    /// # Errors
    /// When the database fails.
    pub fn commit(self) -> Result<SnapshotId> {
        self.commit_with(None)
    }

    /// Makes it a snapshot, as [`Self::commit`] does, with a time that stands for what it was made of: one that is the same
    /// whenever and wherever the same is made again, in nanoseconds since 1970.
    ///
    /// # Errors
    /// When the database fails.
    pub fn commit_as_of(self, as_of: i64) -> Result<SnapshotId> {
        self.commit_with(Some(as_of))
    }

    fn commit_with(self, as_of: Option<i64>) -> Result<SnapshotId> {
        let parent = self.base;
        let form = if parent.is_none() { LayerForm::Whole } else { LayerForm::Changes };
        let (made_on, diff_id, content, tar_size) = (None, None, None, None);
        let new = |tree| NewSnapshot { tree, layer: tree, form, parent, made_on, diff_id, content, tar_size, as_of };
        self.commit_as(new)
    }

    pub(in crate::store) fn commit_as(mut self, new: impl FnOnce(i64) -> NewSnapshot) -> Result<SnapshotId> {
        tree::remove_tree(&self.work())?;
        // What was written is not kept beyond the cap. Measuring it costs a look at each file.
        if self.store.is_capped() {
            self.store.keep_room(self.store.active_usage(&self)?)?;
        }
        let snapshot = self.store.root().db().write(|tx| {
            let snapshot = self.store.insert_snapshot(tx, &new(self.id.0))?;
            tx.prepare_cached("UPDATE trees SET state = ?2, base = NULL WHERE id = ?1")?
                .execute((self.id, COMMITTED))?;
            self.lease.hold(tx, Leased::Snapshot, snapshot.0)?;
            Ok(snapshot)
        })?;
        self.remove_on_drop = false;
        Ok(snapshot)
    }

    /// Lets it live on, for as long as the roots of collections name it: see [`Store::active`].
    #[must_use]
    pub fn keep(mut self) -> ActiveId {
        self.remove_on_drop = false;
        self.id
    }

    /// Removes it, also one that was kept. Blocking. It must not be mounted any more.
    ///
    /// # Errors
    /// When something cannot be removed; a collection tries again.
    pub fn remove(mut self) -> Result<()> {
        self.remove_on_drop = false;
        self.clear()
    }

    /// Copies it to another active on the same snapshot, so that a container can be committed and run on. Blocking.
    ///
    /// Nothing should write it meanwhile.
    ///
    /// # Errors
    /// `Exhausted` on a full disk.
    pub fn fork(&self, lease: &Lease, cancel: &Cancel) -> Result<Self> {
        let fork = self.store.start_active(lease, self.base)?;
        let xattrs: fn(&CStr) -> bool = |name| keeps_xattr(name) || name.to_bytes().ends_with(b".overlay.opaque");
        let options = CopyTree { xattrs, cancel, room: Some(&self.store) };
        tree::copy_tree(tree::open_root(&self.fs)?, tree::open_root(&fork.fs)?, options)
            .context(|| format!("copy active {}", self.id))?;
        fork.take_root_attributes(&self.fs)?;
        Ok(fork)
    }

    /// Returns the store that the tree is in.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(in crate::store) fn copied_mark(&self) -> PathBuf {
        self.store.copied_mark(self.id.0)
    }

    /// For a tree that got files from elsewhere, so that their age says nothing.
    pub(in crate::store) fn forget_what_was_copied(&self) -> Result<()> {
        match std::fs::remove_file(self.copied_mark()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(|| "unmark a copy"),
            _ => Ok(()),
        }
    }

    pub(in crate::store) fn take_root_attributes(&self, from: &Path) -> Result<()> {
        root_attributes(from)?.apply(tree::open_root(&self.fs)?).context(|| "set the metadata of the root")?;
        Ok(())
    }

    fn work(&self) -> PathBuf {
        self.store.tree_dir(self.id.0).join("work")
    }

    fn make_dirs(&self) -> Result<()> {
        let dir = self.store.tree_dir(self.id.0);
        // After a power cut a number may have been forgotten with its record, but not its directory.
        tree::remove_tree(&dir)?;
        let root_only = Mode::RWXU;
        rustix::fs::mkdir(&dir, root_only)?;
        rustix::fs::mkdir(&self.fs, root_only)?;
        if self.store.driver().is_overlay() {
            rustix::fs::mkdir(self.work(), root_only)?;
        }
        match self.base {
            Some(base) => self.take_root_attributes(&self.store.top_dir(base)?),
            None => Ok(rustix::fs::chmod(&self.fs, Mode::from_raw_mode(0o755))?),
        }
    }

    fn clear(&self) -> Result<()> {
        tree::remove_tree(&self.store.tree_dir(self.id.0))?;
        self.store.root().db().write(|tx| {
            tx.prepare_cached("DELETE FROM trees WHERE id = ?1 AND state = ?2")?.execute((self.id, ACTIVE))?;
            Ok(())
        })
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if self.remove_on_drop {
            // What is left when this fails is not leased much longer, and then collected.
            let _ = self.clear();
        }
    }
}

impl Store {
    /// A file that is younger than everything the copying driver copied into a tree, and older than every change of it.
    pub(in crate::store) fn copied_mark(&self, tree: i64) -> PathBuf {
        self.tree_dir(tree).join("copied")
    }
}

pub(super) fn root_attributes(dir: &Path) -> Result<Attributes> {
    let root = tree::open_root(dir)?;
    let context = || format!("read {}", dir.display());
    Ok(Attributes::of(&Metadata::of(&root).context(context)?, Xattrs::of(&root, keeps_xattr).context(context)?))
}

/// Opens a directory within a root, making what is missing.
fn make_path(root: &OwnedFd, path: &Path, missing: &Attributes) -> Result<OwnedFd> {
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        tree::openat2(root, path, flags, Mode::empty(), resolve)
    };
    let mut reached = PathBuf::from(".");
    let mut dir = open(&reached)?;
    for component in path.components() {
        let Component::Normal(name) = component else {
            if component == Component::ParentDir {
                return Err(Error::invalid("the path must not contain .."));
            }
            continue;
        };
        reached.push(name);
        dir = match open(&reached) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&dir, name.as_bytes(), Mode::RWXU)?;
                let made = open(&reached)?;
                missing.apply(&made)?;
                made
            }
            Err(Errno::NOTDIR) => {
                return Err(Error::invalid(format!("{} is not a directory", reached.display())));
            }
            opened => opened?,
        };
    }
    Ok(dir)
}
