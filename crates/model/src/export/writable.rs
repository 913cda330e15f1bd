//! Which results load in which runtimes: what would not, or would compute something else, is refused before a run begins.

use super::gguf;
use crate::{Activation, Family, ModelConfig, ModelError, ModelFolder, RopeScaling};
use types::{Format, RunSpec, Shape, Structure};

/// Checks that the result of `spec` can be written for the runtimes it asks for.
///
/// # Errors
/// [`ModelError::Unsupported`] with the reason and the nearest choice that works.
pub fn check_writable(folder: &ModelFolder, spec: &RunSpec) -> Result<(), ModelError> {
    let config = folder.config();
    let own = match spec.structure {
        Structure::Coupled => spec.shape == Shape::PerLayer,
        Structure::RowColumn | Structure::Element | Structure::NofM => !config.own_widths.is_empty(),
    };
    if let Some(reason) = refusal(config, spec.format, own) {
        let reason = format!("--format {}: {reason}", spec.format);
        return Err(ModelError::Unsupported { path: config.path.clone(), reason });
    }
    if spec.format.has_gguf() { gguf::check_tokenizer(folder) } else { Ok(()) }
}

/// Returns why a model like `config` cannot be written in `format`, `own`: with widths that differ from block to block.
pub fn refusal(config: &ModelConfig, format: Format, own: bool) -> Option<String> {
    if !format.has_gguf() {
        return None;
    }
    let family = config.family;
    if family == Family::Opt {
        return Some("llama.cpp runs no OPT models; take --format hf".to_owned());
    }
    if config.activation != Activation::Silu {
        return Some("llama.cpp runs these families with the activation silu only; take --format hf".to_owned());
    }
    let qwen = matches!(family, Family::Qwen2 | Family::Qwen3) && !own;
    let scaled = config.rope.is_some_and(|rope| matches!(rope.scaling, RopeScaling::Llama3 { .. }));
    if qwen && scaled {
        return Some(format!("llama.cpp turns {family}'s positions without llama3's scaling; take --format hf"));
    }
    if own && config.qk_norm {
        return Some(format!(
            "no architecture of llama.cpp has both a width for each block and {family}'s norms of queries and keys; take --shape uniform or padded, or --format hf"
        ));
    }
    if own && (config.o_bias || config.mlp_bias) {
        return Some(
            "llama.cpp's architecture with a width for each block has no biases of o and the MLP; take --shape uniform or padded, or --format hf".to_owned(),
        );
    }
    None
}
