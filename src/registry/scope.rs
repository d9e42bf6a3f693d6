//! Scopes: what a token allows, as `repository:library/ubuntu:pull`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a request needs to be allowed: actions by resource. Printing gives the same text for equal scopes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    /// Reading a repository.
    pub(super) fn pull(repository: &str) -> Self {
        let mut scopes = Self::default();
        scopes.add(format!("repository:{repository}"), &["pull"]);
        scopes
    }

    /// Reading and writing a repository.
    pub(super) fn push(repository: &str) -> Self {
        let mut scopes = Self::default();
        scopes.add(format!("repository:{repository}"), &["pull", "push"]);
        scopes
    }

    /// Adds everything another set allows.
    pub(super) fn and(mut self, other: &Self) -> Self {
        for (resource, actions) in &other.0 {
            let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
            self.add(resource.clone(), &actions);
        }
        self
    }

    /// Reads the scope of a challenge: words of `resource:actions`, with commas between actions. Resources may contain
    /// colons (`repository:host:5000/name:pull`).
    pub(super) fn parse(text: &str) -> Self {
        let mut scopes = Self::default();
        for word in text.split_ascii_whitespace() {
            if let Some((resource, actions)) = word.rsplit_once(':') {
                scopes.add(resource.to_owned(), &actions.split(',').collect::<Vec<_>>());
            }
        }
        scopes
    }

    fn add(&mut self, resource: String, actions: &[&str]) {
        self.0.entry(resource).or_default().extend(actions.iter().map(|action| (*action).to_owned()));
    }

    /// Returns each resource with its actions, as a token request lists them.
    pub(super) fn words(&self) -> impl Iterator<Item = String> {
        let joined = |actions: &BTreeSet<String>| actions.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        self.0.iter().map(move |(resource, actions)| format!("{resource}:{}", joined(actions)))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_merge_and_print_in_one_order() {
        let scopes = Scopes::push("b").and(&Scopes::parse("repository:b:push,pull repository:h:5000/a:pull nonsense"));
        assert_eq!(scopes.to_string(), "repository:b:pull,push repository:h:5000/a:pull");
        assert_eq!(Scopes::pull("b").and(&Scopes::push("b")), Scopes::push("b"));
    }
}
