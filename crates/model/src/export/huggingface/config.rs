//! The config of the pruned model: the base model's, but for the widths that changed.

use crate::compact::Widths;
use crate::{Family, ModelConfig, ModelError, ModelFolder};
use serde_json::{Map, Value, json};

/// Returns config.json for `widths`; `None`: all tensors keep their shapes, and so does the config.
pub(super) fn changed(folder: &ModelFolder, widths: Option<Widths>) -> Result<String, ModelError> {
    let config = folder.config();
    let Some(widths) = widths else {
        let path = &config.path;
        return std::fs::read_to_string(path).map_err(ModelError::io("read", path));
    };
    let Value::Object(mut raw) = config.raw.clone() else {
        return Err(ModelError::Config { path: config.path.clone(), reason: "not a JSON object".to_owned() });
    };
    if config.family == Family::Opt {
        raw.insert("ffn_dim".to_owned(), json!(widths.ffn));
    } else {
        let heads = widths.kv_heads * widths.heads_per_group;
        raw.insert("intermediate_size".to_owned(), json!(widths.ffn));
        raw.insert("num_attention_heads".to_owned(), json!(heads));
        raw.insert("num_key_value_heads".to_owned(), json!(widths.kv_heads));
        raw.insert("head_dim".to_owned(), json!(config.head_dim));
        if config.family == Family::Llama && config.hidden % heads != 0 {
            retype(config, heads, &mut raw)?;
        }
    }
    let mut text = format!("{:#}", Value::Object(raw));
    text.push('\n');
    Ok(text)
}

/// Makes a Llama a Mistral: the same tensors and the same arithmetic, but transformers refuses the former when the
/// hidden size is no multiple of the number of heads.
fn retype(config: &ModelConfig, heads: i64, raw: &mut Map<String, Value>) -> Result<(), ModelError> {
    if config.o_bias || config.qkv_bias || config.mlp_bias {
        return Err(ModelError::Unsupported {
            path: config.path.clone(),
            reason: format!(
                "transformers loads no Llama with biases whose hidden size {} is no multiple of its {heads} heads; keep a number of heads that divides it, or leave attention as it is",
                config.hidden
            ),
        });
    }
    raw.insert("architectures".to_owned(), json!([Family::Mistral.architecture()]));
    raw.insert("model_type".to_owned(), json!(Family::Mistral.name()));
    raw.insert("sliding_window".to_owned(), Value::Null);
    // Where the two families' defaults differ, Llama's is spelled out.
    raw.entry("max_position_embeddings").or_insert_with(|| json!(config.max_positions));
    Ok(())
}
