//! What a target may be given: the arguments it uses, the secrets and SSH agents it mounts.
//!
//! The rules are those of BuildKit's `frontend.outline`: arguments of stages count as used where they are declared, global ones
//! when a FROM or such an argument uses them.

use std::collections::{BTreeMap, BTreeSet};

use kiln_graph::Span;

/// What a target may be given, in the order of its places in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target's name; empty when it has none.
    pub name: String,
    /// What the comment above the target says about it.
    pub description: String,
    /// The arguments.
    pub arguments: Vec<OutlineArgument>,
    /// The secrets.
    pub secrets: Vec<Mounted>,
    /// The SSH agents.
    pub agents: Vec<Mounted>,
}

/// An argument that a build may be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineArgument {
    /// The name.
    pub name: String,
    /// The value it has in this build.
    pub value: String,
    /// What the comment above says about it.
    pub description: String,
    /// The ARG instruction.
    pub span: Span,
}

/// A secret or an SSH agent that a step mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Its name in the session.
    pub id: String,
    /// Whether the step fails without it.
    pub required: bool,
    /// The RUN instruction.
    pub span: Span,
}

/// What one stage, and those it derives from, add to an outline.
#[derive(Clone, Debug, Default)]
pub(super) struct StageOutline {
    arguments: BTreeMap<String, OutlineArgument>,
    used: BTreeSet<String>,
    secrets: Vec<Mounted>,
    agents: Vec<Mounted>,
}

impl StageOutline {
    /// Notes that a name is used.
    pub(super) fn uses(&mut self, name: &str) {
        if !self.used.contains(name) {
            self.used.insert(name.to_owned());
        }
    }

    /// Notes an argument of the stage.
    pub(super) fn declare(&mut self, argument: OutlineArgument) {
        self.uses(&argument.name);
        self.arguments.insert(argument.name.clone(), argument);
    }

    pub(super) fn secret(&mut self, id: &str, required: bool, span: Span) {
        mount(&mut self.secrets, id, required, span);
    }

    pub(super) fn agent(&mut self, id: &str, required: bool, span: Span) {
        mount(&mut self.agents, id, required, span);
    }
}

fn mount(mounts: &mut Vec<Mounted>, id: &str, required: bool, span: Span) {
    if !mounts.iter().any(|known| known.id == id) {
        mounts.push(Mounted { id: id.to_owned(), required, span });
    }
}

/// The global arguments, and what each is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct GlobalOutline {
    arguments: BTreeMap<String, OutlineArgument>,
    parts: BTreeMap<String, BTreeSet<String>>,
}

impl GlobalOutline {
    /// Notes an argument; `parts` are the variables in its default value.
    pub(super) fn declare(&mut self, argument: OutlineArgument, parts: Vec<String>) {
        self.parts.entry(argument.name.clone()).or_default().extend(parts);
        self.arguments.insert(argument.name.clone(), argument);
    }

    /// Adds the names that the used ones are made of.
    fn with_parts(&self, used: &BTreeSet<String>) -> BTreeSet<String> {
        let mut all = used.clone();
        let mut pending: Vec<&String> = used.iter().collect();
        while let Some(name) = pending.pop() {
            pending.extend(self.parts.get(name).into_iter().flatten().filter(|part| all.insert((*part).clone())));
        }
        all
    }

    /// Puts the stages' outlines together; where two know a name, the first one counts.
    pub(super) fn outline<'s>(&self, stages: impl Iterator<Item = &'s StageOutline>) -> Outline {
        let mut arguments: BTreeMap<String, OutlineArgument> = BTreeMap::new();
        let mut outline = Outline::default();
        for stage in stages {
            for name in self.with_parts(&stage.used) {
                if let Some(argument) = stage.arguments.get(&name).or_else(|| self.arguments.get(&name)) {
                    arguments.entry(name).or_insert_with(|| argument.clone());
                }
            }
            for (all, own) in [(&mut outline.secrets, &stage.secrets), (&mut outline.agents, &stage.agents)] {
                own.iter().for_each(|known| mount(all, &known.id, known.required, known.span));
            }
        }
        outline.arguments = arguments.into_values().collect();
        outline.arguments.sort_by_key(|argument| argument.span.start);
        outline.secrets.sort_by_key(|mount| mount.span.start);
        outline.agents.sort_by_key(|mount| mount.span.start);
        outline
    }
}
