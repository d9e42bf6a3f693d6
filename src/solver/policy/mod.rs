//! Source policies: rules about what a build may be made of, and what stands in the place of what it names.
//!
//! A policy is a list of rules. Those that match a source are followed in order: the last one that allows or denies it decides, and
//! one that converts it has all policies begin anew with what it became. The rules and their matching are BuildKit's
//! (`sourcepolicy`); what makes no sense is refused when a policy is read, and not when a source meets it.

mod apply;
mod verifier;

use std::collections::BTreeMap;

use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy;
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::{AttrMatch, MatchType, PolicyAction};
use kiln_llb::pb::SourceOp;
use regex::Regex;

use crate::error::{Error, Result};

/// How often a source may be converted.
const MAX_CONVERSIONS: usize = 20;

/// The most rules of a policy.
const MAX_RULES: usize = 10_000;

/// The version of policies that is known; those that say nothing are of it.
const VERSION: i64 = 1;

/// What a denied source is refused with, after its name; clients look for these words.
const DENIED: &str = "denied by policy";

/// Rules about sources.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// All that decides about the sources of a build.
#[derive(Clone, Debug, Default)]
pub(super) struct Policies {
    /// Policies, the first one first.
    pub(super) given: Vec<Policy>,
    /// The session of a client that is asked, too.
    pub(super) session: Option<String>,
}

#[derive(Clone, Debug)]
struct Rule {
    selector: Selector,
    action: Action,
}

#[derive(Clone, Debug)]
enum Action {
    Allow,
    Deny,
    Convert(Update),
}

#[derive(Clone, Debug)]
struct Update {
    /// The new identifier, in which `$1` or `${1}` stand for what was matched; empty keeps it.
    identifier: String,
    attrs: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
struct Selector {
    identifier: String,
    /// `None` for the identifier and nothing else.
    pattern: Option<Pattern>,
    constraints: Vec<Constraint>,
}

#[derive(Clone, Debug)]
enum Pattern {
    /// All of an identifier.
    Wildcard(Regex),
    /// A part of an identifier.
    Expression(Regex),
}

#[derive(Clone, Debug)]
struct Constraint {
    key: String,
    condition: Condition,
}

#[derive(Clone, Debug)]
enum Condition {
    Is(String),
    IsNot(String),
    Matches(Regex),
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// `InvalidArgument` naming the rule: an unknown action, a selector that is missing or no pattern, nothing to convert to;
    /// `Unsupported` for another version.
    pub fn read(policy: sourcepolicy::Policy) -> Result<Self> {
        if ![0, VERSION].contains(&policy.version) {
            let text = format!("the source policy is of version {}; {VERSION} is known", policy.version);
            return Err(Error::unsupported(text));
        }
        if policy.rules.len() > MAX_RULES {
            return Err(Error::exhausted(format!("the source policy has more than {MAX_RULES} rules")));
        }
        let rules = policy.rules.into_iter().enumerate().map(|(at, rule)| {
            Rule::read(rule).map_err(|error| error.context(format!("rule {} of the source policy", at + 1)))
        });
        Ok(Self { rules: rules.collect::<Result<_>>()? })
    }

    /// Follows the rules for a source; returns what it is converted to.
    fn follow(&self, source: &SourceOp) -> Result<Option<SourceOp>> {
        let mut denied = false;
        for rule in self.rules.iter().filter(|rule| rule.selector.selects(source)) {
            match &rule.action {
                Action::Allow => denied = false,
                Action::Deny => denied = true,
                Action::Convert(update) => {
                    let converted = rule.selector.convert(source, update);
                    if converted != *source {
                        return Ok(Some(converted));
                    }
                }
            }
        }
        if denied {
            return Err(Error::forbidden(format!("source {:?} {DENIED}", source.identifier)));
        }
        Ok(None)
    }
}

impl Policies {
    /// Whether anything is decided.
    pub(super) fn is_empty(&self) -> bool {
        self.given.is_empty() && self.session.is_none()
    }

