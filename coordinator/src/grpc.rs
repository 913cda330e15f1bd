//! `CoordinatorService`, the public one: decode, call, encode.

use crate::artifacts::check_data;
use crate::pool::Member;
use crate::run::{Outline, Run, StopCause};
use crate::runs::{Coordinator, CreateError};
use proto::InvalidMessage;
use proto::convert::{
    request_id, required, run_name, run_of_name, shot_name, shot_of_name, worker_name, worker_of_name,
};
use proto::v1;
use proto::v1::coordinator_service_server::CoordinatorService;
use service::status::{Reason, chain, invalid_message, spec_invalid};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use types::{LayerReport, RunId, ShotReport, WorkerId};

/// A stream that has said nothing for this long says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Progress is sent at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Items of a page when the caller does not say, and at most.
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

type Events = Pin<Box<dyn Stream<Item = Result<v1::WatchRunResponse, Status>> + Send>>;

#[tonic::async_trait]
impl CoordinatorService for Coordinator {
    type WatchRunStream = Events;

    async fn create_run(
        &self,
        request: Request<v1::CreateRunRequest>,
    ) -> Result<Response<v1::CreateRunResponse>, Status> {
        let request = request.into_inner();
        let request_id = request_id(request.request_id).map_err(|e| invalid_message(&e))?;
        let spec = required("spec", request.spec).map_err(|e| invalid_message(&e))?;
        let spec = spec.try_into().map_err(|e| spec_invalid(&e))?;
        check_data(self.store(), &spec).await?;
        if request.validate_only {
            let run = v1::Run { spec: Some(v1::RunSpec::from(spec)), ..v1::Run::default() };
            return Ok(Response::new(v1::CreateRunResponse { run: Some(run) }));
        }
        let run = self.create(&request_id, spec).await.map_err(|e| create_status(&e))?;
        Ok(Response::new(v1::CreateRunResponse { run: Some(describe(&run)) }))
    }

    async fn get_run(&self, request: Request<v1::GetRunRequest>) -> Result<Response<v1::GetRunResponse>, Status> {
        let run = self.find(&request.into_inner().name)?;
        Ok(Response::new(v1::GetRunResponse { run: Some(describe(&run)) }))
    }

    async fn list_runs(&self, request: Request<v1::ListRunsRequest>) -> Result<Response<v1::ListRunsResponse>, Status> {
        let request = request.into_inner();
        let page = usize::try_from(request.page_size).ok().filter(|n| *n > 0).unwrap_or(DEFAULT_PAGE).min(MAX_PAGE);
        let mut runs = self.all();
        runs.sort_by_key(|run| std::cmp::Reverse((run.outline().created_ms, run.id().clone())));
        let start = match request.page_token.as_str() {
            "" => 0,
            // The token is the last run of the page before.
            token => runs.iter().position(|r| r.id().as_str() == token).map_or(runs.len(), |at| at + 1),
        };
        let listed: Vec<_> = runs.iter().skip(start).take(page).collect();
        let more = start + listed.len() < runs.len();
        let next_page_token = listed.last().filter(|_| more).map(|r| r.id().to_string()).unwrap_or_default();
        Ok(Response::new(v1::ListRunsResponse { runs: listed.iter().map(|r| describe(r)).collect(), next_page_token }))
    }

    async fn watch_run(&self, request: Request<v1::WatchRunRequest>) -> Result<Response<Self::WatchRunStream>, Status> {
        let request = request.into_inner();
        let run = self.whole(&request.name).await?;
        Ok(Response::new(Box::pin(watch(run, request.from_sequence))))
    }

