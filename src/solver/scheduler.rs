//! The scheduler: decides what is looked up, run, merged and cancelled next.
//!
//! A pure state machine: events in, actions out; no I/O, no clock, no values. One scheduler serves all builds of an engine, so
//! that equal steps in flight are merged across builds. The driver carries out the actions and reports back.
//!
//! A node is *identified* once all its inputs are settled: the driver computes its key and looks for an earlier result. What
//! has none is *run*, at most `limit` at a time, the longest remaining path first. Nodes whose keys are equal share one run;
//! it is aborted when the last job that wants it has gone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

/// Names a job: one build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

/// Names a run: one execution of a step, possibly for several jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// Names a node within its job.
pub type NodeId = usize;

/// A node of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Task {
    /// The job.
    pub job: JobId,
    /// The node.
    pub node: NodeId,
}

/// What the driver found out about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity<K> {
    /// Its result exists (or needs no work).
    Hit,
    /// It must run; nodes with equal keys do the same work.
    Miss(K),
    /// It cannot be done.
    Failed,
}

/// What the driver shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find out whether the node's result exists, and report with [`Scheduler::identified`].
    Identify(Task),
    /// Execute the node, and report with [`Scheduler::finished`].
    Run(RunId, Task),
    /// The node's result is that of the run which has just ended.
    Take(RunId, Task),
    /// Nobody needs this run any more: stop it, and report with [`Scheduler::finished`].
    Abort(RunId),
    /// All roots of the job are settled.
    Done(JobId),
    /// The job cannot be completed because of this node.
    Failed(Task),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for this many inputs.
    Blocked(usize),
    Identifying,
    /// Waits for a place, or runs.
    InRun(RunId),
    Settled,
}

#[derive(Debug)]
struct Job {
    state: Vec<State>,
    users: Vec<Vec<NodeId>>,
    /// The number of nodes on the longest path to a root: what is executed first.
    height: Vec<u32>,
    unsettled_roots: usize,
    is_root: Vec<bool>,
}

#[derive(Debug)]
struct Run<K> {
    key: K,
    waiters: BTreeSet<Task>,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the queue, under this priority.
    Queued(u32),
    Running,
    /// Told to stop; holds its place until it reports.
    Aborting,
}

/// See the module's description. `K` is the key of a run.
#[derive(Debug)]
pub struct Scheduler<K> {
    limit: usize,
    jobs: BTreeMap<JobId, Job>,
    runs: BTreeMap<RunId, Run<K>>,
    by_key: HashMap<K, RunId>,
    /// Runs without a place: highest priority first, then in order of arrival.
    queue: BTreeSet<(std::cmp::Reverse<u32>, RunId)>,
    running: usize,
    next_job: u64,
    next_run: u64,
}

