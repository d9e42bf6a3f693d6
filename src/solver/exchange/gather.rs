//! What a build knows that others can use: records of its graphs, and the results that belong to them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kiln_graph::op::{Op, Source};
use kiln_graph::{Digest, Edge, VertexId};
use rusqlite::Connection;

use super::config::{CacheInput, CacheRecord};
use super::option::Mode;
use super::{RemoteLayer, chain_name, content_name, selector_name, step_name};
use crate::error::{Error, Kind, Result};
use crate::image::BlobSource;
use crate::solver::identify::{Input, Use, selector, uses};
use crate::solver::job::Job;
use crate::solver::key::Parts;
use crate::solver::value::{FileSystem, Value};
use crate::store::Snapshot;

/// Records, with the results of those that have one.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) records: Vec<CacheRecord>,
    /// The results, by the positions of their records.
    pub(super) results: Vec<(usize, Vec<ResultLayer>)>,
}

/// A layer of a result.
#[derive(Clone, Debug)]
pub(super) struct ResultLayer {
    /// The chain ID of it and all below it.
    pub(super) chain: Digest,
    pub(super) diff_id: Digest,
    /// The time that stands for what it was made of, in nanoseconds since 1970.
    pub(super) as_of: Option<i64>,
    pub(super) origin: Origin,
}

/// Where a layer is.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Here(Snapshot),
    Elsewhere(RemoteLayer, Arc<dyn BlobSource>),
}

/// Which part of a job's graph is told.
#[derive(Clone, Debug)]
pub(in crate::solver) struct Scope {
    pub(in crate::solver) job: Arc<Job>,
    /// What was asked for.
    pub(in crate::solver) roots: Vec<VertexId>,
    /// What is in the result of the build.
    pub(in crate::solver) targets: Vec<Edge>,
}

/// Gathers what graphs of a build know. All layers must be identified. Blocking.
///
/// # Errors
/// When the database fails.
pub(super) fn gather(scopes: &[Scope], mode: Mode) -> Result<Gathered> {
    let mut gathering = Gathering::default();
    for scope in scopes {
        let db = scope.job.solver.deps().store.root().db();
        db.read(|connection| gathering.add(connection, scope))?;
    }
    let wanted = match mode {
        Mode::Max => None,
        Mode::Min => Some(Gathering::in_targets(scopes)?),
    };
    let mut results = Vec::new();
    for Given { records, job, value } in gathering.values {
        let layers = layers(&job, &value)?;
        let top = layers.last().map(|layer| layer.chain);
        let is_wanted = |chain| wanted.as_ref().is_none_or(|wanted| wanted.contains(&chain));
        if top.is_some_and(is_wanted) {
            results.extend(records.into_iter().map(|at| (at, layers.clone())));
        }
    }
    Ok(Gathered { records: gathering.records, results })
}

/// What an input of a record follows from: some paths of a record's result, or all of it.
pub(super) type Link = (String, usize);

#[derive(Default)]
pub(super) struct Gathering {
    records: Vec<CacheRecord>,
    /// File systems and contents by name, and steps by name and what each input may be.
    known: HashMap<(String, Vec<Vec<Link>>), usize>,
    /// What steps gave.
    values: Vec<Given>,
    /// The records that have a value.
    valued: HashSet<usize>,
    /// The positions of values by the job and the chain ID.
    by_chain: HashMap<(usize, Digest), usize>,
    /// The records by which BuildKit knows the outputs of a job's vertices.
    pub(super) for_peers: HashMap<(usize, Edge), Vec<usize>>,
}

/// What steps gave, with the records that stand for it.
struct Given {
    records: Vec<usize>,
    job: Arc<Job>,
    value: FileSystem,
}

impl Gathering {
    fn add(&mut self, connection: &Connection, scope: &Scope) -> Result<()> {
        let job = &scope.job;
        for id in job.graph.reachable(scope.roots.iter().copied()) {
            let vertex = job.graph.vertex(id);
            let Some(value) = job.value(id) else { continue };
            // Whoever wrote the graph wants its result to be made anew elsewhere.
            if vertex.meta.export_cache == Some(false) {
                continue;
            }
            self.add_for_peers(job, id)?;
            let (op, inputs) = match &vertex.op {
                Op::Source(Source::Image(_) | Source::OciLayout(_) | Source::Local(_)) | Op::Build { .. } => continue,
                Op::Source(source) => (job.source_key(source), Some(Vec::new())),
                op => {
                    let mut inputs = Vec::new();
                    for (number, used) in uses(op, vertex.inputs.len()).iter().enumerate() {
                        inputs.push(self.input(connection, job, id, number, used)?);
                    }
                    (Some(Parts::of_operation(vertex).key()), inputs.into_iter().collect::<Option<Vec<usize>>>())
                }
            };
            let (Some(op), Some(inputs)) = (op, inputs) else { continue };
            for (output, value) in (0..).zip(value.file_systems()) {
                if let Some(chain) = value.chain_now().filter(|_| !value.is_by_definition()) {
                    self.result(job, (step_name(&op, output), inputs.clone()), value, chain);
                }
            }
        }
        Ok(())
    }

    /// Notes what a step gave.
    fn result(
        &mut self,
        job: &Arc<Job>,
        (name, inputs): (String, Vec<usize>),
        value: &FileSystem,
        chain: Option<Digest>,
    ) {
        let step = self.record(name, inputs);
        let made = self.record(chain_name(chain.as_ref()), Vec::new());
        self.link(made, step, String::new());
        self.give(job, step, value);
    }

