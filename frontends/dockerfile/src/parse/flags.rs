//! The flags of instructions: which there are, and reading them.

use kiln_graph::diagnostic::closest;
use kiln_graph::{Diagnostic, Span};

use crate::line::{Piece, Word};
use crate::split::RawFlag;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// Nothing, or `true` or `false`.
    Switch,
    /// One value.
    Value,
    /// A value, any number of times.
    Values,
}

/// The flags of every instruction that has any.
const FLAGS: &[(&str, &[(&str, Takes)])] = &[
    (
        "ADD",
        &[
            ("checksum", Takes::Value),
            ("chmod", Takes::Value),
            ("chown", Takes::Value),
            ("exclude", Takes::Values),
            ("keep-git-dir", Takes::Switch),
            ("link", Takes::Switch),
            ("unpack", Takes::Switch),
        ],
    ),
    (
        "COPY",
        &[
            ("chmod", Takes::Value),
            ("chown", Takes::Value),
            ("exclude", Takes::Values),
            ("from", Takes::Value),
            ("link", Takes::Switch),
            ("parents", Takes::Switch),
        ],
    ),
    ("FROM", &[("platform", Takes::Value)]),
    (
        "HEALTHCHECK",
        &[
            ("interval", Takes::Value),
            ("retries", Takes::Value),
            ("start-interval", Takes::Value),
            ("start-period", Takes::Value),
            ("timeout", Takes::Value),
        ],
    ),
    (
        "RUN",
        &[
            ("cpus", Takes::Value),
            ("device", Takes::Values),
            ("memory", Takes::Value),
            ("mount", Takes::Values),
            ("network", Takes::Value),
            ("retry", Takes::Value),
            ("security", Takes::Value),
            ("timeout", Takes::Value),
        ],
    ),
];

fn flags_of(keyword: &str) -> &'static [(&'static str, Takes)] {
    FLAGS.iter().find(|(known, _)| *known == keyword).map_or(&[], |(_, flags)| flags)
}

/// The flags of one instruction, checked.
#[derive(Debug, Default)]
pub(super) struct Flags {
    given: Vec<(&'static str, Word)>,
}

impl Flags {
    /// Checks the flags of an instruction, named in upper case.
    ///
    /// # Errors
    /// All flags that are unknown, repeated or have a wrong value.
    pub(super) fn parse(keyword: &str, raw: Vec<RawFlag<'_>>) -> Result<Self, Vec<Diagnostic>> {
        let mut flags = Self { given: Vec::with_capacity(raw.len()) };
        let mut errors = Vec::new();
        for flag in raw {
            if let Err(error) = flags.add(keyword, flag) {
                errors.push(error);
            }
        }
        if errors.is_empty() { Ok(flags) } else { Err(errors) }
    }

    fn add(&mut self, keyword: &str, RawFlag { name, value }: RawFlag<'_>) -> Result<(), Diagnostic> {
        let Some((known, takes)) = flags_of(keyword).iter().find(|(known, _)| *known == name.text) else {
            return Err(unknown(keyword, &name));
        };
        if *takes != Takes::Values && self.given.iter().any(|(given, _)| given == known) {
            return Err(Diagnostic::error(name.span, format!("the flag --{known} is given twice")));
        }
        let value = match (takes, value) {
            (Takes::Switch, None) => Word::new("true", name.span),
            (Takes::Switch, Some(value)) => match value.text.to_ascii_lowercase().as_str() {
                lower @ ("true" | "false") => Word::new(lower, value.span),
                _ => {
                    let message = format!("--{known}={} is neither true nor false", value.text);
                    return Err(Diagnostic::error(value.span, message));
                }
            },
            (_, Some(value)) => value.into(),
            (_, None) => {
                return Err(Diagnostic::error(name.span, format!("the flag --{known} has no value"))
                    .with_hint(format!("write --{known}=VALUE")));
            }
        };
        self.given.push((known, value));
        Ok(())
    }

    /// Returns the value of a flag that takes one. An empty value counts as none.
    pub(super) fn value(&self, name: &str) -> Option<Word> {
        let given = self.given.iter().find(|(given, _)| *given == name);
        given.map(|(_, value)| value).filter(|word| !word.text.is_empty()).cloned()
    }

    /// Returns where the value of a flag stands, also when it is empty.
    pub(super) fn span(&self, name: &str) -> Option<Span> {
        self.given.iter().find(|(given, _)| *given == name).map(|(_, value)| value.span)
    }

    /// Takes out the values of a flag that may be repeated.
    pub(super) fn take(&mut self, name: &str) -> Vec<Word> {
        let values = self.given.iter_mut().filter(|(given, _)| *given == name);
        values.map(|(_, value)| std::mem::replace(value, Word::new("", value.span))).collect()
    }

    /// Returns what a switch is set to, if it is given.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.value(name).map(|word| word.text == "true")
    }
}

fn unknown(keyword: &str, name: &Piece<'_>) -> Diagnostic {
    let error = Diagnostic::error(name.span, format!("{keyword} has no flag --{}", name.text));
    let own = flags_of(keyword);
    if let Some(near) = closest(&name.text, own.iter().map(|(known, _)| *known)) {
        return error.with_hint(format!("did you mean --{near}?"));
    }
    let owners: Vec<&str> =
        FLAGS.iter().filter(|(_, flags)| flags.iter().any(|(f, _)| *f == name.text)).map(|(owner, _)| *owner).collect();
    if !owners.is_empty() {
        return error.with_hint(format!("--{} is a flag of {}", name.text, owners.join(" and ")));
    }
    let known: Vec<String> = own.iter().map(|(known, _)| format!("--{known}")).collect();
    if known.is_empty() { error } else { error.with_hint(format!("{keyword} has {}", known.join(", "))) }
}

/// Refuses flags on an instruction that has none.
pub(super) fn none(keyword: &str, raw: Vec<RawFlag<'_>>) -> Result<(), Vec<Diagnostic>> {
    Flags::parse(keyword, raw).map(|_| ())
}

/// The span of everything between two flags' places; used where an instruction as a whole is wrong.
pub(super) fn span_or(words: &[Word], fallback: Span) -> Span {
    words.iter().map(|word| word.span).reduce(Span::to).unwrap_or(fallback)
}
