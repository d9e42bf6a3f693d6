//! What an engine does by itself, now and then: bringing things to the disk, and keeping the build cache within its limits.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use crate::config::{self, Gc, GcLimits, Space};
use crate::error::{Error, Result, ResultExt as _};
use crate::solver::gc::{Disk, Limits, default_policies};
use crate::solver::history;
use crate::solver::{CacheKind, CacheRecord, PruneFilter};
use crate::{image, solver, state, store, task};

/// How old something is before it is brought to the disk on purpose; also how often an engine looks after its store.
const SETTLED: Duration = Duration::from_secs(30);

/// The file whose time says when the build cache was last brought within its limits.
const STAMP: &str = "gc.stamp";

impl Engine {
    /// Looks after the store, now and then for as long as the engine runs. Must be called in a runtime.
    ///
    /// What was made in the last half minute waits: by then the kernel has written most of it by itself, so that this does not hold
    /// up a command that is over soon. The build cache is brought within its limits at most once in `every`, by whichever engine of
    /// the root comes first.
    pub fn keep_up(&self, every: Duration) {
        let (engine, stopping) = (self.clone(), self.tasks().stopping());
        self.tasks().spawn(async move {
            loop {
                let engine = engine.clone();
                // What failed is tried again: things stay at risk, or too large, until then.
                let _ = task::blocking(move || engine.make_durable().and(engine.limit_cache(every))).await;
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = tokio::time::sleep(SETTLED) => {}
                }
            }
        });
    }

    /// Sees to it that the root never takes more than is configured.
    pub(super) fn cap(&self) -> Result<()> {
        let Some(space) = self.config().gc.hard_cap else { return Ok(()) };
        let total = Disk::below(self.root().path())?.total;
        // The store must not keep the engine alive.
        let engine = Arc::downgrade(&self.0);
        let relieve = move |bytes| match engine.upgrade() {
            Some(inner) => Self(inner).relieve(bytes),
            None => Ok(()),
        };
        self.store().cap(space.bytes(total), Arc::new(relieve));
        Ok(())
    }

    /// Removes what nobody needs; then so much of the build cache that this many bytes are free again, the least valuable first.
    fn relieve(&self, bytes: u64) -> Result<()> {
        let freed = self.collect()?.bytes;
        let Some(left) = bytes.checked_sub(freed).filter(|left| *left > 0) else { return Ok(()) };
        let own: u64 = self.solver().usage()?.iter().map(CacheRecord::own_bytes).sum();
        // 0 would be no limit.
        let limits = Limits { max_used: own.saturating_sub(left).max(1), ..Limits::default() };
        if !self.solver().prune(&PruneFilter { limits, ..PruneFilter::default() })?.is_empty() {
            self.collect()?;
        }
        Ok(())
    }

    fn make_durable(&self) -> Result<()> {
        let settled = self.clock().now_ns() - i64::try_from(SETTLED.as_nanos()).expect("half a minute fits");
        if self.store().oldest_at_risk()?.is_none_or(|oldest| oldest > settled) {
            return Ok(());
        }
        let tables = [solver::DURABLE_TABLES, image::record::DURABLE_TABLES, store::DURABLE_TABLES].concat();
        state::mark_durable(self.root(), &tables)
    }

    fn limit_cache(&self, every: Duration) -> Result<()> {
        if self.policies().is_empty() || !self.is_due(every)? {
            return Ok(());
        }
        if !self.solver().enforce(self.policies())?.is_empty() {
            self.collect()?;
        }
        Ok(())
    }

    /// Says whether the last time was long ago, and if so, makes this the last time. A new root has nothing to collect.
    fn is_due(&self, every: Duration) -> Result<bool> {
        let path = self.root().path().join(STAMP);
        let last = match std::fs::metadata(&path).and_then(|metadata| metadata.modified()) {
            Ok(time) => Some(time),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).context(|| format!("read {}", path.display())),
        };
        let due = last.is_some_and(|last| self.clock().now().duration_since(last).is_ok_and(|age| age >= every));
        if due || last.is_none() {
            std::fs::write(&path, "").context(|| format!("write {}", path.display()))?;
        }
        Ok(due)
    }
}

