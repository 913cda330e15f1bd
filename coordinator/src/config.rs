//! Where a coordinator runs. Nothing here changes a number; that is all in the run specification.

use crate::artifacts::UploadLimits;
use crate::runs::{Coordinator, Deployment, ServeError};
use clap::Parser;
use service::network::NetworkArgs;
use service::program::{Exit, Failure, ProgramArgs};
use service::server::Peers;
use service::status::chain;
use service::{Shutdown, Store};
use types::parse_bytes;

const ABOUT: &str = "\
Coordinates pruning runs: takes them from callers, leases their tasks to calibrators and surgeons, decides how much of each layer \
goes, and keeps the journal.

There is one for each store. It computes no tensors and needs no GPU. Stop or kill it at any moment: the one that is started \
next on the same store goes on with every run where its journal ends.";

/// Flags of the program; each is an environment variable too, `COORDINATOR_` before its name.
#[derive(Debug, Clone, Parser)]
#[command(name = "coordinator", version, about = ABOUT, max_term_width = 110)]
pub struct Args {
    /// Where journals, factors and weights lie, the same for all: a folder that all hosts share, or `s3://BUCKET/PREFIX`
    #[arg(long, value_name = "STORE", help_heading = "Storage")]
    store: String,
    /// Largest file that callers may bring, e.g. 512MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "4GiB", help_heading = "Storage")]
    artifact_limit: u64,
    /// Bytes that callers may have begun to bring and not finished; after an hour of silence those are dropped
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "16GiB", help_heading = "Storage")]
    upload_limit: u64,
    /// Runs under way at a time; later ones wait for their turn
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Runs")]
    parallel_runs: u32,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    program: ProgramArgs,
}

impl AsRef<ProgramArgs> for Args {
    fn as_ref(&self) -> &ProgramArgs {
        &self.program
    }
}

/// Opens store and network, goes on with the runs that were under way, and serves until `shutdown`.
///
/// # Errors
/// Flags that cannot be; a store or an address that cannot be had; another coordinator on the same store.
pub async fn serve(args: Args, shutdown: Shutdown) -> Result<(), Failure> {
    let network = args.network.open().await?;
    let at_store =
        |error: &dyn std::error::Error| Failure::new(Exit::Store, format!("--store {}: {}", args.store, chain(error)));
    let store = Store::open(&args.store).await.map_err(|e| at_store(&e))?;
    let coordinator = Coordinator::open(store, args.parallel_runs as usize).await.map_err(|e| at_store(&e))?;
    coordinator.resume_all().await;
    let uploads = UploadLimits { artifact_bytes: args.artifact_limit, unfinished_bytes: args.upload_limit };
    let (public, workers) = (network.public, network.between_services);
    let deployment = Deployment { peers: Peers::Network, public, workers, uploads };
    tracing::info!(endpoint = network.listener.endpoint().unwrap_or_default(), "listening");
    let incoming = network.listener.incoming();
    let served = coordinator.serve(incoming, deployment, network.admin, shutdown.token().clone()).await;
    served.map_err(|error| match error {
        ServeError::Fenced => Failure::new(Exit::Overdue, error.to_string()),
        ServeError::Serve(_) => Failure::new(Exit::Internal, chain(&error)),
    })
}
