//! Image references: `[domain[:port]/]path[:tag][@digest]`, with Docker Hub's short names.
//!
//! The grammar and the normalisation are those of the distribution project's `reference` package. Whether an image of that
//! name exists is not known here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// The domain of references that name none.
pub const DEFAULT_DOMAIN: &str = "docker.io";

/// The tag of references that name neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";

/// A normalised image reference: the domain is always present, and `ubuntu` is `docker.io/library/ubuntu`.
///
/// The tag stays absent when it was not given: [`Reference::with_default_tag`] adds `latest`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Returns the registry's host, with its port if one was given.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Returns the repository within the registry, for example `library/ubuntu`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the tag, if one was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, if one was given.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Returns the repository with its domain and without tag or digest, for example `docker.io/library/ubuntu`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Returns the repository as docker prints it: without Docker Hub's domain and without `library/`.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        match self.path.strip_prefix("library/") {
            Some(name) if !name.contains('/') => name.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// Returns the whole reference as docker prints it, for example `ubuntu:24.04`.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_repository())
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }

    /// Returns the reference with the tag `latest`, unless it has a tag or a digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// Returns the same repository with another tag and no digest.
    ///
    /// # Errors
    /// When `tag` is not a valid tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, InvalidReference> {
        check_tag(tag).map_err(|why| InvalidReference::new(tag, why))?;
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// Returns the same repository pinned to `digest`, without a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// Returns the same name without a tag.
    #[must_use]
    pub fn without_tag(&self) -> Self {
        Self { tag: None, ..self.clone() }
    }

    /// Returns the same repository and tag without the digest.
    #[must_use]
    pub fn without_digest(&self) -> Self {
        Self { digest: None, ..self.clone() }
    }
}

impl fmt::Display for Reference {
    /// Prints the normalised form, with the domain: what records and wire formats use.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.repository()))
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not an image reference; the message says what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidReference(String);

impl InvalidReference {
    fn new(text: &str, why: &str) -> Self {
        Self(format!("invalid reference format: {text:?}: {why}"))
    }
}

impl fmt::Display for InvalidReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidReference {}

impl FromStr for Reference {
    type Err = InvalidReference;

    /// Parses and normalises what a user types after `FROM` or `docker pull`.
    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |why: &str| InvalidReference::new(text, why);
        if text.is_empty() {
            return Err(invalid("it is empty"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(|e| invalid(&format!("{e}")))?)),
            None => (text, None),
        };
        let (domain, rest) = split_domain(name);
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => {
                check_tag(tag).map_err(&invalid)?;
                (path, Some(tag.to_owned()))
            }
            None => (rest, None),
        };
        check_domain(domain).map_err(&invalid)?;
        check_path(path).map_err(&invalid)?;
        if tag.is_none() && digest.is_none() && name == path && is_image_id(path) {
            return Err(invalid("64 hexadecimal digits are an image id, not a name"));
        }
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
        let path =
            if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        if domain.len() + 1 + path.len() > 255 {
            return Err(invalid("the repository name must not be longer than 255 characters"));
        }
        Ok(Self { domain: domain.to_owned(), path, tag, digest })
    }
}

/// Splits a domain off: the first component is one when it has a dot, a port or an upper-case letter, or is `localhost`.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn check_domain(domain: &str) -> Result<(), &'static str> {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, after)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
                return match after.strip_prefix(':') {
                    Some(port) if is_port(port) => Ok(()),
                    None if after.is_empty() => Ok(()),
                    _ => Err("the registry's port is not a number"),
                };
            }
            _ => return Err("the registry's IPv6 address is malformed"),
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    if port.is_some_and(|port| !is_port(port)) {
        return Err("the registry's port is not a number");
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if host.split('.').all(label) { Ok(()) } else { Err("the registry's host name is malformed") }
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit())
}

/// Components are `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
fn check_path(path: &str) -> Result<(), &'static str> {
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("repository name must be lowercase");
    }
    for component in path.split('/') {
        if component.is_empty() {
            return Err("a component of the repository name is empty");
        }
        let mut rest = component;
        loop {
            let word = rest.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit())).unwrap_or(rest.len());
            if word == 0 {
                return Err("a component must start and end with a letter or a digit");
            }
            rest = &rest[word..];
            if rest.is_empty() {
                break;
            }
            let separator = ["__", "_", "."]
                .into_iter()
                .find(|s| rest.starts_with(s))
                .map_or_else(|| rest.find(|c| c != '-').unwrap_or(rest.len()), str::len);
            if separator == 0 {
                return Err("only a-z, 0-9 and the separators . _ - / are allowed");
            }
            rest = &rest[separator..];
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if tag.is_empty() {
        return Err("the tag is empty");
    }
    if tag.len() > 128 {
        return Err("the tag must not be longer than 128 characters");
    }
    if !tag.starts_with(word) || !tag.chars().all(|c| word(c) || matches!(c, '.' | '-')) {
        return Err("a tag is made of letters, digits, _ . and -, and does not start with . or -");
    }
    Ok(())
}

fn is_image_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_docker_hub_names() {
        for (text, full, familiar) in [
            ("ubuntu", "docker.io/library/ubuntu", "ubuntu"),
            ("ubuntu:24.04", "docker.io/library/ubuntu:24.04", "ubuntu:24.04"),
            ("grafana/loki", "docker.io/grafana/loki", "grafana/loki"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine", "alpine"),
            ("localhost/a", "localhost/a", "localhost/a"),
            ("localhost:5000/a/b:x", "localhost:5000/a/b:x", "localhost:5000/a/b:x"),
            ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
            ("ghcr.io/o/r__x--y.z", "ghcr.io/o/r__x--y.z", "ghcr.io/o/r__x--y.z"),
            ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.to_string(), reference.familiar()), (full.to_owned(), familiar.to_owned()));
            assert_eq!(familiar.parse::<Reference>().unwrap(), reference, "the familiar form must parse back");
        }
    }

    #[test]
    fn a_tag_and_a_digest_may_stand_together() {
        let reference: Reference = format!("a.b/c:1@{HASH}").parse().unwrap();
        assert_eq!((reference.tag(), reference.digest()), (Some("1"), Some(HASH.parse().unwrap())));
        assert_eq!(reference.with_default_tag().tag(), Some("1"));
        let bare: Reference = "c".parse().unwrap();
        assert_eq!(bare.with_default_tag().tag(), Some("latest"));
    }

    #[test]
    fn malformed_references_are_refused_with_a_reason() {
        for (text, why) in [
            ("", "empty"),
            ("Ubuntu", "lowercase"),
            ("a/Ubuntu", "lowercase"),
            ("ubuntu:", "tag is empty"),
            ("ubuntu:-x", "tag is made of"),
            ("ubuntu@sha256:12", "expected 64"),
            ("a//b", "component"),
            ("-a", "start and end"),
            ("a_", "start and end"),
            ("a___b", "start and end"),
            ("a b", "only a-z"),
            ("localhost:x/a", "port"),
            ("-bad-.com/a", "host name"),
            (&"f".repeat(64), "image id"),
            (&format!("a/{}", "b".repeat(260)), "255"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
