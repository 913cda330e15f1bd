//! Leases: which task is free, who holds it under which generation, and what happens when its holder falls silent.
//!
//! Tasks are executed at least once and committed once. The board knows no stage and no method: it hands out
//! [`v1::Task`]s by worker role and passes results to whoever submitted the task. It keeps no clock; `now` is an argument.

use crate::metrics::{self, TaskState};
use planning::assignment::fair_share;
use planning::lease::{Listed, Listing, Verdict};
use planning::retry::{self, Decision, FailureClass, Policy, Setback};
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use service::status::Reason;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, oneshot};
use tokio::time::Instant;
use types::{ObjectRef, WorkerId};

/// How long a lease lasts without a heartbeat.
pub const LEASE: Duration = Duration::from_secs(20);

/// A result that waits to be made durable.
#[derive(Debug)]
pub struct Completion {
    /// What the worker computed.
    pub result: TaskResult,
    /// Seconds it took.
    pub seconds: f64,
    /// Told once the result is in the journal, or why it is not; the worker's call is answered then.
    pub ack: oneshot::Sender<Result<(), tonic::Status>>,
}

/// A task that will not be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFailure {
    /// What kind of failure.
    pub class: FailureClass,
    /// The causal chain.
    pub message: String,
    /// The published reason, where the worker knows more than the class.
    pub reason: Option<Reason>,
}

/// What became of a task.
pub type Outcome = Result<Completion, TaskFailure>;

/// Why a worker's call about a task is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// No such task: its run has stopped.
    #[error("task '{task}' does not exist any more")]
    Unknown {
        /// Which task.
        task: String,
    },
    /// Another attempt owns the task.
    #[error("generation {given} of task '{task}' is stale, the task is at {current}")]
    Stale {
        /// Which task.
        task: String,
        /// What the worker has.
        given: u64,
        /// What is right.
        current: u64,
    },
    /// The result was committed before.
    #[error("task '{task}' is committed")]
    Committed {
        /// Which task.
        task: String,
    },
    /// The result names an object that was not stored for this attempt.
    #[error("this attempt at task '{task}' has not reported '{key}'; report it first")]
    NotReported {
        /// Which task.
        task: String,
        /// What the result names.
        key: String,
    },
}

/// What an attempt has reported and had stored. An attempt reports once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// Of which attempt.
    pub generation: u64,
    /// Under which id.
    pub request_id: String,
    /// Where it lies.
    pub object: ObjectRef,
}

#[derive(Debug)]
enum State {
    Free { not_before: Instant },
    Leased { worker: WorkerId, until: Instant },
    Committing { worker: WorkerId },
    Committed,
}

#[derive(Debug)]
struct Entry {
    task: v1::Task,
    /// When it was submitted, among all tasks.
    order: u64,
    role: v1::WorkerRole,
    state: State,
    outcome: Option<oneshot::Sender<Outcome>>,
    history: retry::History,
    progress: (u64, u64),
    /// When it was leased last.
    since: Instant,
    /// When it last got on, or was leased.
    moved: Instant,
    /// What the heartbeats of its holder say of it.
    listing: Listing,
    /// What its last attempt that reported has reported.
    reported: Option<Reported>,
    /// Held while a report is stored: an attempt that is stale by then never writes after the one that owns the task.
    storing: Arc<Mutex<()>>,
}

impl Entry {
    /// Says whether `worker` may have the task now.
    fn is_free(&self, worker: &WorkerId, role: v1::WorkerRole, peers: &[WorkerId], now: Instant) -> bool {
        self.role == role
            && matches!(self.state, State::Free { not_before } if not_before <= now)
            && self.history.suits(worker, peers.iter())
    }

    fn give_up(&mut self, failure: TaskFailure) {
        self.state = State::Committed;
        if let Some(outcome) = self.outcome.take() {
            let _ = outcome.send(Err(failure)); // the run may have stopped meanwhile
        }
    }
}

/// A run's tasks of one role, as one worker sees them.
#[derive(Debug, Default)]
struct OfRun {
    /// Free ones that nobody has failed.
    fresh: usize,
    /// Held by anybody.
    leased: usize,
    /// Held by this worker.
    own: usize,
    /// The oldest that it could have.
    first: Option<u64>,
    /// Whether one of those has been failed before.
    retries: bool,
}

