//! `run`: creates a container, attaches to it, starts it, and ends as it ends.

use std::process::ExitCode;

use clap::Args;

use super::attached::{Ends, Signals, accompany};
use super::create::create_container;
use super::exit::{self, Until, Waiting};
use super::options::{Options, Streams};
use super::session::{self, End, Settings};
use super::signals::{Caught, Resizing};
use super::{attach, preferences, terminal};
use crate::cli::args::Context;
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

/// Exits as the container does, or with docker's codes when there was none: 125 when the engine refuses, 126 when the
/// command cannot be executed, 127 when it does not exist.
pub(super) async fn run(context: &Context, args: &RunArgs) -> Result<ExitCode> {
    match prepare(args) {
        Ok(streams) => match run_container(context, args, streams).await {
            Ok(code) => Ok(code),
            Err(error) => Ok(exit::report(&error, exit::failure(&error))),
        },
        Err(error) => Ok(exit::report(&error, 125)),
    }
}

/// Says what is attached, after checking that the options agree with each other.
fn prepare(args: &RunArgs) -> Result<Streams> {
    let streams = args.options.streams()?;
    if !args.detach {
        if args.options.tty && streams.input && !terminal::input_is_terminal() {
            return Err(Error::invalid("the input device is not a TTY (leave out -t to pipe into the container)"));
        }
        return Ok(streams);
    }
    if args.options.attaches() {
        return Err(Error::invalid("conflicting options: cannot specify both --attach and --detach"));
    }
    Ok(Streams::default())
}

async fn run_container(context: &Context, args: &RunArgs, streams: Streams) -> Result<ExitCode> {
    let client = &context.client;
    let options = &args.options;
    let keys = preferences::detach_keys(context, args.detach_keys.as_deref())?;
    let id = create_container(context, options, streams).await?;
    let start = Query::new().path(&["containers", &id, "start"]);
    if !streams.any() {
        client.post_empty::<()>(&start).await?;
        println!("{id}");
        return Ok(ExitCode::SUCCESS);
    }

    // Both are in place before the start: nothing is missed, however short the container lives.
    let until = if options.rm { Until::Removed } else { Until::NextExit };
    let attaching = attach::open(client, &id, streams, &keys);
    let (stream, waiting) = tokio::try_join!(attaching, Waiting::begin(client, &id, until))?;
    let signals = if args.sig_proxy { Signals::Forward(Caught::begin()?, id.clone()) } else { Signals::Own };
    if let Err(error) = client.post_empty::<()>(&start).await {
        if options.rm {
            // It is gone when this command ends, as it would be after running.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(10), waiting.end()).await;
        }
        return Err(error);
    }

    let settings = Settings { input: streams.input, output: streams.shows(), tty: options.tty, keys };
    let ends = Ends::new(options.tty, streams.input, Resizing::new("containers", &id));
    if !streams.shows() {
        println!("{id}");
    }
    let work = async {
        match session::converse(stream, settings).await? {
            End::Closed if streams.shows() => Ok(exit::code(waiting.end().await?)),
            // It goes on alone.
            End::Closed | End::Detached => Ok(ExitCode::SUCCESS),
        }
    };
    let outcome = accompany(client, &ends, signals, work).await?;
    Ok(outcome.or_exit_code().unwrap_or_else(|code| code))
}
