//! The progress of pulls, pushes, loads and imports: on a terminal a line for each layer that is redrawn, elsewhere a line for
//! each change.

use std::io::Write;
use std::time::{Duration, Instant};

use axum::body::Body;
use http::Request;

use super::format::size;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::types::Progress;

/// Between two drawings of a line that only counts.
const REDRAW: Duration = Duration::from_millis(80);

/// Columns of a bar, brackets excluded.
const BAR: usize = 50;

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    /// Everything, on standard output.
    Progress,
    /// Everything, on standard error, because standard output is for something else.
    Aside,
    /// Nothing.
    Nothing,
}

/// Sends a request, shows the progress it answers with, and returns the lines' `aux` and last `status` and `stream` texts.
///
/// # Errors
/// What the engine answers, as a status or in the stream.
pub(super) async fn follow(client: &Client, request: Request<Body>, show: Show) -> Result<Outcome> {
    let mut lines = client.lines::<Progress>(request).await?;
    let mut outcome = Outcome::default();
    let mut display = Display::new(show);
    while let Some(line) = lines.next().await? {
        if let Some(error) = line.error_detail.as_ref().map(|detail| &detail.message).or(line.error.as_ref()) {
            return Err(Error::internal(error.clone()));
        }
        display.show(&line)?;
        outcome.aux.extend(line.aux);
        outcome.last_status = line.status.or(outcome.last_status);
        outcome.streams.extend(line.stream);
    }
    Ok(outcome)
}

/// What a progress stream said besides progress.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Results.
    pub(super) aux: Vec<serde_json::Value>,
    /// The last status line.
    pub(super) last_status: Option<String>,
    /// Texts of `stream`.
    pub(super) streams: Vec<String>,
}

enum Display {
    Terminal(Board),
    Plain(Box<dyn Write>),
    Nothing,
}

/// The lines on a terminal, the oldest first.
struct Board {
    out: Box<dyn Write>,
    ids: Vec<String>,
    drawn: Vec<Instant>,
    width: usize,
    height: usize,
}

impl Display {
    fn new(show: Show) -> Self {
        let (out, size): (Box<dyn Write>, _) = match show {
            Show::Nothing => return Self::Nothing,
            Show::Progress => (Box::new(std::io::stdout()), terminal_size(&std::io::stdout())),
            Show::Aside => (Box::new(std::io::stderr()), terminal_size(&std::io::stderr())),
        };
        match size {
            Some((width, height)) => Self::Terminal(Board { out, ids: Vec::new(), drawn: Vec::new(), width, height }),
            None => Self::Plain(out),
        }
    }

