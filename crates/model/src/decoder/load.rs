//! Builds a decoder from a model folder and what pruning changed.
//!
//! Under `coupled`, a consumer's kept units decide which rows its producers keep: those are taken from the base model,
//! never stored again, unless a correction has changed them: then from its weights of full size. Under `row-column`,
//! weights are replaced as they are.

use super::blocks::{Blocks, Streamed};
use super::{Attention, Block, Decoder, HeadNorms, Mlp, Norm};
use crate::family::Family;
use crate::{BlockLayers, BlockWidths, LayerOverlay, Linear, MlpLayers, ModelConfig, ModelError, ModelFolder, Overlay};
use tch::{Device, Kind, Tensor};
use types::{LayerId, UnitKind};

impl Decoder {
    /// Returns the model of `folder` with `overlay` laid over it, its weights in `kind` on `device`.
    ///
    /// # Errors
    /// [`ModelError::Overlay`] if the overlay names layers, units or shapes that the model does not have.
    pub fn load(folder: &ModelFolder, overlay: &Overlay, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let loader = Loader { folder, overlay, kind, device };
        loader.refuse_unknown_layers()?;
        let blocks = (0..).zip(folder.layers()).map(|(index, layers)| loader.block(index, layers));
        loader.decoder(Blocks::Resident(blocks.collect::<Result<_, _>>()?))
    }

    /// Returns the model of `folder` with `overlay`, in host memory, laid over it; each block is read when it is needed, so
    /// that the device holds embedding, head and one block.
    ///
    /// # Errors
    /// As [`Self::load`]; what is wrong within a block is found when it is read.
    pub fn stream(folder: ModelFolder, overlay: Overlay, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let loader = Loader { folder: &folder, overlay: &overlay, kind, device };
        loader.refuse_unknown_layers()?;
        let decoder = loader.decoder(Blocks::Resident(Vec::new()))?;
        Ok(Self { blocks: Blocks::Streamed(Box::new(Streamed::new(folder, overlay, kind, device))), ..decoder })
    }
}

/// Reads tensors of a folder, with what is laid over it.
pub(super) struct Loader<'a> {
    pub(super) folder: &'a ModelFolder,
    pub(super) overlay: &'a Overlay,
    pub(super) kind: Kind,
    pub(super) device: Device,
}

/// The slice of a layer that is left. `None`: all of it.
#[derive(Default, Clone)]
struct Left {
    rows: Option<Vec<i64>>,
    columns: Option<Vec<i64>>,
}

