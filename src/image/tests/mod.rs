//! Tests of images in real stores: archives of ours and of others, and transfers to and from registries that misbehave.

mod archives;
mod transfers;

use std::path::Path;

use kiln_graph::oci::{History, ImageConfig};
use kiln_graph::{Digest, Platform, Reference};

use super::*;
use crate::state::Root;
use crate::store::{self, Driver, Rootfs};
use crate::task::Cancel;

/// The images of a store in a directory of its own; its driver needs no rights.
struct World {
    dir: tempfile::TempDir,
    images: Images,
    lease: Lease,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = open(&dir.path().join("root"));
        let lease = images.store().lease("test").unwrap();
        Self { dir, images, lease }
    }

    fn store(&self) -> &Store {
        self.images.store()
    }

    /// Makes an image of layers, each a file with its content.
    fn image(&self, name: &str, layers: &[(&str, Vec<u8>)]) -> Digest {
        let mut parent = None;
        for (path, content) in layers {
            let active = self.store().prepare(&self.lease, parent).unwrap();
            std::fs::write(active.dir().join(path), content).unwrap();
            let snapshot = active.commit().unwrap();
            let digests = self.store().layer_digests(snapshot, &Cancel::new()).unwrap();
            parent = Some(self.store().identify(&self.lease, snapshot, &digests).unwrap().id);
        }
        let host = Platform::host();
        let entry = |_: &(&str, Vec<u8>)| History { created_by: "test".to_owned(), ..History::default() };
        let config = ImageConfig {
            os: host.os,
            architecture: host.architecture,
            history: layers.iter().map(entry).collect(),
            ..ImageConfig::default()
        };
        let new = NewImage { config, root: Stack::Here(parent), epoch_ns: Some(0) };
        self.images.create(&self.lease, new, &[reference(name)]).unwrap()
    }

    fn read(&self, image: &str, path: &str) -> Option<Vec<u8>> {
        let image = self.images.find(&self.lease, image).unwrap();
        let snapshot = self.images.snapshot(&self.lease, &image).unwrap();
        let Rootfs::Dir { path: root, .. } = self.store().rootfs(snapshot).unwrap() else { panic!("copies") };
        std::fs::read(root.join(path)).ok()
    }

    /// Nobody has an image, and nothing is left once what was in use is collected.
    fn assert_empty(self) {
        assert_eq!(self.images.list(&self.lease).unwrap().len(), 0, "an image was recorded");
        drop(self.lease);
        let images = self.images.clone();
        let collect = |connection: &rusqlite::Connection| {
            let mut roots = store::Roots::default();
            images.add_roots(connection, &mut roots).map(|()| roots)
        };
        self.images.store().collect(std::time::Duration::ZERO, collect).unwrap();
        let usage = self.images.store().usage().unwrap();
        assert_eq!((usage.blobs, usage.snapshots, usage.actives, usage.partial), (0, 0, 0, 0));
    }
}

fn open(root: &Path) -> Images {
    let root = Root::open(root, &[store::SCHEMA, record::SCHEMA]).unwrap();
    Images::new(Store::open(root, Clock::system(), Some(Driver::Native)).unwrap(), Clock::system())
}

fn reference(name: &str) -> Reference {
    name.parse().unwrap()
}

/// Bytes that do not repeat.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
