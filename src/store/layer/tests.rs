//! Tests of layers: tars in, tars out, and tars that mean harm.

mod hostile;
mod packing;
mod peers;
mod reading;
mod roundtrip;

use std::path::{Path, PathBuf};

use super::*;
use crate::error::Kind;
use crate::store::tests::tars::{Item as TarItem, Tar};
use crate::store::tests::views::{Tree, describe};
use crate::store::tree::open_root;

/// A directory to unpack into, in one with something beside it that must stay as it is.
struct Sandbox {
    dir: tempfile::TempDir,
    before: Vec<String>,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["root", "outside", "outside/dir"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["canary", "outside/canary", "outside/dir/canary"] {
            std::fs::write(dir.path().join(name), "alive").unwrap();
        }
        let mut sandbox = Self { dir, before: Vec::new() };
        sandbox.before = sandbox.around();
        sandbox
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn outside(&self) -> String {
        self.dir.path().join("outside").to_str().unwrap().to_owned()
    }

    /// Unpacks a layer with the marks that need no rights.
    fn unpack(&self, tar: &[u8]) -> Result<Unpacked> {
        let result = unpack(tar, open_root(&self.root())?, Marks::Files, ExtractOptions::new(&Cancel::new()));
        self.check();
        result
    }

    /// Unpacks an archive that is no layer.
    fn extract(&self, tar: &[u8]) -> Result<Extracted> {
        let result = extract(tar, open_root(&self.root())?, ExtractOptions::new(&Cancel::new()));
        self.check();
        result
    }

    fn around(&self) -> Vec<String> {
        let mut all = describe(&self.dir.path().join("outside"));
        let names = std::fs::read_dir(self.dir.path()).unwrap();
        all.extend(names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()));
        all.push(std::fs::read_to_string(self.dir.path().join("canary")).unwrap());
        all
    }

    /// Nothing beside the root has changed.
    fn check(&self) {
        assert_eq!(self.around(), self.before, "something outside was touched");
    }

    fn describe(&self) -> Vec<String> {
        describe(&self.root())
    }

    fn read(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.root().join(path)).ok()
    }

    fn has(&self, path: &str) -> bool {
        self.root().join(path).symlink_metadata().is_ok()
    }
}

/// Packs all of a directory.
fn pack_dir(dir: &Path) -> Vec<u8> {
    let mut tar = Vec::new();
    write(whole(dir), &Style::default(), &mut tar, &Cancel::new()).unwrap();
    tar
}

/// A tree on nothing.
fn whole(dir: &Path) -> Source {
    Source { tree: open_root(dir).unwrap(), form: Form::Whole(None), lower: None }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: owners and devices need root");
    }
    root
}
