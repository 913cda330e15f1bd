//! What is said at the end. Holds no times: the report is part of the output, and the same run gives the same bytes.

use crate::{DataDescription, FactorDamping, LayerId, RunSpec, Shape, Sizes, UnitKind};
use serde::{Deserialize, Serialize};

/// Perplexity with its protocol: a number without it is no figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean negative log-likelihood, nats per token.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Segments of `seq_len` tokens that were scored.
    pub segments: u64,
    /// Segments there are in the data; when more than `segments`, evenly spaced ones were taken.
    pub segments_in_data: u64,
    /// Tokens a segment.
    pub seq_len: u64,
    /// Number format of the forward pass.
    pub dtype: String,
    /// The data.
    pub data: DataDescription,
}

/// One layer after one shot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The layer.
    pub layer: LayerId,
    /// Units removed in this shot.
    pub removed: u64,
    /// Units left after it (rows and columns together for `row-column`).
    pub left: u64,
    /// Predicted rise of the loss by this layer's removal, nats per token.
    pub predicted: f64,
    /// Damping used.
    pub damping: FactorDamping,
}

/// One correction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CorrectionReport {
    /// Loss before it, nats per token, on calibration samples that no sweep sees.
    pub loss_before: f64,
    /// Loss of what was kept on the same.
    pub loss_after: f64,
    /// Steps done.
    pub steps_done: u32,
    /// Steps after which the loss was least and which were kept; 0 when none helped.
    pub steps_kept: u32,
}

/// One shot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShotReport {
    /// Its number, from 1.
    pub shot: u32,
    /// Largest size allowed after it, in the target's figure.
    pub limit: u64,
    /// How often it was cut less deep because the held-out loss rose too far (adaptive schedule).
    #[serde(skip_serializing_if = "is_zero", default)]
    pub taken_back: u32,
    /// Size after it.
    pub sizes: Sizes,
    /// The threshold: cost per freed weight at the cut, nats per token; `None` when the shape is uniform (a width is chosen instead).
    pub threshold: Option<f64>,
    /// Loss on the calibration data before the removal, nats per token.
    pub calibration_loss: f64,
    /// Predicted rise of the loss by this shot, nats per token.
    pub predicted: f64,
    /// What the other shape would have been predicted to cost (`uniform` against `per-layer`), where it applies.
    pub predicted_other_shape: Option<f64>,
    /// The low-rank correction after it, if there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub correction: Option<CorrectionReport>,
    /// Loss on the held-out data after it, when there is such data.
    pub evaluation: Option<Evaluation>,
    /// Layer by layer.
    pub layers: Vec<LayerReport>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What a shape of `auto` came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShapeChoice {
    /// Uniform or per-layer.
    pub shape: Shape,
    /// Why.
    pub reason: String,
}

/// What is left in one layer at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptUnits {
    /// The layer.
    pub layer: LayerId,
    /// Kind of unit.
    pub kind: UnitKind,
    /// Original indices that are left.
    pub kept: Vec<u32>,
    /// Rows that are left (`row-column`).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub kept_rows: Vec<u32>,
}

/// `pruning_report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Version of this file's form.
    pub format: u32,
    /// Version of the program.
    pub program: String,
    /// The run's name.
    pub run: String,
    /// Everything that could change a number.
    pub spec: RunSpec,
    /// Model family.
    pub family: String,
    /// Digest of the base model.
    pub model_digest: String,
    /// Calibration data.
    pub data: DataDescription,
    /// Size before.
    pub before: Sizes,
    /// Size after.
    pub after: Sizes,
    /// What a shape of `auto` came to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub shape_choice: Option<ShapeChoice>,
    /// Held-out loss before.
    pub evaluation_before: Option<Evaluation>,
    /// Held-out loss after.
    pub evaluation_after: Option<Evaluation>,
    /// Each shot.
    pub shots: Vec<ShotReport>,
    /// Kept units.
    pub kept: Vec<KeptUnits>,
    /// Things a reader should know: few tokens, overlapping data, raised damping.
    pub warnings: Vec<String>,
}
