//! The instructions that change the image configuration, or what later instructions see, and WORKDIR.

use std::borrow::Cow;

use kiln_graph::Diagnostic;
use kiln_graph::oci::{Empty, Healthcheck as HealthConfig};
use kiln_graph::op::{FileAction, FileOp, Op};

use super::draft::Inputs;
use super::globals;
use super::outline::OutlineArgument;
use super::owner;
use super::ports;
use super::stage::StageLowering;
use crate::check;
use crate::instruction::{Argument, Assignment, Command, Head, Healthcheck};
use crate::line::Word;
use crate::{path, scalar};

/// Signals by name, without `SIG`. Source: moby's `sys/signal` for Linux.
const SIGNALS: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// Parts of names that suggest a secret, and parts that say it is none after all.
const SECRET_WORDS: &[&str] =
    &["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const HARMLESS_WORDS: &[&str] = &["public", "file", "version"];

fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix: &str, most: u8| {
        let offset = name.strip_prefix(prefix).and_then(|offset| offset.parse::<u8>().ok());
        offset.is_some_and(|offset| (1..=most).contains(&offset))
    };
    SIGNALS.contains(&name) || real_time("RTMIN+", 15) || real_time("RTMAX-", 14)
}

fn suggests_secret(name: &str) -> bool {
    let has = |words: &[&str]| name.split('_').any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)));
    has(SECRET_WORDS) && !has(HARMLESS_WORDS)
}

/// `[a b]`, as Go prints a list.
fn listed(values: &[String]) -> String {
    format!("[{}]", values.join(" "))
}

impl StageLowering<'_, '_> {
    pub(super) fn arg(&mut self, head: &Head, arguments: &[Argument]) -> Result<(), Diagnostic> {
        let mut texts = Vec::new();
        for Argument { name, default, description } in arguments {
            self.check_secret("ARG", name);
            let request = self.lowering.request;
            let value = match (request.build_args.get(&name.text), default) {
                (Some(value), _) => globals::dated(request, &name.text, value),
                (None, Some(default)) => globals::dated(request, &name.text, &self.expand(default)?),
                (None, None) => self.lowering.globals.variables.get(&name.text).map(str::to_owned),
            };
            if default.is_some() || request.build_args.contains_key(&name.text) || value.is_none() {
                self.state.outline.declare(OutlineArgument {
                    name: name.text.clone(),
                    value: value.clone().unwrap_or_default(),
                    description: description.clone().unwrap_or_default(),
                    span: self.place(head.span),
                });
            } else {
                // It is a global one, or of the platform.
                self.state.outline.uses(&name.text);
            }
            texts.push(value.as_ref().map_or_else(|| name.text.clone(), |value| format!("{}={value}", name.text)));
            self.declare(&name.text, value);
        }
        self.history(format!("ARG {}", texts.join(" ")), false);
        Ok(())
    }

