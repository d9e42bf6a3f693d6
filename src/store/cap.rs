//! The hard cap: the most that everything below a root directory may take on the disk.
//!
//! It holds while things are written, and asking is cheap: what the root takes is measured now and then, and between two
//! measurements it has grown by no more than the disk's free space has shrunk, or by what this process has written, whichever is more
//! (others may give space back meanwhile). Only when that says that there may be no room is the root measured again; only when there
//! is none indeed, is something removed; and only when that is not enough, is what asks refused.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::Store;
use crate::error::{Error, Result, ResultExt as _};

/// How long a measurement holds: space that others give back would hide what the root takes.
const HOLDS: Duration = Duration::from_secs(10);

/// How fast others may write, in bytes a second: whoever watches them looks again before they could have filled what is left.
const FASTEST: u64 = 1 << 30;

/// The shortest and the longest time between two looks at those who write.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// Removes so many bytes of what can be spared, if it can.
pub type Relieve = Arc<dyn Fn(u64) -> Result<()> + Send + Sync>;

/// The cap of a store.
pub(super) struct Cap {
    max_bytes: u64,
    relieve: Relieve,
    measured: Mutex<Option<Measured>>,
}

impl fmt::Debug for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cap").field("max_bytes", &self.max_bytes).finish_non_exhaustive()
    }
}

/// What the root took, what the disk had left then, and what this process has written since, in bytes.
#[derive(Clone, Copy, Debug)]
struct Measured {
    taken: u64,
    free: u64,
    written: u64,
    at_ns: i64,
}

impl Measured {
    /// What it takes now at most.
    fn at_most(self, free: u64) -> u64 {
        self.taken + self.free.saturating_sub(free).max(self.written)
    }
}

impl Cap {
    fn measured(&self) -> MutexGuard<'_, Option<Measured>> {
        self.measured.lock().expect("no panic happens while the lock is held")
    }
}

impl Store {
    /// Sets the most that the root may take; can be done once. `relieve` is called, on the blocking pool, by whoever would go beyond
    /// it.
    pub fn cap(&self, max_bytes: u64, relieve: Relieve) {
        // A second cap would be a mistake of the program's, and the first one holds.
        let _ = self.0.cap.set(Cap { max_bytes, relieve, measured: Mutex::default() });
    }

    /// Whether there is a cap.
    #[must_use]
    pub fn is_capped(&self) -> bool {
        self.0.cap.get().is_some()
    }

    /// Makes sure that so many bytes may come in. Blocking; without a cap, or far from it, it costs next to nothing.
    ///
    /// # Errors
    /// `Exhausted`, saying what to do, when there is no room and not enough could be removed.
    pub fn make_room(&self, bytes: u64) -> Result<()> {
        match self.0.cap.get() {
            Some(cap) => self.check(cap, bytes, bytes).map(drop),
            None => Ok(()),
        }
    }

    /// Makes sure that what processes wrote may stay, and says after how long to ask again: the less room there is, the sooner. `None`
    /// without a cap. Blocking.
    ///
    /// # Errors
    /// As [`Self::make_room`].
    pub fn watch_room(&self) -> Result<Option<Duration>> {
        self.0.cap.get().map(|cap| self.check(cap, 0, 0).map(next_look)).transpose()
    }

    /// Makes sure that so many bytes, which have come in already, may stay. As [`Self::make_room`].
    pub(super) fn keep_room(&self, bytes: u64) -> Result<()> {
        match self.0.cap.get() {
            Some(cap) => self.check(cap, bytes, 0).map(drop),
            None => Ok(()),
        }
    }

    /// `written` is what is not measured yet, `wanted` the part of it that is still to come. Returns how much room is left, in bytes.
    fn check(&self, cap: &Cap, written: u64, wanted: u64) -> Result<u64> {
        let (free, now_ns) = (self.free()?, self.now());
        let holds_ns = i64::try_from(HOLDS.as_nanos()).unwrap_or(i64::MAX);
        let mut measured = cap.measured();
        if let Some(known) = measured.as_mut().filter(|known| now_ns - known.at_ns < holds_ns) {
            known.written = known.written.saturating_add(written);
            if let Some(left) = cap.max_bytes.checked_sub(known.at_most(free).saturating_add(wanted)) {
                return Ok(left);
            }
        }
        drop(measured);
        let left = |taken: u64| cap.max_bytes.checked_sub(taken.saturating_add(wanted));
        let mut taken = self.measure_all(cap, wanted)?;
        if let Some(left) = left(taken) {
            return Ok(left);
        }
        (cap.relieve)(taken.saturating_add(wanted) - cap.max_bytes)?;
        taken = self.measure_all(cap, wanted)?;
        if let Some(left) = left(taken) {
            return Ok(left);
        }
        Err(Error::exhausted(format!(
            "the hard cap is reached: everything below {} takes {} MB, {} MB more are wanted, and the cap is {} MB (remove images \
             and build cache with `kiln system prune -a`, or raise hard-cap of [gc] in the configuration)",
            self.root().path().display(),
            taken.div_ceil(1_000_000),
            wanted.div_ceil(1_000_000),
            cap.max_bytes / 1_000_000,
        )))
    }

    /// `coming` is what will be written when there is room for it.
    fn measure_all(&self, cap: &Cap, coming: u64) -> Result<u64> {
        // The free space first: what comes in meanwhile counts twice rather than not at all.
        let (free, at_ns) = (self.free()?, self.now());
        let taken = self.usage()?.total();
        *cap.measured() = Some(Measured { taken, free, written: coming, at_ns });
        Ok(taken)
    }

    fn free(&self) -> Result<u64> {
        let stat = rustix::fs::fstatvfs(self.root().dir()).context(|| "ask how full the disk is")?;
        Ok(stat.f_bfree * stat.f_frsize)
    }
}

/// After how long to look again at those who write, when so many bytes are left.
fn next_look(left: u64) -> Duration {
    let (shortest, longest) = LOOKS;
    Duration::from_micros(left.saturating_mul(1_000_000 / 1024) / (FASTEST / 1024)).clamp(shortest, longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_less_room_there_is_the_sooner_somebody_looks() {
        for (left_mb, look_ms) in [(0, 5), (1, 5), (100, 97), (512, 500), (100_000, 500)] {
            let look = next_look(left_mb << 20).as_millis();
            assert!(look.abs_diff(look_ms) <= 1, "{left_mb} MB: {look} ms");
        }
        assert_eq!(next_look(u64::MAX), LOOKS.1);
    }
}
