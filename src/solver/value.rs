//! What flows between steps: file systems, which may not be fetched or not be identified yet, and directories of the client.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use kiln_dockerfile::Ignore;
use kiln_graph::oci::chain_id;
use kiln_graph::{Digest, Vertex};

use super::Solver;
use super::cache::{self, NewStep};
use super::copy::{Memo, Owners, Tree};
use super::exchange::RemoteLayer;
use super::identify::Work;
use super::unmade::Left;
use crate::error::{Error, Result};
use crate::image::{BlobSource, Resolved, suffix};
use crate::store::{LayerBlob, Lease, SnapshotId};

/// What a step gives.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A root file system.
    FileSystem(FileSystem),
    /// A directory of the client.
    Local(Arc<LocalDir>),
    /// Several root file systems: the outputs of one process, by their numbers.
    Several(Arc<[FileSystem]>),
}

impl Value {
    /// Puts the outputs of a step together.
    pub(super) fn of_outputs(mut outputs: Vec<FileSystem>) -> Self {
        match outputs.len() {
            1 => Self::FileSystem(outputs.remove(0)),
            _ => Self::Several(outputs.into()),
        }
    }

    /// Returns one of the outputs.
    pub(super) fn output(&self, number: u32) -> Option<Self> {
        match self {
            Self::Several(outputs) => outputs.get(number as usize).cloned().map(Self::FileSystem),
            one => (number == 0).then(|| one.clone()),
        }
    }

    /// Says whether a part of it is known by its name only.
    pub(super) fn is_named_only(&self) -> bool {
        self.file_systems().iter().any(FileSystem::is_named_only)
    }

    /// Returns the file systems it is made of.
    pub(super) fn file_systems(&self) -> &[FileSystem] {
        match self {
            Self::FileSystem(one) => std::slice::from_ref(one),
            Self::Several(all) => all,
            Self::Local(_) => &[],
        }
    }
}

/// A root file system.
#[derive(Clone, Debug)]
pub(super) enum FileSystem {
    /// Nothing.
    Empty,
    /// An image; its layers are fetched when a step needs them.
    Image {
        /// The vertex that stands for it.
        vertex: Digest,
        /// The image.
        image: Arc<Resolved>,
        /// Its chain ID; `None` for an image without layers.
        chain: Option<Digest>,
    },
    /// The result of a step.
    Layer(Layer),
    /// The result of a step, known from elsewhere; its layers are fetched when a step needs them.
    Cached(Arc<Cached>),
}

/// A result that an imported cache has.
#[derive(Debug)]
pub(super) struct Cached {
    /// The vertex it was found for.
    pub(super) vertex: Digest,
    /// Its chain ID, or what stands for it.
    pub(super) chain: Digest,
    /// Whether nobody knows what it is: then `chain` says how it is made.
    pub(super) by_definition: bool,
    /// Its layers, the lowest first; `None` when the cache names it only, so that it has to be made when somebody needs it.
    pub(super) layers: Option<Vec<RemoteLayer>>,
    /// Where the layers are.
    pub(super) source: Arc<dyn BlobSource>,
    /// What it is recorded as once it is here.
    pub(super) work: Work,
    /// What progress shows of the step.
    pub(super) name: String,
}

/// A snapshot that a step made, now or earlier.
#[derive(Clone)]
pub(super) struct Layer {
    /// The snapshot as it was made: what later steps are put on.
    pub(super) made: SnapshotId,
    /// Keeps it.
    _lease: Lease,
    settled: Settling,
}

/// A layer that is identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    /// The snapshot with these layers: an earlier one, when an earlier run made the same.
    pub(super) id: SnapshotId,
    /// Its chain ID.
    pub(super) chain: Digest,
}

/// The work of identifying a layer, or its result.
#[derive(Clone)]
enum Settling {
    Done(Settled),
    Going(Shared<BoxFuture<'static, Result<Settled, Failed>>>),
}

/// What is kept of a step that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Keep {
    /// Nothing.
    #[default]
    Nothing,
    /// The files it left.
    Files,
    /// All of it, ready to run: its mounts, environment and network, too.
    Step,
}

/// An error that several wait for.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    error: Arc<Error>,
    /// What is there of the step that failed.
    pub(super) remains: Option<Remains>,
}

/// What is there of a step that failed.
#[derive(Clone, Debug)]
pub(super) enum Remains {
    /// The step, under an id.
    Step(String),
    /// What its process left.
    Files(Arc<Left>),
}

impl Failed {
    /// The error of a step of which something is kept.
    pub(super) fn with(error: Error, remains: Remains) -> Self {
        Self { error: Arc::new(error), remains: Some(remains) }
    }

    /// Makes an error of the same kind and with the same words.
    pub(super) fn error(&self) -> Error {
        Error::new(self.error.kind(), self.error.to_string())
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error: Arc::new(error), remains: None }
    }
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layer({})", self.made)
    }
}

impl Layer {
    /// A layer of an earlier run.
    pub(super) fn known(settled: Settled, lease: Lease) -> Self {
        Self { made: settled.id, _lease: lease, settled: Settling::Done(settled) }
    }

    /// A layer that was just made and is being identified by `work`, which goes on whether or not anybody waits.
    pub(super) fn new(
        made: SnapshotId,
        lease: Lease,
        work: impl Future<Output = Result<Settled, Failed>> + Send + 'static,
    ) -> Self {
        Self { made, _lease: lease, settled: Settling::Going(work.boxed().shared()) }
    }

