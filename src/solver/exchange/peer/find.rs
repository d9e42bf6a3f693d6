//! Finding results in caches that BuildKit wrote.

use std::sync::Arc;

use kiln_graph::op::Op;
use kiln_graph::{Digest, Edge, VertexId};
use kiln_llb::StepKey;

use super::{ContentId, content, content_record, record_name};
use crate::error::Result;
use crate::solver::cache;
use crate::solver::exchange::catalog::{Catalog, Hit};
use crate::solver::job::Job;
use crate::solver::lock;
use crate::solver::value::Value;
use crate::task;

/// What caches say of an output.
#[derive(Clone, Debug)]
pub(in crate::solver) enum PeerHit {
    /// The result.
    Found(Hit),
    /// That it is known: there is no result, but there may be those of steps after it.
    Named,
}

impl Job {
    /// Notes which records of the imported caches stand for a vertex. Its inputs must have been noted before. Blocking.
    ///
    /// # Errors
    /// When a directory of the client cannot be read.
    pub(in crate::solver) fn note_peer_records(&self, id: VertexId) -> Result<()> {
        for (number, catalog) in self.caches().0.iter().enumerate() {
            let vertex = self.graph.vertex(id);
            for output in 0..vertex.op.outputs() {
                let records = match &vertex.op {
                    Op::Source(source) => {
                        let names = self.source_records(id, vertex, source);
                        names.iter().filter_map(|name| catalog.root(name)).collect()
                    }
                    _ => self.step_records((number, catalog), id, output)?,
                };
                let edge = Edge { vertex: id, output };
                lock(&self.peer.found).insert((number, edge), records.into());
            }
        }
        Ok(())
    }

    /// Returns the records of a cache that stand for an output of a step.
    fn step_records(&self, (number, catalog): (usize, &Catalog), id: VertexId, output: u32) -> Result<Vec<usize>> {
        let mut found = Vec::new();
        for (form, key) in self.peer_keys(id).iter().enumerate() {
            let named = catalog.named(&record_name(&key.digest, output));
            if named.is_empty() {
                continue;
            }
            let mut inputs = Vec::with_capacity(key.inputs.len());
            for (at, input) in key.inputs.iter().enumerate() {
                let edge = self.graph.vertex(id).inputs[input.input as usize];
                let records = lock(&self.peer.found).get(&(number, edge)).cloned().unwrap_or_default();
                let content = self.local_content((id, form, at), key)?;
                let content = content.and_then(|content| catalog.root(&content_record(&content)));
                let selector = input.selector.map(|selector| selector.to_string()).unwrap_or_default();
                inputs.push(Wanted { records, selector, content });
            }
            found.extend(named.iter().copied().filter(|at| catalog.follows_from(*at, &inputs)));
        }
        Ok(found)
    }

    /// Returns the digest of what a step takes of an input, if that is known or costs nothing but reading a directory of the
    /// client.
    pub(super) fn local_content(&self, id: ContentId, key: &StepKey) -> Result<Option<Digest>> {
        let input = &key.inputs[id.2];
        let Some(selected) = &input.content else { return Ok(None) };
        if let Some(known) = lock(&self.peer.contents).get(&id) {
            return Ok(*known);
        }
        let vertex = self.graph.vertex(id.0);
        let Some(Value::Local(dir)) = self.value_of(vertex.inputs[input.input as usize]) else { return Ok(None) };
        let digest = content::digest(&dir.tree(), selected, &self.cancel)?;
        lock(&self.peer.contents).insert(id, digest);
        Ok(digest)
    }

    /// Says whether a cache has records of a step, on whatever inputs.
    pub(in crate::solver) fn is_peer_known(&self, id: VertexId) -> bool {
        let caches = &self.caches().0;
        !caches.is_empty()
            && self.peer_keys(id).iter().any(|key| {
                let name = record_name(&key.digest, 0);
                caches.iter().any(|catalog| !catalog.named(&name).is_empty())
            })
    }

