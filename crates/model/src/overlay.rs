//! What differs from the base model after pruning: kept units and changed weights, by layer.

use crate::{ModelError, tensor_file};
use std::collections::BTreeMap;
use std::sync::Arc;
use tch::{Device, Tensor};
use types::{LayerId, LayerState, ObjectRef, RemoteObjects, UnitKind};

/// The pruned state that is laid over a base model. Empty: the base model itself.
#[derive(Debug, Default)]
pub struct Overlay {
    /// Changed layers: the consumers (`coupled`) or each changed layer (`row-column`).
    pub layers: BTreeMap<LayerId, LayerOverlay>,
    /// New weights that are not in `layers` yet, for a model that is read block by block.
    pub later: Option<Later>,
}

/// New weights of changed layers, read when a block is.
#[derive(Debug, Clone)]
pub struct Later {
    weights: BTreeMap<LayerId, ObjectRef>,
    source: Arc<dyn RemoteObjects>,
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
        if let Some(bytes) = bytes {
            overlay.read(&state.layer, bytes, device)?;
        }
        Ok(overlay)
    }

    /// Takes the weights from the bytes of their file.
    fn read(&mut self, layer: &LayerId, bytes: &[u8], device: Device) -> Result<(), ModelError> {
        for (name, tensor) in tensor_file::decode(bytes, device)?.0 {
            match name.as_str() {
                "weight" => self.weight = Some(tensor),
                "bias" => self.bias = Some(tensor),
                _ => {}
            }
        }
        if self.weight.is_none() {
            let reason = "its file holds no tensor 'weight'".to_owned();
            return Err(ModelError::Overlay { layer: layer.to_string(), reason });
        }
        Ok(())
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
    /// Returns the changed layers, each from the bytes of its file, which are dropped once read.
    ///
    /// # Errors
    /// Those of [`LayerOverlay::decode`].
    pub fn decode<B: AsRef<[u8]>>(
        changed: impl IntoIterator<Item = (LayerState, Option<B>)>,
        device: Device,
    ) -> Result<Self, ModelError> {
        let read = |(state, bytes): (LayerState, Option<B>)| {
            let layer = LayerOverlay::decode(&state, bytes.as_ref().map(AsRef::as_ref), device)?;
            Ok((state.layer, layer))
        };
        Ok(Self { layers: changed.into_iter().map(read).collect::<Result<_, ModelError>>()?, later: None })
    }

    /// Returns the changed layers without their weights, which `source` gives when they are needed.
    pub fn later(states: Vec<LayerState>, source: Arc<dyn RemoteObjects>) -> Self {
        let weights = states.iter().filter_map(|state| Some((state.layer.clone(), state.weights.clone()?))).collect();
        let bare = |state: LayerState| {
            let LayerState { layer, kind, kept, kept_rows, .. } = state;
            (layer, LayerOverlay { kind, kept, kept_rows, weight: None, bias: None })
        };
        Self { layers: states.into_iter().map(bare).collect(), later: Some(Later { weights, source }) }
    }

    /// Returns a second handle to the same tensors.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let layers = self.layers.iter().map(|(id, layer)| (id.clone(), layer.shallow_clone())).collect();
        Self { layers, later: self.later.clone() }
    }

    /// Returns what is laid over some layers, with their weights on `device`.
    ///
    /// # Errors
    /// [`ModelError::Remote`]; those of [`LayerOverlay::decode`].
    pub(crate) fn of_layers(&self, layers: &[&LayerId], device: Device) -> Result<Self, ModelError> {
        let mut found = BTreeMap::new();
        for id in layers {
            let Some(layer) = self.layers.get(*id) else { continue };
            let mut layer = layer.shallow_clone();
            if let Some((object, later)) = self.later_of(id) {
                let read = later.source.read(object);
                let bytes = read.map_err(|source| ModelError::Remote { file: object.key.clone(), source })?;
                layer.read(id, &bytes, device)?;
            }
            found.insert((*id).clone(), layer);
        }
        Ok(Self { layers: found, later: None })
    }

    /// Has a layer's new weights read while something else is done. Returns whether there are some, here or elsewhere: then the
    /// base model's are not needed.
    pub(crate) fn read_ahead(&self, layer: &LayerId) -> bool {
        if let Some((object, later)) = self.later_of(layer) {
            later.source.read_ahead(object);
            return true;
        }
        self.layers.get(layer).is_some_and(|changed| changed.weight.is_some())
    }

    fn later_of(&self, layer: &LayerId) -> Option<(&ObjectRef, &Later)> {
        let later = self.later.as_ref()?;
        later.weights.get(layer).map(|object| (object, later))
    }
}
