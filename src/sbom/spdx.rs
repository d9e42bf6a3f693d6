//! An SPDX 2.3 document about an inventory, as JSON.
//!
//! The document describes a root file system, which contains the operating system and its packages; the files that told of
//! packages are listed with their digests. Everything but the time depends on what was found only, the namespace too.

use serde_json::{Value, json};
use sha2::Digest as _;

use super::language::hex;
use super::os::Os;
use super::{Inventory, Package, licence};

/// The predicate type of in-toto statements about such a document.
pub const PREDICATE_TYPE: &str = "https://spdx.dev/Document";

const NONE: &str = "NOASSERTION";
const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const ROOT: &str = "SPDXRef-RootFileSystem";
const SYSTEM: &str = "SPDXRef-OperatingSystem";

/// Writes a document.
///
/// `name` is what the root file system is called; `created` the time of the document, as RFC 3339 with whole seconds in UTC.
#[must_use]
pub fn document(name: &str, created: &str, inventory: &Inventory) -> Value {
    let mut packages = vec![root(name)];
    let mut relationships = vec![relationship(DOCUMENT, "DESCRIBES", ROOT)];
    if let Some(os) = &inventory.os {
        packages.push(system(os));
        relationships.push(relationship(ROOT, "CONTAINS", SYSTEM));
    }
    for found in &inventory.packages {
        let id = package_id(found);
        relationships.push(relationship(ROOT, "CONTAINS", &id));
        for path in &found.found_in {
            let mut evident = relationship(&id, "OTHER", &file_id(path));
            evident["comment"] = "evident-by: the file tells of the package".into();
            relationships.push(evident);
        }
        packages.push(package(&id, found));
    }
    let files: Vec<Value> = inventory
        .evidence
        .iter()
        .map(|(path, evidence)| {
            json!({
                "SPDXID": file_id(path),
                "fileName": format!(".{path}"),
                "checksums": [
                    {"algorithm": "SHA1", "checksumValue": evidence.sha1},
                    {"algorithm": "SHA256", "checksumValue": evidence.sha256},
                ],
                "licenseConcluded": NONE,
                "copyrightText": NONE,
            })
        })
        .collect();
    let tool = concat!("Tool: kiln-", env!("CARGO_PKG_VERSION"));
    let mut document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": DOCUMENT,
        "name": name,
        "documentNamespace": namespace(&[json!(name), json!(packages), json!(files)]),
        "creationInfo": {"created": created, "creators": [tool]},
        "packages": packages,
        "files": files,
        "relationships": relationships,
    });
    if !inventory.notes.is_empty() {
        let annotations: Vec<Value> = inventory
            .notes
            .iter()
            .map(|note| json!({"annotationDate": created, "annotationType": "OTHER", "annotator": tool, "comment": note}))
            .collect();
        document["annotations"] = annotations.into();
    }
    document
}

/// A name that no other document has: a UUID (version 8) of the content's digest.
fn namespace(content: &[Value]) -> String {
    let text = content.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    let mut bytes: [u8; 16] = sha2::Sha256::digest(text)[..16].try_into().expect("it is 16 bytes");
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex(&bytes);
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    format!("urn:uuid:{}", parts.join("-"))
}

fn relationship(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

fn root(name: &str) -> Value {
    json!({
        "SPDXID": ROOT,
        "name": name,
        "downloadLocation": NONE,
        "filesAnalyzed": false,
        "primaryPackagePurpose": "CONTAINER",
        "licenseConcluded": NONE,
        "licenseDeclared": NONE,
        "copyrightText": NONE,
    })
}

fn system(os: &Os) -> Value {
    let mut system = json!({
        "SPDXID": SYSTEM,
        "name": os.id,
        "downloadLocation": NONE,
        "filesAnalyzed": false,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "licenseConcluded": NONE,
        "licenseDeclared": NONE,
        "copyrightText": NONE,
    });
    if !os.version.is_empty() {
        system["versionInfo"] = os.version.as_str().into();
    }
    if !os.name.is_empty() {
        system["summary"] = os.name.as_str().into();
    }
    system
}

fn package(id: &str, package: &Package) -> Value {
    let declared = package.licence.as_deref().and_then(licence::expression);
    let mut value = json!({
        "SPDXID": id,
        "name": package.purl.display_name(),
        "downloadLocation": NONE,
        "filesAnalyzed": false,
        "licenseConcluded": NONE,
        "licenseDeclared": declared.as_deref().unwrap_or(NONE),
        "copyrightText": NONE,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": package.purl.to_string(),
        }],
        "sourceInfo": format!("found in {}", package.found_in.join(", ")),
    });
    if !package.purl.version.is_empty() {
        value["versionInfo"] = package.purl.version.as_str().into();
    }
    if let (Some(said), None) = (&package.licence, &declared) {
        value["licenseComments"] = format!("its metadata says: {said}").into();
    }
    if let Some(supplier) = package.supplier.as_deref().and_then(organization) {
        value["supplier"] = supplier.into();
    }
    if !package.checksums.is_empty() {
        let checksums = package.checksums.iter();
        value["checksums"] = checksums.map(|(name, hex)| json!({"algorithm": name, "checksumValue": hex})).collect();
    }
    value
}

