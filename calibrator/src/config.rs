//! Where a calibrator runs. Nothing here changes a number; that is all in the run specification.

use clap::Parser;
use model::Weights;
use model::device::DeviceChoice;
use proto::v1::WorkerRole;
use service::listen::Listener;
use service::program::{Failure, ProgramArgs};
use service::worker::{Place, WorkerArgs};

/// How a calibrator is deployed.
#[derive(Debug)]
pub struct Options {
    /// Its place among the others.
    pub place: Place,
    /// What it computes on.
    pub device: DeviceChoice,
    /// Threads of a tensor operation on the CPU; `None` for as many as libtorch takes by itself.
    pub threads: Option<u32>,
    /// Where the model's weights lie.
    pub weights: Weights,
}

const ABOUT: &str = "\
Measures curvature: sweeps a language model over calibration text and hands each block's Kronecker factors to the surgeons.

One runs on each GPU. It takes its tasks from the coordinator and decides nothing; everything that can change a number comes \
with the task. Stop it with SIGTERM: it gives its task back first. Kill it if you must: the task goes to another.";

/// Flags of the program; each is an environment variable too, `CALIBRATOR_` before its name.
#[derive(Debug, Clone, Parser)]
#[command(name = "calibrator", version, about = ABOUT, max_term_width = 110)]
pub struct Args {
    #[command(flatten)]
    worker: WorkerArgs,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Machine")]
    device: DeviceChoice,
    /// CPU threads for one tensor operation [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Machine")]
    threads: Option<u32>,
    /// Where weights lie: resident (all on the device), or stream (one block at a time, for models larger than the device)
    #[arg(long, value_name = "WHERE", default_value = "resident", help_heading = "Machine")]
    weights: Weights,
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
        let (place, listener) = self.worker.open(WorkerRole::Calibrator).await?;
        let options = Options { place, device: self.device, threads: self.threads, weights: self.weights };
        Ok((options, listener))
    }
}
