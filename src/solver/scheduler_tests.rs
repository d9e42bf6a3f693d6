//! Tests of the scheduler with fake steps: single situations first, then random graphs and random orders of events.

use proptest::prelude::*;

use super::*;

fn task(job: JobId, node: NodeId) -> Task {
    Task { job, node }
}

#[test]
fn a_fully_cached_chain_runs_nothing() {
    let mut scheduler = Scheduler::<u32>::new(4);
    let (job, actions) = scheduler.submit(&[vec![], vec![0], vec![1]], &[2]);
    assert_eq!(actions, [Action::Identify(task(job, 0))]);
    assert_eq!(scheduler.identified(task(job, 0), Identity::Hit), [Action::Identify(task(job, 1))]);
    assert_eq!(scheduler.identified(task(job, 1), Identity::Hit), [Action::Identify(task(job, 2))]);
    assert_eq!(scheduler.identified(task(job, 2), Identity::Hit), [Action::Done(job)]);
    assert!(scheduler.is_idle());
}

#[test]
fn equal_steps_of_two_builds_run_once() {
    let mut scheduler = Scheduler::new(4);
    let (one, _) = scheduler.submit(&[vec![]], &[0]);
    let (two, _) = scheduler.submit(&[vec![]], &[0]);
    let run = RunId(0);
    assert_eq!(scheduler.identified(task(one, 0), Identity::Miss("k")), [Action::Run(run, task(one, 0))]);
    assert_eq!(scheduler.identified(task(two, 0), Identity::Miss("k")), []);
    let [take_one, take_two] = [one, two].map(|job| Action::Take(run, task(job, 0)));
    assert_eq!(scheduler.finished(run, true), [take_one, Action::Done(one), take_two, Action::Done(two)]);
    assert!(scheduler.is_idle());
}

#[test]
fn a_shared_run_is_aborted_only_when_the_last_build_has_gone() {
    let mut scheduler = Scheduler::new(4);
    let (one, _) = scheduler.submit(&[vec![]], &[0]);
    let (two, _) = scheduler.submit(&[vec![]], &[0]);
    scheduler.identified(task(one, 0), Identity::Miss("k"));
    scheduler.identified(task(two, 0), Identity::Miss("k"));
    assert_eq!(scheduler.cancel(one), []);
    assert_eq!(scheduler.cancel(two), [Action::Abort(RunId(0))]);
    let (three, _) = scheduler.submit(&[vec![]], &[0]);
    assert_eq!(scheduler.identified(task(three, 0), Identity::Miss("k")), [Action::Run(RunId(1), task(three, 0))]);
    assert_eq!(scheduler.finished(RunId(0), false), [], "the aborted run is nobody's failure");
    let take = Action::Take(RunId(1), task(three, 0));
    assert_eq!(scheduler.finished(RunId(1), true), [take, Action::Done(three)]);
    assert!(scheduler.is_idle());
}

#[test]
fn the_longest_remaining_path_gets_the_free_place() {
    let mut scheduler = Scheduler::new(1);
    // Node 1 stands alone, nodes 2 and 3 hang on node 0.
    let (job, _) = scheduler.submit(&[vec![], vec![], vec![0], vec![2], vec![1, 3]], &[4]);
    assert_eq!(scheduler.identified(task(job, 1), Identity::Miss(1)), [Action::Run(RunId(0), task(job, 1))]);
    let (other, _) = scheduler.submit(&[vec![]], &[0]);
    assert_eq!(scheduler.identified(task(other, 0), Identity::Miss(9)), []);
    assert_eq!(scheduler.identified(task(job, 0), Identity::Miss(0)), []);
    let take = Action::Take(RunId(0), task(job, 1));
    assert_eq!(scheduler.finished(RunId(0), true), [take, Action::Run(RunId(2), task(job, 0))]);
}

#[test]
fn a_failure_ends_its_job_and_stops_what_else_it_was_doing() {
    let mut scheduler = Scheduler::new(4);
    let (job, _) = scheduler.submit(&[vec![], vec![], vec![0, 1]], &[2]);
    scheduler.identified(task(job, 0), Identity::Miss(0));
    scheduler.identified(task(job, 1), Identity::Miss(1));
    assert_eq!(scheduler.finished(RunId(0), false), [Action::Abort(RunId(1)), Action::Failed(task(job, 0))]);
    assert_eq!(scheduler.finished(RunId(1), false), []);
    assert!(scheduler.is_idle());
}

/// A driver with fake steps: events wait in a list and are delivered in the order that `choices` picks.
struct Fake {
    scheduler: Scheduler<u8>,
    limit: usize,
    jobs: BTreeMap<JobId, Vec<FakeNode>>,
    pending: Vec<Pending>,
    /// What runs: its key, and whether it was told to stop.
    running: BTreeMap<RunId, (u8, bool)>,
    done: Vec<JobId>,
    failed: Vec<JobId>,
}

