//! Layers: from a directory to the tar that registries carry, and back.
//!
//! A layer is known by the digest of its uncompressed tar (its *diff ID*). The tar is made anew each time it is needed and
//! never stored; the same tree over the same view below always gives the same bytes. Which directory belongs to which layer,
//! and what lies below it, is known one module up.

mod apply;
mod archive;
mod changes;
mod entries;
mod estargz;
mod extract;
mod header;
mod marks;
mod pack;
mod settle;

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

use bytes::Bytes;
use kiln_graph::Digest;
use sha2::{Digest as _, Sha256};

pub(super) use apply::{Place, apply, stands_as_it_is};
pub use archive::{Passing, What, pass_by};
use changes::{Changes, Content, Item, Loaded};
pub(super) use changes::{Form, Source};
pub(super) use estargz::{table_digest, write_estargz};
pub use extract::{ExtractOptions, Extracted};
pub(super) use marks::{Marks, keeps_xattr};
pub use pack::{Style, Times};
pub(super) use settle::{merge, settle};

use super::compression::Decoder;
use super::tree::Xattrs;
use super::usage::Tally;
use crate::error::{Error, Result, ResultExt as _};
use crate::task::{Cancel, beside};

/// The digests of a layer.
#[derive(Clone, Debug)]
pub struct LayerDigests {
    /// The SHA-256 of the layer's tar.
    pub diff_id: Digest,
    /// What the layer holds but for the times.
    pub content: ContentHash,
    /// The length of the tar in bytes.
    pub tar_size: u64,
    /// What the tree takes on the disk.
    pub(super) tally: Tally,
}

/// A hash of what a layer holds: names, data, owners, modes, attributes and links, but no times.
///
/// Two runs of a step that did the same at different times have the same one. It is the BLAKE3 of the layer's tar with all
/// times zero, so it is our own and compares only with others that this program made.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A path that differs from the view below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathChange {
    /// The path, absolute.
    pub path: PathBuf,
    /// What became of it.
    pub kind: PathChangeKind,
}

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathChangeKind {
    /// It is new.
    Added,
    /// It is something else, holds something else, or has other metadata; of a directory, also: something in it did.
    Modified,
    /// It is no longer there.
    Deleted,
}

/// Lists what a tree changes over the view below it, sorted by path.
pub(super) fn list_changes(source: Source) -> Result<Vec<PathChange>> {
    let (mut changes, _) = Changes::new(source)?;
    let mut listed: Vec<PathChange> = Vec::new();
    // The directories entered, each with the length of the list after it, while it still has to prove that it belongs there.
    let mut dirs: Vec<Option<usize>> = vec![None];
    let change = |path: &[u8], kind| PathChange { path: Path::new("/").join(OsStr::from_bytes(path)), kind };
    let found = |replaces| if replaces { PathChangeKind::Modified } else { PathChangeKind::Added };
    while let Some(item) = changes.step()? {
        match item {
            Item::Enter(dir) => {
                listed.push(change(&dir.path, found(dir.replaces)));
                dirs.push(if dir.changed { None } else { Some(listed.len()) });
            }
            Item::Leave => {
                if dirs.pop().flatten() == Some(listed.len()) {
                    listed.pop();
                }
            }
            Item::Gone(path) => listed.push(change(&path, PathChangeKind::Deleted)),
            Item::Other(candidate) => match changes.load(&candidate, Content::Ignored)? {
                Loaded::Same(_) => {}
                Loaded::Gone(_) => listed.push(change(&candidate.path, PathChangeKind::Deleted)),
                Loaded::Changed(file) => listed.push(change(&candidate.path, found(file.replaces))),
            },
        }
    }
    Ok(listed)
}

/// Computes the digests of a tree's layer.
pub(super) fn digest(source: Source, cancel: &Cancel) -> Result<LayerDigests> {
    write(source, &Style::default(), &mut io::sink(), cancel)
}

/// Writes an archive of everything in a directory. Blocking.
///
/// # Errors
/// Those of `out`; `Cancelled`; `Unsupported` for what no archive can hold; `Conflict` when the tree changes meanwhile.
pub fn archive_tree(root: OwnedFd, style: &Style, out: &mut dyn Write, cancel: &Cancel) -> Result<()> {
    let source = Source { tree: root, form: Form::Whole(None), lower: None };
    pack::pack(source, style, cancel, |chunk| Ok(out.write_all(&chunk.bytes)?)).map(drop)
}

