//! RUN: a process with its mounts.

use std::borrow::Cow;

use kiln_graph::op::{self, Exec, FileAction, FileOp, MountKind, Op, Proxy, Root, SecretEnv, SecretFile};
use kiln_graph::{Diagnostic, Span};

use super::draft::{Inputs, Node};
use super::globals;
use super::stage::StageLowering;
use crate::heredoc::{self, Heredoc};
use crate::instruction::{Command, Head, Run, RunNetwork};
use crate::mount::{Mount, MountFlag, Permissions};
use crate::path;
use crate::shell::{Environment, Lexer, Quotes, Unset};

/// Where a here-document that begins with `#!` is mounted.
const SCRIPTS: &str = "/dev/pipes";

/// Where SSH agents are mounted, with a number behind it.
const SSH_SOCKET: &str = "/run/buildkit/ssh_agent.";

/// What the mounts of a RUN instruction come to.
#[derive(Default)]
struct Mounts {
    mounts: Vec<op::Mount>,
    secret_env: Vec<SecretEnv>,
    /// The socket of the first SSH agent.
    ssh_socket: Option<String>,
    ssh_agents: usize,
}

impl StageLowering<'_, '_> {
    pub(super) fn run_command(&mut self, head: &Head, run: &Run) -> Result<(), Diagnostic> {
        let mut inputs = Inputs::default();
        let input = self.state.node.map(|node| inputs.index(node));
        let mut mounts = Mounts::default();
        let args = self.arguments(head, run, &mut inputs, &mut mounts);
        for flag in &run.mounts {
            self.mount(head, flag, &mut inputs, &mut mounts)?;
        }
        let Environment { entries: mut env, arguments } = self.state.variables.environment().clone();
        if let Some(socket) = mounts.ssh_socket.filter(|_| self.state.variables.get("SSH_AUTH_SOCK").is_none()) {
            env = env.iter().cloned().chain([format!("SSH_AUTH_SOCK={socket}")]).collect();
        }
        let request = self.lowering.request;
        let title = self.run_title(head, run, &mounts.secret_env);
        let history = self.run_history(&args);
        let exec = Exec {
            args,
            env,
            build_args: arguments,
            cwd: self.written_working_dir().into_owned(),
            user: self.state.image.config.user.clone(),
            hostname: request.or_build_arg(&request.hostname, "BUILDKIT_SANDBOX_HOSTNAME").to_owned(),
            root: Root { input, ..Root::default() },
            mounts: mounts.mounts,
            network: match run.network {
                RunNetwork::Default => request.network,
                RunNetwork::None => op::NetworkMode::None,
                RunNetwork::Host => op::NetworkMode::Host,
            },
            security: if run.insecure { op::SecurityMode::Insecure } else { op::SecurityMode::Sandbox },
            secret_env: mounts.secret_env,
            proxy: self.proxy(),
            extra_hosts: request.extra_hosts.clone(),
            ulimits: request.ulimits.clone(),
            shm_size_bytes: request.shm_size_bytes,
            cgroup_parent: request.cgroup_parent.clone(),
            devices: run.devices.iter().map(|d| op::Device { name: d.name.clone(), optional: !d.required }).collect(),
            valid_exit_codes: Vec::new(),
            retries: run.trial.retries,
            timeout_ns: run.trial.timeout_ns,
            limits: op::Limits { memory_bytes: run.trial.memory_bytes, nano_cpus: run.trial.nano_cpus },
        };
        let node = self.add_step(Op::Exec(Box::new(exec)), inputs, self.no_cache, head.span);
        self.number(vec![node], None, title);
        self.state.node = Some(node);
        self.history(history, true);
        Ok(())
    }

