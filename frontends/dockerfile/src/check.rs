//! The checks: what is allowed but probably a mistake. Each has a name, and files can turn it off.
//!
//! Names, addresses and what triggers a check are those of BuildKit's linter. This module is the table and the switches; the
//! checks themselves stand where the facts are known, in the parser and in lowering.

use kiln_graph::diagnostic::closest;
use kiln_graph::{Diagnostic, Severity, Span};

use crate::line::Word;

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, for example `StageNameCasing`.
    pub name: &'static str,
    /// What it asks for, in one sentence.
    pub summary: &'static str,
    /// Whether it runs only where a file asks for it.
    pub experimental: bool,
    /// Whether it is Kiln's own, and BuildKit has no such check.
    pub own: bool,
}

/// `KilnExtension`: files use no flags and instructions that only Kiln has.
pub const KILN_EXTENSION: &Rule = &Rule {
    name: "KilnExtension",
    summary: "Nothing is used that other builders do not understand.",
    experimental: false,
    own: true,
};

macro_rules! rules {
    ($($constant:ident $name:literal $summary:literal $experimental:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $summary)]
            pub const $constant: &Rule = &Rule { name: $name, summary: $summary, experimental: $experimental, own: false };
        )*
        /// All checks that BuildKit has.
        pub const RULES: &[&Rule] = &[$($constant),*];
    };
}

rules! {
    STAGE_NAME_CASING "StageNameCasing" "Names of stages are written in lower case." false;
    FROM_AS_CASING "FromAsCasing" "FROM and AS are written in the same case." false;
    NO_EMPTY_CONTINUATION "NoEmptyContinuation" "A continued instruction holds no empty lines." false;
    CONSISTENT_INSTRUCTION_CASING "ConsistentInstructionCasing" "All instructions are upper case, or all lower case." false;
    DUPLICATE_STAGE_NAME "DuplicateStageName" "No two stages have one name." false;
    RESERVED_STAGE_NAME "ReservedStageName" "No stage is named scratch or context." false;
    JSON_ARGS_RECOMMENDED "JSONArgsRecommended" "CMD and ENTRYPOINT are JSON arrays, so that signals reach the program." false;
    MAINTAINER_DEPRECATED "MaintainerDeprecated" "A label names the author, not MAINTAINER." false;
    UNDEFINED_ARG_IN_FROM "UndefinedArgInFrom" "FROM uses declared arguments." false;
    WORKDIR_RELATIVE_PATH "WorkdirRelativePath" "A relative WORKDIR follows an absolute one in the same file." false;
    UNDEFINED_VAR "UndefinedVar" "Variables are defined before they are used." false;
    MULTIPLE_INSTRUCTIONS_DISALLOWED "MultipleInstructionsDisallowed" "CMD, ENTRYPOINT and HEALTHCHECK stand once in a stage." false;
    LEGACY_KEY_VALUE_FORMAT "LegacyKeyValueFormat" "ENV and LABEL separate names and values by =." false;
    INVALID_BASE_IMAGE_PLATFORM "InvalidBaseImagePlatform" "The base image is for the platform that is asked for." false;
    REDUNDANT_TARGET_PLATFORM "RedundantTargetPlatform" "FROM does not ask for the platform it uses anyway." false;
    SECRETS_USED_IN_ARG_OR_ENV "SecretsUsedInArgOrEnv" "Secrets are mounted, not passed in ARG or ENV." false;
    INVALID_DEFAULT_ARG_IN_FROM "InvalidDefaultArgInFrom" "FROM is valid with the default values of all arguments." false;
    FROM_PLATFORM_FLAG_CONST_DISALLOWED "FromPlatformFlagConstDisallowed" "FROM --platform is not a constant." false;
    COPY_IGNORED_FILE "CopyIgnoredFile" "COPY and ADD name no file that .dockerignore excludes." false;
    INVALID_DEFINITION_DESCRIPTION "InvalidDefinitionDescription" "A comment above FROM or ARG begins with the name it describes." true;
    EXPOSE_PROTO_CASING "ExposeProtoCasing" "The protocol in EXPOSE is written in lower case." false;
    EXPOSE_INVALID_FORMAT "ExposeInvalidFormat" "EXPOSE names no addresses and no ports of the host." false;
}

impl Rule {
    /// Returns the address of the check's description; Kiln's own have none.
    #[must_use]
    pub fn url(&self) -> String {
        if self.own {
            return String::new();
        }
        format!("https://docs.docker.com/go/dockerfile/rule/{}/", kebab(self.name))
    }
}

/// Returns all checks, Kiln's own last.
fn all() -> impl Iterator<Item = &'static Rule> {
    RULES.iter().copied().chain([KILN_EXTENSION])
}

/// Finds a check by its name.
#[must_use]
pub fn rule(name: &str) -> Option<&'static Rule> {
    all().find(|rule| rule.name == name)
}

