//! What a selection is made of.

use std::ffi::CString;

use crate::store::tree::{Kind, Metadata, Xattrs};

/// Everything a copy takes, in order.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// The paths that were named or matched.
    pub matches: Vec<Match>,
}

impl Selection {
    /// Returns when the newest of the files was changed, in nanoseconds since 1970; 0 for none.
    #[must_use]
    pub fn newest_ns(&self) -> i64 {
        let entries = self.matches.iter().flat_map(|found| found.below.iter().chain([&found.top]));
        let times = entries.filter(|entry| entry.metadata.kind != Kind::Dir).map(|entry| entry.metadata.mtime.ns());
        times.max().unwrap_or(0)
    }
}

/// A path that was named or that a pattern matched.
#[derive(Clone, Debug)]
pub struct Match {
    /// The path below the tree's root with symbolic links resolved; empty for the root itself.
    pub path: Vec<u8>,
    /// The name it was found under; empty for the root.
    pub name: CString,
    /// The file or directory itself.
    pub top: Entry,
    /// What is below it, when it is a directory, each directory before what it holds.
    pub below: Vec<Entry>,
}

/// A file or directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The path below the match; empty for the match itself.
    pub path: Vec<u8>,
    /// Its metadata, with the owner it has in the layer unless the copy changes it.
    pub metadata: Metadata,
    /// The target of a symbolic link.
    pub link: Vec<u8>,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Hash of everything but the time and the path.
    pub hash: [u8; 32],
}

impl Entry {
    /// Hashes an entry. `data` is the hash of a regular file's data.
    #[must_use]
    pub fn new(path: Vec<u8>, metadata: Metadata, link: Vec<u8>, xattrs: Xattrs, data: Option<[u8; 32]>) -> Self {
        let mut hash = blake3::Hasher::new();
        let mut frame = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        let kind = metadata.kind as u8;
        // The kernel shows symbolic links with modes that cannot be set.
        let mode = if metadata.kind == Kind::Symlink { 0o777 } else { metadata.mode };
        let (major, minor) = metadata.rdev;
        frame(&[kind]);
        for number in [mode, metadata.uid, metadata.gid, major, minor] {
            frame(&number.to_le_bytes());
        }
        frame(&link);
        for (name, value) in xattrs.iter() {
            frame(name.to_bytes());
            frame(value);
        }
        frame(data.as_ref().map_or(&[], |data| data.as_slice()));
        let hash = *hash.finalize().as_bytes();
        Self { path, metadata, link, xattrs, hash }
    }
}

impl Match {
    /// Returns the path below the tree's root of something below the match.
    #[must_use]
    pub fn path_below(&self, below: &[u8]) -> Vec<u8> {
        match (self.path.is_empty(), below.is_empty()) {
            (_, true) => self.path.clone(),
            (true, false) => below.to_vec(),
            (false, false) => [self.path.as_slice(), b"/", below].concat(),
        }
    }

    /// Returns all entries, the match itself first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        std::iter::once(&self.top).chain(&self.below)
    }
}

impl Selection {
    /// Hashes the selection: names and entries, in order, without times.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        for found in &self.matches {
            hash.update(&(found.below.len() as u64).to_le_bytes());
            for (entry, path) in found
                .entries()
                .map(|entry| (entry, if entry.path.is_empty() { found.name.to_bytes() } else { entry.path.as_slice() }))
            {
                hash.update(&(path.len() as u64).to_le_bytes());
                hash.update(path);
                hash.update(&entry.hash);
            }
        }
        *hash.finalize().as_bytes()
    }

    /// Returns how many bytes the regular files hold.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let files = self.matches.iter().flat_map(Match::entries).filter(|entry| entry.metadata.kind == Kind::File);
        files.map(|entry| entry.metadata.size).sum()
    }
}
