//! The report: the journal's history as one document. Pure; holds no times, so that equal runs give equal bytes.

use crate::event::{Evaluated, History, Prepared};
use crate::stages::left_out;
use types::{Evaluation, KeptUnits, RunId, RunReport, RunSpec, Shape, ShotReport, UnitKind};

/// Tokens per column of the widest factor below which its smallest eigenvalues are mostly noise.
const TOKENS_PER_COLUMN: u64 = 4;

/// Returns the report of a run, or `None` before it was prepared.
pub(crate) fn build(run: &RunId, spec: &RunSpec, history: &History) -> Option<RunReport> {
    let prepared = history.prepared.as_ref()?;
    let last = history.shots_done();
    let evaluation = |shot: u32| history.evaluations.get(&shot).map(|e: &Evaluated| e.evaluation.clone());
    let layers = history.checkpoint_after(last).layers.into_iter();
    let kept = layers.filter(|l| l.kind != UnitKind::Whole).map(|l| KeptUnits {
        layer: l.layer,
        kind: l.kind,
        kept: l.kept,
        kept_rows: l.kept_rows,
    });
    Some(RunReport {
        format: RunReport::FORMAT,
        program: format!("llm-surgeon {}", proto::VERSION),
        run: run.to_string(),
        spec: spec.clone(),
        family: prepared.model.family.clone(),
        model_digest: prepared.model.digest.clone(),
        data: prepared.data.clone(),
        before: prepared.model.dense,
        after: history.sizes(last).unwrap_or(prepared.model.dense),
        shape_choice: history.shape_choice().cloned(),
        evaluation_before: evaluation(0),
        evaluation_after: evaluation(last),
        shots: shots(history),
        kept: kept.collect(),
        warnings: warnings(prepared, history),
    })
}

/// Returns the committed shots of a run, the first first.
pub(crate) fn shots(history: &History) -> Vec<ShotReport> {
    let evaluation = |shot: u32| history.evaluations.get(&shot).map(|e: &Evaluated| e.evaluation.clone());
    history.shots.keys().filter_map(|shot| shot_report(*shot, history, evaluation(*shot))).collect()
}

fn shot_report(shot: u32, history: &History, evaluation: Option<Evaluation>) -> Option<ShotReport> {
    let known = history.shots.get(&shot)?;
    let (cut, committed) = (known.cut.as_ref()?, known.committed.as_ref()?);
    Some(ShotReport {
        shot,
        limit: known.limit,
        taken_back: known.taken_back,
        sizes: committed.sizes,
        threshold: cut.threshold,
        calibration_loss: known.calibration_loss().unwrap_or(0.0),
        predicted: committed.predicted,
        predicted_other_shape: cut.predicted_other_shape,
        correction: known.corrected.as_ref().map(|c| c.report),
        evaluation,
        layers: committed.layers.clone(),
    })
}

/// Returns what a reader of the figures should know.
fn warnings(prepared: &Prepared, history: &History) -> Vec<String> {
    let mut warnings = Vec::new();
    let wanted = prepared.model.blocks.iter().flat_map(|b| &b.layers).filter(|l| l.curvature);
    let widest = wanted.map(|l| (l.columns + u64::from(l.bias)).max(l.rows)).max().unwrap_or(0);
    let tokens = prepared.data.samples * prepared.data.seq_len;
    if tokens < TOKENS_PER_COLUMN * widest {
        warnings.push(format!(
            "{tokens} calibration tokens for factors up to {widest} wide: fewer than {TOKENS_PER_COLUMN} a column, costs are noisy"
        ));
    }
    if let Some(eval) = &prepared.eval_data
        && eval.overlap > 0
    {
        warnings.push(format!(
            "{} held-out documents are also calibration data: the held-out figures are too good",
            eval.overlap
        ));
    }
    if history.shape() == Shape::Padded {
        warnings.push(
            "widths are padded with zeros to those of the widest block: the folder is larger than the sizes said here"
                .to_owned(),
        );
    }
    for (shot, known) in &history.shots {
        if !known.quarantined.is_empty() {
            warnings.push(format!(
                "shot {shot}: {} calibration samples were left out, the loss or a gradient in their shards is not finite: {}",
                known.poisoned(),
                left_out(known.quarantined.values())
            ));
        }
        if let Some(cut) = known.cut.as_ref().filter(|c| c.damped_layers > 0) {
            warnings.push(format!(
                "shot {shot}: {} layers needed more damping than asked for, up to {} of the mean of the diagonal",
                cut.damped_layers, cut.largest_damping
            ));
        }
    }
    warnings
}
