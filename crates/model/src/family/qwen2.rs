//! Qwen2: Llama with biases on q, k and v that no flag announces.

use crate::config::Fields;
use crate::{Family, ModelConfig, ModelError};

pub(super) fn read(fields: &Fields) -> Result<ModelConfig, ModelError> {
    Ok(ModelConfig {
        qkv_bias: true,
        sliding_window: fields.switched_window()?,
        ..ModelConfig::gated(Family::Qwen2, fields)?
    })
}
