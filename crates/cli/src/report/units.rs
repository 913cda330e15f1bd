//! What is left of each layer or group of units: the figures of the heat map. Does not draw.

use coordinator::event::{History, Prepared};
use std::collections::BTreeMap;
use types::{Checkpoint, LayerDescription, LayerId, Structure, UnitGroup, UnitKind};

/// What one shot or several have taken from one group of units (or one layer, where there are no units).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Left {
    pub(crate) block: u32,
    /// The kind of group: the same in every block.
    pub(crate) kind: String,
    pub(crate) layer: LayerId,
    /// Units (weights, where there are no units) before and after.
    pub(crate) before: u64,
    pub(crate) after: u64,
    /// Predicted rise of the loss by what went, all shots, nats per token.
    pub(crate) predicted: f64,
}

impl Left {
    /// Returns the share that is gone.
    pub(crate) fn removed(&self) -> f64 {
        if self.before == 0 { 0.0 } else { 1.0 - self.after as f64 / self.before as f64 }
    }
}

/// Returns what is left after the last committed shot, block by block.
pub(crate) fn left(history: &History, prepared: &Prepared) -> Vec<Left> {
    let checkpoint = history.checkpoint_after(history.shots_done());
    let predicted = predicted(history);
    let of = |layer: &LayerId| predicted.get(layer).copied().unwrap_or(0.0);
    let structure = history.spec.as_ref().map(|s| s.structure);
    let mut all = Vec::new();
    for block in &prepared.model.blocks {
        if structure == Some(Structure::Coupled) {
            all.extend(block.groups.iter().map(|group| {
                let before = group.units * group.together;
                let after = checkpoint.layer(&group.layer).map_or(before, |s| s.units_left(before));
                Left {
                    block: block.block,
                    kind: group_kind(group).to_owned(),
                    layer: group.layer.clone(),
                    before: before.into(),
                    after: after.into(),
                    predicted: of(&group.layer),
                }
            }));
        } else {
            all.extend(block.layers.iter().map(|layer| Left {
                block: block.block,
                kind: short_name(&layer.layer).to_owned(),
                layer: layer.layer.clone(),
                before: layer.rows * layer.columns,
                after: weights_left(layer, &checkpoint),
                predicted: of(&layer.layer),
            }));
        }
    }
    all
}

/// Returns the kinds in the order in which a block has them.
pub(crate) fn kinds(left: &[Left]) -> Vec<String> {
    let mut kinds: Vec<String> = Vec::new();
    for one in left {
        if !kinds.contains(&one.kind) {
            kinds.push(one.kind.clone());
        }
    }
    kinds
}

/// Returns the last part of a layer's name.
pub(crate) fn short_name(layer: &LayerId) -> &str {
    layer.as_str().rsplit('.').next().unwrap_or_default()
}

fn group_kind(group: &UnitGroup) -> &'static str {
    match group.kind {
        UnitKind::FfnChannel => "FFN channels",
        UnitKind::KvGroup => "KV groups",
        UnitKind::QueryHead => "query heads",
        UnitKind::Row => "rows",
        UnitKind::Column => "columns",
        UnitKind::Element => "weights",
        UnitKind::Whole => "layers",
    }
}

fn weights_left(layer: &LayerDescription, checkpoint: &Checkpoint) -> u64 {
    let all = layer.rows * layer.columns;
    let Some(state) = checkpoint.layer(&layer.layer) else { return all };
    match state.kind {
        UnitKind::Element => all.saturating_sub(state.zeros),
        UnitKind::Whole => all,
        // The bias is the last column of the curvature, and no weight.
        _ => {
            let columns = state.kept.iter().filter(|c| u64::from(**c) < layer.columns).count();
            (columns * state.kept_rows.len()) as u64
        }
    }
}

/// Returns the sums over all committed shots.
fn predicted(history: &History) -> BTreeMap<LayerId, f64> {
    let mut sums = BTreeMap::new();
    for layer in history.shots.values().filter_map(|s| s.committed.as_ref()).flat_map(|c| &c.layers) {
        *sums.entry(layer.layer.clone()).or_insert(0.0) += layer.predicted;
    }
    sums
}
