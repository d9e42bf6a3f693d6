//! The instructions, one function each: flags and arguments become values.

use kiln_graph::diagnostic::closest;
use kiln_graph::{Diagnostic, Span};

use super::flags::{self, Flags};
use super::{Findings, Parsed, Parts};
use crate::check;
use crate::heredoc;
use crate::instruction::{
    self, Add, Argument, Assignment, Command, Device, Healthcheck, Kind, Run, RunNetwork, Stage, Transfer, Trial,
};
use crate::line::{Text, Word};
use crate::mount::MountFlag;
use crate::scalar;
use crate::split::{self, Json};

type Errors = Vec<Diagnostic>;

fn error<T>(span: Span, message: impl Into<String>) -> Result<T, Errors> {
    Err(vec![Diagnostic::error(span, message)])
}

fn error_with_hint<T>(span: Span, message: impl Into<String>, hint: impl Into<String>) -> Result<T, Errors> {
    Err(vec![Diagnostic::error(span, message).with_hint(hint)])
}

/// Reads an instruction.
pub(super) fn parse(parts: Parts<'_>, findings: &mut Findings<'_>) -> Result<Parsed, Errors> {
    Ok(Parsed::Kind(match parts.keyword {
        "FROM" => return from(parts, findings).map(|stage| Parsed::Stage(Box::new(stage))),
        "ADD" => add(parts)?,
        "ARG" => arg(&parts, findings)?,
        "CMD" => Kind::Cmd(plain_command(parts)?),
        "COPY" => copy(parts)?,
        "ENTRYPOINT" => Kind::Entrypoint(plain_command(parts)?),
        "ENV" => Kind::Env(assignments(parts)?),
        "EXPOSE" => expose(parts)?,
        "HEALTHCHECK" => healthcheck(parts)?,
        "LABEL" => Kind::Label(assignments(parts)?),
        "MAINTAINER" => {
            let message = "Maintainer instruction is deprecated in favor of using label";
            findings.add(check::MAINTAINER_DEPRECATED, parts.head.span, message.to_owned());
            Kind::Maintainer(one_text(parts)?)
        }
        "ONBUILD" => onbuild(parts)?,
        "RUN" => run(parts, findings)?,
        "SHELL" => shell_form(parts)?,
        // The flags of STOPSIGNAL and ARG are dropped without a word, as BuildKit does.
        "STOPSIGNAL" => Kind::Stopsignal(one_text(Parts { flags: Vec::new(), ..parts })?),
        "USER" => Kind::User(one_text(parts)?),
        "VOLUME" => volume(parts)?,
        "WORKDIR" => Kind::Workdir(one_text(parts)?),
        other => unreachable!("{other} is not in the list of keywords"),
    }))
}

/// Reads an instruction whose argument is all of the rest of the line.
fn one_text(parts: Parts<'_>) -> Result<Word, Errors> {
    flags::none(parts.keyword, parts.flags)?;
    if parts.arguments.is_empty() {
        return error(parts.head.keyword.span, format!("{} has no argument", parts.keyword));
    }
    Ok(parts.arguments.word())
}

fn no_arguments<T>(parts: &Parts<'_>) -> Result<T, Errors> {
    error(parts.head.keyword.span, format!("{} needs at least one argument", parts.keyword))
}

fn strings(words: Vec<Word>) -> Vec<String> {
    words.into_iter().map(|word| word.text).collect()
}

/// Reads the text of a command: a JSON array, or a line for the shell.
fn command(text: Text<'_>) -> Result<Command, Errors> {
    Ok(match split::json(text).map_err(|error| vec![error])? {
        Json::Strings(words) => Command::Exec(strings(words)),
        Json::No => Command::Shell(text.word()),
    })
}

fn plain_command(parts: Parts<'_>) -> Result<Command, Errors> {
    flags::none(parts.keyword, parts.flags)?;
    command(parts.arguments)
}

/// Reads a JSON array or words between blanks.
fn list(text: Text<'_>) -> Result<Vec<Word>, Errors> {
    Ok(match split::json(text).map_err(|error| vec![error])? {
        Json::Strings(words) => words,
        Json::No => split::words(text).into_iter().map(Text::word).collect(),
    })
}

