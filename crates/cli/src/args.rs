//! The command line: every flag, its default and what it means. Does not open files.

mod artifacts;
mod choice;
mod compare;
mod eval;
mod generate;
mod inspect;
mod materialise;
mod plan;
mod prune;
mod remote;
mod report;
mod serve;

pub(crate) use artifacts::{ArtifactsArgs, FetchArgs};
pub(crate) use compare::CompareArgs;
pub(crate) use eval::EvalArgs;
pub(crate) use generate::GenerateArgs;
pub(crate) use inspect::InspectArgs;
pub(crate) use materialise::MaterialiseArgs;
pub(crate) use plan::PlanArgs;
pub(crate) use prune::{PruneArgs, RunArgs};
pub(crate) use remote::{ControlArgs, ListArgs, RemoteArgs, SubmitArgs, WatchArgs, WorkersArgs};
pub(crate) use report::ReportArgs;
pub(crate) use serve::{ServeArgs, ServeCommand, WorkerArgs};

use crate::error::{Exit, exit_codes};
use clap::{Args, Parser, Subcommand};
use model::Weights;
use model::device::DeviceChoice;
use std::process::ExitCode;
use types::{Pattern, Target, parse_bytes, parse_count};

const ABOUT: &str = "\
Makes language models smaller by removing structures that the loss misses least.

LLM Surgeon estimates the curvature of the loss with Kronecker factors, removes whole structures (FFN channels, attention \
heads, rows and columns) where that costs least, and corrects the weights that remain. No training, no gradient steps: \
some text to calibrate on is enough. The result is a folder that stock transformers loads.

  1. look    llm-surgeon inspect MODEL --target-size 0.8
  2. prune   llm-surgeon prune MODEL --data calibration.jsonl --eval-data held-out.jsonl \\
               --target-size 0.8 --out SMALLER
  3. read    SMALLER/report.html, a page of what went where and what it cost
  4. compare llm-surgeon eval MODEL SMALLER --data held-out.jsonl
  5. listen  llm-surgeon generate SMALLER --prompt \"Once upon a time\"

Models: folders as on the Hugging Face hub (config.json, *.safetensors or pytorch_model.bin, tokenizer.json) of the \
families Llama, Mistral, Qwen2, Qwen3 and OPT. Nothing is ever downloaded.";

const ENVIRONMENT: &str = "\
Environment:
  LLM_SURGEON_LOG  log filter for standard error, e.g. info or warn,coordinator=debug
  NO_COLOR         no colours in the log";

/// The program.
#[derive(Debug, Parser)]
#[command(
    name = "llm-surgeon",
    version,
    about = "Makes language models smaller by removing structures that the loss misses least",
    long_about = ABOUT,
    after_help = exit_codes(),
    after_long_help = format!("{}\n\n{ENVIRONMENT}", exit_codes()),
    max_term_width = 110,
    propagate_version = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // parsed once
pub(crate) enum Command {
    /// Prune a model to a target size and write it as a new folder
    #[command(long_about = prune::ABOUT, after_help = exit_codes())]
    Prune(PruneArgs),
    /// Cut another size from the kept paths of an earlier run, without a new calibration
    #[command(long_about = materialise::ABOUT, after_help = exit_codes())]
    Materialise(MaterialiseArgs),
    /// Measure perplexity, speed and memory of one or more model folders
    #[command(long_about = eval::ABOUT, after_help = exit_codes())]
    Eval(EvalArgs),
    /// Let a model go on from a prompt for a few tokens
    #[command(long_about = generate::ABOUT, after_help = exit_codes())]
    Generate(GenerateArgs),
    /// Show what is in a model folder, and what a target size would leave of it
    #[command(long_about = inspect::ABOUT, after_help = exit_codes())]
    Inspect(InspectArgs),
    /// Make the page of a run (report.html) again, from its state folder
    #[command(long_about = report::ABOUT, after_help = exit_codes())]
    Report(ReportArgs),
    /// Say what a run would take: time, memory, traffic, room in the store
    #[command(long_about = plan::ABOUT, after_help = exit_codes())]
    Plan(PlanArgs),
    /// Ask a coordinator for a run; workers elsewhere carry it out
    #[command(long_about = remote::SUBMIT, after_help = exit_codes())]
    Submit(SubmitArgs),
    /// Show the runs of a coordinator
    #[command(long_about = remote::LIST, after_help = exit_codes())]
    List(ListArgs),
    /// Follow a run of a coordinator to its end
    #[command(long_about = remote::WATCH, after_help = exit_codes())]
    Watch(WatchArgs),
    /// Pause a run: its workers lay down its tasks, nothing committed is lost
    #[command(after_help = exit_codes())]
    Pause(ControlArgs),
    /// Continue a paused run
    #[command(after_help = exit_codes())]
    Resume(ControlArgs),
    /// Stop a run for good; what it has in the store stays until it is deleted
    #[command(after_help = exit_codes())]
    Cancel(ControlArgs),
    /// Remove a run that is not under way, and all it has in the store; models that it wrote stay
    #[command(after_help = exit_codes())]
    Delete(ControlArgs),
    /// Show the workers of a coordinator, or drain one
    #[command(long_about = remote::WORKERS, after_help = exit_codes())]
    Workers(WorkersArgs),
    /// Show what can be fetched from a coordinator's store
    #[command(long_about = artifacts::ARTIFACTS, after_help = exit_codes())]
    Artifacts(ArtifactsArgs),
    /// Fetch an artifact from a coordinator's store
    #[command(long_about = artifacts::FETCH, after_help = exit_codes())]
    Fetch(FetchArgs),
    /// Set the reports of several output folders side by side
    #[command(long_about = compare::ABOUT, after_help = exit_codes())]
    Compare(CompareArgs),
    /// Work for a coordinator: calibrator and surgeon in one process
    #[command(long_about = serve::ABOUT)]
    Serve(ServeArgs),
}

