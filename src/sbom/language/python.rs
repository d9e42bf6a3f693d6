//! Python: metadata of installed distributions, and the lock files of poetry, uv, pdm, pipenv and pip.

use serde::Deserialize;
use serde_json::Value;

use super::super::{Package, Purl, text};
use crate::error::{Error, Result};

/// Reads the header of `METADATA` or `PKG-INFO`.
///
/// # Errors
/// None; a file without a name tells of nothing.
#[expect(clippy::unnecessary_wraps, reason = "it is one of several readers")]
pub(super) fn metadata(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let text = text(bytes);
    let (mut name, mut version, mut licence, mut expression, mut classified) = ("", "", "", "", Vec::new());
    // The description follows an empty line.
    for line in text.lines().take_while(|line| !line.is_empty()) {
        let Some((key, value)) = line.split_once(':') else { continue };
        match key {
            "Name" => name = value.trim(),
            "Version" => version = value.trim(),
            "License" => licence = value.trim(),
            "License-Expression" => expression = value.trim(),
            "Classifier" => classified.extend(value.trim().strip_prefix("License :: ").map(last_part)),
            _ => {}
        }
    }
    if name.is_empty() {
        return Ok(Vec::new());
    }
    let said = [expression.to_owned(), licence.to_owned(), classified.join(" AND ")];
    let said = said.into_iter().find(|text| !text.is_empty() && text != "UNKNOWN");
    Ok(vec![Package::new(Purl::new("pypi", "", name, version)).with_licence(said)])
}

fn last_part(classifier: &str) -> &str {
    classifier.rsplit(" :: ").next().unwrap_or(classifier)
}

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    #[serde(default)]
    version: String,
}

/// Reads `poetry.lock`, `uv.lock` and `pdm.lock`.
///
/// # Errors
/// `InvalidArgument` when it is malformed.
pub(super) fn lock(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let lock: Lock = toml::from_str(&text(bytes)).map_err(|error| Error::invalid(error.message().to_owned()))?;
    Ok(lock.package.iter().map(|locked| Package::new(Purl::new("pypi", "", &locked.name, &locked.version))).collect())
}

/// Reads `Pipfile.lock`.
///
/// # Errors
/// `InvalidArgument` when it is malformed.
pub(super) fn pipfile(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let lock: Value = serde_json::from_slice(bytes).map_err(|error| Error::invalid(error.to_string()))?;
    let sections = ["default", "develop"].into_iter().filter_map(|section| lock.get(section)?.as_object());
    let package = |(name, entry): (&String, &Value)| {
        let version = entry.get("version")?.as_str()?.trim_start_matches('=');
        Some(Package::new(Purl::new("pypi", "", name, version)))
    };
    Ok(sections.flatten().filter_map(package).collect())
}

/// Reads the pinned lines (`name==version`) of a requirements file.
///
/// # Errors
/// None; other lines name no version.
#[expect(clippy::unnecessary_wraps, reason = "it is one of several readers")]
pub(super) fn requirements(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let package = |line: &str| {
        let line = line.split(['#', ';', '\\']).next()?.split(" --").next()?;
        let (name, version) = line.split_once("==")?;
        let name = name.split('[').next()?.trim();
        let version = version.trim_start_matches('=').trim();
        let plain =
            |text: &str| !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || "*,<>=!".contains(c));
        (plain(name) && plain(version)).then(|| Package::new(Purl::new("pypi", "", name, version)))
    };
    Ok(text(bytes).lines().filter_map(package).collect())
}

#[cfg(test)]
mod tests {
    use super::super::purls;
    use super::*;

    #[test]
    fn installed_distributions_say_their_licence() {
        let text = b"Metadata-Version: 2.1\nName: Six_x\nVersion: 1.16.0\nLicense: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License\n\nName: not this\n";
        let found = metadata("", text).unwrap();
        assert_eq!(purls(&found), ["pkg:pypi/six-x@1.16.0"]);
        assert_eq!(found[0].licence.as_deref(), Some("MIT License"));
        assert!(metadata("", b"nothing").unwrap().is_empty());
    }

    #[test]
    fn lock_files_are_read() {
        let poetry =
            b"[[package]]\nname = \"a\"\nversion = \"1\"\noptional = false\n\n[metadata]\nlock-version = \"2.0\"\n";
        assert_eq!(purls(&lock("", poetry).unwrap()), ["pkg:pypi/a@1"]);
        let pipenv = br#"{"_meta":{},"default":{"b":{"version":"==2.0"}},"develop":{"c":{"git":"x"}}}"#;
        assert_eq!(purls(&pipfile("", pipenv).unwrap()), ["pkg:pypi/b@2.0"]);
        let pip = b"# comment\n-r other.txt\nd[extra]==3.1 ; python_version > '3'\ne>=4\nf==5.* \ng==6 --hash=sha256:ab\nh == 7\\\n  --hash=x\n";
        assert_eq!(purls(&requirements("", pip).unwrap()), ["pkg:pypi/d@3.1", "pkg:pypi/g@6", "pkg:pypi/h@7"]);
    }
}
