//! Sources that are fetched: git repositories, files by HTTP and blobs of images.
//!
//! Before a build is planned, each source is *pinned*: which commit a reference means, whether a file is the one that was
//! fetched before. That asks servers and fetches nothing; what is fetched is a step like others, which runs while others do.
//! The result is a layer, recorded under what the source turned out to be, whoever it came from.

mod agent;
mod blob;
mod bundle;
mod checkout;
mod git;
mod http;
mod image;
mod look;
mod mirror;
mod objects;
mod program;
mod records;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use futures_util::future::try_join_all;
use kiln_graph::op::{ImageSource, OciLayoutSource, Op, Source};
use kiln_graph::{Digest, Platform, Vertex, VertexId};
use rusqlite::Connection;

pub(super) use image::check as check_image;
pub(super) use look::{FileAnswer, GitAnswer, Hash};

pub(super) use agent::{AgentSocket, SocketOwner};
pub(super) use records::TABLES;

use super::failure::Failure;
use super::identify::{Found, Work};
use super::job::{Job, Stop, cancelled};
use super::key::{Key, Parts};
use super::lock;
use super::reporter::Reporter;
use super::value::Layer;
use crate::error::{Error, Result};
use crate::image::Resolved;
use crate::task::Cancel;

/// What sources of one build turned out to be: all graphs of the build see the same.
#[derive(Debug, Default)]
pub(super) struct Pins {
    known: Mutex<HashMap<Source, Pin>>,
    /// Images that a graph names without saying what they are, each for a platform.
    images: Mutex<HashMap<(ImageSource, Platform), Arc<Resolved>>>,
    /// Images of the client's OCI layouts that are not seen from here.
    layouts: Mutex<HashMap<(OciLayoutSource, Platform), Arc<Resolved>>>,
    /// Vertices that an earlier graph of the build reported.
    reported: Mutex<HashSet<Digest>>,
}

/// What a source turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pin {
    Commit(git::Commit),
    File(http::Version),
}

/// Something a build was made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Material {
    /// Where it is from, without credentials.
    pub uri: String,
    /// What it is: the digest of a file, of a manifest, or `sha1:` and a commit.
    pub digest: String,
}

impl Pins {
    fn get(&self, source: &Source) -> Option<Pin> {
        lock(&self.known).get(source).cloned()
    }

    fn set(&self, source: &Source, pin: Pin) {
        lock(&self.known).insert(source.clone(), pin);
    }

    /// Returns what an image is.
    pub(super) fn image(&self, image: &ImageSource, platform: &Platform) -> Option<Arc<Resolved>> {
        lock(&self.images).get(&(image.clone(), platform.clone())).cloned()
    }

    /// Returns what an image of a layout is, when it is read through the client's session.
    pub(super) fn layout(&self, layout: &OciLayoutSource, platform: &Platform) -> Option<Arc<Resolved>> {
        lock(&self.layouts).get(&(layout.clone(), platform.clone())).cloned()
    }

    /// Notes that watchers have seen vertices, which a later graph has, too.
    pub(super) fn was_reported(&self, vertices: impl IntoIterator<Item = Digest>) {
        lock(&self.reported).extend(vertices);
    }

    /// Whether watchers have seen a vertex in an earlier graph.
    pub(super) fn is_reported(&self, vertex: &Digest) -> bool {
        lock(&self.reported).contains(vertex)
    }
}

impl Job {
    /// Finds out what the fetched sources below some vertices are, as far as that can be known without fetching them.
    ///
    /// # Errors
    /// That of the first server that refuses or has no such thing, as the failure of the source's vertex.
    pub(super) async fn pin_sources(self: &Arc<Self>, roots: &[VertexId]) -> Result<(), Failure> {
        let reachable = self.graph.reachable(roots.iter().copied());
        let pins = reachable.into_iter().filter_map(|id| match &self.graph.vertex(id).op {
            Op::Source(Source::Image(ImageSource { image_id: Some(_), .. })) => None,
            Op::Source(Source::Local(_) | Source::Blob(_)) => None,
            Op::Source(source) => Some(self.pin(id, source)),
            _ => None,
        });
        try_join_all(pins).await.map(drop)
    }

    async fn pin(self: &Arc<Self>, id: VertexId, source: &Source) -> Result<(), Failure> {
        if self.pins.get(source).is_some() {
            return Ok(());
        }
        let pinned = match source {
            Source::Git(git) => self.pin_commit(git).await.map(|commit| Some(Pin::Commit(commit))),
            Source::Http(http) => self.pin_file(http).await.map(|version| version.map(Pin::File)),
            Source::Image(image) => self.pin_image(id, image).await.map(|()| None),
            Source::OciLayout(layout) => self.pin_layout(id, layout).await.map(|()| None),
            Source::Local(_) | Source::Blob(_) => Ok(None),
        };
        match pinned {
            Ok(pin) => {
                pin.into_iter().for_each(|pin| self.pins.set(source, pin));
                Ok(())
            }
            Err(error) => {
                self.report_failed(id, &error);
                Err(Failure::of_step(error, &self.graph, self.graph.vertex(id)))
            }
        }
    }