/// Writes an archive of a few files, names and contents, that belong to root. It is to be followed by [`end_archive`].
///
/// # Errors
/// Those of `out`.
pub fn archive_files(files: &[(String, Bytes)], style: &Style, out: &mut dyn Write) -> Result<()> {
    for (name, content) in files {
        let path = if style.prefix.is_empty() { name.clone() } else { format!("{}/{name}", style.prefix) };
        let (flag, mode, size, xattrs) = (header::Flag::File, 0o644, content.len() as u64, Xattrs::default());
        let mtime = if let Times::Set(time) = style.times { time } else { 0 };
        let (path, link, uid, gid, rdev) = (path.as_bytes(), &b""[..], 0, 0, (0, 0));
        let mut bytes = Vec::new();
        header::Header { flag, path, link, mode, uid, gid, size, mtime, rdev, xattrs: &xattrs }.write(&mut bytes)?;
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(header::BLOCK), 0);
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Ends an archive that was written in parts.
///
/// # Errors
/// Those of `out`.
pub fn end_archive(out: &mut dyn Write) -> Result<()> {
    Ok(out.write_all(&[0; 2 * header::BLOCK])?)
}

/// Writes the tar of a tree's layer, and computes its digests on the way.
pub(super) fn write(source: Source, style: &Style, out: &mut dyn Write, cancel: &Cancel) -> Result<LayerDigests> {
    let (mut diff_id, mut content, mut tar_size) = (Sha256::new(), blake3::Hasher::new(), 0);
    let tally = pack::pack(source, style, cancel, |chunk| {
        out.write_all(&chunk.bytes)?;
        diff_id.update(&chunk.bytes);
        tar_size += chunk.bytes.len() as u64;
        chunk.forget_times();
        content.update(&chunk.bytes);
        Ok(())
    })?;
    let content = ContentHash(content.finalize().into());
    Ok(LayerDigests { diff_id: Digest::sha256(diff_id.finalize().into()), content, tar_size, tally })
}

/// A layer as it came out of its archive.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub diff_id: Digest,
    pub tar_size: u64,
    pub extracted: Extracted,
}

/// Unpacks a layer, compressed or not, into an empty directory in upper form, and computes its diff ID on the way.
///
/// One thread decompresses and hashes, the caller's writes.
pub(super) fn unpack(
    layer: impl Read + Send,
    into: OwnedFd,
    marks: Marks,
    options: ExtractOptions<'_>,
) -> Result<Unpacked> {
    let (extracted, diff_id, tar_size) = decompressed(layer, |tar| extract::extract(tar, into, Some(marks), options))?;
    Ok(Unpacked { diff_id, tar_size, extracted })
}

/// Unpacks an archive, compressed or not, into a directory, merging it with what is there.
///
/// Entries that begin with `.wh.` are files like any other here. What leads out of the directory is refused. Blocking. Needs
/// CAP_CHOWN in the user namespace, unless the archive names no other owner than the caller; without CAP_MKNOD, device nodes
/// are left out and counted.
///
/// # Errors
/// `InvalidArgument` for what is no archive or leads out of the directory; `Corrupt` when it is truncated or damaged;
/// `Unsupported` for entries of an unknown sort or too many of them; `Exhausted` on a full disk. The directory is left partly
/// written.
pub fn extract(archive: impl Read + Send, into: OwnedFd, options: ExtractOptions<'_>) -> Result<Extracted> {
    let (extracted, ..) = decompressed(archive, |tar| extract::extract(tar, into, None, options))?;
    Ok(extracted)
}

/// Decompresses and hashes on one thread while `consume` reads on this one; returns its result, the digest and the length of
/// all that was decompressed, including what `consume` has left.
fn decompressed<T>(
    input: impl Read + Send,
    consume: impl FnOnce(&mut Pieces) -> Result<T>,
) -> Result<(T, Digest, u64)> {
    /// The size of a piece, in bytes, and how many wait between the threads.
    const PIECE: usize = 256 << 10;
    const WAITING: usize = 4;
    let (sender, receiver) = sync_channel::<Result<Vec<u8>>>(WAITING);
    let produce = move || {
        let (mut hash, mut size) = (Sha256::new(), 0);
        let read = || -> Result<()> {
            let mut decoder = Decoder::new(input)?;
            loop {
                let mut piece = Vec::with_capacity(PIECE);
                decoder.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
                if piece.is_empty() {
                    return Ok(());
                }
                hash.update(&piece);
                size += piece.len() as u64;
                if sender.send(Ok(piece)).is_err() {
                    return Ok(());
                }
            }
        };
        if let Err(error) = read() {
            // If nobody listens, the other side has an error of its own.
            let _ = sender.send(Err(error));
        }
        (hash, size)
    };
    let consume = move || {
        let mut pieces = Pieces { receiver, piece: Vec::new(), at: 0 };
        let value = consume(&mut pieces)?;
        // The digest is of everything, also of what follows the end of the archive.
        io::copy(&mut pieces, &mut io::sink())?;
        Ok::<_, Error>(value)
    };
    let ((hash, size), value) = beside("decompress", produce, consume).context(|| "start a thread")?;
    Ok((value?, Digest::sha256(hash.finalize().into()), size))
}

/// What the decompressing thread sends, as a stream.
struct Pieces {
    receiver: Receiver<Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            let Ok(next) = self.receiver.recv() else { return Ok(0) };
            (self.piece, self.at) = (next?, 0);
        }
        let len = buffer.len().min(self.piece.len() - self.at);
        buffer[..len].copy_from_slice(&self.piece[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
