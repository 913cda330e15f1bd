//! The names and shapes of a model's tensors, as its own files spell them.

use super::opt::POSITION_OFFSET;
use crate::{Family, ModelConfig};
use types::{InvalidId, LayerId};

/// The linear layers of one block, by checkpoint name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockLayers {
    /// Queries.
    pub q: LayerId,
    /// Keys.
    pub k: LayerId,
    /// Values.
    pub v: LayerId,
    /// Output of the attention: the consumer of heads.
    pub o: LayerId,
    /// The MLP.
    pub mlp: MlpLayers,
}

/// The linear layers of one MLP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MlpLayers {
    /// down(act(gate(x)) · up(x)).
    Gated {
        /// Gate.
        gate: LayerId,
        /// Up.
        up: LayerId,
        /// Down: the consumer of channels.
        down: LayerId,
    },
    /// fc2(act(fc1(x))).
    Plain {
        /// Up.
        fc1: LayerId,
        /// Down: the consumer of channels.
        fc2: LayerId,
    },
}

impl MlpLayers {
    /// Returns the layer whose columns are the MLP's channels.
    pub fn consumer(&self) -> &LayerId {
        match self {
            Self::Gated { down, .. } => down,
            Self::Plain { fc2, .. } => fc2,
        }
    }

    /// Returns the layers whose rows are the MLP's channels.
    pub fn producers(&self) -> Vec<&LayerId> {
        match self {
            Self::Gated { gate, up, .. } => vec![gate, up],
            Self::Plain { fc1, .. } => vec![fc1],
        }
    }
}

impl BlockLayers {
    /// Returns all layers of the block, in the order of the forward pass.
    pub fn all(&self) -> Vec<&LayerId> {
        let mut all = vec![&self.q, &self.k, &self.v, &self.o];
        all.extend(self.mlp.producers());
        all.push(self.mlp.consumer());
        all
    }
}

/// What a tensor is to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Weight of a linear layer in a block: counted as prunable.
    Linear,
    /// Everything else.
    Other,
}

/// A tensor that a model must have.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pub(crate) name: String,
    pub(crate) shape: Vec<i64>,
    pub(crate) role: Role,
}

/// The tensor names of one checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    family: Family,
    /// What stands before `layers.` and `embed_tokens.`; checkpoints of the bare decoder lack `model.`.
    prefix: String,
}

impl Names {
    /// Returns the naming of a checkpoint, from the tensor names it has.
    pub(crate) fn detect(family: Family, mut holds: impl FnMut(&str) -> bool) -> Self {
        let prefixes: &[&str] = match family {
            Family::Opt => &["model.decoder.", "decoder.", ""],
            _ => &["model.", ""],
        };
        let found = prefixes.iter().find(|prefix| holds(&format!("{prefix}embed_tokens.weight")));
        // None: the check for missing tensors will name the usual spelling.
        Self { family, prefix: (*found.unwrap_or(&prefixes[0])).to_owned() }
    }

    pub(crate) fn embedding(&self) -> String {
        format!("{}embed_tokens.weight", self.prefix)
    }

    /// The table of learned positions (OPT).
    pub(crate) fn positions(&self) -> String {
        format!("{}embed_positions.weight", self.prefix)
    }

    /// The norm after the last block, without `.weight`.
    pub(crate) fn final_norm(&self) -> String {
        let name = if self.family == Family::Opt { "final_layer_norm" } else { "norm" };
        format!("{}{name}", self.prefix)
    }

    #[allow(clippy::unused_self)] // a name like the others, though no prefix ever stands before it
    pub(crate) fn head(&self) -> String {
        "lm_head.weight".to_owned()
    }

    /// What all tensors of the blocks begin with.
    pub(crate) fn blocks(&self) -> String {
        format!("{}layers.", self.prefix)
    }

