//! Measures a build that finds everything in the cache: reading the Dockerfile, lowering it, and planning. What of it is
//! reading and lowering is measured by itself; the rest is planning, with what belongs to each build (progress, its record).
//!
//! `cargo bench --bench planning`, as root. Every step makes a directory, so that the graph is as large as the file is long and
//! the first build, which is not measured, starts no process.

use std::collections::HashMap;
use std::fmt::Write as _;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kiln::config::{Config, Environment, Flags};
use kiln::engine::Engine;
use kiln::solver::BuildRequest;
use kiln::solver::progress::Progress;
use kiln_dockerfile::{Definition, Outcome, Request};
use kiln_graph::SourceFile;

/// Stages of 50 steps, and one that needs them all.
fn dockerfile(steps: usize) -> String {
    let mut text = String::new();
    let stages = steps / 50;
    for stage in 0..stages {
        writeln!(text, "FROM scratch AS stage-{stage}").expect("a String takes everything");
        (0..50).for_each(|step| writeln!(text, "WORKDIR /{stage}/{step}").expect("a String takes everything"));
    }
    text.push_str("FROM scratch\n");
    for stage in 0..stages {
        writeln!(text, "COPY --from=stage-{stage} / /").expect("a String takes everything");
    }
    text
}

async fn build(engine: &Engine, dockerfile: &str) {
    let request = BuildRequest {
        frontend: "dockerfile.v0".to_owned(),
        dockerfile: Some(dockerfile.as_bytes().to_vec()),
        ..BuildRequest::default()
    };
    let progress = Progress::new(engine.clock());
    engine.solver().build(request, progress).await.expect("directories can be made");
}

/// Returns how many steps there are.
fn lower(dockerfile: &str) -> usize {
    let file = SourceFile::new("Dockerfile", dockerfile);
    let request = Request::new(&file);
    let definition = Definition::read(&request).expect("the file is in order");
    match definition.lower(&HashMap::new()).expect("the file is in order") {
        Outcome::Done(lowered) => lowered.graph.vertices().len(),
        Outcome::Need(_) => panic!("no image is named"),
    }
}

fn planning(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("make a root directory");
    let flags = Flags { root: Some(dir.path().to_owned()), ..Flags::default() };
    let config = Config::load(&flags, &Environment::of_process()).expect("read the configuration");
    let engine = Engine::open(config).expect("open the root directory");
    let runtime = tokio::runtime::Runtime::new().expect("make a runtime");
    let mut group = criterion.benchmark_group("planning");
    group.sample_size(10);
    for steps in [100, 1000, 10_000] {
        let text = dockerfile(steps);
        runtime.block_on(build(&engine, &text));
        assert!(lower(&text) > steps, "every instruction is a step");
        group.throughput(Throughput::Elements(steps as u64));
        group.bench_with_input(BenchmarkId::new("cached", steps), &text, |bencher, text| {
            bencher.iter(|| runtime.block_on(build(&engine, text)));
        });
        group.bench_with_input(BenchmarkId::new("lowered", steps), &text, |bencher, text| {
            bencher.iter(|| lower(text));
        });
    }
    group.finish();
    runtime.block_on(engine.shutdown(std::time::Duration::from_secs(10)));
}

criterion_group!(benches, planning);
criterion_main!(benches);