    /// Finds the outputs of a step: rather with their layers.
    pub(in crate::solver) fn peer_hits(&self, id: VertexId) -> Option<Vec<PeerHit>> {
        let outputs = 0..self.graph.vertex(id).op.outputs();
        outputs.map(|output| self.peer_hit(Edge { vertex: id, output })).collect()
    }

    fn peer_hit(&self, edge: Edge) -> Option<PeerHit> {
        let mut named = None;
        for (number, catalog) in self.caches().0.iter().enumerate() {
            let records = lock(&self.peer.found).get(&(number, edge)).cloned().unwrap_or_default();
            for record in records.iter() {
                match catalog.result(*record) {
                    Some(hit) => return Some(PeerHit::Found(hit)),
                    None => named = Some(PeerHit::Named),
                }
            }
        }
        named
    }

    /// Hashes what a step takes of file systems, when a cache knows the step and not where they come from; they are fetched
    /// for that.
    ///
    /// # Errors
    /// When a file system cannot be fetched or read.
    pub(in crate::solver) async fn hash_for_peers(self: &Arc<Self>, id: VertexId) -> Result<()> {
        if !self.is_peer_known(id) {
            return Ok(());
        }
        let keys = self.peer_keys(id);
        for (form, key) in keys.iter().enumerate() {
            for at in 0..key.inputs.len() {
                self.hash_input((id, form, at), key).await?;
            }
        }
        Ok(())
    }

    /// Hashes what a step takes of a file system, unless that is all of it.
    pub(super) async fn hash_input(self: &Arc<Self>, id: ContentId, key: &StepKey) -> Result<()> {
        let input = &key.inputs[id.2];
        let Some(selected) = &input.content else { return Ok(()) };
        let is_everything = selected.iter().all(|one| matches!(one.path.as_str(), "" | "/") && one.include.is_empty());
        if is_everything || lock(&self.peer.contents).contains_key(&id) {
            return Ok(());
        }
        let edge: Edge = self.graph.vertex(id.0).inputs[input.input as usize];
        let Some(Value::FileSystem(file_system)) = self.value_of(edge) else { return Ok(()) };
        if file_system.is_named_only() {
            return Ok(());
        }
        // What a file system holds under a chain ID stays the same.
        let place = file_system.chain_now().flatten().map(|chain| (chain, format!("for BuildKit {selected:?}")));
        let db = self.solver.deps().store.root().clone();
        if let Some((chain, selection)) = place.clone() {
            let known = task::blocking(move || db.db().read(|c| cache::find_content(c, &chain, &selection))).await?;
            if let Some(known) = known {
                lock(&self.peer.contents).insert(id, Some(Digest::sha256(known)));
                return Ok(());
            }
        }
        let tree = self.tree(&file_system, "a file system".to_owned()).await?;
        let (job, selected) = (Arc::clone(self), selected.clone());
        let digest = task::blocking(move || {
            let digest = content::digest(&tree, &selected, &job.cancel)?;
            let bytes = digest.and_then(|digest| <[u8; 32]>::try_from(digest.as_bytes()).ok());
            if let (Some((chain, selection)), Some(bytes)) = (place, bytes) {
                let db = job.solver.deps().store.root().db();
                db.write(|tx| cache::record_content(tx, &chain, &selection, &bytes))?;
            }
            Ok(digest)
        });
        let digest = digest.await?;
        lock(&self.peer.contents).insert(id, digest);
        Ok(())
    }
}

/// What an input of a record must follow from.
#[derive(Debug)]
pub(in crate::solver::exchange) struct Wanted {
    /// One of these records, with the selection.
    records: Arc<[usize]>,
    selector: String,
    /// Or this record, without one.
    content: Option<usize>,
}

impl Wanted {
    /// Says whether a link leads to it.
    pub(in crate::solver::exchange) fn is_met(&self, selector: &str, record: usize) -> bool {
        (selector == self.selector && self.records.contains(&record))
            || (selector.is_empty() && self.content == Some(record))
    }
}
