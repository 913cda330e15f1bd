//! Stages 6 and 7: the held-out loss after a shot, and the smaller model at the end.

use super::{invalid, prepared, wrong_result};
use crate::error::RunError;
use crate::event::{Evaluated, Event, History, Materialised};
use crate::report;
use crate::run::Run;
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::task::Work;
use types::{Evaluation, Target};

/// Measures the held-out loss after `shot` (0: the dense model), if there is held-out data.
#[tracing::instrument(skip_all, fields(run = %run.id(), shot = shot))]
pub(crate) async fn evaluate(run: &Run, shot: u32) -> Result<(), RunError> {
    let Some(data) = prepared(run)?.eval_data else { return Ok(()) };
    if run.history(|h| h.evaluations.contains_key(&shot)) {
        return Ok(());
    }
    let checkpoint = run.history(|h| h.checkpoint(shot));
    let dtype = run.spec().dtype.to_string();
    run.perform(shot, v1::WorkerRole::Calibrator, Work::Evaluate(v1::EvaluateTask { checkpoint }), |result, _| {
        let TaskResult::Evaluate(r) = result else { return Err(wrong_result("evaluate")) };
        if !r.loss.is_finite() {
            return Err(invalid("result of evaluate", "the loss is not finite"));
        }
        let evaluation = Evaluation {
            loss: r.loss,
            perplexity: r.loss.exp(),
            segments: r.segments,
            segments_in_data: r.segments_in_data,
            seq_len: data.seq_len,
            dtype,
            data,
        };
        let peak_memory = r.peak_memory_bytes;
        Ok(Event::Evaluated(Evaluated { shot, evaluation, tokens: r.tokens, seconds: r.seconds, peak_memory }))
    })
    .await
}

/// Has the folder for the size after `shot` written and proved to load, if one is wanted: the output after the last shot.
#[tracing::instrument(skip_all, fields(run = %run.id(), shot = shot))]
pub(crate) async fn materialise(run: &Run, shot: u32) -> Result<(), RunError> {
    let spec = run.spec();
    let output = if run.history(|h| h.is_last(shot)) { Some(spec.output.clone()) } else { waypoint(run, shot)? };
    let Some(output) = output else { return Ok(()) };
    if run.history(|h| h.materialised.contains_key(&shot)) {
        return Ok(());
    }
    let report = run.history(|h| report::build(run.id(), run.spec(), h));
    let report = report.ok_or_else(|| invalid("journal", "a report was asked for before the run was prepared"))?;
    let report_json = serde_json::to_string_pretty(&report).map_err(|e| invalid("report", e.to_string()))?;
    let checkpoint = run.history(|h| h.checkpoint(shot));
    let shape = v1::Shape::from(run.history(History::shape)).into();
    let work = Work::Materialise(v1::MaterialiseTask { checkpoint, report_json, output, shape });
    run.perform(shot, v1::WorkerRole::Surgeon, work, |result, seconds| {
        let TaskResult::Materialise(r) = result else { return Err(wrong_result("materialise")) };
        Ok(Event::Materialised(Materialised {
            shot,
            output: r.output,
            blake3: r.blake3,
            bytes: r.bytes,
            logit_difference: r.logit_difference,
            seconds,
            peak_memory: r.peak_memory_bytes,
        }))
    })
    .await
}

/// Returns the folder of the waypoint that `shot` ends at, if it does.
pub(super) fn waypoint(run: &Run, shot: u32) -> Result<Option<String>, RunError> {
    let spec = run.spec();
    let dense = prepared(run)?.model.dense;
    let limit = run.history(|h| h.shots.get(&shot).map(|s| s.limit));
    let ends = |w: &&f64| Some(Target::Size(**w).limit(&dense)) == limit;
    Ok(spec.waypoints.iter().find(ends).map(|w| spec.output_at(*w)))
}
