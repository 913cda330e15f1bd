//! What other sizes were predicted to cost: for people to look at. Nothing is decided by it.

use serde::{Deserialize, Serialize};
use types::LayerId;

/// Predicted cost against size, of the whole model and of each layer, at the moment of a cut.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CostCurve {
    /// (size left in the target's measure, predicted rise of the loss in nats per token), from nothing removed to all that
    /// may go, for the shape that was asked for.
    pub model: Vec<(u64, f64)>,
    /// The same of each layer alone.
    pub layers: Vec<LayerCurve>,
}

/// What a layer's removal path was predicted to cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerCurve {
    /// Which layer.
    pub layer: LayerId,
    /// (share of the original units that is gone, predicted rise of the loss in nats per token since the shot began).
    pub points: Vec<(f64, f64)>,
}
