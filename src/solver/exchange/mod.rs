//! Exchange of the build cache with other machines: importing results that were made elsewhere, exporting those of a build.
//!
//! The format is BuildKit's ([`config`]): *records* with a name, what they follow from, and layers as results. In it, Kiln writes
//!
//! - for each **step** a record named by its operation ([`step_name`]), with one link for each input;
//! - for each **file system** that an input is, a record named by its chain ID, which follows from the step that makes it, or
//!   from nothing when it is an image;
//! - for the **content** of paths that an input is, a record named by its hash, which follows from its file system and the
//!   selection of paths, or from nothing when it is a client's directory.
//!
//! So an importer with an empty store computes the keys of a whole graph, file system after file system, without fetching a
//! layer, and layers of a result are fetched when a step works on it or an exporter wants it, and not before. What is exported
//! with `mode=min` has layers for the results that are in the image, and names for all others: those have to be made again
//! when somebody works on them.
//!
//! Beside these are the records by which BuildKit knows the same steps and results ([`peer`]), so that each finds what the other
//! exported.
//!
//! Parts: [`option`] reads attributes, `import` fetches a cache and [`catalog`] finds results in it; `gather` makes records of a
//! build's graph and `export` writes them and their layers to a `place`. `objects` are the
//! places without manifests: [`s3`], [`azblob`] and [`gha`]. `ahead` sends layers while the build still runs. [`mounts`] lets cache mounts travel with a cache.

mod ahead;
mod azblob;
mod catalog;
mod chunk;
mod config;
mod export;
mod gather;
mod gha;
mod import;
mod imports;
mod mounts;
mod objects;
mod option;
mod peer;
mod place;
mod s3;

use kiln_graph::Digest;

pub(super) use ahead::Ahead;
pub(super) use catalog::{Hit, RemoteLayer};
pub(super) use export::inline;
pub(super) use gather::Scope;
pub(super) use imports::Imports;
use imports::Loaded;
pub use option::take_imports;
pub(super) use option::{CacheExport, CacheImport, IMPORT_ATTRIBUTES, of_attributes};
pub(super) use peer::{Peer, PeerHit};

use super::key::Key;

/// The key of an image's configuration that holds records: JSON in base64.
const INLINE: &str = "moby.buildkit.cache.v0";

/// The word that names of our own begin with: they are no SHA-256.
const OWN: &str = "blake3:";

/// The name of the record of a step's output.
fn step_name(op: &Key, output: u32) -> String {
    let of_step = blake3::Hash::from_bytes(*op.as_bytes()).to_hex();
    match output {
        0 => format!("{OWN}{of_step}"),
        more => format!("{OWN}{}", blake3::hash(format!("{of_step} output {more}").as_bytes()).to_hex()),
    }
}

/// The name of a file system's record; `None` is an empty one.
fn chain_name(chain: Option<&Digest>) -> String {
    chain.copied().unwrap_or_else(|| Digest::of(b"")).to_string()
}

/// The name of a content's record.
fn content_name(hash: &[u8; 32]) -> String {
    format!("{OWN}{}", blake3::Hash::from_bytes(*hash).to_hex())
}

fn parse_content(name: &str) -> Option<[u8; 32]> {
    Some(*blake3::Hash::from_hex(name.strip_prefix(OWN)?).ok()?.as_bytes())
}

/// The name of a selection of paths.
fn selector_name(selector: &str) -> String {
    Digest::of(selector.as_bytes()).to_string()
}
