//! The patterns of `reference` filters: those of Go's `path.Match`, where `*` stops at a slash.

use kiln_graph::Reference;

/// Says whether a pattern matches an image's name, with or without its tag (the distribution project's `FamiliarMatch`).
pub(super) fn matches_reference(pattern: &str, name: &Reference) -> bool {
    matches(pattern.as_bytes(), name.familiar().as_bytes())
        || matches(pattern.as_bytes(), name.familiar_repository().as_bytes())
}

fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return text.is_empty() };
    match (first, text.split_first()) {
        (b'*', _) => {
            let end = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
            // The longest first; a `*` after another adds nothing.
            (0..=end).rev().any(|taken| matches(rest.strip_prefix(b"*").unwrap_or(rest), &text[taken..]))
        }
        (b'?', Some((byte, after))) => *byte != b'/' && matches(rest, after),
        (b'[', Some((byte, after))) => match class(rest, *byte) {
            Some((found, rest)) => found && matches(rest, after),
            None => false,
        },
        (b'\\', Some((byte, after))) => match rest.split_first() {
            Some((escaped, rest)) => escaped == byte && matches(rest, after),
            None => false,
        },
        (literal, Some((byte, after))) => literal == byte && matches(rest, after),
        (_, None) => false,
    }
}

/// Reads a class after its bracket; says whether `byte` is in it, and what follows. `None` when it is malformed.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (negated, mut rest) = match pattern.strip_prefix(b"^") {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let mut found = false;
    let mut first = true;
    loop {
        if !first && let Some(rest) = rest.strip_prefix(b"]") {
            return Some((found != negated, rest));
        }
        first = false;
        let low = one(&mut rest)?;
        let high = match rest.strip_prefix(b"-") {
            Some(after) => {
                rest = after;
                one(&mut rest)?
            }
            None => low,
        };
        found |= (low..=high).contains(&byte);
    }
}

fn one(rest: &mut &[u8]) -> Option<u8> {
    let (byte, after) = match rest.split_first()? {
        (b'\\', after) => after.split_first()?,
        found => found,
    };
    *rest = after;
    Some(*byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_with_and_without_tags() {
        let matching = |pattern: &str, name: &str| {
            matches_reference(pattern, &name.parse::<Reference>().unwrap().with_default_tag())
        };
        for (pattern, name) in [
            ("busybox", "busybox:1"),
            ("busybox:1", "busybox:1"),
            ("busy*", "busybox:1"),
            ("busybox:*", "busybox:1"),
            ("*:1", "busybox:1"),
            ("b?sybox", "busybox"),
            ("b[a-v]sybox", "busybox"),
            ("b[^x]sybox", "busybox"),
            ("user/*", "user/app"),
            ("localhost:5000/*/*:latest", "localhost:5000/a/b"),
        ] {
            assert!(matching(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("*", "user/app"), ("busybox:2", "busybox:1"), ("b[", "b"), ("usybox", "busybox")] {
            assert!(!matching(pattern, name), "{pattern} {name}");
        }
    }
}
