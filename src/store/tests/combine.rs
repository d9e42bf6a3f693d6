//! Layers on other snapshots than those they were made on, and what one snapshot has over another.

use super::drivers::{mounted, on_every_driver, step, told};
use super::*;

/// A snapshot that was made by changing another, identified.
fn made(world: &World, base: Option<SnapshotId>, change: impl Fn(&views::Tree)) -> SnapshotId {
    let id = step(world, base, change);
    let digests = world.store.layer_digests(id, &Cancel::new()).unwrap();
    world.store.identify(&world.lease, id, &digests).unwrap().id
}

/// Whether two snapshots hold one file under a path: the same inode of the disk, whatever mounts say.
fn shares(world: &World, path: &str, trees: usize) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let snapshots = world.root().join("snapshots");
    let found =
        names(&snapshots).into_iter().filter_map(|tree| snapshots.join(tree).join("fs").join(path).metadata().ok());
    let inodes: std::collections::HashSet<u64> = found.map(|metadata| metadata.ino()).collect();
    inodes.len() == trees
}

#[test]
fn privileged_a_layer_of_changes_lies_on_another_parent_and_takes_away_there() {
    on_every_driver(|world| {
        let base = made(world, None, |tree| {
            tree.dir("etc")
                .file("etc/old", "old")
                .file("etc/kept", "base")
                .file("gone", "x")
                .dir("swap")
                .file("swap/f", "1");
        });
        let upper = made(world, Some(base), |tree| {
            tree.remove("etc/old").remove("gone").file("etc/new", "new").link("etc/alias", "etc/new");
            tree.remove("swap").dir("swap").file("swap/g", "2").dir("fresh").file("fresh/h", "3").mode("fresh", 0o700);
        });
        let other = made(world, None, |tree| {
            tree.dir("etc").file("etc/old", "other").file("etc/own", "own").dir("swap").file("swap/f", "theirs");
            tree.dir("fresh").file("fresh/theirs", "4").dir("gone").file("gone/inside", "5");
        });
        let digests = world.store.snapshot(&world.lease, upper).unwrap().unwrap();
        let merged = world.store.rebase(&world.lease, upper, Some(other)).unwrap();
        assert_eq!(world.store.rebase(&world.lease, upper, Some(other)).unwrap(), merged, "asked again");
        let tree = mounted(world, merged);
        let read = |path: &str| tree.read(path);
        assert_eq!((read("etc/old"), read("etc/own").as_deref()), (None, Some("own")));
        assert_eq!((read("etc/new").as_deref(), read("etc/alias").as_deref()), (Some("new"), Some("new")));
        assert_eq!((read("swap/f"), read("swap/g").as_deref()), (None, Some("2")), "what the layer took away");
        assert_eq!((read("fresh/h").as_deref(), read("fresh/theirs").as_deref()), (Some("3"), Some("4")));
        assert_eq!(read("gone/inside"), None);
        let same = world.store.snapshot(&world.lease, merged).unwrap().unwrap();
        assert_eq!((same.diff_id, same.content), (digests.diff_id, digests.content), "it is the same layer");
        let packed = world.store.layer_digests(merged, &Cancel::new()).unwrap();
        assert_eq!(Some(packed.diff_id), digests.diff_id, "and is packed as it was");
        assert!(shares(world, "etc/new", 1), "its files are not copied");
        // On nothing, nothing is taken away, and marks are not seen.
        let alone = world.store.rebase(&world.lease, upper, None).unwrap();
        let again = world.store.rebase(&world.lease, merged, None).unwrap();
        assert_eq!(alone, again);
        let mut found = told(world, merged);
        found.extend(mounted(world, alone).describe());
        found
    });
}

#[test]
fn privileged_a_layer_may_lie_on_itself() {
    on_every_driver(|world| {
        let base = made(world, None, |tree| {
            tree.dir("d").file("d/a", "base").file("d/b", "base");
        });
        let upper = made(world, Some(base), |tree| {
            tree.file("d/a", "upper").remove("d/b").file("d/c", "upper");
        });
        let merged = world.store.rebase(&world.lease, base, Some(upper)).unwrap();
        let tree = mounted(world, merged);
        let read = |path: &str| tree.read(path);
        assert_eq!((read("d/a").as_deref(), read("d/b").as_deref()), (Some("base"), Some("base")));
        assert_eq!(read("d/c").as_deref(), Some("upper"));
        told(world, merged)
    });
}

