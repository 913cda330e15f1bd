//! Flags of `serve`.

use calibrator::SweepArgs;
use clap::{Args, Parser, Subcommand};
use model::device::DeviceChoice;
use service::program::ProgramArgs;
use service::worker::PairArgs;
use std::ffi::OsString;
use surgeon::ReceiveArgs;

pub(super) const ABOUT: &str = "\
Runs services that work for a coordinator.

worker is a calibrator and a surgeon in one process, for a host with one GPU: factors that both have to do with do not leave \
memory. Coordinator, calibrator and surgeon are programs of their own as well.";

const WORKER: &str = "\
Runs a calibrator and a surgeon in one process: what `calibrator` and `surgeon` do, on one device.

One runs on each GPU. Both register with the coordinator, as calibrator-NAME and surgeon-NAME if --worker is NAME. --listen and \
--advertise are the calibrator's. Factors that this surgeon takes from this calibrator are neither sent nor copied. Stop it with \
SIGTERM: it gives its tasks back first. Kill it if you must: they go to others.";

/// Flags of `serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    #[command(subcommand)]
    pub(crate) what: ServeCommand,
}

/// What to run.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ServeCommand {
    /// A calibrator and a surgeon in one process; `serve worker --help` lists the flags
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Worker {
        /// Flags, read as a service reads them: with environment and settings file
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
        words: Vec<OsString>,
    },
}

/// Flags of `serve worker`; each is an environment variable too, `WORKER_` before its name.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "llm-surgeon-worker",
    bin_name = "llm-surgeon serve worker",
    version,
    about = WORKER,
    max_term_width = 110
)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) pair: PairArgs,
    /// Where both compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    pub(crate) device: DeviceChoice,
    /// CPU threads for one tensor operation of either [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Machine")]
    pub(crate) threads: Option<u32>,
    #[command(flatten)]
    pub(crate) sweep: SweepArgs,
    #[command(flatten)]
    pub(crate) receive: ReceiveArgs,
}

impl AsRef<ProgramArgs> for WorkerArgs {
    fn as_ref(&self) -> &ProgramArgs {
        self.pair.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::CommandFactory;

    #[test]
    fn a_workers_flags_are_well_formed_and_explained() {
        WorkerArgs::command().debug_assert();
        for flag in WorkerArgs::command().get_arguments() {
            assert!(flag.get_help().is_some(), "{}", flag.get_id());
        }
    }

    #[test]
    fn what_follows_serve_worker_is_the_workers() {
        let flags = ["--store", "s", "--listen=127.0.0.1:0", "--help"];
        let cli = Cli::try_parse_from(["llm-surgeon", "serve", "worker"].iter().chain(&flags)).unwrap();
        let Command::Serve(ServeArgs { what: ServeCommand::Worker { words } }) = cli.command else {
            unreachable!("serve was parsed")
        };
        assert_eq!(words, flags);
        assert!(Cli::try_parse_from(["llm-surgeon", "serve"]).is_err());
    }

    #[test]
    fn there_is_one_of_what_both_share_and_two_addresses() {
        let line = ["worker", "--store", "s", "--listen", "127.0.0.1:0", "--worker", "gpu-0", "--spill", "/scratch"];
        let args = WorkerArgs::try_parse_from(line).unwrap();
        assert_eq!(args.pair.surgeon_listen.to_string(), "127.0.0.1:7102");
        assert_eq!(args.pair.worker.worker.as_deref(), Some("gpu-0"));
        assert_eq!((args.sweep.spill_limit, args.receive.receive_memory), (64 << 30, 2 << 30));
    }
}
