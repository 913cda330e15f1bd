//! What a worker says about a model and about data, so that a coordinator can plan without tensors.

use crate::{LayerId, Sizes, UnitKind};
use serde::{Deserialize, Serialize};

/// What is in a model folder, without its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelDescription {
    /// `llama`, `mistral`, `qwen2`, `qwen3` or `opt`.
    pub family: String,
    /// BLAKE3 of config and tensor files.
    pub digest: String,
    /// Residual width.
    pub hidden: u64,
    /// Vocabulary size.
    pub vocabulary: u64,
    /// Longest position the model was made for, in tokens.
    pub max_positions: u64,
    /// The whole model.
    pub dense: Sizes,
    /// Blocks from the first to the last.
    pub blocks: Vec<BlockDescription>,
    /// Why blocks of different widths cannot be written in the run's format; empty if they can.
    #[serde(default)]
    pub own_widths_refused: String,
}

impl ModelDescription {
    /// Returns every group of units, block by block.
    pub fn groups(&self) -> impl Iterator<Item = &UnitGroup> {
        self.blocks.iter().flat_map(|b| &b.groups)
    }

    /// Returns how many units a layer has: those of its group, or, where there are no groups, its rows and columns. `None` for
    /// a layer that the model does not have.
    pub fn units_of(&self, layer: &LayerId) -> Option<u64> {
        let group = self.groups().find(|group| group.layer == *layer);
        let described = || self.blocks.iter().flat_map(|b| &b.layers).find(|l| l.layer == *layer);
        group.map(|g| u64::from(g.units) * u64::from(g.together)).or_else(|| described().map(|l| l.rows + l.columns))
    }

    /// Returns the size of the smallest model that can be left when FFN widths are multiples of `multiple_of`.
    pub fn smallest(&self, multiple_of: u32) -> Sizes {
        self.groups().fold(self.dense, |left, group| {
            let removable = (group.units * group.together).saturating_sub(group.must_keep(multiple_of));
            left - group.freed_per_unit * u64::from(removable)
        })
    }
}

/// One decoder layer of the transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockDescription {
    /// Its number, from 0.
    pub block: u32,
    /// Its linear layers.
    pub layers: Vec<LayerDescription>,
    /// Its removable units under the run's structure. Empty for `row-column`, whose paths say what each step frees.
    pub groups: Vec<UnitGroup>,
}

/// One linear layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerDescription {
    /// Its checkpoint name.
    pub layer: LayerId,
    /// Output features R.
    pub rows: u64,
    /// Input features C, without the bias.
    pub columns: u64,
    /// Whether a bias is the last column of the curvature.
    pub bias: bool,
    /// The first layer that is fed by the same tensor: both share A.
    pub input: LayerId,
    /// Whether the run's structure needs this layer's curvature.
    pub curvature: bool,
}

/// Removable units of one kind in one block. All of a group's units are of equal size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnitGroup {
    /// The consumer layer, where the cost arises and the update happens.
    pub layer: LayerId,
    /// What the units are.
    pub kind: UnitKind,
    /// How many there are in the original model. For query heads: per kv group.
    pub units: u32,
    /// Units that can only go at the same time: for query heads the number of kv groups, otherwise 1.
    pub together: u32,
    /// How many must stay; 0 where the whole sub-block may go.
    pub min_keep: u32,
    /// Columns of the consumer that one unit covers.
    pub columns_per_unit: u32,
    /// What the removal of one unit saves.
    pub freed_per_unit: Sizes,
}

impl UnitGroup {
    /// Returns how many units stay at least, counted one by one: an FFN that stays keeps one rounding quantum of channels.
    pub fn must_keep(&self, multiple_of: u32) -> u32 {
        if self.min_keep == 0 {
            return 0;
        }
        let quantum = if self.kind == UnitKind::FfnChannel { multiple_of.min(self.units) } else { 1 };
        self.min_keep.max(quantum) * self.together
    }
}

/// What was read from data files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataDescription {
    /// BLAKE3 over the documents' text, in reading order.
    pub digest: String,
    /// BLAKE3 of tokenizer.json, or over vocab.json and merges.txt.
    pub tokenizer_digest: String,
    /// Documents used.
    pub documents: u64,
    /// Documents skipped because they were empty.
    pub skipped: u64,
    /// Tokens in all documents.
    pub tokens: u64,
    /// Samples (sequences) of one shot, or segments.
    pub samples: u64,
    /// Sets of so many samples, none in two of them: shot k sees set (k − 1) mod `sets`.
    pub sets: u32,
    /// Tokens per sample.
    pub seq_len: u64,
    /// Documents that the evaluation data shares with the calibration data. 0 for calibration data itself.
    pub overlap: u64,
    /// Whether the tokenizer puts a BOS token first.
    pub bos: bool,
}
