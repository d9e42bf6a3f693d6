//! What the store says it takes, beside what `du` says.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kiln_graph::Digest;

use super::views::Tree;
use super::*;
use crate::store::tree::{Attributes, Time, Xattrs};

/// What `du` says of a root, in bytes.
fn du(root: &Path) -> u64 {
    du_without(root, "nothing")
}

fn du_without(root: &Path, excluded: &str) -> u64 {
    let exclude = format!("--exclude={excluded}");
    let output = Command::new("du").args(["-s", "--block-size=1", &exclude]).arg(root).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn assert_agrees(world: &World, when: &str) {
    let (said, real) = (world.store.usage().unwrap().total(), du(&world.root()));
    assert!(said.abs_diff(real) * 100 <= real * 2, "{when}: usage says {said}, du {real}");
}

fn snapshot(world: &World, base: Option<SnapshotId>, change: impl Fn(&Tree)) -> SnapshotId {
    let active = world.store.prepare(&world.lease, base).unwrap();
    change(&Tree::at(active.dir()));
    active.commit().unwrap()
}

/// Goes through the life of a store on a driver, comparing at each step.
fn check(driver: Driver) {
    let mut world = World::new(driver);
    assert_agrees(&world, "empty");
    for n in 0..20 {
        world.store.write_blob(&world.lease, &noise(100 + n * 7000, n as u64)).unwrap();
    }
    assert_agrees(&world, "blobs");
    let base = snapshot(&world, None, |tree| {
        tree.dir("d");
        for n in 0..50 {
            tree.file(format!("d/{n}"), vec![1; n * 400]);
        }
        tree.file("big", noise(800_000, 9)).link("big2", "big").link("d/big3", "big");
        let sparse = std::fs::File::create(tree.path("sparse")).unwrap();
        sparse.set_len(50 << 20).unwrap();
        sparse.write_all_at(&noise(200_000, 3), 20 << 20).unwrap();
    });
    assert_agrees(&world, "hard links and holes");
    let digests = world.store.layer_digests(base, &Cancel::new()).unwrap();
    world.store.identify(&world.lease, base, &digests).unwrap();
    assert_agrees(&world, "identified");
    let top = snapshot(&world, Some(base), |tree| {
        tree.file("more", noise(500_000, 4)).dir("e");
    });
    assert_agrees(&world, "a second layer");
    // A copy that shares most of its files with an earlier one.
    let again = world.store.prepare(&world.lease, None).unwrap();
    let from = again.reuse(base).unwrap();
    let missing = Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Time::default(), xattrs: Xattrs::default() };
    let root = tree::open_root(again.dir()).unwrap();
    for name in [c"big", c"sparse"] {
        rustix::fs::linkat(&from, name, &root, name, rustix::fs::AtFlags::empty()).unwrap();
    }
    missing.apply(&root).unwrap();
    Tree::at(again.dir()).file("own", noise(300_000, 5));
    assert_agrees(&world, "while files are shared");
    let again = again.commit().unwrap();
    assert_agrees(&world, "shared files");
    let active = world.store.prepare(&world.lease, Some(top)).unwrap();
    Tree::at(active.dir()).file("written", noise(700_000, 6));
    assert_agrees(&world, "an active");
    drop(active);
    if let IngestState::Ready(mut ingest) = world.store.ingest(&world.lease, &Digest::of(b"x"), None).unwrap() {
        ingest.write_all(&noise(400_000, 7)).unwrap();
    }
    assert_agrees(&world, "a broken transfer");
    // The tree that its files came from goes, and they stay.
    world.lease = world.store.lease("later").unwrap();
    let before = du_without(&world.root(), "kiln.db*");
    let roots = Roots { snapshots: vec![again], ..Roots::default() };
    let freed = world.store.collect(Duration::ZERO, |_| Ok(roots)).unwrap();
    assert_agrees(&world, "after a collection");
    let gained = before.saturating_sub(du_without(&world.root(), "kiln.db*"));
    assert!(freed.bytes.abs_diff(gained) * 50 <= gained, "freed {} bytes, du says {gained}", freed.bytes);
    assert!(world.store.usage().unwrap().snapshots > 1_200_000);
    world.store.collect(Duration::ZERO, |_| Ok(Roots::default())).unwrap();
    assert_agrees(&world, "empty again");
    assert_eq!(world.store.usage().unwrap().snapshots, 0);
}

#[test]
fn usage_agrees_with_du_for_the_copying_driver() {
    check(Driver::Native);
}

#[test]
fn privileged_usage_agrees_with_du_for_overlay() {
    if may_mount() {
        check(Driver::Overlay);
    }
}
