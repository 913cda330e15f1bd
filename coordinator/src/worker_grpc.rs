//! `WorkerService`, where calibrators and surgeons find work: decode, call, encode.

use crate::error::lease_status;
use crate::pool::{Member, lease_seconds};
use crate::result;
use crate::runs::Coordinator;
use crate::tasks::{Held, LeaseError, TaskFailure};
use planning::retry::{Decision, FailureClass};
use proto::convert::{known, required, worker_id};
use proto::v1;
use proto::v1::task::Work;
use proto::v1::worker_service_server::WorkerService;
use service::status::{Reason, invalid_message};
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use types::WorkerId;

/// Longest wait of a long poll.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// Most tasks in one lease.
const MAX_TASKS: u32 = 4096;

type Heartbeats = Pin<Box<dyn Stream<Item = Result<v1::HeartbeatResponse, Status>> + Send>>;

#[tonic::async_trait]
impl WorkerService for Coordinator {
    type HeartbeatStream = Heartbeats;

    async fn register_worker(
        &self,
        request: Request<v1::RegisterWorkerRequest>,
    ) -> Result<Response<v1::RegisterWorkerResponse>, Status> {
        let request = request.into_inner();
        let worker = parse_worker(&request.worker)?;
        let role = known("role", request.role).map_err(|e| invalid_message(&e))?;
        if request.version != proto::VERSION {
            return Err(Reason::VersionMismatch.status(format!(
                "worker {worker} has version {}, this coordinator {}: numbers could differ; run the same version",
                request.version,
                proto::VERSION
            )));
        }
        self.check_libtorch(&worker, &request.libtorch)?;
        tracing::info!(worker = %worker, device = %request.device, "worker registered");
        let (endpoint, device) = (request.endpoint, request.device);
        self.pool().register(worker, Member { role, endpoint, device, seen: Instant::now(), draining: false });
        Ok(Response::new(v1::RegisterWorkerResponse { lease_seconds: lease_seconds() }))
    }

    async fn lease_tasks(
        &self,
        request: Request<v1::LeaseTasksRequest>,
    ) -> Result<Response<v1::LeaseTasksResponse>, Status> {
        let request = request.into_inner();
        let worker = self.known_worker(&request.worker)?;
        let wait = Duration::from_secs(u64::from(request.wait_seconds)).min(MAX_WAIT);
        let max = request.max_tasks.clamp(1, MAX_TASKS) as usize;
        let tasks = self.pool().lease(&worker, request.call, max, wait).await;
        Ok(Response::new(v1::LeaseTasksResponse { tasks }))
    }

    async fn heartbeat(
        &self,
        request: Request<Streaming<v1::HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let coordinator = self.clone();
        let beats = request.into_inner().map(move |beat| {
            let beat = beat?;
            let worker = coordinator.known_worker(&beat.worker)?;
            let drop_task_ids = coordinator.pool().heartbeat(&worker, beat.call, &beat.tasks);
            Ok(v1::HeartbeatResponse { drop_task_ids })
        });
        Ok(Response::new(Box::pin(beats)))
    }

    async fn complete_task(
        &self,
        request: Request<v1::CompleteTaskRequest>,
    ) -> Result<Response<v1::CompleteTaskResponse>, Status> {
        let request = request.into_inner();
        let worker = parse_worker(&request.worker)?;
        let result = required("result", request.result).map_err(|e| invalid_message(&e))?;
        let held = Held { worker: &worker, task_id: &request.task_id, generation: request.generation };
        let task = self.pool().task(&request.task_id);
        let named = task.as_ref().and_then(|task| result::named(task, &result)).cloned();
        if let Some(Err(invalid)) = task.map(|task| result::check(&task, &result, request.seconds)) {
            // A bug of this worker, so as bad as a panic: another one is to try.
            let failure = TaskFailure { class: FailureClass::Internal, message: invalid.to_string(), reason: None };
            self.pool().fail(held, failure, jitter(&request.request_id)).map_err(|e| lease_status(&e))?;
            tracing::warn!(worker = %worker, task = %request.task_id, error = %invalid, "result refused");
            return Err(invalid_message(&invalid));
        }
        let durable = self.pool().complete(held, result, named.as_ref(), request.seconds).await;
        durable.map_err(|e| lease_status(&e))??;
        Ok(Response::new(v1::CompleteTaskResponse {}))
    }

