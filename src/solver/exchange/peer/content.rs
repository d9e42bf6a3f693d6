//! What BuildKit knows paths by: headers as tar has them, without times and names, each with its file's data; a directory is
//! its header and the names and digests of what it holds.
//!
//! What is selected, and what of it is not there, is found as for copies; only the hash is another one. Files are read again.

use kiln_graph::Digest;
use kiln_graph::op::Copy;
use kiln_llb::Selected;
use rayon::iter::{IndexedParallelIterator as _, IntoParallelIterator as _, ParallelIterator as _};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Kind, Result, ResultExt as _};
use crate::solver::copy::{Entry, Match, Owners, Tree, open_selected, select};
use crate::store::tree::{self, Kind as FileKind};
use crate::task::Cancel;

/// Returns the digest of what is selected of a tree; `None` when some of it is not there. Blocking; hashes on all cores.
///
/// # Errors
/// When the tree cannot be read; `Cancelled`.
pub(super) fn digest(tree: &Tree, selected: &[Selected], cancel: &Cancel) -> Result<Option<Digest>> {
    let mut all = Vec::with_capacity(selected.len());
    for one in selected {
        let reader = Reader { tree, cancel };
        let is_filtered = one.wildcard || !one.include.is_empty() || !one.exclude.is_empty();
        let digest = if is_filtered { reader.filtered(one) } else { reader.plain(&one.path, one.follow_links) };
        match digest {
            Ok(digest) => all.push(digest.to_string()),
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(Digest::of(all.join("\0").as_bytes())))
}

struct Reader<'a> {
    tree: &'a Tree,
    cancel: &'a Cancel,
}

impl Reader<'_> {
    fn select(&self, copy: &Copy) -> Result<Vec<Match>> {
        Ok(select(self.tree, copy, self.cancel)?.matches)
    }

    /// Hashes a path with all below it.
    fn plain(&self, path: &str, follow_symlinks: bool) -> Result<Digest> {
        let source = if path.is_empty() { "/" } else { path };
        let copy = Copy {
            source: source.to_owned(),
            follow_symlinks,
            wildcard: false,
            allow_empty_wildcard: false,
            ..Copy::default()
        };
        let matches = self.select(&copy)?;
        let found = matches.first().ok_or_else(|| Error::not_found(format!("{path}: not in {}", self.tree.name)))?;
        let hashed = self.entries(found)?;
        Ok(content(&hashed, found.top.metadata.kind))
    }

    /// Hashes what patterns select: directories count by their headers, and links by what they lead to.
    fn filtered(&self, one: &Selected) -> Result<Digest> {
        let copy = Copy {
            source: one.path.clone(),
            follow_symlinks: false,
            wildcard: one.wildcard,
            include: one.include.clone(),
            exclude: one.exclude.clone(),
            ..Copy::default()
        };
        let mut included: Vec<(Vec<u8>, Digest)> = Vec::new();
        for found in self.select(&copy)? {
            let is_root = found.path.is_empty();
            let is_taken = if found.top.metadata.kind == FileKind::Dir {
                one.include.is_empty() || !found.below.is_empty()
            } else {
                one.include.is_empty()
            };
            for (number, hashed) in self.entries(&found)?.into_iter().enumerate() {
                if number == 0 && (is_root || !is_taken) {
                    continue;
                }
                let name = if number == 0 { found.name.to_bytes() } else { last(&hashed.entry.path) };
                let digest = if hashed.entry.metadata.kind == FileKind::Symlink && one.follow_links {
                    let path = found.path_below(&hashed.entry.path);
                    self.plain(&String::from_utf8_lossy(&path), true)?
                } else {
                    hashed.digest
                };
                included.push((name.to_vec(), digest));
            }
        }
        if let [(name, digest)] = included.as_slice()
            && name == last(one.path.trim_end_matches('/').as_bytes())
        {
            return Ok(*digest);
        }
        let parts: Vec<Vec<u8>> =
            included.into_iter().map(|(name, digest)| [name, digest.to_string().into_bytes()].concat()).collect();
        Ok(Digest::of(&parts.join(&0)))
    }

    /// Hashes a match and all below it, each by itself.
    fn entries<'e>(&self, found: &'e Match) -> Result<Vec<Hashed<'e>>> {
        let entries: Vec<&Entry> = found.entries().collect();
        // The root of a client's directory is not sent, so nobody knows its header.
        let is_sent_root = found.path.is_empty() && self.tree.owners == Owners::Root;
        let hash = |(number, entry): (usize, &'e Entry)| {
            let digest = if number == 0 && is_sent_root {
                Digest::of(b"")
            } else {
                let path = found.path_below(&entry.path);
                self.entry(entry, &path).context(|| format!("read {} in {}", tree::display(&path), self.tree.name))?
            };
            Ok(Hashed { entry, digest })
        };
        let numbered: Vec<(usize, &Entry)> = entries.into_iter().enumerate().collect();
        numbered.into_par_iter().with_min_len(8).map(hash).collect()
    }

    fn entry(&self, entry: &Entry, path: &[u8]) -> Result<Digest> {
        let mut hash = Sha256::new();
        hash.update(header(entry));
        if entry.metadata.kind == FileKind::File && entry.metadata.size > 0 {
            let file = open_selected(&self.tree.root, path)?;
            let mut buffer = vec![0; 64 << 10];
            loop {
                let read = rustix::io::retry_on_intr(|| rustix::io::read(&file, buffer.as_mut_slice()))?;
                if read == 0 {
                    break;
                }
                hash.update(&buffer[..read]);
                self.cancel.check()?;
            }
        }
        Ok(Digest::sha256(hash.finalize().into()))
    }
}

