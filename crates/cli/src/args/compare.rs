//! Flags of `compare`.

use clap::Args;
use std::path::PathBuf;

pub(super) const ABOUT: &str = "\
Sets the reports of several output folders side by side: model, method, size, perplexity with its ratio to the dense \
model, prediction, shots.

Reads pruning_report.json in each folder and computes nothing. Says so where base models or protocols differ, because \
such perplexities cannot be compared.

Examples:
  llm-surgeon compare small-0.9 small-0.8 small-0.7
  llm-surgeon compare runs/* --html comparison.html";

/// Flags of `compare`.
#[derive(Debug, Clone, Args)]
pub(crate) struct CompareArgs {
    /// Folders that prune or materialise has written
    #[arg(value_name = "DIR", required = true)]
    pub(crate) folders: Vec<PathBuf>,
    /// Also write a page with a plot of perplexity against size; the file is replaced if it is there
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) html: Option<PathBuf>,
    /// The figures as JSON, on one line
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
