//! Calls that come twice, late, or in the wrong order.

use crate::caller::{Caller, refused};
use e2e::cluster::Cluster;
use e2e::dice::{Dice, seed};
use e2e::disturbed::{Disturbed, Fate, SHARDED, tell_faults, undisturbed};
use proto::v1;
use service::Reason;
use service::status::reason_of;
use std::time::Duration;
use tonic::Status;
use v1::RunState::{Cancelled, Paused, Running};

impl Caller {
    fn create(&self, request_id: &str, spec: &v1::RunSpec) -> Result<v1::Run, Status> {
        let request =
            v1::CreateRunRequest { request_id: request_id.into(), spec: Some(spec.clone()), validate_only: false };
        Ok(self.run(async |mut client| client.create_run(request).await)?.into_inner().run.unwrap())
    }

    fn pause(&self, name: &str) -> Result<v1::RunState, Status> {
        let request = v1::PauseRunRequest { request_id: String::new(), name: name.into() };
        Ok(self.run(async |mut client| client.pause_run(request).await)?.into_inner().run.unwrap().state())
    }

    fn resume(&self, name: &str) -> Result<v1::RunState, Status> {
        let request = v1::ResumeRunRequest { request_id: String::new(), name: name.into() };
        Ok(self.run(async |mut client| client.resume_run(request).await)?.into_inner().run.unwrap().state())
    }

    fn cancel(&self, name: &str) -> Result<v1::RunState, Status> {
        let request = v1::CancelRunRequest { request_id: String::new(), name: name.into() };
        Ok(self.run(async |mut client| client.cancel_run(request).await)?.into_inner().run.unwrap().state())
    }

    fn delete(&self, name: &str) -> Result<(), Status> {
        let request = v1::DeleteRunRequest { request_id: String::new(), name: name.into() };
        self.run(async |mut client| client.delete_run(request).await.map(drop))
    }
}

#[test]
fn calls_that_come_twice_or_late_change_nothing_more() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder);
    cluster.start_one("coordinator"); // no workers: nothing can end meanwhile
    cluster.wait_for_workers(0);
    let caller = Caller::new(&cluster.endpoint("coordinator"));
    let _run = Disturbed::start(cluster, &folder, &temp.path().join("pruned"), &SHARDED);
    let first = caller.only_run();
    let spec = first.spec.clone().unwrap();
    let other = v1::RunSpec { seed: spec.seed + 1, ..spec.clone() };

    let created = caller.create("once", &spec).unwrap();
    assert_eq!(created.name, first.name, "one spec is one run");
    let second = caller.create("other", &other).unwrap();
    assert_ne!(second.name, first.name);
    assert_eq!(caller.create("other", &other).unwrap().name, second.name);
    refused(Reason::RequestIdReused, caller.create("other", &spec));
    refused(Reason::RequestIdReused, caller.create("once", &other));
    refused(Reason::SpecInvalid, caller.create("bad", &v1::RunSpec { samples: 0, ..spec.clone() }));

    let name = second.name;
    assert_eq!(caller.resume(&name).unwrap(), Running, "resumed before it was paused");
    for _ in 0..2 {
        assert_eq!(caller.pause(&name).unwrap(), Paused);
    }
    for _ in 0..2 {
        assert_eq!(caller.resume(&name).unwrap(), Running);
    }
    refused(Reason::RunActive, caller.delete(&name));
    for _ in 0..2 {
        assert_eq!(caller.cancel(&name).unwrap(), Cancelled);
    }
    assert_eq!(caller.pause(&name).unwrap(), Cancelled, "ended stays ended");
    refused(Reason::RunEnded, caller.resume(&name));
    assert_eq!(caller.create("other", &other).unwrap().name, name, "the first answer, again");
    let anew = caller.create("anew", &other).unwrap().name;
    assert_ne!(anew, name, "a cancelled run is another run's than the one that is asked for anew");
    caller.delete(&name).unwrap();
    for late in [caller.delete(&name), caller.pause(&name).map(drop), caller.resume(&name).map(drop)] {
        refused(Reason::RunNotFound, late);
    }
    refused(Reason::MessageInvalid, caller.pause("runs/../etc"));
    assert_eq!(caller.pause(&anew).unwrap(), Paused);
}

/// Calls of a surgeon that are said again in its name: too early, too late, in the middle of its own, in any order.
struct Echo<'a> {
    caller: &'a Caller,
    task_id: String,
    generation: u64,
}

