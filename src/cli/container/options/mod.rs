//! The options of `run` and `create`, and the request they become.
//!
//! Options are converted, not judged: what the engine cannot do it refuses itself, by the option's name.

mod health;
mod limits;
mod network;
mod port;
mod security;
mod storage;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::Args;

use crate::cli::value;
use crate::error::{Error, Result};
use crate::types::{ContainerCreateBody, HostConfig, HostConfigLogConfig, RestartPolicy, RestartPolicyNameEnum};

/// When the image is pulled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Pull {
    /// Before every use
    Always,
    /// When it is missing
    #[default]
    Missing,
    /// Never
    Never,
}

/// Which streams of a container a command connects to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Streams {
    pub(super) input: bool,
    pub(super) output: bool,
    pub(super) errors: bool,
}

impl Streams {
    /// Says whether there is any.
    pub(super) fn any(self) -> bool {
        self.input || self.shows()
    }

    /// Says whether anything is shown.
    pub(super) fn shows(self) -> bool {
        self.output || self.errors
    }
}

/// Options of `run` and `create`.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Give the container a name
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Pull the image before running
    #[arg(long, value_enum, default_value_t, value_name = "always|missing|never")]
    pub(super) pull: Pull,
    /// Do not show the progress of a pull
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Platform of the image, os/arch[/variant]
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM")]
    pub(super) platform: Option<String>,
    /// Write the container's id to a file
    #[arg(long, value_name = "FILE")]
    pub(super) cidfile: Option<PathBuf>,
    /// Remove the container when it exits
    #[arg(long)]
    pub(super) rm: bool,
    /// Attach only to stdin, stdout or stderr
    #[arg(short, long, value_name = "STREAM")]
    attach: Vec<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    #[command(flatten)]
    process: ProcessOptions,
    #[command(flatten)]
    health: health::HealthOptions,
    #[command(flatten)]
    storage: storage::StorageOptions,
    #[command(flatten)]
    network: network::NetworkOptions,
    #[command(flatten)]
    security: security::SecurityOptions,
    #[command(flatten)]
    limits: limits::LimitOptions,
    // One list: options end at the image, what follows belongs to the command even where it looks like an option.
    /// The image, and the command to run in it with its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [COMMAND [ARGUMENT]..]", num_args = 1..)]
    words: Vec<String>,
}

#[derive(Debug, Args)]
struct ProcessOptions {
    /// Set a variable, or pass on this command's with a bare name
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, as name or number, with :group if wanted
    #[arg(short, long)]
    user: Option<String>,
    /// Further groups
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Replace the image's entrypoint; empty for none
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Run a small init as process 1
    #[arg(long)]
    init: bool,
    /// Signal that asks the container to stop
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds between that signal and the kill, -1 for ever
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    stop_timeout: Option<i64>,
    /// What to do when the container exits: no, always, unless-stopped or on-failure[:times]
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Set a label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Add an annotation
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// Log driver, such as json-file or none
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Log option, such as max-size=10m
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,
    /// Program that runs the container
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
}

impl Options {
    /// Returns the name of the image.
    pub(super) fn image(&self) -> &str {
        self.words.first().map(String::as_str).unwrap_or_default()
    }

    /// Says whether `--attach` was given.
    pub(super) fn attaches(&self) -> bool {
        !self.attach.is_empty()
    }

    /// Returns the streams the options ask for: those of `--attach`, else output and errors, and input with `--interactive`.
    ///
    /// # Errors
    /// `InvalidArgument` for a stream that does not exist.
    pub(super) fn streams(&self) -> Result<Streams> {
        if self.attach.is_empty() {
            return Ok(Streams { input: self.interactive, output: true, errors: true });
        }
        let mut streams = Streams::default();
        for name in &self.attach {
            match name.to_lowercase().as_str() {
                "stdin" => streams.input = true,
                "stdout" => streams.output = true,
                "stderr" => streams.errors = true,
                _ => {
                    let valid = "valid streams are STDIN, STDOUT and STDERR";
                    return Err(Error::invalid(format!("invalid argument {name:?} for --attach: {valid}")));
                }
            }
        }
        Ok(streams)
    }

