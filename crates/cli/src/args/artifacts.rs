//! Flags of what moves files between here and a coordinator's store.

use super::RemoteArgs;
use clap::Args;
use std::path::PathBuf;

pub(super) const ARTIFACTS: &str = "\
Shows what can be fetched from a coordinator's store: what `submit --upload` brought, and what runs left there: manifests and weights \
of shots, removal paths, sums of factors.

Examples:
  llm-surgeon artifacts
  llm-surgeon artifacts artifacts
  llm-surgeon artifacts runs/r-0123456789abcdef/shots/0001
  llm-surgeon artifacts --delete artifacts/3b0c...";

pub(super) const FETCH: &str = "\
Fetches an artifact into a file. The file has its name only when it is whole, and matches its digest where that is known; until then \
it is FILE.….part, and the same command goes on with it.

Examples:
  llm-surgeon fetch runs/r-0123456789abcdef/shots/0001/checkpoint --out checkpoint.json";

/// Flags of `artifacts`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ArtifactsArgs {
    /// Only what lies below this: `artifacts`, or `runs/RUN` and folders of it [default: everything]
    #[arg(value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// Remove this artifact instead, finished or not; only what was uploaded, and only if no run that has not ended reads it
    #[arg(long, value_name = "NAME", conflicts_with = "prefix")]
    pub(crate) delete: Option<String>,
    /// One JSON object an artifact
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Flags of `fetch`.
#[derive(Debug, Clone, Args)]
pub(crate) struct FetchArgs {
    /// The artifact's name, as `llm-surgeon artifacts` shows it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// File to write; must not exist, unless it is the same already
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) out: PathBuf,
    /// No progress
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
}
