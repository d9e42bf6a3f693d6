//! Which records of the build cache go by themselves: BuildKit's policies.
//!
//! Policies apply one after another. Each selects records and forgets them, the least valuable first, until the cache takes no more
//! than the policy allows; one without limits forgets all it selects.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use super::usage::{CacheKind, CacheRecord, Found, PruneFilter};
use crate::error::{Result, ResultExt as _};

/// Limits in bytes; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// So much always stays.
    pub reserved: u64,
    /// More than this goes.
    pub max_used: u64,
    /// So much of the disk has to be free.
    pub min_free: u64,
}

impl Limits {
    /// Returns what may stay of `used` bytes on a disk with `free` bytes left; `None` when there is no limit at all, so that
    /// everything that is selected goes.
    #[must_use]
    pub fn keep_bytes(self, used: u64, free: u64) -> Option<u64> {
        if self == Self::default() {
            return None;
        }
        let capped = if self.max_used == 0 { u64::MAX } else { self.max_used };
        let missing = self.min_free.saturating_sub(free);
        let freed = if missing == 0 { capped } else { capped.min(used.saturating_sub(missing)) };
        // A policy with nothing but a reserve keeps exactly that.
        let only_reserved = self.max_used == 0 && self.min_free == 0;
        Some(if only_reserved { self.reserved } else { freed.max(self.reserved) })
    }
}

/// The disk that the cache is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes.
    pub total: u64,
    /// What unprivileged programs may still write, in bytes.
    pub free: u64,
}

impl Disk {
    /// Asks about the disk below a path.
    ///
    /// # Errors
    /// When there is nothing at the path.
    pub fn below(path: &Path) -> Result<Self> {
        let stat =
            rustix::fs::statvfs(path).context(|| format!("ask how full the disk below {} is", path.display()))?;
        Ok(Self { total: stat.f_blocks * stat.f_frsize, free: stat.f_bavail * stat.f_frsize })
    }
}

/// Returns the policies that hold when nobody configured others, as BuildKit has them.
#[must_use]
pub fn default_policies(limits: Limits) -> Vec<PruneFilter> {
    const SCRATCH: u64 = 512_000_000;
    const DAY: Duration = Duration::from_hours(24);
    let scratch = PruneFilter {
        // What is easily made again goes soon.
        kinds: vec![CacheKind::Local, CacheKind::CacheMount, CacheKind::Git],
        unused_for: Some(2 * DAY),
        limits: Limits { max_used: SCRATCH, ..Limits::default() },
        ..PruneFilter::default()
    };
    let old = PruneFilter { unused_for: Some(60 * DAY), limits, ..PruneFilter::default() };
    let own = PruneFilter { limits, ..PruneFilter::default() };
    let all = PruneFilter { all: true, limits, ..PruneFilter::default() };
    vec![scratch, old, own, all]
}

/// Puts the least valuable records first: how long a record was not needed and how rarely it was ever needed count alike, by
/// rank and not by amount, as in BuildKit.
pub(super) fn least_valuable_first(found: &mut [Found]) {
    fn ranks<K: Ord + Copy>(found: &[Found], of: impl Fn(&CacheRecord) -> K) -> (BTreeMap<K, usize>, usize) {
        let values: BTreeSet<K> = found.iter().map(|found| of(&found.record)).collect();
        let count = values.len().max(1);
        (values.into_iter().zip(0..).collect(), count)
    }
    let (used, times) = ranks(found, |record| record.used_ns);
    let (uses, counts) = ranks(found, |record| record.uses);
    // Both ranks over a common denominator, so that no rounding decides.
    let value = |record: &CacheRecord| used[&record.used_ns] * counts + uses[&record.uses] * times;
    found.sort_by_key(|found| (value(&found.record), found.record.used_ns));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_a_reserve_and_free_space_decide_together() {
        let limits = |reserved, max_used, min_free| Limits { reserved, max_used, min_free };
        assert_eq!(limits(0, 0, 0).keep_bytes(50, 0), None, "no limit: everything goes");
        assert_eq!(limits(0, 40, 0).keep_bytes(50, 0), Some(40));
        assert_eq!(limits(10, 0, 0).keep_bytes(50, 0), Some(10));
        assert_eq!(limits(0, 40, 20).keep_bytes(50, 5), Some(35), "15 have to be freed");
        assert_eq!(limits(38, 40, 20).keep_bytes(50, 5), Some(38), "the reserve stays");
        assert_eq!(limits(0, 0, 20).keep_bytes(50, 100), Some(u64::MAX), "the disk has room");
        assert_eq!(limits(0, 0, 90).keep_bytes(50, 0), Some(0));
    }

    #[test]
    fn what_is_old_and_rarely_used_goes_first() {
        let found = |id: &str, used_ns, uses| Found {
            record: CacheRecord {
                id: id.to_owned(),
                kind: CacheKind::Regular,
                description: String::new(),
                size_bytes: 1,
                created_ns: 0,
                used_ns,
                uses,
                in_use: false,
                shared: false,
            },
            row: 0,
        };
        let mut all = [found("new", 90, 1), found("old but loved", 10, 50), found("old", 10, 0), found("both", 95, 70)];
        least_valuable_first(&mut all);
        let ids: Vec<&str> = all.iter().map(|found| found.record.id.as_str()).collect();
        assert_eq!(ids, ["old", "old but loved", "new", "both"]);
    }
}
