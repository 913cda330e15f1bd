//! What a coordinator counts and measures. `docs/telemetry.json` lists it; ids are never labels, a run under way is known
//! by its slot.

use crate::event::{History, ShotHistory};
use crate::run::Run;
use crate::runs::Coordinator;
use crate::stages::shard_plan;
use proto::v1;
use proto::v1::task::Work;
use service::telemetry::metrics::{self, KeyValue, OF_TASKS, OF_WRITES};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;
use types::RunSpec;

/// Every phase's name, as labels have it.
pub(crate) const PHASES: [&str; 9] =
    ["prepare", "calibrate", "weigh", "score", "refine", "update", "correct", "evaluate", "materialise"];

/// Returns the name of a task's phase.
pub(crate) fn phase(work: Option<&Work>) -> &'static str {
    match work {
        Some(Work::Prepare(_)) => "prepare",
        Some(Work::Calibrate(_)) => "calibrate",
        Some(Work::Weigh(_)) => "weigh",
        Some(Work::Score(_)) => "score",
        Some(Work::Refine(_)) => "refine",
        Some(Work::Update(_)) => "update",
        Some(Work::Correct(_)) => "correct",
        Some(Work::Evaluate(_)) => "evaluate",
        Some(Work::Materialise(_)) => "materialise",
        None => "none",
    }
}

/// How an attempt at a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    Failed,
    Released,
    Expired,
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TaskState {
    Waiting,
    Leased,
    Committing,
}

/// Which way an artifact goes, as callers see it from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

impl Direction {
    fn label(self) -> KeyValue {
        KeyValue::new("direction", if self == Self::In { "in" } else { "out" })
    }
}

struct Instruments {
    attempts: opentelemetry::metrics::Counter<u64>,
    expired: opentelemetry::metrics::Counter<u64>,
    duration: opentelemetry::metrics::Histogram<f64>,
    append: opentelemetry::metrics::Histogram<f64>,
    moved: opentelemetry::metrics::Counter<u64>,
    checksum_failures: opentelemetry::metrics::Counter<u64>,
}

static INSTRUMENTS: LazyLock<Instruments> = LazyLock::new(|| {
    let phases = PHASES.map(|phase| [KeyValue::new("phase", phase)]);
    let phases: Vec<&[KeyValue]> = phases.iter().map(<[KeyValue; 1]>::as_slice).collect();
    Instruments {
        attempts: metrics::counter("llm_surgeon.coordinator.task.attempts", "{attempt}", "leases given", &phases),
        expired: metrics::counter(
            "llm_surgeon.coordinator.leases.expired",
            "{lease}",
            "leases of workers that fell silent",
            &phases,
        ),
        duration: metrics::seconds(
            "llm_surgeon.coordinator.task.duration",
            "from lease to end of an attempt",
            &OF_TASKS,
        ),
        append: metrics::seconds(
            "llm_surgeon.coordinator.journal.append.duration",
            "until a journal record is durable",
            &OF_WRITES,
        ),
        moved: metrics::counter(
            "llm_surgeon.coordinator.artifacts.moved",
            "By",
            "bytes of artifacts that callers brought or took",
            &[&[Direction::In.label()], &[Direction::Out.label()]],
        ),
        checksum_failures: metrics::counter(
            "llm_surgeon.coordinator.artifacts.checksum_failures",
            "{failure}",
            "chunks or artifacts of callers whose checksum did not match",
            &[&[]],
        ),
    }
});

/// Counts a lease.
pub(crate) fn leased(phase: &'static str) {
    INSTRUMENTS.attempts.add(1, &[KeyValue::new("phase", phase)]);
}

/// Measures an attempt that has ended.
pub(crate) fn ended(phase: &'static str, outcome: Outcome, lasted: Duration) {
    let name = match outcome {
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Released => "released",
        Outcome::Expired => {
            INSTRUMENTS.expired.add(1, &[KeyValue::new("phase", phase)]);
            "expired"
        }
    };
    let labels = [KeyValue::new("phase", phase), KeyValue::new("outcome", name)];
    INSTRUMENTS.duration.record(lasted.as_secs_f64(), &labels);
}

/// Measures an append to a journal.
pub(crate) fn appended(written: bool, lasted: Duration) {
    let outcome = if written { "written" } else { "refused" };
    INSTRUMENTS.append.record(lasted.as_secs_f64(), &[KeyValue::new("outcome", outcome)]);
}

/// Counts bytes of an artifact.
pub(crate) fn moved(direction: Direction, bytes: usize) {
    INSTRUMENTS.moved.add(bytes as u64, &[direction.label()]);
}

/// Counts a chunk or an artifact that is not what its caller sent.
pub(crate) fn checksum_failed() {
    INSTRUMENTS.checksum_failures.add(1, &[]);
}