fn from(parts: Parts<'_>, findings: &mut Findings<'_>) -> Result<Stage, Errors> {
    let Parts { head, flags, arguments, comments, .. } = parts;
    let flags = Flags::parse("FROM", flags)?;
    let words: Vec<Word> = split::words(arguments).into_iter().map(Text::word).collect();
    let (base, name) = match words.as_slice() {
        [base] => (base, None),
        [base, keyword, name] if keyword.text.eq_ignore_ascii_case("as") => (base, Some((keyword, name))),
        [] => return error_with_hint(head.keyword.span, "FROM has no argument", "write FROM image, or FROM scratch"),
        [_, keyword, ..] => {
            let hint = match keyword.text.as_str() {
                "#" => "a comment has a line of its own",
                _ => "write FROM image, or FROM image AS name",
            };
            return error_with_hint(flags::span_or(&words, head.span), "FROM takes one argument or three", hint);
        }
    };
    let stage_name = match name {
        Some((keyword, name)) => {
            check_as_casing(&head.keyword, keyword, findings);
            Some(lower_case_name(name, findings)?)
        }
        None => None,
    };
    let description = stage_name.as_ref().and_then(|name| description(comments, &name.text));
    if let Some(name) = &stage_name {
        check_description("FROM", &[name], comments, findings);
    }
    Ok(Stage {
        head: head.clone(),
        base: base.clone(),
        name: stage_name,
        platform: flags.value("platform"),
        description,
        // Most stages fit; instructions are large to move.
        instructions: Vec::with_capacity(16),
    })
}

/// Reports an AS in another case than its FROM. A FROM in mixed case is another check's business.
fn check_as_casing(from: &Word, keyword: &Word, findings: &mut Findings<'_>) {
    let (lower, upper) = (from.text.to_lowercase(), from.text.to_uppercase());
    let fits = match from.text.as_str() {
        text if text == lower => keyword.text == keyword.text.to_lowercase(),
        text if text == upper => keyword.text == keyword.text.to_uppercase(),
        _ => true,
    };
    if !fits {
        let message = format!("'{}' and '{}' keywords' casing do not match", keyword.text, from.text);
        findings.add(check::FROM_AS_CASING, keyword.span, message);
    }
}

fn lower_case_name(word: &Word, findings: &mut Findings<'_>) -> Result<Word, Errors> {
    let lower = word.text.to_lowercase();
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    if !lower.starts_with(|c: char| c.is_ascii_lowercase()) || !lower.chars().all(allowed) {
        let hint = "names begin with a letter and are made of letters, digits, - _ and .";
        return error_with_hint(word.span, format!("{:?} cannot be the name of a stage", word.text), hint);
    }
    if lower != word.text {
        let message = format!("Stage name '{}' should be lowercase", word.text);
        findings.add(check::STAGE_NAME_CASING, word.span, message);
    }
    Ok(Word::new(lower, word.span))
}

/// Finds the comment above an instruction that describes a name: `# name what it is`.
fn description(comments: &[Word], name: &str) -> Option<String> {
    comments.iter().find_map(|comment| comment.text.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned)
}

fn check_description(keyword: &str, names: &[&Word], comments: &[Word], findings: &mut Findings<'_>) {
    let Some(comment) = comments.last().filter(|comment| !comment.text.starts_with("check=")) else { return };
    let first = comment.text.split(' ').next().unwrap_or_default();
    if names.iter().any(|name| name.text == first) {
        return;
    }
    let example = if let [name] = names { &name.text } else { "<arg_key>" };
    let message = format!("Comment for {keyword} should follow the format: `# {example} <description>`");
    findings.add(check::INVALID_DEFINITION_DESCRIPTION, comment.span, message);
}

