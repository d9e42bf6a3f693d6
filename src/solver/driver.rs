//! The driver: carries out what the scheduler decides, for all builds of an engine.
//!
//! The scheduler and what belongs to its jobs and runs are behind one lock, which is never held while anything waits. Looking
//! results up and running steps are tasks; each reports back, which gives further actions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use kiln_graph::VertexId;
use kiln_graph::op::Op;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Solver;
use super::failure::Failure;
use super::identify::{Found, Work};
use super::job::{Job, Stop, cancelled};
use super::key::Key;
use super::plan::Plan;
use super::reporter::Reporter;
use super::scheduler::{Action, Identity, JobId, RunId, Scheduler, Task};
use super::value::{Failed, Keep, Remains, Value};
use crate::error::{Error, Kind, Result};

/// How many steps run at a time in an engine.
///
/// More than there are cores, because most steps wait more than they compute (for registries, package servers, locks, each
/// other), and the kernel shares cores out better than a queue does. Not unlimited, because each step may take memory and,
/// at the end, reads and hashes its layer.
fn limit() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (4 * cores).max(16)
}

/// The state of all builds.
#[derive(Debug)]
pub(super) struct Driver {
    core: Mutex<Core>,
    pub(super) limit: usize,
}

#[derive(Debug)]
struct Core {
    scheduler: Scheduler<Key>,
    jobs: HashMap<JobId, Entry>,
    runs: HashMap<RunId, Running>,
}

/// A build.
#[derive(Debug)]
struct Entry {
    job: Arc<Job>,
    /// The vertices that the scheduler's nodes stand for.
    steps: Vec<VertexId>,
    misses: HashMap<VertexId, Work>,
    outcome: Option<oneshot::Sender<Result<(), Failure>>>,
    /// Ends what is looked up for the build when the entry goes.
    lookups: CancellationToken,
    _end_lookups: DropGuard,
}

/// A run: one execution for all builds that need it.
#[derive(Debug)]
struct Running {
    work: Option<Work>,
    reporter: Reporter,
    stop: Stop,
    value: Option<Value>,
    /// Held while a run that was told to stop has not ended.
    ending: Option<TaskTrackerToken>,
    executor: Option<Arc<Job>>,
}

impl Driver {
    /// Makes a driver that runs so many steps at a time, or as many as suits the machine.
    pub(super) fn new(configured: Option<usize>) -> Self {
        let limit = configured.unwrap_or_else(limit);
        let core = Core { scheduler: Scheduler::new(limit), jobs: HashMap::new(), runs: HashMap::new() };
        Self { core: Mutex::new(core), limit }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().expect("no panic happens while the lock is held")
    }
}

/// Forgets a build when it is dropped before its end.
struct CancelOnDrop<'a> {
    solver: &'a Solver,
    job: JobId,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let mut core = self.solver.driver().core();
        let actions = core.scheduler.cancel(self.job);
        core.carry_out(self.solver, actions, None);
        core.jobs.remove(&self.job);
    }
}

impl Solver {
    /// Does what is left of a plan. Dropping the future cancels it.
    ///
    /// # Errors
    /// That of the first step that fails.
    pub(super) async fn carry_out(&self, job: &Arc<Job>, plan: Plan) -> Result<(), Failure> {
        if plan.steps.is_empty() {
            return Ok(());
        }
        let (sender, outcome) = oneshot::channel();
        let guard = {
            let mut core = self.driver().core();
            let (id, actions) = core.scheduler.submit(&plan.inputs, &plan.roots);
            let Plan { steps, misses, .. } = plan;
            let lookups = CancellationToken::new();
            let entry = Entry {
                job: Arc::clone(job),
                steps,
                misses,
                outcome: Some(sender),
                lookups: lookups.clone(),
                _end_lookups: lookups.drop_guard(),
            };
            core.jobs.insert(id, entry);
            core.carry_out(self, actions, None);
            CancelOnDrop { solver: self, job: id }
        };
        let result = outcome.await.unwrap_or_else(|_| Err(Error::internal("a build was forgotten").into()));
        drop(guard);
        result
    }

    /// Looks a step up.
    async fn identify(self, task: Task, job: Arc<Job>, id: VertexId, planned: Option<Work>) {
        let found = match planned {
            Some(work) => Ok(Found::Miss(Box::new(work))),
            None => job.identify(id).await,
        };
        let mut core = self.driver().core();
        let identity = match found {
            Ok(Found::Value(value, record)) => {
                job.set_value(id, value);
                record.into_iter().for_each(|record| job.hit(record));
                // What a definition says was done, and reported, while it was looked up.
                if !matches!(job.graph.vertex(id).op, Op::Build { .. }) {
                    job.report_cached(id);
                }
                Identity::Hit
            }
            // Steps are looked up here when somebody works on them: a name alone does not help.
            Ok(Found::Named(_, work) | Found::Miss(work)) => {
                let key = work.run;
                let actions = core.scheduler.identified(task, Identity::Miss(key));
                core.join(task, &job, id, *work);
                return core.carry_out(&self, actions, None);
            }
            Err(error) => {
                job.report_failed(id, &error);
                let actions = core.scheduler.identified(task, Identity::Failed);
                return core.carry_out(&self, actions, Some(&error.into()));
            }
        };
        let actions = core.scheduler.identified(task, identity);
        core.carry_out(&self, actions, None);
    }

