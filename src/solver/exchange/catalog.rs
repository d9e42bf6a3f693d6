//! A cache that was read: finds results by what a step is and works on.

use std::collections::HashMap;
use std::sync::Arc;

use kiln_graph::Digest;
use kiln_graph::oci::{Descriptor, chain_id};

use super::config::{CacheConfig, CacheInput, CacheRecord, ns_of};
use super::mounts::MountEntry;
use super::peer::Wanted;
use super::{chain_name, content_name, parse_content, selector_name, step_name};
use crate::error::Result;
use crate::image::{BlobSource, ChainLayer};
use crate::solver::key::{InputIdentity, Key};

/// The annotation of a layer that says what it is uncompressed.
pub(super) const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// A layer that is elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::solver) struct RemoteLayer {
    pub(in crate::solver) layer: ChainLayer,
    /// The time that stands for what it was made of, in nanoseconds since 1970.
    pub(in crate::solver) as_of: Option<i64>,
}

/// What was found of a step.
#[derive(Clone, Debug)]
pub(in crate::solver) struct Hit {
    /// The chain ID of its result.
    pub(in crate::solver) chain: Digest,
    /// The layers, the lowest first; `None` when the cache does not have them.
    pub(in crate::solver) layers: Option<Vec<RemoteLayer>>,
    /// Where they are.
    pub(in crate::solver) source: Arc<dyn BlobSource>,
}

/// A cache that was read.
#[derive(Debug)]
pub(in crate::solver) struct Catalog {
    source: Arc<dyn BlobSource>,
    records: Vec<CacheRecord>,
    /// Where the records of each name are.
    by_name: HashMap<String, Vec<usize>>,
    /// What lies below each layer, by position.
    parents: Vec<i64>,
    /// The layers, by position; `None` for one that the manifest does not list.
    layers: Vec<Option<RemoteLayer>>,
    /// The results whose layers are all there, by record.
    results: HashMap<usize, Top>,
    /// What a record's result is called, by record, whether or not its layers are there.
    chains: HashMap<usize, Digest>,
    /// The hash of some paths of a file system, by its chain ID and the name of the selection.
    contents: HashMap<(Digest, String), [u8; 32]>,
    mounts: Vec<MountEntry>,
}

/// Where the layers of a result are.
#[derive(Clone, Debug)]
enum Top {
    /// At a position, and below it.
    Layer(usize),
    /// At these positions, the lowest first.
    Listed(Vec<usize>),
}

impl Top {
    /// Returns the chain ID, when all layers are there.
    fn chain(&self, chain_ids: &[Option<Digest>], layers: &[Option<RemoteLayer>]) -> Option<Digest> {
        match self {
            Self::Layer(at) => *chain_ids.get(*at)?,
            Self::Listed(all) => {
                let diff_ids: Option<Vec<Digest>> =
                    all.iter().map(|at| layers.get(*at)?.as_ref().map(|layer| layer.layer.diff_id)).collect();
                diff_ids?.into_iter().fold(None, |below, diff_id| Some(chain_id(below, diff_id)))
            }
        }
    }
}

/// Returns the chain ID of each layer that is there with all below it.
fn chain_ids(config: &CacheConfig, layers: &[Option<RemoteLayer>]) -> Result<Vec<Option<Digest>>> {
    let mut known: Vec<Option<Option<Digest>>> = vec![None; layers.len()];
    for top in 0..layers.len() {
        let chain = config.chain_of(top)?;
        let start = chain.iter().rposition(|at| known[*at].is_some()).map_or(0, |at| at + 1);
        for number in start..chain.len() {
            let below = number.checked_sub(1).map(|below| known[chain[below]].flatten());
            let own = layers[chain[number]].as_ref().map(|layer| layer.layer.diff_id);
            known[chain[number]] = Some(match (below, own) {
                (None, Some(diff_id)) => Some(diff_id),
                (Some(Some(below)), Some(diff_id)) => Some(chain_id(Some(below), diff_id)),
                _ => None,
            });
        }
    }
    Ok(known.into_iter().map(Option::flatten).collect())
}

