//! API versions: the `/v1.NN` prefix of paths, and which versions are served.

use std::fmt;

/// A version of the Engine API; all are `1.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(u16);

impl ApiVersion {
    /// The newest version served, and the one of requests without a version.
    pub const NEWEST: Self = Self(51);
    /// The oldest version served; old clients pin versions for years.
    pub const OLDEST: Self = Self(24);

    /// Says whether this version is at least `1.minor`.
    #[must_use]
    pub const fn at_least(self, minor: u16) -> bool {
        self.0 >= minor
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1.{}", self.0)
    }
}

/// What a path says about the version it wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Versioned<'a> {
    /// A version that is served, and the rest of the path.
    Served(ApiVersion, &'a str),
    /// A version that is not; the text is moby's.
    Refused(String),
}

/// Splits `/v1.41/containers/json` into its version and the rest. Paths without a version get the newest.
#[must_use]
pub(super) fn split(path: &str) -> Versioned<'_> {
    let unversioned = Versioned::Served(ApiVersion::NEWEST, path);
    let Some(rest) = path.strip_prefix("/v") else { return unversioned };
    let (text, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let numbers = text.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
    let Some((major, minor)) = numbers else { return unversioned };
    if major > 1 || (major == 1 && minor > ApiVersion::NEWEST.0) {
        let newest = ApiVersion::NEWEST;
        return Versioned::Refused(format!(
            "client version {text} is too new. Maximum supported API version is {newest}"
        ));
    }
    if major < 1 || minor < ApiVersion::OLDEST.0 {
        return Versioned::Refused(format!(
            "client version {text} is too old. Minimum supported API version is {}, please upgrade your client to a newer \
             version",
            ApiVersion::OLDEST
        ));
    }
    Versioned::Served(ApiVersion(minor), if rest.is_empty() { "/" } else { rest })
}

fn number(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_taken_off_the_path() {
        assert_eq!(split("/v1.41/info"), Versioned::Served(ApiVersion(41), "/info"));
        assert_eq!(split("/info"), Versioned::Served(ApiVersion::NEWEST, "/info"));
        assert_eq!(split("/volumes"), Versioned::Served(ApiVersion::NEWEST, "/volumes"));
        assert_eq!(split("/v1.x/info"), Versioned::Served(ApiVersion::NEWEST, "/v1.x/info"));
    }

    #[test]
    fn versions_outside_the_range_are_refused_in_the_words_clients_know() {
        for (path, words) in [("/v1.99/info", "is too new. Maximum"), ("/v1.10/info", "is too old. Minimum")] {
            let Versioned::Refused(message) = split(path) else { panic!("{path} was served") };
            assert!(message.contains(words), "{message}");
        }
    }
}