fn arg(parts: &Parts<'_>, findings: &mut Findings<'_>) -> Result<Kind, Errors> {
    let words = split::quoted_words(parts.arguments, parts.escape);
    if words.is_empty() {
        return no_arguments(parts);
    }
    let mut arguments = Vec::new();
    for word in words {
        let word = word.word();
        let (name, default) = match word.text.find('=') {
            Some(0) => return error(word.span, "an argument has no name"),
            Some(at) => (word.part(0..at), Some(word.part(at + 1..word.text.len()))),
            None => (word, None),
        };
        let description = description(parts.comments, &name.text);
        arguments.push(Argument { name, default, description });
    }
    let names: Vec<&Word> = arguments.iter().map(|argument| &argument.name).collect();
    check_description("ARG", &names, parts.comments, findings);
    Ok(Kind::Arg(arguments))
}

/// Reads `name=value ...` or the old `name value`.
fn assignments(parts: Parts<'_>) -> Result<Vec<Assignment>, Errors> {
    let Parts { keyword, flags, arguments, escape, head, .. } = parts;
    flags::none(keyword, flags)?;
    let words: Vec<Word> = split::quoted_words(arguments, escape).into_iter().map(Text::word).collect();
    let Some(first) = words.first() else {
        return error(head.keyword.span, format!("{keyword} needs at least one argument"));
    };
    if !first.text.contains('=') {
        let (name, value) = split::first_word(arguments);
        if value.is_empty() {
            let hint = format!("write {keyword} {}=VALUE", name.as_str());
            return error_with_hint(name.span(), format!("{keyword} {} has no value", name.as_str()), hint);
        }
        return Ok(vec![Assignment { name: name.word(), value: value.word(), legacy: true }]);
    }
    let assignment = |word: &Word| match word.text.find('=') {
        None => {
            let hint = "write name=value; a value with blanks stands in quotes";
            Err(Diagnostic::error(word.span, format!("{:?} has no =", word.text)).with_hint(hint))
        }
        Some(0) => Err(Diagnostic::error(word.span, format!("{:?} has no name before the =", word.text))),
        Some(at) => {
            let (name, value) = (word.part(0..at), word.part(at + 1..word.text.len()));
            Ok(Assignment { name, value, legacy: false })
        }
    };
    let (good, bad): (Vec<_>, Vec<_>) = words.iter().map(assignment).partition(Result::is_ok);
    if bad.is_empty() {
        Ok(good.into_iter().filter_map(Result::ok).collect())
    } else {
        Err(bad.into_iter().filter_map(Result::err).collect())
    }
}

fn expose(parts: Parts<'_>) -> Result<Kind, Errors> {
    if parts.arguments.is_empty() {
        return no_arguments(&parts);
    }
    flags::none("EXPOSE", parts.flags)?;
    let mut ports: Vec<Word> = split::words(parts.arguments).into_iter().map(Text::word).collect();
    ports.sort_by(|a, b| a.text.cmp(&b.text));
    Ok(Kind::Expose(ports))
}

fn volume(parts: Parts<'_>) -> Result<Kind, Errors> {
    let words = list(parts.arguments)?;
    if words.is_empty() {
        return no_arguments(&parts);
    }
    flags::none("VOLUME", parts.flags)?;
    let volumes: Vec<Word> = words.into_iter().map(|word| Word::new(word.text.trim(), word.span)).collect();
    match volumes.iter().find(|word| word.text.is_empty()) {
        Some(word) => error(word.span, "a volume has an empty path"),
        None => Ok(Kind::Volume(volumes)),
    }
}

fn shell_form(parts: Parts<'_>) -> Result<Kind, Errors> {
    flags::none("SHELL", parts.flags)?;
    match split::json(parts.arguments).map_err(|error| vec![error])? {
        Json::Strings(words) if !words.is_empty() => Ok(Kind::Shell(strings(words))),
        _ => {
            let hint = "write SHELL [\"/bin/bash\", \"-c\"]";
            error_with_hint(parts.head.span, "SHELL takes a JSON array with at least one string", hint)
        }
    }
}

fn onbuild(parts: Parts<'_>) -> Result<Kind, Errors> {
    if parts.arguments.is_empty() {
        return no_arguments(&parts);
    }
    flags::none("ONBUILD", parts.flags)?;
    let (keyword, _) = split::first_word(parts.arguments);
    match keyword.as_str().to_ascii_uppercase().as_str() {
        "ONBUILD" => return error(keyword.span(), "ONBUILD cannot defer another ONBUILD"),
        deferred @ ("FROM" | "MAINTAINER") => {
            return error(keyword.span(), format!("ONBUILD cannot defer {deferred}"));
        }
        _ => {}
    }
    let mut text = parts.arguments.word();
    for heredoc in &parts.heredocs {
        text.text.extend(["\n", &heredoc.body.text, &heredoc.name]);
    }
    Ok(Kind::Onbuild(text))
}

