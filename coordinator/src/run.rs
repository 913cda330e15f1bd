//! One run: its spec, its journal, what is known of it, and how its stages get tasks done.

use crate::error::RunError;
use crate::event::{Event, History};
use crate::journal::{Journal, Stored};
use crate::metrics;
use crate::pool::Pool;
use crate::tasks::{Completion, Outcome};
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::task::Work;
use service::status::Reason;
use service::store::Store;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use types::{RunId, RunSpec, Sizes};

/// Where a run stands, besides what its journal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) state: v1::RunState,
    pub(crate) reason: String,
    pub(crate) code: String,
}

impl Standing {
    pub(crate) fn plain(state: v1::RunState) -> Self {
        Self { state, reason: String::new(), code: String::new() }
    }

    /// Returns that of a run that a caller paused.
    pub(crate) fn paused() -> Self {
        let reason = "a caller paused it".to_owned();
        Self { state: v1::RunState::Paused, reason, code: Reason::RunPaused.name().to_owned() }
    }

    /// Says whether the run is under way, or waits for its turn.
    pub(crate) fn is_active(&self) -> bool {
        matches!(self.state, v1::RunState::Running | v1::RunState::Queued)
    }
}

/// More than a task is ever tried under one coordinator.
const ATTEMPTS_OF_ONE_COORDINATOR: u64 = 1 << 20;

/// One run, shared by its driver and by the handlers that look at it.
#[derive(Debug)]
pub struct Run {
    id: RunId,
    spec: RunSpec,
    store: Store,
    pool: Arc<Pool>,
    journal: Option<Journal>,
    known: Mutex<Known>,
    changed: watch::Sender<u64>,
    pub(crate) stop: CancellationToken,
    /// Set before `stop` fires, by who was first.
    stop_cause: OnceLock<StopCause>,
}

/// Why a run was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// A caller paused it: it stays paused under later coordinators.
    Pause,
    /// A caller cancelled it, for good.
    Cancel,
    /// The coordinator ends: who watches is to ask again, the run goes on with the next one.
    Coordinator,
}

#[derive(Debug)]
struct Known {
    history: History,
    records: Vec<Stored>,
    standing: Standing,
    /// Stages that count what they finish: (shot, stage) → (done, total).
    stage: Option<v1::StageProgress>,
    /// Set when history and records were let go of.
    outline: Option<Outline>,
    /// While it is under way: its place among the runs that are.
    slot: Option<u32>,
    /// When its journal last grew, or it began to be driven.
    moved: Instant,
}

/// What a list of runs tells of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outline {
    /// Milliseconds since 1970.
    pub(crate) created_ms: u64,
    pub(crate) shots_done: u32,
    /// Size of the dense model, once it is known, and after the shots that are done.
    pub(crate) before: Option<Sizes>,
    pub(crate) now: Option<Sizes>,
}

impl Run {
    /// Joins what a journal said with where the run stands. Without a journal the run can only be looked at.
    pub(crate) fn new(
        id: RunId,
        spec: RunSpec,
        store: Store,
        pool: Arc<Pool>,
        journal: Option<Journal>,
        records: Vec<(Stored, Event)>,
        standing: Standing,
    ) -> Self {
        let mut history = History::default();
        let mut stored = Vec::with_capacity(records.len());
        for (record, event) in records {
            history.apply(event);
            stored.push(record);
        }
        let known = Mutex::new(Known {
            history,
            records: stored,
            standing,
            stage: None,
            outline: None,
            slot: None,
            moved: Instant::now(),
        });
        let (changed, _) = watch::channel(0);
        Self {
            id,
            spec,
            store,
            pool,
            journal,
            known,
            changed,
            stop: CancellationToken::new(),
            stop_cause: OnceLock::new(),
        }
    }

    /// Returns the run without its journal's content, which grows with the model and its shots: for runs that have ended and
    /// are kept in mind until they are deleted.
    pub(crate) fn folded(&self) -> Self {
        let outline = Some(self.outline());
        let (id, spec, standing) = (self.id.clone(), self.spec.clone(), self.standing());
        let folded = Self::new(id, spec, self.store.clone(), self.pool.clone(), None, Vec::new(), standing);
        folded.known().outline = outline;
        folded
    }

    /// Says whether history and records are only in the store.
    pub(crate) fn is_folded(&self) -> bool {
        self.known().outline.is_some()
    }

    /// Returns what a list tells of the run.
    pub(crate) fn outline(&self) -> Outline {
        let known = self.known();
        known.outline.unwrap_or_else(|| {
            let (history, done) = (&known.history, known.history.shots_done());
            let created_ms = known.records.first().map_or(0, |r| r.time_ms);
            Outline { created_ms, shots_done: done, before: history.sizes(0), now: history.sizes(done) }
        })
    }

    /// Returns the run's name.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// Stops the run. Of several causes the first counts.
    pub(crate) fn stop_for(&self, cause: StopCause) {
        let _first = self.stop_cause.set(cause);
        self.stop.cancel();
    }

    /// Returns why the run was stopped, if it was.
    pub(crate) fn stop_cause(&self) -> Option<StopCause> {
        self.stop_cause.get().copied()
    }

