//! What a run's journal says: one event a committed step, and the history that they add up to.
//!
//! The journal is the only memory of a run. A coordinator that starts folds it into a [`History`] and goes on where
//! that ends; there is no second state that could disagree with it.

mod curve;
mod history;

pub use curve::{CostCurve, LayerCurve};
pub use history::{Committed, Ending, History, ShotHistory};

use serde::{Deserialize, Serialize};
use types::{
    CorrectionReport, DataDescription, Evaluation, LayerCut, LayerId, LayerReport, LayerState, ModelDescription,
    ObjectRef, RunId, RunSpec, ShapeChoice, Sizes,
};

/// One committed step of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[allow(clippy::large_enum_variant)] // read once, folded, dropped: not worth a box
pub enum Event {
    /// The run exists.
    Created {
        /// What was asked for.
        spec: RunSpec,
        /// Under which id, if its caller gave one.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        request_id: String,
    },
    /// A coordinator took the run over. Its predecessor, if it still lives, meets this record and stops.
    TakenOver {
        /// How many coordinators have had this run.
        epoch: u64,
    },
    /// The shots of another run, of which paths were kept, are this run's as well: all but the last of them whole, the last
    /// up to its paths.
    Inherited {
        /// Which run.
        from: RunId,
        /// Its events, in order.
        events: Vec<Event>,
    },
    /// The trace of a shot, or, under shot 0, of the run: it goes on under later coordinators.
    Traced {
        /// Which shot.
        shot: u32,
        /// Its trace.
        trace: Trace,
    },
    /// Model and data were checked and described.
    Prepared(Prepared),
    /// Loss on the held-out data after a shot; shot 0 is the dense model.
    Evaluated(Evaluated),
    /// A shot began.
    ShotOpened {
        /// Its number, from 1.
        shot: u32,
        /// Largest size after it, in the target's figure.
        limit: u64,
    },
    /// All factors of one shard are in the store.
    ShardCalibrated(ShardCalibrated),
    /// The loss or a gradient of one shard's samples is not finite, twice: the shot goes on without them.
    ShardQuarantined(ShardQuarantined),
    /// Kronecker sums only: what weighs tokens in one block in the next pass is in the store.
    BlockWeighed(BlockWeighed),
    /// The removal paths of one block are in the store.
    BlockScored(BlockScored),
    /// The costs of one block near the threshold were counted.
    BlockRefined(BlockRefined),
    /// The one threshold: how far along its path each layer goes.
    CutChosen(CutChosen),
    /// One block's new weights are in the store.
    BlockUpdated(BlockUpdated),
    /// Single weights: a round that is not the shot's last. Its weights are in the store; costs are taken again from them.
    RoundDone(RoundDone),
    /// The checkpoint's manifest is in the store: the shot exists.
    ShotCommitted {
        /// Which shot.
        shot: u32,
        /// Key of the manifest.
        checkpoint: String,
        /// Size now.
        sizes: Sizes,
        /// Layer by layer.
        layers: Vec<LayerReport>,
        /// Predicted rise of the loss by the whole shot, nats per token.
        predicted: f64,
    },
    /// A shot was taken back: the held-out loss rose too far. Its curvature and paths stay; it is cut again, less deep.
    ShotTakenBack {
        /// Which shot.
        shot: u32,
        /// Measured rise of the held-out loss, nats per token.
        measured: f64,
        /// What it had freed, in the target's figure; the next try frees half of it at most.
        freed: u64,
    },
    /// A committed shot's weights were corrected, or it was found that correction does not help.
    ShotCorrected(ShotCorrected),
    /// The final folder has its final name.
    Materialised(Materialised),
    /// A caller paused the run: it stays so until a caller resumes it, whoever coordinates it then.
    Paused,
    /// The end: all done.
    Succeeded,
    /// The end: cannot be done.
    Failed {
        /// Machine-readable, from the published list.
        code: String,
        /// Every cause, outermost first.
        reason: String,
    },
    /// The end: no longer wanted.
    Cancelled,
}

impl Event {
    /// Returns the shot it is of; `None` for what is of the whole run.
    pub fn shot(&self) -> Option<u32> {
        match self {
            Self::ShotOpened { shot, .. } | Self::ShotCommitted { shot, .. } | Self::ShotTakenBack { shot, .. } => {
                Some(*shot)
            }
            Self::Evaluated(e) => Some(e.shot),
            Self::ShardCalibrated(s) => Some(s.shot),
            Self::ShardQuarantined(s) => Some(s.shot),
            Self::BlockWeighed(b) => Some(b.shot),
            Self::BlockScored(b) => Some(b.shot),
            Self::BlockRefined(b) => Some(b.shot),
            Self::CutChosen(c) => Some(c.shot),
            Self::BlockUpdated(b) => Some(b.shot),
            Self::RoundDone(r) => Some(r.shot),
            Self::ShotCorrected(c) => Some(c.shot),
            Self::Materialised(m) => Some(m.shot),
            Self::Created { .. }
            | Self::TakenOver { .. }
            | Self::Inherited { .. }
            | Self::Traced { .. }
            | Self::Prepared(_)
            | Self::Paused
            | Self::Succeeded
            | Self::Failed { .. }
            | Self::Cancelled => None,
        }
    }
}

/// Where a trace began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The context of its first span (W3C `traceparent`), which is told when it is over.
    pub context: String,
    /// Milliseconds since 1970.
    pub began_ms: u64,
}

/// What Prepare found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// The model.
    pub model: ModelDescription,
    /// Calibration data.
    pub data: DataDescription,
    /// Held-out data.
    pub eval_data: Option<DataDescription>,
    /// Seconds it took.
    pub seconds: f64,
}

