//! The values of `--chown` and `--chmod`.

use kiln_graph::op::{Mode, Owner, OwnerId};

/// Reads `user[:group]`: numbers, or names to be looked up. `root` is 0 without a look.
pub(super) fn owner(text: &str) -> Owner {
    let id = |text: &str| match text {
        "" | "root" => OwnerId::Id(0),
        name => name.parse().map_or_else(|_| OwnerId::Name(name.to_owned()), OwnerId::Id),
    };
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    Owner { user: id(user), group: group.map(id) }
}

/// Reads permissions: an octal number up to 7777, or what `chmod` takes, for example `u=rwX,go-w`.
///
/// # Errors
/// Anything else; the error completes the sentence "...".
pub(super) fn mode(text: &str) -> Result<Mode, String> {
    if text.chars().all(|c| c.is_ascii_digit()) {
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o7777);
        return bits.map(Mode::Octal).ok_or_else(|| format!("--chmod={text} is not an octal number up to 7777"));
    }
    if text.split(',').all(is_clause) {
        Ok(Mode::Symbolic(text.to_owned()))
    } else {
        Err(format!("--chmod={text} is neither an octal number nor of the form u=rwX,go-w"))
    }
}

/// Whose (`ugoa`), then one or more of `+`, `-`, `=` with what (`rwxXstugo`).
fn is_clause(clause: &str) -> bool {
    let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    actions.starts_with(['+', '-', '=']) && actions.chars().all(|c| "+-=rwxXstugo".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_numbers_or_names() {
        let (id, name) = (OwnerId::Id, |name: &str| OwnerId::Name(name.to_owned()));
        for (text, user, group) in [
            ("5", id(5), None),
            ("5:6", id(5), Some(id(6))),
            ("root:root", id(0), Some(id(0))),
            ("app", name("app"), None),
            ("app:7", name("app"), Some(id(7))),
            (":www", id(0), Some(name("www"))),
            ("4294967295", id(u32::MAX), None),
            ("-1", name("-1"), None),
        ] {
            assert_eq!(owner(text), Owner { user, group }, "{text}");
        }
    }

    #[test]
    fn modes_are_octal_or_symbolic() {
        assert_eq!(mode("0755"), Ok(Mode::Octal(0o755)));
        assert_eq!(mode("7777"), Ok(Mode::Octal(0o7777)));
        for text in ["u=rwX,go=rX", "+x", "a-w", "u+rw-x", "g=u", "u=", "o=t,+s"] {
            assert_eq!(mode(text), Ok(Mode::Symbolic(text.to_owned())), "{text}");
        }
        for text in ["", "8", "10000", "0o755", "u", "rwx", "u+z", "u=r,", "x+u", "-1"] {
            assert!(mode(text).is_err(), "{text}");
        }
    }
}
