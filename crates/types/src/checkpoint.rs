//! The state of the model after a shot: which units are left, and where the changed weights lie.

use crate::{LayerId, UnitKind};
use serde::{Deserialize, Serialize};

/// Bytes in the store, by key and content digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Key in the store.
    pub key: String,
    /// BLAKE3 of the content, hex.
    pub blake3: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// What one layer looks like after a shot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerState {
    /// The consumer layer (`coupled`) or the layer itself (`row-column`).
    pub layer: LayerId,
    /// Kind of the units below; `Whole` when none of the layer's own went and only its weights changed; for `row-column`: `Column`, with the rows in `kept_rows`; for single weights `Element`, with
    /// neither.
    pub kind: UnitKind,
    /// Units that are left, rising, counted in the original model. Query heads: heads of the block, all groups.
    pub kept: Vec<u32>,
    /// Rows that are left (`row-column` only, otherwise empty).
    pub kept_rows: Vec<u32>,
    /// Weights that are zero because they were removed (`element`, `n:m`; otherwise 0).
    pub zeros: u64,
    /// The layer's weights, a safetensors file with `weight` and, if there is one, `bias`, in f32; `None` while unchanged.
    /// `coupled`: compact `[R, columns that are left]`; `Whole`: of full size, also where rows of units that are gone no
    /// longer count; all others: dense with zeros.
    pub weights: Option<ObjectRef>,
}

impl LayerState {
    /// Returns the units that are left of `all`.
    pub fn units_left(&self, all: u32) -> u32 {
        if self.kind == UnitKind::Whole { all } else { self.kept.len() as u32 }
    }
}

/// The model after a shot, relative to the base model: its manifest, written last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Checkpoint {
    /// Shots done; 0 is the base model.
    pub shot: u32,
    /// Layers that differ from the base model, in block order.
    pub layers: Vec<LayerState>,
}

impl Checkpoint {
    /// Returns the state of a layer, if it differs from the base model.
    pub fn layer(&self, layer: &LayerId) -> Option<&LayerState> {
        self.layers.iter().find(|l| l.layer == *layer)
    }
}
