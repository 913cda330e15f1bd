//! The decoder: embedding, blocks, final norm and head, for every family.
//!
//! A block's width is its own: heads and channels are read off its tensors, so pruned and whole blocks run alike.
//! Forward only; the graph for gradients is libtorch's, and [`crate::sweep`] decides where it is recorded.

mod attention;
mod blocks;
mod load;
mod mlp;
mod norm;

pub use attention::Attention;
pub use blocks::{Blocks, Lent, Weights};
pub use mlp::Mlp;
pub use norm::{HeadNorms, Norm};

use crate::rotary::Rotary;
use crate::{Linear, ModelConfig, ModelError};
use tch::{Device, Kind, Tensor};
use types::LayerId;

/// Sees what flows through each linear layer, in the order of the forward pass.
pub trait Tap {
    /// Returns the output of `layer` for its input `x`: the layer's own, unless a tap has other weights for it. `input`
    /// names the first layer that is fed by the same tensor.
    fn linear(&mut self, layer: &Linear, input: &LayerId, x: &Tensor) -> Result<Tensor, ModelError> {
        let _ = input;
        layer.forward(x)
    }
}

/// The tap that looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTap;

impl Tap for NoTap {}

/// One decoder layer.
#[derive(Debug)]
pub struct Block {
    /// Its number, from 0.
    pub index: u32,
    /// The norm before attention.
    pub attention_norm: Norm,
    /// Attention.
    pub attention: Attention,
    /// The norm before the MLP.
    pub mlp_norm: Norm,
    /// The MLP.
    pub mlp: Mlp,
}

impl Block {
    /// Returns the residual stream after the block, [b, t, d], for that before it; `tap` sees every linear layer.
    pub fn forward(&self, x_btd: &Tensor, rotary: &Rotary, tap: &mut dyn Tap) -> Result<Tensor, ModelError> {
        let attended = self.attention.forward(&self.attention_norm.forward(x_btd)?, rotary, tap)?;
        let middle_btd = x_btd.f_add(&attended)?;
        let out = self.mlp.forward(&self.mlp_norm.forward(&middle_btd)?, tap)?;
        Ok(middle_btd.f_add(&out)?)
    }

    /// Returns the block's linear layers in the order of the forward pass.
    pub fn linears(&self) -> Vec<&Linear> {
        let Attention { q, k, v, o, .. } = &self.attention;
        let mut all = vec![q, k, v, o];
        match &self.mlp {
            Mlp::Gated { gate, up, down, .. } => all.extend([gate, up, down]),
            Mlp::Plain { fc1, fc2, .. } => all.extend([fc1, fc2]),
        }
        all
    }

    /// Returns [`Self::linears`], to change them.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let Attention { q, k, v, o, .. } = &mut self.attention;
        let mut all = vec![q, k, v, o];
        match &mut self.mlp {
            Mlp::Gated { gate, up, down, .. } => all.extend([gate, up, down]),
            Mlp::Plain { fc1, fc2, .. } => all.extend([fc1, fc2]),
        }
        all
    }
}

/// A language model in memory, all of it in one number format on one device.
#[derive(Debug)]
pub struct Decoder {
    /// The base model's shape; blocks may be narrower.
    pub config: ModelConfig,
    /// Token embedding, [v, d].
    pub embedding: Tensor,
    /// Learned positions, [positions, d], offset included (OPT).
    pub positions: Option<Tensor>,
    /// Blocks from the first to the last, or where they are read.
    pub blocks: Blocks,
    /// The norm after the last block.
    pub final_norm: Norm,
    /// Projection to the vocabulary, [v, d]; the embedding itself when tied.
    pub head: Tensor,
}

impl Decoder {
    /// Returns the device of the weights.
    pub fn device(&self) -> Device {
        self.embedding.device()
    }

    /// Returns the number format of the weights.
    pub fn kind(&self) -> Kind {
        self.embedding.kind()
    }

    /// Returns the position tables for samples of `tokens` tokens.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] if the model cannot see so many tokens at once.
    pub fn rotary(&self, tokens: i64) -> Result<Rotary, ModelError> {
        self.config.check_length(tokens)?;
        Rotary::new(&self.config, tokens, self.kind(), self.device())
    }

