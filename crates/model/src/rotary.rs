//! Rotary position embedding, half-split as in Hugging Face checkpoints.

use crate::{ModelConfig, ModelError, Rope, RopeScaling};
use std::f64::consts::TAU;
use tch::{Device, Kind, Tensor};

/// Cosines and sines of the first t positions; nothing for models with learned positions.
#[derive(Debug)]
pub struct Rotary {
    /// Both [t, e].
    tables: Option<(Tensor, Tensor)>,
}

impl Rotary {
    /// Returns the tables for `tokens` positions, in `kind` on `device`.
    ///
    /// Computed in f32, as transformers does, so that long positions agree; in f64 when `kind` is f64.
    pub fn new(config: &ModelConfig, tokens: i64, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let Some(rope) = &config.rope else { return Ok(Self { tables: None }) };
        let precise = if kind == Kind::Double { Kind::Double } else { Kind::Float };
        let frequencies = rope.frequencies(config.head_dim, precise)?;
        let positions = Tensor::f_arange(tokens, (precise, Device::Cpu))?;
        let angles = positions.f_outer(&frequencies)?;
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?;
        let place = |table: Tensor| table.f_to_kind(kind)?.f_to_device(device);
        Ok(Self { tables: Some((place(angles.f_cos()?)?, place(angles.f_sin()?)?)) })
    }

    /// Returns `x`, [b, h, t, e], with every pair (i, i + e/2) turned by its position's angle.
    pub fn apply(&self, x_bhte: &Tensor) -> Result<Tensor, ModelError> {
        let Some((cos, sin)) = &self.tables else { return Ok(x_bhte.shallow_clone()) };
        let half = x_bhte.size()[3] / 2;
        let turned = Tensor::f_cat(&[x_bhte.f_narrow(3, half, half)?.f_neg()?, x_bhte.f_narrow(3, 0, half)?], 3)?;
        Ok(x_bhte.f_mul(cos)?.f_add(&turned.f_mul(sin)?)?)
    }
}

impl Rope {
    /// Returns how much slower each pair turns than without scaling, [e / 2], where that differs from pair to pair.
    pub(crate) fn slowing(&self, head_dim: i64) -> Result<Option<Tensor>, ModelError> {
        let RopeScaling::Llama3 { .. } = self.scaling else { return Ok(None) };
        let plain = Self { scaling: RopeScaling::Default, ..*self }.frequencies(head_dim, Kind::Double)?;
        Ok(Some(plain.f_div(&self.frequencies(head_dim, Kind::Double)?)?.f_to_kind(Kind::Float)?))
    }

    /// Returns the angle per position of each pair, [e / 2].
    fn frequencies(&self, head_dim: i64, kind: Kind) -> Result<Tensor, ModelError> {
        let exponents =
            Tensor::f_arange_start_step(0, head_dim, 2, (kind, Device::Cpu))?.f_div_scalar(head_dim as f64)?;
        let plain = Tensor::f_pow_scalar(self.theta, &exponents)?.f_reciprocal()?;
        match self.scaling {
            RopeScaling::Default => Ok(plain),
            RopeScaling::Linear { factor } => Ok(plain.f_div_scalar(factor)?),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let slow = plain.f_div_scalar(factor)?;
                // 0 where the wavelength is long, 1 where it is short, and between them how short it is.
                let smooth = plain
                    .f_mul_scalar(original_max_positions / TAU)?
                    .f_sub_scalar(low_freq_factor)?
                    .f_div_scalar(high_freq_factor - low_freq_factor)?
                    .f_clamp(0.0, 1.0)?;
                // slow + smooth · (plain − slow), exact at both ends.
                Ok(slow.f_lerp_tensor(&plain, &smooth)?)
            }
        }
    }
}
