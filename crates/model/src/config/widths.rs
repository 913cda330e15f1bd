//! Widths of single blocks: `per_layer_config` in config.json, by which transformers names what differs from the model's own.

use super::{Fields, MAX_DIMENSION, ModelConfig};
use crate::{Family, ModelError};
use std::collections::BTreeMap;

/// The key of config.json: an object of block numbers, each with the keys that differ there.
pub(crate) const PER_BLOCK: &str = "per_layer_config";

/// How wide one block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockWidths {
    /// Query heads.
    pub heads: i64,
    /// Key and value heads; each serves [`Self::heads_per_group`] query heads.
    pub kv_heads: i64,
    /// Channels of the MLP.
    pub ffn: i64,
}

impl BlockWidths {
    /// Returns how many query heads share a key/value head.
    pub fn heads_per_group(self) -> i64 {
        self.heads / self.kv_heads
    }

    /// Returns the keys by which a config of `family` says these widths, with their values.
    pub(crate) fn keys(self, family: Family) -> Vec<(&'static str, i64)> {
        if family == Family::Opt {
            // No class of transformers takes other heads than hidden / heads, so they never change.
            return vec![("ffn_dim", self.ffn)];
        }
        vec![
            ("intermediate_size", self.ffn),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
        ]
    }
}

/// Returns the widths of the blocks that have their own.
pub(super) fn read(fields: &Fields, config: &ModelConfig) -> Result<BTreeMap<u32, BlockWidths>, ModelError> {
    let Some(blocks) = fields.nested(PER_BLOCK)? else { return Ok(BTreeMap::new()) };
    let mut own = BTreeMap::new();
    for key in blocks.keys() {
        let number = key.parse().ok().filter(|number| *number < config.blocks);
        let number = number.ok_or_else(|| {
            fields.invalid(&format!(
                "'{PER_BLOCK}' has the key '{key}', which is no block from 0 to {}",
                config.blocks - 1
            ))
        })?;
        let Some(block) = blocks.nested(key)? else { continue };
        let usual = config.widths(number);
        let known = usual.keys(config.family);
        if let Some(other) = block.keys().find(|key| known.iter().all(|(known, _)| known != key)) {
            let known: Vec<_> = known.iter().map(|(key, _)| *key).collect();
            return Err(fields.unsupported(&format!(
                "'{PER_BLOCK}' changes '{other}' in block {number}; only {} may differ between blocks",
                known.join(", ")
            )));
        }
        let value = |key, usual| Ok::<_, ModelError>(block.integer(key)?.unwrap_or(usual));
        let widths = BlockWidths {
            heads: value("num_attention_heads", usual.heads)?,
            kv_heads: value("num_key_value_heads", usual.kv_heads)?,
            ffn: value(if config.family == Family::Opt { "ffn_dim" } else { "intermediate_size" }, usual.ffn)?,
        };
        check(fields, number, widths)?;
        own.insert(number, widths);
    }
    Ok(own)
}

fn check(fields: &Fields, block: u32, widths: BlockWidths) -> Result<(), ModelError> {
    let BlockWidths { heads, kv_heads, ffn } = widths;
    if [heads, kv_heads, ffn].iter().any(|width| !(1..=MAX_DIMENSION).contains(width)) || heads % kv_heads != 0 {
        return Err(fields.invalid(&format!(
            "'{PER_BLOCK}' gives block {block} {heads} heads, {kv_heads} key/value heads and an MLP of {ffn}: all must be at least 1 and the second divide the first"
        )));
    }
    Ok(())
}