    /// Returns what the rules make of a source; the session is not asked.
    ///
    /// # Errors
    /// `Forbidden` for one that is denied; `InvalidArgument` when it is converted without end.
    fn evaluate(&self, mut source: SourceOp) -> Result<SourceOp> {
        for _ in 0..=MAX_CONVERSIONS {
            let mut converted = None;
            for policy in &self.given {
                converted = policy.follow(&source)?;
                if converted.is_some() {
                    break;
                }
            }
            match converted {
                Some(converted) => source = converted,
                None => return Ok(source),
            }
        }
        Err(Error::invalid("too many mutations on a single source: too many operations"))
    }
}

impl Rule {
    fn read(rule: sourcepolicy::Rule) -> Result<Self> {
        let selector = rule.selector.ok_or_else(|| Error::invalid("there is no selector"))?;
        let action = match PolicyAction::try_from(rule.action) {
            Ok(PolicyAction::Allow) => Action::Allow,
            Ok(PolicyAction::Deny) => Action::Deny,
            Ok(PolicyAction::Convert) => {
                let missing = "CONVERT needs updates: an identifier or attributes";
                let sourcepolicy::Update { identifier, attrs } = rule.updates.unwrap_or_default();
                if identifier.is_empty() && attrs.is_empty() {
                    return Err(Error::invalid(missing));
                }
                Action::Convert(Update { identifier, attrs: attrs.into_iter().collect() })
            }
            Err(_) => return Err(Error::invalid(format!("there is no action {}", rule.action))),
        };
        Ok(Self { selector: Selector::read(selector)?, action })
    }
}

impl Selector {
    fn read(selector: sourcepolicy::Selector) -> Result<Self> {
        let sourcepolicy::Selector { identifier, match_type, constraints } = selector;
        let pattern = match MatchType::try_from(match_type) {
            Ok(MatchType::Exact) => None,
            Ok(MatchType::Regex) => Some(Pattern::Expression(expression(&identifier)?)),
            Ok(MatchType::Wildcard) if identifier.contains("**") => {
                return Err(Error::invalid(format!("invalid wildcard {identifier:?}: \"**\"")));
            }
            Ok(MatchType::Wildcard) => {
                let literals: Vec<String> = identifier.split('*').map(regex::escape).collect();
                Some(Pattern::Wildcard(expression(&format!("^{}$", literals.join("(.*)")))?))
            }
            Err(_) => return Err(Error::invalid(format!("there is no match type {match_type}"))),
        };
        let constraints = constraints.into_iter().map(Constraint::read).collect::<Result<_>>()?;
        Ok(Self { identifier, pattern, constraints })
    }

    fn selects(&self, source: &SourceOp) -> bool {
        let found = source.identifier.as_str();
        let named = self.identifier == found
            || match &self.pattern {
                None => false,
                Some(Pattern::Wildcard(pattern) | Pattern::Expression(pattern)) => pattern.is_match(found),
            };
        named && self.constraints.iter().all(|constraint| constraint.holds(source))
    }

    fn convert(&self, source: &SourceOp, update: &Update) -> SourceOp {
        let mut converted = source.clone();
        if !update.identifier.is_empty() {
            let identifier = source.identifier.as_str();
            converted.identifier = match &self.pattern {
                None => update.identifier.clone(),
                Some(Pattern::Wildcard(pattern) | Pattern::Expression(pattern)) => {
                    pattern.replace_all(identifier, update.identifier.as_str()).into_owned()
                }
            };
        }
        converted.attrs.extend(update.attrs.clone());
        converted
    }
}

impl Constraint {
    fn read(constraint: sourcepolicy::AttrConstraint) -> Result<Self> {
        let sourcepolicy::AttrConstraint { key, value, condition } = constraint;
        let condition = match AttrMatch::try_from(condition) {
            Ok(AttrMatch::Equal) => Condition::Is(value),
            Ok(AttrMatch::Notequal) => Condition::IsNot(value),
            Ok(AttrMatch::Matches) => Condition::Matches(expression(&value)?),
            Err(_) => return Err(Error::invalid(format!("there is no condition {condition}"))),
        };
        Ok(Self { key, condition })
    }

