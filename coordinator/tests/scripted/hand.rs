//! The calls of one worker, made by hand.

use super::*;
use tonic::Status;
use v1::report_paths_request::Part;

/// A worker without a mind of its own.
#[derive(Debug, Clone)]
pub(crate) struct Hand {
    pub(crate) channel: Wire,
    pub(crate) store: Store,
    pub(crate) worker: String,
}

impl Hand {
    pub(crate) fn client(&self) -> WorkerServiceClient<Wire> {
        WorkerServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn register(&self, role: v1::WorkerRole) {
        let register = v1::RegisterWorkerRequest {
            worker: self.worker.clone(),
            role: role as i32,
            version: proto::VERSION.into(),
            libtorch: "2.11.0".into(),
            ..v1::RegisterWorkerRequest::default()
        };
        self.client().register_worker(register).await.unwrap();
    }

    /// Leases tasks, waiting for some.
    pub(crate) async fn lease(&self, max_tasks: u32) -> Result<Vec<v1::Task>, Status> {
        self.lease_in(0, max_tasks).await
    }

    /// Does the same in a call with a number.
    pub(crate) async fn lease_in(&self, call: u64, max_tasks: u32) -> Result<Vec<v1::Task>, Status> {
        let lease = v1::LeaseTasksRequest { worker: self.worker.clone(), max_tasks, wait_seconds: 10, call };
        Ok(self.client().lease_tasks(lease).await?.into_inner().tasks)
    }

    pub(crate) async fn complete(&self, task: &v1::Task, result: TaskResult) -> Result<(), Status> {
        let complete = v1::CompleteTaskRequest {
            request_id: format!("{}-{}", task.task_id, task.generation),
            worker: self.worker.clone(),
            task_id: task.task_id.clone(),
            generation: task.generation,
            seconds: 1.0,
            result: Some(result),
        };
        self.client().complete_task(complete).await.map(drop)
    }

    /// Reports paths under an id that the task alone decides.
    pub(crate) async fn report_paths(&self, task: &v1::Task, paths: &[RemovalPath]) -> Result<v1::ObjectRef, Status> {
        self.report_as("paths", task, paths).await
    }

    pub(crate) async fn report_as(
        &self,
        request_id: &str,
        task: &v1::Task,
        paths: &[RemovalPath],
    ) -> Result<v1::ObjectRef, Status> {
        self.report_parts(self.parts(request_id, task, paths)).await
    }

    /// Returns the messages of a report.
    pub(crate) fn parts(&self, request_id: &str, task: &v1::Task, paths: &[RemovalPath]) -> Vec<Part> {
        let header = v1::ReportPathsHeader {
            request_id: request_id.into(),
            worker: self.worker.clone(),
            task_id: task.task_id.clone(),
            generation: task.generation,
            layers: paths.len() as u32,
            steps: paths.iter().map(|path| path.steps.len() as u64).sum(),
        };
        let messages = paths.iter().cloned().map(|path| Part::Path(path.into()));
        std::iter::once(Part::Header(header)).chain(messages).collect()
    }

    pub(crate) async fn report_parts(&self, parts: Vec<Part>) -> Result<v1::ObjectRef, Status> {
        let message = |part| v1::ReportPathsRequest { part: Some(part) };
        let parts = tokio_stream::iter(parts.into_iter().map(message).collect::<Vec<_>>());
        Ok(self.client().report_paths(parts).await?.into_inner().paths.unwrap())
    }

    pub(crate) async fn report_histograms(
        &self,
        task: &v1::Task,
        histograms: &[CostHistogram],
    ) -> Result<v1::ObjectRef, Status> {
        let request = v1::ReportCostHistogramRequest {
            request_id: "histograms".into(),
            worker: self.worker.clone(),
            task_id: task.task_id.clone(),
            generation: task.generation,
            histograms: histograms.iter().cloned().map(Into::into).collect(),
        };
        Ok(self.client().report_cost_histogram(request).await?.into_inner().histograms.unwrap())
    }

    pub(crate) async fn cut(&self, task: &v1::Task) -> Result<Vec<v1::LayerCut>, Status> {
        let (worker, task_id) = (self.worker.clone(), task.task_id.clone());
        let request = v1::GetCutRequest { worker, task_id, generation: task.generation };
        Ok(self.client().get_cut(request).await?.into_inner().cuts)
    }
}
