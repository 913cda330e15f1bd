//! The worker's loop against a scripted coordinator, over memory and in paused time.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use futures::Stream;
use proto::convert::MAX_STEPS;
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::report_paths_request::Part;
use proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use service::{
    Connector, LeaseError, Leased, MemoryNetwork, Peers, Reason, Server, TaskHandler, WorkerError, WorkerOptions,
    run_worker,
};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use types::{FactorDamping, LayerId, PathStep, RemovalPath, Unit, UnitKind, WorkerId};

/// What the coordinator was told.
#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Registered(String),
    Completed(String, u64),
    Failed(String, v1::FailureClass),
    Released(String),
    Reported(Vec<v1::ReportPathsRequest>),
}

type Batch = Result<Vec<v1::Task>, Status>;

/// Answers by script: batches to lease, errors to give first.
#[derive(Clone, Default)]
struct Script {
    batches: Arc<Mutex<VecDeque<Batch>>>,
    register_errors: Arc<Mutex<VecDeque<Status>>>,
    complete_errors: Arc<Mutex<VecDeque<Status>>>,
    heartbeat_errors: Arc<Mutex<VecDeque<Status>>>,
    request_ids: Arc<Mutex<Vec<String>>>,
    /// After how many messages a report breaks.
    breaks: Arc<Mutex<VecDeque<usize>>>,
    /// Numbers of the calls for tasks.
    calls: Arc<Mutex<Vec<u64>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    beats: Arc<Mutex<Vec<v1::HeartbeatRequest>>>,
    drops: Arc<Mutex<VecDeque<String>>>,
    changed: Arc<Notify>,
}

impl Script {
    fn see(&self, seen: Seen) {
        self.seen.lock().unwrap().push(seen);
        self.changed.notify_waiters();
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    async fn wait_for(&self, wanted: Seen) {
        let found = async {
            loop {
                let changed = self.changed.notified();
                if self.seen().contains(&wanted) {
                    return;
                }
                changed.await;
            }
        };
        timeout(Duration::from_mins(10), found).await.unwrap_or_else(|_| panic!("{wanted:?} not in {:?}", self.seen()));
    }
}

fn next<T>(queue: &Mutex<VecDeque<T>>) -> Option<T> {
    queue.lock().unwrap().pop_front()
}

#[tonic::async_trait]
impl WorkerService for Script {
    async fn register_worker(
        &self,
        request: Request<v1::RegisterWorkerRequest>,
    ) -> Result<Response<v1::RegisterWorkerResponse>, Status> {
        if let Some(status) = next(&self.register_errors) {
            return Err(status);
        }
        self.see(Seen::Registered(request.into_inner().worker));
        Ok(Response::new(v1::RegisterWorkerResponse { lease_seconds: 20 }))
    }

    async fn lease_tasks(
        &self,
        request: Request<v1::LeaseTasksRequest>,
    ) -> Result<Response<v1::LeaseTasksResponse>, Status> {
        let request = request.into_inner();
        self.calls.lock().unwrap().push(request.call);
        if let Some(batch) = next(&self.batches) {
            return Ok(Response::new(v1::LeaseTasksResponse { tasks: batch? }));
        }
        sleep(Duration::from_secs(request.wait_seconds.into())).await;
        Ok(Response::new(v1::LeaseTasksResponse::default()))
    }

    type HeartbeatStream = Pin<Box<dyn Stream<Item = Result<v1::HeartbeatResponse, Status>> + Send>>;

