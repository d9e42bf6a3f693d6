//! The `WWW-Authenticate` header: what a server wants to see before it answers (RFC 9110, section 11).
//!
//! Only the schemes registries use are kept: `Basic` and `Bearer`. What to do about them is decided in `auth`.

/// What a server asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user's name and password.
    Basic,
    /// A token from the service at `realm`.
    Bearer {
        /// The token service's URL, not yet checked.
        realm: String,
        /// For which service the token must be.
        service: Option<String>,
        /// What the token must allow, as in `repository:library/ubuntu:pull`.
        scope: Option<String>,
    },
}

/// Parses all challenges of all header lines; what is malformed ends its line.
pub(super) fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    lines.into_iter().flat_map(|line| Cursor(line).challenges()).filter_map(|raw| raw.recognised()).collect()
}

/// A challenge of any scheme.
struct Raw<'a> {
    scheme: &'a str,
    params: Vec<(&'a str, String)>,
}

impl Raw<'_> {
    fn param(&self, name: &str) -> Option<String> {
        let found = self.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    }

    fn recognised(&self) -> Option<Challenge> {
        if self.scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !self.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        Some(Challenge::Bearer {
            realm: self.param("realm")?,
            service: self.param("service"),
            scope: self.param("scope"),
        })
    }
}

/// What is left of a header line.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn challenges(mut self) -> Vec<Raw<'a>> {
        let mut found: Vec<Raw<'a>> = Vec::new();
        loop {
            self.skip(|c| matches!(c, ',' | '=') || c.is_ascii_whitespace());
            let word = self.token();
            if word.is_empty() {
                return found;
            }
            // A word before `=` is a parameter of the last scheme, any other word is the next scheme.
            let before = self.0;
            self.skip(|c| c == ' ' || c == '\t');
            let value = self.0.strip_prefix('=').and_then(|rest| {
                self.0 = rest;
                self.skip(|c| c == ' ' || c == '\t');
                self.value()
            });
            match (value, found.last_mut()) {
                (Some(value), Some(last)) => last.params.push((word, value)),
                (Some(_), None) => return found,
                (None, _) => {
                    self.0 = before;
                    found.push(Raw { scheme: word, params: Vec::new() });
                }
            }
        }
    }

    fn skip(&mut self, drop: impl Fn(char) -> bool) {
        self.0 = self.0.trim_start_matches(drop);
    }

    fn token(&mut self) -> &'a str {
        let stop = |c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c));
        let (token, rest) = self.0.split_at(self.0.find(stop).unwrap_or(self.0.len()));
        self.0 = rest;
        token
    }

    /// A token or a quoted string; `None` when neither stands here.
    fn value(&mut self) -> Option<String> {
        let Some(quoted) = self.0.strip_prefix('"') else {
            return Some(self.token().to_owned()).filter(|token| !token.is_empty());
        };
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.0 = &quoted[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(chars.next()?.1),
                c => value.push(c),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let hub = r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull,push""#;
        let a = bearer("https://auth.example/token", Some("registry"), Some("repository:a/b:pull,push"));
        for (lines, expected) in [
            (vec![hub], vec![a.clone()]),
            (vec![r#"bearer  Realm = "https://auth.example/t" "#], vec![bearer("https://auth.example/t", None, None)]),
            (vec!["Basic realm=Registry"], vec![Challenge::Basic]),
            (vec!["Basic"], vec![Challenge::Basic]),
            (vec![hub, r#"Basic realm="x, y""#], vec![a.clone(), Challenge::Basic]),
            (vec![&format!(r#"Negotiate, Basic realm="a \" b", {hub}"#)], vec![Challenge::Basic, a.clone()]),
            (
                vec![r#"Bearer realm="https://a/b",service="",error="invalid_token""#],
                vec![bearer("https://a/b", None, None)],
            ),
            (vec![&format!("Negotiate YWJj==, {hub}")], vec![a]),
            (vec![r#"Bearer service="no realm""#], vec![]),
            (vec![r#"Bearer realm="open"#], vec![]),
            (vec!["", "=", r#"realm="x""#, ", ,"], vec![]),
        ] {
            assert_eq!(parse(lines.iter().copied()), expected, "{lines:?}");
        }
    }

    #[test]
    fn every_line_comes_to_an_end() {
        // Each prefix and suffix of a valid line, and a line of every ASCII character.
        let line = r#"Negotiate abc==, Bearer realm="https://a\"b",service=x, Basic realm="é""#;
        for at in (0..=line.len()).filter(|at| line.is_char_boundary(*at)) {
            let _ = (parse([&line[..at]]), parse([&line[at..]]));
        }
        let ascii: String = (0..128_u8).map(char::from).collect();
        let _ = parse([ascii.as_str()]);
    }
}
