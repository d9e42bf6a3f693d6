//! File operations: actions that work on one another's results.
//!
//! Actions that follow one another are one vertex, which gives one layer. Where the result of an action is used twice, or is
//! copied from, it has a vertex of its own.

use kiln_graph::Edge;
use kiln_graph::op::{Copy, FileAction, FileOp, InputIndex, Mode, Op, Owner, OwnerId};

use crate::graph::{Adding, Output, bounded};
use crate::pb;
use crate::pb::file_action::Action;
use crate::refusal::Refusal;

/// What an action works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    /// An input of the operation, or an empty file system.
    Given(Output),
    /// The result of an earlier action.
    Action(usize),
}

/// An action whose references were looked up.
struct Step<'a> {
    base: On,
    from: On,
    action: &'a Action,
    lookup: Lookup,
}

/// Reads a file operation, and says what its outputs are.
pub(crate) fn read(mut adding: Adding<'_, '_>, file: &pb::FileOp) -> Result<Vec<Output>, Refusal> {
    bounded("file.actions", file.actions.len())?;
    if file.actions.is_empty() {
        return Err(Refusal::malformed("file.actions", "there are none"));
    }
    let names: Vec<String> = file.actions.iter().filter_map(|action| action.action.as_ref()).map(shown).collect();
    adding.default_name(names.join(", "));
    let (mut steps, mut outputs) = (Vec::new(), Vec::new());
    for (at, action) in file.actions.iter().enumerate() {
        let field = format!("file.actions[{at}]");
        steps.push(step(&adding, &steps, action, &field)?);
        if action.output >= 0 {
            outputs.push((action.output, at));
        } else if action.output != -1 {
            let reason = format!("{} is neither an output nor -1 for none", action.output);
            return Err(Refusal::malformed(format!("{field}.output"), reason));
        }
    }
    outputs.sort_unstable();
    for (number, (output, at)) in outputs.iter().enumerate() {
        if usize::try_from(*output) != Ok(number) {
            let reason = format!("outputs must be numbered from 0, each once; {output} is not the next");
            return Err(Refusal::malformed(format!("file.actions[{at}].output"), reason));
        }
    }
    if outputs.is_empty() {
        return Err(Refusal::malformed("file.actions", "none of them gives an output"));
    }
    let ends: Vec<usize> = outputs.into_iter().map(|(_, at)| at).collect();
    let chains = Chains::of(&steps, &ends);
    chains.add(adding, &steps, &ends)
}

/// Where names of owners are looked up: in what the action changes. Clients name that, or what the actions before it have changed,
/// which is the same but for what those did.
#[derive(Clone, Copy)]
struct Lookup {
    /// The number of what the action changes.
    base: i64,
    /// The number of what the first action before it changes.
    below: i64,
}

fn step<'a>(
    adding: &Adding<'_, '_>,
    earlier: &[Step<'a>],
    action: &'a pb::FileAction,
    field: &str,
) -> Result<Step<'a>, Refusal> {
    let (inputs, at) = (adding.received.len(), earlier.len());
    let on = |index: i64, name: &str| {
        let earlier = usize::try_from(index).ok().and_then(|index| index.checked_sub(inputs));
        match earlier {
            Some(earlier) if earlier < at => Ok(On::Action(earlier)),
            Some(_) => {
                let reason = format!("{index} is neither one of {inputs} inputs nor an action before this one");
                Err(Refusal::malformed(format!("{field}.{name}"), reason))
            }
            None => adding.source_of(index, &format!("{field}.{name}")).map(On::Given),
        }
    };
    let Some(kind) = &action.action else {
        return Err(Refusal::malformed(format!("{field}.action"), "it does nothing"));
    };
    let base = on(action.input, "input")?;
    let from = match kind {
        Action::Copy(_) => on(action.secondary_input, "secondaryInput")?,
        _ => On::Given(None),
    };
    // What the action itself says is read when it is added; this finds what is wrong with those that are not.
    let below = match base {
        On::Action(before) => earlier[before].lookup.below,
        On::Given(_) => action.input,
    };
    let lookup = Lookup { base: action.input, below };
    convert(kind, None, lookup, field)?;
    Ok(Step { base, from, action: kind, lookup })
}

/// Which actions are done together.
struct Chains {
    /// For each action, whether its result is needed.
    needed: Vec<bool>,
    /// For each action, whether the one that works on its result goes on with it.
    continued: Vec<bool>,
}

