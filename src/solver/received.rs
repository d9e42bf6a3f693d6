//! A context that comes as an archive in a request's body: unpacked while it arrives, and gone with the build.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::Solver;
use super::copy::Memo;
use crate::error::{Result, ResultExt as _};
use crate::store::Active;
use crate::store::layer::{ExtractOptions, extract};
use crate::store::tree;
use crate::task::Cancel;

/// A context that was received. Dropping it removes it, which blocks.
#[derive(Debug)]
pub struct ReceivedContext {
    tree: Active,
    memos: PathBuf,
}

impl Solver {
    /// Unpacks a context, compressed or not, while it arrives. Blocking.
    ///
    /// It lies in a tree of the store, which holds neither more nor longer than the build: not in memory.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no archive or leads out of the directory; `Exhausted` on a full disk; those of `archive`.
    pub fn receive_context(&self, archive: impl Read + Send, cancel: &Cancel) -> Result<ReceivedContext> {
        let store = &self.deps().store;
        let tree = store.prepare(&store.lease("build context")?, None)?;
        let root = tree::open_root(tree.dir())?;
        extract(archive, root, ExtractOptions::new(cancel).within(store)).context(|| "unpack the build context")?;
        Ok(ReceivedContext { tree, memos: self.memos().to_owned() })
    }
}

impl ReceivedContext {
    /// Returns the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.tree.dir()
    }
}

impl Drop for ReceivedContext {
    fn drop(&mut self) {
        // No other context ever has its path.
        Memo::forget(&self.memos, self.path());
    }
}
