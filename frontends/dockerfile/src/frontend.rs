//! Which frontend a file asks for. Only the one this crate is can be had here; an engine runs others by their images.

use std::collections::BTreeMap;

use kiln_graph::{Diagnostic, Reference, Severity, SourceFile, Span};

use crate::directive::{self, Directives};
use crate::lower::Request;

/// The build argument that overrides `# syntax=`.
const OVERRIDE: &str = "BUILDKIT_SYNTAX";

/// The build argument that asks with [`IMAGE`] for the image of a frontend that is built in, too.
const CHOICE: &str = "KILN_SYNTAX";

/// The value of [`CHOICE`].
const IMAGE: &str = "image";

/// The name under which Kiln's own extensions are asked for.
pub(crate) const OWN: &str = "kiln";

/// The name of this frontend as engines know it.
const BUILT_IN: &str = "dockerfile.v0";

/// A frontend that is not this crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its image.
    pub image: String,
    /// All that is said of it: the image, and perhaps arguments.
    pub command: String,
    /// Where the file says so; `None` when a build argument does.
    pub span: Option<Span>,
}

impl Foreign {
    fn new(command: &str, span: Option<Span>) -> Self {
        let command = command.trim();
        let image = command.split(' ').next().unwrap_or_default();
        Self { image: image.to_owned(), command: command.to_owned(), span }
    }
}

/// Returns the frontend that a file is for, in its syntax directive or through the build argument `BUILDKIT_SYNTAX`, unless that is
/// this crate. `docker/dockerfile` is, in all versions, unless the build argument `KILN_SYNTAX=image` asks for the image.
#[must_use]
pub fn foreign(file: &SourceFile, build_args: &BTreeMap<String, String>) -> Option<Foreign> {
    let text = file.text();
    let start = text.len() - text.trim_start_matches('\u{feff}').len();
    let asked = match build_args.get(OVERRIDE).filter(|value| !value.is_empty()) {
        Some(value) => Foreign::new(value, None),
        None => {
            // A file whose directives make no sense is judged by who reads all of it.
            let (directives, _) = directive::read(text, start).ok()?;
            let word = directives.syntax.or_else(|| directive::foreign_syntax(text, start))?;
            Foreign::new(&word.text, Some(word.span))
        }
    };
    (!is_built_in(&asked.image, build_args)).then_some(asked)
}

/// Returns the directives of a file. Refuses one that is for another frontend, unless that was decided.
pub(crate) fn check(request: &Request<'_>) -> Result<Directives, Diagnostic> {
    let text = request.file.text();
    let start = text.len() - text.trim_start_matches('\u{feff}').len();
    let (directives, _) = directive::read(text, start)?;
    match foreign(request.file, &request.build_args) {
        Some(foreign) if !request.any_syntax => Err(refusal(&foreign)),
        _ => Ok(directives),
    }
}

/// Says whether a frontend's image is this frontend, in whatever version, and its image was not asked for.
#[must_use]
pub fn is_built_in(image: &str, build_args: &BTreeMap<String, String>) -> bool {
    let official = |reference: Reference| {
        matches!(reference.familiar_repository().as_str(), "docker/dockerfile" | "docker/dockerfile-upstream")
    };
    let wants_image = build_args.get(CHOICE).is_some_and(|choice| choice == IMAGE);
    image == BUILT_IN || image == OWN || (!wants_image && image.parse().is_ok_and(official))
}

fn refusal(foreign: &Foreign) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        rule: None,
        message: format!("the file is for the frontend {}, which is not built in", foreign.image),
        span: foreign.span,
        within: None,
        hint: Some("an engine runs it by its image when the file is built".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str, args: &[(&str, &str)]) -> Option<String> {
        let args = args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        foreign(&SourceFile::new("Dockerfile", text), &args).map(|foreign| foreign.image)
    }

    #[test]
    fn the_dockerfile_frontend_is_built_in_unless_its_image_is_asked_for() {
        let own = "# syntax=docker/dockerfile:1-labs\nFROM x\n";
        assert_eq!(image(own, &[]), None);
        assert_eq!(image("# syntax=kiln\n", &[("KILN_SYNTAX", "image")]), None);
        assert_eq!(image(own, &[("KILN_SYNTAX", "image")]).as_deref(), Some("docker/dockerfile:1-labs"));
        assert_eq!(image(own, &[("BUILDKIT_SYNTAX", "a/b --c")]).as_deref(), Some("a/b"));
        assert_eq!(image("# syntax=a/b:1 x\n", &[]).as_deref(), Some("a/b:1"));
        assert_eq!(image("# syntax=a/b\n", &[("BUILDKIT_SYNTAX", "docker/dockerfile:1")]), None);
        assert_eq!(image("// syntax=a/c\n", &[]).as_deref(), Some("a/c"));
        assert_eq!(image("FROM x\n", &[]), None);
    }
}
