//! Cache mounts: directories that survive between builds.
//!
//! Each is a tree of the store that a record keeps. A file lock per directory, which the kernel releases when its process
//! dies, makes the sharing modes hold across engines: `shared` takes it together with others, `locked` and `private` alone.
//! One that is `private` and taken is not waited for: there are as many directories of a name as are used at a time.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_graph::op::Sharing;

use crate::error::{Error, Result, ResultExt as _};
use crate::solver::cache;
use crate::solver::job::Job;
use crate::state::{FileLock, LockMode};
use crate::store::Active;
use crate::store::tree::{self, Attributes, CopyTree, Metadata, Xattrs};
use crate::task::{self, Cancel};

/// How often a directory that somebody else has alone is asked for. A lock of another process announces nothing.
const RETRY: Duration = Duration::from_millis(20);

/// The number of directories that sources keep, which no mount can have.
const OF_SOURCE: i64 = -1;

/// A cache mount in use.
#[derive(Debug)]
pub(in crate::solver) struct CacheMount {
    /// Its directory.
    pub(super) dir: OwnedFd,
    /// Keeps others out, or in.
    _lock: FileLock,
    active: Active,
}

impl CacheMount {
    /// Returns the path of its directory.
    pub(in crate::solver) fn path(&self) -> &Path {
        self.active.dir()
    }
}

/// Which directory is wanted.
#[derive(Clone, Debug)]
pub(in crate::solver) struct Wanted {
    /// Names it.
    pub(in crate::solver) name: String,
    pub(in crate::solver) sharing: Sharing,
    /// Its initial content: a directory.
    pub(in crate::solver) seed: Option<Arc<OwnedFd>>,
    /// Whether a new one gets what an imported cache has of it.
    pub(in crate::solver) restore: bool,
}

