//! Flags of `report`.

use clap::Args;
use std::path::PathBuf;

pub(super) const ABOUT: &str = "\
Makes the page of a run again: size and perplexity before and after, what went from each block, what other sizes would \
have cost, every shot, time and memory, damping, digests, the specification and the command.

prune and materialise write it into the folder that they make. This command reads the journal in the state folder, also of \
a run that was stopped or has failed, and computes nothing. The page is one file that needs no network.

Examples:
  llm-surgeon report small.state
  llm-surgeon report small.state --run r-0123456789abcdef --out so-far.html";

/// Flags of `report`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReportArgs {
    /// State folder of the run
    #[arg(value_name = "STATE")]
    pub(crate) state: PathBuf,
    /// The run, where the folder has several; its name is in its report [default: the newest]
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// File to write; replaced if it is there [default: report.html in the run's output folder]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) out: Option<PathBuf>,
}
