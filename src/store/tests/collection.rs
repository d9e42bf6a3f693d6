//! Garbage collection and leases, and what a power cut loses.

use std::io::Write as _;
use std::time::Duration;

use kiln_graph::Digest;

use super::views::Tree;
use super::*;

const ALL: Duration = Duration::ZERO;

fn snapshot(world: &World, base: Option<SnapshotId>, name: &str) -> SnapshotId {
    let active = world.store.prepare(&world.lease, base).unwrap();
    Tree::at(active.dir()).file(name, name);
    active.commit().unwrap()
}

fn collect(store: &Store, roots: Roots) -> Freed {
    store.collect(ALL, |_| Ok(roots)).unwrap()
}

#[test]
fn what_roots_name_stays_with_all_it_lies_on_and_the_rest_goes() {
    let mut world = World::native();
    let one = snapshot(&world, None, "one");
    let two = snapshot(&world, Some(one), "two");
    let three = snapshot(&world, Some(two), "three");
    let aside = snapshot(&world, Some(one), "aside");
    let lost = snapshot(&world, None, "lost");
    let kept = world.store.prepare(&world.lease, Some(aside)).unwrap().keep();
    let gone = world.store.prepare(&world.lease, Some(three)).unwrap().keep();
    let blob = *world.store.write_blob(&world.lease, b"kept").unwrap().digest();
    let other = *world.store.write_blob(&world.lease, b"lost").unwrap().digest();
    world.lease = world.store.lease("a later command").unwrap();
    let roots = Roots { blobs: vec![blob], snapshots: vec![two], actives: vec![kept] };
    let freed = collect(&world.store, roots);
    assert_eq!((freed.blobs, freed.snapshots), (1, 2));
    assert!(freed.bytes > 0);
    let there = |id| world.store.snapshot(&world.lease, id).unwrap().is_some();
    assert_eq!([one, two, aside, three, lost].map(there), [true, true, true, false, false]);
    assert!(world.store.active(&world.lease, kept).unwrap().is_some());
    assert!(world.store.active(&world.lease, gone).unwrap().is_none());
    assert!(world.store.blob(&world.lease, &blob).unwrap().is_some());
    assert!(world.store.blob(&world.lease, &other).unwrap().is_none());
    assert_holds(&world.root(), 1, 4);
}

#[test]
fn a_lease_keeps_what_was_looked_up_or_made_with_it_until_it_ends() {
    let world = World::native();
    let lease = world.store.lease("mine").unwrap();
    let made = World { dir: tempfile::tempdir().unwrap(), store: world.store.clone(), lease: lease.clone() };
    let top = snapshot(&made, Some(snapshot(&made, None, "below")), "above");
    let active = made.store.prepare(&made.lease, Some(top)).unwrap();
    let blob = made.store.write_blob(&made.lease, b"blob").unwrap();
    drop(made);
    // Another process collects.
    assert_eq!(collect(&world.other(), Roots::default()), Freed::default());
    assert!(blob.open().is_ok() && active.dir().is_dir());
    // A second lease on the same things outlives the first.
    let second = world.store.lease("second").unwrap();
    world.store.snapshot(&second, top).unwrap().unwrap();
    drop((active, lease));
    let freed = collect(&world.other(), Roots::default());
    assert_eq!((freed.blobs, freed.snapshots), (1, 0));
    drop(second);
    assert_eq!(collect(&world.other(), Roots::default()).snapshots, 2);
    assert_holds(&world.root(), 0, 0);
}

#[test]
fn a_broken_transfer_is_kept_for_a_while_and_one_in_progress_always() {
    let world = World::native();
    let start = |text: &[u8]| match world.store.ingest(&world.lease, &Digest::of(text), None).unwrap() {
        IngestState::Ready(mut ingest) => {
            ingest.write_all(b"part").unwrap();
            ingest
        }
        other => panic!("{other:?}"),
    };
    drop(start(b"broken"));
    let running = start(b"running");
    world.store.collect(Duration::from_secs(3600), |_| Ok(Roots::default())).unwrap();
    assert_eq!(names(&world.root().join("ingest")).len(), 2);
    world.store.collect(ALL, |_| Ok(Roots::default())).unwrap();
    assert_eq!(names(&world.root().join("ingest")).len(), 1);
    drop(running);
}

