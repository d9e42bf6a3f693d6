//! A few small files, received into memory: a Dockerfile, the lists of ignored files.

use std::collections::{BTreeMap, HashMap};

use super::entry::{Entry, EntryKind, parent};
use super::filter::normalize;
use super::receive::Sink;
use crate::error::{Error, Result};

/// How many entries are taken.
const MAX_ENTRIES: usize = 10_000;

/// How many symbolic links are followed; the kernel's limit.
const MAX_LINKS: usize = 40;

/// Files in memory, by path.
#[derive(Debug)]
pub struct Files {
    files: BTreeMap<String, Node>,
    incoming: HashMap<u32, (String, Vec<u8>)>,
    max_bytes: usize,
    bytes: usize,
}

#[derive(Debug)]
enum Node {
    File(Vec<u8>),
    Link(String),
    Other,
}

impl Files {
    /// Takes files up to a size together.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self { files: BTreeMap::new(), incoming: HashMap::new(), max_bytes, bytes: 0 }
    }

    /// Returns the data of a file; symbolic links are followed, within the tree. `None` when there is no such file.
    ///
    /// # Errors
    /// `InvalidArgument` when it is no file.
    pub fn read(&self, path: &str) -> Result<Option<&[u8]>> {
        let mut path = normalize("", path);
        for _ in 0..MAX_LINKS {
            let Some(next) = self.step(&path) else {
                return match self.files.get(&path) {
                    Some(Node::File(data)) => Ok(Some(data)),
                    Some(_) => Err(Error::invalid(format!("{path} is no file"))),
                    None => Ok(None),
                };
            };
            path = next;
        }
        Err(Error::invalid(format!("{path}: too many levels of symbolic links")))
    }

    /// Resolves the first symbolic link on a path.
    fn step(&self, path: &str) -> Option<String> {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        ends.into_iter().find_map(|end| match self.files.get(&path[..end]) {
            Some(Node::Link(target)) => {
                let resolved = normalize(parent(&path[..end]), target);
                Some(normalize(&resolved, path[end..].trim_start_matches('/')))
            }
            _ => None,
        })
    }
}

impl Sink for Files {
    fn entry(&mut self, number: u32, entry: Entry) -> Result<bool> {
        if self.files.len() >= MAX_ENTRIES {
            return Err(Error::exhausted("a client sends more files than were asked for"));
        }
        match entry.kind {
            EntryKind::File { .. } => {
                self.incoming.insert(number, (entry.path, Vec::new()));
                return Ok(true);
            }
            EntryKind::Symlink { target } => self.files.insert(entry.path, Node::Link(target)),
            EntryKind::HardLink { to } => self.files.insert(entry.path, Node::Link(format!("/{to}"))),
            _ => self.files.insert(entry.path, Node::Other),
        };
        Ok(false)
    }

    fn data(&mut self, number: u32, data: &[u8]) -> Result<()> {
        self.bytes += data.len();
        let (path, file) = self.incoming.get_mut(&number).ok_or_else(|| Error::internal("data of an unknown file"))?;
        if self.bytes > self.max_bytes {
            return Err(Error::invalid(format!("{path} is larger than {} MiB", self.max_bytes >> 20)));
        }
        file.extend_from_slice(data);
        Ok(())
    }

    fn complete(&mut self, number: u32) -> Result<()> {
        let (path, data) = self.incoming.remove(&number).ok_or_else(|| Error::internal("data of an unknown file"))?;
        self.files.insert(path, Node::File(data));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
