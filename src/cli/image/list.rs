//! `images` and `history`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;

use crate::cli::args::Context;
use crate::cli::format::{Format, Listing, Row, duration, size};
use crate::cli::{print, value};
use crate::client::Query;
use crate::error::Result;
use crate::types::{ImageHistoryResponseItem, ImageSummary};

const NONE: &str = "<none>";

/// Arguments of `images`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    /// Show all images; Kiln keeps none that this would add
    #[arg(short, long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Filter: before, dangling, label, reference, since, until
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// `table`, `table TEMPLATE`, `json` or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Only images of this name, a pattern
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
}

const IMAGES: Listing = Listing {
    fields: &[
        ("ID", "IMAGE ID"),
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
        ("Containers", "CONTAINERS"),
        ("VirtualSize", "SIZE"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
    ],
    columns: &["Repository", "Tag", "ID", "CreatedSince", "Size"],
};

const WITH_DIGESTS: Listing =
    Listing { columns: &["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"], ..IMAGES };

pub(super) async fn list(context: &Context, args: &ListArgs) -> Result<ExitCode> {
    let mut filters = value::filters(&args.filter)?;
    if let Some(name) = &args.name {
        filters.entry("reference".to_owned()).or_default().push(name.clone());
    }
    let format = Format::parse(if args.quiet { Some("{{.ID}}") } else { args.format.as_deref() })?;
    let query = Query::new().with_flag("all", args.all).with_flag("digests", args.digests).with_filters(&filters);
    let images: Vec<ImageSummary> = context.client.get(&query.path(&["images", "json"])).await?;
    let now = SystemTime::now();
    let rows: Vec<Row> = images.iter().flat_map(|image| rows(image, args, now)).collect();
    let listing = if args.digests { WITH_DIGESTS } else { IMAGES };
    print(&listing.render(&rows, &format)?)
}

/// One row for each name of an image.
fn rows(image: &ImageSummary, args: &ListArgs, now: SystemTime) -> Vec<Row> {
    let mut rows = Vec::new();
    for (repository, tag, digest) in names(image, args.digests) {
        rows.push(row(image, &repository, &tag, &digest, args.no_trunc, now));
    }
    rows
}

/// The names of an image as repository, tag and digest. Digests make rows of their own when they are shown, or when the
/// repository has no tag.
fn names(image: &ImageSummary, with_digests: bool) -> Vec<(String, String, String)> {
    let known = |names: &[String]| names.iter().filter(|name| !name.starts_with(NONE)).cloned().collect::<Vec<_>>();
    let mut repositories: Vec<(String, Vec<String>, Vec<String>)> = Vec::new();
    let mut entry = |repository: &str| -> usize {
        let at = repositories.iter().position(|(known, ..)| known == repository);
        at.unwrap_or_else(|| {
            repositories.push((repository.to_owned(), Vec::new(), Vec::new()));
            repositories.len() - 1
        })
    };
    let (mut tags, mut digests) = (Vec::new(), Vec::new());
    for name in known(&image.repo_tags) {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((&name, NONE));
        tags.push((entry(repository), tag.to_owned()));
    }
    for name in known(&image.repo_digests) {
        let (repository, digest) = name.split_once('@').unwrap_or((&name, NONE));
        digests.push((entry(repository), digest.to_owned()));
    }
    tags.into_iter().for_each(|(at, tag)| repositories[at].1.push(tag));
    digests.into_iter().for_each(|(at, digest)| repositories[at].2.push(digest));
    let mut names = Vec::new();
    for (repository, tags, digests) in repositories {
        let name = |tag: &str, digest: &str| (repository.clone(), tag.to_owned(), digest.to_owned());
        match (tags.is_empty(), with_digests && !digests.is_empty()) {
            (true, true) => names.extend(digests.iter().map(|digest| name(NONE, digest))),
            (true, false) => names.push(name(NONE, NONE)),
            (false, true) => {
                names.extend(
                    tags.iter()
                        .flat_map(|tag| digests.iter().map(move |digest| (tag, digest)))
                        .map(|(tag, digest)| name(tag, digest)),
                );
            }
            (false, false) => names.extend(tags.iter().map(|tag| name(tag, NONE))),
        }
    }
    if names.is_empty() {
        names.push((NONE.to_owned(), NONE.to_owned(), NONE.to_owned()));
    }
    names
}

fn row(image: &ImageSummary, repository: &str, tag: &str, digest: &str, no_trunc: bool, now: SystemTime) -> Row {
    let bytes = |bytes: i64| u64::try_from(bytes).map_or_else(|_| "N/A".to_owned(), size::decimal);
    let unique = if image.shared_size < 0 { -1 } else { image.size - image.shared_size };
    let containers = if image.containers < 0 { "N/A".to_owned() } else { image.containers.to_string() };
    Row::new([
        ("ID", if no_trunc { image.id.clone() } else { short(&image.id) }),
        ("Repository", repository.to_owned()),
        ("Tag", tag.to_owned()),
        ("Digest", digest.to_owned()),
        ("CreatedSince", since(image.created, now)),
        ("CreatedAt", at(image.created)),
        ("Size", bytes(image.size)),
        ("Containers", containers),
        ("VirtualSize", bytes(image.size)),
        ("SharedSize", bytes(image.shared_size)),
        ("UniqueSize", bytes(unique)),
    ])
}

/// The first twelve digits of an id.
pub(in crate::cli) fn short(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect()
}

/// `3 hours ago`, for seconds since 1970.
pub(in crate::cli) fn since(seconds: i64, now: SystemTime) -> String {
    // Images without a time, as reproducible builds make them.
    if seconds <= 0 {
        return "N/A".to_owned();
    }
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs());
    format!("{} ago", duration::words(now.duration_since(then).unwrap_or_default()))
}

