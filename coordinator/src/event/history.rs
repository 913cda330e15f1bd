//! The journal, folded: all that is known of a run.

use super::{
    BlockRefined, BlockScored, BlockUpdated, BlockWeighed, CutChosen, Evaluated, Event, Materialised, Prepared,
    RoundDone, ShardCalibrated, ShardQuarantined, ShotCorrected, Trace,
};
use std::collections::BTreeMap;
use types::{Checkpoint, LayerId, LayerReport, LayerState, RunSpec, Shape, ShapeChoice, Sizes};

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
    /// Whether a caller paused it after its last coordinator took it over.
    pub paused: bool,
    /// The end, if it came.
    pub ending: Option<Ending>,
    /// Traces by shot; under 0 that of the run.
    pub traces: BTreeMap<u32, Trace>,
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
    /// Shards that do not count, by their number in the first pass.
    pub quarantined: BTreeMap<u32, ShardQuarantined>,
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

impl ShotHistory {
    /// Returns the mean loss on the calibration data before the shot, over the samples that count; `None` before any was swept.
    pub fn calibration_loss(&self) -> Option<f64> {
        let counts = |s: &&ShardCalibrated| !self.quarantined.values().any(|q| s.shard % q.shards == q.shard);
        let counted = self.shards.values().filter(counts);
        let (loss, targets) = counted.fold((0.0, 0), |(l, t), s| (l + s.loss_sum, t + s.targets));
        (targets > 0).then(|| loss / targets as f64)
    }

    /// Returns how many sweeps there is nothing more to wait for: those that are done, and those of quarantined shards, in a
    /// shot of so many `passes` after the first.
    pub fn settled_sweeps(&self, passes: u32) -> usize {
        let never: u32 = self.quarantined.values().map(|q| (passes + 1).saturating_sub(q.pass)).sum();
        self.shards.len() + never as usize
    }

    /// Returns how many samples do not count.
    pub fn poisoned(&self) -> u64 {
        self.quarantined.values().map(|q| q.samples).sum()
    }
}

impl History {
    /// The limit of a shot whose paths will tell how far it goes.
    pub const UNDECIDED: u64 = u64::MAX;

    /// Adds one event. Later events of the same step replace earlier ones, so that a repeated step does no harm.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Created { spec, .. } => self.spec = Some(spec),
            Event::TakenOver { epoch } => {
                self.epoch = epoch;
                self.paused = false;
            }
            Event::Inherited { events, .. } => {
                self.inherited = true;
                for event in events {
                    self.apply(event);
                }
            }
            Event::Traced { shot, trace } => {
                self.traces.insert(shot, trace);
            }
            Event::Prepared(p) => self.prepared = Some(p),
            Event::Evaluated(e) => {
                self.evaluations.insert(e.shot, e);
            }
            Event::ShotOpened { shot, limit } => self.shots.entry(shot).or_default().limit = limit,
            Event::ShardCalibrated(s) => {
                self.shots.entry(s.shot).or_default().shards.insert(s.shard, s);
            }
            Event::ShardQuarantined(s) => {
                self.shots.entry(s.shot).or_default().quarantined.insert(s.shard, s);
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
                    quarantined: std::mem::take(&mut known.quarantined),
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
            Event::Paused => self.paused = true,
            Event::Cancelled => self.ending = Some(Ending::Cancelled),
        }
    }

    /// Returns the final folder, if it has its name.
    pub fn written(&self) -> Option<&Materialised> {
        self.materialised.iter().find(|(shot, _)| self.is_last(**shot)).map(|(_, written)| written)
    }

    /// Returns the shape that cuts are made by: what was asked for, or what the first shot chose.
    pub fn shape(&self) -> Shape {
        match self.spec.as_ref().map_or(Shape::Uniform, |spec| spec.shape) {
            Shape::Auto => self.shape_choice().map_or(Shape::Auto, |choice| choice.shape),
            asked => asked,
        }
    }

    /// Returns what the first shot chose under [`Shape::Auto`].
    pub fn shape_choice(&self) -> Option<&ShapeChoice> {
        self.shots.values().filter_map(|shot| shot.cut.as_ref()).find_map(|cut| cut.shape.as_ref())
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
        Checkpoint { shot, layers: self.layers_after(shot).cloned().collect() }
    }

    /// Returns what a layer looks like after `shot`, if it differs from the base model.
    pub fn layer_after(&self, shot: u32, layer: &LayerId) -> Option<&LayerState> {
        self.layers_after(shot).find(|state| state.layer == *layer)
    }

    /// Returns the layers that differ from the base model after `shot`: as a correction left them, or else as updated.
    fn layers_after(&self, shot: u32) -> impl Iterator<Item = &LayerState> {
        let known = self.shots.get(&shot);
        let corrected = known.and_then(|known| known.corrected.as_ref());
        let updated = known.filter(|_| corrected.is_none()).map(|known| known.updated.values());
        let updated = updated.into_iter().flatten().flat_map(|block| &block.layers);
        corrected.into_iter().flat_map(|corrected| &corrected.layers).chain(updated)
    }
}