struct FakeNode {
    inputs: Vec<NodeId>,
    /// `None` is cached.
    key: Option<u8>,
    settled: bool,
}

enum Pending {
    Identify(Task),
    Finish(RunId),
}

impl Fake {
    fn apply(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Identify(task) => {
                    let nodes = &self.jobs[&task.job];
                    assert!(
                        nodes[task.node].inputs.iter().all(|input| nodes[*input].settled),
                        "inputs are settled before a node is identified"
                    );
                    self.pending.push(Pending::Identify(task));
                }
                Action::Run(run, task) => {
                    let key = self.jobs[&task.job][task.node].key.expect("cached nodes do not run");
                    let twin = self.running.values().any(|(other, aborted)| *other == key && !aborted);
                    assert!(!twin, "equal steps run once");
                    self.running.insert(run, (key, false));
                    assert!(self.running.len() <= self.limit, "the limit holds");
                    self.pending.push(Pending::Finish(run));
                }
                Action::Take(_, task) => self.settle(task),
                Action::Abort(run) => self.running.get_mut(&run).expect("only what runs is aborted").1 = true,
                Action::Done(job) => self.done.push(job),
                Action::Failed(task) => self.failed.push(task.job),
            }
        }
    }

    fn settle(&mut self, task: Task) {
        if let Some(nodes) = self.jobs.get_mut(&task.job) {
            nodes[task.node].settled = true;
        }
    }

    fn deliver(&mut self, choice: usize, fails: bool) {
        match self.pending.swap_remove(choice % self.pending.len()) {
            Pending::Identify(task) => {
                let identity = match self.jobs[&task.job][task.node].key {
                    None => Identity::Hit,
                    Some(key) => Identity::Miss(key),
                };
                if identity == Identity::Hit {
                    self.settle(task);
                }
                let actions = self.scheduler.identified(task, identity);
                self.apply(actions);
            }
            Pending::Finish(run) => {
                let (_, aborted) = self.running.remove(&run).expect("runs finish once");
                let succeeded = !aborted && !fails;
                let actions = self.scheduler.finished(run, succeeded);
                self.apply(actions);
            }
        }
    }
}

/// A job of up to 12 nodes; keys are few, so that nodes of one and of several jobs coincide.
fn job() -> impl Strategy<Value = Vec<(Vec<usize>, Option<u8>)>> {
    prop::collection::vec((prop::collection::vec(any::<prop::sample::Index>(), 0..3), prop::option::of(0..6_u8)), 1..12)
        .prop_map(|nodes| {
            let inputs = |n: usize, picks: &[prop::sample::Index]| {
                if n == 0 { Vec::new() } else { picks.iter().map(|pick| pick.index(n)).collect() }
            };
            nodes.iter().enumerate().map(|(n, (picks, key))| (inputs(n, picks), *key)).collect()
        })
}

proptest! {
    #[test]
    fn whatever_the_order_of_events_every_job_ends_and_nothing_is_left(
        jobs in prop::collection::vec(job(), 1..4),
        limit in 1..4_usize,
        choices in prop::collection::vec((any::<usize>(), 0..40_u8), 200),
        cancel_at in prop::option::of(0..20_usize),
    ) {
        let mut fake = Fake {
            scheduler: Scheduler::new(limit), limit, jobs: BTreeMap::new(), pending: Vec::new(),
            running: BTreeMap::new(), done: Vec::new(), failed: Vec::new(),
        };
        let mut ids = Vec::new();
        for nodes in &jobs {
            let inputs: Vec<Vec<usize>> = nodes.iter().map(|(inputs, _)| inputs.clone()).collect();
            let used: BTreeSet<usize> = inputs.iter().flatten().copied().collect();
            let roots: Vec<usize> = (0..inputs.len()).filter(|node| !used.contains(node)).collect();
            let (id, actions) = fake.scheduler.submit(&inputs, &roots);
            fake.jobs.insert(id, nodes.iter().map(|(inputs, key)| FakeNode { inputs: inputs.clone(), key: *key, settled: false }).collect());
            fake.apply(actions);
            ids.push(id);
        }
        let mut choices = choices.into_iter().cycle();
        let mut steps = 0;
        let mut failures = 0;
        while !fake.pending.is_empty() {
            if cancel_at == Some(steps) {
                let actions = fake.scheduler.cancel(ids[0]);
                fake.apply(actions);
            }
            let (choice, dice) = choices.next().unwrap();
            failures += usize::from(dice == 0);
            fake.deliver(choice, dice == 0);
            steps += 1;
        }
        prop_assert!(fake.scheduler.is_idle());
        let ended = fake.done.len() + fake.failed.len();
        prop_assert!(ended == ids.len() || (cancel_at.is_some() && ended + 1 == ids.len()));
        prop_assert!(failures > 0 || fake.failed.is_empty());
    }
}
