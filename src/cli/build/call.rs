//! `--call` and `--check`: questions about a Dockerfile that are answered without building it, and without an engine when the
//! files are here.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kiln_dockerfile::call::{Answer, Call, answer_alone};
use kiln_dockerfile::{Files, Ignore, NamedContext, Request, include};
use kiln_graph::{Diagnostic, SourceFile};
use serde_json::Value;

use super::context::{Sources, is_address};
use super::options::BuildArgs;
use super::request::{self, Surroundings};
use super::result;
use crate::cli::{print, value};
use crate::error::{Error, Result, ResultExt as _};
use crate::types::build::{CALL_ERROR, DOCKERFILE, LOCAL_PREFIX, SolveResponse};

/// The longest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What is asked, and how the answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) call: Call,
    json: bool,
    /// Whether findings do not make the command fail.
    ignore_status: bool,
}

impl Asked {
    /// Reads `--check` and `--call=check,format=json,ignorestatus=true`; `None` asks for a build.
    ///
    /// # Errors
    /// `InvalidArgument` for what cannot be asked.
    pub(super) fn parse(args: &BuildArgs) -> Result<Option<Self>> {
        let text = match (&args.call, args.check) {
            (Some(call), _) if call != "build" => call.as_str(),
            (_, Some(true)) => "check",
            _ => return Ok(None),
        };
        let wrong = |what: String| Error::invalid(format!("--call {text}: {what}"));
        let (mut name, mut json, mut ignore_status) = (None, false, false);
        for (key, given) in value::csv(text).context(|| format!("--call {text}"))? {
            match (key.as_str(), given.as_deref()) {
                (_, None) if name.is_none() => name = Some(key),
                (_, None) => return Err(wrong(format!("{key} is one name too many"))),
                ("format", Some("json")) => json = true,
                ("format", Some("text" | "txt" | "")) => json = false,
                ("format", Some(other)) => return Err(wrong(format!("the format {other} is neither text nor json"))),
                ("ignorestatus", Some(given)) => {
                    ignore_status = matches!(given, "1" | "t" | "true" | "T" | "TRUE" | "True");
                }
                (other, _) => return Err(wrong(format!("there is no option {other}, only format and ignorestatus"))),
            }
        }
        let call = match name.as_deref() {
            None | Some("build") => return Ok(None),
            Some("check" | "lint") => Call::Lint,
            Some(name) => Call::from_request_id(&format!("frontend.{name}")).map_err(wrong)?,
        };
        Ok(Some(Self { call, json, ignore_status }))
    }

    /// Prints an answer and returns the exit code.
    fn finish(self, shown: &Shown<'_>) -> Result<ExitCode> {
        let Shown { json, text, findings, error, status } = shown;
        let mut out = String::new();
        if self.json {
            out.push_str(&format!("{json}\n"));
        } else {
            if self.call == Call::Lint && *findings > 0 {
                let count =
                    if *findings == 1 { "1 warning has".to_owned() } else { format!("{findings} warnings have") };
                out.push_str(&format!("Check complete, {count} been found!\n"));
            }
            out.push_str(text);
            match error {
                Some(_) if *findings > 0 => out.push('\n'),
                None if self.call == Call::Lint && *findings == 0 => {
                    out.push_str("Check complete, no warnings found.\n");
                }
                _ => {}
            }
        }
        print(&out)?;
        if let Some(error) = error {
            let red = anstyle::AnsiColor::Red.on_default().bold();
            anstream::eprintln!("{red}ERROR{red:#}: {}", error.trim_end());
            return Ok(ExitCode::FAILURE);
        }
        Ok(if self.ignore_status { ExitCode::SUCCESS } else { ExitCode::from(*status) })
    }

