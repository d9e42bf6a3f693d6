//! `logs`: what a container has written.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use clap::Args;
use http::Method;
use http_body_util::BodyExt as _;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::attach::Facts;
use super::session::Show;
use crate::cli::args::Context;
use crate::cli::value;
use crate::client::Query;
use crate::error::{Error, Result, ResultExt as _};

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub(in crate::cli) struct LogsArgs {
    /// Show attributes of the lines
    #[arg(long)]
    details: bool,
    /// Go on showing what is written
    #[arg(short, long)]
    follow: bool,
    /// Show what was written since: a time such as 2026-01-02T13:23:37Z, or how long ago, such as 42m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Show what was written before: a time, or how long ago
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Show so many of the last lines
    #[arg(short = 'n', long, default_value = "all", value_name = "LINES", allow_hyphen_values = true)]
    tail: String,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// The container
    container: String,
}

pub(super) async fn logs(context: &Context, args: &LogsArgs) -> Result<ExitCode> {
    let client = &context.client;
    let now = SystemTime::now();
    let moment = |name: &str, text: &Option<String>| {
        text.as_deref().map(|text| unix_time(text, now).context(|| format!("--{name}"))).transpose()
    };
    let (since, until) = (moment("since", &args.since)?, moment("until", &args.until)?);
    let facts = Facts::of(client, &args.container).await?;
    let query = Query::new()
        .with("stdout", "1")
        .with("stderr", "1")
        .with_some("since", since)
        .with_some("until", until)
        .with("tail", &args.tail)
        .with_flag("follow", args.follow)
        .with_flag("timestamps", args.timestamps)
        .with_flag("details", args.details);
    let request = client.request(Method::GET, &query.path(&["containers", &facts.id, "logs"])).body(Body::empty());
    let mut body = client.send(request.expect("the request is well formed")).await?.into_body();
    let mut show = Show::new(facts.tty);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::unavailable("the engine stopped sending").with_source(error))?;
        if let Ok(content) = frame.into_data() {
            show.write(content).await?;
        }
    }
    show.finish().await?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a time as docker does: seconds since 1970, RFC 3339 (the zone, the time or its seconds may be left out, then it is
/// local time), or a length of time before `now`. Returns seconds since 1970, with a fraction.
fn unix_time(text: &str, now: SystemTime) -> Result<String> {
    let seconds = text.split('.').next().unwrap_or_default();
    if !seconds.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.') && text.matches('.').count() < 2 {
        return Ok(text.to_owned());
    }
    if let Ok(ago) = value::duration(text) {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        return Ok(with_fraction(now.saturating_sub(ago)));
    }
    let expected = "expected a time such as 2026-01-02T13:23:37Z, or how long ago, such as 1h30m";
    let invalid = || Error::invalid(format!("invalid time {text:?}: {expected}"));
    let time = match text.parse::<jiff::Timestamp>() {
        Ok(time) => time,
        Err(_) => {
            let local: DateTime = text.parse().map_err(|_| invalid())?;
            local.to_zoned(TimeZone::system()).map_err(|_| invalid())?.timestamp()
        }
    };
    let since = Duration::try_from(time.as_duration()).map_err(|_| invalid())?;
    Ok(with_fraction(since))
}

fn with_fraction(since_1970: Duration) -> String {
    format!("{}.{:09}", since_1970.as_secs(), since_1970.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_docker_reads_them() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        for (text, time) in [
            ("1700000000", "1700000000"),
            ("1700000000.5", "1700000000.5"),
            ("1h", "6400.000000000"),
            ("1.5s", "9998.500000000"),
            ("1970-01-01T01:00:00Z", "3600.000000000"),
            ("1970-01-01T01:00:00.25+01:00", "0.250000000"),
        ] {
            assert_eq!(unix_time(text, now).unwrap(), time, "{text}");
        }
        assert!(unix_time("2013-01-02T15:04", now).is_ok() && unix_time("2013-01-02", now).is_ok());
        for text in ["", "yesterday", "1.2.3", "-1h"] {
            assert!(unix_time(text, now).is_err(), "{text}");
        }
    }
}
