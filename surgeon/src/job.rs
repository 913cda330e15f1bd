//! A leased task as domain values, parsed once.

use proto::convert::{Fields, InvalidMessage};
use proto::v1;
use service::telemetry::trace;
use types::{Generation, RunId, RunSpec, Shape};

const TASK: Fields = Fields("Task");
const UPDATE: Fields = Fields("UpdateTask");
/// Most shards of a run.
const MAX_SHARDS: u32 = 1 << 16;

/// One task for a surgeon.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The run.
    pub(crate) run: RunId,
    /// Its shot.
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

/// What a surgeon can do.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    /// Gather one block's sums of a pass, and compute nothing yet.
    Gather {
        /// Which block.
        block: Block,
        /// The pass.
        pass: u32,
    },
    /// Gather one block's sums of a pass of a power iteration, store what weighs its tokens in the next.
    Weigh {
        /// Which block.
        block: Block,
        /// The pass.
        pass: u32,
    },
    /// Gather one block's factors, compute its layers' paths, or count the first digits of their costs.
    Score(Block),
    /// Count the second digits of the costs that begin with one.
    Refine {
        /// Which block.
        block: Block,
        /// First digit of the threshold.
        digit: u16,
    },
    /// Carry out the cut in one block.
    Update {
        /// Which block.
        block: Block,
        /// Key of its paths; not read for single weights.
        scores: String,
    },
    /// Write the final folder.
    Materialise {
        /// Key of the checkpoint's manifest; `None` for the base model.
        checkpoint: Option<String>,
        /// Content of `pruning_report.json`.
        report_json: String,
        /// Folder to write.
        output: String,
        /// Of what shape.
        shape: Shape,
    },
}

/// One block of the model before this shot's cut.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// Its number.
    pub(crate) number: u32,
    /// Key of the checkpoint's manifest; `None` for the base model.
    pub(crate) checkpoint: Option<String>,
    /// Shards its factors come in.
    pub(crate) shards: u32,
    /// The shot's round.
    pub(crate) round: u32,
    /// Shards that do not count, rising, by their numbers in the first pass.
    pub(crate) quarantined: Vec<u32>,
}

impl Job {
    /// Returns the span that everything about this task happens in.
    pub(crate) fn span(&self) -> tracing::Span {
        let (run, shot, generation) = (&self.run, self.shot, self.generation);
        let span = match &self.work {
            Work::Gather { block, pass } if *pass == self.spec.passes() => {
                tracing::info_span!("score", %run, shot, %generation, block = block.number)
            }
            Work::Gather { block, pass } | Work::Weigh { block, pass } => {
                tracing::info_span!("weigh", %run, shot, %generation, block = block.number, pass)
            }
            Work::Score(b) => tracing::info_span!("score", %run, shot, %generation, block = b.number),
            Work::Refine { block, .. } => tracing::info_span!("refine", %run, shot, %generation, block = block.number),
            Work::Update { block, .. } => tracing::info_span!("update", %run, shot, %generation, block = block.number),
            Work::Materialise { .. } => tracing::info_span!("materialise", %run, shot, %generation),
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
            Wire::Weigh(v1::WeighTask { block, checkpoint, shards, pass, quarantined, gather_only }) => {
                if pass >= spec.passes() {
                    return Err(TASK.bad("pass", "has no pass after it"));
                }
                let block = Block::new(block, checkpoint, (shards, quarantined))?;
                if gather_only { Work::Gather { block, pass } } else { Work::Weigh { block, pass } }
            }
            Wire::Score(v1::ScoreTask { block, checkpoint, shards, round, quarantined, gather_only }) => {
                let block = Block { round, ..Block::new(block, checkpoint, (shards, quarantined))? };
                if gather_only { Work::Gather { block, pass: spec.passes() } } else { Work::Score(block) }
            }
            Wire::Refine(v1::RefineTask { block, checkpoint, shards, digit, round, quarantined }) => Work::Refine {
                block: Block { round, ..Block::new(block, checkpoint, (shards, quarantined))? },
                digit: u16::try_from(digit).map_err(|_| TASK.bad("digit", "has more than 16 bits"))?,
            },
            Wire::Update(v1::UpdateTask { block, checkpoint, shards, scores, quarantined }) => Work::Update {
                block: Block::new(block, checkpoint, (shards, quarantined))?,
                scores: UPDATE.text("scores", scores, proto::convert::MAX_TEXT)?,
            },
            Wire::Materialise(v1::MaterialiseTask { checkpoint, report_json, output, shape }) => Work::Materialise {
                checkpoint: present(checkpoint),
                shape: TASK.choice::<v1::Shape, _>("shape", shape, Shape::ALL)?,
                report_json,
                output: TASK.short("output", output, proto::convert::MAX_TEXT)?,
            },
            Wire::Prepare(_) | Wire::Calibrate(_) | Wire::Correct(_) | Wire::Evaluate(_) => {
                return Err(TASK.bad("work", "is a calibrator's, this is a surgeon"));
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

impl Block {
    fn new(number: u32, checkpoint: String, (shards, quarantined): (u32, Vec<u32>)) -> Result<Self, InvalidMessage> {
        if shards == 0 || shards > MAX_SHARDS {
            return Err(TASK.bad("shards", format!("{shards} is outside 1 to {MAX_SHARDS}")));
        }
        let quarantined = TASK.rising("quarantined", quarantined)?;
        if quarantined.last().is_some_and(|last| *last >= shards) || quarantined.len() == shards as usize {
            return Err(TASK.bad("quarantined", format!("leaves none of the {shards} shards, or names another")));
        }
        Ok(Self { number, checkpoint: present(checkpoint), shards, round: 0, quarantined })
    }

    /// Says whether a shard counts, by its number in whichever pass.
    pub(crate) fn counts(&self, shard: u32) -> bool {
        self.quarantined.binary_search(&(shard % self.shards)).is_err()
    }
}

/// Returns a key, unless it is empty: the base model has no manifest.
fn present(key: String) -> Option<String> {
    (!key.is_empty()).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_that_are_not_ours_or_say_nothing_are_refused() {
        let task = |work| v1::Task { work, run: "r".into(), ..Default::default() };
        assert!(Job::try_from(task(None)).is_err());
        assert!(Job::try_from(task(Some(v1::task::Work::Prepare(v1::PrepareTask { resumes: true })))).is_err());
        let no_shards = v1::ScoreTask { block: 1, ..Default::default() };
        assert!(Job::try_from(task(Some(v1::task::Work::Score(no_shards)))).is_err());
    }

    #[test]
    fn quarantined_shards_count_in_no_pass_and_are_never_all() {
        let block = |quarantined: &[u32]| Block::new(0, String::new(), (4, quarantined.to_vec()));
        let counted: Vec<u32> = (0..8).filter(|shard| block(&[1, 2]).unwrap().counts(*shard)).collect();
        assert_eq!(counted, [0, 3, 4, 7]);
        for bad in [&[2, 1][..], &[1, 1], &[4], &[0, 1, 2, 3]] {
            assert!(block(bad).is_err(), "{bad:?}");
        }
    }
}
