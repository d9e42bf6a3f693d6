//! Objects of a repository: the commit and the tag that a reference leads to, as they are, and whose signature they have.

use std::path::Path;
use std::sync::Arc;

use kiln_graph::op::{GitSource, GitVerification};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use super::git::{Commit, Repository, shown};
use super::mirror::History;
use crate::error::{Error, Result, ResultExt as _};
use crate::signature::{self, Expired, Terms};
use crate::solver::job::Job;
use crate::task::{self, Cancel};

/// The largest object that is read, in bytes.
const MAX_OBJECT: usize = 8 << 20;

/// What armored signatures begin with, as git finds them in tags.
const SIGNATURES: &[&[u8]] = &[
    b"-----BEGIN PGP SIGNATURE-----",
    b"-----BEGIN PGP MESSAGE-----",
    b"-----BEGIN SSH SIGNATURE-----",
    b"-----BEGIN SIGNED MESSAGE-----",
];

/// What a reference leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Objects {
    pub(super) commit: Object,
    /// The tag, when the reference is one that is an object of its own.
    pub(super) tag: Option<Object>,
}

/// An object of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) id: String,
    /// Without the header that git hashes with it.
    pub(super) content: Vec<u8>,
}

impl Job {
    /// Fetches what a reference leads to: a commit, and the object it names.
    pub(super) async fn objects(self: &Arc<Self>, git: &GitSource, commit: &Commit, object: &str) -> Result<Objects> {
        if git.bundle.is_some() {
            return Err(Error::unsupported("objects of a repository that is a bundle are not looked at"));
        }
        let repository = self.repository(git).await?;
        let mirror = self.kept_by_source(&format!("git repository {}", repository.address)).await?;
        let (commit, object, cancel) = (commit.clone(), object.to_owned(), Cancel::new());
        let _stop = cancel.on_drop();
        let stop = cancel.clone();
        task::blocking(move || repository.objects(mirror.path(), &commit, &object, &stop)).await
    }

    /// Checks that what a reference leads to is signed as the source wants it.
    ///
    /// # Errors
    /// Naming the repository and the object, and what is wrong with its signature.
    pub(super) fn verify_objects(&self, git: &GitSource, objects: &Objects) -> Result<()> {
        let Some(verification) = &git.verification else { return Ok(()) };
        let now_s = self.progress.now_ns() / 1_000_000_000;
        verify(objects, verification, now_s).context(|| format!("verify {}", shown(&git.remote)))
    }
}

impl Repository {
    /// Reads the objects of a reference, which are fetched unless they are here. Blocking.
    ///
    /// # Errors
    /// `NotFound` when the repository has no such object; `Corrupt` when a tag is not of the commit that it was said to be of.
    fn objects(&self, mirror: &Path, commit: &Commit, object: &str, cancel: &Cancel) -> Result<Objects> {
        self.bring(mirror, commit, History::None, cancel)?;
        self.bring_object(mirror, commit, object, cancel)?;
        let kind = self.run(&self.git(mirror, "", ["cat-file", "-t", object]), cancel)?;
        let peeled =
            self.run(&self.git(mirror, "", ["rev-parse", "--verify", &format!("{object}^{{commit}}")]), cancel)?;
        let (kind, peeled) = (kind.trim(), peeled.trim());
        // The server says both when it is asked what a reference means, and only one of them may be signed.
        if commit.id != object && peeled != commit.id {
            let (address, id) = (&self.address, &commit.id);
            return Err(Error::corrupt(format!("fetch {address}: the tag {object} is of {peeled}, not of {id}")));
        }
        let tag = match kind {
            "tag" => Some(self.object(mirror, "tag", object, cancel)?),
            "commit" => None,
            other => return Err(Error::invalid(format!("expected commit or tag object, got {other}"))),
        };
        Ok(Objects { commit: self.object(mirror, "commit", peeled, cancel)?, tag })
    }

