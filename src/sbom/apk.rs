//! Alpine packages: apk's database of installed packages.

use super::os::Os;
use super::{Package, Purl};

/// Reads `lib/apk/db/installed`: blocks of lines that begin with one letter and a colon.
pub(super) fn installed(text: &str, os: Option<&Os>) -> Vec<Package> {
    text.split("\n\n").filter_map(|block| package(block, os)).collect()
}

fn package(block: &str, os: Option<&Os>) -> Option<Package> {
    // Lines about files come after those about the package, and repeat letters.
    let field = |letter: &str| block.lines().find_map(|line| line.strip_prefix(letter)?.strip_prefix(':'));
    let name = field("P")?;
    let origin = field("o").filter(|origin| *origin != name).unwrap_or_default();
    let purl = Purl::new("apk", os.map_or("alpine", |os| os.id.as_str()), name, field("V").unwrap_or_default())
        .with("arch", field("A").unwrap_or_default())
        .with("distro", os.map(Os::distro).unwrap_or_default())
        .with("upstream", origin);
    let mut package = Package::new(purl).with_licence(field("L").map(str::to_owned));
    package.supplier = field("m").map(str::to_owned);
    Some(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_have_version_licence_and_origin() {
        let text = "C:Q1abc=\nP:musl-utils\nV:1.2.5-r0\nA:x86_64\nL:MIT AND BSD-2-Clause AND GPL-2.0-or-later\no:musl\n\
                    m:Somebody <some@example.org>\nF:usr\nR:P\n\nP:busybox\nV:1.36.1-r29\nA:x86_64\nL:GPL-2.0-only\no:busybox\n\n";
        let os = Os { id: "alpine".to_owned(), version: "3.20.1".to_owned(), name: String::new() };
        let packages = installed(text, Some(&os));
        assert_eq!(
            packages[0].purl.to_string(),
            "pkg:apk/alpine/musl-utils@1.2.5-r0?arch=x86_64&distro=alpine-3.20.1&upstream=musl"
        );
        assert_eq!(packages[1].purl.to_string(), "pkg:apk/alpine/busybox@1.36.1-r29?arch=x86_64&distro=alpine-3.20.1");
        assert_eq!(packages[0].licence.as_deref(), Some("MIT AND BSD-2-Clause AND GPL-2.0-or-later"));
    }
}
