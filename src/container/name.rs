//! Container names: what is allowed, and names for containers that were given none.

use crate::error::{Error, Result};

/// Words of made-up names; two of them give some ten thousand combinations.
const FIRST: &[&str] = &[
    "amber", "ashen", "autumn", "azure", "baked", "basalt", "bold", "brave", "breezy", "bright", "bronze", "calm",
    "candid", "ceramic", "cheery", "clever", "cobalt", "copper", "coral", "cosmic", "crimson", "crisp", "curious",
    "daring", "dewy", "dusky", "eager", "early", "earthen", "easy", "elated", "fabled", "fair", "famous", "fearless",
    "festive", "fiery", "fine", "fleet", "fluent", "fond", "frank", "fresh", "frosty", "gentle", "gilded", "glad",
    "glazed", "golden", "grand", "happy", "hardy", "hazel", "honest", "humble", "indigo", "ivory", "jolly", "keen",
    "kind", "lively", "loyal", "lucid", "lucky", "lunar", "mellow", "merry", "mighty", "misty", "modest", "molten",
    "neat", "nimble", "noble", "novel", "opal", "patient", "placid", "plucky", "polite", "proud", "quick", "quiet",
    "radiant", "rapid", "ready", "robust", "rosy", "rustic", "serene", "sharp", "silent", "silver", "smooth", "snowy",
    "solar", "steady", "sturdy", "sunny", "swift", "tidy", "tranquil", "trusty", "upbeat", "velvet", "vivid", "warm",
    "wise", "witty", "zesty",
];
const SECOND: &[&str] = &[
    "anvil", "atlas", "badger", "beacon", "birch", "bison", "bowl", "brick", "brook", "canyon", "cedar", "chalice",
    "cinder", "clay", "cliff", "comet", "condor", "crane", "crater", "creek", "cypress", "delta", "dune", "eagle",
    "elm", "ember", "falcon", "fern", "finch", "fjord", "flame", "forge", "fox", "furnace", "garnet", "geyser",
    "glacier", "glade", "glaze", "granite", "grove", "gull", "harbor", "hawk", "hazelnut", "hearth", "heron", "hill",
    "ibis", "island", "jade", "jasper", "juniper", "kestrel", "lagoon", "lake", "larch", "lark", "lava", "ledge",
    "lichen", "lynx", "magma", "maple", "marble", "marten", "meadow", "meteor", "mosaic", "moss", "oak", "onyx",
    "orchid", "otter", "owl", "oyster", "pebble", "pine", "planet", "plover", "pond", "poplar", "pottery", "prairie",
    "quarry", "quartz", "quill", "raven", "reef", "ridge", "river", "robin", "saddle", "shale", "slate", "sparrow",
    "spruce", "stone", "summit", "swan", "teapot", "tern", "thistle", "tile", "torch", "tulip", "tundra", "urn",
    "valley", "vase", "walnut", "willow", "wren", "yarrow", "zephyr",
];

/// Makes a name out of random numbers. `attempt` above 0 adds a number, as names run out.
#[must_use]
pub fn random(entropy: u64, attempt: u32) -> String {
    let pick = |words: &[&'static str], number: u64| {
        let count = words.len() as u64;
        words[usize::try_from(number % count).expect("the remainder is small")]
    };
    let name = format!("{}_{}", pick(FIRST, entropy), pick(SECOND, entropy >> 32));
    if attempt == 0 { name } else { format!("{name}{attempt}") }
}

/// Checks a name that a user chose: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`. A leading slash, as old clients send it, is dropped.
///
/// # Errors
/// `InvalidArgument` in docker's words.
pub fn check(name: &str) -> Result<&str> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let valid = bare.len() > 1
        && bare.starts_with(|c: char| c.is_ascii_alphanumeric())
        && bare.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if valid {
        return Ok(bare);
    }
    Err(Error::invalid(format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_valid_and_differ() {
        let names: std::collections::BTreeSet<String> =
            (0..1000_u64).map(|n| random(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), 0)).collect();
        assert!(names.len() > 900);
        assert!(names.iter().all(|name| check(name).is_ok()));
        assert_ne!(random(7, 0), random(7, 1));
    }

    #[test]
    fn names_are_checked_as_docker_does() {
        assert_eq!(check("/web-1").unwrap(), "web-1");
        for name in ["", "a", "-a", "a b", "ä1", "a/b"] {
            assert!(check(name).is_err(), "{name}");
        }
    }
}
