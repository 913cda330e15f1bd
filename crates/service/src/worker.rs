//! The shell that both kinds of worker share: register, lease tasks, hand them to a handler, report, stay alive, stop.
//!
//! As many batches of tasks are with the handler as the worker allows; the next is leased while there are fewer. A worker
//! whose tasks wait for each other (a surgeon's blocks fill a calibrator's shelf together) must allow several, so that a
//! task given back is leased again while its siblings wait. A lease lives as long as heartbeats arrive; a task whose lease is lost is dropped by its token. What the tasks are is the handler's matter.

mod args;
mod client;
mod heartbeat;
mod lease;
mod pair;

pub use args::{Place, WorkerArgs};
pub use lease::{Lease, LeaseError, Leased, TaskFailure};
pub use pair::{Health, Pair, PairArgs};

use crate::Wire;
use crate::program::Exit;
use crate::status::Reason;
use client::Client;
use lease::Leases;
use proto::v1;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use types::WorkerId;

/// How long the handler has to return on a stop.
const HANDLER_GRACE: Duration = Duration::from_secs(5);
/// How long the release of what it left open may take then: 8 s in all, well within the notice before a kill.
const RELEASE_GRACE: Duration = Duration::from_secs(3);

/// Who a worker is; nothing here changes a number.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Its name, unique while it lives.
    pub worker: WorkerId,
    /// What it does.
    pub role: v1::WorkerRole,
    /// Where its own service listens.
    pub endpoint: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// Tasks it leases at once.
    pub max_tasks: u32,
    /// Batches that are with the handler at a time, at least 1.
    pub max_batches: usize,
    /// Told when the coordinator has taken the worker: from then on it is ready.
    pub ready: watch::Sender<bool>,
}

/// Carries out tasks.
pub trait TaskHandler: Send + Sync + 'static {
    /// Carries out one batch, and settles each task through its lease.
    ///
    /// A task that is not settled when this returns is released, so on a fired token it is enough to return. If it panics,
    /// its tasks fail as internal errors.
    fn handle(&self, tasks: Vec<Leased>) -> impl Future<Output = ()> + Send;
}

/// Why a worker stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The coordinator does not want this worker, as it is.
    #[error("the coordinator refuses this worker: {}", .0.message())]
    Refused(Status),
    /// The coordinator cannot be reached for too long.
    #[error("the coordinator cannot be reached: {}", .0.message())]
    Lost(Status),
    /// The device computes no more in this process.
    #[error("the device needs a new process: {0}")]
    DeviceLost(String),
}

impl WorkerError {
    /// Returns the exit status of a program that ends for this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Refused(_) => Exit::Refused,
            Self::Lost(_) => Exit::Unavailable,
            Self::DeviceLost(_) => Exit::Overdue,
        }
    }
}

/// Works for the coordinator behind `channel` until `shutdown` fires, then releases what is unfinished.
pub async fn run_worker<H: TaskHandler>(
    channel: Wire,
    options: WorkerOptions,
    handler: Arc<H>,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    let client = Client::new(channel, options);
    let Some(lease_time) = until(&shutdown, client.register()).await else { return Ok(()) };
    let shutdown = shutdown.child_token();
    let leases = Leases::new(shutdown.clone());
    let beats = tokio::spawn(heartbeat::run(client.clone(), leases.clone(), lease_time.map_err(refusal)?));
    let worked = work(&client, &leases, &handler, &shutdown).await;
    let released = tokio::time::timeout(RELEASE_GRACE, leases.release_all()).await;
    if released.is_err() {
        tracing::warn!("tasks are not released in time; their leases will expire");
    }
    beats.abort();
    leases.lost_device().map_or(worked, |message| Err(WorkerError::DeviceLost(message)))
}

/// Is ready for whoever calls, without a coordinator, until `shutdown` fires.
pub async fn run_standalone(ready: watch::Sender<bool>, shutdown: CancellationToken) {
    ready.send_replace(true);
    shutdown.cancelled().await;
}

/// Leases and handles batch after batch.
async fn work<H: TaskHandler>(
    client: &Client,
    leases: &Leases,
    handler: &Arc<H>,
    shutdown: &CancellationToken,
) -> Result<(), WorkerError> {
    let mut batches = JoinSet::new();
    loop {
        while batches.len() >= client.max_batches() {
            batches.join_next().await;
        }
        let Some(leased) = until(shutdown, client.lease()).await else { break };
        let tasks = match leased {
            Ok(tasks) => tasks,
            Err(status) if client::is_unknown_worker(&status) => {
                let Some(registered) = until(shutdown, client.register()).await else { break };
                registered.map_err(refusal)?;
                continue;
            }
            Err(status) => return Err(refusal(status)),
        };
        if tasks.is_empty() {
            continue;
        }
        tracing::debug!(tasks = tasks.len(), "tasks leased");
        let batch: Vec<Leased> = tasks.into_iter().map(|task| leases.add(client, task, shutdown)).collect();
        batches.spawn(carry_out(batch, handler.clone(), shutdown.clone()));
    }
    while batches.join_next().await.is_some() {} // each is bounded by the handler's grace
    Ok(())
}

/// Has one batch handled, then gives back what the handler left open.
async fn carry_out<H: TaskHandler>(batch: Vec<Leased>, handler: Arc<H>, shutdown: CancellationToken) {
    let of_batch: Vec<Lease> = batch.iter().map(|leased| leased.lease.clone()).collect();
    let mut handled = tokio::spawn(async move { handler.handle(batch).await });
    let Some(joined) = join(&mut handled, &shutdown).await else {
        tracing::warn!("the handler does not return in time; its tasks are released");
        handled.abort();
        return;
    };
    let panicked = joined.is_err_and(|e| e.is_panic());
    let settled = futures::future::join_all(of_batch.iter().map(|lease| settle(lease, panicked)));
    // After a stop the worker releases everything that is open, within its own bound.
    let _ = until(&shutdown, settled).await;
}

/// Waits for a batch; once `shutdown` fires no longer than the handler's grace.
async fn join(
    handled: &mut JoinHandle<()>,
    shutdown: &CancellationToken,
) -> Option<Result<(), tokio::task::JoinError>> {
    tokio::select! {
        joined = &mut *handled => return Some(joined),
        () = shutdown.cancelled() => {}
    }
    tokio::time::timeout(HANDLER_GRACE, handled).await.ok()
}

/// Gives back a task that its handler left open.
async fn settle(lease: &Lease, panicked: bool) {
    let settled = if panicked {
        lease.fail(v1::FailureClass::Internal, Reason::Internal, "the task's handler panicked".to_owned()).await
    } else {
        lease.release().await
    };
    // A lease that could not be given back expires, and the task is then leased anew.
    if let Err(error) = settled {
        tracing::debug!(task = lease.task_id(), %error, "an open task was not given back");
    }
}

/// Returns the answer, or nothing once `shutdown` fires.
async fn until<T>(shutdown: &CancellationToken, call: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        answer = call => Some(answer),
    }
}

fn refusal(status: Status) -> WorkerError {
    if crate::status::is_transient(&status) { WorkerError::Lost(status) } else { WorkerError::Refused(status) }
}
