//! Flags of `generate`.

use super::MachineArgs;
use super::choice::{self, parser};
use clap::Args;
use std::path::PathBuf;
use types::Dtype;

pub(super) const ABOUT: &str = "\
Lets a model go on from a prompt for a few tokens, so that one can see whether it still speaks.

Always takes the most likely token, so the same model says the same, and ends where the model ends its text. There is no \
cache: each token runs the whole text again, which is fine for tens of tokens and slow beyond. Speed as a figure is what \
eval measures.

Examples:
  llm-surgeon generate SMALLER --prompt \"The capital of France is\"
  llm-surgeon generate SMALLER --chat --prompt \"Name three colours.\" --tokens 64";

/// Flags of `generate`.
#[derive(Debug, Clone, Args)]
pub(crate) struct GenerateArgs {
    /// Model folder
    #[arg(value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Text to go on from
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: String,
    /// Tokens at most
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub(crate) tokens: u64,
    /// Put the prompt through the model's chat template, as a user's message that is to be answered
    #[arg(long)]
    pub(crate) chat: bool,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Number format of weights and activations
    #[arg(long, value_parser = parser::<Dtype>(choice::DTYPE), default_value = "f32", help_heading = "Machine")]
    pub(crate) dtype: Dtype,
    /// No figures at the end
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// The result as JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