    /// Says whether an earlier build fetched what a source is now. Blocking.
    pub(super) fn identify_source(&self, connection: &Connection, id: VertexId, source: &Source) -> Result<Found> {
        let vertex = self.graph.vertex(id);
        let parts = self.identity(source);
        if let Some(parts) = &parts
            && let Some((layer, record)) = self.look_up(connection, vertex, &parts.key())?
        {
            return Ok(Found::hit(layer, Some(record)));
        }
        // Whoever wrote an imported cache does not speak for those whose signature is asked for.
        if let Some(parts) = &parts
            && !is_verified(source)
        {
            let work = Work::of_source(parts.key(), parts.key(), parts.clone());
            if let found @ Found::Value(..) = self.imported(id, work) {
                return Ok(found);
            }
        }
        Ok(Found::Miss(Box::new(self.fetching(vertex, parts))))
    }

    /// Returns the key of a source's result, if it is known.
    pub(super) fn source_key(&self, source: &Source) -> Option<Key> {
        self.identity(source).map(|parts| parts.key())
    }

    /// Returns what BuildKit calls a source, as far as it is known what it is.
    pub(super) fn pinned_keys(&self, source: &Source) -> Vec<String> {
        match (source, self.pins.get(source)) {
            _ if is_verified(source) => Vec::new(),
            (Source::Git(git), Some(Pin::Commit(commit))) => git::peer_keys(git, &commit),
            (Source::Http(http), Some(Pin::File(version))) => {
                http::peer_key(http, Some(&version)).into_iter().collect()
            }
            (Source::Http(http), None) => http::peer_key(http, None).into_iter().collect(),
            (Source::Blob(blob), _) => blob::peer_key(blob).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// What identifies the result of a source, if that is known.
    fn identity(&self, source: &Source) -> Option<Parts> {
        match (source, self.pins.get(source)) {
            (Source::Git(git), Some(Pin::Commit(commit))) => Some(git::identity(git, &commit)),
            (Source::Http(http), Some(Pin::File(version))) => Some(http::identity(http, &version)),
            (Source::Http(http), None) => http::promised(http),
            (Source::Blob(blob), _) => Some(blob::identity(blob)),
            _ => None,
        }
    }

    /// The work of fetching. Builds with other credentials do not share it.
    fn fetching(&self, vertex: &Vertex, parts: Option<Parts>) -> Work {
        let of_operation = Parts::of_operation(vertex);
        let op = of_operation.key();
        let mut run = parts.clone().unwrap_or_else(|| of_operation.clone());
        run.add("operation", format!("{op:?}"));
        run.add("session", self.session.id.clone().unwrap_or_default());
        Work::of_source(op, run.key(), parts.unwrap_or(of_operation))
    }

    /// Fetches a source.
    ///
    /// # Errors
    /// Naming the address and what the server answered; `Cancelled` when it was stopped.
    pub(super) async fn run_source(
        self: &Arc<Self>,
        id: VertexId,
        source: &Source,
        reporter: &Reporter,
        stop: &Stop,
    ) -> Result<Layer> {
        let cancel = Cancel::new();
        let _stop = cancel.on_drop();
        let fetch = async {
            match source {
                Source::Git(git) => self.run_git(id, git, reporter, &cancel).await,
                Source::Http(http) => self.run_http(id, http, reporter, &cancel).await,
                Source::Blob(blob) => self.run_blob(id, blob, reporter).await,
                _ => Err(Error::internal("a source that needs no work was run as a step")),
            }
        };
        tokio::select! {
            layer = fetch => layer,
            () = stop.stopped() => Err(cancelled()),
        }
    }

    /// Says what a fetched source is, and what else it is from; nothing of other sources.
    pub(super) fn fetched_materials(&self, source: &Source) -> Vec<Material> {
        let material = match (source, self.pins.get(source)) {
            (Source::Git(git), Some(Pin::Commit(commit))) => {
                let material = git::material(git, &commit);
                let bundle = git.bundle.as_ref().map(|bundle| blob::bundle_material(bundle, &material.uri));
                return std::iter::once(material).chain(bundle).collect();
            }
            (Source::Http(http), Some(Pin::File(version))) => http::material(http, &version.digest),
            (Source::Http(http), None) => http.checksum.and_then(|digest| http::material(http, &digest)),
            (Source::Blob(blob), _) => Some(blob::material(&blob.blob)),
            _ => None,
        };
        material.into_iter().collect()
    }
}

/// Whether a source must be signed.
fn is_verified(source: &Source) -> bool {
    match source {
        Source::Git(git) => git.verification.is_some(),
        Source::Http(http) => http.verification.is_some(),
        _ => false,
    }
}