    /// Makes the request. `console` is the size of the terminal, as rows and columns.
    ///
    /// # Errors
    /// `InvalidArgument` for malformed values and options that contradict each other.
    pub(super) fn request(&self, attach: Streams, console: Option<[u16; 2]>) -> Result<ContainerCreateBody> {
        let process = &self.process;
        let mut labels = value::files(&process.label_file)?;
        labels.extend(process.label.iter().cloned());
        let command = &self.words[1..];
        Ok(ContainerCreateBody {
            image: Some(self.image().to_owned()),
            cmd: (!command.is_empty()).then(|| command.to_vec()),
            entrypoint: process.entrypoint.clone().map(|word| vec![word]),
            env: Some(value::variables(&process.env_file, &process.env)?),
            labels: Some(value::map(&labels)),
            user: text(process.user.as_ref()),
            working_dir: text(process.workdir.as_ref()),
            hostname: text(self.network.hostname.as_ref()),
            domainname: text(self.network.domainname.as_ref()),
            stop_signal: text(process.stop_signal.as_ref()),
            stop_timeout: process.stop_timeout,
            tty: Some(self.tty),
            open_stdin: Some(self.interactive),
            stdin_once: Some(self.interactive && attach.input),
            attach_stdin: Some(attach.input),
            attach_stdout: Some(attach.output),
            attach_stderr: Some(attach.errors),
            healthcheck: self.health.check()?,
            exposed_ports: Some(self.network.exposed_ports()?),
            volumes: Some(self.storage.anonymous_volumes()),
            host_config: Some(self.host_config(console)?),
            networking_config: self.network.endpoints()?,
            ..ContainerCreateBody::default()
        })
    }

    fn host_config(&self, console: Option<[u16; 2]>) -> Result<HostConfig> {
        let process = &self.process;
        let mut host = HostConfig {
            auto_remove: Some(self.rm),
            restart_policy: self.restart_policy()?,
            group_add: Some(process.group_add.clone()),
            init: process.init.then_some(true),
            annotations: (!process.annotation.is_empty()).then(|| value::map(&process.annotation)),
            runtime: process.runtime.clone(),
            log_config: Some(HostConfigLogConfig {
                typ: process.log_driver.clone(),
                config: Some(value::map(&process.log_opt)),
            }),
            console_size: console.map(|size| size.map(usize::from).to_vec()),
            ..HostConfig::default()
        };
        self.network.apply(&mut host)?;
        self.security.apply(&mut host)?;
        self.storage.apply(&mut host)?;
        self.limits.apply(&mut host)?;
        Ok(host)
    }

    fn restart_policy(&self) -> Result<Option<RestartPolicy>> {
        let Some(text) = self.process.restart.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let invalid = |why: &str| Error::invalid(format!("invalid argument {text:?} for --restart: {why}"));
        let (name, count) = text.split_once(':').map_or((text, None), |(name, count)| (name, Some(count)));
        let policy: RestartPolicyNameEnum =
            name.parse().map_err(|_| invalid("expected no, always, unless-stopped or on-failure[:times]"))?;
        let count = count.map(|count| count.parse::<i64>().map_err(|_| invalid("the times are a number")));
        let count = count.transpose()?.filter(|count| *count != 0);
        if count.is_some() && policy != RestartPolicyNameEnum::ON_FAILURE {
            return Err(invalid("maximum retry count cannot be used with restart policy other than on-failure"));
        }
        if self.rm && policy != RestartPolicyNameEnum::NO {
            return Err(Error::invalid("conflicting options: cannot specify both --restart and --rm"));
        }
        Ok(Some(RestartPolicy { name: Some(policy), maximum_retry_count: count }))
    }
}

fn text(text: Option<&String>) -> Option<String> {
    text.filter(|text| !text.is_empty()).cloned()
}
