//! The build cache as `builder prune`, `system df` and `du` see it.

use std::time::Duration;

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

/// What a record of the build cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// The result of a step.
    Regular,
    /// A cache mount.
    CacheMount,
}

impl CacheKind {
    /// Returns BuildKit's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::CacheMount => "exec.cachemount",
        }
    }
}

/// Which records are forgotten.
#[derive(Clone, Debug, Default)]
pub struct PruneFilter {
    /// Only records whose id begins so.
    pub ids: Vec<String>,
    /// Only records of these kinds; empty means all.
    pub kinds: Vec<CacheKind>,
    /// Only records that were not needed for so long.
    pub unused_for: Option<Duration>,
    /// Stop when all records together take no more than this, in bytes.
    pub keep_bytes: Option<u64>,
}
