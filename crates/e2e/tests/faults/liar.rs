//! A worker that lies, and callers that repeat themselves or come in the wrong order.

use crate::caller::{Caller, refused};
use e2e::cluster::{Cluster, until};
use e2e::disturbed::{Disturbed, Fate, SHARDED, tell_faults, undisturbed};
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::report_paths_request::Part;
use proto::v1::task::Work;
use service::Reason;
use std::path::Path;

const LIAR: &str = "liar";

/// A calibrator or surgeon that is none.
struct Liar {
    caller: Caller,
    register: v1::RegisterWorkerRequest,
    refusals: u64,
}

impl Liar {
    /// Introduces itself, with an endpoint where nobody listens; the version of libtorch is what the others have.
    fn register(cluster: &Cluster, nowhere: &Path) -> Self {
        Self::register_as(v1::WorkerRole::Calibrator, cluster, nowhere)
    }

    fn register_as(role: v1::WorkerRole, cluster: &Cluster, nowhere: &Path) -> Self {
        let caller = Caller::new(&cluster.endpoint("coordinator"));
        let register = v1::RegisterWorkerRequest {
            request_id: "1".into(),
            worker: LIAR.into(),
            role: role.into(),
            endpoint: format!("unix://{}", nowhere.display()),
            version: proto::VERSION.into(),
            libtorch: "0.0.0".into(),
            device: "cpu".into(),
        };
        let mut liar = Self { caller, register, refusals: 0 };
        let other = v1::RegisterWorkerRequest { version: "0.0.0".into(), ..liar.register.clone() };
        liar.refused(Reason::VersionMismatch, |l| l.try_register(other));
        let skewed = liar.register.clone();
        let why = liar.refused(Reason::VersionMismatch, |l| l.try_register(skewed));
        let known = why.split("the others ").nth(1).and_then(|rest| rest.split(':').next());
        known.unwrap().clone_into(&mut liar.register.libtorch);
        liar.try_register(liar.register.clone()).unwrap();
        liar
    }

    fn try_register(&self, request: v1::RegisterWorkerRequest) -> Result<(), tonic::Status> {
        self.caller.work(async |mut client| client.register_worker(request).await.map(drop))
    }

    /// Leases one task, waiting for it.
    fn lease(&self) -> v1::Task {
        let request = v1::LeaseTasksRequest { worker: LIAR.into(), max_tasks: 1, wait_seconds: 10, call: 0 };
        let leased = until(|| {
            let leased = self.caller.work(async |mut client| client.lease_tasks(request.clone()).await);
            leased.unwrap().into_inner().tasks.pop()
        });
        leased.unwrap()
    }

    fn complete(&self, task: &v1::Task, result: Option<TaskResult>) -> Result<(), tonic::Status> {
        self.complete_as(LIAR, task, (result, 1.0))
    }

    fn complete_as(
        &self,
        worker: &str,
        task: &v1::Task,
        (result, seconds): (Option<TaskResult>, f64),
    ) -> Result<(), tonic::Status> {
        let request = v1::CompleteTaskRequest {
            request_id: "2".into(),
            worker: worker.into(),
            task_id: task.task_id.clone(),
            generation: task.generation,
            seconds,
            result,
        };
        self.caller.work(async |mut client| client.complete_task(request).await.map(drop))
    }

    fn release(&self, task: &v1::Task) -> Result<(), tonic::Status> {
        let request = v1::ReleaseTaskRequest {
            request_id: "3".into(),
            worker: LIAR.into(),
            task_id: task.task_id.clone(),
            generation: task.generation,
        };
        self.caller.work(async |mut client| client.release_task(request).await.map(drop))
    }

    /// Makes a call that must be refused for `reason`, and returns the words.
    fn refused(&mut self, reason: Reason, call: impl FnOnce(&Self) -> Result<(), tonic::Status>) -> String {
        let why = refused(reason, call(self));
        self.refusals += 1;
        why
    }

    /// Leases a shard, giving back whatever else comes.
    fn lease_shard(&self) -> (v1::Task, u32) {
        loop {
            let task = self.lease();
            match &task.work {
                Some(Work::Calibrate(work)) => {
                    let shard = work.shard;
                    return (task, shard);
                }
                _ => self.release(&task).unwrap(),
            }
        }
    }

    /// Leases a block to score, giving back whatever else comes.
    fn lease_block(&self) -> v1::Task {
        loop {
            let task = self.lease();
            match &task.work {
                Some(Work::Score(work)) if !work.gather_only => return task,
                _ => self.release(&task).unwrap(),
            }
        }
    }