    async fn fail_task(&self, request: Request<v1::FailTaskRequest>) -> Result<Response<v1::FailTaskResponse>, Status> {
        let request = request.into_inner();
        let worker = parse_worker(&request.worker)?;
        let class = known("failure", request.failure).map_err(|e| invalid_message(&e))?;
        let reason = Reason::from_name(&request.reason);
        let task = self.pool().task(&request.task_id);
        let class = failure_class(class, reason, task.and_then(|task| task.work).as_ref());
        let failure = TaskFailure { class, message: request.message, reason };
        let held = Held { worker: &worker, task_id: &request.task_id, generation: request.generation };
        let decision = self.pool().fail(held, failure.clone(), jitter(&request.request_id));
        match decision.map_err(|e| lease_status(&e))? {
            Decision::RetryAfter(delay) => {
                tracing::warn!(worker = %worker, task = %request.task_id, ?delay, error = failure.message, "task failed, retrying");
            }
            Decision::Pause { .. } | Decision::Fail => {} // told by the run
        }
        Ok(Response::new(v1::FailTaskResponse {}))
    }

    async fn release_task(
        &self,
        request: Request<v1::ReleaseTaskRequest>,
    ) -> Result<Response<v1::ReleaseTaskResponse>, Status> {
        let request = request.into_inner();
        let worker = parse_worker(&request.worker)?;
        let held = Held { worker: &worker, task_id: &request.task_id, generation: request.generation };
        match self.pool().release(held) {
            Ok(()) | Err(LeaseError::Committed { .. }) => {} // its result came before: there is nothing to take back
            Err(error) => return Err(lease_status(&error)),
        }
        Ok(Response::new(v1::ReleaseTaskResponse {}))
    }

    async fn report_paths(
        &self,
        request: Request<Streaming<v1::ReportPathsRequest>>,
    ) -> Result<Response<v1::ReportPathsResponse>, Status> {
        let paths = self.take_paths(request.into_inner()).await?;
        Ok(Response::new(v1::ReportPathsResponse { paths: Some(paths.into()) }))
    }

    async fn report_cost_histogram(
        &self,
        request: Request<v1::ReportCostHistogramRequest>,
    ) -> Result<Response<v1::ReportCostHistogramResponse>, Status> {
        let histograms = self.take_histograms(request.into_inner()).await?;
        Ok(Response::new(v1::ReportCostHistogramResponse { histograms: Some(histograms.into()) }))
    }

    async fn get_cut(&self, request: Request<v1::GetCutRequest>) -> Result<Response<v1::GetCutResponse>, Status> {
        let request = request.into_inner();
        let worker = parse_worker(&request.worker)?;
        let held = Held { worker: &worker, task_id: &request.task_id, generation: request.generation };
        let cuts = self.cut_of(held)?.into_iter().map(Into::into).collect();
        Ok(Response::new(v1::GetCutResponse { cuts }))
    }

    async fn get_plan(&self, request: Request<v1::GetPlanRequest>) -> Result<Response<v1::GetPlanResponse>, Status> {
        let request = request.into_inner();
        let wait = Duration::from_secs(u64::from(request.wait_seconds)).min(MAX_WAIT);
        let plan = self.pool().plan(&request.run, request.shot, request.known_version, wait).await;
        let (version, shards) = plan.ok_or_else(|| {
            Reason::RunNotFound.status(format!("run '{}' has no plan for shot {}", request.run, request.shot))
        })?;
        Ok(Response::new(v1::GetPlanResponse { version, shards: shards.into_values().collect() }))
    }
}

impl Coordinator {
    /// Returns a worker that has registered, and notes that it lives.
    fn known_worker(&self, worker: &str) -> Result<WorkerId, Status> {
        let worker = parse_worker(worker)?;
        if self.pool().heard_of(&worker) {
            return Ok(worker);
        }
        Err(Reason::WorkerUnknown
            .status(format!("worker '{worker}' is not registered with this coordinator; register again")))
    }
}

pub(crate) fn parse_worker(worker: &str) -> Result<WorkerId, Status> {
    worker_id("worker", worker).map_err(|e| invalid_message(&e))
}

/// Returns the class of a failure. What is not finite in a sweep may be due to some of its samples or to the device, and both
/// can be done without; elsewhere it is the model's.
fn failure_class(class: v1::FailureClass, reason: Option<Reason>, work: Option<&Work>) -> FailureClass {
    let sweeps = matches!(work, Some(Work::Calibrate(_)));
    match class {
        v1::FailureClass::Numerical if sweeps && reason == Some(Reason::NotFinite) => FailureClass::NotFinite,
        v1::FailureClass::InvalidInput => FailureClass::InvalidInput,
        v1::FailureClass::Numerical => FailureClass::Numerical,
        v1::FailureClass::OutOfMemory => FailureClass::OutOfMemory,
        v1::FailureClass::Store => FailureClass::Store,
        v1::FailureClass::Unavailable => FailureClass::Unavailable,
        v1::FailureClass::Internal | v1::FailureClass::Unspecified => FailureClass::Internal,
    }
}

/// Returns a number in [0, 1) that differs from request to request: jitter needs no better randomness.
pub(crate) fn jitter(request_id: &str) -> f64 {
    f64::from(crc32c::crc32c(request_id.as_bytes())) / f64::from(u32::MAX)
}