/// Names a lease: who holds which task under which generation.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// Who.
    pub worker: &'a WorkerId,
    /// Which task.
    pub task_id: &'a str,
    /// Under which generation.
    pub generation: u64,
}

/// All tasks of all runs.
#[derive(Debug, Default)]
pub struct Board {
    entries: BTreeMap<String, Entry>,
    order: u64,
}

impl Board {
    /// Adds a task and returns where its outcome arrives.
    pub fn submit(
        &mut self,
        mut task: v1::Task,
        role: v1::WorkerRole,
        now: Instant,
    ) -> (String, oneshot::Receiver<Outcome>) {
        self.order += 1;
        let id = format!("{}-{:08}", task.run, self.order);
        task.task_id.clone_from(&id);
        let (sender, receiver) = oneshot::channel();
        let entry = Entry {
            task,
            order: self.order,
            role,
            state: State::Free { not_before: now },
            outcome: Some(sender),
            history: retry::History::default(),
            progress: (0, 0),
            since: now,
            moved: now,
            listing: Listing::new(0),
            reported: None,
            storing: Arc::default(),
        };
        self.entries.insert(id.clone(), entry);
        (id, receiver)
    }

    /// Leases up to `max` free tasks of `role` to `worker`, oldest first, all of one run: that of whose tasks the fewest
    /// are leased, so that runs share the workers. While a run's tasks are fresh a worker gets no more than its share of
    /// them among its `peers` (itself included). A task that `worker` has failed goes to one of its peers that has not, as
    /// long as there is one.
    pub fn lease(
        &mut self,
        worker: &WorkerId,
        role: v1::WorkerRole,
        peers: &[WorkerId],
        max: usize,
        now: Instant,
    ) -> Vec<v1::Task> {
        let Some((run, mut share)) = self.next_run(worker, role, peers, now) else { return Vec::new() };
        let free = self.entries.values_mut().filter(|e| e.task.run == run && e.is_free(worker, role, peers, now));
        let own = free.filter(|e| {
            // What somebody failed before is nobody's share: it may be what all others wait for.
            let within = !e.history.is_empty() || share > 0;
            share -= usize::from(within && e.history.is_empty());
            within
        });
        own.take(max)
            .map(|entry| {
                entry.task.generation += 1;
                entry.state = State::Leased { worker: worker.clone(), until: now + LEASE };
                entry.progress = (0, 0);
                (entry.since, entry.moved) = (now, now);
                entry.listing = Listing::new(0);
                entry.task.clone()
            })
            .collect()
    }

    /// Returns the run from which `worker` is to get tasks, and how many of its fresh ones.
    fn next_run(
        &self,
        worker: &WorkerId,
        role: v1::WorkerRole,
        peers: &[WorkerId],
        now: Instant,
    ) -> Option<(String, usize)> {
        let mut runs: HashMap<&str, OfRun> = HashMap::new();
        for entry in self.entries.values().filter(|e| e.role == role) {
            let of_run = runs.entry(&entry.task.run).or_default();
            let fresh = entry.history.is_empty();
            match &entry.state {
                State::Leased { worker: holder, .. } | State::Committing { worker: holder } => {
                    of_run.leased += 1;
                    of_run.own += usize::from(holder == worker);
                }
                State::Free { .. } => of_run.fresh += usize::from(fresh),
                State::Committed => {}
            }
            if entry.is_free(worker, role, peers, now) {
                of_run.first.get_or_insert(entry.order); // a run's tasks come in their order
                of_run.retries |= !fresh;
            }
        }
        let offers = runs.into_iter().filter_map(|(run, of_run)| {
            let share = fair_share(of_run.fresh + of_run.leased, of_run.own, peers.len());
            let first = of_run.first.filter(|_| share > 0 || of_run.retries)?;
            Some((of_run.leased, first, run, share))
        });
        offers.min().map(|(_, _, run, share)| (run.to_owned(), share))
    }

    /// Returns when the next task of `role` that waits for a retry becomes leasable, after `now`.
    pub fn next_free(&self, role: v1::WorkerRole, now: Instant) -> Option<Instant> {
        self.entries
            .values()
            .filter(|e| e.role == role)
            .filter_map(|e| if let State::Free { not_before } = e.state { Some(not_before) } else { None })
            .filter(|free| *free > now)
            .min()
    }

