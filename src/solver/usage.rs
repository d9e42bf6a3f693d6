//! The build cache as `builder prune`, `system df` and `du` see it.

use std::collections::HashSet;
use std::time::Duration;

use super::contexts::KEPT;
use super::gc::{self, Disk, Limits};
use super::{Solver, cache};
use crate::error::{Error, Result};
use crate::store::{Roots, SnapshotId};

/// One record of the build cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRecord {
    /// Names it.
    pub id: String,
    /// What it is.
    pub kind: CacheKind,
    /// What progress showed of the step.
    pub description: String,
    /// What it takes on the disk, in bytes.
    pub size_bytes: u64,
    /// When it was made, in nanoseconds since 1970.
    pub created_ns: i64,
    /// When it was last needed.
    pub used_ns: i64,
    /// How often it was found.
    pub uses: u64,
    /// Whether a build needs it now.
    pub in_use: bool,
    /// Whether an image or a container needs its layer too, so that pruning frees nothing.
    pub shared: bool,
}

impl CacheRecord {
    /// What forgetting it would free, in bytes.
    #[must_use]
    pub fn own_bytes(&self) -> u64 {
        if self.shared { 0 } else { self.size_bytes }
    }
}

/// What a record of the build cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// The result of a step.
    Regular,
    /// A cache mount.
    CacheMount,
    /// A repository that builds fetch from.
    Git,
    /// What was transferred of a client's directory.
    Local,
}

impl CacheKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Regular, Self::CacheMount, Self::Git, Self::Local];

    /// Reads BuildKit's word.
    ///
    /// # Errors
    /// `InvalidArgument` for others.
    pub fn parse(text: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        known.ok_or_else(|| {
            let all = Self::ALL.map(Self::as_str).join(", ");
            Error::invalid(format!("no record of the build cache has type {text:?}, only {all}"))
        })
    }

    /// Returns BuildKit's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::CacheMount => "exec.cachemount",
            Self::Git => "source.git.checkout",
            Self::Local => "source.local",
        }
    }
}

/// Which records are forgotten.
#[derive(Clone, Debug, Default)]
pub struct PruneFilter {
    /// Also records whose layers images need, which frees nothing as long as the images are there.
    pub all: bool,
    /// Only records whose id begins so.
    pub ids: Vec<String>,
    /// Only records of these kinds; empty means all.
    pub kinds: Vec<CacheKind>,
    /// Only records that were not needed for so long.
    pub unused_for: Option<Duration>,
    /// Stop when what nothing but the build cache needs takes no more than these allow.
    pub limits: Limits,
}

/// A record with what is needed to forget it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) record: CacheRecord,
    pub(super) row: i64,
}

impl Solver {
    /// Lists the build cache, the longest unused first. Blocking; measures what nobody has measured yet.
    ///
    /// # Errors
    /// When the database fails.
    pub fn usage(&self) -> Result<Vec<CacheRecord>> {
        Ok(self.records()?.into_iter().map(|found| found.record).collect())
    }

