//! `gc`: bringing the build cache within its limits and removing what nobody needs, or saying why things stay.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::cli::args::Context;
use crate::cli::format::{size, table};
use crate::cli::{print, value};
use crate::error::{Error, Result};

/// Arguments of `gc`.
#[derive(Debug, Args)]
pub(in crate::cli) struct GcArgs {
    /// Remove nothing; say of everything who needs it, or why it would go
    #[arg(long)]
    why: bool,
    /// Print JSON
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Characters of what a table says in its last column.
const REASON: usize = 120;

/// How many of those that need a thing are named.
const HOLDERS: usize = 3;

pub(in crate::cli) async fn gc(context: &Context, args: &GcArgs) -> Result<ExitCode> {
    let json = match args.format.as_deref() {
        None => false,
        Some("json") => true,
        Some(other) => return Err(Error::invalid(format!("--format {other}: only json is there"))),
    };
    let answer: Value = match args.why {
        true => context.client.get("/gc").await?,
        false => context.client.post_empty("/gc").await?,
    };
    match (json, args.why) {
        (true, _) => print(&format!("{}\n", serde_json::to_string_pretty(&answer)?)),
        (false, true) => print(&why(&answer)),
        (false, false) => print(&collected(&answer)),
    }
}

fn collected(answer: &Value) -> String {
    let records = answer["CachesDeleted"].as_array().map_or(0, Vec::len);
    let number = |key: &str| answer[key].as_u64().unwrap_or(0);
    format!(
        "removed {records} records of the build cache, {} layers and {} blobs\nTotal reclaimed space: {}\n",
        number("Snapshots"),
        number("Blobs"),
        size::decimal(number("SpaceReclaimed"))
    )
}

fn why(answer: &Value) -> String {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().replace(['\t', '\n'], " ");
    let rows = |list: &str, row: &dyn Fn(&Value) -> String| -> String {
        answer[list].as_array().into_iter().flatten().map(|one| format!("\n{}", row(one))).collect()
    };
    let size = |one: &Value| size::decimal(one["Size"].as_u64().unwrap_or(0));
    let fate = |one: &Value| if one["Removed"].as_bool() == Some(true) { "goes" } else { "stays" };
    let record = |one: &Value| {
        let described = value::ellipsis(&text(one, "Description"), 40);
        format!("{}\t{described}\t{}\t{}\t{}", text(one, "ID"), size(one), fate(one), text(one, "Why"))
    };
    let object = |one: &Value| {
        let holders: Vec<&str> = one["KeptBy"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut needed =
            holders.iter().take(HOLDERS).copied().collect::<Vec<_>>().join(", ").replace(['\t', '\n'], " ");
        if holders.len() > HOLDERS {
            needed = format!("{needed} and {} more", holders.len() - HOLDERS);
        }
        if holders.is_empty() {
            "nobody: the next collection removes it".clone_into(&mut needed);
        }
        let id = text(one, "ID");
        let id = id.strip_prefix("sha256:").map_or(id.as_str(), |hex| hex.get(..12).unwrap_or(hex)).to_owned();
        format!("{}\t{id}\t{}\t{}\t{}", text(one, "Type"), size(one), fate(one), value::ellipsis(&needed, REASON))
    };
    let records = table::align(&format!("CACHE RECORD\tDESCRIPTION\tSIZE\tFATE\tWHY{}", rows("Records", &record)));
    let objects = table::align(&format!("OBJECT\tID\tSIZE\tFATE\tNEEDED BY{}", rows("Objects", &object)));
    format!("{records}\n\n{objects}\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_is_told_with_its_reason() {
        let answer = json!({
            "Records": [{ "ID": "step1", "Description": "RUN x", "Size": 5, "Removed": true, "Why": "policy 1: old" }],
            "Objects": [
                { "ID": "sha256:0123456789abcdef", "Type": "blob", "Size": 1000, "Removed": false, "KeptBy": ["a", "b", "c", "d"] },
                { "ID": "7", "Type": "layer", "Size": 0, "Removed": true, "KeptBy": [] },
            ],
        });
        let text = why(&answer);
        for words in ["policy 1: old", "0123456789ab", "a, b, c and 1 more", "nobody: the next collection removes it"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains("0123456789abc"), "{text}");
    }
}
