//! The hard cap: what is refused beyond it, and what is removed before.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiln_graph::Digest;

use super::views::Tree;
use super::*;

const MB: u64 = 1_000_000;

/// A store that may take so many bytes more than it does, and the calls for relief.
fn capped(dir: &Path, more: u64) -> (Store, Arc<AtomicU64>) {
    let store = open(dir, Some(Driver::Native)).unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let (spare, calls) = (store.clone(), Arc::clone(&asked));
    let relieve = move |bytes| {
        calls.fetch_max(bytes, Ordering::Relaxed);
        // Nothing is needed but what is leased.
        spare.collect(Duration::ZERO, |_| Ok(Roots::default())).map(drop)
    };
    let taken = store.usage().unwrap().total();
    store.cap(taken + more, Arc::new(relieve));
    (store, asked)
}

fn refused<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted, "{error}");
    assert!(error.to_string().contains("hard cap") && error.to_string().contains("kiln system prune"), "{error}");
}

#[test]
fn a_blob_beyond_the_cap_is_refused_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (store, asked) = capped(dir.path(), 3 * MB);
    let lease = store.lease("test").unwrap();
    store.write_blob(&lease, &noise(1_000_000, 1)).unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 0, "there was room");
    let mut writer = store.blob_writer(&lease).unwrap();
    let mut written = 0;
    let failed = loop {
        match writer.write_all(&noise(500_000, 2)) {
            Ok(()) => written += 500_000,
            Err(error) => break Error::from(error),
        }
        assert!(written < 10_000_000, "nothing stopped it");
    };
    refused(Err::<(), _>(failed));
    assert!(written <= 2_500_000, "{written}");
    drop(writer);
    let data = noise(4_000_000, 3);
    let state = store.ingest(&lease, &Digest::of(&data), Some(data.len() as u64)).unwrap();
    let IngestState::Ready(mut ingest) = state else { panic!("nobody else writes it") };
    refused(ingest.write_all(&data).map_err(Error::from));
    assert_eq!(ingest.offset(), 0, "what has arrived is not in the way");
}

#[test]
fn what_nobody_needs_makes_room_first() {
    let dir = tempfile::tempdir().unwrap();
    let (store, asked) = capped(dir.path(), 3 * MB);
    store.write_blob(&store.lease("before").unwrap(), &noise(2_500_000, 1)).unwrap();
    let lease = store.lease("test").unwrap();
    store.write_blob(&lease, &noise(2_500_000, 2)).unwrap();
    assert!(asked.load(Ordering::Relaxed) >= 2 * MB);
    assert!(store.blob(&lease, &Digest::of(&noise(2_500_000, 1))).unwrap().is_none());
    refused(store.write_blob(&lease, &noise(2_500_000, 3)));
}

#[test]
fn a_tree_beyond_the_cap_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = capped(dir.path(), 3 * MB);
    let lease = store.lease("test").unwrap();
    let small = store.prepare(&lease, None).unwrap();
    Tree::at(small.dir()).file("data", noise(1_000_000, 1));
    small.commit().unwrap();
    let large = store.prepare(&lease, None).unwrap();
    Tree::at(large.dir()).file("data", noise(4_000_000, 2));
    refused(large.commit());
    assert!(store.usage().unwrap().snapshots < 2 * MB, "it has gone");
}

/// What is unpacked and copied is refused before it is written, however small it was when it was packed.
#[test]
fn an_archive_and_a_copy_beyond_the_cap_are_refused_while_they_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = capped(dir.path(), 3 * MB);
    let lease = store.lease("test").unwrap();
    let written = |active: &Active| {
        let files = std::fs::read_dir(active.dir()).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..8 {
        let data = noise(1_000_000, number);
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("file{number}"), data.as_slice()).unwrap();
    }
    let packed = zstd::encode_all(tar.into_inner().unwrap().as_slice(), 1).unwrap();
    let cancel = Cancel::new();
    let active = store.prepare(&lease, None).unwrap();
    let into = tree::open_root(active.dir()).unwrap();
    let options = layer::ExtractOptions::new(&cancel).within(&store);
    refused(layer::extract(packed.as_slice(), into, options));
    assert!(written(&active) <= 3 * MB, "{}", written(&active));
    drop(active);
    // Small files are copied, and never cloned.
    let source = tempfile::tempdir().unwrap();
    for number in 0..500 {
        std::fs::write(source.path().join(format!("file{number}")), noise(16_000, number)).unwrap();
    }
    let active = store.prepare(&lease, None).unwrap();
    let options = tree::CopyTree { xattrs: |_| true, cancel: &cancel, room: Some(&store) };
    let (from, to) = (tree::open_root(source.path()).unwrap(), tree::open_root(active.dir()).unwrap());
    refused(tree::copy_tree(from, to, options));
    assert!(written(&active) <= 3 * MB, "{}", written(&active));
}

/// Whoever watches processes that write looks more often near the cap, and tells when there is no room.
#[test]
fn processes_that_write_are_looked_at_the_sooner_the_less_room_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Some(Driver::Native)).unwrap();
    assert_eq!(store.watch_room().unwrap(), None, "nobody looks without a cap");
    let active = store.prepare(&store.lease("test").unwrap(), None).unwrap();
    std::fs::write(active.dir().join("data"), noise(4_000_000, 1)).unwrap();
    let taken = store.usage().unwrap().total();
    let look = |cap: u64| {
        let store = open(dir.path(), None).unwrap();
        store.cap(cap, Arc::new(|_| Ok(())));
        store.watch_room()
    };
    let (far, near) = (look(taken + 400 * MB).unwrap(), look(taken + 20 * MB).unwrap());
    assert!(near < far && far < look(taken + 100_000 * MB).unwrap(), "{near:?} {far:?}");
    refused(look(taken - MB));
}
