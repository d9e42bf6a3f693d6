//! Rust: `Cargo.lock`, and the list of crates that `cargo auditable` leaves in binaries.

use std::io::Read as _;

use serde::Deserialize;

use super::super::{Package, Purl, text};
use crate::error::{Error, Result};

/// A list of crates in a binary that is larger than this is refused.
const MAX_LIST: u64 = 32 << 20;

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    #[serde(default)]
    checksum: Option<String>,
}

/// Reads `Cargo.lock`.
///
/// # Errors
/// `InvalidArgument` when it is malformed.
pub(super) fn lock(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let lock: Lock = toml::from_str(&text(bytes)).map_err(|error| Error::invalid(error.message().to_owned()))?;
    let package = |locked: Locked| {
        let mut package = Package::new(Purl::new("cargo", "", &locked.name, &locked.version));
        let checksum =
            locked.checksum.filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        package.checksums.extend(checksum.map(|hex| ("SHA256", hex.to_lowercase())));
        package
    };
    Ok(lock.package.into_iter().map(package).collect())
}

#[derive(Deserialize)]
struct Audit {
    #[serde(default)]
    packages: Vec<Audited>,
}

#[derive(Deserialize)]
struct Audited {
    name: String,
    version: String,
    #[serde(default)]
    kind: Option<String>,
}

/// Reads the section `.dep-v0` of a binary: compressed JSON. Crates that only built it are left out.
///
/// # Errors
/// `InvalidArgument` when it is malformed or too large.
pub(in crate::sbom) fn auditable(section: &[u8]) -> Result<Vec<Package>> {
    let mut json = Vec::new();
    let read = flate2::read::ZlibDecoder::new(section).take(MAX_LIST + 1).read_to_end(&mut json);
    if read.is_err() || json.len() as u64 > MAX_LIST {
        return Err(Error::invalid("the list of crates is damaged or too large"));
    }
    let audit: Audit = serde_json::from_slice(&json).map_err(|error| Error::invalid(error.to_string()))?;
    let used = audit.packages.into_iter().filter(|package| package.kind.as_deref() != Some("build"));
    Ok(used.map(|package| Package::new(Purl::new("cargo", "", &package.name, &package.version))).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::purls;
    use super::*;

    #[test]
    fn locked_crates_have_checksums() {
        let checksum = "ab".repeat(32);
        let text = format!(
            "version = 4\n[[package]]\nname = \"app\"\nversion = \"0.1.0\"\n[[package]]\nname = \"serde\"\n\
             version = \"1.0.2\"\nsource = \"registry+x\"\nchecksum = \"{checksum}\"\n"
        );
        let packages = lock("", text.as_bytes()).unwrap();
        assert_eq!(purls(&packages), ["pkg:cargo/app@0.1.0", "pkg:cargo/serde@1.0.2"]);
        assert_eq!(packages[1].checksums, [("SHA256", checksum)]);
        assert!(lock("", b"[[package]]\nname = 1").is_err());
    }

    #[test]
    fn a_binary_lists_its_crates() {
        let json = br#"{"packages":[{"name":"a","version":"1.0.0","root":true},{"name":"cc","version":"2.0.0","kind":"build"}]}"#;
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(json).unwrap();
        assert_eq!(purls(&auditable(&encoder.finish().unwrap()).unwrap()), ["pkg:cargo/a@1.0.0"]);
        assert!(auditable(b"nonsense").is_err());
    }
}
