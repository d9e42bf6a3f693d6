//! Finding what a copy names: literal paths, patterns, symbolic links on the way, and what is not there.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_dockerfile::Ignore;
use kiln_dockerfile::glob::{Glob, has_wildcards};
use kiln_graph::op::Copy;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::entry::{Match, Selection};
use super::memo::Memo;
use super::scan::{Rules, Scan, c_name};
use crate::error::{Error, Result, ResultExt as _};
use crate::store::tree::{self, Kind, Metadata};
use crate::task::Cancel;

/// Who owns what is copied, unless the copy says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Whoever owns it in the tree.
    Keep,
    /// Root: ids of a client's machine mean nothing in an image.
    Root,
}

/// A tree that copies are made from.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Its root directory.
    pub root: Arc<OwnedFd>,
    /// What messages call it, for example `the build context`.
    pub name: String,
    /// What is not there, although it is.
    pub ignore: Option<Arc<Ignore>>,
    /// Who owns its files.
    pub owners: Owners,
    /// Digests known from earlier.
    pub memo: Option<Arc<Memo>>,
}

/// Selects what a copy takes from a tree. Blocking; hashes on all cores.
///
/// # Errors
/// `NotFound`, naming the path and what hides it, when something that was named is not there; `InvalidArgument` for a malformed
/// pattern; `Cancelled`.
pub fn select(tree: &Tree, copy: &Copy, cancel: &Cancel) -> Result<Selection> {
    let rules = Rules::of(tree, copy)?;
    let scan = Scan { tree, rules, cancel };
    let is_pattern = copy.wildcard && has_wildcards(&copy.source);
    let paths = if is_pattern { expand(tree, &copy.source, cancel)? } else { vec![relative(&copy.source)] };
    let mut matches = Vec::with_capacity(paths.len());
    for path in &paths {
        cancel.check()?;
        let look = scan.path(path, copy.follow_symlinks);
        match look.context(|| format!("read {} in {}", tree::display(path), tree.name))? {
            Look::Found(found) => matches.push(*found),
            Look::Skipped => {}
            Look::Missing if is_pattern && is_ignored(tree, path) => {}
            Look::Missing => return Err(missing(tree, path)),
        }
    }
    if is_pattern && matches.is_empty() && !copy.allow_empty_wildcard {
        return Err(Error::not_found(format!("{}: no file in {} matches", copy.source, tree.name)));
    }
    for required in &copy.required {
        let known = |found: &Match| found.below.iter().any(|entry| entry.path == required.as_bytes());
        if !matches.iter().any(known) {
            let path = join(&relative(&copy.source), required.as_bytes());
            return Err(missing(tree, &path));
        }
    }
    Ok(Selection { matches })
}

/// The path below the root, without slashes at the ends; `..` stays at the root.
fn relative(source: &str) -> Vec<u8> {
    let mut components: Vec<&str> = Vec::new();
    for component in source.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()),
            name => components.push(name),
        }
    }
    components.join("/").into_bytes()
}

/// Takes the backslashes out of a component of a pattern that has no wildcards.
fn unescape(component: &str) -> String {
    let mut plain = String::with_capacity(component.len());
    let mut chars = component.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    plain
}

pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// Opens a path below a root, following symbolic links that stay within; an empty path is the root.
pub(super) fn open_beneath(root: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlags::IN_ROOT)
}