    /// Prints the answer of an engine and returns the exit code.
    pub(super) fn answered(self, args: &BuildArgs, response: &SolveResponse) -> Result<ExitCode> {
        let get = |key: &str| response.exporter_response.get(key).map(String::as_str);
        let json = get("result.json").ok_or_else(|| Error::internal("the engine gave no answer"))?;
        let findings = match serde_json::from_str::<Value>(json) {
            Ok(Value::Object(results)) => results.get("warnings").and_then(Value::as_array).map_or(0, Vec::len),
            _ => 0,
        };
        let status = get("result.statuscode").and_then(|status| status.parse().ok()).unwrap_or(0);
        write_metadata(args, response.exporter_response.iter().map(|(key, text)| (key.as_str(), text.clone())))?;
        let text = get("result.txt").unwrap_or(json);
        self.finish(&Shown { json, text, findings, error: get(CALL_ERROR).map(str::to_owned), status })
    }
}

/// What is printed of an answer.
struct Shown<'a> {
    json: &'a str,
    text: &'a str,
    findings: usize,
    error: Option<String>,
    status: u8,
}

/// Answers without an engine, if the files are here; `None` when they are not, or nothing is asked. Blocking.
///
/// # Errors
/// Files that cannot be read, options that make no sense. A Dockerfile that makes no sense is part of the answer.
pub(in crate::cli) fn alone(args: &BuildArgs) -> Result<Option<ExitCode>> {
    let Some(asked) = Asked::parse(args)? else { return Ok(None) };
    // Whether standard input is a Dockerfile or an archive is known once it is read, and then the engine cannot have it.
    if args.context == Path::new("-") || (!args.context.is_dir() && args.context.to_str().is_some_and(is_address)) {
        return Ok(None);
    }
    let sources = Sources::find(&args.context, args.file.as_deref(), std::io::stdin(), "")?;
    let name = sources.filename.clone().unwrap_or_else(|| "Dockerfile".to_owned());
    let attrs: BTreeMap<String, String> =
        request::request(args, sources, &[], Surroundings::default())?.frontend_attrs.into_iter().collect();
    let dir = |name: &str| attrs.get(&format!("{LOCAL_PREFIX}{name}")).map(PathBuf::from);
    let (context, beside) = (dir("context"), dir("dockerfile"));
    let text = match (attrs.get(DOCKERFILE), &beside) {
        (Some(text), _) => request::decode_dockerfile(text)?,
        (None, Some(dir)) => {
            read(&dir.join(&name))?.ok_or_else(|| Error::not_found(format!("there is no file {name}")))?
        }
        (None, None) => return Ok(None),
    };
    let file = SourceFile::new(&name, &text);
    let mut read_included = |path: &str| {
        let dirs = [&context, &beside].into_iter().flatten();
        let found = dirs.map(|dir| read(&dir.join(path))).find(|read| !matches!(read, Ok(None)));
        found.unwrap_or(Ok(None)).map_err(|error| error.to_string())
    };
    let file = match include(&file, &mut read_included) {
        Ok(file) => file,
        Err(refused) => return refuse(&refused.file, &[refused.error]),
    };
    let ignore = ignore(context.as_deref(), beside.as_deref(), &name)?;
    let asked_for = asked_for(&file, &attrs, ignore)?;
    if kiln_dockerfile::foreign(&file, &asked_for.build_args).is_some() {
        // Only an engine can run what answers.
        return Ok(None);
    }
    match answer_alone(asked.call, &asked_for) {
        Ok(answer) => {
            write_metadata(args, answer.metadata(asked.call))?;
            let Answer { json, text, findings, error, .. } = &answer;
            let shown = Shown { json, text, findings: *findings, error: error.clone(), status: answer.status() };
            asked.finish(&shown).map(Some)
        }
        Err(refused) => refuse(&file, &refused.errors),
    }
}

/// Tells why a file cannot be read.
fn refuse(file: &SourceFile, errors: &[Diagnostic]) -> Result<Option<ExitCode>> {
    let red = anstyle::AnsiColor::Red.on_default().bold();
    let shown: String = errors.iter().map(|error| kiln_dockerfile::call::shown(file, error)).collect();
    anstream::eprintln!("{red}ERROR{red:#}: {}", shown.trim_end());
    Ok(Some(ExitCode::FAILURE))
}