    /// Reads an object, and checks that it is the one of that id.
    fn object(&self, mirror: &Path, kind: &str, id: &str, cancel: &Cancel) -> Result<Object> {
        let content = self.run_bytes(&self.git(mirror, "", ["cat-file", kind, id]), cancel)?;
        let (address, length) = (&self.address, content.len());
        if length > MAX_OBJECT {
            return Err(Error::invalid(format!(
                "fetch {address}: the {kind} {id} is larger than {} MiB",
                MAX_OBJECT >> 20
            )));
        }
        let hashed = [format!("{kind} {length}\0").as_bytes(), &content].concat();
        let found = if id.len() == 40 { hex(&Sha1::digest(&hashed)) } else { hex(&Sha256::digest(&hashed)) };
        if found != id {
            return Err(Error::corrupt(format!("fetch {address}: the {kind} {id} hashes to {found}")));
        }
        Ok(Object { id: id.to_owned(), content })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks signatures by BuildKit's rules: that of the tag is enough, and that of the commit is, unless the tag's is demanded.
fn verify(objects: &Objects, verification: &GitVerification, now_s: i64) -> Result<()> {
    let expired = if verification.reject_expired { Expired::Refused } else { Expired::Accepted };
    let terms = Terms { keys: &verification.keys, expired, now_s };
    let tag = objects.tag.as_ref().filter(|_| !verification.ignore_signed_tag);
    let of_tag = tag.map(|tag| verify_one(tag, "tag", split_tag(&tag.content), &terms));
    match of_tag {
        Some(Ok(())) => Ok(()),
        Some(Err(refused)) if verification.require_signed_tag => Err(refused),
        None if verification.require_signed_tag => {
            Err(Error::forbidden("signed tag required but no signed tag found; name a tag that git tag -s has made"))
        }
        of_tag => {
            let commit = &objects.commit;
            let of_commit = verify_one(commit, "commit", split_commit(&commit.content, commit.id.len() == 40), &terms);
            match (of_commit, of_tag) {
                (Err(refused), Some(Err(of_tag))) => Err(refused.context(of_tag)),
                (of_commit, _) => of_commit,
            }
        }
    }
}

fn verify_one(object: &Object, kind: &str, (signed, signature): (Vec<u8>, Vec<u8>), terms: &Terms<'_>) -> Result<()> {
    let verified = match std::str::from_utf8(&signature) {
        Ok("") => Err(Error::forbidden(format!(
            "git object is not signed; sign it (git {}), or ask for no signature",
            if kind == "tag" { "tag -s" } else { "commit -S" }
        ))),
        Ok(signature) => signature::verify_object(&signed, signature, terms),
        Err(_) => Err(Error::invalid("what should be its signature is no text")),
    };
    verified.context(|| format!("{kind} {}", object.id))
}

/// Takes the signature out of a commit: a header, whose further lines begin with a space. There is one for each sort of ids.
fn split_commit(content: &[u8], is_sha1: bool) -> (Vec<u8>, Vec<u8>) {
    let own: &[u8] = if is_sha1 { b"gpgsig " } else { b"gpgsig-sha256 " };
    let (mut signed, mut signature) = (Vec::with_capacity(content.len()), Vec::new());
    let mut rest = content;
    let (mut in_headers, mut in_signature, mut in_own) = (true, false, false);
    while !rest.is_empty() && in_headers {
        let end = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1);
        let (line, after) = rest.split_at(end);
        rest = after;
        let text = match line.strip_prefix(b" ") {
            Some(text) if in_signature => text,
            _ => {
                in_own = line.starts_with(own);
                in_signature = line.starts_with(b"gpgsig ") || line.starts_with(b"gpgsig-sha256 ");
                line.strip_prefix(own).unwrap_or(line)
            }
        };
        match (in_signature, in_own) {
            (true, true) => signature.extend_from_slice(text),
            (true, false) => {}
            (false, _) => signed.extend_from_slice(line),
        }
        in_headers = line != b"\n";
    }
    signed.extend_from_slice(rest);
    (signed, signature)
}

/// Takes the signature off the end of a tag.
fn split_tag(content: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut at = None;
    let mut offset = 0;
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        if SIGNATURES.iter().any(|begin| line.starts_with(begin)) {
            at = Some(offset);
        }
        offset += line.len();
    }
    let (signed, signature) = content.split_at(at.unwrap_or(content.len()));
    (signed.to_vec(), signature.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_commit_is_signed_without_the_headers_that_hold_signatures() {
        let commit =
            b"tree 1\nmergetag object 2\n gpgsig no\nauthor a\ngpgsig -----BEGIN X-----\n \n abc\n -----END X-----\n\
                       gpgsig-sha256 other\n more\nencoding x\n\ngpgsig of no concern\n";
        let (signed, signature) = split_commit(commit, true);
        let rest = "tree 1\nmergetag object 2\n gpgsig no\nauthor a\nencoding x\n\ngpgsig of no concern\n";
        assert_eq!(text(&signed), rest);
        assert_eq!(text(&signature), "-----BEGIN X-----\n\nabc\n-----END X-----\n");
        let (signed, signature) = split_commit(commit, false);
        assert_eq!((text(&signed), text(&signature)), (rest, "other\nmore\n"));
        assert_eq!(split_commit(b"tree 1\n\nx", true), (b"tree 1\n\nx".to_vec(), Vec::new()));
    }

    #[test]
    fn a_tag_is_signed_up_to_its_last_signature() {
        let block = "-----BEGIN SSH SIGNATURE-----\nabc\n-----END SSH SIGNATURE-----\n";
        let said = format!("object 1\n\nsays {block}{block}");
        let (signed, signature) = split_tag(said.as_bytes());
        assert_eq!(text(&signature), block);
        assert_eq!(signed.len() + signature.len(), said.len());
        assert_eq!(split_tag(b"object 1\n\nx\n"), (b"object 1\n\nx\n".to_vec(), Vec::new()));
    }

    #[test]
    fn what_is_asked_for_decides_which_signature_counts() {
        let object = |content: &str| Object { id: "0".repeat(40), content: content.as_bytes().to_vec() };
        let objects = Objects { commit: object("tree 1\n\nx\n"), tag: Some(object("object 1\n\nx\n")) };
        let refused = |tag: bool, change: &dyn Fn(&mut GitVerification)| {
            let mut verification = GitVerification { keys: "key".to_owned(), ..GitVerification::default() };
            change(&mut verification);
            let objects = Objects { tag: objects.tag.clone().filter(|_| tag), ..objects.clone() };
            verify(&objects, &verification, 0).unwrap_err().to_string()
        };
        let both = refused(true, &|_| {});
        assert!(both.contains("tag 000") && both.contains("commit 000") && both.contains("not signed"), "{both}");
        let tag = refused(true, &|wanted| wanted.require_signed_tag = true);
        assert!(tag.contains("tag 000") && !tag.contains("commit 000"), "{tag}");
        let commit = refused(true, &|wanted| wanted.ignore_signed_tag = true);
        assert!(commit.contains("commit 000") && !commit.contains("tag 000"), "{commit}");
        assert!(refused(false, &|wanted| wanted.require_signed_tag = true).contains("no signed tag found"));
    }
}
