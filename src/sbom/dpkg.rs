//! Debian packages: dpkg's status files, and the licences in `/usr/share/doc/PACKAGE/copyright`.

use super::os::Os;
use super::{Package, Purl};

/// One field after the other of a control file, unfolded; `None` ends a paragraph.
fn paragraphs(text: &str) -> impl Iterator<Item = Vec<(&str, String)>> {
    text.split("\n\n").map(|paragraph| {
        let mut fields: Vec<(&str, String)> = Vec::new();
        for line in paragraph.lines() {
            if line.starts_with([' ', '\t']) {
                if let Some((_, value)) = fields.last_mut() {
                    value.push('\n');
                    value.push_str(line.trim());
                }
            } else if let Some((key, value)) = line.split_once(':') {
                fields.push((key, value.trim().to_owned()));
            }
        }
        fields
    })
}

/// Reads a status file: of dpkg itself, or one of those that images without dpkg keep in `status.d`.
pub(super) fn status(text: &str, os: Option<&Os>) -> Vec<Package> {
    paragraphs(text).filter_map(|fields| package(&fields, os)).collect()
}

fn package(fields: &[(&str, String)], os: Option<&Os>) -> Option<Package> {
    let field =
        |name: &str| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
    let name = field("Package")?;
    let installed = field("Status").is_none_or(|status| status.split_whitespace().nth(2) == Some("installed"));
    if !installed {
        return None;
    }
    let version = field("Version").unwrap_or_default();
    let namespace = os.map_or("debian", |os| os.id.as_str());
    let purl = Purl::new("deb", namespace, name, version)
        .with("arch", field("Architecture").unwrap_or_default())
        .with("distro", os.map(Os::distro).unwrap_or_default())
        .with("upstream", upstream(field("Source").unwrap_or_default()));
    let mut package = Package::new(purl);
    package.supplier = field("Maintainer").map(str::to_owned);
    Some(package)
}

/// `glibc (2.36-9)` is `glibc@2.36-9`.
fn upstream(source: &str) -> String {
    match source.split_once('(') {
        Some((name, version)) => format!("{}@{}", name.trim(), version.trim_end_matches(')').trim()),
        None => source.to_owned(),
    }
}

/// Reads the licences of a copyright file in the machine-readable format; `None` for one in prose.
pub(super) fn licence(text: &str) -> Option<String> {
    if !text.lines().take(5).any(|line| line.starts_with("Format:") && line.contains("copyright-format")) {
        return None;
    }
    let mut licences: Vec<String> = Vec::new();
    for fields in paragraphs(text) {
        for (key, value) in fields {
            let short = value.lines().next().unwrap_or_default().trim().to_owned();
            if key.eq_ignore_ascii_case("License") && !short.is_empty() && !licences.contains(&short) {
                licences.push(short);
            }
        }
    }
    let several = |licence: &String| licence.contains(' ') && !licence.starts_with('(');
    let joined: Vec<String> = match licences.as_slice() {
        [one] => vec![one.clone()],
        all => all.iter().map(|one| if several(one) { format!("({one})") } else { one.clone() }).collect(),
    };
    (!joined.is_empty()).then(|| joined.join(" AND "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_packages_are_listed_and_removed_ones_are_not() {
        let text = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nSource: glibc (2.36-9)\n\
                    Maintainer: GNU Libc <debian-glibc@example.org>\nVersion: 2.36-9+deb12u4\nDescription: C\n library\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                    Package: distroless\nVersion: 2\n";
        let os = Os { id: "debian".to_owned(), version: "12".to_owned(), name: String::new() };
        let packages = status(text, Some(&os));
        let purls: Vec<String> = packages.iter().map(|package| package.purl.to_string()).collect();
        assert_eq!(
            purls,
            [
                "pkg:deb/debian/libc6@2.36-9%2Bdeb12u4?arch=amd64&distro=debian-12&upstream=glibc%402.36-9",
                "pkg:deb/debian/distroless@2?distro=debian-12"
            ]
        );
        assert_eq!(packages[0].supplier.as_deref(), Some("GNU Libc <debian-glibc@example.org>"));
    }

    #[test]
    fn licences_come_from_machine_readable_files_only() {
        let text = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\n\
                    Copyright: me\nLicense: GPL-2+ or Artistic\n text\n\nFiles: x\nLicense: Expat\n\nLicense: Expat\n long\n";
        assert_eq!(licence(text).as_deref(), Some("(GPL-2+ or Artistic) AND Expat"));
        assert_eq!(licence("This package was debianized by\nLicense: GPL\n"), None);
    }
}