/// Writes `Name <mail>` as SPDX does.
fn organization(supplier: &str) -> Option<String> {
    let clean = |text: &str| {
        let text: String = text.chars().filter(|c| !c.is_control() && !"()<>".contains(*c)).collect();
        text.trim().to_owned()
    };
    let (name, mail) = supplier.split_once('<').unwrap_or((supplier, ""));
    let (name, mail) = (clean(name.trim().trim_matches('"')), clean(mail.split('>').next().unwrap_or_default()));
    let mail = if mail.contains('@') && !mail.contains(' ') { format!(" ({mail})") } else { String::new() };
    (!name.is_empty()).then(|| format!("Organization: {name}{mail}"))
}

/// Letters, digits, dots and hyphens of a text: all that an SPDX identifier may have.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).take(60).collect()
}

fn short_hash(text: &str) -> String {
    hex(&sha2::Sha256::digest(text)[..8])
}

fn package_id(package: &Package) -> String {
    let name = plain(&package.purl.display_name());
    format!("SPDXRef-Package-{}-{name}-{}", package.purl.kind, short_hash(&package.purl.to_string()))
}

fn file_id(path: &str) -> String {
    let name = plain(path.rsplit('/').next().unwrap_or_default());
    format!("SPDXRef-File-{name}-{}", short_hash(path))
}

#[cfg(test)]
mod tests {
    use super::super::{Evidence, Purl};
    use super::*;

    fn sample() -> Inventory {
        let mut package = Package::new(Purl::new("deb", "debian", "libc6", "2.36"));
        package.licence = Some("GPL-2+ and strange".to_owned());
        package.supplier = Some("GNU Libc <libc@example.org>".to_owned());
        package.found_in = vec!["/var/lib/dpkg/status".to_owned()];
        let evidence = Evidence { sha1: "a".repeat(40), sha256: "b".repeat(64) };
        Inventory {
            os: Some(Os { id: "debian".to_owned(), version: "12".to_owned(), name: String::new() }),
            packages: vec![package],
            evidence: [("/var/lib/dpkg/status".to_owned(), evidence)].into(),
            notes: vec!["/x was not read: it is broken".to_owned()],
        }
    }

    #[test]
    fn a_document_names_packages_files_and_what_was_not_read() {
        let document = document("app", "2026-11-26T00:00:00Z", &sample());
        let package = &document["packages"][2];
        assert_eq!(package["versionInfo"], "2.36");
        assert_eq!(package["licenseDeclared"], NONE);
        assert_eq!(package["licenseComments"], "its metadata says: GPL-2+ and strange");
        assert_eq!(package["supplier"], "Organization: GNU Libc (libc@example.org)");
        assert_eq!(package["externalRefs"][0]["referenceLocator"], "pkg:deb/debian/libc6@2.36");
        assert_eq!(document["files"][0]["fileName"], "./var/lib/dpkg/status");
        assert_eq!(document["annotations"][0]["comment"], "/x was not read: it is broken");
        assert_eq!(document["relationships"].as_array().unwrap().len(), 4);
        let ids = document["packages"].as_array().unwrap().iter().map(|package| package["SPDXID"].as_str().unwrap());
        assert!(ids.clone().all(|id| id.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))));
    }

    #[test]
    fn the_namespace_depends_on_the_content_only() {
        let at = |created: &str, inventory: &Inventory| {
            document("app", created, inventory)["documentNamespace"].as_str().unwrap().to_owned()
        };
        let (one, mut other) = (sample(), sample());
        assert_eq!(at("2026-11-26T00:00:00Z", &one), at("2027-01-01T00:00:00Z", &one));
        other.packages[0].purl.version.push('1');
        assert_ne!(at("2026-11-26T00:00:00Z", &one), at("2026-11-26T00:00:00Z", &other));
    }
}
