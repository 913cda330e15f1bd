//! What a pass over the samples sums up in one block: plain factors first (or the diagonal of the Fisher), then, for a
//! Kronecker sum, what each half-step of its power iteration asks for.
//!
//! A half-step weighs each token's input by its gradient or the other way round, and the diagonal takes both at once, so
//! inputs are held until the backward pass of their micro-batch has come to their layer.

use crate::error::Error;
use bytes::Bytes;
use curvature::{BlockFactors, CurvatureError, HalfStep, Side};
use model::tensor_file;
use std::collections::BTreeMap;
use tch::{Device, Tensor};
use tokio::sync::mpsc::Receiver;
use types::{Curvature, LayerId};

/// A pass over the samples.
pub(crate) enum Pass {
    /// Plain means of what the curvature consists of.
    Plain(Curvature),
    /// A half-step of a power iteration.
    HalfStep(Weighed),
}

/// What a half-step needs to know.
pub(crate) struct Weighed {
    /// Which pass, from 1.
    pub(crate) number: u32,
    /// The matrices that weigh, as bytes, by block, as the sweep comes to them: there need be no memory for all.
    pub(crate) weighers: Receiver<(u32, Bytes)>,
    /// Where the sums are made.
    pub(crate) device: Device,
}

/// The sums of one block in one pass.
#[derive(Default)]
pub(crate) struct Sums {
    plain: BlockFactors,
    half_steps: BTreeMap<String, HalfStep>,
    /// Inputs of the micro-batch under way, by the name under which they are shown.
    inputs: BTreeMap<LayerId, Tensor>,
}

impl Pass {
    /// Returns the sums over nothing for a block.
    pub(crate) fn open(&mut self, block: u32) -> Result<Sums, Error> {
        let mut sums = Sums::default();
        let Self::HalfStep(weighed) = self else { return Ok(sums) };
        let bytes = loop {
            match weighed.weighers.blocking_recv() {
                Some((of, bytes)) if of == block => break bytes,
                Some(_) => {} // of a block without layers to look at
                None => return Err(Error::Cancelled),
            }
        };
        let (tensors, _) = tensor_file::decode(&bytes, weighed.device)?;
        let weighers = BlockFactors::unpack(1, tensors, weighed.device)?;
        for side in [Side::Input, Side::Gradient] {
            for layer in weighers.layers(side) {
                let weigher = weighers.finish(side, layer)?;
                let half_step = HalfStep::weighed_by(side, layer, weighed.number, weigher);
                sums.half_steps.insert(layer.to_owned(), half_step);
            }
        }
        Ok(sums)
    }

    /// Takes the inputs of a micro-batch.
    pub(crate) fn input(&self, sums: &mut Sums, layer: &LayerId, x_nc: &Tensor) -> Result<(), Error> {
        match self {
            Self::Plain(Curvature::Kfac | Curvature::Activations) => {
                sums.plain.accumulate(Side::Input, layer.as_str(), x_nc)?;
            }
            Self::Plain(Curvature::Identity) => {}
            Self::Plain(Curvature::Diagonal) | Self::HalfStep(_) => {
                sums.inputs.insert(layer.clone(), x_nc.shallow_clone());
            }
        }
        Ok(())
    }

    /// Takes the gradients of a micro-batch at a layer whose inputs came before, under the name `input`.
    pub(crate) fn gradient(
        &self,
        sums: &mut Sums,
        (layer, input): (&LayerId, &LayerId),
        dy_nr: &Tensor,
    ) -> Result<(), Error> {
        let held = || {
            let x_nc = sums.inputs.get(input);
            x_nc.ok_or_else(|| CurvatureError::Unknown { name: format!("input of {layer}") })
        };
        match self {
            Self::Plain(Curvature::Kfac) => sums.plain.accumulate(Side::Gradient, layer.as_str(), dy_nr)?,
            Self::Plain(Curvature::Activations | Curvature::Identity) => {}
            Self::Plain(Curvature::Diagonal) => sums.plain.accumulate_diagonal(layer.as_str(), held()?, dy_nr)?,
            Self::HalfStep(_) => {
                if let Some(half_step) = sums.half_steps.get_mut(layer.as_str()) {
                    half_step.accumulate(held()?, dy_nr)?;
                }
            }
        }
        Ok(())
    }
}

impl Sums {
    /// Returns the sums as factors: one side of each layer after a half-step.
    pub(crate) fn finish(self) -> BlockFactors {
        if self.half_steps.is_empty() { self.plain } else { HalfStep::sums(self.half_steps.into_values().collect()) }
    }
}
