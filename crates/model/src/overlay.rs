//! What differs from the base model after pruning: kept units and changed weights, by layer.

use crate::{ModelError, tensor_file};
use std::collections::BTreeMap;
use tch::{Device, Tensor};
use types::{LayerId, LayerState, UnitKind};

/// The pruned state that is laid over a base model. Empty: the base model itself.
#[derive(Debug, Default)]
pub struct Overlay {
    /// Changed layers: the consumers (`coupled`) or each changed layer (`row-column`).
    pub layers: BTreeMap<LayerId, LayerOverlay>,
}

/// The pruned state of one layer, see [`types::LayerState`].
#[derive(Debug)]
pub struct LayerOverlay {
    /// What `kept` counts.
    pub kind: UnitKind,
    /// Units that are left, rising, counted in the original model.
    pub kept: Vec<u32>,
    /// Rows that are left (`row-column` only).
    pub kept_rows: Vec<u32>,
    /// New weights; `None`: the base model's. Compact [r, columns left] where units of the layer went (`coupled`), otherwise
    /// dense [r, c]: with zeros, or of a layer that has lost nothing itself (`Whole`).
    pub weight: Option<Tensor>,
    /// New bias, [r]; `None`: the base model's.
    pub bias: Option<Tensor>,
}

impl LayerOverlay {
    /// Returns a layer's state with its weights, read from the bytes of the file that `state.weights` names.
    ///
    /// # Errors
    /// [`ModelError::TensorFile`] for broken bytes, [`ModelError::Overlay`] without a `weight` in them.
    pub fn decode(state: &LayerState, bytes: Option<&[u8]>, device: Device) -> Result<Self, ModelError> {
        let mut overlay = Self {
            kind: state.kind,
            kept: state.kept.clone(),
            kept_rows: state.kept_rows.clone(),
            weight: None,
            bias: None,
        };
        let Some(bytes) = bytes else { return Ok(overlay) };
        for (name, tensor) in tensor_file::decode(bytes, device)?.0 {
            match name.as_str() {
                "weight" => overlay.weight = Some(tensor),
                "bias" => overlay.bias = Some(tensor),
                _ => {}
            }
        }
        if overlay.weight.is_none() {
            let reason = "its file holds no tensor 'weight'".to_owned();
            return Err(ModelError::Overlay { layer: state.layer.to_string(), reason });
        }
        Ok(overlay)
    }

    /// Returns a second handle to the same tensors.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            kind: self.kind,
            kept: self.kept.clone(),
            kept_rows: self.kept_rows.clone(),
            weight: self.weight.as_ref().map(Tensor::shallow_clone),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
        }
    }
}

impl Overlay {
    /// Returns a second handle to the same tensors.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { layers: self.layers.iter().map(|(id, layer)| (id.clone(), layer.shallow_clone())).collect() }
    }
}
