//! Processes that stand still for longer than a lease, then go on as if nothing had been.

use e2e::cluster::{Cluster, until};
use e2e::disturbed::{Disturbed, Fate, tell_faults, undisturbed};
use std::time::Duration;

/// Longer than a lease (20 s) and than a silent connection is put up with (30 s).
const LONG: Duration = Duration::from_secs(35);
/// Little memory, so that a sweep comes in several shards, and shots enough that every worker gets tasks while they are
/// watched, however the others are faster.
const LASTING: [&str; 6] = ["--target-size", "0.8", "--shots", "8", "--memory", "16MiB"];
/// What a worker says when it hears that a task is another's now; which of the two depends on what is quicker, its
/// heartbeat or its result.
const REFUSED: [&str; 2] = ["task dropped by the coordinator", "the lease was lost before the end"];

/// Returns how many tasks a worker holds, as the coordinator sees it.
fn tasks(cluster: &Cluster, worker: &str) -> u64 {
    let workers = cluster.ask("workers", &["--json"]);
    let line = workers.lines().find(|line| line.contains(worker)).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
    value["tasks"].as_u64().unwrap_or(0)
}

/// Stalls a worker while it holds a task.
fn stall_at_work(run: &mut Disturbed, worker: &str) {
    let stalled = until(|| {
        assert!(run.ended().is_none(), "the run ended before {worker} had a task: {}", run.said());
        if tasks(&run.cluster, worker) == 0 {
            return None;
        }
        run.cluster.stall(worker);
        // It may just have handed in what it had.
        if tasks(&run.cluster, worker) > 0 {
            return Some(());
        }
        run.cluster.wake(worker);
        None
    });
    assert!(stalled.is_some(), "{worker} gets no task");
}

/// Starts a run on two workers of each kind that tell everything.
fn run_in(temp: &std::path::Path, flags: &[&str]) -> (Disturbed, String) {
    let output = temp.join("pruned");
    let alone = undisturbed(&output, flags);
    let folder = temp.join("cluster");
    let store = folder.join("store").display().to_string();
    let mut cluster = Cluster::new(&folder).with_store(&store, &[("LLM_SURGEON_LOG", "info,service=debug")]);
    cluster.start(2, 2);
    cluster.wait_for_workers(4);
    (Disturbed::start(cluster, &folder, &output, flags), alone)
}

fn a_worker_stalled_at_work_is_replaced(worker: &str) {
    let temp = tempfile::tempdir().unwrap();
    let (mut run, alone) = run_in(temp.path(), &LASTING);
    assert!(run.more_records(1), "{}", run.said());
    stall_at_work(&mut run, worker);
    run.wait_for_words("coordinator", "lease expired");
    run.cluster.wake(worker);
    let refused = until(|| REFUSED.iter().find(|words| run.cluster.said(worker).contains(**words)));
    let refused = refused.unwrap_or_else(|| panic!("{worker} is not refused: {}", run.cluster.said(worker)));
    run.ends_as(&alone, &format!("{worker} stood still for a lease"));
    let expired = run.cluster.said("coordinator").matches("lease expired").count();
    tell_faults(
        1,
        Fate::Survived,
        &format!("a worker at work stopped for longer than a lease (leases expired {expired}; {worker}: {refused})"),
    );
}

#[test]
fn a_stalled_calibrator_s_shard_is_another_s_and_its_late_result_is_refused() {
    a_worker_stalled_at_work_is_replaced("calibrator-0");
}

#[test]
fn so_are_a_stalled_surgeon_s_blocks() {
    a_worker_stalled_at_work_is_replaced("surgeon-0");
}

#[test]
fn a_stalled_coordinator_goes_on_where_it_stood() {
    let temp = tempfile::tempdir().unwrap();
    let (mut run, alone) = run_in(temp.path(), &LASTING);
    assert!(run.more_records(2), "{}", run.said());
    run.cluster.stall("coordinator");
    std::thread::sleep(LONG);
    run.cluster.wake("coordinator");
    run.ends_as(&alone, "the coordinator stood still for longer than a lease");
    let expired = run.cluster.said("coordinator").matches("lease expired").count();
    tell_faults(
        1,
        Fate::Survived,
        &format!("the coordinator stopped for longer than a lease (leases expired {expired})"),
    );
}
