//! The variables outside of stages: platforms, and the ARG instructions before the first FROM.

use std::collections::BTreeMap;

use kiln_graph::{Diagnostic, Platform, SourceFile};

use super::Request;
use super::outline::{GlobalOutline, OutlineArgument};
use crate::instruction::Dockerfile;
use crate::shell::{Lexer, Variables};

/// The proxy arguments, which need no ARG.
pub(super) const PROXIES: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// The build argument, or global ARG, with the time everything gets.
pub(super) const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The value of [`EPOCH`] that means the time of the main context.
pub(super) const OF_CONTEXT: &str = "context";

/// Says whether a build may want [`Request::context_time_s`]: its build arguments ask for it, or the file seems to.
#[must_use]
pub fn asks_for_context_time(file: &SourceFile, build_args: &BTreeMap<String, String>) -> bool {
    let in_file = || file.text().contains(EPOCH) && file.text().contains(OF_CONTEXT);
    build_args.get(EPOCH).map_or_else(in_file, |value| value == OF_CONTEXT)
}

/// Returns the value that an argument really gets: `SOURCE_DATE_EPOCH=context`, or a name, is a number, or nothing where that has no
/// time.
pub(super) fn dated(request: &Request<'_>, name: &str, value: &str) -> Option<String> {
    if name == EPOCH && value == OF_CONTEXT {
        return request.context_time_s.map(|seconds| seconds.to_string());
    }
    if let (EPOCH, Some((_, seconds))) = (name, request.named_time_s.as_ref().filter(|(named, _)| named == value)) {
        return seconds.map(|seconds| seconds.to_string());
    }
    Some(value.to_owned())
}

/// The variables FROM sees, and what a bare ARG in a stage may take its value from.
#[derive(Clone, Debug)]
pub(super) struct Globals {
    pub(super) variables: Variables,
    /// The same without build arguments: what the file says by itself.
    pub(super) defaults: Option<Variables>,
    /// What an outline says about global arguments.
    pub(super) outline: GlobalOutline,
    /// Names that a global ARG declares, with or without a value.
    pub(super) declared: Vec<String>,
}

impl Globals {
    pub(super) fn new(dockerfile: &Dockerfile, request: &Request<'_>) -> Result<Self, Diagnostic> {
        let last = dockerfile.stages.last().and_then(|stage| stage.name.as_ref()).map_or("", |name| &name.text);
        let target = request.target.unwrap_or(last);
        let platforms = platform_variables(&request.build_platform(), &request.target_platform(), target);
        let none = BTreeMap::new();
        let with = |build_args: &BTreeMap<String, String>, outline: &mut GlobalOutline| {
            let mut variables = Variables::new();
            for (name, value) in &platforms {
                variables.set(name, build_args.get(*name).unwrap_or(value));
            }
            declare(dockerfile, request, build_args, &mut variables, outline).map(|()| variables)
        };
        let mut outline = GlobalOutline::default();
        let mut variables = with(&request.build_args, &mut outline)?;
        if let Some(epoch) = request.epoch_s {
            variables.set(EPOCH, epoch.to_string());
        }
        let arguments = dockerfile.global_arguments.iter().flat_map(|instruction| &instruction.arguments);
        let declared = arguments.map(|argument| argument.name.text.clone()).collect();
        let defaults = with(&none, &mut GlobalOutline::default()).ok();
        Ok(Self { variables, defaults, outline, declared })
    }

    /// Says whether a variable exists, though perhaps without a value.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.variables.get(name).is_some() || self.declared.iter().any(|declared| declared == name)
    }
}

fn declare(
    dockerfile: &Dockerfile,
    request: &Request<'_>,
    build_args: &BTreeMap<String, String>,
    variables: &mut Variables,
    outline: &mut GlobalOutline,
) -> Result<(), Diagnostic> {
    let lexer = Lexer::new(dockerfile.directives.escape);
    let all = dockerfile.global_arguments.iter().flat_map(|i| i.arguments.iter().map(|argument| (&i.head, argument)));
    for (head, argument) in all {
        let name = &argument.name.text;
        let mut parts = Vec::new();
        if let Some(value) = build_args.get(name) {
            dated(request, name, value).into_iter().for_each(|value| variables.set(name, value));
        } else if let Some(default) = &argument.default {
            let expansion = lexer.expand(&default.text, variables);
            let expansion = expansion.map_err(|error| Diagnostic::error(default.span, error.to_string()))?;
            dated(request, name, &expansion.text).into_iter().for_each(|value| variables.set(name, value));
            parts = expansion.used;
        }
        let described = OutlineArgument {
            name: name.clone(),
            value: variables.get(name).unwrap_or_default().to_owned(),
            description: argument.description.clone().unwrap_or_default(),
            span: head.span,
        };
        outline.declare(described, parts);
    }
    Ok(())
}

/// The variables about platforms and the target, in BuildKit's order.
fn platform_variables(build: &Platform, target: &Platform, stage: &str) -> Vec<(&'static str, String)> {
    let stage = if stage.is_empty() { "default" } else { stage };
    vec![
        ("BUILDPLATFORM", full_name(build)),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", build.os_version.clone()),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", build.variant.clone()),
        ("TARGETPLATFORM", full_name(target)),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", target.os_version.clone()),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", target.variant.clone()),
        ("TARGETSTAGE", stage.to_owned()),
    ]
}

/// A platform with the version of its operating system: `windows(10.0.17763)/amd64`.
pub(super) fn full_name(platform: &Platform) -> String {
    let name = platform.to_string();
    match name.split_once('/') {
        Some((os, rest)) if !platform.os_version.is_empty() => format!("{os}({})/{rest}", platform.os_version),
        _ => name,
    }
}

/// Returns the proxy settings of the build arguments, each in both spellings.
pub(super) fn proxies(build_args: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut proxies = Vec::new();
    for proxy in PROXIES {
        let given = build_args.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(proxy));
        if let Some((_, value)) = given {
            proxies.extend([((*proxy).to_owned(), value.clone()), (proxy.to_lowercase(), value.clone())]);
        }
    }
    proxies
}

/// Says whether a build argument has a meaning without an ARG instruction.
pub(super) fn is_predefined(name: &str) -> bool {
    let platforms = platform_variables(&Platform::host(), &Platform::host(), "");
    name == EPOCH
        || name.starts_with("BUILDKIT_")
        || PROXIES.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
        || platforms.iter().any(|(known, _)| *known == name)
}
