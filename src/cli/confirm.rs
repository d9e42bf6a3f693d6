//! The question before something is removed for good.

use std::io::{BufRead as _, Write as _};

use crate::error::Result;

/// Asks on standard output whether to go on; everything but `y` is no, the end of the input too.
///
/// # Errors
/// When the terminal fails.
pub(super) fn confirm(warning: &str) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    write!(out, "{warning}\nAre you sure you want to continue? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
