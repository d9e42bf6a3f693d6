//! `attach`: joins the conversation with a container that runs.

use std::process::ExitCode;

use axum::body::Body;
use clap::Args;
use http::Method;

use super::attached::{Ends, Signals, accompany};
use super::detach::Keys;
use super::exit::{self, Until, Waiting};
use super::options::Streams;
use super::session::{self, End, Settings};
use super::signals::{Caught, Resizing};
use super::{preferences, terminal};
use crate::cli::args::Context;
use crate::client::{Client, Hijacked, Query};
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

/// Opens the streams of a container. Output that comes after this returns is not missed.
///
/// # Errors
/// What the engine answered.
pub(super) async fn open(client: &Client, container: &str, streams: Streams, keys: &Keys) -> Result<Hijacked> {
    let query = Query::new()
        .with("stream", "1")
        .with_flag("stdin", streams.input)
        .with_flag("stdout", streams.output)
        .with_flag("stderr", streams.errors)
        .with_some("detachKeys", keys.text());
    let request = client.request(Method::POST, &query.path(&["containers", container, "attach"]));
    client.hijack(request, "tcp", Body::empty()).await
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
    let opening = open(client, &facts.id, streams, &keys);
    let (stream, waiting) = tokio::try_join!(opening, Waiting::begin(client, &facts.id, Until::NotRunning))?;
    let signals = if args.sig_proxy { Signals::Forward(Caught::begin()?, facts.id.clone()) } else { Signals::Own };
    let settings = Settings { input: streams.input, output: true, tty: facts.tty, keys };
    let ends = Ends::new(facts.tty, streams.input, Resizing::new("containers", &facts.id));
    let work = async {
        if let Some(resizing) = &ends.resizing {
            redraw(client, resizing).await;
        }
        match session::converse(stream, settings).await? {
            End::Closed => Ok(exit::code(waiting.end().await?)),
            End::Detached => Ok(ExitCode::SUCCESS),
        }
    };
    let outcome = accompany(client, &ends, signals, work).await?;
    Ok(outcome.or_exit_code().unwrap_or_else(|code| code))
}

/// Changes the size and sets it right again: programs draw anew only when the size changes.
async fn redraw(client: &Client, resizing: &Resizing) {
    let Some(size) = terminal::size() else { return };
    for rows in [size.rows.saturating_add(1), size.rows] {
        // Without it the picture comes later, with the next output.
        let _ = resizing.set(client, terminal::Size { rows, ..size }).await;
    }
}