impl Job {
    /// Takes a cache mount, waiting for those that have it alone.
    ///
    /// # Errors
    /// `Exhausted` on a full disk.
    pub(in crate::solver) async fn cache_mount(self: &Arc<Self>, wanted: Wanted) -> Result<CacheMount> {
        if wanted.restore {
            self.restore(&wanted.name).await?;
        }
        let mut number = 0;
        loop {
            let (job, ask) = (Arc::clone(self), wanted.clone());
            if let Some(taken) = task::blocking(move || job.try_cache_mount(&ask, number)).await? {
                return Ok(taken);
            }
            match wanted.sharing {
                Sharing::Private => number += 1,
                Sharing::Shared | Sharing::Locked => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// Takes a directory that a source keeps from build to build, alone. It is pruned like cache mounts, and no step can mount
    /// it.
    ///
    /// # Errors
    /// `Exhausted` on a full disk.
    pub(in crate::solver) async fn kept_by_source(self: &Arc<Self>, name: &str) -> Result<CacheMount> {
        let wanted = Wanted { name: name.to_owned(), sharing: Sharing::Locked, seed: None, restore: false };
        loop {
            let (job, ask) = (Arc::clone(self), wanted.clone());
            if let Some(taken) = task::blocking(move || job.try_cache_mount(&ask, OF_SOURCE)).await? {
                return Ok(taken);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Forgets cache mounts of a name. Steps that use one keep it until they end.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn forget_cache_mounts(&self, name: &str) -> Result<()> {
        let (store, name) = (self.solver.deps().store.clone(), name.to_owned());
        task::blocking(move || store.root().db().write(|tx| cache::forget_mounts_of(tx, &name))).await
    }

    /// Makes a directory of what an imported cache has of it, unless it is here. That it cannot be had is reported only.
    async fn restore(self: &Arc<Self>, name: &str) -> Result<()> {
        let (job, known) = (Arc::clone(self), name.to_owned());
        if task::blocking(move || job.known(&known, 0)).await?.is_some() {
            return Ok(());
        }
        let job = Arc::clone(self);
        let active = task::blocking(move || job.solver.deps().store.prepare(&job.lease, None)).await?;
        let restored = self.restore_mount(name, active.dir().to_owned()).await.unwrap_or(false);
        let (job, name) = (Arc::clone(self), name.to_owned());
        task::blocking(move || {
            let deps = job.solver.deps();
            let path = lock_path(job.solver.cache_mounts(), &name, 0);
            let _turn = FileLock::acquire(&path.with_extension("new"), LockMode::Exclusive)?;
            // Somebody else may have made it meanwhile; what is not kept is removed.
            if restored && job.known(&name, 0)?.is_none() {
                let now = deps.clock.now_ns();
                deps.store.root().db().write(|tx| cache::record_mount(tx, &name, 0, active.id(), now))?;
                let _ = active.keep();
            }
            Ok(())
        })
        .await
    }

    /// `None` when somebody has it. Blocking.
    fn try_cache_mount(&self, wanted: &Wanted, number: i64) -> Result<Option<CacheMount>> {
        let deps = self.solver.deps();
        let mode = match wanted.sharing {
            Sharing::Shared => LockMode::Shared,
            Sharing::Private | Sharing::Locked => LockMode::Exclusive,
        };
        let path = lock_path(self.solver.cache_mounts(), &wanted.name, number);
        let Some(lock) = FileLock::try_acquire(&path, mode)? else { return Ok(None) };
        let active = match self.known(&wanted.name, number)? {
            Some(active) => active,
            None => {
                // Several may be first at once.
                let _turn = FileLock::acquire(&path.with_extension("new"), LockMode::Exclusive)?;
                match self.known(&wanted.name, number)? {
                    Some(active) => active,
                    None => self.make(wanted, number)?,
                }
            }
        };
        let now = deps.clock.now_ns();
        deps.store.root().db().write(|tx| cache::touch_mount(tx, &wanted.name, number, now))?;
        let dir = tree::open_root(active.dir()).context(|| "open a cache mount")?;
        Ok(Some(CacheMount { dir, _lock: lock, active }))
    }

    fn known(&self, name: &str, number: i64) -> Result<Option<Active>> {
        let store = &self.solver.deps().store;
        match store.root().db().read(|connection| cache::find_mount(connection, name, number))? {
            // A power cut may have left the record alone.
            Some(id) => Ok(store.active(&self.lease, id)?.filter(|active| active.dir().is_dir())),
            None => Ok(None),
        }
    }

    fn make(&self, wanted: &Wanted, number: i64) -> Result<Active> {
        let deps = self.solver.deps();
        let active = deps.store.prepare(&self.lease, None)?;
        if let Some(seed) = &wanted.seed {
            fill(seed, &active).context(|| format!("fill the cache mount {}", wanted.name))?;
        }
        let now = deps.clock.now_ns();
        deps.store.root().db().write(|tx| cache::record_mount(tx, &wanted.name, number, active.id(), now))?;
        let id = active.keep();
        let active = deps.store.active(&self.lease, id)?;
        active.ok_or_else(|| Error::internal("a cache mount has gone while it was made"))
    }
}

fn fill(seed: &OwnedFd, active: &Active) -> Result<()> {
    let open = || tree::open_dir(seed, c".");
    let (from, to) = (open()?, tree::open_root(active.dir())?);
    let keep = |name: &std::ffi::CStr| !name.to_bytes().starts_with(b"trusted.");
    tree::copy_tree(
        open()?,
        to.try_clone()?,
        CopyTree { xattrs: keep, cancel: &Cancel::new(), room: Some(active.store()) },
    )?;
    Attributes::of(&Metadata::of(&from)?, Xattrs::of(&from, keep)?).apply(&to)?;
    Ok(())
}

fn lock_path(dir: &Path, name: &str, number: i64) -> PathBuf {
    dir.join(format!("{}-{number}", &blake3::hash(name.as_bytes()).to_hex()[..32]))
}