    fn check_secret(&mut self, keyword: &str, name: &Word) {
        if suggests_secret(&name.text) {
            let name_shown = scalar::quote(&name.text);
            let message = format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {name_shown})");
            self.warn(check::SECRETS_USED_IN_ARG_OR_ENV, name.span, message);
        }
    }

    /// Expands names and values, all before any of them takes effect.
    fn pairs(&mut self, head: &Head, pairs: &[Assignment]) -> Result<Vec<(String, String)>, Diagnostic> {
        let keyword = &head.keyword.text;
        let mut expanded = Vec::new();
        for Assignment { name, value, legacy } in pairs {
            if *legacy {
                let message =
                    format!("\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format");
                self.warn(check::LEGACY_KEY_VALUE_FORMAT, name.span.to(value.span), message);
            }
            expanded.push((self.expand(name)?, self.expand(value)?));
        }
        Ok(expanded)
    }

    pub(super) fn env(&mut self, head: &Head, pairs: &[Assignment]) -> Result<(), Diagnostic> {
        for pair in pairs {
            self.check_secret("ENV", &pair.name);
        }
        let pairs = self.pairs(head, pairs)?;
        for (name, value) in &pairs {
            self.state.variables.set(name, value);
            let env = &mut self.state.image.config.env;
            let entry = format!("{name}={value}");
            match env.iter_mut().find(|known| known.split('=').next() == Some(name)) {
                Some(known) => *known = entry,
                None => env.push(entry),
            }
        }
        self.history(format!("ENV {}", assignments(&pairs)), false);
        Ok(())
    }

    pub(super) fn label(&mut self, head: &Head, pairs: &[Assignment]) -> Result<(), Diagnostic> {
        let pairs = self.pairs(head, pairs)?;
        self.state.image.config.labels.extend(pairs.iter().cloned());
        self.history(format!("LABEL {}", assignments(&pairs)), false);
        Ok(())
    }

    /// Returns the argument vector of a command: in text form, a call of the shell.
    fn argument_vector(&mut self, head: &Head, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(arguments) => arguments.clone(),
            Command::Shell(text) => {
                if self.state.image.config.shell.is_empty() {
                    let message = format!(
                        "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
                        head.keyword.text
                    );
                    self.warn(check::JSON_ARGS_RECOMMENDED, text.span, message);
                }
                self.shell_call(text.text.clone())
            }
        }
    }

    /// Returns the shell with a line to run.
    pub(super) fn shell_call(&self, line: String) -> Vec<String> {
        let shell = &self.state.image.config.shell;
        let usual: &[&str] = if self.state.image.os == "windows" { &["cmd", "/S", "/C"] } else { &["/bin/sh", "-c"] };
        let mut call = Vec::with_capacity(shell.len().max(usual.len()) + 1);
        if shell.is_empty() {
            call.extend(usual.iter().map(|&word| word.to_owned()));
        } else {
            call.extend(shell.iter().cloned());
        }
        call.push(line);
        call
    }

    pub(super) fn cmd(&mut self, head: &Head, command: &Command) -> Result<(), Diagnostic> {
        self.note_repetition("CMD", head);
        let arguments = self.argument_vector(head, command);
        self.history(format!("CMD {}", scalar::quote_all(&arguments)), false);
        self.state.image.config.cmd = arguments;
        self.state.image.config.args_escaped = true;
        Ok(())
    }

    pub(super) fn entrypoint(&mut self, head: &Head, command: &Command) -> Result<(), Diagnostic> {
        self.note_repetition("ENTRYPOINT", head);
        let arguments = self.argument_vector(head, command);
        self.history(format!("ENTRYPOINT {}", scalar::quote_all(&arguments)), false);
        self.state.image.config.entrypoint = arguments;
        // The base's CMD was meant for the base's ENTRYPOINT; one of this stage is not.
        if !self.has_seen("CMD") {
            self.state.image.config.cmd.clear();
        }
        Ok(())
    }

    pub(super) fn healthcheck(&mut self, head: &Head, check: &Healthcheck) -> Result<(), Diagnostic> {
        self.note_repetition("HEALTHCHECK", head);
        let config = match check {
            Healthcheck::None => HealthConfig { test: vec!["NONE".to_owned()], ..HealthConfig::default() },
            Healthcheck::Check { command, interval_ns, timeout_ns, start_period_ns, start_interval_ns, retries } => {
                let test = match command {
                    Command::Shell(line) => vec!["CMD-SHELL".to_owned(), line.text.clone()],
                    Command::Exec(arguments) => {
                        std::iter::once("CMD".to_owned()).chain(arguments.iter().cloned()).collect()
                    }
                };
                HealthConfig {
                    test,
                    interval: *interval_ns,
                    timeout: *timeout_ns,
                    start_period: *start_period_ns,
                    start_interval: *start_interval_ns,
                    retries: i64::from(*retries),
                }
            }
        };
        self.history(health_text(&config), false);
        self.state.image.config.healthcheck = Some(config);
        Ok(())
    }

    pub(super) fn expose(&mut self, words: &[Word]) -> Result<(), Diagnostic> {
        let mut ports = Vec::new();
        for word in words {
            for text in self.words(word)? {
                let exposed = ports::parse(&text).map_err(|why| Diagnostic::error(word.span, why))?;
                if exposed.miscased_protocol {
                    let message = format!("Defined protocol '{text}' in EXPOSE instruction should be lowercase");
                    self.warn(check::EXPOSE_PROTO_CASING, word.span, message);
                }
                if exposed.names_host {
                    let message = format!(
                        "EXPOSE instruction should not define an IP address or host-port mapping, found '{text}'"
                    );
                    self.warn(check::EXPOSE_INVALID_FORMAT, word.span, message);
                }
                ports.extend(exposed.ports);
            }
        }
        self.state.image.config.exposed_ports.extend(ports.iter().map(|port| (port.clone(), Empty {})));
        self.history(format!("EXPOSE {}", listed(&ports)), false);
        Ok(())
    }

    pub(super) fn volume(&mut self, words: &[Word]) -> Result<(), Diagnostic> {
        let mut paths = Vec::new();
        for word in words {
            let path = self.expand(word)?;
            if path.is_empty() {
                return Err(Diagnostic::error(word.span, format!("the volume {} is empty", word.text)));
            }
            paths.push(path);
        }
        self.state.image.config.volumes.extend(paths.iter().map(|path| (path.clone(), Empty {})));
        self.history(format!("VOLUME {}", listed(&paths)), false);
        Ok(())
    }

    pub(super) fn stopsignal(&mut self, word: &Word) -> Result<(), Diagnostic> {
        let signal = self.expand(word)?;
        if !is_signal(&signal) {
            return Err(Diagnostic::error(word.span, format!("{signal:?} is no signal"))
                .with_hint("signals are numbers from 1 to 64, or names such as SIGTERM"));
        }
        self.history(format!("STOPSIGNAL {signal}"), false);
        self.state.image.config.stop_signal = signal;
        Ok(())
    }

    pub(super) fn user(&mut self, word: &Word) -> Result<(), Diagnostic> {
        let user = self.expand(word)?;
        self.history(format!("USER {user}"), false);
        self.state.image.config.user = user;
        Ok(())
    }

    pub(super) fn shell(&mut self, shell: &[String]) -> Result<(), Diagnostic> {
        self.history(format!("SHELL {}", listed(shell)), false);
        self.state.image.config.shell = shell.to_vec();
        Ok(())
    }

    pub(super) fn maintainer(&mut self, author: &Word) -> Result<(), Diagnostic> {
        self.history(format!("MAINTAINER {}", author.text), false);
        self.state.image.author.clone_from(&author.text);
        Ok(())
    }

    /// Keeps the text for images that derive from this one. That leaves no trace in the history.
    pub(super) fn onbuild(&mut self, text: &Word) -> Result<(), Diagnostic> {
        self.state.image.config.on_build.push(text.text.clone());
        Ok(())
    }

    /// Makes the directory, owned by the current user, and stays there.
    pub(super) fn workdir(&mut self, head: &Head, word: &Word) -> Result<(), Diagnostic> {
        let given = self.expand(word)?;
        self.check_path(&given, word.span)?;
        if !std::mem::replace(&mut self.state.workdir_set, true) && !given.starts_with('/') {
            let path = scalar::quote(&given);
            let message = format!("Relative workdir {path} can have unexpected results if the base image changes");
            self.warn(check::WORKDIR_RELATIVE_PATH, word.span, message);
        }
        // As BuildKit has it, an absolute path stays as it was written, and only one that is joined is cleaned.
        let directory = match given.as_str() {
            "" => self.written_working_dir().into_owned(),
            _ if given.starts_with('/') => given,
            _ => path::absolute(&self.working_dir(), &given),
        };
        self.state.image.config.working_dir.clone_from(&directory);
        let has_layer = directory != "/";
        if has_layer {
            let user = &self.state.image.config.user;
            let owner = (!user.is_empty()).then(|| owner::owner(user));
            let mkdir = FileAction::Mkdir {
                path: path::clean(&directory),
                mode: 0o755,
                parents: true,
                owner,
                mtime_ns: self.mtime_ns(),
            };
            let mut inputs = Inputs::default();
            let base = self.state.node.map(|node| inputs.index(node));
            let op = Op::File(FileOp { base, actions: vec![mkdir] });
            let node = self.add_step(op, inputs, false, head.span);
            let title = self.title(self.lexer, &head.text, &self.state.variables);
            self.number(vec![node], None, title);
            self.state.node = Some(node);
        }
        self.history(format!("WORKDIR {directory}"), has_layer);
        Ok(())
    }

    /// The working directory, always absolute, as the configuration has it.
    pub(super) fn written_working_dir(&self) -> Cow<'_, str> {
        let written = &self.state.image.config.working_dir;
        if written.starts_with('/') { Cow::Borrowed(written) } else { self.working_dir() }
    }

    /// The working directory, always absolute and clean.
    pub(super) fn working_dir(&self) -> Cow<'_, str> {
        let written = &self.state.image.config.working_dir;
        if path::is_clean(written) { Cow::Borrowed(written) } else { Cow::Owned(path::absolute("/", written)) }
    }
}