impl Loader<'_> {
    fn config(&self) -> &ModelConfig {
        self.folder.config()
    }

    /// Returns the decoder around its blocks.
    fn decoder(&self, blocks: Blocks) -> Result<Decoder, ModelError> {
        let (config, names) = (self.folder.config(), self.folder.names());
        let embedding = self.tensor(&names.embedding())?;
        let head = if config.tied { embedding.shallow_clone() } else { self.tensor(&names.head())? };
        let positions = if config.family == Family::Opt { Some(self.tensor(&names.positions())?) } else { None };
        let final_norm = self.norm(&names.final_norm())?;
        Ok(Decoder { config: config.clone(), embedding, positions, blocks, final_norm, head })
    }

    fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        self.folder.tensor(name, self.kind, self.device)
    }

    /// Returns one block.
    pub(super) fn block(&self, index: u32, layers: &BlockLayers) -> Result<Block, ModelError> {
        let [attention_norm, mlp_norm] = self.folder.names().norms(index);
        Ok(Block {
            index,
            attention_norm: self.norm(&attention_norm)?,
            attention: self.attention(index, layers)?,
            mlp_norm: self.norm(&mlp_norm)?,
            mlp: self.mlp(index, &layers.mlp)?,
        })
    }

    fn norm(&self, name: &str) -> Result<Norm, ModelError> {
        let (weight, eps) = (self.tensor(&format!("{name}.weight"))?, self.config().norm_eps);
        if self.config().family == Family::Opt {
            return Ok(Norm::Layer { weight, bias: self.tensor(&format!("{name}.bias"))?, eps });
        }
        Ok(Norm::Rms { weight, eps })
    }

    fn attention(&self, index: u32, layers: &BlockLayers) -> Result<Attention, ModelError> {
        let config = self.config();
        let widths = config.widths(index);
        let heads = self.heads_left(widths, &layers.o)?;
        let of_heads = |list: &Option<Vec<i64>>| list.as_ref().map(|heads| spread(heads, config.head_dim));
        let (q, kv) = (of_heads(&heads.query), of_heads(&heads.kv));
        let rows = |rows: &Option<Vec<i64>>| Left { rows: rows.clone(), columns: None };
        let head_norms = if config.qk_norm {
            let [q, k] = self.folder.names().head_norms(index);
            let eps = config.norm_eps;
            let (q, k) = (self.tensor(&q)?, self.tensor(&k)?);
            Some(HeadNorms { q: Norm::Rms { weight: q, eps }, k: Norm::Rms { weight: k, eps } })
        } else {
            None
        };
        Ok(Attention {
            q: self.linear(&layers.q, &rows(&q))?,
            k: self.linear(&layers.k, &rows(&kv))?,
            v: self.linear(&layers.v, &rows(&kv))?,
            o: self.linear(&layers.o, &Left { rows: None, columns: q })?,
            head_norms,
            heads: heads.query.map_or(widths.heads, |left| left.len() as i64),
            kv_heads: heads.kv.map_or(widths.kv_heads, |left| left.len() as i64),
            head_dim: config.head_dim,
        })
    }

    fn mlp(&self, index: u32, layers: &MlpLayers) -> Result<Mlp, ModelError> {
        let channels = self.channels_left(self.config().widths(index).ffn, layers.consumer())?;
        let rows = Left { rows: channels.clone(), columns: None };
        let columns = Left { rows: None, columns: channels };
        let activation = self.config().activation;
        Ok(match layers {
            MlpLayers::Gated { gate, up, down } => Mlp::Gated {
                gate: self.linear(gate, &rows)?,
                up: self.linear(up, &rows)?,
                down: self.linear(down, &columns)?,
                activation,
            },
            MlpLayers::Plain { fc1, fc2 } => {
                Mlp::Plain { fc1: self.linear(fc1, &rows)?, fc2: self.linear(fc2, &columns)?, activation }
            }
        })
    }

    /// Returns a layer: the overlay's weights where it has some, otherwise what is left of the base model's.
    fn linear(&self, id: &LayerId, left: &Left) -> Result<Linear, ModelError> {
        let (weight_name, bias_name) = (format!("{id}.weight"), format!("{id}.bias"));
        let changed = self.overlay.layers.get(id);
        let whole = changed.is_some_and(|c| c.kind == UnitKind::Whole);
        // A whole layer has all its columns; its rows go with another layer's units.
        let new = |tensor: &Tensor, shape: Option<&[i64]>| {
            if whole {
                return left.of_bias(&self.replaced(id, tensor, shape.unwrap_or_default())?);
            }
            self.replaced(id, tensor, &left.shape(shape))
        };
        let weight = match changed.and_then(|c| c.weight.as_ref()) {
            Some(weight) => new(weight, self.folder.shape(&weight_name))?,
            None => left.of_weight(&self.tensor(&weight_name)?)?,
        };
        let bias = match (changed.and_then(|c| c.bias.as_ref()), self.folder.shape(&bias_name)) {
            (Some(_), None) => return Err(fault(id, "has a new bias, but the model has none here")),
            (Some(bias), shape) => Some(new(bias, shape)?),
            (None, Some(_)) => Some(left.of_bias(&self.tensor(&bias_name)?)?),
            (None, None) => None,
        };
        Ok(Linear { name: id.clone(), weight, bias })
    }

    /// Returns an overlay's tensor, if it has the shape that is left.
    fn replaced(&self, id: &LayerId, tensor: &Tensor, shape: &[i64]) -> Result<Tensor, ModelError> {
        if tensor.size() != shape {
            return Err(fault(id, &format!("new weights have shape {:?}, expected {shape:?}", tensor.size())));
        }
        Ok(tensor.f_to_device(self.device)?.f_to_kind(self.kind)?.f_detach()?)
    }

    /// Returns the heads that the overlay of the attention's output layer leaves.
    fn heads_left(&self, widths: BlockWidths, o: &LayerId) -> Result<HeadsLeft, ModelError> {
        let group = widths.heads_per_group();
        let Some(changed) = self.overlay.layers.get(o) else { return Ok(HeadsLeft::default()) };
        match changed.kind {
            UnitKind::KvGroup => {
                let kv = kept(o, changed, widths.kv_heads)?;
                Ok(HeadsLeft { query: Some(spread(&kv, group)), kv: Some(kv) })
            }
            UnitKind::QueryHead => {
                let query = kept(o, changed, widths.heads)?;
                let share = query.len() as i64 / widths.kv_heads;
                let unequal =
                    (0..widths.kv_heads).any(|j| query.iter().filter(|q| **q / group == j).count() as i64 != share);
                if unequal || share == 0 {
                    return Err(fault(o, &format!("query heads {query:?} are not the same number in every kv group")));
                }
                Ok(HeadsLeft { query: Some(query), kv: None })
            }
            UnitKind::Row | UnitKind::Column | UnitKind::Element | UnitKind::Whole => Ok(HeadsLeft::default()),
            UnitKind::FfnChannel => Err(fault(o, "is an attention layer, but FFN channels are said to be left")),
        }
    }

    /// Returns the channels that the overlay of an MLP's consumer leaves.
    fn channels_left(&self, ffn: i64, consumer: &LayerId) -> Result<Option<Vec<i64>>, ModelError> {
        let Some(changed) = self.overlay.layers.get(consumer) else { return Ok(None) };
        match changed.kind {
            UnitKind::FfnChannel => kept(consumer, changed, ffn).map(Some),
            UnitKind::Row | UnitKind::Column | UnitKind::Element | UnitKind::Whole => Ok(None),
            UnitKind::KvGroup | UnitKind::QueryHead => {
                Err(fault(consumer, "is an MLP layer, but attention heads are said to be left"))
            }
        }
    }

    fn refuse_unknown_layers(&self) -> Result<(), ModelError> {
        for (id, changed) in &self.overlay.layers {
            let Some(layers) = self.folder.layers().iter().find(|layers| layers.all().contains(&id)) else {
                return Err(fault(id, "is changed, but the model has no such layer"));
            };
            let consumer = *id == layers.o || id == layers.mlp.consumer();
            let of_units = matches!(changed.kind, UnitKind::KvGroup | UnitKind::QueryHead | UnitKind::FfnChannel);
            if !consumer && of_units {
                return Err(fault(id, "is said to have kept units, but it is no consumer of units"));
            }
        }
        Ok(())
    }
}

