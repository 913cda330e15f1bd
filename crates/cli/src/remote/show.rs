//! Runs and workers as tables for people and as JSON for programs.

use crate::prune::run_id;
use crate::text::{Align, Table, percent};
use proto::v1;
use serde::Serialize;

/// A run, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Run {
    #[serde(rename = "run")]
    name: String,
    state: &'static str,
    model: String,
    output: String,
    shots_done: u32,
    shots: u32,
    /// Prunable weights before and now, once they are known.
    prunable: Option<(u64, u64)>,
    reason_code: String,
    reason: String,
}

impl From<&v1::Run> for Run {
    fn from(run: &v1::Run) -> Self {
        let spec = run.spec.clone().unwrap_or_default();
        Self {
            name: run_id(&run.name).to_owned(),
            state: state(run.state()),
            model: spec.model,
            output: spec.output,
            shots_done: run.shots_done,
            shots: spec.shots,
            prunable: run.before.as_ref().zip(run.now.as_ref()).map(|(b, n)| (b.prunable, n.prunable)),
            reason_code: run.reason_code.clone(),
            reason: run.reason.clone(),
        }
    }
}

/// Returns a state's name.
pub(super) fn state(state: v1::RunState) -> &'static str {
    match state {
        v1::RunState::Unspecified => "unknown",
        v1::RunState::Running => "running",
        v1::RunState::Queued => "queued",
        v1::RunState::Paused => "paused",
        v1::RunState::Succeeded => "succeeded",
        v1::RunState::Failed => "failed",
        v1::RunState::Cancelled => "cancelled",
    }
}

/// Returns runs as a table.
pub(super) fn runs(runs: &[Run]) -> String {
    if runs.is_empty() {
        return "no runs\n".to_owned();
    }
    let mut table = Table::new(&[Align::Left, Align::Left, Align::Right, Align::Right, Align::Left, Align::Left]);
    table.row(["run", "state", "shots", "left", "output", ""]);
    for run in runs {
        let left = run.prunable.map(|(before, now)| percent(now, before)).unwrap_or_default();
        let shots = format!("{}/{}", run.shots_done, run.shots);
        let why =
            if run.reason_code.is_empty() { String::new() } else { format!("[{}] {}", run.reason_code, run.reason) };
        table.row([run.name.clone(), run.state.to_owned(), shots, left, run.output.clone(), why]);
    }
    table.render(0)
}

/// A worker, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Worker {
    #[serde(rename = "worker")]
    name: String,
    role: &'static str,
    device: String,
    endpoint: String,
    tasks: u32,
    draining: bool,
}

impl From<&v1::Worker> for Worker {
    fn from(worker: &v1::Worker) -> Self {
        Self {
            name: worker.name.strip_prefix("workers/").unwrap_or(&worker.name).to_owned(),
            role: match worker.role() {
                v1::WorkerRole::Calibrator => "calibrator",
                v1::WorkerRole::Surgeon => "surgeon",
                v1::WorkerRole::Unspecified => "unknown",
            },
            device: worker.device.clone(),
            endpoint: worker.endpoint.clone(),
            tasks: worker.tasks,
            draining: worker.draining,
        }
    }
}

/// Returns workers as a table.
pub(super) fn workers(workers: &[Worker]) -> String {
    if workers.is_empty() {
        return "no workers; start calibrators and surgeons with --coordinator\n".to_owned();
    }
    let mut table = Table::new(&[Align::Left, Align::Left, Align::Left, Align::Right, Align::Left, Align::Left]);
    table.row(["worker", "role", "device", "tasks", "endpoint", ""]);
    for worker in workers {
        let draining = if worker.draining { "draining" } else { "" };
        let tasks = worker.tasks.to_string();
        table.row([&worker.name, worker.role, &worker.device, &tasks, &worker.endpoint, draining]);
    }
    table.render(0)
}