    fn report(&self, parts: Vec<Part>) -> Result<(), tonic::Status> {
        let message = |part| v1::ReportPathsRequest { part: Some(part) };
        let parts = tokio_stream::iter(parts.into_iter().map(message).collect::<Vec<_>>());
        self.caller.work(async |mut client| client.report_paths(parts).await.map(drop))
    }

    fn count(&self, task: &v1::Task) -> Result<(), tonic::Status> {
        let request = v1::ReportCostHistogramRequest {
            request_id: "4".into(),
            worker: LIAR.into(),
            task_id: task.task_id.clone(),
            generation: task.generation,
            histograms: vec![v1::CostHistogram { layer: "l".into(), ..v1::CostHistogram::default() }],
        };
        self.caller.work(async |mut client| client.report_cost_histogram(request).await.map(drop))
    }

    fn cut(&self, task: &v1::Task) -> Result<(), tonic::Status> {
        let (task_id, generation) = (task.task_id.clone(), task.generation);
        let request = v1::GetCutRequest { worker: LIAR.into(), task_id, generation };
        self.caller.work(async |mut client| client.get_cut(request).await.map(drop))
    }

    /// Tells lies about a block; the task stays its own but for the last.
    fn lie_about_paths_of(&mut self, task: &v1::Task) {
        let header = |worker: &str, generation, layers| {
            let (request_id, worker, task_id) = ("5".into(), worker.into(), task.task_id.clone());
            Part::Header(v1::ReportPathsHeader { request_id, worker, task_id, generation, layers, steps: 1 })
        };
        let at = |generation| v1::Task { generation, ..task.clone() };
        for generation in [task.generation - 1, task.generation + 1] {
            self.refused(Reason::GenerationStale, |l| l.report(vec![header(LIAR, generation, 1)]));
            self.refused(Reason::GenerationStale, |l| l.count(&at(generation)));
            self.refused(Reason::GenerationStale, |l| l.cut(&at(generation)));
        }
        self.refused(Reason::GenerationStale, |l| l.report(vec![header("surgeon-0", task.generation, 1)]));
        self.refused(Reason::CutNotChosen, |l| l.cut(task));
        self.refused(Reason::MessageInvalid, |l| l.count(task)); // these are units
        let invented = v1::ObjectRef { key: "runs/x".into(), blake3: "0".repeat(64), bytes: 1 };
        let scored = v1::ScoreResult { scores: Some(invented), ..v1::ScoreResult::default() };
        self.refused(Reason::NotReported, |l| l.complete(task, Some(TaskResult::Score(scored))));
        let ours = || header(LIAR, task.generation, 1);
        self.refused(Reason::MessageInvalid, |l| l.report(vec![]));
        self.refused(Reason::MessageInvalid, |l| l.report(vec![ours()])); // it ends before its path
        self.refused(Reason::MessageInvalid, |l| l.report(vec![ours(), ours()]));
        // As bad as a crash: the task is taken from it.
        let step = v1::PathStep { kind: v1::UnitKind::FfnChannel.into(), unit: 0, cost: f64::NAN, freed: 1 };
        let path = v1::LayerPath { layer: "l".into(), steps: vec![step], damping: None };
        self.refused(Reason::MessageInvalid, |l| l.report(vec![ours(), Part::Path(path)]));
        self.refused(Reason::GenerationStale, |l| l.report(vec![ours()]));
        self.refused(Reason::GenerationStale, |l| l.release(task));
    }

    /// Tells lies about who holds what; the task stays its own.
    fn lie_about(&mut self, task: &v1::Task, honest: &TaskResult) {
        let said = || Some(honest.clone());
        let at = |generation: u64| v1::Task { generation, ..task.clone() };
        self.refused(Reason::GenerationStale, |l| l.complete(&at(task.generation + 1), said()));
        self.refused(Reason::GenerationStale, |l| l.complete(&at(task.generation - 1), said()));
        self.refused(Reason::GenerationStale, |l| l.complete_as("surgeon-0", task, (said(), 1.0)));
        let unknown = v1::Task { task_id: "r-0-00000099".into(), ..task.clone() };
        self.refused(Reason::TaskUnknown, |l| l.complete(&unknown, said()));
        self.refused(Reason::MessageInvalid, |l| l.complete(task, None));
        self.refused(Reason::MessageInvalid, |l| l.complete_as("../x", task, (said(), 1.0)));
    }
}

