//! Packages of programming languages: which files tell of them, and who reads those.

mod cargo;
mod golang;
mod java;
mod npm;
mod php;
mod python;
mod ruby;

pub(super) use cargo::auditable;
pub(super) use golang::build_info;
pub(super) use java::archive;

use super::Package;
use crate::error::Result;

/// Reads the packages of a file; the first argument is the file's path.
pub(super) type Reader = fn(&str, &[u8]) -> Result<Vec<Package>>;

/// Says who reads a file, by its path from the root without a leading slash.
pub(super) fn reader(path: &str) -> Option<Reader> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = dir.rsplit('/').next().unwrap_or_default();
    Some(match name {
        "Cargo.lock" => cargo::lock,
        "package-lock.json" | "npm-shrinkwrap.json" | ".package-lock.json" => npm::lock,
        "yarn.lock" => npm::yarn,
        "pnpm-lock.yaml" => npm::pnpm,
        "package.json" if npm::is_installed(dir) => npm::installed,
        "poetry.lock" | "uv.lock" | "pdm.lock" => python::lock,
        "Pipfile.lock" => python::pipfile,
        "METADATA" if parent.ends_with(".dist-info") => python::metadata,
        "PKG-INFO" if parent.ends_with(".egg-info") => python::metadata,
        _ if name.ends_with(".egg-info") => python::metadata,
        _ if name.starts_with("requirements") && name.ends_with(".txt") => python::requirements,
        "go.mod" => golang::module,
        "Gemfile.lock" | "gems.locked" => ruby::lock,
        _ if name.ends_with(".gemspec") && is_specifications(dir) => ruby::specification,
        "composer.lock" => php::lock,
        "installed.json" if parent == "composer" => php::lock,
        "pom.properties" if path.contains("META-INF/maven/") => java::properties,
        _ => return None,
    })
}

/// Says whether a directory holds the specifications of installed gems; those that come with Ruby are one deeper.
fn is_specifications(dir: &str) -> bool {
    dir.strip_suffix("/default").unwrap_or(dir).rsplit('/').next() == Some("specifications")
}

/// Says whether a file is a Java archive, by its name.
pub(super) fn is_archive(path: &str) -> bool {
    [".jar", ".war", ".ear"].iter().any(|ending| path.ends_with(ending))
}

/// Decodes the integrity of npm and others, `sha512-BASE64`, to SPDX's name of the algorithm and hexadecimal digits.
fn integrity(text: &str) -> Vec<(&'static str, String)> {
    use base64::Engine as _;
    let decode = |one: &str| {
        let (algorithm, digest) = one.split_once('-')?;
        let name = match algorithm {
            "sha512" => "SHA512",
            "sha384" => "SHA384",
            "sha256" => "SHA256",
            "sha1" => "SHA1",
            _ => return None,
        };
        let bytes = base64::engine::general_purpose::STANDARD.decode(digest).ok()?;
        Some((name, hex(&bytes)))
    };
    text.split_whitespace().filter_map(decode).collect()
}

/// Writes bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
pub(super) fn purls(packages: &[Package]) -> Vec<String> {
    packages.iter().map(|package| package.purl.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_name_and_place() {
        for (path, known) in [
            ("app/Cargo.lock", true),
            ("usr/lib/python3/dist-packages/six-1.16.dist-info/METADATA", true),
            ("usr/lib/METADATA", false),
            ("app/package.json", false),
            ("app/node_modules/left-pad/package.json", true),
            ("app/node_modules/@types/node/package.json", true),
            ("app/node_modules/left-pad/test/package.json", false),
            ("srv/requirements-dev.txt", true),
            ("var/lib/gems/3.1/specifications/rake-13.gemspec", true),
            ("usr/lib/ruby/gems/3.1.0/specifications/default/json-2.6.1.gemspec", true),
            ("app/own.gemspec", false),
            ("vendor/composer/installed.json", true),
            ("installed.json", false),
        ] {
            assert_eq!(reader(path).is_some(), known, "{path}");
        }
    }

    #[test]
    fn integrity_becomes_hexadecimal() {
        assert_eq!(integrity("sha1-qqqqqqqqqqqqqqqqqqqqqqqqqqo= md5-xx"), [("SHA1", "aa".repeat(20))]);
    }
}