    /// Runs a step.
    async fn run(self, run: RunId, job: Arc<Job>, id: VertexId, work: Work, reporter: Reporter, stop: Stop) {
        let result = job.execute(id, work, &reporter, &stop).await;
        let is_cancelled = |failed: &Failed| failed.error().kind() == Kind::Cancelled;
        let result = result.map_err(|failed| if is_cancelled(&failed) { cancelled().into() } else { failed });
        let error = result.as_ref().err().map(Failed::error);
        reporter.end(error.as_ref());
        let mut core = self.driver().core();
        let (value, failed) = match result {
            Ok(value) => (Some(value), None),
            Err(failed) => (None, Some(failed)),
        };
        if let Some(running) = core.runs.get_mut(&run) {
            running.value = value;
        }
        let actions = core.scheduler.finished(run, failed.is_none());
        core.carry_out(&self, actions, failed.as_ref());
        core.runs.remove(&run);
    }
}

impl Core {
    /// Adds a build to those that wait for a run, which may be new.
    fn join(&mut self, task: Task, job: &Arc<Job>, id: VertexId, work: Work) {
        let Some(run) = self.scheduler.run_of(task) else { return };
        let running = self.runs.entry(run).or_insert_with(|| Running {
            work: Some(work),
            reporter: Reporter::default(),
            stop: Stop::default(),
            value: None,
            ending: None,
            executor: None,
        });
        running.reporter.join(job.progress.clone(), job.state(id), job.keep);
    }

    /// `failed` is why jobs fail, when they do.
    fn carry_out(&mut self, solver: &Solver, actions: Vec<Action>, failed: Option<&Failed>) {
        for action in actions {
            match action {
                Action::Identify(task) => self.identify(solver, task),
                Action::Run(run, task) => self.run(solver, run, task),
                Action::Take(run, task) => self.take(run, task),
                Action::Abort(run) => self.abort(run),
                Action::Done(job) => self.end(job, Ok(())),
                Action::Failed(task) => self.fail(task, failed),
            }
        }
    }

    fn identify(&mut self, solver: &Solver, task: Task) {
        let Some(entry) = self.jobs.get_mut(&task.job) else { return };
        let (job, id) = (Arc::clone(&entry.job), entry.steps[task.node]);
        let planned = entry.misses.remove(&id);
        let (solver, ended) = (solver.clone(), entry.lookups.clone());
        solver.deps().tasks.clone().spawn(async move {
            tokio::select! {
                () = Box::pin(solver.identify(task, job, id, planned)) => {}
                () = ended.cancelled() => {}
            }
        });
    }

    fn run(&mut self, solver: &Solver, run: RunId, task: Task) {
        let (Some(entry), Some(running)) = (self.jobs.get(&task.job), self.runs.get_mut(&run)) else { return };
        let Some(work) = running.work.take() else { return };
        let (job, id) = (Arc::clone(&entry.job), entry.steps[task.node]);
        running.executor = Some(Arc::clone(&job));
        running.reporter.begin();
        let (reporter, stop) = (running.reporter.clone(), running.stop.clone());
        solver.deps().tasks.spawn(solver.clone().run(run, job, id, work, reporter, stop));
    }

    fn take(&mut self, run: RunId, task: Task) {
        let (Some(entry), Some(running)) = (self.jobs.get(&task.job), self.runs.get(&run)) else { return };
        if let Some(value) = &running.value {
            entry.job.set_value(entry.steps[task.node], value.clone());
        }
    }

    fn abort(&mut self, run: RunId) {
        if let Some(running) = self.runs.get_mut(&run) {
            running.stop.stop();
            running.ending = running.executor.as_ref().map(|job| job.pending.token());
        }
    }

    fn end(&mut self, id: JobId, result: Result<(), Failure>) {
        if let Some(outcome) = self.jobs.remove(&id).and_then(|mut entry| entry.outcome.take()) {
            // The build may have been given up.
            let _ = outcome.send(result);
        }
    }

    fn fail(&mut self, task: Task, failed: Option<&Failed>) {
        let Some(entry) = self.jobs.get(&task.job) else { return };
        let vertex = entry.job.graph.vertex(entry.steps[task.node]);
        let error = failed.map_or_else(|| Error::internal("a step failed without a reason"), Failed::error);
        let mut failure = Failure::of_step(error, &entry.job.graph, vertex);
        match failed.and_then(|failed| failed.remains.clone()) {
            Some(Remains::Step(id)) if entry.job.keep == Keep::Step => failure = failure.keeping(id),
            Some(files @ Remains::Files(_)) => failure.remains = Some(Box::new(files)),
            _ => {}
        }
        self.end(task.job, Err(failure));
    }
}
