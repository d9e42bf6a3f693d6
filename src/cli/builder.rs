//! `builder`: the build cache.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::args::Context;
use super::confirm::confirm;
use super::format::{duration, size, table};
use super::{print, system, value};
use crate::config;
use crate::error::{Error, Result, ResultExt as _};
use crate::types::build::google::protobuf::Timestamp;
use crate::types::build::{DiskUsageRequest, PruneRequest, UsageRecord};

/// `kiln builder ...`.
#[derive(Debug, Subcommand)]
pub(super) enum Grouped {
    /// Build an image from a Dockerfile
    Build(Box<super::build::BuildArgs>),
    /// Show what the build cache takes
    Du(DuArgs),
    /// Bring the build cache within its limits and remove what nobody needs; or say why things stay
    Gc(system::GcArgs),
    /// Remove the build cache
    Prune(PruneArgs),
}

impl Grouped {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Build(args) => super::build::Flat::Build(args).run(context).await,
            Self::Du(args) => du(context, &args).await,
            Self::Gc(args) => system::gc(context, &args).await,
            Self::Prune(args) => prune(context, &args).await,
        }
    }
}

/// Arguments of `builder du`.
#[derive(Debug, Args)]
pub(super) struct DuArgs {
    /// Show only these: until=24h, id=.. or type=..
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Show everything about each record
    #[arg(long)]
    verbose: bool,
}

async fn du(context: &Context, args: &DuArgs) -> Result<ExitCode> {
    let (age_limit, filter) = selection(&args.filters)?;
    let builder = context.client.builder().await?;
    let records = builder.disk_usage(DiskUsageRequest { filter, age_limit }).await?;
    print(&if args.verbose { details(&records) } else { overview(&records) })
}

/// One line for each record, as `docker buildx du` has it.
fn overview(records: &[UsageRecord]) -> String {
    let now = jiff::Timestamp::now();
    let rows = records.iter().map(|record| {
        let mark = if record.mutable { "*" } else { "" };
        let unused = time(record.last_used_at).map(|time| now.duration_since(time).unsigned_abs());
        let used = unused.map_or_else(String::new, |unused| format!("{} ago", duration::words(unused)));
        format!("\n{}{mark}\t{}\t{}\t{used}", record.id, !record.in_use, size::decimal(bytes(record)))
    });
    let table = table::align(&format!("ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED{}", rows.collect::<String>()));
    format!("{table}\n{}", totals(records))
}

/// A paragraph for each record.
fn details(records: &[UsageRecord]) -> String {
    let paragraph = |record: &UsageRecord| {
        let line = |name: &str, value: &str| format!("{:<17}{value}\n", format!("{name}:"));
        let at = |name: &str, stamp| time(stamp).map_or_else(String::new, |time| line(name, &time.to_string()));
        [
            line("ID", &record.id),
            at("Created at", record.created_at),
            line("Mutable", &record.mutable.to_string()),
            line("Reclaimable", &(!record.in_use).to_string()),
            line("Shared", &record.shared.to_string()),
            line("Size", &size::decimal(bytes(record))),
            line("Description", &record.description),
            line("Usage count", &record.usage_count.to_string()),
            at("Last used", record.last_used_at),
            line("Type", &record.record_type),
            "\n".to_owned(),
        ]
        .concat()
    };
    format!("{}{}", records.iter().map(paragraph).collect::<String>(), totals(records))
}

fn totals(records: &[UsageRecord]) -> String {
    let sum = |takes: &dyn Fn(&UsageRecord) -> bool| {
        size::decimal(records.iter().filter(|record| takes(record)).map(bytes).sum::<u64>())
    };
    let rows = [
        ("Shared", sum(&|record| record.shared)),
        ("Private", sum(&|record| !record.shared)),
        ("Reclaimable", sum(&|record| !record.in_use)),
        ("Total", sum(&|_| true)),
    ];
    rows.map(|(name, amount)| format!("{:<14}{amount}\n", format!("{name}:"))).concat()
}

fn bytes(record: &UsageRecord) -> u64 {
    u64::try_from(record.size).unwrap_or(0)
}

fn time(stamp: Option<Timestamp>) -> Option<jiff::Timestamp> {
    let Timestamp { seconds, nanos } = stamp?;
    jiff::Timestamp::new(seconds, nanos).ok()
}