    /// Says whether a task waits for a worker.
    pub fn has_free(&self) -> bool {
        self.entries.values().any(|e| matches!(e.state, State::Free { .. }))
    }

    /// Returns how many tasks a worker holds.
    pub fn held_by(&self, worker: &WorkerId) -> usize {
        let holds = |e: &&Entry| matches!(&e.state, State::Leased { worker: w, .. } | State::Committing { worker: w } if w == worker);
        self.entries.values().filter(holds).count()
    }

    /// Renews the lease of a task that `worker` holds and notes how far it is.
    pub fn renew(&mut self, worker: &WorkerId, progress: &v1::TaskProgress, now: Instant) -> Result<(), LeaseError> {
        let held = Held { worker, task_id: &progress.task_id, generation: progress.generation };
        let entry = self.held(held)?;
        if entry.progress != (progress.done, progress.total) {
            entry.moved = now;
        }
        entry.progress = (progress.done, progress.total);
        if let State::Leased { until, .. } = &mut entry.state {
            *until = now + LEASE;
        }
        Ok(())
    }

    /// Notes by which of its worker's calls tasks were leased.
    pub fn leased_in(&mut self, call: u64, tasks: &[v1::Task]) {
        for task in tasks {
            if let Some(entry) = self.entries.get_mut(&task.task_id) {
                entry.listing = Listing::new(call);
            }
        }
    }

    /// Frees the tasks that `worker` should hold and does not know of, by a heartbeat that was sent after its call `last_call`
    /// for tasks had begun and lists all that it holds. Returns those tasks. Counts as no failure.
    pub fn hear(
        &mut self,
        worker: &WorkerId,
        last_call: u64,
        held: &[v1::TaskProgress],
        now: Instant,
    ) -> Vec<v1::Task> {
        let mut freed = Vec::new();
        for entry in self.entries.values_mut() {
            if !matches!(&entry.state, State::Leased { worker: holder, .. } if holder == worker) {
                continue;
            }
            let (task_id, generation) = (&entry.task.task_id, entry.task.generation);
            let is_listed = held.iter().any(|task| task.task_id == *task_id && task.generation == generation);
            let listed = if is_listed { Listed::Yes } else { Listed::No };
            if entry.listing.hear(last_call, listed) == Verdict::GiveBack {
                entry.state = State::Free { not_before: now };
                freed.push(entry.task.clone());
            }
        }
        freed
    }

    /// Returns a task that `held` names rightly and whose result has not come.
    pub fn leased(&mut self, held: Held<'_>) -> Result<&v1::Task, LeaseError> {
        self.working_on(held).map(|entry| &entry.task)
    }

    /// Returns what is held while a report on a leased task is stored.
    pub fn storing(&mut self, held: Held<'_>) -> Result<Arc<Mutex<()>>, LeaseError> {
        Ok(self.working_on(held)?.storing.clone())
    }

    /// Returns what this attempt has reported.
    pub fn reported(&mut self, held: Held<'_>) -> Result<Option<Reported>, LeaseError> {
        Ok(self.held(held)?.reported.clone().filter(|reported| reported.generation == held.generation))
    }

    /// Notes what an attempt has reported.
    pub fn report(&mut self, held: Held<'_>, request_id: String, object: ObjectRef) -> Result<(), LeaseError> {
        self.working_on(held)?.reported = Some(Reported { generation: held.generation, request_id, object });
        Ok(())
    }

    /// Refuses a result that names another object than this attempt has reported.
    pub fn check_report(&mut self, held: Held<'_>, named: &v1::ObjectRef) -> Result<(), LeaseError> {
        match self.reported(held)? {
            Some(reported) if v1::ObjectRef::from(reported.object.clone()) == *named => Ok(()),
            _ => Err(LeaseError::NotReported { task: held.task_id.to_owned(), key: named.key.clone() }),
        }
    }

