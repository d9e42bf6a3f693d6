//! `history`: the builds of late, and with an image's name how that image was made, which docker calls by the same word.

mod inspect;
mod list;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::args::Context;
use super::build::{ProgressMode, replay};
use super::image::list::{HistoryArgs as ImageArgs, history as of_image};
use super::print;
use crate::client::Builder;
use crate::error::{Error, Result};
use crate::types::build::{BuildHistoryRecord, BuildHistoryRequest, UpdateBuildHistoryRequest, nanoseconds};

/// Arguments of `history`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct HistoryCommand {
    #[command(subcommand)]
    builds: Option<Builds>,
    #[command(flatten)]
    image: Option<ImageArgs>,
}

/// What is done with the records of builds. An image of such a name is reached by `image history`.
#[derive(Debug, Subcommand)]
enum Builds {
    /// List builds
    Ls(list::ListArgs),
    /// Show all about a build
    Inspect(inspect::InspectArgs),
    /// Print what a build printed
    Logs(LogsArgs),
    /// Remove records of builds
    Rm(RemoveArgs),
    #[command(hide = true, disable_help_flag = true)]
    Open(Absent),
    #[command(hide = true, disable_help_flag = true)]
    Export(Absent),
    #[command(hide = true, disable_help_flag = true)]
    Import(Absent),
    #[command(hide = true, disable_help_flag = true)]
    Trace(Absent),
}

/// What buildx has and Kiln has not.
#[derive(Debug, Args)]
struct Absent {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _rest: Vec<String>,
}

/// Arguments of `history logs`.
#[derive(Debug, Args)]
struct LogsArgs {
    /// The build, by its id or the beginning of it; ^1 is the one before the last (default: the last)
    #[arg(value_name = "BUILD")]
    build: Option<String>,
    /// How it is printed: plain or rawjson
    #[arg(long, value_enum, default_value = "plain", value_name = "MODE")]
    progress: ProgressMode,
}

/// Arguments of `history rm`.
#[derive(Debug, Args)]
struct RemoveArgs {
    /// Remove all records of builds that have ended
    #[arg(short, long, conflicts_with = "builds")]
    all: bool,
    /// The builds, by their ids or the beginnings of them
    #[arg(value_name = "BUILD", required_unless_present = "all")]
    builds: Vec<String>,
}

/// Runs `history`.
pub(super) async fn run(context: &Context, args: HistoryCommand) -> Result<ExitCode> {
    let absent = |command: &str, instead: &str| {
        Err(Error::unsupported(format!("kiln history {command} is not supported: {instead}")))
    };
    match (args.builds, args.image) {
        (Some(Builds::Ls(args)), _) => list::list(context, &args).await,
        (Some(Builds::Inspect(args)), _) => inspect::run(context, &args).await,
        (Some(Builds::Logs(args)), _) => logs(context, &args).await,
        (Some(Builds::Rm(args)), _) => remove(context, &args).await,
        (Some(Builds::Open(_)), _) => absent("open", "it is for Docker Desktop; kiln history inspect shows a build"),
        (Some(Builds::Export(_) | Builds::Import(_)), _) => absent(
            "export and import",
            "bundles are for Docker Desktop; kiln history logs --progress=rawjson writes a build's reports",
        ),
        (Some(Builds::Trace(_)), _) => absent("trace", "kiln history inspect shows how long steps took"),
        (None, Some(image)) => of_image(context, &image).await,
        (None, None) => Err(Error::invalid("name an image, or use ls, inspect, logs or rm for builds")),
    }
}

async fn logs(context: &Context, args: &LogsArgs) -> Result<ExitCode> {
    let builder = context.client.builder().await?;
    let record = find(&builder, args.build.as_deref()).await?;
    replay(context, &record.r#ref, args.progress).await
}

async fn remove(context: &Context, args: &RemoveArgs) -> Result<ExitCode> {
    let builder = context.client.builder().await?;
    let mut references = Vec::new();
    if args.all {
        let ended = builder.history(BuildHistoryRequest::default()).await?;
        references.extend(ended.into_iter().filter(|record| record.completed_at.is_some()).map(|record| record.r#ref));
    }
    for build in &args.builds {
        references.push(find(&builder, Some(build)).await?.r#ref);
    }
    for reference in references {
        let request = UpdateBuildHistoryRequest { r#ref: reference.clone(), delete: true, ..Default::default() };
        builder.update_history(request).await?;
        print(&format!("{reference}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds the record of a build: by its id or the beginning of it, by `^N`, or the newest.
async fn find(builder: &Builder, build: Option<&str>) -> Result<BuildHistoryRecord> {
    let mut records = builder.history(BuildHistoryRequest::default()).await?;
    records.sort_by_key(|record| std::cmp::Reverse(record.created_at.as_ref().map_or(0, nanoseconds)));
    choose(records, build)
}

fn choose(mut records: Vec<BuildHistoryRecord>, build: Option<&str>) -> Result<BuildHistoryRecord> {
    let build = build.unwrap_or("^0");
    if let Some(back) = build.strip_prefix('^') {
        let back: usize = back.parse().map_err(|_| Error::invalid(format!("{build:?}: expected ^ and a number")))?;
        let count = records.len();
        if back >= count {
            return Err(Error::not_found(format!("there is no build {build}: {count} are recorded")));
        }
        return Ok(records.swap_remove(back));
    }
    // Docker Desktop and buildx write BUILDER/NODE/ID.
    let id = build.rsplit('/').next().unwrap_or(build);
    if let Some(at) = records.iter().position(|record| record.r#ref == id) {
        return Ok(records.swap_remove(at));
    }
    records.retain(|record| !id.is_empty() && record.r#ref.starts_with(id));
    match records.len() {
        1 => Ok(records.remove(0)),
        0 => Err(Error::not_found(format!("no record of a build {build:?} (kiln history ls lists them)"))),
        count => Err(Error::invalid(format!("{count} builds begin with {build:?}: write more of the id"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<BuildHistoryRecord> {
        let record = |reference: &str| BuildHistoryRecord { r#ref: reference.to_owned(), ..Default::default() };
        ["new", "abc", "abd", "ab"].map(record).into()
    }

    #[test]
    fn a_build_is_found_by_its_id_or_its_place() {
        let chosen = |build| choose(records(), build).map(|record| record.r#ref);
        assert_eq!(chosen(None).unwrap(), "new");
        assert_eq!(chosen(Some("^1")).unwrap(), "abc");
        assert_eq!(chosen(Some("default/default/abd")).unwrap(), "abd");
        assert_eq!(chosen(Some("n")).unwrap(), "new");
        assert_eq!(chosen(Some("ab")).unwrap(), "ab", "an id that others begin with");
        for (build, words) in [("a", "3 builds"), ("x", "no record"), ("^9", "4 are recorded"), ("^x", "number")] {
            assert!(chosen(Some(build)).unwrap_err().to_string().contains(words), "{build}");
        }
    }
}
