//! One leased task from the worker's side: its progress, its token, and how it ends.

use super::client::Client;
use crate::Reason;
use crate::status::{is_transient, reason_of};
use proto::v1;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use types::{CostHistogram, RemovalPath};

/// Longest failure message that is sent, in bytes.
const MAX_FAILURE: usize = 16 << 10;

/// A task and the right to work on it.
#[derive(Debug)]
pub struct Leased {
    /// What to do.
    pub task: v1::Task,
    /// How to say how it goes.
    pub lease: Lease,
}

/// How a task failed.
#[derive(Debug, Clone)]
pub struct TaskFailure {
    /// What the coordinator can do about it; `None` for a task that was stopped and is to be given back.
    pub class: Option<v1::FailureClass>,
    /// The published reason.
    pub reason: Reason,
    /// The causal chain.
    pub message: String,
}

/// Why a call about a task did not come through.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody else owns the task, or nobody wants it any more: forget it.
    #[error("the lease is lost")]
    Dropped,
    /// The worker stops: the task is given back.
    #[error("the worker stops")]
    Stopped,
    /// The coordinator does not take the report: a bug.
    #[error("the coordinator refuses the report: {}", .0.message())]
    Refused(Status),
    /// The coordinator could not be reached for too long.
    #[error("the coordinator cannot be reached: {}", .0.message())]
    Lost(Status),
}

/// The right to work on one task; cheap to clone, and usable from any thread.
#[derive(Debug, Clone)]
pub struct Lease {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    leases: Leases,
    task_id: String,
    generation: u64,
    token: CancellationToken,
    dropped: AtomicBool,
    progress: Mutex<(u64, u64)>,
}

impl Lease {
    /// Returns the task's id.
    pub fn task_id(&self) -> &str {
        &self.shared.task_id
    }

    /// Returns the number of this attempt.
    pub fn generation(&self) -> u64 {
        self.shared.generation
    }

    /// Says how far the task is. Returns at once; the latest value goes out with the next heartbeat.
    pub fn progress(&self, done: u64, total: u64) {
        *lock(&self.shared.progress) = (done, total);
        self.shared.leases.changed.store(true, Ordering::Relaxed);
    }

    /// Returns the token that fires when the task is to be left: its lease is lost, or the worker stops.
    pub fn token(&self) -> &CancellationToken {
        &self.shared.token
    }

    /// Says whether the lease is lost.
    pub fn is_dropped(&self) -> bool {
        self.shared.dropped.load(Ordering::Acquire)
    }

    /// Has the coordinator check and store the removal paths of the task's block; returns where they lie, for the result to name.
    pub async fn report_paths(&self, paths: Vec<RemovalPath>) -> Result<v1::ObjectRef, LeaseError> {
        self.while_held(self.shared.client.report_paths(self, paths)).await
    }

    /// Has the coordinator check and store the histograms of costs of the task's block; returns where they lie, for the result to
    /// name.
    pub async fn report_histograms(&self, histograms: Vec<CostHistogram>) -> Result<v1::ObjectRef, LeaseError> {
        self.while_held(self.shared.client.report_histograms(self, histograms)).await
    }

    /// Returns what the shot's cut takes from the task's block.
    pub async fn cut(&self) -> Result<Vec<v1::LayerCut>, LeaseError> {
        self.while_held(self.shared.client.cut(self)).await
    }

    /// Hands in the result; when this returns it is durable.
    pub async fn complete(&self, result: v1::complete_task_request::Result, seconds: f64) -> Result<(), LeaseError> {
        self.open()?;
        self.unless_dropped(self.shared.client.complete(self, result, seconds)).await
    }

    /// Says that the task failed, and how; the message has all causes, outermost first.
    pub async fn fail(&self, class: v1::FailureClass, reason: Reason, mut message: String) -> Result<(), LeaseError> {
        self.open()?;
        message.truncate(message.floor_char_boundary(MAX_FAILURE));
        self.unless_dropped(self.shared.client.fail(self, (class, reason), message)).await
    }