    /// Takes a result: the task is committing until [`Board::committed`], or until its run is removed.
    pub fn complete(&mut self, held: Held<'_>) -> Result<oneshot::Sender<Outcome>, LeaseError> {
        let entry = self.held(held)?;
        let committed = || LeaseError::Committed { task: held.task_id.to_owned() };
        let outcome = entry.outcome.take().ok_or_else(committed)?;
        entry.state = State::Committing { worker: held.worker.clone() };
        Ok(outcome)
    }

    /// Notes that a result is durable.
    pub fn committed(&mut self, task_id: &str) {
        if let Some(entry) = self.entries.get_mut(task_id) {
            entry.state = State::Committed;
        }
    }

    /// Returns whether a task's result is durable; `None` if there is none that came.
    pub fn is_durable(&self, task_id: &str) -> Option<bool> {
        match self.entries.get(task_id)?.state {
            State::Committed => Some(true),
            State::Committing { .. } => Some(false),
            State::Free { .. } | State::Leased { .. } => None,
        }
    }

    /// Notes a failed attempt and decides whether there is another.
    pub fn fail(
        &mut self,
        held: Held<'_>,
        failure: TaskFailure,
        live_workers: u32,
        jitter: f64,
        now: Instant,
    ) -> Result<Decision, LeaseError> {
        let entry = self.working_on(held)?;
        let setback = Setback::Failed(failure.class);
        entry.history.record(setback, held.worker);
        let decision = retry::decide(&Policy::default(), &entry.history, setback, live_workers, jitter);
        match decision {
            Decision::RetryAfter(delay) => entry.state = State::Free { not_before: now + delay },
            // The run decides from the failure's class whether it pauses or fails; this task is not offered again.
            Decision::Pause { .. } | Decision::Fail => entry.give_up(failure),
        }
        Ok(decision)
    }

    /// Takes a task back that its worker did not finish (drain). Counts as no failure.
    pub fn release(&mut self, held: Held<'_>, now: Instant) -> Result<(), LeaseError> {
        let entry = self.working_on(held)?;
        entry.state = State::Free { not_before: now };
        Ok(())
    }

    /// Frees every task whose lease ran out, or gives it up if that happened too often. Returns those tasks.
    pub fn expire(&mut self, live_workers: u32, now: Instant) -> Vec<v1::Task> {
        let mut expired = Vec::new();
        for entry in self.entries.values_mut() {
            let State::Leased { worker, until } = &entry.state else { continue };
            if *until > now {
                continue;
            }
            entry.history.record(Setback::LeaseExpired, worker);
            let decision = retry::decide(&Policy::default(), &entry.history, Setback::LeaseExpired, live_workers, 0.0);
            match decision {
                Decision::RetryAfter(delay) => entry.state = State::Free { not_before: now + delay },
                Decision::Pause { .. } | Decision::Fail => {
                    let times = entry.history.expiries;
                    let message = format!("its worker fell silent {times} times, the last time worker {worker}");
                    entry.give_up(TaskFailure { class: FailureClass::Unavailable, message, reason: None });
                }
            }
            expired.push(entry.task.clone());
        }
        expired
    }

    /// Frees every task of a worker that has registered anew: its old self is gone.
    pub fn forget_worker(&mut self, worker: &WorkerId, now: Instant) -> Vec<v1::Task> {
        let mut freed = Vec::new();
        for entry in self.entries.values_mut() {
            if matches!(&entry.state, State::Leased { worker: w, .. } if w == worker) {
                entry.state = State::Free { not_before: now };
                freed.push(entry.task.clone());
            }
        }
        freed
    }

    /// Removes all tasks of a run; their holders learn it from their next heartbeat.
    pub fn remove_run(&mut self, run: &str) {
        self.entries.retain(|_, e| e.task.run != run);
    }

    /// Returns the tasks of a run with their progress (done, total), leased ones only.
    pub fn progress(&self, run: &str) -> Vec<(v1::Task, (u64, u64))> {
        self.entries
            .values()
            .filter(|e| e.task.run == run && matches!(e.state, State::Leased { .. }))
            .map(|e| (e.task.clone(), e.progress))
            .collect()
    }

    /// Returns where every task is that is not done, by its phase.
    pub(crate) fn states(&self) -> Vec<(&'static str, TaskState)> {
        let of_entry = |entry: &Entry| {
            let state = match entry.state {
                State::Free { .. } => TaskState::Waiting,
                State::Leased { .. } => TaskState::Leased,
                State::Committing { .. } => TaskState::Committing,
                State::Committed => return None,
            };
            Some((metrics::phase(entry.task.work.as_ref()), state))
        };
        self.entries.values().filter_map(of_entry).collect()
    }