    /// Returns the residual stream before the first block, [b, t, d], for token ids, [b, t] of i64.
    pub fn embed(&self, ids_bt: &Tensor) -> Result<Tensor, ModelError> {
        let &[_, tokens] = ids_bt.size().as_slice() else {
            return Err(ModelError::Shape { what: "token ids", expected: "[b, t]".to_owned(), found: ids_bt.size() });
        };
        self.config.check_length(tokens)?;
        self.check_ids(ids_bt)?;
        let ids_bt = ids_bt.f_to_device(self.device())?;
        let x_btd = Tensor::f_embedding(&self.embedding, &ids_bt, -1, false, false)?;
        match &self.positions {
            None => Ok(x_btd),
            Some(table) => {
                let offset = table.size()[0] - self.config.max_positions;
                Ok(x_btd.f_add(&table.f_narrow(0, offset, tokens)?)?)
            }
        }
    }

    /// Returns the logits, [.., v], for the residual stream after the last block, [.., d]: final norm and projection.
    /// Call it in chunks of tokens; the logits of a whole batch rarely fit.
    pub fn logits(&self, x_nd: &Tensor) -> Result<Tensor, ModelError> {
        let normed = self.final_norm.forward(x_nd)?;
        normed.f_linear(&self.head, None::<&Tensor>).map_err(ModelError::torch("head"))
    }

    /// Returns the residual stream after the last block, [b, t, d], for token ids, [b, t].
    pub fn forward(&self, ids_bt: &Tensor) -> Result<Tensor, ModelError> {
        self.forward_through(ids_bt, &mut NoTap)
    }

    /// Returns [`Self::forward`] with `tap` in every block.
    pub(crate) fn forward_through(&self, ids_bt: &Tensor, tap: &mut dyn Tap) -> Result<Tensor, ModelError> {
        let mut states = vec![self.embed(ids_bt)?];
        let rotary = self.rotary(ids_bt.size()[1])?;
        self.forward_wave(&mut states, &rotary, tap, &mut |_, _, _| Ok(()))?;
        Ok(states.swap_remove(0))
    }

    /// Takes the residual streams of some batches, [b, t, d] each, from before the first block to after the last, all of them
    /// through one block before the next, so that each block is read once. `before` sees block, batch and state before each.
    ///
    /// States of a streamed model wait in host memory.
    pub(crate) fn forward_wave(
        &self,
        states: &mut [Tensor],
        rotary: &Rotary,
        tap: &mut dyn Tap,
        before: &mut dyn FnMut(usize, usize, &Tensor) -> Result<(), ModelError>,
    ) -> Result<(), ModelError> {
        for index in 0..self.block_count() {
            let block = self.block(index)?;
            self.read_ahead(index + 1);
            for (batch, state_btd) in states.iter_mut().enumerate() {
                before(index, batch, state_btd)?;
                *state_btd = self.parked(&block.forward(&state_btd.f_to_device(self.device())?, rotary, tap)?)?;
            }
        }
        for state_btd in states {
            *state_btd = state_btd.f_to_device(self.device())?;
        }
        Ok(())
    }

    /// Returns a state where it may wait for the next block.
    fn parked(&self, state_btd: &Tensor) -> Result<Tensor, ModelError> {
        let place = if self.is_streamed() { Device::Cpu } else { self.device() };
        Ok(state_btd.f_to_device(place)?)
    }

    /// Returns the logits of every token, [b, t, v]. For short samples; see [`Self::logits`].
    pub fn forward_logits(&self, ids_bt: &Tensor) -> Result<Tensor, ModelError> {
        self.logits(&self.forward(ids_bt)?)
    }

    /// Checks that every id has an embedding: on a GPU a wrong one would kill the device's context.
    fn check_ids(&self, ids_bt: &Tensor) -> Result<(), ModelError> {
        if ids_bt.kind() != Kind::Int64 {
            return Err(ModelError::Shape { what: "token ids", expected: "kind i64".to_owned(), found: ids_bt.size() });
        }
        if ids_bt.numel() == 0 {
            return Ok(());
        }
        let (low, high) = (ids_bt.f_min()?.f_int64_value(&[])?, ids_bt.f_max()?.f_int64_value(&[])?);
        let rows = self.embedding.size()[0];
        if low < 0 || high >= rows {
            return Err(ModelError::Unsupported {
                path: self.config.path.clone(),
                reason: format!(
                    "token ids run from {low} to {high}, but the model has {rows} embeddings; the tokenizer belongs to another model"
                ),
            });
        }
        Ok(())
    }
}
