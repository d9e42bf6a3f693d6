//! Paths of requests: segments and queries, escaped as URLs want them.

use std::fmt::Write as _;

/// A query that is put together. Values are escaped; names are the caller's constants.
#[derive(Clone, Debug, Default)]
pub struct Query(String);

impl Query {
    /// Makes an empty query.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value; a name may have several.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        escape(&mut self.0, value.as_ref());
        self
    }

    /// Adds a value if there is one.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl AsRef<str>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds `name=1` if it is so.
    #[must_use]
    pub fn with_flag(self, name: &str, set: bool) -> Self {
        if set { self.with(name, "1") } else { self }
    }

    /// Adds filters as the API writes them, a JSON object of lists, if there are any.
    #[must_use]
    pub fn with_filters(self, filters: &std::collections::BTreeMap<String, Vec<String>>) -> Self {
        if filters.is_empty() {
            return self;
        }
        self.with("filters", serde_json::to_string(filters).expect("texts have a JSON form"))
    }

    /// Returns the path with its query. A name of an image may be a segment: its slashes stay.
    #[must_use]
    pub fn path(&self, segments: &[&str]) -> String {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            escape(&mut path, segment);
        }
        path + &self.0
    }
}

/// Leaves what RFC 3986 calls unreserved, and slashes and colons, which both parts of a URL may hold.
fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a string does not fail");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_survive_a_url() {
        let path = Query::new().with("a", "x y&z=1").with_some("b", None::<&str>).with_flag("c", true).path(&[
            "images",
            "a.example:5000/b/c@sha256:0",
            "json",
        ]);
        assert_eq!(path, "/images/a.example:5000/b/c@sha256:0/json?a=x%20y%26z%3D1&c=1");
    }
}
