//! Which files of a tree are sent: patterns of what is taken and left out, and paths whose symbolic links are followed.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use kiln_dockerfile::Ignore;
use kiln_dockerfile::glob::{Glob, has_wildcards};
use kiln_dockerfile::ignore::Directory;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::entry::is_below;
use crate::error::{Error, Result};
use crate::store::tree;

/// How many symbolic links are followed from one path.
const MAX_LINKS: usize = 255;

/// What is sent; the default is everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Patterns of what is sent; with `follow` empty too, everything is.
    pub include: Vec<String>,
    /// Patterns of what is not sent, as `.dockerignore` has them.
    pub exclude: Vec<String>,
    /// Paths that are sent with all below them, and with what symbolic links on the way lead to. They may hold wildcards.
    pub follow: Vec<String>,
}

/// A filter for one tree.
#[derive(Debug)]
pub(super) struct Rules {
    include: Option<Ignore>,
    exclude: Option<Ignore>,
    paths: Option<BTreeSet<String>>,
}

/// What the patterns said of a directory and those above it.
#[derive(Clone, Debug)]
pub(super) struct State {
    include: Option<Directory>,
    exclude: Option<Directory>,
}

/// What is to be done with an entry.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) sent: bool,
    /// Set for a directory that must be entered.
    pub(super) enter: Option<State>,
}

impl Rules {
    /// Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed pattern.
    pub(super) fn new(filter: &Filter, root: Option<&OwnedFd>) -> Result<Self> {
        let patterns = |list: &[String]| -> Result<Option<Ignore>> {
            if list.is_empty() {
                return Ok(None);
            }
            let ignore = Ignore::from_patterns(list.iter().map(String::as_str));
            ignore.map(Some).map_err(|error| Error::invalid(error.to_string()))
        };
        let paths =
            root.filter(|_| !filter.follow.is_empty()).map(|root| followed(root, &filter.follow)).transpose()?;
        // The root among the paths is everything.
        let everything = paths.as_ref().is_some_and(|paths| paths.contains(""));
        let include = if everything { None } else { patterns(&filter.include)? };
        Ok(Self { include, exclude: patterns(&filter.exclude)?, paths: paths.filter(|_| !everything) })
    }

    pub(super) fn root(&self) -> State {
        State { include: self.include.as_ref().map(Ignore::root), exclude: self.exclude.as_ref().map(Ignore::root) }
    }

    pub(super) fn judge(&self, state: &State, path: &str, is_dir: bool) -> Verdict {
        let ask = |rules: Option<&Ignore>, state: Option<&Directory>| match (rules, state) {
            (Some(rules), Some(state)) if is_dir => {
                let (matched, inner) = rules.enter(state, path);
                (matched, Some(inner))
            }
            (Some(rules), Some(state)) => (rules.excludes_in(state, path), None),
            _ => (false, None),
        };
        let (excluded, exclude) = ask(self.exclude.as_ref(), state.exclude.as_ref());
        let (included, include) = ask(self.include.as_ref(), state.include.as_ref());
        let named = self.paths.as_ref().is_some_and(|paths| covers(paths, path));
        let all = self.include.is_none() && self.paths.is_none();
        let leads =
            all || named || self.include.is_some() || self.paths.as_ref().is_some_and(|paths| leads(paths, path));
        let hidden = excluded && !self.exclude.as_ref().is_some_and(|rules| rules.may_include_below(path));
        let enter = (is_dir && leads && !hidden).then_some(State { include, exclude });
        Verdict { sent: !excluded && (all || included || named), enter }
    }
}

/// Says whether a path or a directory it is in is among the paths.
fn covers(paths: &BTreeSet<String>, path: &str) -> bool {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    ends.into_iter().any(|end| paths.contains(&path[..end]))
}

/// Says whether one of the paths is in a directory.
fn leads(paths: &BTreeSet<String>, dir: &str) -> bool {
    paths.range(format!("{dir}/")..).next().is_some_and(|path| is_below(path, dir))
}