/// `JSONArgsRecommended` becomes `json-args-recommended`.
fn kebab(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (at, c) in chars.iter().enumerate() {
        let lower = |at: usize| chars.get(at).is_some_and(char::is_ascii_lowercase);
        if at > 0 && c.is_ascii_uppercase() && (lower(at - 1) || lower(at + 1)) {
            out.push('-');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// Some of the checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of them.
    All,
    /// Those with these names.
    Named(Vec<String>),
}

impl Default for Selection {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

impl Selection {
    fn parse(text: &str) -> Self {
        match text.trim() {
            "all" => Self::All,
            names => Self::Named(names.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|known| known == name),
        }
    }

    fn names(&self) -> &[String] {
        match self {
            Self::All => &[],
            Self::Named(names) => names,
        }
    }
}

/// What `# check=` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The checks that do not run.
    pub skip: Selection,
    /// The experimental checks that run.
    pub experimental: Selection,
    /// Whether a finding stops the build.
    pub error: bool,
}

impl Config {
    /// Reads `skip=A,B;error=true;experimental=all`; all parts are optional.
    ///
    /// # Errors
    /// An option that does not exist, a value that is not one of its values.
    pub fn parse(value: &Word) -> Result<Self, Diagnostic> {
        let mut config = Self::default();
        for part in value.text.split(';').filter(|part| !part.trim().is_empty()) {
            let wrong = |message: String| {
                Diagnostic::error(value.span, message)
                    .with_hint("options are skip=NAME,..., experimental=NAME,... and error=true, separated by ;")
            };
            let (key, option) = part
                .split_once('=')
                .ok_or_else(|| wrong(format!("the check option {:?} has no value", part.trim())))?;
            match key.trim() {
                "skip" => config.skip = Selection::parse(option),
                "experimental" => config.experimental = Selection::parse(option),
                "error" => {
                    config.error = crate::scalar::boolean(option.trim())
                        .ok_or_else(|| wrong(format!("error={} is neither true nor false", option.trim())))?;
                }
                other => return Err(wrong(format!("there is no check option {other:?}"))),
            }
        }
        Ok(config)
    }

    /// Returns a warning for each name that is no check's, so that a misspelt one is noticed.
    #[must_use]
    pub fn unknown_names(&self, span: Option<Span>) -> Vec<Diagnostic> {
        let names = self.skip.names().iter().chain(self.experimental.names());
        let unknown = names.filter(|name| rule(name).is_none() && !name.is_empty());
        unknown
            .map(|name| Diagnostic {
                severity: Severity::Warning,
                rule: None,
                message: format!("there is no check named {name}"),
                span,
                hint: closest(name, all().map(|rule| rule.name)).map(|near| format!("did you mean {near}?")),
            })
            .collect()
    }

    /// Says whether a check runs.
    #[must_use]
    pub fn runs(&self, rule: &Rule) -> bool {
        if rule.experimental { self.experimental.contains(rule.name) } else { !self.skip.contains(rule.name) }
    }
}

/// Reads which checks the comments above an instruction turn off for it (`# check=skip=A,B`).
pub(crate) fn skipped_by(comments: &[Word]) -> Selection {
    let options = comments.iter().filter_map(|comment| comment.text.strip_prefix("check="));
    let skips = options.flat_map(|options| options.split(';')).filter_map(|option| option.trim().strip_prefix("skip="));
    let mut names = Vec::new();
    for skip in skips {
        match Selection::parse(skip) {
            Selection::All => return Selection::All,
            Selection::Named(more) => names.extend(more),
        }
    }
    Selection::Named(names)
}

/// Makes a warning, unless a comment above the instruction turns the check off.
pub(crate) fn finding(rule: &'static Rule, skipped: &Selection, span: Span, message: String) -> Option<Diagnostic> {
    (!skipped.contains(rule.name)).then(|| Diagnostic::warning(rule.name, span, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Word {
        Word::new(text, Span::new(0, text.len()))
    }

    #[test]
    fn there_are_22_checks_with_an_address_each() {
        assert_eq!(RULES.len(), 22);
        assert_eq!(JSON_ARGS_RECOMMENDED.url(), "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/");
        assert_eq!(UNDEFINED_ARG_IN_FROM.url(), "https://docs.docker.com/go/dockerfile/rule/undefined-arg-in-from/");
        assert_eq!(rule("StageNameCasing"), Some(STAGE_NAME_CASING));
    }

    #[test]
    fn a_file_chooses_its_checks() {
        let config = Config::parse(&word("skip=StageNameCasing, FromAsCasing;error=true;experimental=all")).unwrap();
        assert!(config.error && config.runs(INVALID_DEFINITION_DESCRIPTION) && config.runs(UNDEFINED_VAR));
        assert!(!config.runs(STAGE_NAME_CASING) && !config.runs(FROM_AS_CASING));
        let default = Config::parse(&word("")).unwrap();
        assert!(default.runs(STAGE_NAME_CASING) && !default.runs(INVALID_DEFINITION_DESCRIPTION));
        assert!(!Config::parse(&word("skip=all")).unwrap().runs(UNDEFINED_VAR));
    }

    #[test]
    fn unknown_options_are_refused_and_unknown_checks_noticed() {
        assert_eq!(Config::parse(&word("skp=all")).unwrap_err().message, "there is no check option \"skp\"");
        assert_eq!(Config::parse(&word("error=maybe")).unwrap_err().message, "error=maybe is neither true nor false");
        assert_eq!(Config::parse(&word("skip")).unwrap_err().message, "the check option \"skip\" has no value");
        let unknown = Config::parse(&word("skip=StageNameCasin")).unwrap().unknown_names(None);
        assert_eq!(unknown[0].hint.as_deref(), Some("did you mean StageNameCasing?"));
    }

    #[test]
    fn comments_above_an_instruction_turn_checks_off_for_it() {
        let skipped = skipped_by(&[word("see below"), word("check=skip=UndefinedVar, FromAsCasing;error=true")]);
        assert!(finding(UNDEFINED_VAR, &skipped, Span::new(0, 1), String::new()).is_none());
        assert!(finding(STAGE_NAME_CASING, &skipped, Span::new(0, 1), String::new()).is_some());
        assert_eq!(skipped_by(&[word("check=skip=all")]), Selection::All);
    }
}