fn run(parts: Parts<'_>, findings: &mut Findings<'_>) -> Result<Kind, Errors> {
    let mut flags = Flags::parse("RUN", parts.flags)?;
    let mut errors = Vec::new();
    let mut mounts = Vec::new();
    for word in flags.take("mount") {
        match MountFlag::parse(word) {
            Ok(mount) => mounts.push(mount),
            Err(more) => errors.extend(more),
        }
    }
    let mut devices = Vec::new();
    for word in flags.take("device") {
        match device(&word) {
            Ok(device) => devices.push(device),
            Err(more) => errors.extend(more),
        }
    }
    let modes = [("default", RunNetwork::Default), ("none", RunNetwork::None), ("host", RunNetwork::Host)];
    let network = choice(&flags, "network", &modes);
    let insecure = choice(&flags, "security", &[("sandbox", false), ("insecure", true)]);
    errors.extend(network.as_ref().err().cloned());
    errors.extend(insecure.as_ref().err().cloned());
    let trial = trial(&flags, findings);
    errors.extend(trial.as_ref().err().cloned());
    let (Ok(network), Ok(insecure), Ok(trial), true) = (network, insecure, trial, errors.is_empty()) else {
        return Err(errors);
    };
    let command = command(parts.arguments)?;
    if command == Command::Exec(Vec::new()) {
        return error(parts.head.span, "RUN [] has nothing to run");
    }
    Ok(Kind::Run(Box::new(Run { command, heredocs: parts.heredocs, mounts, network, insecure, devices, trial })))
}

/// The most tries that `--retry` may ask for: more would be a loop.
const MAX_RETRIES: u32 = 100;

/// The least memory that a process can be started with.
const MIN_MEMORY_BYTES: u64 = 6 << 20;

/// Reads the flags that only Kiln has, and reports that they are not portable.
fn trial(flags: &Flags, findings: &mut Findings<'_>) -> Result<Trial, Diagnostic> {
    let value = |name: &str| flags.value(name);
    let wrong = |name: &str, word: &Word, what: &str, example: &str| {
        Diagnostic::error(word.span, format!("--{name}={} is not {what}", word.text))
            .with_hint(format!("write --{name}={example}"))
    };
    let mut trial = Trial::default();
    if let Some(word) = value("retry") {
        let retries = word.text.parse().ok().filter(|retries| *retries <= MAX_RETRIES);
        trial.retries = retries.ok_or_else(|| wrong("retry", &word, "a number up to 100", "3"))?;
    }
    if let Some(word) = value("timeout") {
        let timeout = scalar::duration_ns(&word.text).and_then(|ns| u64::try_from(ns).ok());
        let timeout = timeout.filter(|ns| *ns >= 1_000_000);
        trial.timeout_ns = Some(timeout.ok_or_else(|| wrong("timeout", &word, "a duration of at least 1ms", "10m"))?);
    }
    if let Some(word) = value("memory") {
        let memory = scalar::size_bytes(&word.text).filter(|bytes| *bytes >= MIN_MEMORY_BYTES);
        trial.memory_bytes = Some(memory.ok_or_else(|| wrong("memory", &word, "a size of at least 6m", "2g"))?);
    }
    if let Some(word) = value("cpus") {
        let cpus = scalar::nano_cpus(&word.text).filter(|nano| *nano >= 10_000_000);
        trial.nano_cpus = Some(cpus.ok_or_else(|| wrong("cpus", &word, "a number of at least 0.01", "1.5"))?);
    }
    for name in ["retry", "timeout", "memory", "cpus"] {
        if let Some(span) = flags.span(name) {
            findings.add(check::KILN_EXTENSION, span, format!("RUN --{name} is understood by Kiln only"));
        }
    }
    Ok(trial)
}

