//! Qwen3: Llama with a norm over each query and key head; the head size stands on its own.

use crate::config::Fields;
use crate::{Family, ModelConfig, ModelError};

/// What transformers assumes where the key is missing.
const DEFAULT_HEAD_DIM: i64 = 128;

pub(super) fn read(fields: &Fields) -> Result<ModelConfig, ModelError> {
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    let base = ModelConfig::gated(Family::Qwen3, fields)?;
    Ok(ModelConfig {
        head_dim: if fields.contains("head_dim") { base.head_dim } else { DEFAULT_HEAD_DIM },
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        qk_norm: true,
        sliding_window: fields.switched_window()?,
        ..base
    })
}
