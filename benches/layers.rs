//! Measures packing trees into layers, hashing and compressing them.
//!
//! `cargo bench --bench layers`. Works in the directory for temporary files.

use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kiln::state::Root;
use kiln::store::compression::{Compression, Encoder};
use kiln::store::{SCHEMA, SnapshotId, Store};
use kiln::task::{Cancel, Clock};

/// A store with one snapshot, and what its files take in bytes.
struct Fixture {
    _dir: tempfile::TempDir,
    store: Store,
    snapshot: SnapshotId,
    bytes: u64,
}

fn fixture(fill: impl FnOnce(&Path) -> u64) -> Fixture {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let root = Root::open(dir.path(), &[SCHEMA]).expect("the root opens");
    let store = Store::open(root, Clock::system(), None).expect("the store opens");
    let lease = store.lease("bench").expect("a lease can be taken");
    let active = store.prepare(&lease, None).expect("a tree can be made");
    let bytes = fill(active.dir());
    let snapshot = active.commit().expect("it becomes a snapshot");
    std::mem::forget(lease);
    Fixture { _dir: dir, store, snapshot, bytes }
}

/// Text that compresses about as well as programs do.
fn content(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64 ^ 0x9E37_79B9_7F4A_7C15;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Half of it is noise.
        bytes.extend_from_slice(&(state >> 32).to_le_bytes()[..4]);
        bytes.extend_from_slice(b"text");
    }
    bytes.truncate(len);
    bytes
}

fn many_small(dir: &Path) -> u64 {
    for number in 0..2000 {
        let parent = dir.join(format!("dir-{:02}", number % 40));
        std::fs::create_dir_all(&parent).expect("a directory can be made");
        std::fs::write(parent.join(number.to_string()), content(number, 9000)).expect("a file can be written");
    }
    2000 * 9000
}

fn one_large(dir: &Path) -> u64 {
    const SIZE: usize = 64 << 20;
    std::fs::write(dir.join("file"), content(1, SIZE)).expect("a file can be written");
    SIZE as u64
}

fn digests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pack and hash");
    for (name, fixture) in [("2,000 files of 9 KB", fixture(many_small)), ("one file of 64 MiB", fixture(one_large))] {
        group.throughput(Throughput::Bytes(fixture.bytes));
        group.bench_function(name, |bencher| {
            bencher
                .iter(|| fixture.store.layer_digests(fixture.snapshot, &Cancel::new()).expect("the layer is packed"));
        });
    }
}

fn compression(criterion: &mut Criterion) {
    let data = content(2, 16 << 20);
    let mut group = criterion.benchmark_group("compress 16 MiB");
    group.throughput(Throughput::Bytes(data.len() as u64));
    for compression in [Compression::GZIP, Compression::ZSTD] {
        group.bench_function(compression.label(), |bencher| {
            bencher.iter(|| {
                let mut encoder = Encoder::new(std::io::sink(), compression).expect("the level is known");
                std::io::Write::write_all(&mut encoder, &data).expect("nothing fails in memory");
                encoder.finish().expect("nothing fails in memory")
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = digests, compression
}
criterion_main!(benches);