impl Catalog {
    /// Makes sense of a configuration; `blobs` are those that its manifest lists.
    ///
    /// # Errors
    /// `InvalidArgument` when the configuration is malformed.
    pub(super) fn new(config: CacheConfig, blobs: &[Descriptor], source: Arc<dyn BlobSource>) -> Result<Self> {
        config.check()?;
        let blobs: HashMap<Digest, &Descriptor> = blobs.iter().map(|blob| (blob.digest, blob)).collect();
        let layers: Vec<Option<RemoteLayer>> = config
            .layers
            .iter()
            .map(|layer| {
                let descriptor = (*blobs.get(&layer.blob)?).clone();
                let known = layer.annotations.clone().unwrap_or_default();
                let annotated = descriptor.annotations.get(UNCOMPRESSED).and_then(|text| text.parse().ok());
                let diff_id = known.diff_id.or(annotated)?;
                let as_of = ns_of(known.created_at.as_deref());
                Some(RemoteLayer { layer: ChainLayer { descriptor, diff_id }, as_of })
            })
            .collect();
        let chain_ids = chain_ids(&config, &layers)?;
        let mut results = HashMap::new();
        for (at, record) in config.records.iter().enumerate() {
            let tops = record.results.iter().filter_map(|result| usize::try_from(result.layer).ok());
            let found = tops.map(Top::Layer).find_map(|top| Some((top.chain(&chain_ids, &layers)?, top)));
            let listed = || {
                let all = record.chains.iter().map(|chain| chain.layers.iter());
                let all = all.map(|all| all.filter_map(|at| usize::try_from(*at).ok()).collect());
                all.map(Top::Listed).find_map(|top| Some((top.chain(&chain_ids, &layers)?, top)))
            };
            results.extend(found.or_else(listed).map(|found| (at, found)));
        }
        let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, record) in config.records.iter().enumerate() {
            by_name.entry(record.digest.clone()).or_default().push(at);
        }
        let chains = results.iter().map(|(at, (chain, _))| (*at, *chain)).collect();
        let mut catalog = Self {
            source,
            parents: config.layers.iter().map(|layer| layer.parent).collect(),
            layers,
            records: config.records,
            by_name,
            chains,
            results: results.into_iter().map(|(at, (_, top))| (at, top)).collect(),
            contents: HashMap::new(),
            mounts: config.mounts,
        };
        catalog.learn();
        Ok(catalog)
    }

    /// Forgets the cache mounts.
    pub(super) fn without_mounts(mut self) -> Self {
        self.mounts.clear();
        self
    }

    /// Finds a cache mount, and where its chunks are.
    pub(super) fn mount(&self, name: &str) -> Option<(&MountEntry, &Arc<dyn BlobSource>)> {
        self.mounts.iter().find(|mount| mount.name == name).map(|mount| (mount, &self.source))
    }

    /// Learns from the links of file systems and of content what they follow from.
    fn learn(&mut self) {
        for record in &self.records {
            let links = record.inputs.first().into_iter().flatten();
            for link in links.filter(|link| link.selector.is_empty()) {
                if let (Ok(chain), Ok(step)) = (record.digest.parse::<Digest>(), usize::try_from(link.link)) {
                    self.chains.entry(step).or_insert(chain);
                }
            }
        }
        for record in &self.records {
            let Some(hash) = parse_content(&record.digest) else { continue };
            for link in record.inputs.first().into_iter().flatten().filter(|link| !link.selector.is_empty()) {
                let whole = usize::try_from(link.link).ok().and_then(|at| self.records.get(at));
                if let Some(chain) = whole.and_then(|whole| whole.digest.parse::<Digest>().ok()) {
                    self.contents.insert((chain, link.selector.clone()), hash);
                }
            }
        }
    }

    /// Returns the positions of the records of a name.
    pub(super) fn named(&self, name: &str) -> &[usize] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns the position of the record of a name that follows from nothing.
    pub(super) fn root(&self, name: &str) -> Option<usize> {
        self.named(name).iter().rev().copied().find(|at| self.records[*at].inputs.is_empty())
    }

    /// Says whether a record follows from these inputs.
    pub(super) fn follows_from(&self, at: usize, inputs: &[Wanted]) -> bool {
        let links = &self.records[at].inputs;
        let is_met = |wanted: &Wanted, link: &CacheInput| {
            usize::try_from(link.link).is_ok_and(|record| wanted.is_met(&link.selector, record))
        };
        links.len() == inputs.len()
            && links.iter().zip(inputs).all(|(links, wanted)| links.iter().any(|link| is_met(wanted, link)))
    }

    /// Returns the result of a record, if the cache has its layers.
    pub(super) fn result(&self, at: usize) -> Option<Hit> {
        let layers = self.layers_of(self.results.get(&at)?)?;
        Some(Hit { chain: *self.chains.get(&at)?, layers: Some(layers), source: Arc::clone(&self.source) })
    }

    /// Says whether an operation is known, on whatever inputs.
    pub(super) fn knows(&self, op: &Key) -> bool {
        self.by_name.contains_key(&step_name(op, 0))
    }

    /// Finds the result of a step's record: rather one whose layers are there.
    pub(super) fn find(&self, step: &str, inputs: &[InputIdentity]) -> Option<Hit> {
        let same = self.by_name.get(step)?.iter().copied().filter(|at| self.matches(*at, inputs));
        let mut same: Vec<usize> = same.collect();
        same.sort_by_key(|at| !self.results.contains_key(at));
        let at = *same.first()?;
        let chain = *self.chains.get(&at)?;
        let layers = self.results.get(&at).and_then(|top| self.layers_of(top));
        Some(Hit { chain, layers, source: Arc::clone(&self.source) })
    }

    /// Returns the layers of a result, the lowest first.
    fn layers_of(&self, top: &Top) -> Option<Vec<RemoteLayer>> {
        let positions = match top {
            Top::Listed(all) => all.clone(),
            Top::Layer(top) => {
                // It was made sure that this comes to an end.
                let below = |at: &usize| usize::try_from(self.parents[*at]).ok();
                let mut chain: Vec<usize> = std::iter::successors(Some(*top), below).collect();
                chain.reverse();
                chain
            }
        };
        positions.into_iter().map(|at| self.layers.get(at)?.clone()).collect()
    }

    fn matches(&self, at: usize, inputs: &[InputIdentity]) -> bool {
        let record = &self.records[at];
        record.inputs.len() == inputs.len()
            && record.inputs.iter().zip(inputs).all(|(links, input)| {
                let name = match input {
                    InputIdentity::Chain(chain) => chain_name(chain.as_ref()),
                    InputIdentity::Content(content) => content_name(&content.hash),
                };
                links.iter().any(|link| {
                    let linked = usize::try_from(link.link).ok().and_then(|at| self.records.get(at));
                    link.selector.is_empty() && linked.is_some_and(|linked| linked.digest == name)
                })
            })
    }

    /// Finds what some paths of a file system hash to.
    pub(super) fn content(&self, chain: &Digest, selector: &str) -> Option<[u8; 32]> {
        self.contents.get(&(*chain, selector_name(selector))).copied()
    }
}
