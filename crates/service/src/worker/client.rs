//! The calls of one worker to the coordinator, with deadlines, retries and request ids.

use super::WorkerOptions;
use super::lease::Lease;
use crate::retry::{CALL_TIMEOUT, Retry, within};
use crate::status::reason_of;
use crate::{Reason, RequestIds, Wire};
use futures::stream;
use proto::convert::path_messages;
use proto::v1;
use proto::v1::report_paths_request::Part;
use proto::v1::worker_service_client::WorkerServiceClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::Status;
use types::{CostHistogram, RemovalPath};

/// How long the coordinator may hold back an answer while there is no task.
const LEASE_WAIT: Duration = Duration::from_secs(20);

/// Calls the coordinator as one worker; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Client {
    service: WorkerServiceClient<Wire>,
    options: Arc<WorkerOptions>,
    ids: RequestIds,
    /// Calls for tasks so far, with repeated ones.
    lease_calls: Arc<AtomicU64>,
}

/// Says whether the coordinator has forgotten the worker, as after its restart.
pub(super) fn is_unknown_worker(status: &Status) -> bool {
    reason_of(status) == Some(Reason::WorkerUnknown)
}

impl Client {
    /// Returns how many batches may be with the handler.
    pub(super) fn max_batches(&self) -> usize {
        self.options.max_batches.max(1)
    }

    pub(super) fn new(channel: Wire, options: WorkerOptions) -> Self {
        let service = WorkerServiceClient::new(channel)
            .max_decoding_message_size(proto::MAX_CONTROL_BYTES)
            .max_encoding_message_size(proto::MAX_CONTROL_BYTES);
        let ids = RequestIds::new(options.worker.as_str());
        Self { service, options: Arc::new(options), ids, lease_calls: Arc::default() }
    }

    /// Makes the worker known; returns how long a lease lasts.
    pub(super) async fn register(&self) -> Result<Duration, Status> {
        let request = v1::RegisterWorkerRequest {
            request_id: self.ids.next(),
            worker: self.name(),
            role: self.options.role.into(),
            endpoint: self.options.endpoint.clone(),
            version: proto::VERSION.to_owned(),
            libtorch: self.options.libtorch.clone(),
            device: self.options.device.clone(),
        };
        let call = || async { self.service.clone().register_worker(within(CALL_TIMEOUT, request.clone())).await };
        let answer = Retry::default().call(call).await?;
        self.options.ready.send_replace(true);
        tracing::debug!(worker = %self.options.worker, lease_seconds = answer.lease_seconds, "worker registered");
        Ok(Duration::from_secs(answer.lease_seconds.into()))
    }

    /// Waits for tasks; an empty answer means that there are none yet.
    pub(super) async fn lease(&self) -> Result<Vec<v1::Task>, Status> {
        let request = v1::LeaseTasksRequest {
            worker: self.name(),
            max_tasks: self.options.max_tasks,
            wait_seconds: LEASE_WAIT.as_secs() as u32,
            call: 0,
        };
        let timeout = LEASE_WAIT + CALL_TIMEOUT;
        let call = || async {
            // From here on no earlier call will be answered: what it leased is held, or lost.
            let call = self.lease_calls.fetch_add(1, Ordering::AcqRel) + 1;
            let request = v1::LeaseTasksRequest { call, ..request.clone() };
            self.service.clone().lease_tasks(within(timeout, request)).await
        };
        Ok(Retry::default().call(call).await?.tasks)
    }

    /// Returns the number of the last call for tasks. Tasks of those before are held by the time this is told.
    pub(super) fn lease_call(&self) -> u64 {
        self.lease_calls.load(Ordering::Acquire)
    }

    /// Has a block's paths stored; returns where they lie. A call that breaks is made again whole.
    pub(super) async fn report_paths(&self, lease: &Lease, paths: Vec<RemovalPath>) -> Result<v1::ObjectRef, Status> {
        let header = v1::ReportPathsHeader {
            request_id: self.ids.next(),
            worker: self.name(),
            task_id: lease.task_id().to_owned(),
            generation: lease.generation(),
            layers: u32::try_from(paths.len()).unwrap_or(u32::MAX),
            steps: paths.iter().map(|path| path.steps.len() as u64).sum(),
        };
        let messages = paths.iter().flat_map(path_messages).map(Part::Path);
        let parts: Arc<[Part]> = std::iter::once(Part::Header(header)).chain(messages).collect();
        let call = || async {
            let (count, parts) = (parts.len(), parts.clone());
            let messages = (0..count).map(move |n| v1::ReportPathsRequest { part: Some(parts[n].clone()) });
            self.reporting().report_paths(within(CALL_TIMEOUT, stream::iter(messages))).await
        };
        Retry::default().call(call).await?.paths.ok_or_else(unplaced)
    }

