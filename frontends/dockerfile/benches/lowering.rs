//! Measures reading and lowering Dockerfiles of different lengths.
//!
//! `cargo bench -p kiln-dockerfile --bench lowering`.

use std::collections::HashMap;
use std::fmt::Write as _;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kiln_dockerfile::{Definition, Outcome, Request, ResolvedImage, parse};
use kiln_graph::SourceFile;

/// A file of so many instructions: stages of 20, each with files of its context and of the stage before.
fn dockerfile(instructions: usize) -> SourceFile {
    let mut text = String::from("# syntax=docker/dockerfile:1\nARG VERSION=1.0\n");
    for number in 1..instructions {
        let stage = number / 20;
        match number % 20 {
            1 => writeln!(text, "FROM debian:bookworm AS stage-{stage}"),
            2 => writeln!(text, "ARG VERSION TARGETARCH"),
            3 if stage > 0 => writeln!(text, "COPY --from=stage-{} /out/{number} /in/", stage - 1),
            4 => writeln!(text, "ENV PATH=/opt/{stage}/bin:$PATH A{number}=\"${{VERSION:-none}} $TARGETARCH\""),
            5 => writeln!(text, "WORKDIR /src/{stage}"),
            6 | 12 => writeln!(text, "COPY --chown=1000:1000 --chmod=u=rwX file{number} dir{number}/*.txt ./"),
            7 => writeln!(text, "LABEL version=\"$VERSION\" step=\"{number}\""),
            8 => writeln!(text, "RUN <<EOF\nset -e\necho {number}\nEOF"),
            _ => writeln!(
                text,
                "RUN --mount=type=cache,target=/var/cache/{number} --mount=type=bind,source=s,target=/s \\\n    make \\\n    \
                 # a comment\n    -j4 target-{number}"
            ),
        }
        .expect("a String takes everything");
    }
    SourceFile::new("Dockerfile", &text)
}

fn whole(file: &SourceFile) -> usize {
    let request = Request::new(file);
    let definition = Definition::read(&request).expect("the file is in order");
    let mut images = HashMap::new();
    loop {
        match definition.lower(&images).expect("the file is in order") {
            Outcome::Done(lowered) => return lowered.graph.vertices().len(),
            Outcome::Need(needs) => images.extend(needs.into_iter().map(|need| {
                let image = ResolvedImage::assumed(&need.key);
                (need.key, image)
            })),
        }
    }
}

fn lowering(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dockerfile");
    for instructions in [100, 1000, 5000] {
        let file = dockerfile(instructions);
        assert!(whole(&file) > instructions / 2, "all stages are needed");
        group.throughput(Throughput::Elements(instructions as u64));
        group.bench_with_input(BenchmarkId::new("parse", instructions), &file, |bencher, file| {
            bencher.iter(|| parse(file).expect("the file is in order").stages.len());
        });
        group.bench_with_input(BenchmarkId::new("parse+lower", instructions), &file, |bencher, file| {
            bencher.iter(|| whole(file));
        });
    }
    group.finish();
}

criterion_group!(benches, lowering);
criterion_main!(benches);
