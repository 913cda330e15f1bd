//! Stage 1: the factors of every shard of the calibration data; for Kronecker sums in several passes, each weighed by
//! what the one before found.

use super::quarantine::Quarantine;
use super::score::weigh;
use super::{prepared, wrong_result};
use crate::error::RunError;
use crate::event::{Event, ShardCalibrated, SweepSeconds};
use crate::run::Run;
use futures::future::try_join_all;
use planning::assignment::{self, ShardPlan, Sweep};
use planning::retry::FailureClass;
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::task::Work;
use types::{LayerDescription, ModelDescription, RunSpec};

/// Returns how the run's calibration data is cut into shards: part of what fixes the order of all sums.
fn shards(run: &Run) -> Result<Vec<ShardPlan>, RunError> {
    Ok(shard_plan(run.spec(), &prepared(run)?.model))
}

/// Returns in how many shards one pass over a shot's samples comes.
pub(super) fn shard_count(run: &Run) -> Result<u32, RunError> {
    Ok(u32::try_from(shards(run)?.len()).unwrap_or(u32::MAX))
}

/// Returns how the calibration data of a run of `spec` on `model` is cut into shards.
pub fn shard_plan(spec: &RunSpec, model: &ModelDescription) -> Vec<ShardPlan> {
    let blocks = model.blocks.len() as u64;
    let widest = |of: fn(&LayerDescription) -> u64| {
        model.blocks.iter().flat_map(|b| &b.layers).map(of).max().unwrap_or(model.hidden)
    };
    assignment::shards(&Sweep {
        samples: spec.samples,
        seq_len: spec.seq_len,
        blocks,
        hidden: model.hidden,
        ffn: widest(|l| l.rows.max(l.columns)),
        attention: widest(|l| l.columns.min(l.rows)),
        dtype_bytes: spec.dtype.bytes(),
        boundary_bytes: spec.boundary_dtype.bytes(),
        // Boundary states of every draw are kept at once.
        memory: spec.memory / u64::from(spec.fisher_samples),
        max_batch_tokens: assignment::MAX_BATCH_TOKENS,
        min_shards: spec.shards.into(),
    })
}

/// Returns the first sample of a shot's set.
pub(super) fn first_sample(run: &Run, shot: u32) -> Result<u64, RunError> {
    let set = u64::from((shot - 1) % prepared(run)?.data.sets.max(1));
    Ok(set * run.spec().samples)
}

/// The passes of a shot's power iteration before the last, one after the other: sweep, and have the sums of each block
/// turned into what weighs its tokens in the pass after. None for the product of plain means.
pub(crate) async fn iterate(run: &Run, shot: u32) -> Result<(), RunError> {
    for pass in 0..run.spec().passes() {
        tokio::try_join!(sweep(run, shot, pass), weigh(run, shot, pass))?;
    }
    Ok(())
}

/// The shot's last pass, for most curvatures the only one.
#[tracing::instrument(skip_all, fields(run = %run.id(), shot = shot))]
pub(crate) async fn calibrate(run: &Run, shot: u32) -> Result<(), RunError> {
    sweep(run, shot, run.spec().passes()).await
}

/// Sweeps, in one pass, the shards whose sums are not all stored yet. Blocks that are done are swept over, not summed
/// again. A shard that has no finite loss or gradient is left out, if the run allows it, in this pass and in those after.
async fn sweep(run: &Run, shot: u32, pass: u32) -> Result<(), RunError> {
    let (shards, count) = (shards(run)?, shard_count(run)?);
    let known = run.history(|h| h.shots.get(&shot).cloned().unwrap_or_default());
    let all = count.saturating_mul(run.spec().passes() + 1);
    let left_out = |shard: u32| known.quarantined.contains_key(&(shard % count));
    let state = |shard: u32| {
        if known.shards.contains_key(&shard) {
            v1::ShardState::Stored
        } else if left_out(shard) {
            v1::ShardState::Quarantined
        } else {
            v1::ShardState::Waiting
        }
    };
    run.pool().open_plan(run.id().as_str(), shot, all, state);
    let checkpoint = run.history(|h| h.checkpoint(shot - 1));
    let set_starts = first_sample(run, shot)?;
    let is_done = |block: &u32| known.scored.contains_key(block) || known.weighed.contains_key(&(pass, *block));
    let blocks: Vec<u32> = prepared(run)?.model.blocks.iter().map(|b| b.block).filter(|b| !is_done(b)).collect();
    let numbers = pass * count..;
    let is_missing = |(n, _): &(u32, &ShardPlan)| !known.shards.contains_key(n) && !left_out(*n);
    let missing: Vec<(u32, &ShardPlan)> = numbers.zip(&shards).filter(is_missing).collect();
    let works = missing.iter().map(|(shard, plan)| {
        Work::Calibrate(v1::CalibrateTask {
            shard: *shard,
            first_sample: set_starts + plan.first_sample,
            samples: plan.samples,
            checkpoint: checkpoint.clone(),
            blocks: blocks.clone(),
            micro_batch: u32::try_from(plan.micro_batch).unwrap_or(u32::MAX),
            pass,
        })
    });
    let submitted = run.submit(shot, v1::WorkerRole::Calibrator, works.collect());
    let quarantine = &Quarantine::new(run, (shot, pass), (count, set_starts));
    let finished = submitted.into_iter().zip(&missing).map(|(task, (shard, plan))| async move {
        let to_event = |result, seconds| calibrated(shot, *shard, &result, seconds).map(Event::ShardCalibrated);
        match run.finish(task, to_event).await {
            Err(RunError::Task { failure, .. }) if failure.class == FailureClass::NotFinite => {
                quarantine.leave_out(*shard, plan, failure).await
            }
            other => other,
        }
    });
    try_join_all(finished).await.map(drop)
}

fn calibrated(shot: u32, shard: u32, result: &TaskResult, seconds: f64) -> Result<ShardCalibrated, RunError> {
    let TaskResult::Calibrate(r) = result else { return Err(wrong_result("calibrate")) };
    Ok(ShardCalibrated {
        shot,
        shard,
        loss_sum: r.loss_sum,
        targets: r.targets,
        tokens: r.tokens,
        seconds: SweepSeconds {
            total: seconds,
            forward: r.forward_seconds,
            head: r.head_seconds,
            backward: r.backward_seconds,
            gram: r.gram_seconds,
            wait: r.wait_seconds,
        },
        factor_bytes: r.factor_bytes,
        peak_memory: r.peak_memory_bytes,
    })
}