/// Tells of unfinished uploads whenever somebody asks, as long as `read` knows of them.
pub(crate) fn watch_uploads(read: impl Fn() -> Option<u64> + Send + Sync + 'static) {
    let points = move || read().map(|bytes| (bytes as f64, Vec::new())).into_iter().collect();
    metrics::gauge(
        "llm_surgeon.coordinator.artifacts.unfinished",
        "By",
        "bytes that unfinished uploads are announced to have",
        points,
    );
}

type Points = Vec<(f64, Vec<KeyValue>)>;
type ReadRun = fn(&Run) -> Points;

/// Tells of runs, tasks and workers whenever somebody asks, as long as the coordinator lives.
pub(crate) fn watch(coordinator: &Coordinator) {
    LazyLock::force(&INSTRUMENTS);
    metrics::watch_process(coordinator.store());
    let gauge = |name, unit, about, read: fn(&Coordinator) -> Points| {
        let coordinator = coordinator.downgrade();
        metrics::gauge(name, unit, about, move || coordinator.upgrade().map_or_else(Vec::new, |c| read(&c)));
    };
    gauge("llm_surgeon.coordinator.runs", "{run}", "runs in the store", runs);
    gauge("llm_surgeon.coordinator.tasks", "{task}", "tasks on the board", tasks);
    gauge("llm_surgeon.coordinator.workers", "{worker}", "workers that have registered", workers);
    let of_runs: [(&str, &str, &str, ReadRun); 8] = [
        ("llm_surgeon.coordinator.run.shots", "{shot}", "shots of the run under way", shots),
        ("llm_surgeon.coordinator.shot.progress", "1", "share of the present shot that is in the journal", progress),
        ("llm_surgeon.coordinator.run.size", "1", "size relative to the dense model", size),
        ("llm_surgeon.coordinator.run.loss", "{nat}", "held-out loss, nats per token", loss),
        ("llm_surgeon.coordinator.run.threshold", "{nat}", "the last cut's cost per parameter freed", threshold),
        ("llm_surgeon.coordinator.run.damping", "1", "largest damping so far, of the mean of the diagonal", damping),
        ("llm_surgeon.coordinator.run.idle", "s", "since the run's last record or sign of progress", idle),
        ("llm_surgeon.coordinator.run.stage.time", "s", "time that workers have computed for the run", stage_time),
    ];
    for (name, unit, about, read) in of_runs {
        let coordinator = coordinator.downgrade();
        metrics::gauge(name, unit, about, move || {
            let under_way = coordinator.upgrade().map_or_else(Vec::new, |c| c.all());
            under_way
                .iter()
                .filter_map(|run| Some((run.slot()?, run)))
                .flat_map(|(slot, run)| in_slot(slot, read(run)))
                .collect()
        });
    }
}

fn in_slot(slot: u32, points: Points) -> Points {
    let labelled = |mut labels: Vec<KeyValue>| {
        labels.push(KeyValue::new("slot", i64::from(slot)));
        labels
    };
    points.into_iter().map(|(value, labels)| (value, labelled(labels))).collect()
}

/// Returns one point for each value of a label, 0 for those that do not occur.
fn counts(label: &'static str, names: &[&'static str], found: impl Iterator<Item = &'static str>) -> Points {
    let mut counts: BTreeMap<&str, u32> = names.iter().map(|name| (*name, 0)).collect();
    for name in found {
        *counts.entry(name).or_default() += 1;
    }
    counts.into_iter().map(|(name, count)| (f64::from(count), vec![KeyValue::new(label, name)])).collect()
}

fn runs(coordinator: &Coordinator) -> Points {
    let names = ["queued", "running", "paused", "succeeded", "failed", "cancelled"];
    let state = |run: &std::sync::Arc<Run>| match run.standing().state {
        v1::RunState::Queued => "queued",
        v1::RunState::Running | v1::RunState::Unspecified => "running",
        v1::RunState::Paused => "paused",
        v1::RunState::Succeeded => "succeeded",
        v1::RunState::Failed => "failed",
        v1::RunState::Cancelled => "cancelled",
    };
    counts("state", &names, coordinator.all().iter().map(state))
}

