//! The model families: which keys, which tensors, under which names.
//!
//! One file per family. What can be removed from each is in [`crate::units`].

mod llama;
mod mistral;
mod names;
mod opt;
mod qwen2;
mod qwen3;

pub use names::{BlockLayers, MlpLayers};
pub(crate) use names::{Expected, Names, Role};

use crate::config::Fields;
use crate::{ModelConfig, ModelError};
use std::fmt;

/// An architecture that this program handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 1 to 3, `SmolLM2` and others of the same shape.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
    /// OPT.
    Opt,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Opt];

    /// Returns its `model_type` in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Opt => "opt",
        }
    }

    /// Returns the class that transformers loads it with.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Opt => "OPTForCausalLM",
        }
    }

    /// Returns the family that a config names by `model_type`, or else by `architectures`.
    pub(crate) fn named_by(fields: &Fields) -> Result<Self, ModelError> {
        let architectures = fields.texts("architectures")?.unwrap_or_default();
        let model_type = fields.text("model_type")?;
        let found = match model_type {
            Some(name) => Self::ALL.into_iter().find(|f| f.name() == name),
            None => Self::ALL.into_iter().find(|f| architectures.contains(&f.architecture())),
        };
        found.ok_or_else(|| {
            let given = model_type.map_or_else(|| format!("{architectures:?}"), |name| format!("'{name}'"));
            let known = Self::ALL.map(Self::name).join(", ");
            fields.unsupported(&format!("the model family {given} is not supported (supported: {known})"))
        })
    }

    /// Returns the config of a model of this family.
    pub(crate) fn read(self, fields: &Fields) -> Result<ModelConfig, ModelError> {
        match self {
            Self::Llama => llama::read(fields),
            Self::Mistral => mistral::read(fields),
            Self::Qwen2 => qwen2::read(fields),
            Self::Qwen3 => qwen3::read(fields),
            Self::Opt => opt::read(fields),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
