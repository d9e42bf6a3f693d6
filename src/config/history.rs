//! What the configuration says about the history of builds.

use std::time::Duration;

use super::document::Table;
use super::gc::duration;
use crate::error::Result;

/// What is kept; `None` means "not said".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// How old a record may get, whatever their number.
    pub max_age: Option<Duration>,
    /// How many there may be, however old.
    pub max_entries: Option<u64>,
}

impl History {
    pub(super) fn read(mut table: Table<'_>) -> Result<Self> {
        let history = Self {
            max_age: table.take("max-age").map(|v| v.parse(duration)).transpose()?,
            max_entries: table.take("max-entries").map(|v| v.integer(0..=1_000_000)).transpose()?,
        };
        table.finish()?;
        Ok(history)
    }

    /// Lays what a file with precedence says over this.
    pub(super) fn overlay(&mut self, over: Self) {
        self.max_age = over.max_age.or(self.max_age);
        self.max_entries = over.max_entries.or(self.max_entries);
    }
}
