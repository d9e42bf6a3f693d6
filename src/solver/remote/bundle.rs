//! Bundles of git: files with commits and what led to them. A repository's commit may be taken from one, and a checkout may be one.
//!
//! A bundle is found as blobs are, by its digest; the commit is held to the source's checksum.

use std::sync::Arc;

use kiln_graph::op::{BlobLocator, GitSource};

use super::git::{Commit, Repository, is_commit_id};
use crate::error::{Error, Result};
use crate::solver::job::Job;
use crate::solver::reporter::Reporter;
use crate::store::Blob;
use crate::task::{self, Cancel};

/// The name of the file that a checkout becomes, as with BuildKit.
pub(super) const FILE: &str = "bundle";

/// The name that the commit gets in a bundle, as with BuildKit: that of a tag is kept if it is written in full, others are branches.
pub(super) fn reference(git: &GitSource) -> String {
    let reference = git.reference.as_str();
    if reference.is_empty() || is_commit_id(&reference.to_ascii_lowercase()) {
        return "refs/heads/main".to_owned();
    }
    if reference.starts_with("refs/tags/") {
        return reference.to_owned();
    }
    let name = reference.strip_prefix("refs/").unwrap_or(reference);
    format!("refs/heads/{}", name.strip_prefix("heads/").unwrap_or(name))
}

impl Job {
    /// Brings a bundle here, as a repository that git reads; the blob keeps its file.
    pub(super) async fn bundle(
        self: &Arc<Self>,
        locator: &BlobLocator,
        reporter: Option<&Reporter>,
    ) -> Result<(Repository, Blob)> {
        let blob = self.fetch_blob(locator, reporter).await?;
        Ok((Repository::bundle(blob.path(), locator.address()), blob))
    }

    /// Finds out which commit a source means whose commits are in a bundle, and the object that its reference names. Of a commit's
    /// id, the bundle is not needed for that.
    pub(super) async fn find_in_bundle(
        self: &Arc<Self>,
        git: &GitSource,
        locator: &BlobLocator,
    ) -> Result<(Commit, String)> {
        let wanted = git.checksum.to_ascii_lowercase();
        let written = git.reference.to_ascii_lowercase();
        let pinned = if written.is_empty() { &wanted } else { &written };
        let (commit, object) = if is_commit_id(pinned) {
            (Commit { id: pinned.clone(), reference: None }, pinned.clone())
        } else {
            let (repository, blob) = self.bundle(locator, None).await?;
            let cancel = Cancel::new();
            let _stop = cancel.on_drop();
            let (asked, reference) = (cancel.clone(), git.reference.clone());
            let found = task::blocking(move || repository.resolve(&reference, &asked)).await;
            drop(blob);
            found?
        };
        if wanted.is_empty() || !commit.id.starts_with(&wanted) && !object.starts_with(&wanted) {
            let (address, id) = (locator.address(), &commit.id);
            return Err(Error::corrupt(format!("fetch {address}: expected checksum to match {wanted}, got {id}")));
        }
        Ok((commit, object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_named_as_its_reference_is_written() {
        for (written, name) in [
            ("", "refs/heads/main"),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "refs/heads/main"),
            ("master", "refs/heads/master"),
            ("refs/heads/a/b", "refs/heads/a/b"),
            ("heads/x", "refs/heads/x"),
            ("refs/tags/v1", "refs/tags/v1"),
            ("v1", "refs/heads/v1"),
            ("refs/pull/1/head", "refs/heads/pull/1/head"),
        ] {
            assert_eq!(reference(&GitSource { reference: written.to_owned(), ..GitSource::default() }), name);
        }
    }
}
