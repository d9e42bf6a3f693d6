//! `builder`: the build cache.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::args::Context;
use super::confirm::confirm;
use super::format::{size, table};
use super::{print, value};
use crate::error::{Error, Result, ResultExt as _};
use crate::types::build::{PruneRequest, UsageRecord};

/// `kiln builder ...`.
#[derive(Debug, Subcommand)]
pub(super) enum Grouped {
    /// Build an image from a Dockerfile
    Build(Box<super::build::BuildArgs>),
    /// Remove the build cache
    Prune(PruneArgs),
}

impl Grouped {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Build(args) => super::build::Flat::Build(args).run(context).await,
            Self::Prune(args) => prune(context, &args).await,
        }
    }
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
    let (ages, filter): (Vec<&String>, Vec<&String>) =
        args.filters.iter().partition(|filter| filter.starts_with("until=") || filter.starts_with("unused-for="));
    let ages = ages.iter().map(|filter| {
        let age = filter.split_once('=').map_or("", |(_, age)| age);
        age_ns(age).context(|| format!("--filter {filter}"))
    });
    let ages: Vec<i64> = ages.collect::<Result<_>>()?;
    let keep = args.keep_storage.as_deref().map(value::bytes).transpose().context(|| "--keep-storage")?;
    Ok(PruneRequest {
        filter: filter.into_iter().cloned().collect(),
        all: args.all,
        keep_duration: ages.into_iter().max().unwrap_or(0),
        reserved_space: keep.unwrap_or(0),
        max_used_space: keep.unwrap_or(0),
        min_free_space: 0,
    })
}

/// Reads an age as Go writes lengths of time: `24h`, `1h30m`, `90s`.
fn age_ns(text: &str) -> Result<i64> {
    let invalid = || Error::invalid(format!("{text:?} is not a length of time, such as 24h or 1h30m"));
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let seconds = match &tail[..unit] {
            "h" => number.checked_mul(3600),
            "m" => number.checked_mul(60),
            "s" => Some(number),
            _ => None,
        };
        total = total.checked_add(Duration::from_secs(seconds.ok_or_else(invalid)?)).ok_or_else(invalid)?;
        rest = &tail[unit..];
    }
    let ns = i64::try_from(total.as_nanos()).map_err(|_| invalid())?;
    if text.is_empty() { Err(invalid()) } else { Ok(ns) }
}

fn removed(records: &[UsageRecord]) -> String {
    let bytes = |record: &UsageRecord| u64::try_from(record.size).unwrap_or(0);
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
    fn ages_are_written_as_in_go() {
        assert_eq!(age_ns("24h").unwrap(), 86_400_000_000_000);
        assert_eq!(age_ns("1h30m10s").unwrap(), 5_410_000_000_000);
        for text in ["", "24", "h", "1d", "-1h", "99999999999h"] {
            assert!(age_ns(text).is_err(), "{text}");
        }
    }

    #[test]
    fn filters_by_age_are_not_passed_on_as_filters() {
        let filters = vec!["until=1h".to_owned(), "type=regular".to_owned()];
        let args = PruneArgs { all: true, force: true, filters, keep_storage: Some("1g".to_owned()) };
        let request = request(&args).unwrap();
        assert_eq!((request.keep_duration, request.filter), (3_600_000_000_000, vec!["type=regular".to_owned()]));
        assert_eq!((request.all, request.max_used_space), (true, 1 << 30));
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
