//! The times of what steps make, which are the same whenever and wherever the same is built.
//!
//! Each layer has a time that stands for what it was made of: that of what it lies on or, for a copy, of the newest file that is
//! copied, if that is later. What a step would give the time of the day gets this one. Files that keep a time of their own, as
//! unpacked ones do, keep it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};

use crate::error::{Error, Result, ResultExt as _};
use crate::solver::job::Job;
use crate::solver::value::FileSystem;
use crate::store::tree::{self, Found, Kind, Metadata, Step, Walk};

const SECOND: i64 = 1_000_000_000;

/// The kernel's clock for files is behind the other by up to a tick of ten milliseconds; twice that, in nanoseconds.
const LAG: i64 = 20_000_000;

impl Job {
    /// Returns the time that stands for a file system, in nanoseconds since 1970. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) fn as_of(&self, value: &FileSystem) -> Result<i64> {
        match value {
            FileSystem::Empty => Ok(0),
            FileSystem::Image { image, .. } => {
                let config = &image.config;
                let history = config.history.iter().filter_map(|entry| entry.created.as_ref());
                let times = history.chain(&config.created).filter_map(|text| text.parse::<jiff::Timestamp>().ok());
                let newest = times.map(|time| i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)).max();
                Ok(newest.unwrap_or(0).max(0))
            }
            FileSystem::Cached(cached) => {
                Ok(cached.layers.iter().flatten().next_back().and_then(|layer| layer.as_of).unwrap_or_default())
            }
            FileSystem::Layer(layer) => {
                let snapshot = self.solver.deps().store.snapshot(&self.lease, layer.made)?;
                let snapshot = snapshot.ok_or_else(|| Error::internal("a layer has gone while it was used"))?;
                Ok(snapshot.as_of.unwrap_or(snapshot.created_at))
            }
        }
    }
}

/// What of a tree may have the time of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    /// Everything: a process was at work.
    Anything,
    /// Directories, in which something was made; files were given their time.
    Dirs,
}

/// Gives what was written into a tree since work on it was `started` the time `as_of`. All times are in nanoseconds since 1970.
/// Blocking; nobody else uses the tree.
///
/// # Errors
/// When the tree cannot be read or written.
pub(super) fn settle(dir: &Path, touched: Touched, as_of: i64, started: i64) -> Result<()> {
    let span = Span { as_of, since: (started - LAG).max(as_of + 1) };
    let root = tree::open_root(dir)?;
    if span.holds(Metadata::of(&root)?.mtime.ns()) {
        rustix::fs::futimens(&root, &span.times())?;
    }
    let mut walk = Walk::new(tree::open_dir(&root, c".")?)?;
    while let Some(step) = walk.step()? {
        let found = match step {
            Step::Enter(found, _) => found,
            Step::Pass(found) if touched == Touched::Anything => found,
            Step::Pass(_) | Step::Leave => continue,
        };
        span.settle(&found).context(|| format!("set the time of /{}", String::from_utf8_lossy(&found.path)))?;
    }
    Ok(())
}

/// The times that are replaced, and by what.
struct Span {
    as_of: i64,
    since: i64,
}

impl Span {
    fn holds(&self, time: i64) -> bool {
        time >= self.since
    }

    fn times(&self) -> Timestamps {
        let nanos = self.as_of.rem_euclid(SECOND);
        Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: self.as_of.div_euclid(SECOND), tv_nsec: nanos },
        }
    }

    fn settle(&self, found: &Found) -> Result<()> {
        let metadata = Metadata::at(&found.parent, &found.name)?;
        if !self.holds(metadata.mtime.ns()) {
            return Ok(());
        }
        if metadata.kind == Kind::File && found.path.ends_with(b".pyc") {
            self.settle_bytecode(found)?;
        }
        rustix::fs::utimensat(&found.parent, &found.name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    /// Python's compiled modules hold the time of their source (PEP 552): with another they would be compiled at every start.
    fn settle_bytecode(&self, found: &Found) -> Result<()> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&found.parent, &found.name, flags, Mode::empty())?);
        let mut header = [0; 16];
        if file.read_exact_at(&mut header, 0).is_err() || header[4..8] != [0; 4] {
            return Ok(());
        }
        let time = i64::from(u32::from_le_bytes([header[8], header[9], header[10], header[11]]));
        // The source's time is cut to seconds there.
        if self.holds(time.saturating_add(1).saturating_mul(SECOND) - 1) {
            let settled = u32::try_from(self.as_of.div_euclid(SECOND)).unwrap_or(0);
            file.write_all_at(&settled.to_le_bytes(), 8).context(|| "write the time of the source")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn what_was_written_gets_the_time_and_what_was_there_keeps_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let write = |path: &str, content: &[u8], time: u64| {
            std::fs::write(dir.path().join(path), content).unwrap();
            File::options().write(true).open(dir.path().join(path)).unwrap().set_modified(at(time)).unwrap();
        };
        std::fs::create_dir(dir.path().join("d")).unwrap();
        write("d/new", b"", 2000);
        write("d/old", b"", 1500);
        let compiled = |time: u32| [&b"mag1\0\0\0\0"[..], &time.to_le_bytes(), b"size code"].concat();
        write("d/new.pyc", &compiled(2000), 2000);
        write("d/of-old.pyc", &compiled(1500), 2000);
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        settle(dir.path(), Touched::Anything, 1000 * SECOND, 2000 * SECOND).unwrap();
        for (path, time) in
            [("", 1000), ("d", 1000), ("d/new", 1000), ("d/old", 1500), ("link", 1000), ("d/new.pyc", 1000)]
        {
            assert_eq!(dir.path().join(path).symlink_metadata().unwrap().mtime(), time, "{path}");
        }
        assert_eq!(std::fs::read(dir.path().join("d/new.pyc")).unwrap(), compiled(1000));
        assert_eq!(std::fs::read(dir.path().join("d/of-old.pyc")).unwrap(), compiled(1500));
    }
}
