//! Standard error as a screen, the time that goes by on it, and the signals that reach this command.

use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::progress::{Colors, SHOW_CURSOR, Size};
use crate::error::Result;
use crate::task::Clock;

/// What a terminal is taken for that does not tell its size.
const USUAL: Size = Size { columns: 80, rows: 24 };

/// Standard error. Dropping it gives a terminal its cursor back.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: bool,
    colors: Colors,
    clock: Clock,
}

impl Screen {
    /// Looks at standard error: `NO_COLOR`, `CLICOLOR` and a dumb `TERM` are heeded.
    pub(super) fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let terminal = std::io::stderr().is_terminal() && !dumb;
        let colors = match anstream::AutoStream::choice(&std::io::stderr()) {
            anstream::ColorChoice::Never => Colors::Off,
            _ => Colors::On,
        };
        Self { terminal, colors, clock: Clock::system() }
    }

    /// Says whether it is a terminal that moves its cursor.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Says whether words are coloured.
    pub(super) fn colors(&self) -> Colors {
        self.colors
    }

    /// Returns the time in nanoseconds since 1970.
    pub(super) fn now(&self) -> i64 {
        self.clock.now_ns()
    }

    /// Returns the size, as it is now.
    pub(super) fn size(&self) -> Size {
        let size = rustix::termios::tcgetwinsize(std::io::stderr().as_fd()).ok();
        let or = |value: u16, usual: usize| if value == 0 { usual } else { usize::from(value) };
        size.map_or(USUAL, |size| Size { columns: or(size.ws_col, USUAL.columns), rows: or(size.ws_row, USUAL.rows) })
    }

    /// Writes text as it is, at once. Nobody reading is no reason to stop a build.
    pub(super) fn show(&mut self, text: &str) {
        if !text.is_empty() {
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        }
    }

    /// Writes text with styles, or without them where they are not wanted.
    pub(super) fn report(&mut self, text: &str) {
        match self.colors {
            Colors::On => self.show(text),
            Colors::Off => self.show(&anstream::adapter::strip_str(text).to_string()),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            self.show(SHOW_CURSOR);
        }
    }
}

/// What a signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// The terminal has another size.
    Resized,
    /// Stop; the signal's number.
    Interrupted(u8),
}

/// The signals that reach this command.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    resize: Signal,
}

impl Signals {
    /// Begins to take them; from now on they do not end the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            resize: signal(SignalKind::window_change())?,
        })
    }

    /// Waits for a signal.
    pub(super) async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.interrupt.recv() => Received::Interrupted(2),
            _ = self.terminate.recv() => Received::Interrupted(15),
            _ = self.hangup.recv() => Received::Interrupted(1),
            _ = self.resize.recv() => Received::Resized,
        }
    }
}
