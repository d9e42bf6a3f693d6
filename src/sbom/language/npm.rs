//! JavaScript: installed packages' `package.json`, and the lock files of npm, yarn and pnpm.

use serde_json::Value;

use super::super::{Package, Purl, text};
use super::integrity;
use crate::error::{Error, Result};

/// Old lock files nest what they lock; deeper ones are cut off.
const MAX_DEPTH: usize = 64;

/// Says whether a directory holds an installed package: `node_modules/NAME` or `node_modules/@SCOPE/NAME`.
pub(super) fn is_installed(dir: &str) -> bool {
    let mut parts = dir.rsplit('/');
    let _name = parts.next();
    match parts.next() {
        Some("node_modules") => true,
        Some(scope) if scope.starts_with('@') => parts.next() == Some("node_modules"),
        _ => false,
    }
}

fn json(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| Error::invalid(error.to_string()))
}

fn string<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn package(name: &str, version: &str) -> Option<Package> {
    (!name.is_empty() && !version.is_empty()).then(|| Package::new(Purl::of_path("npm", name, version)))
}

/// Reads the licence of a manifest, which has had several forms over the years.
fn licence(manifest: &Value) -> Option<String> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        other => other.get("type").and_then(Value::as_str).map(str::to_owned),
    };
    if let Some(found) = manifest.get("license").and_then(one) {
        return Some(found);
    }
    let all = manifest.get("licenses")?.as_array()?;
    Some(all.iter().filter_map(one).collect::<Vec<_>>().join(" OR "))
}

/// Reads the `package.json` of an installed package.
///
/// # Errors
/// `InvalidArgument` when it is malformed.
pub(super) fn installed(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let manifest = json(bytes)?;
    let found = package(string(&manifest, "name"), string(&manifest, "version"));
    Ok(found.map(|package| package.with_licence(licence(&manifest))).into_iter().collect())
}

/// Reads `package-lock.json` of any version.
///
/// # Errors
/// `InvalidArgument` when it is malformed.
pub(super) fn lock(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let lock = json(bytes)?;
    let mut packages = Vec::new();
    if let Some(entries) = lock.get("packages").and_then(Value::as_object) {
        for (place, entry) in entries {
            // The empty place is the project itself; a link leads to a workspace, which has a place of its own.
            let Some((_, in_modules)) = place.rsplit_once("node_modules/") else { continue };
            if entry.get("link").and_then(Value::as_bool) == Some(true) {
                continue;
            }
            let name = entry.get("name").and_then(Value::as_str).unwrap_or(in_modules);
            packages.extend(locked(name, entry));
        }
    } else if let Some(entries) = lock.get("dependencies") {
        nested(entries, 0, &mut packages);
    }
    Ok(packages)
}

fn locked(name: &str, entry: &Value) -> Option<Package> {
    let mut package = package(name, string(entry, "version"))?.with_licence(licence(entry));
    package.checksums = integrity(string(entry, "integrity"));
    Some(package)
}

fn nested(entries: &Value, depth: usize, packages: &mut Vec<Package>) {
    for (name, entry) in entries.as_object().into_iter().flatten() {
        packages.extend(locked(name, entry));
        if let Some(deeper) = entry.get("dependencies").filter(|_| depth < MAX_DEPTH) {
            nested(deeper, depth + 1, packages);
        }
    }
}

/// Reads `yarn.lock` of version 1 and later ones.
///
/// # Errors
/// None; what is not understood is passed over.
#[expect(clippy::unnecessary_wraps, reason = "it is one of several readers")]
pub(super) fn yarn(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let mut packages: Vec<Package> = Vec::new();
    let mut name = String::new();
    for line in text(bytes).lines().filter(|line| !line.trim_start().starts_with('#')) {
        if !line.starts_with(' ') {
            name = line.strip_suffix(':').and_then(specifier).unwrap_or_default();
            continue;
        }
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default().trim_end_matches(':');
        let value = words.next().unwrap_or_default().trim_matches('"');
        match key {
            "version" => packages.extend(package(&std::mem::take(&mut name), value)),
            "integrity" => {
                if let Some(last) = packages.last_mut() {
                    last.checksums = integrity(value);
                }
            }
            _ => {}
        }
    }
    Ok(packages)
}

/// Returns the name in the first of `"name@range, name@range"`; none for a workspace.
fn specifier(line: &str) -> Option<String> {
    let first = line.split(',').next()?.trim().trim_matches('"');
    let at = first.get(1..)?.find('@')? + 1;
    (!first[at..].starts_with("@workspace:")).then(|| first[..at].to_owned())
}

