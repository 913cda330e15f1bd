//! Where a surgeon runs. Nothing here changes a number; that is all in the run specification.

use clap::Parser;
use model::device::DeviceChoice;
use proto::v1::WorkerRole;
use service::Neighbour;
use service::listen::Listener;
use service::program::{Failure, ProgramArgs};
use service::worker::{Place, WorkerArgs};

/// How a surgeon is deployed.
#[derive(Debug)]
pub struct Options {
    /// Its place among the others.
    pub place: Place,
    /// What it computes on.
    pub device: DeviceChoice,
    /// Threads of a tensor operation on the CPU; `None` for as many as libtorch takes by itself.
    pub threads: Option<u32>,
    /// Bytes of factors that may be in memory between a calibrator and the store; [`Options::RECEIVE_BYTES`] is usual.
    pub receive_bytes: u64,
    /// The calibrator of the same process, if there is one.
    pub neighbour: Option<Neighbour>,
}

impl Options {
    /// The usual budget for factors on their way: 2 GiB.
    pub const RECEIVE_BYTES: u64 = 2 << 30;
}

const ABOUT: &str = "\
Removes structures: takes factors from the calibrators, computes what each removal costs, carries out the cut and updates the \
weights that remain.

Any number run, each with some of the model's blocks. It takes its tasks from the coordinator and does not decide how much \
goes. Stop it with SIGTERM: it gives its tasks back first. Kill it if you must: they go to others.";

/// Flags of the program; each is an environment variable too, `SURGEON_` before its name.
#[derive(Debug, Clone, Parser)]
#[command(name = "surgeon", version, about = ABOUT, max_term_width = 110)]
pub struct Args {
    #[command(flatten)]
    worker: WorkerArgs,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    device: DeviceChoice,
    /// CPU threads for one tensor operation [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Machine")]
    threads: Option<u32>,
    #[command(flatten)]
    receive: ReceiveArgs,
}

/// Flags of receiving factors.
#[derive(Debug, Clone, clap::Args)]
pub struct ReceiveArgs {
    /// Bytes of factors that may be in memory between a calibrator and the store, e.g. 2GiB
    #[arg(long, value_name = "BYTES", value_parser = types::parse_bytes, default_value = "2GiB", help_heading = "Machine")]
    pub receive_memory: u64,
}

impl AsRef<ProgramArgs> for Args {
    fn as_ref(&self) -> &ProgramArgs {
        &self.worker.program
    }
}

impl Args {
    /// Opens store and network; returns the deployment and where calls arrive.
    ///
    /// # Errors
    /// Flags that cannot be, all at once; a store or an address that cannot be had.
    pub async fn open(self) -> Result<(Options, Listener), Failure> {
        let (place, listener) = self.worker.open(WorkerRole::Surgeon).await?;
        let receive_bytes = self.receive.receive_memory;
        let options = Options { place, device: self.device, threads: self.threads, receive_bytes, neighbour: None };
        Ok((options, listener))
    }
}
