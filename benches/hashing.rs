//! Measures what a COPY costs before it runs: finding its files and hashing them, with and without what is remembered.
//!
//! `cargo bench --bench hashing`. Works in the directory for temporary files.

use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use kiln::solver::copy::{Memo, Owners, Tree, select};
use kiln::task::{Cancel, Clock};
use kiln_graph::op::Copy;

const FILES: usize = 5000;

fn selection(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let context = dir.path().join("context");
    for number in 0..FILES {
        let parent = context.join(format!("dir-{:02}", number % 50));
        std::fs::create_dir_all(&parent).expect("a directory can be made");
        std::fs::write(parent.join(number.to_string()), number.to_string().repeat(2000))
            .expect("a file can be written");
    }
    let root = Arc::new(std::fs::File::open(&context).expect("it can be opened").into());
    let tree =
        |memo| Tree { root: Arc::clone(&root), name: "context".to_owned(), ignore: None, owners: Owners::Root, memo };
    // Later than any file's time, so that nothing is racily clean.
    let later = || Memo::open(&dir.path().join("memo"), &context, Clock::system().now_ns() + 60_000_000_000);
    let hash = |tree: &Tree| select(tree, &Copy::default(), &Cancel::new()).expect("the files can be read").hash();

    let mut group = criterion.benchmark_group(format!("select {FILES} files"));
    group.bench_function("for the first time", |bencher| bencher.iter(|| hash(&tree(None))));
    std::fs::create_dir(dir.path().join("memo")).expect("a directory can be made");
    let memo = Arc::new(later());
    let first = hash(&tree(Some(Arc::clone(&memo))));
    memo.save().expect("the memo can be saved");
    group.bench_function("again", |bencher| {
        bencher.iter(|| assert_eq!(hash(&tree(Some(Arc::new(later())))), first));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = selection
}
criterion_main!(benches);
