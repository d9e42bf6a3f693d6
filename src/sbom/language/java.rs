//! Java: archives, with those in them, by Maven's properties, the manifest or the file's name.

use std::io::{Cursor, Read, Seek};

use super::super::zip::Archive;
use super::super::{Package, Purl, text};
use crate::error::Result;

/// Archives within archives are read so deep: an application's archive holds those of libraries.
const MAX_DEPTH: usize = 2;
/// Limits of what is read of an archive into memory.
const MAX_TEXT: u64 = 1 << 20;
const MAX_INNER: u64 = 64 << 20;

/// Reads `pom.properties`.
///
/// # Errors
/// None; properties without a name tell of nothing.
#[expect(clippy::unnecessary_wraps, reason = "it is one of several readers")]
pub(super) fn properties(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let text = text(bytes);
    let value = |key: &str| {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.clone().find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let (group, artifact) = (value("groupId"), value("artifactId"));
    if artifact.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![Package::new(Purl::new("maven", &group, &artifact, &value("version")))])
}

/// Reads an archive.
///
/// # Errors
/// `InvalidArgument` when it is damaged.
pub(in crate::sbom) fn archive(path: &str, file: impl Read + Seek) -> Result<Vec<Package>> {
    let mut packages = Vec::new();
    read(path, file, 0, &mut packages)?;
    Ok(packages)
}

fn read(path: &str, file: impl Read + Seek, depth: usize, packages: &mut Vec<Package>) -> Result<()> {
    let mut archive = Archive::open(file)?;
    let mut own = Vec::new();
    let mut manifest = None;
    for index in 0..archive.entries().len() {
        let name = archive.entries()[index].name.clone();
        if name.starts_with("META-INF/maven/") && name.ends_with("/pom.properties") {
            own.extend(properties(path, &archive.read(index, MAX_TEXT)?)?);
        } else if name == "META-INF/MANIFEST.MF" {
            manifest = Some(archive.read(index, MAX_TEXT)?);
        } else if super::is_archive(&name) && depth < MAX_DEPTH {
            let inner = archive.read(index, MAX_INNER)?;
            read(&format!("{path}/{name}"), Cursor::new(inner), depth + 1, packages)?;
        }
    }
    if own.is_empty() {
        own.extend(from_manifest(path, &text(&manifest.unwrap_or_default())));
    }
    packages.extend(own);
    Ok(())
}

/// Names an archive by its manifest, and by its file's name where that says nothing.
fn from_manifest(path: &str, manifest: &str) -> Option<Package> {
    // Long lines go on in the next one, after a blank.
    let manifest = manifest.replace("\r\n", "\n").replace("\n ", "");
    let value = |keys: &[&str]| {
        let fields = manifest.lines().filter_map(|line| line.split_once(':'));
        let field = |key: &str| fields.clone().find(|(name, _)| *name == key).map(|(_, value)| value.trim().to_owned());
        keys.iter().find_map(|key| field(key)).unwrap_or_default()
    };
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let begins = |at: &usize| stem[at + 1..].starts_with(|c: char| c.is_ascii_digit());
    let (name, version) = match stem.match_indices('-').map(|(at, _)| at).find(begins) {
        Some(at) => (&stem[..at], &stem[at + 1..]),
        None => (stem, ""),
    };
    let group = value(&["Implementation-Vendor-Id"]);
    let said = value(&["Implementation-Version", "Bundle-Version", "Specification-Version"]);
    let version = if version.is_empty() { said } else { version.to_owned() };
    (!name.is_empty()).then(|| Package::new(Purl::new("maven", &group, name, &version)))
}

#[cfg(test)]
mod tests {
    use super::super::super::zip::tests::zip;
    use super::super::purls;
    use super::*;

    #[test]
    fn archives_within_an_archive_are_listed() {
        let properties = b"#Generated\ngroupId=org.example\nartifactId=lib\nversion=2.1\n";
        let inner = zip(&[("META-INF/maven/org.example/lib/pom.properties", &properties[..])]);
        let plain = zip(&[("META-INF/MANIFEST.MF", &b"Manifest-Version: 1.0\r\nBundle-Version: 9\r\n"[..])]);
        let outer = zip(&[
            ("BOOT-INF/lib/lib.jar", &inner),
            ("BOOT-INF/lib/other-core-1.2.jar", &plain),
            ("BOOT-INF/lib/third.jar", &plain),
        ]);
        let found = archive("app/app-3.0.jar", Cursor::new(outer)).unwrap();
        assert_eq!(
            purls(&found),
            ["pkg:maven/org.example/lib@2.1", "pkg:maven/other-core@1.2", "pkg:maven/third@9", "pkg:maven/app@3.0"]
        );
        assert!(archive("x.jar", Cursor::new(b"no archive")).is_err());
    }
}
