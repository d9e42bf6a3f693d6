//! Tests of the store on real file systems, with real mounts, several handles and several processes.
//!
//! What every driver must do is in `drivers`, which runs on all of them and compares what they say.

mod drivers;
mod layers;
pub(in crate::store) mod tars;
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

/// Says whether the test may mount, and so that it could not, if not.
fn may_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: mounting needs root");
    }
    root
}
