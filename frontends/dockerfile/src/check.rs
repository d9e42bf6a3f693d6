//! The checks: what is allowed but probably a mistake. Each has a name, and files can turn it off.
//!
//! Names, addresses, texts and what triggers a check are those of BuildKit's linter, because tools read them. This module is
//! the table and the switches; the checks themselves stand where the facts are known, in the parser and in lowering.

use kiln_graph::diagnostic::closest;
use kiln_graph::{Diagnostic, Severity, Span};

use crate::line::Word;

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, for example `StageNameCasing`.
    pub name: &'static str,
    /// What it asks for, in BuildKit's words.
    pub description: &'static str,
    /// Whether it runs only where a file asks for it.
    pub experimental: bool,
    /// Whether it is Kiln's own, and BuildKit has no such check.
    pub own: bool,
}

/// `KilnExtension`: files use no flags and instructions that only Kiln has.
pub const KILN_EXTENSION: &Rule = &Rule {
    name: "KilnExtension",
    description: "Flags and instructions that only Kiln has make the file unusable for other builders",
    experimental: false,
    own: true,
};

macro_rules! rules {
    ($($constant:ident $name:literal $description:literal $experimental:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $description)]
            pub const $constant: &Rule = &Rule { name: $name, description: $description, experimental: $experimental, own: false };
        )*
        /// All checks that BuildKit has.
        pub const RULES: &[&Rule] = &[$($constant),*];
    };
}

rules! {
    STAGE_NAME_CASING "StageNameCasing" "Stage names should be lowercase" false;
    FROM_AS_CASING "FromAsCasing" "The 'as' keyword should match the case of the 'from' keyword" false;
    NO_EMPTY_CONTINUATION "NoEmptyContinuation" "Empty continuation lines will become errors in a future release" false;
    CONSISTENT_INSTRUCTION_CASING "ConsistentInstructionCasing"
        "All commands within the Dockerfile should use the same casing (either upper or lower)" false;
    DUPLICATE_STAGE_NAME "DuplicateStageName" "Stage names should be unique" false;
    RESERVED_STAGE_NAME "ReservedStageName" "Reserved words should not be used as stage names" false;
    JSON_ARGS_RECOMMENDED "JSONArgsRecommended"
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals" false;
    MAINTAINER_DEPRECATED "MaintainerDeprecated"
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author" false;
    UNDEFINED_ARG_IN_FROM "UndefinedArgInFrom" "FROM command must use declared ARGs" false;
    WORKDIR_RELATIVE_PATH "WorkdirRelativePath"
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes" false;
    UNDEFINED_VAR "UndefinedVar" "Variables should be defined before their use" false;
    MULTIPLE_INSTRUCTIONS_DISALLOWED "MultipleInstructionsDisallowed"
        "Multiple instructions of the same type should not be used in the same stage" false;
    LEGACY_KEY_VALUE_FORMAT "LegacyKeyValueFormat"
        "Legacy key/value format with whitespace separator should not be used" false;
    INVALID_BASE_IMAGE_PLATFORM "InvalidBaseImagePlatform"
        "Base image platform does not match expected target platform" false;
    REDUNDANT_TARGET_PLATFORM "RedundantTargetPlatform"
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior" false;
    SECRETS_USED_IN_ARG_OR_ENV "SecretsUsedInArgOrEnv"
        "Sensitive data should not be used in the ARG or ENV commands" false;
    INVALID_DEFAULT_ARG_IN_FROM "InvalidDefaultArgInFrom"
        "Default value for global ARG results in an empty or invalid base image name" false;
    FROM_PLATFORM_FLAG_CONST_DISALLOWED "FromPlatformFlagConstDisallowed"
        "FROM --platform flag should not use a constant value" false;
    COPY_IGNORED_FILE "CopyIgnoredFile" "Attempting to Copy file that is excluded by .dockerignore" false;
    INVALID_DEFINITION_DESCRIPTION "InvalidDefinitionDescription"
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment." true;
    EXPOSE_PROTO_CASING "ExposeProtoCasing" "Protocol in EXPOSE instruction should be lowercase" false;
    EXPOSE_INVALID_FORMAT "ExposeInvalidFormat"
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release" false;
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
                within: None,
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

/// Why a file was refused, and what checks found before that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong; at least one.
    pub errors: Vec<Diagnostic>,
    /// Findings of checks, in the order of their places.
    pub warnings: Vec<Diagnostic>,
}

impl From<Diagnostic> for Refused {
    fn from(error: Diagnostic) -> Self {
        Self { errors: vec![error], warnings: Vec::new() }
    }
}

/// An instruction as checks see it: where it stands, and which checks a comment right above turns off.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) span: Span,
    pub(crate) skipped: Selection,
}

impl Subject {
    /// Makes a warning about a place in the instruction, unless the check is turned off for it.
    pub(crate) fn finding(&self, rule: &'static Rule, span: Span, message: String) -> Option<Diagnostic> {
        let warning = || Diagnostic::warning(rule.name, span, message).in_instruction(self.span);
        (!self.skipped.contains(rule.name)).then(warning)
    }
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
        let subject = Subject { span: Span::new(0, 9), skipped };
        let finding = |rule| subject.finding(rule, Span::new(0, 1), String::new());
        assert!(finding(UNDEFINED_VAR).is_none());
        assert_eq!(finding(STAGE_NAME_CASING).unwrap().within, Some(Span::new(0, 9)));
        assert_eq!(skipped_by(&[word("check=skip=all")]), Selection::All);
    }
}
