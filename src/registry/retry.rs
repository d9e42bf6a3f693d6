//! Patience: how long the client waits, what it tries again, and how often.

use std::fmt::Display;
use std::time::Duration;

use super::Notes;
use crate::error::{Error, Kind};

/// How long the client waits for a server. None of these limits the time of a whole transfer.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection, including the TLS handshake.
    pub connect: Duration,
    /// For the head of an answer.
    pub answer: Duration,
    /// For the next bytes of a transfer, in either direction.
    pub stall: Duration,
    /// Before the second attempt; doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause that is taken, also when the server asks for more.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            answer: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_mins(1),
        }
    }
}

impl Patience {
    /// How long to wait for the answer to an upload: some registries read or copy the whole blob before they answer.
    pub(super) fn finish(&self, bytes: u64) -> Duration {
        const SLOWEST_BYTES_PER_S: u64 = 16 << 20;
        self.answer + Duration::from_secs(bytes / SLOWEST_BYTES_PER_S)
    }
}

/// Whether another attempt may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// It may not.
    No,
    /// Once: for what is mostly a wrong name or a server that is not there, and rarely a hiccup.
    Once,
    /// As often as configured.
    Yes,
    /// As often as configured, but not before this much time.
    After(Duration),
}

/// Why an attempt failed. Every [`Error`] is also a fault that no second attempt mends.
#[derive(Debug)]
pub(super) struct Fault {
    error: Error,
    again: Again,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self { error, again: Again::No }
    }
}

impl Fault {
    pub(super) fn once(error: Error) -> Self {
        Self { error, again: Again::Once }
    }

    pub(super) fn passing(error: Error) -> Self {
        Self { error, again: Again::Yes }
    }

    pub(super) fn after(error: Error, wait: Option<Duration>) -> Self {
        Self { error, again: wait.map_or(Again::Yes, Again::After) }
    }

    pub(super) fn kind(&self) -> Kind {
        self.error.kind()
    }

    pub(super) fn into_error(self) -> Error {
        self.error
    }

    pub(super) fn context(self, context: impl Display) -> Self {
        Self { error: self.error.context(context), again: self.again }
    }
}

/// Counts the attempts of one operation.
#[derive(Debug)]
pub(super) struct Attempts {
    patience: Patience,
    most: u32,
    failed: u32,
}

impl Attempts {
    pub(super) fn new(patience: Patience, most: u32) -> Self {
        Self { patience, most, failed: 0 }
    }

    /// Bytes arrived: whatever goes wrong next is a new trouble.
    pub(super) fn progress(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt, or returns the error when there shall be none.
    pub(super) async fn pause(&mut self, fault: Fault, notes: &Notes) -> Result<(), Error> {
        self.failed += 1;
        let (most, asked) = match fault.again {
            Again::No => return Err(fault.error),
            Again::Once => (2.min(self.most), Duration::ZERO),
            Again::Yes => (self.most, Duration::ZERO),
            Again::After(wait) => (self.most, wait),
        };
        if asked > self.patience.longest_pause {
            return Err(remark(&fault.error, &format!("it asks to wait {asked:?}, which is too long")));
        }
        if self.failed >= most {
            return Err(remark(&fault.error, &format!("gave up after {} attempts", self.failed)));
        }
        let pause = self.backoff().max(asked);
        notes.say(&format!("{}; trying again in {:.1} s", fault.error, pause.as_secs_f32()));
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Doubles with each failure, and is drawn from the upper half of that, so that clients do not march in step.
    fn backoff(&self) -> Duration {
        let full = self.patience.first_pause.saturating_mul(1 << (self.failed - 1).min(16));
        let full = full.min(self.patience.longest_pause);
        let random = getrandom::u32().unwrap_or(u32::MAX);
        full / 2 + full.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
    }
}

fn remark(error: &Error, remark: &str) -> Error {
    Error::new(error.kind(), format!("{error} ({remark})"))
}

/// Reads a `Retry-After` header that gives seconds. The other form, a date, is of no use without the server's clock.
pub(super) fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(most: u32) -> Attempts {
        Attempts::new(Patience::default(), most)
    }

    #[test]
    fn pauses_grow_and_have_a_limit() {
        let mut attempts = attempts(100);
        let mut longest = Duration::ZERO;
        for failed in 1..40 {
            attempts.failed = failed;
            let pause = attempts.backoff();
            let full = Duration::from_millis(500).saturating_mul(1 << (failed - 1).min(16)).min(Duration::from_mins(1));
            assert!(pause >= full / 2 && pause <= full, "{failed}: {pause:?}");
            longest = longest.max(pause);
        }
        assert!(longest <= Duration::from_mins(1));
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_limited_and_begin_anew_with_progress() {
        let fault = || Fault::passing(Error::unavailable("reset"));
        let notes = Notes::none();
        let mut attempts = attempts(3);
        for _ in 0..2 {
            attempts.pause(fault(), &notes).await.unwrap();
        }
        attempts.progress();
        for _ in 0..2 {
            attempts.pause(fault(), &notes).await.unwrap();
        }
        let error = attempts.pause(fault(), &notes).await.unwrap_err();
        assert_eq!(error.to_string(), "reset (gave up after 3 attempts)");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_may_ask_for_time_but_not_for_an_hour() {
        let limited = |wait| Fault::after(Error::unavailable("too many requests"), Some(Duration::from_secs(wait)));
        let before = tokio::time::Instant::now();
        attempts(2).pause(limited(30), &Notes::none()).await.unwrap();
        assert!(before.elapsed() >= Duration::from_secs(30));
        let error = attempts(2).pause(limited(3600), &Notes::none()).await.unwrap_err();
        assert!(error.to_string().ends_with("(it asks to wait 3600s, which is too long)"), "{error}");
    }
}
