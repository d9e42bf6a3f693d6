//! What is used: read now and then while something runs, and once when it has ended.

use std::convert::Infallible;
use std::time::Duration;

/// The time between two readings, at first; BuildKit's.
const INTERVAL: Duration = Duration::from_secs(2);

/// With more readings than this, every other one goes, and the next ones are as far apart as those that stay.
const MAX_READINGS: usize = 20;

/// What was used until then.
#[derive(Clone, Debug)]
pub(in crate::solver) struct Reading<T> {
    /// In nanoseconds since 1970.
    pub(in crate::solver) at_ns: i64,
    pub(in crate::solver) stats: T,
}

/// Collects readings of counters.
#[derive(Clone, Debug)]
pub(in crate::solver) struct Meter<T> {
    interval: Duration,
    readings: Vec<Reading<T>>,
}

impl<T> Meter<T> {
    pub(in crate::solver) fn new() -> Self {
        Self { interval: INTERVAL, readings: Vec::new() }
    }

    /// Reads for as long as it is polled; `read` returns nothing when there is nothing to be read.
    pub(super) async fn run(&mut self, read: impl Fn() -> Option<T>, now_ns: impl Fn() -> i64) -> Infallible {
        loop {
            tokio::time::sleep(self.interval).await;
            if let Some(stats) = read() {
                self.add(now_ns(), stats);
            }
        }
    }

    /// The time until the next reading.
    pub(in crate::solver) fn pause(&self) -> Duration {
        self.interval
    }

    pub(in crate::solver) fn add(&mut self, at_ns: i64, stats: T) {
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
    pub(in crate::solver) fn end(mut self, at_ns: i64, last: Option<T>) -> Vec<Reading<T>> {
        self.readings.extend(last.map(|stats| Reading { at_ns, stats }));
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
            meter.add(i64::try_from(at.as_nanos()).unwrap(), ());
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