#[test]
fn what_has_no_record_is_removed() {
    let world = World::native();
    let root = world.root();
    std::fs::write(root.join("blobs/sha256").join(Digest::of(b"stray").hex()), "stray").unwrap();
    std::fs::create_dir_all(root.join("snapshots/4711/fs/deep")).unwrap();
    std::fs::write(root.join("ingest/new-1-1"), "stray").unwrap();
    std::fs::write(root.join("leases/99"), "").unwrap();
    std::fs::create_dir_all(root.join("trash")).unwrap();
    std::fs::write(root.join("trash/x"), "").unwrap();
    collect(&world.store, Roots::default());
    assert_holds(&root, 0, 0);
    assert_eq!(names(&root.join("leases")).len(), 1);
}

#[test]
fn a_blob_that_comes_back_while_it_is_decided_upon_is_there() {
    let world = World::native();
    let digest = *world.store.write_blob(&world.store.lease("short").unwrap(), b"again").unwrap().digest();
    // Decided but not done, as a collection leaves it that was killed.
    world.store.root().db().write(|tx| Ok(tx.execute("UPDATE blobs SET removing = 1", [])?)).unwrap();
    assert!(world.store.blob(&world.lease, &digest).unwrap().is_none());
    world.store.write_blob(&world.lease, b"again").unwrap();
    collect(&world.store, Roots::default());
    assert_eq!(world.store.blob(&world.lease, &digest).unwrap().unwrap().read(9).unwrap(), b"again");
}

#[test]
fn roots_that_cannot_be_told_end_a_collection_before_it_removes_anything() {
    let world = World::native();
    world.store.write_blob(&world.store.lease("short").unwrap(), b"kept").unwrap();
    let error = world.store.collect(ALL, |_| Err(Error::corrupt("no roots"))).unwrap_err();
    assert_eq!(error.to_string(), "no roots");
    assert_holds(&world.root(), 1, 0);
}

#[test]
fn a_power_cut_loses_what_was_not_brought_to_the_disk_and_nothing_else() {
    let world = World::native();
    let lease = world.store.lease("a command").unwrap();
    let world = World { lease, ..world };
    let safe = snapshot(&world, None, "safe");
    let safe_blob = *world.store.write_blob(&world.lease, b"safe").unwrap().digest();
    assert!(world.store.oldest_at_risk().unwrap().is_some());
    crate::state::mark_durable(world.store.root(), DURABLE_TABLES).unwrap();
    assert_eq!(world.store.oldest_at_risk().unwrap(), None);
    let unsafe_top = snapshot(&world, Some(safe), "unsafe");
    let kept = world.store.prepare(&world.lease, Some(unsafe_top)).unwrap().keep();
    let unsafe_blob = *world.store.write_blob(&world.lease, b"unsafe").unwrap().digest();
    // The same boot: a crash of the program loses nothing.
    let again = world.other();
    let lease = again.lease("again").unwrap();
    assert!(again.snapshot(&lease, unsafe_top).unwrap().is_some());
    // Another boot.
    let reboot = |boot: &str| {
        let sql = |table| format!("UPDATE {table} SET boot = ?1 WHERE boot IS NOT NULL");
        world
            .store
            .root()
            .db()
            .write(|tx| Ok(DURABLE_TABLES.iter().try_for_each(|table| tx.execute(&sql(table), [boot]).map(drop))?))
            .unwrap();
    };
    reboot("the boot before");
    let after = world.other();
    let lease = after.lease("after").unwrap();
    assert!(after.snapshot(&lease, safe).unwrap().is_some());
    assert!(after.snapshot(&lease, unsafe_top).unwrap().is_none());
    assert!(after.active(&lease, kept).unwrap().is_none());
    assert!(after.blob(&lease, &safe_blob).unwrap().is_some());
    assert!(after.blob(&lease, &unsafe_blob).unwrap().is_none());
    // Made again, it is there again, whatever the disk still had of it.
    assert_eq!(after.write_blob(&lease, b"unsafe").unwrap().read(9).unwrap(), b"unsafe");
    collect(&after, Roots { snapshots: vec![safe], ..Roots::default() });
    assert_holds(&world.root(), 2, 1);
}

#[test]
fn a_store_is_opened_with_the_driver_it_was_made_with() {
    let world = World::native();
    let error = open(&world.root(), Some(Driver::Overlay)).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains("with the driver native, not overlay"), "{error}");
    assert_eq!(world.other().driver(), Driver::Native);
    assert_eq!("zfs".parse::<Driver>().unwrap_err().kind(), Kind::InvalidArgument);
}