/// A file or directory with the digest of what it is by itself.
struct Hashed<'a> {
    entry: &'a Entry,
    digest: Digest,
}

/// Returns the digest of a list's first entry with all below it, which is the rest of the list.
fn content(hashed: &[Hashed<'_>], kind: FileKind) -> Digest {
    let Some((own, mut below)) = hashed.split_first() else { return Digest::of(b"") };
    if kind != FileKind::Dir {
        return own.digest;
    }
    let mut hash = Sha256::new();
    hash.update(b"\0");
    hash.update(own.digest.to_string());
    while let [first, rest @ ..] = below {
        let path = &first.entry.path;
        let is_below = |other: &Hashed<'_>| {
            other.entry.path.strip_prefix(path.as_slice()).is_some_and(|rest| rest.first() == Some(&b'/'))
        };
        let count = 1 + rest.iter().take_while(|other| is_below(other)).count();
        hash.update(b"\0");
        hash.update(last(path));
        hash.update(content(&below[..count], first.entry.metadata.kind).to_string());
        below = &below[count..];
    }
    Digest::sha256(hash.finalize().into())
}

/// The last component of a path.
fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// A header in the order of docker's `tarsum`, version 1: without the time, and with an empty name.
fn header(entry: &Entry) -> Vec<u8> {
    let metadata = &entry.metadata;
    let flag = match metadata.kind {
        FileKind::File | FileKind::Socket => '0',
        FileKind::Symlink => '2',
        FileKind::Char => '3',
        FileKind::Block => '4',
        FileKind::Dir => '5',
        FileKind::Fifo => '6',
    };
    let mode = if metadata.kind == FileKind::Symlink { 0o777 } else { metadata.mode };
    let size = if metadata.kind == FileKind::File { metadata.size } else { 0 };
    let (uid, gid) = (metadata.uid, metadata.gid);
    let mut header = format!("namemode{mode}uid{uid}gid{gid}size{size}typeflag{flag}linkname").into_bytes();
    header.extend_from_slice(&entry.link);
    // BuildKit looks for the numbers of devices in a way that finds none.
    header.extend_from_slice(b"unamegnamedevmajor0devminor0");
    let mut xattrs: Vec<_> = entry.xattrs.iter().collect();
    xattrs.sort_unstable();
    for (name, value) in xattrs {
        header.extend_from_slice(name.to_bytes());
        header.extend_from_slice(value);
    }
    header
}
