//! Llama: RMS norms, rotary positions, gated MLP; biases by flag.

use crate::config::Fields;
use crate::{Family, ModelConfig, ModelError};

pub(super) fn read(fields: &Fields) -> Result<ModelConfig, ModelError> {
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    Ok(ModelConfig {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
        ..ModelConfig::gated(Family::Llama, fields)?
    })
}
