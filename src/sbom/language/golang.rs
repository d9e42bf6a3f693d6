//! Go: `go.mod`, and what the compiler leaves in binaries.

use super::super::{Package, Purl, text};
use crate::error::{Error, Result};

/// The mark before the compiler's build information.
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// The text of modules stands between marks of this length.
const SENTINEL: usize = 16;

/// Reads the requirements of `go.mod`.
///
/// # Errors
/// None; what is not understood is passed over.
#[expect(clippy::unnecessary_wraps, reason = "it is one of several readers")]
pub(super) fn module(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let mut packages = Vec::new();
    let mut inside = false;
    for line in text(bytes).lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let requirement = match line.strip_prefix("require") {
            Some(rest) if rest.trim_start().starts_with('(') => {
                inside = true;
                continue;
            }
            Some(rest) if rest.starts_with([' ', '\t']) => rest,
            _ if line.starts_with(')') => {
                inside = false;
                continue;
            }
            _ if inside => line,
            _ => continue,
        };
        let mut words = requirement.split_whitespace();
        if let (Some(path), Some(version)) = (words.next(), words.next()) {
            packages.push(Package::new(Purl::of_path("golang", path.trim_matches('"'), version)));
        }
    }
    Ok(packages)
}

/// Reads the section `.go.buildinfo` of a binary (of Go 1.18 and later; older ones keep pointers there and tell of nothing).
///
/// # Errors
/// `InvalidArgument` when it is damaged.
pub(in crate::sbom) fn build_info(section: &[u8]) -> Result<Vec<Package>> {
    let damaged = || Error::invalid("Go's build information is damaged");
    let at = section.windows(MAGIC.len()).step_by(16).position(|window| window == MAGIC).ok_or_else(damaged)? * 16;
    let header = section.get(at..at + 32).ok_or_else(damaged)?;
    let inline = header[15] & 2 != 0;
    if !inline {
        return Ok(Vec::new());
    }
    let rest = &section[at + 32..];
    let (version, rest) = counted(rest).ok_or_else(damaged)?;
    let (modules, _) = counted(rest).ok_or_else(damaged)?;
    let mut packages = Vec::new();
    if let Some(version) = text(version).strip_prefix("go") {
        let version = version.split_whitespace().next().unwrap_or_default();
        packages.push(Package::new(Purl::new("golang", "", "stdlib", version)));
    }
    let modules = modules.get(SENTINEL..modules.len().saturating_sub(SENTINEL)).unwrap_or_default();
    for line in text(modules).lines() {
        let mut fields = line.split('\t');
        match (fields.next(), fields.next(), fields.next()) {
            (Some("mod" | "dep"), Some(path), Some(version)) => {
                packages.push(Package::new(Purl::of_path("golang", path, version)));
            }
            // What stands before was replaced by this.
            (Some("=>"), Some(path), Some(version)) => {
                packages.pop();
                packages.push(Package::new(Purl::of_path("golang", path, version)));
            }
            _ => {}
        }
    }
    Ok(packages)
}

/// Splits off bytes that their number, a varint, comes before.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut len, mut used) = (0_usize, 0);
    loop {
        let byte = *bytes.get(used)?;
        len |= usize::from(byte & 0x7f).checked_shl(u32::try_from(7 * used).ok()?)?;
        used += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let end = used.checked_add(len)?;
    Some((bytes.get(used..end)?, &bytes[end..]))
}

#[cfg(test)]
mod tests {
    use super::super::purls;
    use super::*;

    #[test]
    fn requirements_are_read_in_both_forms() {
        let text = b"module example.com/app\n\ngo 1.22\n\nrequire github.com/a/b v1.0.0 // indirect\n\nrequire (\n\tgolang.org/x/net v0.1.0\n\t// a comment\n)\n\nreplace x => y v1\n";
        assert_eq!(
            purls(&module("", text).unwrap()),
            ["pkg:golang/github.com/a/b@v1.0.0", "pkg:golang/golang.org/x/net@v0.1.0"]
        );
    }

    #[test]
    fn a_binary_lists_its_modules() {
        let modules = format!(
            "{0}path\texample.com/app\nmod\texample.com/app\t(devel)\t\ndep\ta.org/b\tv1.0.0\th1:x\n=>\ta.org/c\tv2.0.0\th1:y\nbuild\t-x=y\n{0}",
            "s".repeat(SENTINEL)
        );
        let mut section = vec![0; 16];
        section.extend(MAGIC);
        section.extend([8, 2]);
        section.resize(48, 0);
        section.push(8);
        section.extend(b"go1.22.3");
        section.extend([u8::try_from(modules.len() & 0x7f).unwrap() | 0x80, u8::try_from(modules.len() >> 7).unwrap()]);
        section.extend(modules.as_bytes());
        assert_eq!(
            purls(&build_info(&section).unwrap()),
            ["pkg:golang/stdlib@1.22.3", "pkg:golang/example.com/app@%28devel%29", "pkg:golang/a.org/c@v2.0.0"]
        );
        for len in 0..section.len() {
            assert!(build_info(&section[..len]).is_err(), "{len}");
        }
    }
}
