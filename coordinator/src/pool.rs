//! Workers and their tasks, as the handlers and the runs share them: the board of leases with a clock, a bell that
//! rings when there is work, and the plan of where each shard's factors come from.

use crate::metrics;
use crate::tasks::{Board, Completion, Held, LEASE, LeaseError, Outcome, Reported, TaskFailure};
use planning::retry::Decision;
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::task::Work;
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use types::{ObjectRef, WorkerId};

/// A worker that was not heard of for this long counts no more when work is shared out. As long as a lease.
const SILENT: Duration = LEASE;
/// After this it is forgotten; should it live, it registers anew.
const FORGOTTEN: Duration = Duration::from_mins(10);

/// A worker that has introduced itself.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) role: v1::WorkerRole,
    pub(crate) endpoint: String,
    pub(crate) device: String,
    pub(crate) seen: Instant,
    pub(crate) draining: bool,
}

/// A plan: the state of every shard of one shot, and its version.
pub(crate) type Plan = (u64, BTreeMap<u32, v1::ShardSource>);

impl Member {
    /// Says whether it was not heard of for so long that it counts no more when work is shared out.
    pub(crate) fn is_silent(&self) -> bool {
        self.seen + SILENT <= Instant::now()
    }
}

#[derive(Debug, Default)]
struct Inner {
    board: Board,
    members: HashMap<WorkerId, Member>,
    plans: HashMap<(String, u32), watch::Sender<Plan>>,
}

