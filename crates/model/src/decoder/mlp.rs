//! The MLP of a block.

use super::Tap;
use crate::{Activation, Linear, ModelError};
use tch::Tensor;

/// The MLP of one block. Its channels are the consumer's columns.
#[derive(Debug)]
pub enum Mlp {
    /// down(act(gate(x)) · up(x)).
    Gated {
        /// [f, d].
        gate: Linear,
        /// [f, d].
        up: Linear,
        /// [d, f]: the consumer of channels.
        down: Linear,
        /// Of the gate.
        activation: Activation,
    },
    /// fc2(act(fc1(x))).
    Plain {
        /// [f, d].
        fc1: Linear,
        /// [d, f]: the consumer of channels.
        fc2: Linear,
        /// Between the two.
        activation: Activation,
    },
}

impl Mlp {
    /// Returns the layer whose columns are the channels.
    pub fn consumer(&self) -> &Linear {
        match self {
            Self::Gated { down, .. } => down,
            Self::Plain { fc2, .. } => fc2,
        }
    }

    /// Returns the channels that are left.
    pub fn channels(&self) -> i64 {
        self.consumer().columns()
    }

    /// Returns what the MLP adds to the residual stream, [b, t, d], for the normed stream `x_btd`.
    pub(super) fn forward(&self, x_btd: &Tensor, tap: &mut dyn Tap) -> Result<Tensor, ModelError> {
        let mut feed = |layer: &Linear, input: &Linear, x: &Tensor| tap.linear(layer, &input.name, x);
        match self {
            Self::Gated { gate, up, down, activation } => {
                let opened = activation.apply(&feed(gate, gate, x_btd)?)?;
                let hidden = opened.f_mul(&feed(up, gate, x_btd)?)?;
                feed(down, down, &hidden)
            }
            Self::Plain { fc1, fc2, activation } => {
                let hidden = activation.apply(&feed(fc1, fc1, x_btd)?)?;
                feed(fc2, fc2, &hidden)
            }
        }
    }
}

impl Activation {
    /// Returns the nonlinearity of each element.
    pub fn apply(self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(match self {
            Self::Silu => x.f_silu()?,
            Self::Gelu => x.f_gelu("none")?,
            Self::GeluTanh => x.f_gelu("tanh")?,
            Self::Relu => x.f_relu()?,
        })
    }
}
