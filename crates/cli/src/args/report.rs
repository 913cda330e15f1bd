//! Flags of `report`.

use super::RemoteArgs;
use clap::Args;
use std::path::PathBuf;

pub(super) const ABOUT: &str = "\
Makes the page of a run again: size and perplexity before and after, what went from each block, what other sizes would \
have cost, every shot, time and memory, damping, digests, the specification and the command.

prune and materialise write it into the folder that they make. This command reads the journal in the state folder, or asks a \
coordinator for it, also of a run that is under way, was stopped or has failed, and computes nothing. The page is one file that \
needs no network.

Examples:
  llm-surgeon report small.state
  llm-surgeon report small.state --run r-0123456789abcdef --out so-far.html
  llm-surgeon report --run r-0123456789abcdef --coordinator https://coordinator:7100 --out so-far.html";

/// Flags of `report`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReportArgs {
    /// State folder of the run; without it --run is a run of --coordinator
    #[arg(value_name = "STATE", required_unless_present = "run")]
    pub(crate) state: Option<PathBuf>,
    /// The run, where the folder has several or there is none; its name is in its report [default: the newest]
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// File to write; replaced if it is there [default: report.html in the run's output folder]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}
