//! Reports and questions of surgeons, made by hand: what is taken, what is refused, and what becomes of the task.

use super::*;
use status::{Reason, reason_of};
use tonic::Status;

/// A coordinator with a scripted calibrator, and a surgeon that does what the test says.
async fn by_hand(spec: RunSpec) -> (Site, Hand) {
    let site = idle_site(Store::memory()).await;
    site.start(v1::WorkerRole::Calibrator, "calibrator", &Script::poisoned(|_| false));
    let hand = site.hand("hand");
    hand.register(v1::WorkerRole::Surgeon).await;
    site.create(spec).await;
    (site, hand)
}

/// Leases the tasks of a stage, all blocks; the first is of the last block.
async fn leased(hand: &Hand) -> Vec<v1::Task> {
    let mut tasks = Vec::new();
    while tasks.len() < BLOCKS as usize {
        tasks.extend(hand.lease(100).await.unwrap());
    }
    tasks
}

fn block_of(task: &v1::Task) -> u32 {
    match task.work.as_ref().unwrap() {
        Work::Score(work) => work.block,
        Work::Refine(work) => work.block,
        Work::Update(work) => work.block,
        other => panic!("{other:?}"),
    }
}

fn first_paths(task: &v1::Task) -> Vec<RemovalPath> {
    paths(&Checkpoint::default(), block_of(task))
}

fn scored(scores: v1::ObjectRef) -> TaskResult {
    TaskResult::Score(v1::ScoreResult { scores: Some(scores), ..v1::ScoreResult::default() })
}