/// The paths, those with wildcards expanded, and everything that symbolic links on the way lead to. Those that do not exist
/// are among them: whoever wants them is told so later.
fn followed(root: &OwnedFd, paths: &[String]) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for path in paths {
        let mut links = 0;
        follow(root, String::new(), &normalize("", path), &mut all, &mut links)?;
    }
    Ok(all)
}

/// Goes down from `at`, which is free of links, along `rest`.
fn follow(root: &OwnedFd, at: String, rest: &str, all: &mut BTreeSet<String>, links: &mut usize) -> Result<()> {
    let Some((name, rest)) = (!rest.is_empty()).then(|| rest.split_once('/').unwrap_or((rest, ""))) else {
        all.insert(at);
        return Ok(());
    };
    if has_wildcards(name) {
        let glob = Glob::parse(name).map_err(|error| Error::invalid(error.to_string()))?;
        for found in names(root, &at) {
            if glob.matches(&found) {
                step(root, &at, &found, rest, all, links)?;
            }
        }
        return Ok(());
    }
    step(root, &at, &name.replace('\\', ""), rest, all, links)
}

fn step(root: &OwnedFd, at: &str, name: &str, rest: &str, all: &mut BTreeSet<String>, links: &mut usize) -> Result<()> {
    let path = join(at, name);
    let Some(target) = link(root, at, name) else { return follow(root, path, rest, all, links) };
    all.insert(path);
    *links += 1;
    if *links > MAX_LINKS {
        // A loop: whoever reads it is told so.
        return Ok(());
    }
    let target = normalize(at, &target);
    follow(root, String::new(), &join(&target, rest), all, links)
}

fn join(dir: &str, rest: &str) -> String {
    match (dir, rest) {
        ("", rest) => rest.to_owned(),
        (dir, "") => dir.to_owned(),
        (dir, rest) => format!("{dir}/{rest}"),
    }
}

/// Joins paths; an absolute one begins at the root of the tree, and `..` stays below it.
pub(super) fn normalize(base: &str, path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    let base = if path.starts_with('/') { "" } else { base };
    for name in base.split('/').chain(path.split('/')) {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

fn open(root: &OwnedFd, path: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let path = if path.is_empty() { "." } else { path };
    tree::openat2(root, path, flags, Mode::empty(), resolve).ok()
}

fn names(root: &OwnedFd, dir: &str) -> Vec<String> {
    let list = open(root, dir).and_then(|dir| tree::list(&dir).ok()).unwrap_or_default();
    list.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect()
}

/// The target of a symbolic link; `None` for everything else.
fn link(root: &OwnedFd, dir: &str, name: &str) -> Option<String> {
    let name = std::ffi::CString::new(name).ok()?;
    String::from_utf8(tree::read_link(open(root, dir)?, &name).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        for (path, target) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match *target {
                "" => std::fs::write(path, "x").unwrap(),
                target => std::os::unix::fs::symlink(target, path).unwrap(),
            }
        }
        let root = tree::open_root(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn followed_paths_bring_what_their_links_lead_to() {
        let files =
            [("a/x", ""), ("a/y", ""), ("b/link", "../a/x"), ("c", "/b"), ("loop", "loop"), ("up", "../../a/y")];
        let (_dir, root) = tree(&files);
        for (path, expected) in [
            ("b/link", &["a/x", "b/link"][..]),
            ("c/link", &["a/x", "b/link", "c"]),
            ("a/*", &["a/x", "a/y"]),
            ("/a/", &["a"]),
            ("up", &["a/y", "up"]),
            ("loop", &["loop"]),
            ("missing/x", &["missing/x"]),
        ] {
            let found = followed(&root, &[path.to_owned()]).unwrap();
            assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{path}");
        }
    }

    #[test]
    fn exceptions_below_an_excluded_directory_are_sent() {
        let (_dir, root) = tree(&[]);
        let filter = Filter { exclude: vec!["a".into(), "!a/keep".into()], ..Filter::default() };
        let rules = Rules::new(&filter, Some(&root)).unwrap();
        let a = rules.judge(&rules.root(), "a", true);
        assert!(!a.sent);
        let inside = a.enter.unwrap();
        assert!(rules.judge(&inside, "a/keep", false).sent);
        assert!(!rules.judge(&inside, "a/other", false).sent);
    }
}