    /// Has a block's histograms stored; returns where they lie.
    pub(super) async fn report_histograms(
        &self,
        lease: &Lease,
        histograms: Vec<CostHistogram>,
    ) -> Result<v1::ObjectRef, Status> {
        let request = v1::ReportCostHistogramRequest {
            request_id: self.ids.next(),
            worker: self.name(),
            task_id: lease.task_id().to_owned(),
            generation: lease.generation(),
            histograms: histograms.into_iter().map(Into::into).collect(),
        };
        let call = || async { self.reporting().report_cost_histogram(within(CALL_TIMEOUT, request.clone())).await };
        Retry::default().call(call).await?.histograms.ok_or_else(unplaced)
    }

    /// Returns the cut of a task's block.
    pub(super) async fn cut(&self, lease: &Lease) -> Result<Vec<v1::LayerCut>, Status> {
        let request = v1::GetCutRequest {
            worker: self.name(),
            task_id: lease.task_id().to_owned(),
            generation: lease.generation(),
        };
        let call = || async { self.service.clone().get_cut(within(CALL_TIMEOUT, request.clone())).await };
        Ok(Retry::default().call(call).await?.cuts)
    }

    /// Returns what reports go through: their messages are as small as those of bulk data.
    fn reporting(&self) -> WorkerServiceClient<Wire> {
        self.service.clone().max_encoding_message_size(proto::MAX_MESSAGE_BYTES)
    }

    pub(super) async fn complete(
        &self,
        lease: &Lease,
        result: v1::complete_task_request::Result,
        seconds: f64,
    ) -> Result<(), Status> {
        let request = v1::CompleteTaskRequest {
            request_id: self.ids.next(),
            worker: self.name(),
            task_id: lease.task_id().to_owned(),
            generation: lease.generation(),
            seconds,
            result: Some(result),
        };
        let call = || async { self.service.clone().complete_task(within(CALL_TIMEOUT, request.clone())).await };
        Retry::default().call(call).await.map(drop)
    }

    pub(super) async fn fail(
        &self,
        lease: &Lease,
        (class, reason): (v1::FailureClass, Reason),
        message: String,
    ) -> Result<(), Status> {
        let request = v1::FailTaskRequest {
            request_id: self.ids.next(),
            worker: self.name(),
            task_id: lease.task_id().to_owned(),
            generation: lease.generation(),
            failure: class.into(),
            message,
            reason: reason.name().to_owned(),
        };
        let call = || async { self.service.clone().fail_task(within(CALL_TIMEOUT, request.clone())).await };
        Retry::default().call(call).await.map(drop)
    }

    pub(super) async fn release(&self, lease: &Lease) -> Result<(), Status> {
        let request = v1::ReleaseTaskRequest {
            request_id: self.ids.next(),
            worker: self.name(),
            task_id: lease.task_id().to_owned(),
            generation: lease.generation(),
        };
        let call = || async { self.service.clone().release_task(within(CALL_TIMEOUT, request.clone())).await };
        Retry::default().call(call).await.map(drop)
    }

    /// Opens a stream of heartbeats. The answers come whenever the coordinator has something to say.
    pub(super) async fn heartbeat(
        &self,
        beats: impl futures::Stream<Item = v1::HeartbeatRequest> + Send + 'static,
    ) -> Result<tonic::Streaming<v1::HeartbeatResponse>, Status> {
        Ok(self.service.clone().heartbeat(beats).await?.into_inner())
    }

    pub(super) fn name(&self) -> String {
        self.options.worker.to_string()
    }
}

/// Returns the error for an answer that leaves out where a report lies.
fn unplaced() -> Status {
    Reason::Internal.status("the coordinator does not say where it has put the report")
}