/// Reads a flag that has a few values; without the flag, the first.
fn choice<T: Copy>(flags: &Flags, name: &str, values: &[(&str, T)]) -> Result<T, Diagnostic> {
    let Some(word) = flags.value(name) else { return Ok(values[0].1) };
    if let Some((_, value)) = values.iter().find(|(known, _)| *known == word.text) {
        return Ok(*value);
    }
    let known = values.iter().map(|(known, _)| *known);
    let hint = match closest(&word.text, known.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known are {}", known.collect::<Vec<_>>().join(", ")),
    };
    Err(Diagnostic::error(word.span, format!("--{name}={} is unknown", word.text)).with_hint(hint))
}

/// Reads `name[,required]`.
fn device(word: &Word) -> Result<Device, Errors> {
    let mut device = Device { name: String::new(), required: false };
    for field in split::fields(word) {
        let field = field.map_err(|error| vec![error])?;
        let (key, value) = field.text.split_once('=').map_or((&*field.text, None), |(k, v)| (k, Some(v)));
        match (key.to_ascii_lowercase().as_str(), value) {
            ("required", None) => device.required = true,
            ("required", Some(value)) => match scalar::boolean(value) {
                Some(required) => device.required = required,
                None => return error(field.span, format!("required={value} is not true or false")),
            },
            ("name", Some(value)) => value.clone_into(&mut device.name),
            _ if device.name.is_empty() && (value.is_none() || key.contains('/')) => {
                device.name = field.text.into_owned();
            }
            _ => return error(field.span, format!("devices have no option {:?}", field.text)),
        }
    }
    if device.name.is_empty() {
        return error_with_hint(word.span, "--device names no device", "write --device=vendor/class=name");
    }
    Ok(device)
}

fn copy(parts: Parts<'_>) -> Result<Kind, Errors> {
    let (flags, transfer) = transfer(parts)?;
    let from = flags.value("from");
    if let Some(from) = from.as_ref().filter(|from| from.text.contains('$')) {
        let hint = "define a stage with FROM, which may use global arguments, and name it here";
        return error_with_hint(from.span, "variables are not expanded in --from", hint);
    }
    Ok(Kind::Copy(Box::new(instruction::Copy { transfer, from, parents: flags.switch("parents") == Some(true) })))
}

fn add(parts: Parts<'_>) -> Result<Kind, Errors> {
    let (flags, transfer) = transfer(parts)?;
    let (keep_git_dir, unpack) = (flags.switch("keep-git-dir"), flags.switch("unpack"));
    Ok(Kind::Add(Box::new(Add { transfer, keep_git_dir, checksum: flags.value("checksum"), unpack })))
}

fn transfer(parts: Parts<'_>) -> Result<(Flags, Transfer), Errors> {
    let keyword = parts.keyword;
    let mut flags = Flags::parse(keyword, parts.flags)?;
    let json = matches!(split::json(parts.arguments), Ok(Json::Strings(_)));
    let mut words = list(parts.arguments)?;
    let Some(destination) = words.pop().filter(|_| !words.is_empty()) else {
        let hint = format!("write {keyword} source destination");
        return error_with_hint(parts.head.span, format!("{keyword} needs a source and a destination"), hint);
    };
    let is_document = |word: &Word| !json && heredoc::opening(&word.text).is_some();
    if is_document(&destination) {
        return error(destination.span, format!("a here-document cannot be the destination of {keyword}"));
    }
    let (_, sources) = words.into_iter().partition::<Vec<_>, _>(is_document);
    let transfer = Transfer {
        sources,
        documents: parts.heredocs,
        destination,
        chown: flags.value("chown"),
        chmod: flags.value("chmod"),
        link: flags.switch("link") == Some(true),
        exclude: flags.take("exclude"),
    };
    Ok((flags, transfer))
}

