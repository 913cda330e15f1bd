//! The config of the pruned model: the base model's, but for the widths and the number of blocks that changed.

use super::per_block;
use crate::compact::{Compaction, Place, differ};
use crate::config::PER_BLOCK;
use crate::{BlockWidths, Family, ModelConfig, ModelError, ModelFolder};
use serde_json::{Map, Value, json};

/// Keys that hold one value for each block.
const PER_BLOCK_LISTS: [&str; 2] = ["layer_types", "no_rope_layers"];

/// config.json of a pruned model, and the code that goes with it.
pub(super) struct Changed {
    /// Content of config.json.
    pub(super) text: String,
    /// Content of [`per_block::FILE`], where blocks have widths of their own.
    pub(super) code: Option<String>,
}

/// Returns the config for the blocks of `compaction`; where all tensors keep their shapes, so does the config.
pub(super) fn changed(folder: &ModelFolder, compaction: &Compaction) -> Result<Changed, ModelError> {
    let config = folder.config();
    if compaction.keeps_shapes() {
        let path = &config.path;
        let text = std::fs::read_to_string(path).map_err(ModelError::io("read", path))?;
        let code = (!config.own_widths.is_empty()).then(|| per_block::code(config.family));
        return Ok(Changed { text, code });
    }
    let blocks = &compaction.places(config);
    let Value::Object(mut raw) = config.raw.clone() else {
        return Err(ModelError::Config { path: config.path.clone(), reason: "not a JSON object".to_owned() });
    };
    // Those of a base model whose blocks had widths of their own: said anew below, if they still have.
    if !config.own_widths.is_empty() {
        for key in [PER_BLOCK, per_block::GLOBAL_ACCESS, "auto_map"] {
            raw.shift_remove(key);
        }
        raw.insert("architectures".to_owned(), json!([config.family.architecture()]));
    }
    leave_out_blocks(config, blocks, &mut raw)?;
    say_rope_for_earlier_versions(&mut raw);
    let widest = widest(blocks);
    raw.extend(widest.keys(config.family).into_iter().map(|(key, value)| (key.to_owned(), json!(value))));
    if config.family != Family::Opt {
        raw.insert("head_dim".to_owned(), json!(config.head_dim));
    }
    let equal = !differ(blocks);
    let mut heads = blocks.iter().map(|block| block.widths.heads).chain([widest.heads]);
    let odd_one_out = heads.find(|heads| config.hidden % heads != 0);
    let mut family = config.family;
    if family == Family::Llama && (odd_one_out.is_some() || (!equal && !has_biases(config))) {
        retype(config, odd_one_out.unwrap_or(widest.heads), &mut raw)?;
        family = Family::Mistral;
    }
    let mut code = None;
    if !equal {
        per_block::insert(family, blocks, widest, &mut raw);
        code = Some(per_block::code(family));
    }
    let mut text = format!("{:#}", Value::Object(raw));
    text.push('\n');
    Ok(Changed { text, code })
}

/// Returns the largest of each width.
fn widest(blocks: &[Place]) -> BlockWidths {
    let most = |width: fn(&BlockWidths) -> i64| blocks.iter().map(|block| width(&block.widths)).max().unwrap_or(1);
    let (kv_heads, ffn) = (most(|w| w.kv_heads), most(|w| w.ffn));
    // A multiple of the kv heads, as every reader of a config expects.
    BlockWidths { heads: most(|w| w.heads_per_group()) * kv_heads, kv_heads, ffn }
}

/// Takes the values of blocks that are left out from whatever has one for each block.
fn leave_out_blocks(config: &ModelConfig, blocks: &[Place], raw: &mut Map<String, Value>) -> Result<(), ModelError> {
    if blocks.len() == config.blocks as usize {
        return Ok(());
    }
    raw.insert("num_hidden_layers".to_owned(), json!(blocks.len()));
    for key in PER_BLOCK_LISTS {
        let Some(Value::Array(values)) = raw.get(key) else { continue };
        let left: Option<Vec<Value>> = blocks.iter().map(|block| values.get(block.base as usize).cloned()).collect();
        let left = left.ok_or_else(|| ModelError::Config {
            path: config.path.clone(),
            reason: format!("'{key}' has {} values for {} blocks", values.len(), config.blocks),
        })?;
        raw.insert(key.to_owned(), Value::Array(left));
    }
    if let Some(first) = raw.get("max_window_layers").and_then(Value::as_i64) {
        let before = blocks.iter().filter(|block| i64::from(block.base) < first).count();
        raw.insert("max_window_layers".to_owned(), json!(before));
    }
    Ok(())
}

/// Says rotary embeddings in the words of transformers before 5 as well: it does not know `rope_parameters`, and would take
/// its default base and no scaling without a word.
fn say_rope_for_earlier_versions(raw: &mut Map<String, Value>) {
    let Some(Value::Object(rope)) = raw.get("rope_parameters").cloned() else { return };
    if let Some(theta) = rope.get("rope_theta") {
        raw.entry("rope_theta").or_insert_with(|| theta.clone());
    }
    if rope.get("rope_type").is_some_and(|kind| kind != "default") {
        let scaling: Map<String, Value> = rope.into_iter().filter(|(key, _)| key != "rope_theta").collect();
        raw.entry("rope_scaling").or_insert_with(|| Value::Object(scaling));
    }
}

fn has_biases(config: &ModelConfig) -> bool {
    config.o_bias || config.qkv_bias || config.mlp_bias
}

/// Makes a Llama a Mistral: the same tensors and the same arithmetic, but transformers refuses the former when the
/// hidden size is no multiple of the number of heads.
fn retype(config: &ModelConfig, heads: i64, raw: &mut Map<String, Value>) -> Result<(), ModelError> {
    if has_biases(config) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_embeddings_are_said_as_earlier_transformers_read_them() {
        let said = |rope: Value| {
            let Value::Object(mut raw) = json!({ "rope_parameters": rope }) else { unreachable!("an object") };
            say_rope_for_earlier_versions(&mut raw);
            (raw.get("rope_theta").cloned(), raw.get("rope_scaling").cloned())
        };
        let linear = json!({ "factor": 2.0, "rope_theta": 1000.0, "rope_type": "linear" });
        assert_eq!(said(linear), (Some(json!(1000.0)), Some(json!({ "factor": 2.0, "rope_type": "linear" }))));
        let plain = json!({ "rope_theta": 1e6, "rope_type": "default" });
        assert_eq!(said(plain), (Some(json!(1e6)), None));
    }
}
