//! `attach`: joins the conversation with a container that runs.

use std::process::ExitCode;

use clap::Args;

use super::exit::Until;
use super::join::{FirstSize, Join};
use super::options::Streams;
use super::{preferences, terminal};
use crate::cli::args::Context;
use crate::client::{Client, Query};
use crate::error::{Error, Result};
use crate::types::ContainerInspectResponse;

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub(in crate::cli) struct AttachArgs {
    /// Do not send this command's input
    #[arg(long)]
    no_stdin: bool,
    /// Pass on signals this command receives
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true,
          action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that leave the container running, such as ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// The container
    container: String,
}

/// What commands must know of a container before they join it.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) id: String,
    pub(super) tty: bool,
    pub(super) open_stdin: bool,
    pub(super) auto_remove: bool,
    running: bool,
    paused: bool,
    restarting: bool,
}

impl Facts {
    /// Asks the engine.
    ///
    /// # Errors
    /// What the engine answered, such as `NotFound`.
    pub(super) async fn of(client: &Client, container: &str) -> Result<Self> {
        let path = Query::new().path(&["containers", container, "json"]);
        let answer: ContainerInspectResponse = client.get(&path).await?;
        let config = answer.config.unwrap_or_default();
        let state = answer.state.unwrap_or_default();
        Ok(Self {
            id: answer.id.unwrap_or_else(|| container.to_owned()),
            tty: config.tty.unwrap_or(false),
            open_stdin: config.open_stdin.unwrap_or(false),
            auto_remove: answer.host_config.and_then(|host| host.auto_remove).unwrap_or(false),
            running: state.running.unwrap_or(false),
            paused: state.paused.unwrap_or(false),
            restarting: state.restarting.unwrap_or(false),
        })
    }
}

/// Exits as the container does; with 0 when the keys were typed.
pub(super) async fn attach(context: &Context, args: &AttachArgs) -> Result<ExitCode> {
    let client = &context.client;
    let keys = preferences::detach_keys(context, args.detach_keys.as_deref())?;
    let facts = Facts::of(client, &args.container).await?;
    let refused = match &facts {
        Facts { running: false, .. } => Some("cannot attach to a stopped container, start it first"),
        Facts { paused: true, .. } => Some("cannot attach to a paused container, unpause it first"),
        Facts { restarting: true, .. } => Some("cannot attach to a restarting container, wait until it is running"),
        _ => None,
    };
    if let Some(why) = refused {
        return Err(Error::conflict(why));
    }
    let streams = Streams { input: !args.no_stdin && facts.open_stdin, output: true, errors: true };
    if facts.tty && streams.input && !terminal::input_is_terminal() {
        return Err(Error::invalid("the input device is not a TTY (use --no-stdin to watch only)"));
    }
    let join = Join {
        id: facts.id,
        streams,
        tty: facts.tty,
        keys,
        until: Until::NotRunning,
        forward: args.sig_proxy,
        first_size: FirstSize::Redraw,
    };
    join.open(client).await?.converse(client).await
}
