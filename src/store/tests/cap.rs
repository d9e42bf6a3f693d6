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
