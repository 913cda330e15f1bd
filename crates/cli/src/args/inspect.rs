//! Flags of `inspect`.

use super::TargetArgs;
use super::choice::{self, StructureArg, parser};
use clap::Args;
use std::path::PathBuf;
use types::AttentionUnit;

pub(super) const ABOUT: &str = "\
Shows what is in a model folder: family, sizes, layers, the units that can be removed and what each saves. The folder is \
checked on the way: every tensor must be there, in the right shape.

With a target it also shows what would be left: every pair of attention and FFN widths, equal in all blocks, that meets \
it. Which of them `prune` takes, the curvature decides.

Examples:
  llm-surgeon inspect SmolLM2-135M
  llm-surgeon inspect SmolLM2-135M --target-params 110M --multiple-of 32
  llm-surgeon inspect SmolLM2-135M --target-size 0.8 --json";

/// Flags of `inspect`.
#[derive(Debug, Clone, Args)]
pub(crate) struct InspectArgs {
    /// Model folder
    #[arg(value_name = "DIR")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// What is removed at once
    #[arg(long, value_parser = choice::structure(), default_value = "coupled", help_heading = "What is removed")]
    pub(crate) structure: StructureArg,
    /// By which unit attention is pruned under --structure coupled
    #[arg(long, value_parser = parser::<AttentionUnit>(choice::HEADS), default_value = "kv-group", help_heading = "What is removed")]
    pub(crate) heads: AttentionUnit,
    /// FFN widths of the result are multiples of this
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=65_536),
        default_value_t = 64,
        help_heading = "What is removed"
    )]
    pub(crate) multiple_of: u32,
    /// The result as JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