/// All workers and tasks of a coordinator.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    inner: Mutex<Inner>,
    bell: Notify,
    /// Rung whenever a result is durable, or will never be.
    settled: Notify,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a worker known. One that comes back under its name has lost what it held.
    pub(crate) fn register(&self, worker: WorkerId, member: Member) {
        let mut inner = self.lock();
        let freed = inner.board.forget_worker(&worker, Instant::now());
        inner.members.insert(worker, member);
        for task in &freed {
            inner.show(task, None);
        }
        drop(inner);
        self.bell.notify_waiters();
    }

    /// Notes that a worker lives. Says whether it is registered.
    pub(crate) fn heard_of(&self, worker: &WorkerId) -> bool {
        let mut inner = self.lock();
        let member = inner.members.get_mut(worker);
        member.map(|member| member.seen = Instant::now()).is_some()
    }

    /// Returns all workers by name, with how many tasks each holds.
    pub(crate) fn workers(&self) -> Vec<(WorkerId, Member, usize)> {
        let inner = self.lock();
        let of = |(worker, member): (&WorkerId, &Member)| (worker.clone(), member.clone(), inner.board.held_by(worker));
        let mut workers: Vec<_> = inner.members.iter().map(of).collect();
        workers.sort_by(|a, b| a.0.cmp(&b.0));
        workers
    }

    /// Gives a worker no more tasks, or tasks again. Says whether there is such a worker.
    pub(crate) fn drain(&self, worker: &WorkerId, draining: bool) -> bool {
        let mut inner = self.lock();
        let member = inner.members.get_mut(worker);
        let found = member.map(|member| member.draining = draining).is_some();
        drop(inner);
        self.bell.notify_waiters();
        found
    }

    /// Puts tasks on the board, all before any of them can be leased.
    pub(crate) fn submit(
        &self,
        tasks: Vec<v1::Task>,
        role: v1::WorkerRole,
    ) -> Vec<(String, oneshot::Receiver<Outcome>)> {
        let now = Instant::now();
        let mut inner = self.lock();
        let submitted = tasks.into_iter().map(|task| inner.board.submit(task, role, now)).collect();
        drop(inner);
        self.bell.notify_waiters();
        submitted
    }

    /// Leases tasks to a worker in its call of this number, waiting up to `wait` for some.
    pub(crate) async fn lease(&self, worker: &WorkerId, call: u64, max: usize, wait: Duration) -> Vec<v1::Task> {
        let deadline = Instant::now() + wait;
        loop {
            let mut rung = pin!(self.bell.notified());
            rung.as_mut().enable(); // before the look, or a ring in between would be lost
            let next_free = {
                let mut inner = self.lock();
                let now = Instant::now();
                // It is waiting, so it lives; and it may have been told to drain meanwhile.
                let Some(member) = inner.members.get_mut(worker) else { return Vec::new() };
                member.seen = now;
                let member = member.clone();
                let peers = inner.peers(member.role, now);
                let max = if member.draining { 0 } else { max };
                let tasks = inner.board.lease(worker, member.role, &peers, max, now);
                if !tasks.is_empty() {
                    inner.board.leased_in(call, &tasks);
                    for task in &tasks {
                        metrics::leased(metrics::phase(task.work.as_ref()));
                        inner.show(task, Some(member.endpoint.clone()));
                    }
                    return tasks;
                }
                inner.board.next_free(member.role, now)
            };
            let until = next_free.map_or(deadline, |free| free.min(deadline));
            if tokio::time::timeout_at(until, rung).await.is_err() && Instant::now() >= deadline {
                return Vec::new();
            }
        }
    }

    /// Renews leases; returns the tasks that the worker should drop. Those that it should hold and does not list any more are free
    /// for the next.
    ///
    /// `last_call`: the worker's last call for tasks.
    pub(crate) fn heartbeat(&self, worker: &WorkerId, last_call: u64, tasks: &[v1::TaskProgress]) -> Vec<String> {
        let now = Instant::now();
        let mut inner = self.lock();
        let unknown = tasks.iter().filter(|t| inner.board.renew(worker, t, now).is_err());
        let dropped = unknown.map(|t| t.task_id.clone()).collect();
        let lost = inner.board.hear(worker, last_call, tasks, now);
        for task in &lost {
            tracing::warn!(worker = %worker, run = %task.run, shot = task.shot, task = %task.task_id, "lease got lost");
            inner.measure(&task.task_id, metrics::Outcome::Released);
            inner.show(task, None);
        }
        drop(inner);
        if !lost.is_empty() {
            self.bell.notify_waiters();
        }
        dropped
    }

    /// Returns a task that `held` names rightly and whose result has not come.
    pub(crate) fn leased(&self, held: Held<'_>) -> Result<v1::Task, LeaseError> {
        self.lock().board.leased(held).cloned()
    }

    /// Returns what is held while a report on a leased task is stored.
    pub(crate) fn storing(&self, held: Held<'_>) -> Result<Arc<tokio::sync::Mutex<()>>, LeaseError> {
        self.lock().board.storing(held)
    }

    /// Returns what the attempt that owns a task has reported.
    pub(crate) fn reported(&self, held: Held<'_>) -> Result<Option<Reported>, LeaseError> {
        let mut inner = self.lock();
        inner.board.leased(held)?;
        inner.board.reported(held)
    }

    /// Notes what an attempt has reported.
    pub(crate) fn report(&self, held: Held<'_>, request_id: String, object: ObjectRef) -> Result<(), LeaseError> {
        self.lock().board.report(held, request_id, object)
    }

    /// Returns where every task is that is not done, by its phase.
    pub(crate) fn states(&self) -> Vec<(&'static str, metrics::TaskState)> {
        self.lock().board.states()
    }

    /// Returns for how long none of a run's leased tasks has got on; `None` if none is leased.
    pub(crate) fn still_for(&self, run: &str) -> Option<Duration> {
        self.lock().board.moved(run).map(|moved| moved.elapsed())
    }

    /// Returns a task, if it exists.
    pub(crate) fn task(&self, task_id: &str) -> Option<v1::Task> {
        self.lock().board.task(task_id).cloned()
    }

    /// Hands a result to the run and waits until it is durable. The object that it names must be what its attempt has reported.
    pub(crate) async fn complete(
        &self,
        held: Held<'_>,
        result: TaskResult,
        named: Option<&v1::ObjectRef>,
        seconds: f64,
    ) -> Result<Result<(), tonic::Status>, LeaseError> {
        let taken = {
            let mut inner = self.lock();
            let checked = named.map_or(Ok(()), |object| inner.board.check_report(held, object));
            checked.and_then(|()| inner.board.complete(held))
        };
        let outcome = match taken {
            Ok(outcome) => outcome,
            // A repeated call: the first was answered, or its answer got lost, or it waits still.
            Err(LeaseError::Committed { .. }) => return self.durable(held.task_id).await.map(Ok),
            Err(error) => return Err(error),
        };
        let (ack, acked) = oneshot::channel();
        let unknown = || LeaseError::Unknown { task: held.task_id.to_owned() };
        outcome.send(Ok(Completion { result, seconds, ack })).map_err(|_| unknown())?;
        acked.await.map_err(|_| unknown())
    }

    /// Waits until the result that came for a task is durable.
    async fn durable(&self, task_id: &str) -> Result<(), LeaseError> {
        loop {
            let mut settled = pin!(self.settled.notified());
            settled.as_mut().enable();
            match self.lock().board.is_durable(task_id) {
                Some(true) => return Ok(()),
                Some(false) => {}
                None => return Err(LeaseError::Unknown { task: task_id.to_owned() }),
            }
            settled.await;
        }
    }

    /// Notes that a task's result is durable.
    pub(crate) fn committed(&self, task_id: &str) {
        let mut inner = self.lock();
        inner.measure(task_id, metrics::Outcome::Completed);
        inner.board.committed(task_id);
        if let Some(task) = inner.board.task(task_id).cloned() {
            inner.show_stored(&task);
        }
        drop(inner);
        self.settled.notify_waiters();
    }

    /// Notes a failure and decides what follows.
    pub(crate) fn fail(&self, held: Held<'_>, failure: TaskFailure, jitter: f64) -> Result<Decision, LeaseError> {
        let mut inner = self.lock();
        let task = inner.board.task(held.task_id).cloned();
        let role = inner.members.get(held.worker).map(|m| m.role);
        let peers = role.map_or(1, |role| inner.peers(role, Instant::now()).len());
        let live = u32::try_from(peers).unwrap_or(u32::MAX);
        let decision = inner.board.fail(held, failure, live, jitter, Instant::now())?;
        inner.measure(held.task_id, metrics::Outcome::Failed);
        if let Some(task) = task {
            inner.show(&task, None);
        }
        drop(inner);
        self.bell.notify_waiters();
        Ok(decision)
    }

    pub(crate) fn release(&self, held: Held<'_>) -> Result<(), LeaseError> {
        let mut inner = self.lock();
        inner.board.release(held, Instant::now())?;
        inner.measure(held.task_id, metrics::Outcome::Released);
        if let Some(task) = inner.board.task(held.task_id).cloned() {
            inner.show(&task, None);
        }
        drop(inner);
        self.bell.notify_waiters();
        Ok(())
    }

    /// Frees tasks of silent workers and forgets those workers in time. Called once a second.
    pub(crate) fn expire(&self) {
        let mut inner = self.lock();
        let now = Instant::now();
        inner.members.retain(|_, member| member.seen + FORGOTTEN > now);
        let live = u32::try_from(inner.members.len()).unwrap_or(u32::MAX);
        let freed = inner.board.expire(live, now);
        let waiting = inner.board.has_free();
        for task in &freed {
            tracing::warn!(run = %task.run, shot = task.shot, task = %task.task_id, "lease expired");
            inner.measure(&task.task_id, metrics::Outcome::Expired);
            inner.show(task, None);
        }
        drop(inner);
        // Also for tasks that were kept for a worker which has fallen silent: they are anybody's now.
        if waiting {
            self.bell.notify_waiters();
        }
    }

    /// Forgets a run: its tasks and plans.
    pub(crate) fn remove_run(&self, run: &str) {
        let mut inner = self.lock();
        inner.board.remove_run(run);
        inner.plans.retain(|(r, _), _| r != run);
        drop(inner);
        self.settled.notify_waiters();
    }

    /// Opens the plan of a shot with the `state` of each shard.
    pub(crate) fn open_plan(&self, run: &str, shot: u32, shards: u32, state: impl Fn(u32) -> v1::ShardState) {
        let source = |shard| v1::ShardSource { shard, state: state(shard) as i32, ..v1::ShardSource::default() };
        let sources = (0..shards).map(|shard| (shard, source(shard))).collect();
        let (sender, _) = watch::channel((1, sources));
        self.lock().plans.insert((run.to_owned(), shot), sender);
    }

    /// Shows in the plan of a shot that nobody need wait for a shard any more.
    pub(crate) fn quarantine(&self, run: &str, shot: u32, shard: u32) {
        let inner = self.lock();
        let Some(plan) = inner.plans.get(&(run.to_owned(), shot)) else { return };
        let state = v1::ShardState::Quarantined as i32;
        change(plan, v1::ShardSource { shard, state, ..v1::ShardSource::default() });
    }

    /// Returns the plan of a shot once its version is above `known`, or as it is when `wait` is over.
    pub(crate) async fn plan(&self, run: &str, shot: u32, known: u64, wait: Duration) -> Option<Plan> {
        let mut receiver = self.lock().plans.get(&(run.to_owned(), shot))?.subscribe();
        let newer = async { receiver.wait_for(|(version, _)| *version > known).await.map(|plan| plan.clone()) };
        match tokio::time::timeout(wait, newer).await {
            Ok(plan) => plan.ok(),
            Err(_) => Some(receiver.borrow().clone()),
        }
    }

    /// Returns how far the leased tasks of a run are, summed by stage.
    pub(crate) fn progress(&self, run: &str) -> Vec<v1::StageProgress> {
        let mut sums: BTreeMap<(u32, i32), (u64, u64)> = BTreeMap::new();
        for (task, (done, total)) in self.lock().board.progress(run) {
            let stage = match task.work {
                Some(Work::Prepare(_)) => v1::Stage::Prepare,
                Some(Work::Correct(_)) => v1::Stage::Correct,
                Some(Work::Evaluate(_)) => v1::Stage::Evaluate,
                Some(Work::Materialise(_)) => v1::Stage::Materialise,
                Some(Work::Calibrate(_)) => v1::Stage::Calibrate,
                // Counted by their stages, block by block.
                Some(Work::Weigh(_) | Work::Score(_) | Work::Refine(_) | Work::Update(_)) | None => continue,
            };
            let sum = sums.entry((task.shot, stage as i32)).or_default();
            *sum = (sum.0 + done, sum.1 + total);
        }
        sums.into_iter().map(|((shot, stage), (done, total))| v1::StageProgress { shot, stage, done, total }).collect()
    }
}

