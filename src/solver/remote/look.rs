//! Looking at a source for a frontend: what it is now, without what is in it.

use std::sync::Arc;

use kiln_graph::op::{GitSource, HttpSource, Source};
use kiln_graph::{Digest, VertexId};

use super::{Pin, http};
use crate::error::{Error, Result};
use crate::solver::failure::Failure;
use crate::solver::job::Job;

/// What a repository's reference means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::solver) struct GitAnswer {
    /// The object of the reference.
    pub(in crate::solver) object: String,
    /// The reference in full.
    pub(in crate::solver) reference: String,
    /// The commit, when the object is a tag of it.
    pub(in crate::solver) commit: String,
}

/// What a file by HTTP is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::solver) struct FileAnswer {
    /// The digest of its content.
    pub(in crate::solver) digest: Digest,
    /// Its name.
    pub(in crate::solver) name: String,
    /// When it changed, in seconds since 1970, if its server says.
    pub(in crate::solver) modified_s: Option<i64>,
}

impl Job {
    /// Finds out what a repository's reference means.
    pub(in crate::solver) async fn look_at_repository(self: &Arc<Self>, git: &GitSource) -> Result<GitAnswer> {
        let (commit, object) = self.find_commit(git).await?;
        let reference = commit.reference.unwrap_or_default();
        let commit = if commit.id == object { String::new() } else { commit.id };
        Ok(GitAnswer { object, reference, commit })
    }

    /// Finds out what a file is. One whose server does not say whether it has changed is fetched.
    pub(in crate::solver) async fn look_at_file(
        self: &Arc<Self>,
        id: VertexId,
        file: &HttpSource,
    ) -> Result<FileAnswer, Failure> {
        self.carry_out(vec![id]).await?;
        match (self.pins.get(&Source::Http(file.clone())), file.checksum) {
            (Some(Pin::File(version)), _) => Ok(version.answer()),
            (_, Some(digest)) => Ok(FileAnswer { digest, name: http::file_name(file, None)?, modified_s: None }),
            _ => Err(Error::internal("a file was fetched and is not known").into()),
        }
    }
}
