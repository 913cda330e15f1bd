//! Flags of `plan`.

use super::choice::{self, StructureArg, parser};
use clap::Args;
use std::path::PathBuf;
use types::{Dtype, parse_bytes};

pub(super) const ABOUT: &str = "\
Says what a run would take, before anything runs: time, memory, traffic and room in the store, stage by stage.

It reads config.json alone, not the weights. Sizes of factors, weights and shards are exact; seconds are operations over the rate \
of plain matrix products, by the shares of it that sweep and removal paths were measured to reach. Measured runs were within a \
factor of 2 of that.

Examples:
  llm-surgeon plan Llama-2-7b --gpus 8 --flops 400e12 --network 100e9
  llm-surgeon plan config.json --structure row-column --samples 128 --seq-len 2048";

/// Flags of `plan`.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlanArgs {
    /// Model folder, or its config.json
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Calibration samples of a shot
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=1_000_000), help_heading = "Run")]
    pub(crate) samples: u64,
    /// Tokens a sample
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..=1_000_000), help_heading = "Run")]
    pub(crate) seq_len: u64,
    /// Shots
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000), help_heading = "Run")]
    pub(crate) shots: u64,
    /// Held-out segments after each shot
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u64).range(0..=1_000_000), help_heading = "Run")]
    pub(crate) eval_samples: u64,
    /// What is removed at once: it says which layers' curvature is needed
    #[arg(long, value_parser = choice::structure(), default_value = "coupled", help_heading = "Run")]
    pub(crate) structure: StructureArg,
    /// Number format of weights and activations
    #[arg(long, value_parser = parser::<Dtype>(choice::DTYPE), default_value = "bf16", help_heading = "Run")]
    pub(crate) dtype: Dtype,
    /// Memory for activations during a sweep, as for prune
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "16GiB", help_heading = "Run")]
    pub(crate) memory: u64,
    /// Workers: a calibrator and a surgeon on each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000), help_heading = "Machines")]
    pub(crate) gpus: u64,
    /// Memory of each
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "80GiB", help_heading = "Machines")]
    pub(crate) gpu_memory: u64,
    /// Operations a second of each in plain matrix products
    #[arg(long, value_name = "RATE", default_value_t = 400e12, help_heading = "Machines")]
    pub(crate) flops: f64,
    /// Bits a second of each over the network
    #[arg(long, value_name = "RATE", default_value_t = 100e9, help_heading = "Machines")]
    pub(crate) network: f64,
    /// The forecast as JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