impl Echo<'_> {
    /// Reports paths, or the first part of them.
    fn report(&self) -> Status {
        let header = v1::ReportPathsHeader {
            request_id: "again".into(),
            worker: "surgeon-0".into(),
            task_id: self.task_id.clone(),
            generation: self.generation,
            layers: 1,
            steps: 1,
        };
        let part = Some(v1::report_paths_request::Part::Header(header));
        let parts = tokio_stream::iter([v1::ReportPathsRequest { part }]);
        self.caller.work(async |mut client| client.report_paths(parts).await).unwrap_err()
    }

    fn count(&self) -> Status {
        let request = v1::ReportCostHistogramRequest {
            request_id: "again".into(),
            worker: "surgeon-0".into(),
            task_id: self.task_id.clone(),
            generation: self.generation,
            histograms: Vec::new(),
        };
        self.caller.work(async |mut client| client.report_cost_histogram(request).await).unwrap_err()
    }

    fn cut(&self) -> Option<Status> {
        let (worker, task_id) = ("surgeon-0".to_owned(), self.task_id.clone());
        let request = v1::GetCutRequest { worker, task_id, generation: self.generation };
        self.caller.work(async |mut client| client.get_cut(request).await).err()
    }
}

#[test]
fn reports_and_questions_that_are_said_again_change_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = undisturbed(&output, &SHARDED);
    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder);
    cluster.start(1, 1);
    cluster.wait_for_workers(2);
    let endpoint = cluster.endpoint("coordinator");
    let mut run = Disturbed::start(cluster, &folder, &output, &SHARDED);
    let caller = Caller::new(&endpoint);
    let name = caller.only_run().name;
    let (mut dice, mut refusals, mut answers) = (Dice::new(seed()), 0, 0);
    while run.ended().is_none() {
        // Tasks are numbered as they are submitted, attempts from 1 under each coordinator.
        let task_id = format!("{}-{:08}", name.trim_start_matches("runs/"), 1 + dice.roll(60));
        let echo = Echo { caller: &caller, task_id, generation: (1 << 20) + 1 + dice.roll(2) };
        let said = match dice.roll(3) {
            0 => Some(echo.report()),
            1 => Some(echo.count()),
            _ => echo.cut(),
        };
        let Some(refusal) = said else {
            answers += 1;
            continue;
        };
        refusals += 1;
        let reason = reason_of(&refusal);
        let due = [Reason::TaskUnknown, Reason::GenerationStale, Reason::MessageInvalid, Reason::CutNotChosen];
        assert!(reason.is_some_and(|reason| due.contains(&reason)), "seed {}: {refusal:?}", seed());
    }
    run.ends_as(&alone, "calls said again");
    let calls =
        format!("calls said again, late or out of order ({refusals} refused, {answers} answered, seed {})", seed());
    tell_faults(refusals + answers, Fate::Survived, &calls);
}

#[test]
fn a_storm_of_pauses_and_resumes_changes_nothing() {
    const CALLERS: u64 = 3;
    const CALLS: u64 = 12;
    let temp = tempfile::tempdir().unwrap();
    let output = temp.path().join("pruned");
    let alone = undisturbed(&output, &SHARDED);
    let folder = temp.path().join("cluster");
    let mut cluster = Cluster::new(&folder);
    cluster.start(1, 1);
    cluster.wait_for_workers(2);
    let endpoint = cluster.endpoint("coordinator");
    let mut run = Disturbed::start(cluster, &folder, &output, &SHARDED);
    let name = Caller::new(&endpoint).only_run().name;
    std::thread::scope(|scope| {
        for number in 0..CALLERS {
            let (name, endpoint) = (&name, &endpoint);
            scope.spawn(move || {
                let (caller, mut dice) = (Caller::new(endpoint), Dice::new(seed() + number));
                for _ in 0..CALLS {
                    let answer = if dice.roll(2) == 0 { caller.pause(name) } else { caller.resume(name) };
                    answer.unwrap();
                    std::thread::sleep(Duration::from_millis(dice.roll(120)));
                }
            });
        }
    });
    let caller = Caller::new(&endpoint);
    caller.resume(&name).unwrap();
    // The follower ended at the first pause; that is what it is for.
    let ended = run.finish();
    assert!(run.said().contains("paused") || ended.success(), "{}", run.said());
    let id = name.trim_start_matches("runs/");
    let watched = run.cluster.client("watch").arg(id).arg("--quiet").output().unwrap();
    assert!(watched.status.success(), "seed {}: {}", seed(), String::from_utf8_lossy(&watched.stderr));
    assert_eq!(e2e::folder_digest(&output), alone, "seed {}", seed());
    tell_faults(CALLERS * CALLS, Fate::Survived, "pauses and resumes from all sides");
}
