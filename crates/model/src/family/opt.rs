//! OPT: layer norms, learned positions, plain MLP with biases; the variants of opt-350m are refused.

use crate::config::{Activation, Fields};
use crate::{Family, ModelConfig, ModelError};

/// Rows of the position table before position 0.
pub(crate) const POSITION_OFFSET: i64 = 2;

pub(super) fn read(fields: &Fields) -> Result<ModelConfig, ModelError> {
    let hidden = fields.required("hidden_size")?;
    let heads = fields.required("num_attention_heads")?;
    refuse_variants(fields, hidden)?;
    if heads < 1 || hidden % heads != 0 {
        return Err(fields.invalid(&format!("the hidden size {hidden} is no multiple of the {heads} attention heads")));
    }
    let bias = fields.flag("enable_bias")?.unwrap_or(true);
    Ok(ModelConfig {
        path: fields.path().to_owned(),
        family: Family::Opt,
        hidden,
        blocks: fields.blocks()?,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        ffn: fields.required("ffn_dim")?,
        own_widths: std::collections::BTreeMap::new(),
        vocab: fields.required("vocab_size")?,
        max_positions: fields.integer("max_position_embeddings")?.unwrap_or(2048),
        norm_eps: 1e-5,
        activation: fields.activation("activation_function", Activation::Relu)?,
        rope: None,
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(true),
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: bias,
        qk_norm: false,
        sliding_window: None,
        bos: fields.integer("bos_token_id")?,
        eos: fields.integers("eos_token_id")?,
        raw: fields.raw().clone(),
    })
}

fn refuse_variants(fields: &Fields, hidden: i64) -> Result<(), ModelError> {
    if let Some(width) = fields.integer("word_embed_proj_dim")?.filter(|width| *width != hidden) {
        return Err(fields.unsupported(&format!(
            "'word_embed_proj_dim' {width} differs from 'hidden_size' {hidden}; projected embeddings (opt-350m) are not supported"
        )));
    }
    for (key, supported) in
        [("do_layer_norm_before", true), ("layer_norm_elementwise_affine", true), ("_remove_final_layer_norm", false)]
    {
        if fields.flag(key)?.is_some_and(|value| value != supported) {
            return Err(fields.unsupported(&format!("'{key}' {} is not supported", !supported)));
        }
    }
    Ok(())
}
