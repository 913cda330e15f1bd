//! A Llama of any shape with random weights, in memory.

use model::{Activation, Attention, Block, Blocks, Decoder, Linear, Mlp, ModelConfig, ModelError, Norm};
use std::path::Path;
use tch::{Device, Kind, Tensor};
use types::LayerId;

/// What such a model looks like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Llama {
    /// Residual width.
    pub(crate) hidden: i64,
    /// FFN channels.
    pub(crate) ffn: i64,
    /// Query heads.
    pub(crate) heads: i64,
    /// Key and value heads.
    pub(crate) kv_heads: i64,
    /// Blocks.
    pub(crate) blocks: u32,
    /// Vocabulary size.
    pub(crate) vocab: i64,
}

impl Llama {
    /// Returns the model with small random weights.
    pub(crate) fn decoder(&self, kind: Kind, device: Device) -> Result<Decoder, ModelError> {
        let json = serde_json::json!({
            "model_type": "llama", "hidden_size": self.hidden, "intermediate_size": self.ffn,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab,
            "num_hidden_layers": self.blocks, "max_position_embeddings": 1 << 20, "tie_word_embeddings": true,
        });
        let config = ModelConfig::from_json(&json, Path::new("random"))?;
        tch::manual_seed(0);
        let random = |rows: i64, columns: i64| {
            let scale = 1.0 / (columns as f64).sqrt();
            Ok::<_, ModelError>(Tensor::f_randn([rows, columns], (kind, device))?.f_mul_scalar(scale)?)
        };
        let norm = || Norm::Rms { weight: Tensor::ones([self.hidden], (kind, device)), eps: 1e-5 };
        let e = self.hidden / self.heads;
        let blocks = (0..self.blocks).map(|index| {
            let linear = |part: &str, rows, columns| {
                let name =
                    LayerId::new(&format!("model.layers.{index}.{part}")).unwrap_or_else(|e| unreachable!("{e}"));
                Ok::<_, ModelError>(Linear { name, weight: random(rows, columns)?, bias: None })
            };
            Ok::<_, ModelError>(Block {
                index,
                attention_norm: norm(),
                attention: Attention {
                    q: linear("self_attn.q_proj", self.hidden, self.hidden)?,
                    k: linear("self_attn.k_proj", self.kv_heads * e, self.hidden)?,
                    v: linear("self_attn.v_proj", self.kv_heads * e, self.hidden)?,
                    o: linear("self_attn.o_proj", self.hidden, self.hidden)?,
                    head_norms: None,
                    heads: self.heads,
                    kv_heads: self.kv_heads,
                    head_dim: e,
                },
                mlp_norm: norm(),
                mlp: Mlp::Gated {
                    gate: linear("mlp.gate_proj", self.ffn, self.hidden)?,
                    up: linear("mlp.up_proj", self.ffn, self.hidden)?,
                    down: linear("mlp.down_proj", self.hidden, self.ffn)?,
                    activation: Activation::Silu,
                },
            })
        });
        let embedding = random(self.vocab, self.hidden)?;
        Ok(Decoder {
            config,
            head: embedding.shallow_clone(),
            embedding,
            positions: None,
            blocks: Blocks::Resident(blocks.collect::<Result<_, _>>()?),
            final_norm: norm(),
        })
    }

    /// Returns random token ids, `samples` × `tokens`.
    pub(crate) fn samples(&self, samples: usize, tokens: usize) -> Vec<Vec<i64>> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as i64 % self.vocab
        };
        (0..samples).map(|_| (0..tokens).map(|_| next()).collect()).collect()
    }
}