/// One evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// After which shot.
    pub shot: u32,
    /// The figure and its protocol.
    pub evaluation: Evaluation,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Seconds in the forward passes.
    pub seconds: f64,
    /// Largest resident memory of the calibrator meanwhile, bytes.
    pub peak_memory: u64,
}

/// Sums of one sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardCalibrated {
    /// Which shot.
    pub shot: u32,
    /// Which shard.
    pub shard: u32,
    /// Negative log-likelihood over all targets, nats.
    pub loss_sum: f64,
    /// Targets.
    pub targets: u64,
    /// Tokens.
    pub tokens: u64,
    /// Seconds of the task, then by part.
    pub seconds: SweepSeconds,
    /// Bytes of factors handed over.
    pub factor_bytes: u64,
    /// Largest resident memory of the calibrator meanwhile, bytes.
    pub peak_memory: u64,
}

/// A shard that is left out of its shot, from the pass on in which it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardQuarantined {
    /// Which shot.
    pub shot: u32,
    /// Which pass over its samples.
    pub pass: u32,
    /// Which shard: its number in the first pass.
    pub shard: u32,
    /// Shards of a pass: those of later passes count on from there.
    pub shards: u32,
    /// Its first sample, among all calibration samples.
    pub first_sample: u64,
    /// How many it has.
    pub samples: u64,
    /// What the calibrator said the second time, with the samples at fault where it can tell.
    pub reason: String,
}

/// Where a sweep's time went.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct SweepSeconds {
    /// The whole task.
    pub total: f64,
    /// Forward without graph.
    pub forward: f64,
    /// Final norm, head, loss.
    pub head: f64,
    /// Recomputation and input gradients.
    pub backward: f64,
    /// Sums of factors.
    pub gram: f64,
    /// Waiting for a surgeon.
    pub wait: f64,
}

/// What weighs tokens in one block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockWeighed {
    /// Which shot.
    pub shot: u32,
    /// The pass that it follows from.
    pub pass: u32,
    /// Which block.
    pub block: u32,
    /// Seconds of computing.
    pub seconds: f64,
}

/// Paths of one block, or histograms of its costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockScored {
    /// Which shot.
    pub shot: u32,
    /// Which block.
    pub block: u32,
    /// Where they lie.
    pub scores: ObjectRef,
    /// Seconds of computing.
    pub seconds: f64,
    /// Largest resident memory of the surgeon meanwhile, bytes; 0 in journals of earlier programs.
    #[serde(default)]
    pub peak_memory: u64,
}

/// Histograms of one block's costs near the threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockRefined {
    /// Which shot.
    pub shot: u32,
    /// Which block.
    pub block: u32,
    /// Where they lie.
    pub histograms: ObjectRef,
    /// Seconds of computing.
    pub seconds: f64,
}

/// The decision of one shot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CutChosen {
    /// Which shot.
    pub shot: u32,
    /// One number a layer.
    pub cuts: Vec<LayerCut>,
    /// Cost per freed weight at the cut; `None` for uniform widths.
    pub threshold: Option<f64>,
    /// Predicted rise of the loss, nats per token; `None` for single weights, where only the update tells.
    pub predicted: Option<f64>,
    /// The same for the shape that was not asked for.
    pub predicted_other_shape: Option<f64>,
    /// Under a shape of `auto`, in the first shot: the shape of the run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub shape: Option<ShapeChoice>,
    /// Prunable weights that the shot frees.
    pub freed_prunable: u64,
    /// Layers whose damping had to be raised.
    pub damped_layers: u32,
    /// Largest damping used, as a fraction of the mean of the diagonal.
    pub largest_damping: f64,
    /// Layer by layer: damping used (removals are filled in when the shot is committed).
    pub layers: Vec<LayerReport>,
    /// What other sizes were predicted to cost; `None` in journals of earlier programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve: Option<CostCurve>,
}

/// New weights of one block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockUpdated {
    /// Which shot.
    pub shot: u32,
    /// Which block.
    pub block: u32,
    /// The block's layers that differ from the base model.
    pub layers: Vec<LayerState>,
    /// Predicted rise of the loss by each of these layers' removal, nats per token.
    pub predicted: Vec<f64>,
    /// Seconds of computing.
    pub seconds: f64,
    /// Largest resident memory of the surgeon meanwhile, bytes; 0 in journals of earlier programs.
    #[serde(default)]
    pub peak_memory: u64,
}

/// One of a shot's rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundDone {
    /// Which shot.
    pub shot: u32,
    /// Which round, from 0.
    pub round: u32,
    /// Key of its manifest.
    pub checkpoint: String,
    /// Predicted rise of the loss by the round's removals, nats per token, of each layer.
    pub predicted: Vec<(LayerId, f64)>,
}

/// What a correction brought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShotCorrected {
    /// Which shot.
    pub shot: u32,
    /// Key of the corrected manifest; that of the commit if the correction did not help.
    pub checkpoint: String,
    /// Layers that differ from the base model after it, in block order.
    pub layers: Vec<LayerState>,
    /// What is told of it.
    pub report: CorrectionReport,
    /// Seconds it took.
    pub seconds: f64,
    /// Largest resident memory of the calibrator meanwhile, bytes.
    pub peak_memory: u64,
}

/// The final folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Materialised {
    /// After which shot.
    pub shot: u32,
    /// The folder.
    pub output: String,
    /// Digest over its files.
    pub blake3: String,
    /// Its size.
    pub bytes: u64,
    /// Largest difference of logits before writing and after reading back.
    pub logit_difference: f64,
    /// Seconds it took.
    pub seconds: f64,
    /// Largest resident memory of the surgeon meanwhile, bytes; 0 in journals of earlier programs.
    #[serde(default)]
    pub peak_memory: u64,
}
