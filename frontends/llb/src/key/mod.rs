//! What BuildKit knows a step by, so that caches can be exchanged with it: the digest of the operation, which of its inputs'
//! paths count, and what of them is known by content.
//!
//! The digest of a vertex that was received is that of the operation as its client wrote it; other vertices are written as
//! BuildKit's frontend for Dockerfiles would have written them. Nothing here is an identity of Kiln's own: what it leaves out
//! or takes in is what BuildKit leaves out or takes in.

mod exec;
mod json;

use std::collections::BTreeMap;

use kiln_graph::graph::Wording;
use kiln_graph::op::{InputIndex, Op};
use kiln_graph::{Digest, Vertex};
use prost::Message as _;

use crate::encode;
use crate::pb;

/// What a step is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepKey {
    /// The digest of the operation.
    pub digest: Digest,
    /// The inputs of the operation, in its order.
    pub inputs: Vec<KeyInput>,
}

/// What an operation takes of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInput {
    /// Which of the vertex's inputs it is.
    pub input: InputIndex,
    /// The digest of the paths that are taken; `None` when all of it counts.
    pub selector: Option<Digest>,
    /// What is known by its content instead of where it came from; `None` when nothing is.
    pub content: Option<Vec<Selected>>,
}

/// Paths of an input.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selected {
    /// The path; empty or `/` is everything.
    pub path: String,
    /// Whether it may be a symbolic link to what is meant.
    pub follow_links: bool,
    /// Whether it is a pattern.
    pub wildcard: bool,
    /// Patterns of what counts; empty means everything.
    pub include: Vec<String>,
    /// Patterns of what does not count.
    pub exclude: Vec<String>,
}

/// Which versions of BuildKit are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Those whose structures were made by gogo's generator, 0.13 among them.
    Gogo,
    /// Later ones.
    Plain,
}

/// An operation as BuildKit has it.
struct Written {
    op: pb::op::Op,
    /// Which of the vertex's inputs each of the operation's inputs is.
    inputs: Vec<InputIndex>,
}

/// Returns what BuildKit knows a step by, for each way in which its versions write it: one, when they agree. Sources have
/// none, nor have steps of which BuildKit has no equal.
#[must_use]
pub fn step_keys(vertex: &Vertex) -> Vec<StepKey> {
    let Some(written) = written(vertex) else { return Vec::new() };
    let mut keys: Vec<StepKey> =
        [Form::Gogo, Form::Plain].into_iter().filter_map(|form| key(form, &written, vertex)).collect();
    keys.dedup();
    keys
}

fn key(form: Form, Written { op, inputs }: &Written, vertex: &Vertex) -> Option<StepKey> {
    let (digest, taken) = match op {
        pb::op::Op::Exec(op) => exec::key(form, op, &vertex.platform, inputs.len())?,
        pb::op::Op::File(file) => file_key(form, file, inputs.len())?,
        pb::op::Op::Merge(merge) => (json::digest(&json::MergeText::new(form, merge)), whole(inputs.len())),
        pb::op::Op::Diff(diff) => (json::digest(&json::DiffText::new(form, diff)), whole(inputs.len())),
        pb::op::Op::Source(_) | pb::op::Op::Build(_) => return None,
    };
    let inputs = inputs
        .iter()
        .zip(taken)
        .map(|(input, Taken { selector, content })| KeyInput { input: *input, selector, content })
        .collect();
    Some(StepKey { digest, inputs })
}

/// What is taken of an input.
#[derive(Clone, Default)]
struct Taken {
    selector: Option<Digest>,
    content: Option<Vec<Selected>>,
}

fn whole(inputs: usize) -> Vec<Taken> {
    vec![Taken::default(); inputs]
}

fn written(vertex: &Vertex) -> Option<Written> {
    match vertex.wording() {
        Wording::Received(received) => {
            let op = pb::Op::decode(received.bytes.as_slice()).ok()?.op?;
            // What the vertex does not use, or has made something else of, cannot be named.
            let inputs = received.inputs.iter().copied().collect::<Option<Vec<InputIndex>>>()?;
            (!is_branched(&op)).then_some(Written { op, inputs })
        }
        Wording::Part => None,
        Wording::Own => own(vertex),
    }
}

/// Says whether an operation is several vertices.
fn is_branched(op: &pb::op::Op) -> bool {
    match op {
        pb::op::Op::File(file) => file.actions.iter().filter(|action| action.output != -1).count() > 1,
        _ => false,
    }
}

/// Writes a vertex as BuildKit's frontend for Dockerfiles does.
fn own(vertex: &Vertex) -> Option<Written> {
    let all = || (0..InputIndex::try_from(vertex.inputs.len()).unwrap_or(InputIndex::MAX)).collect();
    match &vertex.op {
        Op::Source(_) | Op::Build { .. } => None,
        Op::Exec(exec) => Some(exec::written(exec)),
        Op::File(file) if file.actions.is_empty() => None,
        Op::File(file) => {
            let mut written = encode::file_op(file, vertex.inputs.len());
            let base = encode::index(file.base);
            for action in &mut written.actions {
                // All names are looked up in the file system that is there before the first action.
                action.action.iter_mut().filter_map(owner_of).for_each(|owner| set_owner(owner, base));
            }
            Some(Written { op: pb::op::Op::File(written), inputs: all() })
        }
        Op::Merge | Op::Diff { .. } => Some(Written { op: encode::operation(vertex, ""), inputs: all() }),
    }
}