    async fn heartbeat(
        &self,
        request: Request<Streaming<v1::HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let mut beats = request.into_inner();
        let (answers, outgoing) = mpsc::channel(4);
        let script = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(beat)) = beats.next().await {
                let drop_task_ids: Vec<_> = script.drops.lock().unwrap().drain(..).collect();
                script.beats.lock().unwrap().push(beat);
                let error = next(&script.heartbeat_errors);
                let ends = error.is_some();
                let answer = error.map_or(Ok(v1::HeartbeatResponse { drop_task_ids }), Err);
                if answers.send(answer).await.is_err() || ends {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn complete_task(
        &self,
        request: Request<v1::CompleteTaskRequest>,
    ) -> Result<Response<v1::CompleteTaskResponse>, Status> {
        let request = request.into_inner();
        self.request_ids.lock().unwrap().push(request.request_id);
        if let Some(status) = next(&self.complete_errors) {
            return Err(status);
        }
        self.see(Seen::Completed(request.task_id, request.generation));
        Ok(Response::new(v1::CompleteTaskResponse {}))
    }

    async fn fail_task(&self, request: Request<v1::FailTaskRequest>) -> Result<Response<v1::FailTaskResponse>, Status> {
        let request = request.into_inner();
        self.see(Seen::Failed(request.task_id.clone(), request.failure()));
        Ok(Response::new(v1::FailTaskResponse {}))
    }

    async fn release_task(
        &self,
        request: Request<v1::ReleaseTaskRequest>,
    ) -> Result<Response<v1::ReleaseTaskResponse>, Status> {
        self.see(Seen::Released(request.into_inner().task_id));
        Ok(Response::new(v1::ReleaseTaskResponse {}))
    }

    async fn report_paths(
        &self,
        request: Request<Streaming<v1::ReportPathsRequest>>,
    ) -> Result<Response<v1::ReportPathsResponse>, Status> {
        let mut parts = request.into_inner();
        let breaks = next(&self.breaks);
        let mut came = Vec::new();
        while let Some(part) = parts.next().await {
            came.push(part?);
            if breaks == Some(came.len()) {
                return Err(Status::unavailable("the connection broke"));
            }
        }
        self.see(Seen::Reported(came));
        let paths = Some(v1::ObjectRef { key: "paths".into(), blake3: String::new(), bytes: 1 });
        Ok(Response::new(v1::ReportPathsResponse { paths }))
    }

    async fn report_cost_histogram(
        &self,
        _: Request<v1::ReportCostHistogramRequest>,
    ) -> Result<Response<v1::ReportCostHistogramResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn get_cut(&self, _: Request<v1::GetCutRequest>) -> Result<Response<v1::GetCutResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn get_plan(&self, _: Request<v1::GetPlanRequest>) -> Result<Response<v1::GetPlanResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

/// The paths of two layers, the second too long for one message.
fn paths() -> Vec<RemovalPath> {
    let path = |name: &str, steps: u32| RemovalPath {
        layer: LayerId::new(name).unwrap(),
        steps: (0..steps).map(|index| PathStep { unit: unit(index), cost: f64::from(index), freed: 3 }).collect(),
        damping: FactorDamping::default(),
    };
    vec![path("o_proj", 2), path("down_proj", MAX_STEPS as u32 + 1)]
}

fn unit(index: u32) -> Unit {
    Unit { kind: UnitKind::FfnChannel, index }
}

/// What to do with a task, told by its id.
struct Handler {
    errors: Mutex<Vec<LeaseError>>,
    dropped: Notify,
}

impl TaskHandler for Handler {
    async fn handle(&self, tasks: Vec<Leased>) {
        for Leased { task, lease } in tasks {
            let result = TaskResult::Evaluate(v1::EvaluateResult::default());
            let ended = match task.task_id.as_str() {
                "panics" => panic!("asked to"),
                "fails" => {
                    lease.fail(v1::FailureClass::Numerical, Reason::NotFinite, "not finite: layer 3".to_owned()).await
                }
                "forgets" => Ok(()),
                "waits" => {
                    lease.token().cancelled().await;
                    if lease.is_dropped() {
                        self.dropped.notify_one();
                    }
                    Ok(())
                }
                "deaf" => std::future::pending().await,
                "reports" => match lease.report_paths(paths()).await {
                    Ok(scores) => {
                        assert_eq!(scores.key, "paths");
                        let scored = v1::ScoreResult { scores: Some(scores), ..v1::ScoreResult::default() };
                        lease.complete(TaskResult::Score(scored), 1.0).await
                    }
                    Err(error) => Err(error),
                },
                "counts" => {
                    for done in 1..=10 {
                        lease.progress(done, 10);
                        sleep(Duration::from_millis(500)).await;
                    }
                    lease.complete(result, 5.0).await
                }
                _ => lease.complete(result, 1.0).await,
            };
            self.errors.lock().unwrap().extend(ended.err());
        }
    }
}

struct Stage {
    script: Script,
    handler: Arc<Handler>,
    shutdown: CancellationToken,
    worker: JoinHandle<Result<(), WorkerError>>,
}

fn task(id: &str) -> v1::Task {
    v1::Task { task_id: id.into(), generation: 3, ..v1::Task::default() }
}

/// Starts a worker whose coordinator gives out these batches.
fn stage(batches: &[&[&str]]) -> Stage {
    let script = Script::default();
    let tasks = |ids: &&[&str]| Ok(ids.iter().map(|id| task(id)).collect());
    script.batches.lock().unwrap().extend(batches.iter().map(tasks));
    start(script)
}

fn start(script: Script) -> Stage {
    let network = MemoryNetwork::new();
    let incoming = network.listen("coordinator").unwrap();
    let server = Server::new(Peers::SameProcess).add_service(WorkerServiceServer::new(script.clone()));
    tokio::spawn(server.serve(incoming, CancellationToken::new(), Duration::ZERO));
    let options = WorkerOptions {
        worker: WorkerId::new("w").unwrap(),
        role: v1::WorkerRole::Surgeon,
        endpoint: "memory://w".into(),
        libtorch: "2.11.0".into(),
        device: "cpu".into(),
        max_tasks: 8,
        max_batches: 1,
        ready: tokio::sync::watch::channel(false).0,
    };
    let channel = Connector::new(network).channel("memory://coordinator").unwrap();
    let handler = Arc::new(Handler { errors: Mutex::default(), dropped: Notify::new() });
    let shutdown = CancellationToken::new();
    let worker = tokio::spawn(run_worker(channel, options, handler.clone(), shutdown.clone()));
    Stage { script, handler, shutdown, worker }
}

#[tokio::test(start_paused = true)]
async fn tasks_are_leased_carried_out_and_reported_batch_after_batch() {
    let stage = stage(&[&["a", "fails"], &[], &["forgets"], &["panics"], &["b"]]);
    stage.script.wait_for(Seen::Completed("b".into(), 3)).await;
    let expected = [
        Seen::Registered("w".into()),
        Seen::Completed("a".into(), 3),
        Seen::Failed("fails".into(), v1::FailureClass::Numerical),
        Seen::Released("forgets".into()),
        Seen::Failed("panics".into(), v1::FailureClass::Internal),
        Seen::Completed("b".into(), 3),
    ];
    assert_eq!(stage.script.seen(), expected);
    stage.shutdown.cancel();
    stage.worker.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_report_is_repeated_under_the_same_id_until_it_is_taken() {
    let stage = stage(&[&["a"]]);
    let errors = [Status::unavailable("away"), Reason::StoreFull.status_retry_after("full", Duration::from_secs(1))];
    stage.script.complete_errors.lock().unwrap().extend(errors);
    stage.script.wait_for(Seen::Completed("a".into(), 3)).await;
    let ids = stage.script.request_ids.lock().unwrap().clone();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test(start_paused = true)]
async fn a_report_of_paths_that_breaks_is_sent_again_whole_in_messages_below_the_limit() {
    let script = Script::default();
    script.batches.lock().unwrap().push_back(Ok(vec![task("reports")]));
    script.breaks.lock().unwrap().extend([1, 3]);
    let stage = start(script);
    stage.script.wait_for(Seen::Completed("reports".into(), 3)).await;
    let seen = stage.script.seen();
    let Seen::Reported(parts) = &seen[1] else { panic!("{seen:?}") };
    let Some(Part::Header(header)) = &parts[0].part else { panic!("no header: {:?}", parts[0]) };
    assert_eq!((header.task_id.as_str(), header.generation, header.layers), ("reports", 3, 2));
    assert_eq!(header.steps, MAX_STEPS as u64 + 3);
    assert!(parts.iter().all(|part| proto::encoded_bytes(part) < proto::MAX_MESSAGE_BYTES));
    let mut came: Vec<RemovalPath> = Vec::new();
    for part in &parts[1..] {
        let Some(Part::Path(path)) = part.part.clone() else { panic!("{part:?}") };
        let path = RemovalPath::try_from(path).unwrap();
        match came.last_mut().filter(|last| last.layer == path.layer) {
            Some(last) => last.steps.extend(path.steps),
            None => came.push(path),
        }
    }
    assert_eq!((parts.len(), came), (4, paths()));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_tell_the_last_call_for_tasks_and_a_repeated_call_has_a_number_of_its_own() {
    let script = Script::default();
    script.batches.lock().unwrap().extend([Err(Status::unavailable("the answer is lost")), Ok(vec![task("counts")])]);
    let stage = start(script);
    stage.script.wait_for(Seen::Completed("counts".into(), 3)).await;
    assert_eq!(stage.script.calls.lock().unwrap()[..2], [1, 2]);
    let beats = stage.script.beats.lock().unwrap().clone();
    let listing = beats.iter().filter(|beat| !beat.tasks.is_empty());
    assert!(listing.clone().count() > 0 && listing.clone().all(|beat| beat.call == 2), "{beats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stale_task_is_dropped_and_not_released() {
    let stage = stage(&[&["a"], &["b"]]);
    stage.script.complete_errors.lock().unwrap().push_back(Reason::GenerationStale.status("newer"));
    stage.script.wait_for(Seen::Completed("b".into(), 3)).await;
    assert!(matches!(stage.handler.errors.lock().unwrap()[..], [LeaseError::Dropped]));
    assert!(!stage.script.seen().contains(&Seen::Released("a".into())));
}

#[tokio::test(start_paused = true)]
async fn a_report_that_nobody_wants_any_more_is_given_up() {
    let stage = stage(&[&["a"], &["b"]]);
    stage.script.complete_errors.lock().unwrap().extend((0..40).map(|_| Status::unavailable("away")));
    sleep(Duration::from_secs(10)).await;
    stage.script.drops.lock().unwrap().push_back("a".into());
    stage.script.wait_for(Seen::Completed("b".into(), 3)).await;
    assert!(matches!(stage.handler.errors.lock().unwrap()[..], [LeaseError::Dropped]));
    assert!(!stage.script.seen().contains(&Seen::Completed("a".into(), 3)));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_the_coordinator_drops_is_left_without_a_report() {
    let stage = stage(&[&["waits"], &["b"]]);
    stage.script.drops.lock().unwrap().push_back("elsewhere".into());
    sleep(Duration::from_secs(1)).await;
    stage.script.drops.lock().unwrap().push_back("waits".into());
    timeout(Duration::from_secs(6), stage.handler.dropped.notified()).await.unwrap();
    stage.script.wait_for(Seen::Completed("b".into(), 3)).await;
    assert_eq!(stage.script.seen(), [Seen::Registered("w".into()), Seen::Completed("b".into(), 3)]);
}

#[tokio::test(start_paused = true)]
async fn progress_goes_out_within_a_pulse_and_idle_heartbeats_every_five_seconds() {
    let stage = stage(&[&["counts"]]);
    stage.script.wait_for(Seen::Completed("counts".into(), 3)).await;
    let busy: Vec<u64> = stage
        .script
        .beats
        .lock()
        .unwrap()
        .drain(..)
        .flat_map(|beat| beat.tasks)
        .map(|t| {
            assert_eq!((t.task_id.as_str(), t.generation), ("counts", 3));
            t.done
        })
        .collect();
    assert_eq!(busy, (1..=10).collect::<Vec<_>>());
    sleep(Duration::from_mins(1)).await;
    let idle = stage.script.beats.lock().unwrap().len();
    assert!((11..=13).contains(&idle), "{idle}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_releases_open_tasks_and_waits_for_a_deaf_handler_no_longer_than_eight_seconds() {
    for (id, limit) in [("waits", 1), ("deaf", 8)] {
        let stage = stage(&[&[id]]);
        stage.script.wait_for(Seen::Registered("w".into())).await;
        sleep(Duration::from_secs(1)).await;
        let start = Instant::now();
        stage.shutdown.cancel();
        stage.worker.await.unwrap().unwrap();
        assert!(start.elapsed() < Duration::from_secs(limit), "{id}: {:?}", start.elapsed());
        let seen = stage.script.seen();
        assert_eq!(seen, [Seen::Registered("w".into()), Seen::Released(id.into())]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_stops_at_once() {
    let stage = stage(&[]);
    stage.script.wait_for(Seen::Registered("w".into())).await;
    sleep(Duration::from_secs(3)).await;
    stage.shutdown.cancel();
    let start = Instant::now();
    stage.worker.await.unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_forgotten_registers_anew() {
    let script = Script::default();
    let forgotten = || Reason::WorkerUnknown.status("who?");
    script.batches.lock().unwrap().extend([Err(forgotten()), Ok(vec![task("a")])]);
    let stage = start(script);
    stage.script.wait_for(Seen::Completed("a".into(), 3)).await;
    let registered = Seen::Registered("w".into());
    assert_eq!(stage.script.seen()[..2], [registered.clone(), registered]);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_heartbeat_drops_the_tasks_and_registers_anew() {
    let script = Script::default();
    script.batches.lock().unwrap().push_back(Ok(vec![task("waits")]));
    let stage = start(script);
    sleep(Duration::from_secs(1)).await;
    stage.script.heartbeat_errors.lock().unwrap().push_back(Reason::WorkerUnknown.status("who?"));
    timeout(Duration::from_secs(6), stage.handler.dropped.notified()).await.unwrap();
    stage.script.beats.lock().unwrap().clear();
    sleep(Duration::from_secs(20)).await;
    assert_eq!(stage.script.seen(), [Seen::Registered("w".into()), Seen::Registered("w".into())]);
    assert!(stage.script.beats.lock().unwrap().len() >= 2);
}

#[tokio::test(start_paused = true)]
async fn a_worker_of_another_version_ends_with_the_coordinators_words() {
    let script = Script::default();
    let words = "libtorch 2.10 here, 2.11 there";
    script
        .register_errors
        .lock()
        .unwrap()
        .extend([Status::unavailable("starting"), Reason::VersionMismatch.status(words)]);
    let ended = start(script).worker.await.unwrap();
    assert!(matches!(&ended, Err(WorkerError::Refused(s)) if s.message() == words), "{ended:?}");
}
