//! Flags of `materialise`.

use super::choice::{self, parser};
use super::{MachineArgs, TargetArgs};
use clap::Args;
use std::path::PathBuf;
use types::{Format, GgufType};

pub(super) const ABOUT: &str = "\
Cuts another size from a run that kept its paths (prune --keep-paths), without a new calibration.

The shots down to the size are taken over as they are. Of the shot that passes it, the curvature is there and so is the \
order in which units leave: the cut goes elsewhere, the weights that remain are updated for it, and the model is measured \
and written as prune does it. A size below the run's own target follows the last shot's paths further down.

Everything else is as in the earlier run: data, structure, shape, damping, seed. A run straight to the same size gives the \
same model where its shots are the same, which one shot always is.

Examples:
  llm-surgeon prune MODEL --data text/ --target-size 0.7 --shots 4 --keep-paths --out small
  llm-surgeon materialise small.state --target-size 0.75 --out larger
  llm-surgeon materialise small.state --target-bytes 300MiB --out fits
  llm-surgeon materialise small.state --target-size 0.75 --format gguf --gguf-type q8_0 --out for-llama.cpp";

/// Flags of `materialise`.
#[derive(Debug, Clone, Args)]
pub(crate) struct MaterialiseArgs {
    /// State folder of the run that kept its paths
    #[arg(value_name = "STATE")]
    pub(crate) state: PathBuf,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// The run, where the folder has several; its name is in its report [default: the newest that kept its paths]
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<String>,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// Folder to write; must not exist
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(crate) out: PathBuf,
    /// For which runtimes the result is written [default: as the run]
    #[arg(long, value_parser = parser::<Format>(choice::FORMAT), help_heading = "Output")]
    pub(crate) format: Option<Format>,
    /// Number format of the matrices in model.gguf [default: as the run]
    #[arg(long, value_parser = parser::<GgufType>(choice::GGUF_TYPE), help_heading = "Output")]
    pub(crate) gguf_type: Option<GgufType>,
    /// No progress; only the folder's path at the end
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// Events and the summary as JSON, one object a line, on standard output; text for people goes to standard error
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