fn owner_of(action: &mut pb::file_action::Action) -> Option<&mut pb::ChownOpt> {
    use pb::file_action::Action;
    match action {
        Action::Copy(copy) => copy.owner.as_mut(),
        Action::Mkfile(file) => file.owner.as_mut(),
        Action::Mkdir(dir) => dir.owner.as_mut(),
        Action::Symlink(link) => link.owner.as_mut(),
        Action::Rm(_) => None,
    }
}

fn set_owner(owner: &mut pb::ChownOpt, base: i64) {
    for user in [&mut owner.user, &mut owner.group].into_iter().flatten().filter_map(|user| user.user.as_mut()) {
        match user {
            // The client knows this one without looking.
            pb::user_opt::User::ByName(named) if named.name == "root" => *user = pb::user_opt::User::ById(0),
            pb::user_opt::User::ByName(named) => named.input = base,
            pb::user_opt::User::ById(_) => {}
        }
    }
}

/// A copy's source is named by its last component: what it is in the input is known by the selector and the content.
fn file_key(form: Form, file: &pb::FileOp, inputs: usize) -> Option<(Digest, Vec<Taken>)> {
    use pb::file_action::Action;
    let mut selected: BTreeMap<usize, Vec<Selected>> = BTreeMap::new();
    let mut changed = vec![false; inputs];
    let (mut actions, mut indexes) = (Vec::new(), Vec::new());
    for pb::FileAction { input, secondary_input, output, action } in &file.actions {
        let mut action = action.clone()?;
        if form == Form::Gogo && is_newer(&action) {
            return None;
        }
        if let Some(changed) = usize::try_from(*input).ok().and_then(|input| changed.get_mut(input)) {
            *changed = true;
        }
        if let Some(owner) = owner_of(&mut action) {
            for (user, file) in [(&owner.user, "/etc/passwd"), (&owner.group, "/etc/group")] {
                let named = user.as_ref().and_then(|user| user.user.as_ref());
                if let Some(pb::user_opt::User::ByName(named)) = named {
                    let input = usize::try_from(named.input).ok()?;
                    let database = Selected { path: file.to_owned(), follow_links: true, ..Selected::default() };
                    selected.entry(input).or_default().push(database);
                }
            }
        }
        let mut source = None;
        if let (Action::Copy(copy), Ok(from)) = (&action, usize::try_from(*secondary_input))
            && from < inputs
        {
            selected.entry(from).or_default().push(Selected {
                path: copy.src.clone(),
                follow_links: copy.follow_symlink,
                wildcard: copy.allow_wildcard && has_wildcards(&copy.src),
                include: copy.include_patterns.clone(),
                exclude: copy.exclude_patterns.clone(),
            });
            source = Some(base_name(&copy.src));
        }
        actions.push(json::action(form, &action, source));
        indexes.push([*input, *secondary_input, *output]);
    }
    let taken = (0..inputs).map(|input| match selected.remove(&input) {
        Some(all) if !changed[input] => {
            let mut paths: Vec<&[u8]> = all.iter().map(|one| one.path.as_bytes()).collect();
            paths.sort_unstable_by(|a, b| b.cmp(a));
            Taken { selector: Some(Digest::of(&paths.join(&0))), content: Some(without_repetition(all)) }
        }
        _ => Taken::default(),
    });
    Some((json::digest(&json::FileText::new(actions, indexes)), taken.collect()))
}

/// Says whether an action asks for something that the older versions do not know.
fn is_newer(action: &pb::file_action::Action) -> bool {
    match action {
        pb::file_action::Action::Copy(copy) => {
            copy.always_replace_existing_dest_paths || !copy.mode_str.is_empty() || !copy.required_paths.is_empty()
        }
        pb::file_action::Action::Symlink(_) => true,
        _ => false,
    }
}

fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// As Go's `path.Base`.
fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match (path, trimmed) {
        ("", _) => ".",
        (_, "") => "/",
        (_, trimmed) => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}

/// Leaves out paths that lie below others.
fn without_repetition(all: Vec<Selected>) -> Vec<Selected> {
    let is_filtered = |one: &Selected| one.wildcard || !one.include.is_empty() || !one.exclude.is_empty();
    let (mut filtered, plain): (Vec<Selected>, Vec<Selected>) = all.into_iter().partition(is_filtered);
    for follow_links in [false, true] {
        let paths = plain.iter().filter(|one| one.follow_links == follow_links).map(|one| one.path.clone());
        let paths = topmost(paths.collect());
        filtered.extend(paths.into_iter().map(|path| Selected { path, follow_links, ..Selected::default() }));
    }
    filtered.sort_by(|a, b| a.path.cmp(&b.path));
    filtered
}

/// Returns the paths that lie below no other of them, in order.
fn topmost(mut paths: Vec<String>) -> Vec<String> {
    paths.sort_unstable();
    paths.dedup();
    let all = paths.clone();
    let below = |path: &str, other: &str| {
        path != other && (path.strip_prefix(other)).is_some_and(|rest| other.ends_with('/') || rest.starts_with('/'))
    };
    paths.retain(|path| !all.iter().any(|other| below(path, other)));
    paths
}