/// Heads that are left; `None`: all.
#[derive(Default)]
struct HeadsLeft {
    query: Option<Vec<i64>>,
    kv: Option<Vec<i64>>,
}

impl Left {
    fn of_weight(&self, weight_rc: &Tensor) -> Result<Tensor, ModelError> {
        let weight = self.of_bias(weight_rc)?;
        select(&weight, 1, self.columns.as_ref())
    }

    fn of_bias(&self, bias_r: &Tensor) -> Result<Tensor, ModelError> {
        select(bias_r, 0, self.rows.as_ref())
    }

    /// Returns what is left of the base model's shape.
    fn shape(&self, base: Option<&[i64]>) -> Vec<i64> {
        let mut shape = base.unwrap_or_default().to_vec();
        for (size, left) in shape.iter_mut().zip([&self.rows, &self.columns]) {
            *size = left.as_ref().map_or(*size, |left| left.len() as i64);
        }
        shape
    }
}

fn select(tensor: &Tensor, dim: i64, left: Option<&Vec<i64>>) -> Result<Tensor, ModelError> {
    let Some(left) = left else { return Ok(tensor.shallow_clone()) };
    let index = Tensor::f_from_slice(left)?.f_to_device(tensor.device())?;
    Ok(tensor.f_index_select(dim, &index)?)
}

/// Returns the indices that units of `size` consecutive indices cover.
fn spread(units: &[i64], size: i64) -> Vec<i64> {
    units.iter().flat_map(|unit| unit * size..(unit + 1) * size).collect()
}

/// Returns the kept units, if they rise and there are fewer than `count` of them.
fn kept(id: &LayerId, changed: &LayerOverlay, count: i64) -> Result<Vec<i64>, ModelError> {
    let kept: Vec<i64> = changed.kept.iter().map(|unit| i64::from(*unit)).collect();
    let rising = kept.windows(2).all(|pair| pair[0] < pair[1]);
    match kept.last() {
        None => Ok(kept), // the whole sub-block is gone
        Some(last) if rising && *last < count => Ok(kept),
        _ => Err(fault(id, &format!("kept {} units {kept:?} are not a rising list out of {count}", changed.kind))),
    }
}

fn fault(id: &LayerId, reason: &str) -> ModelError {
    ModelError::Overlay { layer: id.to_string(), reason: reason.to_owned() }
}
