//! Flags of what talks to a coordinator elsewhere.

use super::RunArgs;
use clap::Args;
use service::tls::TlsArgs;
use std::path::PathBuf;

pub(super) const SUBMIT: &str = "\
Asks a coordinator for a run and prints its name. Calibrators and surgeons elsewhere carry it out.

The flags are those of prune. Paths are as the workers see them: model, data and output must be on storage that they share. \
The same command again finds the same run, and continues it if it is paused. With --upload the data is here: its files are brought to \
the coordinator's store first, each once.

Examples:
  llm-surgeon submit /models/Llama-2-7b --data /data/c4.jsonl.zst --target-size 0.7 \\
    --out /models/Llama-2-7b-0.7 --coordinator https://coordinator:7100
  llm-surgeon submit /models/Llama-2-7b --data c4/*.jsonl.zst --upload ... --follow";

pub(super) const LIST: &str = "\
Shows the runs of a coordinator, newest first: state, size, shots, and why one is paused or has failed.";

pub(super) const WATCH: &str = "\
Follows a run of a coordinator: every committed step and the progress of the present one, until it ends or pauses. Ctrl-C \
stops the watching, not the run.";

pub(super) const WORKERS: &str = "\
Shows the workers that a coordinator has heard of lately: where they are, what they compute on, how many tasks they hold.

A worker that is drained gets no more tasks; once it holds none it may be stopped. Stopping it at once does no harm either: \
it gives its tasks back, and they are begun anew elsewhere.";

/// Where the coordinator is, and who we are to it.
#[derive(Debug, Clone, Args)]
pub(crate) struct RemoteArgs {
    /// The coordinator: `http://HOST:PORT`, `https://HOST:PORT` or `unix:///PATH`
    #[arg(
        long,
        value_name = "URL",
        env = "LLM_SURGEON_COORDINATOR",
        default_value = "http://127.0.0.1:7100",
        help_heading = "Coordinator"
    )]
    pub(crate) coordinator: String,
    /// File of the bearer token to show
    #[arg(long, value_name = "FILE", env = "LLM_SURGEON_TOKEN_FILE", help_heading = "Coordinator")]
    pub(crate) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// Send plain text beyond this host, without TLS
    #[arg(long, help_heading = "Security")]
    pub(crate) insecure: bool,
}

/// Flags of `submit`.
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "one a flag")]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// Bring --data and --eval-data, which lie here, to the coordinator's store first
    #[arg(long, conflicts_with = "validate_only", help_heading = "Data")]
    pub(crate) upload: bool,
    /// Follow the run to its end
    #[arg(long, help_heading = "Output")]
    pub(crate) follow: bool,
    /// Only have the coordinator check the specification
    #[arg(long, conflicts_with = "follow", help_heading = "Output")]
    pub(crate) validate_only: bool,
    /// With --follow: no progress
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// The run, or with --follow its events, as JSON, one object a line
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Flags of `list`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// One JSON object a run
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Flags of `watch`.
#[derive(Debug, Clone, Args)]
pub(crate) struct WatchArgs {
    /// The run's name
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// No progress
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// Events as JSON, one object a line
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Flags of `pause`, `resume`, `cancel` and `delete`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ControlArgs {
    /// The run's name
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

/// Flags of `workers`.
#[derive(Debug, Clone, Args)]
pub(crate) struct WorkersArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// Give this worker no more tasks
    #[arg(long, value_name = "WORKER")]
    pub(crate) drain: Option<String>,
    /// Give this worker tasks again
    #[arg(long, value_name = "WORKER", conflicts_with = "drain")]
    pub(crate) undrain: Option<String>,
    /// One JSON object a worker
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