    /// An attribute that is not there is an empty one.
    fn holds(&self, source: &SourceOp) -> bool {
        let found = source.attrs.get(&self.key).map_or("", String::as_str);
        match &self.condition {
            Condition::Is(value) => found == value,
            Condition::IsNot(value) => found != value,
            Condition::Matches(pattern) => pattern.is_match(found),
        }
    }
}

fn expression(text: &str) -> Result<Regex> {
    Regex::new(text).map_err(|error| Error::invalid(format!("invalid regex {text:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::error::Kind;

    const BUSYBOX: &str = "docker-image://docker.io/library/busybox:1.34";

    fn rule(action: PolicyAction, kind: MatchType, identifier: &str, to: &str) -> sourcepolicy::Rule {
        let selector =
            sourcepolicy::Selector { identifier: identifier.into(), match_type: kind.into(), constraints: vec![] };
        let updates = sourcepolicy::Update { identifier: to.into(), attrs: HashMap::new() };
        let updates = (action == PolicyAction::Convert).then_some(updates);
        sourcepolicy::Rule { action: action.into(), selector: Some(selector), updates }
    }

    fn policies(rules: Vec<sourcepolicy::Rule>) -> Result<Policies> {
        Ok(Policies { given: vec![Policy::read(sourcepolicy::Policy { version: 1, rules })?], session: None })
    }

    fn source(identifier: &str) -> SourceOp {
        SourceOp { identifier: identifier.into(), attrs: BTreeMap::from([("image.resolvemode".into(), "pull".into())]) }
    }

    fn outcome(rules: Vec<sourcepolicy::Rule>, identifier: &str) -> Result<String> {
        policies(rules)?.evaluate(source(identifier)).map(|source| source.identifier)
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        use MatchType::{Exact, Wildcard};
        use PolicyAction::{Allow, Deny};
        let all = || rule(Deny, Wildcard, "*", "");
        let images = || rule(Allow, Wildcard, "docker-image://docker.io/library/*", "");
        assert_eq!(outcome(vec![all(), images()], BUSYBOX).unwrap(), BUSYBOX);
        let refused = outcome(vec![images(), all()], BUSYBOX).unwrap_err();
        assert_eq!(refused.kind(), Kind::Forbidden);
        assert_eq!(refused.to_string(), format!("source {BUSYBOX:?} denied by policy"));
        assert!(outcome(vec![rule(Deny, Exact, "docker-image://docker.io/library/*", "")], BUSYBOX).is_ok());
        assert!(outcome(vec![rule(Deny, Exact, BUSYBOX, "")], BUSYBOX).is_err());
        // A point is a point, and a pattern is about all of the name.
        let near = "docker-image://docker.io/library/busybox:1x34";
        assert!(outcome(vec![rule(Deny, Wildcard, "*busybox:1.34", "")], near).is_ok());
        assert!(outcome(vec![rule(Deny, Wildcard, "busybox:1.34", "")], BUSYBOX).is_ok());
    }

    #[test]
    fn sources_are_converted_until_no_rule_changes_them() {
        use MatchType::{Exact, Regex, Wildcard};
        use PolicyAction::{Convert, Deny};
        let mirror =
            || rule(Convert, Wildcard, "docker-image://docker.io/*:*", "docker-image://mirror:5000/$1:${2}-slim");
        let found = outcome(vec![mirror()], BUSYBOX).unwrap();
        assert_eq!(found, "docker-image://mirror:5000/library/busybox:1.34-slim");
        let by_name = rule(Convert, Exact, BUSYBOX, "docker-image://docker.io/library/alpine:3");
        let refused = outcome(vec![rule(Deny, Regex, "alpine", ""), by_name], BUSYBOX).unwrap_err();
        assert!(refused.to_string().contains("alpine:3"), "{refused}");
        let part = rule(Convert, Regex, r"busybox:(\d+)\.\d+", "busybox:$1");
        assert_eq!(outcome(vec![part], BUSYBOX).unwrap(), "docker-image://docker.io/library/busybox:1");
        let endless = rule(Convert, Regex, "$", "x");
        assert!(outcome(vec![endless], BUSYBOX).unwrap_err().to_string().contains("too many mutations"));
    }

    #[test]
    fn attributes_are_conditions_and_are_changed() {
        let with = |key: &str, value: &str, condition: AttrMatch| {
            let mut rule = rule(PolicyAction::Deny, MatchType::Wildcard, "*", "");
            let constraint =
                sourcepolicy::AttrConstraint { key: key.into(), value: value.into(), condition: condition.into() };
            rule.selector.as_mut().unwrap().constraints.push(constraint);
            outcome(vec![rule], BUSYBOX).is_err()
        };
        let mode = "image.resolvemode";
        for (key, value, condition, denied) in [
            (mode, "pull", AttrMatch::Equal, true),
            (mode, "local", AttrMatch::Equal, false),
            (mode, "local", AttrMatch::Notequal, true),
            (mode, "^p.l+$", AttrMatch::Matches, true),
            ("other", "", AttrMatch::Equal, true),
            ("other", "x", AttrMatch::Matches, false),
        ] {
            assert_eq!(with(key, value, condition), denied, "{key} {value} {condition:?}");
        }
        let mut pin = rule(PolicyAction::Convert, MatchType::Wildcard, "*", "");
        pin.updates.as_mut().unwrap().attrs.insert("image.layerlimit".into(), "1".into());
        let pinned = policies(vec![pin]).unwrap().evaluate(source(BUSYBOX)).unwrap();
        assert_eq!((pinned.identifier.as_str(), pinned.attrs["image.layerlimit"].as_str()), (BUSYBOX, "1"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_rules_number() {
        use MatchType::{Exact, Regex, Wildcard};
        use PolicyAction::{Convert, Deny};
        let fine = || rule(Deny, Exact, "x", "");
        for (bad, word) in [
            (rule(Deny, Regex, "(", ""), "invalid regex"),
            (rule(Deny, Wildcard, "a**", ""), "invalid wildcard"),
            (rule(Convert, Exact, "x", ""), "updates"),
            (sourcepolicy::Rule { selector: None, ..fine() }, "no selector"),
            (sourcepolicy::Rule { action: 7, ..fine() }, "no action 7"),
        ] {
            let refused = policies(vec![fine(), bad]).unwrap_err();
            assert!(refused.to_string().contains("rule 2") && refused.to_string().contains(word), "{refused}");
        }
        let other = sourcepolicy::Policy { version: 2, rules: Vec::new() };
        assert_eq!(Policy::read(other).unwrap_err().kind(), Kind::Unsupported);
    }
}
