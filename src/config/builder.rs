//! What the configuration says about builds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::document::{Table, Value};
use crate::error::Result;

/// How builds run; `None` and empty mean "not said".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Builder {
    /// How many steps run at a time, all builds together.
    pub max_parallelism: Option<usize>,
    /// What clients may allow the steps of their builds: `network.host`, `security.insecure`, `device`. Not said, they may allow
    /// all of it.
    pub entitlements: Option<Vec<String>>,
    /// Labels of the worker, for clients that look for one.
    pub labels: BTreeMap<String, String>,
    /// Where devices of steps are described, instead of the usual directories.
    pub device_dirs: Option<Vec<PathBuf>>,
    /// The frontends that are switched off; BuildKit's configuration only.
    pub frontends_off: Vec<String>,
    /// The repositories, with their domains, whose images may run as frontends; empty for all. BuildKit's configuration only.
    pub frontend_repositories: Vec<String>,
}

/// What clients may be permitted to allow.
const ENTITLEMENTS: &[&str] = &["device", "network.host", "security.insecure"];

/// Reads a permission.
///
/// # Errors
/// A text that says what there is.
pub(super) fn entitlement(text: &str) -> Result<String, String> {
    if ENTITLEMENTS.contains(&text) {
        return Ok(text.to_owned());
    }
    let hint = match kiln_graph::diagnostic::closest(text, ENTITLEMENTS.iter().copied()) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("expected one of: {}", ENTITLEMENTS.join(", ")),
    };
    Err(format!("there is no entitlement {text:?} ({hint})"))
}

/// Reads a table of texts.
pub(super) fn labels(value: Value<'_>) -> Result<BTreeMap<String, String>> {
    value.table()?.take_rest().into_iter().map(|(key, value)| Ok((key, value.string()?))).collect()
}

impl Builder {
    pub(super) fn read(mut table: Table<'_>) -> Result<Self> {
        let dirs = |value: Value<'_>| value.list()?.iter().map(Value::path).collect::<Result<Vec<_>>>();
        let parallelism = table.take("max-parallelism").map(|v| v.integer(1..=10_000)).transpose()?;
        let builder = Self {
            max_parallelism: parallelism.and_then(|number| usize::try_from(number).ok()),
            entitlements: table.take("entitlements").map(|v| v.list_of(entitlement)).transpose()?,
            labels: table.take("labels").map(labels).transpose()?.unwrap_or_default(),
            device_dirs: table.take("cdi-spec-dirs").map(dirs).transpose()?,
            ..Self::default()
        };
        table.finish()?;
        Ok(builder)
    }

    /// Lays what a file with precedence says over this.
    pub(super) fn overlay(&mut self, over: Self) {
        self.max_parallelism = over.max_parallelism.or(self.max_parallelism);
        self.entitlements = over.entitlements.or(self.entitlements.take());
        self.labels.extend(over.labels);
        self.device_dirs = over.device_dirs.or(self.device_dirs.take());
        self.frontends_off.extend(over.frontends_off);
        self.frontend_repositories.extend(over.frontend_repositories);
    }
}