    /// Forgets what a filter takes and returns it; what that took is freed by the next collection of the store. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub fn prune(&self, filter: &PruneFilter) -> Result<Vec<CacheRecord>> {
        self.enforce(std::slice::from_ref(filter))
    }

    /// Applies policies, one after another, and returns what was forgotten; see [`Self::prune`]. Blocking.
    ///
    /// # Errors
    /// When the database or the file system fails.
    pub fn enforce(&self, policies: &[PruneFilter]) -> Result<Vec<CacheRecord>> {
        let mut free = Disk::below(self.deps().store.root().path())?.free;
        let mut found = self.records()?;
        let mut all = Vec::new();
        let now_ns = self.deps().clock.now_ns();
        for policy in policies {
            for one in choose(&mut found, policy, free, now_ns) {
                self.deps().store.root().db().write(|tx| match one.record.kind {
                    CacheKind::Regular => cache::forget(tx, one.row),
                    CacheKind::CacheMount | CacheKind::Git | CacheKind::Local => cache::forget_mount(tx, one.row),
                })?;
                // It is as good as free: the collection comes next.
                free += one.record.own_bytes();
                all.push(one.record);
            }
        }
        Ok(all)
    }

    /// Says of each record what would become of it if policies were applied now: the number of the policy that would forget it, or
    /// `None` for what stays. Blocking.
    ///
    /// # Errors
    /// As [`Self::enforce`].
    pub fn foresee(&self, policies: &[PruneFilter]) -> Result<Vec<(CacheRecord, Option<usize>)>> {
        let mut free = Disk::below(self.deps().store.root().path())?.free;
        let mut found = self.records()?;
        let now_ns = self.deps().clock.now_ns();
        let mut all = Vec::new();
        for (number, policy) in policies.iter().enumerate() {
            for one in choose(&mut found, policy, free, now_ns) {
                free += one.record.own_bytes();
                all.push((one.record, Some(number)));
            }
        }
        all.extend(found.into_iter().map(|one| (one.record, None)));
        Ok(all)
    }

    fn records(&self) -> Result<Vec<Found>> {
        let store = &self.deps().store;
        let db = store.root().db();
        let (steps, mounts) = db.read(|connection| Ok((cache::all(connection)?, cache::all_mounts(connection)?)))?;
        let of_images = self.snapshots_of_images()?;
        let mut seen = HashSet::new();
        let mut records = Vec::with_capacity(steps.len() + mounts.len());
        for step in steps {
            // What two steps made alike takes its space once.
            let size_bytes = if seen.insert(step.snapshot) { store.layer_size(step.snapshot)? } else { 0 };
            let record = CacheRecord {
                id: format!("step{}", step.id),
                kind: CacheKind::Regular,
                description: step.name,
                size_bytes,
                created_ns: step.created_ns,
                used_ns: step.used_ns,
                uses: step.uses,
                in_use: store.is_in_use(step.snapshot)?,
                shared: of_images.contains(&step.snapshot),
            };
            records.push(Found { record, row: step.id });
        }
        let lease = store.lease("list the build cache")?;
        for mount in mounts {
            let Some(active) = store.active(&lease, mount.active)? else { continue };
            let (kind, description) = match (mount.number, mount.name.strip_prefix(KEPT)) {
                (..0, _) => (CacheKind::Git, mount.name),
                (_, Some(key)) => (CacheKind::Local, format!("local source {}", key.get(..12).unwrap_or(key))),
                (_, None) => (CacheKind::CacheMount, format!("cache mount {}", mount.name)),
            };
            let record = CacheRecord {
                id: format!("mount{}", mount.id),
                kind,
                description,
                size_bytes: store.active_usage(&active)?,
                created_ns: mount.created_ns,
                used_ns: mount.used_ns,
                uses: mount.uses,
                in_use: false,
                shared: false,
            };
            records.push(Found { record, row: mount.id });
        }
        records.sort_by_key(|found| found.record.used_ns);
        Ok(records)
    }

    /// All snapshots that images lie on.
    fn snapshots_of_images(&self) -> Result<HashSet<SnapshotId>> {
        let store = &self.deps().store;
        let mut roots = Roots::default();
        store.root().db().read(|connection| self.deps().images.add_roots(connection, &mut roots))?;
        let mut all = HashSet::new();
        for top in roots.snapshots {
            let mut next = Some(top);
            while let Some(id) = next.filter(|id| all.insert(*id)) {
                next = store.parent_of(id)?;
            }
        }
        Ok(all)
    }
}

/// Takes those out of `found` that a filter forgets, the least valuable first.
fn choose(found: &mut Vec<Found>, filter: &PruneFilter, free: u64, now_ns: i64) -> Vec<Found> {
    gc::least_valuable_first(found);
    let mut total: u64 = found.iter().map(|found| found.record.own_bytes()).sum();
    let keep = filter.limits.keep_bytes(total, free);
    let (mut kept, mut chosen) = (Vec::new(), Vec::new());
    for one in found.drain(..) {
        let enough = keep.is_some_and(|keep| total <= keep);
        if enough || !filter.takes(&one.record, now_ns) {
            kept.push(one);
            continue;
        }
        total -= one.record.own_bytes();
        chosen.push(one);
    }
    *found = kept;
    chosen
}

impl PruneFilter {
    fn takes(&self, record: &CacheRecord, now_ns: i64) -> bool {
        let unused_ns = now_ns.saturating_sub(record.used_ns);
        let old = self.unused_for.is_none_or(|time| unused_ns >= i64::try_from(time.as_nanos()).unwrap_or(i64::MAX));
        let named = self.ids.is_empty() || self.ids.iter().any(|id| record.id.starts_with(id.as_str()));
        let kind = self.kinds.is_empty() || self.kinds.contains(&record.kind);
        old && named && kind && !record.in_use && (self.all || !record.shared)
    }
}
