//! PHP: `composer.lock`, and composer's list of installed packages.

use serde_json::Value;

use super::super::{Package, Purl};
use crate::error::{Error, Result};

/// Reads `composer.lock` or `vendor/composer/installed.json`.
///
/// # Errors
/// `InvalidArgument` when it is malformed.
pub(super) fn lock(_path: &str, bytes: &[u8]) -> Result<Vec<Package>> {
    let lock: Value = serde_json::from_slice(bytes).map_err(|error| Error::invalid(error.to_string()))?;
    // Composer 1 wrote the installed packages as a bare list.
    let lists = [Some(&lock), lock.get("packages"), lock.get("packages-dev")];
    let entries = lists.into_iter().flatten().filter_map(Value::as_array).flatten();
    Ok(entries.filter_map(package).collect())
}

fn package(entry: &Value) -> Option<Package> {
    let (name, version) = (entry.get("name")?.as_str()?, entry.get("version")?.as_str()?);
    let licences = entry.get("license").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let licence = licences.collect::<Vec<_>>().join(" OR ");
    Some(Package::new(Purl::of_path("composer", name, version)).with_licence(Some(licence)))
}

#[cfg(test)]
mod tests {
    use super::super::purls;
    use super::*;

    #[test]
    fn locked_and_installed_packages_are_listed() {
        let locked = br#"{"packages":[{"name":"Monolog/monolog","version":"3.5.0","license":["MIT"]}],"packages-dev":[{"name":"a/b","version":"1"}]}"#;
        let found = lock("", locked).unwrap();
        assert_eq!(purls(&found), ["pkg:composer/monolog/monolog@3.5.0", "pkg:composer/a/b@1"]);
        assert_eq!(found[0].licence.as_deref(), Some("MIT"));
        assert_eq!(purls(&lock("", br#"[{"name":"a/b","version":"1"}]"#).unwrap()), ["pkg:composer/a/b@1"]);
    }
}
