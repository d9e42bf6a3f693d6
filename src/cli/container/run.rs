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

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::Value as Json;

    use super::*;
    use crate::cli::container::create::CreateArgs;

    #[derive(Debug, clap::Parser)]
    #[command(no_binary_name = true)]
    enum Line {
        Run(Box<RunArgs>),
        Create(Box<CreateArgs>),
    }

    #[derive(Debug, serde::Deserialize)]
    struct Recorded {
        args: String,
        body: Json,
    }

    fn request(line: &str) -> Json {
        let body = match Line::try_parse_from(words(line)).unwrap() {
            Line::Run(args) => {
                let streams = agreed(&args, args.options.streams().unwrap()).unwrap();
                args.options.request(streams, None)
            }
            Line::Create(args) => args.options.request(args.options.streams().unwrap(), None),
        };
        let mut body = serde_json::to_value(body.unwrap()).unwrap();
        tidy(&mut body);
        body
    }

    /// Splits at blanks outside single quotes; `""` is an empty word.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        for (index, part) in line.split('\'').enumerate() {
            if index % 2 == 1 {
                words.last_mut().unwrap().push_str(part);
                continue;
            }
            for (index, word) in part.split(' ').enumerate() {
                if index > 0 {
                    words.push(String::new());
                }
                words.last_mut().unwrap().push_str(word);
            }
        }
        words.into_iter().map(|word| if word == "\"\"" { String::new() } else { word }).collect()
    }

    /// Takes out what means nothing, as was done to what docker sent.
    fn tidy(body: &mut Json) {
        let empty = |value: &Json| match value {
            Json::Null | Json::Bool(false) => true,
            Json::String(text) => text.is_empty(),
            Json::Array(items) => items.is_empty(),
            Json::Object(fields) => fields.is_empty(),
            Json::Number(number) => number.as_i64() == Some(0),
            Json::Bool(true) => false,
        };
        match body {
            Json::Object(fields) => {
                for (key, value) in fields.iter_mut() {
                    if !matches!(key.as_str(), "Volumes" | "ExposedPorts" | "Tmpfs" | "Labels" | "Sysctls") {
                        tidy(value);
                    }
                }
                let named = |key: &str| matches!(key, "MaskedPaths" | "ReadonlyPaths" | "back");
                fields.retain(|key, value| (named(key) && !value.is_null()) || !empty(value));
                if let Some(Json::Array(variables)) = fields.get_mut("Env") {
                    variables.sort_by_key(ToString::to_string);
                }
                if let Some(Json::Array(limits)) = fields.get_mut("Ulimits") {
                    limits.sort_by_key(|limit| limit["Name"].to_string());
                }
            }
            Json::Array(items) => items.iter_mut().for_each(tidy),
            _ => {}
        }
    }

    /// What docker 28.2 sends for the same command lines, without defaults.
    #[test]
    fn requests_are_those_docker_makes() {
        let here = std::env::current_dir().unwrap().display().to_string();
        let recorded = include_str!("../../../testdata/api/create.jsonl").replace("{cwd}", &here);
        for line in recorded.lines() {
            let Recorded { args, body } = serde_json::from_str(line).unwrap();
            assert_eq!(request(&args), body, "{args}");
        }
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let refusal = |line: &str| match Line::try_parse_from(words(line)).unwrap() {
            Line::Run(args) => agreed(&args, args.options.streams().unwrap()).unwrap_err().to_string(),
            Line::Create(_) => unreachable!("the line is about run"),
        };
        assert!(refusal("run -d -a stdout busybox").contains("cannot specify both --attach and --detach"));
        assert!(Line::try_parse_from(words("run --bogus busybox")).is_err());
        assert!(Line::try_parse_from(words("run")).is_err());
    }
}