    /// Returns the argument vector. A here-document that is all of the command becomes the script; one that begins with
    /// `#!` is mounted and started; any other is left to the shell.
    fn arguments(&mut self, head: &Head, run: &Run, inputs: &mut Inputs, mounts: &mut Mounts) -> Vec<String> {
        let line = match (&run.command, run.heredocs.as_slice()) {
            (Command::Exec(arguments), _) => return arguments.clone(),
            (Command::Shell(line), []) => line.text.clone(),
            (Command::Shell(line), [only]) if heredoc::opening(&line.text).is_some() => {
                let content = only.content();
                if content.starts_with("#!") && self.state.image.os != "windows" {
                    let script = self.document(&only.name, content, 0o755, head.span);
                    mounts.mounts.push(op::Mount {
                        target: SCRIPTS.to_owned(),
                        readonly: true,
                        kind: MountKind::Bind {
                            input: Some(inputs.index(script)),
                            selector: String::new(),
                            output: None,
                        },
                    });
                    format!("{SCRIPTS}/{}", only.name)
                } else {
                    content
                }
            }
            (Command::Shell(line), heredocs) => {
                let mut text = line.text.clone();
                for heredoc in heredocs {
                    text.extend(["\n", &heredoc.body.text, &heredoc.name]);
                }
                text
            }
        };
        self.shell_call(line)
    }

    /// Adds a filesystem with one file.
    pub(super) fn document(&mut self, name: &str, content: String, mode: u32, span: Span) -> Node {
        let file = FileAction::Mkfile {
            path: format!("/{name}"),
            data: content.into_bytes(),
            mode,
            owner: None,
            mtime_ns: None,
        };
        let op = Op::File(FileOp { base: None, actions: vec![file] });
        self.add_internal(op, Inputs::default(), "preparing inline document", span)
    }

    /// Proxy settings that the environment does not set itself.
    fn proxy(&self) -> Proxy {
        let mut env = globals::proxies(&self.lowering.request.build_args);
        env.retain(|(name, _)| self.state.variables.get(name).is_none());
        Proxy { env }
    }

    /// `RUN |2 A=1 B=2 /bin/sh -c make # buildkit`: the declared arguments, then the argument vector.
    fn run_history(&self, args: &[String]) -> String {
        let arguments = &self.state.arguments;
        let length: usize = args.iter().map(|argument| argument.len() + 1).sum();
        let mut text = String::with_capacity(length + 32 * (arguments.len() + 1));
        text.push_str("RUN");
        if !arguments.is_empty() {
            text.extend([" |", &arguments.len().to_string()]);
        }
        for (name, value) in arguments {
            let value = self.state.variables.get(name).or(value.as_deref()).unwrap_or_default();
            text.extend([" ", name, "=", value]);
        }
        text.extend(args.iter().flat_map(|argument| [" ", argument]));
        text.push_str(" # buildkit");
        text
    }

    /// What progress shows: variables filled in, secrets masked, the first line of a script.
    fn run_title(&self, head: &Head, run: &Run, secrets: &[SecretEnv]) -> String {
        let mut text = Cow::Borrowed(head.text.as_str());
        if let (Command::Shell(line), [only]) = (&run.command, run.heredocs.as_slice())
            && heredoc::opening(&line.text).is_some()
        {
            text.to_mut().extend([" (", &summary(only), ")"]);
        }
        let mut variables = Cow::Borrowed(&self.state.variables);
        for secret in secrets {
            variables.to_mut().set(&secret.name, "****");
        }
        let lexer = Lexer { quotes: Quotes::Keep, unset: Unset::Keep, ..self.lexer };
        self.title(lexer, &text, &variables)
    }

