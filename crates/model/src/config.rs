//! The shape of a model, read from the variants of `config.json` that are in use.
//!
//! Keys differ by age and family; what they mean is decided here and in [`crate::family`], once. Does not look at tensors.

mod fields;
mod rope;
mod widths;

pub(crate) use fields::Fields;
pub use rope::{Rope, RopeScaling};
pub use widths::BlockWidths;
pub(crate) use widths::PER_BLOCK;

use crate::{Family, ModelError};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The largest dimension that is believed; products of two stay far from overflow.
const MAX_DIMENSION: i64 = 1 << 28;

/// The nonlinearity of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x), also called swish.
    Silu,
    /// x · Φ(x), by the error function.
    Gelu,
    /// The approximation of GELU by tanh.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

/// What a decoder of one of the [`Family`]s looks like before pruning.
#[allow(clippy::struct_excessive_bools)] // independent facts, each read from its own key
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The file it was read from.
    pub path: PathBuf,
    /// The architecture.
    pub family: Family,
    /// Residual width.
    pub hidden: i64,
    /// Number of blocks.
    pub blocks: u32,
    /// Query heads of a block.
    pub heads: i64,
    /// Key and value heads of a block; each serves `heads / kv_heads` query heads.
    pub kv_heads: i64,
    /// Size of one head; not always `hidden / heads`.
    pub head_dim: i64,
    /// Channels of a block's MLP.
    pub ffn: i64,
    /// Widths of the blocks that have others than those above: models whose blocks were pruned by different amounts.
    pub own_widths: BTreeMap<u32, BlockWidths>,
    /// Vocabulary size.
    pub vocab: i64,
    /// Longest position the model was made for, in tokens.
    pub max_positions: i64,
    /// ε of the norms.
    pub norm_eps: f64,
    /// Nonlinearity of the MLP.
    pub activation: Activation,
    /// Rotary position embedding; `None` for learned positions.
    pub rope: Option<Rope>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether o has a bias.
    pub o_bias: bool,
    /// Whether the MLP's layers have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised per head.
    pub qk_norm: bool,
    /// Tokens that attention looks back, if some block limits it.
    pub sliding_window: Option<i64>,
    /// Token that begins a text, if the config names one.
    pub bos: Option<i64>,
    /// Tokens that end a text.
    pub eos: Vec<i64>,
    /// The file's content, for writing it again with few changes.
    pub raw: Value,
}

impl ModelConfig {
    /// Returns the config in the file `path`.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for families, quantised checkpoints and variants that are not handled;
    /// [`ModelError::Config`] for missing or contradictory keys.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let text = std::fs::read_to_string(path).map_err(ModelError::io("read", path))?;
        let raw: Value = serde_json::from_str(&text)
            .map_err(|e| ModelError::Config { path: path.to_owned(), reason: format!("not valid JSON: {e}") })?;
        Self::from_json(&raw, path)
    }

    /// Returns the config in `raw`; `path` is for messages.
    pub fn from_json(raw: &Value, path: &Path) -> Result<Self, ModelError> {
        let fields = Fields::new(raw, path)?;
        for key in ["quantization_config", "compression_config"] {
            if let Some(found) = fields.get(key) {
                let method = found.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed method");
                return Err(fields.unsupported(&format!(
                    "the checkpoint is quantised ({key}: {method}); pruning needs the original weights in bf16, f16 or f32"
                )));
            }
        }
        let mut config = Family::named_by(&fields)?.read(&fields)?;
        config.check(&fields)?;
        config.own_widths = widths::read(&fields, &config)?;
        Ok(config)
    }

    /// Returns what is common to the families with rotary positions and gated MLPs; they change what differs.
    pub(crate) fn gated(family: Family, fields: &Fields) -> Result<Self, ModelError> {
        let hidden = fields.required("hidden_size")?;
        let heads = fields.required("num_attention_heads")?;
        let max_positions = fields.integer("max_position_embeddings")?.unwrap_or(2048);
        Ok(Self {
            path: fields.path().to_owned(),
            family,
            hidden,
            blocks: fields.blocks()?,
            heads,
            kv_heads: fields.integer("num_key_value_heads")?.unwrap_or(heads),
            head_dim: match fields.integer("head_dim")? {
                Some(size) => size,
                None => hidden / heads.max(1),
            },
            ffn: fields.required("intermediate_size")?,
            own_widths: BTreeMap::new(),
            vocab: fields.required("vocab_size")?,
            max_positions,
            norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
            activation: fields.activation("hidden_act", Activation::Silu)?,
            rope: Some(Rope::read(fields)?),
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            sliding_window: None,
            bos: fields.integer("bos_token_id")?,
            eos: fields.integers("eos_token_id")?,
            raw: fields.raw().clone(),
        })
    }

    /// Checks that the numbers can belong together.
    fn check(&self, fields: &Fields) -> Result<(), ModelError> {
        let positive = [
            ("hidden size", self.hidden),
            ("number of attention heads", self.heads),
            ("number of key/value heads", self.kv_heads),
            ("head size", self.head_dim),
            ("MLP width", self.ffn),
            ("vocabulary size", self.vocab),
            ("number of positions", self.max_positions),
            ("number of blocks", i64::from(self.blocks)),
        ];
        for (what, value) in positive {
            if !(1..=MAX_DIMENSION).contains(&value) {
                return Err(fields.invalid(&format!("the {what} is {value}, expected 1 to {MAX_DIMENSION}")));
            }
        }
        if self.heads % self.kv_heads != 0 {
            return Err(fields.invalid(&format!(
                "{} attention heads cannot be shared equally by {} key/value heads",
                self.heads, self.kv_heads
            )));
        }
        if self.rope.is_some() && self.head_dim % 2 != 0 {
            return Err(fields.invalid(&format!("the head size {} is odd, rotary positions need pairs", self.head_dim)));
        }
        Ok(())
    }

    /// Checks that `tokens` tokens can be run at once: positions exist for all, and no sliding window would hide some.
    pub fn check_length(&self, tokens: i64) -> Result<(), ModelError> {
        let refuse = |reason| Err(ModelError::Unsupported { path: self.path.clone(), reason });
        if let Some(window) = self.sliding_window.filter(|w| tokens > *w) {
            return refuse(format!(
                "{tokens} tokens are more than the model's sliding window of {window}, which is not supported; use a sequence length of at most {window}"
            ));
        }
        if self.rope.is_none() && tokens > self.max_positions {
            return refuse(format!(
                "{tokens} tokens are more than the model's {} learned positions",
                self.max_positions
            ));
        }
        Ok(())
    }

    /// Returns the widths of a block.
    pub fn widths(&self, block: u32) -> BlockWidths {
        let usual = BlockWidths { heads: self.heads, kv_heads: self.kv_heads, ffn: self.ffn };
        self.own_widths.get(&block).copied().unwrap_or(usual)
    }
}
