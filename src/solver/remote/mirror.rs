//! Mirrors: a bare repository for each remote, kept from build to build, with the commits that were needed of it.

use std::path::Path;

use super::git::{Commit, Repository};
use super::program::Program;
use crate::error::{Error, Kind, Result};
use crate::task::Cancel;

/// What every fetch says.
const FETCH: &[&str] =
    &["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--force", "--no-write-fetch-head"];

/// How much of what led to a commit is fetched with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum History {
    None,
    All,
}

/// The reference under which a commit is kept.
pub(super) fn kept(commit: &Commit) -> String {
    format!("refs/kiln/{}", commit.id)
}

/// What a reference of the remote is called here that led to a commit: that may be an annotated tag.
pub(super) fn named(commit: &Commit, reference: &str) -> String {
    format!("refs/kiln-names/{}/{reference}", commit.id)
}

impl Repository {
    /// Sees to it that a mirror has a commit with all its files; asks the remote only when it has not. A mirror with histories
    /// has them of all its commits. Blocking.
    ///
    /// # Errors
    /// `NotFound` when the remote has no such commit; what git says otherwise.
    pub(super) fn bring(&self, mirror: &Path, commit: &Commit, history: History, cancel: &Cancel) -> Result<()> {
        if !mirror.join("HEAD").exists() {
            self.run(&self.git(mirror, "", ["init", "--quiet", "--bare", "--template=", "."]), cancel)?;
        }
        if self.has(mirror, commit, cancel)? {
            return Ok(());
        }
        let by_name = commit.reference.as_ref().map(|name| format!("+{name}:{}", named(commit, name)));
        let by_id = format!("+{}:{}", commit.id, kept(commit));
        let depth = if history == History::None { &["--depth=1"][..] } else { &[] };
        let mut refused = None;
        for wanted in by_name.into_iter().chain(std::iter::once(by_id)) {
            match self.run(&self.fetch(mirror, depth, &[&wanted]), cancel) {
                Ok(_) if self.exists(mirror, commit, cancel)? => return self.keep(mirror, commit, cancel),
                // The reference has moved on since the commit was looked up.
                Ok(_) => {}
                Err(error) if matches!(error.kind(), Kind::Cancelled | Kind::Timeout | Kind::Unsupported) => {
                    return Err(error);
                }
                Err(error) => refused = Some(error),
            }
        }
        // Servers need not hand out commits by their ids: then it is found among all.
        let deepen = if mirror.join("shallow").exists() { &["--unshallow"][..] } else { &[] };
        let all = ["+refs/heads/*:refs/kiln-all/heads/*", "+refs/tags/*:refs/kiln-all/tags/*"];
        match self.run(&self.fetch(mirror, deepen, &all), cancel) {
            Ok(_) => {}
            Err(error) => return Err(refused.unwrap_or(error)),
        }
        if !self.exists(mirror, commit, cancel)? {
            let (address, id) = (self.name(), &commit.id);
            return Err(Error::not_found(format!("the repository {address} does not contain the commit {id}")));
        }
        self.keep(mirror, commit, cancel)
    }

    /// Sees to it that a mirror that has a commit has the object, too, by which it was found: a tag, perhaps. Blocking.
    ///
    /// # Errors
    /// `NotFound` when the remote has it no longer.
    pub(super) fn bring_object(&self, mirror: &Path, commit: &Commit, object: &str, cancel: &Cancel) -> Result<()> {
        let is_here = |this: &Self| {
            let asked = this.git(mirror, "", ["cat-file", "-e", object]);
            this.try_run(&asked, cancel).map(|said| said.status.success())
        };
        let by_name = commit.reference.as_ref().map(|name| format!("+{name}:{}", named(commit, name)));
        let by_id = format!("+{object}:refs/kiln-objects/{object}");
        for wanted in by_name.into_iter().chain(std::iter::once(by_id)) {
            if is_here(self)? {
                return Ok(());
            }
            match self.run(&self.fetch(mirror, &["--depth=1"], &[&wanted]), cancel) {
                Err(error) if matches!(error.kind(), Kind::Cancelled | Kind::Timeout) => return Err(error),
                _ => {}
            }
        }
        if is_here(self)? {
            return Ok(());
        }
        let address = &self.address;
        Err(Error::not_found(format!("the repository {address} does not contain the object {object} any more")))
    }

    fn keep(&self, mirror: &Path, commit: &Commit, cancel: &Cancel) -> Result<()> {
        self.run(&self.git(mirror, "", ["update-ref", &kept(commit), &commit.id]), cancel).map(drop)
    }

    fn fetch(&self, mirror: &Path, options: &[&str], wanted: &[&str]) -> Program {
        let words = FETCH.iter().chain(options).copied().chain(["--", self.address.as_str()]);
        self.git(mirror, self.protocols(), words.chain(wanted.iter().copied()))
    }

    /// Whether a commit is kept here.
    fn has(&self, mirror: &Path, commit: &Commit, cancel: &Cancel) -> Result<bool> {
        let name = format!("{}^{{commit}}", kept(commit));
        let said = self.try_run(&self.git(mirror, "", ["rev-parse", "--quiet", "--verify", &name]), cancel)?;
        Ok(said.status.success() && String::from_utf8_lossy(&said.stdout).trim() == commit.id)
    }

    fn exists(&self, mirror: &Path, commit: &Commit, cancel: &Cancel) -> Result<bool> {
        let name = format!("{}^{{commit}}", commit.id);
        Ok(self.try_run(&self.git(mirror, "", ["cat-file", "-e", &name]), cancel)?.status.success())
    }
}