/// A time as Go prints it: `2026-11-26 07:00:00 +0000 UTC`.
pub(in crate::cli) fn at(seconds: i64) -> String {
    let zoned = jiff::Timestamp::from_second(seconds).unwrap_or_default().to_zoned(jiff::tz::TimeZone::system());
    zoned.strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string()
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub(in crate::cli) struct HistoryArgs {
    /// `table`, `table TEMPLATE`, `json` or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Print sizes and times for people
    #[arg(
        short = 'H',
        long,
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    human: bool,
    /// Do not shorten anything
    #[arg(long)]
    no_trunc: bool,
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// The image
    image: String,
}

const HISTORY: Listing = Listing {
    fields: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
    columns: &["ID", "CreatedSince", "CreatedBy", "Size", "Comment"],
};

const HISTORY_EXACT: Listing = Listing { columns: &["ID", "CreatedAt", "CreatedBy", "Size", "Comment"], ..HISTORY };

/// Characters of an instruction that a table shows.
const INSTRUCTION: usize = 45;

pub(in crate::cli) async fn history(context: &Context, args: &HistoryArgs) -> Result<ExitCode> {
    let path = Query::new().path(&["images", &args.image, "history"]);
    let entries: Vec<ImageHistoryResponseItem> = context.client.get(&path).await?;
    let format = Format::parse(if args.quiet { Some("{{.ID}}") } else { args.format.as_deref() })?;
    let now = SystemTime::now();
    let rows: Vec<Row> = entries.iter().map(|entry| history_row(entry, args, now)).collect();
    let listing = if args.human { HISTORY } else { HISTORY_EXACT };
    print(&listing.render(&rows, &format)?)
}

fn history_row(entry: &ImageHistoryResponseItem, args: &HistoryArgs, now: SystemTime) -> Row {
    let created = jiff::Timestamp::from_second(entry.created).unwrap_or_default();
    let created = created.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    let created = created.replace("+00:00", "Z");
    let instruction = entry.created_by.replace('\t', " ");
    let bytes = u64::try_from(entry.size).unwrap_or(0);
    Row::new([
        ("ID", if args.no_trunc { entry.id.clone() } else { short(&entry.id) }),
        ("CreatedSince", if args.human { since(entry.created, now) } else { created.clone() }),
        ("CreatedAt", created),
        ("CreatedBy", if args.no_trunc { instruction } else { value::ellipsis(&instruction, INSTRUCTION) }),
        ("Size", if args.human { size::decimal(bytes) } else { bytes.to_string() }),
        ("Comment", entry.comment.clone()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tags: &[&str], digests: &[&str]) -> ImageSummary {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        ImageSummary { repo_tags: owned(tags), repo_digests: owned(digests), ..ImageSummary::default() }
    }

    fn rows(image: &ImageSummary, with_digests: bool) -> Vec<String> {
        let rows = names(image, with_digests).into_iter();
        rows.map(|(repository, tag, digest)| format!("{repository} {tag} {digest}")).collect()
    }

    #[test]
    fn every_name_of_an_image_is_a_row() {
        let two = image(&["a:1", "a:2", "h:5000/b:1"], &["a@sha256:x"]);
        assert_eq!(rows(&two, false), ["a 1 <none>", "a 2 <none>", "h:5000/b 1 <none>"]);
        assert_eq!(rows(&two, true), ["a 1 sha256:x", "a 2 sha256:x", "h:5000/b 1 <none>"]);
        let pulled = image(&[], &["a@sha256:x"]);
        assert_eq!(rows(&pulled, false), ["a <none> <none>"]);
        assert_eq!(rows(&pulled, true), ["a <none> sha256:x"]);
        assert_eq!(rows(&image(&["<none>:<none>"], &["<none>@<none>"]), true), ["<none> <none> <none>"]);
    }
}
