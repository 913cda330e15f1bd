//! The end of a run in figures, from its journal. Does not compute any of them anew.

mod render;
mod timeline;

pub(crate) use render::protocol;
pub(crate) use timeline::Timeline;

use crate::text::shell_word;
use coordinator::event::{Evaluated, History, ShotHistory};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;
use types::{CorrectionReport, Evaluation, FactorDamping, RunSpec, Shape, Sizes, Structure};

/// The final object of `--json`, and what the table shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// Always `summary`, beside the journal's event names.
    event: &'static str,
    /// The run.
    pub(crate) run: String,
    /// Model family.
    family: String,
    structure: Structure,
    shape: Shape,
    /// Why, where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    shape_reason: Option<String>,
    /// Size before and after.
    before: Sizes,
    after: Sizes,
    /// Held-out loss, with its protocol.
    evaluation_before: Option<Evaluation>,
    evaluation_after: Option<Evaluation>,
    /// Speed of the held-out forward passes.
    tokens_per_second_before: Option<f64>,
    tokens_per_second_after: Option<f64>,
    /// Largest resident memory after the dense model was evaluated, and of the whole run; bytes.
    /// While the dense model was evaluated, and the pruned one.
    peak_memory_before: Option<u64>,
    peak_memory_after: Option<u64>,
    /// Of the whole run.
    peak_memory: u64,
    /// Seconds by stage.
    seconds: Timeline,
    /// Bytes of factors that went from calibrator to surgeon.
    factor_bytes: u64,
    shots: Vec<ShotSummary>,
    /// Predicted rise of the loss over all shots, for the shape asked for and for the other one; nats per token.
    predicted: f64,
    predicted_other_shape: Option<f64>,
    /// Damping of A and G, the largest that was used, and the layers that needed more than asked for.
    damping_asked: [f64; 2],
    largest_damping: f64,
    raised_layers: Vec<String>,
    /// Of Kronecker sums of two terms, the mean share of directions that are held at the floor.
    #[serde(skip_serializing_if = "Option::is_none")]
    floored: Option<f64>,
    warnings: Vec<String>,
    /// The final folder, its size and digest, and how far its logits are from those of the model in memory.
    pub(crate) output: String,
    output_bytes: u64,
    output_blake3: String,
    logit_difference: f64,
    /// Models written at larger sizes on the way.
    on_the_way: Vec<Written>,
    state: String,
    /// Whether the state holds what other sizes can be cut from.
    keeps_paths: bool,
    /// A command that measures the folder with another program.
    lm_eval: String,
}

/// A model written on the way.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Written {
    shot: u32,
    output: String,
    output_blake3: String,
    output_bytes: u64,
    sizes: Sizes,
    perplexity: Option<f64>,
}

/// One shot.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct ShotSummary {
    shot: u32,
    sizes: Sizes,
    predicted: f64,
    predicted_other_shape: Option<f64>,
    /// How often it was taken back and cut less deep (adaptive schedule).
    taken_back: u32,
    /// Rise of the held-out loss by the whole shot, its correction included, nats per token.
    measured: Option<f64>,
    /// The shot's low-rank correction.
    correction: Option<CorrectionReport>,
    perplexity: Option<f64>,
    largest_damping: f64,
}

impl Summary {
    /// Returns the summary of a finished run, or `None` if its journal lacks its end.
    pub(crate) fn new(
        run: &str,
        history: &History,
        seconds: Timeline,
        warnings: Vec<String>,
        state: &Path,
    ) -> Option<Self> {
        let (spec, prepared) = (history.spec.as_ref()?, history.prepared.as_ref()?);
        let written = history.written()?;
        let last = history.shots_done();
        let (dense, pruned) = (history.evaluations.get(&0), history.evaluations.get(&last));
        let shots = shots(history);
        let others: Option<Vec<f64>> = shots.iter().map(|s| s.predicted_other_shape).collect();
        Some(Self {
            event: "summary",
            run: run.to_owned(),
            family: prepared.model.family.clone(),
            structure: spec.structure,
            shape: history.shape(),
            shape_reason: history.shape_choice().map(|choice| choice.reason.clone()),
            before: prepared.model.dense,
            after: history.sizes(last)?,
            evaluation_before: dense.map(|e| e.evaluation.clone()),
            evaluation_after: pruned.map(|e| e.evaluation.clone()),
            tokens_per_second_before: dense.and_then(speed),
            tokens_per_second_after: pruned.and_then(speed),
            peak_memory_before: dense.map(|e| e.peak_memory),
            peak_memory_after: history.evaluations.get(&history.shots_done()).map(|e| e.peak_memory),
            peak_memory: peak_memory(history),
            seconds,
            factor_bytes: history.shots.values().flat_map(|s| s.shards.values()).map(|s| s.factor_bytes).sum(),
            predicted: shots.iter().map(|s| s.predicted).sum(),
            predicted_other_shape: others.map(|all| all.iter().sum()),
            damping_asked: [spec.damping_a, spec.damping_g],
            largest_damping: shots.iter().map(|s| s.largest_damping).fold(0.0, f64::max),
            raised_layers: raised_layers(history),
            floored: floored(history),
            shots,
            warnings,
            output: written.output.clone(),
            output_bytes: written.bytes,
            output_blake3: written.blake3.clone(),
            logit_difference: written.logit_difference,
            on_the_way: on_the_way(history, written.shot),
            state: state.display().to_string(),
            keeps_paths: spec.keep_paths,
            lm_eval: lm_eval(&written.output, spec, history.shape()),
        })
    }
}

