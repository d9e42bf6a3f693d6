//! What the configuration says about the size of the build cache.

use std::time::Duration;

use super::document::{Table, Value};
use crate::error::Result;

/// Amounts of space are numbers of bytes, texts such as `10gb`, or parts of the disk such as `10%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// So many bytes.
    Bytes(u64),
    /// So much of the disk, 0 to 100.
    Percent(u8),
}

impl Space {
    /// Returns the bytes, on a disk of `total` bytes.
    #[must_use]
    pub fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

/// What the cache may take; `None` means "not said".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcLimits {
    /// So much always stays.
    pub reserved: Option<Space>,
    /// More than this goes.
    pub max_used: Option<Space>,
    /// So much of the disk has to be free.
    pub min_free: Option<Space>,
}

/// One policy, with BuildKit's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcPolicy {
    /// The kinds of records it is about, in BuildKit's words; empty means all.
    pub kinds: Vec<String>,
    /// Also what images need.
    pub all: bool,
    /// Spares what was needed within this time.
    pub keep: Option<Duration>,
    /// What the cache may take.
    pub limits: GcLimits,
}

/// Garbage collection of the build cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gc {
    /// Whether anything goes by itself; by default it does.
    pub enabled: Option<bool>,
    /// The limits of the usual policies.
    pub limits: GcLimits,
    /// Policies instead of the usual ones.
    pub policies: Vec<GcPolicy>,
    /// More than this the root directory never takes, whatever it holds.
    pub hard_cap: Option<Space>,
}

impl Gc {
    pub(super) fn read(mut table: Table<'_>) -> Result<Self> {
        let gc = Self {
            enabled: table.take("enabled").map(|v| v.bool()).transpose()?,
            limits: GcLimits::read(&mut table)?,
            hard_cap: table.take("hard-cap").map(|v| space(&v)).transpose()?,
            policies: match table.take("policy") {
                None => Vec::new(),
                Some(list) => list.list()?.into_iter().map(|v| GcPolicy::read(v.table()?)).collect::<Result<_>>()?,
            },
        };
        table.finish()?;
        Ok(gc)
    }

    /// Lays what a file with precedence says over this; policies replace policies.
    pub(super) fn overlay(&mut self, over: Self) {
        self.enabled = over.enabled.or(self.enabled);
        self.limits.reserved = over.limits.reserved.or(self.limits.reserved);
        self.limits.max_used = over.limits.max_used.or(self.limits.max_used);
        self.limits.min_free = over.limits.min_free.or(self.limits.min_free);
        self.hard_cap = over.hard_cap.or(self.hard_cap);
        super::registries::replace(&mut self.policies, over.policies);
    }
}

impl GcLimits {
    fn read(table: &mut Table<'_>) -> Result<Self> {
        Ok(Self {
            reserved: table.take("reserved-space").map(|v| space(&v)).transpose()?,
            max_used: table.take("max-used-space").map(|v| space(&v)).transpose()?,
            min_free: table.take("min-free-space").map(|v| space(&v)).transpose()?,
        })
    }
}

impl GcPolicy {
    fn read(mut table: Table<'_>) -> Result<Self> {
        let policy = Self {
            kinds: table.take("filters").map(|v| v.list_of(kind)).transpose()?.unwrap_or_default(),
            all: table.take("all").map(|v| v.bool()).transpose()?.unwrap_or(false),
            keep: table.take("keep-duration").map(|v| v.parse(duration)).transpose()?,
            limits: GcLimits::read(&mut table)?,
        };
        table.finish()?;
        Ok(policy)
    }
}

fn space(value: &Value<'_>) -> Result<Space> {
    let percent = |text: &str| text.parse().ok().filter(|percent| *percent <= 100).map(Space::Percent);
    match value.text().ok().and_then(|text| text.strip_suffix('%')) {
        Some(text) => percent(text.trim()).ok_or_else(|| value.error("expected a percentage from 0% to 100%")),
        None => value.size().map(Space::Bytes),
    }
}

/// Reads a filter of one kind of records, `type==source.local`.
fn kind(text: &str) -> Result<String, String> {
    let kind = text.strip_prefix("type").map(|rest| rest.trim_start_matches('='));
    kind.filter(|kind| !kind.is_empty()).map(str::to_owned).ok_or_else(|| format!("{text:?} is not type==KIND"))
}

/// Reads a length of time as Go writes it: `24h`, `1h30m`, `90s`; a number alone is seconds.
///
/// # Errors
/// A text that says what is expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a length of time, such as 24h or 1h30m");
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let millis = match &tail[..end] {
            "h" => number.checked_mul(3_600_000),
            "m" => number.checked_mul(60_000),
            "s" => number.checked_mul(1000),
            "ms" => Some(number),
            _ => None,
        };
        total = total.checked_add(Duration::from_millis(millis.ok_or_else(invalid)?)).ok_or_else(invalid)?;
        rest = &tail[end..];
    }
    if text.is_empty() { Err(invalid()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_written_as_in_go() {
        for (text, seconds) in [("24h", 86_400), ("1h30m10s", 5410), ("90", 90), ("1500ms", 1)] {
            assert_eq!(duration(text).unwrap().as_secs(), seconds, "{text}");
        }
        for text in ["", "h", "1d", "-1h", "1h2", "99999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn space_may_be_a_part_of_the_disk() {
        assert_eq!(Space::Percent(10).bytes(5000), 500);
        assert_eq!(Space::Bytes(7).bytes(5000), 7);
    }
}
