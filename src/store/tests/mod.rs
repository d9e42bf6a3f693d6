//! Tests of the store on real file systems, with real mounts, several handles and several processes.
//!
//! What every driver must do is in `drivers`, which runs on all of them and compares what they say.

mod blobs;
mod cap;
mod collection;
mod combine;
mod crash;
mod drivers;
mod full_disk;
mod layers;
pub(in crate::store) mod tars;
mod usage;
pub(in crate::store) mod views;

use std::path::{Path, PathBuf};

use super::*;
use crate::error::Kind;
use crate::task::Cancel;

/// A store in a directory of its own, and a lease.
struct World {
    dir: tempfile::TempDir,
    store: Store,
    lease: Lease,
}

impl World {
    fn new(driver: Driver) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("root"), Some(driver)).unwrap();
        let lease = store.lease("test").unwrap();
        Self { dir, store, lease }
    }

    /// The driver that needs no rights and no kernel support.
    fn native() -> Self {
        Self::new(Driver::Native)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Another handle to the same root, as another process would have it.
    fn other(&self) -> Store {
        open(&self.root(), None).unwrap()
    }
}

fn open(root: &Path, driver: Option<Driver>) -> Result<Store> {
    Store::open(Root::open(root, &[SCHEMA])?, Clock::system(), driver)
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

/// The names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Checks that a root holds nothing but what an empty store holds, and the given numbers of blobs and trees.
fn assert_holds(root: &Path, blobs: usize, trees: usize) {
    let of = |dir: &str| names(&root.join(dir));
    assert_eq!(of("blobs/sha256").len() + of("blobs/sha512").len(), blobs, "blobs");
    let numbered = of("snapshots").into_iter().filter(|name| name.parse::<i64>().is_ok()).count();
    assert_eq!(numbered, trees, "trees");
    assert_eq!(of("ingest"), Vec::<String>::new(), "ingests");
    assert!(!root.join("trash").exists() || of("trash").is_empty(), "trash");
}

/// Says whether the test may mount, and so that it could not, if not.
fn may_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: mounting needs root");
    }
    root
}