/// Returns what is kept of the history of builds.
pub(super) fn history_limits(configured: &config::History) -> history::Limits {
    let usual = history::Limits::default();
    history::Limits {
        max_age: configured.max_age.unwrap_or(usual.max_age),
        max_entries: configured.max_entries.unwrap_or(usual.max_entries),
    }
}

/// Makes the policies that are configured; none when nothing is to go by itself.
///
/// # Errors
/// `InvalidArgument` for a kind of records that there is not.
pub(super) fn policies(gc: &Gc, disk: Disk) -> Result<Vec<PruneFilter>> {
    if gc.enabled == Some(false) {
        return Ok(Vec::new());
    }
    if gc.policies.is_empty() {
        return Ok(default_policies(limits_or(gc.limits, default_limits(disk), disk)));
    }
    let policies = gc.policies.iter().map(|policy| {
        let kinds = policy.kinds.iter().map(|kind| CacheKind::parse(kind)).collect::<Result<_>>();
        Ok(PruneFilter {
            all: policy.all,
            ids: Vec::new(),
            kinds: kinds.map_err(|error: Error| error.context("configuration: gc.policy"))?,
            unused_for: policy.keep,
            limits: limits_or(policy.limits, Limits::default(), disk),
        })
    });
    policies.collect()
}

/// BuildKit's defaults: a tenth of the disk but at most 10 GB stays, a fifth of the disk is to be free, and the cache takes four
/// fifths of it but at most 100 GB.
fn default_limits(disk: Disk) -> Limits {
    Limits {
        reserved: (disk.total / 10).min(10_000_000_000),
        max_used: (disk.total / 10 * 8).min(100_000_000_000),
        min_free: disk.total / 10 * 2,
    }
}

fn limits_or(configured: GcLimits, otherwise: Limits, disk: Disk) -> Limits {
    let bytes = |space: Option<Space>, otherwise| space.map_or(otherwise, |space| space.bytes(disk.total));
    Limits {
        reserved: bytes(configured.reserved, otherwise.reserved),
        max_used: bytes(configured.max_used, otherwise.max_used),
        min_free: bytes(configured.min_free, otherwise.min_free),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GcPolicy;

    const DISK: Disk = Disk { total: 1_000_000_000_000, free: 0 };

    #[test]
    fn the_usual_policies_have_buildkits_limits() {
        let policies = policies(&Gc::default(), DISK).unwrap();
        let limits = Limits { reserved: 10_000_000_000, max_used: 100_000_000_000, min_free: 200_000_000_000 };
        assert_eq!(policies.len(), 4);
        assert_eq!((policies[3].all, policies[3].limits), (true, limits));
        assert_eq!(policies[0].unused_for, Some(Duration::from_hours(48)));
    }

    #[test]
    fn what_is_configured_replaces_them() {
        let reserved = GcLimits { reserved: Some(Space::Percent(50)), ..GcLimits::default() };
        let gc = Gc { limits: reserved, ..Gc::default() };
        assert_eq!(policies(&gc, DISK).unwrap()[1].limits.reserved, 500_000_000_000);
        let policy = GcPolicy { kinds: vec!["regular".to_owned()], limits: reserved, ..GcPolicy::default() };
        let gc = Gc { policies: vec![policy], ..Gc::default() };
        let made = policies(&gc, DISK).unwrap();
        assert_eq!((made.len(), made[0].limits.max_used, made[0].kinds.as_slice()), (1, 0, &[CacheKind::Regular][..]));
        let gc = Gc { enabled: Some(false), ..gc };
        assert!(policies(&gc, DISK).unwrap().is_empty());
        let policy = GcPolicy { kinds: vec!["frontend".to_owned()], ..GcPolicy::default() };
        let gc = Gc { policies: vec![policy], ..Gc::default() };
        assert!(policies(&gc, DISK).unwrap_err().to_string().contains("frontend"));
    }
}