fn on_the_way(history: &History, last: u32) -> Vec<Written> {
    let larger = history.materialised.values().filter(|m| m.shot != last);
    let written = larger.map(|m| Written {
        shot: m.shot,
        output: m.output.clone(),
        output_blake3: m.blake3.clone(),
        output_bytes: m.bytes,
        sizes: history.sizes(m.shot).unwrap_or_default(),
        perplexity: history.evaluations.get(&m.shot).map(|e| e.evaluation.perplexity),
    });
    written.collect()
}

fn shots(history: &History) -> Vec<ShotSummary> {
    let summary = |(shot, known): (&u32, &coordinator::event::ShotHistory)| {
        let (cut, committed) = (known.cut.as_ref()?, known.committed.as_ref()?);
        let loss = |shot: u32| history.evaluations.get(&shot).map(|e| e.evaluation.loss);
        Some(ShotSummary {
            measured: loss(*shot).zip(loss(shot - 1)).map(|(after, before)| after - before),
            correction: known.corrected.as_ref().map(|c| c.report),
            shot: *shot,
            sizes: committed.sizes,
            predicted: committed.predicted,
            predicted_other_shape: cut.predicted_other_shape,
            taken_back: known.taken_back,
            perplexity: history.evaluations.get(shot).map(|e| e.evaluation.perplexity),
            largest_damping: cut.largest_damping,
        })
    };
    history.shots.iter().filter_map(summary).collect()
}

pub(crate) fn speed(evaluated: &Evaluated) -> Option<f64> {
    (evaluated.seconds > 0.0).then(|| evaluated.tokens as f64 / evaluated.seconds)
}

pub(crate) fn peak_memory(history: &History) -> u64 {
    let of_shot = |shot: &ShotHistory| {
        let calibrators =
            shot.shards.values().map(|s| s.peak_memory).chain(shot.corrected.iter().map(|c| c.peak_memory));
        let surgeons = shot.scored.values().map(|b| b.peak_memory).chain(shot.updated.values().map(|b| b.peak_memory));
        calibrators.chain(surgeons).max().unwrap_or(0)
    };
    let evaluations = history.evaluations.values().map(|e| e.peak_memory);
    let written = history.materialised.values().map(|m| m.peak_memory);
    evaluations.chain(history.shots.values().map(of_shot)).chain(written).max().unwrap_or(0)
}

/// Returns whether the ladder had to raise the damping of A or of G.
pub(crate) fn is_raised(damping: &FactorDamping) -> bool {
    [damping.a, damping.g].iter().flatten().any(|step| step.raised > 0)
}

fn raised_layers(history: &History) -> Vec<String> {
    let cuts = history.shots.values().filter_map(|s| s.cut.as_ref());
    let layers: BTreeSet<_> =
        cuts.flat_map(|c| &c.layers).filter(|l| is_raised(&l.damping)).map(|l| l.layer.to_string()).collect();
    layers.into_iter().collect()
}

fn floored(history: &History) -> Option<f64> {
    let cuts = history.shots.values().filter_map(|s| s.cut.as_ref());
    let shares: Vec<f64> = cuts.flat_map(|c| &c.layers).filter_map(|l| l.damping.floored).collect();
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}

pub(crate) fn lm_eval(output: &str, spec: &RunSpec, shape: Shape) -> String {
    if !spec.format.has_hf() {
        let file = shell_word(&format!("{output}/{}", model::export::gguf::FILE));
        return format!("llama-perplexity -m {file} -f HELD_OUT.txt");
    }
    // Also where tensors keep the shapes of a base model whose blocks had widths of their own.
    let own_code = Path::new(output).join(model::export::huggingface::CODE_FILE).exists()
        || (spec.structure == Structure::Coupled && shape == Shape::PerLayer);
    let trust = if own_code { ",trust_remote_code=True" } else { "" };
    format!(
        "lm_eval --model hf --model_args {} --tasks wikitext",
        shell_word(&format!("pretrained={output},dtype=float32{trust}"))
    )
}

#[cfg(test)]
mod tests;
