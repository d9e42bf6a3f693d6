//! Walking a tree depth first, in the order of names.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{Kind, MAX_DEPTH, Name, display, list, open_dir};
use crate::error::{Error, Result, ResultExt as _};

/// A walk over everything below a directory. Directories come before and after what they hold.
#[derive(Debug)]
pub struct Walk {
    frames: Vec<Frame>,
    /// The path of the innermost directory, with a slash at its end unless it is the root.
    path: Vec<u8>,
}

#[derive(Debug)]
struct Frame {
    dir: Arc<OwnedFd>,
    names: std::vec::IntoIter<Name>,
    path_len: usize,
}

/// A name the walk came to.
#[derive(Clone, Debug)]
pub struct Found {
    /// The directory it stands in.
    pub parent: Arc<OwnedFd>,
    /// Its name there.
    pub name: CString,
    /// Its path below the root of the walk, without a slash at either end.
    pub path: Vec<u8>,
    /// The number of the file on its file system.
    pub inode: u64,
}

/// What the walk does next.
#[derive(Debug)]
pub enum Step {
    /// It enters a directory, now open.
    Enter(Found, Arc<OwnedFd>),
    /// It passes something else.
    Pass(Found),
    /// It leaves the directory it entered last and has not left yet.
    Leave,
}

impl Walk {
    /// Starts a walk below `root`, which itself is neither entered nor left.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn new(root: OwnedFd) -> Result<Self> {
        let names = list(&root).context(|| "list a directory")?.into_iter();
        Ok(Self { frames: vec![Frame { dir: Arc::new(root), names, path_len: 0 }], path: Vec::new() })
    }

    /// Goes one step; `None` at the end.
    ///
    /// # Errors
    /// When a directory cannot be listed, or nests deeper than [`MAX_DEPTH`].
    pub fn step(&mut self) -> Result<Option<Step>> {
        let Some(frame) = self.frames.last_mut() else { return Ok(None) };
        self.path.truncate(frame.path_len);
        let Some(entry) = frame.names.next() else {
            self.frames.pop();
            return Ok(if self.frames.is_empty() { None } else { Some(Step::Leave) });
        };
        self.path.extend_from_slice(entry.name.to_bytes());
        let parent = Arc::clone(&frame.dir);
        let context = |path: &[u8]| format!("read {}", display(path));
        if entry.kind(&parent).context(|| context(&self.path))? != Kind::Dir {
            return Ok(Some(Step::Pass(Found {
                parent,
                name: entry.name,
                path: self.path.clone(),
                inode: entry.inode,
            })));
        }
        if self.frames.len() >= MAX_DEPTH {
            return Err(too_deep(&self.path));
        }
        let dir = Arc::new(open_dir(&parent, &entry.name).context(|| context(&self.path))?);
        let names = list(&dir).context(|| context(&self.path))?.into_iter();
        let found = Found { parent, name: entry.name, path: self.path.clone(), inode: entry.inode };
        self.path.push(b'/');
        self.frames.push(Frame { dir: Arc::clone(&dir), names, path_len: self.path.len() });
        Ok(Some(Step::Enter(found, dir)))
    }
}

/// The error for a tree that is too deep.
pub(in crate::store) fn too_deep(path: &[u8]) -> Error {
    let shown = display(&path[..path.len().min(60)]).to_string();
    Error::unsupported(format!("{shown}...: directories nest more than {MAX_DEPTH} levels deep"))
}