/// Writes the answer to the metadata file, if there is to be one.
fn write_metadata<'a>(args: &BuildArgs, metadata: impl IntoIterator<Item = (&'a str, String)>) -> Result<()> {
    let Some(path) = &args.metadata_file else { return Ok(()) };
    let shown = metadata.into_iter().filter(|(key, _)| *key != CALL_ERROR).map(|(key, text)| {
        let json = (key == "result.json").then(|| serde_json::from_str(&text).ok()).flatten();
        (key.to_owned(), json.unwrap_or(Value::String(text)))
    });
    let object: serde_json::Map<String, Value> = shown.collect();
    result::write(path, &serde_json::to_string_pretty(&object).expect("texts have a JSON form"))
}

/// Reads a text; `None` when there is no such file.
fn read(path: &Path) -> Result<Option<String>> {
    let doing = || format!("read {}", path.display());
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.context(doing)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).context(doing)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::invalid(format!("it is larger than {} MiB", MAX_FILE_BYTES >> 20)).context(doing()));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::invalid("it is no text: it is not valid UTF-8").context(doing()))?;
    Ok(Some(text))
}

/// Reads what the context leaves out: the Dockerfile's own list, else that of the context.
fn ignore(context: Option<&Path>, beside: Option<&Path>, name: &str) -> Result<Ignore> {
    let own = format!("{name}.dockerignore");
    let places = [(beside, own.as_str()), (context, ".dockerignore")];
    for (dir, name) in places {
        let Some(text) = dir.map(|dir| read(&dir.join(name))).transpose()?.flatten() else { continue };
        let file = SourceFile::new(name, &text);
        return Ignore::parse(&file).map_err(|error| {
            let line = error.span.map(|span| format!(", line {}", file.lines(span).0)).unwrap_or_default();
            Error::invalid(format!("{name}{line}: {error}"))
        });
    }
    Ok(Ignore::default())
}

/// Makes the frontend's request of a build's attributes, as far as answers depend on them.
fn asked_for<'a>(file: &'a SourceFile, attrs: &'a BTreeMap<String, String>, ignore: Ignore) -> Result<Request<'a>> {
    let mut request = Request::new(file);
    request.context = Files::Local { name: "context".to_owned(), ignore };
    request.target = attrs.get("target").map(String::as_str);
    for (key, value) in attrs {
        match key.split_once(':') {
            Some(("build-arg", name)) => drop(request.build_args.insert(name.to_owned(), value.clone())),
            Some(("context", name)) => {
                let image = value.strip_prefix("docker-image://").and_then(|image| image.parse().ok());
                let files = || Files::Local { name: name.to_owned(), ignore: Ignore::default() };
                let context = image.map_or_else(|| NamedContext::Files(files()), NamedContext::Image);
                request.contexts.insert(name.to_owned(), context);
            }
            _ => {}
        }
    }
    if let Some(platform) = attrs.get("platform").and_then(|platforms| platforms.split(',').next()) {
        request.target_platform = Some(platform.parse().context(|| format!("--platform {platform}"))?);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::error::Kind;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: BuildArgs,
    }

    fn parse(options: &[&str]) -> Result<Option<Asked>> {
        let all = ["build"].iter().chain(options).chain(&["."]);
        Asked::parse(&Command::try_parse_from(all).unwrap().args)
    }

    #[test]
    fn calls_are_spelled_as_in_buildx() {
        let asked = |call, json, ignore_status| Some(Asked { call, json, ignore_status });
        for (options, expected) in [
            (&["--check"][..], asked(Call::Lint, false, false)),
            (&["--check=false"], None),
            (&["--call", "build"], None),
            (&["--call=check,format=json"], asked(Call::Lint, true, false)),
            (&["--call=lint,ignorestatus=1"], asked(Call::Lint, false, true)),
            (&["--call", "outline"], asked(Call::Outline, false, false)),
            (&["--call=format=json,targets"], asked(Call::Targets, true, false)),
            (&["--call=subrequests.describe"], asked(Call::Describe, false, false)),
            (&[], None),
        ] {
            assert_eq!(parse(options).unwrap(), expected, "{options:?}");
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_with_a_hint() {
        for (call, words) in [
            ("outlin", "did you mean frontend.outline?"),
            ("check,format=yaml", "the format yaml is neither text nor json"),
            ("check,outline", "outline is one name too many"),
            ("check,colour=red", "there is no option colour"),
        ] {
            let error = parse(&["--call", call]).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
