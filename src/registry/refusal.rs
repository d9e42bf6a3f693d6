//! Answers that say no: the status, and the registry's own words where it has any.

use http::StatusCode;
use serde::Deserialize;

use super::transport::{Answer, authority};

/// More than any registry has to say.
const MAX_BODY: usize = 64 * 1024;

/// The words of a server are cut after so many characters.
const MAX_WORDS: usize = 300;

/// A negative answer (distribution spec, "Error codes").
#[derive(Debug)]
pub(super) struct Refusal {
    server: String,
    status: StatusCode,
    errors: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    errors: Vec<Entry>,
    /// What token services and proxies send instead.
    #[serde(default)]
    details: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    error_description: String,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Refusal {
    /// Reads the body of an answer. What cannot be read or understood is left out.
    pub(super) async fn read(answer: Answer) -> Self {
        let (server, status) = (authority(answer.url()), answer.status());
        let body = answer.read(MAX_BODY).await.unwrap_or_default();
        Self { server, status, errors: parse(&body) }
    }

    /// Says whether the answer was in the form of a registry's errors.
    pub(super) fn has_words(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Says whether the registry gave this code, such as `NAME_UNKNOWN`.
    pub(super) fn has(&self, code: &str) -> bool {
        self.errors.iter().any(|entry| entry.code.eq_ignore_ascii_case(code))
    }

    /// Returns the registry's own words, or the status when it has none.
    pub(super) fn words(&self) -> String {
        let said = self.errors.iter().find_map(|entry| {
            let words = if entry.message.is_empty() { entry.code.replace('_', " ") } else { entry.message.clone() };
            Some(printable(&words)).filter(|words| !words.is_empty())
        });
        said.unwrap_or_else(|| self.status_text())
    }

    fn status_text(&self) -> String {
        let reason = self.status.canonical_reason().unwrap_or("unknown status").to_lowercase();
        format!("{} {reason}", self.status.as_u16())
    }
}

impl std::fmt::Display for Refusal {
    /// Says who answered what: `registry.example answered 404 not found: manifest unknown`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (status, words) = (self.status_text(), self.words());
        write!(f, "{} answered {status}", self.server)?;
        if words != status { write!(f, ": {words}") } else { Ok(()) }
    }
}

fn parse(body: &[u8]) -> Vec<Entry> {
    let Ok(document) = serde_json::from_slice::<Document>(body) else { return Vec::new() };
    let plain = [document.details, document.message, document.error_description];
    let plain = plain.into_iter().map(|message| Entry { code: String::new(), message });
    document.errors.into_iter().chain(plain.filter(|entry| !entry.message.is_empty())).collect()
}

/// Makes a server's words safe to print: one line, no control characters, not endless.
pub(super) fn printable(words: &str) -> String {
    let plain = words.chars().map(|c| if c.is_control() { ' ' } else { c });
    let line: String = plain.take(MAX_WORDS).collect();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &str) -> Refusal {
        Refusal { server: "r.example".to_owned(), status: StatusCode::NOT_FOUND, errors: parse(body.as_bytes()) }
    }

    #[test]
    fn a_registrys_words_are_shown_and_made_harmless() {
        for (body, shown) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"a":1}}]}"#,
                ": manifest unknown",
            ),
            (r#"{"errors":[{"code":"DENIED"}]}"#, ": DENIED"),
            (r#"{"details":"incorrect username or password"}"#, ": incorrect username or password"),
            (r#"{"errors":[{"message":"a\u001b[31m\nb"}]}"#, ": a [31m b"),
            ("<html>", ""),
            ("", ""),
            (r#"{"errors":"no list"}"#, ""),
        ] {
            assert_eq!(refusal(body).to_string(), format!("r.example answered 404 not found{shown}"));
        }
        let long = format!(r#"{{"message":"{}"}}"#, "x".repeat(5000));
        assert!(refusal(&long).to_string().len() < 400);
    }

    #[test]
    fn codes_are_told_apart() {
        let refusal = refusal(r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#);
        assert!(refusal.has("NAME_UNKNOWN") && !refusal.has("MANIFEST_UNKNOWN"));
    }
}
