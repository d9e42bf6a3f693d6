//! COPY, ADD, WORKDIR and what else changes files without a process: straight into a new layer.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_graph::VertexId;
use kiln_graph::op::{FileAction, FileOp, Owner};

use super::make;
use super::times::{self, Touched};
use crate::error::{Result, ResultExt as _};
use crate::solver::cache;
use crate::solver::copy::{Listing, Ownership, Target, Writer};
use crate::solver::identify::{Use, uses};
use crate::solver::job::{Job, Stop, Taken};
use crate::solver::key::Key;
use crate::solver::settle::Made;
use crate::store::tree::{Attributes, Time, Xattrs};
use crate::store::{Access, Active, SnapshotId};
use crate::task::{self, Cancel};

impl Job {
    /// Carries the actions out on the base, which gives one layer.
    pub(super) async fn run_file(self: &Arc<Self>, id: VertexId, file: &FileOp, op: Key, stop: &Stop) -> Result<Made> {
        let vertex = self.graph.vertex(id);
        let base = self.file_system(vertex, file.base)?;
        let below = self.materialize(&base).await?;
        let mut taken = Vec::new();
        for (number, used) in uses(&vertex.op, vertex.inputs.len()).into_iter().enumerate() {
            if let Use::Paths(from, copy) = used {
                let take = self.take(id, (id.index(), number), from, copy);
                taken.push(tokio::select! {
                    taken = take => taken?,
                    () = stop.stopped() => return Err(crate::solver::job::cancelled()),
                });
            }
        }
        let (job, actions, cancel) = (Arc::clone(self), file.actions.clone(), stop.flag().clone());
        let lower = base.clone();
        let (snapshot, listing) = task::blocking(move || {
            let as_of = taken.iter().map(|taken| taken.selection.newest_ns()).fold(job.as_of(&lower)?, i64::max);
            FileStep { job: &job, op, below, as_of, cancel: &cancel }.carry_out(&actions, &taken)
        })
        .await?;
        let name = vertex.meta.name.clone();
        Ok(Made { snapshot, base, listing, name, has_digests: false })
    }
}

fn time(ns: i64) -> Time {
    let nanos = u32::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or_default();
    Time { seconds: ns.div_euclid(1_000_000_000), nanos }
}

struct FileStep<'a> {
    job: &'a Job,
    op: Key,
    below: Option<SnapshotId>,
    /// The time that what is made here has, and the layer; see [`super::times`].
    as_of: i64,
    cancel: &'a Cancel,
}

impl FileStep<'_> {
    /// Blocking.
    fn carry_out(&self, actions: &[FileAction], taken: &[Arc<Taken>]) -> Result<(SnapshotId, Option<Vec<u8>>)> {
        let started_ns = self.job.progress.now_ns();
        let store = &self.job.solver.deps().store;
        let active = store.prepare(&self.job.lease, self.below)?;
        let below = store.rootfs(self.below)?.mount(Access::ReadOnly)?;
        let copies = !taken.is_empty();
        let donor = if copies { store.root().db().read(|c| cache::find_listing(c, &self.op))? } else { None };
        let target = Target { active: &active, below, donor };
        let writer = Writer::new(target, time(self.as_of), self.cancel)?;
        let mut sources = taken.iter();
        for action in actions {
            self.cancel.check()?;
            match (action, sources.as_slice().first()) {
                (FileAction::Copy(copy), Some(taken)) => {
                    sources.next();
                    let owner = copy.owner.as_ref().map(|owner| self.owner(&active, owner)).transpose()?;
                    writer.copy(&taken.tree, &taken.selection, copy, owner)?;
                }
                (other, _) => self.make(&active, other)?,
            }
        }
        drop(writer);
        let listing = copies.then(|| Listing::of(taken.iter().map(|taken| &taken.selection)).encode());
        times::settle(active.dir(), Touched::Dirs, self.as_of, started_ns)?;
        Ok((active.commit_as_of(self.as_of)?, listing))
    }

    /// Looks an owner up in what this layer and those below hold.
    fn owner(&self, active: &Active, owner: &Owner) -> Result<Ownership> {
        if !owner.needs_lookup() {
            return make::ownership(active_root(active)?, owner);
        }
        make::ownership(active.rootfs()?.mount(Access::ReadOnly)?, owner)
    }

    fn make(&self, active: &Active, action: &FileAction) -> Result<()> {
        let root = active.rootfs()?.mount(Access::Volatile)?;
        let attributes = |mode: u32, owner: &Option<Owner>, mtime_ns: &Option<i64>| -> Result<Attributes> {
            let owner = owner.as_ref().map(|owner| make::ownership(&root, owner)).transpose()?;
            let Ownership { uid, gid } = owner.unwrap_or(Ownership { uid: 0, gid: 0 });
            Ok(Attributes { mode, uid, gid, mtime: time(mtime_ns.unwrap_or(self.as_of)), xattrs: Xattrs::default() })
        };
        match action {
            FileAction::Copy(_) => Ok(()),
            FileAction::Mkfile { path, data, mode, owner, mtime_ns } => {
                let owning = if owner.is_some() { make::Owning::Given } else { make::Owning::Kept };
                make::file(&root, path, data, &attributes(*mode, owner, mtime_ns)?, owning)
            }
            FileAction::Mkdir { path, mode, parents, owner, mtime_ns } => {
                make::directory(&root, path, *parents, &attributes(*mode, owner, mtime_ns)?)
            }
            FileAction::Symlink { path, target, owner, mtime_ns } => {
                make::symlink(&root, path, target, &attributes(0o777, owner, mtime_ns)?)
            }
            FileAction::Remove { path, allow_missing, wildcard } => {
                make::remove(&root, path, *allow_missing, *wildcard)
            }
        }
    }
}

fn active_root(active: &Active) -> Result<OwnedFd> {
    crate::store::tree::open_root(active.dir()).context(|| "open the new layer")
}
