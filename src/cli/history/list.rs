//! `history ls`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::cli::args::Context;
use crate::cli::format::{Format, Listing, Row, duration};
use crate::cli::{print, value};
use crate::error::Result;
use crate::types::build::{BuildHistoryRecord, BuildHistoryRequest, nanoseconds};

/// Arguments of `history ls`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only these: status=error, ref~=^abc, repository=URL, startedAt>24h, completedAt<1h, duration>90s; commas are "and"
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// `table`, `table TEMPLATE`, `json` or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Do not shorten names
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
}

const LISTING: Listing = Listing {
    fields: &[
        ("ref", "BUILD ID"),
        ("name", "NAME"),
        ("status", "STATUS"),
        ("created_at", "CREATED AT"),
        ("completed_at", "COMPLETED AT"),
        ("created", "CREATED"),
        ("duration", "DURATION"),
        ("total_steps", "STEPS"),
        ("completed_steps", "COMPLETED"),
        ("cached_steps", "CACHED"),
        ("pinned", "PINNED"),
    ],
    columns: &["ref", "name", "status", "created", "duration", "cached_steps", "total_steps"],
};

/// Characters of a name that a table shows.
const NAME: usize = 36;

pub(super) async fn list(context: &Context, args: &ListArgs) -> Result<ExitCode> {
    let format = Format::parse(if args.quiet { Some("{{.ref}}") } else { args.format.as_deref() })?;
    let builder = context.client.builder().await?;
    let request = BuildHistoryRequest { filter: args.filters.clone(), ..BuildHistoryRequest::default() };
    let mut records = builder.history(request).await?;
    records.sort_by_key(|record| std::cmp::Reverse(created_ns(record)));
    let cut = matches!(format, Format::Table(_)) && !args.no_trunc;
    let now = jiff::Timestamp::now();
    let rows: Vec<Row> = records.iter().map(|record| row(record, cut, now)).collect();
    print(&LISTING.render(&rows, &format)?)
}

fn created_ns(record: &BuildHistoryRecord) -> i64 {
    record.created_at.as_ref().map_or(0, nanoseconds)
}

fn row(record: &BuildHistoryRecord, cut: bool, now: jiff::Timestamp) -> Row {
    let name = super::inspect::name(record);
    let rfc3339 =
        |ns: i64| jiff::Timestamp::from_nanosecond(ns.into()).map_or_else(|_| String::new(), |at| at.to_string());
    let created = jiff::Timestamp::from_nanosecond(created_ns(record).into()).unwrap_or_default();
    Row::new([
        ("ref", record.r#ref.clone()),
        ("name", if cut { value::ellipsis(&name, NAME) } else { name }),
        ("status", status(record).to_owned()),
        ("created_at", rfc3339(created_ns(record))),
        ("completed_at", record.completed_at.as_ref().map(nanoseconds).map_or_else(String::new, rfc3339)),
        ("created", format!("{} ago", duration::words(now.duration_since(created).unsigned_abs()))),
        ("duration", took(record, now)),
        ("total_steps", record.num_total_steps.to_string()),
        ("completed_steps", record.num_completed_steps.to_string()),
        ("cached_steps", record.num_cached_steps.to_string()),
        ("pinned", record.pinned.to_string()),
    ])
}

/// Returns buildx's word for how a build is.
pub(super) fn status(record: &BuildHistoryRecord) -> &'static str {
    match (&record.completed_at, &record.error) {
        (None, _) => "Running",
        (Some(_), None) => "Completed",
        (Some(_), Some(error)) if error.code == i32::from(tonic::Code::Cancelled) => "Canceled",
        (Some(_), Some(_)) => "Error",
    }
}

/// Returns how long a build took, or takes.
pub(super) fn took(record: &BuildHistoryRecord, now: jiff::Timestamp) -> String {
    let now_ns = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
    let end = record.completed_at.as_ref().map_or(now_ns, nanoseconds);
    let took = end.saturating_sub(created_ns(record));
    duration::clock(Duration::from_nanos(u64::try_from(took).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::build::google::rpc::Status;
    use crate::types::build::timestamp;

    #[test]
    fn a_build_is_shown_in_a_line() {
        let record = BuildHistoryRecord {
            r#ref: "abc".to_owned(),
            created_at: Some(timestamp(1_000_000_000)),
            completed_at: Some(timestamp(3_500_000_000)),
            error: Some(Status { code: 1, ..Status::default() }),
            frontend_attrs: [("kiln.name".to_owned(), "/srv/app".to_owned())].into(),
            num_cached_steps: 2,
            num_total_steps: 5,
            ..BuildHistoryRecord::default()
        };
        let now = jiff::Timestamp::from_second(61).unwrap();
        let format =
            Format::parse(Some("{{.ref}} {{.status}} {{.created}} {{.duration}} {{.cached_steps}}/{{.total_steps}}"));
        let text = LISTING.render(&[row(&record, true, now)], &format.unwrap()).unwrap();
        assert_eq!(text, "abc Canceled About a minute ago 2.5s 2/5\n");
        assert_eq!(status(&BuildHistoryRecord::default()), "Running");
    }
}
