//! Building what a definition says that an earlier step made.
//!
//! The steps it names are steps of this build, and have places and records of their own; this one only waits for them, and so
//! takes no place among those that run.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_graph::VertexId;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::error::{Error, Result, ResultExt as _};
use crate::solver::contexts::Locals;
use crate::solver::definition::refused;
use crate::solver::job::{Begun, Job};
use crate::solver::value::{FileSystem, Value};
use crate::store::tree;
use crate::task;

impl Job {
    /// Reads the definition, and does what it says.
    ///
    /// # Errors
    /// `InvalidArgument` for a file that is no definition; that of the first step that fails.
    pub(in crate::solver) async fn build_defined(self: &Arc<Self>, id: VertexId, filename: &str) -> Result<Value> {
        let begun = Begun::new(self.progress.clone(), self.state(id));
        let built = Box::pin(self.build_inner(id, filename)).await;
        // What failed is reported with the failure.
        if built.is_ok() {
            begun.end(None);
        }
        built
    }

    async fn build_inner(self: &Arc<Self>, id: VertexId, filename: &str) -> Result<Value> {
        let vertex = self.graph.vertex(id);
        let holder = self.mount(&self.file_system(vertex, Some(0))?).await?;
        let (path, platform) = (filename.to_owned(), vertex.platform.clone());
        let decoded = task::blocking(move || {
            let bytes = read(&holder, &path).context(|| format!("read the definition {path}"))?;
            kiln_llb::decode_bytes(&bytes, &platform).map_err(|refusal| refused(&refusal))
        })
        .await?;
        let Some(root) = decoded.root else { return Ok(FileSystem::Empty.into()) };
        let locals = Locals::none(self.solver.memos(), self.progress.now_ns());
        let mut graph = decoded.graph;
        self.comply(&mut graph).await.map_err(|failure| failure.error)?;
        let inner = self.with_graph(graph, locals)?;
        let done = Box::pin(inner.carry_out(vec![root.vertex])).await.map_err(|failure| failure.error);
        let value = inner.value_of(root);
        task::blocking(move || {
            inner.locals.save();
            Ok(())
        })
        .await?;
        done?;
        value.ok_or_else(|| Error::internal("a definition has no result"))
    }
}

fn read(root: &OwnedFd, path: &str) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = std::fs::File::from(tree::openat2(root, path.trim_start_matches('/'), flags, Mode::empty(), resolve)?);
    if !file.metadata()?.is_file() {
        return Err(Error::invalid("it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(kiln_llb::MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