#[test]
fn privileged_a_layer_that_only_adds_is_not_made_again() {
    if !may_mount() {
        return;
    }
    let world = World::new(Driver::Overlay);
    let base = made(&world, None, |tree| {
        tree.file("a", "a");
    });
    let upper = made(&world, Some(base), |tree| {
        tree.dir("d").file("d/b", "b");
    });
    let other = made(&world, None, |tree| {
        tree.dir("d").file("d/c", "c");
    });
    let trees = names(&world.root().join("snapshots")).len();
    let merged = world.store.rebase(&world.lease, upper, Some(other)).unwrap();
    assert_eq!(names(&world.root().join("snapshots")).len(), trees, "the tree stands as it is");
    let tree = mounted(&world, merged);
    assert_eq!(
        (tree.read("d/b").as_deref(), tree.read("d/c").as_deref(), tree.read("a")),
        (Some("b"), Some("c"), None)
    );
}

#[test]
fn privileged_a_difference_makes_one_snapshot_of_the_other() {
    on_every_driver(|world| {
        let lower = made(world, None, |tree| {
            tree.dir("d").file("d/same", "same").file("d/changed", "1").file("d/gone", "x").dir("bare");
        });
        let upper = made(world, None, |tree| {
            tree.dir("d").file("d/same", "same").file("d/changed", "22").dir("new").file("new/f", vec![1; 200_000]);
            tree.xattr("new/f", "user.note", b"n");
        });
        let upper = made(world, Some(upper), |tree| {
            tree.link("new/g", "new/f").symlink("l", "d");
        });
        let made = world.store.difference(&world.lease, Some(lower), Some(upper), 7, &Cancel::new()).unwrap();
        let alone = mounted(world, made);
        assert_eq!((alone.read("d/same"), alone.read("d/changed").as_deref()), (None, Some("22")));
        assert!(
            !alone.describe().iter().any(|line| line.contains("gone") || line.contains(".wh.")),
            "marks are not seen"
        );
        drop(alone);
        let digests = world.store.layer_digests(made, &Cancel::new()).unwrap();
        let made = world.store.identify(&world.lease, made, &digests).unwrap().id;
        // Put on the lower one, it gives the upper one.
        let whole = world.store.rebase(&world.lease, made, Some(lower)).unwrap();
        assert_eq!(mounted(world, whole).describe(), mounted(world, upper).describe());
        // The two it was made of are two files; none was added.
        assert!(world.store.driver() != Driver::Overlay || shares(world, "d/changed", 2), "files are linked");
        let mut found = vec![digests.diff_id.to_string(), digests.content.to_string()];
        found.extend(mounted(world, whole).describe());
        found
    });
}

#[test]
fn privileged_what_a_layer_was_made_on_stays_as_long_as_it_is_needed() {
    if !may_mount() {
        return;
    }
    let world = World::new(Driver::Overlay);
    let base = made(&world, None, |tree| {
        tree.file("a", "a");
    });
    let upper = made(&world, Some(base), |tree| {
        tree.remove("a").file("b", "b");
    });
    let other = made(&world, None, |tree| {
        tree.file("c", "c");
    });
    let merged = world.store.rebase(&world.lease, upper, Some(other)).unwrap();
    let digest = world.store.snapshot(&world.lease, merged).unwrap().unwrap().diff_id;
    let World { dir, store, lease } = world;
    drop(lease);
    let roots = |snapshots: Vec<SnapshotId>| Roots { snapshots, ..Roots::default() };
    store.collect(std::time::Duration::ZERO, |_| Ok(roots(vec![merged]))).unwrap();
    let packed = store.layer_digests(merged, &Cancel::new()).unwrap();
    assert_eq!(Some(packed.diff_id), digest);
    store.collect(std::time::Duration::ZERO, |_| Ok(roots(Vec::new()))).unwrap();
    assert_holds(&dir.path().join("root"), 0, 0);
}