    /// What a process left that failed: it is looked at, and never the result of anything.
    pub(super) fn unfinished(made: SnapshotId, lease: Lease) -> Self {
        Self::new(made, lease, async {
            Err(Error::internal("the files of a failed step were taken for a result").into())
        })
    }

    /// Returns what it is identified as, if that is known by now.
    pub(super) fn settled_now(&self) -> Option<Settled> {
        match &self.settled {
            Settling::Done(settled) => Some(*settled),
            Settling::Going(work) => work.peek().and_then(|result| result.as_ref().ok()).copied(),
        }
    }

    /// Waits until it is identified.
    pub(super) async fn settled(&self) -> Result<Settled> {
        match &self.settled {
            Settling::Done(settled) => Ok(*settled),
            Settling::Going(work) => work.clone().await.map_err(|failed| failed.error()),
        }
    }
}

impl Cached {
    /// Records the result, which is here now, as if it had been made here. Blocking.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) fn record(&self, solver: &Solver, snapshot: SnapshotId, now_ns: i64) -> Result<()> {
        let store = &solver.deps().store;
        let (mut times, mut below) = (Vec::new(), None);
        for RemoteLayer { layer, as_of } in self.layers.iter().flatten() {
            let chain = chain_id(below, layer.diff_id);
            below = Some(chain);
            times.extend(as_of.map(|as_of| (chain, as_of)));
            let descriptor = &layer.descriptor;
            let media_suffix = suffix(&descriptor.media_type).to_owned();
            let form = LayerBlob { digest: descriptor.digest, size: descriptor.size, media_suffix };
            store.remember_layer_blob(&layer.diff_id, &form)?;
        }
        store.note_times(&times)?;
        let Some(parts) = self.work.parts_now().filter(|_| !self.work.is_provisional()) else { return Ok(()) };
        let stored = parts.stored(&[]);
        let step = NewStep {
            key: parts.key(),
            op: self.work.op,
            snapshot,
            chain: self.chain,
            name: &self.name,
            parts: &stored,
            now_ns,
            boot: store.root().boot_id(),
        };
        store.root().db().write(|tx| cache::record(tx, &step))
    }
}

impl From<FileSystem> for Value {
    fn from(file_system: FileSystem) -> Self {
        Self::FileSystem(file_system)
    }
}

impl FileSystem {
    /// The file system of an image, as the value of the vertex that stands for it.
    pub(super) fn of_image(vertex: &Vertex, image: Arc<Resolved>) -> Self {
        let chain = image.config.rootfs.chain_ids().pop();
        Self::Image { vertex: vertex.digest(), image, chain }
    }

    /// Returns the chain ID, if that is known by now; `Some(None)` is that of an empty one.
    #[expect(clippy::option_option, reason = "whether it is known, and what it is")]
    pub(super) fn chain_now(&self) -> Option<Option<Digest>> {
        match self {
            Self::Empty => Some(None),
            Self::Image { chain, .. } => Some(*chain),
            Self::Layer(layer) => layer.settled_now().map(|settled| Some(settled.chain)),
            Self::Cached(cached) => Some(Some(cached.chain)),
        }
    }

    /// Waits for the chain ID.
    pub(super) async fn chain(&self) -> Result<Option<Digest>> {
        match self {
            Self::Layer(layer) => Ok(Some(layer.settled().await?.chain)),
            Self::Empty => Ok(None),
            Self::Image { chain, .. } => Ok(*chain),
            Self::Cached(cached) => Ok(Some(cached.chain)),
        }
    }

    /// Returns the layer, when a step of this engine made it.
    pub(super) fn as_layer(&self) -> Option<&Layer> {
        match self {
            Self::Layer(layer) => Some(layer),
            Self::Empty | Self::Image { .. } | Self::Cached(_) => None,
        }
    }

    /// Says whether it is known by its name only.
    pub(super) fn is_named_only(&self) -> bool {
        matches!(self, Self::Cached(cached) if cached.layers.is_none())
    }

    /// Says whether it is only known how it is made.
    pub(super) fn is_by_definition(&self) -> bool {
        matches!(self, Self::Cached(cached) if cached.by_definition)
    }

    /// Names what is there for as long as this engine works on it, whether or not it is identified.
    pub(super) fn provisional(&self) -> String {
        match self {
            Self::Empty => "empty".to_owned(),
            Self::Image { chain, .. } => format!("{chain:?}"),
            Self::Cached(cached) => format!("{:?}", Some(cached.chain)),
            Self::Layer(layer) => layer.made.to_string(),
        }
    }
}

/// A directory of the client that the engine reads in place.
#[derive(Debug)]
pub(super) struct LocalDir {
    /// What messages call it.
    pub(super) name: String,
    /// The directory.
    pub(super) root: Arc<OwnedFd>,
    /// What is not there.
    pub(super) ignore: Arc<Ignore>,
    /// Digests known from earlier.
    pub(super) memo: Arc<Memo>,
}

impl LocalDir {
    /// Returns the directory as something to copy from.
    pub(super) fn tree(&self) -> Tree {
        Tree {
            root: Arc::clone(&self.root),
            name: self.name.clone(),
            ignore: Some(Arc::clone(&self.ignore)),
            owners: Owners::Root,
            memo: Some(Arc::clone(&self.memo)),
        }
    }
}
