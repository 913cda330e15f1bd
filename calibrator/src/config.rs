//! Where a calibrator runs. Nothing here changes a number; that is all in the run specification.

use crate::shelf::Shelf;
use crate::spill::Spill;
use clap::Parser;
use model::Weights;
use model::device::DeviceChoice;
use proto::v1::WorkerRole;
use service::listen::Listener;
use service::program::{Exit, Failure, ProgramArgs};
use service::worker::{Place, WorkerArgs};
use std::path::PathBuf;
use std::sync::Arc;

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
    /// Where finished blocks wait; the surgeon of the same process takes them from there.
    pub shelf: Arc<Shelf>,
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
    #[command(flatten)]
    sweep: SweepArgs,
}

/// Flags of sweeping: where weights lie, and where factors wait.
#[derive(Debug, Clone, clap::Args)]
pub struct SweepArgs {
    /// Where weights lie: resident (all on the device), or stream (one block at a time, for models larger than the device)
    #[arg(long, value_name = "WHERE", default_value = "resident", help_heading = "Machine")]
    pub weights: Weights,
    /// Folder on a local disk for blocks' factors that no surgeon has taken, instead of waiting once two wait in memory
    /// [default: wait]
    #[arg(long, value_name = "FOLDER", help_heading = "Machine")]
    pub spill: Option<PathBuf>,
    /// Bytes that may lie there, e.g. 200GiB; then the sweep waits
    #[arg(long, value_name = "BYTES", value_parser = types::parse_bytes, default_value = "64GiB", help_heading = "Machine")]
    pub spill_limit: u64,
}

impl SweepArgs {
    /// Returns the shelf that they ask for, empty.
    ///
    /// # Errors
    /// A folder that cannot be used.
    pub fn shelf(&self) -> Result<Arc<Shelf>, Failure> {
        let Some(folder) = &self.spill else { return Ok(Arc::default()) };
        let spill = Spill::open(folder, self.spill_limit)
            .map_err(|e| Failure::new(Exit::System, format!("--spill {}: {e}", folder.display())))?;
        Ok(Arc::new(Shelf::with_spill(spill)))
    }
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
        let shelf = self.sweep.shelf()?;
        let options = Options { place, device: self.device, threads: self.threads, weights: self.sweep.weights, shelf };
        Ok((options, listener))
    }
}
