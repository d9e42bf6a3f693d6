//! `system df`.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde_json::Value as Json;

use crate::cli::args::Context;
use crate::cli::format::{Format, Listing, Row, size};
use crate::cli::image::list::{short, since};
use crate::cli::{print, value};
use crate::error::{Error, Result};

/// Arguments of `system df`.
#[derive(Debug, Args)]
pub(in crate::cli) struct DfArgs {
    /// `table`, `table TEMPLATE`, `json` or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Show every object
    #[arg(short, long)]
    verbose: bool,
}

const SUMMARY: Listing = Listing {
    fields: &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ],
    columns: &["Type", "TotalCount", "Active", "Size", "Reclaimable"],
};

pub(super) async fn df(context: &Context, args: &DfArgs) -> Result<ExitCode> {
    let usage: Json = context.client.get("/system/df").await?;
    if args.verbose {
        return match args.format.as_deref() {
            None | Some("table") => print(&verbose(&usage)?),
            Some("json") => print(&format!("{usage}\n")),
            Some(_) => Err(Error::invalid("--verbose goes with `table` and `json` only")),
        };
    }
    print(&SUMMARY.render(&summary(&usage), &Format::parse(args.format.as_deref())?)?)
}

/// One line of the summary.
struct Line {
    kind: &'static str,
    total: usize,
    active: usize,
    size: u64,
    reclaimable: u64,
}

impl Line {
    fn row(&self) -> Row {
        // What is larger than all of it cannot be.
        let reclaimable = self.reclaimable.min(self.size);
        let share = if self.size > 0 { u128::from(reclaimable) * 100 / u128::from(self.size) } else { 0 };
        let reclaimable = size::decimal(reclaimable);
        Row::new([
            ("Type", self.kind.to_owned()),
            ("TotalCount", self.total.to_string()),
            ("Active", self.active.to_string()),
            ("Size", size::decimal(self.size)),
            ("Reclaimable", if self.size > 0 { format!("{reclaimable} ({share}%)") } else { reclaimable }),
        ])
    }
}

fn number(value: &Json) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn items<'a>(usage: &'a Json, name: &str) -> &'a [Json] {
    usage[name].as_array().map_or(&[], Vec::as_slice)
}

fn sum<'a>(items: impl Iterator<Item = &'a Json>, field: &str) -> u64 {
    items.map(|item| number(&item[field])).sum()
}

fn is_running(container: &Json) -> bool {
    matches!(container["State"].as_str(), Some("running" | "paused" | "restarting"))
}

fn summary(usage: &Json) -> Vec<Row> {
    let (images, containers) = (items(usage, "Images"), items(usage, "Containers"));
    let (volumes, cache) = (items(usage, "Volumes"), items(usage, "BuildCache"));
    let layers = number(&usage["LayersSize"]);
    let used = |image: &&Json| image["Containers"].as_i64().unwrap_or(0) > 0;
    let unique = |image: &Json| number(&image["Size"]).saturating_sub(number(&image["SharedSize"]));
    let needed: u64 = images.iter().filter(used).map(unique).sum();
    let has_user = |volume: &&Json| volume["UsageData"]["RefCount"].as_i64().unwrap_or(0) > 0;
    let volume_size = |volume: &Json| number(&volume["UsageData"]["Size"]);
    let own = || cache.iter().filter(|record| record["Shared"] != Json::Bool(true));
    let in_use = |record: &&Json| record["InUse"] == Json::Bool(true);
    let mut lines = vec![
        Line {
            kind: "Images",
            total: images.len(),
            active: images.iter().filter(used).count(),
            size: layers,
            reclaimable: layers.saturating_sub(needed),
        },
        Line {
            kind: "Containers",
            total: containers.len(),
            active: containers.iter().filter(|container| is_running(container)).count(),
            size: sum(containers.iter(), "SizeRw"),
            reclaimable: sum(containers.iter().filter(|container| !is_running(container)), "SizeRw"),
        },
        Line {
            kind: "Local Volumes",
            total: volumes.len(),
            active: volumes.iter().filter(has_user).count(),
            size: volumes.iter().map(volume_size).sum(),
            reclaimable: volumes.iter().filter(|volume| !has_user(volume)).map(volume_size).sum(),
        },
        Line {
            kind: "Build Cache",
            total: cache.len(),
            active: cache.iter().filter(in_use).count(),
            size: sum(own(), "Size"),
            reclaimable: sum(own().filter(|record| !in_use(record)), "Size"),
        },
    ];
    if let Some(size) = usage["OtherSize"].as_u64() {
        lines.push(Line { kind: "Records", total: 0, active: 0, size, reclaimable: 0 });
    }
    lines.iter().map(Line::row).collect()
}

