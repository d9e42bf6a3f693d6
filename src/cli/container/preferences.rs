//! Preferences of the user in docker's `config.json` that concern containers.

use serde::Deserialize;

use super::detach::Keys;
use crate::cli::args::Context;
use crate::config::Environment;
use crate::error::{Result, ResultExt as _};

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Preferences {
    detach_keys: Option<String>,
    ps_format: Option<String>,
}

/// A file that is missing or not understood holds no preferences: commands that need its credentials complain.
fn read(environment: &Environment) -> Preferences {
    let directory = environment.path("DOCKER_CONFIG");
    let directory = directory.or_else(|| environment.path("HOME").map(|home| home.join(".docker")));
    let text = directory.and_then(|directory| std::fs::read(directory.join("config.json")).ok());
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Returns the keys that detach: those of the option, else the preferred ones, else docker's.
///
/// # Errors
/// `InvalidArgument` for keys that do not exist.
pub(super) fn detach_keys(context: &Context, option: Option<&str>) -> Result<Keys> {
    match option {
        Some(keys) => keys.parse().context(|| "--detach-keys"),
        None => {
            read(&context.environment).detach_keys.unwrap_or_default().parse().context(|| "detachKeys in config.json")
        }
    }
}

/// Returns the preferred format of `ps`.
pub(super) fn ps_format(context: &Context) -> Option<String> {
    read(&context.environment).ps_format.filter(|format| !format.is_empty())
}
