//! `start`: starts containers that were created or have ended.

use std::process::ExitCode;

use clap::Args;

use super::attach::Facts;
use super::exit::Until;
use super::join::{FirstSize, Join};
use super::options::Streams;
use super::{control, preferences, terminal};
use crate::cli::args::Context;
use crate::client::{Client, Query};
use crate::error::{Error, Result};

/// Arguments of `start`.
#[derive(Debug, Args)]
pub(in crate::cli) struct StartArgs {
    /// Show output and errors, pass on signals, and exit as the container does
    #[arg(short, long)]
    attach: bool,
    /// Send this command's input, and show output and errors
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container running, such as ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// The containers
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn start(context: &Context, args: &StartArgs) -> Result<ExitCode> {
    if !args.attach && !args.interactive {
        return control::each(&args.containers, async |name: &str| start_one(&context.client, name).await).await;
    }
    match args.containers.as_slice() {
        [container] => start_attached(context, args, container).await,
        _ => Err(Error::invalid("you cannot start and attach multiple containers at once")),
    }
}

async fn start_one(client: &Client, container: &str) -> Result<String> {
    // One that runs already is what was asked for.
    control::unless_done(client.post_empty(&Query::new().path(&["containers", container, "start"])).await)?;
    Ok(container.to_owned())
}

async fn start_attached(context: &Context, args: &StartArgs, container: &str) -> Result<ExitCode> {
    let client = &context.client;
    let keys = preferences::detach_keys(context, args.detach_keys.as_deref())?;
    let facts = Facts::of(client, container).await?;
    let streams = Streams { input: args.interactive && facts.open_stdin, output: true, errors: true };
    if facts.tty && streams.input && !terminal::input_is_terminal() {
        return Err(Error::invalid("the input device is not a TTY"));
    }
    let join = Join {
        id: facts.id.clone(),
        streams,
        tty: facts.tty,
        keys,
        until: if facts.auto_remove { Until::Removed } else { Until::NextExit },
        forward: true,
        first_size: FirstSize::Set,
    };
    let joined = join.open(client).await?;
    if let Err(error) = start_one(client, &facts.id).await {
        joined.abandon().await;
        return Err(error);
    }
    joined.converse(client).await
}
