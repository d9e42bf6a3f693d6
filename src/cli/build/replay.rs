//! What a build reported, shown again: its output, and how long its steps took.

use std::process::ExitCode;

use futures_util::StreamExt as _;

use super::failure;
use super::progress::trace::{State, Trace};
use super::progress::{Detail as WarningDetail, Display, Mode, Outcome};
use super::screen::Screen;
use crate::cli::args::Context;
use crate::cli::format::duration;
use crate::cli::print;
use crate::error::{Error, Result};
use crate::types::build::{Detail, StatusResponse};

/// Prints on standard output what a build reports, or reported.
///
/// # Errors
/// What the engine answers; `InvalidArgument` for a mode that needs the build to run here.
pub(in crate::cli) async fn replay(context: &Context, reference: &str, mode: Mode) -> Result<ExitCode> {
    if !matches!(mode, Mode::Auto | Mode::Plain | Mode::Rawjson) {
        return Err(Error::invalid("--progress: logs are shown as plain or rawjson"));
    }
    let screen = Screen::new();
    let mut display = Display::new(mode, false, screen.colors(), screen.now());
    let builder = context.client.builder().await?;
    let mut reports = builder.status(reference).boxed();
    while let Some(report) = reports.next().await {
        print(&display.update(&report?))?;
    }
    print(&display.finish(screen.now(), screen.size(), Outcome::Finished, WarningDetail::Short))
}

/// How a step went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Timing {
    /// What is shown for it.
    pub(in crate::cli) name: String,
    /// `CACHED`, `ERROR`, or how long it took.
    pub(in crate::cli) took: String,
    /// In nanoseconds; 0 when it was found.
    pub(in crate::cli) took_ns: i64,
}

/// Returns how the steps of a build went, in the order they began, and the warnings.
pub(in crate::cli) fn timings(reports: &[StatusResponse]) -> (Vec<Timing>, Vec<String>) {
    let mut trace = Trace::default();
    for report in reports {
        trace.update(report);
    }
    let clock = |ns: i64| duration::clock(std::time::Duration::from_nanos(u64::try_from(ns).unwrap_or(0)));
    let timings = trace.steps().iter().map(|step| {
        let (took, took_ns) = match &step.state {
            State::Cached => ("CACHED".to_owned(), 0),
            State::Done { took_ns } => (clock(*took_ns), *took_ns),
            State::Failed { took_ns, .. } => (format!("ERROR {}", clock(*took_ns)), *took_ns),
            State::Cancelled => ("CANCELED".to_owned(), 0),
            State::Running { .. } => ("RUNNING".to_owned(), 0),
        };
        Timing { name: step.name.clone(), took, took_ns }
    });
    (timings.collect(), trace.warnings().iter().map(|warning| warning.text.clone()).collect())
}

/// Returns the lines of the sources that a failure is about, with styles.
pub(in crate::cli) fn excerpts(details: &[Detail]) -> String {
    let sources = details.iter().filter_map(|detail| match detail {
        Detail::Source(source) => Some(failure::excerpt(source)),
        _ => None,
    });
    sources.collect()
}
