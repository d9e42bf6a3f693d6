//! `ps`: the containers there are.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Args;
use jiff::tz::TimeZone;

use super::{ports, preferences};
use crate::cli::args::Context;
use crate::cli::format::{Format, Listing, Row, duration, size};
use crate::cli::{print, value};
use crate::client::Query;
use crate::error::Result;
use crate::types::{ContainerSummary, MountPoint};

/// Arguments of `ps`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    /// Show also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Show only those that match, such as status=exited or label=tier=front
    #[arg(short, long, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// table, json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show so many of those last created, whatever their state
    #[arg(short = 'n', long, value_name = "NUMBER", allow_hyphen_values = true)]
    last: Option<i64>,
    /// Show the one last created, whatever its state
    #[arg(short, long)]
    latest: bool,
    /// Show ids and commands in full
    #[arg(long)]
    no_trunc: bool,
    /// Show ids only
    #[arg(short, long)]
    quiet: bool,
    /// Show sizes
    #[arg(short, long)]
    size: bool,
}

const LISTING: Listing = Listing {
    fields: &[
        ("ID", "CONTAINER ID"),
        ("Names", "NAMES"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("CreatedAt", "CREATED AT"),
        ("RunningFor", "CREATED"),
        ("Ports", "PORTS"),
        ("State", "STATE"),
        ("Status", "STATUS"),
        ("Size", "SIZE"),
        ("Labels", "LABELS"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Mounts", "MOUNTS"),
        ("Networks", "NETWORKS"),
        ("HealthStatus", "HEALTH"),
    ],
    columns: &["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"],
};

const COLUMNS_WITH_SIZE: &[&str] = &["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names", "Size"];

/// The length of commands and mounts, and of ids.
const CELL: usize = 20;
const SHORT_ID: usize = 12;

pub(super) async fn list(context: &Context, args: &ListArgs) -> Result<ExitCode> {
    let preferred = if args.quiet { None } else { args.format.clone().or_else(|| preferences::ps_format(context)) };
    let format = Format::parse(preferred.as_deref())?;
    // Sizes take the engine time, so they are asked for only when they are shown.
    let with_size = args.size || preferred.as_deref().is_some_and(|format| format.contains(".Size"));
    let last = if args.latest { Some(1) } else { args.last.filter(|last| *last > 0) };
    let path = Query::new()
        .with_flag("all", args.all || last.is_some())
        .with_some("limit", last.map(|last| last.to_string()))
        .with_flag("size", with_size)
        .with_filters(&value::filters(&args.filter)?)
        .path(&["containers", "json"]);
    let containers: Vec<ContainerSummary> = context.client.get(&path).await?;
    let length = if args.no_trunc { Length::Full } else { Length::Cut };
    if args.quiet {
        return print(&containers.iter().map(|container| id(container, length) + "\n").collect::<String>());
    }
    let now = SystemTime::now();
    let rows: Vec<Row> = containers.iter().map(|container| row(container, length, now, &TimeZone::system())).collect();
    let listing = if args.size { Listing { columns: COLUMNS_WITH_SIZE, ..LISTING } } else { LISTING };
    print(&listing.render(&rows, &format)?)
}

/// Whether long texts are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Cut,
    Full,
}

impl Length {
    fn of(self, text: &str, length: usize) -> String {
        if self == Self::Full || text.chars().count() <= length {
            return text.to_owned();
        }
        let kept: String = text.chars().take(length - 1).collect();
        kept + "…"
    }
}

fn id(container: &ContainerSummary, length: Length) -> String {
    let id = container.id.as_deref().unwrap_or_default();
    let end = if length == Length::Cut { SHORT_ID.min(id.len()) } else { id.len() };
    id.get(..end).unwrap_or(id).to_owned()
}

fn row(container: &ContainerSummary, length: Length, now: SystemTime, zone: &TimeZone) -> Row {
    let labels: BTreeMap<String, String> = container.labels.clone().unwrap_or_default().into_iter().collect();
    let created_s = container.created.unwrap_or(0);
    let created = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(created_s).unwrap_or(0));
    let age = duration::words(now.duration_since(created).unwrap_or_default());
    let mounts = container.mounts.as_deref().unwrap_or_default();
    let networks = container.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let mut networks: Vec<&str> = networks.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    networks.sort_unstable();
    let local = mounts.iter().filter(|mount| mount.driver.as_deref() == Some("local")).count();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Row::new([
        ("ID", id(container, length)),
        ("Names", names(container)),
        ("Image", image(container, length)),
        ("Command", format!("\"{}\"", length.of(&text(&container.command), CELL))),
        ("CreatedAt", local_time(created_s, zone)),
        ("RunningFor", format!("{age} ago")),
        ("Ports", ports::describe(container.ports.as_deref().unwrap_or_default())),
        ("State", container.state.map(|state| state.to_string()).unwrap_or_default()),
        ("Status", text(&container.status)),
        ("Size", sizes(container)),
        ("Labels", labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")),
        ("LocalVolumes", local.to_string()),
        ("Mounts", mounts.iter().map(|mount| length.of(&mount_name(mount), CELL)).collect::<Vec<_>>().join(",")),
        ("Networks", networks.join(",")),
        ("HealthStatus", container.health.as_ref().and_then(|h| h.status).map(|s| s.to_string()).unwrap_or_default()),
    ])
    .with_labels(labels)
}

/// A name with a second slash is another container's name for this one.
fn names(container: &ContainerSummary) -> String {
    let names = container.names.iter().flatten().map(|name| name.trim_start_matches('/'));
    let own: Vec<&str> = names.filter(|name| !name.contains('/')).collect();
    own.join(",")
}

/// An image that has lost its name is shown by its id.
fn image(container: &ContainerSummary, length: Length) -> String {
    let name = container.image.as_deref().unwrap_or_default();
    match (name, name.strip_prefix("sha256:")) {
        ("", _) => "<no image>".to_owned(),
        (_, Some(digest)) if length == Length::Cut => digest.chars().take(SHORT_ID).collect(),
        _ => name.to_owned(),
    }
}

fn mount_name(mount: &MountPoint) -> String {
    match mount.name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) if mount.typ.as_deref() == Some("volume") => name.to_owned(),
        _ => mount.source.clone().unwrap_or_default(),
    }
}