/// Arguments of `builder prune`.
#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Remove also what images are made of
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Remove only these: until=24h, id=.., type=regular or type=exec.cachemount
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Keep so much of what was used last, such as 10g
    #[arg(long, visible_alias = "reserved-space", value_name = "SIZE")]
    keep_storage: Option<String>,
    /// Keep no more than this, such as 20g
    #[arg(long, value_name = "SIZE")]
    max_used_space: Option<String>,
    /// Remove until so much of the disk is free
    #[arg(long, value_name = "SIZE")]
    min_free_space: Option<String>,
}

async fn prune(context: &Context, args: &PruneArgs) -> Result<ExitCode> {
    let request = request(args)?;
    let what = if args.all { "all build cache" } else { "all build cache that no image is made of" };
    if !args.force && !confirm(&format!("WARNING! This will remove {what}."))? {
        return Ok(ExitCode::SUCCESS);
    }
    let builder = context.client.builder().await?;
    let mut records = Vec::new();
    builder.prune(request, |record| records.push(record)).await?;
    print(&removed(&records))
}

fn request(args: &PruneArgs) -> Result<PruneRequest> {
    let (keep_duration, filter) = selection(&args.filters)?;
    let space = |flag: &str, text: &Option<String>| -> Result<i64> {
        Ok(text.as_deref().map(value::bytes).transpose().context(|| format!("--{flag}"))?.unwrap_or(0))
    };
    Ok(PruneRequest {
        filter,
        all: args.all,
        keep_duration,
        reserved_space: space("reserved-space", &args.keep_storage)?,
        max_used_space: space("max-used-space", &args.max_used_space)?,
        min_free_space: space("min-free-space", &args.min_free_space)?,
    })
}

/// Takes the filters by age, in nanoseconds, out of all filters.
fn selection(filters: &[String]) -> Result<(i64, Vec<String>)> {
    let (ages, others): (Vec<&String>, Vec<&String>) =
        filters.iter().partition(|filter| filter.starts_with("until=") || filter.starts_with("unused-for="));
    let ages = ages.iter().map(|filter| {
        let age = filter.split_once('=').map_or("", |(_, age)| age);
        age_ns(age).context(|| format!("--filter {filter}"))
    });
    let ages: Vec<i64> = ages.collect::<Result<_>>()?;
    Ok((ages.into_iter().max().unwrap_or(0), others.into_iter().cloned().collect()))
}

/// Reads an age, such as `24h`, into nanoseconds.
fn age_ns(text: &str) -> Result<i64> {
    let age = config::duration(text).map_err(Error::invalid)?;
    i64::try_from(age.as_nanos()).map_err(|_| Error::invalid(format!("{text:?} is too long a time")))
}

fn removed(records: &[UsageRecord]) -> String {
    // What an image or a container needs too stays on the disk.
    let freed: u64 = records.iter().filter(|record| !record.shared).map(bytes).sum();
    let mut text = String::new();
    if !records.is_empty() {
        let rows = records
            .iter()
            .map(|record| format!("\n{}\t{}\t{}", record.id, record.record_type, size::decimal(bytes(record))));
        text = table::align(&format!("ID\tTYPE\tSIZE{}", rows.collect::<String>()));
        text.push('\n');
    }
    format!("{text}Total:\t{}\n", size::decimal(freed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_by_age_are_not_passed_on_as_filters() {
        let filters = vec!["until=1h".to_owned(), "type=regular".to_owned()];
        let args = PruneArgs {
            all: true,
            force: true,
            filters,
            keep_storage: Some("1g".to_owned()),
            max_used_space: None,
            min_free_space: Some("2g".to_owned()),
        };
        let request = request(&args).unwrap();
        assert_eq!((request.keep_duration, request.filter), (3_600_000_000_000, vec!["type=regular".to_owned()]));
        assert_eq!((request.all, request.reserved_space, request.max_used_space), (true, 1 << 30, 0));
        assert_eq!(request.min_free_space, 2 << 30);
    }

    #[test]
    fn what_was_removed_is_listed_with_what_it_freed() {
        let record = |id: &str, size, shared| UsageRecord {
            id: id.to_owned(),
            size,
            shared,
            record_type: "regular".to_owned(),
            ..UsageRecord::default()
        };
        let text = removed(&[record("a", 1500, false), record("b", 1, true)]);
        assert_eq!(
            text,
            "ID        TYPE      SIZE\na         regular   1.5kB\nb         regular   1B\nTotal:\t1.5kB\n"
        );
        assert_eq!(removed(&[]), "Total:\t0B\n");
    }
}
