//! Commands that do one thing to each container they are given: `stop`, `kill`, `restart`, `rm`, `wait`; and `rename`, `top`.

use std::process::ExitCode;

use clap::Args;
use futures_util::StreamExt as _;

use super::exit::{Until, Waiting};
use crate::cli::args::Context;
use crate::cli::format::table;
use crate::cli::{complain, print};
use crate::client::{Client, Query};
use crate::error::{Error, Kind, Result};
use crate::types::ContainerTopResponse;

/// Containers that are worked on at once; each takes a connection.
const AT_ONCE: usize = 16;

/// Arguments of `stop` and `restart`.
#[derive(Debug, Args)]
pub(in crate::cli) struct StopArgs {
    /// Signal to send instead of the container's own
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Seconds to wait before killing, -1 for ever; the container's own unless given
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS", allow_hyphen_values = true)]
    timeout: Option<i64>,
    /// The containers
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Arguments of `kill`.
#[derive(Debug, Args)]
pub(in crate::cli) struct KillArgs {
    /// Signal to send instead of KILL
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// The containers
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub(in crate::cli) struct RmArgs {
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
    /// Remove their anonymous volumes as well
    #[arg(short, long)]
    volumes: bool,
    /// Remove a link
    #[arg(short, long)]
    link: bool,
    /// The containers
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Arguments of `wait`.
#[derive(Debug, Args)]
pub(in crate::cli) struct WaitArgs {
    /// The containers
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Arguments of `rename`.
#[derive(Debug, Args)]
pub(in crate::cli) struct RenameArgs {
    /// The container
    container: String,
    /// Its new name
    name: String,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(in crate::cli) struct TopArgs {
    /// The container
    container: String,
    /// Options of ps
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS OPTIONS")]
    options: Vec<String>,
}

pub(super) async fn stop(context: &Context, args: &StopArgs) -> Result<ExitCode> {
    each(&args.containers, async |name: &str| halt(&context.client, name, "stop", args).await).await
}

pub(super) async fn restart(context: &Context, args: &StopArgs) -> Result<ExitCode> {
    each(&args.containers, async |name: &str| halt(&context.client, name, "restart", args).await).await
}

async fn halt(client: &Client, container: &str, action: &str, args: &StopArgs) -> Result<String> {
    let seconds = args.timeout.map(|seconds| seconds.to_string());
    let query = Query::new().with_some("signal", args.signal.as_ref()).with_some("t", seconds);
    unless_done(client.post_empty(&query.path(&["containers", container, action])).await)?;
    Ok(container.to_owned())
}

pub(super) async fn kill(context: &Context, args: &KillArgs) -> Result<ExitCode> {
    let kill = async |name: &str| {
        let query = Query::new().with("signal", args.signal.as_deref().unwrap_or("KILL"));
        context.client.post_empty::<()>(&query.path(&["containers", name, "kill"])).await?;
        Ok(name.to_owned())
    };
    each(&args.containers, kill).await
}

pub(super) async fn rm(context: &Context, args: &RmArgs) -> Result<ExitCode> {
    let remove = async |name: &str| {
        // Docker prints names without the slash that stands for the root of names.
        let name = name.trim_matches('/');
        if name.is_empty() {
            return Err(Error::invalid("container name cannot be empty"));
        }
        let query =
            Query::new().with_flag("force", args.force).with_flag("v", args.volumes).with_flag("link", args.link);
        match context.client.delete::<()>(&query.path(&["containers", name])).await {
            // With --force the wish is that it be gone.
            Err(error) if args.force && error.kind() == Kind::NotFound => {
                complain(&error);
                Ok(String::new())
            }
            result => result.map(|()| name.to_owned()),
        }
    };
    each(&args.containers, remove).await
}

pub(super) async fn wait(context: &Context, args: &WaitArgs) -> Result<ExitCode> {
    let end = async |name: &str| {
        let waiting = Waiting::begin(&context.client, name, Until::NotRunning).await?;
        Ok(waiting.end().await?.to_string())
    };
    each(&args.containers, end).await
}

pub(super) async fn rename(context: &Context, args: &RenameArgs) -> Result<ExitCode> {
    let name = args.name.trim();
    if name.is_empty() {
        return Err(Error::invalid("neither old nor new names may be empty"));
    }
    let path = Query::new().with("name", name).path(&["containers", &args.container, "rename"]);
    context.client.post_empty::<()>(&path).await?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn top(context: &Context, args: &TopArgs) -> Result<ExitCode> {
    let options = (!args.options.is_empty()).then(|| args.options.join(" "));
    let path = Query::new().with_some("ps_args", options).path(&["containers", &args.container, "top"]);
    let processes: ContainerTopResponse = context.client.get(&path).await?;
    let mut rows = vec![processes.titles.unwrap_or_default()];
    rows.extend(processes.processes.unwrap_or_default());
    let lines: Vec<String> = rows.iter().map(|row| row.join("\t")).collect();
    print(&(table::align(&lines.join("\n")) + "\n"))
}

/// Does something to each container, several at once, and prints what each gave in the order they were named. Failures are
/// printed, and keep nothing from being done to the others.
pub(super) async fn each(names: &[String], action: impl AsyncFn(&str) -> Result<String>) -> Result<ExitCode> {
    let work = names.iter().map(|name| action(name));
    let mut results = futures_util::stream::iter(work).buffered(AT_ONCE);
    let mut code = ExitCode::SUCCESS;
    while let Some(result) = results.next().await {
        match result {
            Ok(text) if text.is_empty() => {}
            Ok(text) => drop(print(&(text + "\n"))?),
            Err(error) => {
                complain(&error);
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Takes "there was nothing to do" for success.
pub(super) fn unless_done(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == Kind::NotModified => Ok(()),
        result => result,
    }
}