    /// Notes that a record stands for what a step gave, if that is known and is not empty.
    pub(super) fn give(&mut self, job: &Arc<Job>, record: usize, value: &FileSystem) {
        let Some(Some(chain)) = value.chain_now() else { return };
        if value.is_by_definition() || !self.valued.insert(record) {
            return;
        }
        let at = *self.by_chain.entry((Arc::as_ptr(job) as usize, chain)).or_insert_with(|| {
            self.values.push(Given { records: Vec::new(), job: Arc::clone(job), value: value.clone() });
            self.values.len() - 1
        });
        self.values[at].records.push(record);
    }

    /// Returns the record of what a step works on; `None` when that is not known.
    fn input(
        &mut self,
        connection: &Connection,
        job: &Job,
        id: VertexId,
        number: usize,
        used: &Use,
    ) -> Result<Option<usize>> {
        let vertex = job.graph.vertex(id);
        let hash = match job.input_now(connection, vertex, (id.index(), number), used)? {
            None | Some(Input::Selection(_)) => return Ok(None),
            Some(Input::FileSystem(whole)) => {
                let chain = whole.chain_now().filter(|_| !whole.is_by_definition());
                return Ok(chain.map(|chain| self.record(chain_name(chain.as_ref()), Vec::new())));
            }
            Some(Input::Content(hash)) => hash,
        };
        let content = self.record(content_name(&hash), Vec::new());
        if let Use::Paths(Some(from), copy) = used
            && let Value::FileSystem(whole) = job.input(vertex, *from)?
            && let Some(Some(chain)) = whole.chain_now().filter(|_| !whole.is_by_definition())
        {
            let whole = self.record(chain_name(Some(&chain)), Vec::new());
            self.link(content, whole, selector_name(&selector(copy)));
        }
        Ok(Some(content))
    }

    /// Finds a record, or makes it.
    pub(super) fn record(&mut self, name: String, inputs: Vec<usize>) -> usize {
        self.linked(name, inputs.into_iter().map(|at| vec![(String::new(), at)]).collect())
    }

    /// Finds the record of a name and what each of its inputs may be, or makes it.
    pub(super) fn linked(&mut self, name: String, inputs: Vec<Vec<Link>>) -> usize {
        let records = &mut self.records;
        *self.known.entry((name, inputs)).or_insert_with_key(|(name, inputs)| {
            let link = |(selector, at): &Link| CacheInput { selector: selector.clone(), link: number(*at) };
            let inputs = inputs.iter().map(|links| links.iter().map(link).collect()).collect();
            records.push(CacheRecord { digest: name.clone(), inputs, ..CacheRecord::default() });
            records.len() - 1
        })
    }

    /// Notes that a record follows from another one, too. A file system that does not change when a step is made on it would
    /// follow from itself: that is left out.
    fn link(&mut self, at: usize, from: usize, selector: String) {
        let link = CacheInput { selector, link: number(from) };
        if self.follows(from, at) {
            return;
        }
        let inputs = &mut self.records[at].inputs;
        match inputs.first_mut() {
            Some(links) if links.contains(&link) => {}
            Some(links) => links.push(link),
            None => inputs.push(vec![link]),
        }
    }

    /// Says whether a record follows from another one, however indirectly.
    fn follows(&self, at: usize, from: usize) -> bool {
        let (mut seen, mut open) = (HashSet::from([at]), vec![at]);
        while let Some(next) = open.pop() {
            if next == from {
                return true;
            }
            let links = self.records[next].inputs.iter().flatten();
            open.extend(links.filter_map(|link| usize::try_from(link.link).ok()).filter(|next| seen.insert(*next)));
        }
        false
    }

    /// Returns the chain IDs of all layers in the results of the build.
    fn in_targets(scopes: &[Scope]) -> Result<HashSet<Digest>> {
        let mut all = HashSet::new();
        for scope in scopes {
            for target in &scope.targets {
                if let Some(Value::FileSystem(value)) = scope.job.value_of(*target) {
                    all.extend(layers(&scope.job, &value)?.iter().map(|layer| layer.chain));
                }
            }
        }
        Ok(all)
    }
}

fn number(at: usize) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

/// Returns the layers of a file system, the lowest first; none when they are not to be had.
fn layers(job: &Job, value: &FileSystem) -> Result<Vec<ResultLayer>> {
    match value {
        FileSystem::Empty | FileSystem::Image { .. } => Ok(Vec::new()),
        FileSystem::Cached(cached) => {
            let mut below = None;
            let all = cached.layers.iter().flatten().map(|layer| {
                let chain = kiln_graph::oci::chain_id(below, layer.layer.diff_id);
                below = Some(chain);
                let origin = Origin::Elsewhere(layer.clone(), Arc::clone(&cached.source));
                ResultLayer { chain, diff_id: layer.layer.diff_id, as_of: layer.as_of, origin }
            });
            Ok(all.collect())
        }
        FileSystem::Layer(layer) => {
            let top = layer.settled_now().ok_or_else(|| Error::internal("a layer was not identified"))?;
            let chain = match job.solver.deps().images.chain(&job.lease, Some(top.id)) {
                // Nobody needed it in this build, so nobody kept it.
                Err(error) if error.kind() == Kind::NotFound => return Ok(Vec::new()),
                chain => chain?,
            };
            let layer = |snapshot: Snapshot| {
                let (chain, diff_id) = snapshot.chain_id.zip(snapshot.diff_id)?;
                Some(ResultLayer { chain, diff_id, as_of: snapshot.as_of, origin: Origin::Here(snapshot) })
            };
            let all: Option<Vec<ResultLayer>> = chain.into_iter().map(layer).collect();
            all.ok_or_else(|| Error::internal("a layer was not identified"))
        }
    }
}