    /// Tells the coordinator how a task ended: with its result, or with a failure. One without a class is a task that was
    /// stopped: the worker's loop gives it back.
    pub async fn report(&self, result: Result<v1::complete_task_request::Result, TaskFailure>, took: Duration) {
        let reported = match result {
            Ok(result) => self.complete(result, took.as_secs_f64()).await,
            Err(TaskFailure { class: Some(_), reason, message }) if is_device_lost(&message) => {
                tracing::error!(task = self.task_id(), error = message, "the device needs a new process");
                let reported = self.fail(v1::FailureClass::Unavailable, reason, message.clone()).await;
                self.shared.leases.lose_device(message);
                reported
            }
            Err(TaskFailure { class: Some(class), reason, message }) => {
                tracing::warn!(task = self.task_id(), error = message, "task failed");
                self.fail(class, reason, message).await
            }
            Err(TaskFailure { class: None, .. }) => Ok(()),
        };
        match reported {
            Ok(()) => {}
            Err(LeaseError::Dropped) => tracing::debug!(task = self.task_id(), "the lease was lost before the end"),
            Err(error) => tracing::warn!(task = self.task_id(), %error, "the end of a task was not reported"),
        }
    }

    /// Gives the task back undone. A task that has ended stays ended.
    pub async fn release(&self) -> Result<(), LeaseError> {
        if self.is_dropped() || !self.shared.leases.holds(self) {
            return Ok(());
        }
        self.settled(self.shared.client.release(self).await)
    }

    /// Forgets the task: its lease is lost.
    pub(super) fn drop_task(&self) {
        self.shared.dropped.store(true, Ordering::Release);
        self.shared.token.cancel();
        self.shared.leases.remove(self);
    }

    /// Refuses a report on a task that has ended.
    fn open(&self) -> Result<(), LeaseError> {
        if self.is_dropped() || !self.shared.leases.holds(self) { Err(LeaseError::Dropped) } else { Ok(()) }
    }

    /// Makes a call that the task goes on after; leaves it when the task is to be left.
    async fn while_held<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, LeaseError> {
        self.open()?;
        tokio::select! {
            answer = call => answer.map_err(|status| self.refusal(status)),
            () = self.shared.token.cancelled() => {
                Err(if self.is_dropped() { LeaseError::Dropped } else { LeaseError::Stopped })
            }
        }
    }

    /// Reports the task's end, again and again if need be, but not once the lease is lost; a stop is no reason to give up.
    async fn unless_dropped(&self, report: impl Future<Output = Result<(), Status>>) -> Result<(), LeaseError> {
        let mut report = pin!(report);
        tokio::select! {
            answer = &mut report => return self.settled(answer),
            () = self.shared.token.cancelled() => {}
        }
        if self.is_dropped() {
            return Err(LeaseError::Dropped);
        }
        self.settled(report.await)
    }

    /// Takes the coordinator's answer to the task's end.
    fn settled(&self, answer: Result<(), Status>) -> Result<(), LeaseError> {
        match answer {
            Ok(()) => {
                self.shared.leases.remove(self);
                Ok(())
            }
            Err(status) => Err(self.refusal(status)),
        }
    }

    /// Returns what an answer means that is none; a lease that is lost is forgotten.
    fn refusal(&self, status: Status) -> LeaseError {
        if is_lost(&status) {
            self.drop_task();
            LeaseError::Dropped
        } else if is_transient(&status) {
            LeaseError::Lost(status)
        } else {
            LeaseError::Refused(status)
        }
    }
}

/// Says whether a refusal means that the task is no longer ours.
fn is_lost(status: &Status) -> bool {
    let reason = reason_of(status);
    status.code() == Code::Aborted
        || matches!(reason, Some(Reason::TaskUnknown | Reason::WorkerUnknown | Reason::GenerationStale))
}

