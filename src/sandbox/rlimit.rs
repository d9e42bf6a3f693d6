//! Limits of resources by the names that `--ulimit` uses.

use rustix::process::{Resource, Rlimit};

use crate::error::{Error, Result};

/// The names are those of Docker's client, which are those of `limits.conf(5)`.
const NAMES: [(&str, Resource); 15] = [
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("locks", Resource::Locks),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rss", Resource::Rss),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

/// Turns a limit as clients give it into one for [`super::Process::rlimits`]; -1 is unlimited.
///
/// # Errors
/// `InvalidArgument` for an unknown name, a negative number, and a soft limit above the hard one.
pub fn rlimit(name: &str, soft: i64, hard: i64) -> Result<(Resource, Rlimit)> {
    let Some((_, resource)) = NAMES.iter().find(|(known, _)| *known == name) else {
        let known = NAMES.map(|(name, _)| name).join(", ");
        return Err(Error::invalid(format!("invalid ulimit type: {name} (known are {known})")));
    };
    let value = |limit: i64| match limit {
        -1 => Ok(None),
        limit => u64::try_from(limit)
            .map(Some)
            .map_err(|_| Error::invalid(format!("ulimit {name}: {limit} is neither a limit nor -1 for unlimited"))),
    };
    let (current, maximum) = (value(soft)?, value(hard)?);
    if maximum.is_some_and(|maximum| current.is_none_or(|current| current > maximum)) {
        return Err(Error::invalid(format!("ulimit {name}: the soft limit {soft} is above the hard limit {hard}")));
    }
    Ok((*resource, Rlimit { current, maximum }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_the_names_and_the_order_of_dockers_client() {
        let limit = |current, maximum| Rlimit { current, maximum };
        assert_eq!(rlimit("nofile", 1, 2).unwrap(), (Resource::Nofile, limit(Some(1), Some(2))));
        assert_eq!(rlimit("core", 0, -1).unwrap(), (Resource::Core, limit(Some(0), None)));
        for (name, soft, hard) in [("files", 1, 1), ("core", 2, 1), ("core", -1, 1), ("core", -2, -1)] {
            assert!(rlimit(name, soft, hard).is_err(), "{name} {soft} {hard}");
        }
    }
}
