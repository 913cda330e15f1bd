//! What a run's journal says: one event a committed step, and the history that they add up to.
//!
//! The journal is the only memory of a run. A coordinator that starts folds it into a [`History`] and goes on where
//! that ends; there is no second state that could disagree with it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use types::{
    Checkpoint, CorrectionReport, DataDescription, Evaluation, LayerCut, LayerId, LayerReport, LayerState,
    ModelDescription, ObjectRef, RunId, RunSpec, Sizes,
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
            | Self::Prepared(_)
            | Self::Succeeded
            | Self::Failed { .. }
            | Self::Cancelled => None,
        }
    }
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
    /// Largest resident memory of the calibrator so far, bytes.
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
    /// Largest resident memory of the calibrator so far, bytes.
    pub peak_memory: u64,
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
    /// Prunable weights that the shot frees.
    pub freed_prunable: u64,
    /// Layers whose damping had to be raised.
    pub damped_layers: u32,
    /// Largest damping used, as a fraction of the mean of the diagonal.
    pub largest_damping: f64,
    /// Layer by layer: damping used (removals are filled in when the shot is committed).
    pub layers: Vec<LayerReport>,
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
    /// Largest resident memory of the calibrator so far, bytes.
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
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// All done.
    Succeeded,
    /// Cannot be done.
    Failed {
        /// Machine-readable.
        code: String,
        /// Every cause.
        reason: String,
    },
    /// No longer wanted.
    Cancelled,
}

/// The journal of a run, folded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// What was asked for.
    pub spec: Option<RunSpec>,
    /// Coordinators that have had this run.
    pub epoch: u64,
    /// Whether another run's shots are this one's as well.
    pub inherited: bool,
    /// Model and data.
    pub prepared: Option<Prepared>,
    /// Evaluations by shot.
    pub evaluations: BTreeMap<u32, Evaluated>,
    /// Shots by number.
    pub shots: BTreeMap<u32, ShotHistory>,
    /// Folders that have their names, by shot.
    pub materialised: BTreeMap<u32, Materialised>,
    /// The end, if it came.
    pub ending: Option<Ending>,
}

/// What is known of one shot.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ShotHistory {
    /// Largest size after it; [`History::UNDECIDED`] while only its paths will tell.
    pub limit: u64,
    /// How often it was taken back.
    pub taken_back: u32,
    /// The most it may free after that.
    pub may_free: Option<u64>,
    /// Shards swept; those of later passes have the numbers after those of earlier ones.
    pub shards: BTreeMap<u32, ShardCalibrated>,
    /// Blocks weighed, by pass and block.
    pub weighed: BTreeMap<(u32, u32), BlockWeighed>,
    /// Rounds done; what follows is of the one after them.
    pub rounds: Vec<RoundDone>,
    /// Blocks scored.
    pub scored: BTreeMap<u32, BlockScored>,
    /// Blocks refined (single weights only).
    pub refined: BTreeMap<u32, BlockRefined>,
    /// The cut.
    pub cut: Option<CutChosen>,
    /// Blocks updated.
    pub updated: BTreeMap<u32, BlockUpdated>,
    /// The manifest's key, size, layers and predicted rise.
    pub committed: Option<Committed>,
    /// The correction.
    pub corrected: Option<ShotCorrected>,
}

/// A committed shot.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// Key of the manifest.
    pub checkpoint: String,
    /// Size.
    pub sizes: Sizes,
    /// Layer by layer.
    pub layers: Vec<LayerReport>,
    /// Predicted rise of the loss.
    pub predicted: f64,
}

impl History {
    /// The limit of a shot whose paths will tell how far it goes.
    pub const UNDECIDED: u64 = u64::MAX;

