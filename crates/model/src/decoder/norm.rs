//! Norms over the last dimension.

use crate::ModelError;
use tch::{Kind, Tensor};

/// A norm over the last dimension, of size d.
#[derive(Debug)]
pub enum Norm {
    /// x / √(mean(x²) + ε) · weight.
    Rms {
        /// [d].
        weight: Tensor,
        /// ε.
        eps: f64,
    },
    /// (x − mean) / √(var + ε) · weight + bias.
    Layer {
        /// [d].
        weight: Tensor,
        /// [d].
        bias: Tensor,
        /// ε.
        eps: f64,
    },
}

/// Norms over each query and each key head (Qwen3).
#[derive(Debug)]
pub struct HeadNorms {
    /// Over queries, [e].
    pub q: Norm,
    /// Over keys, [e].
    pub k: Norm,
}

impl Norm {
    /// Returns the normalised `x`, of the same shape and kind. Half formats are normalised in f32, as transformers does.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        match self {
            Self::Layer { weight, bias, eps } => {
                Ok(x.f_layer_norm(weight.size(), Some(weight), Some(bias), *eps, true)?)
            }
            Self::Rms { weight, eps } => {
                let precise = if x.kind() == Kind::Double { Kind::Double } else { Kind::Float };
                let wide = x.f_to_kind(precise)?;
                let scale = wide.f_square()?.f_mean_dim(-1, true, precise)?.f_add_scalar(*eps)?.f_rsqrt()?;
                Ok(weight.f_mul(&wide.f_mul(&scale)?.f_to_kind(x.kind())?)?)
            }
        }
    }

    /// Returns the weight, [d].
    pub fn weight(&self) -> &Tensor {
        match self {
            Self::Rms { weight, .. } | Self::Layer { weight, .. } => weight,
        }
    }
}