/// The size to reach, in one of three ways.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub(crate) struct TargetArgs {
    /// Fraction of the prunable weights to keep, above 0 and at most 1
    ///
    /// Prunable are the weights of the decoder's linear layers; embeddings, norms and biases are not counted.
    #[arg(long = "target-size", value_name = "FRACTION", help_heading = "Target (exactly one)")]
    size: Option<f64>,
    /// Several fractions, e.g. 0.9,0.8,0.7: one run to the smallest, a model written at each
    ///
    /// The smallest goes to --out, the others to folders beside it: OUT-0.9, OUT-0.8. Takes at least a shot each.
    #[arg(long = "targets", value_name = "FRACTIONS", value_delimiter = ',', help_heading = "Target (exactly one)")]
    sizes: Vec<f64>,
    /// All parameters to keep at most, e.g. 110M or 1.5B
    ///
    /// Embeddings, norms and biases included, tied weights once.
    #[arg(long = "target-params", value_name = "COUNT", value_parser = parse_count, help_heading = "Target (exactly one)")]
    params: Option<u64>,
    /// Bytes of all tensors to keep at most, e.g. 250MiB or 2GB
    ///
    /// In the number format of the model's own files.
    #[arg(long = "target-bytes", value_name = "BYTES", value_parser = parse_bytes, help_heading = "Target (exactly one)")]
    bytes: Option<u64>,
}

impl TargetArgs {
    /// Returns the sizes at which a model is written on the way.
    pub(crate) fn waypoints(&self) -> Vec<f64> {
        let mut sizes = self.falling();
        sizes.pop();
        sizes
    }

    fn falling(&self) -> Vec<f64> {
        let mut sizes = self.sizes.clone();
        sizes.sort_by(|x, y| y.total_cmp(x));
        sizes
    }

    /// Returns the target: what was asked for, or, for n:m, the whole pattern.
    pub(crate) fn target(&self, pattern: Option<Pattern>) -> Option<Target> {
        let smallest = self.falling().last().copied();
        let size = self.size.or(smallest).map(Target::Size);
        let asked = size.or(self.params.map(Target::Parameters)).or(self.bytes.map(Target::Bytes));
        asked.or_else(|| pattern.map(|p| Target::Size(p.share())))
    }
}

/// Where to compute. Changes speed and memory, and results by no more than rounding.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct MachineArgs {
    /// Where to compute: auto, cpu, cuda or cuda:N
    ///
    /// auto takes the first GPU if libtorch can use one, otherwise the CPU.
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    pub(crate) device: DeviceChoice,
    /// CPU threads for one tensor operation [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Machine")]
    pub(crate) threads: Option<u32>,
    /// Where weights lie: resident (all on the device) or stream (one block at a time)
    ///
    /// stream is for models larger than the device: each block is read from the model's files when it is needed. It changes no
    /// number.
    #[arg(long, value_name = "WHERE", default_value = "resident", help_heading = "Machine")]
    pub(crate) weights: Weights,
}

/// Returns the parsed command line, or what to exit with: help and version end well, faults do not.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| {
        let _ = error.print(); // nobody listens
        let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
        ExitCode::from(exit.code())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_is_explained() {
        for command in Cli::command().get_subcommands() {
            for flag in command.get_arguments() {
                assert!(flag.get_help().is_some(), "{} of {}", flag.get_id(), command.get_name());
            }
        }
    }
}