fn sizes(container: &ContainerSummary) -> String {
    let bytes = |size: Option<i64>| size::decimal(u64::try_from(size.unwrap_or(0)).unwrap_or(0));
    match container.size_root_fs {
        Some(total) if total > 0 => format!("{} (virtual {})", bytes(container.size_rw), bytes(Some(total))),
        _ => bytes(container.size_rw),
    }
}

/// Go's notation of a time.
fn local_time(seconds: i64, zone: &TimeZone) -> String {
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) => time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn containers() -> Vec<ContainerSummary> {
        serde_json::from_str(include_str!("../../../testdata/api/containers.json")).unwrap()
    }

    fn render(length: Length, format: Option<&str>, columns: &'static [&'static str]) -> String {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let rows: Vec<Row> = containers().iter().map(|container| row(container, length, now, &TimeZone::UTC)).collect();
        Listing { columns, ..LISTING }.render(&rows, &Format::parse(format).unwrap()).unwrap()
    }

    #[test]
    fn the_table_is_dockers() {
        let expected = "\
CONTAINER ID   IMAGE          COMMAND                  CREATED              STATUS                     PORTS                                                  NAMES
4f1c8d9a2b3e   busybox        \"sleep 1000\"             2 minutes ago        Up 2 minutes               0.0.0.0:8000-8001->80-81/tcp, 127.0.0.1:5353->53/udp   web,other
0a1b2c3d4e5f   0123456789ab   \"sh -c 'echo a very …\"   About a minute ago   Exited (0) 3 seconds ago   9000/tcp                                               quiet_kiln
";
        assert_eq!(render(Length::Cut, None, LISTING.columns), expected);
    }

    #[test]
    fn a_template_finds_every_field() {
        let all: Vec<String> = LISTING.fields.iter().map(|(name, _)| format!("{name}={{{{.{name}}}}}")).collect();
        let lines = render(Length::Full, Some(&all.join("|")), LISTING.columns);
        let first = lines.lines().next().unwrap();
        for part in [
            "ID=4f1c8d9a2b3e4f1c8d9a2b3e4f1c8d9a2b3e4f1c8d9a2b3e4f1c8d9a2b3e0000|",
            "CreatedAt=2023-11-14 22:11:20 +0000 UTC|",
            "State=running|",
            "Size=12B (virtual 4.26MB)|",
            "Labels=a=b,tier=front|",
            "LocalVolumes=1|",
            "Mounts=/a/long/directory/of/the/host,data|",
            "Networks=bridge,other|",
            "HealthStatus=healthy",
        ] {
            assert!(first.contains(part), "{part} in {first}");
        }
        assert!(lines.contains("Command=\"sh -c 'echo a very long command'\"|"), "{lines}");
        assert_eq!(render(Length::Cut, Some("{{.Label \"tier\"}}"), LISTING.columns), "front\n\n");
    }
}
