//! `--build-context`: contexts with names, which stand for stages and images of these names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_graph::oci::Index;
use kiln_graph::{Digest, Reference};

use super::context::{directory, is_address};
use crate::error::{Error, Result, ResultExt as _};

/// The named contexts of a build.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// What stands for each name, as BuildKit's attributes say it.
    pub(super) values: BTreeMap<String, String>,
    /// Directories by the names the values give them.
    pub(super) locals: BTreeMap<String, PathBuf>,
}

impl Named {
    /// Reads options `NAME=VALUE`. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed option; `NotFound` for a directory that is not there; `Unsupported` for values that
    /// only `bake` knows.
    pub(super) fn parse(options: &[String]) -> Result<Self> {
        let mut named = Self::default();
        for option in options {
            named.add(option).context(|| format!("--build-context {option}"))?;
        }
        Ok(named)
    }

    fn add(&mut self, option: &str) -> Result<()> {
        let (name, value) = option
            .split_once('=')
            .filter(|(name, value)| !name.is_empty() && !value.is_empty())
            .ok_or_else(|| Error::invalid("expected NAME=VALUE"))?;
        let (bare, _) = name.split_once("::").unwrap_or((name, ""));
        bare.parse::<Reference>().context(|| "the name")?;
        let value = match value.split_once(':') {
            Some(("target" | "input", _)) => {
                return Err(Error::unsupported(
                    "results of other targets are for bake files; name an image or a directory",
                ));
            }
            Some(("docker-image", image)) => {
                image.trim_start_matches("//").parse::<Reference>()?;
                value.to_owned()
            }
            Some(("oci-layout", layout)) => {
                let (dir, digest) = layout_image(layout.trim_start_matches("//"))?;
                self.locals.insert(format!("oci-layout:{name}"), dir);
                format!("oci-layout://{name}@{digest}")
            }
            _ if !Path::new(value).is_dir() && is_address(value) => value.to_owned(),
            _ => {
                // These names belong to the main context.
                let key = if matches!(name, "context" | "dockerfile") { format!("_{name}") } else { name.to_owned() };
                self.locals.insert(key.clone(), directory(Path::new(value))?);
                format!("local:{key}")
            }
        };
        self.values.insert(name.to_owned(), value);
        Ok(())
    }
}

/// Finds the image that `PATH[:TAG][@DIGEST]` names in an OCI layout: without either, the only one, or that of `latest`.
fn layout_image(text: &str) -> Result<(PathBuf, Digest)> {
    let (path, digest) = match text.split_once('@') {
        Some((path, digest)) => (path, Some(digest.parse::<Digest>()?)),
        None => (text, None),
    };
    // A colon before a slash belongs to the path.
    let (path, tag) = match path.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    let dir = directory(Path::new(path))?;
    if let Some(digest) = digest {
        return Ok((dir, digest));
    }
    let file = dir.join("index.json");
    let bytes = std::fs::read(&file)
        .map_err(|error| Error::not_found(format!("{path} is no OCI layout: read {}: {error}", file.display())))?;
    let index: Index = serde_json::from_slice(&bytes).context(|| format!("read {}", file.display()))?;
    let named = |wanted: &str| {
        index.manifests.iter().find(|manifest| {
            manifest.annotations.get("org.opencontainers.image.ref.name").is_some_and(|name| name == wanted)
        })
    };
    let found = match (tag, index.manifests.as_slice()) {
        (Some(tag), _) => named(tag),
        (None, [only]) => Some(only),
        (None, _) => named("latest"),
    };
    match found {
        Some(manifest) => Ok((dir, manifest.digest)),
        None => Err(Error::not_found(format!("the OCI layout {path} has no image {}", tag.unwrap_or("latest")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn parse(option: &str) -> Result<Named> {
        Named::parse(&[option.to_owned()])
    }

    #[test]
    fn a_name_stands_for_an_image_an_address_or_a_directory() {
        for (option, name, value) in [
            ("base=docker-image://alpine:3", "base", "docker-image://alpine:3"),
            ("a::linux/arm64=https://a.b/c.git#v1", "a::linux/arm64", "https://a.b/c.git#v1"),
            ("r=git@a.b:c", "r", "git@a.b:c"),
            ("dir=/tmp", "dir", "local:dir"),
            ("context=/tmp", "context", "local:_context"),
        ] {
            assert_eq!(parse(option).unwrap().values[name], value);
        }
        assert_eq!(parse("dir=/tmp").unwrap().locals["dir"], Path::new("/tmp"));
    }

    #[test]
    fn mistakes_are_named() {
        for (option, kind) in [
            ("x", Kind::InvalidArgument),
            ("x=", Kind::InvalidArgument),
            ("x=target:y", Kind::Unsupported),
            ("x=input:y", Kind::Unsupported),
            ("x=docker-image://UPPER", Kind::InvalidArgument),
            ("x=/nonexistent", Kind::NotFound),
            ("x=/etc/passwd", Kind::InvalidArgument),
        ] {
            let error = parse(option).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().starts_with(&format!("--build-context {option}")), "{error}");
        }
    }
}
