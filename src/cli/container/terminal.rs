//! The terminal of this command: whether there is one, its size, and its raw mode.

use std::io::IsTerminal as _;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::{Result, ResultExt as _};

/// Rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) rows: u16,
    pub(super) columns: u16,
}

/// Says whether standard input is a terminal.
pub(super) fn input_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Says whether standard output is a terminal.
pub(super) fn output_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Returns the size of the terminal that standard output is; `None` when it is none or does not know its size.
pub(super) fn size() -> Option<Size> {
    let size = tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Keeps the terminal of standard input raw: keys arrive at once, unchanged, and make no signals.
///
/// Dropping it restores what was before, also while a panic unwinds. Signals that end the process by default must be caught
/// while it lives.
#[derive(Debug)]
pub(super) struct Raw(Termios);

impl Raw {
    /// Makes the terminal raw.
    ///
    /// # Errors
    /// When standard input is not a terminal.
    pub(super) fn enter() -> Result<Self> {
        let before = tcgetattr(std::io::stdin()).context(|| "read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).context(|| "make the terminal raw")?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