impl Chains {
    fn of(steps: &[Step<'_>], ends: &[usize]) -> Self {
        let mut needed = vec![false; steps.len()];
        ends.iter().for_each(|end| needed[*end] = true);
        for at in (0..steps.len()).rev().filter(|at| needed[*at]).collect::<Vec<_>>() {
            mark(steps, at, &mut needed);
        }
        // All that is needed was marked from above: an action works on earlier ones only.
        let (mut bases, mut others) = (vec![0_usize; steps.len()], vec![false; steps.len()]);
        ends.iter().for_each(|end| others[*end] = true);
        for step in steps.iter().enumerate().filter(|(at, _)| needed[*at]).map(|(_, step)| step) {
            if let On::Action(base) = step.base {
                bases[base] += 1;
            }
            if let On::Action(from) = step.from {
                others[from] = true;
            }
        }
        let continued = (0..steps.len()).map(|at| bases[at] == 1 && !others[at]).collect();
        Self { needed, continued }
    }

    /// Adds a vertex for each chain, in order; the one that gives output 0 has the digest of the operation.
    fn add(self, mut adding: Adding<'_, '_>, steps: &[Step<'_>], ends: &[usize]) -> Result<Vec<Output>, Refusal> {
        let mut results: Vec<Option<Edge>> = vec![None; steps.len()];
        let last = (0..steps.len()).rev().find(|at| self.needed[*at]).unwrap_or_default();
        for end in (0..steps.len()).filter(|at| self.needed[*at] && !self.continued[*at]) {
            let mut chain = vec![end];
            while let On::Action(before) = steps[chain[chain.len() - 1]].base
                && self.continued[before]
            {
                chain.push(before);
            }
            chain.reverse();
            let find = |on: On| match on {
                On::Given(output) => output,
                On::Action(at) => results[at],
            };
            let base = adding.whole_of(find(steps[chain[0]].base));
            let mut actions = Vec::with_capacity(chain.len());
            for at in chain {
                let from = adding.paths_of(find(steps[at].from));
                actions.push(convert(steps[at].action, from, steps[at].lookup, &format!("file.actions[{at}]"))?);
            }
            let op = Op::File(FileOp { base, actions });
            if end == last {
                results[end] = Some(adding.finish(op));
                break;
            }
            results[end] = Some(adding.add_part(op, end));
        }
        Ok(ends.iter().map(|end| results[*end]).collect())
    }
}

/// Marks what an action needs.
fn mark(steps: &[Step<'_>], at: usize, needed: &mut [bool]) {
    let mut stack = vec![at];
    while let Some(at) = stack.pop() {
        for on in [steps[at].base, steps[at].from] {
            if let On::Action(below) = on
                && !std::mem::replace(&mut needed[below], true)
            {
                stack.push(below);
            }
        }
    }
}

fn shown(action: &Action) -> String {
    match action {
        Action::Copy(copy) => format!("copy {} {}", copy.src, copy.dest),
        Action::Mkfile(file) => format!("mkfile {}", file.path),
        Action::Mkdir(dir) => format!("mkdir {}", dir.path),
        Action::Rm(rm) => format!("rm {}", rm.path),
        Action::Symlink(link) => format!("symlink {} -> {}", link.newpath, link.oldpath),
    }
}

/// Reads an action; `from` is the number of what it copies from.
fn convert(action: &Action, from: Option<InputIndex>, base: Lookup, field: &str) -> Result<FileAction, Refusal> {
    let mtime = |timestamp: i64| (timestamp != -1).then_some(timestamp);
    Ok(match action {
        Action::Copy(action) => FileAction::Copy(Box::new(copy(action, from, base, &format!("{field}.copy"))?)),
        Action::Mkfile(action) => FileAction::Mkfile {
            path: path(&action.path, &format!("{field}.mkfile.path"))?,
            data: action.data.clone(),
            mode: bits(action.mode, &format!("{field}.mkfile.mode"))? & 0o777,
            owner: owner(action.owner.as_ref(), base, &format!("{field}.mkfile.owner"))?,
            mtime_ns: mtime(action.timestamp),
        },
        Action::Mkdir(action) => FileAction::Mkdir {
            path: path(&action.path, &format!("{field}.mkdir.path"))?,
            mode: bits(action.mode, &format!("{field}.mkdir.mode"))? & 0o777,
            parents: action.make_parents,
            owner: owner(action.owner.as_ref(), base, &format!("{field}.mkdir.owner"))?,
            mtime_ns: mtime(action.timestamp),
        },
        Action::Rm(action) => FileAction::Remove {
            path: path(&action.path, &format!("{field}.rm.path"))?,
            allow_missing: action.allow_not_found,
            wildcard: action.allow_wildcard,
        },
        Action::Symlink(action) => FileAction::Symlink {
            path: path(&action.newpath, &format!("{field}.symlink.newpath"))?,
            target: text(&action.oldpath, &format!("{field}.symlink.oldpath"))?,
            owner: owner(action.owner.as_ref(), base, &format!("{field}.symlink.owner"))?,
            mtime_ns: mtime(action.timestamp),
        },
    })
}

fn copy(copy: &pb::FileActionCopy, from: Option<InputIndex>, base: Lookup, field: &str) -> Result<Copy, Refusal> {
    for (name, list) in [
        ("include_patterns", &copy.include_patterns),
        ("exclude_patterns", &copy.exclude_patterns),
        ("required_paths", &copy.required_paths),
    ] {
        bounded(&format!("{field}.{name}"), list.len())?;
    }
    let mode = match (copy.mode_str.as_str(), copy.mode) {
        ("", -1) => None,
        ("", mode) => Some(Mode::Octal(bits(mode, &format!("{field}.mode"))?)),
        (text, _) => Some(mode_text(text)),
    };
    Ok(Copy {
        from,
        source: text(&copy.src, &format!("{field}.src"))?,
        dest: path(&copy.dest, &format!("{field}.dest"))?,
        owner: owner(copy.owner.as_ref(), base, &format!("{field}.owner"))?,
        mode,
        follow_symlinks: copy.follow_symlink,
        contents_only: copy.dir_copy_contents,
        unpack: copy.attempt_unpack_docker_compatibility,
        create_dest_path: copy.create_dest_path,
        wildcard: copy.allow_wildcard,
        allow_empty_wildcard: copy.allow_empty_wildcard,
        replace_existing: copy.always_replace_existing_dest_paths,
        include: copy.include_patterns.clone(),
        exclude: copy.exclude_patterns.clone(),
        // They are about patterns: without any, everything is there.
        required: if copy.include_patterns.is_empty() { Vec::new() } else { copy.required_paths.clone() },
        mtime_ns: (copy.timestamp != -1).then_some(copy.timestamp),
    })
}

/// A mode in text is octal or as `chmod` reads it.
fn mode_text(text: &str) -> Mode {
    match u32::from_str_radix(text, 8) {
        Ok(bits) if bits <= 0o7777 => Mode::Octal(bits),
        _ => Mode::Symbolic(text.to_owned()),
    }
}

fn bits(mode: i32, field: &str) -> Result<u32, Refusal> {
    let bad = || Refusal::malformed(field, format!("{mode} are no permissions"));
    u32::try_from(mode).ok().filter(|mode| *mode <= 0o7777).ok_or_else(bad)
}

fn text(text: &str, field: &str) -> Result<String, Refusal> {
    if text.contains('\0') {
        return Err(Refusal::malformed(field, "it holds a NUL"));
    }
    Ok(text.to_owned())
}

/// An absolute path without `..`; a slash at the end stays.
fn path(path: &str, field: &str) -> Result<String, Refusal> {
    let path = text(path, field)?;
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    let slash = if path.ends_with('/') && !names.is_empty() { "/" } else { "" };
    Ok(format!("/{}{slash}", names.join("/")))
}

fn owner(owner: Option<&pb::ChownOpt>, base: Lookup, field: &str) -> Result<Option<Owner>, Refusal> {
    let Some(owner) = owner else { return Ok(None) };
    let one = |user: Option<&pb::UserOpt>, name: &str| -> Result<Option<OwnerId>, Refusal> {
        match user.and_then(|user| user.user.as_ref()) {
            None => Ok(None),
            Some(pb::user_opt::User::ById(id)) => Ok(Some(OwnerId::Id(*id))),
            Some(pb::user_opt::User::ByName(named))
                if [base.base, base.below].contains(&named.input) || named.name == "root" =>
            {
                Ok(Some(OwnerId::Name(text(&named.name, &format!("{field}.{name}.byName.name"))?)))
            }
            Some(pb::user_opt::User::ByName(_)) => {
                let reason = "names are looked up in the file system that the action changes, and in no other";
                Err(Refusal::unsupported(format!("{field}.{name}.byName.input"), reason))
            }
        }
    };
    let (user, group) = (one(owner.user.as_ref(), "user")?, one(owner.group.as_ref(), "group")?);
    if user.is_none() && group.is_none() {
        return Ok(None);
    }
    Ok(Some(Owner { user: user.unwrap_or(OwnerId::Id(0)), group }))
}