    fn mount(
        &mut self,
        head: &Head,
        flag: &MountFlag,
        inputs: &mut Inputs,
        mounts: &mut Mounts,
    ) -> Result<(), Diagnostic> {
        let resolved = flag.resolve(&mut |value| Ok(self.expand(&value.into())?.into()))?;
        for field in &resolved.idle {
            self.note(field.span, format!("{} has no effect on this type of mount", field.text));
        }
        let (target, readonly, kind) = match &resolved.mount {
            Mount::Bind { from, source, target, readonly } => {
                let node = match from {
                    Some(from) => self.source(from, false)?,
                    None => Some(self.context(head.span)),
                };
                let input = node.map(|node| inputs.index(node));
                let kind = MountKind::Bind { input, selector: selector(source), output: None };
                (self.mount_point(target, flag)?, *readonly, kind)
            }
            Mount::Cache { id, sharing, from, source, target, readonly, permissions } => {
                let node = match from {
                    Some(from) => self.source(from, false)?,
                    None => None,
                };
                let (node, selector) = self.cache_content(node, selector(source), *permissions, head.span);
                let request = self.lowering.request;
                let namespace = request.or_build_arg(&request.cache_namespace, "BUILDKIT_CACHE_MOUNT_NS");
                let id = [namespace, "/", id].concat();
                let input = node.map(|node| inputs.index(node));
                let kind = MountKind::Cache { id, sharing: *sharing, input, selector };
                (self.mount_point(target, flag)?, *readonly, kind)
            }
            Mount::Tmpfs { target, size_bytes } => {
                (self.mount_point(target, flag)?, false, MountKind::Tmpfs { size_bytes: *size_bytes })
            }
            Mount::Secret { id, target, env, required, permissions } => {
                self.state.outline.secret(id, *required, self.place(head.span));
                if let Some(name) = env {
                    let (id, name) = (id.clone(), name.clone());
                    mounts.secret_env.push(SecretEnv { id, name, optional: !required });
                }
                let Some(target) = target else { return Ok(()) };
                let file = secret_file(id.clone(), 0o400, *required, *permissions);
                (path::absolute("/", target), true, MountKind::Secret(file))
            }
            Mount::Ssh { id, target, required, permissions } => {
                self.state.outline.agent(id, *required, self.place(head.span));
                let target = target.clone().unwrap_or_else(|| format!("{SSH_SOCKET}{}", mounts.ssh_agents));
                let target = path::absolute("/", &target);
                mounts.ssh_agents += 1;
                mounts.ssh_socket.get_or_insert_with(|| target.clone());
                (target, true, MountKind::Ssh(secret_file(id.clone(), 0o600, *required, *permissions)))
            }
        };
        mounts.mounts.push(op::Mount { target, readonly, kind });
        Ok(())
    }

    /// Returns a mount's absolute target; a relative one is below the working directory.
    fn mount_point(&self, target: &str, flag: &MountFlag) -> Result<String, Diagnostic> {
        let target = path::absolute(&self.working_dir(), target);
        if target == "/" {
            return Err(Diagnostic::error(flag.word.span, "a mount cannot cover the root directory")
                .with_hint("name a directory below it"));
        }
        Ok(target)
    }

    /// A new cache directory gets permissions by way of a step that makes it, as in BuildKit: so other permissions mean
    /// another directory.
    fn cache_content(
        &mut self,
        node: Option<Node>,
        selector: String,
        permissions: Permissions,
        span: Span,
    ) -> (Option<Node>, String) {
        if !selector.is_empty() || permissions.is_empty() {
            return (node, selector);
        }
        let id = |number: Option<u32>| op::OwnerId::Id(number.unwrap_or(0));
        let mkdir = FileAction::Mkdir {
            path: "/cache".to_owned(),
            mode: permissions.mode.unwrap_or(0o755),
            parents: false,
            owner: Some(op::Owner { user: id(permissions.uid), group: Some(id(permissions.gid)) }),
            mtime_ns: None,
        };
        let mut inputs = Inputs::default();
        let base = node.map(|node| inputs.index(node));
        let op = Op::File(FileOp { base, actions: vec![mkdir] });
        (Some(self.add_internal(op, inputs, "setting permissions of a cache mount", span)), "/cache".to_owned())
    }
}

/// A path within what is mounted; empty means all of it.
fn selector(source: &str) -> String {
    if source.is_empty() {
        return String::new();
    }
    let path = path::absolute("/", source);
    if path == "/" { String::new() } else { path }
}

fn secret_file(id: String, mode: u32, required: bool, permissions: Permissions) -> SecretFile {
    SecretFile {
        id,
        uid: permissions.uid.unwrap_or(0),
        gid: permissions.gid.unwrap_or(0),
        mode: permissions.mode.unwrap_or(mode),
        optional: !required,
    }
}

/// The first line of a script, with dots when there are more.
fn summary(heredoc: &Heredoc) -> String {
    let text = heredoc.body.text.trim();
    match text.split_once('\n') {
        Some((first, _)) => format!("{}...", first.trim_end_matches('\r')),
        None => text.to_owned(),
    }
}