/// `a=1 b=2`
fn assignments(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// What the history says of a health check: Go's `%q` of the structure.
fn health_text(config: &HealthConfig) -> String {
    let test = scalar::quote_all(&config.test);
    let times = [config.interval, config.timeout, config.start_period, config.start_interval]
        .map(|ns| scalar::quote(&scalar::format_duration(ns)))
        .join(" ");
    let retries = scalar::quote_number(u32::try_from(config.retries).unwrap_or(u32::MAX));
    format!("HEALTHCHECK &{{{test} {times} {retries}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_numbers_or_names() {
        for signal in ["9", "64", "SIGKILL", "kill", "SigTerm", "RTMIN+3", "SIGRTMAX-14", "RTMAX"] {
            assert!(is_signal(signal), "{signal}");
        }
        for text in ["0", "65", "-9", "", "SIGFOO", "RTMIN+16", "RTMAX-15", "RTMIN+0"] {
            assert!(!is_signal(text), "{text}");
        }
    }

    #[test]
    fn names_that_suggest_a_secret_are_known() {
        for name in ["TOKEN", "api_key", "GITHUB_TOKEN", "secret_message", "AUTH", "MY_apikey_X"] {
            assert!(suggests_secret(name), "{name}");
        }
        for name in ["TOKENS", "MONKEY", "PUBLIC_KEY", "PASSWORD_FILE", "KEY_VERSION", "author"] {
            assert!(!suggests_secret(name), "{name}");
        }
    }
}
