//! The variables in force at some point of a build: an ordered list with quick access by name.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

/// Where a variable's value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The image or an ENV instruction.
    Environment,
    /// An ARG instruction.
    Argument,
}

/// Names and values in the order in which they were last set: BuildKit's order, which processes see and caches know.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    entries: Vec<(String, String, Origin)>,
    by_name: HashMap<String, usize>,
    /// What processes are given, until a variable is set.
    environment: OnceCell<Environment>,
}

/// The variables of a process.
#[derive(Clone, Debug)]
pub struct Environment {
    /// All of them as `NAME=value`, in order.
    pub entries: Arc<[String]>,
    /// The names of those whose value was last set by ARG, in order.
    pub arguments: Arc<[String]>,
}

impl Variables {
    /// Makes an empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a variable as ENV does. A name that is there already moves to the end.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.insert(name, value.into(), Origin::Environment);
    }

    /// Sets a variable as ARG does.
    pub fn set_argument(&mut self, name: &str, value: impl Into<String>) {
        self.insert(name, value.into(), Origin::Argument);
    }

    fn insert(&mut self, name: &str, value: String, origin: Origin) {
        self.environment.take();
        if let Some(at) = self.by_name.remove(name) {
            self.entries.remove(at);
            self.by_name.values_mut().filter(|other| **other > at).for_each(|other| *other -= 1);
        }
        self.by_name.insert(name.to_owned(), self.entries.len());
        self.entries.push((name.to_owned(), value, origin));
    }

    /// Returns a variable's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.by_name.get(name).map(|at| self.entries[*at].1.as_str())
    }

    /// Returns all names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _, _)| name.as_str())
    }

    /// Returns what a process is given.
    pub fn environment(&self) -> &Environment {
        self.environment.get_or_init(|| {
            let entries = self.entries.iter().map(|(name, value, _)| [name, "=", value].concat()).collect();
            let arguments = self.entries.iter().filter(|(_, _, origin)| *origin == Origin::Argument);
            Environment { entries, arguments: arguments.map(|(name, _, _)| name.clone()).collect() }
        })
    }
}

impl<N: AsRef<str>, V: Into<String>> FromIterator<(N, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut variables = Self::new();
        for (name, value) in pairs {
            variables.set(name.as_ref(), value);
        }
        variables
    }
}
