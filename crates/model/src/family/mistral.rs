//! Mistral: Llama without biases, with a sliding window unless the config says null.

use crate::config::Fields;
use crate::{Family, ModelConfig, ModelError};

/// What transformers assumes where the key is missing.
const DEFAULT_WINDOW: i64 = 4096;

pub(super) fn read(fields: &Fields) -> Result<ModelConfig, ModelError> {
    let window =
        if fields.contains("sliding_window") { fields.integer("sliding_window")? } else { Some(DEFAULT_WINDOW) };
    Ok(ModelConfig { sliding_window: window, ..ModelConfig::gated(Family::Mistral, fields)? })
}