    /// Returns what was asked for.
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic while holding the lock leaves whole values behind: every write below is one assignment or push.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what `look` sees in the folded journal.
    pub fn history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.known().history)
    }

    pub(crate) fn standing(&self) -> Standing {
        self.known().standing.clone()
    }

    pub(crate) fn set_standing(&self, standing: Standing) {
        self.known().standing = standing;
        self.touch();
    }

    /// Returns journal records from a sequence number on.
    pub(crate) fn records_from(&self, sequence: u64) -> Vec<Stored> {
        let known = self.known();
        let start = known.records.partition_point(|r| r.sequence < sequence);
        known.records[start..].to_vec()
    }

    /// Returns the number of the last record; 0 if there is none.
    pub(crate) fn sequence(&self) -> u64 {
        self.known().records.last().map_or(0, |r| r.sequence)
    }

    /// Returns its place among the runs under way.
    pub(crate) fn slot(&self) -> Option<u32> {
        self.known().slot
    }

    /// Notes its place among the runs under way, or that it is not any more.
    pub(crate) fn set_slot(&self, slot: Option<u32>) {
        let mut known = self.known();
        known.slot = slot;
        known.moved = Instant::now();
    }

    /// Returns for how long neither its journal nor one of its tasks has got on.
    pub(crate) fn idle(&self) -> Duration {
        let journal = self.known().moved.elapsed();
        self.pool.still_for(self.id.as_str()).map_or(journal, |tasks| tasks.min(journal))
    }

    /// Returns a receiver that is told of every change.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn touch(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Notes how far the present stage is.
    pub(crate) fn set_stage(&self, shot: u32, stage: v1::Stage, done: u64, total: u64) {
        self.known().stage = Some(v1::StageProgress { shot, stage: stage as i32, done, total });
        self.touch();
    }

    /// Returns how far every stage under way is.
    pub(crate) fn progress(&self) -> Vec<v1::StageProgress> {
        let mut all = self.pool.progress(self.id.as_str());
        all.extend(self.known().stage.iter().copied());
        all
    }

    /// Makes an event durable, then known.
    pub(crate) async fn record(&self, event: Event) -> Result<(), RunError> {
        let Some(journal) = &self.journal else {
            unreachable!("only a run that is driven records; runs without a journal are never driven");
        };
        let stored = journal.append(&event, now_ms()).await?;
        {
            let mut known = self.known();
            known.history.apply(event);
            known.records.push(stored);
            known.moved = Instant::now();
        }
        self.touch();
        Ok(())
    }

    /// Submits tasks, all at once: a worker that leases a batch must see them all, or it could wait for what is not leased.
    pub(crate) fn submit(&self, shot: u32, role: v1::WorkerRole, works: Vec<Work>) -> Vec<Submitted> {
        let stages: Vec<_> = works.iter().map(|work| metrics::phase(Some(work))).collect();
        // The shot's own span, not the stage's: that one is lost if this coordinator is killed.
        let traceparent = self.history(|h| h.traces.get(&shot).map(|t| t.context.clone())).unwrap_or_default();
        // Attempts count on from coordinator to coordinator: what a worker still sends for a task of the last one must not
        // be taken for a task of ours that has the same number.
        let generation = self.history(|h| h.epoch) * ATTEMPTS_OF_ONE_COORDINATOR;
        let tasks = works.into_iter().map(|work| v1::Task {
            task_id: String::new(),
            run: self.id.to_string(),
            shot,
            generation,
            spec: Some(self.spec.clone().into()),
            work: Some(work),
            traceparent: traceparent.clone(),
        });
        let submitted = self.pool.submit(tasks.collect(), role);
        let join = |(stage, (task_id, outcome))| Submitted { stage, task_id, outcome };
        stages.into_iter().zip(submitted).map(join).collect()
    }

    /// Waits for a task's result, makes `to_event` of it durable, then answers the worker.
    pub(crate) async fn finish(
        &self,
        submitted: Submitted,
        to_event: impl FnOnce(TaskResult, f64) -> Result<Event, RunError>,
    ) -> Result<(), RunError> {
        let Submitted { stage, task_id, outcome } = submitted;
        let Completion { result, seconds, ack } = completion(stage, outcome).await?;
        let committed = match to_event(result, seconds) {
            Ok(event) => self.record(event).await,
            Err(error) => Err(error),
        };
        match committed {
            Ok(()) => {
                self.pool.committed(&task_id);
                let _ = ack.send(Ok(())); // the worker may have gone; the result is durable all the same
                Ok(())
            }
            Err(error) => {
                let _ = ack.send(Err(error.status()));
                Err(error)
            }
        }
    }

    /// Waits for a task whose result is not recorded: what it did lies in the store, and is found there if it is done again.
    pub(crate) async fn settle(&self, submitted: Submitted) -> Result<(), RunError> {
        let Submitted { stage, task_id, outcome } = submitted;
        let Completion { ack, .. } = completion(stage, outcome).await?;
        self.pool.committed(&task_id);
        let _ = ack.send(Ok(())); // the worker may have gone
        Ok(())
    }

    /// Gets one task done: submits it and finishes it.
    pub(crate) async fn perform(
        &self,
        shot: u32,
        role: v1::WorkerRole,
        work: Work,
        to_event: impl FnOnce(TaskResult, f64) -> Result<Event, RunError>,
    ) -> Result<(), RunError> {
        let Some(submitted) = self.submit(shot, role, vec![work]).pop() else {
            unreachable!("one work submitted gives one task");
        };
        self.finish(submitted, to_event).await
    }
}

/// Returns what a task came to, once it has.
async fn completion(stage: &'static str, outcome: oneshot::Receiver<Outcome>) -> Result<Completion, RunError> {
    let outcome = outcome.await.map_err(|_| RunError::Stopped)?;
    outcome.map_err(|failure| RunError::Task { stage, failure })
}

/// A task on the board, and where its outcome arrives.
#[derive(Debug)]
pub(crate) struct Submitted {
    stage: &'static str,
    task_id: String,
    outcome: oneshot::Receiver<Outcome>,
}

/// Returns the wall clock, milliseconds since 1970: for people and journals, never for a decision.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