#[track_caller]
fn refused<T: std::fmt::Debug>(reason: Reason, answer: Result<T, Status>) {
    let status = answer.unwrap_err();
    assert_eq!(reason_of(&status), Some(reason), "{status:?}");
    assert_eq!(status.code(), reason.code());
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_stored_once_and_only_their_own_task_may_name_them() {
    let (site, hand) = by_hand(spec()).await;
    let tasks = leased(&hand).await;
    let (task, other) = (&tasks[0], &tasks[1]);
    let paths = first_paths(task);
    let invented = v1::ObjectRef { key: "runs/x".into(), blake3: "0".repeat(64), bytes: 1 };
    refused(Reason::NotReported, hand.complete(task, scored(invented)).await);

    let stored = hand.report_as("one", task, &paths).await.unwrap();
    let bytes = site.store.get(&stored.key).await.unwrap();
    assert_eq!(bytes, serde_json::to_vec(&paths).unwrap(), "as the surgeon would have written it");
    assert_eq!((stored.bytes, stored.blake3.as_str()), (bytes.len() as u64, blake3::hash(&bytes).to_hex().as_str()));
    let due = format!("/shots/0001/scores/0000/{:04}-{}", block_of(task), stored.blake3);
    assert!(stored.key.ends_with(&due), "{}", stored.key);

    assert_eq!(hand.report_as("one", task, &paths).await.unwrap(), stored, "the first answer, again");
    assert_eq!(hand.report_as("two", task, &paths).await.unwrap(), stored);
    let mut shorter = paths.clone();
    shorter[1].steps.pop();
    refused(Reason::RequestIdReused, hand.report_as("one", task, &shorter).await);
    refused(Reason::MessageInvalid, hand.report_as("three", task, &shorter).await);
    assert_eq!(site.store.get(&stored.key).await.unwrap(), bytes, "what is stored stays");

    refused(Reason::NotReported, hand.complete(other, scored(stored.clone())).await);
    hand.complete(task, scored(stored.clone())).await.unwrap();
    hand.complete(task, scored(stored)).await.unwrap();
    refused(Reason::GenerationStale, hand.report_as("one", task, &paths).await);
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_hold_the_task_reports_nothing_and_learns_no_cut() {
    let (site, hand) = by_hand(spec()).await;
    let task = leased(&hand).await.remove(0);
    let paths = first_paths(&task);
    let at = |generation| v1::Task { generation, ..task.clone() };
    let stranger = site.hand("stranger");
    stranger.register(v1::WorkerRole::Surgeon).await;
    for (hand, task) in [(&hand, at(task.generation + 1)), (&hand, at(task.generation - 1)), (&stranger, task.clone())]
    {
        refused(Reason::GenerationStale, hand.report_paths(&task, &paths).await);
        refused(Reason::GenerationStale, hand.report_histograms(&task, &histograms(0, None)).await);
        refused(Reason::GenerationStale, hand.cut(&task).await);
    }
    let unknown = v1::Task { task_id: "r-0-00000099".into(), ..task.clone() };
    refused(Reason::TaskUnknown, hand.report_paths(&unknown, &paths).await);
    refused(Reason::TaskUnknown, hand.cut(&unknown).await);
    assert!(site.store.list("runs").await.unwrap().iter().all(|key| !key.contains("/scores/")));
    hand.report_paths(&task, &paths).await.unwrap();
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_cannot_be_costs_its_worker_the_task_and_leaves_nothing() {
    type Spoil = fn(&v1::Task, &mut Vec<RemovalPath>);
    let cases: [(&str, Spoil); 8] = [
        ("another task's", |task, paths| *paths = super::paths(&Checkpoint::default(), block_of(task) - 1)),
        ("a unit twice", |_, paths| paths[1].steps[3] = paths[1].steps[2]),
        ("a unit that is none", |_, paths| paths[1].steps[3].unit.index = CHANNELS),
        ("a unit of another kind", |_, paths| paths[1].steps[3].unit.kind = UnitKind::Row),
        ("a cost that is no number", |_, paths| paths[0].steps[0].cost = f64::NAN),
        ("a cost without end", |_, paths| paths[0].steps[0].cost = f64::INFINITY),
        ("more freed than there is", |_, paths| paths[1].steps[0].freed += 1),
        ("a layer without a path", |_, paths| drop(paths.pop())),
    ];
    for (what, spoil) in cases {
        let (site, hand) = by_hand(spec()).await;
        let task = leased(&hand).await.remove(0);
        let mut paths = first_paths(&task);
        spoil(&task, &mut paths);
        let answer = hand.report_paths(&task, &paths).await;
        assert_eq!(answer.map_err(|e| reason_of(&e)), Err(Some(Reason::MessageInvalid)), "{what}");
        let late = hand.report_paths(&task, &first_paths(&task)).await;
        assert_eq!(late.map_err(|e| reason_of(&e)), Err(Some(Reason::GenerationStale)), "{what}");
        assert!(site.store.list("runs").await.unwrap().iter().all(|key| !key.contains("/scores/")), "{what}");
        site.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_breaks_in_the_middle_leaves_nothing_and_is_made_again() {
    let (site, hand) = by_hand(spec()).await;
    let task = leased(&hand).await.remove(0);
    let paths = first_paths(&task);
    let parts = hand.parts("one", &task, &paths);
    refused(Reason::MessageInvalid, hand.report_parts(parts[..2].to_vec()).await);
    refused(Reason::MessageInvalid, hand.report_parts(parts[1..].to_vec()).await);
    refused(Reason::MessageInvalid, hand.report_parts([&parts[..1], &parts[..]].concat()).await);
    // Its caller goes away.
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let mut client = hand.client();
    let call = tokio::spawn(async move {
        client.report_paths(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.map(drop)
    });
    for part in &parts[..2] {
        sender.send(v1::ReportPathsRequest { part: Some(part.clone()) }).await.unwrap();
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert!(site.store.list("runs").await.unwrap().iter().all(|key| !key.contains("/scores/")));
    let stored = hand.report_parts(parts).await.unwrap();
    hand.complete(&task, scored(stored)).await.unwrap();
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn histograms_that_count_other_items_than_there_are_are_refused() {
    type Spoil = fn(&mut Vec<CostHistogram>);
    let elements = || RunSpec { structure: Structure::Element, target: Target::Size(0.8), ..spec() };
    let cases: [(&str, Spoil); 4] = [
        ("an item less", |all| all[0].bins[0].1 -= 1),
        ("an item more", |all| all[1].bins[0].1 += 1),
        ("a layer less", |all| drop(all.pop())),
        ("layers in another order", |all| all.reverse()),
    ];
    for (what, spoil) in cases {
        let (site, hand) = by_hand(elements()).await;
        let tasks = leased(&hand).await;
        let mut spoilt = histograms(block_of(&tasks[0]), None);
        spoil(&mut spoilt);
        let answer = hand.report_histograms(&tasks[0], &spoilt).await;
        assert_eq!(answer.map_err(|e| reason_of(&e)), Err(Some(Reason::MessageInvalid)), "{what}");
        site.stop.cancel();
    }
    let (site, hand) = by_hand(elements()).await;
    let tasks = leased(&hand).await;
    refused(Reason::MessageInvalid, hand.report_paths(&tasks[0], &first_paths(&tasks[0])).await);
    for task in &tasks {
        let stored = hand.report_histograms(task, &histograms(block_of(task), None)).await.unwrap();
        hand.complete(task, scored(stored)).await.unwrap();
    }
    let refines = leased(&hand).await;
    let Some(Work::Refine(work)) = &refines[0].work else { panic!("{:?}", refines[0]) };
    let mut second = histograms(work.block, Some(work.digit as u16));
    let digit = second.iter_mut().find_map(|h| h.bins.first_mut()).unwrap();
    digit.1 += 1;
    refused(Reason::MessageInvalid, hand.report_histograms(&refines[0], &second).await);
    site.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_told_once_it_is_chosen_and_the_same_by_the_next_coordinator() {
    let (site, hand) = by_hand(spec()).await;
    let tasks = leased(&hand).await;
    for task in &tasks {
        refused(Reason::CutNotChosen, hand.cut(task).await);
        let stored = hand.report_paths(task, &first_paths(task)).await.unwrap();
        hand.complete(task, scored(stored)).await.unwrap();
    }
    let updates = leased(&hand).await;
    let mut told = Vec::new();
    for task in &updates {
        let cuts = hand.cut(task).await.unwrap();
        assert_eq!(hand.cut(task).await.unwrap(), cuts);
        let layers = ["o_proj", "down_proj"].map(|name| layer(block_of(task), name).to_string());
        assert_eq!(cuts.iter().map(|cut| cut.layer.clone()).collect::<Vec<_>>(), layers);
        told.push(cuts);
    }
    assert!(told.iter().flatten().any(|cut| cut.steps > 0));
    site.stop.cancel();

    let next = idle_site(site.store.clone()).await;
    next.start(v1::WorkerRole::Calibrator, "calibrator", &Script::poisoned(|_| false));
    let hand = next.hand("hand");
    hand.register(v1::WorkerRole::Surgeon).await;
    next.create(spec()).await;
    let late = reason_of(&hand.cut(&updates[0]).await.unwrap_err());
    assert!(matches!(late, Some(Reason::TaskUnknown | Reason::GenerationStale)), "{late:?}");
    for (task, cuts) in leased(&hand).await.iter().zip(told) {
        assert_eq!(hand.cut(task).await.unwrap(), cuts);
    }
    next.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_lease_got_lost_is_anothers_after_two_heartbeats() {
    let site = idle_site(Store::memory()).await;
    let (deaf, other) = (site.hand("deaf"), site.hand("other"));
    deaf.register(v1::WorkerRole::Calibrator).await;
    site.create(spec()).await;
    let lost = deaf.lease_in(1, 1).await.unwrap().remove(0); // it never hears of it
    other.register(v1::WorkerRole::Calibrator).await;
    let start = tokio::time::Instant::now();
    let (beats, outgoing) = tokio::sync::mpsc::channel(4);
    let beats_of_deaf = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut answers = deaf.client().heartbeat(beats_of_deaf).await.unwrap().into_inner();
    for call in [1, 1, 1, 2, 2] {
        let workers = site.client().list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner().workers;
        assert_eq!(workers[0].tasks, 1, "it has the lease, before a heartbeat of call {call}");
        beats.send(v1::HeartbeatRequest { worker: "deaf".into(), tasks: vec![], call }).await.unwrap();
        answers.message().await.unwrap().unwrap();
    }
    let again = other.lease_in(1, 1).await.unwrap().remove(0);
    assert_eq!((again.task_id, again.generation), (lost.task_id, lost.generation + 1));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    site.stop.cancel();
}