impl Inner {
    /// Returns the workers of a role that take tasks.
    fn peers(&self, role: v1::WorkerRole, now: Instant) -> Vec<WorkerId> {
        let takes = |m: &Member| m.role == role && !m.draining && m.seen + SILENT > now;
        self.members.iter().filter(|(_, m)| takes(m)).map(|(worker, _)| worker.clone()).collect()
    }

    /// Measures an attempt that has ended.
    fn measure(&self, task_id: &str, outcome: metrics::Outcome) {
        if let Some((phase, since)) = self.board.attempt(task_id) {
            metrics::ended(phase, outcome, since.elapsed());
        }
    }

    /// Shows in the plan who sweeps a shard now; `None` for nobody.
    fn show(&mut self, task: &v1::Task, endpoint: Option<String>) {
        let state = if endpoint.is_some() { v1::ShardState::Running } else { v1::ShardState::Waiting };
        self.set_source(task, state, endpoint.unwrap_or_default());
    }

    fn show_stored(&mut self, task: &v1::Task) {
        self.set_source(task, v1::ShardState::Stored, String::new());
    }

    fn set_source(&mut self, task: &v1::Task, state: v1::ShardState, endpoint: String) {
        let Some(Work::Calibrate(work)) = &task.work else { return };
        let Some(plan) = self.plans.get(&(task.run.clone(), task.shot)) else { return };
        let source = v1::ShardSource { shard: work.shard, state: state as i32, endpoint, generation: task.generation };
        change(plan, source);
    }
}