    async fn cancel_run(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::CancelRunResponse>, Status> {
        let run = self.find(&request.into_inner().name)?;
        self.cancel(&run).await.map_err(|e| e.status())?;
        Ok(Response::new(v1::CancelRunResponse { run: Some(describe(&run)) }))
    }

    async fn pause_run(&self, request: Request<v1::PauseRunRequest>) -> Result<Response<v1::PauseRunResponse>, Status> {
        let run = self.find(&request.into_inner().name)?;
        self.pause(&run).await;
        Ok(Response::new(v1::PauseRunResponse { run: Some(describe(&run)) }))
    }

    async fn resume_run(
        &self,
        request: Request<v1::ResumeRunRequest>,
    ) -> Result<Response<v1::ResumeRunResponse>, Status> {
        let run = self.find(&request.into_inner().name)?;
        let standing = run.standing();
        if !standing.is_active() && standing.state != v1::RunState::Paused {
            return Err(Reason::RunEnded.status(format!("run '{}' has ended; create it anew", run_name(run.id()))));
        }
        let run = self.resume(&run).await.map_err(|e| e.status())?;
        Ok(Response::new(v1::ResumeRunResponse { run: Some(describe(&run)) }))
    }

    async fn delete_run(
        &self,
        request: Request<v1::DeleteRunRequest>,
    ) -> Result<Response<v1::DeleteRunResponse>, Status> {
        let run = self.find(&request.into_inner().name)?;
        let deleted = self.delete(&run).await.map_err(|e| e.reason().status(chain(&e)))?;
        if !deleted {
            let name = run_name(run.id());
            return Err(Reason::RunActive.status(format!("run '{name}' is under way; pause or cancel it first")));
        }
        Ok(Response::new(v1::DeleteRunResponse {}))
    }

    async fn list_workers(
        &self,
        _request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        Ok(Response::new(v1::ListWorkersResponse { workers: self.workers() }))
    }

    async fn drain_worker(
        &self,
        request: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::DrainWorkerResponse>, Status> {
        let request = request.into_inner();
        let worker = worker_of_name("name", &request.name).map_err(|e| invalid_message(&e))?;
        let unknown = || Reason::WorkerUnknown.status(format!("there is no worker '{}'", request.name));
        if !self.pool().drain(&worker, !request.undo) {
            return Err(unknown());
        }
        let drained = self.workers().into_iter().find(|w| w.name == request.name).ok_or_else(unknown)?;
        Ok(Response::new(v1::DrainWorkerResponse { worker: Some(drained) }))
    }

    async fn list_shots(
        &self,
        request: Request<v1::ListShotsRequest>,
    ) -> Result<Response<v1::ListShotsResponse>, Status> {
        let request = request.into_inner();
        let run = self.whole(&request.parent).await?;
        let shots = run.history(crate::report::shots);
        let (shots, next_page_token) = page(shots, request.page_size, &request.page_token)?;
        let shots = shots.into_iter().map(|shot| tell_shot(run.id(), shot)).collect();
        Ok(Response::new(v1::ListShotsResponse { shots, next_page_token }))
    }

    async fn list_layers(
        &self,
        request: Request<v1::ListLayersRequest>,
    ) -> Result<Response<v1::ListLayersResponse>, Status> {
        let request = request.into_inner();
        let (run, shot) = shot_of_name("parent", &request.parent).map_err(|e| invalid_message(&e))?;
        let found =
            self.whole(&run_name(&run)).await?.history(crate::report::shots).into_iter().find(|s| s.shot == shot);
        let found = found.ok_or_else(|| {
            Reason::RunNotFound.status(format!("run '{}' has no committed shot {shot} (yet)", run_name(&run)))
        })?;
        let (layers, next_page_token) = page(found.layers, request.page_size, &request.page_token)?;
        let layers = layers.into_iter().map(tell_layer).collect();
        Ok(Response::new(v1::ListLayersResponse { layers, next_page_token }))
    }

    async fn get_run_report(
        &self,
        request: Request<v1::GetRunReportRequest>,
    ) -> Result<Response<v1::GetRunReportResponse>, Status> {
        let run = self.whole(&request.into_inner().name).await?;
        let report = run.history(|h| crate::report::build(run.id(), run.spec(), h));
        let report =
            report.ok_or_else(|| Reason::ReportNotReady.status("the run is not prepared yet; ask again later"))?;
        let report_json = serde_json::to_string_pretty(&report).map_err(|e| Reason::Internal.status(e.to_string()))?;
        Ok(Response::new(v1::GetRunReportResponse { report_json }))
    }

    async fn get_server_info(
        &self,
        _request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        let version = proto::VERSION.to_owned();
        Ok(Response::new(v1::GetServerInfoResponse { version, journal_format: crate::journal::FORMAT }))
    }
}

/// Returns a page of a list whose items keep their places, and the token of the next one.
fn page<T>(items: Vec<T>, size: i32, token: &str) -> Result<(Vec<T>, String), Status> {
    let bad = |field: &str, problem: &str| invalid_message(&InvalidMessage::new("request", field, problem));
    let size = match usize::try_from(size) {
        Ok(0) => DEFAULT_PAGE,
        Ok(size) => size.min(MAX_PAGE),
        Err(_) => return Err(bad("page_size", "is below 0")),
    };
    let start: usize = match token {
        "" => 0,
        token => token.parse().map_err(|_| bad("page_token", "is of no page"))?,
    };
    let all = items.len();
    let found: Vec<T> = items.into_iter().skip(start).take(size).collect();
    let end = start.saturating_add(found.len());
    Ok((found, if end < all { end.to_string() } else { String::new() }))
}

fn tell_shot(run: &RunId, shot: ShotReport) -> v1::Shot {
    v1::Shot {
        name: shot_name(run, shot.shot),
        limit: shot.limit,
        sizes: Some(shot.sizes.into()),
        threshold: shot.threshold,
        calibration_loss: shot.calibration_loss,
        predicted: shot.predicted,
        held_out_loss: shot.evaluation.map(|evaluation| evaluation.loss),
        taken_back: shot.taken_back,
    }
}

fn tell_layer(layer: LayerReport) -> v1::LayerRemoval {
    v1::LayerRemoval {
        layer: layer.layer.into(),
        removed: layer.removed,
        left: layer.left,
        predicted: layer.predicted,
        damping_a: layer.damping.a.map(|used| used.lambda),
        damping_g: layer.damping.g.map(|used| used.lambda),
    }
}

impl Coordinator {
    fn workers(&self) -> Vec<v1::Worker> {
        let now = Instant::now();
        let show = |(worker, member, tasks): (WorkerId, Member, usize)| v1::Worker {
            name: worker_name(&worker),
            role: member.role as i32,
            endpoint: member.endpoint,
            device: member.device,
            seen_time: Some(proto::timestamp(SystemTime::now() - now.saturating_duration_since(member.seen))),
            tasks: u32::try_from(tasks).unwrap_or(u32::MAX),
            draining: member.draining,
        };
        self.pool().workers().into_iter().map(show).collect()
    }

    fn find(&self, name: &str) -> Result<Arc<Run>, Status> {
        let id = run_of_name("name", name).map_err(|e| invalid_message(&e))?;
        self.get(&id).ok_or_else(|| Reason::RunNotFound.status(format!("there is no run '{name}' in this store")))
    }

    /// Returns a run with everything that its journal says.
    async fn whole(&self, name: &str) -> Result<Arc<Run>, Status> {
        let run = self.find(name)?;
        if run.is_folded() { self.unfold(&run).await.map_err(|e| e.status()) } else { Ok(run) }
    }
}

fn create_status(error: &CreateError) -> Status {
    match error {
        CreateError::RequestIdReused { .. } => Reason::RequestIdReused.status(chain(error)),
        CreateError::Run(source) => source.status(),
    }
}

/// Returns a run as the API shows it.
fn describe(run: &Run) -> v1::Run {
    let standing = run.standing();
    let Outline { created_ms, shots_done, before, now } = run.outline();
    v1::Run {
        name: run_name(run.id()),
        spec: Some(run.spec().clone().into()),
        state: standing.state as i32,
        reason: standing.reason,
        reason_code: standing.code,
        create_time: Some(timestamp(created_ms)),
        shots_done,
        before: before.map(Into::into),
        now: now.map(Into::into),
    }
}

fn timestamp(ms: u64) -> proto::prost_types::Timestamp {
    proto::timestamp(UNIX_EPOCH + Duration::from_millis(ms))
}

/// Returns the run's records from `from` on, then what happens, until it ends or pauses.
fn watch(run: Arc<Run>, from: u64) -> impl Stream<Item = Result<v1::WatchRunResponse, Status>> + Send {
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        // An error means that the caller is gone, which ends the task.
        let _ = follow(&run, from.max(1), &sender).await;
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

type Sender = tokio::sync::mpsc::Sender<Result<v1::WatchRunResponse, Status>>;

async fn follow(
    run: &Run,
    mut next: u64,
    sender: &Sender,
) -> Result<(), tokio::sync::mpsc::error::SendError<Result<v1::WatchRunResponse, Status>>> {
    use v1::run_event::Event as E;
    let mut changed = run.watch();
    let mut shown: Vec<v1::StageProgress> = Vec::new();
    let mut told = Instant::now();
    let send = async |sequence: u64, time_ms: u64, event: E| {
        let event = v1::RunEvent { sequence, time: Some(timestamp(time_ms)), event: Some(event) };
        sender.send(Ok(v1::WatchRunResponse { event: Some(event) })).await
    };
    loop {
        changed.mark_unchanged();
        let standing = run.standing(); // before the records: whatever led to it is then among them
        for record in run.records_from(next) {
            next = record.sequence + 1;
            send(record.sequence, record.time_ms, E::RecordJson(record.json)).await?;
            told = Instant::now();
        }
        let now = crate::run::now_ms();
        if !standing.is_active() && run.stop_cause() == Some(StopCause::Coordinator) {
            let status =
                Reason::ShuttingDown.status("the coordinator stops; ask again, the run goes on with the next one");
            return sender.send(Err(status)).await;
        }
        if !standing.is_active() {
            send(0, now, E::Ended(describe(run))).await?;
            return Ok(());
        }
        let progress = run.progress();
        for stage in progress.iter().filter(|p| !shown.contains(p)) {
            send(0, now, E::Progress(*stage)).await?;
            told = Instant::now();
        }
        shown = progress;
        if told.elapsed() >= HEARTBEAT {
            send(0, now, E::Heartbeat(v1::Heartbeat {})).await?;
            told = Instant::now();
        }
        let look_again = async {
            tokio::time::sleep(PROGRESS_EVERY).await;
            // Progress of leased tasks changes without a ring, so the wait is short while there is any.
            let wait = if shown.is_empty() { HEARTBEAT.saturating_sub(told.elapsed()) } else { PROGRESS_EVERY };
            let _ = tokio::time::timeout(wait, changed.changed()).await; // either way it is time
        };
        tokio::select! {
            () = look_again => {}
            () = sender.closed() => return Ok(()), // the caller is gone, and nothing may come to be sent
        }
    }
}
