//! Measures what the scheduler itself costs, with steps that take no time.
//!
//! `cargo bench --bench scheduler`.

use std::collections::VecDeque;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kiln::solver::scheduler::{Action, Identity, NodeId, Scheduler};

/// A build of `stages` stages of `steps` steps each, and a last step that needs all of them.
fn build(stages: usize, steps: usize) -> Vec<Vec<NodeId>> {
    let mut inputs = Vec::with_capacity(stages * steps + 1);
    for stage in 0..stages {
        for step in 0..steps {
            inputs.push(if step == 0 { Vec::new() } else { vec![stage * steps + step - 1] });
        }
    }
    inputs.push((0..stages).map(|stage| stage * steps + steps - 1).collect());
    inputs
}

/// Carries a build out, with nothing cached; returns how many steps ran.
fn carry_out(inputs: &[Vec<NodeId>]) -> usize {
    let mut scheduler = Scheduler::new(8);
    let (_, actions) = scheduler.submit(inputs, &[inputs.len() - 1]);
    let mut todo = VecDeque::from(actions);
    let mut ran = 0;
    while let Some(action) = todo.pop_front() {
        todo.extend(match action {
            Action::Identify(task) => scheduler.identified(task, Identity::Miss(task.node)),
            Action::Run(run, _) => {
                ran += 1;
                scheduler.finished(run, true)
            }
            Action::Take(..) | Action::Done(_) => Vec::new(),
            Action::Abort(_) | Action::Failed(_) => unreachable!("nothing fails here"),
        });
    }
    ran
}

fn schedule(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("schedule");
    for (stages, steps) in [(1, 30), (12, 10), (100, 100)] {
        let inputs = build(stages, steps);
        group.throughput(Throughput::Elements(inputs.len() as u64));
        group.bench_with_input(BenchmarkId::new(format!("{stages} stages"), steps), &inputs, |bencher, inputs| {
            bencher.iter(|| assert_eq!(carry_out(inputs), inputs.len()));
        });
    }
}

criterion_group!(benches, schedule);
criterion_main!(benches);
