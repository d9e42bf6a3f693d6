//! Package URLs: one way to name a package of any ecosystem.

use std::fmt;

/// A package URL: `pkg:type/namespace/name@version?qualifiers`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Purl {
    /// The ecosystem: `deb`, `npm`, `cargo`, ...
    pub kind: &'static str,
    /// What stands before the name, with its slashes: a vendor, a scope, a distribution. May be empty.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The version. May be empty.
    pub version: String,
    /// Further facts, sorted by key. Those with an empty value are left out when it is written.
    pub qualifiers: Vec<(&'static str, String)>,
}

impl Purl {
    /// Names a package. Namespace and name are spelled as the ecosystem's rules for package URLs want it.
    #[must_use]
    pub fn new(kind: &'static str, namespace: &str, name: &str, version: &str) -> Self {
        let (namespace, name) = (namespace.trim(), name.trim());
        let (namespace, name) = match kind {
            "pypi" => (namespace.to_owned(), name.to_lowercase().replace(['_', '.'], "-")),
            "composer" | "deb" | "apk" => (namespace.to_lowercase(), name.to_lowercase()),
            "golang" | "rpm" => (namespace.to_lowercase(), name.to_owned()),
            _ => (namespace.to_owned(), name.to_owned()),
        };
        Self { kind, namespace, name, version: version.trim().to_owned(), qualifiers: Vec::new() }
    }

    /// Splits a path such as `vendor/name` or `example.com/team/module` into namespace and name.
    #[must_use]
    pub fn of_path(kind: &'static str, path: &str, version: &str) -> Self {
        let (namespace, name) = path.rsplit_once('/').unwrap_or(("", path));
        Self::new(kind, namespace, name, version)
    }

    /// Adds a fact, unless it is empty.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        let value = value.into();
        if !value.is_empty() {
            self.qualifiers.push((key, value));
            self.qualifiers.sort();
        }
        self
    }

    /// Returns the name as people of its ecosystem write it.
    #[must_use]
    pub fn display_name(&self) -> String {
        match self.kind {
            "deb" | "apk" | "rpm" => self.name.clone(),
            "maven" if !self.namespace.is_empty() => format!("{}:{}", self.namespace, self.name),
            _ if self.namespace.is_empty() => self.name.clone(),
            _ => format!("{}/{}", self.namespace, self.name),
        }
    }
}

impl fmt::Display for Purl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pkg:{}", self.kind)?;
        for part in self.namespace.split('/').filter(|part| !part.is_empty()) {
            write!(f, "/{}", Encoded(part))?;
        }
        write!(f, "/{}", Encoded(&self.name))?;
        if !self.version.is_empty() {
            write!(f, "@{}", Encoded(&self.version))?;
        }
        for (number, (key, value)) in self.qualifiers.iter().enumerate() {
            write!(f, "{}{key}={}", if number == 0 { '?' } else { '&' }, Encoded(value))?;
        }
        Ok(())
    }
}

/// Text in which everything is escaped but letters, digits, `-._~` and colons.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                    write!(f, "{}", char::from(byte))?;
                }
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_their_ecosystems() {
        for (purl, expected) in [
            (
                Purl::new("deb", "debian", "libc6", "2.36-9+deb12u4").with("distro", "debian-12").with("arch", "amd64"),
                "pkg:deb/debian/libc6@2.36-9%2Bdeb12u4?arch=amd64&distro=debian-12",
            ),
            (Purl::new("pypi", "", "Zope.Interface_x", "1!2"), "pkg:pypi/zope-interface-x@1%212"),
            (Purl::of_path("npm", "@types/node", "20.1.0"), "pkg:npm/%40types/node@20.1.0"),
            (Purl::of_path("golang", "GitHub.com/a/b", "v1.0.0"), "pkg:golang/github.com/a/b@v1.0.0"),
            (Purl::new("cargo", "", "serde", ""), "pkg:cargo/serde"),
            (
                Purl::of_path("docker", "localhost:5000/x", "").with("platform", "linux/amd64"),
                "pkg:docker/localhost:5000/x?platform=linux%2Famd64",
            ),
        ] {
            assert_eq!(purl.to_string(), expected);
        }
    }
}
