//! A leased task as domain values, parsed once.

use proto::convert::{Fields, InvalidMessage};
use proto::v1;
use service::telemetry::trace;
use std::ops::Range;
use types::{Generation, RunId, RunSpec};

/// Samples of a run, as in [`RunSpec::validated`].
const MAX_SAMPLES: u64 = 10_000_000;
const TASK: Fields = Fields("Task");
const CALIBRATE: Fields = Fields("CalibrateTask");

/// One task for a calibrator.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The run.
    pub(crate) run: RunId,
    /// Its shot; 0 before the first.
    pub(crate) shot: u32,
    /// The attempt.
    pub(crate) generation: Generation,
    /// Everything that can change a number.
    pub(crate) spec: RunSpec,
    /// What to do.
    pub(crate) work: Work,
    /// Where in its run's traces it belongs.
    pub(crate) traceparent: String,
}

/// What a calibrator can do.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// Check and describe model and data.
    Prepare {
        /// Whether the run was prepared before: then its output may exist.
        resumes: bool,
    },
    /// Sweep one shard.
    Calibrate(Calibrate),
    /// Correct a checkpoint.
    Correct {
        /// Key of the checkpoint's manifest.
        checkpoint: Option<String>,
        /// First of its samples.
        first_sample: usize,
        /// Samples that are not learnt from.
        left_out: Vec<Range<usize>>,
    },
    /// Score the held-out data.
    Evaluate {
        /// Key of the checkpoint's manifest; `None` for the base model.
        checkpoint: Option<String>,
    },
}

/// One sweep.
#[derive(Debug, Clone)]
pub(crate) struct Calibrate {
    /// The shard.
    pub(crate) shard: u32,
    /// Its first sample.
    pub(crate) first_sample: usize,
    /// How many samples it has.
    pub(crate) samples: usize,
    /// Key of the checkpoint's manifest; `None` for the base model.
    pub(crate) checkpoint: Option<String>,
    /// Blocks whose factors are wanted.
    pub(crate) blocks: Vec<u32>,
    /// Samples a micro-batch.
    pub(crate) micro_batch: usize,
    /// Which pass over the shard: 0 for plain factors, later ones for a power iteration.
    pub(crate) pass: u32,
}

impl Job {
    /// Returns the span that everything about this task happens in.
    pub(crate) fn span(&self) -> tracing::Span {
        let (run, shot, generation) = (&self.run, self.shot, self.generation);
        let span = match &self.work {
            Work::Prepare { .. } => tracing::info_span!("prepare", %run, shot, %generation),
            Work::Calibrate(c) => tracing::info_span!("calibrate", %run, shot, %generation, shard = c.shard),
            Work::Correct { .. } => tracing::info_span!("correct", %run, shot, %generation),
            Work::Evaluate { .. } => tracing::info_span!("evaluate", %run, shot, %generation),
        };
        trace::continues(&span, &self.traceparent);
        span
    }
}

impl TryFrom<v1::Task> for Job {
    type Error = InvalidMessage;

    fn try_from(task: v1::Task) -> Result<Self, InvalidMessage> {
        use v1::task::Work as Wire;
        let spec: RunSpec = TASK.nested("spec", task.spec)?;
        let work = match TASK.required("work", task.work)? {
            Wire::Prepare(v1::PrepareTask { resumes }) => Work::Prepare { resumes },
            Wire::Calibrate(calibrate) if calibrate.pass > spec.passes() => {
                return Err(CALIBRATE.bad("pass", "is more than the run's half-steps"));
            }
            Wire::Calibrate(calibrate) => Work::Calibrate(calibrate.try_into()?),
            Wire::Correct(v1::CorrectTask { checkpoint, first_sample, left_out }) => Work::Correct {
                checkpoint: present(checkpoint),
                first_sample: TASK.number("first_sample", first_sample, MAX_SAMPLES)? as usize,
                left_out: left_out.into_iter().map(range).collect::<Result<_, _>>()?,
            },
            Wire::Evaluate(v1::EvaluateTask { checkpoint }) => Work::Evaluate { checkpoint: present(checkpoint) },
            Wire::Weigh(_) | Wire::Score(_) | Wire::Refine(_) | Wire::Update(_) | Wire::Materialise(_) => {
                return Err(TASK.bad("work", "is a surgeon's, this is a calibrator"));
            }
        };
        Ok(Self {
            run: TASK.run("run", &task.run)?,
            shot: task.shot,
            generation: Generation(task.generation),
            spec,
            work,
            traceparent: task.traceparent,
        })
    }
}

impl TryFrom<v1::CalibrateTask> for Calibrate {
    type Error = InvalidMessage;

    fn try_from(task: v1::CalibrateTask) -> Result<Self, InvalidMessage> {
        CALIBRATE.at_most("blocks", task.blocks.len(), proto::convert::MAX_BLOCKS, "blocks")?;
        if task.samples == 0 || task.micro_batch == 0 {
            return Err(CALIBRATE.bad("samples", "samples and micro_batch must be above 0"));
        }
        Ok(Self {
            shard: task.shard,
            first_sample: CALIBRATE.number("first_sample", task.first_sample, MAX_SAMPLES)? as usize,
            samples: CALIBRATE.number("samples", task.samples, MAX_SAMPLES)? as usize,
            checkpoint: present(task.checkpoint),
            blocks: task.blocks,
            micro_batch: task.micro_batch as usize,
            pass: task.pass,
        })
    }
}

fn range(range: v1::SampleRange) -> Result<Range<usize>, InvalidMessage> {
    let first = TASK.number("left_out.first_sample", range.first_sample, u64::from(u32::MAX))? as usize;
    Ok(first..first + TASK.number("left_out.samples", range.samples, MAX_SAMPLES)? as usize)
}

/// Returns a key, unless it is empty: the base model has no manifest.
fn present(key: String) -> Option<String> {
    (!key.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_checkpoint_is_the_base_model() {
        let task = v1::CalibrateTask { samples: 2, micro_batch: 1, blocks: vec![1, 0], ..Default::default() };
        assert_eq!(Calibrate::try_from(task.clone()).unwrap().checkpoint, None);
        let later = v1::CalibrateTask { checkpoint: "runs/r/shots/0001/checkpoint".into(), ..task };
        assert!(Calibrate::try_from(later).unwrap().checkpoint.is_some());
    }

    #[test]
    fn tasks_that_are_not_ours_or_say_nothing_are_refused() {
        let task = |work| v1::Task { work, run: "r".into(), ..Default::default() };
        assert!(Job::try_from(task(None)).is_err());
        assert!(Job::try_from(task(Some(v1::task::Work::Score(v1::ScoreTask::default())))).is_err());
        assert!(Job::try_from(task(Some(v1::task::Work::Calibrate(v1::CalibrateTask::default())))).is_err());
    }
}