    fn show(&mut self, line: &Progress) -> Result<()> {
        let written = match self {
            Self::Nothing => Ok(()),
            Self::Terminal(board) => board.show(line),
            // Counts are for bars.
            Self::Plain(_) if is_count(line) => Ok(()),
            Self::Plain(out) => match text(line, 0) {
                Some(text) => out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush()),
                None => Ok(()),
            },
        };
        match written {
            // Who reads may stop reading; the work goes on.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }
}

fn terminal_size(out: &(impl std::os::fd::AsFd + std::io::IsTerminal)) -> Option<(usize, usize)> {
    if !out.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(out.as_fd()).ok();
    let or = |value: u16, default: usize| if value == 0 { default } else { usize::from(value) };
    Some(size.map_or((80, 24), |size| (or(size.ws_col, 80), or(size.ws_row, 24))))
}

fn is_count(line: &Progress) -> bool {
    line.detail.is_some_and(|detail| detail.current > 0)
}

impl Board {
    fn show(&mut self, line: &Progress) -> std::io::Result<()> {
        let Some(text) = text(line, self.width) else { return Ok(()) };
        let Some(id) = &line.id else {
            // What stands above stays as it is; new lines begin below.
            self.ids.clear();
            self.drawn.clear();
            write!(self.out, "{text}\r\n")?;
            return self.out.flush();
        };
        let now = Instant::now();
        let Some(at) = self.ids.iter().position(|known| known == id) else {
            self.ids.push(id.clone());
            self.drawn.push(now);
            write!(self.out, "{text}\r\n")?;
            return self.out.flush();
        };
        if is_count(line) && now.duration_since(self.drawn[at]) < REDRAW {
            return Ok(());
        }
        self.drawn[at] = now;
        let up = self.ids.len() - at;
        // What has scrolled away cannot be redrawn.
        if up >= self.height {
            return Ok(());
        }
        write!(self.out, "\x1b[{up}A\r\x1b[2K{text}\r\x1b[{up}B")?;
        self.out.flush()
    }
}

/// The text of a line, at most `width` columns wide unless that is 0.
fn text(line: &Progress, width: usize) -> Option<String> {
    if let Some(stream) = &line.stream {
        return Some(stream.trim_end_matches('\n').to_owned());
    }
    let status = line.status.as_deref()?;
    let mut text = match &line.id {
        Some(id) => format!("{id}: {status}"),
        None => status.to_owned(),
    };
    if let Some(detail) = line.detail.filter(|detail| detail.current > 0) {
        let counts = counts(detail.current, detail.total);
        let left = width.saturating_sub(text.len() + counts.len() + 4);
        text.push(' ');
        if detail.total > 0 && left >= 10 {
            text.push_str(&bar(detail.current, detail.total, left.min(BAR)));
            text.push(' ');
        }
        text.push_str(&counts);
    }
    if width > 0 && text.len() > width {
        text = text.chars().take(width).collect();
    }
    Some(text)
}

fn counts(current: u64, total: u64) -> String {
    match total {
        0 => size::decimal(current),
        total => format!("{}/{}", size::decimal(current.min(total)), size::decimal(total)),
    }
}

fn bar(current: u64, total: u64, width: usize) -> String {
    let share = u128::from(current.min(total)) * width as u128 / u128::from(total.max(1));
    let done = usize::try_from(share).unwrap_or(width);
    let head = if done < width { ">" } else { "" };
    format!("[{}{head}{}]", "=".repeat(done), " ".repeat(width - done - head.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ProgressCount;

    fn line(id: Option<&str>, status: &str, current: u64, total: u64) -> Progress {
        let detail = Some(ProgressCount { current, total });
        Progress { id: id.map(str::to_owned), status: Some(status.to_owned()), detail, ..Progress::default() }
    }

    #[test]
    fn a_line_with_counts_has_a_bar_that_fits() {
        let half = line(Some("0123456789ab"), "Downloading", 5_000_000, 10_000_000);
        assert_eq!(
            text(&half, 120).unwrap(),
            "0123456789ab: Downloading [=========================>                        ] 5MB/10MB"
        );
        assert_eq!(text(&half, 50).unwrap(), "0123456789ab: Downloading [======>      ] 5MB/10MB");
        assert_eq!(text(&half, 30).unwrap(), "0123456789ab: Downloading 5MB/");
        assert_eq!(text(&line(None, "Digest: x", 0, 0), 80).unwrap(), "Digest: x");
        assert_eq!(bar(10, 10, 10), "[==========]");
        assert_eq!(bar(11, 10, 10), "[==========]");
    }

    #[test]
    fn a_line_is_redrawn_where_it_stands() {
        let out: Vec<u8> = Vec::new();
        let shared = std::sync::Arc::new(std::sync::Mutex::new(out));
        let writer = Shared(std::sync::Arc::clone(&shared));
        let mut board = Board { out: Box::new(writer), ids: Vec::new(), drawn: Vec::new(), width: 80, height: 24 };
        board.show(&line(Some("a"), "Pulling fs layer", 0, 0)).unwrap();
        board.show(&line(Some("b"), "Pulling fs layer", 0, 0)).unwrap();
        board.show(&line(Some("a"), "Pull complete", 0, 0)).unwrap();
        let text = String::from_utf8(shared.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "a: Pulling fs layer\r\nb: Pulling fs layer\r\n\x1b[2A\r\x1b[2Ka: Pull complete\r\x1b[2B");
    }

    struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