/// Says whether a failure has left the device unusable for this process: CUDA answers every later call with the same error.
fn is_device_lost(message: &str) -> bool {
    message.contains("CUDA error") && !message.contains("out of memory")
}

/// The tasks that this worker holds; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Leases {
    held: Arc<Mutex<BTreeMap<String, Lease>>>,
    /// Whether progress was made since the last heartbeat.
    changed: Arc<AtomicBool>,
    /// Fires when the worker is to stop.
    stop: CancellationToken,
    /// What the device said when it was lost.
    lost_device: Arc<OnceLock<String>>,
}

impl Leases {
    /// Returns none yet, of a worker that stops when `stop` fires.
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self { stop, ..Self::default() }
    }

    /// Stops the worker: its device computes no more in this process.
    fn lose_device(&self, message: String) {
        let _first = self.lost_device.set(message);
        self.stop.cancel();
    }

    /// Returns what the device said when it was lost, if it was.
    pub(super) fn lost_device(&self) -> Option<String> {
        self.lost_device.get().cloned()
    }

    /// Takes a task over.
    pub(super) fn add(&self, client: &Client, task: v1::Task, shutdown: &CancellationToken) -> Leased {
        let shared = Shared {
            client: client.clone(),
            leases: self.clone(),
            task_id: task.task_id.clone(),
            generation: task.generation,
            token: shutdown.child_token(),
            dropped: AtomicBool::new(false),
            progress: Mutex::new((0, 0)),
        };
        let lease = Lease { shared: Arc::new(shared) };
        lock(&self.held).insert(task.task_id.clone(), lease.clone());
        Leased { task, lease }
    }

    /// Drops the tasks that the coordinator names.
    pub(super) fn drop_tasks(&self, task_ids: &[String]) {
        let named: Vec<Lease> = {
            let held = lock(&self.held);
            task_ids.iter().filter_map(|id| held.get(id).cloned()).collect()
        };
        for lease in named {
            tracing::debug!(task = lease.task_id(), "task dropped by the coordinator");
            lease.drop_task();
        }
    }

    /// Drops every task: the coordinator has forgotten this worker.
    pub(super) fn drop_all(&self) {
        let all: Vec<Lease> = lock(&self.held).values().cloned().collect();
        all.iter().for_each(Lease::drop_task);
    }

    /// Gives back every task that is still held.
    pub(super) async fn release_all(&self) {
        let all: Vec<Lease> = lock(&self.held).values().cloned().collect();
        for answer in futures::future::join_all(all.iter().map(Lease::release)).await {
            if let Err(error) = answer {
                tracing::debug!(%error, "a task was not given back");
            }
        }
    }

    /// Returns how far each task is.
    pub(super) fn progress(&self) -> Vec<v1::TaskProgress> {
        let of = |lease: &Lease| {
            let (done, total) = *lock(&lease.shared.progress);
            v1::TaskProgress { task_id: lease.task_id().to_owned(), generation: lease.generation(), done, total }
        };
        lock(&self.held).values().map(of).collect()
    }

    /// Says whether progress was made since this was last asked.
    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    fn holds(&self, lease: &Lease) -> bool {
        lock(&self.held).get(lease.task_id()).is_some_and(|held| Arc::ptr_eq(&held.shared, &lease.shared))
    }

    fn remove(&self, lease: &Lease) {
        let mut held = lock(&self.held);
        if held.get(lease.task_id()).is_some_and(|found| Arc::ptr_eq(&found.shared, &lease.shared)) {
            held.remove(lease.task_id());
        }
    }
}

/// Locks; what a panicking thread left behind here is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_lost_by_errors_that_stay_and_not_by_a_want_of_memory() {
        for lost in [
            "sweep: CUDA error: device-side assert triggered",
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: unspecified launch failure",
        ] {
            assert!(is_device_lost(lost), "{lost}");
        }
        for usual in ["CUDA out of memory. Tried to allocate 2 GiB", "CUDA error: out of memory", "loss is not finite"]
        {
            assert!(!is_device_lost(usual), "{usual}");
        }
    }
}
