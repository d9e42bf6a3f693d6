//! The source policy that the environment names, as buildx has it: `EXPERIMENTAL_BUILDKIT_SOURCE_POLICY` is a file in JSON or in
//! protobuf's form.

use std::collections::HashMap;
use std::path::Path;

use prost::Message as _;
use serde::Deserialize;

use crate::error::{Error, Result, ResultExt as _};
use crate::types::build::sourcepolicy::{self, AttrMatch, MatchType, PolicyAction};

/// The variable that names the file.
pub(super) const VARIABLE: &str = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";

/// The largest file, in bytes.
const MAX_BYTES: u64 = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    #[serde(default)]
    version: i64,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    action: Name,
    selector: Option<Selector>,
    updates: Option<Update>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Selector {
    #[serde(default)]
    identifier: String,
    #[serde(default, alias = "matchType")]
    match_type: Name,
    #[serde(default)]
    constraints: Vec<Constraint>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Constraint {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    condition: Name,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    #[serde(default)]
    identifier: String,
    #[serde(default)]
    attrs: HashMap<String, String>,
}

/// A value of an enumeration.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Name {
    Number(i32),
    Text(String),
}

impl Default for Name {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl Name {
    fn value<T: Into<i32>>(&self, of_name: impl Fn(&str) -> Option<T>, expected: &str) -> Result<i32> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Text(text) => of_name(text)
                .map(Into::into)
                .ok_or_else(|| Error::invalid(format!("{text:?} is unknown: expected {expected}"))),
        }
    }
}

/// Reads the policy of a file.
///
/// # Errors
/// `InvalidArgument` for what is no policy, and for fields that none has; when the file cannot be read.
pub(super) fn read(path: &Path) -> Result<sourcepolicy::Policy> {
    let context = || format!("the source policy {} ({VARIABLE})", path.display());
    let length = std::fs::metadata(path).context(context)?.len();
    if length > MAX_BYTES {
        return Err(Error::invalid(format!("it is larger than {} MiB", MAX_BYTES >> 20)).context(context()));
    }
    parse(&std::fs::read(path).context(context)?).context(context)
}

fn parse(bytes: &[u8]) -> Result<sourcepolicy::Policy> {
    match serde_json::from_slice::<Policy>(bytes) {
        Ok(policy) => policy.into_message(),
        Err(error) => match sourcepolicy::Policy::decode(bytes) {
            Ok(policy) if !bytes.starts_with(b"{") => Ok(policy),
            _ => Err(error.into()),
        },
    }
}

impl Policy {
    fn into_message(self) -> Result<sourcepolicy::Policy> {
        let rules = self
            .rules
            .into_iter()
            .enumerate()
            .map(|(at, rule)| rule.into_message().map_err(|error| error.context(format!("rule {}", at + 1))));
        Ok(sourcepolicy::Policy { version: self.version, rules: rules.collect::<Result<_>>()? })
    }
}

impl Rule {
    fn into_message(self) -> Result<sourcepolicy::Rule> {
        Ok(sourcepolicy::Rule {
            action: self.action.value(PolicyAction::from_str_name, "ALLOW, DENY or CONVERT").context(|| "action")?,
            selector: self.selector.map(Selector::into_message).transpose()?,
            updates: self.updates.map(|Update { identifier, attrs }| sourcepolicy::Update { identifier, attrs }),
        })
    }
}

impl Selector {
    fn into_message(self) -> Result<sourcepolicy::Selector> {
        let constraints = self.constraints.into_iter().map(|Constraint { key, value, condition }| {
            let condition = condition.value(AttrMatch::from_str_name, "EQUAL, NOTEQUAL or MATCHES");
            Ok(sourcepolicy::AttrConstraint { key, value, condition: condition.context(|| "condition")? })
        });
        let match_type = self.match_type.value(MatchType::from_str_name, "WILDCARD, EXACT or REGEX");
        Ok(sourcepolicy::Selector {
            identifier: self.identifier,
            match_type: match_type.context(|| "match_type")?,
            constraints: constraints.collect::<Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_in_the_forms_that_buildx_reads() {
        let json = br#"{"version": 1, "rules": [
            {"action": "DENY", "selector": {"identifier": "*"}},
            {"selector": {"identifier": "docker-image://a", "match_type": "EXACT",
                "constraints": [{"key": "k", "value": "v", "condition": "NOTEQUAL"}]}},
            {"action": 2, "selector": {"identifier": "b", "matchType": 2}, "updates": {"identifier": "c", "attrs": {"x": "y"}}}
        ]}"#;
        let policy = parse(json).unwrap();
        let actions: Vec<PolicyAction> = policy.rules.iter().map(sourcepolicy::Rule::action).collect();
        assert_eq!(actions, [PolicyAction::Deny, PolicyAction::Allow, PolicyAction::Convert]);
        let exact = policy.rules[1].selector.as_ref().unwrap();
        assert_eq!((exact.match_type(), exact.constraints[0].condition()), (MatchType::Exact, AttrMatch::Notequal));
        assert_eq!(policy.rules[2].updates.as_ref().unwrap().attrs["x"], "y");
        assert_eq!(parse(&policy.encode_to_vec()).unwrap(), policy);
    }

    #[test]
    fn mistakes_are_named() {
        for (json, word) in [
            (&br#"{"rules": [{"action": "FORBID", "selector": {}}]}"#[..], "rule 1: action: \"FORBID\" is unknown"),
            (br#"{"rules": [{"deny": true}]}"#, "deny"),
            (b"{", "malformed JSON"),
            (b"rules", "malformed JSON"),
        ] {
            let error = parse(json).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
