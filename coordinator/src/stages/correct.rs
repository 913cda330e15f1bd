//! Stage 5, if asked for: a few steps of low rank win back part of what the cut has cost.

use super::calibrate::first_sample;
use super::{bad_message, invalid, prepared, put_manifest, wrong_result};
use crate::error::RunError;
use crate::event::{Event, ShotCorrected};
use crate::run::Run;
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::task::Work;
use service::keys;
use types::{Checkpoint, CorrectionReport, LayerId, LayerState};

/// Has the shot's checkpoint corrected; the corrected one takes its place. Nothing for rank 0.
#[tracing::instrument(skip_all, fields(run = %run.id(), shot = shot))]
pub(crate) async fn correct(run: &Run, shot: u32) -> Result<(), RunError> {
    if run.spec().correct_rank == 0 {
        return Ok(());
    }
    if run.history(|h| h.shots.get(&shot).is_none_or(|s| s.corrected.is_none())) {
        let (before, checkpoint) = run.history(|h| (h.checkpoint_after(shot), h.checkpoint(shot)));
        let first_sample = first_sample(run, shot)?;
        let left_out = run.history(|h| {
            let shards = h.shots.get(&shot).into_iter().flat_map(|s| s.quarantined.values());
            shards.map(|q| v1::SampleRange { first_sample: q.first_sample, samples: q.samples }).collect()
        });
        let work = Work::Correct(v1::CorrectTask { checkpoint: checkpoint.clone(), first_sample, left_out });
        run.perform(shot, v1::WorkerRole::Calibrator, work, |result, seconds| {
            corrected(run, (shot, seconds), (before, checkpoint), result).map(Event::ShotCorrected)
        })
        .await?;
    }
    // After the record, so that a kill between the two is cured by coming here again.
    let (key, checkpoint) = run.history(|h| (h.checkpoint(shot), h.checkpoint_after(shot)));
    put_manifest(run, &key, &checkpoint).await
}

fn corrected(
    run: &Run,
    (shot, seconds): (u32, f64),
    (before, checkpoint): (Checkpoint, String),
    result: TaskResult,
) -> Result<ShotCorrected, RunError> {
    let TaskResult::Correct(r) = result else { return Err(wrong_result("correct")) };
    let bad = bad_message("result of correct");
    let new: Vec<LayerState> = r.layers.into_iter().map(TryInto::try_into).collect::<Result<_, _>>().map_err(&bad)?;
    let report = CorrectionReport {
        loss_before: r.loss_before,
        loss_after: r.loss_after,
        steps_done: r.steps_done,
        steps_kept: r.steps_kept,
    };
    if !(report.loss_before.is_finite() && report.loss_after <= report.loss_before) {
        return Err(invalid("result of correct", "a correction that raises the loss must not be kept"));
    }
    let taken_back = run.history(|h| h.shots.get(&shot).map_or(0, |s| s.taken_back));
    let (checkpoint, layers) = match new.as_slice() {
        [] => (checkpoint, before.layers),
        _ => (keys::corrected(run.id(), shot, taken_back), in_block_order(run, &before, &new)?),
    };
    Ok(ShotCorrected { shot, checkpoint, layers, report, seconds, peak_memory: r.peak_memory_bytes })
}

/// Returns the new states in the place of the old ones, in the order of the model's layers.
fn in_block_order(run: &Run, before: &Checkpoint, new: &[LayerState]) -> Result<Vec<LayerState>, RunError> {
    let model = prepared(run)?.model;
    let find = |layer: &LayerId| new.iter().find(|s| s.layer == *layer).or_else(|| before.layer(layer)).cloned();
    Ok(model.blocks.iter().flat_map(|b| &b.layers).filter_map(|l| find(&l.layer)).collect())
}
