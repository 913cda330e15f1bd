//! What llama.cpp is told of a model: its architecture, widths and positions.

use super::container::Value;
use super::tensors;
use crate::compact::{Place, differ};
use crate::{Family, ModelConfig, ModelFolder, RopeScaling};
use types::GgufType;

/// The code of llama.cpp that runs the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    /// Llama and Mistral.
    Llama,
    Qwen2,
    Qwen3,
    /// A width for each block.
    Deci,
}

impl Architecture {
    /// Returns the architecture for a model like `config` with `blocks`. Families that have none were refused before.
    pub(super) fn of(config: &ModelConfig, blocks: &[Place]) -> Self {
        if differ(blocks) {
            return Self::Deci;
        }
        match config.family {
            Family::Qwen2 => Self::Qwen2,
            Family::Qwen3 => Self::Qwen3,
            Family::Llama | Family::Mistral | Family::Opt => Self::Llama,
        }
    }

    /// Returns its name in the file.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Deci => "deci",
        }
    }

    /// Returns whether it turns adjacent pairs of a head's numbers, where checkpoints have the pairs' halves apart.
    pub(super) fn adjacent_pairs(self) -> bool {
        matches!(self, Self::Llama | Self::Deci)
    }

    /// Returns the keys that describe the model.
    pub(super) fn keys(self, config: &ModelConfig, blocks: &[Place]) -> Vec<(String, Value)> {
        let whole = |n: i64| Value::U32(n as u32);
        let each = |width: fn(&Place) -> i64| match self {
            Self::Deci => Value::I32s(blocks.iter().map(|block| width(block) as i32).collect()),
            _ => whole(blocks.first().map_or(0, width)),
        };
        // Without its window a model attends beyond what it was made for; with fewer positions it is exact.
        let positions = config.sliding_window.map_or(config.max_positions, |window| window.min(config.max_positions));
        let mut keys = vec![
            ("vocab_size", whole(config.vocab)),
            ("context_length", whole(positions)),
            ("embedding_length", whole(config.hidden)),
            ("block_count", whole(blocks.len() as i64)),
            ("feed_forward_length", each(|block| block.widths.ffn)),
            ("attention.head_count", each(|block| block.widths.heads)),
            ("attention.head_count_kv", each(|block| block.widths.kv_heads)),
            ("attention.key_length", whole(config.head_dim)),
            ("attention.value_length", whole(config.head_dim)),
            ("attention.layer_norm_rms_epsilon", Value::F32(config.norm_eps as f32)),
            ("rope.dimension_count", whole(config.head_dim)),
        ];
        if let Some(rope) = &config.rope {
            keys.push(("rope.freq_base", Value::F32(rope.theta as f32)));
            if let RopeScaling::Linear { factor } = rope.scaling {
                keys.push(("rope.scaling.type", Value::Text("linear".to_owned())));
                keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
            }
        }
        let named = keys.into_iter().map(|(key, value)| (format!("{}.{key}", self.name()), value));
        let architecture = ("general.architecture".to_owned(), Value::Text(self.name().to_owned()));
        std::iter::once(architecture).chain(named).collect()
    }
}

/// Returns the keys that every file has.
pub(super) fn general(folder: &ModelFolder, gguf_type: GgufType) -> Vec<(String, Value)> {
    // Numbers of llama.cpp's own list of file types.
    let file_type = match gguf_type {
        GgufType::F32 | GgufType::Auto => 0,
        GgufType::F16 => 1,
        GgufType::Q8 => 7,
        GgufType::Bf16 => 32,
    };
    let mut keys = vec![
        ("general.name".to_owned(), Value::Text(format!("{}, pruned", crate::export::card::base_model(folder.path())))),
        ("general.file_type".to_owned(), Value::U32(file_type)),
    ];
    if gguf_type == GgufType::Q8 {
        keys.push(("general.quantization_version".to_owned(), Value::U32(tensors::QUANTIZATION_VERSION)));
    }
    keys
}
