//! Which frontend a file asks for. Only the one this crate is can be had.

use kiln_graph::{Diagnostic, Reference, Severity};

use crate::directive::{self, Directives};
use crate::line::Word;
use crate::lower::Request;

/// The build argument that overrides `# syntax=`.
const OVERRIDE: &str = "BUILDKIT_SYNTAX";

/// The name under which Kiln's own extensions are asked for.
pub(crate) const OWN: &str = "kiln";

/// Returns the directives of a file. Refuses one that asks for another frontend, in its syntax directive or through the build
/// argument `BUILDKIT_SYNTAX`.
pub(crate) fn check(request: &Request<'_>) -> Result<Directives, Diagnostic> {
    let text = request.file.text();
    let start = text.len() - text.trim_start_matches('\u{feff}').len();
    let asked = request.build_args.get(OVERRIDE).filter(|value| !value.is_empty());
    let (directives, _) = directive::read(text, start)?;
    if let Some(value) = asked {
        return if is_built_in(value) { Ok(directives) } else { Err(refusal(value, None)) };
    }
    match directives.syntax.clone().or_else(|| directive::foreign_syntax(text, start)) {
        Some(syntax) if !is_built_in(&syntax.text) => Err(refusal(&syntax.text, Some(&syntax))),
        _ => Ok(directives),
    }
}

/// Says whether the first word of a syntax directive names the Dockerfile frontend, in whatever version.
fn is_built_in(value: &str) -> bool {
    let name = value.split(' ').next().unwrap_or_default();
    let official = |reference: Reference| {
        matches!(reference.familiar_repository().as_str(), "docker/dockerfile" | "docker/dockerfile-upstream")
    };
    name == "dockerfile.v0" || name == OWN || name.parse().is_ok_and(official)
}

fn refusal(value: &str, place: Option<&Word>) -> Diagnostic {
    let name = value.split(' ').next().unwrap_or_default();
    Diagnostic {
        severity: Severity::Error,
        rule: None,
        message: format!("the frontend {name} is not built in, and external frontends are not supported yet"),
        span: place.map(|word| word.span),
        within: None,
        hint: Some(
            "docker/dockerfile is built in, in all versions; other files need that frontend's own tool".to_owned(),
        ),
    }
}