    /// Adds one event. Later events of the same step replace earlier ones, so that a repeated step does no harm.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Created { spec } => self.spec = Some(spec),
            Event::TakenOver { epoch } => self.epoch = epoch,
            Event::Inherited { events, .. } => {
                self.inherited = true;
                for event in events {
                    self.apply(event);
                }
            }
            Event::Prepared(p) => self.prepared = Some(p),
            Event::Evaluated(e) => {
                self.evaluations.insert(e.shot, e);
            }
            Event::ShotOpened { shot, limit } => self.shots.entry(shot).or_default().limit = limit,
            Event::ShardCalibrated(s) => {
                self.shots.entry(s.shot).or_default().shards.insert(s.shard, s);
            }
            Event::BlockWeighed(b) => {
                self.shots.entry(b.shot).or_default().weighed.insert((b.pass, b.block), b);
            }
            Event::BlockScored(b) => {
                self.shots.entry(b.shot).or_default().scored.insert(b.block, b);
            }
            Event::BlockRefined(b) => {
                self.shots.entry(b.shot).or_default().refined.insert(b.block, b);
            }
            Event::CutChosen(c) => {
                let shot = c.shot;
                self.shots.entry(shot).or_default().cut = Some(c);
            }
            Event::BlockUpdated(b) => {
                self.shots.entry(b.shot).or_default().updated.insert(b.block, b);
            }
            Event::RoundDone(round) => {
                let known = self.shots.entry(round.shot).or_default();
                // Told again, a round is not another one.
                known.rounds.truncate(round.round as usize);
                known.rounds.push(round);
                *known = ShotHistory {
                    scored: BTreeMap::new(),
                    refined: BTreeMap::new(),
                    cut: None,
                    updated: BTreeMap::new(),
                    ..std::mem::take(known)
                };
            }
            Event::ShotCommitted { shot, checkpoint, sizes, layers, predicted } => {
                self.shots.entry(shot).or_default().committed =
                    Some(Committed { checkpoint, sizes, layers, predicted });
            }
            Event::ShotTakenBack { shot, freed, .. } => {
                self.evaluations.remove(&shot);
                let known = self.shots.entry(shot).or_default();
                *known = ShotHistory {
                    limit: Self::UNDECIDED,
                    taken_back: known.taken_back + 1,
                    may_free: Some(freed / 2),
                    shards: std::mem::take(&mut known.shards),
                    weighed: std::mem::take(&mut known.weighed),
                    scored: std::mem::take(&mut known.scored),
                    ..ShotHistory::default()
                };
            }
            Event::ShotCorrected(c) => {
                let shot = c.shot;
                self.shots.entry(shot).or_default().corrected = Some(c);
            }
            Event::Materialised(m) => {
                self.materialised.insert(m.shot, m);
            }
            Event::Succeeded => self.ending = Some(Ending::Succeeded),
            Event::Failed { code, reason } => self.ending = Some(Ending::Failed { code, reason }),
            Event::Cancelled => self.ending = Some(Ending::Cancelled),
        }
    }

    /// Returns the final folder, if it has its name.
    pub fn written(&self) -> Option<&Materialised> {
        self.materialised.iter().find(|(shot, _)| self.is_last(**shot)).map(|(_, written)| written)
    }

    /// Returns whether `shot` is the last: the one that must reach the target.
    pub fn is_last(&self, shot: u32) -> bool {
        let limit = self.shots.get(&shot).map(|s| s.limit);
        limit.is_some_and(|limit| self.target_limit().is_some_and(|target| limit <= target))
    }

    /// Returns how many shots there are: up to the last, once it is known, otherwise as many as were asked for.
    pub fn planned_shots(&self) -> Option<u32> {
        let last = self.shots.keys().copied().find(|shot| self.is_last(*shot));
        last.or_else(|| self.spec.as_ref().map(|spec| spec.shots))
    }

    /// Returns the largest size at the end, once the model is known.
    fn target_limit(&self) -> Option<u64> {
        Some(self.spec.as_ref()?.target.limit(&self.prepared.as_ref()?.model.dense))
    }

    /// Returns the last committed shot; 0 for none.
    pub fn shots_done(&self) -> u32 {
        self.shots.iter().filter(|(_, s)| s.committed.is_some()).map(|(n, _)| *n).max().unwrap_or(0)
    }

    /// Returns the key of the checkpoint after `shot`; empty for the base model.
    pub fn checkpoint(&self, shot: u32) -> String {
        let Some(known) = self.shots.get(&shot) else { return String::new() };
        let corrected = known.corrected.as_ref().map(|c| c.checkpoint.clone());
        corrected.or_else(|| known.committed.as_ref().map(|c| c.checkpoint.clone())).unwrap_or_default()
    }

    /// Returns the key of what the cut of `shot` begins with: the manifest of its last round, or the checkpoint before it.
    pub fn cut_from(&self, shot: u32) -> String {
        let round = self.shots.get(&shot).and_then(|s| s.rounds.last()).map(|r| r.checkpoint.clone());
        round.unwrap_or_else(|| self.checkpoint(shot - 1))
    }

    /// Returns the size after `shot`; the dense size for shot 0.
    pub fn sizes(&self, shot: u32) -> Option<Sizes> {
        if shot == 0 {
            return self.prepared.as_ref().map(|p| p.model.dense);
        }
        self.shots.get(&shot).and_then(|s| s.committed.as_ref()).map(|c| c.sizes)
    }

    /// Returns the checkpoint after `shot`: the layers that differ from the base model, in block order.
    pub fn checkpoint_after(&self, shot: u32) -> Checkpoint {
        let Some(known) = self.shots.get(&shot) else { return Checkpoint { shot, layers: Vec::new() } };
        let layers = match &known.corrected {
            Some(corrected) => corrected.layers.clone(),
            None => known.updated.values().flat_map(|b| b.layers.clone()).collect(),
        };
        Checkpoint { shot, layers }
    }
}