#[test]
fn a_worker_that_lies_is_refused_and_the_run_of_the_honest_ones_is_right() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = undisturbed(&output, &SHARDED);
    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder);
    cluster.start(0, 1);
    cluster.wait_for_workers(1);
    let mut liar = Liar::register(&cluster, &folder.join("nobody.sock"));
    let mut run = Disturbed::start(cluster, &folder, &output, &SHARDED);

    // The only calibrator gets what the run begins with.
    let prepare = liar.lease();
    assert!(matches!(prepare.work, Some(Work::Prepare(_))), "{prepare:?}");
    liar.lie_about(&prepare, &TaskResult::Prepare(v1::PrepareResult::default()));
    // As bad as a crash: the task is taken from it.
    let other = TaskResult::Calibrate(v1::CalibrateResult::default());
    liar.refused(Reason::MessageInvalid, |l| l.complete(&prepare, Some(other)));
    let prepared = TaskResult::Prepare(v1::PrepareResult::default());
    liar.refused(Reason::GenerationStale, |l| l.complete(&prepare, Some(prepared)));
    liar.refused(Reason::GenerationStale, |l| l.release(&prepare));

    // With an honest one beside it, it gets its share of the shards, whose factors nobody can fetch from it.
    run.cluster.start_one("calibrator-0");
    let (shard, _) = liar.lease_shard();
    liar.lie_about(&shard, &TaskResult::Calibrate(v1::CalibrateResult::default()));
    liar.release(&shard).unwrap();
    liar.refused(Reason::GenerationStale, |l| l.release(&shard));
    let stranger = v1::LeaseTasksRequest { worker: "stranger".into(), max_tasks: 1, wait_seconds: 0, call: 0 };
    liar.refused(Reason::WorkerUnknown, |l| {
        l.caller.work(async |mut client| client.lease_tasks(stranger).await.map(drop))
    });
    run.cluster.ask("workers", &["--drain", LIAR]);
    run.ends_as(&alone, "a liar's calls");
    tell_faults(liar.refusals, Fate::Refused, "lies of a worker");
}

#[test]
fn a_surgeon_that_lies_about_its_blocks_is_refused_and_the_run_is_right() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = undisturbed(&output, &SHARDED);
    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder);
    cluster.start(1, 1);
    cluster.wait_for_workers(2);
    let mut liar = Liar::register_as(v1::WorkerRole::Surgeon, &cluster, &folder.join("nobody.sock"));
    let mut run = Disturbed::start(cluster, &folder, &output, &SHARDED);
    let block = liar.lease_block();
    liar.lie_about_paths_of(&block);
    run.cluster.ask("workers", &["--drain", LIAR]);
    run.ends_as(&alone, "a surgeon's lies");
    tell_faults(liar.refusals, Fate::Refused, "lies of a worker");
}

#[test]
fn a_loss_that_is_no_number_does_not_get_into_the_journal() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = undisturbed(&output, &SHARDED);
    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder);
    cluster.start(1, 1);
    cluster.wait_for_workers(2);
    let mut liar = Liar::register(&cluster, &folder.join("nobody.sock"));
    let mut run = Disturbed::start(cluster, &folder, &output, &SHARDED);
    let (shard, _) = liar.lease_shard();
    let result = v1::CalibrateResult { loss_sum: f64::NAN, targets: 1, tokens: 1, ..Default::default() };
    liar.refused(Reason::MessageInvalid, |l| l.complete(&shard, Some(TaskResult::Calibrate(result))));
    // Whoever opens the store next reads every record back.
    run.cluster.kill("coordinator");
    run.cluster.start_one("coordinator");
    run.ends_as(&alone, "a loss that is no number");
    tell_faults(liar.refusals, Fate::Refused, "lies of a worker");
}

/// A liar that says a shard is swept of which nothing is in the store ruins the run; that is told, with the shard.
#[test]
fn a_shard_that_is_said_to_be_swept_and_is_not_fails_the_run_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder);
    cluster.start(1, 1);
    cluster.wait_for_workers(2);
    let liar = Liar::register(&cluster, &folder.join("nobody.sock"));
    let mut run = Disturbed::start(cluster, &folder, &output, &SHARDED);
    let (task, shard) = liar.lease_shard();
    let result = v1::CalibrateResult { loss_sum: 1.0, targets: 1, tokens: 1, ..Default::default() };
    liar.complete(&task, Some(TaskResult::Calibrate(result))).unwrap();
    run.cluster.ask("workers", &["--drain", LIAR]);
    assert!(!run.finish().success(), "{}", run.said());
    let listed = run.cluster.ask("list", &["--json"]);
    assert!(listed.contains("\"failed\"") && listed.contains("\"PEER_UNAVAILABLE\""), "{listed}");
    assert!(run.said().contains(&format!("factors of shard {shard} are not in the store")), "{}", run.said());
    assert!(!output.exists(), "a model of a ruined run");
    tell_faults(1, Fate::Told, "a shard that was called swept and never was");
}
