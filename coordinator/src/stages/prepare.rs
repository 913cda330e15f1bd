//! Model, data and target are checked before anything expensive; each shot opens with its size.

use super::{bad_message, invalid, prepared, wrong_result};
use crate::error::RunError;
use crate::event::{Event, History, Prepared};
use crate::run::Run;
use planning::schedule;
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::task::Work;
use types::{ModelDescription, Schedule, Sizes, Target, format_bytes};

/// Has a calibrator describe model and data; when the run goes on, makes sure that they are what they were.
#[tracing::instrument(skip_all, fields(run = %run.id()))]
pub(crate) async fn prepare(run: &Run) -> Result<(), RunError> {
    if run.history(|h| h.written().is_some()) {
        return Ok(());
    }
    let before = run.history(|h| h.prepared.clone());
    let work = Work::Prepare(v1::PrepareTask { resumes: before.is_some() });
    run.perform(0, v1::WorkerRole::Calibrator, work, |result, seconds| {
        let found = described(result, seconds)?;
        if let Some(before) = &before {
            unchanged(before, &found)?;
        }
        check_target(run, &found)?;
        Ok(Event::Prepared(found))
    })
    .await
}

/// Opens a shot with the schedule's size.
pub(crate) async fn open(run: &Run, shot: u32) -> Result<(), RunError> {
    if run.history(|h| h.shots.contains_key(&shot)) {
        return Ok(());
    }
    let dense = prepared(run)?.model.dense;
    let spec = run.spec();
    if spec.schedule == Schedule::Adaptive {
        return run.record(Event::ShotOpened { shot, limit: History::UNDECIDED }).await;
    }
    let waypoints: Vec<u64> = spec.waypoints.iter().map(|w| Target::Size(*w).limit(&dense)).collect();
    let (whole, target) = (dense.measured_by(&spec.target), spec.target.limit(&dense));
    let limits = schedule::limits_through(whole, &waypoints, target, spec.shots, spec.schedule)
        .map_err(|source| RunError::Cut { shot, source })?;
    let limit = usize::try_from(shot - 1).ok().and_then(|i| limits.get(i).copied());
    let limit = limit.ok_or_else(|| invalid("schedule", format!("it has no shot {shot}")))?;
    run.record(Event::ShotOpened { shot, limit }).await
}

fn described(result: TaskResult, seconds: f64) -> Result<Prepared, RunError> {
    let TaskResult::Prepare(found) = result else { return Err(wrong_result("prepare")) };
    let bad = bad_message("result of prepare");
    Ok(Prepared {
        model: proto::convert::required("model", found.model).map_err(&bad)?.try_into().map_err(&bad)?,
        data: proto::convert::required("data", found.data).map_err(&bad)?.try_into().map_err(&bad)?,
        eval_data: found.eval_data.map(TryInto::try_into).transpose().map_err(&bad)?,
        seconds,
    })
}

pub(super) fn unchanged(before: &Prepared, found: &Prepared) -> Result<(), RunError> {
    // What can be written hangs on the format, which runs on the same paths may differ in.
    let written_anyhow =
        |model: &ModelDescription| ModelDescription { own_widths_refused: String::new(), ..model.clone() };
    let same = [
        ("the model", written_anyhow(&before.model) == written_anyhow(&found.model)),
        ("the calibration data", before.data == found.data),
        ("the held-out data", before.eval_data == found.eval_data),
    ];
    match same.into_iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(RunError::Changed { what }),
        None => Ok(()),
    }
}

/// Refuses a target that the units cannot reach.
fn check_target(run: &Run, found: &Prepared) -> Result<(), RunError> {
    let spec = run.spec();
    let dense = found.model.dense;
    let (limit, whole) = (spec.target.limit(&dense), dense.measured_by(&spec.target));
    if limit == 0 {
        return Err(RunError::Target("the target leaves nothing of the model".into()));
    }
    if spec.structure.keeps_shapes() || limit >= whole {
        return Ok(());
    }
    let smallest = found.model.smallest(spec.multiple_of);
    if smallest.measured_by(&spec.target) <= limit {
        return Ok(());
    }
    Err(RunError::Target(too_small(spec.target, &dense, &smallest)))
}

fn too_small(target: Target, dense: &Sizes, smallest: &Sizes) -> String {
    let advice = "ask for more, or lower --multiple-of";
    match target {
        Target::Size(asked) => {
            let least = smallest.prunable as f64 / dense.prunable as f64;
            format!(
                "target size {asked} is below what can remain: the units leave at least {least:.3} of the prunable weights; {advice}"
            )
        }
        Target::Parameters(asked) => format!(
            "target of {asked} parameters is below what can remain: at least {} (embeddings and norms are never removed); {advice}",
            smallest.parameters
        ),
        Target::Bytes(asked) => format!(
            "target of {} is below what can remain: at least {} (embeddings and norms are never removed); {advice}",
            format_bytes(asked),
            format_bytes(smallest.bytes)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::DataDescription;

    fn prepared(refused: &str, digest: &str) -> Prepared {
        let model = ModelDescription {
            family: "qwen3".into(),
            digest: digest.into(),
            hidden: 1,
            vocabulary: 1,
            max_positions: 1,
            dense: Sizes::default(),
            blocks: vec![],
            own_widths_refused: refused.into(),
        };
        let data = DataDescription {
            digest: String::new(),
            tokenizer_digest: String::new(),
            documents: 1,
            skipped: 0,
            tokens: 1,
            samples: 1,
            sets: 1,
            seq_len: 2,
            overlap: 0,
            bos: false,
        };
        Prepared { model, data, eval_data: None, seconds: 0.0 }
    }

    #[test]
    fn kept_paths_are_of_the_same_model_whatever_format_is_asked_for() {
        assert!(unchanged(&prepared("", "a"), &prepared("no architecture has both", "a")).is_ok());
        assert!(unchanged(&prepared("", "a"), &prepared("", "b")).is_err());
    }
}
