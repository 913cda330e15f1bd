//! Flags of `eval`.

use super::MachineArgs;
use super::choice::{self, parser};
use clap::Args;
use std::path::PathBuf;
use types::Dtype;

pub(super) const ABOUT: &str = "\
Measures perplexity, speed and memory of one or more model folders.

Perplexity follows the usual protocol: the text is joined and tokenised once, cut into segments of --seq-len tokens that \
do not overlap, and scored with the mean negative log-likelihood. The protocol is printed with the number, because a \
perplexity without it is no figure. Further folders are set against the first.

Examples:
  llm-surgeon eval SmolLM2-135M --data held-out.txt
  llm-surgeon eval SmolLM2-135M smaller --data held-out.txt --seq-len 512 --samples 12";

/// Flags of `eval`.
#[derive(Debug, Clone, Args)]
pub(crate) struct EvalArgs {
    /// Model folders; the others are set against the first
    #[arg(required = true, value_name = "DIR")]
    pub(crate) models: Vec<PathBuf>,
    /// Held-out text: a file, a folder or a glob; give it again for more
    ///
    /// jsonl, json and parquet (a document a row), txt (a document a file); each also as .gz or .zst.
    #[arg(long, required = true, value_name = "PATH", help_heading = "Data")]
    pub(crate) data: Vec<String>,
    /// Column with the text in jsonl, json and parquet
    #[arg(long, value_name = "NAME", default_value = "text", help_heading = "Data")]
    pub(crate) text_column: String,
    /// Tokens a segment [default: 2048, or the smallest maximum of the models]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u64).range(2..=1_048_576), help_heading = "Data")]
    pub(crate) seq_len: Option<u64>,
    /// Segments to score, evenly spaced; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Data")]
    pub(crate) samples: u64,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Number format of weights and activations
    #[arg(long, value_parser = parser::<Dtype>(choice::DTYPE), default_value = "f32", help_heading = "Machine")]
    pub(crate) dtype: Dtype,
    /// No progress
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// The result as JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