fn tasks(coordinator: &Coordinator) -> Points {
    let mut counts: BTreeMap<(&str, TaskState), u32> = BTreeMap::new();
    for phase in PHASES {
        for state in [TaskState::Waiting, TaskState::Leased, TaskState::Committing] {
            counts.insert((phase, state), 0);
        }
    }
    for of_task in coordinator.pool().states() {
        *counts.entry(of_task).or_default() += 1;
    }
    let point = |((phase, state), count): ((&'static str, TaskState), u32)| {
        let state = match state {
            TaskState::Waiting => "waiting",
            TaskState::Leased => "leased",
            TaskState::Committing => "committing",
        };
        (f64::from(count), vec![KeyValue::new("phase", phase), KeyValue::new("state", state)])
    };
    counts.into_iter().map(point).collect()
}

fn workers(coordinator: &Coordinator) -> Points {
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for role in ["calibrator", "surgeon"] {
        counts.extend(["ready", "draining", "silent"].map(|state| ((role, state), 0)));
    }
    for (_, member, _) in coordinator.pool().workers() {
        let role = if member.role == v1::WorkerRole::Calibrator { "calibrator" } else { "surgeon" };
        let state = match (member.is_silent(), member.draining) {
            (true, _) => "silent",
            (false, true) => "draining",
            (false, false) => "ready",
        };
        *counts.entry((role, state)).or_default() += 1;
    }
    let point = |((role, state), count): ((&'static str, &'static str), u32)| {
        (f64::from(count), vec![KeyValue::new("role", role), KeyValue::new("state", state)])
    };
    counts.into_iter().map(point).collect()
}

fn of_kind(kind: &'static str, value: f64) -> (f64, Vec<KeyValue>) {
    (value, vec![KeyValue::new("kind", kind)])
}

fn shots(run: &Run) -> Points {
    let (done, planned) = run.history(|h| (h.shots_done(), h.planned_shots()));
    let planned = planned.map(|planned| of_kind("planned", planned.into()));
    [Some(of_kind("done", done.into())), planned].into_iter().flatten().collect()
}

fn progress(run: &Run) -> Points {
    let share = run.history(|h| {
        let shot = h.shots.values().next_back()?;
        // One that is committed is the present one until the next is opened.
        if shot.committed.is_some() { Some(1.0) } else { share_done(run.spec(), h, shot) }
    });
    share.map(|share| (share, Vec::new())).into_iter().collect()
}

/// Returns the share of a shot's tasks that are in the journal.
fn share_done(spec: &RunSpec, history: &History, shot: &ShotHistory) -> Option<f64> {
    let model = &history.prepared.as_ref()?.model;
    let (blocks, passes) = (model.blocks.len(), spec.passes() as usize);
    let of_round = 2 * blocks;
    let total = shard_plan(spec, model).len() * (passes + 1) + blocks * passes + of_round * spec.rounds.max(1) as usize;
    let of_blocks = shot.scored.len() + shot.updated.len() + of_round * shot.rounds.len();
    let done = shot.settled_sweeps(spec.passes()) + shot.weighed.len() + of_blocks;
    Some((done as f64 / total.max(1) as f64).min(1.0))
}

fn size(run: &Run) -> Points {
    let target = run.spec().target;
    let sizes = run.history(|h| Some((h.sizes(0)?, h.sizes(h.shots_done())?)));
    sizes.map_or_else(Vec::new, |(dense, now)| {
        let whole = dense.measured_by(&target).max(1) as f64;
        let of_dense = |size: u64| size as f64 / whole;
        vec![of_kind("current", of_dense(now.measured_by(&target))), of_kind("target", of_dense(target.limit(&dense)))]
    })
}

fn loss(run: &Run) -> Points {
    run.history(|h| {
        let dense = h.evaluations.get(&0).map(|e| of_kind("dense", e.evaluation.loss));
        let last = h.evaluations.values().next_back().map(|e| of_kind("current", e.evaluation.loss));
        dense.into_iter().chain(last).collect()
    })
}

fn threshold(run: &Run) -> Points {
    let last = run.history(|h| h.shots.values().rev().find_map(|shot| shot.cut.as_ref()?.threshold));
    last.map(|threshold| (threshold, Vec::new())).into_iter().collect()
}

fn damping(run: &Run) -> Points {
    let largest = run.history(|h| {
        let of_cuts = h.shots.values().filter_map(|shot| shot.cut.as_ref()).map(|cut| cut.largest_damping);
        of_cuts.reduce(f64::max)
    });
    largest.map(|damping| (damping, Vec::new())).into_iter().collect()
}

fn idle(run: &Run) -> Points {
    vec![(run.idle().as_secs_f64(), Vec::new())]
}

fn stage_time(run: &Run) -> Points {
    let mut times: BTreeMap<&'static str, f64> = PHASES.map(|phase| (phase, 0.0)).into_iter().collect();
    run.history(|h| {
        let mut add = |phase, seconds: f64| *times.entry(phase).or_default() += seconds;
        h.prepared.iter().for_each(|p| add("prepare", p.seconds));
        h.evaluations.values().for_each(|e| add("evaluate", e.seconds));
        h.materialised.values().for_each(|m| add("materialise", m.seconds));
        for shot in h.shots.values() {
            shot.shards.values().for_each(|s| add("calibrate", s.seconds.total));
            shot.weighed.values().for_each(|b| add("weigh", b.seconds));
            shot.scored.values().for_each(|b| add("score", b.seconds));
            shot.refined.values().for_each(|b| add("refine", b.seconds));
            shot.updated.values().for_each(|b| add("update", b.seconds));
            shot.corrected.iter().for_each(|c| add("correct", c.seconds));
        }
    });
    times.into_iter().map(|(phase, time)| (time, vec![KeyValue::new("phase", phase)])).collect()
}
