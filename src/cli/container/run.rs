//! `run`: creates a container, attaches to it, starts it, and ends as it ends.

use std::process::ExitCode;

use clap::Args;

use super::create::Plan;
use super::exit::{self, Until};
use super::join::{FirstSize, Join};
use super::options::{Options, Streams};
use super::{preferences, terminal};
use crate::cli::args::Context;
use crate::cli::print;
use crate::client::Query;
use crate::error::{Error, Result};

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(in crate::cli) struct RunArgs {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Run in the background and print the container's id
    #[arg(short, long)]
    detach: bool,
    /// Pass on signals this command receives
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true,
          action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that leave the container running, such as ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    #[command(flatten)]
    options: Options,
}

/// Exits as the container does, or with docker's codes when there was none: 125 when the options or the engine refuse, 126
/// when the command cannot be executed, 127 when it does not exist.
pub(super) async fn run(context: &Context, args: &RunArgs) -> Result<ExitCode> {
    let streams = match args.options.streams() {
        Ok(streams) => agreed(args, streams)?,
        Err(error) => return Ok(exit::report(&error, 125)),
    };
    let (plan, join) = match prepare(context, args, streams) {
        Ok(prepared) => prepared,
        Err(error) => return Ok(exit::report(&error, 125)),
    };
    match run_container(context, plan, join).await {
        Ok(code) => Ok(code),
        Err(error) => Ok(exit::report(&error, exit::failure(&error))),
    }
}

/// Checks that the options agree with each other and the terminal; in the background nothing is attached.
fn agreed(args: &RunArgs, streams: Streams) -> Result<Streams> {
    if args.detach && args.options.attaches() {
        return Err(Error::invalid("conflicting options: cannot specify both --attach and --detach"));
    }
    if args.detach {
        return Ok(Streams::default());
    }
    if args.options.tty && streams.input && !terminal::input_is_terminal() {
        return Err(Error::invalid("the input device is not a TTY (leave out -t to pipe into the container)"));
    }
    Ok(streams)
}

/// Everything that can be said before the engine is asked; the join still lacks the id.
fn prepare<'a>(context: &Context, args: &'a RunArgs, streams: Streams) -> Result<(Plan<'a>, Join)> {
    let join = Join {
        id: String::new(),
        streams,
        tty: args.options.tty,
        keys: preferences::detach_keys(context, args.detach_keys.as_deref())?,
        until: if args.options.rm { Until::Removed } else { Until::NextExit },
        forward: args.sig_proxy,
        first_size: FirstSize::Known,
    };
    Ok((Plan::new(&args.options, streams)?, join))
}

async fn run_container(context: &Context, plan: Plan<'_>, mut join: Join) -> Result<ExitCode> {
    let client = &context.client;
    let id = plan.create(context).await?;
    let start = Query::new().path(&["containers", &id, "start"]);
    if !join.streams.any() {
        client.post_empty::<()>(&start).await?;
        return print(&format!("{id}\n"));
    }
    join.id.clone_from(&id);
    let shows = join.streams.shows();
    let joined = join.open(client).await?;
    if let Err(error) = client.post_empty::<()>(&start).await {
        joined.abandon().await;
        return Err(error);
    }
    if !shows {
        print(&format!("{id}\n"))?;
    }
    joined.converse(client).await
}