/// Opens a path below a root that has no symbolic links on the way.
fn open_plain(root: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    open_with(root, path, flags | OFlags::NOFOLLOW, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn open_with(root: &OwnedFd, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    tree::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve | ResolveFlags::NO_MAGICLINKS)
}

/// Returns the paths that match a pattern of several components, in order of their names.
///
/// As with BuildKit, symbolic links are followed up to the first wildcard and not from there on, and what stands before it has to be
/// there.
fn expand(tree: &Tree, pattern: &str, cancel: &Cancel) -> Result<Vec<Vec<u8>>> {
    let pattern = String::from_utf8(relative(pattern)).expect("it was made of a string");
    let components: Vec<&str> = pattern.split('/').collect();
    let plain = components.iter().take_while(|component| !has_wildcards(component)).count();
    let prefix = components[..plain].join("/").into_bytes();
    let base = find(tree, &prefix, true)?.ok_or_else(|| missing(tree, &prefix))?;
    let mut paths = VecDeque::from([base]);
    for component in &components[plain..] {
        if !has_wildcards(component) {
            let name = unescape(component);
            paths.iter_mut().for_each(|path| *path = join(path, name.as_bytes()));
            continue;
        }
        let glob = Glob::parse(component).map_err(|error| Error::invalid(error.to_string()))?;
        for _ in 0..paths.len() {
            cancel.check()?;
            let Some(parent) = paths.pop_front() else { break };
            for name in names(tree, &parent)? {
                if glob.matches(&String::from_utf8_lossy(name.to_bytes())) {
                    paths.push_back(join(&parent, name.to_bytes()));
                }
            }
        }
    }
    let exists = |path: &Vec<u8>| open_plain(&tree.root, path, OFlags::PATH).is_ok();
    Ok(paths.into_iter().filter(|path| is_visible(tree, path) && exists(path)).collect())
}

/// The names in a directory; none when it is something else or not there.
fn names(tree: &Tree, parent: &[u8]) -> Result<Vec<CString>> {
    match open_plain(&tree.root, parent, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(dir) => {
            let list = tree::list(&dir).context(|| format!("list {}", tree::display(parent)))?;
            Ok(list.into_iter().map(|entry| entry.name).collect())
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Vec::new()),
        Err(errno) => Err(errno).context(|| format!("open {}", tree::display(parent))),
    }
}

/// Says whether a path is hidden. Something below it may not be.
fn is_ignored(tree: &Tree, path: &[u8]) -> bool {
    let path = String::from_utf8_lossy(path);
    tree.ignore.as_ref().is_some_and(|ignore| !path.is_empty() && ignore.excludes(&path))
}

/// Says whether a path, or something below it if it is a directory, may not be hidden.
fn is_visible(tree: &Tree, path: &[u8]) -> bool {
    let below = |ignore: &Arc<Ignore>| ignore.may_include_below(&String::from_utf8_lossy(path));
    !is_ignored(tree, path) || tree.ignore.as_ref().is_some_and(below)
}

/// What was found under a path.
enum Look {
    Found(Box<Match>),
    /// Something that no layer holds: a socket.
    Skipped,
    Missing,
}

impl Scan<'_> {
    /// Selects one path.
    fn path(&self, path: &[u8], follow: bool) -> Result<Look> {
        let name = c_name(path.rsplit(|byte| *byte == b'/').next().unwrap_or_default())?;
        let Some(resolved) = find(self.tree, path, follow)? else { return Ok(Look::Missing) };
        let at = resolved.iter().rposition(|byte| *byte == b'/');
        let (parent, last) = at.map_or((&[][..], resolved.as_slice()), |at| (&resolved[..at], &resolved[at + 1..]));
        if last.is_empty() {
            return self.directory_match(resolved, name);
        }
        let parent = open_beneath(&self.tree.root, parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let last = c_name(last)?;
        if Metadata::at(&parent, &last)?.kind == Kind::Dir {
            return self.directory_match(resolved, name);
        }
        if is_ignored(self.tree, &resolved) {
            return Ok(Look::Missing);
        }
        Ok(match self.file(&parent, &last, Vec::new())? {
            Some(top) => Look::Found(Box::new(Match { path: resolved, name, top, below: Vec::new() })),
            None => Look::Skipped,
        })
    }

    fn directory_match(&self, path: Vec<u8>, name: CString) -> Result<Look> {
        let dir = open_beneath(&self.tree.root, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let (top, below) = self.directory(&dir, &path)?;
        // A hidden directory is there for what is below it.
        if below.is_empty() && self.rules.take_all() && is_ignored(self.tree, &path) {
            return Ok(Look::Missing);
        }
        Ok(Look::Found(Box::new(Match { path, name, top, below })))
    }
}

/// Resolves a path as [`resolve`] does, unless it, or a link on the way, is hidden.
fn find(tree: &Tree, path: &[u8], follow: bool) -> Result<Option<Vec<u8>>> {
    match resolve(&tree.root, path, follow)?.filter(|resolved| is_visible(tree, resolved)) {
        Some(resolved) if resolved == path || hidden_link(tree, path)?.is_none() => Ok(Some(resolved)),
        _ => Ok(None),
    }
}

/// Returns a symbolic link on the way or at the end that is hidden: then it leads nowhere, whatever is there.
fn hidden_link(tree: &Tree, path: &[u8]) -> Result<Option<Vec<u8>>> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]);
    for end in ends {
        let start = path[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let Some(parent) = resolve(&tree.root, &path[..start], true)? else { return Ok(None) };
        let at = join(&parent, &path[start..end]);
        let is_link = || open_plain(&tree.root, &at, OFlags::PATH).is_ok_and(|file| tree::read_link(file, c"").is_ok());
        if is_ignored(tree, &at) && is_link() {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// Resolves symbolic links on the way, and the last one if it is followed; `None` when there is nothing.
fn resolve(root: &OwnedFd, path: &[u8], follow: bool) -> Result<Option<Vec<u8>>> {
    let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
    let opened = match open_beneath(root, path, flags) {
        Ok(opened) => opened,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let (real, root) = (real_path(&opened)?, real_path(root)?);
    let below = real.strip_prefix(&root).map_err(|_| Error::internal("a path left its root"))?;
    Ok(Some(below.as_os_str().as_bytes().to_vec()))
}

fn real_path(fd: &OwnedFd) -> Result<PathBuf> {
    let path = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(path.as_bytes())))
}

/// Says that a path is not there, and why that may be.
fn missing(tree: &Tree, path: &[u8]) -> Error {
    let shown = String::from_utf8_lossy(path);
    let by_link = || excluded(tree, &String::from_utf8_lossy(&hidden_link(tree, path).ok()??));
    let hint = excluded(tree, &shown)
        .or_else(by_link)
        .or_else(|| link(tree, path))
        .or_else(|| similar(tree, path))
        .unwrap_or_default();
    Error::not_found(format!("\"/{shown}\": not found in {}{hint}", tree.name))
}

/// The rule that hides a path which exists.
fn excluded(tree: &Tree, path: &str) -> Option<String> {
    let ignore = tree.ignore.as_ref()?;
    open_beneath(&tree.root, path.as_bytes(), OFlags::PATH).ok()?;
    let pattern = ignore.deciding_pattern(path).filter(|pattern| !pattern.is_exception())?;
    let (file, line, text) = (ignore.file_name(), pattern.line(), pattern.text());
    Some(format!(" (it exists, but line {line} of {file} excludes it: {text})"))
}

/// Where a symbolic link leads that leads nowhere, or to what is hidden.
fn link(tree: &Tree, path: &[u8]) -> Option<String> {
    let link = open_plain(&tree.root, path, OFlags::PATH).ok()?;
    let target = tree::read_link(&link, c"").ok()?;
    let target = tree::display(&target);
    let hidden = resolve(&tree.root, path, true).ok()?.and_then(|real| excluded(tree, &String::from_utf8_lossy(&real)));
    Some(format!(" (a symbolic link to {target}{})", hidden.unwrap_or_default()))
}

/// A name in the same directory that may have been meant.
fn similar(tree: &Tree, path: &[u8]) -> Option<String> {
    let at = path.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = at.map_or((&[][..], path), |at| (&path[..at], &path[at + 1..]));
    let names = names(tree, parent).ok()?;
    let names: Vec<String> = names.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    let word = String::from_utf8_lossy(name);
    let best = kiln_graph::diagnostic::closest(&word, names.iter().map(String::as_str))?;
    Some(format!(" (did you mean {best}?)"))
}
