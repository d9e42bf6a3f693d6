//! Ruby: specifications of installed gems, and `Gemfile.lock`.

use super::super::{Package, Purl, text};
use crate::error::Result;

/// Reads the gems of `Gemfile.lock`.
///
/// # Errors
/// None; what is not understood is passed over.
#[expect(clippy::unnecessary_wraps, reason = "it is one of several readers")]
pub(super) fn lock(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let mut section = String::new();
    let mut packages = Vec::new();
    for line in text(bytes).lines() {
        if !line.starts_with(' ') {
            line.clone_into(&mut section);
            continue;
        }
        // Four blanks: a locked gem; six: what it depends on.
        let entry = line.strip_prefix("    ").filter(|rest| !rest.starts_with(' '));
        let gem = entry.filter(|_| section == "GEM").and_then(|entry| entry.strip_suffix(')')?.split_once(" ("));
        packages.extend(gem.map(|(name, version)| Package::new(Purl::new("gem", "", name, version))));
    }
    Ok(packages)
}

/// Reads the specification of an installed gem: Ruby code, in the form that `gem` writes it.
///
/// # Errors
/// None; a specification without a name tells of nothing.
#[expect(clippy::unnecessary_wraps, reason = "it is one of several readers")]
pub(super) fn specification(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let text = text(bytes);
    let value = |keys: &[&str]| {
        text.lines().find_map(|line| {
            let (left, right) = line.trim().split_once('=')?;
            let key = left.trim().strip_prefix("s.")?;
            keys.contains(&key).then(|| strings(right))
        })
    };
    let first = |keys: &[&str]| value(keys).and_then(|found| found.into_iter().next()).unwrap_or_default();
    let (name, version) = (first(&["name"]), first(&["version"]));
    if name.is_empty() {
        return Ok(Vec::new());
    }
    let licence = value(&["licenses", "license"]).map(|all| all.join(" OR "));
    Ok(vec![Package::new(Purl::new("gem", "", &name, &version)).with_licence(licence)])
}

/// Returns the strings in double quotes.
fn strings(code: &str) -> Vec<String> {
    code.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::purls;
    use super::*;

    #[test]
    fn locked_gems_are_listed_without_their_dependencies() {
        let text = b"GEM\n  remote: https://rubygems.example/\n  specs:\n    rack (3.0.8)\n    sinatra (4.0.0)\n      rack (>= 3.0.0, < 4)\n\nPLATFORMS\n  ruby\n\nDEPENDENCIES\n  sinatra (~> 4)\n";
        assert_eq!(purls(&lock("", text).unwrap()), ["pkg:gem/rack@3.0.8", "pkg:gem/sinatra@4.0.0"]);
    }

    #[test]
    fn an_installed_gem_says_its_licence() {
        let text = b"Gem::Specification.new do |s|\n  s.name = \"rake\".freeze\n  s.version = \"13.0.6\"\n  s.licenses = [\"MIT\".freeze, \"Ruby\".freeze]\nend\n";
        let found = specification("", text).unwrap();
        assert_eq!(purls(&found), ["pkg:gem/rake@13.0.6"]);
        assert_eq!(found[0].licence.as_deref(), Some("MIT OR Ruby"));
    }
}