    /// Returns the number of the block that a tensor is of, and the rest of its name; `None` for those outside of blocks.
    pub(crate) fn block_of<'a>(&self, tensor: &'a str) -> Option<(u32, &'a str)> {
        let (number, part) = tensor.strip_prefix(&self.blocks())?.split_once('.')?;
        Some((number.parse().ok()?, part))
    }

    /// A part of a block, without `.weight`.
    fn part(&self, block: u32, part: &str) -> String {
        format!("{}{block}.{part}", self.blocks())
    }

    /// The norms before attention and before the MLP, without `.weight`.
    pub(crate) fn norms(&self, block: u32) -> [String; 2] {
        let parts = match self.family {
            Family::Opt => ["self_attn_layer_norm", "final_layer_norm"],
            _ => ["input_layernorm", "post_attention_layernorm"],
        };
        parts.map(|part| self.part(block, part))
    }

    /// The norms of query and key heads.
    pub(crate) fn head_norms(&self, block: u32) -> [String; 2] {
        ["self_attn.q_norm.weight", "self_attn.k_norm.weight"].map(|part| self.part(block, part))
    }

    pub(crate) fn layers(&self, block: u32) -> Result<BlockLayers, InvalidId> {
        let id = |part: &str| LayerId::new(&self.part(block, part));
        let opt = self.family == Family::Opt;
        Ok(BlockLayers {
            q: id("self_attn.q_proj")?,
            k: id("self_attn.k_proj")?,
            v: id("self_attn.v_proj")?,
            o: id(if opt { "self_attn.out_proj" } else { "self_attn.o_proj" })?,
            mlp: if opt {
                MlpLayers::Plain { fc1: id("fc1")?, fc2: id("fc2")? }
            } else {
                MlpLayers::Gated { gate: id("mlp.gate_proj")?, up: id("mlp.up_proj")?, down: id("mlp.down_proj")? }
            },
        })
    }

    /// Returns every tensor that a model of this config has, in the order of the forward pass.
    pub(crate) fn expected(&self, config: &ModelConfig, layers: &[BlockLayers]) -> Vec<Expected> {
        let mut all = Table(Vec::new());
        all.other(self.embedding(), &[config.vocab, config.hidden]);
        if config.family == Family::Opt {
            all.other(self.positions(), &[config.max_positions + POSITION_OFFSET, config.hidden]);
        }
        for (block, layers) in (0..).zip(layers) {
            let [attention_norm, mlp_norm] = self.norms(block);
            all.norm(&attention_norm, config);
            let widths = config.widths(block);
            let (q, kv) = (widths.heads * config.head_dim, widths.kv_heads * config.head_dim);
            all.linear(&layers.q, q, config.hidden, config.qkv_bias);
            all.linear(&layers.k, kv, config.hidden, config.qkv_bias);
            all.linear(&layers.v, kv, config.hidden, config.qkv_bias);
            if config.qk_norm {
                self.head_norms(block).into_iter().for_each(|name| all.other(name, &[config.head_dim]));
            }
            all.linear(&layers.o, config.hidden, q, config.o_bias);
            all.norm(&mlp_norm, config);
            for producer in layers.mlp.producers() {
                all.linear(producer, widths.ffn, config.hidden, config.mlp_bias);
            }
            all.linear(layers.mlp.consumer(), config.hidden, widths.ffn, config.mlp_bias);
        }
        all.norm(&self.final_norm(), config);
        if !config.tied {
            all.other(self.head(), &[config.vocab, config.hidden]);
        }
        all.0
    }
}

/// The table of expected tensors while it grows.
struct Table(Vec<Expected>);

impl Table {
    fn push(&mut self, name: String, shape: &[i64], role: Role) {
        self.0.push(Expected { name, shape: shape.to_vec(), role });
    }

    fn other(&mut self, name: String, shape: &[i64]) {
        self.push(name, shape, Role::Other);
    }

    /// A norm has a bias if it is a layer norm.
    fn norm(&mut self, name: &str, config: &ModelConfig) {
        self.other(format!("{name}.weight"), &[config.hidden]);
        if config.family == Family::Opt {
            self.other(format!("{name}.bias"), &[config.hidden]);
        }
    }

    fn linear(&mut self, layer: &LayerId, rows: i64, columns: i64, bias: bool) {
        self.push(format!("{layer}.weight"), &[rows, columns], Role::Linear);
        if bias {
            self.other(format!("{layer}.bias"), &[rows]);
        }
    }
}
