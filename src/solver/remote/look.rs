//! Looking at a source for a frontend: what it is now, without what is in it.

use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use kiln_graph::op::{GitSource, HttpSource, Source};
use kiln_graph::{Digest, VertexId};
use rustix::fs::{Mode, OFlags};
use sha2::{Sha256, Sha384, Sha512};

use super::{Pin, http};
use crate::error::{Error, Result, ResultExt as _};
use crate::solver::failure::Failure;
use crate::solver::job::Job;
use crate::solver::value::Value;
use crate::task;

/// How much of a file is hashed at a time, in bytes.
const PIECE: usize = 1 << 20;

/// What a repository's reference means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::solver) struct GitAnswer {
    /// The object of the reference.
    pub(in crate::solver) object: String,
    /// The reference in full.
    pub(in crate::solver) reference: String,
    /// The commit, when the object is a tag of it.
    pub(in crate::solver) commit: String,
    /// The commit as it is, if that was asked for.
    pub(in crate::solver) commit_object: Vec<u8>,
    /// The tag as it is, if that was asked for and the object is one.
    pub(in crate::solver) tag_object: Vec<u8>,
}

/// What a client wants a file's content to be hashed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::solver) enum Hash {
    Sha256,
    Sha384,
    Sha512,
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
    /// Finds out what a repository's reference means; its objects are fetched if they are asked for or must be signed.
    pub(in crate::solver) async fn look_at_repository(
        self: &Arc<Self>,
        git: &GitSource,
        with_objects: bool,
    ) -> Result<GitAnswer> {
        let (commit, object) = self.find_commit(git).await?;
        let mut answer =
            GitAnswer { object, reference: commit.reference.clone().unwrap_or_default(), ..GitAnswer::default() };
        if with_objects || git.verification.is_some() {
            let objects = self.objects(git, &commit, &answer.object).await?;
            self.verify_objects(git, &objects)?;
            if let Some(tag) = objects.tag {
                (answer.commit, answer.tag_object) = (objects.commit.id, tag.content);
            }
            answer.commit_object = objects.commit.content;
        } else if commit.id != answer.object {
            answer.commit = commit.id;
        }
        Ok(answer)
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

    /// Hashes a file that was looked at, and more bytes after it; what OpenPGP's signatures are made of.
    ///
    /// # Errors
    /// When its layer cannot be read.
    pub(in crate::solver) async fn hash_file(
        self: &Arc<Self>,
        id: VertexId,
        name: &str,
        hash: Hash,
        suffix: Vec<u8>,
    ) -> Result<String> {
        let Some(Value::FileSystem(file_system)) = self.value(id) else {
            return Err(Error::internal("a file was fetched and is not here"));
        };
        let root = self.mount(&file_system).await?;
        let name = name.to_owned();
        task::blocking(move || {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&root, &*name, flags, Mode::empty()).context(|| format!("open {name}"))?;
            let file = File::from(file);
            Ok(match hash {
                Hash::Sha256 => format!("sha256:{}", hash_with::<Sha256>(file, &suffix)?),
                Hash::Sha384 => format!("sha384:{}", hash_with::<Sha384>(file, &suffix)?),
                Hash::Sha512 => format!("sha512:{}", hash_with::<Sha512>(file, &suffix)?),
            })
        })
        .await
    }
}

fn hash_with<H: sha2::Digest>(mut file: File, suffix: &[u8]) -> Result<String> {
    let (mut hash, mut piece) = (H::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            count => hash.update(&piece[..count]),
        }
    }
    hash.update(suffix);
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