impl<K: Clone + Eq + Hash> Scheduler<K> {
    /// Makes a scheduler that runs at most `limit` steps at a time.
    ///
    /// # Panics
    /// When `limit` is 0.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        assert!(limit > 0, "nothing could ever run");
        Self {
            limit,
            jobs: BTreeMap::new(),
            runs: BTreeMap::new(),
            by_key: HashMap::new(),
            queue: BTreeSet::new(),
            running: 0,
            next_job: 0,
            next_run: 0,
        }
    }

    /// Adds a job. `inputs[n]` are the nodes that node `n` needs, all smaller than `n`; every node must be needed by a root.
    ///
    /// # Panics
    /// When an input does not come before its user.
    pub fn submit(&mut self, inputs: &[Vec<NodeId>], roots: &[NodeId]) -> (JobId, Vec<Action>) {
        let id = JobId(self.next_job);
        self.next_job += 1;
        let mut users = vec![Vec::new(); inputs.len()];
        let mut state = Vec::with_capacity(inputs.len());
        for (node, needed) in inputs.iter().enumerate() {
            let distinct: BTreeSet<NodeId> = needed.iter().copied().collect();
            for input in &distinct {
                assert!(*input < node, "inputs come before their users");
                users[*input].push(node);
            }
            state.push(if distinct.is_empty() { State::Identifying } else { State::Blocked(distinct.len()) });
        }
        let mut height = vec![0; inputs.len()];
        for node in (0..inputs.len()).rev() {
            height[node] = users[node].iter().map(|user| height[*user] + 1).max().unwrap_or(0);
        }
        let mut is_root = vec![false; inputs.len()];
        for root in roots {
            is_root[*root] = true;
        }
        let unsettled_roots = is_root.iter().filter(|root| **root).count();
        let mut actions = Vec::new();
        for (node, state) in state.iter().enumerate() {
            if *state == State::Identifying {
                actions.push(Action::Identify(Task { job: id, node }));
            }
        }
        if unsettled_roots == 0 {
            actions.push(Action::Done(id));
        } else {
            self.jobs.insert(id, Job { state, users, height, unsettled_roots, is_root });
        }
        (id, actions)
    }

    /// Takes note of what the driver found out about a node.
    pub fn identified(&mut self, task: Task, identity: Identity<K>) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(job) = self.jobs.get_mut(&task.job) else { return actions };
        debug_assert_eq!(job.state[task.node], State::Identifying, "a node is identified once");
        match identity {
            Identity::Hit => self.settle(task, &mut actions),
            Identity::Miss(key) => {
                let priority = job.height[task.node];
                let run = self.enlist(task, key, priority);
                self.jobs.get_mut(&task.job).expect("looked up above").state[task.node] = State::InRun(run);
            }
            Identity::Failed => self.fail(task, &mut actions),
        }
        self.fill(&mut actions);
        actions
    }

    /// Takes note that a run has ended, well or not.
    pub fn finished(&mut self, run: RunId, succeeded: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(ended) = self.runs.remove(&run) else { return actions };
        self.running -= 1;
        if self.by_key.get(&ended.key) == Some(&run) {
            self.by_key.remove(&ended.key);
        }
        for task in ended.waiters {
            if succeeded {
                actions.push(Action::Take(run, task));
                self.settle(task, &mut actions);
            } else {
                self.fail(task, &mut actions);
            }
        }
        self.fill(&mut actions);
        actions
    }

    /// Forgets a job; runs that only it needed are aborted.
    pub fn cancel(&mut self, job: JobId) -> Vec<Action> {
        let mut actions = Vec::new();
        self.forget(job, &mut actions);
        self.fill(&mut actions);
        actions
    }

    /// Returns the run that a node waits for.
    #[must_use]
    pub fn run_of(&self, task: Task) -> Option<RunId> {
        match self.jobs.get(&task.job)?.state.get(task.node)? {
            State::InRun(run) => Some(*run),
            _ => None,
        }
    }

    /// Says whether nothing is known or running.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.runs.is_empty()
    }

    /// Joins the run of this key, or queues a new one.
    fn enlist(&mut self, task: Task, key: K, priority: u32) -> RunId {
        if let Some(id) = self.by_key.get(&key).copied() {
            let run = self.runs.get_mut(&id).expect("every key leads to its run");
            run.waiters.insert(task);
            if let Place::Queued(known) = run.place
                && priority > known
            {
                self.queue.remove(&(std::cmp::Reverse(known), id));
                self.queue.insert((std::cmp::Reverse(priority), id));
                run.place = Place::Queued(priority);
            }
            return id;
        }
        let id = RunId(self.next_run);
        self.next_run += 1;
        self.by_key.insert(key.clone(), id);
        self.runs.insert(id, Run { key, waiters: BTreeSet::from([task]), place: Place::Queued(priority) });
        self.queue.insert((std::cmp::Reverse(priority), id));
        id
    }

    /// Gives free places to queued runs.
    fn fill(&mut self, actions: &mut Vec<Action>) {
        while self.running < self.limit {
            let Some((_, id)) = self.queue.pop_first() else { return };
            let run = self.runs.get_mut(&id).expect("queued runs exist");
            run.place = Place::Running;
            self.running += 1;
            let task = *run.waiters.first().expect("a run without waiters is not queued");
            actions.push(Action::Run(id, task));
        }
    }

    fn settle(&mut self, task: Task, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(&task.job) else { return };
        job.state[task.node] = State::Settled;
        for user in &job.users[task.node] {
            if let State::Blocked(missing) = &mut job.state[*user] {
                *missing -= 1;
                if *missing == 0 {
                    job.state[*user] = State::Identifying;
                    actions.push(Action::Identify(Task { job: task.job, node: *user }));
                }
            }
        }
        if job.is_root[task.node] {
            job.unsettled_roots -= 1;
            if job.unsettled_roots == 0 {
                self.forget(task.job, actions);
                actions.push(Action::Done(task.job));
            }
        }
    }

    fn fail(&mut self, task: Task, actions: &mut Vec<Action>) {
        if self.jobs.contains_key(&task.job) {
            self.forget(task.job, actions);
            actions.push(Action::Failed(task));
        }
    }

    fn forget(&mut self, id: JobId, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.remove(&id) else { return };
        for (node, state) in job.state.iter().enumerate() {
            if let State::InRun(run) = state {
                self.leave(*run, Task { job: id, node }, actions);
            }
        }
    }

    fn leave(&mut self, id: RunId, task: Task, actions: &mut Vec<Action>) {
        // The run that is just ending is no longer known.
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.waiters.remove(&task);
        if !run.waiters.is_empty() {
            return;
        }
        // A new job must not join a run that is being stopped.
        self.by_key.remove(&run.key);
        match run.place {
            Place::Queued(priority) => {
                self.queue.remove(&(std::cmp::Reverse(priority), id));
                self.runs.remove(&id);
            }
            Place::Running => {
                run.place = Place::Aborting;
                actions.push(Action::Abort(id));
            }
            Place::Aborting => {}
        }
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