const IMAGES: Listing = Listing {
    fields: &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("Size", "SIZE"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
        ("Containers", "CONTAINERS"),
    ],
    columns: &["Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "UniqueSize", "Containers"],
};

const CONTAINERS: Listing = Listing {
    fields: &[
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("Size", "SIZE"),
        ("CreatedSince", "CREATED"),
        ("Status", "STATUS"),
        ("Names", "NAMES"),
    ],
    columns: &["ID", "Image", "Command", "Size", "CreatedSince", "Status", "Names"],
};

const VOLUMES: Listing = Listing {
    fields: &[("Name", "VOLUME NAME"), ("Links", "LINKS"), ("Size", "SIZE")],
    columns: &["Name", "Links", "Size"],
};

const CACHE: Listing = Listing {
    fields: &[
        ("ID", "CACHE ID"),
        ("Type", "CACHE TYPE"),
        ("Size", "SIZE"),
        ("CreatedSince", "CREATED"),
        ("LastUsedSince", "LAST USED"),
        ("UsageCount", "USAGE"),
        ("Shared", "SHARED"),
        ("Description", "DESCRIPTION"),
    ],
    columns: &["ID", "Type", "Size", "CreatedSince", "LastUsedSince", "UsageCount", "Shared", "Description"],
};

fn verbose(usage: &Json) -> Result<String> {
    let now = SystemTime::now();
    let table = Format::Table(None);
    let section = |head: &str, listing: Listing, name: &str, row: fn(&Json, SystemTime) -> Row| -> Result<String> {
        let rows: Vec<Row> = items(usage, name).iter().map(|item| row(item, now)).collect();
        Ok(format!("{head}\n\n{}\n", listing.render(&rows, &table)?))
    };
    let images = section("Images space usage:", IMAGES, "Images", image_row)?;
    let containers = section("Containers space usage:", CONTAINERS, "Containers", container_row)?;
    let volumes = section("Local Volumes space usage:", VOLUMES, "Volumes", volume_row)?;
    let own = items(usage, "BuildCache").iter().filter(|record| record["Shared"] != Json::Bool(true));
    let head = format!("Build cache usage: {}", size::decimal(sum(own, "Size")));
    let cache = section(&head, CACHE, "BuildCache", cache_row)?;
    Ok(format!("{images}{containers}{volumes}{cache}").trim_end().to_owned() + "\n")
}

fn text(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn image_row(image: &Json, now: SystemTime) -> Row {
    let name = text(&image["RepoTags"][0]);
    let (repository, tag) = name.rsplit_once(':').unwrap_or(("<none>", "<none>"));
    let (size, shared) = (number(&image["Size"]), number(&image["SharedSize"]));
    Row::new([
        ("Repository", repository.to_owned()),
        ("Tag", tag.to_owned()),
        ("ID", short(&text(&image["Id"]))),
        ("CreatedSince", since(image["Created"].as_i64().unwrap_or(0), now)),
        ("Size", size::decimal(size)),
        ("SharedSize", size::decimal(shared)),
        ("UniqueSize", size::decimal(size.saturating_sub(shared))),
        ("Containers", image["Containers"].to_string()),
    ])
}

fn container_row(container: &Json, now: SystemTime) -> Row {
    Row::new([
        ("ID", short(&text(&container["Id"]))),
        ("Image", text(&container["Image"])),
        ("Command", format!("\"{}\"", value::ellipsis(&text(&container["Command"]), 20))),
        ("Size", size::decimal(number(&container["SizeRw"]))),
        ("CreatedSince", since(container["Created"].as_i64().unwrap_or(0), now)),
        ("Status", text(&container["Status"])),
        ("Names", text(&container["Names"][0]).trim_start_matches('/').to_owned()),
    ])
}

fn volume_row(volume: &Json, _now: SystemTime) -> Row {
    Row::new([
        ("Name", text(&volume["Name"])),
        ("Links", volume["UsageData"]["RefCount"].to_string()),
        ("Size", size::decimal(number(&volume["UsageData"]["Size"]))),
    ])
}

fn cache_row(record: &Json, now: SystemTime) -> Row {
    let time = |field: &str| record[field].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let ago = |field: &str| time(field).map(|time| since(time.as_second(), now)).unwrap_or_default();
    Row::new([
        ("ID", text(&record["ID"])),
        ("Type", text(&record["Type"])),
        ("Size", size::decimal(number(&record["Size"]))),
        ("CreatedSince", ago("CreatedAt")),
        ("LastUsedSince", ago("LastUsedAt")),
        ("UsageCount", record["UsageCount"].to_string()),
        ("Shared", record["Shared"].to_string()),
        ("Description", value::ellipsis(&text(&record["Description"]).replace(['\n', '\t'], " "), 60)),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_shared_counts_once() {
        let usage = json!({
            "LayersSize": 1_000_000,
            "Images": [
                { "Size": 600_000, "SharedSize": 100_000, "Containers": 1 },
                { "Size": 500_000, "SharedSize": 100_000, "Containers": 0 },
            ],
            "Containers": [{ "SizeRw": 10_000, "State": "running" }, { "SizeRw": 20_000, "State": "exited" }],
            "Volumes": [],
            "BuildCache": [
                { "Size": 7_000, "Shared": true, "InUse": false },
                { "Size": 3_000, "Shared": false, "InUse": false },
            ],
        });
        let table = SUMMARY.render(&summary(&usage), &Format::Table(None)).unwrap();
        assert_eq!(
            table,
            "TYPE            TOTAL     ACTIVE    SIZE      RECLAIMABLE\n\
             Images          2         1         1MB       500kB (50%)\n\
             Containers      2         1         30kB      20kB (66%)\n\
             Local Volumes   0         0         0B        0B\n\
             Build Cache     2         0         3kB       3kB (100%)\n"
        );
    }
}
