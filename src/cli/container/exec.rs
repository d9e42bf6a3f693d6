//! `exec`: runs another process in a container that runs.

use std::path::PathBuf;
use std::process::ExitCode;

use axum::body::Body;
use clap::Args;
use http::{Method, header};
use serde::Deserialize;

use super::attached::{Ends, Signals, accompany};
use super::session::{self, End, Settings};
use super::signals::Resizing;
use super::{exit, preferences, terminal};
use crate::cli::args::Context;
use crate::cli::value;
use crate::client::{Client, Hijacked, Query};
use crate::error::{Error, Result};
use crate::types::{ExecConfig, ExecInspectResponse, ExecStartConfig};

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub(in crate::cli) struct ExecArgs {
    /// Run in the background
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave the process running, such as ctrl-p,ctrl-q
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Set a variable, or pass on this command's with a bare name
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Send this command's input
    #[arg(short, long)]
    interactive: bool,
    /// Allow everything
    #[arg(long)]
    privileged: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// User, as name or number, with :group if wanted
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The container
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
}

/// Exits as the process does.
pub(super) async fn exec(context: &Context, args: &ExecArgs) -> Result<ExitCode> {
    let client = &context.client;
    let input = args.interactive && !args.detach;
    if args.tty && input && !terminal::input_is_terminal() {
        return Err(Error::invalid("the input device is not a TTY (leave out -t to pipe into the container)"));
    }
    let keys = preferences::detach_keys(context, args.detach_keys.as_deref())?;
    let console = terminal::size().filter(|_| args.tty).map(|size| vec![size.rows.into(), size.columns.into()]);
    let config = ExecConfig {
        attach_stdin: Some(input),
        attach_stdout: Some(!args.detach),
        attach_stderr: Some(!args.detach),
        console_size: console.clone(),
        detach_keys: keys.text().map(str::to_owned),
        tty: Some(args.tty),
        env: Some(value::variables(&args.env_file, &args.env)?),
        cmd: Some(args.command.clone()),
        privileged: Some(args.privileged),
        user: args.user.clone(),
        working_dir: args.workdir.clone(),
    };
    let created: Created = client.post(&Query::new().path(&["containers", &args.container, "exec"]), &config).await?;
    let start = ExecStartConfig { detach: Some(args.detach), tty: Some(args.tty), console_size: console };
    if args.detach {
        client.post::<_, ()>(&Query::new().path(&["exec", &created.id, "start"]), &start).await?;
        return Ok(ExitCode::SUCCESS);
    }

    let stream = open(client, &created.id, &start).await?;
    let settings = Settings { input, output: true, tty: args.tty, keys: Some(keys) };
    let ends = Ends::new(args.tty, input, Resizing::new("exec", &created.id));
    let work = async {
        match session::converse(stream, settings).await? {
            End::Closed => exit_status(client, &created.id).await.map(exit::code),
            End::Detached => Ok(ExitCode::SUCCESS),
        }
    };
    // Signals are not passed on: the API knows no way to.
    let outcome = accompany(client, &ends, Signals::Own, work).await?;
    Ok(outcome.or_exit_code().unwrap_or_else(|code| code))
}

async fn open(client: &Client, id: &str, start: &ExecStartConfig) -> Result<Hijacked> {
    let request = client
        .request(Method::POST, &Query::new().path(&["exec", id, "start"]))
        .header(header::CONTENT_TYPE, "application/json");
    client.hijack(request, "tcp", Body::from(serde_json::to_vec(start)?)).await
}

async fn exit_status(client: &Client, id: &str) -> Result<i64> {
    let process: ExecInspectResponse = client.get(&Query::new().path(&["exec", id, "json"])).await?;
    process.exit_code.ok_or_else(|| Error::internal("the engine closed the stream while the process still runs"))
}
