//! What a step's process uses: read now and then while it runs, and once when it has ended.

use std::convert::Infallible;
use std::time::Duration;

use crate::sandbox::{Cgroup, Stats};

/// The time between two readings, at first; BuildKit's.
const INTERVAL: Duration = Duration::from_secs(2);

/// With more readings than this, every other one goes, and the next ones are as far apart as those that stay.
const MAX_READINGS: usize = 20;

/// What the processes of a step used until then.
#[derive(Clone, Debug)]
pub(in crate::solver) struct Reading {
    /// In nanoseconds since 1970.
    pub(in crate::solver) at_ns: i64,
    pub(in crate::solver) stats: Stats,
}

/// Reads a control group's counters.
#[derive(Debug)]
pub(super) struct Meter {
    interval: Duration,
    readings: Vec<Reading>,
}

impl Meter {
    pub(super) fn new() -> Self {
        Self { interval: INTERVAL, readings: Vec::new() }
    }

    /// Reads for as long as it is polled.
    pub(super) async fn run(&mut self, cgroup: Option<Cgroup>, now_ns: impl Fn() -> i64) -> Infallible {
        let Some(cgroup) = cgroup else { return std::future::pending().await };
        loop {
            tokio::time::sleep(self.interval).await;
            // A few files that the kernel makes when they are read.
            let stats = cgroup.stats();
            // A group that has just been removed has no counters.
            if stats != Stats::default() {
                self.add(now_ns(), stats);
            }
        }
    }

    fn add(&mut self, at_ns: i64, stats: Stats) {
        self.readings.push(Reading { at_ns, stats });
        if self.readings.len() > MAX_READINGS {
            let mut even = true;
            self.readings.retain(|_| {
                even = !even;
                !even
            });
            self.interval *= 2;
        }
    }

    /// Returns all readings, with the last one.
    pub(super) fn end(mut self, at_ns: i64, last: Option<&Stats>) -> Vec<Reading> {
        self.readings.extend(last.cloned().map(|stats| Reading { at_ns, stats }));
        self.readings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_steps_are_read_less_often() {
        let mut meter = Meter::new();
        let mut at = Duration::ZERO;
        let mut last = Duration::ZERO;
        while at < Duration::from_secs(3600) {
            at += meter.interval;
            meter.add(i64::try_from(at.as_nanos()).unwrap(), Stats::default());
            assert!(meter.interval >= last && meter.readings.len() <= MAX_READINGS);
            last = meter.interval;
        }
        let seconds: Vec<i64> = meter.readings.iter().map(|reading| reading.at_ns / 1_000_000_000).collect();
        assert!(
            seconds.len() >= MAX_READINGS / 2 && seconds.windows(2).all(|pair| pair[1] - pair[0] == 256),
            "{seconds:?}"
        );
    }
}
