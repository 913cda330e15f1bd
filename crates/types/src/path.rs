//! What a surgeon finds out about one layer (the removal path), and what the coordinator decides about it (the cut).

use crate::{LayerId, Unit};
use serde::{Deserialize, Serialize};

/// One removal along a path.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PathStep {
    /// What goes.
    pub unit: Unit,
    /// Marginal cost in nats per token: the predicted rise of the loss, given all earlier steps.
    pub cost: f64,
    /// Prunable weights that go with it, given all earlier steps.
    pub freed: u64,
}

/// The order in which a layer's units go, with what each costs given those before it.
///
/// Computed by the layer's owner alone, because the curvature is block-diagonal over layers. Any prefix is a valid removal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemovalPath {
    /// The layer where the cost arises: the consumer of the units.
    pub layer: LayerId,
    /// Removals in order; as long as the layer may shrink.
    pub steps: Vec<PathStep>,
    /// The damping under which it was computed.
    pub damping: FactorDamping,
}

/// How many steps of a layer's path are carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerCut {
    /// Which layer.
    pub layer: LayerId,
    /// Length of the prefix of its path.
    pub steps: u32,
    /// Which single weights go, for structures that remove those (then there is no path).
    pub elements: Option<ElementCut>,
}

/// Which items of a layer (weights, or windows of n:m) go: those that cost less than a threshold, the first ones of those
/// that cost as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElementCut {
    /// Bits of the threshold as f32: for costs, which are not negative, their order is that of the numbers.
    pub bits: u32,
    /// Items at the threshold that go, first come first in row-major order.
    pub ties: u64,
    /// Items that go in all; a check that costs came out as when they were counted.
    pub items: u64,
}

/// How often each digit occurs among the costs of a layer's items: all that is known of them outside their owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CostHistogram {
    /// The layer.
    pub layer: LayerId,
    /// (digit, items), rising in digit, none with 0 items.
    pub bins: Vec<(u16, u64)>,
    /// The damping under which costs were computed.
    pub damping: FactorDamping,
}

/// Number format in which a factorisation succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit float.
    F32,
    /// 64-bit float.
    F64,
}

/// The rung of the damping ladder on which one factor's Cholesky factorisation succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DampingStep {
    /// λ, as a fraction of the mean of the diagonal.
    pub lambda: f64,
    /// The number format it took.
    pub precision: Precision,
    /// 0 when the asked λ was enough, otherwise how many times it was raised tenfold.
    pub raised: u32,
}

/// What both factors of a layer took; `None` where a factor was not used (identity).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct FactorDamping {
    /// Inputs, A.
    pub a: Option<DampingStep>,
    /// Output gradients, G.
    pub g: Option<DampingStep>,
    /// Of a Kronecker sum of two terms: the share of directions in which the second would take more from the first than may
    /// go, and is held at the floor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floored: Option<f64>,
}