fn healthcheck(parts: Parts<'_>) -> Result<Kind, Errors> {
    let (kind, rest) = split::first_word(parts.arguments);
    match kind.as_str().to_ascii_uppercase().as_str() {
        "NONE" if rest.is_empty() => return Ok(Kind::Healthcheck(Healthcheck::None)),
        "NONE" => return error(rest.span(), "HEALTHCHECK NONE takes no arguments"),
        "CMD" => {}
        "" => return error_with_hint(parts.head.span, "HEALTHCHECK has no argument", "write HEALTHCHECK CMD command"),
        other => {
            let message = format!("HEALTHCHECK has no form {other}");
            return error_with_hint(kind.span(), message, "write HEALTHCHECK CMD command, or HEALTHCHECK NONE");
        }
    }
    let flags = Flags::parse("HEALTHCHECK", parts.flags)?;
    let command = command(rest)?;
    if rest.is_empty() || command == Command::Exec(Vec::new()) {
        return error(parts.head.span, "HEALTHCHECK CMD has no command");
    }
    let interval = |name| interval_ns(&flags, name).map_err(|error| vec![error]);
    Ok(Kind::Healthcheck(Healthcheck::Check {
        command,
        interval_ns: interval("interval")?,
        timeout_ns: interval("timeout")?,
        start_period_ns: interval("start-period")?,
        start_interval_ns: interval("start-interval")?,
        retries: retries(&flags).map_err(|error| vec![error])?,
    }))
}

/// Reads a duration: 0, or at least a millisecond.
fn interval_ns(flags: &Flags, name: &str) -> Result<i64, Diagnostic> {
    let Some(word) = flags.value(name) else { return Ok(0) };
    match scalar::duration_ns(&word.text) {
        Some(0) => Ok(0),
        Some(ns) if ns >= 1_000_000 => Ok(ns),
        Some(_) => Err(Diagnostic::error(word.span, format!("--{name}={} is less than a millisecond", word.text))),
        None => Err(Diagnostic::error(word.span, format!("--{name}={} is not a duration", word.text))
            .with_hint("write it as 30s, 5m or 1h30m")),
    }
}

fn retries(flags: &Flags) -> Result<i32, Diagnostic> {
    let Some(word) = flags.value("retries") else { return Ok(0) };
    word.text
        .parse()
        .ok()
        .filter(|retries| *retries >= 0)
        .ok_or_else(|| Diagnostic::error(word.span, format!("--retries={} is not a number of at least 0", word.text)))
}

/// Reports instructions whose case differs from most others'.
pub(super) fn check_casing(stages: &[Stage], warnings: &mut Vec<Diagnostic>) {
    let heads = || {
        stages.iter().flat_map(|stage| std::iter::once(&stage.head).chain(stage.instructions.iter().map(|i| &i.head)))
    };
    // Keywords are ASCII.
    let is_lower = |text: &str| !text.contains(|c: char| c.is_ascii_uppercase());
    let is_upper = |text: &str| !text.contains(|c: char| c.is_ascii_lowercase());
    let lower = heads().filter(|head| is_lower(&head.keyword.text)).count();
    let upper = heads().filter(|head| is_upper(&head.keyword.text)).count();
    let (expected, fits): (_, &dyn Fn(&str) -> bool) =
        if lower > upper { ("lowercase", &is_lower) } else { ("uppercase", &is_upper) };
    for head in heads().filter(|head| !fits(&head.keyword.text)) {
        let command = &head.keyword.text;
        let message = format!("Command '{command}' should match the case of the command majority ({expected})");
        let rule = check::CONSISTENT_INSTRUCTION_CASING;
        warnings.extend(head.subject().finding(rule, head.keyword.span, message));
    }
}

/// Reports names of stages that are reserved or taken.
pub(super) fn check_stage_names(stages: &[Stage], warnings: &mut Vec<Diagnostic>) {
    let mut known = std::collections::HashSet::new();
    for stage in stages {
        let Some(name) = &stage.name else { continue };
        let mut find = |rule, message| {
            warnings.extend(stage.head.subject().finding(rule, name.span, message));
        };
        if matches!(name.text.as_str(), "scratch" | "context") {
            find(
                check::RESERVED_STAGE_NAME,
                format!("Stage name should not use the same name as reserved stage {}", scalar::quote(&name.text)),
            );
        }
        if !known.insert(&name.text) {
            find(
                check::DUPLICATE_STAGE_NAME,
                format!("Duplicate stage name {}, stage names should be unique", scalar::quote(&name.text)),
            );
        }
    }
}