/// Puts a shard's source into a plan.
fn change(plan: &watch::Sender<Plan>, source: v1::ShardSource) {
    plan.send_modify(|(version, shards)| {
        *version += 1;
        shards.insert(source.shard, source);
    });
}

/// Returns how long a lease lasts, in seconds.
pub(crate) fn lease_seconds() -> u32 {
    u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_result_that_comes_twice_is_answered_twice_and_not_before_it_is_durable() {
        let (pool, worker) = (Arc::new(Pool::default()), WorkerId::new("a").unwrap());
        let member = Member {
            role: v1::WorkerRole::Surgeon,
            endpoint: String::new(),
            device: String::new(),
            seen: Instant::now(),
            draining: false,
        };
        pool.register(worker.clone(), member);
        let submit = || pool.submit(vec![v1::Task { run: "r".into(), ..v1::Task::default() }], v1::WorkerRole::Surgeon);
        let complete = |task: &v1::Task| {
            let (pool, worker, id, generation) = (pool.clone(), worker.clone(), task.task_id.clone(), task.generation);
            tokio::spawn(async move {
                let held = Held { worker: &worker, task_id: &id, generation };
                pool.complete(held, TaskResult::Materialise(v1::MaterialiseResult::default()), None, 1.0).await
            })
        };
        for durable in [true, false] {
            let (id, outcome) = submit().remove(0);
            let task = pool.lease(&worker, 1, 1, Duration::ZERO).await.remove(0);
            let first = complete(&task);
            let Completion { ack, .. } = outcome.await.unwrap().unwrap();
            let second = complete(&task);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!first.is_finished() && !second.is_finished());
            if durable {
                pool.committed(&id);
                ack.send(Ok(())).unwrap();
                assert!(matches!((first.await.unwrap(), second.await.unwrap()), (Ok(Ok(())), Ok(Ok(())))));
            } else {
                drop(ack);
                pool.remove_run("r");
                let lost = |answer| matches!(answer, Err(LeaseError::Unknown { .. }));
                assert!(lost(first.await.unwrap()) && lost(second.await.unwrap()));
            }
        }
    }
}
