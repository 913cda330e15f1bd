//! The residual stream at block boundaries, kept between the forward and the backward passes.
//!
//! Lies in host memory, all of it taken before the first pass: states kept one by one between the passes' own large,
//! short-lived tensors would leave holes that nothing fits, and memory would grow with depth after all. A block's
//! states are freed when its backward pass is done. Besides, there is one gradient, overwritten block by block.

use super::Batch;
use crate::ModelError;
use tch::{Device, Kind, Tensor};

/// Boundary states of all micro-batches.
pub(crate) struct Boundaries {
    /// Number format and device of the passes.
    compute: (Kind, Device),
    /// The lowest block whose input is kept.
    lowest: usize,
    /// Inputs of blocks from `lowest` on, [samples, t, d]; freed from the top.
    inputs_btd: Vec<Tensor>,
    /// Gradient at the output of the topmost block that is left, [samples, t, d].
    gradient_btd: Option<Tensor>,
}

impl Boundaries {
    /// Takes memory for the inputs of blocks `lowest .. blocks`, in `kept`, and for one gradient in the number format of
    /// the passes; for nothing at all if there are no such blocks.
    pub(super) fn new(
        (lowest, blocks): (usize, usize),
        shape_btd: [i64; 3],
        kept: Kind,
        compute: (Kind, Device),
    ) -> Result<Self, ModelError> {
        let empty = |kind| {
            Tensor::f_empty(shape_btd, (kind, Device::Cpu)).map_err(ModelError::torch("memory for boundary states"))
        };
        Ok(Self {
            compute,
            lowest,
            inputs_btd: (lowest..blocks).map(|_| empty(kept)).collect::<Result<_, _>>()?,
            gradient_btd: if lowest < blocks { Some(empty(compute.0)?) } else { None },
        })
    }

    /// Keeps what enters `block`, if it will be needed.
    pub(super) fn keep_input(&mut self, block: usize, batch: &Batch, x_btd: &Tensor) -> Result<(), ModelError> {
        match block.checked_sub(self.lowest) {
            Some(at) => batch
                .part_of(&self.inputs_btd[at])?
                .f_copy_(x_btd)
                .map_err(ModelError::torch("keeping a boundary state")),
            None => Ok(()),
        }
    }

    /// Keeps the gradient at the topmost boundary, over that of the block above.
    pub(crate) fn keep_gradient(&mut self, batch: &Batch, gradient_btd: &Tensor) -> Result<(), ModelError> {
        let kept = self.gradient_btd.as_ref().map(|all| batch.part_of(all)).transpose()?;
        kept.map_or(Ok(()), |mut kept| kept.f_copy_(gradient_btd)).map_err(ModelError::torch("keeping a gradient"))
    }

    /// Returns input of and gradient at the output of the topmost block.
    pub(crate) fn top(&self, batch: &Batch) -> Result<(Tensor, Tensor), ModelError> {
        let (Some(inputs), Some(gradient)) = (self.inputs_btd.last(), &self.gradient_btd) else {
            unreachable!("there is a boundary for every block that is run backward");
        };
        let (kind, device) = self.compute;
        let get = |kept: &Tensor| Ok::<_, ModelError>(batch.part_of(kept)?.f_to_device(device)?.f_to_kind(kind)?);
        Ok((get(inputs)?, get(gradient)?))
    }

    /// Frees the input of the topmost block.
    pub(crate) fn drop_top(&mut self) {
        self.inputs_btd.pop();
    }
}