/// Reads the section `packages` of `pnpm-lock.yaml`, line by line: its keys say all that is wanted.
///
/// # Errors
/// None; what is not understood is passed over.
#[expect(clippy::unnecessary_wraps, reason = "it is one of several readers")]
pub(super) fn pnpm(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let mut packages: Vec<Package> = Vec::new();
    let mut inside = false;
    for line in text(bytes).lines() {
        if !line.starts_with(' ') {
            inside = if line.is_empty() { inside } else { line.starts_with("packages:") };
            continue;
        }
        if !inside {
            continue;
        }
        let key = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')).and_then(|rest| rest.strip_suffix(':'));
        if let Some(key) = key {
            packages.extend(pnpm_key(key.trim_matches('\'')));
        } else if let (Some((_, rest)), Some(last)) = (line.split_once("integrity: "), packages.last_mut()) {
            last.checksums = integrity(rest.split([',', '}']).next().unwrap_or_default());
        }
    }
    Ok(packages)
}

/// `/name/1.0.0`, `/name@1.0.0`, `name@1.0.0`, each with peers in parentheses or after an underscore.
fn pnpm_key(key: &str) -> Option<Package> {
    let key = key.trim_start_matches('/').split('(').next()?;
    let (name, version) = match key.get(1..)?.find('@') {
        Some(at) => (&key[..=at], &key[at + 2..]),
        None => key.rsplit_once('/')?,
    };
    package(name, version.split('_').next()?)
}

#[cfg(test)]
mod tests {
    use super::super::purls;
    use super::*;

    #[test]
    fn an_installed_package_says_its_licence() {
        let found = installed("", br#"{"name":"@a/b","version":"1.0.0","license":{"type":"MIT"}}"#).unwrap();
        assert_eq!(purls(&found), ["pkg:npm/%40a/b@1.0.0"]);
        assert_eq!(found[0].licence.as_deref(), Some("MIT"));
        assert!(installed("", b"{").is_err());
        assert!(installed("", br#"{"name":"x"}"#).unwrap().is_empty());
    }

    #[test]
    fn lock_files_of_npm_are_read_in_both_forms() {
        let new = br#"{"lockfileVersion":3,"packages":{"":{"name":"app","version":"1.0.0"},
            "node_modules/a":{"version":"1.2.3","integrity":"sha1-qqqqqqqqqqqqqqqqqqqqqqqqqqo=","license":"ISC"},
            "node_modules/a/node_modules/@s/b":{"version":"2.0.0"},"node_modules/w":{"link":true},"packages/w":{"version":"0"}}}"#;
        let found = lock("", new).unwrap();
        assert_eq!(purls(&found), ["pkg:npm/a@1.2.3", "pkg:npm/%40s/b@2.0.0"]);
        assert_eq!(found[0].checksums, [("SHA1", "aa".repeat(20))]);
        let old = br#"{"dependencies":{"a":{"version":"1.2.3","dependencies":{"b":{"version":"2.0.0"}}}}}"#;
        assert_eq!(purls(&lock("", old).unwrap()), ["pkg:npm/a@1.2.3", "pkg:npm/b@2.0.0"]);
    }

    #[test]
    fn lock_files_of_yarn_and_pnpm_are_read() {
        let one = b"# yarn lockfile v1\n\n\n\"@a/b@^1.0.0\", \"@a/b@^1.1.0\":\n  version \"1.1.1\"\n  resolved \"x\"\n\nc@^2:\n  version \"2.0.0\"\n";
        assert_eq!(purls(&yarn("", one).unwrap()), ["pkg:npm/%40a/b@1.1.1", "pkg:npm/c@2.0.0"]);
        let later =
            b"__metadata:\n  version: 8\n\n\"c@npm:^2\":\n  version: 2.0.0\n\n\"app@workspace:.\":\n  version: 0.0.0\n";
        assert_eq!(purls(&yarn("", later).unwrap()), ["pkg:npm/c@2.0.0"]);
        let pnpm_lock = b"lockfileVersion: '9.0'\n\npackages:\n\n  '@a/b@1.1.1':\n    resolution: {integrity: sha1-qqqqqqqqqqqqqqqqqqqqqqqqqqo=}\n\n  c@2.0.0(d@1.0.0):\n    engines: {node: '>=4'}\n\n  /e/3.0.0:\n    dev: true\n\nsnapshots:\n\n  f@1.0.0: {}\n";
        let found = pnpm("", pnpm_lock).unwrap();
        assert_eq!(purls(&found), ["pkg:npm/%40a/b@1.1.1", "pkg:npm/c@2.0.0", "pkg:npm/e@3.0.0"]);
        assert_eq!(found[0].checksums.len(), 1);
    }
}
