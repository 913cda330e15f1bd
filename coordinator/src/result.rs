//! Whether a result can be that of a task. What cannot is refused before it gets to the run: in the journal a number that is
//! none would be `null`, which no coordinator reads back. Does not know what a good result is; the stages do.

use proto::convert::{Fields, InvalidMessage};
use proto::v1;
use proto::v1::complete_task_request::Result as TaskResult;
use proto::v1::task::Work;

const FIELDS: Fields = Fields("CompleteTaskRequest");

/// Refuses the result of another stage, and numbers that are none.
pub(crate) fn check(task: &v1::Task, result: &TaskResult, seconds: f64) -> Result<(), InvalidMessage> {
    if !task.work.as_ref().is_some_and(|work| is_of(work, result)) {
        return Err(FIELDS.bad("result", "it is the result of another stage"));
    }
    if task.work.as_ref().is_some_and(reports) && named(task, result).is_none() {
        return Err(FIELDS.bad("result", "it does not say where its report lies"));
    }
    if !(seconds.is_finite() && seconds >= 0.0) {
        return Err(FIELDS.bad("seconds", "it is no duration"));
    }
    if numbers(result).into_iter().any(|number| !number.is_finite()) {
        return Err(FIELDS.bad("result", "a number in it is not finite"));
    }
    Ok(())
}

/// Returns the object that a result names and that its worker must have reported.
pub(crate) fn named<'a>(task: &v1::Task, result: &'a TaskResult) -> Option<&'a v1::ObjectRef> {
    match result {
        TaskResult::Score(r) if task.work.as_ref().is_some_and(reports) => r.scores.as_ref(),
        TaskResult::Refine(r) => r.histograms.as_ref(),
        _ => None,
    }
}

/// Says whether a report goes before the result of a task.
pub(crate) fn reports(work: &Work) -> bool {
    match work {
        Work::Score(work) => !work.gather_only,
        Work::Refine(_) => true,
        _ => false,
    }
}

fn is_of(work: &Work, result: &TaskResult) -> bool {
    matches!(
        (work, result),
        (Work::Prepare(_), TaskResult::Prepare(_))
            | (Work::Calibrate(_), TaskResult::Calibrate(_))
            | (Work::Weigh(_), TaskResult::Weigh(_))
            | (Work::Score(_), TaskResult::Score(_))
            | (Work::Refine(_), TaskResult::Refine(_))
            | (Work::Update(_), TaskResult::Update(_))
            | (Work::Correct(_), TaskResult::Correct(_))
            | (Work::Evaluate(_), TaskResult::Evaluate(_))
            | (Work::Materialise(_), TaskResult::Materialise(_))
    )
}

/// Returns what of a result goes into the journal as a floating-point number.
fn numbers(result: &TaskResult) -> Vec<f64> {
    match result {
        TaskResult::Prepare(_) => vec![],
        TaskResult::Calibrate(r) => {
            vec![r.loss_sum, r.forward_seconds, r.head_seconds, r.backward_seconds, r.gram_seconds, r.wait_seconds]
        }
        TaskResult::Weigh(r) => vec![r.compute_seconds],
        TaskResult::Score(r) => vec![r.compute_seconds],
        TaskResult::Refine(r) => vec![r.compute_seconds],
        TaskResult::Update(r) => r.predicted.iter().copied().chain([r.compute_seconds]).collect(),
        TaskResult::Correct(r) => vec![r.loss_before, r.loss_after],
        TaskResult::Evaluate(r) => vec![r.loss, r.seconds],
        TaskResult::Materialise(r) => vec![r.logit_difference],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_journal_could_not_give_back_is_refused() {
        let task = |work| v1::Task { work: Some(work), ..v1::Task::default() };
        let sweep = task(Work::Calibrate(v1::CalibrateTask::default()));
        let swept = |loss_sum| TaskResult::Calibrate(v1::CalibrateResult { loss_sum, ..Default::default() });
        assert_eq!(check(&sweep, &swept(1.0), 0.0), Ok(()));
        for loss in [f64::NAN, f64::INFINITY] {
            assert!(check(&sweep, &swept(loss), 1.0).is_err());
        }
        for seconds in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(check(&sweep, &swept(1.0), seconds).is_err());
        }
        let score = task(Work::Score(v1::ScoreTask::default()));
        let scored = |scores| TaskResult::Score(v1::ScoreResult { scores, ..Default::default() });
        assert!(check(&score, &scored(None), 1.0).is_err(), "where is the report?");
        assert_eq!(check(&score, &scored(Some(v1::ObjectRef::default())), 1.0), Ok(()));
        let gather = task(Work::Score(v1::ScoreTask { gather_only: true, ..Default::default() }));
        assert_eq!(check(&gather, &scored(None), 1.0), Ok(()));
        let prepare = task(Work::Prepare(v1::PrepareTask::default()));
        assert!(check(&prepare, &swept(1.0), 1.0).is_err(), "the result of another stage");
        assert!(check(&v1::Task::default(), &swept(1.0), 1.0).is_err());
    }
}