    /// Returns when one of a run's leased tasks last got on.
    pub(crate) fn moved(&self, run: &str) -> Option<Instant> {
        let leased = |e: &&Entry| e.task.run == run && matches!(e.state, State::Leased { .. });
        self.entries.values().filter(leased).map(|e| e.moved).max()
    }

    /// Returns the phase of a task and since when its last attempt has lasted.
    pub(crate) fn attempt(&self, task_id: &str) -> Option<(&'static str, Instant)> {
        self.entries.get(task_id).map(|e| (metrics::phase(e.task.work.as_ref()), e.since))
    }

    /// Returns the task, if it exists.
    pub fn task(&self, task_id: &str) -> Option<&v1::Task> {
        self.entries.get(task_id).map(|e| &e.task)
    }

    /// Returns a task whose result has not come: one that is being committed stays as it is.
    fn working_on(&mut self, held: Held<'_>) -> Result<&mut Entry, LeaseError> {
        let entry = self.held(held)?;
        match entry.state {
            State::Leased { .. } => Ok(entry),
            _ => Err(LeaseError::Committed { task: held.task_id.to_owned() }),
        }
    }

    fn held(&mut self, held: Held<'_>) -> Result<&mut Entry, LeaseError> {
        let Held { worker, task_id, generation } = held;
        let entry = self.entries.get_mut(task_id).ok_or_else(|| LeaseError::Unknown { task: task_id.to_owned() })?;
        let current = entry.task.generation;
        let stale = LeaseError::Stale { task: task_id.to_owned(), given: generation, current };
        match &entry.state {
            _ if generation != current => Err(stale),
            State::Leased { worker: holder, .. } if holder == worker => Ok(entry),
            State::Committing { worker: holder } if holder == worker => Ok(entry),
            State::Committed => Err(LeaseError::Committed { task: task_id.to_owned() }),
            State::Free { .. } | State::Leased { .. } | State::Committing { .. } => Err(stale),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str) -> WorkerId {
        WorkerId::new(name).unwrap()
    }

    fn board() -> (Board, String, oneshot::Receiver<Outcome>, Instant) {
        let now = Instant::now();
        let mut board = Board::default();
        let task = v1::Task { run: "r".into(), ..v1::Task::default() };
        let (id, outcome) = board.submit(task, v1::WorkerRole::Surgeon, now);
        (board, id, outcome, now)
    }

    #[test]
    fn a_task_is_leased_once_and_only_to_its_role() {
        let (mut board, _, _outcome, now) = board();
        assert!(board.lease(&worker("a"), v1::WorkerRole::Calibrator, &[], 9, now).is_empty());
        assert_eq!(board.lease(&worker("a"), v1::WorkerRole::Surgeon, &[], 9, now).len(), 1);
        assert!(board.lease(&worker("b"), v1::WorkerRole::Surgeon, &[], 9, now).is_empty());
    }

    #[test]
    fn fresh_tasks_are_shared_among_workers_and_a_failed_one_is_not_held_back() {
        let now = Instant::now();
        let mut board = Board::default();
        let task = |run: &str| v1::Task { run: run.into(), ..v1::Task::default() };
        let outcomes: Vec<_> = (0..5).map(|_| board.submit(task("r"), v1::WorkerRole::Surgeon, now)).collect();
        let (a, b) = (worker("a"), worker("b"));
        let peers = [a.clone(), b.clone()];
        let lease = |board: &mut Board, w: &WorkerId, now| board.lease(w, v1::WorkerRole::Surgeon, &peers, 99, now);
        assert_eq!(lease(&mut board, &a, now).len(), 3);
        assert!(lease(&mut board, &a, now).is_empty(), "the rest is the other's");
        let taken = lease(&mut board, &b, now);
        assert_eq!(taken.len(), 2);
        let held = Held { worker: &b, task_id: &taken[0].task_id, generation: taken[0].generation };
        let failure = TaskFailure { class: FailureClass::Unavailable, message: "x".into(), reason: None };
        board.fail(held, failure, 2, 0.0, now).unwrap();
        let retried = lease(&mut board, &a, now + LEASE);
        assert_eq!(retried.len(), 1, "though its share is full");
        assert_eq!(retried[0].task_id, taken[0].task_id);
        drop(outcomes);
    }

    #[test]
    fn runs_take_turns() {
        let now = Instant::now();
        let mut board = Board::default();
        let task = |run: &str| v1::Task { run: run.into(), ..v1::Task::default() };
        let names = ["old", "old", "old", "new"];
        let outcomes: Vec<_> = names.iter().map(|r| board.submit(task(r), v1::WorkerRole::Calibrator, now)).collect();
        let peers = [worker("a"), worker("b"), worker("c")];
        let mut leased = peers.iter().map(|w| board.lease(w, v1::WorkerRole::Calibrator, &peers, 1, now).remove(0).run);
        assert_eq!(leased.next().as_deref(), Some("old"));
        assert_eq!(leased.next().as_deref(), Some("new"), "whose tasks nobody has yet");
        assert_eq!(leased.next().as_deref(), Some("old"));
        drop(outcomes);
    }

    #[test]
    fn a_silent_worker_loses_its_task_and_its_late_result_is_refused() {
        let (mut board, id, _outcome, now) = board();
        let first = board.lease(&worker("a"), v1::WorkerRole::Surgeon, &[], 1, now).remove(0);
        assert!(board.expire(1, now + LEASE / 2).is_empty());
        assert_eq!(board.expire(1, now + LEASE).len(), 1);
        let second = board.lease(&worker("b"), v1::WorkerRole::Surgeon, &[], 1, now + LEASE).remove(0);
        assert_eq!(second.generation, first.generation + 1);
        assert!(matches!(
            board.complete(Held { worker: &worker("a"), task_id: &id, generation: first.generation }),
            Err(LeaseError::Stale { .. })
        ));
        assert!(board.complete(Held { worker: &worker("b"), task_id: &id, generation: second.generation }).is_ok());
        board.committed(&id);
        let again = board.complete(Held { worker: &worker("b"), task_id: &id, generation: second.generation });
        assert!(matches!(again, Err(LeaseError::Committed { .. })), "a repeated commit is recognised");
    }

    #[test]
    fn a_heartbeat_keeps_the_lease() {
        let (mut board, id, _outcome, now) = board();
        let task = board.lease(&worker("a"), v1::WorkerRole::Surgeon, &[], 1, now).remove(0);
        let progress = v1::TaskProgress { task_id: id, generation: task.generation, done: 1, total: 2 };
        board.renew(&worker("a"), &progress, now + LEASE / 2).unwrap();
        assert!(board.expire(1, now + LEASE).is_empty());
        assert_eq!(board.progress("r")[0].1, (1, 2));
    }

    #[test]
    fn a_lease_that_got_lost_is_free_after_two_heartbeats_and_one_that_may_yet_arrive_is_not() {
        let (mut board, id, _outcome, now) = board();
        let (a, b) = (worker("a"), worker("b"));
        let lease = |board: &mut Board, who, call| {
            let tasks = board.lease(who, v1::WorkerRole::Surgeon, &[], 1, now);
            board.leased_in(call, &tasks);
            tasks
        };
        lease(&mut board, &a, 1);
        for _ in 0..5 {
            assert!(board.hear(&a, 1, &[], now).is_empty(), "the answer may be under way");
        }
        assert!(board.hear(&b, 9, &[], now).is_empty(), "another's heartbeat");
        assert!(board.hear(&a, 2, &[], now).is_empty());
        let freed = board.hear(&a, 2, &[], now);
        assert_eq!(freed.len(), 1);
        let again = lease(&mut board, &b, 1).remove(0);
        assert_eq!((again.task_id.as_str(), again.generation), (id.as_str(), freed[0].generation + 1));
        let progress = |generation| v1::TaskProgress { task_id: id.clone(), generation, done: 0, total: 0 };
        for _ in 0..5 {
            assert!(board.hear(&b, 2, &[progress(again.generation)], now).is_empty());
        }
        board.hear(&b, 2, &[progress(again.generation - 1)], now);
        assert_eq!(
            board.hear(&b, 2, &[progress(again.generation - 1)], now).len(),
            1,
            "an older attempt is not this one"
        );
    }

    #[test]
    fn a_result_names_what_its_attempt_has_reported_and_nothing_else() {
        let (mut board, id, _outcome, now) = board();
        let (a, b) = (worker("a"), worker("b"));
        let object = |key: &str| ObjectRef { key: key.into(), blake3: "0".repeat(64), bytes: 1 };
        let lease = |board: &mut Board, who, now| board.lease(who, v1::WorkerRole::Surgeon, &[], 1, now)[0].generation;
        let first = Held { worker: &a, task_id: &id, generation: lease(&mut board, &a, now) };
        let named = v1::ObjectRef::from(object("k"));
        assert!(matches!(board.check_report(first, &named), Err(LeaseError::NotReported { .. })));
        board.report(first, "1".into(), object("k")).unwrap();
        assert_eq!(board.check_report(first, &named), Ok(()));
        assert!(matches!(board.check_report(first, &object("other").into()), Err(LeaseError::NotReported { .. })));
        board.expire(1, now + LEASE);
        assert!(matches!(board.report(first, "1".into(), object("k")), Err(LeaseError::Stale { .. })));
        let second = Held { worker: &b, task_id: &id, generation: lease(&mut board, &b, now + LEASE) };
        assert!(matches!(board.check_report(second, &named), Err(LeaseError::NotReported { .. })), "another's report");
        board.report(second, "2".into(), object("k")).unwrap();
        board.complete(second).unwrap();
        let late = board.report(second, "3".into(), object("other"));
        assert!(matches!(late, Err(LeaseError::Committed { .. })), "what is being committed stays as it is");
        assert!(matches!(board.release(second, now + LEASE), Err(LeaseError::Committed { .. })));
        let failure = TaskFailure { class: FailureClass::Internal, message: "x".into(), reason: None };
        let failed = board.fail(second, failure, 1, 0.0, now + LEASE);
        assert!(matches!(failed, Err(LeaseError::Committed { .. })));
        assert_eq!((board.is_durable(&id), board.is_durable("none")), (Some(false), None));
        board.committed(&id);
        assert_eq!(board.is_durable(&id), Some(true));
    }

    #[test]
    fn a_failure_is_retried_or_told_as_decided_and_a_release_counts_nothing() {
        let (mut board, id, mut outcome, now) = board();
        let failure = TaskFailure { class: FailureClass::Internal, message: "x".into(), reason: None };
        let a = worker("a");
        let lease = |board: &mut Board, now| board.lease(&a, v1::WorkerRole::Surgeon, &[], 1, now);
        let held = |generation| Held { worker: &a, task_id: &id, generation };
        for _ in 0..3 {
            let generation = lease(&mut board, now)[0].generation;
            board.release(held(generation), now).unwrap();
        }
        let generation = lease(&mut board, now)[0].generation;
        let decision = board.fail(held(generation), failure.clone(), 1, 1.0, now).unwrap();
        assert!(matches!(decision, Decision::RetryAfter(_)), "{decision:?}");
        assert!(lease(&mut board, now).is_empty(), "not before the delay");
        let generation = lease(&mut board, now + LEASE)[0].generation;
        assert_eq!(board.fail(held(generation), failure.clone(), 1, 1.0, now), Ok(Decision::Fail));
        assert_eq!(outcome.try_recv().unwrap().unwrap_err(), failure);
    }

    #[test]
    fn a_failed_task_goes_to_another_worker_if_there_is_one() {
        let (mut board, id, _outcome, now) = board();
        let (a, b) = (worker("a"), worker("b"));
        let peers = [a.clone(), b.clone()];
        let generation = board.lease(&a, v1::WorkerRole::Surgeon, &peers, 1, now)[0].generation;
        let failure = TaskFailure { class: FailureClass::Unavailable, message: "x".into(), reason: None };
        board.fail(Held { worker: &a, task_id: &id, generation }, failure, 2, 0.0, now).unwrap();
        assert!(board.lease(&a, v1::WorkerRole::Surgeon, &peers, 1, now).is_empty());
        assert_eq!(board.lease(&b, v1::WorkerRole::Surgeon, &peers, 1, now).len(), 1);
    }
}
